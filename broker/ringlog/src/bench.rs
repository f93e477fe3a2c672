//! `ringlog bench`: a workload against a broker, and its report.
//!
//! The load is the `bench` crate's; here are arguments, the embedded broker and output. Without a
//! subcommand a workload is run; `load` is the closed loop of raw requests below the client library.
//! Invariant: every report carries all settings, the host, and what an acknowledgement meant.

mod compaction;
mod compare;
pub mod embedded;
mod files;
mod host;
mod live;
mod load;
mod measured;

use crate::failure::Failure;
use crate::output::{Format, FormatArguments, Output, Table, bytes, duration_us, grouped};
use crate::place::{self, Place};
use ::bench::driver::Driver;
use ::bench::driver::ringlog::RinglogDriver;
use ::bench::report::Report;
use ::bench::run::{FoundRate, RunOptions, find_rate};
use ::bench::search::{SearchLimits, SearchReport};
use ::bench::usage::Usage;
use ::bench::workload::{DURATION_MINUTES_MAX, SHIPPED, Workload};
use embedded::EmbeddedBroker;
use files::ReportFiles;
use live::LiveView;
use measured::{Around, measured};
use ringlog_client::{Acks, Compression};
use std::path::PathBuf;

/// `ringlog bench`
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArguments {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    run: RunArguments,
}

/// `ringlog bench …`
#[derive(clap::Subcommand)]
enum BenchCommand {
    /// The shipped workloads
    Workloads(FormatArguments),
    /// Closed loop of raw requests: every connection keeps N in flight to its own partitions
    Load(Box<load::LoadArguments>),
    /// The same workload against several brokers, by turns, each started for it: medians, spread, ratios
    Compare(Box<compare::CompareArguments>),
    /// What compaction and deletion cost produce: with and without them by turns, on one broker; ratios
    Compaction(Box<compaction::CompactionArguments>),
}

/// What to run, where, and what of it is to be changed.
#[derive(clap::Args)]
struct RunArguments {
    /// A shipped workload (see: ringlog bench workloads) or a file in the OpenMessaging Benchmark's fields
    #[arg(default_value = "simple")]
    workload: String,
    /// A running broker; without this one is embedded
    #[arg(long, value_name = "HOST:PORT,…", conflicts_with = "embedded")]
    brokers: Option<String>,
    /// A broker on a temporary directory, stopped and removed afterwards; the default
    #[arg(long)]
    embedded: bool,
    /// Embedded: where the temporary directory is made [default: a place on a real disk]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Embedded: the cores of the broker, one shard each [default: half of the cores]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    broker_cores: Vec<usize>,
    /// The cores of the load, a thread each [default: those that the broker does not have]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    client_cores: Vec<usize>,
    /// Instead of the workload's: records per second of all producers, 0 = as fast as it goes
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Instead of the workload's: seconds to measure
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// End when so much has been acknowledged, 10^9 bytes; with --seconds after those at the latest
    #[arg(long, value_name = "GB")]
    volume_gb: Option<f64>,
    /// Instead of the workload's: seconds before that
    #[arg(long, value_name = "S")]
    warmup: Option<f64>,
    /// Instead of the workload's: bytes of a record
    #[arg(long, value_name = "N")]
    record_bytes: Option<usize>,
    /// Instead of the workload's: partitions of each topic
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// Instead of the workload's: how batches are compressed (none, lz4, zstd, snappy, gzip); values that are all
    /// random become half random, or there would be nothing to compress
    #[arg(long, value_name = "CODEC")]
    compression: Option<Compression>,
    /// What an acknowledgement waits for
    #[arg(long, value_parser = crate::produce::acks, default_value = "all")]
    acks: Acks,
    /// Replicas of each partition; 0 = the broker's default
    #[arg(long, value_name = "N", default_value_t = 0)]
    replication_factor: u32,
    /// Show where the time of the p50, p99 and p99.9 went
    #[arg(long)]
    explain: bool,
    /// Count system calls, which slows both sides (perf, and the right to read the kernel's tracepoint)
    #[arg(long)]
    system_calls: bool,
    /// Instead of a rate: look for the highest one whose acknowledgements keep this p99, milliseconds
    #[arg(long, value_name = "MS", conflicts_with = "rate")]
    find_rate_for_p99: Option<f64>,
    /// With a search: no trial begins that would probably end later than this
    #[arg(long, value_name = "S", default_value_t = 100.0)]
    search_seconds: f64,
    #[command(flatten)]
    files: ReportFiles,
    #[command(flatten)]
    format: FormatArguments,
}

/// Runs it.
pub fn run(arguments: BenchArguments) -> Result<(), Failure> {
    match arguments.command {
        Some(BenchCommand::Load(arguments)) => load::run(*arguments),
        Some(BenchCommand::Compare(arguments)) => compare::run(*arguments),
        Some(BenchCommand::Compaction(arguments)) => compaction::run(*arguments),
        Some(BenchCommand::Workloads(arguments)) => workloads(arguments.format),
        None => measure(arguments.run),
    }
}

