//! `ringlog top`: cores, topics and groups of a running broker, refreshed in place.
//!
//! Asks the broker for its counters again and again through the client library; what is shown are the differences
//! of two answers, divided by the time between them. Owner: one command. Invariants: nothing is kept but the last
//! answer; on a terminal the screen is left as it was found, however the command ends.
//! Absent on purpose: keys, colours, history: metrics systems have them (`serve --http`).

use crate::client::BrokersArguments;
use crate::cluster::describe::Health;
use crate::failure::Failure;
use crate::output::{
    Format, FormatArguments, Output, Table, bytes, counted, duration_ms, duration_us, grouped,
};
use ringlog_client::{BrokerStatus, GroupStatus, TopicStatus};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// `ringlog top`
#[derive(clap::Args)]
pub struct TopArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    /// How long between two looks, seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    every: f64,
    /// How many topics, the busiest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    topics: usize,
    /// How many consumer groups, those furthest behind in time first
    #[arg(long, value_name = "N", default_value_t = 20)]
    groups: usize,
    /// Look twice, print once, and end: for scripts
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    format: FormatArguments,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.05 to 3600".to_owned()),
    }
}

/// Runs it.
pub fn run(arguments: &TopArguments) -> Result<(), Failure> {
    crate::block_on(watch(arguments))
}

/// One answer of the broker, and when it came.
struct Look {
    at: Instant,
    status: BrokerStatus,
    health: Health,
}

async fn watch(arguments: &TopArguments) -> Result<(), Failure> {
    let client = arguments.brokers.connect().await?;
    let admin = client.admin();
    let look = async || -> Result<Look, Failure> {
        let status = admin.status_in_full().await?;
        let health = Health::of(&admin.describe_cluster(None).await?);
        Ok(Look { at: Instant::now(), status, health })
    };
    let live = !arguments.once && arguments.format.format == Format::Text && std::io::stdout().is_terminal();
    let _screen = live.then(Screen::take);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut before = look().await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(arguments.every)) => {}
            _ = &mut interrupted => return Ok(()),
        }
        let after = look().await?;
        let view = View::between(&before, &after);
        let mut output = Output::new(arguments.format.format);
        if live {
            output.bytes(&[Screen::HOME.as_bytes()])?;
        }
        view.print(arguments.topics, arguments.groups, &mut output)?;
        output.flush()?;
        if arguments.once {
            return Ok(());
        }
        before = after;
    }
}

/// The terminal's second screen, for as long as it is held.
struct Screen;

impl Screen {
    /// To the upper left, and everything behind it cleared.
    const HOME: &'static str = "\x1b[H\x1b[2J";

    fn take() -> Self {
        Self::write("\x1b[?1049h\x1b[?25l");
        Self
    }

    fn write(text: &str) {
        let mut output = std::io::stdout().lock();
        // A terminal that is gone needs no care.
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::write("\x1b[?25h\x1b[?1049l");
    }
}

/// What happened between two looks.
#[derive(Debug)]
struct View {
    broker: u32,
    version: String,
    uptime: Duration,
    seconds: f64,
    shards: Vec<ShardView>,
    topics: Vec<TopicView>,
    groups: Vec<GroupView>,
    notices: usize,
    last_notice: Option<String>,
    health: Health,
}

