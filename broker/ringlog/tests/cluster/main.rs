//! Suite E: brokers as processes on hosts of their own; their network is cut and slowed, they are held and killed.
//!
//! Hosts are network namespaces on one bridge ([`network`]), a slow link is a proxy in this process ([`slow_link`]), and
//! [`hosts`] does to brokers what can happen to them, also while `ringlog cluster` changes something ([`changes`]). A run
//! ([`faults`]) has producers that want every acknowledgement to be durable, and a group of consumers; everything that they
//! were told goes through the checker of histories. Without the rights to make namespaces the runs on hosts say so and
//! pass; what they need is installed, or they fail. `RINGLOG_CLUSTER_SEEDS=N` for more than a handful, `RINGLOG_CLUSTER_FIRST=S` to
//! begin at a seed. `RINGLOG_BINARY` names another build than that of the tests, `RINGLOG_OTHER_BINARY` that of every second
//! host's broker.

mod acks;
mod backup;
mod brokers;
mod changes;
mod demo;
mod faults;
mod follower_fetch;
mod group_lag;
mod growth;
mod hosts;
mod load;
mod majority;
mod network;
#[path = "../faults/support/process.rs"]
#[expect(dead_code, reason = "the suite that it belongs to uses the rest")]
mod process;
mod restart;
mod rot;
#[path = "../suite/scrape.rs"]
#[expect(dead_code, reason = "the suite that it belongs to uses the rest")]
mod scrape;
#[path = "../faults/support/segments.rs"]
#[expect(dead_code, reason = "the suite that it belongs to uses the rest")]
mod segments;
mod silences;
#[path = "../faults/support/skipped.rs"]
mod skipped;
mod slow_disk;
mod slow_link;
#[path = "../faults/support/stopped.rs"]
mod stopped;
mod three;
mod trouble;

/// The members and the checker of the histories of groups; the first are started by this path.
#[path = "../suite/history"]
mod history {
    pub mod checker;
    pub mod worker;
}

use std::time::Duration;

/// What turns a hang into a failure.
const DEADLINE: Duration = Duration::from_secs(120);
