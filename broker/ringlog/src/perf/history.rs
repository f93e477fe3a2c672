//! `ringlog perf record` and `ringlog perf plot`: key figures by commit, and their picture.
//!
//! What is kept, and in which form, is `perf::history`'s.

use crate::failure::Failure;
use crate::perf::share::{ProfileArguments, reports};
use ::perf::history::{self, HistoryError, plot};
use ::perf::share::binding_ceiling;
use std::path::PathBuf;

/// `ringlog perf record`
#[derive(clap::Args)]
pub struct RecordArguments {
    /// Reports that `ringlog bench … --json FILE` wrote
    #[arg(long, required = true, value_name = "REPORT.json", num_args = 1..)]
    from: Vec<PathBuf>,
    /// The commit that was measured [default: what the report says]
    #[arg(long, value_name = "ID")]
    commit: Option<String>,
    /// Where the history is
    #[arg(long, value_name = "DIR", default_value = "perf/history")]
    history: PathBuf,
    #[command(flatten)]
    profile: ProfileArguments,
}

/// `ringlog perf plot`
#[derive(clap::Args)]
pub struct PlotArguments {
    /// Where the history is
    #[arg(long, value_name = "DIR", default_value = "perf/history")]
    history: PathBuf,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "history.svg")]
    output: PathBuf,
}

fn failure(error: HistoryError) -> Failure {
    Failure::usage(error.to_string())
}

/// Runs `ringlog perf record`.
pub fn record(arguments: &RecordArguments) -> Result<(), Failure> {
    let profile = arguments.profile.load()?;
    if profile.is_none() {
        eprintln!(
            "warning: this host's ceilings are not known, so no share is kept (ringlog perf ceilings DIR --save)"
        );
    }
    for path in &arguments.from {
        for report in reports(path)? {
            let share = profile.as_ref().and_then(|profile| binding_ceiling(&report.figures(), profile));
            let commit = arguments.commit.as_deref();
            let file = history::record(&arguments.history, &report, share, commit).map_err(failure)?;
            println!("{}: {}", file.display(), report.workload.name);
        }
    }
    Ok(())
}

/// Runs `ringlog perf plot`.
pub fn plot(arguments: &PlotArguments) -> Result<(), Failure> {
    let entries = history::load_all(&arguments.history).map_err(failure)?;
    let picture = plot::svg(&entries).map_err(|error| Failure::operation(error.to_string()))?;
    let cannot = |error| Failure::operation(format!("cannot write {}: {error}", arguments.output.display()));
    std::fs::write(&arguments.output, picture).map_err(cannot)?;
    println!("{}", arguments.output.display());
    Ok(())
}
