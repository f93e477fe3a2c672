//! Typed messages between cores: the only way across, bounded by credits.
//!
//! Every shard owns one mailbox; every other shard can reach it. A message takes a place in the queue
//! and credit for its bytes; without either the sender keeps it and answers its client with a retriable
//! `OVERLOADED`. Replies come back through a channel that the request brought along, so they never wait
//! for room. Absent on purpose: closures, shared state, blocking.

use crate::accept::Greeted;
use crate::fetch::{Found, RemoteFetch, RemoteWait};
use crate::group::lag;
use crate::group::{RemoteAnswer, RemoteAsk};
use crate::homes;
use crate::observe::Timed;
use crate::peer::{ForwardedAnswers, ForwardedMessages};
use crate::produce::{RemoteProduce, RemoteProduced};
use crate::traffic::PartitionReport;
use async_channel::{Receiver, Sender, TrySendError};
use bytes::Bytes;
use futures_channel::oneshot;
use glommio::net::AcceptedTcpStream;
use logic::ids::{BrokerId, Offset, ShardId, TopicPartition};
use logic::limits::{MAILBOX_BYTES_MAX, MAILBOX_MESSAGES_MAX};
use logic::log::LogIdentity;
use schema::error_code::ErrorCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often who waits for a mailbox's credit looks again.
const MAILBOX_LOOK: Duration = Duration::from_millis(1);

/// What shards tell each other.
pub enum Message {
    /// A connection whose client asked for this shard.
    Connection(HandedConnection),
    /// Batches for partitions of this shard.
    Produce(RemoteProduce, oneshot::Sender<RemoteProduced>),
    /// A fetch from partitions of this shard.
    Fetch(RemoteFetch, oneshot::Sender<Vec<Found<Bytes>>>),
    /// A fetch that waits for partitions of this shard; `false` = it could not be parked.
    AwaitBytes(RemoteWait, oneshot::Sender<bool>),
    /// Offsets of partitions of this shard.
    ListOffsets(Vec<(TopicPartition, i64)>, oneshot::Sender<Vec<ListedOffset>>),
    /// The logs of partitions of this shard.
    DescribeLogs(Vec<TopicPartition>, oneshot::Sender<Vec<DescribedLog>>),
    /// Records of this shard's partitions that go: everything below an offset.
    DeleteRecords(Vec<(TopicPartition, Option<Offset>)>, oneshot::Sender<Vec<NewStart>>),
    /// Answer once the image of this version has been followed.
    Settle(u64, oneshot::Sender<()>),
    /// A log that the asking shard is to open by the image of this version.
    TakeOver(LogIdentity, u64, oneshot::Sender<homes::Answer>),
    /// A log that was let go at this version stands in a checkpoint of its new shard.
    Forget(LogIdentity, u64),
    /// Whether and how a partition came to this shard.
    Arrival(TopicPartition, oneshot::Sender<homes::Arrived>),
    /// Coordinators of groups on this shard.
    Groups(RemoteAsk, oneshot::Sender<RemoteAnswer>),
    /// This shard's counters and notices.
    Status(oneshot::Sender<ShardReport>),
    /// What was produced to this shard's partitions and fetched from them, and what their logs are.
    Traffic(oneshot::Sender<Vec<PartitionReport>>),
    /// How far the groups that this shard coordinates have come.
    Progress(oneshot::Sender<lag::Gathered>),
    /// What leaders said about partitions of this shard.
    Replication(ForwardedMessages),
    /// What followers on another shard say to leaders that are connected to this one.
    ReplicationAnswers(ForwardedAnswers),
    /// How far places in this shard's partitions are from their ends.
    Lag(Vec<lag::Question>, oneshot::Sender<Vec<lag::Answer>>),
}

impl Message {
    /// What it takes of a mailbox's credit, bytes. Answers take none: they do not pass through mailboxes, and who
    /// asks for bytes has reserved room for them. Nor do questions of a few words: the queue's places bound them.
    fn carried_bytes(&self) -> usize {
        match self {
            Message::Produce(produce, _) => {
                let batches: usize = produce.entries.iter().map(|(_, _, batch)| batch.len()).sum();
                size_of_val(produce) + size_of_val(&produce.entries[..]) + batches
            }
            Message::Fetch(fetch, _) => size_of_val(fetch) + size_of_val(&fetch.entries[..]),
            Message::AwaitBytes(wait, _) => size_of_val(wait) + size_of_val(&wait.entries[..]),
            Message::Groups(asked, _) => asked.carried_bytes(),
            Message::Replication(forwarded) => forwarded.carried_bytes(),
            Message::Connection(_)
            | Message::ListOffsets(..)
            | Message::DescribeLogs(..)
            | Message::DeleteRecords(..)
            | Message::Settle(..)
            | Message::TakeOver(..)
            | Message::Forget(..)
            | Message::Arrival(..)
            | Message::Status(_)
            | Message::Traffic(_)
            | Message::ReplicationAnswers(_)
            | Message::Progress(_) => 0,
            Message::Lag(asked, _) => size_of_val(&asked[..]),
        }
    }
}

/// A connection on its way from the core that accepted it.
pub struct HandedConnection {
    /// The socket.
    pub stream: AcceptedTcpStream,
    /// What is known of it.
    pub greeted: Greeted,
}

/// An offset that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct ListedOffset {
    /// The partition.
    pub id: TopicPartition,
    /// The offset and its timestamp (-1 = unknown), or why not.
    pub result: Result<(Offset, i64), ErrorCode>,
}

