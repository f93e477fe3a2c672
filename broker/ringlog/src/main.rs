//! The one binary `ringlog`: subcommands, and nothing else.
//!
//! Each subcommand has a file of its own: its arguments, what it does, what it prints. What they share:
//! [`client`] (how a broker is reached), [`output`] (tables and JSON), [`failure`] (errors and exit status), [`manual`]
//! (examples).
//! Exit status: 0 done, 1 the operation failed, 2 wrong usage or a broker that cannot start.
//! Invariants: standard output carries results only; progress, warnings, logs and errors go to standard
//! error; every error says what to do. A reader that hangs up (`| head`) is no error.
//! Absent on purpose: knowledge of the log, the wire or the disk.

mod bench;
mod client;
mod cluster;
mod consume;
mod demo;
mod disk_profile;
mod doctor;
mod failure;
mod group;
mod interrupt;
mod manual;
mod output;
mod perf;
mod place;
mod produce;
mod serve;
mod status;
mod top;
mod topic;
mod tune;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use failure::Failure;
use std::io::IsTerminal;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A commit log broker: topics, partitions, offsets, and acknowledgements that say what they mean.
///
/// First message: `ringlog serve`, then in a second terminal `echo hello | ringlog produce greetings` and
/// `ringlog consume greetings`.
#[derive(Parser)]
#[command(name = "ringlog", version, propagate_version = true, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a broker until SIGINT or SIGTERM
    Serve(Box<serve::ServeArguments>),
    /// Produce, consume and verify a few hundred MB with a broker inside this process
    Demo(demo::DemoArguments),
    /// Create, list, describe, alter and delete topics
    Topic(topic::TopicArguments),
    /// Send lines as records, and say what was acknowledged
    Produce(produce::ProduceArguments),
    /// Print records
    Consume(consume::ConsumeArguments),
    /// List, describe, reset and delete consumer groups: members, committed offsets, lag
    Group(group::GroupArguments),
    /// Brokers, replicas and leaders of the cluster, and changes of them
    Cluster(cluster::ClusterArguments),
    /// What the broker is and does: counters of each core, and notices
    Status(status::StatusArguments),
    /// Cores, topics and groups of all brokers, refreshed in place
    Top(top::TopArguments),
    /// Load a broker and measure it: a workload, against an embedded broker unless told otherwise
    Bench(Box<bench::BenchArguments>),
    /// What this machine could do without a broker
    #[command(subcommand)]
    Perf(perf::PerfCommand),
    /// Is this host fit? What will hurt a broker, what it will cost, and what mends it
    Doctor(doctor::DoctorArguments),
    /// Mend some of what doctor finds (look with --dry-run first), and take it back with --undo
    Tune(tune::TuneArguments),
}

fn main() -> ExitCode {
    let matches = manual::with_examples(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    start_logging(matches!(arguments.command, Command::Serve(_)));
    let done = match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Topic(arguments) => topic::run(arguments),
        Command::Produce(arguments) => produce::run(arguments),
        Command::Consume(arguments) => consume::run(&arguments),
        Command::Group(arguments) => group::run(arguments),
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Bench(arguments) => bench::run(*arguments),
        Command::Perf(command) => perf::run(command),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                eprintln!("ringlog: {message}");
            }
            failure.exit_code()
        }
    }
}

/// Logs go to standard error; `RINGLOG_LOG` chooses them as `RUST_LOG` does elsewhere.
fn start_logging(serving: bool) {
    // A peer that is away is told of once, not with every heartbeat that does not get there.
    let default = if serving { "info,openraft=error" } else { "warn" };
    let wanted = std::env::var("RINGLOG_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(wanted);
    let colours = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(colours);
    format.with_writer(std::io::stderr).init();
}

/// Runs a client's work on this thread, until it ends or the user interrupts it.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::operation(format!("cannot start the client's runtime: {error}")))?;
    let done = runtime.block_on(work);
    // A thread that waits for a line of standard input may never end.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
