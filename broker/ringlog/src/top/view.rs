//! What happened between two looks, for people and for programs.
//!
//! Topics are sums over the brokers that answered, groups are told by the broker that coordinates them. Invariant: a broker
//! that was not there at the first look has no rates yet, and none is negative.

use super::{Answer, Look};
use crate::cluster::describe::Health;
use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted, duration_ms, duration_us, grouped};
use ringlog_client::{GroupStatus, ShardStatus, TopicStatus};
use serde_json::json;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug)]
pub struct View {
    brokers: Vec<BrokerView>,
    shards: Vec<ShardView>,
    topics: Vec<TopicView>,
    groups: Vec<GroupView>,
    health: Health,
}

/// A broker.
#[derive(Debug, Default, PartialEq, serde::Serialize)]
struct BrokerView {
    broker: u32,
    version: Option<String>,
    uptime_ms: Option<u64>,
    /// Between its two answers; absent if it has given one only.
    seconds: Option<f64>,
    notices: usize,
    last_notice: Option<String>,
    /// Why everything else is without it.
    missing: Option<String>,
}

/// A core.
#[derive(Debug, PartialEq, serde::Serialize)]
struct ShardView {
    broker: u32,
    shard: u32,
    requests_s: f64,
    records_s: f64,
    produced_bytes_s: f64,
    fetched_bytes_s: f64,
    forwarded_s: f64,
    rounds_s: f64,
    round_p99_us: u64,
    connections: u64,
    parked_fetches: u64,
    dirty_bytes: u64,
    overloaded: u64,
    stalls: u64,
}

/// A topic.
#[derive(Debug, Default, PartialEq, serde::Serialize)]
struct TopicView {
    topic: String,
    partitions: usize,
    records_s: f64,
    produced_bytes_s: f64,
    fetched_bytes_s: f64,
    records: u64,
    /// Of all replicas.
    log_bytes: u64,
}

/// A consumer group.
#[derive(Debug, PartialEq, serde::Serialize)]
struct GroupView {
    group: String,
    /// Who coordinates it.
    broker: u32,
    state: &'static str,
    members: u32,
    partitions: u32,
    unknown_partitions: u32,
    /// Absent where a partition is unknown, or the broker has too many to look at.
    lag_records: Option<u64>,
    lag_ms: Option<u64>,
}

impl GroupView {
    fn of(group: &GroupStatus, broker: u32) -> Self {
        Self {
            group: group.group.clone(),
            broker,
            state: group.state.name(),
            members: group.members,
            partitions: group.partitions,
            unknown_partitions: group.unknown_partitions,
            lag_records: group.lag.map(|lag| lag.records),
            lag_ms: group.lag.and_then(|lag| lag.time).map(|time| time.as_millis() as u64),
        }
    }
}

/// Two answers of one broker.
struct Span<'a> {
    before: Option<&'a Answer>,
    after: &'a Answer,
}

impl<'a> Span<'a> {
    fn seconds(&self) -> Option<f64> {
        self.before.map(|before| (self.after.at - before.at).as_secs_f64().max(1e-6))
    }

    /// Per second. A counter that went back is one of a new life.
    fn rate(&self, before: u64, after: u64) -> f64 {
        self.seconds().map_or(0.0, |seconds| after.saturating_sub(before) as f64 / seconds)
    }

    fn broker(&self) -> BrokerView {
        let status = &self.after.status;
        BrokerView {
            broker: status.broker,
            version: Some(status.version.clone()),
            uptime_ms: Some(status.uptime.as_millis() as u64),
            seconds: self.seconds(),
            notices: status.notices.len(),
            last_notice: status.notices.last().cloned(),
            missing: None,
        }
    }

