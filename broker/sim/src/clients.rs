//! Clients: idempotent producers with `acks=all` that send again until they have an answer, and consumers.
//!
//! A producer has one batch on its way and goes on only when it is acknowledged; requests and replies are late, lost, or
//! both. It finds leaders from whatever metadata some broker has. It goes on with its next epoch where the product's
//! client does. Clients know the topic by its name: when it has another id, it is another log, of which nothing is known.

use crate::disk::Batch;
use crate::network::NodeIndex;
use crate::world::{DriverRule, Event, TOPIC, World, broker_of, node_of, topic_id};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{PRODUCER_EXPIRATION_MS_DEFAULT, PRODUCERS_PER_PARTITION_MAX};
use logic::producer_state::{Admission, Bounds, LogPlace, ProducerBatch, ProducerError};
use logic::replication;

/// A produce request.
#[derive(Clone, Copy, Debug)]
pub struct Produce {
    client: usize,
    attempt: u64,
    id: TopicPartition,
    leader_epoch: LeaderEpoch,
    batch: ProducerBatch,
    count: u64,
    value: u64,
}

/// Its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Committed, at this offset.
    Acknowledged { base: u64 },
    /// Nobody knows, or it is not here, or not now: send it again.
    Again,
    /// The producer is not known (any more).
    UnknownProducer,
    /// Batches before it are missing.
    OutOfOrder,
}

/// Who waits at a leader.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    client: usize,
    attempt: u64,
    base: u64,
    end: u64,
}

/// A consumer.
#[derive(Clone, Copy, Debug)]
pub struct Consumer {
    /// The partition of the topic that it knows of.
    id: TopicPartition,
    position: u64,
    /// The broker that stands in its rack, while that serves.
    near: Option<NodeIndex>,
    /// The newest that it has heard of.
    leader_epoch: LeaderEpoch,
}

impl Consumer {
    /// One that has read nothing.
    pub fn new(partition: PartitionIndex) -> Self {
        Self::of(TopicPartition { topic: topic_id(0), partition })
    }

    fn of(id: TopicPartition) -> Self {
        Self { id, position: 0, near: None, leader_epoch: LeaderEpoch::new(0) }
    }
}

/// A producer.
#[derive(Debug)]
pub struct Client {
    /// The partition of the topic that it knows of.
    id: TopicPartition,
    producer: i64,
    epoch: i16,
    sequence: i32,
    /// Its epoch is over: what comes next begins another one.
    is_over: bool,
    attempt: u64,
    /// The newest that it has heard of. It never goes back to an earlier leader, which may not know it is one.
    leader_epoch: LeaderEpoch,
    /// The batch on its way: what it is, and when it is given up on and sent again.
    waiting: Option<(Produce, u64)>,
    next_value: u64,
}

impl Client {
    /// Producer `producer` of a partition.
    pub fn new(producer: i64, partition: PartitionIndex) -> Self {
        Self {
            id: TopicPartition { topic: topic_id(0), partition },
            producer,
            epoch: 0,
            sequence: 0,
            is_over: false,
            attempt: 0,
            leader_epoch: LeaderEpoch::new(0),
            waiting: None,
            next_value: 0,
        }
    }

    /// Whether everything that it sent is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_none()
    }
}

