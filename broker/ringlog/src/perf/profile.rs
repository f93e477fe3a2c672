//! `ringlog perf profile -- BENCH ARGUMENTS`: where the time of a loaded broker goes, as a flame graph.
//!
//! ```text
//! embedded broker ◄── load: `ringlog bench --brokers …`, a process of its own
//!        ▲
//!        └── a count of system calls, then perf record
//! ```
//!
//! Only the broker is looked at. Lifecycle: everything that is started ends with the command, however it ends.
//! Invariant: nothing is sampled before the broker has records to append, and it is said if the load ended too
//! early. Absent on purpose: the load's own figures; a broker that is being sampled is slower.

use crate::bench::embedded::EmbeddedBroker;
use crate::client::BrokersArguments;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, grouped};
use crate::place::{self, Place};
use ::perf::flame::{Hot, Stacks};
use ::perf::sampling::{CallGraph, Sampler, SamplingError, SystemCallCounter, SystemCalls, perf_version};
use ringlog_client::{BrokerStatus, Client};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a load may take until its first record is appended.
const LOAD_STARTS_S_MAX: u64 = 60;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The load goes on for so much longer than it is looked at: it has to warm up and is stopped anyway.
const LOAD_EXTRA_S: f64 = 30.0;
const HOTTEST: usize = 12;
/// System calls are many: a few seconds of them say enough.
const COUNTING_S_MAX: f64 = 3.0;

