//! How far groups are behind, in records and in time, for whoever looks at the broker: metrics and status.
//!
//! ```text
//! gather (shards with coordinators) → Progress → questions → answer (shards, brokers that lead) → reports
//! ```
//!
//! A group's coordinator knows what was committed; where logs end know those who lead the partitions, on this broker or
//! on another. Two bounded questions per shard, through the mailboxes, and one per other leader, from metadata thread to
//! metadata thread (`metadata/lag.rs`), and only when somebody asks. Lifecycle: nothing lives longer than a question but
//! [`Recent`], a shard's memory of timestamps, so that a group that stands still costs no reads. Invariants: a partition
//! of which no answer came is unknown, and so is every sum over it; groups without members are there like any other; what
//! a group committed counts at once, also before its record is durable; at most [`LAG_DEVICE_READS_MAX`] reads of the
//! device per question, after which a time is unknown until the next one.
//!
//! The same figures are computed by the client library for one group (`Admin::group_lag`), which asks the coordinator
//! and the leaders and reads the record itself. Absent on purpose: forecasts, which need the settings of topics and a
//! look at growth.

use crate::partition::reader::ReadError;
use crate::shard::{Partition, Shard};
use logic::group::request::{GroupState, Progress};
use logic::ids::{BrokerId, Offset, ShardId, TopicPartition};
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
    /// Records from there to the high watermark.
    pub records: u64,
    /// Now, less the timestamp of the first of them that is kept; 0 = there is none. `None` = not known this time.
    pub ms: Option<u64>,
}

/// What was asked, and how far that is.
pub type Answer = (Question, Behind);

/// Who can answer: who leads the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leader {
    /// A shard of this broker.
    Shard(ShardId),
    /// Another broker.
    Broker(BrokerId),
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
    /// Each of them that exists, by topic and partition. `None` = too many to be listed.
    pub lags: Option<Vec<PartitionLag>>,
}

/// How far a group is behind on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// The topic's name.
    pub topic: Arc<str>,
    /// What was asked.
    pub question: Question,
    /// How far; `None` = nobody leads the partition, or who does gave no answer.
    pub behind: Option<Behind>,
}

impl GroupReport {
    /// Records of all partitions together; `None` = one is unknown, or they are too many.
    pub fn records(&self) -> Option<u64> {
        self.lags.as_ref()?.iter().map(|lag| Some(lag.behind?.records)).sum()
    }

    /// Of the partition that is furthest behind in time, milliseconds; `None` = the time of one is not known.
    pub fn ms(&self) -> Option<u64> {
        self.lags.as_ref()?.iter().try_fold(0, |most, lag| Some(lag.behind?.ms?.max(most)))
    }

