//! What an operator does while the cluster serves: other replicas, homes and leaders, more partitions, a topic that goes and
//! comes again, brokers that come and leave.
//!
//! The commands are the product's; what takes several of them goes on as its tools do, which ask again until it is done.

use crate::disk::Disk;
use crate::network::NodeIndex;
use crate::world::{Event, TOPIC, World, broker_of, node_of, topic_id};
use logic::ids::{BrokerId, ShardId, TopicPartition};
use logic::metadata::{Command, NewTopic, Reassignment};

/// Partitions of the topic at most.
const PARTITIONS_MAX: usize = 5;

/// Replicas of a partition at most.
const FACTOR_MAX: usize = 4;

impl World {
    /// Makes the topic, if there is none and there are brokers for it: at first for three replicas.
    pub(crate) fn make_topic(&mut self) {
        let image = &self.consensus.image;
        let factor = image.replicas_at_most(3);
        if image.topic_by_name(TOPIC).is_some()
            || factor < if self.consensus.topics_made == 0 { 3 } else { 2 }
        {
            return;
        }
        let new = NewTopic {
            id: topic_id(self.consensus.topics_made),
            name: TOPIC.into(),
            partitions: self.plan.partitions.max(self.consumers.len() as u32),
            replication_factor: factor,
            configs: vec![("min.insync.replicas".into(), self.plan.min_in_sync.to_string())],
        };
        if let Ok(command) = image.create_topic(new) {
            self.propose(None, command);
        }
    }

    pub(crate) fn delete_topic(&mut self) -> bool {
        let Some(id) = self.consensus.image.topic_by_name(TOPIC).map(|topic| topic.id) else { return false };
        self.propose(None, Command::DeleteTopic { id });
        true
    }

    pub(crate) fn add_partitions(&mut self) -> bool {
        let added = self.random.between(1, 2) as usize;
        let image = &self.consensus.image;
        let Some(topic) = image.topic_by_name(TOPIC) else { return false };
        let count = (topic.partitions.len() + added).min(PARTITIONS_MAX);
        let Ok(command) = image.create_partitions(topic.id, count as u32) else { return false };
        self.propose(None, command);
        true
    }

    /// Brokers that may get replicas, in any order.
    fn takers(&mut self) -> Vec<BrokerId> {
        let image = self.consensus.image.clone();
        let takers = image.brokers().filter(|known| !known.draining);
        let mut takers: Vec<BrokerId> = takers.map(|known| known.registration.broker).collect();
        self.random.shuffle(&mut takers);
        takers
    }

    pub(crate) fn change_factor(&mut self) -> bool {
        let takers = self.takers();
        let most = takers.len().min(FACTOR_MAX);
        if most < self.plan.replicas_min {
            return false;
        }
        let factor = self.random.between(self.plan.replicas_min as u64, most as u64) as usize;
        let image = self.consensus.image.clone();
        let mut partitions = Vec::new();
        for partition in self.partitions() {
            let Some(entry) = image.partition(partition).filter(|entry| !entry.is_reassigned()) else {
                continue;
            };
            let mut replicas: Vec<BrokerId> = entry.brokers().collect();
            if replicas.len() != factor {
                self.random.shuffle(&mut replicas);
                let others = takers.iter().filter(|broker| !entry.is_replica(**broker));
                replicas.extend(others);
                replicas.truncate(factor);
                partitions.push(Reassignment { partition, replicas });
            }
        }
        let is_any = !partitions.is_empty();
        if is_any {
            self.propose(None, Command::ReassignPartitions { partitions });
        }
        is_any
    }

    // ---- Brokers that come -----------------------------------------------------------------------------

    /// A new broker gets replicas as soon as it serves.
    pub(crate) fn settle(&mut self, node: NodeIndex, tries: u32) {
        if self.healed_us.is_some() || tries == 0 {
            return;
        }
        let (broker, image) = (broker_of(node), self.consensus.image.clone());
        if image.broker(broker).is_none_or(|known| known.fenced || known.draining) {
            return self.after(300_000, Event::Settle { node, tries: tries - 1 });
        }
        for id in self.partitions() {
            let Some(entry) = image.partition(id).filter(|entry| !entry.is_replica(broker)) else { continue };
            let mut replicas: Vec<BrokerId> = entry.brokers().collect();
            let place = self.random.below(replicas.len() as u64) as usize;
            if self.random.chance(600) {
                replicas[place] = broker;
                let partitions = vec![Reassignment { partition: id, replicas }];
                self.propose(None, Command::ReassignPartitions { partitions });
            }
        }
    }

