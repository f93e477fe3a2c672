//! A small world for the replica machines: brokers with disks that keep what was synced, streams that lose what is on
//! its way, metadata that is the real image and arrives late, one idempotent producer, and a ledger that judges.
//!
//! What happens next is an [`Action`]; who chooses it is a seeded walk ([`super::simulation`]) or a model checker
//! ([`super::model`]). After every action [`World::judge`] checks the invariants of the protocol by their numbers.

mod judge;
mod producer;

pub use judge::{Ledger, quietly};

use super::message::{Body, FromFollower, FromLeader, Message, Status};
use super::rules;
use super::{Alter, Effect, Event, Here, Member, Replica, Settings, Start, Stream, View};
use crate::ids::*;
use crate::metadata::command::{
    AlterPartition, BrokerRegistration, Command, InSyncMember, Placement, Reassignment, Suspect,
};
use crate::metadata::{self, Image};
use crate::producer_state::ProducerTable;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub const TOPIC: TopicId = TopicId::new(7);
pub const ID: TopicPartition = TopicPartition { topic: TOPIC, partition: PartitionIndex::new(0) };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub epoch: LeaderEpoch,
    pub sequence: u32,
    /// Tells two appends apart that should be one.
    pub nonce: u32,
}

/// What a broker's disk has of the partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub generation: ReplicaGeneration,
    pub log_start: u64,
    /// From offset 0; below a reset's start there is nothing.
    pub records: Vec<Option<Record>>,
    pub synced: usize,
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    pub suspect: bool,
}

impl Disk {
    fn new(generation: ReplicaGeneration) -> Self {
        Self { generation, log_start: 0, records: Vec::new(), synced: 0, epochs: Vec::new(), suspect: false }
    }

    fn truncate(&mut self, to: usize) {
        self.records.truncate(to);
        self.synced = self.synced.min(to);
        self.epochs.retain(|(_, start)| (start.get() as usize) < to);
    }

    fn fingerprint(&self, end: u64) -> Option<u64> {
        let record = (*self.records.get(end.checked_sub(1)? as usize)?)?;
        Some(u64::from(record.epoch.get()) << 40 | u64::from(record.sequence) << 20 | u64::from(record.nonce))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    Push(BrokerId, Stream),
    Truncate(Offset),
    Reset(Offset),
    Fingerprint(Offset),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub up: bool,
    /// What must be told with the next registration; `None` = it is registered as it is.
    pub register: bool,
    pub epoch: BrokerEpoch,
    pub uuid: u128,
    pub disk: Option<Disk>,
    pub replica: Option<Replica>,
    /// What of its log is whose: it follows from the disk (I9), and distinguishes no two worlds.
    pub producers: ProducerTable,
    /// The image that it has seen.
    pub seen: usize,
    pub tasks: Vec<Task>,
    /// Who waits for the high watermark: (end, sequence).
    pub waiters: Vec<(u64, u32)>,
    /// Its disk lost, or changed, what it had synced, and is not whole again.
    pub lost: bool,
    /// I5: what it acknowledged since it was matched.
    pub promised: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    pub message: Message,
    pub records: Vec<Record>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    pub queues: [VecDeque<Packet>; 2],
    /// Of connections that are gone, in the receiver's hands still.
    pub stale: Vec<Packet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Deliver(u32, u32, usize),
    DeliverStale(u32, u32, usize),
    Perform(u32, usize),
    Flush(u32, u64),
    Produce(u32, u32),
    /// A broker sees the next image, or the newest at once.
    Follow(u32, bool),
    Apply(usize, bool),
    Drop(usize),
    Tick(u32),
    Advance(u64),
    Reconnect(u32, u32),
    Cut(u32, u32),
    Mend(u32, u32),
    /// How many unsynced records stay; how many synced ones go.
    Crash(u32, usize, usize),
    Wipe(u32),
    Restart(u32),
    Register(u32),
    Fence(u32),
    Unfence(u32),
    Reassign(Vec<u32>),
    Transfer(u32),
    Retain(u32, u64),
    /// The last record of a broker that is down and counts for nothing is another one.
    Rot(u32),
    Damage(u32, u64),
}

#[derive(Clone, Debug)]
pub struct World {
    /// `None` = there is no clock: whatever can be due is.
    pub now_ms: Option<u64>,
    pub images: Vec<Arc<Image>>,
    pub nodes: Vec<Node>,
    pub links: BTreeMap<(u32, u32), Link>,
    pub cut: BTreeSet<(u32, u32)>,
    pub commands: Vec<Command>,
    pub next_sequence: u32,
    pub next_nonce: u32,
    pub ledger: Ledger,
    pub broken: Option<String>,
    pub unique: bool,
}

fn id(broker: u32) -> BrokerId {
    BrokerId::new(broker)
}

impl World {
    /// `brokers` brokers, registered and unfenced; the first `replicas` keep the partition.
    pub fn new(brokers: u32, replicas: u32, min_in_sync: u32, clock: bool) -> Self {
        let mut world = Self {
            now_ms: clock.then_some(0),
            images: vec![Arc::new(Image::default())],
            nodes: Vec::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            commands: Vec::new(),
            next_sequence: 0,
            next_nonce: 0,
            ledger: Ledger::default(),
            broken: None,
            unique: clock,
        };
        for broker in 0..brokers {
            world.nodes.push(Node {
                up: true,
                register: true,
                epoch: BrokerEpoch::new(0),
                uuid: u128::from(broker) + 1,
                disk: None,
                replica: None,
                producers: ProducerTable::default(),
                seen: 0,
                tasks: Vec::new(),
                waiters: Vec::new(),
                lost: false,
                promised: 0,
            });
            world.apply(Action::Register(broker));
            world.apply(Action::Unfence(broker));
        }
        let placement = Placement { replication_factor: replicas, brokers: (0..replicas).map(id).collect() };
        let configs = vec![("min.insync.replicas".to_owned(), min_in_sync.to_string())];
        world.command(Command::CreateTopic { id: TOPIC, name: "t".into(), placement, configs });
        for broker in 0..brokers {
            while world.nodes[broker as usize].seen + 1 < world.images.len() {
                world.apply(Action::Follow(broker, false));
            }
        }
        for a in 0..brokers {
            for b in a + 1..brokers {
                world.apply(Action::Mend(a, b));
            }
        }
        world
    }

