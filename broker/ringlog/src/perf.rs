//! `ringlog perf …`: why it is as fast as it is.
//!
//! The measuring is the `perf` crate's; here are arguments, the broker that is looked at, and output. One file
//! per subcommand. Absent on purpose: instruction budgets; they concern whoever changes the code, and are an
//! example of the `perf` crate.

mod ceilings;
mod history;
mod profile;
pub mod share;

use crate::failure::Failure;

/// `ringlog perf …`
#[derive(clap::Subcommand)]
pub enum PerfCommand {
    /// Measure device, loopback, memory and wake-ups in a bare loop (about 1.6 GiB of disk, freed again)
    Ceilings(ceilings::CeilingsArguments),
    /// Run a workload against an embedded broker, and draw where the broker's time goes
    Profile(profile::ProfileArguments),
    /// The ceiling that bound the runs of bench reports, and how near they came to it
    Share(share::ShareArguments),
    /// Keep the key figures of bench reports, by commit
    Record(history::RecordArguments),
    /// Draw what was recorded
    Plot(history::PlotArguments),
}

/// Runs it.
pub fn run(command: PerfCommand) -> Result<(), Failure> {
    match command {
        PerfCommand::Ceilings(arguments) => ceilings::run(arguments),
        PerfCommand::Profile(arguments) => profile::run(arguments),
        PerfCommand::Share(arguments) => share::run(&arguments),
        PerfCommand::Record(arguments) => history::record(&arguments),
        PerfCommand::Plot(arguments) => history::plot(&arguments),
    }
}