    /// Partitions of which there was no answer.
    pub fn unknown_partitions(&self) -> usize {
        self.lags.iter().flatten().filter(|lag| lag.behind.is_none()).count()
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

/// What is to be asked of whom, each place once. What nobody leads is asked of nobody.
pub fn questions(groups: &[Progress], image: &Image, here: Here) -> BTreeMap<Leader, Vec<Question>> {
    let mut all: Vec<Question> =
        groups.iter().flat_map(|group| group.positions.iter().flatten()).copied().collect();
    all.sort_unstable();
    all.dedup();
    by_leader(all, image, here)
}

/// Places by who leads them.
pub fn by_leader(asked: Vec<Question>, image: &Image, here: Here) -> BTreeMap<Leader, Vec<Question>> {
    let mut by_leader: BTreeMap<Leader, Vec<Question>> = BTreeMap::new();
    for question in asked {
        let leader = match image.partition(question.0).and_then(|partition| partition.leader) {
            Some(broker) if broker == here.broker => Leader::Shard(image.home_here(here, question.0)),
            Some(broker) => Leader::Broker(broker),
            None => continue,
        };
        by_leader.entry(leader).or_default().push(question);
    }
    by_leader
}

/// Groups with what was answered about them, by name. Topics that are gone are left out.
pub fn reports(groups: Vec<Progress>, answers: Vec<Answer>, image: &Image) -> Vec<GroupReport> {
    let answers: HashMap<Question, Behind> = answers.into_iter().collect();
    let lag = |question: Question| {
        let topic = image.topic(question.0.topic)?.name.clone();
        image.partition(question.0)?;
        Some(PartitionLag { topic, question, behind: answers.get(&question).copied() })
    };
    let report = |group: Progress| {
        let lags = group.positions.map(|positions| {
            let mut lags: Vec<PartitionLag> = positions.into_iter().filter_map(lag).collect();
            lags.sort_by(|a, b| (&a.topic, a.question.0.partition).cmp(&(&b.topic, b.question.0.partition)));
            lags
        });
        let Progress { group, state, members, partitions, .. } = group;
        GroupReport { group, state, members, partitions, lags }
    };
    let mut reports: Vec<GroupReport> = groups.into_iter().map(report).collect();
    reports.sort_by(|a, b| a.group.cmp(&b.group));
    reports
}

/// Answers about partitions that this shard leads; others are left out, and those of which an earlier leader may have
/// committed more than is visible here yet.
pub async fn answer(shard: &Rc<Shard>, asked: Vec<Question>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(asked.len());
    let mut reads_left = LAG_DEVICE_READS_MAX;
    for question in asked {
        glommio::yield_if_needed().await;
        let (id, committed) = question;
        let Some(partition) = shard.store.partition(&id) else { continue };
        let standing = partition.standing();
        if !standing.leads || !standing.applied {
            continue;
        }
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
        answers.push((question, Behind { records: end.saturating_sub(from), ms }));
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
    use crate::metadata::images::{fenced, three_brokers};
    use logic::group::partition;
    use logic::ids::TopicId;
    use schema::record_batch::{BatchBuilder, Compression, set_base_offset};

    fn place(offset: u64) -> Place {
        Place { id: partition(TopicId::new(1), 0), offset, replacements: 0 }
    }

    const BROKER: BrokerId = BrokerId::new(1);

    /// Brokers 1, 2 and 3, and topic 1 with a partition on each; 3 is not heard.
    fn image() -> Image {
        fenced(&three_brokers("t", 1, &[1, 2, 3]), 3)
    }

    fn group(positions: Option<Vec<Question>>) -> Progress {
        let partitions = positions.as_ref().map_or(0, Vec::len) as u32;
        Progress { group: "g".into(), state: GroupState::Empty, members: 0, partitions, positions }
    }

    #[test]
    fn each_place_is_asked_once_of_who_leads_it() {
        let image = image();
        let at = |number: u32, offset| (partition(TopicId::new(1), number), offset);
        let groups = [
            group(Some(vec![at(0, Some(5)), at(1, Some(5)), at(2, None)])),
            group(Some(vec![
                at(1, None),
                at(0, Some(5)),
                at(9, None),
                (partition(TopicId::new(2), 0), None),
            ])),
            group(None),
        ];
        let here = Here { broker: BROKER, shard: ShardId::new(0), shards: 2 };
        let own = Leader::Shard(image.home_here(here, partition(TopicId::new(1), 0)));
        let other = Leader::Broker(BrokerId::new(2));
        let expect =
            BTreeMap::from([(own, vec![at(0, Some(5))]), (other, vec![at(1, None), at(1, Some(5))])]);
        assert_eq!(questions(&groups, &image, here), expect);
    }

    #[test]
    fn what_nobody_answered_is_unknown_and_so_is_every_sum_over_it() {
        let image = image();
        let at = |number: u32| (partition(TopicId::new(1), number), Some(5));
        let gone = (partition(TopicId::new(2), 0), Some(5));
        let behind = |records, ms| Behind { records, ms };
        /// Answers; records, milliseconds and unknown partitions of the group.
        type Row = (Vec<Answer>, Option<u64>, Option<u64>, usize);
        let rows: [Row; 4] = [
            (vec![(at(0), behind(3, Some(7))), (at(1), behind(4, Some(6)))], Some(7), Some(7), 0),
            (vec![(at(0), behind(3, Some(7))), (at(1), behind(4, None))], Some(7), None, 0),
            (vec![(at(0), behind(3, Some(7)))], None, None, 1),
            (vec![], None, None, 2),
        ];
        for (answers, records, ms, unknown) in rows {
            let groups = vec![group(Some(vec![at(1), at(0), gone]))];
            let reports = reports(groups, answers.clone(), &image);
            let found = (reports[0].records(), reports[0].ms(), reports[0].unknown_partitions());
            assert_eq!(found, (records, ms, unknown), "{answers:?}");
            let listed: Vec<_> = reports[0].lags.iter().flatten().map(|lag| lag.question).collect();
            assert_eq!(listed, [at(0), at(1)], "by partition, without the topic that is gone");
        }
        let reports = reports(vec![group(None)], vec![], &image);
        assert_eq!((reports[0].records(), reports[0].ms(), reports[0].unknown_partitions()), (None, None, 0));
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
