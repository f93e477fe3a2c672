//! What brokers say to each other about partitions: links, messages, batches.
//!
//! Who leads connects. What a leader says goes to the shard that the follower's metadata names; its answers go the way that
//! the partition was opened by last, back to the shard that opened it.

use crate::disk::Batch;
use crate::network::{Lane, Link, NodeIndex};
use crate::world::{Event, World, broker_of, node_of};
use logic::ids::{BrokerId, Offset, ShardId, TopicPartition};
use logic::replication::message::{Body, FromFollower, FromLeader, Message, Nack};
use logic::replication::{self, Stream};

/// Batches that one push sends.
const PUSH_BATCHES: usize = 4;

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// By which link, in either direction …
    pub link: Link,
    /// … and which of its connections.
    pub connection: u64,
    /// About which partition.
    pub id: TopicPartition,
    /// What it says.
    pub message: Message,
    /// What goes with it.
    pub batches: Vec<Batch>,
}

impl Packet {
    /// From whom, to whom.
    fn ends(&self) -> (NodeIndex, NodeIndex) {
        match self.message.body {
            Body::FromLeader(_) => (self.link.from, self.link.to),
            Body::FromFollower(_) => (self.link.to, self.link.from),
        }
    }
}

impl World {
    /// What a broker leads is to be told to who follows: shards that have no link to them get one.
    pub(crate) fn connect_soon(&mut self, at: NodeIndex, permille: u64) {
        let node = &self.nodes[at];
        let mut wanted = Vec::new();
        for (id, host) in node.hosts.iter().filter(|(_, host)| host.replica.leads().is_some()) {
            let Some(entry) = node.image.partition(*id) else { continue };
            let others = entry.brokers().map(node_of).filter(|to| *to != at);
            wanted.extend(others.map(|to| Link { from: at, shard: host.shard, to }));
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|link| self.network.connection(*link) == 0);
        for link in wanted {
            if self.random.chance(permille) {
                let delay_us = self.random.delay_us(self.network.delay_us);
                self.after(delay_us, Event::Connect { link });
            }
        }
    }

    pub(crate) fn connect(&mut self, link: Link) {
        let ready = |node: NodeIndex| {
            self.nodes[node].up && self.nodes[node].recovered && self.paused_until(node).is_none()
        };
        if !ready(link.from)
            || !ready(link.to)
            || usize::from(link.shard.get()) >= self.nodes[link.from].shards.len()
            || self.network.connection(link) != 0
            || !self.network.is_open_both_ways(link.from, link.to)
        {
            return;
        }
        self.network.connect(link);
        self.stream(link, replication::Event::StreamUp(broker_of(link.to)));
    }

    pub(crate) fn disconnect(&mut self, link: Link) {
        if self.network.disconnect(link) {
            self.nodes[link.to].ways.retain(|_, way| *way != link);
            for waiting in self.held.values_mut() {
                waiting.retain(|packet| packet.link != link);
            }
            self.stream(link, replication::Event::StreamDown(broker_of(link.to)));
        }
    }

    /// Tells what a shard hosts of one of its links.
    fn stream(&mut self, link: Link, event: replication::Event) {
        let hosts = self.nodes[link.from].hosts.iter().filter(|(_, host)| host.shard == link.shard);
        let hosts: Vec<TopicPartition> = hosts.map(|(id, _)| *id).collect();
        for id in hosts {
            self.step(link.from, id, event.clone(), Vec::new());
        }
    }

    /// Says something as a leader, or as a follower.
    pub(crate) fn send(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        to: BrokerId,
        id: TopicPartition,
        message: Message,
    ) {
        match &message.body {
            Body::FromLeader(_) => {
                let link = Link { from: at, shard, to: node_of(to) };
                self.send_by(link, Lane::Live, id, message, Vec::new());
            }
            Body::FromFollower(body) => {
                let is_no_replica = matches!(body, FromFollower::Nack(Nack::NotReplica));
                // The leader has changed, and the new one has not opened it yet.
                let Some(&way) = self.nodes[at].ways.get(&(id, to)) else { return };
                self.send_by(way, Lane::Answers, id, message, Vec::new());
                if is_no_replica {
                    self.nodes[at].ways.remove(&(id, to));
                }
            }
        }
    }

