//! A host's ceilings in a file, to hold later results against: what was measured, where, when.
//!
//! Made by `ringlog perf ceilings --save`, read by whoever states a result as a share. JSON; rows are found by
//! name. Invariant: a profile names the kernel, the processor and the directory that it was measured on, and
//! [`HostProfile::differences`] says when a result is from elsewhere. Absent on purpose: an age at which
//! a profile is no longer true; only measuring again tells.

use crate::ceilings::Ceiling;
use std::io;
use std::path::{Path, PathBuf};

/// The version of the file that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// What the figures were measured on.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Cores that the measuring process could use.
    pub cores: usize,
}

impl Host {
    /// This one, as `/proc` tells; what it does not tell is empty.
    pub fn this() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            cpu: cpu.map_or(String::new(), |(_, name)| name.trim().to_owned()),
            cores: crate::ceilings::core_count(),
        }
    }
}

/// The ceilings of one host and one device.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HostProfile {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// When it was measured, seconds since 1970.
    pub measured_unix_s: u64,
    /// On what.
    pub host: Host,
    /// On whose device the storage rows were measured.
    pub directory: PathBuf,
    /// The length of each case, seconds.
    pub seconds: f64,
    /// The rows.
    pub ceilings: Vec<Ceiling>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file.
    #[error("cannot {what} the host's profile {}: {error}; make one with: ringlog perf ceilings DIR --save", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Its text.
    #[error("{} is no host profile: {error}; make one with: ringlog perf ceilings DIR --save", path.display())]
    Text {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// Of another build.
    #[error("{} has format {found}, this build reads {FORMAT_VERSION}; measure again: ringlog perf ceilings DIR --save", path.display())]
    Version {
        /// Which one.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

impl HostProfile {
    /// The file for this user: `$XDG_CONFIG_HOME/ringlog/host-profile.json`, or below `~/.config`. `None`
    /// without a home.
    pub fn default_path() -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
        Some(config.join("ringlog/host-profile.json"))
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// No such file, no profile, or one of another format.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path).map_err(|error| ProfileError::File {
            what: "read",
            path: path.to_owned(),
            error,
        })?;
        let wrong = |error| ProfileError::Text { path: path.to_owned(), error };
        // The version first: the rest may look different in another one.
        #[derive(serde::Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version: found } = serde_json::from_str(&text).map_err(wrong)?;
        if found != FORMAT_VERSION {
            return Err(ProfileError::Version { path: path.to_owned(), found });
        }
        serde_json::from_str(&text).map_err(wrong)
    }

    /// Reads this user's profile; `None` where there is none.
    ///
    /// # Errors
    /// As [`HostProfile::load`], but for a file that is not there.
    pub fn load_default() -> Result<Option<Self>, ProfileError> {
        let Some(path) = Self::default_path() else { return Ok(None) };
        match Self::load(&path) {
            Err(ProfileError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Writes the profile, with the folders above it; a reader sees the old one or the new one.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        let write = || -> io::Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            io::Write::write_all(&mut file, b"\n")?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|error| ProfileError::File { what: "write", path: path.to_owned(), error })
    }

    /// The row of this name.
    pub fn ceiling(&self, name: &str) -> Option<&Ceiling> {
        self.ceilings.iter().find(|ceiling| ceiling.name == name)
    }

    /// In what `host` is not the one that was measured, in words; empty if nothing is known to differ.
    pub fn differences(&self, host: &Host) -> Vec<String> {
        let mut out = Vec::new();
        let mut compare = |what: &str, measured: &str, now: &str| {
            if !measured.is_empty() && !now.is_empty() && measured != now {
                out.push(format!("{what} {measured} when the ceilings were measured, {now} now"));
            }
        };
        compare("kernel", &self.host.kernel, &host.kernel);
        compare("processor", &self.host.cpu, &host.cpu);
        compare("cores", &self.host.cores.to_string(), &host.cores.to_string());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceilings::Unit;

    fn profile() -> HostProfile {
        let ceiling =
            |name: &str, unit| Ceiling { name: name.into(), value: 12.5, unit, p50_us: 1.0, p99_us: 2.0 };
        HostProfile {
            format_version: FORMAT_VERSION,
            measured_unix_s: 1_700_000_000,
            host: Host { kernel: "6.1".into(), cpu: "X".into(), cores: 2 },
            directory: "/data".into(),
            seconds: 1.0,
            ceilings: vec![ceiling("a", Unit::MbPerSecond), ceiling("b", Unit::PerSecond)],
        }
    }

    #[test]
    fn a_profile_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/folder/profile.json");
        profile().save(&path).unwrap();
        let mut second = profile();
        second.seconds = 2.0;
        second.save(&path).unwrap();
        let read = HostProfile::load(&path).unwrap();
        assert_eq!(read, second);
        assert_eq!(read.ceiling("b").map(|row| row.unit), Some(Unit::PerSecond));
        assert_eq!(read.ceiling("c"), None);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left there"
        );
    }

    #[test]
    fn what_is_no_profile_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        let rows = [
            (None, "cannot read"),
            (Some("nonsense"), "is no host profile"),
            (Some("{\"format_version\": 7}"), "has format 7"),
            (Some("{\"format_version\": 1}"), "is no host profile"),
        ];
        for (text, expect) in rows {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let message = HostProfile::load(&path).unwrap_err().to_string();
            assert!(message.contains(expect) && message.contains("perf ceilings"), "{text:?}: {message}");
        }
    }

    #[test]
    fn another_host_is_noticed() {
        let host = |kernel: &str, cpu: &str, cores| Host { kernel: kernel.into(), cpu: cpu.into(), cores };
        let rows = [
            (host("6.1", "X", 2), 0),
            (host("", "X", 2), 0),
            (host("6.2", "X", 2), 1),
            (host("6.2", "Y", 4), 3),
        ];
        for (host, expect) in rows {
            assert_eq!(profile().differences(&host).len(), expect, "{host:?}");
        }
    }
}
