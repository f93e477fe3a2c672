//! What goes wrong, and the repair of all of it.

use crate::network::NodeIndex;
use crate::world::{Event, World, broker_of};
use logic::ids::{BrokerId, TopicPartition};
use logic::metadata::{Command, NewTopic, Reassignment};
use logic::replication;
use std::collections::BTreeMap;

/// Faults that happened, by kind.
pub type Counts = BTreeMap<Fault, u64>;

/// A kind of fault, or of change under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process dies; what was not synced is lost from somewhere on.
    Crash,
    /// All of them die at once.
    CrashAll,
    /// A process stands still.
    Pause,
    /// Nothing gets from one broker to another, the other way it does.
    CutOneWay,
    /// A broker is cut off from all others.
    Isolate,
    /// All cuts end.
    HealLinks,
    /// A connection breaks; what was on its way is lost.
    Break,
    /// A disk is full, or is no longer.
    FullDisk,
    /// A disk gets slow, or fast again.
    SlowDisk,
    /// A write fails: the broker ends.
    WriteError,
    /// A batch rots; the next recovery finds it.
    Rot,
    /// The same, and a scrub finds it at once.
    Scrub,
    /// A broker comes back with another, empty disk.
    ReplaceDisk,
    /// A partition gets other replicas.
    Reassign,
    /// A reassignment is called off.
    CallOff,
    /// A broker drains, or stays.
    Drain,
    /// A leader is to hand over.
    HandOver,
    /// A broker stops in order and starts again.
    Restart,
    /// Somebody else leads the metadata.
    MoveMetadata,
    /// A broker hears nothing of metadata for a while.
    MetadataLag,
    /// A leader drops its oldest records.
    Retention,
    /// Another broker joins.
    Join,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 22] = [
        Self::Crash,
        Self::CrashAll,
        Self::Pause,
        Self::CutOneWay,
        Self::Isolate,
        Self::HealLinks,
        Self::Break,
        Self::FullDisk,
        Self::SlowDisk,
        Self::WriteError,
        Self::Rot,
        Self::Scrub,
        Self::ReplaceDisk,
        Self::Reassign,
        Self::CallOff,
        Self::Drain,
        Self::HandOver,
        Self::Restart,
        Self::MoveMetadata,
        Self::MetadataLag,
        Self::Retention,
        Self::Join,
    ];
}

impl World {
    /// Makes the topic when there are brokers for it; after that, one fault.
    pub(crate) fn fault(&mut self) {
        if self.healed_us.is_some() {
            return;
        }
        if self.consensus.image.topic_count() == 0 {
            self.make_topic();
            return self.after(200_000, Event::Fault);
        }
        let again_us = self.random.between(1, 2 * self.plan.fault_every_us);
        self.after(again_us, Event::Fault);
        let total: u64 = self.plan.weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut turn = self.random.below(total);
        for (fault, weight) in Fault::ALL.into_iter().zip(self.plan.weights.clone()) {
            if turn < weight {
                if self.inject(fault) {
                    *self.report.faults.entry(fault).or_default() += 1;
                    self.trace(|| format!("fault: {fault:?}"));
                }
                return;
            }
            turn -= weight;
        }
    }

    pub(crate) fn make_topic(&mut self) {
        let new = NewTopic {
            id: crate::world::TOPIC,
            name: "topic".into(),
            partitions: self.plan.partitions,
            replication_factor: 3,
            configs: vec![("min.insync.replicas".into(), self.plan.min_in_sync.to_string())],
        };
        if let Ok(command) = self.consensus.image.create_topic(new) {
            self.propose(None, command);
        }
    }

    fn any_up(&mut self) -> Option<NodeIndex> {
        let up: Vec<NodeIndex> = self.nodes.iter().filter(|node| node.up).map(|node| node.at).collect();
        self.random.choose(&up).copied()
    }

    fn any_partition(&mut self) -> TopicPartition {
        let all: Vec<_> = self.partitions().collect();
        *self.random.choose(&all).expect("there is one")
    }

    fn crash_and_start(&mut self, node: NodeIndex) {
        self.crash(node);
        let down_us = self.random.between(10, 4_000) * 1000;
        self.after(down_us, Event::Start { node });
    }

