//! What goes wrong, and the repair of all of it.

use crate::network::NodeIndex;
use crate::node::SHARDS_MAX;
use crate::world::{Event, World, broker_of};
use logic::ids::TopicPartition;
use logic::metadata::{Command, Reassignment};
use logic::replication;
use std::collections::BTreeMap;

/// Faults that happened, by kind.
pub type Counts = BTreeMap<Fault, u64>;

/// How far the time of day of a broker is from that of others at most, milliseconds: together with another one less than
/// producers are remembered for.
const CLOCK_JUMP_MS_MAX: u64 = 11 * 3_600_000;

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
    /// Reads of the device fail now and then, or do so no longer.
    ReadError,
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
    /// The power of a broker fails, and its device has lost a write that it had called synced: in the middle of a log,
    /// where recovery sees it; or, of a broker that counts for nothing, at the end, where nobody does.
    LostWrite,
    /// The time of day of a broker jumps, forward or back.
    ClockJump,
    /// A broker is drained, emptied, stopped and removed; perhaps it comes back, with its disk or an empty one.
    Retire,
    /// The topic gets more partitions.
    AddPartitions,
    /// The partitions of the topic get more replicas, or fewer.
    ChangeFactor,
    /// The topic is deleted, and made again under its name.
    DeleteTopic,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 34] = [
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
        Self::ReadError,
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
        Self::LostWrite,
        Self::ClockJump,
        Self::Retire,
        Self::AddPartitions,
        Self::ChangeFactor,
        Self::DeleteTopic,
    ];
}

impl World {
    /// Makes the topic, if there is none and there are brokers for it; after the first time, one fault.
    pub(crate) fn fault(&mut self) {
        if self.healed_us.is_some() {
            return;
        }
        let before_any = self.consensus.topics_made == 0;
        self.make_topic();
        if before_any {
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

    fn any_up(&mut self) -> Option<NodeIndex> {
        let up: Vec<NodeIndex> = self.nodes.iter().filter(|node| node.up).map(|node| node.at).collect();
        self.random.choose(&up).copied()
    }

    pub(crate) fn any_partition(&mut self) -> Option<TopicPartition> {
        let all: Vec<_> = self.partitions().collect();
        self.random.choose(&all).copied()
    }

    pub(crate) fn crash_and_start(&mut self, node: NodeIndex) {
        self.crash(node);
        let down_us = self.random.between(10, 4_000) * 1000;
        self.after(down_us, Event::Start { node });
    }

    pub(crate) fn crash_all(&mut self) {
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
            Fault::Isolate => self.isolate(node),
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
                let Some(partition) = self.any_partition() else { return false };
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
                let Some(partition) = self.any_partition() else { return false };
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
                // At once, or just when it waits for an answer.
                if self.random.chance(500) {
                    self.nodes[node].lags_after_alter = true;
                } else {
                    let lag_us = self.random.between(100, 5_000) * 1000;
                    self.nodes[node].lags_until_us = self.now_us + lag_us;
                }
            }
            Fault::Retention => return self.retain(),
            Fault::Join => {
                let new = self.nodes.iter().find(|node| node.life == 0).map(|node| node.at);
                let Some(new) = new else { return false };
                self.start(new);
                self.after(300_000, Event::Settle { node: new, tries: 20 });
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
            Fault::ReadError => {
                let fails = self.nodes[node].disk.reads_fail_permille > 0;
                self.nodes[node].disk.reads_fail_permille =
                    if fails { 0 } else { self.random.between(20, 1000) };
            }
            Fault::LostWrite => return self.lose_a_write(node),
            Fault::ClockJump => {
                let jump_ms = self.random.below(2 * CLOCK_JUMP_MS_MAX) as i64 - CLOCK_JUMP_MS_MAX as i64;
                self.nodes[node].wall_jump_ms = jump_ms;
            }
            Fault::Retire => return self.begin_to_retire(node),
            Fault::AddPartitions => return self.add_partitions(),
            Fault::ChangeFactor => return self.change_factor(),
            Fault::DeleteTopic => return self.delete_topic(),
        }
        true
    }

    pub(crate) fn isolate(&mut self, node: NodeIndex) {
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        let links: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
        self.cut_links(&links);
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

    fn retain(&mut self) -> bool {
        let Some(id) = self.any_partition() else { return false };
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
        self.trace(|| "everything is repaired".to_owned());
        self.healed_us = Some(self.now_us);
        self.heal_links();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.full = false;
            self.nodes[node].disk.reads_fail_permille = 0;
            self.nodes[node].disk.slowness = 1;
            self.nodes[node].paused_until_us = self.nodes[node].paused_until_us.min(self.now_us);
            self.nodes[node].lags_until_us = 0;
            self.nodes[node].lags_after_alter = false;
            self.stay_after_all(node);
            if self.nodes[node].life > 0 {
                self.after(1, Event::Start { node });
            }
        }
        self.after(1_000_000, Event::Look);
    }

    /// Drains end, until they have; what has rotted is found; the topic is there.
    pub(crate) fn tidy_up(&mut self) {
        self.make_topic();
        let image = self.consensus.image.clone();
        for broker in image.brokers().filter(|broker| broker.draining) {
            self.propose(None, Command::DrainBroker { broker: broker.registration.broker, draining: false });
        }
        for node in 0..self.nodes.len() {
            // A copy of its registration was late, and came after its removal: the operator starts it.
            let is_ghost = self.nodes[node].stays_down || self.nodes[node].removed;
            if is_ghost && image.broker(broker_of(node)).is_some() {
                self.nodes[node].stays_down = false;
                self.crash(node);
                self.after(1, Event::Start { node });
            }
            for id in self.partitions() {
                let Some(log) = self.nodes[node].log(id) else { continue };
                let Some(from) = log.damaged.filter(|_| !self.nodes[node].is_suspect(id)) else { continue };
                let Some(entry) = image.partition(id) else { continue };
                // As the server's `replication.rs`: who leads alone keeps what it has.
                let others_have_it = match entry.leader {
                    Some(leader) if leader == broker_of(node) => {
                        entry.in_sync.len() > 1 || image.heir(id).is_some()
                    }
                    Some(_) => true,
                    None => false,
                };
                if others_have_it {
                    let from = logic::ids::Offset::new(from);
                    self.step(node, id, replication::Event::Damaged { from }, Vec::new());
                }
            }
        }
    }
}
