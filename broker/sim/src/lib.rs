//! Doubts: seeded runs of whole clusters of the production state machines, in virtual time.
//!
//! Each broker has the machines that the real one has (metadata image and reconcile, controller, replicas, the table of
//! producers) in one to three shards, on a disk, a network and a clock that fail as the seed says. A checker compares everything with what was
//! ever committed. A seed reproduces a run exactly, with the same commit.
//!
//! Absent on purpose: bytes of segments and their recovery (crash images test those), Raft (a library; here its promise
//! is what is relied on), groups (their simulation is beside them).

mod checker;
mod clients;
mod damage;
mod disk;
mod faults;
mod homes;
mod metadata;
mod network;
mod node;
mod operator;
mod random;
mod replicas;
mod streams;
mod world;

pub use faults::{Counts, Fault};
pub use world::{DriverRule, Report, run};