    // ---- Brokers that leave ----------------------------------------------------------------------------

    pub(crate) fn begin_to_retire(&mut self, node: NodeIndex) -> bool {
        let stay = self.takers().into_iter().filter(|broker| node_of(*broker) != node).count();
        let is_known = self.consensus.image.broker(broker_of(node)).is_some();
        if stay < 3 || !is_known || self.nodes.iter().any(|node| node.retires) {
            return false;
        }
        self.nodes[node].retires = true;
        self.after(1, Event::Retire { node, tries: 80 });
        true
    }

    /// The next step of: drain, move everything away, stop, remove.
    pub(crate) fn retire(&mut self, node: NodeIndex, tries: u32) {
        if !self.nodes[node].retires {
            return;
        }
        let (broker, image) = (broker_of(node), self.consensus.image.clone());
        let Some(known) = image.broker(broker) else { return self.has_left(node) };
        if tries == 0 {
            return self.stay_after_all(node);
        }
        let again_us = self.random.between(100, 500) * 1000;
        self.after(again_us, Event::Retire { node, tries: tries - 1 });
        if !known.draining {
            self.propose(None, Command::DrainBroker { broker, draining: true });
        } else if image.replicas_of(broker) > 0 {
            self.move_away(broker);
        } else if known.fenced {
            self.propose(None, Command::RemoveBroker { broker });
        } else {
            match self.random.below(10) {
                0..6 => {
                    self.nodes[node].stopping = true;
                    self.nodes[node].stays_down = true;
                }
                6..9 => {
                    self.nodes[node].stays_down = true;
                    self.crash(node);
                }
                // It is not heard, and taken for dead.
                _ => self.isolate(node),
            }
        }
    }

    fn move_away(&mut self, broker: BrokerId) {
        let (takers, image) = (self.takers(), self.consensus.image.clone());
        for partition in self.partitions() {
            let Some(entry) = image.partition(partition).filter(|entry| entry.is_replica(broker)) else {
                continue;
            };
            let mut replicas: Vec<BrokerId> = entry.brokers().filter(|other| *other != broker).collect();
            if entry.is_reassigned() {
                // To somebody who does not come, perhaps.
                replicas.clear();
                if !self.random.chance(50) {
                    continue;
                }
            } else {
                replicas.extend(takers.iter().find(|taker| !entry.is_replica(**taker)));
                if replicas.len() < self.plan.replicas_min {
                    continue;
                }
            }
            let partitions = vec![Reassignment { partition, replicas }];
            self.propose(None, Command::ReassignPartitions { partitions });
        }
    }

    /// It is removed. Whether its process lives or not: it stays away, or is started again, with its disk or an empty one.
    fn has_left(&mut self, node: NodeIndex) {
        self.nodes[node].retires = false;
        // While nobody votes in its place it is needed.
        let votes = self.consensus.voters.contains(&node);
        let comes = self.random.between(u64::from(votes), 2);
        self.nodes[node].stays_down = comes == 0;
        if comes == 0 {
            return;
        }
        self.crash(node);
        if comes == 1 {
            self.nodes[node].disk = Disk::new(u128::from(self.random.bits()));
        }
        let away_us = self.random.between(100, 3_000) * 1000;
        self.after(away_us, Event::Start { node });
        self.after(away_us + 300_000, Event::Settle { node, tries: 20 });
    }

    /// The operator gives up.
    pub(crate) fn stay_after_all(&mut self, node: NodeIndex) {
        if std::mem::take(&mut self.nodes[node].retires) {
            self.nodes[node].stays_down = false;
            self.after(1, Event::Start { node });
            self.propose(None, Command::DrainBroker { broker: broker_of(node), draining: false });
        }
    }

    // ---- Replicas and homes ----------------------------------------------------------------------------

    pub(crate) fn move_home(&mut self) -> bool {
        let Some(partition) = self.any_partition() else { return false };
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

    pub(crate) fn take_away(&mut self) -> bool {
        let Some(id) = self.any_partition() else { return false };
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

    pub(crate) fn reassign(&mut self) -> bool {
        let Some(partition) = self.any_partition() else { return false };
        let image = self.consensus.image.clone();
        let Some(entry) = image.partition(partition) else { return false };
        let mut brokers: Vec<BrokerId> = image.brokers().map(|broker| broker.registration.broker).collect();
        self.random.shuffle(&mut brokers);
        brokers.truncate(entry.replication_factor());
        let partitions = vec![Reassignment { partition, replicas: brokers }];
        self.propose(None, Command::ReassignPartitions { partitions });
        true
    }
}