    fn shard(&self, shard: &ShardStatus) -> ShardView {
        let known = self.before.iter().flat_map(|before| &before.status.shards);
        let old = known.into_iter().find(|other| other.shard == shard.shard);
        let now = |name: &str| shard.counter(name).unwrap_or(0);
        let since = |name: &str| old.and_then(|old| old.counter(name)).unwrap_or(0);
        let rate = |name: &str| self.rate(since(name), now(name));
        ShardView {
            broker: self.after.status.broker,
            shard: shard.shard,
            requests_s: rate("requests_total"),
            records_s: rate("records_total"),
            produced_bytes_s: rate("produced_bytes_total"),
            fetched_bytes_s: rate("fetched_bytes_total"),
            forwarded_s: rate("forwarded_requests_total"),
            rounds_s: rate("flush_rounds_total"),
            round_p99_us: now("round_p99_us"),
            connections: now("connections_open"),
            parked_fetches: now("parked_fetches"),
            dirty_bytes: now("dirty_bytes"),
            overloaded: now("overloaded_total"),
            stalls: now("stalls_total"),
        }
    }

    fn add_topic(&self, topic: &TopicStatus, sum: &mut TopicView) {
        let none = TopicStatus::default();
        let known = self.before.iter().flat_map(|before| &before.status.topics);
        let old = known.into_iter().find(|other| other.name == topic.name).unwrap_or(&none);
        sum.records_s += self.rate(old.produced_records, topic.produced_records);
        sum.produced_bytes_s += self.rate(old.produced_bytes, topic.produced_bytes);
        sum.fetched_bytes_s += self.rate(old.fetched_bytes, topic.fetched_bytes);
        sum.records += topic.produced_records;
        sum.log_bytes += topic.log_bytes;
    }
}

