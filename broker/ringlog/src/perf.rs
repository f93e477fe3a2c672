//! `ringlog perf ceilings`: what this machine can do without a broker, to hold the broker against.
//!
//! The measuring is the `perf` crate's; here are arguments and output.

use crate::failure::Failure;
use crate::output::{FormatArguments, Output};
use ::perf::ceilings::{Options, run_each, table};
use std::path::PathBuf;

/// `ringlog perf …`
#[derive(clap::Subcommand)]
pub enum PerfCommand {
    /// Measure device, loopback and memory in a bare loop (about 1.6 GiB of disk, freed again)
    Ceilings(CeilingsArguments),
}

/// `ringlog perf ceilings`
#[derive(clap::Args)]
pub struct CeilingsArguments {
    /// A directory on the device to measure
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Length of one case
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    format: FormatArguments,
}

/// Runs it.
pub fn run(command: PerfCommand) -> Result<(), Failure> {
    let PerfCommand::Ceilings(arguments) = command;
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        return Err(Failure::usage("--seconds takes a number above 0, at most 3600"));
    }
    let mut output = Output::new(arguments.format.format);
    let options = Options { seconds: arguments.seconds, only: arguments.only };
    let mut ceilings = Vec::new();
    let mut written = Ok(());
    let measured = run_each(&arguments.directory, &options, &mut |ceiling| {
        if output.is_json() {
            let line = output.json(&ceiling).and_then(|()| output.flush());
            written = std::mem::replace(&mut written, Ok(())).and(line);
        } else {
            eprintln!("{}: {:.0} {}", ceiling.name, ceiling.value, ceiling.unit);
        }
        ceilings.push(ceiling);
    });
    if !output.is_json() && !ceilings.is_empty() {
        output.line(table(&ceilings).trim_end())?;
    }
    written?;
    output.flush()?;
    measured.map_err(|error| Failure::operation(error.to_string()))
}
