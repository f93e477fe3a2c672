//! What a broker tells a metrics system: Prometheus' text format, version 0.0.4.
//!
//! A pure function from plain data to text, run on the thread that serves HTTP. Source of the format: Prometheus,
//! "Exposition formats". Invariants: all lines of a metric follow each other, under one `HELP` and one `TYPE`;
//! counters end in `_total`; times are seconds, sizes bytes; labels are escaped; the number of lines is bounded by
//! shards, topics, [`METRICS_PARTITIONS_MAX`] and [`METRICS_GROUPS_MAX`].
//! Absent on purpose: quantiles computed here, which cannot be added over shards, and timestamps.

mod cluster;

use crate::group::lag::{GroupReport, PartitionLag};
use crate::histogram::{BOUNDS_US, HistogramReport};
use crate::mailbox::{DescribedReplica, ShardReport};
use crate::observe::Observer;
use crate::traffic::{PartitionReport, TopicReport};
use logic::group::request::GroupState;
use logic::limits::{METRICS_GROUPS_MAX, METRICS_PARTITIONS_MAX};
use std::fmt::Write as _;
use std::time::Duration;

/// Everything that one answer says.
pub struct Seen<'a> {
    /// For the names of topics.
    pub observer: &'a Observer,
    /// Since the broker's start.
    pub uptime: Duration,
    /// Of the shards that answered.
    pub shards: &'a [ShardReport],
    /// How many did not.
    pub silent: usize,
    /// Their partitions.
    pub partitions: &'a [PartitionReport],
    /// Groups, by name.
    pub groups: &'a [GroupReport],
    /// Coordinators whose groups are not known yet.
    pub loading: u32,
}