impl View {
    /// What happened.
    pub fn between(before: &Look, after: &Look) -> Self {
        let (mut brokers, mut shards, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        let mut topics: BTreeMap<&str, TopicView> = BTreeMap::new();
        for (name, partitions) in &after.partitions {
            let topic = TopicView { topic: name.clone(), partitions: *partitions, ..TopicView::default() };
            topics.insert(name, topic);
        }
        for (id, answer) in &after.brokers {
            let span = match answer {
                Ok(after) => Span { before: before.brokers.get(id).and_then(|old| old.as_ref().ok()), after },
                Err(why) => {
                    let missing = Some(why.clone());
                    brokers.push(BrokerView { broker: *id, missing, ..BrokerView::default() });
                    continue;
                }
            };
            let status = &span.after.status;
            brokers.push(span.broker());
            shards.extend(status.shards.iter().map(|shard| span.shard(shard)));
            groups.extend(status.groups.iter().map(|group| GroupView::of(group, *id)));
            for topic in &status.topics {
                // One that was made or deleted between the questions is told of next time, or no more.
                if let Some(sum) = topics.get_mut(topic.name.as_str()) {
                    span.add_topic(topic, sum);
                }
            }
        }
        let mut topics: Vec<TopicView> = topics.into_values().collect();
        let busy = |topic: &TopicView| topic.produced_bytes_s + topic.fetched_bytes_s;
        // The order of names where nothing tells them apart.
        topics.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        // Nobody knows how far those are behind of which a part is unknown: it may be the most.
        groups.sort_by_key(|group| Reverse((group.unknown_partitions > 0, group.lag_ms, group.lag_records)));
        Self { brokers, shards, topics, groups, health: after.health.clone() }
    }

    /// Writes it, at most so many topics and groups.
    pub fn print(&self, topics_max: usize, groups_max: usize, output: &mut Output) -> Result<(), Failure> {
        let groups = &self.groups[..groups_max.min(self.groups.len())];
        let topics = &self.topics[..topics_max.min(self.topics.len())];
        if output.is_json() {
            return output.json(&json!({
                "brokers": self.brokers, "shards": self.shards, "topics": topics, "groups": groups,
                "cluster": self.health,
            }));
        }
        self.print_head(output)?;
        output.line("")?;
        output.table(&shard_table(&self.shards))?;
        output.line("")?;
        output.table(&topic_table(topics))?;
        match self.topics.len() - topics.len() {
            0 => {}
            more => output.line(&format!("and {} more (--topics N)", counted(more as u64, "topic")))?,
        }
        if groups.is_empty() {
            return Ok(());
        }
        output.line("")?;
        output.table(&group_table(groups))?;
        match self.groups.len() - groups.len() {
            0 => {}
            more => output.line(&format!("and {} more (--groups N)", counted(more as u64, "group")))?,
        }
        match groups.iter().filter(|group| group.unknown_partitions > 0).count() as u64 {
            0 => Ok(()),
            unknown => output.line(&format!(
                "?: the lag of {} is not known: nobody leads some partition, or who does is silent; see: ringlog \
                 cluster status",
                counted(unknown, "group")
            )),
        }
    }

    fn print_head(&self, output: &mut Output) -> Result<(), Failure> {
        let notices: usize = self.brokers.iter().map(|broker| broker.notices).sum();
        let brokers = match &self.brokers[..] {
            [BrokerView { broker, version: Some(version), uptime_ms: Some(uptime_ms), .. }] => {
                format!("broker {broker} {version}, up {} s", grouped(uptime_ms / 1000))
            }
            brokers => counted(brokers.len() as u64, "broker"),
        };
        output.line(&format!(
            "{brokers}, {}, {}, {}",
            counted(self.topics.len() as u64, "topic"),
            counted(self.groups.len() as u64, "group"),
            counted(notices as u64, "notice"),
        ))?;
        for broker in &self.brokers {
            if let Some(why) = &broker.missing {
                output.line(&format!("broker {} is missing in all that follows: {why}", broker.broker))?;
            }
        }
        output.line(&format!("cluster: {}", self.health.words()))?;
        for broker in &self.brokers {
            if let Some(notice) = &broker.last_notice {
                output.line(&format!("last notice of broker {}: {notice}", broker.broker))?;
            }
        }
        Ok(())
    }
}

fn per_second(rate: f64) -> String {
    grouped(rate.round() as u64)
}

fn bytes_per_second(rate: f64) -> String {
    format!("{}/s", bytes(rate.round() as u64))
}

fn shard_table(shards: &[ShardView]) -> Table {
    let mut table = Table::new(&[
        ">BROKER",
        ">CORE",
        ">REQUESTS/S",
        ">RECORDS/S",
        ">IN",
        ">OUT",
        ">FORWARDED/S",
        ">ROUNDS/S",
        ">ROUND P99",
        ">CONNECTIONS",
        ">WAITING",
        ">NOT DURABLE",
        ">REFUSED",
        ">STALLS",
    ]);
    for shard in shards {
        table.row([
            shard.broker.to_string(),
            shard.shard.to_string(),
            per_second(shard.requests_s),
            per_second(shard.records_s),
            bytes_per_second(shard.produced_bytes_s),
            bytes_per_second(shard.fetched_bytes_s),
            per_second(shard.forwarded_s),
            per_second(shard.rounds_s),
            duration_us(shard.round_p99_us as f64),
            grouped(shard.connections),
            grouped(shard.parked_fetches),
            bytes(shard.dirty_bytes),
            grouped(shard.overloaded),
            grouped(shard.stalls),
        ]);
    }
    table
}

fn topic_table(topics: &[TopicView]) -> Table {
    let mut table =
        Table::new(&["TOPIC", ">PARTITIONS", ">RECORDS/S", ">IN", ">OUT", ">RECORDS", ">ON DISK"]);
    for topic in topics {
        table.row([
            topic.topic.clone(),
            topic.partitions.to_string(),
            per_second(topic.records_s),
            bytes_per_second(topic.produced_bytes_s),
            bytes_per_second(topic.fetched_bytes_s),
            grouped(topic.records),
            bytes(topic.log_bytes),
        ]);
    }
    table
}

fn group_table(groups: &[GroupView]) -> Table {
    let mut table = Table::new(&["GROUP", ">BROKER", "STATE", ">MEMBERS", ">PARTITIONS", ">LAG", ">BEHIND"]);
    for group in groups {
        let behind = match (group.lag_records, group.lag_ms) {
            (Some(0), _) => "-".to_owned(),
            (_, Some(ms)) => duration_ms(ms),
            (_, None) => "?".to_owned(),
        };
        table.row([
            group.group.clone(),
            group.broker.to_string(),
            group.state.to_owned(),
            group.members.to_string(),
            group.partitions.to_string(),
            group.lag_records.map_or("?".to_owned(), grouped),
            behind,
        ]);
    }
    table
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
