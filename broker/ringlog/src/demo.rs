//! `ringlog demo`: the main job in one command, checked record by record.
//!
//! Story: a broker in this process on a temporary directory → a topic of 8 partitions → January's flights,
//! repeated to a few hundred MB, keyed by tail number, produced durably while a live reader follows → read
//! from the start → read from a timestamp → every reading compared with the ledger of acknowledgements → a
//! table, or one JSON object.
//! Owner: `main`. The writer and the live reader have a thread each, as two processes would.
//! Invariants: over TCP and through the public client, nothing is short-circuited; the exit status is 1 when
//! anything is lost or differs; the directory is removed however it ends, but for a kill.
//! Absent on purpose: a claim about the fastest possible: producing, reading and the broker share the cores.

mod cluster;
mod flights;
mod ledger;
mod reader;
mod report;
mod writer;

use crate::failure::Failure;
use crate::output::{FormatArguments, Output, counted};
use crate::place::{self, Place};
use flights::Flights;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ledger::Tally;
use reader::Until;
use report::Report;
use ringlog_client::{Admin, BrokerStatus, Client, ClientConfig, NewTopic, OffsetSpec};
use server::broker::{Broker, BrokerConfig, DiskPolicy};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// `ringlog demo`
#[derive(clap::Args)]
pub struct DemoArguments {
    /// How much to produce, 10^6 bytes of keys and values [default: 300, with --brokers 40]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    megabytes: Option<u64>,
    /// A cluster of so many processes, one of which is killed in the middle
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=9))]
    brokers: Option<u32>,
    /// With --brokers: how long producing takes, seconds
    #[arg(long, value_name = "N", default_value_t = 12, requires = "brokers", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Where the temporary directory is made [default: a place on a real disk]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Shards of the embedded broker [default: half of the cores], or of each process [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shards: Option<u16>,
    #[command(flatten)]
    format: FormatArguments,
}

const TOPIC: &str = "flights";
const PARTITIONS: u32 = 8;
/// Produced to one broker, and to a cluster, unless told otherwise.
const MEGABYTES: u64 = 300;
const CLUSTER_MEGABYTES: u64 = 40;

/// Runs it.
pub fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let place = Place::choose(arguments.data.as_deref())?;
    if let Some(brokers) = arguments.brokers {
        let bytes = arguments.megabytes.unwrap_or(CLUSTER_MEGABYTES) * 1_000_000;
        let produce_for = Duration::from_secs(arguments.seconds.into());
        let wanted = cluster::Wanted { brokers, bytes, produce_for, shards: arguments.shards.unwrap_or(1) };
        return cluster::run(&wanted, &place, &mut output);
    }
    let shards = arguments.shards.map_or_else(place::default_shards, usize::from);
    let broker = start(&place, shards)?;
    if !output.is_json() {
        output.line(&format!(
            "broker on {}, {}, data in {}",
            broker.address(),
            counted(shards as u64, "shard"),
            place.describe()
        ))?;
        output.flush()?;
    }
    let flights = Arc::new(Flights::load(arguments.megabytes.unwrap_or(MEGABYTES) * 1_000_000));
    let done = crate::block_on(async {
        tokio::select! {
            done = show(broker.address(), &flights, !output.is_json()) => done,
            () = crate::interrupt::interrupted() => Err(Failure::operation("interrupted; the temporary directory is removed")),
        }
    });
    // After a failure too, so that the directory can go.
    let stopped = broker.stop();
    let mut report = done?;
    stopped.map_err(|error| Failure::operation(error.to_string()))?;
    report.data_directory = place.describe();
    report.shards = shards;
    report.print(&mut output)?;
    output.flush()?;
    match report.fault() {
        None => Ok(()),
        Some(fault) => Err(Failure::operation(format!("the demo found a fault: {fault}"))),
    }
}

fn start(place: &Place, shards: usize) -> Result<Broker, Failure> {
    let config = BrokerConfig {
        shards,
        cores: place::cores(shards),
        direct: place.facts.o_direct,
        disk: DiskPolicy {
            one_flush_covers_all_files: place.facts.one_flush_covers_all_files,
            ..DiskPolicy::default()
        },
        ..BrokerConfig::new(place.directory.path().join("data"), SocketAddr::from(([127, 0, 0, 1], 0)))
    };
    Broker::start(config)
        .map_err(|error| Failure::usage(format!("the embedded broker cannot start: {error}")))
}

