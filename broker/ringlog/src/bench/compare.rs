//! `ringlog bench compare`: one workload against several brokers, one after the other and again.
//!
//! Owner: the subcommand. In every round each broker is started on a directory of its own, alone on the
//! host, driven, ended and removed: A B A B, so that what drifts meets all of them. Figures and ratios are
//! the `bench` crate's; a ratio between different durabilities says so in its own cell.
//! A broker of Kafka's protocol is the exception: it runs before and after, wherever it is.
//! Absent on purpose: installing other brokers (`bench/servers.sh` does).

use super::embedded::EmbeddedBroker;
use super::files::ReportFiles;
use super::live::LiveView;
use super::measured::{Around, measured};
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, counted, duration_us, grouped};
use crate::place::{self, Place};
use ::bench::compare::{Comparison, Contestant, Ratio, Ratios, Reach, Spread, Standing};
use ::bench::driver::Driver;
use ::bench::report::Report;
use ::bench::run::RunOptions;
use ::bench::servers::{Acknowledge, Server, ServerPlan};
use ::bench::workload::Workload;
use std::path::PathBuf;

/// `ringlog bench compare`
#[derive(clap::Args)]
pub struct CompareArguments {
    /// A shipped workload (see: ringlog bench workloads) or a file in the OpenMessaging Benchmark's fields
    workload: String,
    /// Which brokers; ratios are to the first. Others than ringlog are features of the build
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "ringlog,nats,redis")]
    drivers: Vec<String>,
    /// Servers are set to acknowledge from the device; the default
    #[arg(long)]
    durable: bool,
    /// Servers acknowledge from wherever they do as they come
    #[arg(long, conflicts_with = "durable")]
    defaults: bool,
    /// Where a broker of Kafka's protocol runs, for the driver kafka; that one is not started here
    #[arg(long, value_name = "HOST:PORT,…")]
    kafka: Option<String>,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The cores of the broker [default: half of the cores]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    broker_cores: Vec<usize>,
    /// The cores of the load, a thread each [default: those that the broker does not have]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    client_cores: Vec<usize>,
    /// Where the brokers' directories are made [default: a place on a real disk]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Instead of the workload's: seconds to measure
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Instead of the workload's: seconds before that
    #[arg(long, value_name = "S")]
    warmup: Option<f64>,
    #[command(flatten)]
    files: ReportFiles,
    #[command(flatten)]
    format: FormatArguments,
}

impl CompareArguments {
    fn workload(&self) -> Result<Workload, Failure> {
        let usage = |error: ::bench::workload::WorkloadError| Failure::usage(error.to_string());
        let mut workload = Workload::find(&self.workload).map_err(usage)?;
        if workload.find_rate_for_p99_ms.take().is_some() {
            let without = "looks for a rate, which differs by broker; name one that has a rate or none";
            return Err(Failure::usage(format!("the workload '{}' {without}", self.workload)));
        }
        if let Some(seconds) = self.seconds {
            workload.test_duration_minutes = seconds / 60.0;
        }
        if let Some(seconds) = self.warmup {
            workload.warmup_duration_minutes = seconds / 60.0;
        }
        workload.check().map_err(usage)?;
        Ok(workload)
    }

    fn contestants(&self) -> Result<Vec<Contestant>, Failure> {
        let mut contestants: Vec<Contestant> = Vec::new();
        for name in &self.drivers {
            let contestant = name.parse().map_err(|error| Failure::usage(format!("{error}")))?;
            if contestants.contains(&contestant) {
                return Err(Failure::usage(format!("{name} is named twice in --drivers")));
            }
            contestants.push(contestant);
        }
        Ok(contestants)
    }
}

/// Where and how every run happens.
struct Setting {
    workload: Workload,
    acknowledge: Acknowledge,
    data: Option<PathBuf>,
    kafka: Option<String>,
    broker_cores: Vec<usize>,
    client_cores: Vec<usize>,
}

