//! The replicas of a broker and their logs: what machines ask for is done, in order, by a disk that takes its time.

use crate::clients::Waiter;
use crate::disk::{Batch, Log};
use crate::network::NodeIndex;
use crate::node::Node;
use crate::world::{Cut, DriverRule, Event, World, broker_of};
use logic::ids::{Offset, ReplicaGeneration, ShardId, TopicPartition};
use logic::metadata::{AlterPartition, Command, InSyncMember, LocalPartition, Suspect};
use logic::producer_state::ProducerTable;
use logic::replication::message::{Body, FromFollower, Nack, Status};
use logic::replication::{self, Effect, Here, Replica, Settings, Start};
use std::collections::VecDeque;
use std::sync::Arc;

/// A flush of what an opening of a log has taken.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    id: TopicPartition,
    generation: ReplicaGeneration,
    incarnation: u64,
    cuts: u64,
    end: u64,
}

/// A partition that is open here.
#[derive(Debug)]
pub struct Host {
    /// The shard that serves it.
    pub shard: ShardId,
    /// Which life of the replica it is.
    pub generation: ReplicaGeneration,
    /// Which opening of its log.
    pub incarnation: u64,
    /// Its machine.
    pub replica: Replica,
    /// Its producers.
    pub table: ProducerTable,
    /// Clients that wait for the high watermark.
    pub waiters: Vec<Waiter>,
    /// How often the log was cut: a flush from before says nothing of what is there now.
    pub cuts: u64,
    /// Flushes under way.
    pub flushes: u32,
    /// The log is being cut.
    pub is_cut: bool,
}

impl Node {
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
            || self.moving_suspects.contains(&id)
    }
}

fn fold(log: &Log) -> ProducerTable {
    let mut table = ProducerTable::default();
    for batch in &log.batches {
        table.replay(&batch.producer, Offset::new(batch.base), batch.appended_ms);
    }
    table
}

impl World {
    /// Makes the replica of a log that has just been opened. `doubted`: what recovery holds against it; `lost_from`: from where
    /// on nothing can be read.
    pub(crate) fn host(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        state: &LocalPartition,
        doubted: Option<Offset>,
        lost_from: Option<Offset>,
    ) {
        let lag_ms_max = self.plan.lag_ms_max;
        let node = &mut self.nodes[at];
        let generation = state.generation;
        let log = &node.disk.logs[&(id, generation)];
        let log_end = Offset::new(log.end());
        let start = Start {
            log_start: Offset::new(log.start),
            log_end,
            epochs: log.epochs.iter().copied().filter(|(_, start)| *start < log_end).collect(),
            status: Status::Clean,
            trusted_end: None,
        };
        let broker_epoch = node.shards[usize::from(shard.get())].registration;
        let here = Here { broker: broker_of(at), broker_epoch, generation };
        let host = Host {
            shard,
            generation,
            incarnation: log.incarnation,
            replica: Replica::new(here, Settings { lag_ms_max }, start),
            table: fold(log),
            waiters: Vec::new(),
            cuts: 0,
            flushes: 0,
            is_cut: false,
        };
        node.hosts.insert(id, host);
        if let Some(from) = lost_from {
            self.trace(|| format!("{id} at {} is lost from {from} on", broker_of(at)));
            self.met("ends of logs that were lost and cut off");
            self.step(at, id, replication::Event::TailLost { from }, Vec::new());
        }
        if let Some(from) = doubted {
            self.step(at, id, replication::Event::Damaged { from }, Vec::new());
        }
        for peer in self.network.peers_of(at, shard) {
            self.step(at, id, replication::Event::StreamUp(broker_of(peer)), Vec::new());
        }
        self.step(at, id, replication::Event::MetadataChanged(Arc::new(state.view())), Vec::new());
    }

    /// A partition takes nothing any more: nobody knows what becomes of what was sent to it.
    pub(crate) fn forget_host(&mut self, at: NodeIndex, id: TopicPartition) -> Host {
        self.fail_waiters(at, id);
        let node = &mut self.nodes[at];
        node.ways.retain(|(of, _), _| *of != id);
        node.hosts.remove(&id).expect("it is open")
    }

    // ---- Logs ----------------------------------------------------------------------------------------

    /// A flush is over, of an opening of the log that may be over as well.
    pub(crate) fn flushed(&mut self, at: NodeIndex, flush: Flush) {
        let Flush { id, generation, incarnation, cuts, end } = flush;
        let node = &mut self.nodes[at];
        let Some(log) = node.disk.logs.get_mut(&(id, generation)) else { return };
        if let Some(leaving) = node.leaving.get_mut(&id).filter(|one| one.incarnation == incarnation) {
            leaving.flushes -= 1;
            if leaving.cuts == cuts {
                log.synced(end);
            }
            return;
        }
        let Some(host) = node.hosts.get_mut(&id).filter(|host| host.generation == generation) else { return };
        assert!(
            host.incarnation == incarnation,
            "I13: broker {} writes to {id}, which shard {} has opened since",
            broker_of(at),
            host.shard
        );
        host.flushes -= 1;
        if host.cuts == cuts {
            log.synced(end);
            let end = Offset::new(log.durable_end);
            self.step(at, id, replication::Event::Durable { end }, Vec::new());
        }
    }

