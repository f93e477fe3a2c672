//! Groups seen from outside: who is in them, what they committed, how far behind they are, and setting them back.
//!
//! Owner: whoever administers; the part of [`Admin`] about groups. Each call asks the coordinators that it needs. Invariant:
//! lag is told of every partition with a committed offset or a member, also when all members are gone; where a partition's
//! leader does not answer it is unknown, and so is every sum over it. Absent on purpose: following a group over time.

use crate::admin::{Admin, ListedOffset, list_offsets_once, retry_may_help};
use crate::client::ClientError;
use crate::cluster::{Home, Topic};
use crate::consumer::Consumer;
use crate::consumer::{AutoOffsetReset, ConsumerConfig, StartFrom};
use crate::coordinator::Coordinator;
use crate::group_request::{
    CommitEntry, CommittedOffset, GroupDescription, GroupState, ListedGroup, NO_MEMBER_EPOCH, OffsetCommit,
};
use crate::reply::{BrokerError, Reply};
use crate::request::{OffsetSpec, Request, TopicId};
use futures_util::future::join_all;
use schema::error_code::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long one partition's first unread record is waited for.
const FIRST_UNREAD_WAIT: Duration = Duration::from_secs(5);
/// How long leaders are asked again that are not there: longer than an election takes.
const LEADERS_WAIT: Duration = Duration::from_secs(2);

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
    /// The member that has the partition; `None` = nobody.
    pub member_id: Option<String>,
    /// How far that is from the log's end; `None` = nobody leads the partition, or who does has not answered.
    pub behind: Option<PartitionBehind>,
}

