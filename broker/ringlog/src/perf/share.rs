//! `ringlog perf share`, and the same line for a report that has just been made.
//!
//! Owner: whoever has a report. [`line`] is for `bench`: it never fails, and says nothing where this host has no
//! profile. Invariant: a profile of another kernel, processor or number of cores is never used silently.

use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table};
use ::perf::HostProfile;
use ::perf::report::RunReport;
use ::perf::share::{binding_ceiling, shares};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `--host-profile`, for every command that states a share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProfileArguments {
    /// The host's ceilings [default: this user's, as `ringlog perf ceilings DIR --save` wrote them]
    #[arg(long, value_name = "FILE")]
    pub host_profile: Option<PathBuf>,
}

impl ProfileArguments {
    /// The profile; `None` where none was named and this user has none.
    pub fn load(&self) -> Result<Option<HostProfile>, Failure> {
        let loaded = match &self.host_profile {
            Some(path) => HostProfile::load(path).map(Some),
            None => HostProfile::load_default(),
        };
        loaded.map_err(|error| Failure::usage(error.to_string()))
    }
}

/// `ringlog perf share`
#[derive(clap::Args)]
pub struct ShareArguments {
    /// Reports that `ringlog bench … --json FILE` wrote
    #[arg(required = true, value_name = "REPORT.json")]
    reports: Vec<PathBuf>,
    #[command(flatten)]
    profile: ProfileArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// For the end of a report of bench: the ceiling that bound the run, in a sentence; `None` where this host has no
/// profile, or nothing in it bounds the run.
pub fn line(report: &impl serde::Serialize) -> Option<String> {
    let profile = HostProfile::load_default().ok()??;
    let report = RunReport::of(report).ok()?;
    let share = binding_ceiling(&report.figures(), &profile)?;
    let differences = profile.differences(&report.host.machine);
    let warning =
        if differences.is_empty() { String::new() } else { format!(" ({})", differences.join("; ")) };
    Some(format!("{share}{warning}"))
}

/// Reads the reports of a file: one per line, or one over many lines.
pub fn reports(path: &Path) -> Result<Vec<RunReport>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let parsed: Result<Vec<RunReport>, String> = values
        .map(|value| {
            let value = value.map_err(|error| error.to_string())?;
            RunReport::of(&value).map_err(|error| error.to_string())
        })
        .collect();
    match parsed {
        Ok(reports) if reports.is_empty() => {
            Err(Failure::usage(format!("{} holds no report", path.display())))
        }
        Ok(reports) => Ok(reports),
        Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
    }
}

/// Runs `ringlog perf share`.
pub fn run(arguments: &ShareArguments) -> Result<(), Failure> {
    let Some(profile) = arguments.profile.load()? else {
        return Err(Failure::usage(
            "this host's ceilings are not known; measure them on the broker's device: ringlog perf ceilings DIR --save",
        ));
    };
    let mut output = Output::new(arguments.format.format);
    let mut table = Table::new(&["WORKLOAD", "CEILING", ">REACHED", ">CEILING", "UNIT", ">SHARE"]);
    for path in &arguments.reports {
        for report in reports(path)? {
            for difference in profile.differences(&report.host.machine) {
                eprintln!("warning: {}: {difference}", report.workload.name);
            }
            for (at, share) in shares(&report.figures(), &profile).into_iter().enumerate() {
                if output.is_json() {
                    let workload = &report.workload.name;
                    output.json(&json!({ "workload": workload, "binds": at == 0, "share": share }))?;
                    continue;
                }
                let name = if at == 0 { report.workload.name.clone() } else { String::new() };
                table.row([
                    name,
                    share.ceiling,
                    format!("{:.0}", share.reached),
                    format!("{:.0}", share.value),
                    share.unit,
                    format!("{:.0} %", share.share * 100.0),
                ]);
            }
        }
    }
    if !output.is_json() {
        output.table(&table)?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_report_are_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("report.json");
        let rows = [
            (None, "cannot read"),
            (Some(""), "holds no report"),
            (Some("{}\n"), "no report of ringlog bench"),
        ];
        for (text, expect) in rows {
            if let Some(text) = text {
                std::fs::write(&path, text).expect("written");
            }
            let failure = reports(&path).expect_err("refused");
            let message = failure.message().unwrap_or_default();
            assert!(message.contains(expect) && message.contains("report.json"), "{text:?}: {message}");
        }
    }
}