/// Everything between the broker's start and its stop.
async fn show(broker: SocketAddr, flights: &Arc<Flights>, people: bool) -> Result<Report, Failure> {
    let client = connect(broker).await?;
    let admin = client.admin();
    // The records are of 2013: no retention by age.
    let configs = vec![("retention.ms".to_owned(), "-1".to_owned())];
    let topic = NewTopic { name: TOPIC.into(), partitions: PARTITIONS, replication_factor: 0, configs };
    admin.create_topic(&topic).await?;
    let bars = Bars::new(people);
    let origin = Instant::now();

    let (finished, watching) = watch::channel(None);
    let live = {
        let (flights, bar) = (flights.clone(), bars.add("read live", flights.total_records()));
        on_a_thread(move || async move {
            let client = connect(broker).await?;
            reader::read(
                &client,
                &flights,
                &[0; PARTITIONS as usize],
                Until::Finished(watching),
                origin,
                &bar,
            )
            .await
        })
    };
    let written = {
        let (flights, bar) = (flights.clone(), bars.add("produce", flights.total_records()));
        on_a_thread(
            move || async move { writer::write(&connect(broker).await?, &flights, origin, &bar).await },
        )
    };
    let written = joined(written).await?;
    let ends = written.ledger.ends();
    // Nobody watching means that the reader has failed, which its result tells.
    let _ = finished.send(Some(ends.clone()));
    let live = joined(live).await?;

    let bar = bars.add("read from the start", flights.total_records());
    let zero = [0; PARTITIONS as usize];
    let whole = reader::read(&client, flights, &zero, Until::Ends(ends.clone()), origin, &bar).await?;

    let from_ms = flights.middle_ms();
    let starts = offsets_at(&admin, from_ms).await?;
    let wanted = written.ledger.records_from(&starts);
    let bar = bars.add("read from a timestamp", wanted);
    let late = reader::read(&client, flights, &starts, Until::Ends(ends), origin, &bar).await?;
    let after = admin.status().await?;
    bars.clear();

    let all = Tally::expected(flights, &written.ledger, &zero);
    let since = Tally::expected(flights, &written.ledger, &starts);
    let mut report = Report::new(flights, &written, from_ms);
    report.forwarded_requests = counter(&after, "forwarded_requests_total");
    report.add_readings(&live, &whole, &late, &all, &since);
    report.missed_by_timestamp = written.ledger.missed(flights, &starts, from_ms);
    Ok(report)
}

async fn connect(broker: SocketAddr) -> Result<Client, Failure> {
    Ok(Client::connect(ClientConfig::new(broker.to_string())?).await?)
}

/// The offset of each partition that a search for `from_ms` gives.
async fn offsets_at(admin: &Admin, from_ms: i64) -> Result<Vec<u64>, Failure> {
    let places: Vec<_> =
        (0..PARTITIONS).map(|partition| (partition, OffsetSpec::Timestamp(from_ms))).collect();
    let listed = admin.list_offsets(TOPIC, &places).await?;
    Ok(listed.into_iter().map(|listed| listed.offset).collect())
}

/// The sum of a counter over all shards; `None` if the broker does not have it.
fn counter(status: &BrokerStatus, name: &str) -> Option<u64> {
    let counters = status.shards.iter().flat_map(|shard| &shard.counters);
    counters.filter(|(other, _)| other == name).map(|(_, value)| *value).reduce(|sum, value| sum + value)
}

/// Runs `work` with a runtime of its own.
fn on_a_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> tokio::task::JoinHandle<Result<T, Failure>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>>,
{
    tokio::task::spawn_blocking(move || crate::block_on(work()))
}

async fn joined<T>(thread: tokio::task::JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    thread.await.map_err(|error| Failure::operation(format!("a thread of the demo ended: {error}")))?
}

/// Progress on standard error, where that is a terminal.
struct Bars {
    all: MultiProgress,
}

impl Bars {
    fn new(people: bool) -> Self {
        let target = if people { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { all: MultiProgress::with_draw_target(target) }
    }

    fn add(&self, name: &'static str, records: u64) -> ProgressBar {
        let template = "{prefix:22} {bar:30} {human_pos} of {human_len} records, {per_sec}";
        let style = ProgressStyle::with_template(template).expect("a constant template is valid");
        let bar = self.all.add(ProgressBar::new(records).with_style(style).with_prefix(name));
        bar.tick();
        bar
    }

    /// A line above the bars.
    fn say(&self, text: &str) {
        // Nobody who sees it is no fault.
        let _ = self.all.println(text);
    }

    fn clear(&self) {
        // A progress line that stays is no fault.
        let _ = self.all.clear();
    }
}
