//! `ringlog tune`: mend what `ringlog doctor` finds, and take it back.
//!
//! Planning, writing and undoing are the `tuning` crate's; here are arguments and output. Invariants: with
//! `--dry-run` nothing is changed; what was changed is in the state file before it is printed.

use crate::doctor::SubjectArguments;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, counted};
use std::path::{Path, PathBuf};
use tuning::Sources;
use tuning::tune::{self, Advice, Outcome, Plan, Profile, TuneError, Undone};

/// `ringlog tune`
#[derive(clap::Args)]
pub struct TuneArguments {
    /// What the host is for
    #[arg(long, value_enum, required_unless_present = "undo")]
    profile: Option<ProfileName>,
    /// Only say what would be written, where, and what it says now; look at this first
    #[arg(long)]
    dry_run: bool,
    /// Restore what was changed, the latest first
    #[arg(long, conflicts_with = "profile")]
    undo: bool,
    /// Where changes are recorded, so that they can be undone
    #[arg(long, value_name = "FILE", default_value = "/var/lib/ringlog/tune.json")]
    state: PathBuf,
    #[command(flatten)]
    subject: SubjectArguments,
    /// For tests: instead of /sys
    #[arg(long, hide = true, default_value = "/sys")]
    sys_root: PathBuf,
    /// For tests: instead of /proc
    #[arg(long, hide = true, default_value = "/proc")]
    proc_root: PathBuf,
    #[command(flatten)]
    format: FormatArguments,
}

/// `--profile`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProfileName {
    /// Even latencies for others, whatever power it takes
    Production,
    /// What costs nobody anything, and counters for tools
    Development,
    /// As production, and nothing on the shards' cores but shards
    Benchmark,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Production => Profile::Production,
            ProfileName::Development => Profile::Development,
            ProfileName::Benchmark => Profile::Benchmark,
        }
    }
}

impl From<TuneError> for Failure {
    fn from(error: TuneError) -> Self {
        Failure::operation(error.to_string())
    }
}

/// Runs it.
pub fn run(arguments: &TuneArguments) -> Result<(), Failure> {
    let sources = Sources { sys: arguments.sys_root.clone(), proc: arguments.proc_root.clone() };
    let mut output = Output::new(arguments.format.format);
    match arguments.profile {
        Some(profile) => apply(arguments, profile.into(), &sources, &mut output)?,
        None => undo(arguments, &sources, &mut output)?,
    }
    output.flush()
}

fn apply(
    arguments: &TuneArguments,
    profile: Profile,
    sources: &Sources,
    output: &mut Output,
) -> Result<(), Failure> {
    let plan = tune::plan(profile, sources, &arguments.subject.subject()?);
    if !arguments.dry_run {
        tune::apply(&plan, profile, sources, &arguments.state)?;
    }
    let action = if arguments.dry_run { "would write" } else { "wrote" };
    if output.is_json() {
        return describe_json(&plan, profile, action, output);
    }
    describe(&plan, output)?;
    let count = counted(plan.steps.len() as u64, "value");
    let summary = match (plan.steps.is_empty(), arguments.dry_run) {
        (true, _) => format!("nothing to change for {}", profile.word()),
        (false, true) => format!("nothing was changed; without --dry-run {count} would be written"),
        (false, false) => {
            format!(
                "{count} written, in force until the host restarts; to restore: {}",
                undoing(&arguments.state)
            )
        }
    };
    output.line(&summary)
}

/// The command that takes it back.
fn undoing(state: &Path) -> String {
    format!("ringlog tune --undo --state {}", state.display())
}

fn describe(plan: &Plan, output: &mut Output) -> Result<(), Failure> {
    if !plan.steps.is_empty() {
        let mut table = Table::new(&["FINDING", "FILE", "OLD", "NEW"]);
        for step in &plan.steps {
            let finding = step.finding.to_owned();
            table.row([finding, step.path.display().to_string(), shown(&step.old), shown(&step.new)]);
        }
        output.table(&table)?;
    }
    for Advice { about, lines } in &plan.advice {
        output.line(&format!("by hand: {about}"))?;
        lines.iter().try_for_each(|line| output.line(&format!("  {line}")))?;
    }
    Ok(())
}

/// A value that is nothing must still be seen.
fn shown(value: &str) -> String {
    if value.is_empty() { "(empty)".to_owned() } else { value.to_owned() }
}

fn describe_json(plan: &Plan, profile: Profile, action: &str, output: &mut Output) -> Result<(), Failure> {
    #[derive(serde::Serialize)]
    struct Line<'a, T> {
        action: &'a str,
        profile: Profile,
        #[serde(flatten)]
        what: T,
    }
    for what in &plan.steps {
        output.json(&Line { action, profile, what })?;
    }
    plan.advice.iter().try_for_each(|what| output.json(&Line { action: "by hand", profile, what }))
}

fn undo(arguments: &TuneArguments, sources: &Sources, output: &mut Output) -> Result<(), Failure> {
    let undone = tune::undo(sources, &arguments.state, arguments.dry_run)?;
    if output.is_json() {
        undone.iter().try_for_each(|undone| output.json(undone))?;
    } else {
        let mut table = Table::new(&["FINDING", "FILE", "WRITTEN", "BEFORE", "NOW"]);
        for Undone { change, outcome } in &undone {
            let file = change.restore.path.display().to_string();
            let before = shown(&change.restore.value);
            table.row([change.finding.clone(), file, shown(&change.new), before, word(outcome)]);
        }
        output.table(&table)?;
    }
    let failed = undone.iter().filter(|undone| matches!(undone.outcome, Outcome::Failed { .. })).count();
    if failed > 0 {
        output.flush()?;
        let state = arguments.state.display();
        let count = counted(failed as u64, "value");
        return Err(Failure::operation(format!("{count} not restored and still recorded in {state}")));
    }
    Ok(())
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Restored => "restored".to_owned(),
        Outcome::Restorable => "would be restored".to_owned(),
        Outcome::AlreadyBefore => "was as before already".to_owned(),
        Outcome::ChangedMeanwhile { current } => format!("left: somebody else wrote {}", shown(current)),
        Outcome::Gone => "left: the file is gone".to_owned(),
        Outcome::Failed { reason } => format!("not restored: {reason}"),
    }
}
