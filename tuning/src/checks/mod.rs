//! The checks, by what they look at. Each is a row of the catalogue and a function from a host to a verdict.
//!
//! Stateless. Absent on purpose: judging what the preflight judges, which `serve` needs too.

pub(crate) mod container;
pub(crate) mod cpu;
pub(crate) mod disk;
pub(crate) mod memory;
pub(crate) mod network;
pub(crate) mod system;
