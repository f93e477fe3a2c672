//! The replication streams of one shard: to the followers of what it leads, and from the leaders of what it follows.
//!
//! ```text
//! this shard leads                                         a shard of the peer follows
//!   Replicas ─ push, send ─▶ Link ─ live, catch-up ─▶ accepted Stream ─ receive ─▶ Replicas
//!            ◀──── receive ───────── answers ◀──────────────────── send ──────────┘
//! ```
//!
//! Owned by the shard, for as long as it lives. Who leads connects: one [`link::Link`] per peer broker, with a live stream,
//! and a catch-up stream once somebody needs it, so that who reads old batches is never in front of new ones. When either
//! ends, both do, and every partition opens again. A partition's answers go where it was last opened from. A message for
//! another shard goes there by mailbox, if the two brokers do not have as many shards.
//!
//! Invariants: what a stream carries is bounded at both ends; partitions take turns. Absent on purpose: what the messages
//! mean (`logic::replication`), and the logs (`partition`): both are behind [`Replicas`].

mod accepted;
pub mod link;
mod pace;
pub mod stream;
mod turns;
mod wire;

pub use accepted::{ForwardedAnswers, ForwardedMessages};

use crate::accept::PeerHello;
use crate::mailbox::Mailboxes;
use crate::partition::tail_cache::Slice;
use crate::socket::Sockets;
use accepted::Accepted;
use futures_util::future::LocalBoxFuture;
use link::Link;
use logic::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence, ShardId, TopicPartition};
use logic::replication::Stream as StreamKind;
use logic::replication::message::{Append, Body, FromLeader, Message};
use pace::Pace;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::rc::Rc;
use stream::StreamCounters;

/// The replicas of a shard, as its streams need them.
pub trait Replicas {
    /// There is a link to `peer`: what this shard leads may be opened there. Nothing of an earlier link counts any more.
    fn link_up(&self, peer: BrokerId);

    /// The link is gone.
    fn link_down(&self, peer: BrokerId);

    /// Which shard of this broker has a partition; `None` = none that the metadata knows of.
    fn home(&self, id: TopicPartition) -> Option<ShardId>;

    /// A message about a partition of this shard, whether it has it or not. `batches` go with an append.
    fn receive(&self, from: BrokerId, id: TopicPartition, message: Message, batches: &[u8]);

    /// It is the turn of a partition that asked for it: the next batches for `to`, at most `max_bytes` or one batch.
    fn read(&self, to: BrokerId, id: TopicPartition, max_bytes: usize) -> Chunk;

    /// The same for batches that are not in memory; `None` = there is nothing to send, or it cannot be read, which whoever
    /// implements this has dealt with.
    fn read_device(
        &self,
        to: BrokerId,
        id: TopicPartition,
        max_bytes: usize,
    ) -> LocalBoxFuture<'static, Option<Batches>>;

    /// Batches that one of the two gave are on their way.
    fn pushed(&self, to: BrokerId, id: TopicPartition, pushed: Pushed);

    /// How fast those that are far behind may be sent batches, bytes per second for each peer; `None` = as fast as it goes.
    fn catch_up_rate(&self) -> Option<NonZeroU64>;

    /// Whether more batches can be taken now: nothing more is received from any leader until then.
    fn has_room(&self) -> bool;
}

/// What there is for a peer.
pub enum Chunk {
    /// Batches in memory.
    Batches(Batches),
    /// Batches that must be read from the device.
    Device,
    /// Nothing any more.
    Nothing,
}

/// Batches for a peer.
pub struct Batches {
    /// The epoch in which they are sent.
    pub leader_epoch: LeaderEpoch,
    /// Which opening they belong to.
    pub open_sequence: OpenSequence,
    /// What goes with them.
    pub head: Append,
    /// One past their last offset.
    pub end: Offset,
    /// The batches, in order.
    pub slices: Vec<Slice>,
}

/// Batches that are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The epoch in which they were sent.
    pub leader_epoch: LeaderEpoch,
    /// Which opening they belong to.
    pub open_sequence: OpenSequence,
    /// One past their last offset.
    pub end: Offset,
    /// They were in memory.
    pub from_memory: bool,
}

/// Where a broker is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How many shards it has.
    pub shards: u16,
    /// Its registration.
    pub epoch: BrokerEpoch,
}

/// Who this shard is to other brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This broker.
    pub broker: BrokerId,
    /// This shard.
    pub shard: ShardId,
    /// How many shards this broker has.
    pub shards: u16,
}

/// The streams of a shard.
pub struct Peers {
    identity: Identity,
    sockets: Rc<Sockets>,
    mailboxes: Mailboxes,
    replicas: RefCell<Option<Rc<dyn Replicas>>>,
    cluster: Cell<Option<u128>>,
    addresses: RefCell<HashMap<BrokerId, PeerAddress>>,
    links: RefCell<HashMap<BrokerId, Rc<Link>>>,
    accepted: Accepted,
    counters: Rc<StreamCounters>,
    /// What all catch-up streams together may send, bytes per second; `None` = there is no bound.
    throttle: Cell<Option<NonZeroU64>>,
    /// Of all catch-up streams together.
    pace: RefCell<Pace>,
    stopped: Cell<bool>,
}