/// Where a log starts after records were deleted.
#[derive(Clone, Copy, Debug)]
pub struct NewStart {
    /// The partition.
    pub id: TopicPartition,
    /// The first offset that is kept, or why nothing was deleted.
    pub result: Result<Offset, ErrorCode>,
}

/// A log as `DescribeLogs` shows it.
#[derive(Clone, Debug)]
pub struct DescribedLog {
    /// The partition.
    pub id: TopicPartition,
    /// Its owner.
    pub shard: ShardId,
    /// The leader's epoch.
    pub leader_epoch: u32,
    /// Damage that is known, or that it is not here.
    pub error: Option<ErrorCode>,
    /// First offset served.
    pub log_start: u64,
    /// First offset not visible.
    pub high_watermark: u64,
    /// Next offset.
    pub log_end: u64,
    /// Files.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// If its topic is compacted.
    pub compaction: Option<DescribedCompaction>,
    /// How far the others are that have it, for who leads it.
    pub replicas: Vec<DescribedReplica>,
}

/// How far another broker's replica is, as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct DescribedReplica {
    /// Whose it is.
    pub broker: BrokerId,
    /// Every offset below is on its device, as it last acknowledged; `None` = it has not been heard since this broker leads.
    pub end: Option<Offset>,
    /// Records of the leader's log that it does not have, as far as `end` is known.
    pub lag_records: Option<u64>,
    /// For how long it has not had all of them; 0 = it has.
    pub lag_ms: u64,
    /// It follows: the partition is open on a stream.
    pub connected: bool,
}

/// What compaction has done and left of a log.
#[derive(Clone, Copy, Debug)]
pub struct DescribedCompaction {
    /// Bytes of segments in which every key stands once.
    pub clean_bytes: u64,
    /// Bytes of those that may be compacted and are not.
    pub dirty_bytes: u64,
    /// When the last pass ended, milliseconds since 1970; 0 = none since the start.
    pub last_pass_ms: i64,
}

/// A shard's counters.
#[derive(Clone, Debug)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// Name and value.
    pub counters: Vec<(&'static str, u64)>,
    /// How long things took.
    pub timed: Vec<Timed>,
    /// What the operator should know.
    pub notices: Vec<String>,
}

/// Why a message was not taken.
pub enum Refused {
    /// No place or no credit.
    Full,
    /// The shard has stopped.
    Closed,
}

#[derive(Clone)]
struct Address {
    queue: Sender<(Message, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// The way to every shard.
#[derive(Clone)]
pub struct Mailboxes {
    addresses: Vec<Address>,
}

/// A shard's own mailbox.
pub struct Mailbox {
    queue: Receiver<(Message, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// Mailboxes for `shards` shards.
pub fn mailboxes(shards: usize) -> (Mailboxes, Vec<Mailbox>) {
    let (addresses, own) = (0..shards)
        .map(|_| {
            let (queue, receiver) = async_channel::bounded(MAILBOX_MESSAGES_MAX);
            let bytes = Arc::new(AtomicUsize::new(0));
            (Address { queue, bytes: bytes.clone() }, Mailbox { queue: receiver, bytes })
        })
        .unzip();
    (Mailboxes { addresses }, own)
}

impl Mailboxes {
    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.addresses.len() as u16
    }

    /// Sends a message, at once or not at all.
    pub fn try_send(&self, to: ShardId, message: Message) -> Result<(), Refused> {
        let Some(address) = self.addresses.get(usize::from(to.get())) else {
            return Err(Refused::Closed);
        };
        let bytes = message.carried_bytes();
        if address.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAILBOX_BYTES_MAX {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        address.queue.try_send((message, bytes)).map_err(|error| {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => Refused::Full,
                TrySendError::Closed(_) => Refused::Closed,
            }
        })
    }

    /// Sends a small message, waiting for a place.
    ///
    /// # Errors
    /// The shard has stopped; the message comes back.
    pub async fn send(&self, to: ShardId, message: Message) -> Result<(), Message> {
        match self.addresses.get(usize::from(to.get())) {
            Some(address) => address.queue.send((message, 0)).await.map_err(|error| error.0.0),
            None => Err(message),
        }
    }

    /// Asks a shard, from any thread; `None` if it has stopped.
    pub async fn ask<T>(
        &self,
        shard: ShardId,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(shard, message(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Sends a message of any size, waiting for a place and for credit.
    ///
    /// # Errors
    /// The shard has stopped; the message comes back.
    pub async fn send_when_room(&self, to: ShardId, message: Message) -> Result<(), Message> {
        let Some(address) = self.addresses.get(usize::from(to.get())) else { return Err(message) };
        let bytes = message.carried_bytes();
        while address.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAILBOX_BYTES_MAX {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if address.queue.is_closed() {
                return Err(message);
            }
            glommio::timer::sleep(MAILBOX_LOOK).await;
        }
        address.queue.send((message, bytes)).await.map_err(|error| {
            address.bytes.fetch_sub(bytes, Ordering::Relaxed);
            error.0.0
        })
    }

    /// Messages that wait in a shard's mailbox, and the credit that they have taken, bytes.
    pub fn waiting(&self, at: ShardId) -> (usize, usize) {
        self.addresses
            .get(usize::from(at.get()))
            .map_or((0, 0), |address| (address.queue.len(), address.bytes.load(Ordering::Relaxed)))
    }

    /// Takes no more messages: every shard sees the end of its mailbox.
    pub fn close(&self) {
        self.addresses.iter().for_each(|address| {
            address.queue.close();
        });
    }
}

impl Mailbox {
    /// The next message; `None` when the broker stops.
    pub async fn receive(&self) -> Option<Message> {
        let (message, bytes) = self.queue.recv().await.ok()?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(message)
    }
}