impl World {
    /// Sends what is next, or again.
    pub(crate) fn client(&mut self, at: usize) {
        let pause_us = self.random.between(2, 60) * 1000;
        self.after(pause_us, Event::Client { client: at });
        let rests = self.healed_us.is_some_and(|healed_us| self.now_us > healed_us + 2_000_000);
        let count = self.random.between(1, 5);
        let patience_us = self.random.between(200, 2_000) * 1000;
        let client = &mut self.clients[at];
        match &client.waiting {
            Some((_, until_us)) if *until_us > self.now_us => return,
            None if rests => return,
            _ => {}
        }
        client.attempt += 1;
        if client.waiting.is_none() && std::mem::take(&mut client.is_over) {
            (client.epoch, client.sequence) = (client.epoch + 1, 0);
        }
        let first = client.sequence;
        let batch =
            ProducerBatch { id: client.producer, epoch: client.epoch, first, last: first + count as i32 - 1 };
        let value = client.producer as u64 * 1_000_000 + client.next_value;
        let leader_epoch = client.leader_epoch;
        let new = Produce { client: at, attempt: 0, id: client.id, leader_epoch, batch, count, value };
        let mut produce = client.waiting.map_or(new, |(produce, _)| produce);
        produce.attempt = client.attempt;
        client.waiting = Some((produce, self.now_us + patience_us));
        let Some((topic, node, epoch)) = self.leader_as_somebody_knows(produce.id) else { return };
        let client = &mut self.clients[at];
        if topic > client.id.topic {
            // Another log under the same name: it knows nothing of what was sent to the first.
            (client.id.topic, client.leader_epoch, client.is_over) = (topic, epoch, true);
        }
        if epoch < client.leader_epoch && self.deleted != Some(DriverRule::ClientsKeepEpochs) {
            return;
        }
        client.leader_epoch = epoch;
        (produce.id, produce.leader_epoch) = (client.id, epoch);
        client.waiting = Some((produce, self.now_us + patience_us));
        if self.random.chance(15) {
            return;
        }
        let delay_us = self.random.delay_us(self.network.delay_us);
        self.after(delay_us, Event::Request { node, produce });
        if self.random.chance(10) {
            // A copy that the network kept for a while.
            let late_us = self.random.between(1, 4_000) * 1000;
            self.after(late_us, Event::Request { node, produce });
        }
    }

    /// The topic of that name, if it is not an earlier one, and who leads the partition in which epoch.
    fn leader_as_somebody_knows(
        &mut self,
        known: TopicPartition,
    ) -> Option<(TopicId, NodeIndex, LeaderEpoch)> {
        let alive: Vec<NodeIndex> = self.nodes.iter().filter(|node| node.up).map(|node| node.at).collect();
        let asked = *self.random.choose(&alive)?;
        let topic = self.nodes[asked].image.topic_by_name(TOPIC).filter(|topic| topic.id >= known.topic)?;
        let entry = topic.partitions.get(known.partition.get() as usize)?;
        Some((topic.id, node_of(entry.leader?), entry.leader_epoch))
    }

    fn reply(&mut self, client: usize, attempt: u64, reply: Reply) {
        if self.random.chance(985) {
            let delay_us = self.random.delay_us(self.network.delay_us);
            self.after(delay_us, Event::Reply { client, attempt, reply });
        }
    }

    /// A broker takes a request: the order of checks is that of the server.
    pub(crate) fn produce(&mut self, at: NodeIndex, produce: Produce) {
        let Produce { client, attempt, id, .. } = produce;
        if !self.nodes[at].up {
            return;
        }
        match self.admit(at, &produce) {
            Ok(waiter) => {
                let host = self.nodes[at].hosts.get_mut(&id).expect("it admitted");
                host.waiters.push(waiter);
                let visible = host.replica.high_watermark().get();
                self.visible(at, id, visible);
            }
            Err(reply) => self.reply(client, attempt, reply),
        }
    }

