//! Why is it as fast as it is? What this machine can do without a broker, to hold the broker against.
//!
//! A figure of the product means little alone: machines differ, and a virtual machine differs from itself
//! an hour later. [`ceilings`] measures the same patterns of writes, reads, flushes, sockets and checksums
//! in a bare loop, so that a result is stated as a ratio of two figures from one run.
//!
//! Nothing here runs inside the broker, and nothing here starts one: load generation is `bench`'s.
//! Absent on purpose: assertions about timings. A figure is reported, never asserted.

pub mod ceilings;

mod aligned;
mod ring;
