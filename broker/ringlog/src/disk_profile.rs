//! The disk's profile as `serve` and `doctor` come by it: read, measured, saved, and told.
//!
//! Format and rules are the `perf` crate's, facts the `tuning` crate's; here they meet. Stateless.
//! Invariants: nothing about a profile in the data directory ends a start, only a file that the user named and
//! that is none does; a directory that is not ours, or that a running broker has, is not written to.

use crate::failure::Failure;
use perf::ceilings::disk::{self, Thoroughness};
use perf::disk_profile::{
    DiskChoice, DiskFigure, DiskIdentity, DiskProfile, FILE_NAME, FORMAT_VERSION, MeasuredBy, choose,
};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tuning::HostFacts;

/// Below so much free space nothing is measured, bytes.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// `--disk-profile`
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "String")]
pub enum ProfileSource {
    /// The data directory's, made if missing.
    #[default]
    Auto,
    /// None: the safe defaults.
    Nothing,
    /// This file.
    File(PathBuf),
}

impl From<String> for ProfileSource {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "none" => Self::Nothing,
            _ => Self::File(text.into()),
        }
    }
}

impl std::str::FromStr for ProfileSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

/// How the disk is to be used.
pub struct Settled {
    /// The choice.
    pub choice: DiskChoice,
    /// What was said on the way, for `Status`.
    pub lines: Vec<String>,
}

/// Finds, or makes, the profile of the disk that `data` (which exists) is on, and chooses by it. Says what it
/// does with `say`, a line at a time.
///
/// # Errors
/// The user named a file that is no profile.
pub fn settle(
    source: &ProfileSource,
    data: &Path,
    facts: &HostFacts,
    say: &mut dyn FnMut(&str),
) -> Result<Settled, Failure> {
    let mut lines = Vec::new();
    let mut tell = |line: String| {
        say(&line);
        lines.push(line);
    };
    let here = DiskIdentity::of(data, &facts.device, &facts.filesystem);
    let profile = match source {
        ProfileSource::Nothing => None,
        ProfileSource::File(path) => {
            let profile = DiskProfile::load(path).map_err(|error| {
                let advice = "make one with: ringlog doctor --disk DIR, or start with --disk-profile auto";
                Failure::usage(format!("the disk profile: {error}; {advice}"))
            })?;
            usable(profile, path, &here, "the safe defaults are used", &mut tell)
        }
        ProfileSource::Auto => {
            let path = data.join(FILE_NAME);
            let found = match DiskProfile::load(&path) {
                Ok(profile) => usable(profile, &path, &here, "it is measured anew", &mut tell),
                Err(error) if error.is_missing() => None,
                Err(error) => {
                    tell(format!("disk profile ignored: {error}"));
                    None
                }
            };
            found.or_else(|| measure_once(data, facts, here, &mut tell))
        }
    };
    let choice = match &profile {
        None => DiskChoice::default(),
        Some(profile) => {
            tell(format!("disk profile of {}", origin(profile)));
            choose(&profile.figures, facts.one_flush_covers_all_files)
        }
    };
    Ok(Settled { choice, lines })
}

/// The profile, unless it is another disk's.
fn usable(
    profile: DiskProfile,
    path: &Path,
    here: &DiskIdentity,
    instead: &str,
    tell: &mut dyn FnMut(String),
) -> Option<DiskProfile> {
    let differences = profile.disk.differences(here);
    if differences.is_empty() {
        return Some(profile);
    }
    tell(format!(
        "disk profile ignored: {} is of another disk ({}): {instead}",
        path.display(),
        differences.join(", ")
    ));
    None
}

/// The short measurement of a first start; `None` where there is nothing to measure or it fails.
fn measure_once(
    data: &Path,
    facts: &HostFacts,
    here: DiskIdentity,
    tell: &mut dyn FnMut(String),
) -> Option<DiskProfile> {
    if let Some(why) = not_ours(data).or_else(|| not_measurable(facts)) {
        tell(format!("disk not measured: {why}: the safe defaults are used"));
        return None;
    }
    let measured = measure(data, here, facts, MeasuredBy::Serve, &mut |_, _| {});
    match measured {
        Err(failure) => {
            let why = failure.message().unwrap_or("unknown").to_owned();
            tell(format!("disk not measured: {why}: the safe defaults are used"));
            None
        }
        Ok(profile) => {
            if let Err(error) = profile.save(data) {
                tell(format!("the disk's profile is not kept, the next start measures again: {error}"));
            }
            Some(profile)
        }
    }
}

/// Why a directory must not be written to, if so.
pub fn not_ours(directory: &Path) -> Option<String> {
    let in_use = std::fs::File::open(directory.join("lock"))
        .is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    if in_use {
        return Some("a running broker has the directory".to_owned());
    }
    if directory.join("storage.uuid").exists() {
        return None;
    }
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = |name: &str| name == "lost+found" || name == "lock" || name.starts_with("disk-profile.");
    names.find(|name| !ours(name)).map(|name| format!("it has {name:?} in it and is no data directory"))
}

