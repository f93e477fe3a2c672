//! The broker that performs what `logic` decides: shards on cores, sockets, files.

pub mod metadata;
pub mod partition;
pub mod storage;
pub mod store;

/// Ends the process because an invariant is broken or the device is not to be trusted: a panic would
/// only end one shard's thread, and the others would go on acknowledging.
pub fn fatal(message: &str) -> ! {
    tracing::error!("{message}");
    eprintln!("ringlog: fatal: {message}");
    std::process::abort()
}
