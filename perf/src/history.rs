//! Key figures by commit: one small JSON file for each, in `perf/history/`, and a plot of them all.
//!
//! A file is named `DATE-COMMIT.json`; recording the same workload again replaces its figures in it. Files are
//! committed, so that a change of speed is found by looking, not by measuring old commits again. Invariant: an
//! entry names the host; figures of different hosts are never joined by a line ([`plot`]). Absent on
//! purpose: whole reports (they stay with whoever made them), and a verdict on a difference.

pub mod plot;

use crate::report::{Host, RunReport};
use crate::share::Share;
use std::io;
use std::path::{Path, PathBuf};

/// The version of the files.
pub const FORMAT_VERSION: u32 = 1;

/// One commit on one day.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Of the first run, `YYYY-MM-DD` in UTC.
    pub date: String,
    /// What was measured; `+` = with changes that are not in it.
    pub commit: String,
    /// Where.
    pub host: Host,
    /// One for each workload with its settings, driver and durability, sorted by them.
    pub runs: Vec<Run>,
}

/// The key figures of a run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Run {
    /// The workload's name.
    pub workload: String,
    /// Its size, partitions and rate.
    pub settings: String,
    /// Against what.
    pub driver: String,
    /// What an acknowledgement meant.
    pub durability: String,
    /// When it ended, seconds since 1970.
    pub ended_unix_s: u64,
    /// Records acknowledged per second.
    pub produced_records_s: f64,
    /// 10^6 bytes acknowledged per second.
    pub produced_mb_s: f64,
    /// 10^6 bytes received per second.
    pub consumed_mb_s: f64,
    /// Median latency of acknowledgements, microseconds.
    pub acknowledge_p50_us: f64,
    /// One in a hundred took longer.
    pub acknowledge_p99_us: f64,
    /// One in a thousand took longer.
    pub acknowledge_p999_us: f64,
    /// Median time to the consumer, microseconds.
    pub end_to_end_p50_us: f64,
    /// One in a hundred took longer.
    pub end_to_end_p99_us: f64,
    /// Records that were not acknowledged.
    pub failed: u64,
    /// The ceiling that bound it, if the host's profile is known.
    pub share: Option<Share>,
}

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file or the folder.
    #[error("{}: {error}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file that is none of the history's.
    #[error("{} is no entry of the history: {error}; remove it, or record it anew", path.display())]
    Text {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// Of another build.
    #[error("{} has format {found}, this build reads {FORMAT_VERSION}", path.display())]
    Version {
        /// Which one.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// The file of this commit and day is of another host.
    #[error("{} was recorded on another host; name another folder", path.display())]
    OtherHost {
        /// Which one.
        path: PathBuf,
    },
    /// Nobody knows what was measured.
    #[error("the report does not say which commit it is of; name it with --commit")]
    NoCommit,
}

impl Run {
    /// Of a report.
    pub fn of(report: &RunReport, share: Option<Share>) -> Self {
        Self {
            workload: report.workload.name.clone(),
            settings: report.settings(),
            driver: report.driver.clone(),
            durability: report.durability.clone(),
            ended_unix_s: report.ended_unix_s,
            produced_records_s: report.produced.records_s,
            produced_mb_s: report.produced.mb_s,
            consumed_mb_s: report.consumed.mb_s,
            acknowledge_p50_us: report.acknowledge.p50_us,
            acknowledge_p99_us: report.acknowledge.p99_us,
            acknowledge_p999_us: report.acknowledge.p999_us,
            end_to_end_p50_us: report.end_to_end.p50_us,
            end_to_end_p99_us: report.end_to_end.p99_us,
            failed: report.failed,
            share,
        }
    }

    fn key(&self) -> [&str; 4] {
        [&self.workload, &self.settings, &self.driver, &self.durability]
    }
}

/// Adds a run to the entry of its commit and day in `folder` (made if it is not there); the file. `commit`
/// replaces what the report says.
///
/// # Errors
/// No commit is known, the file is of another host, or the file system refuses.
pub fn record(
    folder: &Path,
    report: &RunReport,
    share: Option<Share>,
    commit: Option<&str>,
) -> Result<PathBuf, HistoryError> {
    let known = |commit: &&str| !commit.is_empty() && *commit != "unknown";
    let commit = commit.or(Some(report.host.commit.as_str())).filter(known).ok_or(HistoryError::NoCommit)?;
    let date = date(report.ended_unix_s);
    let path = folder.join(format!("{date}-{}.json", file_part(commit)));
    let host = Host { commit: commit.to_owned(), ..report.host.clone() };
    let mut entry = match load(&path) {
        Ok(entry) if entry.host != host => return Err(HistoryError::OtherHost { path }),
        Ok(entry) => entry,
        Err(HistoryError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Entry { format_version: FORMAT_VERSION, date, commit: commit.to_owned(), host, runs: Vec::new() }
        }
        Err(error) => return Err(error),
    };
    let run = Run::of(report, share);
    entry.runs.retain(|other| other.key() != run.key());
    entry.runs.push(run);
    entry.runs.sort_by(|a, b| a.key().cmp(&b.key()));
    save(&path, &entry)?;
    Ok(path)
}

/// All entries of `folder`, oldest first; other files are left alone.
///
/// # Errors
/// The folder or a file of it cannot be read.
pub fn load_all(folder: &Path) -> Result<Vec<Entry>, HistoryError> {
    let fail = |error| HistoryError::File { path: folder.to_owned(), error };
    let mut paths = Vec::new();
    for item in std::fs::read_dir(folder).map_err(fail)? {
        let path = item.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut entries = paths.iter().map(|path| load(path)).collect::<Result<Vec<_>, _>>()?;
    // Of one day's commits, names say nothing about their order.
    entries.sort_by_key(|entry| entry.runs.iter().map(|run| run.ended_unix_s).min().unwrap_or(0));
    Ok(entries)
}

fn load(path: &Path) -> Result<Entry, HistoryError> {
    let fail = |error| HistoryError::File { path: path.to_owned(), error };
    let text = std::fs::read_to_string(path).map_err(fail)?;
    let wrong = |error| HistoryError::Text { path: path.to_owned(), error };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(FORMAT_VERSION) => {
            Err(HistoryError::Version { path: path.to_owned(), found: found as u32 })
        }
        _ => serde_json::from_value(value).map_err(wrong),
    }
}

fn save(path: &Path, entry: &Entry) -> Result<(), HistoryError> {
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut text = serde_json::to_string_pretty(entry)?;
        text.push('\n');
        std::fs::write(path, text)
    };
    write().map_err(|error| HistoryError::File { path: path.to_owned(), error })
}

