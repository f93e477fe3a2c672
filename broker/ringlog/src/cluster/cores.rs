//! Moves of partitions to other cores of their brokers: one that is named, or those that even out what cores carry.
//!
//! Each move is done when the broker answers, with how long the partition took nothing. They are made one after the other,
//! so that at most one partition of a broker pauses at a time. What is shown before is a plan of the client library
//! (`core_plan`), made from two looks at what went in and out.

use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted, duration_us};
use ringlog_client::core_plan::{self, PartitionLoad, PlannedMove};
use ringlog_client::{Admin, HomeMove};
use serde_json::json;
use std::time::Duration;

/// A partition's move as it was made.
struct Made {
    partition: HomeMove,
    broker: u32,
    from: u32,
    pause: Duration,
}

/// `ringlog cluster move-home`: on `broker`, or on the one that leads the partition.
pub async fn move_home(
    admin: &Admin,
    partition: HomeMove,
    broker: Option<u32>,
    output: &mut Output,
) -> Result<(), Failure> {
    let broker = match broker {
        Some(broker) => {
            let cluster = admin.describe_cluster(Some(&[])).await?;
            if cluster.broker(broker).is_none() {
                return Err(no_broker(broker));
            }
            broker
        }
        None => leader(admin, &partition).await?,
    };
    let (from, pause) = admin.move_home(broker, &partition).await?;
    let made = Made { partition, broker, from, pause };
    if output.is_json() {
        return show_made(&made, output);
    }
    let HomeMove { topic, partition, shard } = &made.partition;
    let line = match made.from == *shard {
        true => format!("{topic}:{partition} is served by core {shard} of broker {broker} already"),
        false => {
            let pause = duration_us(pause.as_micros() as f64);
            format!(
                "{topic}:{partition} is served by core {shard} of broker {broker} instead of core {from}; it took nothing for {pause}"
            )
        }
    };
    output.line(&line)
}

fn no_broker(broker: u32) -> Failure {
    Failure::operation(format!("there is no broker {broker}; see: ringlog cluster status"))
}

async fn leader(admin: &Admin, of: &HomeMove) -> Result<u32, Failure> {
    let cluster = admin.describe_cluster(Some(std::slice::from_ref(&of.topic))).await?;
    if let Some(code) = cluster.topics.first().and_then(|topic| topic.error) {
        return Err(Failure::operation(format!("topic {}: {code}: {}", of.topic, code.advice())));
    }
    let found = cluster.partitions().find(|(_, entry)| entry.partition == of.partition);
    let Some((_, entry)) = found else {
        let text = format!("UNKNOWN_PARTITION: topic {} has no partition {}", of.topic, of.partition);
        return Err(Failure::operation(text));
    };
    entry.leader.ok_or_else(|| {
        let text = format!("{}:{} has no leader; name the broker with --broker", of.topic, of.partition);
        Failure::operation(text)
    })
}

/// `ringlog cluster rebalance --cores`: of one broker, or of each that is alive and has several.
pub async fn rebalance(
    admin: &Admin,
    broker: Option<u32>,
    over: Duration,
    dry_run: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let cluster = admin.describe_cluster(Some(&[])).await?;
    if let Some(unknown) = broker.filter(|broker| cluster.broker(*broker).is_none()) {
        return Err(no_broker(unknown));
    }
    let mut first = Vec::new();
    for known in &cluster.brokers {
        let is_meant = broker.is_none_or(|broker| broker == known.id);
        if is_meant && !known.fenced && known.shards > 1 {
            let seen = admin.traffic_of(known.id).await?;
            first.push((known, seen, tokio::time::Instant::now()));
        }
    }
    if let Some((.., looked)) = first.last() {
        tokio::time::sleep_until(*looked + over).await;
    }
    let mut all = Vec::new();
    for (known, before, looked) in first {
        let now = admin.traffic_of(known.id).await?;
        let loads = core_plan::loads(&before, &now, looked.elapsed());
        let plan = core_plan::spread(known.shards, &loads);
        show(known.id, known.shards, &loads, &plan, output)?;
        output.flush()?;
        all.extend(plan.into_iter().map(|one| (known.id, one)));
    }
    if all.is_empty() && !output.is_json() {
        output.line("nothing is to be moved")?;
    }
    if dry_run {
        return Ok(());
    }
    let mut made = Vec::with_capacity(all.len());
    for (broker, planned) in all {
        let PlannedMove { partition: PartitionLoad { topic, partition, .. }, to } = planned;
        let partition = HomeMove { topic, partition, shard: to };
        let (from, pause) = admin.move_home(broker, &partition).await?;
        made.push(Made { partition, broker, from, pause });
        if let Some(made) = made.last().filter(|_| output.is_json()) {
            show_made(made, output)?;
            output.flush()?;
        }
    }
    if made.is_empty() || output.is_json() {
        return Ok(());
    }
    let longest = made.iter().map(|made| made.pause).max().unwrap_or_default();
    let all: Duration = made.iter().map(|made| made.pause).sum();
    output.line(&format!(
        "{} moved; each took nothing for {} at most, {} on average",
        counted(made.len() as u64, "partition"),
        duration_us(longest.as_micros() as f64),
        duration_us(all.as_micros() as f64 / made.len() as f64),
    ))
}

/// What each core of a broker carries now, what would move, and what each would carry then.
fn show(
    broker: u32,
    shards: u32,
    loads: &[PartitionLoad],
    plan: &[PlannedMove],
    output: &mut Output,
) -> Result<(), Failure> {
    let now = |shard: u32| loads.iter().filter(|one| one.shard == shard).map(|one| one.load).sum::<u64>();
    let then = |shard: u32| {
        let comes = plan.iter().filter(|one| one.to == shard).map(|one| one.partition.load).sum::<u64>();
        let goes = plan.iter().filter(|one| one.partition.shard == shard).map(|one| one.partition.load);
        now(shard) + comes - goes.sum::<u64>()
    };
    if output.is_json() {
        for shard in 0..shards {
            output.json(&json!({
                "kind": "core", "broker": broker, "core": shard, "load": now(shard), "planned": then(shard),
            }))?;
        }
        return plan.iter().try_for_each(|one| {
            output.json(&json!({
                "kind": "plan", "broker": broker, "topic": one.partition.topic,
                "partition": one.partition.partition, "from": one.partition.shard, "to": one.to,
                "load": one.partition.load,
            }))
        });
    }
    let mut table = Table::new(&[">BROKER", ">CORE", ">LOAD NOW", ">LOAD THEN"]);
    for shard in 0..shards {
        let rate = |load: u64| format!("{}/s", bytes(load));
        table.row([broker.to_string(), shard.to_string(), rate(now(shard)), rate(then(shard))]);
    }
    output.table(&table)?;
    if plan.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["TOPIC", ">PARTITION", ">FROM CORE", ">TO CORE", ">LOAD"]);
    for PlannedMove { partition, to } in plan {
        table.row([
            partition.topic.clone(),
            partition.partition.to_string(),
            partition.shard.to_string(),
            to.to_string(),
            format!("{}/s", bytes(partition.load)),
        ]);
    }
    output.table(&table)
}

/// For programs.
fn show_made(made: &Made, output: &mut Output) -> Result<(), Failure> {
    output.json(&json!({
        "kind": "moved", "topic": made.partition.topic, "partition": made.partition.partition,
        "broker": made.broker, "from": made.from, "to": made.partition.shard,
        "pause_ms": made.pause.as_micros() as f64 / 1000.0,
    }))
}
