//! Streams that other brokers' shards have made to this one: what leaders say goes to the replicas, answers go back.
//!
//! Owned by [`Peers`]. A partition's answers to a leader go to the stream over which that one opened it last, or, if that is
//! another shard's, to that shard. A leader of the past may open it beside the one of now: each has its own answers.
//! Invariants: nothing more is received while this shard has no room for batches, or the mailbox of the
//! partition's shard has none; a stream that ends takes its partitions' ways with it.

use super::stream::{Stream, StreamError};
use super::{Peers, wire};
use crate::accept::PeerHello;
use crate::mailbox;
use crate::socket::Socket;
use crate::stall;
use bytes::Bytes;
use logic::ids::{BrokerId, ShardId, TopicPartition};
use logic::limits::{FORWARDED_ANSWERS_MAX, REPLICATION_ROOM_LOOK_MS};
use logic::replication::message::{Body, FromFollower, FromLeader, Message, Nack};
use schema::error_code::ErrorCode;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

/// Messages that were received on another shard than their partitions'.
pub struct ForwardedMessages {
    /// The leader.
    pub from: BrokerId,
    /// The shard that received them.
    pub shard: ShardId,
    /// Over which of its streams.
    pub stream: u64,
    /// What they say; batches go with appends.
    pub messages: Vec<(TopicPartition, Message, Bytes)>,
}

impl ForwardedMessages {
    /// What it takes of a mailbox's credit, bytes.
    pub fn carried_bytes(&self) -> usize {
        let batches: usize = self.messages.iter().map(|(_, _, batches)| batches.len()).sum();
        size_of_val(&self.messages[..]) + batches
    }
}

/// What is said about partitions.
type Answers = Vec<(TopicPartition, Message)>;

/// Answers for leaders that are connected to another shard.
pub struct ForwardedAnswers {
    /// Over which of that shard's streams.
    pub stream: u64,
    /// What they say.
    pub answers: Answers,
}

/// Where a partition's answers go.
#[derive(Clone)]
enum Way {
    Here(Rc<Stream>),
    Shard { shard: ShardId, stream: u64 },
}

/// See the module.
#[derive(Default)]
pub struct Accepted {
    streams: RefCell<HashMap<u64, Rc<Stream>>>,
    next: Cell<u64>,
    /// By partition and leader.
    ways: RefCell<BTreeMap<(TopicPartition, BrokerId), Way>>,
    /// Answers that wait for the task that takes them to other shards.
    forwarded: RefCell<BTreeMap<(ShardId, u64), Answers>>,
    forwarding: Cell<bool>,
}

impl Accepted {
    /// Streams that there are.
    pub fn len(&self) -> usize {
        self.streams.borrow().len()
    }

    /// A partition is not answered for any more.
    pub fn forget(&self, id: TopicPartition) {
        let mut ways = self.ways.borrow_mut();
        let all = (id, BrokerId::new(0))..=(id, BrokerId::new(u32::MAX));
        let leaders: Vec<_> = ways.range(all).map(|(key, _)| *key).collect();
        leaders.iter().for_each(|key| drop(ways.remove(key)));
    }

    /// Closes all streams.
    pub fn close(&self) {
        self.streams.borrow().values().for_each(|stream| stream.close());
    }
}

impl Peers {
    /// Whether a broker that has connected may replicate to this one; if not, why.
    pub fn admit(&self, hello: PeerHello) -> Result<(), (ErrorCode, String)> {
        if self.replicas().is_none() {
            return Err((ErrorCode::ShuttingDown, "this shard takes no replication streams now".into()));
        }
        if hello.cluster.is_none() || hello.cluster != self.cluster.get() {
            return Err((ErrorCode::InvalidRequest, "this broker belongs to another cluster".into()));
        }
        match self.address(hello.broker) {
            Some(known) if hello.epoch >= known.epoch && hello.broker != self.identity.broker => Ok(()),
            Some(_) => {
                let text = format!("broker {} has registered anew since", hello.broker);
                Err((ErrorCode::InvalidRequest, text))
            }
            // It may have registered a moment ago.
            None => Err((ErrorCode::Overloaded, format!("broker {} is not known here yet", hello.broker))),
        }
    }