/// What `Content-Type` says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a shard's counters mean, for people; by the names of [`ShardReport::counters`].
const HELP: &[(&str, &str)] = &[
    ("connections_open", "Connections of clients."),
    ("connections_total", "Connections taken over by the shard."),
    ("requests_total", "Requests handled."),
    ("batches_total", "Batches appended."),
    ("records_total", "Records appended."),
    ("produced_bytes_total", "Bytes of batches appended."),
    ("fetched_bytes_total", "Bytes of batches sent to consumers."),
    ("follower_fetches_total", "Fetches, by partition, answered as a follower."),
    (
        "follower_fetched_bytes_total",
        "Of the bytes sent to consumers, those of partitions that other brokers lead.",
    ),
    ("fetches_from_memory_total", "Fetches served from memory."),
    ("fetches_from_device_total", "Fetches that read the device."),
    ("forwarded_requests_total", "Requests, or parts of them, sent on to another core."),
    ("overloaded_total", "Requests refused because a queue or a budget was full."),
    ("in_place_batches_total", "Batches received straight into the buffer that went to the device."),
    ("invalid_frames_total", "Frames that were not this protocol."),
    ("invalid_batches_total", "Batches refused."),
    ("timed_out_connections_total", "Connections closed because their peer was too slow."),
    ("late_requests_total", "Requests that were not done because their deadline had passed."),
    ("duplicate_batches_total", "Batches that a producer had sent before, answered with their first offset."),
    ("out_of_sequence_batches_total", "Batches refused for their producer's sequence or epoch."),
    ("producers", "Producers whose last batches the shard remembers."),
    ("partitions", "Partitions that the shard leads."),
    ("flush_rounds_total", "Flush rounds."),
    ("flush_groups_total", "Groups of batches written."),
    ("flush_bytes_total", "Bytes written by flush rounds, padding included."),
    ("flush_payload_bytes_total", "Bytes of batches written by flush rounds."),
    ("device_flushes_total", "Flushes of the device's cache."),
    ("durable_writes_total", "Writes that were durable by themselves."),
    ("unprepared_groups_total", "Groups written to blocks that were not written before."),
    ("rounds_in_flight", "Flush rounds under way."),
    ("dirty_partitions", "Partitions that wait for a flush round."),
    ("dirty_bytes", "Bytes that are appended and not durable."),
    ("in_flight_bytes", "Bytes of requests that are not answered."),
    ("reply_bytes", "Bytes of replies that are queued."),
    ("reserved_reply_bytes", "Room reserved for replies under way, bytes."),
    ("tail_cache_bytes", "Bytes of the newest groups kept in memory."),
    ("buffer_bytes", "Bytes of buffers for the device."),
    ("buffer_allocations_total", "Buffers that had to be allocated."),
    ("parked_fetches", "Fetches that wait for records."),
    ("zeroed_bytes_total", "Bytes of files written ahead with zeros."),
    ("segments_created_total", "Segment files made."),
    ("segments_recycled_total", "Segment files used again."),
    ("device_reads_total", "Reads of the device."),
    ("device_read_bytes_total", "Bytes read from the device."),
    ("checkpoints_total", "Checkpoints written."),
    ("compaction_passes_total", "Passes over a partition that ended."),
    (
        "compaction_given_up_total",
        "Passes that came to no end: damage, the device, no space; tried again later.",
    ),
    ("compaction_read_bytes_total", "Bytes that passes have read."),
    ("compaction_written_bytes_total", "Bytes that passes have written."),
    ("compaction_removed_records_total", "Records that passes have left out."),
    ("compaction_removed_bytes_total", "Bytes that passes have freed."),
    ("scrub_passes_total", "Passes of scrubbing over all that is stored."),
    ("scrubbed_bytes_total", "Bytes that scrubbing has read."),
    (
        "damaged_ranges_total",
        "Ranges of offsets found damaged or unproven, by recovery, readers or scrubbing.",
    ),
    ("damaged_ranges", "Ranges of offsets that are damaged and not served."),
    ("mailbox_messages", "Messages of other cores that wait."),
    ("mailbox_bytes", "Bytes carried by messages that wait."),
    ("stalls_total", "Times that one task held the core for 50 ms or more."),
    ("stalled_ms_total", "For how long, all together, milliseconds."),
    ("longest_stall_ms", "The longest of them, milliseconds."),
    ("replication_links", "Links to other brokers: a live and a catch-up stream each."),
    ("replication_links_up", "Those of them that stand."),
    ("replication_connects_total", "Connections made, those for catching up among them."),
    ("replication_failed_connects_total", "Connections that could not be made."),
    ("replication_unacknowledged_bytes", "Bytes of batches that were sent and not acknowledged yet."),
    ("replication_accepted_streams", "Streams of other brokers that are open here."),
    ("replication_frames_sent_total", "Frames sent over streams."),
    ("replication_messages_sent_total", "Messages about partitions in those frames."),
    ("replication_sent_bytes_total", "Bytes sent over streams."),
    ("replication_sends_total", "System calls by which they were sent."),
    ("replication_frames_received_total", "Frames received over streams."),
    ("replication_received_bytes_total", "Bytes received over streams."),
    ("replication_receives_total", "System calls by which they were received."),
    ("replicas", "Replicas of partitions that other brokers have, too."),
    ("replicas_leading", "Those of them that lead."),
    ("replicas_suspect", "Those of them that may have lost what they acknowledged, and are refilled."),
    ("replicated_bytes_total", "Bytes of batches appended for leaders on other brokers."),
    ("replication_refused_pushes_total", "Pushed batches refused: not what comes next, or damaged."),
    ("replication_pushes_from_memory_total", "Chunks of batches given to streams from memory."),
    ("replication_pushes_from_device_total", "Chunks of batches given to streams that read the device."),
    ("replication_truncations_total", "Logs that were cut because their leader has something else there."),
    ("replication_resets_total", "Logs that were begun anew at their leader's start."),
    ("homes_taken_over_total", "Partitions taken over from other shards of the broker."),
    ("homes_handed_over_total", "Partitions handed over to other shards of the broker."),
    (
        "home_pauses_us_total",
        "For how long partitions took nothing on their way here, all together, microseconds.",
    ),
    ("longest_home_pause_us", "The longest of those pauses, microseconds."),
    ("repaired_ranges_total", "Damaged ranges that were fetched anew from other replicas."),
    ("replication_alters_total", "Changes of in-sync sets that leaders asked the metadata for."),
];

const TIMED_HELP: [(&str, &str); 3] = [
    ("round", "From the begin of a flush round until it was durable."),
    ("produce", "From the first byte of a produce request to its answer."),
    ("fetch", "From the last byte of a fetch request to its answer, the wait for records included."),
];

