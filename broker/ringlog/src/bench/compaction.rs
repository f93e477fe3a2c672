//! `ringlog bench compaction`: what compaction and deletion cost produce, as a ratio within one run.
//!
//! One broker, one open-loop load on a topic of its own, and two more topics that are written to all the time: one is
//! compacted, one loses its oldest segments. By turns both are held back (`min.compaction.lag.ms`, `retention.bytes`) and
//! let go; all else is the same. Owner: the command. Invariants: latencies count from when a record was due; a
//! phase with both in which one of them did not run, or one without in which one did, is an error, not a figure; the
//! topics are deleted.

use super::embedded::EmbeddedBroker;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, bytes, duration_us, grouped};
use crate::place::{self, Place};
use ::bench::pacer::Pacer;
use ::bench::stamp::now_ns;
use hdrhistogram::Histogram;
use ringlog_client::{Admin, Client, ClientConfig, NewTopic, Producer, ProducerConfig, ProducerRecord};
use serde_json::json;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const MEASURED: &str = "bench-compaction-measured";
const COMPACTED: &str = "bench-compaction-compacted";
const DELETED: &str = "bench-compaction-deleted";
/// Topic and setting: held back, let go. A lag longer than any run: nothing is old enough.
const SWITCHES: [(&str, &str, [&str; 2]); 2] =
    [(COMPACTED, "min.compaction.lag.ms", ["1000w", "0"]), (DELETED, "retention.bytes", ["-1", "16MiB"])];
/// How long they may take to stop or to begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// `ringlog bench compaction`
#[derive(clap::Args)]
pub struct CompactionArguments {
    /// A running broker; without this one is embedded
    #[arg(long, value_name = "HOST:PORT,…")]
    brokers: Option<String>,
    /// Embedded: where the temporary directory is made [default: a place on a real disk]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Records per second that are measured
    #[arg(long, value_name = "N", default_value_t = 2000.0)]
    rate: f64,
    /// Records per second to the compacted topic, all the time
    #[arg(long, value_name = "N", default_value_t = 2000.0)]
    dirty_rate: f64,
    /// Records per second to the topic that loses its oldest segments, all the time
    #[arg(long, value_name = "N", default_value_t = 4000.0)]
    deleted_rate: f64,
    /// Keys of the compacted topic: a kilobyte each is what stays of it
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    keys: u64,
    /// Bytes of a record
    #[arg(long, value_name = "N", default_value_t = 1000)]
    record_bytes: usize,
    /// Seconds of each phase
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Phases of each kind
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    format: FormatArguments,
}

/// One phase.
struct Phase {
    with_both: bool,
    latencies_us: Histogram<u64>,
    done: Done,
}

/// What was done beside the load.
#[derive(Clone, Copy, Default)]
struct Done {
    /// Bytes that compaction read or wrote.
    compacted_bytes: u64,
    /// Records that retention deleted.
    deleted_records: u64,
}

