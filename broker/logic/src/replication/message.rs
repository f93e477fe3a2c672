//! What replicas of one partition say to each other.
//!
//! Plain values without bytes: which partition is meant, and the batches that go with an [`FromLeader::Append`],
//! are the stream's (`schema/definitions/replication.fbs`). Every message carries the leader epoch and the open
//! sequence; what does not fit the receiver's own is ignored or answered with [`FromFollower::Nack`].
//!
//! ```text
//! leader                      follower
//!   Open            ─────▶
//!                   ◀─────    Opened { epochs, … }
//!   Match | Reset   ─────▶                            truncates, durably
//!                   ◀─────    Matched { end }
//!   Append …        ─────▶                            appends, writes, syncs
//!                   ◀─────    Ack { durable_end }     once per flush round
//!   Watermarks      ─────▶                            when there is nothing to append
//! ```

use crate::ids::{BrokerEpoch, LeaderEpoch, Offset, OpenSequence, ReplicaGeneration};

/// Epochs and where each began, the oldest first.
pub type Epochs = Vec<(LeaderEpoch, Offset)>;

/// One message about one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The epoch that the leader leads in.
    pub leader_epoch: LeaderEpoch,
    /// Which opening of the partition at this follower it belongs to.
    pub open_sequence: OpenSequence,
    /// What is said.
    pub body: Body,
}

/// What is said, by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// From the partition's leader to a follower.
    FromLeader(FromLeader),
    /// From a follower to the leader.
    FromFollower(FromFollower),
}

/// What a leader says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FromLeader {
    /// Forget what came before and say where you are.
    Open {
        /// The follower's replica that metadata names; another one is not meant.
        generation: ReplicaGeneration,
        /// The leader's first offset.
        log_start: Offset,
    },
    /// Truncate to `to`, if what is below is the same.
    Match {
        /// No more than the end of either log.
        to: Offset,
        /// [The fingerprint](super#fingerprints) of the batch that ends at `to`; `None` = the leader cannot tell.
        fingerprint: Option<u64>,
    },
    /// Discard everything and begin at `log_start`.
    Reset {
        /// The leader's first offset.
        log_start: Offset,
    },
    /// Append the batches that go with it.
    Append(Append),
    /// How far the leader is, when no batch tells it.
    Watermarks {
        /// Everything below is committed.
        high_watermark: Offset,
        /// The leader's first offset.
        log_start: Offset,
    },
}

/// What goes with batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    /// The offset of the first.
    pub base: Offset,
    /// The epoch of the record before it in the leader's log; `None` = the leader has none.
    pub previous_epoch: Option<LeaderEpoch>,
    /// Everything below is committed.
    pub high_watermark: Offset,
    /// The leader's first offset.
    pub log_start: Offset,
}

/// What a follower says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FromFollower {
    /// Where this replica is. Boxed: it is rare, and large.
    Opened(Box<Opened>),
    /// The log ends at `end`, durably, and what is below is the leader's.
    Matched {
        /// The log's end.
        end: Offset,
    },
    /// Everything below `durable_end` is on this replica's device. Cumulative.
    Ack {
        /// One past the last durable offset.
        durable_end: Offset,
    },
    /// The message, or the stream of the partition, cannot be followed.
    Nack(Nack),
}

/// Where a follower's replica is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opened {
    /// The registration that it lives in.
    pub broker_epoch: BrokerEpoch,
    /// Which replica it is.
    pub generation: ReplicaGeneration,
    /// The epochs of its log, the newest [`crate::limits::EPOCHS_NAMED_MAX`] of them.
    pub epochs: Epochs,
    /// Its first offset.
    pub log_start: Offset,
    /// Where its log ends. Everything below is on its device: it answers when that is so.
    pub durable_end: Offset,
    /// What it thinks of itself.
    pub status: Status,
}

/// What a replica's log is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Everything that it ever acknowledged is there.
    Clean,
    /// It may have lost something: it must not lead, nor count, before a leader has repaired it.
    Suspect,
}

/// Why a follower does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nack {
    /// What should come next did not: open again.
    Gap,
    /// The follower knows a later leader.
    StaleLeader,
    /// The follower does not know this leader yet.
    UnknownEpoch,
    /// It has no such replica, or does not know it yet.
    NotReplica,
    /// Its disk is full.
    StorageFull,
    /// It may have lost something that metadata believes it has.
    Suspect,
}
