//! The data directory: its identity, its lock, and the files that no shard owns.
//!
//! Opened once, before any shard, and held until the process ends. A directory that is not ours is
//! refused, with the name of what is in the way: nothing in it is touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Names that may be there before the identity is: left by a start that was cut off.
const OURS: [&str; 6] = ["lock", "flush", "storage.uuid.new", "topics", "metadata", "lost+found"];

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// It cannot be made, read or written.
    #[error(
        "the data directory {path} cannot be used: {error}; make it writable for this user, or choose another with --data"
    )]
    Unusable {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It has other things in it.
    #[error(
        "{path} is not a Ringlog data directory: it has {found:?} in it and no storage.uuid; choose an empty or \
         a new directory with --data"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// The identity cannot be read.
    #[error(
        "{path} is damaged: it should hold 32 hexadecimal digits; restore it, or start with an empty directory"
    )]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// Another broker has it.
    #[error(
        "the data directory {path} is in use by another broker; stop that one, or choose another directory with --data"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// An open data directory; the lock lasts as long as this.
#[derive(Debug)]
pub struct DataDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Which disk it is: drawn when the directory was first used.
    pub uuid: u128,
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory, making it if it is new.
    pub fn open(path: &Path) -> Result<Self, DataDirectoryError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |error| DataDirectoryError::Unusable { path, error }
        };
        fs::create_dir_all(path).map_err(unusable(path))?;
        let path = path.canonicalize().map_err(unusable(path))?;
        let identity = path.join("storage.uuid");
        let known = fs::exists(&identity).map_err(unusable(&identity))?;
        if !known {
            for entry in fs::read_dir(&path).map_err(unusable(&path))? {
                let name = entry.map_err(unusable(&path))?.file_name().to_string_lossy().into_owned();
                if !OURS.contains(&name.as_str()) && !name.starts_with("shard-") {
                    return Err(DataDirectoryError::Foreign { path, found: name });
                }
            }
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(unusable(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(DataDirectoryError::InUse { path }),
            Err(fs::TryLockError::Error(error)) => return Err(unusable(&lock_path)(error)),
        }
        let uuid = match known {
            true => read_identity(&identity)?,
            false => make_identity(&path, &identity).map_err(unusable(&identity))?,
        };
        prepare(&path).map_err(unusable(&path))?;
        Ok(Self { path, uuid, _lock: lock })
    }
}

impl DataDirectory {
    /// Says how many shards will run. With another number than before, partitions change their shards, and
    /// what a shard's checkpoint said of them may be long out of date: all checkpoints go, durably, and this
    /// one start reads everything.
    pub fn set_shards(&self, shards: usize) -> Result<(), DataDirectoryError> {
        let path = self.path.join("shards");
        let unusable = |error| DataDirectoryError::Unusable { path: path.clone(), error };
        let text = format!("{shards}\n");
        match fs::read_to_string(&path) {
            Ok(before) if before == text => return Ok(()),
            Ok(_) => forget_checkpoints(&self.path).map_err(unusable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                forget_checkpoints(&self.path).map_err(unusable)?;
            }
            Err(error) => return Err(unusable(error)),
        }
        let temporary = self.path.join("shards.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(unusable)
    }
}

fn forget_checkpoints(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let shard = entry?;
        if !shard.file_name().to_string_lossy().starts_with("shard-") {
            continue;
        }
        for name in ["checkpoint.a", "checkpoint.b"] {
            match fs::remove_file(shard.path().join(name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        File::open(shard.path())?.sync_all()?;
    }
    Ok(())
}

fn read_identity(identity: &Path) -> Result<u128, DataDirectoryError> {
    let damaged = || DataDirectoryError::Identity { path: identity.to_owned() };
    let text = fs::read_to_string(identity)
        .map_err(|error| DataDirectoryError::Unusable { path: identity.to_owned(), error })?;
    let digits = text.trim();
    if digits.len() != 32 {
        return Err(damaged());
    }
    u128::from_str_radix(digits, 16).map_err(|_| damaged())
}

fn make_identity(path: &Path, identity: &Path) -> io::Result<u128> {
    let uuid: u128 = rand::random();
    let temporary = path.join("storage.uuid.new");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{uuid:032x}")?;
    file.sync_all()?;
    fs::rename(&temporary, identity)?;
    File::open(path)?.sync_all()?;
    Ok(uuid)
}

/// Makes what shards expect to be there.
fn prepare(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.join("topics"))?;
    let flush = path.join("flush");
    if fs::metadata(&flush).map(|found| found.len()).unwrap_or(0) == 0 {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&flush)?;
        file.write_all(&[0; 4096])?;
        file.sync_all()?;
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_lock_and_strangers() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        let first = DataDirectory::open(&path).unwrap();
        let error = DataDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use by another broker"), "{error}");
        let uuid = first.uuid;
        drop(first);
        assert_eq!(DataDirectory::open(&path).unwrap().uuid, uuid);

        fs::write(path.join("storage.uuid"), "nonsense").unwrap();
        let error = DataDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("storage.uuid is damaged"), "{error}");

        let foreign = root.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.txt"), "irreplaceable").unwrap();
        let error = DataDirectory::open(&foreign).unwrap_err().to_string();
        assert!(error.contains("thesis.txt") && error.contains("not a Ringlog data directory"), "{error}");
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);

        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDirectory::open(&file).unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
    }
}
