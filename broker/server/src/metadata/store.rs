//! The metadata's own store: a log of commands and a snapshot, in one `redb` file.
//!
//! ```text
//! <data>/metadata/metadata.redb   tables: about (format), log (version → command), snapshot (version → image)
//! <data>/metadata/reserve         1 MiB of real blocks, given back to the file system when it is full
//! ```
//!
//! Owned by the metadata thread, on which it blocks. The log's index is the version of the image that the
//! command makes; after [`SNAPSHOT_EVERY`] commands (more with many topics) the image is stored and the log
//! up to it is dropped, in the transaction that appends. Recovery is snapshot + replay.
//!
//! Invariants: [`Store::append`] returns `Ok` only after the device has the commands. Commits have two
//! phases, so that a damaged last commit cannot pass for one that was never finished: it is refused at the
//! start instead of rolled back. A sync that failed is never repeated: the store stays closed until the
//! broker starts again and reads what is really there. The file is never closed cleanly, so every start checks
//! all of it (see [`OpenFile`]).
//!
//! Absent on purpose: what the commands mean (`logic::metadata`), and a cache: the image is the cache.

use logic::metadata::{Command, Image, snapshot};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::cell::RefCell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// Commands in the log before a snapshot replaces them, at least.
pub(super) const SNAPSHOT_EVERY: u64 = 1024;

/// Bytes kept for the moment when the disk is full.
pub(super) const RESERVE_BYTES: usize = 1 << 20;

/// Pages that redb keeps in memory, bytes. Everything is read once, at the start.
const CACHE_BYTES: usize = 8 << 20;

/// The version of what stands in the tables.
const FORMAT: u64 = 1;

const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// Why the broker does not start: a file, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StoreError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong, and what to do where that is known.
    pub problem: String,
}

/// Why commands were not appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AppendError {
    /// The disk is full; nothing was appended, and the next append tries again.
    NoSpace(String),
    /// The commands may or may not be on the device. The store takes no more until the broker starts anew.
    Broken(String),
    /// The store broke earlier; nothing was appended.
    Refused(String),
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
    /// The version of the last command in the log.
    version: u64,
    /// The version of the snapshot; 0 without one.
    snapshot_version: u64,
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
    /// Opens `<data_directory>/metadata`, makes it if there is no data yet, and recovers the image.
    pub fn open(data_directory: &Path, gate: Gate) -> Result<(Self, Image), StoreError> {
        let directory = data_directory.join("metadata");
        let file = directory.join("metadata.redb");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| StoreError { path, problem: error.to_string() }
        };
        if !file.try_exists().map_err(at(&file))? {
            refuse_to_forget(data_directory, &file)?;
            create(data_directory, &directory, &file, &gate).map_err(at(&directory))?;
        }
        let mut store = Self { directory, gate, database: State::Closed, version: 0, snapshot_version: 0 };
        let opened = store.open_file().or_else(|failure| {
            if failure.no_space && store.release_reserve() { store.open_file() } else { Err(failure) }
        });
        let file = opened.map_err(|failure| StoreError { path: file, problem: failure.problem })?;
        let image = store.recover(&file.database)?;
        store.version = image.version();
        store.database = State::Open(file);
        store.keep_reserve();
        Ok((store, image))
    }

    /// Puts `commands` on the device; the first of them makes version `image.version() - commands + 1` and the
    /// last makes `image`.
    pub fn append(&mut self, commands: &[Vec<u8>], image: &Image) -> Result<(), AppendError> {
        assert_eq!(self.version + commands.len() as u64, image.version(), "versions follow each other");
        let due = SNAPSHOT_EVERY.max(image.topic_count() as u64);
        let with_snapshot = image.version() - self.snapshot_version >= due;
        let first_try = match self.try_append(commands, image, with_snapshot) {
            Err(AppendError::NoSpace(why)) => why,
            result => return result,
        };
        if !self.release_reserve() {
            return Err(AppendError::NoSpace(first_try));
        }
        tracing::warn!("the metadata store is out of space and gave up its reserve: {first_try}");
        match self.open_again() {
            Ok(found) if found == image.version() => {
                // It was there before the space ran out.
                self.appended(image, false);
                return Ok(());
            }
            Ok(_) => {}
            // What the first try left behind is not known.
            Err(AppendError::Refused(why)) => return Err(AppendError::Broken(why)),
            Err(error) => return Err(error),
        }
        self.try_append(commands, image, false)
    }

    fn appended(&mut self, image: &Image, with_snapshot: bool) {
        self.version = image.version();
        if with_snapshot {
            self.snapshot_version = image.version();
        }
        self.keep_reserve();
    }

    fn try_append(
        &mut self,
        commands: &[Vec<u8>],
        image: &Image,
        with_snapshot: bool,
    ) -> Result<(), AppendError> {
        if let State::Closed = self.database {
            let found = self.open_again()?;
            if found != self.version {
                return Err(self.broken(format!("it holds version {found}, {} was expected", self.version)));
            }
        }
        let (database, trouble) = match &self.database {
            State::Open(file) => (&file.database, file.trouble.clone()),
            State::Broken(why) => {
                return Err(AppendError::Refused(format!("it failed earlier: {why}; restart the broker")));
            }
            State::Closed => return Err(AppendError::NoSpace("the store is closed".to_owned())),
        };
        let result = write(database, self.version + 1, commands, with_snapshot.then_some(image));
        let Err(error) = result else {
            self.appended(image, with_snapshot);
            return Ok(());
        };
        match trouble.take() {
            Some((operation, kind, why)) if no_space(kind) && operation != Operation::Sync => {
                self.database = State::Closed;
                Err(AppendError::NoSpace(why))
            }
            found => {
                let why = found.map_or_else(|| error.to_string(), |(_, _, why)| why);
                self.database = State::Broken(why.clone());
                Err(AppendError::Broken(why))
            }
        }
    }

    /// Opens the file after it was closed for want of space, and says which version it holds.
    fn open_again(&mut self) -> Result<u64, AppendError> {
        let file = self.open_file().map_err(|failure| {
            if failure.no_space {
                AppendError::NoSpace(failure.problem)
            } else {
                self.broken(failure.problem)
            }
        })?;
        let image = self.recover(&file.database).map_err(|error| self.broken(error.problem))?;
        self.database = State::Open(file);
        Ok(image.version())
    }

    /// The file does not hold what it should, found before anything was appended.
    fn broken(&mut self, why: String) -> AppendError {
        self.database = State::Broken(why.clone());
        AppendError::Refused(why)
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

    /// Snapshot + replay.
    fn recover(&mut self, database: &Database) -> Result<Image, StoreError> {
        let wrong = |problem: String| StoreError { path: self.file(), problem };
        let unreadable = |error: redb::Error| wrong(foreign(&error.to_string()));
        let Stored { format, latest, log } = read(database).map_err(unreadable)?;
        if format != Some(FORMAT) {
            let found = format.map_or("none".to_owned(), |format| format.to_string());
            return Err(wrong(format!("its format is {found}, this broker reads {FORMAT}")));
        }
        let mut image = match &latest {
            None => Image::default(),
            Some((version, bytes)) => match snapshot::decode(bytes) {
                Ok(image) if image.version() == *version => image,
                Ok(image) => {
                    let inside = image.version();
                    return Err(wrong(format!("the snapshot of version {version} holds version {inside}")));
                }
                Err(error) => return Err(wrong(format!("the snapshot of version {version}: {error}"))),
            },
        };
        let snapshot_version = image.version();
        for (version, bytes) in log {
            if version != image.version() + 1 {
                let before = image.version();
                return Err(wrong(format!("its log goes from version {before} to {version}")));
            }
            let command = Command::decode(&bytes)
                .map_err(|error| wrong(format!("the command of version {version}: {error}")))?;
            (image, _) = image.apply(&command).map_err(|error| {
                wrong(format!("the command of version {version} does not apply: {error}"))
            })?;
        }
        self.snapshot_version = snapshot_version;
        Ok(image)
    }

    fn file(&self) -> PathBuf {
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

thread_local! {
    /// The file that this thread is opening.
    static OPENING: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Runs `open`, and turns a panic into its message: redb follows some fields of a damaged file before it
/// has checked them. Where panics end the process, at least the message says which file it was.
fn guarded<T>(path: &Path, open: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let inner = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let opening = OPENING.try_with(|opening| opening.borrow().clone()).ok().flatten();
            match opening {
                Some(path) => {
                    let reason = panic.payload_as_str().unwrap_or("it makes redb panic");
                    eprintln!("ringlog: {}: {}", path.display(), foreign(reason));
                }
                None => inner(panic),
            }
        }));
    });
    OPENING.set(Some(path.to_owned()));
    let result = std::panic::catch_unwind(AssertUnwindSafe(open));
    OPENING.set(None);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it makes redb panic").to_owned()
    })
}

