//! Replication of one partition: what its leader and its followers do, without IO.
//!
//! One [`Replica`] per partition and broker, owned by the partition's home shard, beside its log. Metadata says
//! which role it has ([`View`]); it begins when the log was recovered and ends when the partition is closed.
//! [`Replica::step`] takes one [`Event`] and hands out [`Effect`]s, which the driver performs in order. Bytes never
//! pass through it: it is told how far the log is, and says from where a peer is to be sent what.
//!
//! ```text
//! leader    Appended ─▶ Push ─▶ (driver reads, sends) ─▶ Pushed      Durable, Ack ─▶ SetHighWatermark
//! follower  Append ─▶ Append ─▶ (driver appends) ─▶ Appended         Durable ─▶ Send(Ack)
//! ```
//!
//! The rules are KRaft's with KIP-320 and KIP-966, with a synced write before every acknowledgement;
//! `docs/adr/0013-replication.md` says why each is there, and where the code differs. Invariants, asserted in
//! release too: a clean replica never truncates below its high watermark; the high watermark never falls but by a
//! reset, and never exceeds what the whole maximal in-sync set has durably; nothing is pushed that the log does
//! not have. A broken one panics, which ends the process.
//!
//! # Fingerprints
//! Epochs agree on where two logs can be the same; that they are is checked at that one place. The fingerprint of
//! the batch that ends at an offset is a hash of its base offset, last offset, leader epoch and checksum.
//!
//! # Absent on purpose
//! Streams and their credits, fairness between partitions, reading and writing: the driver's. Groups on disk and their
//! chain: they differ between replicas. Election: metadata's.

pub mod epoch_history;
mod follower;
mod leader;
pub mod message;
mod peer;
mod replica;
#[cfg(not(any(test, feature = "mutants")))]
pub(crate) mod rules;
#[cfg(any(test, feature = "mutants"))]
pub mod rules;

#[cfg(test)]
mod model;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use leader::PeerProgress;
pub use replica::{AppendHead, Replica};

use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence, PartitionEpoch, ReplicaGeneration,
};
use crate::limits::REPLICA_LAG_MS_DEFAULT;
use message::{Message, Nack, Status};
use std::sync::Arc;

/// What metadata says about a partition, as one of its replicas sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Who leads; `None` = nobody can.
    pub leader: Option<BrokerId>,
    /// Rises with every leader that is given out.
    pub leader_epoch: LeaderEpoch,
    /// Rises with every change.
    pub partition_epoch: PartitionEpoch,
    /// All replicas, this one among them, the preferred leader first.
    pub replicas: Arc<[Member]>,
    /// Those that count for what is committed.
    pub in_sync: Arc<[BrokerId]>,
    /// Those that left the in-sync set when it was too small to commit without them (KIP-966).
    pub eligible: Arc<[BrokerId]>,
    /// `min.insync.replicas` of the topic, at least 1.
    pub min_in_sync: usize,
    /// The broker that is to lead instead, as soon as it has everything: of a drain, or of a preferred leader.
    pub transfer_to: Option<BrokerId>,
}

/// One replica, and what metadata knows of its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Whose it is.
    pub broker: BrokerId,
    /// Which of its replicas.
    pub generation: ReplicaGeneration,
    /// The broker's current registration.
    pub broker_epoch: BrokerEpoch,
    /// Neither fenced nor draining: it may be taken into the in-sync set.
    pub available: bool,
    /// It may have lost something; the last epoch and the end that its log had when it was named, by which the best of
    /// suspects is chosen. An unclean election makes every replica suspect but the one that it elects, so that they may
    /// truncate below their high watermark.
    pub suspect: Option<(LeaderEpoch, Offset)>,
}

/// Whose replica this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Here {
    /// This broker.
    pub broker: BrokerId,
    /// Its registration of now; a step is told of a new one with [`Event::Registered`].
    pub broker_epoch: BrokerEpoch,
    /// Which replica its log is.
    pub generation: ReplicaGeneration,
}

