//! A broker: the production machines with a disk, a clock and streams that the run gives it.
//!
//! What the broker's server does around the machines is done here in the same order: it recovers from its disk and its
//! last metadata, registers with the suspects that it found, follows the metadata by `reconcile`, and performs effects.

use crate::clients::Waiter;
use crate::disk::{Batch, Disk, Log};
use crate::network::NodeIndex;
use crate::random::Random;
use crate::world::{Cut, DriverRule, Event, World, broker_of, node_of};
use logic::ids::{BrokerEpoch, BrokerId, Offset, ReplicaGeneration, ShardId, TopicPartition};
use logic::metadata::controller::{self, Controller, Heartbeat};
use logic::metadata::reconcile::{Judgement, judge};
use logic::metadata::{
    Action, AlterPartition, BrokerRegistration, Command, Here as Shard, Image, InSyncMember, LocalPartition,
    LocalPartitions, Outcome, Suspect, reconcile,
};
use logic::producer_state::ProducerTable;
use logic::replication::message::{Body, FromFollower, FromLeader, Message, Nack, Status};
use logic::replication::{self, Effect, Here, Replica, Settings, Start};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Batches that one push sends.
const PUSH_BATCHES: usize = 4;

/// A partition that is open here.
#[derive(Debug)]
pub struct Host {
    /// Which life of the replica it is.
    pub generation: ReplicaGeneration,
    /// Its machine.
    pub replica: Replica,
    /// Its producers.
    pub table: ProducerTable,
    /// Clients that wait for the high watermark.
    pub waiters: Vec<Waiter>,
    /// How often the log was cut: a flush from before says nothing of what is there now.
    cuts: u64,
}

/// A broker's process, and its disk.
#[derive(Debug)]
pub struct Node {
    /// Its place.
    pub at: NodeIndex,
    /// Whether its process lives.
    pub up: bool,
    /// Which process: events of another one are void.
    pub life: u64,
    /// It does nothing before.
    pub paused_until_us: u64,
    /// It learns nothing of metadata before.
    pub lags_until_us: u64,
    /// It was asked to stop in order.
    pub stopping: bool,
    /// What stays.
    pub disk: Disk,
    /// What it knows of metadata.
    pub image: Arc<Image>,
    /// What is open here.
    pub hosts: BTreeMap<TopicPartition, Host>,
    /// The registration that it lives in.
    pub registered: Option<BrokerEpoch>,
    /// It is asked to lead metadata, or not.
    pub controller: Controller,
    local: LocalPartitions,
    recovered: bool,
    /// It registers anew: the last registration does not name every suspect, or is not the last.
    must_register: bool,
    register_after_us: u64,
    verdicts: BTreeMap<(TopicPartition, ReplicaGeneration), Option<Offset>>,
    timer_us: u64,
    /// Its clock: where it began, and how many of its microseconds pass in a million.
    clock_offset_ms: u64,
    clock_rate: u64,
}

impl Node {
    /// One whose process has not started yet.
    pub fn new(at: NodeIndex, random: &mut Random) -> Self {
        Self {
            at,
            up: false,
            life: 0,
            paused_until_us: 0,
            lags_until_us: 0,
            stopping: false,
            disk: Disk::new(at as u128 + 1),
            image: Arc::default(),
            hosts: BTreeMap::new(),
            registered: None,
            controller: Controller::new(controller::Settings::default(), Arc::default()),
            local: LocalPartitions::default(),
            recovered: false,
            must_register: false,
            register_after_us: 0,
            verdicts: BTreeMap::new(),
            timer_us: u64::MAX,
            clock_offset_ms: random.below(1_000_000),
            clock_rate: random.between(970_000, 1_030_000),
        }
    }

    /// Its clock at `now_us`.
    pub fn clock_ms(&self, now_us: u64) -> u64 {
        self.clock_offset_ms + now_us / 1000 * self.clock_rate / 1_000_000
    }

    fn time_us(&self, clock_ms: u64) -> u64 {
        let own_ms = clock_ms.saturating_sub(self.clock_offset_ms);
        own_ms.saturating_mul(1_000_000).div_ceil(self.clock_rate).saturating_add(1).saturating_mul(1000)
    }

