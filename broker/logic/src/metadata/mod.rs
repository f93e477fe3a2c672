//! Metadata as `command → image → reconcile`: what the cluster should look like, decided once.
//!
//! A [`Command`] is what the metadata log carries. Applying it to an [`Image`] gives the next image or a
//! [`CommandError`] and nothing else happens. [`reconcile()`] tells a shard what to open, close and
//! reconfigure so that it agrees with an image. The driver (the metadata thread of `server`) owns the log
//! and the order of the commands; the shards own their partitions.
//!
//! Invariants: [`Image::apply`] is a function of the image and the command alone, today and in every later
//! version, because every replica of the log repeats it. A rule that refuses more than an earlier version
//! did must not touch commands that are already committed. An image never changes.
//!
//! Absent on purpose: IO, clock, randomness (ids are in the command), and anything about offsets or data.

pub mod assignment;
pub mod brokers;
pub mod command;
pub mod command_bytes;
pub mod controller;
pub mod image;
pub mod partition;
mod placement;
pub mod reconcile;
pub mod snapshot;
pub mod topic_config;

pub use assignment::AlterRefusal;
pub use command::{
    AlterPartition, BrokerRegistration, Command, DecodeError, InSyncMember, Placement, Reassignment, Suspect,
};
pub use image::{Broker, CommandError, Image, NewTopic, Outcome, Topic};
pub use partition::{Partition, Replica};
pub use reconcile::{Action, Here, LocalPartition, LocalPartitions, ReplicaView, reconcile};
pub use topic_config::{ConfigError, TopicConfig};