/// Why a disk cannot be measured, if so.
pub fn not_measurable(facts: &HostFacts) -> Option<String> {
    if facts.volatile {
        Some(format!("{} is in memory, nothing is durable there", facts.filesystem))
    } else if !facts.o_direct {
        Some("files there cannot be written with O_DIRECT".to_owned())
    } else if facts.free_bytes < FREE_BYTES_MIN {
        Some(format!("there is less than {} MiB of free space", FREE_BYTES_MIN >> 20))
    } else {
        None
    }
}

/// Measures the disk of `directory`, which is `here`.
pub fn measure(
    directory: &Path,
    here: DiskIdentity,
    facts: &HostFacts,
    measured_by: MeasuredBy,
    report: &mut (dyn FnMut(&DiskFigure, f64) + Send),
) -> Result<DiskProfile, Failure> {
    let thoroughness = match measured_by {
        MeasuredBy::Doctor => Thoroughness::Full,
        MeasuredBy::Serve => Thoroughness::Short,
    };
    let mut figures = Vec::new();
    disk::measure(directory, thoroughness, &mut |figure, share| {
        report(figure, share);
        figures.push(figure.clone());
    })
    .map_err(|error| Failure::operation(error.to_string()))?;
    Ok(DiskProfile {
        format_version: FORMAT_VERSION,
        measured_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        measured_by,
        kernel: facts.kernel.clone(),
        disk: here,
        figures,
    })
}

/// When, by whom and of what, for people.
fn origin(profile: &DiskProfile) -> String {
    let second = i64::try_from(profile.measured_unix_s).unwrap_or(i64::MAX);
    let day = jiff::Timestamp::from_second(second).map(|at| at.strftime("%Y-%m-%d").to_string());
    let by = match profile.measured_by {
        MeasuredBy::Doctor => "in full",
        MeasuredBy::Serve => "in short; ringlog doctor --disk DIR does it in full",
    };
    let DiskIdentity { device, file_system, .. } = &profile.disk;
    format!("{device}, {file_system}, measured {} ({by})", day.unwrap_or_else(|_| "some day".to_owned()))
}

/// A choice for people.
pub fn in_words(choice: &DiskChoice, one_flush_covers_all_files: bool) -> String {
    let durable = match (one_flush_covers_all_files, choice.dsync_writes_max) {
        (false, _) => "every write durable by itself (DSYNC)".to_owned(),
        (true, 0) => "one flush per round (fdatasync)".to_owned(),
        (true, 1) => "a single write durable by itself (DSYNC), more by one flush (fdatasync)".to_owned(),
        (true, most) => {
            format!("up to {most} writes durable by themselves (DSYNC), more by one flush (fdatasync)")
        }
    };
    let rounds = crate::output::counted(choice.rounds_in_flight as u64, "round");
    let (round, write) = (choice.round_bytes_max >> 20, choice.write_bytes_max >> 10);
    format!("{durable}; {rounds} in flight of up to {round} MiB in writes of up to {write} KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let rows = [
            ("auto", ProfileSource::Auto),
            ("none", ProfileSource::Nothing),
            ("/a/b.json", ProfileSource::File("/a/b.json".into())),
        ];
        for (text, expect) in rows {
            assert_eq!(text.parse::<ProfileSource>(), Ok(expect));
        }
    }

    #[test]
    fn only_new_and_own_directories_are_written_to() {
        let rows: &[(&[&str], bool)] = &[
            (&[], true),
            (&["lost+found", "lock", "disk-profile.json"], true),
            (&["photos"], false),
            (&["photos", "storage.uuid"], true),
        ];
        for (names, ours) in rows {
            let directory = tempfile::tempdir().unwrap();
            names.iter().for_each(|name| std::fs::write(directory.path().join(name), "").unwrap());
            assert_eq!(not_ours(directory.path()).is_none(), *ours, "{names:?}");
            let lock = std::fs::File::create(directory.path().join("lock")).unwrap();
            lock.lock().unwrap();
            assert!(not_ours(directory.path()).unwrap().contains("running broker"), "{names:?}");
        }
    }

    #[test]
    fn choices_in_words() {
        let choice = |dsync_writes_max, rounds_in_flight| DiskChoice {
            dsync_writes_max,
            rounds_in_flight,
            ..DiskChoice::default()
        };
        let rows = [
            (
                choice(2, 2),
                false,
                "every write durable by itself (DSYNC); 2 rounds in flight of up to 16 MiB",
            ),
            (choice(0, 1), true, "one flush per round (fdatasync); 1 round in flight of up to"),
            (choice(1, 2), true, "a single write durable"),
            (
                choice(4, 4),
                true,
                "up to 4 writes durable by themselves (DSYNC), more by one flush (fdatasync); 4",
            ),
        ];
        for (choice, one_flush, expect) in rows {
            let text = in_words(&choice, one_flush);
            assert!(text.starts_with(expect) && text.ends_with("in writes of up to 1024 KiB"), "{text}");
        }
    }
}