    fn broker(&self) -> BrokerId {
        broker_of(self.at)
    }

    /// The log that is open for `id`.
    pub fn log(&self, id: TopicPartition) -> Option<&Log> {
        self.disk.logs.get(&(id, self.hosts.get(&id)?.generation))
    }

    fn log_mut(&mut self, id: TopicPartition) -> Option<&mut Log> {
        self.disk.logs.get_mut(&(id, self.hosts.get(&id)?.generation))
    }

    /// Where the open log ends.
    pub fn log_end(&self, id: TopicPartition) -> Option<u64> {
        self.log(id).map(Log::end)
    }

    /// What its replica calls committed.
    pub fn high_watermark(&self, id: TopicPartition) -> Option<u64> {
        self.hosts.get(&id).map(|host| host.replica.high_watermark().get())
    }

    /// Whether it doubts its replica, also if metadata does not know yet.
    pub fn is_suspect(&self, id: TopicPartition) -> bool {
        self.hosts.get(&id).is_some_and(|host| host.replica.status() == Status::Suspect)
            || self.verdicts.keys().any(|(of, _)| *of == id)
    }
}

fn fold(log: &Log) -> ProducerTable {
    let mut table = ProducerTable::default();
    for batch in &log.batches {
        table.replay(&batch.producer, Offset::new(batch.base), 0);
    }
    table
}

// ---- Processes ---------------------------------------------------------------------------------------

impl World {
    /// The process starts, unless it lives.
    pub(crate) fn start(&mut self, at: NodeIndex) {
        if self.nodes[at].up {
            return;
        }
        self.trace(|| format!("broker {} starts", broker_of(at)));
        let node = &mut self.nodes[at];
        node.up = true;
        node.life += 1;
        node.stopping = false;
        node.image = node.disk.image.clone();
        node.controller = Controller::new(controller::Settings::default(), node.image.clone());
        let life = node.life;
        let delay_us = self.random.between(20, 200) * 1000;
        self.after(delay_us, Event::Recovered { node: at, life });
    }

    /// Recovery is through: what is left over goes, what is doubted is noted.
    pub(crate) fn recovered(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        node.recovered = true;
        let here = Shard { broker: broker_of(at), shard: ShardId::new(0), shards: 1 };
        let image = node.image.clone();
        node.disk
            .logs
            .retain(|(id, generation), _| judge(*id, *generation, &image, here) != Judgement::Delete);
        for (key, log) in &node.disk.logs {
            // Also a recovery that is more careful than it need be.
            let doubts = log.damaged.is_some() || (log.end() > 0 && self.random.chance(20));
            if doubts {
                node.verdicts.insert(*key, log.damaged.map(Offset::new));
            }
        }
        let life = node.life;
        self.after(1, Event::Poll { node: at, life });
        self.after(1, Event::Beat { node: at, life });
    }

    /// The process is gone from one moment to the next.
    pub(crate) fn crash(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        if !node.up {
            return;
        }
        for ((id, _), log) in &mut node.disk.logs {
            assert!(
                log.durable_end >= log.promised || log.damaged.is_some(),
                "I5: broker {} acknowledged {id} up to {}, and has it up to {}",
                broker_of(at),
                log.promised,
                log.durable_end
            );
            log.crash(&mut self.random);
            log.promised = 0;
        }
        node.up = false;
        node.life += 1;
        node.paused_until_us = 0;
        node.recovered = false;
        node.registered = None;
        node.must_register = false;
        node.register_after_us = 0;
        node.hosts.clear();
        node.local = LocalPartitions::default();
        node.verdicts.clear();
        node.timer_us = u64::MAX;
        self.trace(|| format!("broker {} is gone", broker_of(at)));
        // Should it come back as the leader, it would have to be elected anew.
        self.consensus.leader = self.consensus.leader.filter(|leader| *leader != at);
        for other in 0..self.nodes.len() {
            self.disconnect(at, other);
        }
        if let Some(leader) = self
            .consensus
            .leader
            .filter(|leader| *leader != at && self.network.is_open_both_ways(*leader, at))
        {
            self.control(leader, controller::Event::ConnectionRefused(broker_of(at)));
        }
    }

    // ---- Metadata ------------------------------------------------------------------------------------

