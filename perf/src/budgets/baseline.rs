//! The record of what the paths cost, and the comparison with it.
//!
//! One JSON file per build profile in `perf/budgets/`, committed: a change of a budget is seen in review. Made
//! by `--bless`, never by a check. A regression is more than [`REGRESSION_MAX`] above the record; a path
//! without a record, or a record without a path, fails too, so that the record stays whole.

use super::{Count, Shape, Toolchain};
use std::io;
use std::path::{Path, PathBuf};

/// How much more than recorded a path may cost: a share of the record.
pub const REGRESSION_MAX: f64 = 0.05;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Baseline {
    /// Where it was counted.
    pub toolchain: Toolchain,
    /// One row per path and shape.
    pub counts: Vec<Count>,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Counted elsewhere: the numbers say nothing about each other. In what it differs.
    Skipped(Vec<String>),
    /// Every path is within its budget.
    Within {
        /// Paths that cost less than recorded by more than [`REGRESSION_MAX`]: worth a new record.
        better: Vec<String>,
    },
    /// A sentence per path that is not.
    Over(Vec<String>),
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file.
    #[error("cannot {what} {}: {error}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Its text.
    #[error("{} is no record of budgets: {error}; make it anew with --bless", path.display())]
    Text {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

impl Baseline {
    /// The file for the profile that this crate is built with, in the repository that it was built from.
    pub fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(concat!("budgets/", env!("PERF_PROFILE"), ".json"))
    }

    /// Reads a record; `None` where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or is no record.
    pub fn load(path: &Path) -> Result<Option<Self>, BaselineError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| BaselineError::File { what: "read", path: path.into(), error })?,
        };
        let wrong = |error| BaselineError::Text { path: path.into(), error };
        serde_json::from_str(&text).map(Some).map_err(wrong)
    }

    /// Writes the record: a line per count, so that a change of one is a line of a diff.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn save(&self, path: &Path) -> Result<(), BaselineError> {
        let rows: Vec<String> = self.counts.iter().map(|count| format!("    {}", line(count))).collect();
        let text = format!(
            "{{\n  \"toolchain\": {},\n  \"counts\": [\n{}\n  ]\n}}\n",
            line(&self.toolchain),
            rows.join(",\n")
        );
        std::fs::write(path, text).map_err(|error| BaselineError::File {
            what: "write",
            path: path.into(),
            error,
        })
    }

    /// Compares `counts`, made on `here`, with the record.
    pub fn compare(&self, here: &Toolchain, counts: &[Count]) -> Outcome {
        let differences = self.toolchain.differences(here);
        if !differences.is_empty() {
            return Outcome::Skipped(differences);
        }
        let same = |a: &Count, path: &str, shape: Shape| a.path == path && a.shape == shape;
        let (mut over, mut better) = (Vec::new(), Vec::new());
        for Count { path, shape, instructions } in counts {
            let Some(recorded) = self.counts.iter().find(|it| same(it, path, *shape)) else {
                over.push(format!("{path}, {shape}: {instructions} instructions, and no record of it"));
                continue;
            };
            let change = *instructions as f64 / recorded.instructions as f64 - 1.0;
            let sentence = || {
                format!(
                    "{path}, {shape}: {instructions} instructions, {} recorded, {:+.1} %",
                    recorded.instructions,
                    change * 100.0
                )
            };
            if change > REGRESSION_MAX {
                over.push(sentence());
            } else if change < -REGRESSION_MAX {
                better.push(sentence());
            }
        }
        let gone =
            self.counts.iter().filter(|it| !counts.iter().any(|count| same(count, &it.path, it.shape)));
        over.extend(gone.map(|it| format!("{}, {}: recorded, and no longer counted", it.path, it.shape)));
        if over.is_empty() { Outcome::Within { better } } else { Outcome::Over(over) }
    }
}

fn line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(compiler: &str) -> Toolchain {
        Toolchain {
            compiler: compiler.into(),
            target: "t".into(),
            profile: "p".into(),
            valgrind: "v".into(),
            libc: "l".into(),
            cpu: "c".into(),
        }
    }

    fn count(path: &str, records: u32, instructions: u64) -> Count {
        Count { path: path.into(), shape: Shape { records, record_bytes: 100 }, instructions }
    }

    #[test]
    fn a_record_survives_its_file_with_a_line_per_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("debug.json");
        assert_eq!(Baseline::load(&path).unwrap(), None);
        let counts = vec![count("a", 1, 10), count("a", 100, 20), count("b", 1, 30)];
        let baseline = Baseline { toolchain: toolchain("x"), counts };
        baseline.save(&path).unwrap();
        assert_eq!(Baseline::load(&path).unwrap(), Some(baseline));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 8);
        std::fs::write(&path, "{}").unwrap();
        assert!(Baseline::load(&path).unwrap_err().to_string().contains("--bless"));
    }

    #[test]
    fn comparisons() {
        let baseline =
            Baseline { toolchain: toolchain("x"), counts: vec![count("a", 1, 1000), count("b", 1, 2000)] };
        // Compiler, counts, and the outcome in letters: S skipped, W within, O over; and words of it.
        let rows: [(&str, Vec<Count>, char, &[&str]); 8] = [
            ("x", vec![count("a", 1, 1000), count("b", 1, 2000)], 'W', &[]),
            ("x", vec![count("a", 1, 1049), count("b", 1, 2099)], 'W', &[]),
            ("x", vec![count("a", 1, 1051), count("b", 1, 2000)], 'O', &["a, 1 x 100 B: 1051", "+5.1 %"]),
            ("x", vec![count("a", 1, 949), count("b", 1, 1900)], 'W', &["a, 1 x 100 B: 949"]),
            ("x", vec![count("a", 1, 1000)], 'O', &["b, 1 x 100 B: recorded, and no longer"]),
            (
                "x",
                vec![count("a", 1, 10), count("b", 1, 1), count("b", 2, 1)],
                'O',
                &["b, 2 x 100 B", "no record"],
            ),
            ("y", vec![count("a", 1, 9000), count("b", 1, 9000)], 'S', &["y instead of x"]),
            ("y", vec![], 'S', &["y instead of x"]),
        ];
        for (compiler, counts, letter, words) in rows {
            let outcome = baseline.compare(&toolchain(compiler), &counts);
            let (found, sentences) = match &outcome {
                Outcome::Skipped(sentences) => ('S', sentences),
                Outcome::Within { better } => ('W', better),
                Outcome::Over(sentences) => ('O', sentences),
            };
            assert_eq!(found, letter, "{outcome:?}");
            assert_eq!(sentences.is_empty(), words.is_empty(), "{outcome:?}");
            let all = sentences.join("\n");
            assert!(words.iter().all(|word| all.contains(word)), "{words:?} in {all}");
        }
    }
}
