//! How far groups are behind, in records and in time, for whoever looks at the broker: metrics and status.
//!
//! ```text
//! gather (shards with coordinators) → Progress → questions → answer (shards with partitions) → reports
//! ```
//!
//! Two bounded questions per shard, through the mailboxes, and only when somebody asks. Lifecycle: nothing lives
//! longer than a question but [`Recent`], a shard's memory of timestamps, so that a group that stands still costs no
//! reads. Invariants: groups without members are there like any other; what a group committed counts at once, also
//! before its record is durable; at most [`LAG_DEVICE_READS_MAX`] reads of the device per question, after which a
//! time is unknown until the next one.
//!
//! The same figures are computed by the client library for one group (`Admin::group_lag`), which asks the coordinator
//! and reads the record itself. Absent on purpose: forecasts, which need the settings of topics and a look at growth.

use crate::partition::reader::ReadError;
use crate::shard::{Partition, Shard};
use logic::group::request::{GroupState, Progress};
use logic::ids::{Offset, ShardId, TopicPartition};
use logic::limits::{LAG_DEVICE_READS_MAX, LAG_PARTITIONS_MAX, LAG_TIMESTAMPS_MAX, LAG_UNPACKED_BYTES_MAX};
use logic::metadata::Image;
use logic::metadata::reconcile::Here;
use schema::compression;
use schema::record_batch::{self, Header};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// Batches that are looked through for one record, behind what compaction has left of others.
const BATCHES_LOOKED_AT_MAX: usize = 4;

/// The groups of a shard's coordinators.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// By coordinator, then by name.
    pub groups: Vec<Progress>,
    /// Coordinators that read their state still: their groups are missing.
    pub loading: u32,
}

/// A place in a log: of the next record that a group processes, `None` = the log's start.
pub type Question = (TopicPartition, Option<u64>);

/// How far such a place is from the log's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// What was asked.
    pub question: Question,
    /// Records from there to the end.
    pub records: u64,
    /// Now, less the timestamp of the first of them that is kept; 0 = there is none. `None` = not known this time.
    pub ms: Option<u64>,
}

/// A group and how far it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// How many.
    pub members: u32,
    /// Partitions that it has committed for or has a member on.
    pub partitions: u32,
    /// Each of them, by topic and partition, as far as they are on this broker. `None` = too many to be listed.
    pub lags: Option<Vec<PartitionLag>>,
}

/// How far a group is behind on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// The topic's name.
    pub topic: Arc<str>,
    /// How far.
    pub behind: Behind,
}

impl GroupReport {
    /// Records of all partitions together.
    pub fn records(&self) -> u64 {
        self.lags.iter().flatten().map(|lag| lag.behind.records).sum()
    }

    /// Of the partition that is furthest behind in time, milliseconds.
    pub fn ms(&self) -> u64 {
        self.lags.iter().flatten().filter_map(|lag| lag.behind.ms).max().unwrap_or(0)
    }
}

/// The groups that this shard coordinates.
pub async fn gather(shard: &Rc<Shard>) -> Gathered {
    let hosts: Vec<_> = shard.groups.hosts.borrow().values().cloned().collect();
    let mut gathered = Gathered::default();
    let mut room = LAG_PARTITIONS_MAX;
    for host in hosts {
        match &*host.coordinator.borrow() {
            Some(coordinator) => gathered.groups.extend(coordinator.progress(&mut room)),
            None => gathered.loading += 1,
        }
        glommio::yield_if_needed().await;
    }
    gathered
}

/// What is to be asked of which shard of this broker, each place once. Topics that are gone are left out.
pub fn questions(groups: &[Progress], image: &Image, here: Here) -> BTreeMap<ShardId, Vec<Question>> {
    let mut all: Vec<Question> =
        groups.iter().flat_map(|group| group.positions.iter().flatten()).copied().collect();
    all.sort_unstable();
    all.dedup();
    let mut by_shard: BTreeMap<ShardId, Vec<Question>> = BTreeMap::new();
    for question in all {
        let id = question.0;
        let partition =
            image.topic(id.topic).and_then(|topic| topic.partitions.get(id.partition.get() as usize));
        if partition.is_some_and(|partition| partition.leader == Some(here.broker)) {
            by_shard.entry(image.home_here(here, id)).or_default().push(question);
        }
    }
    by_shard
}

/// Groups with what was answered about them, by name.
pub fn reports(groups: Vec<Progress>, answers: Vec<Behind>, image: &Image) -> Vec<GroupReport> {
    let answers: HashMap<Question, Behind> = answers.into_iter().map(|one| (one.question, one)).collect();
    let lag = |question: Question| {
        let topic = image.topic(question.0.topic)?.name.clone();
        Some(PartitionLag { topic, behind: *answers.get(&question)? })
    };
    let report = |group: Progress| {
        let lags = group.positions.map(|positions| {
            let mut lags: Vec<PartitionLag> = positions.into_iter().filter_map(lag).collect();
            lags.sort_by(|a, b| {
                (&a.topic, a.behind.question.0.partition).cmp(&(&b.topic, b.behind.question.0.partition))
            });
            lags
        });
        let Progress { group, state, members, partitions, .. } = group;
        GroupReport { group, state, members, partitions, lags }
    };
    let mut reports: Vec<GroupReport> = groups.into_iter().map(report).collect();
    reports.sort_by(|a, b| a.group.cmp(&b.group));
    reports
}