/// Runs it.
pub fn run(arguments: CompareArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let contestants = arguments.contestants()?;
    let setting = setting(&arguments)?;
    arguments.files.check()?;
    for contestant in &contestants {
        // Known now rather than in the middle of an hour.
        if setting.workload.is_compressed() && *contestant != Contestant::Ringlog {
            return Err(Failure::usage(format!(
                "the workload '{}' compresses batches, and the driver '{}' cannot: take one without compression",
                arguments.workload,
                contestant.name()
            )));
        }
        if *contestant == Contestant::Kafka && setting.kafka.is_none() {
            return Err(Failure::usage(
                "kafka is not started here: say where it runs with --kafka HOST:PORT",
            ));
        }
        if let Some(server) = contestant.server().filter(|server| server.find().is_none()) {
            let (program, name) = (server.program(), contestant.name());
            return Err(Failure::usage(format!(
                "{program} is not installed: bench/servers.sh install {name}"
            )));
        }
    }
    warn(&setting);
    let people = !output.is_json();
    let mut runs = Vec::new();
    for round in 1..=arguments.rounds {
        for contestant in &contestants {
            let report = measure(*contestant, &setting, people)?;
            if people {
                eprintln!(
                    "round {round} of {}: {}: {} records/s, {:.1} MB/s, p50 {}, p99 {}",
                    arguments.rounds,
                    report.driver,
                    grouped(report.produced.records_s as u64),
                    report.produced.mb_s,
                    duration_us(report.acknowledge.p50_us),
                    duration_us(report.acknowledge.p99_us),
                );
            }
            if report.acknowledge.count == 0 {
                eprintln!(
                    "warning: nothing of {} was acknowledged in the measured time; measure longer (--seconds)",
                    report.driver
                );
            }
            runs.push(report);
        }
    }
    let comparison = Comparison::of(runs);
    let written = arguments.files.write(&setting.workload.name, &comparison, &comparison.runs)?;
    if output.is_json() {
        output.json(&comparison)?;
    } else {
        output.line(&format!(
            "{}: {} of each; median (lowest-highest)",
            setting.workload.name,
            counted(u64::from(arguments.rounds), "run")
        ))?;
        output.table(&figures(&comparison))?;
        output.line("")?;
        for standing in &comparison.standings {
            let (driver, durability) = (&standing.driver, standing.durability.name());
            output.line(&format!(
                "{driver} acknowledges from: {durability} ({})",
                standing.durability_settings
            ))?;
        }
        if comparison.standings.len() > 1 {
            output.line("")?;
            output.table(&ratios(&comparison))?;
        }
        for path in written {
            output.line(&format!("written: {}", path.display()))?;
        }
    }
    output.flush()?;
    let failed: Vec<String> = comparison
        .standings
        .iter()
        .filter(|standing| standing.failed > 0)
        .map(|standing| format!("{} by {}", grouped(standing.failed), standing.driver))
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => {
            let reason = comparison.runs.iter().rev().find_map(|run| run.last_failure.clone());
            Err(Failure::operation(format!(
                "records were not acknowledged: {}, the last because: {}",
                failed.join(", "),
                reason.as_deref().unwrap_or("unknown")
            )))
        }
    }
}

fn setting(arguments: &CompareArguments) -> Result<Setting, Failure> {
    let broker_cores = place::broker_cores(&arguments.broker_cores);
    let client_cores = place::client_cores(&arguments.client_cores, &broker_cores);
    Ok(Setting {
        workload: arguments.workload()?,
        acknowledge: if arguments.defaults { Acknowledge::Defaults } else { Acknowledge::FromDevice },
        data: arguments.data.clone(),
        kafka: arguments.kafka.clone(),
        broker_cores,
        client_cores,
    })
}

/// What would make the figures worth less.
fn warn(setting: &Setting) {
    place::warn_of_shared_cores(&setting.broker_cores, &setting.client_cores);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last_minute = load.split(' ').next().and_then(|load| load.parse::<f64>().ok());
    if let Some(busy) = last_minute.filter(|load| *load > 0.5) {
        eprintln!("warning: the host is not idle (load {busy} in the last minute); compare on a quiet one");
    }
}

/// A broker under test; ends when dropped, before its directory goes.
enum Running {
    Ringlog(EmbeddedBroker),
    Other { server: Server, plan: ServerPlan, place: Place },
    Elsewhere { address: String },
}

impl Running {
    fn start(contestant: Contestant, setting: &Setting) -> Result<Self, Failure> {
        let cores = &setting.broker_cores;
        if let (Contestant::Kafka, Some(address)) = (contestant, &setting.kafka) {
            return Ok(Self::Elsewhere { address: address.clone() });
        }
        let place = Place::choose(setting.data.as_deref())?;
        let Some(kind) = contestant.server() else {
            return Ok(Self::Ringlog(EmbeddedBroker::start(place, cores)?));
        };
        let failed = |error: ::bench::servers::ServerError| Failure::usage(error.to_string());
        let plan =
            ServerPlan::new(kind, setting.acknowledge, place.directory.path(), cores).map_err(failed)?;
        Ok(Self::Other { server: plan.start().map_err(failed)?, plan, place })
    }