fn workloads(format: Format) -> Result<(), Failure> {
    let mut output = Output::new(format);
    let mut table = Table::new(&["WORKLOAD", "WHAT", ">SECONDS"]);
    for (name, text) in SHIPPED {
        let workload = Workload::parse(name, text).map_err(|error| Failure::usage(error.to_string()))?;
        if output.is_json() {
            output.json(&workload)?;
        } else {
            let seconds = (workload.measured() + workload.warm_up()).as_secs_f64();
            table.row([(*name).to_owned(), workload.name, format!("{seconds:.0}")]);
        }
    }
    if !output.is_json() {
        output.table(&table)?;
    }
    output.flush()
}

impl RunArguments {
    fn workload(&self) -> Result<Workload, Failure> {
        let usage = |error: ::bench::workload::WorkloadError| Failure::usage(error.to_string());
        let mut workload = Workload::find(&self.workload).map_err(usage)?;
        if let Some(rate) = self.rate {
            workload.producer_rate = rate;
            workload.find_rate_for_p99_ms = None;
        }
        if self.find_rate_for_p99.is_some() {
            workload.find_rate_for_p99_ms = self.find_rate_for_p99;
        }
        if let Some(volume_gb) = self.volume_gb {
            workload.test_volume_gb = volume_gb;
            workload.test_duration_minutes = DURATION_MINUTES_MAX;
        }
        if let Some(seconds) = self.seconds {
            workload.test_duration_minutes = seconds / 60.0;
        }
        if let Some(seconds) = self.warmup {
            workload.warmup_duration_minutes = seconds / 60.0;
        }
        if let Some(record_bytes) = self.record_bytes {
            workload.message_size = record_bytes;
        }
        if let Some(partitions) = self.partitions {
            workload.partitions_per_topic = partitions;
        }
        if let Some(compression) = self.compression {
            workload.compress(compression);
        }
        workload.check().map_err(usage)?;
        Ok(workload)
    }

    /// Cores of the broker and of the load.
    fn cores(&self) -> (Vec<usize>, Vec<usize>) {
        let broker = match self.brokers {
            Some(_) => self.broker_cores.clone(),
            None => place::broker_cores(&self.broker_cores),
        };
        let client = place::client_cores(&self.client_cores, &broker);
        (broker, client)
    }
}

fn measure(arguments: RunArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let workload = arguments.workload()?;
    arguments.files.check()?;
    let (broker_cores, client_cores) = arguments.cores();
    place::warn_of_shared_cores(&broker_cores, &client_cores);
    let embedded = match &arguments.brokers {
        Some(_) => None,
        None => {
            let place = Place::choose(arguments.data.as_deref())?;
            Some(EmbeddedBroker::start(place, &broker_cores)?)
        }
    };
    let address = match (&embedded, &arguments.brokers) {
        (Some(broker), _) => broker.address().to_owned(),
        (None, Some(brokers)) => brokers.clone(),
        (None, None) => unreachable!("one of them was made above"),
    };
    let facts = embedded.as_ref().map(|broker| broker.place().facts.clone());
    if !output.is_json() {
        let place = embedded.as_ref().map(|broker| format!(", data in {}", broker.place().describe()));
        output.line(&format!("{}: broker {address}{}", workload.name, place.unwrap_or_default()))?;
        output.flush()?;
    }
    let driver = RinglogDriver::new(&address, arguments.acks).replicated(arguments.replication_factor);
    let options = RunOptions {
        client_cores: client_cores.clone(),
        explain: arguments.explain,
        ..RunOptions::default()
    };
    let limits = workload.find_rate_for_p99_ms.map(|p99_ms| SearchLimits {
        seconds_max: arguments.search_seconds,
        ..SearchLimits::new(p99_ms * 1e3, workload.message_size)
    });
    let view = LiveView::new(!output.is_json());
    let around = Around {
        broker_pid: embedded.as_ref().map(EmbeddedBroker::pid),
        client_cores,
        broker_cores,
        explain: arguments.explain,
        system_calls: arguments.system_calls,
        facts,
    };
    let (running, shown) = (workload.clone(), view.clone());
    let run = move |driver: &dyn Driver| match limits {
        None => {
            let result = ::bench::run::run(driver, &running, &options, &mut |now| shown.show(&now))?;
            Ok((running, None, result))
        }
        Some(limits) => {
            let mut show = |now| shown.show(&now);
            let FoundRate { search, workload, result } =
                find_rate(driver, &running, limits, &options, &mut show)?;
            Ok((workload, Some(search), result))
        }
    };
    let measured = crate::block_on(measured(Box::new(driver), around, run));
    view.end();
    drop(embedded);
    let report = measured?;
    let report = Report { ceiling: crate::perf::share::line(&report), ..report };
    let reports = std::slice::from_ref(&report);
    let written = arguments.files.write(&report.workload.name, &report, reports)?;
    if output.is_json() {
        output.json(&report)?;
    } else {
        if let Some(search) = &report.search {
            output.table(&trials(search))?;
            let held = search.held_records_s.map_or("none".to_owned(), |rate| grouped(rate as u64));
            output.line(&format!(
                "highest rate with a p99 of at most {}: {held} records/s ({})",
                duration_us(search.limits.p99_us_max),
                search.ended.name()
            ))?;
            output.line(&format!(
                "\nthe run at {} records/s:",
                grouped(report.workload.producer_rate as u64)
            ))?;
        }
        output.table(&table(&report))?;
        if let Some(share) = &report.ceiling {
            output.line(&format!("\n{share}"))?;
        }
        if !report.explained.is_empty() {
            output.line("")?;
            output.table(&explained(&report))?;
        }
        for path in written {
            output.line(&format!("written: {}", path.display()))?;
        }
    }
    output.flush()?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::operation(format!(
            "{} records were not acknowledged, the last because: {}",
            grouped(failed),
            report.last_failure.as_deref().unwrap_or("unknown")
        ))),
    }
}