impl Peers {
    /// No streams yet, and nobody to use them: see [`Peers::begin`].
    pub fn new(identity: Identity, sockets: Rc<Sockets>, mailboxes: Mailboxes) -> Rc<Self> {
        Rc::new(Self {
            identity,
            sockets,
            mailboxes,
            replicas: RefCell::default(),
            cluster: Cell::new(None),
            addresses: RefCell::default(),
            links: RefCell::default(),
            accepted: Accepted::default(),
            counters: Rc::default(),
            throttle: Cell::default(),
            pace: RefCell::default(),
            stopped: Cell::new(false),
        })
    }

    /// From now on there are streams, for `replicas`.
    pub fn begin(&self, replicas: Rc<dyn Replicas>) {
        *self.replicas.borrow_mut() = Some(replicas);
    }

    fn replicas(&self) -> Option<Rc<dyn Replicas>> {
        if self.stopped.get() { None } else { self.replicas.borrow().clone() }
    }

    /// Follows the metadata: which cluster this is, and where its brokers are. A link to a broker that registered anew, or
    /// is not there any more, ends.
    pub fn follow(
        self: &Rc<Self>,
        cluster: Option<u128>,
        brokers: impl Iterator<Item = (BrokerId, PeerAddress)>,
    ) {
        self.cluster.set(cluster);
        let addresses: HashMap<_, _> = brokers.collect();
        if *self.addresses.borrow() == addresses {
            return;
        }
        *self.addresses.borrow_mut() = addresses;
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        for link in links {
            let address = self.address(link.peer);
            if address.is_none() {
                self.links.borrow_mut().remove(&link.peer);
            }
            link.moved(address);
        }
    }

    /// What catch-up streams send at most, all together; `None` = no bound.
    pub fn limit_catch_up(&self, bytes_per_second: Option<NonZeroU64>) {
        if self.throttle.replace(bytes_per_second) != bytes_per_second {
            self.pace.borrow_mut().forget();
            self.links.borrow().values().for_each(|link| link.wake_catch_up());
        }
    }

    fn address(&self, broker: BrokerId) -> Option<PeerAddress> {
        self.addresses.borrow().get(&broker).cloned()
    }

    /// What this broker says of itself.
    fn hello(&self) -> PeerHello {
        let broker = self.identity.broker;
        let epoch = self.addresses.borrow().get(&broker).map_or(BrokerEpoch::default(), |own| own.epoch);
        PeerHello { broker, epoch, cluster: self.cluster.get() }
    }

    /// This shard leads something that `peer` follows: has a link made, if there is none, to a broker that the metadata
    /// knows. Whether it is up.
    pub fn want(self: &Rc<Self>, peer: BrokerId) -> bool {
        if self.stopped.get() || peer == self.identity.broker || self.address(peer).is_none() {
            return false;
        }
        let known = self.links.borrow().get(&peer).cloned();
        match known {
            Some(link) => link.is_up(),
            None => {
                let link = Link::new(self, peer);
                // Known before it begins: its task runs at once, and what is said when it is up must find it.
                self.links.borrow_mut().insert(peer, link.clone());
                link.begin();
                link.is_up()
            }
        }
    }

    /// Says something about a partition: as its leader to a follower, over the live stream; as a follower to the leader
    /// that opened it. Without a stream nothing is said: whoever connects begins anew.
    pub fn send(self: &Rc<Self>, to: BrokerId, id: TopicPartition, message: &Message) {
        match &message.body {
            Body::FromLeader(said) => {
                let link = self.links.borrow().get(&to).cloned();
                let Some(link) = link else { return };
                if matches!(said, FromLeader::Open { .. }) {
                    link.forget(id);
                }
                link.say(id, message);
            }
            Body::FromFollower(_) => self.answer(to, id, message),
        }
    }

    /// A partition that this shard leads has batches for a follower: it gets a turn, once.
    pub fn push(self: &Rc<Self>, to: BrokerId, id: TopicPartition, kind: StreamKind) {
        let link = self.links.borrow().get(&to).cloned();
        if let Some(link) = link {
            link.ask(self, id, kind);
        }
    }

    /// A partition is closed, or changes its role: what was on its way does not count any more.
    pub fn forget(&self, id: TopicPartition) {
        self.links.borrow().values().for_each(|link| link.forget(id));
        self.accepted.forget(id);
    }

    /// Ends all streams, for good.
    pub fn stop(&self) {
        self.stopped.set(true);
        let links = self.links.take();
        links.values().for_each(|link| link.moved(None));
        self.accepted.close();
    }

    /// Counters, by name.
    pub fn report(&self) -> Vec<(&'static str, u64)> {
        let links = self.links.borrow();
        let up = links.values().filter(|link| link.is_up()).count();
        let counters = &self.counters;
        vec![
            ("replication_links", links.len() as u64),
            ("replication_links_up", up as u64),
            ("replication_connects_total", links.values().map(|link| link.connects()).sum()),
            ("replication_failed_connects_total", links.values().map(|link| link.failed_connects()).sum()),
            (
                "replication_unacknowledged_bytes",
                links.values().map(|link| link.unacknowledged_bytes()).sum(),
            ),
            ("replication_accepted_streams", self.accepted.len() as u64),
            ("replication_frames_sent_total", counters.frames_sent.get()),
            ("replication_messages_sent_total", counters.messages_sent.get()),
            ("replication_sent_bytes_total", counters.bytes_sent.get()),
            ("replication_sends_total", counters.sends.get()),
            ("replication_frames_received_total", counters.frames_received.get()),
            ("replication_received_bytes_total", counters.bytes_received.get()),
            ("replication_receives_total", counters.receives.get()),
        ]
    }
}

#[cfg(test)]
#[path = "peer/tests.rs"]
mod tests;