    pub fn image(&self) -> &Arc<Image> {
        self.images.last().expect("there is always one")
    }

    fn now(&self) -> u64 {
        self.now_ms.unwrap_or(0)
    }

    /// The image after `command`, if metadata takes it.
    fn command(&mut self, command: Command) {
        if let Ok((image, _)) = self.image().apply(&command) {
            self.judge_metadata(&image);
            self.images.push(Arc::new(image));
        }
    }

    /// What an image says to the replicas of a broker.
    fn view(&self, image: &Image) -> Option<View> {
        let partition = image.partition(ID)?;
        let config = &image.topic(TOPIC)?.config;
        let member = |replica: &metadata::Replica| {
            let broker = image.broker(replica.broker);
            Member {
                broker: replica.broker,
                generation: replica.generation,
                broker_epoch: broker.map(|known| known.epoch).unwrap_or_default(),
                available: broker.is_some_and(|known| !known.fenced && !known.draining),
                suspect: broker
                    .and_then(|known| known.suspect(ID, replica.generation))
                    .map(|known| (known.last_epoch, known.end)),
            }
        };
        Some(View {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas.iter().map(member).collect(),
            in_sync: partition.in_sync.clone(),
            eligible: partition.eligible.clone(),
            min_in_sync: partition.min_in_sync(config),
            transfer_to: partition.transfer_to,
        })
    }

    // ---- What happens --------------------------------------------------------------------------------

    /// Whether anything is open between two brokers.
    fn connected(&self, a: u32, b: u32) -> bool {
        let pair = (a.min(b), a.max(b));
        self.nodes[a as usize].up && self.nodes[b as usize].up && !self.cut.contains(&pair)
    }

