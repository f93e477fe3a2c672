//! Is this host fit? What will hurt, what it will cost, and how to mend it.
//!
//! [`host_facts`] asks the kernel once, at start-up, and answers with plain data; [`findings`] judges that
//! data and asks nothing; [`preflight`] is both, with a look at the listening address. The broker takes its
//! choices (direct or buffered files, one flush per round or one per file) from [`HostFacts`].
//!
//! Invariants: works as any user; changes nothing but for one temporary file in the data directory, which
//! is removed before the function returns, and a socket that is bound and closed again.
//! Absent on purpose: anything of the broker's (this crate depends on none of its crates, so that it can
//! judge a host on which the broker cannot start), and fixing things: a finding says what to do.

mod facts;
mod finding;
mod mounts;
mod probe;

pub use facts::{HostFacts, host_facts};
pub use finding::{Finding, Severity, findings, preflight};
pub use mounts::{Mount, mount_of};
pub use probe::{IoUring, WriteCache};
