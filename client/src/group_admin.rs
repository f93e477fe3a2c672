//! Groups seen from outside: who is in them, what they committed, how far behind they are, and setting them back.
//!
//! Owner: whoever administers; the part of [`Admin`] about groups. Each call asks the coordinators that it needs. Invariant:
//! lag is told of every partition with a committed offset or a member, also when all members are gone. Absent on
//! purpose: following a group over time.

use crate::admin::{Admin, list_offsets};
use crate::client::ClientError;
use crate::cluster::Home;
use crate::consumer::Consumer;
use crate::consumer::{AutoOffsetReset, ConsumerConfig, StartFrom};
use crate::coordinator::Coordinator;
use crate::group_request::{
    CommitEntry, CommittedOffset, GroupDescription, GroupState, ListedGroup, NO_MEMBER_EPOCH, OffsetCommit,
};
use crate::reply::{BrokerError, Reply};
use crate::request::{OffsetSpec, Request, TopicId};
use schema::error_code::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long one partition's first unread record is waited for.
const FIRST_UNREAD_WAIT: Duration = Duration::from_secs(5);

/// How far a group is behind on one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// The topic.
    pub topic: String,
    /// Its identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: u32,
    /// The offset of the next record to process; `None` = nothing was committed.
    pub committed: Option<u64>,
    /// When it was committed, milliseconds since 1970.
    pub commit_time_ms: Option<i64>,
    /// The first offset that is kept.
    pub log_start: u64,
    /// The offset after the last record.
    pub log_end: u64,
    /// Records that are not processed; those before `log_start` cannot be any more.
    pub records: u64,
    /// Records that retention has deleted before the group came to them.
    pub overtaken: u64,
    /// Timestamp of the first unread record, milliseconds since 1970; `None` = everything is read.
    pub first_unread_ms: Option<i64>,
    /// Now, less `first_unread_ms`, milliseconds; 0 = everything is read.
    pub behind_ms: u64,
    /// How long until retention may delete the first unread record, if the group stands still, milliseconds; 0 = at any
    /// time, or it has begun. `None` = never, or not in sight.
    pub overtaken_in_ms: Option<u64>,
    /// The member that has the partition; `None` = nobody.
    pub member_id: Option<String>,
}

/// A group and how far it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLag {
    /// The group.
    pub group: GroupDescription,
    /// By topic and partition.
    pub partitions: Vec<PartitionLag>,
}

/// What decides when a topic's records go.
#[derive(Clone, Copy, Debug, Default)]
struct Retention {
    /// `None` = never by age.
    ms: Option<u64>,
    /// `None` = never by size.
    bytes: Option<u64>,
}