impl Done {
    async fn so_far(admin: &Admin) -> Result<Self, Failure> {
        let status = admin.status().await?;
        let counters = status.shards.iter().flat_map(|shard| &shard.counters);
        let moved = counters.filter(|(name, _)| {
            ["compaction_read_bytes_total", "compaction_written_bytes_total"].contains(&name.as_str())
        });
        let logs = admin.describe_logs(DELETED).await?;
        Ok(Self {
            compacted_bytes: moved.map(|(_, value)| value).sum(),
            deleted_records: logs.iter().map(|log| log.log_start).sum(),
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            compacted_bytes: self.compacted_bytes - before.compacted_bytes,
            deleted_records: self.deleted_records - before.deleted_records,
        }
    }

    /// Whether both were at work, or neither was.
    fn is(self, both: bool) -> bool {
        (self.compacted_bytes > 0) == both && (self.deleted_records > 0) == both
    }
}

/// Runs it.
pub fn run(arguments: CompactionArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let embedded = match &arguments.brokers {
        Some(_) => None,
        None => {
            Some(EmbeddedBroker::start(Place::choose(arguments.data.as_deref())?, &place::broker_cores(&[]))?)
        }
    };
    let address = match (&embedded, &arguments.brokers) {
        (Some(broker), _) => broker.address().to_owned(),
        (None, brokers) => brokers.clone().unwrap_or_default(),
    };
    let phases = crate::block_on(async {
        let client = Client::connect(ClientConfig::new(address.as_str())?).await?;
        let admin = client.admin();
        let phases = measure(&arguments, &client, &admin).await;
        for topic in [MEASURED, COMPACTED, DELETED] {
            // What was not made is not there.
            let _ = admin.delete_topic(topic).await;
        }
        phases
    });
    drop(embedded);
    show(&arguments, &phases?, &mut output)
}

async fn measure(
    arguments: &CompactionArguments,
    client: &Client,
    admin: &Admin,
) -> Result<Vec<Phase>, Failure> {
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let topics: [(&str, &[(&str, &str)]); 3] = [
        (MEASURED, &[("segment.bytes", "64MiB")]),
        (
            COMPACTED,
            &[
                ("cleanup.policy", "compact"),
                ("segment.bytes", "2MiB"),
                ("max.message.bytes", "512KiB"),
                ("min.cleanable.dirty.ratio", "0"),
            ],
        ),
        (DELETED, &[("segment.bytes", "4MiB")]),
    ];
    for (name, settings) in topics {
        let topic = NewTopic { partitions: 1, configs: own(settings), ..NewTopic::named(name) };
        admin.create_topic(&topic).await?;
    }
    let switch = async |both: bool| {
        for (topic, setting, values) in SWITCHES {
            let changed: Vec<(String, String)> = own(&[(setting, values[usize::from(both)])]);
            admin.alter_configs(topic, &changed, &[]).await?;
        }
        Ok::<(), Failure>(())
    };
    switch(false).await?;
    let value = vec![b'v'; arguments.record_bytes];
    let config = || ProducerConfig { batch_size: 256 << 10, ..ProducerConfig::default() };
    let (dirty, measured) = (client.producer(config()), client.producer(config()));
    // Something to begin with: every key three times.
    for key in 0..3 * arguments.keys {
        drop(dirty.send(keyed(COMPACTED, key % arguments.keys, &value)).await.map_err(failed)?);
    }
    dirty.flush().await.map_err(failed)?;
    let keep = |topic, producer, rate| {
        tokio::spawn(keep_writing(topic, producer, rate, arguments.keys, value.clone()))
    };
    let beside = [
        keep(COMPACTED, dirty, arguments.dirty_rate),
        keep(DELETED, client.producer(config()), arguments.deleted_rate),
    ];
    let mut phases = Vec::new();
    for n in 0..2 * arguments.rounds {
        let with_both = n % 2 == 1;
        switch(with_both).await?;
        let before = settle(admin, with_both).await?;
        let latencies_us = phase(&measured, arguments, &value).await?;
        let done = Done::so_far(admin).await?.since(before);
        if !done.is(with_both) {
            return Err(Failure::operation(format!(
                "phase {n} is no figure: in it compaction read and wrote {} bytes and retention deleted {} records; try --seconds {}",
                done.compacted_bytes,
                done.deleted_records,
                2.0 * arguments.seconds
            )));
        }
        phases.push(Phase { with_both, latencies_us, done });
    }
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(phases)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::operation(error.to_string())
}

fn keyed(topic: &str, key: u64, value: &[u8]) -> ProducerRecord {
    ProducerRecord::new(topic, value.to_vec()).with_key(format!("key-{key}"))
}

/// Writes keys in turn for as long as it is let.
async fn keep_writing(topic: &str, producer: Producer, rate: f64, keys: u64, value: Vec<u8>) {
    let Ok(mut pacer) = Pacer::new(now_ns(), rate) else { return };
    for n in 0.. {
        if pacer.next().await.is_err() || producer.send(keyed(topic, n % keys, &value)).await.is_err() {
            return;
        }
    }
}

/// Waits until both are at work, or until what is under way has ended; what they had done by then.
async fn settle(admin: &Admin, both: bool) -> Result<Done, Failure> {
    let began = std::time::Instant::now();
    let mut before = Done::so_far(admin).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = Done::so_far(admin).await?;
        if now.since(before).is(both) {
            return Ok(now);
        }
        if began.elapsed() > PATIENCE {
            let what = if both { "do not begin" } else { "do not end" };
            return Err(Failure::operation(format!("compaction and deletion {what}; see ringlog status")));
        }
        before = now;
    }
}