    pub fn apply(&mut self, action: Action) {
        match action {
            Action::Deliver(from, to, queue) => {
                let link = self.links.get_mut(&(from, to)).expect("an action names what is there");
                if let Some(packet) = link.queues[queue].pop_front() {
                    self.receive(from, to, packet);
                }
            }
            Action::DeliverStale(from, to, at) => {
                let link = self.links.get_mut(&(from, to)).expect("an action names what is there");
                let packet = link.stale.remove(at);
                self.receive(from, to, packet);
            }
            Action::Perform(broker, at) => {
                let task = self.nodes[broker as usize].tasks.remove(at);
                self.perform(broker, task);
            }
            Action::Flush(broker, end) => {
                let node = &mut self.nodes[broker as usize];
                if let Some(disk) = &mut node.disk {
                    disk.synced = disk.synced.max(end as usize);
                    self.step(broker, Event::Durable { end: Offset::new(end) });
                }
            }
            Action::Produce(broker, sequence) => self.produce(broker, sequence),
            Action::Follow(broker, newest) => self.follow(broker, newest),
            Action::Apply(at, again) => {
                let command = if again { self.commands[at].clone() } else { self.commands.remove(at) };
                self.command(command);
            }
            Action::Drop(at) => {
                self.commands.remove(at);
            }
            Action::Tick(broker) => self.tick(broker),
            Action::Advance(ms) => self.now_ms = self.now_ms.map(|now| now + ms),
            Action::Reconnect(a, b) => {
                self.disconnect(a, b);
                self.connect(a, b);
            }
            Action::Cut(a, b) => {
                self.disconnect(a, b);
                self.cut.insert((a.min(b), a.max(b)));
            }
            Action::Mend(a, b) => {
                self.cut.remove(&(a.min(b), a.max(b)));
                self.disconnect(a, b);
                self.connect(a, b);
            }
            Action::Crash(broker, kept, lost) => self.crash(broker, kept, lost),
            Action::Wipe(broker) => {
                let node = &mut self.nodes[broker as usize];
                node.disk = None;
                node.uuid += 100;
                node.lost = true;
                node.promised = 0;
            }
            Action::Restart(broker) => {
                self.nodes[broker as usize].up = true;
                for peer in (0..self.nodes.len() as u32).filter(|peer| *peer != broker) {
                    self.connect(broker, peer);
                }
            }
            Action::Register(broker) => self.register(broker),
            Action::Fence(broker) => {
                let epoch = self.nodes[broker as usize].epoch;
                self.command(Command::FenceBroker { broker: id(broker), epoch });
            }
            Action::Unfence(broker) => {
                let epoch = self.nodes[broker as usize].epoch;
                self.command(Command::UnfenceBroker { broker: id(broker), epoch });
            }
            Action::Reassign(replicas) => {
                let replicas = replicas.into_iter().map(id).collect();
                let partitions = vec![Reassignment { partition: ID, replicas }];
                self.command(Command::ReassignPartitions { partitions });
            }
            Action::Transfer(broker) => {
                self.command(Command::ElectLeaders { elections: vec![(ID, id(broker))], unclean: false });
            }
            Action::Retain(broker, to) => {
                if let Some(disk) = &mut self.nodes[broker as usize].disk {
                    self.ledger.log_start = self.ledger.log_start.max(to);
                    disk.log_start = to;
                    self.step(broker, Event::LogStart(Offset::new(to)));
                }
            }
            Action::Rot(broker) => {
                let node = &mut self.nodes[broker as usize];
                if let Some(Some(record)) = node.disk.as_mut().and_then(|disk| disk.records.last_mut()) {
                    record.nonce += 1000;
                    node.lost = true;
                }
            }
            Action::Damage(broker, from) => {
                let node = &mut self.nodes[broker as usize];
                node.lost = true;
                let disk = node.disk.as_mut().expect("an action names what is there");
                disk.suspect = true;
                for record in &mut disk.records[from as usize..] {
                    *record = None;
                }
                self.step(broker, Event::Damaged { from: Offset::new(from) });
            }
        }
        self.judge();
    }

    fn step(&mut self, broker: u32, event: Event) {
        self.step_at(broker, self.now(), event, &[]);
    }

    /// A step of the machine, and what it asks for. `records` came with the message.
    fn step_at(&mut self, broker: u32, now_ms: u64, event: Event, records: &[Record]) {
        let Some(replica) = &mut self.nodes[broker as usize].replica else { return };
        let mut effects = Vec::new();
        replica.step(now_ms, event, &mut effects);
        if self.now_ms.is_none() {
            replica.forget_times();
        }
        for effect in effects {
            self.obey(broker, effect, records);
        }
    }