impl Admin {
    async fn ask_coordinator(&self, group: &str, request: Request) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.cluster.config.request_timeout;
        Coordinator::new(self.cluster.clone(), group).ask(request, deadline).await
    }

    /// Every group of every broker, by name.
    pub async fn list_groups(&self) -> Result<Vec<ListedGroup>, ClientError> {
        // Whoever asks for the topic makes it: then there are coordinators to ask.
        // Who is fenced coordinates nothing.
        let alive = self.cluster.brokers();
        let mut brokers: Vec<u32> =
            alive.values().filter(|broker| !broker.fenced).map(|broker| broker.id).collect();
        brokers.sort_unstable();
        let mut groups = Vec::new();
        for broker in brokers {
            let started = Instant::now();
            let mut attempt = 0;
            loop {
                let connection = self.cluster.connection(Home { broker, shard: 0 }).await?;
                let response =
                    connection.request(Request::ListGroups, self.cluster.config.request_timeout).await?;
                match response.into_result() {
                    Ok(Reply::GroupList(listed)) => {
                        groups.extend(listed);
                        break;
                    }
                    Ok(_) => return Err(ClientError::UnexpectedReply { request: "ListGroups" }),
                    Err(error)
                        if error.is_retriable()
                            && started.elapsed() < self.cluster.config.request_timeout =>
                    {
                        attempt += 1;
                        tokio::time::sleep(error.retry_after.max(self.cluster.config.backoff(attempt))).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        groups.sort_unstable_by(|one: &ListedGroup, other| one.group.cmp(&other.group));
        Ok(groups)
    }

    /// One group: its members and what it committed.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let request = Request::DescribeGroups { groups: vec![group.to_owned()] };
            let Reply::Groups(groups) = self.ask_coordinator(group, request).await? else {
                return Err(ClientError::UnexpectedReply { request: "DescribeGroups" });
            };
            let described = groups.into_iter().next();
            let described = described.ok_or(ClientError::UnexpectedReply { request: "DescribeGroups" })?;
            match described.error {
                None => return Ok(described),
                Some(code)
                    if code.is_retriable() && started.elapsed() < self.cluster.config.request_timeout =>
                {
                    attempt += 1;
                    tokio::time::sleep(self.cluster.config.backoff(attempt)).await;
                }
                Some(code) => return Err(group_refused(group, BrokerError::of(code))),
            }
        }
    }

    /// Deletes a group without members, with its offsets.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, `GROUP_NOT_EMPTY`.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let request = Request::DeleteGroups { groups: vec![group.to_owned()] };
            let Reply::GroupOutcomes(outcomes) = self.ask_coordinator(group, request).await? else {
                return Err(ClientError::UnexpectedReply { request: "DeleteGroups" });
            };
            match outcomes.into_iter().next().and_then(|outcome| outcome.error) {
                None => return Ok(()),
                Some(error)
                    if error.is_retriable() && started.elapsed() < self.cluster.config.request_timeout =>
                {
                    attempt += 1;
                    tokio::time::sleep(self.cluster.config.backoff(attempt)).await;
                }
                Some(error) => return Err(group_refused(group, error)),
            }
        }
    }

    /// Sets offsets of a group without members; makes the group if need be. `offsets`: topic, partition, offset.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`; `UNKNOWN_TOPIC` and `UNKNOWN_PARTITION` of the first entry that has them, while the others are
    /// set.
    pub async fn set_group_offsets(
        &self,
        group: &str,
        offsets: &[(&str, u32, u64)],
    ) -> Result<(), ClientError> {
        let mut entries = Vec::with_capacity(offsets.len());
        let mut sorted = offsets.to_vec();
        sorted.sort_unstable();
        for (name, partition, offset) in sorted {
            let topic = self.cluster.topic(name).await?;
            topic.place(partition)?;
            let topic = topic.id;
            entries.push(CommitEntry {
                topic,
                partition,
                offset,
                leader_epoch: None,
                metadata: String::new(),
            });
        }
        let commit = OffsetCommit {
            group: group.to_owned(),
            member_id: String::new(),
            member_epoch: NO_MEMBER_EPOCH,
            entries,
        };
        match self.ask_coordinator(group, Request::OffsetCommit(Box::new(commit))).await {
            Ok(Reply::Committed(results)) => match results.iter().find_map(|result| result.error) {
                None => Ok(()),
                Some(code) => Err(group_refused(group, BrokerError::of(code))),
            },
            Ok(_) => Err(ClientError::UnexpectedReply { request: "OffsetCommit" }),
            Err(ClientError::Broker(error)) => Err(group_refused(group, error)),
            Err(error) => Err(error),
        }
    }

    /// A group, and how far it is behind on every partition that it has committed or has a member for.
    ///
    /// # Errors
    /// As [`Self::describe_group`]. Topics that are gone are left out.
    pub async fn group_lag(&self, group: &str) -> Result<GroupLag, ClientError> {
        let group = self.describe_group(group).await?;
        let mut wanted: BTreeMap<String, BTreeMap<u32, PartitionLag>> = BTreeMap::new();
        let blank = |topic: &str, topic_id, partition| PartitionLag {
            topic: topic.to_owned(),
            topic_id,
            partition,
            committed: None,
            commit_time_ms: None,
            log_start: 0,
            log_end: 0,
            records: 0,
            overtaken: 0,
            first_unread_ms: None,
            behind_ms: 0,
            overtaken_in_ms: None,
            member_id: None,
        };
        for CommittedOffset { topic, topic_name, partition, offset, commit_time_ms, .. } in &group.offsets {
            let lag = wanted.entry(topic_name.clone()).or_default().entry(*partition);
            let lag = lag.or_insert_with(|| blank(topic_name, *topic, *partition));
            lag.committed = *offset;
            lag.commit_time_ms = Some(*commit_time_ms).filter(|ms| *ms >= 0);
        }
        for member in &group.members {
            // What is being revoked is still with its member.
            for topic in member.assignment.iter().chain(&member.revoking) {
                for partition in &topic.partitions {
                    let lag = wanted.entry(topic.name.clone()).or_default().entry(*partition);
                    let lag = lag.or_insert_with(|| blank(&topic.name, topic.id, *partition));
                    lag.member_id = Some(member.member_id.clone());
                }
            }
        }
        wanted.remove("");
        let mut partitions = Vec::new();
        for (topic, lags) in wanted {
            match self.topic_lag(&topic, lags).await {
                Ok(lags) => partitions.extend(lags),
                Err(ClientError::UnknownTopic { .. } | ClientError::UnknownPartition { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(GroupLag { group, partitions })
    }

    async fn topic_lag(
        &self,
        topic: &str,
        mut lags: BTreeMap<u32, PartitionLag>,
    ) -> Result<Vec<PartitionLag>, ClientError> {
        let cluster = &self.cluster;
        let each = |spec| lags.keys().map(|partition| (*partition, spec)).collect::<Vec<_>>();
        // The end first: what is written meanwhile is not unread, and nothing can start above it.
        let ends = list_offsets(cluster, topic, &each(OffsetSpec::Latest)).await?;
        let starts = list_offsets(cluster, topic, &each(OffsetSpec::Earliest)).await?;
        let oldest = list_offsets(cluster, topic, &each(OffsetSpec::Timestamp(0))).await?;
        let bytes: BTreeMap<u32, u64> =
            self.describe_logs(topic).await?.iter().map(|log| (log.partition, log.bytes)).collect();
        let retention = self.retention(topic).await?;
        for ((end, start), oldest) in ends.iter().zip(&starts).zip(&oldest) {
            let Some(lag) = lags.get_mut(&end.partition) else { continue };
            (lag.log_start, lag.log_end) = (start.offset, end.offset.max(start.offset));
            let from = lag.committed.unwrap_or(start.offset);
            lag.records = lag.log_end.saturating_sub(from);
            lag.overtaken = lag.log_start.min(lag.log_end).saturating_sub(from);
            if lag.records == 0 {
                continue;
            }
            let unread_from = from.max(lag.log_start);
            lag.first_unread_ms = self.first_timestamp(topic, lag.partition, unread_from, lag.log_end).await;
            let now_ms = now_ms();
            lag.behind_ms = lag.first_unread_ms.map_or(0, |ms| now_ms.saturating_sub(ms).max(0) as u64);
            let log = Log {
                bytes: bytes.get(&lag.partition).copied().unwrap_or(0),
                records: lag.log_end - lag.log_start,
                unread: lag.log_end - unread_from,
                age_ms: oldest.timestamp_ms.map(|ms| now_ms.saturating_sub(ms).max(0) as u64),
            };
            lag.overtaken_in_ms =
                if lag.overtaken > 0 { Some(0) } else { forecast(retention, lag.behind_ms, log) };
        }
        Ok(lags.into_values().collect())
    }

    async fn retention(&self, topic: &str) -> Result<Retention, ClientError> {
        let mut retention = Retention::default();
        for setting in self.describe_configs(topic).await? {
            let limit = setting.value.parse::<u64>().ok();
            match setting.name.as_str() {
                "retention.ms" => retention.ms = limit,
                "retention.bytes" => retention.bytes = limit,
                // A compacted log keeps the latest of every key for ever.
                "cleanup.policy" if setting.value == "compact" => return Ok(Retention::default()),
                _ => {}
            }
        }
        Ok(retention)
    }

    /// The timestamp of the first record at or after `offset`; `None` if it cannot be read.
    async fn first_timestamp(&self, topic: &str, partition: u32, offset: u64, end: u64) -> Option<i64> {
        if offset >= end {
            return None;
        }
        let mut consumer = Consumer::new(
            self.cluster.clone(),
            ConsumerConfig {
                max_partition_fetch_bytes: 1,
                fetch_max_bytes: 1,
                prefetch_bytes: 1,
                auto_offset_reset: AutoOffsetReset::Earliest,
                ..ConsumerConfig::default()
            },
        );
        consumer.assign(topic, &[(partition, StartFrom::Offset(offset))]).await.ok()?;
        let first = tokio::time::timeout(FIRST_UNREAD_WAIT, consumer.next()).await.ok()??.ok()?;
        Some(first.timestamp_ms)
    }

    /// The offsets of places in partitions of a topic: for setting a group back.
    ///
    /// # Errors
    /// As [`Self::list_offsets`].
    pub async fn resolve_offsets(
        &self,
        topic: &str,
        partitions: &BTreeSet<u32>,
        place: StartFrom,
    ) -> Result<BTreeMap<u32, u64>, ClientError> {
        let each = |spec| partitions.iter().map(|partition| (*partition, spec)).collect::<Vec<_>>();
        let spec = match place {
            StartFrom::Earliest => OffsetSpec::Earliest,
            StartFrom::Latest => OffsetSpec::Latest,
            StartFrom::Timestamp(ms) => OffsetSpec::Timestamp(ms),
            StartFrom::Offset(offset) => {
                // Within the log, or the next read would be out of range.
                let starts = self.list_offsets(topic, &each(OffsetSpec::Earliest)).await?;
                let ends = self.list_offsets(topic, &each(OffsetSpec::Latest)).await?;
                let within = starts.iter().zip(ends);
                return Ok(within
                    .map(|(start, end)| (end.partition, offset.max(start.offset).min(end.offset)))
                    .collect());
            }
        };
        let listed = self.list_offsets(topic, &each(spec)).await?;
        Ok(listed.into_iter().map(|listed| (listed.partition, listed.offset)).collect())
    }
}

/// What is known of a partition's growth.
#[derive(Clone, Copy, Debug)]
struct Log {
    bytes: u64,
    records: u64,
    unread: u64,
    /// Of its oldest record.
    age_ms: Option<u64>,
}

/// Milliseconds until retention may delete the first unread record of a group that stands still. By age: when it is
/// old enough. By size: when as much has been written behind it as is kept, at the mean rate since the oldest record that
/// is kept. Retention removes whole segments, so that it comes later rather than sooner.
fn forecast(retention: Retention, behind_ms: u64, log: Log) -> Option<u64> {
    let by_age = retention.ms.map(|ms| ms.saturating_sub(behind_ms));
    let by_size = retention.bytes.and_then(|limit| {
        let unread_bytes =
            (u128::from(log.bytes) * u128::from(log.unread) / u128::from(log.records.max(1))) as u64;
        let room = limit.saturating_sub(unread_bytes);
        let (age_ms, bytes) = (log.age_ms.filter(|age| *age > 0)?, u128::from(log.bytes.max(1)));
        u64::try_from(u128::from(room) * u128::from(age_ms) / bytes).ok()
    });
    match (by_age, by_size) {
        (Some(age), Some(size)) => Some(age.min(size)),
        (one, other) => one.or(other),
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}

/// Errors about a group name it.
fn group_refused(group: &str, error: BrokerError) -> ClientError {
    let message: Arc<str> = match error.code {
        ErrorCode::GroupNotFound => {
            format!("there is no group '{group}'; see the groups: ringlog group list").into()
        }
        ErrorCode::GroupNotEmpty => format!("group '{group}' has members; stop its consumers first").into(),
        _ => return error.into(),
    };
    BrokerError { message, ..error }.into()
}

impl GroupLag {
    /// Records behind, over all partitions.
    pub fn records(&self) -> u64 {
        self.partitions.iter().map(|lag| lag.records).sum()
    }

    /// Whether nobody is in the group.
    pub fn is_empty(&self) -> bool {
        self.group.state == GroupState::Empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts() {
        let log = Log { bytes: 1000, records: 100, unread: 50, age_ms: Some(10_000) };
        /// Retention (ms, bytes), behind ms, log, expected.
        type Row = ((Option<u64>, Option<u64>), u64, Log, Option<u64>);
        let rows: [Row; 8] = [
            ((None, None), 5, log, None),
            ((Some(100), None), 30, log, Some(70)),
            ((Some(100), None), 130, log, Some(0)),
            // 500 bytes unread, 500 bytes of room, 100 bytes a second.
            ((None, Some(1000)), 0, log, Some(5_000)),
            ((None, Some(400)), 0, log, Some(0)),
            ((Some(4_000), Some(1000)), 0, log, Some(4_000)),
            ((Some(9_000), Some(1000)), 0, log, Some(5_000)),
            ((None, Some(1000)), 0, Log { age_ms: None, ..log }, None),
        ];
        for ((ms, bytes), behind_ms, log, expect) in rows {
            let retention = Retention { ms, bytes };
            assert_eq!(forecast(retention, behind_ms, log), expect, "{retention:?} {behind_ms} {log:?}");
        }
    }
}