/// The answer to a scrape.
pub fn text(seen: &Seen<'_>) -> String {
    let mut out = Text::default();
    out.metric("ringlog_build_info", "gauge", "The version, as a label.");
    out.sample("ringlog_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.metric("ringlog_uptime_seconds", "gauge", "Since the broker's start.");
    out.sample("ringlog_uptime_seconds", &[], seen.uptime.as_secs());
    out.metric(
        "ringlog_silent_shards",
        "gauge",
        "Shards that did not answer in time, and are missing below.",
    );
    out.sample("ringlog_silent_shards", &[], seen.silent as u64);
    shards(&mut out, seen.shards);
    timed(&mut out, seen.shards);
    topics(&mut out, &seen.observer.by_topic(seen.partitions));
    partitions(&mut out, seen);
    replicas(&mut out, seen.partitions.iter().flat_map(|one| &one.log.replicas));
    groups(&mut out, seen);
    cluster::cluster(&mut out, &seen.observer.metadata.image(), seen.observer.broker);
    let (metadata, broker) = (&seen.observer.metadata, seen.observer.broker);
    cluster::quorum(&mut out, &metadata.quorum(), broker, metadata.is_current(broker));
    out.0
}

fn shards(out: &mut Text, shards: &[ShardReport]) {
    let Some(first) = shards.first() else { return };
    for (name, _) in &first.counters {
        // Those are in the histogram.
        if name.starts_with("round_p") {
            continue;
        }
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let help = HELP.iter().find(|(known, _)| known == name).map_or("A figure of a shard.", |row| row.1);
        let metric = format!("ringlog_{name}");
        out.metric(&metric, kind, help);
        for report in shards {
            let value = report.counters.iter().find(|(other, _)| other == name);
            if let Some((_, value)) = value {
                out.sample(&metric, &[("shard", &report.shard.get().to_string())], *value);
            }
        }
    }
}

fn timed(out: &mut Text, shards: &[ShardReport]) {
    for (name, help) in TIMED_HELP {
        let metric = format!("ringlog_{name}_seconds");
        out.metric(&metric, "histogram", help);
        for report in shards {
            let found = report.timed.iter().find(|timed| timed.name == name);
            if let Some(timed) = found {
                out.histogram(&metric, &report.shard.get().to_string(), &timed.took);
            }
        }
    }
}

type Figure<T> = (&'static str, &'static str, fn(&T) -> u64);

fn topics(out: &mut Text, topics: &[TopicReport]) {
    let figures: [Figure<TopicReport>; 7] = [
        ("ringlog_topic_partitions", "Partitions of the topic.", |topic| u64::from(topic.partitions)),
        ("ringlog_topic_produced_batches_total", "Batches appended to the topic.", |topic| {
            topic.produced_batches
        }),
        ("ringlog_topic_produced_records_total", "Records appended to the topic.", |topic| {
            topic.produced_records
        }),
        ("ringlog_topic_produced_bytes_total", "Bytes of batches appended to the topic.", |topic| {
            topic.produced_bytes
        }),
        ("ringlog_topic_fetched_bytes_total", "Bytes of batches sent to consumers of the topic.", |topic| {
            topic.fetched_bytes
        }),
        ("ringlog_topic_segments", "Segment files of the topic.", |topic| topic.segments),
        ("ringlog_topic_log_bytes", "Bytes of the topic's logs on disk.", |topic| topic.log_bytes),
    ];
    for (metric, help, value) in figures {
        out.figure(metric, help);
        for topic in topics {
            out.sample(metric, &[("topic", &topic.name)], value(topic));
        }
    }
}

fn partitions(out: &mut Text, seen: &Seen<'_>) {
    let omitted = if seen.partitions.len() > METRICS_PARTITIONS_MAX { seen.partitions.len() } else { 0 };
    let metric = "ringlog_partitions_omitted";
    out.metric(metric, "gauge", "Partitions without lines of their own, because there are too many.");
    out.sample(metric, &[], omitted as u64);
    if omitted > 0 {
        return;
    }
    let mut named: Vec<_> = (seen.partitions.iter())
        .filter_map(|one| Some((seen.observer.topic_name(one.log.id.topic)?, one)))
        .collect();
    named.sort_by(|a, b| (&a.0, a.1.log.id.partition).cmp(&(&b.0, b.1.log.id.partition)));
    let figures: [Figure<PartitionReport>; 7] = [
        ("ringlog_partition_log_start_offset", "The first offset kept.", |one| one.log.log_start),
        ("ringlog_partition_high_watermark", "The first offset that is not visible.", |one| {
            one.log.high_watermark
        }),
        ("ringlog_partition_log_end_offset", "The offset of the next record.", |one| one.log.log_end),
        ("ringlog_partition_log_bytes", "Bytes of the log on disk.", |one| one.log.bytes),
        ("ringlog_partition_damaged", "1 if a range of offsets is damaged.", |one| {
            u64::from(one.log.error.is_some())
        }),
        ("ringlog_partition_produced_records_total", "Records appended.", |one| one.amounts.produced_records),
        ("ringlog_partition_fetched_bytes_total", "Bytes of batches sent to consumers.", |one| {
            one.amounts.fetched_bytes
        }),
    ];
    for (metric, help, value) in figures {
        out.figure(metric, help);
        for (topic, one) in &named {
            let partition = one.log.id.partition.get().to_string();
            out.sample(metric, &[("topic", topic), ("partition", &partition)], value(one));
        }
    }
    let metric = "ringlog_partition_replica_lag_records";
    out.figure(metric, "Records that the replica lacks that is furthest behind, if this broker leads.");
    for (topic, one) in &named {
        let furthest = Furthest::of(&one.log.replicas);
        if furthest.unknown == 0 {
            let partition = one.log.id.partition.get().to_string();
            out.sample(metric, &[("topic", topic), ("partition", &partition)], furthest.records);
        }
    }
}

/// How far the replica is behind that is furthest.
#[derive(Default)]
struct Furthest {
    /// Of those of which it is known.
    records: u64,
    ms: u64,
    /// Replicas that have not been heard since their leader leads.
    unknown: u64,
}

impl Furthest {
    fn of<'a>(replicas: impl IntoIterator<Item = &'a DescribedReplica>) -> Self {
        let further = |far: Self, one: &DescribedReplica| Self {
            records: far.records.max(one.lag_records.unwrap_or(0)),
            ms: far.ms.max(one.lag_ms),
            unknown: far.unknown + u64::from(one.lag_records.is_none()),
        };
        replicas.into_iter().fold(Self::default(), further)
    }
}

