//! The disk of one broker: logs as lists of batches, of which a crash keeps what was synced and some of the rest.
//!
//! A log here is what the real one promises, not how it is laid out: groups, segments and their recovery are tested by
//! crash images. Faults: a crash loses, or cuts off, anything that is not synced; a batch rots, which recovery or a
//! scrub notices; a tail that was synced is torn, which recovery notices; the last batch is another one, or the last ones are
//! lost, which nothing but another replica can tell; reads fail; the disk is full, slow, replaced.

use crate::random::Random;
use logic::ids::{LeaderEpoch, Offset, ReplicaGeneration, TopicPartition};
use logic::metadata::Image;
use logic::producer_state::ProducerBatch;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A batch of `count` records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The offset of its first record.
    pub base: u64,
    /// How many records.
    pub count: u64,
    /// The epoch of the leader that appended it.
    pub epoch: LeaderEpoch,
    /// Whose it is and which.
    pub producer: ProducerBatch,
    /// What is in it: different for each batch that a client made.
    pub value: u64,
    /// The time of day of the broker that has appended it here, milliseconds since 1970.
    pub appended_ms: i64,
}

impl Batch {
    /// One past its last offset.
    pub fn end(&self) -> u64 {
        self.base + self.count
    }

    /// What stands for its bytes.
    pub fn fingerprint(&self) -> u64 {
        let parts = [self.base, self.count, u64::from(self.epoch.get()), self.value];
        let mix = |hash: u64, part: &u64| Random::new(hash ^ part).bits();
        parts.iter().fold(7, mix)
    }
}

/// One replica's log.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Its first offset.
    pub start: u64,
    /// Its batches, the oldest first.
    pub batches: Vec<Batch>,
    /// Everything below is synced.
    pub durable_end: u64,
    /// Epochs and where they began.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    /// How many of them are synced.
    durable_epochs: usize,
    /// The batch that begins here has rotted.
    pub damaged: Option<u64>,
    /// Something that was synced may be missing from here on, as recovery has seen; noted until it has been repaired.
    pub torn: Option<u64>,
    /// Rises whenever it is opened.
    pub incarnation: u64,
    /// Acknowledged in the opening of now: no crash may take it.
    pub promised: u64,
}

impl Log {
    /// One past the last offset.
    pub fn end(&self) -> u64 {
        self.batches.last().map_or(self.start, Batch::end)
    }

    /// Batches from `from` on, at most `max` of them.
    pub fn read(&self, from: u64, max: usize) -> &[Batch] {
        let at = self.batches.partition_point(|batch| batch.base < from);
        &self.batches[at..self.batches.len().min(at.saturating_add(max))]
    }

    /// The batch that ends at `end`.
    pub fn ending_at(&self, end: u64) -> Option<&Batch> {
        let at = self.batches.partition_point(|batch| batch.end() <= end);
        self.batches[..at].last().filter(|batch| batch.end() == end)
    }

    /// At the end.
    pub fn append(&mut self, batch: Batch) {
        assert_eq!(batch.base, self.end(), "batches follow each other");
        self.note_epoch(batch.epoch, batch.base);
        self.batches.push(batch);
    }

    /// `epoch` begins at `start`.
    pub fn note_epoch(&mut self, epoch: LeaderEpoch, start: u64) {
        if self.epochs.last().is_none_or(|(last, _)| *last < epoch) {
            self.epochs.push((epoch, Offset::new(start)));
        }
    }

    /// Everything below `end` is on the device, and the epochs that began until then.
    pub fn synced(&mut self, end: u64) {
        self.durable_end = self.durable_end.max(end.min(self.end()));
        self.durable_epochs = self.epochs.len();
    }

    /// Whether the batch that has rotted is the last one.
    pub fn is_lost_to_the_end(&self) -> bool {
        self.damaged.is_some() && self.damaged == self.batches.last().map(|batch| batch.base)
    }

    /// Durably: what ends above `to` goes, and what begins with a batch that has rotted.
    pub fn truncate(&mut self, to: u64) -> u64 {
        let sound = self.damaged.unwrap_or(u64::MAX);
        self.batches.retain(|batch| batch.end() <= to && batch.base < sound);
        let end = self.end();
        self.epochs.retain(|(_, start)| start.get() < end);
        self.durable_epochs = self.epochs.len();
        self.durable_end = end;
        self.damaged = self.damaged.filter(|damaged| *damaged < end);
        self.promised = end;
        end
    }

    /// Durably: nothing is left, and the log begins at `start`.
    pub fn reset(&mut self, start: u64) {
        let (incarnation, torn) = (self.incarnation, self.torn);
        *self = Self { start, durable_end: start, promised: start, incarnation, torn, ..Self::default() };
    }