    fn obey(&mut self, broker: u32, effect: Effect, records: &[Record]) {
        let node = &mut self.nodes[broker as usize];
        match effect {
            Effect::Send { to, message } => self.send(broker, to.get(), Stream::Live, message, Vec::new()),
            Effect::Push { to, stream } => node.tasks.push(Task::Push(to, stream)),
            Effect::Append => self.append(broker, records),
            Effect::Truncate { to } => {
                node.tasks.push(Task::Truncate(to));
                self.judge_cut(broker, to);
            }
            Effect::Reset { log_start } => {
                node.tasks.push(Task::Reset(log_start));
                self.judge_cut(broker, log_start);
            }
            Effect::ReadFingerprint { offset } => node.tasks.push(Task::Fingerprint(offset)),
            Effect::SetLogStart(log_start) => {
                node.disk.as_mut().expect("a replica has one").log_start = log_start.get();
            }
            Effect::SetHighWatermark(to) => self.committed(broker, to.get()),
            Effect::BecameLeader { epoch, start } => {
                let disk = node.disk.as_mut().expect("a replica has one");
                if disk.epochs.last().is_none_or(|(last, _)| *last < epoch) {
                    disk.epochs.push((epoch, start));
                }
                let other = self.ledger.led.insert(epoch, id(broker));
                if other.is_some_and(|other| other != id(broker)) {
                    self.complain(format!("I1: two leaders in epoch {epoch}"));
                }
            }
            Effect::RoleLost => node.waiters.clear(),
            Effect::Alter(Alter { leader_epoch, partition_epoch, in_sync, transfer_to }) => {
                let member = |(broker, epoch, generation)| InSyncMember { broker, epoch, generation };
                let in_sync = in_sync.into_iter().map(member).collect();
                let sender = id(broker);
                let alter = AlterPartition {
                    partition: ID,
                    sender,
                    leader_epoch,
                    partition_epoch,
                    in_sync,
                    transfer_to,
                };
                self.ask(Command::AlterPartition(alter));
            }
            Effect::ReportSuspect { .. } => node.register = true,
            Effect::ReportClean { broker, broker_epoch, generation, leader_epoch } => {
                self.ask(Command::MarkClean {
                    partition: ID,
                    generation,
                    broker,
                    broker_epoch,
                    leader_epoch,
                });
            }
        }
    }

    fn ask(&mut self, command: Command) {
        if !self.commands.contains(&command) {
            self.commands.push(command);
        }
    }

    fn send(&mut self, from: u32, to: u32, stream: Stream, message: Message, records: Vec<Record>) {
        let body = &message.body;
        if let Body::FromFollower(FromFollower::Opened(opened)) = body {
            self.ledger.opened.insert((id(from), opened.generation, message.leader_epoch));
        }
        let node = &mut self.nodes[from as usize];
        match body {
            Body::FromFollower(FromFollower::Matched { end }) => node.promised = end.get(),
            Body::FromFollower(FromFollower::Ack { durable_end }) => {
                node.promised = node.promised.max(durable_end.get());
            }
            _ => {}
        }
        if self.connected(from, to) {
            let queue = usize::from(stream == Stream::CatchUp);
            self.links.entry((from, to)).or_default().queues[queue].push_back(Packet { message, records });
        }
    }

    fn receive(&mut self, from: u32, to: u32, packet: Packet) {
        let now_ms = self.now();
        let Packet { message, records } = packet;
        // Without a replica the driver answers.
        if self.nodes[to as usize].up && self.nodes[to as usize].replica.is_none() {
            let (leader_epoch, open_sequence) = (message.leader_epoch, message.open_sequence);
            if matches!(message.body, Body::FromLeader(FromLeader::Open { .. })) {
                let body = Body::FromFollower(FromFollower::Nack(super::message::Nack::NotReplica));
                self.send(to, from, Stream::Live, Message { leader_epoch, open_sequence, body }, Vec::new());
            }
            return;
        }
        self.step_at(to, now_ms, Event::Message { from: id(from), message }, &records);
    }

    fn append(&mut self, broker: u32, records: &[Record]) {
        for record in records {
            let Some(disk) = &mut self.nodes[broker as usize].disk else { return };
            let base = Offset::new(disk.records.len() as u64);
            if disk.epochs.last().is_none_or(|(last, _)| *last < record.epoch) {
                disk.epochs.push((record.epoch, base));
            }
            disk.records.push(Some(*record));
            producer::note(&mut self.nodes[broker as usize].producers, base.get(), record);
            let event = Event::Appended { base, end: base.advance(1), epoch: record.epoch };
            self.step(broker, event);
        }
    }