/// A broker tells it of what it leads.
fn replicas<'a>(out: &mut Text, replicas: impl IntoIterator<Item = &'a DescribedReplica>) {
    let furthest = Furthest::of(replicas);
    let metric = "ringlog_replicas_unknown";
    let help = "Replicas of partitions led here that have not been heard since: what they lack is not known.";
    out.metric(metric, "gauge", help);
    out.sample(metric, &[], furthest.unknown);
    let metric = "ringlog_replica_max_lag_records";
    out.metric(
        metric,
        "gauge",
        "Records that the replica lacks that is furthest behind, of partitions led here, as far as it is known.",
    );
    out.sample(metric, &[], furthest.records);
    let metric = "ringlog_replica_max_lag_seconds";
    out.metric(metric, "gauge", "For how long a replica of a partition led here has not had everything.");
    out.sample_text(metric, &[], &seconds(furthest.ms.saturating_mul(1000)));
}

/// What a group does, by the word for it.
const STATES: [(GroupState, &str); 3] =
    [(GroupState::Empty, "empty"), (GroupState::Reconciling, "reconciling"), (GroupState::Stable, "stable")];

fn groups(out: &mut Text, seen: &Seen<'_>) {
    let metric = "ringlog_group_coordinators_loading";
    out.metric(metric, "gauge", "Coordinators that read their groups still, which are missing below.");
    out.sample(metric, &[], u64::from(seen.loading));
    let metric = "ringlog_groups";
    out.metric(metric, "gauge", "Consumer groups by what they do.");
    for (state, word) in STATES {
        let count = seen.groups.iter().filter(|group| group.state == state).count();
        out.sample(metric, &[("state", word)], count as u64);
    }
    let omitted = if seen.groups.len() > METRICS_GROUPS_MAX { seen.groups.len() } else { 0 };
    let metric = "ringlog_groups_omitted";
    out.metric(metric, "gauge", "Groups without lines of their own, because there are too many.");
    out.sample(metric, &[], omitted as u64);
    if omitted > 0 {
        return;
    }
    let metric = "ringlog_group_state";
    out.metric(metric, "gauge", "1 for what the group does, 0 for what it does not.");
    for group in seen.groups {
        for (state, word) in STATES {
            out.sample(metric, &[("group", &group.group), ("state", word)], u64::from(group.state == state));
        }
    }
    let metric = "ringlog_group_members";
    out.metric(metric, "gauge", "Members of the group.");
    for group in seen.groups {
        out.sample(metric, &[("group", &group.group)], u64::from(group.members));
    }
    group_lags(out, seen.groups);
}