    fn admit(&mut self, at: NodeIndex, produce: &Produce) -> Result<Waiter, Reply> {
        let Produce { client, attempt, id, leader_epoch, batch, count, value } = *produce;
        if !self.is_found(at, id) {
            return Err(Reply::Again);
        }
        let node = &mut self.nodes[at];
        let wall_ms = node.wall_ms(self.now_us);
        let full = node.hosts.get(&id).is_some_and(|host| node.is_full(host.shard));
        let host = node.hosts.get_mut(&id).ok_or(Reply::Again)?;
        let epoch = host.replica.admit().map_err(|_| Reply::Again)?;
        if full || epoch != leader_epoch {
            return Err(Reply::Again);
        }
        let log = node.disk.logs.get_mut(&(id, host.generation)).expect("it is open");
        let place = LogPlace { end: Offset::new(log.end()), durable_end: Offset::new(log.durable_end) };
        let expiration_ms = PRODUCER_EXPIRATION_MS_DEFAULT as i64;
        let bounds = Bounds { expiration_ms, producers_max: PRODUCERS_PER_PARTITION_MAX };
        let (base, end) = match host.table.admit(wall_ms, &batch, place, bounds) {
            Ok(Admission::Duplicate(note)) => {
                self.report.duplicates += 1;
                let end = if self.deleted == Some(DriverRule::DuplicatesWait) { 0 } else { note.end().get() };
                return Ok(Waiter { client, attempt, base: note.base.get(), end });
            }
            Ok(Admission::Append) => (log.end(), log.end() + count),
            Err(ProducerError::Unknown { .. }) => return Err(Reply::UnknownProducer),
            Err(ProducerError::OutOfOrder { .. }) => return Err(Reply::OutOfOrder),
            // To a copy of something old, to whom nobody listens; or soon no more.
            Err(
                ProducerError::StaleEpoch { .. } | ProducerError::Forgotten { .. } | ProducerError::InFlight,
            ) => {
                return Err(Reply::Again);
            }
        };
        let stored = Batch { base, count, epoch, producer: batch, value, appended_ms: wall_ms };
        log.append(stored);
        self.appended(at, id, stored, epoch);
        Ok(Waiter { client, attempt, base, end })
    }

    fn appended(&mut self, at: NodeIndex, id: TopicPartition, batch: Batch, epoch: LeaderEpoch) {
        self.checker.appended(id, broker_of(at), &batch);
        let (base, end) = (Offset::new(batch.base), Offset::new(batch.end()));
        self.step(at, id, replication::Event::Appended { base, end, epoch }, Vec::new());
        self.flush_later(at, id);
    }

    /// What is below `end` is committed, as a broker knows.
    pub(crate) fn visible(&mut self, at: NodeIndex, id: TopicPartition, end: u64) {
        let broker = broker_of(at);
        let Some(host) = self.nodes[at].hosts.get_mut(&id) else { return };
        let answered: Vec<Waiter> = host.waiters.extract_if(.., |waiter| waiter.end <= end).collect();
        let leads = host.replica.leads().is_some();
        let log = self.nodes[at].log(id).expect("it is open");
        if leads {
            self.checker.committed(id, broker, log, end);
        } else {
            self.checker.reads(id, broker, log, end);
        }
        for waiter in answered {
            let reply = Reply::Acknowledged { base: waiter.base };
            self.reply(waiter.client, waiter.attempt, reply);
        }
    }

    /// The role is lost, or the partition: nobody knows what becomes of what they sent.
    pub(crate) fn fail_waiters(&mut self, at: NodeIndex, id: TopicPartition) {
        let waiters = self.nodes[at].hosts.get_mut(&id).map(|host| std::mem::take(&mut host.waiters));
        for waiter in waiters.unwrap_or_default() {
            self.reply(waiter.client, waiter.attempt, Reply::Again);
        }
    }

