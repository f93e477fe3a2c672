//! `ringlog doctor`: what on this host will hurt a broker, what it will cost, and what mends it.
//!
//! The looking is the `tuning` crate's; here are arguments and output. Exit status: 0 the host is fit, notes
//! at most; 1 there are warnings; 2 a broker cannot start. Invariant: changes nothing, works as any user.

mod disk;

use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, counted};
use crate::place::usable_cores;
use crate::serve::{Cores, place, raise_open_files};
use std::net::SocketAddr;
use std::path::PathBuf;
use tuning::{Finding, Severity, Subject};

/// The broker that the host is looked at for; the options are those of `ringlog serve`.
#[derive(clap::Args)]
pub struct SubjectArguments {
    /// The data directory, whose file system and disk are looked at; it need not exist
    #[arg(long, value_name = "DIR", env = "RINGLOG_DATA", default_value = "ringlog-data")]
    data: PathBuf,
    /// Where the broker is to listen [default: 127.0.0.1:9644, where a broker may be running already]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// How many shards it has [default: one per core]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// The cores that its shards run on, as 0,1, or none [default: the first ones, if there is more than one]
    #[arg(long, value_name = "LIST")]
    cores: Option<Cores>,
}

impl SubjectArguments {
    /// What `serve` would make of the same options.
    pub fn subject(&self) -> Result<Subject, Failure> {
        let usable_cores = usable_cores();
        let (shards, cores) = place(self.shards, self.cores.clone(), usable_cores.clone())?;
        let listen = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], schema::DEFAULT_PORT)));
        Ok(Subject {
            data: self.data.clone(),
            listen,
            listen_is_default: self.listen.is_none(),
            shards,
            cores,
            usable_cores,
        })
    }
}

/// `ringlog doctor`
#[derive(clap::Args)]
pub struct DoctorArguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Also what is well
    #[arg(long)]
    all: bool,
    /// Instead: measure the disk of this directory, about 15 s with up to 65 MiB of it, print what a broker
    /// chooses by it, and keep that there for ringlog serve; no broker may run there
    #[arg(long, value_name = "DIR", conflicts_with_all = ["all", "listen", "shards", "cores"])]
    disk: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArguments,
}

/// Runs it.
pub fn run(arguments: &DoctorArguments) -> Result<(), Failure> {
    if let Some(directory) = &arguments.disk {
        return disk::run(directory, arguments.format.format);
    }
    let subject = arguments.subject.subject()?;
    // As `serve` does, or the limit would be judged that a broker never has.
    raise_open_files();
    let found = tuning::examine(&subject);
    let mut output = Output::new(arguments.format.format);
    let shown = found.iter().filter(|finding| arguments.all || finding.severity > Severity::Ok);
    if output.is_json() {
        for finding in shown {
            output.json(finding)?;
        }
    } else {
        print(&found, arguments.all, &mut output)?;
    }
    output.flush()?;
    match tuning::worst(&found) {
        Severity::Ok | Severity::Note => Ok(()),
        Severity::Warning => Err(Failure::Reported),
        Severity::Fatal => Err(Failure::usage("a broker cannot start like this: see what is fatal")),
    }
}

fn print(found: &[Finding], all: bool, output: &mut Output) -> Result<(), Failure> {
    for finding in found.iter().filter(|finding| finding.severity > Severity::Ok) {
        output.line(&format!("{}: {}", finding.severity.word(), finding.name))?;
        output.line(&format!("  found  {}", finding.found))?;
        output.line(&format!("  cost   {}", finding.cost))?;
        output.line(&format!("  fix    {}", finding.fix))?;
    }
    if all {
        let mut table = Table::new(&["OK", "SEEN"]);
        for finding in found.iter().filter(|finding| finding.severity == Severity::Ok) {
            table.row([finding.name.to_owned(), finding.found.clone()]);
        }
        output.table(&table)?;
    }
    let count = |severity| found.iter().filter(|finding| finding.severity == severity).count() as u64;
    let hint = if all { "" } else { " (--all shows them)" };
    output.line(&format!(
        "{} fatal, {}, {}, {} without a complaint{hint}",
        count(Severity::Fatal),
        counted(count(Severity::Warning), "warning"),
        counted(count(Severity::Note), "note"),
        counted(count(Severity::Ok), "check"),
    ))
}