/// Answers about this shard's partitions; those that are not here are left out.
pub async fn answer(shard: &Rc<Shard>, asked: Vec<Question>) -> Vec<Behind> {
    let mut answers = Vec::with_capacity(asked.len());
    let mut reads_left = LAG_DEVICE_READS_MAX;
    for question in asked {
        glommio::yield_if_needed().await;
        let (id, committed) = question;
        let Some(partition) = shard.store.partition(&id) else { continue };
        let (start, end) = partition.with_log(|log| (log.log_start().get(), log.high_watermark().get()));
        let from = committed.unwrap_or(start);
        let unread = from.max(start);
        let ms = if unread >= end {
            Some(0)
        } else {
            let first_ms = first_unread_ms(shard, &partition, unread, &mut reads_left).await;
            let now_ms = shard.store.storage.environment.now_ms();
            first_ms.map(|first_ms| now_ms.saturating_sub(first_ms).max(0) as u64)
        };
        answers.push(Behind { question, records: end.saturating_sub(from), ms });
    }
    answers
}

/// The timestamp of the first record at or after `offset`, which is in the log; `None` if it is not to be had now.
async fn first_unread_ms(
    shard: &Rc<Shard>,
    partition: &Rc<Partition>,
    offset: u64,
    reads_left: &mut usize,
) -> Option<i64> {
    let place = Place {
        id: partition.id(),
        offset,
        // What was the first record may be gone after a compaction.
        replacements: partition.with_log(|log| log.replacements()),
    };
    if let Some(known_ms) = shard.groups.timestamps.borrow_mut().get(&place) {
        return Some(known_ms);
    }
    let mut at = offset;
    for _ in 0..BATCHES_LOOKED_AT_MAX {
        let slices = match partition.read_tail(Offset::new(at), 1) {
            Some(slices) => slices,
            None => {
                *reads_left = reads_left.checked_sub(1)?;
                match partition.read(&shard.store.chunks, Offset::new(at), 1).await {
                    Ok(slices) => slices,
                    Err(ReadError::Damaged { until, .. }) => {
                        at = until.get();
                        continue;
                    }
                    Err(_) => return None,
                }
            }
        };
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.bytes()).copied().collect();
        let (header, batch) = record_batch::batches(&bytes).next()?.ok()?;
        if let Some(found_ms) = first_timestamp_ms(&header, batch, offset) {
            shard.groups.timestamps.borrow_mut().keep(place, found_ms);
            return Some(found_ms);
        }
        at = header.end_offset();
    }
    None
}

/// The timestamp of the batch's first record at or after `offset`; `None` if compaction has left none.
fn first_timestamp_ms(header: &Header, batch: &[u8], offset: u64) -> Option<i64> {
    if header.attributes.is_control() {
        return None;
    }
    let Ok(unpacked) = compression::unpack(batch, LAG_UNPACKED_BYTES_MAX) else {
        let is_first = !header.attributes.has_delete_horizon();
        return Some(if is_first { header.base_timestamp_ms } else { header.max_timestamp_ms });
    };
    let records = record_batch::records(unpacked.as_deref().unwrap_or(batch)).ok()?;
    let mut records = records.map_while(Result::ok);
    records.find(|record| record.offset >= offset).map(|record| record.timestamp_ms)
}

/// A place whose timestamp does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    id: TopicPartition,
    offset: u64,
    replacements: u64,
}

/// The timestamps that were asked for last, in two generations: the older one goes when the younger one is full.
#[derive(Debug, Default)]
pub struct Recent {
    young: HashMap<Place, i64>,
    old: HashMap<Place, i64>,
}

impl Recent {
    fn get(&mut self, place: &Place) -> Option<i64> {
        let known = self.young.get(place).or_else(|| self.old.get(place)).copied()?;
        self.keep(*place, known);
        Some(known)
    }

    fn keep(&mut self, place: Place, timestamp_ms: i64) {
        if self.young.len() >= LAG_TIMESTAMPS_MAX / 2 && !self.young.contains_key(&place) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(place, timestamp_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logic::group::partition;
    use logic::ids::TopicId;
    use schema::record_batch::{BatchBuilder, Compression, set_base_offset};

    fn place(offset: u64) -> Place {
        Place { id: partition(TopicId::new(1), 0), offset, replacements: 0 }
    }

    #[test]
    fn what_is_asked_for_again_is_remembered_in_bounded_memory() {
        let mut recent = Recent::default();
        for offset in 0..4 * LAG_TIMESTAMPS_MAX as u64 {
            recent.keep(place(offset), offset as i64);
            // A group that stands still.
            assert_eq!(recent.get(&place(0)), Some(0), "at {offset}");
            assert!(recent.young.len() + recent.old.len() <= LAG_TIMESTAMPS_MAX, "at {offset}");
        }
        assert_eq!(recent.get(&place(1)), None);
    }

    #[test]
    fn the_first_record_at_or_after_an_offset() {
        for compression in [Compression::None, Compression::Zstd] {
            let mut builder = BatchBuilder::new();
            for time_ms in [1_000, 3_000, 2_000] {
                builder.append(time_ms, Some(b"k"), Some(b"v"), &[]);
            }
            let mut batch = compression::compress(builder.finish(), compression);
            set_base_offset(&mut batch, 10);
            let header = Header::decode(&batch).unwrap();
            for (offset, expect) in
                [(0, Some(1_000)), (10, Some(1_000)), (11, Some(3_000)), (12, Some(2_000)), (13, None)]
            {
                assert_eq!(first_timestamp_ms(&header, &batch, offset), expect, "{offset} {compression:?}");
            }
        }
    }
}
