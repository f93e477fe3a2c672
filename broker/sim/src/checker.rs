//! What must hold after every step, from the outside: the checker sees what brokers and metadata did and keeps the truth.
//!
//! The truth of a partition is what any leader has called committed, in order: it only grows. Everything else is compared
//! with it. A broken invariant panics with its number; the run names the seed.
//!
//! I4 is checked through what it is for: whatever counts as committed is on every member of the metadata's in-sync and
//! eligible sets ([`Checker::member_has_everything`], I3). I7 is asserted by the replicas themselves. I10 is
//! about groups, which have a simulation of their own.

use crate::disk::{Batch, Log};
use logic::ids::{BrokerId, LeaderEpoch, ReplicaGeneration, TopicPartition};
use logic::metadata::Image;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is known of one partition.
#[derive(Debug, Default)]
pub struct Truth {
    /// Committed batches, in order.
    pub committed: Vec<Batch>,
    /// Who led in which epoch.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    /// Retention has taken what is below. Who has followed from there on knows nothing of the producers of that: a
    /// repetition of it is not recognised. Known, and not promised: the table of producers is a fold of the log.
    pub trimmed_to: u64,
    /// What they hold.
    values: BTreeSet<u64>,
    /// Where each batch of a producer is: by its id, epoch and first sequence.
    placed: HashMap<(i64, i16, i32), u64>,
    /// What was ever at an offset in an epoch.
    written: HashMap<(u64, LeaderEpoch), u64>,
    /// In which epoch a replica has answered an opening last.
    opened: HashMap<(BrokerId, ReplicaGeneration), LeaderEpoch>,
}

impl Truth {
    /// One past the last committed offset.
    pub fn end(&self) -> u64 {
        self.committed.last().map_or(0, Batch::end)
    }

    /// Whether this batch is committed.
    pub fn has(&self, batch: &Batch) -> bool {
        self.committed.iter().any(|known| known.fingerprint() == batch.fingerprint())
    }
}

/// All partitions.
#[derive(Debug, Default)]
pub struct Checker {
    truths: BTreeMap<TopicPartition, Truth>,
    /// Values that a client may have sent twice, in different epochs of its own.
    pub repeated: BTreeSet<u64>,
}

impl Checker {
    /// What is known of `id`.
    pub fn truth(&mut self, id: TopicPartition) -> &mut Truth {
        self.truths.entry(id).or_default()
    }

    /// I1, I8: a broker leads, in an epoch that nobody else led in, with everything that was committed.
    pub fn leads(&mut self, id: TopicPartition, broker: BrokerId, epoch: LeaderEpoch, log: &Log) {
        let truth = self.truth(id);
        let first = *truth.leaders.entry(epoch).or_insert(broker);
        assert!(first == broker, "I1: {first} and {broker} lead {id} in epoch {epoch}");
        let newest = truth.leaders.keys().next_back() == Some(&epoch);
        if newest {
            has_committed(truth, id, broker, log, "I8: the leader");
        }
    }

    /// I2: what is appended at an offset in an epoch is the same everywhere.
    pub fn appended(&mut self, id: TopicPartition, broker: BrokerId, batch: &Batch) {
        let value = batch.fingerprint();
        let known = *self.truth(id).written.entry((batch.base, batch.epoch)).or_insert(value);
        assert!(known == value, "I2: {id} at {} in epoch {} differs at {broker}", batch.base, batch.epoch);
    }

    /// I6, I8: a leader calls what is below `end` committed.
    pub fn committed(&mut self, id: TopicPartition, broker: BrokerId, log: &Log, end: u64) {
        let repeated = std::mem::take(&mut self.repeated);
        let truth = self.truth(id);
        let known = truth.end();
        for batch in log.read(known, usize::MAX).iter().take_while(|batch| batch.end() <= end) {
            assert!(
                batch.base == truth.end(),
                "I6: {broker} commits {id} at {} after {}",
                batch.base,
                truth.end()
            );
            let producer = (batch.producer.id, batch.producer.epoch, batch.producer.first);
            if let Some(before) = truth.placed.insert(producer, batch.base) {
                let (at, trimmed_to) = (batch.base, truth.trimmed_to);
                assert!(before < trimmed_to, "I8: {id} has batch {producer:?} at {before} and again at {at}");
                truth.values.remove(&batch.value);
            }
            assert!(
                truth.values.insert(batch.value) || repeated.contains(&batch.value),
                "I8: {id} has value {} twice",
                batch.value
            );
            truth.committed.push(*batch);
        }
        assert!(
            truth.end() >= end,
            "I6: {broker} commits {id} up to {end}, and its log has not got that far"
        );
        self.repeated = repeated;
        self.reads(id, broker, log, end);
    }