/// How a lag is told.
type Told = fn(&PartitionLag) -> Option<String>;

fn group_lags(out: &mut Text, groups: &[GroupReport]) {
    let lines: usize = groups.iter().map(|group| group.partitions as usize).sum();
    let listed = lines <= METRICS_GROUPS_MAX && groups.iter().all(|group| group.lags.is_some());
    let metric = "ringlog_group_partitions_omitted";
    out.metric(
        metric,
        "gauge",
        "Partitions of groups without lines of their own, because there are too many.",
    );
    out.sample(metric, &[], if listed { 0 } else { lines as u64 });
    let metric = "ringlog_group_unknown_partitions";
    out.metric(
        metric,
        "gauge",
        "Partitions of the group that nobody leads, or whose leaders did not answer.",
    );
    for group in groups.iter().filter(|group| group.lags.is_some()) {
        out.sample(metric, &[("group", &group.group)], group.unknown_partitions() as u64);
    }
    let metric = "ringlog_group_total_lag_records";
    let help = "Records that the group has not processed, over all partitions; absent while one is unknown.";
    out.metric(metric, "gauge", help);
    for group in groups {
        if let Some(records) = group.records() {
            out.sample(metric, &[("group", &group.group)], records);
        }
    }
    let metric = "ringlog_group_max_lag_seconds";
    let help =
        "Age of the oldest record that is the first unread one of a partition; absent while one is unknown.";
    out.metric(metric, "gauge", help);
    for group in groups {
        if let Some(ms) = group.ms() {
            out.sample_text(metric, &[("group", &group.group)], &seconds(ms.saturating_mul(1000)));
        }
    }
    if !listed {
        return;
    }
    let figures: [(&str, &str, Told); 3] = [
        (
            "ringlog_group_committed_offset",
            "The offset of the next record that the group processes.",
            |lag| lag.question.1.map(|offset| offset.to_string()),
        ),
        ("ringlog_group_lag_records", "Records that the group has not processed.", |lag| {
            Some(lag.behind?.records.to_string())
        }),
        ("ringlog_group_lag_seconds", "Age of the first record that the group has not processed.", |lag| {
            Some(seconds(lag.behind?.ms?.saturating_mul(1000)))
        }),
    ];
    for (metric, help, told) in figures {
        out.metric(metric, "gauge", help);
        for group in groups {
            for lag in group.lags.iter().flatten() {
                let partition = lag.question.0.partition.get().to_string();
                let labels =
                    [("group", group.group.as_str()), ("topic", &lag.topic), ("partition", &partition)];
                if let Some(value) = told(lag) {
                    out.sample_text(metric, &labels, &value);
                }
            }
        }
    }
}

/// The text as it grows.
#[derive(Default)]
struct Text(String);

