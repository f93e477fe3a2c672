//! `ringlog serve`: a broker until it is told to stop.
//!
//! Lifecycle: settings → a look at the host (what is fatal ends here) → the disk's profile → the HTTP port, if
//! asked for → the broker starts, recovers and says `ready ADDRESS` on standard output → SIGINT or SIGTERM →
//! orderly stop. A second signal ends the process at once; the next start recovers.
//! Invariant: the first lines of output name data directory, shards, cores and address.
//! Absent on purpose: daemonising, log files, restarting; the service manager does that.

mod http;
mod settings;

use crate::disk_profile::{self, Settled};
use crate::failure::Failure;
use http::Http;
use server::broker::{Broker, BrokerConfig, DiskPolicy, REMOVED};
pub use settings::{Cores, ServeArguments, place};
use settings::{Settings, pinning};
use std::io::Write;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tuning::{Finding, HostFacts, Severity};

/// Runs it.
pub fn run(arguments: ServeArguments) -> Result<(), Failure> {
    if let Some(parent) = arguments.end_with_parent {
        end_with(parent)?;
    }
    let settings = arguments.settings()?;
    raise_open_files();
    // Before the directory is made, so that the error is about what the user gave.
    report(&tuning::preflight(&settings.data, settings.listen, settings.shards))?;
    std::fs::create_dir_all(&settings.data)
        .map_err(|error| cannot_start(format!("the data directory {}: {error}", settings.data.display())))?;
    let facts = tuning::host_facts(&settings.data)
        .map_err(|error| cannot_start(format!("the data directory {}: {error}", settings.data.display())))?;
    announce(&settings, &facts);
    let disk = settle(&settings, &facts)?;
    // Before the broker: a long recovery is not a dead process.
    let http = settings.http.map(|address| {
        Http::start(address).map_err(|error| {
            cannot_start(format!("cannot serve metrics on {address}: {error}; choose another: --http"))
        })
    });
    let http = http.transpose()?;
    if let Some(http) = &http {
        say(&format!("http {}", http.address));
    }
    // Before anybody can know that the broker is there: a signal must not find the default action.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| cannot_start(format!("no runtime for signals: {error}")))?;
    let signals = runtime.block_on(async { Signals::listen() });
    let signals = signals.map_err(|error| cannot_start(format!("cannot wait for signals: {error}")))?;
    let broker = Broker::start(settings.broker_config(&facts, disk))
        .map_err(|error| cannot_start(error.to_string()))?;
    if let Some(http) = &http {
        http.serving(broker.observer());
    }
    say(&format!("ready {}", broker.address()));
    runtime.block_on(serve(broker, http, signals))
}

/// The kernel ends this process when the one that started it is gone, also if it was killed.
fn end_with(parent: i32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| cannot_start(format!("cannot end with process {parent}: {error}")))?;
    // It may have gone before this was asked for.
    match getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(parent) {
        true => Ok(()),
        false => Err(cannot_start(format!("process {parent} did not start this one, or is gone"))),
    }
}

/// Waits for a signal, or for the end of the broker's place in its cluster, and stops.
async fn serve(broker: Broker, http: Option<Http>, mut signals: Signals) -> Result<(), Failure> {
    let name = tokio::select! {
        name = signals.next() => Some(name),
        () = broker.removed() => None,
    };
    if let Some(http) = &http {
        http.stopping();
    }
    let cause = name.unwrap_or("its removal from the cluster");
    say(&format!("stopping on {cause}: everything pending becomes durable; a signal ends it at once"));
    let stopping = tokio::task::spawn_blocking(|| broker.stop());
    tokio::select! {
        stopped = stopping => match stopped {
            Ok(Ok(())) => {
                say("stopped in order");
                // Whatever starts it again is told the same, and changes nothing.
                if name.is_some() { Ok(()) } else { Err(Failure::operation(REMOVED)) }
            }
            Ok(Err(error)) => Err(Failure::operation(error.to_string())),
            Err(error) => Err(Failure::operation(format!("the broker did not stop: {error}"))),
        },
        name = signals.next() => {
            say(&format!("ended at once by {name}: the next start recovers"));
            // The stop is still running on its thread; returning would wait for it.
            std::process::exit(1);
        }
    }
}

