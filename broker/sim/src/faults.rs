//! What goes wrong, and the repair of all of it.

use crate::network::NodeIndex;
use crate::node::SHARDS_MAX;
use crate::world::{Event, World, broker_of, node_of};
use logic::ids::{BrokerId, ShardId, TopicPartition};
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
    /// A partition moves to another shard of a broker; sometimes several times, and the process dies in the middle.
    MoveHome,
    /// A broker comes back with another number of shards.
    Resize,
    /// A process dies, and the device has lost the end of what was synced: recovery sees that something is missing.
    TornTail,
    /// A broker that counts for nothing comes back, and the last batch of a log is another one: nobody sees it by itself.
    UnseenRot,
    /// A replica is taken away and comes back, while its broker hears nothing of metadata.
    AwayAndBack,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 27] = [
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
        Self::MoveHome,
        Self::Resize,
        Self::TornTail,
        Self::UnseenRot,
        Self::AwayAndBack,
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

    pub(crate) fn crash_and_start(&mut self, node: NodeIndex) {
        self.crash(node);
        let down_us = self.random.between(10, 4_000) * 1000;
        self.after(down_us, Event::Start { node });
    }

    fn crash_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].up {
                self.crash_and_start(node);
            }
        }
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
            Fault::CrashAll => self.crash_all(),
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
                let all = self.random.chance(500);
                for link in self.network.links_of(node) {
                    if (link.from == other || link.to == other) && (all || self.random.chance(500)) {
                        self.disconnect(link);
                    }
                }
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
            Fault::MoveHome => return self.move_home(),
            Fault::Resize => {
                self.nodes[node].next_shards = self.random.between(1, SHARDS_MAX) as usize;
                self.crash_and_start(node);
            }
            Fault::TornTail => return self.tear(node),
            Fault::UnseenRot => {
                // Long enough to be fenced, mostly.
                self.nodes[node].rots_unseen = true;
                self.crash(node);
                let down_us = self.random.between(1_000, 5_000) * 1000;
                self.after(down_us, Event::Start { node });
            }
            Fault::AwayAndBack => return self.take_away(),
        }
        true
    }

    fn move_home(&mut self) -> bool {
        let partition = self.any_partition();
        let Some(entry) = self.consensus.image.partition(partition) else { return false };
        let brokers: Vec<BrokerId> = entry.brokers().collect();
        let Some(&broker) = self.random.choose(&brokers) else { return false };
        let Some(known) = self.consensus.image.broker(broker) else { return false };
        let shards = known.registration.shards;
        if shards < 2 {
            return false;
        }
        // By several hands at once.
        for _ in 0..self.random.between(1, 3) {
            let shard = ShardId::new(self.random.below(shards.into()) as u16);
            self.propose(None, Command::MoveHome { partition, broker, shard });
        }
        if self.random.chance(300) {
            let node = node_of(broker);
            let life = self.nodes[node].life;
            let dies_us = self.random.between(1, 150) * 1000;
            self.after(dies_us, Event::Kill { node, life });
        }
        true
    }

    fn tear(&mut self, node: NodeIndex) -> bool {
        let logs = self.nodes[node].disk.logs.iter().filter(|(_, log)| !log.batches.is_empty());
        let logs: Vec<_> = logs.map(|(key, _)| *key).collect();
        let Some(&torn) = self.random.choose(&logs) else { return false };
        if !self.may_lose_a_disk(node) {
            return false;
        }
        self.crash(node);
        let batches = self.random.between(1, 4) as usize;
        self.nodes[node].disk.logs.get_mut(&torn).expect("it was chosen").tear(batches);
        let down_us = self.random.between(10, 3_000) * 1000;
        self.after(down_us, Event::Start { node });
        if self.random.chance(400) {
            // The power of all of them failed.
            self.crash_all();
        }
        // What recovery sees must not be forgotten if the process dies again, before or after anybody is told.
        if self.random.chance(400) {
            let life = self.nodes[node].life + 1;
            let dies_us = down_us + self.random.between(20, 600) * 1000;
            self.after(dies_us, Event::Kill { node, life });
        }
        true
    }

    /// Of a broker that starts: the last batch of a log turns into another one, if it is committed and the broker is in no
    /// set that counts. Where it counts, nobody could tell who is right.
    pub(crate) fn rot_unseen(&mut self, node: NodeIndex) {
        let broker = broker_of(node);
        let image = self.consensus.image.clone();
        for id in self.partitions() {
            let Some(entry) = image.partition(id) else { continue };
            let Some(replica) = entry.replica(broker).copied() else { continue };
            let key = (id, replica.generation);
            let counts = entry.is_in_sync(broker) || entry.eligible.contains(&broker);
            let suspect =
                image.broker(broker).is_none_or(|known| known.suspect(id, replica.generation).is_some());
            let Some(log) = self.nodes[node].disk.logs.get(&key) else { continue };
            let truth = self.checker.truth(id);
            let is_sound = log.damaged.is_none() && log.torn.is_none();
            let is_committed = log.batches.last().is_some_and(|last| truth.committed.contains(last));
            if counts || suspect || !is_sound || !is_committed || !self.may_lose_a_disk(node) {
                continue;
            }
            self.trace(|| format!("the last batch of {id} at {broker} is another one"));
            self.nodes[node].disk.logs.get_mut(&key).expect("it is there").rot_unseen();
            return;
        }
    }

    fn take_away(&mut self) -> bool {
        let id = self.any_partition();
        let image = self.consensus.image.clone();
        let Some(entry) = image.partition(id).filter(|entry| !entry.is_reassigned()) else { return false };
        let replicas: Vec<BrokerId> = entry.brokers().collect();
        let others: Vec<BrokerId> = image
            .brokers()
            .filter(|known| !known.draining && !known.fenced)
            .map(|known| known.registration.broker)
            .filter(|broker| !replicas.contains(broker))
            .collect();
        let followers: Vec<BrokerId> =
            replicas.iter().copied().filter(|broker| entry.leader != Some(*broker)).collect();
        let (Some(&goes), Some(&comes)) = (self.random.choose(&followers), self.random.choose(&others))
        else {
            return false;
        };
        let lag_us = self.random.between(1_500, 5_000) * 1000;
        self.nodes[node_of(goes)].lags_until_us = self.now_us + lag_us;
        let next = replicas.iter().map(|broker| if *broker == goes { comes } else { *broker }).collect();
        let partitions = vec![Reassignment { partition: id, replicas: next }];
        self.propose(None, Command::ReassignPartitions { partitions });
        let back_us = self.random.between(100, 1_000) * 1000;
        self.after(back_us, Event::Back { id, replicas, tries: 20 });
        true
    }

    /// The replicas of before, as soon as the reassignment that took one away is complete.
    pub(crate) fn take_back(&mut self, id: TopicPartition, replicas: Vec<BrokerId>, tries: u32) {
        let Some(entry) = self.consensus.image.partition(id) else { return };
        if entry.is_reassigned() && tries > 0 && self.healed_us.is_none() {
            return self.after(100_000, Event::Back { id, replicas, tries: tries - 1 });
        }
        let partitions = vec![Reassignment { partition: id, replicas }];
        self.propose(None, Command::ReassignPartitions { partitions });
    }

    fn cut_links(&mut self, links: &[(NodeIndex, NodeIndex)]) {
        for &(from, to) in links {
            self.network.cut(from, to);
        }
        for (link, connection) in self.network.strained() {
            let notice_us = self.random.between(200, 2_000) * 1000;
            self.after(notice_us, Event::Break { link, connection });
        }
    }

    fn heal_links(&mut self) {
        self.network.heal();
        for packet in std::mem::take(&mut self.held).into_values().flatten() {
            self.after(0, Event::Deliver { packet });
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
            let log = node.disk.logs.get(&(id, replica.generation));
            let damaged = log.is_some_and(|log| log.damaged.is_some() || log.torn.is_some());
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
        let key = (id, self.nodes[node].hosts[&id].generation);
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