    /// Serves a stream of a broker that was admitted and told so, until it ends.
    pub async fn serve(self: &Rc<Self>, socket: Socket, peer: BrokerId) {
        let stream = Stream::new(peer, socket, self.counters.clone());
        let number = self.accepted.next.get();
        self.accepted.next.set(number + 1);
        self.accepted.streams.borrow_mut().insert(number, stream.clone());
        let writing = stream.clone();
        stall::spawn("what a follower says", async move { writing.write(|| {}).await }).detach();
        let why = stream
            .read(async |frame, body| {
                if frame.appends().next().is_some() {
                    self.room().await?;
                }
                let replicas = self.replicas().ok_or(StreamError::Closed)?;
                // Messages for other shards; none if both brokers have as many.
                let mut away: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
                for message in frame.messages(body) {
                    let (id, message, batches) = wire::read(message).ok_or(StreamError::UnknownMessage)?;
                    if !matches!(message.body, Body::FromLeader(_)) {
                        return Err(StreamError::UnknownMessage);
                    }
                    let home = replicas.home(id).unwrap_or(self.identity.shard);
                    if home == self.identity.shard {
                        self.receive_from(peer, Way::Here(stream.clone()), id, message, batches);
                    } else {
                        away.entry(home).or_default().push((id, message, Bytes::copy_from_slice(batches)));
                    }
                }
                for (home, messages) in away {
                    let (from, shard) = (peer, self.identity.shard);
                    let forwarded = ForwardedMessages { from, shard, stream: number, messages };
                    let message = mailbox::Message::Replication(forwarded);
                    if self.mailboxes.send_when_room(home, message).await.is_err() {
                        return Err(StreamError::Closed);
                    }
                }
                Ok(())
            })
            .await;
        tracing::info!("the stream from broker {peer} has ended: {why}");
        self.accepted.streams.borrow_mut().remove(&number);
        let ours = |way: &Way| matches!(way, Way::Here(one) if Rc::ptr_eq(one, &stream));
        self.accepted.ways.borrow_mut().retain(|_, way| !ours(way));
    }

    /// Waits until this shard can take more batches. Its device is behind then: a look now and then is often enough.
    async fn room(&self) -> Result<(), StreamError> {
        loop {
            let replicas = self.replicas().ok_or(StreamError::Closed)?;
            if replicas.has_room() {
                return Ok(());
            }
            glommio::timer::sleep(Duration::from_millis(REPLICATION_ROOM_LOOK_MS)).await;
        }
    }

    /// A leader has said something about a partition of this shard.
    fn receive_from(&self, from: BrokerId, way: Way, id: TopicPartition, message: Message, batches: &[u8]) {
        if matches!(message.body, Body::FromLeader(FromLeader::Open { .. })) {
            self.accepted.ways.borrow_mut().insert((id, from), way);
        }
        if let Some(replicas) = self.replicas() {
            replicas.receive(from, id, message, batches);
        }
    }

    /// Messages that another shard received.
    pub fn receive_forwarded(&self, forwarded: ForwardedMessages) {
        let ForwardedMessages { from, shard, stream, messages } = forwarded;
        for (id, message, batches) in messages {
            self.receive_from(from, Way::Shard { shard, stream }, id, message, &batches);
        }
    }

    /// Answers of another shard's replicas.
    pub fn receive_answers(&self, answers: ForwardedAnswers) {
        let stream = self.accepted.streams.borrow().get(&answers.stream).cloned();
        if let Some(stream) = stream {
            answers.answers.iter().for_each(|(id, message)| stream.say(*id, message));
        }
    }

    /// Says something as a follower.
    pub(super) fn answer(self: &Rc<Self>, to: BrokerId, id: TopicPartition, message: &Message) {
        let way = self.accepted.ways.borrow().get(&(id, to)).cloned();
        // The leader has changed, and the new one has not opened it yet.
        let Some(way) = way else { return };
        match way {
            Way::Here(stream) => stream.say(id, message),
            Way::Shard { shard, stream } => self.forward(shard, stream, id, message),
        }
        if matches!(message.body, Body::FromFollower(FromFollower::Nack(Nack::NotReplica))) {
            self.accepted.ways.borrow_mut().remove(&(id, to));
        }
    }

    /// Has an answer taken to another shard, together with others of this turn of the executor.
    fn forward(self: &Rc<Self>, shard: ShardId, stream: u64, id: TopicPartition, message: &Message) {
        {
            let mut forwarded = self.accepted.forwarded.borrow_mut();
            let answers = forwarded.entry((shard, stream)).or_default();
            if answers.len() >= FORWARDED_ANSWERS_MAX {
                // That shard does not take any: its leader opens again when it misses them.
                return;
            }
            answers.push((id, message.clone()));
        }
        if self.accepted.forwarding.replace(true) {
            return;
        }
        let peers = self.clone();
        stall::spawn("answers for another shard", async move {
            loop {
                let next = peers.accepted.forwarded.borrow_mut().pop_first();
                let Some(((shard, stream), answers)) = next else { break };
                let message = mailbox::Message::ReplicationAnswers(ForwardedAnswers { stream, answers });
                // The broker stops: nobody waits for them.
                let _ = peers.mailboxes.send(shard, message).await;
            }
            peers.accepted.forwarding.set(false);
        })
        .detach();
    }
}