    fn perform(&mut self, broker: u32, task: Task) {
        let node = &mut self.nodes[broker as usize];
        let (Some(replica), Some(disk)) = (&mut node.replica, &mut node.disk) else { return };
        match task {
            Task::Push(to, stream) => {
                let Some(head) = replica.append_head(to) else { return };
                let base = head.append.base.get() as usize;
                let end = disk.records.len().min(base + 2);
                let records: Option<Vec<Record>> = disk.records[base..end].iter().copied().collect();
                let Some(records) = records else {
                    let open_sequence = head.open_sequence;
                    return self.step(broker, Event::PushFailed { to, open_sequence });
                };
                let from_memory = end == disk.records.len();
                let body = Body::FromLeader(FromLeader::Append(head.append));
                let (leader_epoch, open_sequence) = (head.leader_epoch, head.open_sequence);
                self.send(broker, to.get(), stream, Message { leader_epoch, open_sequence, body }, records);
                let end = Offset::new(end as u64);
                self.step(broker, Event::Pushed { to, open_sequence, end, from_memory });
            }
            Task::Truncate(to) => {
                disk.truncate(to.get() as usize);
                node.promised = node.promised.min(to.get());
                producer::cut(&mut node.producers, Some(to), disk);
                self.step(broker, Event::Truncated { end: to });
            }
            Task::Reset(log_start) => {
                let start = log_start.get() as usize;
                disk.records = vec![None; start];
                (disk.synced, disk.log_start) = (start, log_start.get());
                disk.epochs.clear();
                node.promised = 0;
                producer::cut(&mut node.producers, None, disk);
                self.step(broker, Event::ResetDone);
            }
            Task::Fingerprint(offset) => {
                let value = disk.fingerprint(offset.get());
                self.step(broker, Event::Fingerprint { offset, value });
            }
        }
    }

    // ---- Brokers -------------------------------------------------------------------------------------

    fn tick(&mut self, broker: u32) {
        let now_ms = self.now_ms.unwrap_or(1 << 40);
        self.step_at(broker, now_ms, Event::Tick, &[]);
    }

    /// Sees a newer image: opens, changes or deletes its replica.
    fn follow(&mut self, broker: u32, newest: bool) {
        let node = &mut self.nodes[broker as usize];
        if node.register && node.replica.is_none() {
            return;
        }
        let last = self.images.len() - 1;
        node.seen = if newest { last } else { last.min(node.seen + 1) };
        let image = self.images[node.seen].clone();
        self.tell(broker, &image);
    }

    fn tell(&mut self, broker: u32, image: &Image) {
        let Some(view) = self.view(image) else { return };
        let mine = view.replicas.iter().find(|member| member.broker == id(broker)).copied();
        let node = &mut self.nodes[broker as usize];
        let generation = node.disk.as_ref().map(|disk| disk.generation);
        if mine.is_none_or(|mine| {
            let other = generation.is_some_and(|generation| generation < mine.generation);
            other && rules::holds(rules::Rule::CheckGeneration)
        }) {
            // Metadata excludes this replica: its data goes.
            node.disk = None;
            node.replica = None;
            node.tasks.clear();
            node.waiters.clear();
            node.promised = 0;
        }
        let Some(mine) = mine else { return };
        let disk = node.disk.get_or_insert_with(|| Disk::new(mine.generation));
        if disk.generation > mine.generation {
            return;
        }
        if node.replica.is_none() {
            let here = Here { broker: id(broker), broker_epoch: node.epoch, generation: disk.generation };
            let start = Start {
                log_start: Offset::new(disk.log_start),
                log_end: Offset::new(disk.records.len() as u64),
                epochs: disk.epochs.clone(),
                status: if disk.suspect { Status::Suspect } else { Status::Clean },
                trusted_end: disk
                    .records
                    .iter()
                    .skip(disk.log_start as usize)
                    .position(Option::is_none)
                    .map(|at| Offset::new(disk.log_start + at as u64)),
            };
            disk.synced = disk.records.len();
            node.producers = producer::fold(disk);
            node.replica = Some(Replica::new(here, Settings::default(), start));
            for peer in 0..self.nodes.len() as u32 {
                if peer != broker && self.connected(broker, peer) {
                    self.step(broker, Event::StreamUp(id(peer)));
                }
            }
        }
        self.step(broker, Event::MetadataChanged(Arc::new(view)));
        let node = &mut self.nodes[broker as usize];
        if let (Some(disk), Some(replica)) = (&mut node.disk, &node.replica) {
            disk.suspect = replica.status() == Status::Suspect;
        }
    }

