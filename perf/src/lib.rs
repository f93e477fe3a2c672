//! Why is it as fast as it is? What this machine can do without a broker, what the hot paths cost, where the
//! time of a running broker goes, and how that changed from commit to commit.
//!
//! A figure of the product means little alone: machines differ, and a virtual machine differs from itself
//! an hour later. [`ceilings`] measures the same patterns of writes, reads, flushes, sockets and checksums
//! in a bare loop, [`host_profile`] keeps them, [`share`] states a result as a share of the one that binds it.
//! [`disk_profile`] is what a broker reads at its start to choose how it writes. [`budgets`] counts instructions,
//! which do not depend on neighbours. [`sampling`] and [`flame`] look at a process, [`history`] keeps key figures
//! by commit.
//!
//! Nothing here runs inside the broker, and nothing here starts one: load generation is `bench`'s.
//! Absent on purpose: assertions about timings. A figure is reported, never asserted.

pub mod budgets;
pub mod ceilings;
pub mod disk_profile;
pub mod flame;
pub mod history;
pub mod host_profile;
pub mod report;
pub mod sampling;
pub mod share;

mod aligned;
mod ring;

pub use host_profile::{Host, HostProfile};
