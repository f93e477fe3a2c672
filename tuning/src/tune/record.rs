//! The state file: what was changed, from what to what, and when, so that it can be restored.
//!
//! Owner: one run of `tune`. Format: JSON, one object with a version. Invariants: replaced as a whole and
//! synced, so that a crash leaves the old or the new one; never names a file outside the sources.

use super::apply::TuneError;
use super::plan::Profile;
use crate::sources::Sources;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

const VERSION: u32 = 1;

/// A file and what it is to say.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setting {
    /// The file.
    pub path: PathBuf,
    /// What is written to it.
    pub value: String,
}

/// One value that was changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// What it said before.
    pub old: String,
    /// What was written.
    pub new: String,
    /// What brings the old state back: usually the old value to the same file.
    pub restore: Setting,
    /// The finding that it mends.
    pub finding: String,
    /// On behalf of which profile.
    pub profile: Profile,
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// Everything that was changed and not restored, the oldest first.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct State {
    version: u32,
    pub(super) changes: Vec<Change>,
}

impl State {
    /// `None` where there is none.
    pub(super) fn load(path: &Path, sources: &Sources) -> Result<Option<Self>, TuneError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TuneError::State { path: path.into(), source }),
        };
        let damaged = |reason: String| TuneError::Damaged { path: path.into(), reason };
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!("it has version {}, this program knows {VERSION}", state.version)));
        }
        let named = state.changes.iter().flat_map(|change| [&change.path, &change.restore.path]);
        if let Some(foreign) = named.into_iter().find(|path| !belongs(path, sources)) {
            return Err(damaged(format!("it names {}, which tune never changes", foreign.display())));
        }
        Ok(Some(state))
    }

    pub(super) fn empty() -> Self {
        Self { version: VERSION, changes: Vec::new() }
    }

    /// Replaces the file; without changes there is none.
    pub(super) fn save(&self, path: &Path) -> Result<(), TuneError> {
        let failed = |source| TuneError::State { path: path.into(), source };
        if self.changes.is_empty() {
            return match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        self.replace(path).map_err(failed)
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

/// Whether `path` is below one of the roots, without a way out.
fn belongs(path: &Path, sources: &Sources) -> bool {
    let below = [&sources.sys, &sources.proc].into_iter().any(|root| path.starts_with(root));
    below && path.components().all(|part| part != Component::ParentDir)
}
