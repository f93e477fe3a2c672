//! `ringlog perf ceilings`: what this machine can do without a broker, to hold the broker against.
//!
//! With `--save` the figures become this host's profile, which later results are stated as a share of.

use crate::failure::Failure;
use crate::output::{FormatArguments, Output};
use ::perf::ceilings::{Ceiling, Options, run_each, table};
use ::perf::host_profile::FORMAT_VERSION;
use ::perf::{Host, HostProfile};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// Keep all figures as this host's profile [default FILE: ringlog/host-profile.json in $XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    save: Option<Option<PathBuf>>,
    #[command(flatten)]
    format: FormatArguments,
}

/// Runs it.
pub fn run(arguments: CeilingsArguments) -> Result<(), Failure> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        return Err(Failure::usage("--seconds takes a number above 0, at most 3600"));
    }
    let save_to = arguments.save.map(place).transpose()?;
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
    measured.map_err(|error| Failure::operation(error.to_string()))?;
    match save_to {
        Some(path) => save(&path, &arguments.directory, arguments.seconds, ceilings),
        None => Ok(()),
    }
}

fn place(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let none = || Failure::usage("there is neither $XDG_CONFIG_HOME nor $HOME: name a file, --save FILE");
    given.or_else(HostProfile::default_path).ok_or_else(none)
}

fn save(path: &Path, directory: &Path, seconds: f64, ceilings: Vec<Ceiling>) -> Result<(), Failure> {
    let profile = HostProfile {
        format_version: FORMAT_VERSION,
        measured_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        host: Host::this(),
        directory: directory.canonicalize().unwrap_or_else(|_| directory.to_owned()),
        seconds,
        ceilings,
    };
    profile.save(path).map_err(|error| Failure::operation(error.to_string()))?;
    eprintln!("saved as this host's profile: {}", path.display());
    Ok(())
}
