//! The types that Raft is run with.

use openraft::impls::leader_id_adv::LeaderId;
use openraft::{BasicNode, EntryPayload};
use std::sync::Arc;

/// A command on its way into the log: its bytes (`logic::metadata::command_bytes`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal(pub Arc<[u8]>);

impl std::fmt::Display for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a command of {} bytes", self.0.len())
    }
}

#[allow(deprecated, reason = "the new path is in a crate that only holds this type")]
mod config {
    use super::Proposal;

    openraft::declare_raft_types!(
        /// Brokers by number, commands as bytes. What a command does is read from the state machine, so Raft's
        /// own answer is empty.
        pub Types:
            D = Proposal,
            R = (),
            AsyncRuntime = openraft::TokioRuntime,
    );
}

pub(super) use config::Types;

pub(super) type Node = BasicNode;
pub(super) type Leader = LeaderId<u64, u64>;
pub(super) type LogId = openraft::LogId<Leader>;
pub(super) type Vote = openraft::Vote<Leader>;
pub(super) type Membership = openraft::Membership<u64, Node>;
pub(super) type StoredMembership = openraft::StoredMembership<Leader, u64, Node>;
pub(super) type Entry = openraft::Entry<Leader, EntryPayload<Proposal, u64, Node>>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<Leader, u64, Node>;
pub(super) type Snapshot = openraft::Snapshot<Leader, u64, Node, Arc<[u8]>>;
pub(super) type Raft = openraft::Raft<Types, super::machine::Machine>;