    pub(crate) fn poll(&mut self, at: NodeIndex) {
        let again_us = self.random.between(10, 60) * 1000;
        let life = self.nodes[at].life;
        self.after(again_us, Event::Poll { node: at, life });
        let newest = self.consensus.image.version();
        let node = &self.nodes[at];
        let known = node.image.version();
        let reaches = self.consensus.leader.is_some_and(|leader| self.network.is_open(leader, at));
        if reaches && known < newest && node.lags_until_us <= self.now_us {
            let to = match self.random.below(10) {
                0..3 => known + 1,
                3..5 => self.random.between(known + 1, newest),
                _ => newest,
            };
            self.follow(at, self.consensus.at(to));
        }
        if self.random.chance(300) {
            self.nodes[at].disk.image = self.nodes[at].image.clone();
        }
        self.register(at);
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            if self.network.connection(at, other) == 0 && self.random.chance(500) {
                let delay_us = self.random.delay_us(self.network.delay_us);
                self.after(delay_us, Event::Connect { one: at, other });
            }
        }
        // It stops when it may.
        let node = &self.nodes[at];
        let fenced = node
            .image
            .broker(broker_of(at))
            .is_some_and(|known| Some(known.epoch) == node.registered && known.fenced);
        if node.stopping && fenced {
            self.trace(|| format!("broker {} stops", broker_of(at)));
            for ((_, _), log) in &mut self.nodes[at].disk.logs {
                let end = log.end();
                log.synced(end);
            }
            self.crash(at);
            let delay_us = self.random.between(100, 2_000) * 1000;
            self.after(delay_us, Event::Start { node: at });
        }
    }

    fn follow(&mut self, at: NodeIndex, image: Arc<Image>) {
        self.nodes[at].image = image.clone();
        let node = &mut self.nodes[at];
        if let (Some(own), Some(known)) = (node.registered, image.broker(node.broker())) {
            // A copy of an earlier registration was late; what it named may not be all.
            node.must_register |= known.epoch > own;
        }
        if node.registered.is_some() {
            self.reconcile(at);
        }
    }

    fn register(&mut self, at: NodeIndex) {
        let node = &self.nodes[at];
        if (node.registered.is_some() && !node.must_register) || self.now_us < node.register_after_us {
            return;
        }
        let mut suspects = Vec::new();
        for ((id, generation), log) in &node.disk.logs {
            let doubted = match node.hosts.get(id).filter(|host| host.generation == *generation) {
                Some(host) => host.replica.status() == Status::Suspect,
                None => node.verdicts.contains_key(&(*id, *generation)),
            };
            if doubted {
                let end = log.damaged.unwrap_or(log.end());
                let last = log.batches.iter().take_while(|batch| batch.base < end).last();
                suspects.push(Suspect {
                    partition: *id,
                    generation: *generation,
                    last_epoch: last.map_or(Default::default(), |batch| batch.epoch),
                    end: Offset::new(end),
                });
            }
        }
        let registration = BrokerRegistration {
            broker: node.broker(),
            host: format!("node{at}"),
            port: 9644,
            shards: 1,
            storage_uuid: node.disk.uuid,
            rack: String::new(),
        };
        let command = Command::RegisterBroker { registration, suspects, starts_fenced: true };
        self.nodes[at].register_after_us = self.now_us + 500_000;
        self.propose(Some(at), command);
    }

    pub(crate) fn answered(&mut self, at: NodeIndex, outcome: Outcome) {
        let Outcome::BrokerRegistered { epoch, .. } = outcome else { return };
        let node = &mut self.nodes[at];
        if node.registered.is_some_and(|known| known >= epoch) {
            return;
        }
        node.registered = Some(epoch);
        node.must_register = false;
        let hosts: Vec<_> = node.hosts.keys().copied().collect();
        self.trace(|| format!("broker {} lives in epoch {epoch}", broker_of(at)));
        for id in hosts {
            self.step(at, id, replication::Event::Registered(epoch), Vec::new());
        }
    }

    fn reconcile(&mut self, at: NodeIndex) {
        let here = Shard { broker: broker_of(at), shard: ShardId::new(0), shards: 1 };
        let image = self.nodes[at].image.clone();
        let actions = reconcile(&self.nodes[at].local, &image, here);
        for action in actions {
            match &action {
                Action::OpenPartition { partition, state } => self.open(at, *partition, state),
                Action::Reconfigure { partition, state } => {
                    let view = Arc::new(state.view());
                    self.step(at, *partition, replication::Event::MetadataChanged(view), Vec::new());
                }
                Action::ClosePartition { partition, generation, delete } => {
                    self.fail_waiters(at, *partition);
                    let node = &mut self.nodes[at];
                    node.hosts.remove(partition);
                    if *delete {
                        node.disk.logs.remove(&(*partition, *generation));
                    }
                }
            }
            self.nodes[at].local.record(&action);
        }
        self.nodes[at].local.finish(&image);
    }

    fn open(&mut self, at: NodeIndex, id: TopicPartition, state: &LocalPartition) {
        let lag_ms_max = self.plan.lag_ms_max;
        let node = &mut self.nodes[at];
        let generation = state.generation;
        let key = (id, generation);
        let log = node.disk.logs.entry(key).or_default();
        let verdict = node.verdicts.remove(&key);
        let start = Start {
            log_start: Offset::new(log.start),
            log_end: Offset::new(log.end()),
            epochs: log.epochs.clone(),
            status: if verdict.is_some() { Status::Suspect } else { Status::Clean },
            trusted_end: verdict.flatten(),
        };
        let broker_epoch = node.registered.expect("partitions are opened by a broker that is registered");
        let here = Here { broker: broker_of(at), broker_epoch, generation };
        let replica = Replica::new(here, Settings { lag_ms_max }, start);
        let host = Host { generation, replica, table: fold(log), waiters: Vec::new(), cuts: 0 };
        node.hosts.insert(id, host);
        for other in 0..self.nodes.len() {
            if self.network.connection(at, other) != 0 {
                self.step(at, id, replication::Event::StreamUp(broker_of(other)), Vec::new());
            }
        }
        self.step(at, id, replication::Event::MetadataChanged(Arc::new(state.view())), Vec::new());
    }

    pub(crate) fn beat(&mut self, at: NodeIndex) {
        let node = &self.nodes[at];
        let beat_us = 150_000 * 1_000_000 / node.clock_rate;
        let (life, broker) = (node.life, node.broker());
        if let (Some(epoch), Some(leader)) = (node.registered, self.consensus.leader)
            && self.network.is_open(at, leader)
        {
            let version = node.image.version();
            let heartbeat = Heartbeat { broker, epoch, version, stopping: node.stopping };
            let delay_us = self.random.delay_us(self.network.delay_us);
            self.after(delay_us, Event::Heard { heartbeat });
        }
        self.after(beat_us, Event::Beat { node: at, life });
    }

    /// Tells a controller, and proposes what it wants.
    pub(crate) fn control(&mut self, at: NodeIndex, event: controller::Event) {
        let node = &mut self.nodes[at];
        let now_ms = node.clock_ms(self.now_us);
        let mut effects = Vec::new();
        node.controller.step(now_ms, event, &mut effects);
        for controller::Effect::Propose(command) in effects {
            self.propose(Some(at), command);
        }
        if let Some(deadline_ms) = self.nodes[at].controller.next_deadline_ms() {
            self.arm(at, deadline_ms);
        }
    }

    // ---- Time ----------------------------------------------------------------------------------------

    fn arm(&mut self, at: NodeIndex, deadline_ms: u64) {
        if deadline_ms == u64::MAX {
            return;
        }
        let node = &mut self.nodes[at];
        let due_us = node.time_us(deadline_ms).max(self.now_us + 1000);
        if due_us < node.timer_us {
            node.timer_us = due_us;
            let life = node.life;
            self.at(due_us, Event::Timer { node: at, life });
        }
    }

    pub(crate) fn timer(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        if node.timer_us > self.now_us {
            return;
        }
        node.timer_us = u64::MAX;
        let now_ms = node.clock_ms(self.now_us);
        let hosts: Vec<_> =
            node.hosts.iter().map(|(id, host)| (*id, host.replica.next_deadline_ms())).collect();
        for (id, deadline_ms) in hosts {
            if deadline_ms <= now_ms {
                self.step(at, id, replication::Event::Tick, Vec::new());
            } else {
                self.arm(at, deadline_ms);
            }
        }
        match self.nodes[at].controller.next_deadline_ms() {
            Some(deadline_ms) if deadline_ms <= now_ms => self.control(at, controller::Event::Tick),
            Some(deadline_ms) => self.arm(at, deadline_ms),
            None => {}
        }
    }
}