    pub(crate) fn cut(&mut self, at: NodeIndex, id: TopicPartition, incarnation: u64, work: Cut) {
        let keeps = self.deleted == Some(DriverRule::TableFollowsLog);
        // Where it is to be cut is looked for on the device.
        let unread = matches!(work, Cut::Truncate { .. }) && self.read_fails(at) && self.may_be_doubted(at);
        let node = &mut self.nodes[at];
        if let Some(leaving) = node.leaving.get_mut(&id).filter(|one| one.incarnation == incarnation) {
            // It is given up.
            leaving.is_cut = false;
            return;
        }
        let Some(host) = node.hosts.get_mut(&id).filter(|host| host.incarnation == incarnation) else {
            return;
        };
        if node.disk.full && self.random.chance(700) {
            // It waits for room.
            let life = node.life;
            self.met("cuts that waited for room");
            return self.after(200_000, Event::Cut { node: at, life, id, incarnation, work });
        }
        host.cuts += 1;
        host.is_cut = false;
        let log = node.disk.logs.get_mut(&(id, host.generation)).expect("it is open");
        let mut more = false;
        let event = match work {
            Cut::Truncate { to } => {
                // What cannot be read does not stay. That more goes than should is noted before it is gone.
                let place = if unread { log.start } else { to.get() };
                let end = log.truncate(place);
                more = end < to.get();
                if more && self.deleted != Some(DriverRule::NoteWhatCutsTake) {
                    log.torn = Some(log.torn.unwrap_or(u64::MAX).min(end));
                }
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
        if more {
            self.met("cuts that took more");
            // With a device like that it may not live long enough to tell.
            if self.random.chance(200) {
                let life = self.nodes[at].life;
                let dies_us = self.random.between(1, 10_000);
                self.after(dies_us, Event::Kill { node: at, life });
            }
        }
        self.step(at, id, event, Vec::new());
    }

    fn cut_later(&mut self, at: NodeIndex, id: TopicPartition, incarnation: u64, work: Cut) {
        let delay_us = self.disk_us(at);
        let node = &mut self.nodes[at];
        let life = node.life;
        node.hosts.get_mut(&id).expect("it is open").is_cut = true;
        self.after(delay_us, Event::Cut { node: at, life, id, incarnation, work });
    }

    /// Whether a read of the device fails.
    pub(crate) fn read_fails(&mut self, at: NodeIndex) -> bool {
        let permille = self.nodes[at].disk.reads_fail_permille;
        permille > 0 && self.random.chance(permille)
    }

    pub(crate) fn fingerprint(&mut self, at: NodeIndex, id: TopicPartition, offset: Offset) {
        if self.nodes[at].log(id).is_some() && self.read_fails(at) && self.may_be_doubted(at) {
            self.met("fingerprints that could not be read");
            let from = Offset::new(offset.get().saturating_sub(1));
            return self.step(at, id, replication::Event::Damaged { from }, Vec::new());
        }
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
        let node = &mut self.nodes[at];
        let (Some(end), life) = (node.log_end(id), node.life) else { return };
        let Some(host) = node.hosts.get_mut(&id) else { return };
        host.flushes += 1;
        let Host { generation, incarnation, cuts, .. } = *host;
        let flush = Flush { id, generation, incarnation, cuts, end };
        self.after(delay_us, Event::Flush { node: at, life, flush });
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
            let before = host.replica.status();
            host.replica.step(now_ms, event, &mut effects);
            if (before, host.replica.status()) == (Status::Suspect, Status::Clean) {
                let key = (id, host.generation);
                node.disk.logs.get_mut(&key).expect("it is open").torn = None;
            }
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
        let Host { shard, generation, incarnation, .. } = self.nodes[at].hosts[&id];
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
                self.send(at, shard, to, id, message);
            }
            Effect::Push { to, stream } => {
                let delay_us = self.random.between(5, 400);
                self.after(delay_us, Event::Push { node: at, life, id, to, stream });
            }
            Effect::Append => {
                let full = self.nodes[at].is_full(shard);
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
                    let batch = Batch { appended_ms: node.wall_ms(self.now_us), ..*batch };
                    let host = node.hosts.get_mut(&id).expect("it is open");
                    host.table.replay(&batch.producer, Offset::new(batch.base), batch.appended_ms);
                    node.log_mut(id).expect("it is open").append(batch);
                    let (base, end) = (Offset::new(batch.base), Offset::new(batch.end()));
                    events.push_back(replication::Event::Appended { base, end, epoch: batch.epoch });
                }
                self.flush_later(at, id);
            }
            Effect::Truncate { to } => {
                self.trace(|| format!("{id} at {broker} is cut at {to}"));
                self.cut_later(at, id, incarnation, Cut::Truncate { to });
            }
            Effect::Reset { log_start } => {
                self.trace(|| format!("{id} at {broker} begins anew at {log_start}"));
                self.cut_later(at, id, incarnation, Cut::Reset { log_start });
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
                self.connect_soon(at, 1000);
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
            Effect::ReportSuspect { generation } => {
                self.trace(|| format!("{broker} doubts {id}"));
                let (last_epoch, end) = self.nodes[at].hosts[&id].replica.claim();
                let suspect = Suspect { partition: id, generation, last_epoch, end };
                self.nodes[at].doubted.insert(id, suspect);
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