/// An open loop of so many seconds.
async fn phase(
    producer: &Producer,
    arguments: &CompactionArguments,
    value: &[u8],
) -> Result<Histogram<u64>, Failure> {
    let latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).map_err(failed)?;
    let latencies = Arc::new(Mutex::new(latencies));
    let start_ns = now_ns();
    let mut pacer = Pacer::new(start_ns, arguments.rate).map_err(failed)?;
    let mut deliveries = tokio::task::JoinSet::new();
    loop {
        let due_ns = pacer.next().await.map_err(failed)?;
        if due_ns - start_ns >= (arguments.seconds * 1e9) as u64 {
            break;
        }
        let record = ProducerRecord::new(MEASURED, value.to_vec());
        let delivery = producer.send(record).await.map_err(failed)?;
        let latencies = latencies.clone();
        deliveries.spawn(async move {
            let result = delivery.await;
            let took_us = (now_ns() - due_ns) / 1000;
            latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took_us.max(1));
            result.map(drop)
        });
    }
    while let Some(ended) = deliveries.join_next().await {
        ended.map_err(failed)?.map_err(failed)?;
    }
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(latencies.clone())
}

/// The middle one of the rounds' quantiles, microseconds.
fn median_us(phases: &[Phase], with_both: bool, quantile: f64) -> f64 {
    let of = phases.iter().filter(|phase| phase.with_both == with_both);
    let mut values: Vec<u64> = of.map(|phase| phase.latencies_us.value_at_quantile(quantile)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0) as f64
}

fn show(arguments: &CompactionArguments, phases: &[Phase], output: &mut Output) -> Result<(), Failure> {
    let compacted: u64 = phases.iter().map(|phase| phase.done.compacted_bytes).sum();
    let deleted: u64 = phases.iter().map(|phase| phase.done.deleted_records).sum();
    let quantiles = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
    let ratio = |quantile| median_us(phases, true, quantile) / median_us(phases, false, quantile).max(1.0);
    if output.is_json() {
        let rounds: Vec<_> = phases
            .iter()
            .map(|phase| {
                json!({
                    "compaction_and_deletion": phase.with_both,
                    "compaction_read_and_written_bytes": phase.done.compacted_bytes,
                    "deleted_records": phase.done.deleted_records,
                    "records": phase.latencies_us.len(),
                    "p50_us": phase.latencies_us.value_at_quantile(0.5),
                    "p99_us": phase.latencies_us.value_at_quantile(0.99),
                    "p999_us": phase.latencies_us.value_at_quantile(0.999),
                })
            })
            .collect();
        output.json(&json!({
            "rate": arguments.rate, "dirty_rate": arguments.dirty_rate, "deleted_rate": arguments.deleted_rate,
            "record_bytes": arguments.record_bytes,
            "seconds": arguments.seconds, "rounds": rounds, "p50_ratio": ratio(0.5), "p99_ratio": ratio(0.99),
            "p999_ratio": ratio(0.999),
        }))?;
        return output.flush();
    }
    let mut table = Table::new(&["PRODUCE", ">WITHOUT", ">WITH COMPACTION AND DELETION", ">RATIO"]);
    for (name, quantile) in quantiles {
        table.row([
            name.to_owned(),
            duration_us(median_us(phases, false, quantile)),
            duration_us(median_us(phases, true, quantile)),
            format!("{:.2}", ratio(quantile)),
        ]);
    }
    output.table(&table)?;
    output.line(&format!(
        "\nmedians of {} phases of {} s each, by turns; in those with them compaction read and wrote {}, retention deleted {} records",
        arguments.rounds,
        arguments.seconds,
        bytes(compacted),
        grouped(deleted)
    ))?;
    output.flush()
}