// ---- Streams -----------------------------------------------------------------------------------------

impl World {
    pub(crate) fn connect(&mut self, one: NodeIndex, other: NodeIndex) {
        let ready = |node: NodeIndex| {
            self.nodes[node].up && self.nodes[node].recovered && self.paused_until(node).is_none()
        };
        if !ready(one)
            || !ready(other)
            || self.network.connection(one, other) != 0
            || !self.network.is_open_both_ways(one, other)
        {
            return;
        }
        self.network.connect(one, other);
        self.streams(one, other, true);
    }

    pub(crate) fn disconnect(&mut self, one: NodeIndex, other: NodeIndex) {
        if one != other && self.network.disconnect(one, other) {
            self.held.remove(&(one, other));
            self.held.remove(&(other, one));
            self.streams(one, other, false);
        }
    }

    fn streams(&mut self, one: NodeIndex, other: NodeIndex, up: bool) {
        for (at, peer) in [(one, other), (other, one)] {
            let hosts: Vec<_> = self.nodes[at].hosts.keys().copied().collect();
            let peer = broker_of(peer);
            for id in hosts {
                let event = if up {
                    replication::Event::StreamUp(peer)
                } else {
                    replication::Event::StreamDown(peer)
                };
                self.step(at, id, event, Vec::new());
            }
        }
    }