/// Where a group stands in the log of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionBehind {
    /// The first offset that is kept.
    pub log_start: u64,
    /// The offset after the last record.
    pub log_end: u64,
    /// Records that are not processed; those before `log_start` cannot be any more.
    pub records: u64,
    /// Records that retention has deleted before the group came to them.
    pub overtaken: u64,
    /// Timestamp of the first unread record, milliseconds since 1970; `None` = everything that is kept is read, or the
    /// record could not be read.
    pub first_unread_ms: Option<i64>,
    /// Now, less `first_unread_ms`, milliseconds; 0 = everything that is kept is read. `None` = the record could not be
    /// read.
    pub ms: Option<u64>,
    /// How long until retention may delete the first unread record, if the group stands still, milliseconds; 0 = at any
    /// time, or it has begun. `None` = never, or not in sight.
    pub overtaken_in_ms: Option<u64>,
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

    /// A group, and how far it is behind on every partition that it has committed or has a member for. Each partition's
    /// leader is asked; one that does not answer within a few seconds leaves its partitions unknown, and is no error.
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
            member_id: None,
            behind: None,
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
        name: &str,
        mut lags: BTreeMap<u32, PartitionLag>,
    ) -> Result<Vec<PartitionLag>, ClientError> {
        let retention = self.retention(name).await?;
        let (topic, logs) = self.led_logs(name, lags.keys().copied().collect()).await?;
        lags.retain(|partition, _| topic.home(*partition).is_some());
        for lag in lags.values_mut() {
            if let Some(log) = logs.get(&lag.partition) {
                lag.behind = Some(self.behind(lag, log, retention).await);
            }
        }
        Ok(lags.into_values().collect())
    }

    /// The logs of partitions as their leaders have them. They are asked again for [`LEADERS_WAIT`] while one is missing.
    async fn led_logs(
        &self,
        name: &str,
        mut wanted: BTreeSet<u32>,
    ) -> Result<(Arc<Topic>, BTreeMap<u32, LedLog>), ClientError> {
        let until = Instant::now() + LEADERS_WAIT.min(self.cluster.config.request_timeout);
        let mut logs: BTreeMap<u32, LedLog> = BTreeMap::new();
        let mut attempt = 0;
        loop {
            let topic = self.cluster.refresh(name, Instant::now()).await?;
            wanted.retain(|partition| topic.home(*partition).is_some() && !logs.contains_key(partition));
            let mut by_leader: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for partition in &wanted {
                if let Ok(home) = topic.leader(*partition) {
                    by_leader.entry(home.broker).or_default().push(*partition);
                }
            }
            let asked = by_leader.iter().map(|(broker, led)| self.logs_of_leader(*broker, &topic, led));
            for answered in join_all(asked).await {
                match answered {
                    Ok(answered) => logs.extend(answered),
                    Err(error) if retry_may_help(&error, attempt) => {}
                    Err(error) => return Err(error),
                }
            }
            attempt += 1;
            let wait = self.cluster.config.backoff(attempt);
            if wanted.iter().all(|partition| logs.contains_key(partition)) || Instant::now() + wait > until {
                return Ok((topic, logs));
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn logs_of_leader(
        &self,
        broker: u32,
        topic: &Topic,
        led: &[u32],
    ) -> Result<Vec<(u32, LedLog)>, ClientError> {
        let each = |spec| led.iter().map(|partition| (*partition, spec)).collect::<Vec<_>>();
        // The end first: what is written meanwhile is not unread, and nothing can start above it.
        let ends = list_offsets_once(&self.cluster, topic, &each(OffsetSpec::Latest)).await?;
        let starts = list_offsets_once(&self.cluster, topic, &each(OffsetSpec::Earliest)).await?;
        // Only a forecast needs these.
        let oldest = list_offsets_once(&self.cluster, topic, &each(OffsetSpec::Timestamp(0))).await;
        let oldest: BTreeMap<u32, Option<i64>> =
            oldest.iter().flatten().map(|listed| (listed.partition, listed.timestamp_ms)).collect();
        let described = self.logs_led_by(broker, topic).await;
        let bytes: BTreeMap<u32, u64> =
            described.iter().flatten().map(|log| (log.partition, log.bytes)).collect();
        let log = |(end, start): (&ListedOffset, &ListedOffset)| {
            let log = LedLog {
                start: start.offset,
                end: end.offset.max(start.offset),
                oldest_ms: oldest.get(&end.partition).copied().flatten(),
                bytes: bytes.get(&end.partition).copied().unwrap_or(0),
            };
            (end.partition, log)
        };
        Ok(ends.iter().zip(&starts).map(log).collect())
    }

    async fn behind(&self, lag: &PartitionLag, log: &LedLog, retention: Retention) -> PartitionBehind {
        let from = lag.committed.unwrap_or(log.start);
        let mut behind = PartitionBehind {
            log_start: log.start,
            log_end: log.end,
            records: log.end.saturating_sub(from),
            overtaken: log.start.saturating_sub(from),
            first_unread_ms: None,
            ms: Some(0),
            overtaken_in_ms: None,
        };
        if behind.records == 0 {
            return behind;
        }
        let unread_from = from.max(log.start);
        let age_ms = |ms: i64| now_ms().saturating_sub(ms).max(0) as u64;
        if unread_from < log.end {
            behind.first_unread_ms = self.first_timestamp(&lag.topic, lag.partition, unread_from).await;
            behind.ms = behind.first_unread_ms.map(age_ms);
        }
        let growth = Growth {
            bytes: log.bytes,
            records: log.end - log.start,
            unread: log.end - unread_from,
            age_ms: log.oldest_ms.map(age_ms),
        };
        behind.overtaken_in_ms =
            if behind.overtaken > 0 { Some(0) } else { forecast(retention, behind.ms, growth) };
        behind
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
    async fn first_timestamp(&self, topic: &str, partition: u32, offset: u64) -> Option<i64> {
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

/// A log as its partition's leader has it.
#[derive(Clone, Copy, Debug)]
struct LedLog {
    start: u64,
    end: u64,
    /// The timestamp of its oldest record.
    oldest_ms: Option<i64>,
    bytes: u64,
}

/// What is known of a partition's growth.
#[derive(Clone, Copy, Debug)]
struct Growth {
    bytes: u64,
    records: u64,
    unread: u64,
    /// Of its oldest record.
    age_ms: Option<u64>,
}

/// Milliseconds until retention may delete the first unread record of a group that stands still. By age: when it is
/// old enough; its age may not be known. By size: when as much has been written behind it as is kept, at the mean rate since the oldest record that
/// is kept. Retention removes whole segments, so that it comes later rather than sooner.
fn forecast(retention: Retention, behind_ms: Option<u64>, log: Growth) -> Option<u64> {
    let by_age = retention.ms.zip(behind_ms).map(|(ms, behind_ms)| ms.saturating_sub(behind_ms));
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
    /// Records behind, over all partitions; `None` = one is unknown.
    pub fn records(&self) -> Option<u64> {
        self.partitions.iter().map(|lag| Some(lag.behind?.records)).sum()
    }

    /// Partitions that nobody leads, or whose leaders have not answered.
    pub fn unknown_partitions(&self) -> usize {
        self.partitions.iter().filter(|lag| lag.behind.is_none()).count()
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
        let log = Growth { bytes: 1000, records: 100, unread: 50, age_ms: Some(10_000) };
        /// Retention (ms, bytes), behind ms, log, expected.
        type Row = ((Option<u64>, Option<u64>), Option<u64>, Growth, Option<u64>);
        let rows: [Row; 10] = [
            ((None, None), Some(5), log, None),
            ((Some(100), None), Some(30), log, Some(70)),
            ((Some(100), None), Some(130), log, Some(0)),
            ((Some(100), None), None, log, None),
            // 500 bytes unread, 500 bytes of room, 100 bytes a second.
            ((None, Some(1000)), Some(0), log, Some(5_000)),
            ((None, Some(400)), Some(0), log, Some(0)),
            ((Some(4_000), Some(1000)), Some(0), log, Some(4_000)),
            ((Some(9_000), Some(1000)), Some(0), log, Some(5_000)),
            ((Some(4_000), Some(1000)), None, log, Some(5_000)),
            ((None, Some(1000)), Some(0), Growth { age_ms: None, ..log }, None),
        ];
        for ((ms, bytes), behind_ms, log, expect) in rows {
            let retention = Retention { ms, bytes };
            assert_eq!(forecast(retention, behind_ms, log), expect, "{retention:?} {behind_ms:?} {log:?}");
        }
    }
}
