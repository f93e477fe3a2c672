//! The broker that performs what `logic` decides: shards on cores, sockets, files.

mod accept;
mod admin;
mod alarm;
mod background;
pub mod broker;
mod compaction;
mod connection;
mod data_directory;
mod dispatch;
mod error_code;
mod fetch;
pub mod group;
pub mod histogram;
pub mod homes;
pub mod mailbox;
pub mod metadata;
pub mod metrics;
pub mod observe;
mod outbox;
pub mod partition;
mod peer;
mod produce;
mod producer_ids;
mod replication;
mod reply_budget;
mod scrub;
mod shard;
#[cfg(test)]
#[path = "../../ringlog/tests/faults/support/skipped.rs"]
mod skipped;
#[cfg(test)]
mod small_disk;
mod socket;
mod stall;
pub mod storage;
pub mod store;
mod time_slice;
mod timer;
pub mod traffic;

pub use broker::{Broker, BrokerConfig, ClusterConfig, StartError, StopError};
pub use group::GroupSettings;
pub use observe::Observer;

/// Ends the process because an invariant is broken or the device is not to be trusted: a panic would
/// only end one shard's thread, and the others would go on acknowledging.
pub fn fatal(message: &str) -> ! {
    tracing::error!("{message}");
    eprintln!("ringlog: fatal: {message}");
    std::process::abort()
}