    fn send(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        id: TopicPartition,
        message: Message,
        batches: Vec<Batch>,
    ) {
        let connection = self.network.connection(from, to);
        if connection == 0 {
            return;
        }
        if !matches!(
            message.body,
            Body::FromLeader(FromLeader::Append(_) | FromLeader::Watermarks { .. })
                | Body::FromFollower(FromFollower::Ack { .. })
        ) {
            self.trace(|| format!("{id} {} to {}: {message:?}", broker_of(from), broker_of(to)));
        }
        let at_us = self.network.arrival_us(from, to, self.now_us, &mut self.random);
        self.at(at_us, Event::Deliver { from, to, connection, id, message, batches });
    }

    pub(crate) fn deliver(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        connection: u64,
        id: TopicPartition,
        message: Message,
        batches: Vec<Batch>,
    ) {
        if self.network.connection(from, to) != connection {
            return;
        }
        let waits = self.held.get(&(from, to)).is_some_and(|held| !held.is_empty());
        if waits || !self.network.is_open(from, to) {
            self.held.entry((from, to)).or_default().push_back((connection, id, message, batches));
            return;
        }
        if let Some(until_us) = self.paused_until(to) {
            return self.at(until_us, Event::Deliver { from, to, connection, id, message, batches });
        }
        if self.nodes[to].hosts.contains_key(&id) {
            return self.step(
                to,
                id,
                replication::Event::Message { from: broker_of(from), message },
                batches,
            );
        }
        if let Body::FromLeader(FromLeader::Open { .. } | FromLeader::Append(_)) = message.body {
            let body = Body::FromFollower(FromFollower::Nack(Nack::NotReplica));
            self.send(to, from, id, Message { body, ..message }, Vec::new());
        }
    }

    pub(crate) fn push(&mut self, at: NodeIndex, id: TopicPartition, to: BrokerId) {
        let node = &mut self.nodes[at];
        let Some(host) = node.hosts.get_mut(&id) else { return };
        let Some(head) = host.replica.append_head(to) else { return };
        let generation = host.generation;
        let base = head.append.base.get();
        let batches = node.disk.logs[&(id, generation)].read(base, PUSH_BATCHES).to_vec();
        let open_sequence = head.open_sequence;
        let event = match batches.last() {
            // What is damaged is not sent.
            Some(last)
                if node.disk.logs[&(id, generation)]
                    .damaged
                    .is_none_or(|damaged| damaged >= last.end() || damaged < base) =>
            {
                let end = Offset::new(last.end());
                let body = Body::FromLeader(FromLeader::Append(head.append));
                let message = Message { leader_epoch: head.leader_epoch, open_sequence, body };
                let from_memory = self.random.chance(700);
                self.send(at, node_of(to), id, message, batches);
                replication::Event::Pushed { to, open_sequence, end, from_memory }
            }
            Some(_) | None => replication::Event::PushFailed { to, open_sequence },
        };
        self.step(at, id, event, Vec::new());
    }
}