    /// What lies below `start` goes, as far as whole batches do.
    pub fn advance_start(&mut self, start: u64) {
        self.batches.retain(|batch| batch.base >= start);
        self.start = start;
        self.durable_end = self.durable_end.max(start);
        self.damaged = self.damaged.filter(|damaged| *damaged >= start);
    }

    /// The process dies: what was not synced is lost from a random batch on.
    pub fn crash(&mut self, random: &mut Random) {
        let kept = random.between(self.durable_end, self.end());
        self.batches.retain(|batch| batch.end() <= kept.max(self.durable_end));
        self.epochs.truncate(self.durable_epochs);
        let end = self.end();
        self.epochs.retain(|(_, start)| start.get() < end);
        for batch in &self.batches {
            if self.epochs.last().is_none_or(|(last, _)| *last < batch.epoch) {
                self.epochs.push((batch.epoch, Offset::new(batch.base)));
            }
        }
        // Recovery syncs what it finds.
        self.durable_end = end;
        self.durable_epochs = self.epochs.len();
    }

    /// The device loses the last `batches` of what was synced, and recovery sees that something is missing.
    pub fn tear(&mut self, batches: usize) {
        self.lose_tail(batches);
        self.doubt_tail();
    }

    /// The device loses the last `batches` of what was synced.
    pub fn lose_tail(&mut self, batches: usize) {
        let kept = self.batches.len().saturating_sub(batches);
        self.batches.truncate(kept);
        let end = self.end();
        self.epochs.retain(|(_, start)| start.get() < end);
        self.durable_epochs = self.epochs.len();
        self.durable_end = end;
        self.damaged = self.damaged.filter(|damaged| *damaged < end);
        self.promised = 0;
    }

    /// Recovery cannot tell whether what is missing at the end was ever acknowledged.
    pub fn doubt_tail(&mut self) {
        self.torn = Some(self.torn.unwrap_or(u64::MAX).min(self.end()));
    }

    /// The last batch turns into another one, with checksums that hold.
    pub fn rot_unseen(&mut self) {
        if let Some(last) = self.batches.last_mut() {
            last.value ^= 1 << 60;
        }
    }

    /// What a checkpoint says of it.
    pub fn attest(&self, generation: ReplicaGeneration) -> Attested {
        Attested {
            generation,
            incarnation: self.incarnation,
            start: self.start,
            end: self.durable_end,
            epochs: self.epochs.clone(),
        }
    }

    /// It is opened without a look at it: it is what is attested, and what is behind that will be overwritten.
    pub fn believe(&mut self, attested: &Attested) {
        self.batches.retain(|batch| batch.base >= attested.start && batch.end() <= attested.end);
        self.start = attested.start;
        self.durable_end = self.end();
        self.epochs =
            attested.epochs.iter().copied().filter(|(_, start)| start.get() < attested.end).collect();
        self.durable_epochs = self.epochs.len();
    }
}

/// Where a log stood, as a checkpoint or who hands it over says.
#[derive(Clone, Debug)]
pub struct Attested {
    /// Which life of the replica.
    pub generation: ReplicaGeneration,
    /// How often it had been opened.
    pub incarnation: u64,
    /// Its first offset.
    pub start: u64,
    /// Its durable end.
    pub end: u64,
    /// Its epochs.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
}

impl Attested {
    /// Of two of the same replica the higher one is the newer.
    pub fn age(&self) -> (u64, u64, u64) {
        (self.incarnation, self.end, self.start)
    }
}

/// The newest checkpoint of one shard.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Nothing was written after it.
    pub clean: bool,
    /// What it says of each log.
    pub logs: BTreeMap<TopicPartition, Attested>,
}

/// All that survives a broker's process.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its identity.
    pub uuid: u128,
    /// One directory for each replica that ever was and is not deleted.
    pub logs: BTreeMap<(TopicPartition, ReplicaGeneration), Log>,
    /// The metadata that it had last noted.
    pub image: Arc<Image>,
    /// By shard, as many as the process had that wrote them.
    pub checkpoints: Vec<Checkpoint>,
    /// Nothing more fits.
    pub full: bool,
    /// How many reads of a thousand fail.
    pub reads_fail_permille: u64,
    /// How many times slower than usual.
    pub slowness: u64,
}

impl Disk {
    /// An empty one.
    pub fn new(uuid: u128) -> Self {
        Self {
            uuid,
            logs: BTreeMap::new(),
            image: Arc::default(),
            checkpoints: vec![],
            full: false,
            reads_fail_permille: 0,
            slowness: 1,
        }
    }
}