fn trials(search: &SearchReport) -> Table {
    let mut table = Table::new(&[">RATE/S", ">ACKNOWLEDGED/S", ">P99", "VERDICT"]);
    for step in &search.steps {
        table.row([
            grouped(step.records_s as u64),
            grouped(step.achieved_records_s as u64),
            duration_us(step.p99_us),
            step.verdict.name().to_owned(),
        ]);
    }
    table
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(&["MEASURED", ">PRODUCE", ">CONSUME"]);
    let mut row = |name: &str, produce: String, consume: String| {
        table.row([name.to_owned(), produce, consume]);
    };
    let (produced, consumed) = (report.produced, report.consumed);
    row("records/s", grouped(produced.records_s as u64), grouped(consumed.records_s as u64));
    row("MB/s", format!("{:.1}", produced.mb_s), format!("{:.1}", consumed.mb_s));
    let (acknowledge, end_to_end) = (&report.acknowledge, &report.end_to_end);
    for (name, produce, consume) in [
        ("p50", acknowledge.p50_us, end_to_end.p50_us),
        ("p99", acknowledge.p99_us, end_to_end.p99_us),
        ("p99.9", acknowledge.p999_us, end_to_end.p999_us),
        ("p99.99", acknowledge.p9999_us, end_to_end.p9999_us),
        ("max", acknowledge.max_us, end_to_end.max_us),
    ] {
        row(name, duration_us(produce), duration_us(consume));
    }
    row("failed, not received", grouped(report.failed), grouped(report.not_received));
    row(
        "acknowledged from",
        format!("{} ({})", report.durability.name(), report.durability_settings),
        String::new(),
    );
    if let Some(seconds) = report.backlog_drained_s {
        row("backlog consumed after", String::new(), format!("{seconds:.1} s"));
    }
    let usage = |usage: Option<Usage>, of: fn(Usage) -> String| usage.map(of).unwrap_or_else(|| "-".into());
    let (broker, client) = (report.broker_usage, report.client_usage);
    for (name, of) in [
        ("processor time", (|usage| format!("{:.1} s", usage.cpu_s)) as fn(Usage) -> String),
        ("resident memory, most", |usage| bytes(usage.resident_max_bytes)),
        ("context switches", |usage| grouped(usage.switches_voluntary + usage.switches_involuntary)),
        ("system calls", |usage| usage.system_calls.map_or("-".to_owned(), grouped)),
    ] {
        if name != "system calls"
            || [broker, client].into_iter().flatten().any(|it| it.system_calls.is_some())
        {
            row(&format!("{name}: broker, load"), usage(broker, of), usage(client, of));
        }
    }
    let counter = |name: &str| report.counters.get(name).copied();
    if let Some(words) = report.workload.compression_in_words() {
        row("compression", words, String::new());
    }
    if let Some(percent) = stored_percent(report) {
        row("batches, of the values' bytes", format!("{percent:.0} %"), String::new());
    }
    if let (Some(rounds), Some(written)) = (counter("flush_rounds_total"), counter("flush_bytes_total")) {
        row("flush rounds, bytes per round", grouped(rounds), bytes(written / rounds.max(1)));
    }
    table
}

/// What compressed batches took on the wire and on the device, headers included, in percent of the values in them.
fn stored_percent(report: &Report) -> Option<f64> {
    let count = |name: &str| report.counters.get(name).map(|count| *count as f64);
    let values = count("records_total")? * report.workload.message_size as f64;
    let stored = count("produced_bytes_total")?;
    (report.workload.is_compressed() && values > 0.0).then(|| stored / values * 100.0)
}

fn explained(report: &Report) -> Table {
    let mut columns = vec!["WHERE THE TIME WENT".to_owned()];
    columns.extend(report.explained.iter().map(|explained| format!(">P{}", explained.quantile * 100.0)));
    let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    let parts = report.explained.first().map_or(0, |explained| explained.parts_us.len());
    for part in 0..parts {
        let mut cells = vec![report.explained[0].parts_us[part].0.clone()];
        cells.extend(report.explained.iter().map(|explained| duration_us(explained.parts_us[part].1)));
        table.row_of(cells);
    }
    table
}
