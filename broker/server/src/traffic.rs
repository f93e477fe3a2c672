//! What was produced to a partition and fetched from it, and what its log is: for whoever looks at the broker.
//!
//! [`Traffic`] is owned by the partition and lives as long; a [`PartitionReport`] is a copy of it and of the log's
//! figures that may leave the shard. A partition that goes to another shard takes its figures along. Invariants: counted
//! per batch and per reply, never per record; long lists of partitions are gathered with yields between. Absent on
//! purpose: records fetched, because batches go out without being looked into; sums over topics that survive a move to
//! another broker.

use crate::mailbox::DescribedLog;
use crate::shard::Shard;
use schema::record_batch::Header;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use logic::ids::TopicId;
use logic::metadata::Image;

/// What went in and out of a partition since this broker opened it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Batches appended for producers.
    pub produced_batches: u64,
    /// Records appended for producers.
    pub produced_records: u64,
    /// Bytes of batches appended for producers.
    pub produced_bytes: u64,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: u64,
    /// Bytes of batches appended for a leader on another broker.
    pub replicated_bytes: u64,
}

/// Counters of one partition.
#[derive(Debug, Default)]
pub struct Traffic {
    amounts: Cell<Amounts>,
}

impl Traffic {
    fn change(&self, change: impl FnOnce(&mut Amounts)) {
        let mut amounts = self.amounts.get();
        change(&mut amounts);
        self.amounts.set(amounts);
    }

    /// A batch was appended.
    pub fn produced(&self, header: &Header) {
        self.change(|amounts| {
            amounts.produced_batches += 1;
            amounts.produced_records += u64::from(header.record_count);
            amounts.produced_bytes += header.batch_bytes as u64;
        });
    }

    /// So many bytes were sent to a consumer.
    pub fn fetched(&self, bytes: usize) {
        self.change(|amounts| amounts.fetched_bytes += bytes as u64);
    }

    /// So many bytes were appended for a leader.
    pub fn replicated(&self, bytes: usize) {
        self.change(|amounts| amounts.replicated_bytes += bytes as u64);
    }

    /// As they are now.
    pub fn amounts(&self) -> Amounts {
        self.amounts.get()
    }

    /// Goes on from where another shard of this broker was.
    pub fn go_on_from(&self, amounts: Amounts) {
        self.amounts.set(amounts);
    }
}

/// One partition, as its home shard sees it.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    /// Its log.
    pub log: DescribedLog,
    /// What went in and out.
    pub amounts: Amounts,
}

/// All partitions of this shard, in the order of their ids.
pub async fn gather(shard: &Rc<Shard>) -> Vec<PartitionReport> {
    let partitions = shard.store.partitions();
    let mut reports = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let log = shard.describe_log(partition.id());
        reports.push(PartitionReport { log, amounts: partition.traffic.amounts() });
        glommio::yield_if_needed().await;
    }
    reports
}

/// The partitions of one topic together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicReport {
    /// Its identity.
    pub id: TopicId,
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
        topic.produced_batches += one.amounts.produced_batches;
        topic.produced_records += one.amounts.produced_records;
        topic.produced_bytes += one.amounts.produced_bytes;
        topic.fetched_bytes += one.amounts.fetched_bytes;
        topic.segments += one.log.segments;
        topic.log_bytes += one.log.bytes;
    }
    let named = |(id, topic): (TopicId, TopicReport)| {
        Some(TopicReport { id, name: image.topic(id)?.name.to_string(), ..topic })
    };
    let mut topics: Vec<TopicReport> = topics.into_iter().filter_map(named).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    topics
}
