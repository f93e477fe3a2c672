//! What was produced to a partition and fetched from it, and what its log is: for whoever looks at the broker.
//!
//! [`Traffic`] is owned by the partition and lives as long; a [`PartitionReport`] is a copy of it and of the log's
//! figures that may leave the shard. Invariants: counted per batch and per reply, never per record; long lists of
//! partitions are gathered with yields between. Absent on purpose: records fetched, because batches go out
//! without being looked into; sums over topics that survive a move of a partition.

use crate::mailbox::DescribedLog;
use crate::shard::Shard;
use schema::record_batch::Header;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use logic::ids::TopicId;
use logic::metadata::Image;

/// Counters of one partition since it was opened.
#[derive(Debug, Default)]
pub struct Traffic {
    produced_batches: Cell<u64>,
    produced_records: Cell<u64>,
    produced_bytes: Cell<u64>,
    fetched_bytes: Cell<u64>,
}

fn add(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get() + amount);
}

impl Traffic {
    /// A batch was appended.
    pub fn produced(&self, header: &Header) {
        add(&self.produced_batches, 1);
        add(&self.produced_records, u64::from(header.record_count));
        add(&self.produced_bytes, header.batch_bytes as u64);
    }

    /// So many bytes were sent to a consumer.
    pub fn fetched(&self, bytes: usize) {
        add(&self.fetched_bytes, bytes as u64);
    }
}

/// One partition, as its home shard sees it.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    /// Its log.
    pub log: DescribedLog,
    /// Batches appended.
    pub produced_batches: u64,
    /// Records appended.
    pub produced_records: u64,
    /// Bytes of batches appended.
    pub produced_bytes: u64,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: u64,
}

/// All partitions of this shard, in the order of their ids.
pub async fn gather(shard: &Rc<Shard>) -> Vec<PartitionReport> {
    let partitions = shard.store.partitions();
    let mut reports = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let Traffic { produced_batches, produced_records, produced_bytes, fetched_bytes } =
            &partition.traffic;
        reports.push(PartitionReport {
            log: shard.describe_log(partition.id()),
            produced_batches: produced_batches.get(),
            produced_records: produced_records.get(),
            produced_bytes: produced_bytes.get(),
            fetched_bytes: fetched_bytes.get(),
        });
        glommio::yield_if_needed().await;
    }
    reports
}

/// The partitions of one topic together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicReport {
    /// Its name.
    pub name: String,
    /// How many of its partitions are here.
    pub partitions: u32,
    /// Batches appended.
    pub produced_batches: u64,
    /// Records appended.
    pub produced_records: u64,
    /// Bytes of batches appended.
    pub produced_bytes: u64,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: u64,
    /// Files.
    pub segments: u64,
    /// Bytes in them.
    pub log_bytes: u64,
}

/// Sums `partitions` by topic, in the order of names. A topic that `image` does not know any more is left out.
pub fn by_topic(partitions: &[PartitionReport], image: &Image) -> Vec<TopicReport> {
    let mut topics: BTreeMap<TopicId, TopicReport> = BTreeMap::new();
    for one in partitions {
        let topic = topics.entry(one.log.id.topic).or_default();
        topic.partitions += 1;
        topic.produced_batches += one.produced_batches;
        topic.produced_records += one.produced_records;
        topic.produced_bytes += one.produced_bytes;
        topic.fetched_bytes += one.fetched_bytes;
        topic.segments += one.log.segments;
        topic.log_bytes += one.log.bytes;
    }
    let named = |(id, topic): (TopicId, TopicReport)| {
        Some(TopicReport { name: image.topic(id)?.name.to_string(), ..topic })
    };
    let mut topics: Vec<TopicReport> = topics.into_iter().filter_map(named).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    topics
}