    /// I6: nothing at or above the true high watermark is ever seen, and what is seen never changes.
    pub fn reads(&mut self, id: TopicPartition, broker: BrokerId, log: &Log, end: u64) {
        let truth = self.truth(id);
        assert!(end <= truth.end(), "I6: {broker} shows {id} up to {end}, committed is {}", truth.end());
        let Some(own) = log.ending_at(end) else { return };
        let at = truth.committed.partition_point(|batch| batch.end() < end);
        let known = truth.committed[at];
        assert!(
            known.fingerprint() == own.fingerprint(),
            "I6: {broker} shows {own:?} in {id}, it was {known:?}"
        );
    }

    /// I6: a client sees this batch.
    pub fn read(&mut self, id: TopicPartition, broker: BrokerId, batch: &Batch) {
        let truth = self.truth(id);
        let at = truth.committed.partition_point(|known| known.base < batch.base);
        let known = truth.committed.get(at).map(Batch::fingerprint);
        assert!(
            known == Some(batch.fingerprint()),
            "I6: {broker} gives {batch:?} of {id}, which is not committed"
        );
    }

    /// I8: a client is told that its value is at `base`.
    pub fn acknowledged(&mut self, id: TopicPartition, base: u64, value: u64) {
        let truth = self.truth(id);
        let at = truth.committed.partition_point(|known| known.base < base);
        let known = truth.committed.get(at);
        assert!(
            known.is_some_and(|known| known.base == base && known.value == value),
            "I8: value {value} is acknowledged at {base} of {id}, where {known:?} is"
        );
    }

    /// A follower answered an opening.
    pub fn opened(
        &mut self,
        id: TopicPartition,
        broker: BrokerId,
        generation: ReplicaGeneration,
        epoch: LeaderEpoch,
    ) {
        self.truth(id).opened.insert((broker, generation), epoch);
    }

    /// I1, I11: metadata went on.
    pub fn metadata(&mut self, before: &Image, after: &Image) {
        for topic in before.topics() {
            for (at, old) in topic.partitions.iter().enumerate() {
                let id =
                    TopicPartition { topic: topic.id, partition: logic::ids::PartitionIndex::new(at as u32) };
                let Some(new) = after.partition(id).filter(|new| *new != old) else { continue };
                assert!(
                    old.leader_epoch <= new.leader_epoch && old.partition_epoch < new.partition_epoch,
                    "I1: epochs of {id} went back"
                );
                assert!(
                    old.leader == new.leader || old.leader_epoch < new.leader_epoch,
                    "I1: {id}: one epoch, two leaders"
                );
                for broker in new.brokers() {
                    assert!(after.broker(broker).is_some(), "{id} is kept by {broker}, which was removed");
                }
                for broker in new.in_sync.iter().filter(|broker| !old.is_in_sync(**broker)) {
                    let generation = new.replica(*broker).map(|replica| replica.generation);
                    let generation =
                        generation.unwrap_or_else(|| panic!("{id}: {broker} is in sync and no replica"));
                    let eligible = old.eligible.contains(broker);
                    let opened = self.truth(id).opened.get(&(*broker, generation)).copied();
                    assert!(
                        eligible || opened == Some(old.leader_epoch),
                        "I11: {broker} joins {id} in epoch {}, and opened in {opened:?}",
                        old.leader_epoch
                    );
                }
            }
        }
    }

    /// I3: a member of the in-sync set or an eligible leader, that is not suspect, has everything committed.
    pub fn member_has_everything(&mut self, id: TopicPartition, broker: BrokerId, log: &Log) {
        let truth = self.truth(id);
        has_committed(truth, id, broker, log, "I3: a member");
        let end = truth.end();
        assert!(
            log.durable_end >= end || log.start > end,
            "I3: {broker} has {id} durably up to {}, committed is {end}",
            log.durable_end
        );
    }
}

impl Checker {
    /// I2: in the end every replica has what was committed and nothing else.
    pub fn is_whole(&mut self, id: TopicPartition, broker: BrokerId, log: &Log) {
        let truth = self.truth(id);
        let known = truth.committed.iter().filter(|batch| batch.base >= log.start);
        let is_same = known.map(Batch::fingerprint).eq(log.batches.iter().map(Batch::fingerprint));
        assert!(is_same, "I2: in the end {broker} has other batches of {id} than were committed");
    }
}

fn has_committed(truth: &Truth, id: TopicPartition, broker: BrokerId, log: &Log, who: &str) {
    let end = truth.end();
    if end == 0 || log.start >= end {
        return;
    }
    assert!(log.end() >= end, "{who} {broker} has {id} up to {}, committed is {end}", log.end());
    let (own, known) = (log.ending_at(end), truth.committed.last());
    assert!(
        own.map(Batch::fingerprint) == known.map(Batch::fingerprint),
        "{who} {broker} of {id} has {own:?}, committed is {known:?}"
    );
}