    pub(crate) fn replied(&mut self, at: usize, attempt: u64, reply: Reply) {
        let again_us = self.random.between(5, 100) * 1000;
        let client = &mut self.clients[at];
        // An earlier attempt that is acknowledged is the same batch, or one that is acknowledged already.
        let Some((produce, until_us)) = &mut client.waiting else { return };
        if attempt != client.attempt {
            return;
        }
        match reply {
            Reply::Acknowledged { base } => {
                let (produce, id) = (*produce, produce.id);
                client.sequence += produce.count as i32;
                client.next_value += 1;
                client.waiting = None;
                self.report.acknowledged += 1;
                self.checker.acknowledged(id, base, produce.value);
            }
            Reply::Again => *until_us = self.now_us + again_us,
            Reply::UnknownProducer | Reply::OutOfOrder => {
                // The product's client begins its next epoch with the batch that was refused.
                let truth = self.checker.truth(produce.id);
                assert!(
                    reply == Reply::UnknownProducer && (truth.trimmed_to > 0 || client.is_over),
                    "I8: {reply:?} for {produce:?}: a batch before it is lost"
                );
                client.is_over = false;
                client.epoch += 1;
                client.sequence = 0;
                produce.batch.epoch = client.epoch;
                produce.batch.first = 0;
                produce.batch.last = produce.count as i32 - 1;
                *until_us = self.now_us;
                self.checker.repeated.insert(produce.value);
            }
        }
    }

    /// Whether a shard that somebody is connected to finds the shard that has a partition open.
    fn is_found(&mut self, at: NodeIndex, id: TopicPartition) -> bool {
        let node = &self.nodes[at];
        let Some(host) = node.hosts.get(&id) else { return false };
        let via = ShardId::new(self.random.below(node.shards.len() as u64) as u16);
        via == host.shard || node.home_as_known_by(via, id) == host.shard
    }

    /// A consumer asks for what comes next: at the leader, or at the follower that stands in its rack as long as that
    /// serves.
    pub(crate) fn read(&mut self, at: usize) {
        let pause_us = self.random.between(10, 200) * 1000;
        self.after(pause_us, Event::Read { consumer: at });
        let known = self.consumers[at].id;
        let Some((topic, leader, epoch)) = self.leader_as_somebody_knows(known) else { return };
        if topic > known.topic {
            self.consumers[at] = Consumer::of(TopicPartition { topic, ..known });
        }
        let Consumer { id, position, near, leader_epoch } = self.consumers[at];
        let epoch = epoch.max(leader_epoch);
        self.consumers[at].leader_epoch = epoch;
        // It is tried again after a while; and sometimes consumers stand elsewhere.
        let near =
            near.or_else(|| self.random.chance(300).then(|| self.random.below(self.nodes.len() as u64) as _));
        let near = near.filter(|_| !self.random.chance(20));
        self.consumers[at].near = near;
        let node = &self.nodes[near.unwrap_or(leader)];
        let Some(host) = node.hosts.get(&id).filter(|_| node.up && self.paused_until(node.at).is_none())
        else {
            self.consumers[at].near = None;
            return;
        };
        let follows = near.is_some() && host.replica.follows() == Some(epoch) && node.is_heard(self.now_us);
        // Whatever a follower cannot answer, or what does not lead any more: the leader is asked.
        if !follows && host.replica.leads().is_none() {
            self.consumers[at].near = None;
            return;
        }
        let at_node = node.at;
        if self.read_fails(at_node) {
            // The leader says so, and is asked again.
            self.met("reads that failed");
            self.consumers[at].near = None;
            return;
        }
        let node = &self.nodes[at_node];
        let host = &node.hosts[&id];
        let log = node.log(id).expect("it is open");
        let visible = match self.deleted {
            Some(DriverRule::FollowersShowCommitted) if follows => log.end(),
            _ => host.replica.high_watermark().get(),
        };
        if follows && !(log.start..=log.end()).contains(&position) {
            // The leader says what is out of range.
            self.consumers[at].near = None;
            return;
        }
        let from = position.max(log.start);
        let sound = |batch: &&Batch| log.damaged != Some(batch.base);
        let read = log.read(from, 20).iter().take_while(|batch| batch.end() <= visible).take_while(sound);
        let read: Vec<Batch> = read.copied().collect();
        let broker = broker_of(node.at);
        if follows {
            self.report.followed += read.len() as u64;
        }
        for batch in &read {
            self.checker.read(id, broker, batch);
        }
        self.consumers[at].position = read.last().map_or(from, Batch::end);
    }
}