// ---- Logs --------------------------------------------------------------------------------------------

impl World {
    pub(crate) fn flushed(&mut self, at: NodeIndex, id: TopicPartition, cuts: u64, end: u64) {
        let node = &mut self.nodes[at];
        if node.hosts.get(&id).is_none_or(|host| host.cuts != cuts) {
            return;
        }
        let log = node.log_mut(id).expect("it is open");
        log.synced(end);
        let end = Offset::new(log.durable_end);
        self.step(at, id, replication::Event::Durable { end }, Vec::new());
    }

    pub(crate) fn cut(
        &mut self,
        at: NodeIndex,
        id: TopicPartition,
        generation: ReplicaGeneration,
        work: Cut,
    ) {
        let keeps = self.deleted == Some(DriverRule::TableFollowsLog);
        let node = &mut self.nodes[at];
        let Some(host) = node.hosts.get_mut(&id).filter(|host| host.generation == generation) else { return };
        host.cuts += 1;
        let log = node.disk.logs.get_mut(&(id, generation)).expect("it is open");
        let event = match work {
            Cut::Truncate { to } => {
                let end = log.truncate(to.get());
                replication::Event::Truncated { end: Offset::new(end) }
            }
            Cut::Reset { log_start } => {
                log.reset(log_start.get());
                replication::Event::ResetDone
            }
        };
        if !keeps {
            host.table = fold(log);
        }
        self.report.cuts += 1;
        self.step(at, id, event, Vec::new());
    }

    pub(crate) fn fingerprint(&mut self, at: NodeIndex, id: TopicPartition, offset: Offset) {
        let Some(log) = self.nodes[at].log(id) else { return };
        let value = log.ending_at(offset.get()).map(Batch::fingerprint);
        self.step(at, id, replication::Event::Fingerprint { offset, value }, Vec::new());
    }

    pub(crate) fn disk_us(&mut self, at: NodeIndex) -> u64 {
        self.random.delay_us(500) * self.nodes[at].disk.slowness
    }

    /// What was appended will be durable.
    pub(crate) fn flush_later(&mut self, at: NodeIndex, id: TopicPartition) {
        let delay_us = self.disk_us(at);
        let node = &self.nodes[at];
        let (Some(host), Some(end)) = (node.hosts.get(&id), node.log_end(id)) else { return };
        let flush = Event::Flush { node: at, life: node.life, id, cuts: host.cuts, end };
        self.after(delay_us, flush);
        if self.deleted == Some(DriverRule::SyncBeforeDurable) {
            self.step(at, id, replication::Event::Durable { end: Offset::new(end) }, Vec::new());
        }
    }

