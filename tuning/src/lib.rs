//! Is this host fit? What will hurt, what it will cost, and how to mend it.
//!
//! [`host_facts`] asks the kernel once, at start-up, and answers with plain data; [`preflight`] judges
//! that data, with a look at the listening address. The broker takes its
//! choices (direct or buffered files, one flush per round or one per file) from [`HostFacts`].
//! [`examine`] is all of that and every other check of the [`catalogue`]: what `ringlog doctor` prints.
//! [`tune`] mends some of it, writes down what it changed, and restores that.
//!
//! Invariants: looking works as any user, and changes nothing but for one temporary file in the data
//! directory, which is removed before the function returns, and a socket that is bound and closed again.
//! Only [`tune`] changes the host, and only files below `/sys` and `/proc`.
//! Absent on purpose: anything of the broker's (this crate depends on none of its crates, so that it can
//! judge a host on which the broker cannot start).

mod catalogue;
mod checks;
mod doctor;
mod facts;
mod finding;
mod mounts;
mod preflight;
mod probe;
mod sources;
#[cfg(test)]
mod tests;
pub mod tune;
mod wake_up;

pub use catalogue::{catalogue, markdown};
pub use checks::memory::MEMORY_BYTES_PER_SHARD;
pub use doctor::{Subject, examine, worst};
pub use facts::{HostFacts, host_facts};
pub use finding::{Check, Finding, Severity};
pub use preflight::preflight;
pub use probe::{IoUring, WriteCache};
pub use sources::Sources;
