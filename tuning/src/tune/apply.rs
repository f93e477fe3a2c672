//! Writing a plan, and taking it back.
//!
//! Owner: one run of `tune`. Order of one change: into the state file, to the kernel, read back. A crash
//! between the first two leaves a record of a change that was not made, which undoing recognises.
//! Invariants: nothing is written before every file could be opened for writing; what the kernel did not
//! take is an error and leaves the record; undoing never overwrites what somebody else wrote since.

use super::plan::{Plan, Profile};
use super::record::{Change, State};
use crate::sources::{Sources, chosen, text};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Why a change was not made or restored.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Nothing was changed.
    #[error("nothing was changed; rights are missing:\n  {}", .blocked.join("\n  "))]
    NoRight {
        /// A sentence for each file: which, why, and what is needed.
        blocked: Vec<String>,
    },
    /// The state file cannot be read or written.
    #[error("the state file {}: {source}; name another with --state", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state file is not one of ours.
    #[error("the state file {} cannot be used: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no state file.
    #[error("nothing to undo: there is no {}", path.display())]
    NothingToUndo {
        /// Which.
        path: PathBuf,
    },
    /// The kernel refused a value.
    #[error(
        "cannot write {value} to {}: {source}; {done} of {wanted} changes were made and are kept in {}: \
         ringlog tune --undo restores them",
        path.display(), state.display()
    )]
    Interrupted {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
        /// Changes that were made.
        done: usize,
        /// Changes that were to be made.
        wanted: usize,
        /// The state file.
        state: PathBuf,
    },
}

/// What became of a change that was to be undone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// As before.
    Restored,
    /// It would be restored (nothing was to be written).
    Restorable,
    /// It already said what it said before: nothing written.
    AlreadyBefore,
    /// Somebody else has changed it: left as it is.
    ChangedMeanwhile {
        /// What it says.
        current: String,
    },
    /// The file is gone, with its device perhaps.
    Gone,
    /// It could not be written; the record is kept.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One line of an undoing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Undone {
    /// What had been changed.
    #[serde(flatten)]
    pub change: Change,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Writes a value to a file of the kernel.
pub(super) type Writer<'a> = &'a mut dyn FnMut(&Path, &str) -> io::Result<()>;

/// Makes the changes of `plan` and records each in the file `state` (made if missing, added to if not).
/// Returns them in the order in which they were made.
pub fn apply(
    plan: &Plan,
    profile: Profile,
    sources: &Sources,
    state: &Path,
) -> Result<Vec<Change>, TuneError> {
    apply_with(plan, profile, sources, state, &mut write)
}

pub(super) fn apply_with(
    plan: &Plan,
    profile: Profile,
    sources: &Sources,
    state_path: &Path,
    write: Writer,
) -> Result<Vec<Change>, TuneError> {
    check_rights(plan.steps.iter().flat_map(|step| [step.path.as_path(), &step.restore.path]))?;
    let mut state = State::load(state_path, sources)?.unwrap_or_else(State::empty);
    let mut made = Vec::new();
    for step in &plan.steps {
        let change = Change {
            path: step.path.clone(),
            old: step.old.clone(),
            new: step.new.clone(),
            restore: step.restore.clone(),
            finding: step.finding.to_owned(),
            profile,
            at_unix_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64),
        };
        state.changes.push(change.clone());
        state.save(state_path)?;
        if let Err(source) = write(&step.path, &step.new).and_then(|()| was_taken(&step.path, &step.new)) {
            // A value that was neither kept nor taken as it is must be restored all the same.
            if same(&current(&step.path).unwrap_or_default(), &step.old) {
                state.changes.pop();
                state.save(state_path)?;
            }
            return Err(TuneError::Interrupted {
                path: step.path.clone(),
                value: step.new.clone(),
                source,
                done: made.len(),
                wanted: plan.steps.len(),
                state: state_path.into(),
            });
        }
        made.push(change);
    }
    Ok(made)
}