    /// Takes one step of a replica and performs what it asks for, in order; what that makes happen at once comes after.
    pub(crate) fn step(
        &mut self,
        at: NodeIndex,
        id: TopicPartition,
        event: replication::Event,
        batches: Vec<Batch>,
    ) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            let node = &mut self.nodes[at];
            let now_ms = node.clock_ms(self.now_us);
            let Some(host) = node.hosts.get_mut(&id) else { return };
            host.replica.step(now_ms, event, &mut effects);
            for effect in std::mem::take(&mut effects) {
                self.perform(at, id, effect, &batches, &mut events);
            }
        }
        if let Some(host) = self.nodes[at].hosts.get(&id) {
            let deadline_ms = host.replica.next_deadline_ms();
            self.arm(at, deadline_ms);
        }
    }

    fn perform(
        &mut self,
        at: NodeIndex,
        id: TopicPartition,
        effect: Effect,
        batches: &[Batch],
        events: &mut VecDeque<replication::Event>,
    ) {
        let broker = broker_of(at);
        let life = self.nodes[at].life;
        let generation = self.nodes[at].hosts[&id].generation;
        match effect {
            Effect::Send { to, message } => {
                let promised = match &message.body {
                    Body::FromFollower(FromFollower::Opened(_)) => {
                        self.checker.opened(id, broker, generation, message.leader_epoch);
                        None
                    }
                    Body::FromFollower(FromFollower::Matched { end }) => Some(*end),
                    Body::FromFollower(FromFollower::Ack { durable_end }) => Some(*durable_end),
                    Body::FromFollower(_) | Body::FromLeader(_) => None,
                };
                if let (Some(promised), Some(log)) = (promised, self.nodes[at].log_mut(id)) {
                    log.promised = promised.get();
                }
                self.send(at, node_of(to), id, message, Vec::new());
            }
            Effect::Push { to, .. } => {
                let delay_us = self.random.between(5, 400);
                self.after(delay_us, Event::Push { node: at, life, id, to });
            }
            Effect::Append => {
                let full = self.nodes[at].disk.full;
                if full || batches.is_empty() {
                    events.push_back(replication::Event::AppendRefused(if full {
                        Nack::StorageFull
                    } else {
                        Nack::Gap
                    }));
                    return;
                }
                for batch in batches {
                    self.checker.appended(id, broker, batch);
                    let node = &mut self.nodes[at];
                    let host = node.hosts.get_mut(&id).expect("it is open");
                    host.table.replay(&batch.producer, Offset::new(batch.base), 0);
                    node.log_mut(id).expect("it is open").append(*batch);
                    let (base, end) = (Offset::new(batch.base), Offset::new(batch.end()));
                    events.push_back(replication::Event::Appended { base, end, epoch: batch.epoch });
                }
                self.flush_later(at, id);
            }
            Effect::Truncate { to } => {
                self.trace(|| format!("{id} at {broker} is cut at {to}"));
                let delay_us = self.disk_us(at);
                self.after(
                    delay_us,
                    Event::Cut { node: at, life, id, generation, work: Cut::Truncate { to } },
                );
            }
            Effect::Reset { log_start } => {
                self.trace(|| format!("{id} at {broker} begins anew at {log_start}"));
                let delay_us = self.disk_us(at);
                self.after(
                    delay_us,
                    Event::Cut { node: at, life, id, generation, work: Cut::Reset { log_start } },
                );
            }
            Effect::SetLogStart(start) => {
                self.nodes[at].log_mut(id).expect("it is open").advance_start(start.get());
            }
            Effect::SetHighWatermark(to) => self.visible(at, id, to.get()),
            Effect::BecameLeader { epoch, start } => {
                self.trace(|| format!("{broker} leads {id} in epoch {epoch} from {start}"));
                self.report.leaders += 1;
                let log = self.nodes[at].log_mut(id).expect("it is open");
                log.note_epoch(epoch, start.get());
                let log = self.nodes[at].log(id).expect("it is open").clone();
                self.checker.leads(id, broker, epoch, &log);
            }
            Effect::RoleLost => self.fail_waiters(at, id),
            Effect::Alter(alter) => {
                let in_sync = alter.in_sync.iter();
                let in_sync =
                    in_sync.map(|&(broker, epoch, generation)| InSyncMember { broker, epoch, generation });
                let command = Command::AlterPartition(AlterPartition {
                    partition: id,
                    sender: broker,
                    leader_epoch: alter.leader_epoch,
                    partition_epoch: alter.partition_epoch,
                    in_sync: in_sync.collect(),
                    transfer_to: alter.transfer_to,
                });
                self.propose(Some(at), command);
            }
            Effect::ReadFingerprint { offset } => {
                let delay_us = self.random.between(1, 500);
                self.after(delay_us, Event::Fingerprint { node: at, life, id, offset });
            }
            Effect::ReportSuspect { .. } => {
                self.trace(|| format!("{broker} doubts {id}"));
                self.nodes[at].must_register = true;
                self.register(at);
            }
            Effect::ReportClean { broker, broker_epoch, generation, leader_epoch } => {
                self.trace(|| format!("{id} at {broker} is clean"));
                let command =
                    Command::MarkClean { partition: id, generation, broker, broker_epoch, leader_epoch };
                self.propose(Some(at), command);
            }
        }
    }
}
