//! The metadata's own store: Raft's log, vote and snapshot in one `redb` file.
//!
//! ```text
//! <data>/metadata/metadata.redb   tables: about (format, revision), entries (index → entry), state (name → bytes)
//! <data>/metadata/reserve         1 MiB of real blocks, given back to the file system when it is full
//! ```
//!
//! Owned by the thread that writes it (`log.rs`), which blocks on it. Everything is read once, at the start.
//!
//! Invariants: [`Store::commit`] returns `Ok` only after the device has all of it, and it has all or nothing of each.
//! Commits have two phases, so that a damaged last commit cannot pass for one that was never finished: it is
//! refused at the start instead of rolled back. A sync that failed is never repeated: the store stays closed until
//! the broker starts again and reads what is really there. The file is never closed cleanly, so every start checks
//! all of it (see [`OpenFile`]).
//!
//! A store of the time before the cluster (format 1: a log of commands and a snapshot) becomes one with a snapshot
//! of the image that it held, in one commit.
//!
//! Absent on purpose: what the entries mean, and a cache.

use super::codec::{Stored, decode_entry, encode_entry};
use super::panics::guarded;
use super::raft::{Entry, Leader, LogId, Membership, Node, StoredMembership, Vote};
use logic::metadata::{Command, Image, snapshot};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes kept for the moment when the disk is full.
pub(super) const RESERVE_BYTES: usize = 1 << 20;

/// Pages that redb keeps in memory, bytes. Everything is read once, at the start.
const CACHE_BYTES: usize = 8 << 20;

/// The version of what stands in the tables.
const FORMAT: u64 = 2;

/// Format, revision (commits so far), and whose store it is.
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
/// Tables of format 1: version → command, version → image.
const LOG_1: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT_1: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// Why the broker does not start: a file, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StoreError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong, and what to do where that is known.
    pub problem: String,
}

/// Why a commit was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommitError {
    /// The disk is full; nothing was done, and the same may be tried again.
    NoSpace(String),
    /// It may or may not be on the device. The store takes no more until the broker starts anew.
    Broken(String),
}

/// A change of what is stored.
#[derive(Debug)]
pub(super) enum Op {
    /// An entry comes at its index.
    Append(Entry),
    /// Entries from this index on go.
    Truncate(u64),
    /// Entries up to this one go, because a snapshot has them.
    Purge(LogId),
    /// A vote is given.
    Vote(Vote),
    /// Entries up to this one are known to be committed.
    Committed(Option<LogId>),
    /// An image takes the place of the one before.
    Snapshot(StoredSnapshot),
    /// It begins to join a cluster, or has joined.
    Joining(bool),
    /// It was removed from its cluster.
    Removed,
}

/// An image and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredSnapshot {
    /// The last entry that is in it.
    pub id: Option<LogId>,
    /// The group as of then.
    pub membership: StoredMembership,
    /// RLI1.
    pub image: Arc<[u8]>,
}

/// All that is stored.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub entries: Vec<Entry>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub snapshot: Option<StoredSnapshot>,
    /// It has begun to join a cluster, and is not registered in it yet: what groups its log speaks of may be long past.
    pub joining: bool,
    /// It was removed from the cluster that its log speaks of.
    pub removed: bool,
}

/// Whose store it is.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// The broker's number.
    pub broker: u64,
    /// Where others find it.
    pub address: String,
}

/// What is asked of the file that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Write,
    SetLength,
    Sync,
}

/// Asked before each operation on the file; an error is taken for the operation's. Tests break things here.
pub(super) type Gate = Arc<dyn Fn(Operation) -> io::Result<()> + Send + Sync>;

/// The open store.
pub(super) struct Store {
    directory: PathBuf,
    gate: Gate,
    database: State,
    /// Commits so far.
    revision: u64,
}

enum State {
    Open(OpenFile),
    /// After no space: to be opened again.
    Closed,
    Broken(String),
}

/// A database, and the word of its file on what failed.
///
/// It is never closed: dropped, it leaves the file as a crash would. There is then one way to start, which
/// checks every page; after a clean close redb believes what the file says about its free space, and a
/// flipped bit in there makes it panic.
struct OpenFile {
    database: Database,
    trouble: Arc<Trouble>,
}