/// Where the log stands when its replica begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// The first offset.
    pub log_start: Offset,
    /// One past the last. All of it is durable: what recovery found beyond the last known sync was synced again.
    pub log_end: Offset,
    /// The log's leader epochs, the oldest first.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    /// Recovery's verdict; what is suspect was named when the broker registered.
    pub status: Status,
    /// What is at this offset and above is not to be trusted: a suspect log that is damaged before its end.
    pub trusted_end: Option<Offset>,
}

/// Times that a broker may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// `replica.lag.time.max.ms`.
    pub lag_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lag_ms_max: REPLICA_LAG_MS_DEFAULT }
    }
}

/// The two kinds of streams between two brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// For members of the in-sync set, and those that nearly are.
    Live,
    /// For those that read old batches, so that these are never in front of new ones.
    CatchUp,
}

/// What a replica is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// Metadata changed. The same or an older view than the last changes nothing.
    MetadataChanged(Arc<View>),
    /// This broker registered anew while it ran, and named every replica that was [`Status::Suspect`].
    Registered(BrokerEpoch),
    /// Batches of one epoch were appended, up to `end`. As leader: of the current epoch.
    Appended {
        /// Their first offset: the log's end before.
        base: Offset,
        /// The log's end now.
        end: Offset,
        /// Their epoch.
        epoch: LeaderEpoch,
    },
    /// The batches of [`Effect::Append`] were not appended.
    AppendRefused(Nack),
    /// Everything below `end` is on the device. One event per flush round.
    Durable {
        /// One past the last durable offset.
        end: Offset,
    },
    /// [`Effect::Truncate`] is done, durably. The log may end lower than was asked for, never higher: then it may lack what
    /// is committed, which the driver must not forget before it is repaired, whatever happens to the process.
    Truncated {
        /// Where the log ends.
        end: Offset,
    },
    /// [`Effect::Reset`] is done, durably.
    ResetDone,
    /// The first offset of a leader's log rises: retention, or records were deleted. Not above the high watermark.
    LogStart(Offset),
    /// The answer to [`Effect::ReadFingerprint`]: `None` = no batch ends there any more, because it was compacted.
    Fingerprint {
        /// The offset that was asked about.
        offset: Offset,
        /// The [fingerprint](self#fingerprints).
        value: Option<u64>,
    },
    /// The log does not have what it should, from `from` on, and the driver has no other way to repair it.
    Damaged {
        /// The first offset that is not to be trusted.
        from: Offset,
    },
    /// Of a replica that knows nothing of metadata yet: the same, and nothing at `from` or above can be read, up to the end of
    /// the log. That something is missing is noted, durably.
    TailLost {
        /// The first offset of what is lost.
        from: Offset,
    },
    /// A stream to a broker that follows is there; everything that was on its way is forgotten. It says nothing of the
    /// stream by which that broker leads.
    StreamUp(BrokerId),
    /// It is gone.
    StreamDown(BrokerId),
    /// A message. Batches of an [`message::FromLeader::Append`] wait in the driver for [`Effect::Append`].
    Message {
        /// Who sent it.
        from: BrokerId,
        /// What it says.
        message: Message,
    },
    /// Batches were sent that [`Effect::Push`] asked for.
    Pushed {
        /// To whom.
        to: BrokerId,
        /// Under which opening: that of [`Replica::append_head`].
        open_sequence: OpenSequence,
        /// One past the last offset sent.
        end: Offset,
        /// They were read from memory: the peer is near the end.
        from_memory: bool,
    },
    /// What [`Effect::Push`] asked for cannot be read.
    PushFailed {
        /// To whom.
        to: BrokerId,
        /// Under which opening.
        open_sequence: OpenSequence,
    },
    /// [`Replica::next_deadline_ms`] is over.
    Tick,
}

