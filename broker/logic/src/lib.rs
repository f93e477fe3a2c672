//! What the broker decides, without IO: the log, metadata, waiting fetches, consumer groups, limits.
//!
//! No system calls, clock, randomness, async or threads: time and bytes are passed in, effects are
//! handed out, and `server` performs them. The same code runs in the broker, in the crash-image tests
//! and in a simulator.
#![forbid(unsafe_code)]

pub mod fetch_waiters;
pub mod group;
pub mod ids;
pub mod limits;
pub mod log;
pub mod metadata;
pub mod producer_state;
pub mod replication;
pub mod routing;
pub mod rules;
