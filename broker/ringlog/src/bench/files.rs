//! `--json FILE` and `--html FILE`: reports kept, besides what is printed.
//!
//! Owner: one benchmark. Invariant: that a file cannot be written is known before the run, not after it.

use crate::failure::Failure;
use ::bench::report::Report;
use std::path::{Path, PathBuf};

/// Where reports are written to.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ReportFiles {
    /// Also write the report there, as JSON: every setting, every second
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the report there, as one page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl ReportFiles {
    /// Whether the files can be written; makes those that are not there.
    pub fn check(&self) -> Result<(), Failure> {
        for path in [&self.json, &self.html].into_iter().flatten() {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            opened.map_err(|error| cannot(path, &error))?;
        }
        Ok(())
    }

    /// Writes `json` (one line) and the page about `reports`; gives the files that are written.
    pub fn write(
        &self,
        title: &str,
        json: &impl serde::Serialize,
        reports: &[Report],
    ) -> Result<Vec<&Path>, Failure> {
        let mut written = Vec::new();
        if let Some(path) = &self.json {
            let mut text =
                serde_json::to_string(json).map_err(|error| Failure::operation(error.to_string()))?;
            text.push('\n');
            std::fs::write(path, text).map_err(|error| cannot(path, &error))?;
            written.push(path.as_path());
        }
        if let Some(path) = &self.html {
            let page = ::bench::html::page(title, reports);
            std::fs::write(path, page).map_err(|error| cannot(path, &error))?;
            written.push(path.as_path());
        }
        Ok(written)
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot write the report to {}: {error}", path.display()))
}