/// Restores what the file `state` records, the latest first; with `dry_run` only says what it would do.
/// What could not be written stays recorded.
pub fn undo(sources: &Sources, state: &Path, dry_run: bool) -> Result<Vec<Undone>, TuneError> {
    undo_with(sources, state, dry_run, &mut write)
}

pub(super) fn undo_with(
    sources: &Sources,
    state_path: &Path,
    dry_run: bool,
    write: Writer,
) -> Result<Vec<Undone>, TuneError> {
    let state = State::load(state_path, sources)?;
    let mut state = state.ok_or_else(|| TuneError::NothingToUndo { path: state_path.into() })?;
    let restorable = |change: &&Change| current(&change.path).is_some_and(|now| same(&now, &change.new));
    if !dry_run {
        check_rights(state.changes.iter().filter(restorable).map(|change| change.restore.path.as_path()))?;
    }
    let mut done: Vec<Undone> = Vec::new();
    let mut kept = Vec::new();
    while let Some(change) = state.changes.pop() {
        let outcome = match judge(&change, dry_run, &done) {
            Outcome::Restorable if !dry_run => match write(&change.restore.path, &change.restore.value) {
                Ok(()) => Outcome::Restored,
                Err(error) => Outcome::Failed { reason: error.to_string() },
            },
            outcome => outcome,
        };
        if matches!(outcome, Outcome::Failed { .. }) {
            kept.insert(0, change.clone());
        }
        if !dry_run {
            // After each, so that a crash does not restore twice.
            let mut left = State::empty();
            left.changes = [state.changes.as_slice(), &kept].concat();
            left.save(state_path)?;
        }
        done.push(Undone { change, outcome });
    }
    Ok(done)
}

/// What is to become of `change`, after those that are `done` already.
fn judge(change: &Change, dry_run: bool, done: &[Undone]) -> Outcome {
    let restored =
        |undone: &&Undone| undone.outcome == Outcome::Restorable && undone.change.path == change.path;
    let pretended = done.iter().rev().find(|undone| dry_run && restored(undone));
    match pretended.map(|undone| undone.change.old.clone()).or_else(|| current(&change.path)) {
        None => Outcome::Gone,
        Some(now) if same(&now, &change.new) => Outcome::Restorable,
        Some(now) if same(&now, &change.old) => Outcome::AlreadyBefore,
        Some(current) => Outcome::ChangedMeanwhile { current },
    }
}

fn check_rights<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<(), TuneError> {
    let mut blocked = Vec::new();
    for path in paths {
        if let Err(error) = OpenOptions::new().write(true).open(path) {
            let needs = match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    "it is mounted read-only: run this on the host, not in a container"
                }
                io::ErrorKind::PermissionDenied
                    if path.components().any(|part| part.as_os_str() == "net") =>
                {
                    "run as root (CAP_NET_ADMIN and write access to that file)"
                }
                io::ErrorKind::PermissionDenied => {
                    "run as root (CAP_SYS_ADMIN and write access to that file)"
                }
                _ => "it must be writable",
            };
            let sentence = format!("cannot write {}: {error}: {needs}", path.display());
            if !blocked.contains(&sentence) {
                blocked.push(sentence);
            }
        }
    }
    if blocked.is_empty() { Ok(()) } else { Err(TuneError::NoRight { blocked }) }
}

/// What the file says now.
fn current(path: &Path) -> Option<String> {
    text(path).map(|text| chosen(&text).to_owned())
}

/// Whether the kernel says the value that was written.
fn was_taken(path: &Path, value: &str) -> io::Result<()> {
    match current(path) {
        Some(now) if same(&now, value) => Ok(()),
        now => Err(io::Error::other(format!("the kernel keeps {}", now.unwrap_or_default()))),
    }
}

/// Whether two texts are one value: blanks, and the zeros before a mask, mean nothing.
fn same(one: &str, other: &str) -> bool {
    fn plain(text: &str) -> Vec<&str> {
        let is_mask = text.chars().all(|c| c.is_ascii_hexdigit() || c == ',');
        let text = if is_mask { text.trim_start_matches(['0', ',']) } else { text };
        text.split_whitespace().collect()
    }
    plain(one) == plain(other)
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
}