impl OpenFile {
    /// `file` as a database, which is made if the file is empty.
    fn new(path: &Path, file: File, gate: Gate) -> Result<Self, (redb::DatabaseError, Arc<Trouble>)> {
        let trouble = Arc::new(Trouble::default());
        let backend = StoreFile { file, gate, trouble: trouble.clone() };
        let open = || Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        match guarded(path, open).unwrap_or_else(|panic| Err(redb::StorageError::Corrupted(panic).into())) {
            Ok(database) => Ok(Self { database, trouble }),
            Err(error) => Err((error, trouble)),
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.trouble.sealed.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Opens `<data_directory>/metadata`, makes it if there is no data yet, and reads it.
    pub fn open(data_directory: &Path, owner: &Owner, gate: Gate) -> Result<(Self, Contents), StoreError> {
        let directory = data_directory.join("metadata");
        let file = directory.join("metadata.redb");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| StoreError { path, problem: error.to_string() }
        };
        if !file.try_exists().map_err(at(&file))? {
            refuse_to_forget(data_directory, &file)?;
            create(data_directory, &directory, &file, owner, &gate).map_err(at(&directory))?;
        }
        let mut store = Self { directory, gate, database: State::Closed, revision: 0 };
        let opened = store.open_file().or_else(|failure| {
            if failure.no_space && store.release_reserve() { store.open_file() } else { Err(failure) }
        });
        let file = opened.map_err(|failure| match failure.no_space {
            true => without_room(&file, &failure.problem),
            false => StoreError { path: file, problem: failure.problem },
        })?;
        let contents = store.recover(&file.database, owner)?;
        store.database = State::Open(file);
        store.keep_reserve();
        Ok((store, contents))
    }

    /// Puts all of `ops` on the device, in their order.
    pub fn commit(&mut self, ops: &[Op]) -> Result<(), CommitError> {
        let first_try = match self.try_commit(ops) {
            Err(CommitError::NoSpace(why)) => why,
            result => return result,
        };
        if !self.release_reserve() {
            return Err(CommitError::NoSpace(first_try));
        }
        tracing::warn!("the metadata store is out of space and gave up its reserve: {first_try}");
        self.try_commit(ops)
    }

    fn try_commit(&mut self, ops: &[Op]) -> Result<(), CommitError> {
        if let State::Closed = self.database {
            let found = self.open_again()?;
            if found == self.revision + 1 {
                // It was there before the space ran out.
                self.revision = found;
                self.keep_reserve();
                return Ok(());
            }
            if found != self.revision {
                let expected = self.revision;
                return Err(self.broken(format!("it holds revision {found}, {expected} was expected")));
            }
        }
        let (database, trouble) = match &self.database {
            State::Open(file) => (&file.database, file.trouble.clone()),
            State::Broken(why) => {
                return Err(CommitError::Broken(format!("it failed earlier: {why}; restart the broker")));
            }
            State::Closed => return Err(CommitError::NoSpace("the store is closed".to_owned())),
        };
        let Err(error) = write(database, self.revision + 1, ops) else {
            self.revision += 1;
            self.keep_reserve();
            return Ok(());
        };
        match trouble.take() {
            Some((operation, kind, why)) if no_space(kind) && operation != Operation::Sync => {
                self.database = State::Closed;
                Err(CommitError::NoSpace(why))
            }
            found => {
                let why = found.map_or_else(|| error.to_string(), |(_, _, why)| why);
                self.database = State::Broken(why.clone());
                Err(CommitError::Broken(why))
            }
        }
    }

    /// Opens the file after it was closed for want of space, and says which revision it holds.
    fn open_again(&mut self) -> Result<u64, CommitError> {
        let file = self.open_file().map_err(|failure| {
            if failure.no_space {
                CommitError::NoSpace(failure.problem)
            } else {
                self.broken(failure.problem)
            }
        })?;
        let revision =
            read_about(&file.database, "revision").map_err(|error| self.broken(error.to_string()))?;
        self.database = State::Open(file);
        Ok(revision.unwrap_or(0))
    }

    /// The file does not hold what it should.
    fn broken(&mut self, why: String) -> CommitError {
        self.database = State::Broken(why.clone());
        CommitError::Broken(why)
    }

    fn open_file(&self) -> Result<OpenFile, OpenFailure> {
        let failed =
            |error: io::Error| OpenFailure { no_space: no_space(error.kind()), problem: error.to_string() };
        let file = OpenOptions::new().read(true).write(true).open(self.file()).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenFailure {
                    no_space: false,
                    problem: "another broker is running on this data directory".to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // redb takes an empty file for one to be made.
        if file.metadata().map_err(failed)?.len() == 0 {
            return Err(OpenFailure { no_space: false, problem: foreign("it is empty") });
        }
        OpenFile::new(&self.file(), file, self.gate.clone()).map_err(|(error, trouble)| {
            match trouble.take() {
                Some((operation, kind, problem)) => {
                    OpenFailure { no_space: no_space(kind) && operation != Operation::Sync, problem }
                }
                None => OpenFailure { no_space: false, problem: foreign(&error.to_string()) },
            }
        })
    }

    /// Everything that is in the file, checked.
    fn recover(&mut self, database: &Database, owner: &Owner) -> Result<Contents, StoreError> {
        let path = self.file();
        let wrong = |problem: String| StoreError { path: path.clone(), problem };
        let unreadable = |error: redb::Error| wrong(foreign(&error.to_string()));
        match read_about(database, "format").map_err(unreadable)? {
            Some(FORMAT) => {}
            Some(1) => migrate(database, owner).map_err(wrong)?,
            found => {
                let found = found.map_or("none".to_owned(), |format| format.to_string());
                return Err(wrong(format!("its format is {found}, this broker reads 1 and {FORMAT}")));
            }
        }
        self.revision = read_about(database, "revision").map_err(unreadable)?.unwrap_or(0);
        let holder = read_about(database, "broker").map_err(unreadable)?;
        if let Some(holder) = holder.filter(|holder| *holder != owner.broker) {
            return Err(wrong(format!(
                "it is broker {holder}'s, and this is broker {}; start with --broker-id {holder}, or with another \
                 data directory",
                owner.broker
            )));
        }
        let (entries, state) = read(database).map_err(unreadable)?;
        let mut contents = Contents::default();
        for (name, bytes) in &state {
            let stored = Stored::decode(bytes).map_err(|error| wrong(format!("its {name}: {error}")))?;
            match name.as_str() {
                "vote" => contents.vote = stored.vote,
                "committed" => contents.committed = stored.id,
                "purged" => contents.purged = stored.id,
                "joining" => contents.joining = true,
                "removed" => contents.removed = true,
                "snapshot" => {
                    contents.snapshot = Some(StoredSnapshot {
                        id: stored.id,
                        membership: stored.membership.unwrap_or_default(),
                        image: stored.image.unwrap_or_default().into(),
                    });
                }
                other => return Err(wrong(format!("it holds {other:?}, which a newer version wrote"))),
            }
        }
        let mut next = contents.purged.map_or(0, |purged| purged.index + 1);
        for (index, bytes) in entries {
            let entry = decode_entry(&bytes).map_err(|error| wrong(format!("entry {index}: {error}")))?;
            if index != next || entry.log_id.index != index {
                let inside = entry.log_id.index;
                return Err(wrong(format!("its log has entry {inside} at {index}, where {next} should be")));
            }
            next = index + 1;
            contents.entries.push(entry);
        }
        // A snapshot that was received is stored before the log is cut.
        let covered =
            contents.snapshot.as_ref().and_then(|snapshot| snapshot.id).map_or(0, |id| id.index + 1);
        if let Some(committed) = contents.committed.filter(|committed| committed.index >= next.max(covered)) {
            return Err(wrong(format!("entry {} is committed, and the log ends at {next}", committed.index)));
        }
        Ok(contents)
    }

    /// Where it is.
    pub fn file(&self) -> PathBuf {
        self.directory.join("metadata.redb")
    }

    fn reserve(&self) -> PathBuf {
        self.directory.join("reserve")
    }

    /// Gives the reserve's blocks back to the file system; whether there were any.
    fn release_reserve(&mut self) -> bool {
        match std::fs::remove_file(self.reserve()) {
            // Where the file system has a journal, blocks are free only after its commit, which this sync forces.
            Ok(()) => sync_directory(&self.directory).is_ok(),
            Err(_) => false,
        }
    }

    /// Makes the reserve unless it is there. Without space there is none, and a later append tries again.
    fn keep_reserve(&self) {
        let path = self.reserve();
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64) {
            return;
        }
        let fill = || -> io::Result<()> {
            (self.gate)(Operation::Write)?;
            let mut file = File::create(&path)?;
            // Written, not sparse, and not zeros, which some file systems do not store.
            file.write_all(&vec![0xa5; RESERVE_BYTES])?;
            file.sync_all()
        };
        if let Err(error) = fill() {
            tracing::warn!("{}: {error}; the metadata store goes on without a reserve", path.display());
            // A part of it would only take space from others.
            let _ = std::fs::remove_file(&path);
        }
    }
}

struct OpenFailure {
    no_space: bool,
    problem: String,
}

/// What is wrong with a file that is no store.
pub(super) fn foreign(reason: &str) -> String {
    format!("it is not a metadata store of this broker, or it is damaged ({reason}); restore it from a copy")
}

/// Why a broker does not start whose store cannot be written to.
pub(super) fn without_room(path: &Path, reason: &str) -> StoreError {
    StoreError {
        path: path.to_owned(),
        problem: format!(
            "the disk is full: there is no room for the metadata, and its reserve is gone ({reason}); free some space, and \
             start again"
        ),
    }
}

fn no_space(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// A directory with data and without metadata is damaged, not new: started on empty metadata, nobody would
/// know what the data is.
fn refuse_to_forget(data_directory: &Path, file: &Path) -> Result<(), StoreError> {
    let topics = data_directory.join("topics");
    let first = match std::fs::read_dir(&topics) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(StoreError { path: topics, problem: error.to_string() }),
    };
    if first {
        return Err(StoreError {
            path: file.to_owned(),
            problem: format!(
                "it is missing, and {} holds data; restore it from a copy, or move the data away to start empty",
                topics.display()
            ),
        });
    }
    Ok(())
}

/// Makes a store aside and renames it, so that a crash leaves all of it or nothing.
fn create(
    data_directory: &Path,
    directory: &Path,
    file: &Path,
    owner: &Owner,
    gate: &Gate,
) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let aside = directory.join("metadata.redb.new");
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let make = || -> Result<(), redb::Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&aside)?;
        let file = OpenFile::new(&aside, file, gate.clone()).map_err(|(error, _)| error)?;
        let mut transaction = file.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert("format", FORMAT)?;
            about.insert("revision", 0)?;
            about.insert("broker", owner.broker)?;
        }
        transaction.open_table(ENTRIES)?;
        transaction.open_table(STATE)?;
        transaction.commit()?;
        Ok(())
    };
    make().map_err(|error| match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    })?;
    File::open(&aside)?.sync_all()?;
    std::fs::rename(&aside, file)?;
    sync_directory(directory)?;
    sync_directory(data_directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn read_about(database: &Database, name: &str) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(transaction.open_table(ABOUT)?.get(name)?.map(|value| value.value()))
}