/// `ringlog perf profile`
#[derive(clap::Args)]
pub struct ProfileArguments {
    /// How long to look
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// How long the load runs before that
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    after: f64,
    /// Where the flame graph goes
    #[arg(long, value_name = "FILE.svg", default_value = "profile.svg")]
    output: PathBuf,
    /// Samples per second of every thread that runs
    #[arg(long, value_name = "N", default_value_t = 999)]
    frequency: u32,
    /// How callers are found; fp needs a build with RUSTFLAGS=-Cforce-frame-pointers=yes, and costs less
    #[arg(long, value_enum, default_value = "dwarf")]
    call_graph: CallGraphArgument,
    /// The cores of the broker, one shard each [default: half of the cores]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    broker_cores: Vec<usize>,
    /// Where the broker's temporary directory is made [default: a place on a real disk]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArguments,
    /// What `ringlog bench` is to be run with: a workload and its options
    #[arg(last = true, value_name = "BENCH ARGUMENTS")]
    bench: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum CallGraphArgument {
    Dwarf,
    Fp,
}

/// What was seen.
#[derive(serde::Serialize)]
struct Profile {
    flame_graph: PathBuf,
    seconds: f64,
    samples: u64,
    requests_s: f64,
    records_s: f64,
    system_calls: Option<SystemCalls>,
    system_calls_per_request: Option<f64>,
    hottest: Vec<Hot>,
}

/// Runs it.
pub fn run(arguments: ProfileArguments) -> Result<(), Failure> {
    if !(0.1..=3600.0).contains(&arguments.seconds) || !(0.0..=3600.0).contains(&arguments.after) {
        return Err(Failure::usage("--seconds takes 0.1 to 3600, --after 0 to 3600"));
    }
    if !(1..=25_000).contains(&arguments.frequency) {
        return Err(Failure::usage("--frequency takes 1 to 25000"));
    }
    perf_version().map_err(|error| Failure::usage(error.to_string()))?;
    let mut output = Output::new(arguments.format.format);
    let cores = place::broker_cores(&arguments.broker_cores);
    let place = Place::choose(arguments.data.as_deref())?;
    let broker = EmbeddedBroker::start(place, &cores)?;
    let mut load = Load::start(&arguments, broker.address(), &cores)?;
    let seen = crate::block_on(async {
        tokio::select! {
            seen = look(&arguments, broker.pid(), broker.address(), &mut load) => seen,
            () = crate::interrupt::interrupted() => Err(Failure::operation("interrupted; the broker is stopped")),
        }
    });
    // The load first: it would complain about a broker that is gone.
    drop(load);
    drop(broker);
    let (seen, stacks) = seen?;
    let workload = arguments.bench.join(" ");
    let workload = if workload.is_empty() { "simple" } else { &workload };
    draw(&arguments.output, &stacks, workload, &seen)?;
    if output.is_json() {
        output.json(&seen)?;
    } else {
        print(&seen, &mut output)?;
    }
    output.flush()
}

/// The process that makes the load.
struct Load(Child);

impl Load {
    fn start(arguments: &ProfileArguments, address: &str, broker_cores: &[usize]) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::operation(format!("the load cannot start: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command.args(["bench", "--brokers", address]);
        if !broker_cores.is_empty() {
            let cores: Vec<String> = broker_cores.iter().map(usize::to_string).collect();
            command.args(["--broker-cores", &cores.join(",")]);
        }
        if !arguments.bench.iter().any(|argument| argument.starts_with("--seconds")) {
            let seconds = arguments.seconds + arguments.after + LOAD_EXTRA_S;
            command.args(["--seconds", &seconds.to_string()]);
        }
        command.args(&arguments.bench).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map(Self).map_err(fail)
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn look(
    arguments: &ProfileArguments,
    pid: u32,
    address: &str,
    load: &mut Load,
) -> Result<(Profile, Stacks), Failure> {
    let client = BrokersArguments { brokers: address.to_owned() }.connect().await?;
    let until = Instant::now() + Duration::from_secs(LOAD_STARTS_S_MAX);
    while counter(&client.admin().status().await?, "records_total") == 0 {
        if load.has_ended() {
            return Err(Failure::operation("the load ended before it sent a record: see its message above"));
        }
        if Instant::now() > until {
            let message = format!("the load has sent no record within {LOAD_STARTS_S_MAX} s");
            return Err(Failure::operation(message));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(Duration::from_secs_f64(arguments.after)).await;
    let sampler = Sampler {
        pid,
        duration: Duration::from_secs_f64(arguments.seconds),
        frequency_hz: arguments.frequency,
        call_graph: match arguments.call_graph {
            CallGraphArgument::Dwarf => CallGraph::Dwarf,
            CallGraphArgument::Fp => CallGraph::FramePointers,
        },
    };
    let scratch = tempfile::tempdir()
        .map_err(|error| Failure::operation(format!("cannot make a scratch directory: {error}")))?;
    // Not while samples are taken: strace, where it has to count, slows the broker down.
    let counted = count_system_calls(&client, pid, arguments.seconds.min(COUNTING_S_MAX)).await?;
    let before = client.admin().status().await?;
    let failed = |error: SamplingError| Failure::operation(error.to_string());
    let began = Instant::now();
    let mut recording = sampler.start(scratch.path()).map_err(failed)?;
    while !recording.has_ended() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    let after = client.admin().status().await?;
    let ended = load.has_ended();
    recording.finish().map_err(failed)?;
    if ended {
        eprintln!("warning: the load ended before the profile: give it more --seconds, behind the --");
    }
    let path = scratch.path().to_owned();
    let stacks = tokio::task::spawn_blocking(move || Sampler::stacks(&path))
        .await
        .map_err(|error| Failure::operation(error.to_string()))?
        .map_err(failed)?;
    let rate = |name: &str| (counter(&after, name) - counter(&before, name)) as f64 / elapsed_s;
    let (system_calls, requests) = counted.unzip();
    let per_request =
        system_calls.as_ref().zip(requests).map(|(it, requests)| it.total as f64 / requests as f64);
    let seen = Profile {
        flame_graph: arguments.output.clone(),
        seconds: arguments.seconds,
        samples: stacks.samples(),
        requests_s: rate("requests_total"),
        records_s: rate("records_total"),
        system_calls,
        system_calls_per_request: per_request.filter(|it| it.is_finite()),
        hottest: stacks.hottest(HOTTEST),
    };
    Ok((seen, stacks))
}

/// System calls of some seconds, and the requests of the same; `None`, with a warning, where they cannot be counted.
async fn count_system_calls(
    client: &Client,
    pid: u32,
    seconds: f64,
) -> Result<Option<(SystemCalls, u64)>, Failure> {
    let before = client.admin().status().await?;
    let counting = SystemCallCounter::start(pid);
    if counting.is_ok() {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
    let counted = counting.and_then(SystemCallCounter::stop);
    let after = client.admin().status().await?;
    match counted {
        // The second status request is one of ours.
        Ok(calls) => {
            let requests = counter(&after, "requests_total") - counter(&before, "requests_total");
            Ok(Some((calls, requests.saturating_sub(1))))
        }
        Err(error) => {
            eprintln!("warning: system calls were not counted: {error}");
            Ok(None)
        }
    }
}

/// A counter, of all shards together; 0 from a broker that does not have it.
fn counter(status: &BrokerStatus, name: &str) -> u64 {
    status.counter(name).unwrap_or(0)
}

fn draw(path: &Path, stacks: &Stacks, workload: &str, seen: &Profile) -> Result<(), Failure> {
    let cannot = |error| Failure::operation(format!("cannot write {}: {error}", path.display()));
    let file = std::fs::File::create(path).map_err(cannot)?;
    let subtitle = format!(
        "{} samples in {} s, {} requests/s, {} records/s",
        grouped(seen.samples),
        seen.seconds,
        grouped(seen.requests_s as u64),
        grouped(seen.records_s as u64)
    );
    stacks.draw(&format!("ringlog broker: {workload}"), &subtitle, BufWriter::new(file)).map_err(cannot)
}

fn print(seen: &Profile, output: &mut Output) -> Result<(), Failure> {
    let mut table = Table::new(&["SEEN", ">VALUE"]);
    table.row(["requests/s".into(), grouped(seen.requests_s as u64)]);
    table.row(["records/s".into(), grouped(seen.records_s as u64)]);
    if let (Some(calls), Some(per_request)) = (&seen.system_calls, seen.system_calls_per_request) {
        table.row([format!("system calls per request ({})", calls.source), format!("{per_request:.2}")]);
        for (name, count) in &calls.by_name {
            let part = per_request * *count as f64 / calls.total as f64;
            table.row([format!("  {name}"), format!("{part:.2}")]);
        }
    }
    table.row(["samples".into(), grouped(seen.samples)]);
    output.table(&table)?;
    output.line("")?;
    let mut table = Table::new(&["SAMPLES END IN", ">SHARE"]);
    for hot in &seen.hottest {
        table.row([hot.function.clone(), format!("{:.1} %", hot.share * 100.0)]);
    }
    output.table(&table)?;
    output.line(&format!("\nflame graph: {}", seen.flame_graph.display()))
}