    /// Whether it could be done.
    fn inject(&mut self, fault: Fault) -> bool {
        let Some(node) = self.any_up() else { return false };
        match fault {
            Fault::Crash => self.crash_and_start(node),
            Fault::WriteError => {
                // The flush that fails is the one under way: the process ends before anything is said of it.
                self.crash_and_start(node);
            }
            Fault::CrashAll => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].up {
                        self.crash_and_start(node);
                    }
                }
            }
            Fault::Pause => {
                let pause_us = self.random.between(50, 4_000) * 1000;
                self.nodes[node].paused_until_us = self.now_us + pause_us;
            }
            Fault::CutOneWay => {
                let other = self.random.below(self.nodes.len() as u64) as usize;
                if node == other {
                    return false;
                }
                self.cut_links(&[(node, other)]);
            }
            Fault::Isolate => {
                let others = (0..self.nodes.len()).filter(|other| *other != node);
                let links: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
                self.cut_links(&links);
            }
            Fault::HealLinks => self.heal_links(),
            Fault::Break => {
                let other = self.random.below(self.nodes.len() as u64) as usize;
                self.disconnect(node, other);
            }
            Fault::FullDisk => self.nodes[node].disk.full ^= true,
            Fault::SlowDisk => {
                let slow = self.nodes[node].disk.slowness > 1;
                self.nodes[node].disk.slowness = if slow { 1 } else { self.random.between(10, 300) };
            }
            Fault::Rot | Fault::Scrub => return self.rot(node, fault == Fault::Scrub),
            Fault::ReplaceDisk => return self.replace_disk(node),
            Fault::Reassign => return self.reassign(),
            Fault::CallOff => {
                let partition = self.any_partition();
                let command = Command::ReassignPartitions {
                    partitions: vec![Reassignment { partition, replicas: vec![] }],
                };
                self.propose(None, command);
            }
            Fault::Drain => {
                let broker = broker_of(node);
                let drains = self.consensus.image.broker(broker).is_some_and(|known| known.draining);
                self.propose(None, Command::DrainBroker { broker, draining: !drains });
            }
            Fault::HandOver => {
                let partition = self.any_partition();
                let Some(entry) = self.consensus.image.partition(partition) else { return false };
                let in_sync = entry.in_sync.to_vec();
                let Some(&heir) = self.random.choose(&in_sync) else { return false };
                self.propose(
                    None,
                    Command::ElectLeaders { elections: vec![(partition, heir)], unclean: false },
                );
            }
            Fault::Restart => self.nodes[node].stopping = true,
            Fault::MoveMetadata => self.lead_metadata_anew(),
            Fault::MetadataLag => {
                let lag_us = self.random.between(100, 5_000) * 1000;
                self.nodes[node].lags_until_us = self.now_us + lag_us;
            }
            Fault::Retention => return self.retain(),
            Fault::Join => {
                let last = self.nodes.len() - 1;
                if !self.plan.joins_later || self.nodes[last].life > 0 {
                    return false;
                }
                self.start(last);
            }
        }
        true
    }

    fn cut_links(&mut self, links: &[(NodeIndex, NodeIndex)]) {
        for &(from, to) in links {
            self.network.cut(from, to);
        }
        for (one, other) in self.network.strained() {
            let notice_us = self.random.between(200, 2_000) * 1000;
            let connection = self.network.connection(one, other);
            self.after(notice_us, Event::Break { one, other, connection });
        }
    }

    fn heal_links(&mut self) {
        self.network.heal();
        for ((from, to), waiting) in std::mem::take(&mut self.held) {
            for (connection, id, message, batches) in waiting {
                self.after(0, Event::Deliver { from, to, connection, id, message, batches });
            }
        }
    }

    /// Whether a disk may go bad now. What is committed is on two disks or more only where two are asked for, and
    /// two bad disks at a time are more than it promises to survive.
    fn may_lose_a_disk(&mut self, node: NodeIndex) -> bool {
        if self.plan.min_in_sync == 1 || !self.is_disk_good_again() {
            return false;
        }
        self.bad_disk = Some(node);
        true
    }

    /// Whether the disk that went bad is as good as any: in sync with everything, and nothing doubted.
    fn is_disk_good_again(&mut self) -> bool {
        let Some(bad) = self.bad_disk else { return true };
        let (broker, node, image) = (broker_of(bad), &self.nodes[bad], &self.consensus.image);
        let Some(known) = image.broker(broker) else { return false };
        let good = |id: TopicPartition| {
            let Some(entry) = image.partition(id) else { return true };
            let Some(replica) = entry.replica(broker) else { return true };
            let damaged =
                node.disk.logs.get(&(id, replica.generation)).is_some_and(|log| log.damaged.is_some());
            entry.is_in_sync(broker) && known.suspect(id, replica.generation).is_none() && !damaged
        };
        let is_good = node.up
            && known.registration.storage_uuid == node.disk.uuid
            && !known.fenced
            && self.partitions().all(good);
        if is_good {
            self.bad_disk = None;
        }
        is_good
    }

    fn rot(&mut self, node: NodeIndex, scrubbed: bool) -> bool {
        let id = self.any_partition();
        let Some(log) = self.nodes[node].log(id) else { return false };
        let durable: Vec<u64> = log
            .batches
            .iter()
            .filter(|batch| batch.end() <= log.durable_end)
            .map(|batch| batch.base)
            .collect();
        let Some(&base) = self.random.choose(&durable) else { return false };
        if !self.may_lose_a_disk(node) {
            return false;
        }
        let host = &self.nodes[node].hosts[&id];
        let key = (id, host.generation);
        self.nodes[node].disk.logs.get_mut(&key).expect("it is open").damaged = Some(base);
        if scrubbed {
            let from = logic::ids::Offset::new(base);
            self.step(node, id, replication::Event::Damaged { from }, Vec::new());
        }
        true
    }

    fn replace_disk(&mut self, node: NodeIndex) -> bool {
        if !self.may_lose_a_disk(node) {
            return false;
        }
        self.crash(node);
        let uuid = u128::from(self.random.bits());
        self.nodes[node].disk = crate::disk::Disk::new(uuid);
        let down_us = self.random.between(100, 3_000) * 1000;
        self.after(down_us, Event::Start { node });
        true
    }

    fn reassign(&mut self) -> bool {
        let partition = self.any_partition();
        let mut brokers: Vec<BrokerId> =
            self.consensus.image.brokers().map(|broker| broker.registration.broker).collect();
        self.random.shuffle(&mut brokers);
        brokers.truncate(3);
        if brokers.len() < 3 {
            return false;
        }
        let partitions = vec![Reassignment { partition, replicas: brokers }];
        self.propose(None, Command::ReassignPartitions { partitions });
        true
    }

    fn retain(&mut self) -> bool {
        let id = self.any_partition();
        let leads = |node: &&crate::node::Node| {
            node.hosts.get(&id).is_some_and(|host| host.replica.leads().is_some())
        };
        let Some(node) = self.nodes.iter().find(leads).map(|node| node.at) else { return false };
        let host = &self.nodes[node].hosts[&id];
        let (visible, key) = (host.replica.high_watermark().get(), (id, host.generation));
        let log = &self.nodes[node].disk.logs[&key];
        let starts: Vec<u64> = log
            .batches
            .iter()
            .map(|batch| batch.base)
            .filter(|base| *base <= visible && *base > log.start)
            .collect();
        let Some(&start) = self.random.choose(&starts) else { return false };
        self.nodes[node].disk.logs.get_mut(&key).expect("it is open").advance_start(start);
        let truth = self.checker.truth(id);
        truth.trimmed_to = truth.trimmed_to.max(start);
        let start = logic::ids::Offset::new(start);
        self.step(node, id, replication::Event::LogStart(start), Vec::new());
        true
    }

    /// Everything that is broken is repaired; from here on the cluster has to become whole by itself.
    pub(crate) fn heal(&mut self) {
        if self.consensus.image.topic_count() == 0 {
            self.make_topic();
            return self.after(200_000, Event::Heal);
        }
        self.trace(|| "everything is repaired".to_owned());
        self.healed_us = Some(self.now_us);
        self.heal_links();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.full = false;
            self.nodes[node].disk.slowness = 1;
            self.nodes[node].paused_until_us = self.nodes[node].paused_until_us.min(self.now_us);
            self.nodes[node].lags_until_us = 0;
            if self.nodes[node].life > 0 {
                self.after(1, Event::Start { node });
            }
        }
        self.after(1_000_000, Event::Look);
    }

    /// Drains end, until they have; what has rotted is found.
    pub(crate) fn tidy_up(&mut self) {
        let image = self.consensus.image.clone();
        for broker in image.brokers().filter(|broker| broker.draining) {
            self.propose(None, Command::DrainBroker { broker: broker.registration.broker, draining: false });
        }
        for node in 0..self.nodes.len() {
            for id in self.partitions() {
                let damaged = self.nodes[node].log(id).and_then(|log| log.damaged);
                if let Some(from) = damaged.filter(|_| !self.nodes[node].is_suspect(id)) {
                    let from = logic::ids::Offset::new(from);
                    self.step(node, id, replication::Event::Damaged { from }, Vec::new());
                }
            }
        }
    }
}