type Read = (Vec<(u64, Vec<u8>)>, Vec<(String, Vec<u8>)>);

fn read(database: &Database) -> Result<Read, redb::Error> {
    let transaction = database.begin_read()?;
    let mut entries = Vec::new();
    for entry in transaction.open_table(ENTRIES)?.iter()? {
        let (index, bytes) = entry?;
        entries.push((index.value(), bytes.value().to_vec()));
    }
    let mut state = Vec::new();
    for entry in transaction.open_table(STATE)?.iter()? {
        let (name, bytes) = entry?;
        state.push((name.value().to_owned(), bytes.value().to_vec()));
    }
    Ok((entries, state))
}

/// One transaction.
fn write(database: &Database, revision: u64, ops: &[Op]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Durable by default; the second phase tells a damaged commit from an unfinished one.
    transaction.set_two_phase_commit(true);
    {
        transaction.open_table(ABOUT)?.insert("revision", revision)?;
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut state = transaction.open_table(STATE)?;
        for op in ops {
            perform(op, &mut entries, &mut state)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn perform(
    op: &Op,
    entries: &mut redb::Table<'_, u64, &'static [u8]>,
    state: &mut redb::Table<'_, &'static str, &'static [u8]>,
) -> Result<(), redb::Error> {
    let (name, stored) = match op {
        Op::Append(entry) => {
            entries.insert(entry.log_id.index, encode_entry(entry).as_slice())?;
            return Ok(());
        }
        Op::Truncate(from) => {
            entries.retain_in(*from.., |_, _| false)?;
            return Ok(());
        }
        Op::Purge(to) => {
            entries.retain_in(..=to.index, |_, _| false)?;
            ("purged", Stored { id: Some(*to), ..Stored::default() })
        }
        Op::Joining(true) => ("joining", Stored::default()),
        Op::Removed => ("removed", Stored::default()),
        Op::Joining(false) => {
            state.remove("joining")?;
            return Ok(());
        }
        Op::Vote(vote) => ("vote", Stored { vote: Some(*vote), ..Stored::default() }),
        Op::Committed(id) => ("committed", Stored { id: *id, ..Stored::default() }),
        Op::Snapshot(StoredSnapshot { id, membership, image }) => {
            let (membership, image) = (Some(membership.clone()), Some(image.to_vec()));
            ("snapshot", Stored { id: *id, membership, image, vote: None })
        }
    };
    state.insert(name, stored.encode().as_slice())?;
    Ok(())
}

/// Makes a store of format 2 of one of format 1, in one commit: the image that it held becomes a snapshot, of a
/// group of which this broker is the only member.
fn migrate(database: &Database, owner: &Owner) -> Result<(), String> {
    let image = read_format_1(database)?;
    let brokers: Vec<u32> = image.brokers().map(|broker| broker.registration.broker.get()).collect();
    if let Some(other) = brokers.iter().find(|broker| u64::from(**broker) != owner.broker) {
        return Err(format!("it is broker {other}'s, and this is broker {}", owner.broker));
    }
    let migrate = || -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.delete_table(LOG_1)?;
        transaction.delete_table(SNAPSHOT_1)?;
        {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert("format", FORMAT)?;
            about.insert("revision", 0)?;
            about.insert("broker", owner.broker)?;
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut state = transaction.open_table(STATE)?;
            if image.version() > 0 {
                let leader_id = Leader { term: 1, node_id: owner.broker };
                let id = LogId::new(leader_id, image.version());
                let nodes = BTreeMap::from([(owner.broker, Node::new(&owner.address))]);
                let group = Membership::new(vec![[owner.broker].into()], nodes)
                    .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                let snapshot = StoredSnapshot {
                    id: Some(id),
                    membership: StoredMembership::new(Some(id), group),
                    image: snapshot::encode(&image).into(),
                };
                let vote = Vote { leader_id, committed: true };
                for op in [Op::Snapshot(snapshot), Op::Purge(id), Op::Vote(vote)] {
                    perform(&op, &mut entries, &mut state)?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    };
    migrate().map_err(|error| error.to_string())
}

/// The image that a store of format 1 holds: snapshot + replay.
fn read_format_1(database: &Database) -> Result<Image, String> {
    let read = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let latest = transaction.open_table(SNAPSHOT_1)?;
        let latest = latest.last()?.map(|(version, bytes)| (version.value(), bytes.value().to_vec()));
        let mut log = Vec::new();
        for entry in transaction.open_table(LOG_1)?.iter()? {
            let (version, bytes) = entry?;
            log.push((version.value(), bytes.value().to_vec()));
        }
        Ok((latest, log))
    };
    let (latest, log) = read().map_err(|error| foreign(&error.to_string()))?;
    let mut image = match &latest {
        None => Image::default(),
        Some((version, bytes)) => {
            let image = snapshot::decode(bytes)
                .map_err(|error| format!("the snapshot of version {version}: {error}"))?;
            if image.version() != *version {
                let inside = image.version();
                return Err(format!("the snapshot of version {version} holds version {inside}"));
            }
            image
        }
    };
    for (version, bytes) in log {
        if version != image.version() + 1 {
            return Err(format!("its log goes from version {} to {version}", image.version()));
        }
        let command =
            Command::decode(&bytes).map_err(|error| format!("the command of version {version}: {error}"))?;
        (image, _) = image
            .apply(&command)
            .map_err(|error| format!("the command of version {version} does not apply: {error}"))?;
    }
    Ok(image)
}

/// The first failure of the file, which redb does not tell apart.
#[derive(Debug, Default)]
struct Trouble {
    first: Mutex<Option<(Operation, ErrorKind, String)>>,
    /// The file takes nothing any more.
    sealed: AtomicBool,
}

impl Trouble {
    fn note(&self, operation: Operation, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| (operation, error.kind(), error.to_string()));
        }
        result
    }

    fn take(&self) -> Option<(Operation, ErrorKind, String)> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The file as redb sees it.
struct StoreFile {
    file: File,
    gate: Gate,
    trouble: Arc<Trouble>,
}

impl std::fmt::Debug for StoreFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl StoreFile {
    fn attempt(&self, operation: Operation, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.trouble.sealed.load(Ordering::Relaxed) {
            return Err(io::Error::other("the store is left as it is"));
        }
        self.trouble.note(operation, (self.gate)(operation).and_then(|()| act()))
    }
}

impl StorageBackend for StoreFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.attempt(Operation::SetLength, || self.file.set_len(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.attempt(Operation::Sync, || self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.attempt(Operation::Write, || self.file.write_all_at(data, offset))
    }

    fn close(&self) -> io::Result<()> {
        self.file.unlock()
    }
}