/// What ends a broker.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Takes as many open files as this process may have: every connection is one. The check of the host says
/// what is still missing.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Refused: then it stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Says what the host is like; fatal findings end the start.
fn report(findings: &[Finding]) -> Result<(), Failure> {
    let mut fatal = Vec::new();
    for finding in findings {
        let Finding { name, found, cost, fix, .. } = finding;
        match finding.severity {
            Severity::Fatal => fatal.push(format!("{found}: {cost}\n  fix: {fix}")),
            Severity::Warning => eprintln!("warning ({name}): {found}: {cost}\n  fix: {fix}"),
            Severity::Note | Severity::Ok => {}
        }
    }
    if fatal.is_empty() { Ok(()) } else { Err(cannot_start(fatal.join("\n"))) }
}

fn announce(settings: &Settings, facts: &HostFacts) {
    let path = settings.data.canonicalize().unwrap_or_else(|_| settings.data.clone());
    let io = if facts.o_direct { "direct" } else { "buffered" };
    let flush = if facts.one_flush_covers_all_files {
        "one flush for many writes"
    } else {
        "every write durable by itself"
    };
    let file_system = if facts.filesystem.is_empty() { "unknown" } else { &facts.filesystem };
    say(&format!("ringlog {}", env!("CARGO_PKG_VERSION")));
    say(&format!("data directory {} ({file_system}, {io} files, {flush})", path.display()));
    say(&format!("{}, {}", crate::output::counted(settings.shards as u64, "shard"), pinning(settings)));
    say(&format!("listening on {}", settings.listen));
}

/// How the disk is to be used; says so, and why.
fn settle(settings: &Settings, facts: &HostFacts) -> Result<Settled, Failure> {
    let mut settled = disk_profile::settle(&settings.disk_profile, &settings.data, facts, &mut say)
        .map_err(|failure| cannot_start(failure.message().unwrap_or("unknown").to_owned()))?;
    let choice = &mut settled.choice;
    choice.rounds_in_flight = settings.rounds_in_flight.unwrap_or(choice.rounds_in_flight);
    choice.dsync_writes_max = settings.dsync_writes.unwrap_or(choice.dsync_writes_max);
    let set = [("rounds-in-flight", settings.rounds_in_flight), ("dsync-writes", settings.dsync_writes)];
    let set = set.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name);
    let set: Vec<&str> = set.collect();
    let line = disk_profile::in_words(&settled.choice, facts.one_flush_covers_all_files);
    let line = match set.is_empty() {
        true => format!("disk: {line}"),
        false => format!("disk: {line} (as set: {})", set.join(", ")),
    };
    say(&line);
    // Where nobody asked for a profile there is nothing that an operator does not expect.
    if !settled.lines.is_empty() {
        settled.lines.push(line);
    }
    if !settled.choice.why.is_empty() {
        let why = format!("disk: because {}", settled.choice.why.join("; "));
        say(&why);
        settled.lines.push(why);
    }
    Ok(settled)
}

/// One line on standard output, now. Nobody reading it is no reason not to serve.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn cannot_start(reason: String) -> Failure {
    Failure::usage(format!("cannot start: {reason}"))
}

impl Settings {
    fn broker_config(&self, facts: &HostFacts, disk: Settled) -> BrokerConfig {
        BrokerConfig {
            advertised_host: self.advertise.clone(),
            cluster: self.cluster.clone(),
            shards: self.shards,
            cores: self.cores.clone(),
            rounds_in_flight: disk.choice.rounds_in_flight,
            poll: self.poll,
            groups: self.groups,
            producer_id_expiration: self.producer_id_expiration,
            scrub_interval: self.scrub_interval,
            direct: facts.o_direct,
            disk: DiskPolicy {
                one_flush_covers_all_files: facts.one_flush_covers_all_files,
                dsync_writes_max: disk.choice.dsync_writes_max,
                round_bytes_max: disk.choice.round_bytes_max,
                write_bytes_max: disk.choice.write_bytes_max,
            },
            notices: disk.lines,
            ..BrokerConfig::new(&self.data, self.listen)
        }
    }
}