    fn send_by(&mut self, link: Link, lane: Lane, id: TopicPartition, message: Message, batches: Vec<Batch>) {
        let connection = self.network.connection(link);
        if connection == 0 {
            return;
        }
        let packet = Packet { link, connection, id, message, batches };
        if !matches!(
            packet.message.body,
            Body::FromLeader(FromLeader::Append(_) | FromLeader::Watermarks { .. })
                | Body::FromFollower(FromFollower::Ack { .. })
        ) {
            let (from, to) = packet.ends();
            let text = || format!("{id} {} to {}: {:?}", broker_of(from), broker_of(to), packet.message);
            self.trace(text);
        }
        let at_us = self.network.arrival_us(link, lane, self.now_us, &mut self.random);
        self.at(at_us, Event::Deliver { packet });
    }

    pub(crate) fn deliver(&mut self, packet: Packet) {
        if self.network.connection(packet.link) != packet.connection {
            return;
        }
        let (from, to) = packet.ends();
        let waits = self.held.get(&(from, to)).is_some_and(|held| !held.is_empty());
        if waits || !self.network.is_open(from, to) {
            self.held.entry((from, to)).or_default().push_back(packet);
            return;
        }
        if let Some(until_us) = self.paused_until(to) {
            return self.at(until_us, Event::Deliver { packet });
        }
        let Packet { link, id, message, batches, .. } = packet;
        let from = broker_of(from);
        let shard = match &message.body {
            Body::FromLeader(said) => {
                if matches!(said, FromLeader::Open { .. }) {
                    self.nodes[to].ways.insert((id, from), link);
                }
                self.nodes[to].home(id)
            }
            Body::FromFollower(_) => link.shard,
        };
        if self.nodes[to].hosts.get(&id).is_some_and(|host| host.shard == shard) {
            return self.step(to, id, replication::Event::Message { from, message }, batches);
        }
        if let Body::FromLeader(_) = message.body {
            let body = Body::FromFollower(FromFollower::Nack(Nack::NotReplica));
            self.send(to, shard, from, id, Message { body, ..message });
        }
    }

    pub(crate) fn push(&mut self, at: NodeIndex, id: TopicPartition, to: BrokerId, stream: Stream) {
        let from_memory = self.random.chance(700);
        let unread = !from_memory && self.read_fails(at);
        let node = &mut self.nodes[at];
        let Some(host) = node.hosts.get_mut(&id) else { return };
        let Some(head) = host.replica.append_head(to) else { return };
        let link = Link { from: at, shard: host.shard, to: node_of(to) };
        let generation = host.generation;
        let base = head.append.base.get();
        let log = &node.disk.logs[&(id, generation)];
        let batches = log.read(base, PUSH_BATCHES).to_vec();
        let open_sequence = head.open_sequence;
        let event = match batches.last() {
            // What is damaged is not sent.
            Some(last)
                if !unread && log.damaged.is_none_or(|damaged| damaged >= last.end() || damaged < base) =>
            {
                let end = Offset::new(last.end());
                let body = Body::FromLeader(FromLeader::Append(head.append));
                let message = Message { leader_epoch: head.leader_epoch, open_sequence, body };
                let lane = if stream == Stream::Live { Lane::Live } else { Lane::CatchUp };
                self.send_by(link, lane, id, message, batches);
                replication::Event::Pushed { to, open_sequence, end, from_memory }
            }
            Some(_) | None => replication::Event::PushFailed { to, open_sequence },
        };
        if unread {
            self.met("pushes that could not be read");
        }
        self.step(at, id, event, Vec::new());
    }
}
