//! The data directory: its identity, its lock, and the files that no shard owns.
//!
//! Opened once, before any shard, and held until the process ends. A directory that is not ours is
//! refused, with the name of what is in the way: nothing in it is touched.

use crate::storage::checkpoints::{
    CHECKPOINTS, CheckpointRefusal, has_strays, merge, shard_directory, usable_checkpoint,
};
use crate::storage::{RESERVE, is_no_space};
use logic::ids::TopicPartition;
use schema::checkpoint::Checkpoint;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Names that may be there before the identity is: left by a start that was cut off.
/// The disk's profile may be, too, because it is measured before the first start.
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
    /// There is no room for what a start must write before it can serve anything: its first files, or, behind a crash after
    /// partitions have moved from core to core, what each core must know of them. The reserves have been used up.
    #[error(
        "the disk is full: there is no room for {path} ({error}); free some space, then start the broker again"
    )]
    Full {
        /// What was written.
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
    /// It has a checkpoint of another one, or in a newer format.
    #[error("{path} {refusal}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        refusal: CheckpointRefusal,
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
        fs::create_dir_all(path).map_err(unusable(path))?;
        let path = path.canonicalize().map_err(unusable(path))?;
        let identity = path.join("storage.uuid");
        let known = fs::exists(&identity).map_err(unusable(&identity))?;
        if !known {
            for entry in fs::read_dir(&path).map_err(unusable(&path))? {
                let name = entry.map_err(unusable(&path))?.file_name().to_string_lossy().into_owned();
                let ours = OURS.contains(&name.as_str());
                if !ours && !name.starts_with("shard-") && !name.starts_with("disk-profile.") {
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
    /// Says how many shards will run, and where each partition is at home. With another number than before partitions
    /// change their shards, and while a broker runs they can be moved: then every
    /// shard is given what any checkpoint attests, the newest of each partition, as of a start that was not
    /// clean. So nothing that was acknowledged is taken for a torn tail, and only what was written since is
    /// read again. Whether partitions have moved shows in what a shard's newest checkpoint attests: all of it is at home
    /// there, or none of them has moved since.
    ///
    /// # Errors
    /// A file cannot be read or written, or a checkpoint is not this directory's or this build's.
    pub fn set_shards(
        &self,
        shards: usize,
        home: impl Fn(TopicPartition) -> usize,
    ) -> Result<(), DataDirectoryError> {
        let path = self.path.join("shards");
        let text = format!("{shards}\n");
        let as_before = match fs::read_to_string(&path) {
            Ok(before) => before == text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(unusable(&path)(error)),
        };
        // A crash in between is harmless: with either number each shard finds at least its own partitions.
        let found = self.read_checkpoints()?;
        let strays = |(directory, own): &(PathBuf, Vec<Checkpoint>)| {
            has_strays(own, |partition| Some(home(partition)) == number_of(directory))
        };
        if as_before && !found.iter().any(strays) {
            return Ok(());
        }
        if let Some(all) = merge(found.iter().flat_map(|(_, checkpoints)| checkpoints)) {
            for shard in 0..shards {
                let directory = shard_directory(&self.path, shard);
                self.replace_checkpoints(&directory, &all).map_err(unusable(&directory))?;
            }
        }
        if !as_before {
            write_durably(&path, text.as_bytes()).map_err(unusable(&path))?;
        }
        // Those of shards that are no more would be out of date when they come again.
        for (directory, _) in &found {
            if number_of(directory).is_none_or(|number| number >= shards) {
                remove_checkpoints(directory, &CHECKPOINTS).map_err(unusable(directory))?;
            }
        }
        Ok(())
    }

    /// The directories of all shards, with the checkpoints in them that can be used.
    fn read_checkpoints(&self) -> Result<Vec<(PathBuf, Vec<Checkpoint>)>, DataDirectoryError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(unusable(&self.path))? {
            let entry = entry.map_err(unusable(&self.path))?;
            if !entry.file_name().to_string_lossy().starts_with("shard-") {
                continue;
            }
            let mut checkpoints = Vec::new();
            for name in CHECKPOINTS {
                let path = entry.path().join(name);
                let bytes = match fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(unusable(&path)(error)),
                };
                match usable_checkpoint(&bytes, self.uuid) {
                    Ok(checkpoint) => checkpoints.push(checkpoint),
                    Err(refusal @ CheckpointRefusal::Damaged(_)) => {
                        tracing::warn!("checkpoint {} {refusal}", path.display());
                    }
                    // Not replaced; the shard's own start says the same.
                    Err(refusal) => return Err(DataDirectoryError::Checkpoint { path, refusal }),
                }
            }
            found.push((entry.path(), checkpoints));
        }
        Ok(found)
    }

    /// Puts `checkpoint` into a shard's directory, and takes away what was there.
    fn replace_checkpoints(&self, directory: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
        if !directory.exists() {
            fs::create_dir(directory)?;
            File::open(&self.path)?.sync_all()?;
        }
        let checkpoint = Checkpoint { storage_uuid: self.uuid, ..checkpoint.clone() };
        let (path, bytes) = (directory.join(CHECKPOINTS[0]), checkpoint.encode());
        match write_durably(&path, &bytes) {
            // This is one of the things that the reserve is for. The shard makes another one when there is room.
            Err(error) if is_no_space(&error) && fs::remove_file(directory.join(RESERVE)).is_ok() => {
                File::open(directory)?.sync_all()?;
                write_durably(&path, &bytes)?;
            }
            other => other?,
        }
        remove_checkpoints(directory, &CHECKPOINTS[1..])
    }
}

/// Why a file or directory cannot be used.
fn unusable(path: &Path) -> impl FnOnce(io::Error) -> DataDirectoryError + use<> {
    let path = path.to_owned();
    move |error| match is_no_space(&error) {
        true => DataDirectoryError::Full { path, error },
        false => DataDirectoryError::Unusable { path, error },
    }
}

/// The shard of a directory.
fn number_of(directory: &Path) -> Option<usize> {
    directory.file_name()?.to_str()?.strip_prefix("shard-")?.parse().ok()
}

/// Writes a file under another name, and gives it its own when it is on the device.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // A part of it would only take room from others.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn remove_checkpoints(directory: &Path, names: &[&str]) -> io::Result<()> {
    for name in names {
        match fs::remove_file(directory.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(directory)?.sync_all()
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
    use crate::small_disk::SmallDisk;
    use schema::checkpoint::PartitionCheckpoint;

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

    fn partition(partition: u32, incarnation: u64, durable_end: u64) -> PartitionCheckpoint {
        PartitionCheckpoint { topic_id: 1, partition, incarnation, durable_end, ..Default::default() }
    }

    fn write(
        directory: &DataDirectory,
        shard: usize,
        name: &str,
        generation: u64,
        of: &[PartitionCheckpoint],
    ) {
        let path = shard_directory(&directory.path, shard);
        fs::create_dir_all(&path).unwrap();
        let storage_uuid = directory.uuid;
        let checkpoint = Checkpoint { generation, storage_uuid, clean: true, partitions: of.to_vec() };
        fs::write(path.join(name), checkpoint.encode()).unwrap();
    }

    fn read(directory: &DataDirectory, shard: usize, name: &str) -> Option<Checkpoint> {
        let bytes = fs::read(shard_directory(&directory.path, shard).join(name)).ok()?;
        Some(Checkpoint::decode(&bytes).unwrap())
    }

    #[test]
    fn checkpoints_follow_their_partitions_to_other_shards() {
        let root = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(root.path()).unwrap();
        // Partition 0 and 2 on shard 0, 1 on shard 1.
        let home = |id: TopicPartition| id.partition.get() as usize % 2;
        directory.set_shards(2, home).unwrap();
        assert_eq!(read(&directory, 0, "checkpoint.a"), None, "nothing is made of nothing");
        write(&directory, 0, "checkpoint.a", 4, &[partition(0, 3, 70)]);
        write(&directory, 0, "checkpoint.b", 5, &[partition(0, 3, 90), partition(2, 1, 0)]);
        // Of a time when there was one shard; newer and older than what the others say.
        write(&directory, 1, "checkpoint.a", 6, &[partition(0, 2, 95)]);
        write(&directory, 1, "checkpoint.b", 7, &[partition(1, 8, 40)]);
        directory.set_shards(2, home).unwrap();
        assert_eq!(read(&directory, 1, "checkpoint.b").map(|found| found.generation), Some(7), "as before");

        let partitions = vec![partition(0, 3, 90), partition(1, 8, 40), partition(2, 1, 0)];
        for (shards, generation) in [(3, 8), (1, 10)] {
            directory.set_shards(shards, |_| 0).unwrap();
            for shard in 0..3 {
                let found = read(&directory, shard, "checkpoint.a");
                let (storage_uuid, partitions) = (directory.uuid, partitions.clone());
                let expected = Checkpoint { generation, storage_uuid, clean: false, partitions };
                assert_eq!(found, (shard < shards).then_some(expected), "shard {shard} of {shards}");
                assert_eq!(read(&directory, shard, "checkpoint.b"), None, "shard {shard} of {shards}");
            }
        }

        // One that cannot be read is not worth a start; one that is somebody else's is not replaced.
        fs::write(root.path().join("shard-0/checkpoint.b"), "nonsense").unwrap();
        directory.set_shards(2, |_| 0).unwrap();
        assert_eq!(read(&directory, 1, "checkpoint.a").map(|found| found.partitions), Some(partitions));
        let foreign = Checkpoint { storage_uuid: !directory.uuid, ..Checkpoint::default() };
        fs::write(root.path().join("shard-0/checkpoint.b"), foreign.encode()).unwrap();
        let error = directory.set_shards(1, |_| 0).unwrap_err().to_string();
        assert!(error.contains("checkpoint.b belongs to another data directory"), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("shards")).unwrap(), "2\n");
    }

    /// The same on a full disk: what each shard must know goes where its reserve was.
    #[test]
    fn checkpoints_of_moved_partitions_take_the_reserve() {
        let Some(disk) = SmallDisk::mount(8) else { return };
        let directory = DataDirectory::open(&disk.path().join("data")).unwrap();
        directory.set_shards(2, |_| 0).unwrap();
        let reserves = [0, 1].map(|shard| shard_directory(&directory.path, shard).join(RESERVE));
        for round in 0..2 {
            write(&directory, 0, "checkpoint.b", 100 * round + 1, &[partition(0, 3, 70)]);
            write(&directory, 1, "checkpoint.b", 100 * round + 1, &[partition(1, 1, 5)]);
            if round == 0 {
                reserves.iter().for_each(|reserve| fs::write(reserve, [1; 1 << 20]).unwrap());
            }
            disk.fill();
            let result = directory.set_shards(2, |id| 1 - id.partition.get() as usize);
            assert!(!reserves[0].exists());
            if round == 0 {
                result.unwrap();
                // One was enough for both.
                fs::remove_file(&reserves[1]).unwrap();
                for shard in 0..2 {
                    let found = read(&directory, shard, "checkpoint.a").unwrap();
                    assert_eq!(found.partitions, [partition(0, 3, 70), partition(1, 1, 5)], "shard {shard}");
                }
                fs::remove_file(disk.ballast()).unwrap();
                continue;
            }
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("the disk is full: there is no room for") && error.contains("shard-0"),
                "{error}"
            );
        }
        let found = [0, 1].map(|shard| read(&directory, shard, "checkpoint.b").unwrap().partitions);
        assert_eq!(found, [[partition(0, 3, 70)], [partition(1, 1, 5)]], "what there was is there");
    }

    /// A crash behind a move: what attests the partition stands with the shard that it left, or with both.
    #[test]
    fn checkpoints_of_moved_partitions_are_found_where_they_are_at_home() {
        let root = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(root.path()).unwrap();
        directory.set_shards(2, |_| 0).unwrap();
        let found = |shard| {
            let found = read(&directory, shard, "checkpoint.a").unwrap();
            assert!(!found.clean);
            found.partitions
        };
        // Home and what the newest checkpoints of the two shards say; what both have then.
        let rows = [
            (1, vec![partition(0, 3, 70)], vec![partition(1, 1, 5)], 70),
            (1, vec![partition(0, 3, 70)], vec![partition(0, 3, 60), partition(1, 1, 5)], 70),
            (0, vec![partition(0, 3, 70)], vec![partition(0, 3, 90), partition(1, 1, 5)], 90),
        ];
        for (row, (home, first, second, end)) in rows.into_iter().enumerate() {
            let generation = 100 * (row as u64 + 1);
            write(&directory, 0, "checkpoint.b", generation + 1, &first);
            write(&directory, 1, "checkpoint.b", generation + 1, &second);
            directory.set_shards(2, |id| if id.partition.get() == 0 { home } else { 1 }).unwrap();
            let expected = vec![partition(0, 3, end), partition(1, 1, 5)];
            assert_eq!((found(0), found(1)), (expected.clone(), expected), "row {row}");
        }
    }
}