fn date(unix_s: u64) -> String {
    let moment = jiff::Timestamp::from_second(unix_s as i64).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    moment.strftime("%Y-%m-%d").to_string()
}

/// A commit as a part of a file's name: whatever a user gives stays in the folder.
fn file_part(commit: &str) -> String {
    let plain = commit.strip_suffix('+').map_or(commit.to_owned(), |clean| format!("{clean}-changed"));
    plain.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;
    use serde_json::json;

    fn parsed(workload: &str, commit: &str, day: u64, mb_s: f64) -> RunReport {
        let mut value = report(workload, mb_s, 100.0);
        value["host"]["commit"] = json!(commit);
        value["ended_unix_s"] = json!(1_700_000_000 + day * 86_400);
        RunReport::parse(&value.to_string()).unwrap()
    }

    #[test]
    fn runs_gather_by_commit_and_day_and_replace_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("history");
        let put = |workload: &str, commit: &str, day, mb_s| {
            let path = record(&folder, &parsed(workload, commit, day, mb_s), None, None).unwrap();
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(put("b", "abc", 0, 1.0), "2023-11-14-abc.json");
        assert_eq!(put("a", "abc", 0, 2.0), "2023-11-14-abc.json");
        assert_eq!(put("b", "abc", 0, 3.0), "2023-11-14-abc.json");
        assert_eq!(put("b", "abc+", 0, 4.0), "2023-11-14-abc-changed.json");
        assert_eq!(put("b", "../x", 1, 5.0), "2023-11-15-.._x.json");
        std::fs::write(folder.join("README.md"), "not an entry").unwrap();
        let entries = load_all(&folder).unwrap();
        let got: Vec<(&str, Vec<(&str, f64)>)> = entries
            .iter()
            .map(|it| {
                (
                    it.commit.as_str(),
                    it.runs.iter().map(|run| (run.workload.as_str(), run.produced_mb_s)).collect(),
                )
            })
            .collect();
        let mut expect =
            [("abc", vec![("a", 2.0), ("b", 3.0)]), ("abc+", vec![("b", 4.0)]), ("../x", vec![("b", 5.0)])];
        if got[0].0 == "abc+" {
            expect.swap(0, 1);
        }
        assert_eq!(got, expect);
    }

    #[test]
    fn what_cannot_be_recorded_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path();
        let good = parsed("a", "abc", 0, 1.0);
        for commit in ["", "unknown"] {
            let error = record(folder, &parsed("a", commit, 0, 1.0), None, None).unwrap_err();
            assert!(error.to_string().contains("--commit"), "{error}");
        }
        let path = record(folder, &parsed("a", "", 0, 1.0), None, Some("abc")).unwrap();
        assert_eq!(path, record(folder, &good, None, None).unwrap());
        let mut other = good.clone();
        other.host.machine.cpu = "Y".into();
        let error = record(folder, &other, None, None).unwrap_err();
        assert!(error.to_string().contains("another host"), "{error}");
        for (text, expect) in [("{}", "no entry of the history"), ("{\"format_version\": 9}", "has format 9")]
        {
            std::fs::write(&path, text).unwrap();
            let error = load_all(folder).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