    fn register(&mut self, broker: u32) {
        let node = &mut self.nodes[broker as usize];
        if let (Some(disk), Some(replica)) = (&mut node.disk, &node.replica) {
            disk.suspect = replica.status() == Status::Suspect;
        }
        let suspects = node.disk.iter().filter(|disk| disk.suspect).map(|disk| Suspect {
            partition: ID,
            generation: disk.generation,
            last_epoch: disk.epochs.last().map(|(epoch, _)| *epoch).unwrap_or_default(),
            end: Offset::new(disk.records.len() as u64),
        });
        let registration = BrokerRegistration {
            broker: id(broker),
            host: "h".into(),
            port: 1,
            shards: 1,
            storage_uuid: node.uuid,
            rack: String::new(),
        };
        let suspects = suspects.collect();
        self.command(Command::RegisterBroker { registration, suspects, starts_fenced: true });
        let epoch = self.image().broker(id(broker)).expect("it has registered").epoch;
        let node = &mut self.nodes[broker as usize];
        node.epoch = epoch;
        node.register = false;
        if node.replica.is_some() {
            self.step(broker, Event::Registered(epoch));
        } else {
            let image = self.images[node.seen].clone();
            self.tell(broker, &image);
        }
    }

    fn crash(&mut self, broker: u32, kept: usize, lost: usize) {
        let node = &mut self.nodes[broker as usize];
        node.up = false;
        node.register = true;
        node.replica = None;
        node.tasks.clear();
        node.waiters.clear();
        if let Some(disk) = &mut node.disk {
            let end = disk.records.len().min(disk.synced + kept);
            let end = end.saturating_sub(lost).max(disk.log_start as usize);
            disk.records.truncate(end);
            disk.synced = end;
            disk.epochs.retain(|(_, start)| start.get() as usize <= end);
            if lost > 0 {
                disk.suspect = true;
                node.lost = true;
                node.promised = 0;
            }
        }
        for peer in 0..self.nodes.len() as u32 {
            if peer != broker {
                self.disconnect(broker, peer);
            }
        }
    }

    fn disconnect(&mut self, a: u32, b: u32) {
        for (from, to) in [(a, b), (b, a)] {
            let link = self.links.entry((from, to)).or_default();
            let left: Vec<Packet> = link.queues.iter_mut().flat_map(|queue| queue.drain(..)).collect();
            // What the receiver has in its hands it may still look at, whenever.
            if self.unique && self.nodes[to as usize].up {
                link.stale.extend(left);
            } else if !self.nodes[to as usize].up {
                link.stale.clear();
            }
            self.step(from, Event::StreamDown(id(to)));
        }
    }

    fn connect(&mut self, a: u32, b: u32) {
        if self.connected(a, b) {
            self.step(a, Event::StreamUp(id(b)));
            self.step(b, Event::StreamUp(id(a)));
        }
    }

    /// Lets what is on its way arrive, until nothing is.
    pub fn settle(&mut self) {
        loop {
            let ready = self.links.iter().find_map(|((from, to), link)| {
                let queue = link.queues.iter().position(|queue| !queue.is_empty())?;
                Some(Action::Deliver(*from, *to, queue))
            });
            let task = self.nodes.iter().position(|node| !node.tasks.is_empty());
            match (ready, task) {
                (Some(action), _) => self.apply(action),
                (None, Some(broker)) => self.apply(Action::Perform(broker as u32, 0)),
                (None, None) => return,
            }
        }
    }

    /// Who has something to read, or to send.
    pub fn reads(&self) -> Option<u32> {
        let reads = |node: &Node| matches!(node.tasks.first(), Some(Task::Push(..) | Task::Fingerprint(_)));
        self.nodes.iter().position(reads).map(|broker| broker as u32)
    }
}

impl Hash for World {
    /// What will happen depends on the newest image, and on those that somebody has not seen.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let first = self.nodes.iter().map(|node| node.seen).min().unwrap_or(0);
        for image in &self.images[first..] {
            if let Some(view) = self.view(image) {
                view.hash(state);
            }
            for broker in 0..self.nodes.len() as u32 {
                let known = image.broker(id(broker));
                known.map(|known| (known.epoch, known.fenced, known.draining)).hash(state);
            }
        }
        for node in &self.nodes {
            (node.up, node.register, node.epoch, &node.disk, &node.replica, &node.tasks).hash(state);
            (&node.waiters, node.lost, node.promised, self.images.len() - node.seen).hash(state);
        }
        (&self.links, &self.cut, self.next_sequence, &self.ledger, &self.broken).hash(state);
        self.commands.len().hash(state);
        for command in &self.commands {
            command.encode().hash(state);
        }
    }
}