// Writing to a String cannot fail.
impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A counter or a gauge, as its name says.
    fn figure(&mut self, name: &str, help: &str) {
        self.metric(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.sample_text(name, labels, &value.to_string());
    }

    fn sample_text(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for letter in text.chars() {
                match letter {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    letter => self.0.push(letter),
                }
            }
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn histogram(&mut self, name: &str, shard: &str, took: &HistogramReport) {
        let bucket = format!("{name}_bucket");
        let mut so_far = 0;
        for (class, count) in took.counts.iter().enumerate() {
            so_far += count;
            let bound = BOUNDS_US.get(class).map_or("+Inf".to_owned(), |us| seconds(*us));
            self.sample(&bucket, &[("shard", shard), ("le", &bound)], so_far);
        }
        let _ = writeln!(self.0, "{name}_sum{{shard=\"{shard}\"}} {}", seconds(took.sum_us));
        self.sample(&format!("{name}_count"), &[("shard", shard)], so_far);
    }
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut out = Text::default();
        out.figure("a_total", "Help.");
        out.sample("a_total", &[], 7);
        out.figure("b", "Help.");
        out.sample("b", &[("topic", "x\"y\\z\n"), ("partition", "3")], 1);
        let expect = "# HELP a_total Help.\n# TYPE a_total counter\na_total 7\n# HELP b Help.\n# TYPE b gauge\n\
                      b{topic=\"x\\\"y\\\\z\\n\",partition=\"3\"} 1\n";
        assert_eq!(out.0, expect);
    }

    #[test]
    fn the_replica_that_is_furthest_behind_counts() {
        let replica = |lag_records: Option<u64>, lag_ms| DescribedReplica {
            broker: logic::ids::BrokerId::new(2),
            end: lag_records.map(|_| logic::ids::Offset::new(0)),
            lag_records,
            lag_ms,
            connected: true,
        };
        let known = vec![replica(Some(7), 20), replica(Some(3), 1_500), replica(Some(0), 0)];
        let away = vec![replica(Some(7), 20), replica(None, 2_500)];
        for (all, expect) in
            [(vec![], ["0", "0", "0"]), (known, ["7", "1.5", "0"]), (away, ["7", "2.5", "1"])]
        {
            let mut out = Text::default();
            replicas(&mut out, &all);
            let told = |metric: &str| out.0.lines().find_map(|line| line.strip_prefix(metric));
            let metrics = [
                "ringlog_replica_max_lag_records ",
                "ringlog_replica_max_lag_seconds ",
                "ringlog_replicas_unknown ",
            ];
            assert_eq!(metrics.map(told), expect.map(Some));
        }
    }

    #[test]
    fn sums_over_a_partition_that_is_unknown_are_not_told() {
        use crate::group::lag::Behind;
        let lag = |number, behind| PartitionLag {
            topic: "t".into(),
            question: (logic::group::partition(logic::ids::TopicId::new(1), number), Some(5)),
            behind,
        };
        let behind = |records, ms| Some(Behind { records, ms });
        let group = |name: &str, lags: Option<Vec<PartitionLag>>| GroupReport {
            group: name.into(),
            state: GroupState::Empty,
            members: 0,
            partitions: 2,
            lags,
        };
        let groups = [
            group("known", Some(vec![lag(0, behind(3, Some(1_500))), lag(1, behind(4, Some(0)))])),
            group("no-time", Some(vec![lag(0, behind(3, Some(1_500))), lag(1, behind(4, None))])),
            group("unknown", Some(vec![lag(0, behind(3, Some(1_500))), lag(1, None)])),
            group("many", None),
        ];
        let told = |groups: &[GroupReport], metric: &str| {
            let mut out = Text::default();
            group_lags(&mut out, groups);
            let lines = out.0.lines().filter_map(|line| line.strip_prefix(metric));
            lines.filter(|rest| rest.starts_with('{')).map(str::to_owned).collect::<Vec<_>>()
        };
        for (metric, expect) in [
            ("ringlog_group_total_lag_records", vec!["{group=\"known\"} 7", "{group=\"no-time\"} 7"]),
            ("ringlog_group_max_lag_seconds", vec!["{group=\"known\"} 1.5"]),
            (
                "ringlog_group_unknown_partitions",
                vec!["{group=\"known\"} 0", "{group=\"no-time\"} 0", "{group=\"unknown\"} 1"],
            ),
        ] {
            assert_eq!(told(&groups, metric), expect, "{metric}");
        }
        // Partition by partition, what is known is told.
        let lines = told(&groups[2..3], "ringlog_group_lag_records");
        assert_eq!(lines, ["{group=\"unknown\",topic=\"t\",partition=\"0\"} 3"]);
        let committed = told(&groups[2..3], "ringlog_group_committed_offset");
        assert_eq!(committed.len(), 2, "{committed:?}");
    }

    #[test]
    fn a_histogram_cumulates_and_ends_with_all() {
        let mut took = HistogramReport { sum_us: 1_500_050, ..HistogramReport::default() };
        (took.counts[0], took.counts[1], took.counts[BOUNDS_US.len()]) = (2, 3, 1);
        let mut out = Text::default();
        out.histogram("h", "1", &took);
        let lines: Vec<&str> = out.0.lines().collect();
        assert_eq!(lines.len(), BOUNDS_US.len() + 3);
        for (at, expect) in [
            (0, "h_bucket{shard=\"1\",le=\"0.00005\"} 2"),
            (1, "h_bucket{shard=\"1\",le=\"0.0001\"} 5"),
            (13, "h_bucket{shard=\"1\",le=\"1\"} 5"),
            (17, "h_bucket{shard=\"1\",le=\"30\"} 5"),
            (18, "h_bucket{shard=\"1\",le=\"+Inf\"} 6"),
            (19, "h_sum{shard=\"1\"} 1.50005"),
            (20, "h_count{shard=\"1\"} 6"),
        ] {
            assert_eq!(lines[at], expect);
        }
    }
}