    /// For clients, and of the monitoring port.
    fn addresses(&self) -> (String, Option<String>) {
        match self {
            Self::Ringlog(broker) => (broker.address().to_owned(), None),
            Self::Other { server, plan, .. } => (server.address().to_owned(), plan.monitor()),
            Self::Elsewhere { address } => (address.clone(), None),
        }
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::Ringlog(broker) => Some(broker.pid()),
            Self::Other { server, .. } => Some(server.pid()),
            Self::Elsewhere { .. } => None,
        }
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Self::Ringlog(broker) => Some(broker.place()),
            Self::Other { place, .. } => Some(place),
            Self::Elsewhere { .. } => None,
        }
    }
}

/// One run against a fresh broker.
fn measure(contestant: Contestant, setting: &Setting, people: bool) -> Result<Report, Failure> {
    // What the one before left in the page cache is not written at the expense of this one.
    rustix::fs::sync();
    let running = Running::start(contestant, setting)?;
    let (address, monitor) = running.addresses();
    let reach = Reach { address: &address, monitor: monitor.as_deref(), acknowledge: setting.acknowledge };
    let pid = running.pid();
    let facts = running.place().map(|place| place.facts.clone());
    let view = LiveView::new(people);
    let options = RunOptions { client_cores: setting.client_cores.clone(), ..RunOptions::default() };
    let around = Around {
        broker_pid: pid,
        client_cores: setting.client_cores.clone(),
        broker_cores: if pid.is_some() { setting.broker_cores.clone() } else { Vec::new() },
        explain: options.explain,
        system_calls: false,
        facts,
    };
    let (workload, shown) = (setting.workload.clone(), view.clone());
    let run = move |driver: &dyn Driver| {
        let result = ::bench::run::run(driver, &workload, &options, &mut |now| shown.show(&now))?;
        Ok((workload, None, result))
    };
    let measured = crate::block_on(async {
        let driver = contestant.connect(reach).await;
        let driver = driver.map_err(|error| Failure::operation(error.to_string()))?;
        measured(driver, around, run).await
    });
    view.end();
    measured
}

fn figures(comparison: &Comparison) -> Table {
    let mut table = Table::new(&["DRIVER", "ACKNOWLEDGED FROM", ">RECORDS/S", ">MB/S", ">P50", ">P99"]);
    for standing in &comparison.standings {
        let cell = |spread: Spread, of: fn(f64) -> String| match spread.highest {
            0.0 => "-".to_owned(),
            _ => format!("{} ({}-{})", of(spread.median), of(spread.lowest), of(spread.highest)),
        };
        table.row([
            standing.driver.clone(),
            standing.durability.name().to_owned(),
            cell(standing.records_s, |records| grouped(records as u64)),
            cell(standing.mb_s, |mb| format!("{mb:.1}")),
            cell(standing.p50_us, duration_us),
            cell(standing.p99_us, duration_us),
        ]);
    }
    table
}

type RatioOf = fn(&Ratios) -> &Ratio;

/// A row per figure, a column per driver: every cell says what it compares.
fn ratios(comparison: &Comparison) -> Table {
    let others: Vec<&Standing> =
        comparison.standings.iter().filter(|standing| standing.ratios.is_some()).collect();
    let first = comparison.standings.first().map_or("", |first| first.driver.as_str());
    let mut columns = vec![format!("AGAINST {}", first.to_uppercase())];
    columns.extend(others.iter().map(|standing| standing.driver.to_uppercase()));
    let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    let rows: [(&str, RatioOf); 3] = [
        ("throughput, above 1 is more", |it| &it.records_s),
        ("p50, below 1 is shorter", |it| &it.p50),
        ("p99, below 1 is shorter", |it| &it.p99),
    ];
    for (name, of) in rows {
        let mut cells = vec![name.to_owned()];
        cells.extend(others.iter().filter_map(|it| it.ratios.as_ref()).map(|it| of(it).to_string()));
        table.row_of(cells);
    }
    table
}