/// What the driver is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send it over the live stream; [`message::FromFollower`] over the one that the opening's batches come by.
    /// Acknowledgements of one flush round go out together.
    Send {
        /// To whom.
        to: BrokerId,
        /// What.
        message: Message,
    },
    /// There are batches for a peer. When it is this partition's turn, take the head ([`Replica::append_head`]), read
    /// from its base on, at most [`crate::limits::PUSH_BYTES_MAX`] bytes or one batch, send both, and report
    /// [`Event::Pushed`]. A head that is gone by then means that there is nothing to do. Once for each peer until then.
    Push {
        /// To whom.
        to: BrokerId,
        /// By which stream.
        stream: Stream,
    },
    /// Append the batches of the message that this step was given, unchanged; report [`Event::Appended`] for each
    /// epoch among them, or [`Event::AppendRefused`]. Batches must follow each other from the log's end, with
    /// checksums that hold and epochs that do not fall nor exceed the message's.
    Append,
    /// Discard what is at `to` and above, and the epochs that began there, durably; then report
    /// [`Event::Truncated`]. Nothing is appended meanwhile. The high watermark of a suspect log falls with its end:
    /// [`Replica::high_watermark`].
    Truncate {
        /// Where the log is to end.
        to: Offset,
    },
    /// Discard everything and begin at `log_start`, durably; then report [`Event::ResetDone`].
    Reset {
        /// The first offset.
        log_start: Offset,
    },
    /// The first offset rises: segments below may go.
    SetLogStart(Offset),
    /// Everything below is committed: visible, and answered to who waits for all replicas.
    SetHighWatermark(Offset),
    /// This broker leads from here on. Note in the log that `epoch` begins at `start`, its end, before anything is
    /// appended. It admits produces as [`Replica::admit`] says.
    BecameLeader {
        /// The epoch to append in.
        epoch: LeaderEpoch,
        /// Where it begins.
        start: Offset,
    },
    /// It does not lead any more: who waits gets `NOT_LEADER`, since nobody knows what becomes of their records.
    RoleLost,
    /// Propose a change of the in-sync set or the leader. Only metadata with a higher partition epoch is an answer.
    Alter(Alter),
    /// Look up the fingerprint of the batch that ends at `offset`, and report [`Event::Fingerprint`].
    ReadFingerprint {
        /// One past the last offset of the batch.
        offset: Offset,
    },
    /// Tell metadata that this replica is suspect: by a new registration of this broker that names it with
    /// [what it has](Replica::claim), so that nothing that was said of the earlier one counts any more; then report
    /// [`Event::Registered`].
    ReportSuspect {
        /// Which one.
        generation: ReplicaGeneration,
    },
    /// Tell metadata that a suspect follower has everything again: `CLEAN{p, gen, be, e}`.
    ReportClean {
        /// Whose.
        broker: BrokerId,
        /// The registration that it lives in.
        broker_epoch: BrokerEpoch,
        /// Which replica.
        generation: ReplicaGeneration,
        /// The epoch that it follows in.
        leader_epoch: LeaderEpoch,
    },
}

/// A change of the in-sync set that a leader asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Alter {
    /// The sender's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The state that it changes.
    pub partition_epoch: PartitionEpoch,
    /// The new set, the sender in it.
    pub in_sync: Vec<(BrokerId, BrokerEpoch, ReplicaGeneration)>,
    /// Who is to lead then.
    pub transfer_to: Option<BrokerId>,
}

/// Why a produce is refused before anything is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Another broker leads, or is about to.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// The in-sync set is smaller than `min.insync.replicas`.
    #[error("{in_sync} replicas are in sync, and {min_in_sync} must be")]
    NotEnoughReplicas {
        /// How many are.
        in_sync: usize,
        /// How many must be.
        min_in_sync: usize,
    },
}

/// Effects of steps, in order. The driver keeps one and empties it, so that steps allocate nothing.
pub type Effects = Vec<Effect>;

#[cfg(test)]
mod found_tests;
