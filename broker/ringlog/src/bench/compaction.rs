//! `ringlog bench compaction`: what compaction costs produce, as a ratio within one run.
//!
//! One broker, one open-loop load on a topic of its own, and a second, compacted topic that is written to all the
//! time. By turns compaction of it is held back (`min.compaction.lag.ms`) and let go; all else is the same in
//! both. Owner: the command. Invariants: latencies count from when a record was due; a phase with compaction
//! in which none ran, or one without in which some did, is an error, not a figure; both topics are deleted.

use super::embedded::EmbeddedBroker;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, bytes, duration_us};
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
/// Longer than any run: nothing is old enough.
const HELD_BACK: &str = "1000w";
const LET_GO: &str = "0";
/// How long compaction may take to stop or to begin.
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
    compacts: bool,
    latencies_us: Histogram<u64>,
    written_bytes: u64,
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
        for topic in [MEASURED, COMPACTED] {
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
    let measured = NewTopic {
        partitions: 1,
        configs: own(&[("retention.bytes", "256MiB"), ("segment.bytes", "64MiB")]),
        ..NewTopic::named(MEASURED)
    };
    let compacted = NewTopic {
        partitions: 1,
        configs: own(&[
            ("cleanup.policy", "compact"),
            ("segment.bytes", "2MiB"),
            ("max.message.bytes", "512KiB"),
            ("min.cleanable.dirty.ratio", "0"),
            ("min.compaction.lag.ms", HELD_BACK),
        ]),
        ..NewTopic::named(COMPACTED)
    };
    admin.create_topic(&measured).await?;
    admin.create_topic(&compacted).await?;
    let value = vec![b'v'; arguments.record_bytes];
    let config = || ProducerConfig { batch_size: 256 << 10, ..ProducerConfig::default() };
    let (dirty, measured) = (client.producer(config()), client.producer(config()));
    // Something to begin with: every key three times.
    for key in 0..3 * arguments.keys {
        drop(dirty.send(keyed(key % arguments.keys, &value)).await.map_err(failed)?);
    }
    dirty.flush().await.map_err(failed)?;
    let dirtying = tokio::spawn(keep_dirty(dirty, arguments.dirty_rate, arguments.keys, value.clone()));
    let mut phases = Vec::new();
    for n in 0..2 * arguments.rounds {
        let compacts = n % 2 == 1;
        let lag = if compacts { LET_GO } else { HELD_BACK };
        admin.alter_configs(COMPACTED, &own(&[("min.compaction.lag.ms", lag)]).to_vec(), &[]).await?;
        let before = settle(admin, compacts).await?;
        let latencies_us = phase(&measured, arguments, &value).await?;
        let written_bytes = written(admin).await? - before;
        if (written_bytes > 0) != compacts {
            return Err(Failure::operation(format!(
                "phase {n} is no figure: compaction wrote {written_bytes} bytes in it; try --seconds {}",
                2.0 * arguments.seconds
            )));
        }
        phases.push(Phase { compacts, latencies_us, written_bytes });
    }
    dirtying.abort();
    Ok(phases)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::operation(error.to_string())
}

fn keyed(key: u64, value: &[u8]) -> ProducerRecord {
    ProducerRecord::new(COMPACTED, value.to_vec()).with_key(format!("key-{key}"))
}

/// Writes keys in turn for as long as it is let.
async fn keep_dirty(producer: Producer, rate: f64, keys: u64, value: Vec<u8>) {
    let Ok(mut pacer) = Pacer::new(now_ns(), rate) else { return };
    for n in 0.. {
        if pacer.next().await.is_err() || producer.send(keyed(n % keys, &value)).await.is_err() {
            return;
        }
    }
}

/// Bytes that compaction has written so far.
async fn written(admin: &Admin) -> Result<u64, Failure> {
    let status = admin.status().await?;
    let counters = status.shards.iter().flat_map(|shard| &shard.counters);
    Ok(counters.filter(|(name, _)| name == "compaction_written_bytes_total").map(|(_, value)| value).sum())
}

/// Waits until compaction runs, or until what is under way has ended; what it had written by then.
async fn settle(admin: &Admin, runs: bool) -> Result<u64, Failure> {
    let began = std::time::Instant::now();
    let mut before = written(admin).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = written(admin).await?;
        if (now > before) == runs {
            return Ok(now);
        }
        if began.elapsed() > PATIENCE {
            let what = if runs { "does not begin" } else { "does not end" };
            return Err(Failure::operation(format!("compaction {what}; see ringlog status")));
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
fn median_us(phases: &[Phase], compacts: bool, quantile: f64) -> f64 {
    let of = phases.iter().filter(|phase| phase.compacts == compacts);
    let mut values: Vec<u64> = of.map(|phase| phase.latencies_us.value_at_quantile(quantile)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0) as f64
}

fn show(arguments: &CompactionArguments, phases: &[Phase], output: &mut Output) -> Result<(), Failure> {
    let written: u64 = phases.iter().map(|phase| phase.written_bytes).sum();
    let quantiles = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
    let ratio = |quantile| median_us(phases, true, quantile) / median_us(phases, false, quantile).max(1.0);
    if output.is_json() {
        let rounds: Vec<_> = phases
            .iter()
            .map(|phase| {
                json!({
                    "compaction": phase.compacts, "compaction_written_bytes": phase.written_bytes,
                    "records": phase.latencies_us.len(),
                    "p50_us": phase.latencies_us.value_at_quantile(0.5),
                    "p99_us": phase.latencies_us.value_at_quantile(0.99),
                    "p999_us": phase.latencies_us.value_at_quantile(0.999),
                })
            })
            .collect();
        output.json(&json!({
            "rate": arguments.rate, "dirty_rate": arguments.dirty_rate, "record_bytes": arguments.record_bytes,
            "seconds": arguments.seconds, "rounds": rounds, "p50_ratio": ratio(0.5), "p99_ratio": ratio(0.99),
            "p999_ratio": ratio(0.999),
        }))?;
        return output.flush();
    }
    let mut table = Table::new(&["PRODUCE", ">WITHOUT COMPACTION", ">WITH", ">RATIO"]);
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
        "\nmedians of {} phases of {} s each, by turns; compaction wrote {} in its own",
        arguments.rounds,
        arguments.seconds,
        bytes(written)
    ))?;
    output.flush()
}