fn foreign(reason: &str) -> String {
    format!("it is not a metadata store of this broker, or it is damaged ({reason}); restore it from a copy")
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
fn create(data_directory: &Path, directory: &Path, file: &Path, gate: &Gate) -> io::Result<()> {
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
        transaction.open_table(ABOUT)?.insert("format", FORMAT)?;
        transaction.open_table(LOG)?;
        transaction.open_table(SNAPSHOT)?;
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

/// Everything in the tables.
struct Stored {
    format: Option<u64>,
    latest: Option<(u64, Vec<u8>)>,
    log: Vec<(u64, Vec<u8>)>,
}

fn read(database: &Database) -> Result<Stored, redb::Error> {
    let transaction = database.begin_read()?;
    let about = transaction.open_table(ABOUT)?;
    let format = about.get("format")?.map(|value| value.value());
    let latest = transaction.open_table(SNAPSHOT)?;
    let latest = latest.last()?.map(|(version, bytes)| (version.value(), bytes.value().to_vec()));
    let mut log = Vec::new();
    for entry in transaction.open_table(LOG)?.iter()? {
        let (version, bytes) = entry?;
        log.push((version.value(), bytes.value().to_vec()));
    }
    Ok(Stored { format, latest, log })
}

/// One transaction: `commands` from version `first` on, and the image with which the log can be cut.
fn write(
    database: &Database,
    first: u64,
    commands: &[Vec<u8>],
    image: Option<&Image>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Durable by default; the second phase tells a damaged commit from an unfinished one.
    transaction.set_two_phase_commit(true);
    {
        let mut log = transaction.open_table(LOG)?;
        if let Some(image) = image {
            log.retain(|_, _| false)?;
            let mut snapshots = transaction.open_table(SNAPSHOT)?;
            snapshots.retain(|_, _| false)?;
            snapshots.insert(image.version(), snapshot::encode(image).as_slice())?;
        } else {
            for (version, command) in (first..).zip(commands) {
                log.insert(version, command.as_slice())?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
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
