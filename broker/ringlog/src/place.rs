//! Where an embedded broker keeps its data, and on which cores it runs.
//!
//! Owner: one demo or one benchmark; dropping a [`Place`] removes the directory. A file system in memory would make every
//! figure of durability a lie, so it is the last choice, and it is named.

use crate::failure::Failure;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tuning::HostFacts;

/// A temporary directory and what is known of its file system.
pub struct Place {
    /// Removed on drop.
    pub directory: TempDir,
    /// Asked of the host.
    pub facts: HostFacts,
}

impl Place {
    /// In `wanted`, or else in the first of `./target`, here and the system's temporary directory that is on
    /// a disk and can be written to; or else, without a disk, in the last of these.
    pub fn choose(wanted: Option<&Path>) -> Result<Self, Failure> {
        if let Some(wanted) = wanted {
            let cannot = |error| Failure::usage(format!("cannot use {}: {error}", wanted.display()));
            return Self::make(wanted).map_err(cannot);
        }
        let last = std::env::temp_dir();
        for candidate in [PathBuf::from("target"), PathBuf::from("."), last.clone()] {
            if let Ok(place) = Self::make(&candidate)
                && !place.facts.volatile
            {
                return Ok(place);
            }
        }
        let cannot = |error| {
            Failure::usage(format!(
                "no directory to work in ({}: {error}); name one with --data",
                last.display()
            ))
        };
        Self::make(&last).map_err(cannot)
    }

    fn make(parent: &Path) -> std::io::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("ringlog-embedded-").tempdir_in(parent.canonicalize()?)?;
        let facts = tuning::host_facts(directory.path())?;
        Ok(Self { directory, facts })
    }

    /// For people: where, what it is, and what that means.
    pub fn describe(&self) -> String {
        let path = self.directory.path().display();
        let file_system = &self.facts.filesystem;
        match (self.facts.volatile, self.facts.o_direct) {
            (true, _) => format!("{path} ({file_system}: in memory, nothing is durable there)"),
            (false, true) => format!("{path} ({file_system}, direct)"),
            (false, false) => format!("{path} ({file_system}, buffered)"),
        }
    }
}

/// Cores that this process may use.
pub fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// Half of the cores: the others make and check records.
pub fn default_shards() -> usize {
    (usable_cores().len() / 2).max(1)
}

/// The first `shards` cores, if others are left for the load itself.
pub fn cores(shards: usize) -> Option<Vec<usize>> {
    let usable = usable_cores();
    (shards < usable.len()).then(|| usable[..shards].to_vec())
}

/// The cores of a broker that is started here: the wanted ones, or as many as leave half to the load.
pub fn broker_cores(wanted: &[usize]) -> Vec<usize> {
    match wanted {
        [] => cores(default_shards()).unwrap_or_default(),
        wanted => wanted.to_vec(),
    }
}

/// The cores of the load: the wanted ones, or those that the broker does not have.
pub fn client_cores(wanted: &[usize], broker: &[usize]) -> Vec<usize> {
    match wanted {
        [] => usable_cores().into_iter().filter(|core| !broker.contains(core)).collect(),
        wanted => wanted.to_vec(),
    }
}

/// Says so where broker and load are on the same cores.
pub fn warn_of_shared_cores(broker: &[usize], client: &[usize]) {
    let shared: Vec<String> =
        client.iter().filter(|core| broker.contains(core)).map(usize::to_string).collect();
    if !shared.is_empty() {
        eprintln!("warning: broker and load share core {}: they slow each other down", shared.join(", "));
    }
}