/// A core.
#[derive(Debug, PartialEq, serde::Serialize)]
struct ShardView {
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
#[derive(Debug, PartialEq, serde::Serialize)]
struct TopicView {
    topic: String,
    partitions: u32,
    records_s: f64,
    produced_bytes_s: f64,
    fetched_bytes_s: f64,
    records: u64,
    log_bytes: u64,
}

/// A consumer group.
#[derive(Debug, PartialEq, serde::Serialize)]
struct GroupView {
    group: String,
    state: &'static str,
    members: u32,
    partitions: u32,
    /// Absent where the broker has too many to look at.
    lag_records: Option<u64>,
    lag_ms: Option<u64>,
}

impl GroupView {
    fn of(group: &GroupStatus) -> Self {
        Self {
            group: group.group.clone(),
            state: group.state.name(),
            members: group.members,
            partitions: group.partitions,
            lag_records: group.lag.map(|lag| lag.records),
            lag_ms: group.lag.map(|lag| lag.time.as_millis() as u64),
        }
    }
}

impl View {
    fn between(before: &Look, after: &Look) -> Self {
        let seconds = (after.at - before.at).as_secs_f64().max(1e-6);
        // A counter that went back is one of a new life.
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let shards = (after.status.shards.iter())
            .map(|shard| {
                let old = before.status.shards.iter().find(|other| other.shard == shard.shard);
                let now = |name: &str| shard.counter(name).unwrap_or(0);
                let since = |name: &str| old.and_then(|old| old.counter(name)).unwrap_or(0);
                let rate = |name: &str| rate(since(name), now(name));
                ShardView {
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
            })
            .collect();
        let none = TopicStatus::default();
        let mut topics: Vec<TopicView> = (after.status.topics.iter())
            .map(|topic| {
                let old = before.status.topics.iter().find(|other| other.name == topic.name).unwrap_or(&none);
                TopicView {
                    topic: topic.name.clone(),
                    partitions: topic.partitions,
                    records_s: rate(old.produced_records, topic.produced_records),
                    produced_bytes_s: rate(old.produced_bytes, topic.produced_bytes),
                    fetched_bytes_s: rate(old.fetched_bytes, topic.fetched_bytes),
                    records: topic.produced_records,
                    log_bytes: topic.log_bytes,
                }
            })
            .collect();
        let busy = |topic: &TopicView| topic.produced_bytes_s + topic.fetched_bytes_s;
        // The order of names where nothing tells them apart.
        topics.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        let mut groups: Vec<GroupView> = after.status.groups.iter().map(GroupView::of).collect();
        groups.sort_by_key(|group| std::cmp::Reverse((group.lag_ms, group.lag_records)));
        Self {
            broker: after.status.broker,
            version: after.status.version.clone(),
            uptime: after.status.uptime,
            seconds,
            shards,
            topics,
            groups,
            notices: after.status.notices.len(),
            last_notice: after.status.notices.last().cloned(),
            health: after.health.clone(),
        }
    }

    fn print(&self, topics_max: usize, groups_max: usize, output: &mut Output) -> Result<(), Failure> {
        let groups = &self.groups[..groups_max.min(self.groups.len())];
        let topics = &self.topics[..topics_max.min(self.topics.len())];
        if output.is_json() {
            return output.json(&json!({
                "broker": self.broker, "version": self.version, "uptime_ms": self.uptime.as_millis() as u64,
                "seconds": self.seconds, "shards": self.shards, "topics": topics, "groups": groups,
                "notices": self.notices, "cluster": self.health,
            }));
        }
        output.line(&format!(
            "broker {} {}, up {} s, {}, {}, {}",
            self.broker,
            self.version,
            grouped(self.uptime.as_secs()),
            counted(self.topics.len() as u64, "topic"),
            counted(self.groups.len() as u64, "group"),
            counted(self.notices as u64, "notice"),
        ))?;
        output.line(&format!("cluster: {}", self.health.words()))?;
        if let Some(notice) = &self.last_notice {
            output.line(&format!("last notice: {notice}"))?;
        }
        output.line("")?;
        let per_second = |rate: f64| grouped(rate.round() as u64);
        let bytes_s = |rate: f64| format!("{}/s", bytes(rate.round() as u64));
        let mut table = Table::new(&[
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
        for shard in &self.shards {
            table.row([
                shard.shard.to_string(),
                per_second(shard.requests_s),
                per_second(shard.records_s),
                bytes_s(shard.produced_bytes_s),
                bytes_s(shard.fetched_bytes_s),
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
        output.table(&table)?;
        output.line("")?;
        let mut table =
            Table::new(&["TOPIC", ">PARTITIONS", ">RECORDS/S", ">IN", ">OUT", ">RECORDS", ">ON DISK"]);
        for topic in topics {
            table.row([
                topic.topic.clone(),
                topic.partitions.to_string(),
                per_second(topic.records_s),
                bytes_s(topic.produced_bytes_s),
                bytes_s(topic.fetched_bytes_s),
                grouped(topic.records),
                bytes(topic.log_bytes),
            ]);
        }
        output.table(&table)?;
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
            0 => Ok(()),
            more => output.line(&format!("and {} more (--groups N)", counted(more as u64, "group"))),
        }
    }
}

fn group_table(groups: &[GroupView]) -> Table {
    let mut table = Table::new(&["GROUP", "STATE", ">MEMBERS", ">PARTITIONS", ">LAG", ">BEHIND"]);
    for group in groups {
        let behind = match (group.lag_records, group.lag_ms) {
            (Some(0), _) => "-".to_owned(),
            (_, Some(ms)) => duration_ms(ms),
            (_, None) => "?".to_owned(),
        };
        table.row([
            group.group.clone(),
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
mod tests {
    use super::*;
    use ringlog_client::group_request::GroupState;
    use ringlog_client::{GroupBehind, ShardStatus};

    fn look(at: Instant, requests: u64, topics: &[(&str, u64)]) -> Look {
        let counters = vec![("requests_total".to_owned(), requests), ("connections_open".to_owned(), 3)];
        let topics = topics.iter().map(|(name, produced_bytes)| TopicStatus {
            name: (*name).to_owned(),
            produced_bytes: *produced_bytes,
            ..TopicStatus::default()
        });
        let shards = vec![ShardStatus { shard: 1, counters }];
        let status = BrokerStatus { shards, topics: topics.collect(), ..BrokerStatus::default() };
        Look { at, status, health: Health::default() }
    }

    #[test]
    fn rates_are_differences_and_the_busiest_is_first() {
        let now = Instant::now();
        let before = look(now, 100, &[("a", 10), ("b", 500), ("gone", 7)]);
        let after = look(now + Duration::from_secs(2), 300, &[("a", 30), ("b", 500), ("new", 60)]);
        let view = View::between(&before, &after);
        assert_eq!((view.shards[0].requests_s, view.shards[0].connections), (100.0, 3));
        let topics: Vec<_> = view.topics.iter().map(|it| (it.topic.as_str(), it.produced_bytes_s)).collect();
        assert_eq!(topics, [("new", 30.0), ("a", 10.0), ("b", 0.0)]);
        // The broker was started anew: no rate is negative.
        assert_eq!(View::between(&after, &before).shards[0].requests_s, 0.0);
    }

    #[test]
    fn the_group_that_is_furthest_behind_is_first() {
        let group = |name: &str, lag: Option<(u64, u64)>| GroupStatus {
            group: name.to_owned(),
            state: GroupState::Empty,
            members: 0,
            partitions: 1,
            lag: lag.map(|(records, ms)| GroupBehind { records, time: Duration::from_millis(ms) }),
        };
        let now = Instant::now();
        let mut after = look(now, 1, &[]);
        after.status.groups =
            vec![group("done", Some((0, 0))), group("late", Some((7, 61_000))), group("many", None)];
        let view = View::between(&look(now, 1, &[]), &after);
        let names: Vec<_> = view.groups.iter().map(|group| group.group.as_str()).collect();
        assert_eq!(names, ["late", "done", "many"]);
        let shown = group_table(&view.groups).to_string();
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["late", "empty", "0", "1", "7", "1", "min", "1", "s"]);
        assert_eq!(rows[2][4..], ["0", "-"]);
        assert_eq!(rows[3][4..], ["?", "?"]);
    }

    #[test]
    fn how_often() {
        for (text, good) in
            [("1", true), ("0.05", true), ("0", false), ("-1", false), ("NaN", false), ("x", false)]
        {
            assert_eq!(seconds(text).is_ok(), good, "{text}");
        }
    }
}
