//! Disks that lose what they had: what rots, is torn, is another thing, or is gone with its disk.
//!
//! No more than the protocol promises to survive: one disk at a time, where what is committed is on two. What nobody can
//! notice by itself happens only to who counts for nothing; where it counts, nobody could tell who is right.

use crate::network::NodeIndex;
use crate::world::{Event, World, broker_of};
use logic::ids::{Offset, ReplicaGeneration, TopicPartition};
use logic::replication;

impl World {
    /// Whether a disk may go bad now. What is committed is on two disks or more only where two are asked for, and
    /// two bad disks at a time are more than it promises to survive.
    pub(crate) fn may_lose_a_disk(&mut self, node: NodeIndex) -> bool {
        if self.plan.min_in_sync == 1 || self.plan.replicas_min == 1 || !self.is_disk_good_again() {
            return false;
        }
        self.bad_disk = Some(node);
        true
    }

    /// Whether the disk that went bad is as good as any: in sync with everything, and nothing doubted.
    fn is_disk_good_again(&mut self) -> bool {
        let Some(bad) = self.bad_disk else { return true };
        let (broker, node, image) = (broker_of(bad), &self.nodes[bad], &self.consensus.image);
        // A broker that was removed has nothing that is missed.
        let Some(known) = image.broker(broker) else {
            self.bad_disk = None;
            return true;
        };
        let good = |id: TopicPartition| {
            let Some(entry) = image.partition(id) else { return true };
            let Some(replica) = entry.replica(broker) else { return true };
            let log = node.disk.logs.get(&(id, replica.generation));
            let damaged = log.is_some_and(|log| log.damaged.is_some() || log.torn.is_some());
            let suspect = known.suspect(id, replica.generation).is_some() || node.is_suspect(id);
            entry.is_in_sync(broker) && !suspect && !damaged
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

    /// Whether what is on this disk may be taken for lost, or is already.
    pub(crate) fn may_be_doubted(&mut self, node: NodeIndex) -> bool {
        self.bad_disk == Some(node) || self.may_lose_a_disk(node)
    }

    pub(crate) fn rot(&mut self, node: NodeIndex, scrubbed: bool) -> bool {
        let Some(id) = self.any_partition() else { return false };
        let Some(base) = self.damage(node, id) else { return false };
        if scrubbed {
            let from = Offset::new(base);
            self.step(node, id, replication::Event::Damaged { from }, Vec::new());
        }
        true
    }

    /// A batch of an open log that was synced is not there any more; which one.
    fn damage(&mut self, node: NodeIndex, id: TopicPartition) -> Option<u64> {
        let log = self.nodes[node].log(id)?;
        let durable = log.batches.iter().filter(|batch| batch.end() <= log.durable_end);
        let durable: Vec<u64> = durable.map(|batch| batch.base).collect();
        let base = *self.random.choose(&durable)?;
        if !self.may_lose_a_disk(node) {
            return None;
        }
        let key = (id, self.nodes[node].hosts[&id].generation);
        self.nodes[node].disk.logs.get_mut(&key).expect("it is open").damaged = Some(base);
        Some(base)
    }

    pub(crate) fn lose_a_write(&mut self, node: NodeIndex) -> bool {
        if self.random.chance(500) {
            let Some(id) = self.any_partition() else { return false };
            if self.damage(node, id).is_none() {
                return false;
            }
            self.crash_and_start(node);
            return true;
        }
        // Long enough to be fenced.
        self.nodes[node].loses_unseen = true;
        self.crash(node);
        let down_us = self.random.between(1_500, 5_000) * 1000;
        self.after(down_us, Event::Start { node });
        true
    }

    pub(crate) fn replace_disk(&mut self, node: NodeIndex) -> bool {
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

    pub(crate) fn tear(&mut self, node: NodeIndex) -> bool {
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

    /// Its replicas that count for nothing: neither in sync nor eligible nor doubted.
    fn uncounted(&self, node: NodeIndex) -> Vec<(TopicPartition, ReplicaGeneration)> {
        let (broker, image) = (broker_of(node), self.consensus.image.clone());
        let Some(known) = image.broker(broker) else { return Vec::new() };
        let uncounted = self.partitions().filter_map(|id| {
            let entry = image.partition(id)?;
            let generation = entry.replica(broker)?.generation;
            let counts = entry.is_in_sync(broker) || entry.eligible.contains(&broker);
            let log = self.nodes[node].disk.logs.get(&(id, generation))?;
            let is_doubted =
                known.suspect(id, generation).is_some() || log.damaged.is_some() || log.torn.is_some();
            (!counts && !is_doubted).then_some((id, generation))
        });
        uncounted.collect()
    }

    /// Of a broker that starts: the last batch of a log turns into another one, if it is committed.
    pub(crate) fn rot_unseen(&mut self, node: NodeIndex) {
        for key in self.uncounted(node) {
            let log = &self.nodes[node].disk.logs[&key];
            let truth = self.checker.truth(key.0);
            let is_committed = log.batches.last().is_some_and(|last| truth.has(last));
            if !is_committed || !self.may_lose_a_disk(node) {
                continue;
            }
            self.trace(|| format!("the last batch of {} at {} is another one", key.0, broker_of(node)));
            self.nodes[node].disk.logs.get_mut(&key).expect("it is there").rot_unseen();
            return;
        }
    }

    /// Of a broker that starts, and is fenced, so that nothing that it said earlier takes it into a set: the last batches of
    /// its logs are gone.
    pub(crate) fn lose_unseen(&mut self, node: NodeIndex) {
        if self.consensus.image.broker(broker_of(node)).is_none_or(|known| !known.fenced) {
            return;
        }
        for key in self.uncounted(node) {
            let batches = self.random.between(1, 4) as usize;
            self.trace(|| format!("{batches} batches of {} at {} are gone", key.0, broker_of(node)));
            self.nodes[node].disk.logs.get_mut(&key).expect("it is there").lose_tail(batches);
            self.met("tails lost unseen");
        }
    }
}
