//! The metadata thread on real files: restarts, crashes, damaged and full stores.

use super::machine::SNAPSHOT_EVERY;
use super::store::{Operation, RESERVE_BYTES};
use super::*;
use crate::mailbox::mailboxes;
use logic::ids::{BrokerEpoch, BrokerId};
use logic::metadata::{BrokerRegistration, Placement};
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use tempfile::TempDir;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Broker 1, in no cluster.
fn alone() -> ClusterConfig {
    ClusterConfig { broker: BrokerId::new(1), ..ClusterConfig::default() }
}

fn address() -> String {
    "127.0.0.1:1".to_owned()
}

fn run(directory: &Path) -> Result<(MetadataHandle, MetadataThread), MetadataError> {
    start(directory, alone(), address(), &mailboxes(0).0, Box::new(|_| ()))
}

fn register() -> Command {
    let registration = BrokerRegistration {
        broker: BrokerId::new(1),
        host: "localhost".into(),
        port: 9644,
        shards: 2,
        storage_uuid: 1,
        rack: String::new(),
    };
    Command::RegisterBroker { registration, suspects: vec![], starts_fenced: false }
}

fn create(id: u128) -> Command {
    Command::CreateTopic {
        id: TopicId::new(id),
        name: format!("topic-{id}"),
        placement: Placement::single(BrokerId::new(1), 3),
        configs: vec![("retention.ms".into(), "1h".into())],
    }
}

fn delete(id: u128) -> Command {
    Command::DeleteTopic { id: TopicId::new(id) }
}

/// What a start on `directory` finds.
fn found(directory: &Path) -> Result<Arc<Image>, MetadataError> {
    let (handle, thread) = run(directory)?;
    let image = handle.image();
    thread.stop();
    Ok(image)
}

fn store_file(directory: &Path) -> PathBuf {
    directory.join("metadata/metadata.redb")
}

/// A data directory with `commands` done.
fn directory_with(commands: &[Command]) -> (TempDir, Arc<Image>) {
    let directory = tempfile::tempdir().unwrap();
    let (handle, thread) = run(directory.path()).unwrap();
    for command in commands {
        block_on(handle.submit(command.clone())).unwrap();
    }
    thread.stop();
    (directory, handle.image())
}

#[test]
fn a_restart_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let steps = [
        (register(), Ok(Outcome::BrokerRegistered { broker: BrokerId::new(1), epoch: BrokerEpoch::new(1) })),
        (create(1), Ok(Outcome::TopicCreated { id: TopicId::new(1), partitions: 3 })),
        (create(2), Ok(Outcome::TopicCreated { id: TopicId::new(2), partitions: 3 })),
        (create(2), Err(ErrorCode::TopicExists)),
        (delete(1), Ok(Outcome::TopicDeleted { id: TopicId::new(1), name: "topic-1".into() })),
        (delete(1), Err(ErrorCode::UnknownTopic)),
    ];
    let mut before = Arc::new(Image::default());
    for (command, expect) in steps {
        let (handle, thread) = run(directory.path()).unwrap();
        assert_eq!(handle.image(), before);
        let result = block_on(handle.submit(command));
        assert_eq!(result.map_err(|error| error.error_code()), expect);
        before = handle.image();
        thread.stop();
        assert_eq!(block_on(handle.submit(delete(2))), Err(MetadataError::Stopped));
    }
    assert_eq!(before.version(), 4, "refused commands leave no trace");
    assert!(before.topic_by_name("topic-2").is_some() && before.topic_by_name("topic-1").is_none());
}

#[test]
fn the_log_is_cut_by_snapshots() {
    let (directory, _) = directory_with(&[register()]);
    let (handle, thread) = run(directory.path()).unwrap();
    // All but the first are refused and take their place in the log all the same: the image stays small, and a larger one
    // would be worth a longer log. Many at once, so that few commits do it, and in turns, so that snapshots are asked for.
    for turn in 0..16 {
        let many = (0..SNAPSHOT_EVERY / 2).map(|_| handle.submit(create(1)));
        let results = block_on(futures_util::future::join_all(many));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), usize::from(turn == 0));
    }
    thread.stop();
    assert_eq!(found(directory.path()), Ok(handle.image()));
    // What is kept for who lags, what has come since the last snapshot, and one that the stop has cut off.
    let entries = entries_in(directory.path());
    assert!(entries < 4 * SNAPSHOT_EVERY, "{entries} entries in the log of {}", 8 * SNAPSHOT_EVERY);
}

/// No life has as many entries as make a snapshot, and each ends without waiting for one.
#[test]
fn many_short_lives_do_not_make_a_long_log() {
    let (directory, _) = directory_with(&[register()]);
    let mut most = 0;
    for _ in 0..12 {
        let (handle, thread) = run(directory.path()).unwrap();
        let many = (0..SNAPSHOT_EVERY / 2).map(|_| handle.submit(create(1)));
        block_on(futures_util::future::join_all(many));
        thread.stop();
        most = most.max(entries_in(directory.path()));
    }
    assert!(most < 4 * SNAPSHOT_EVERY, "{most} entries in the log of {}", 6 * SNAPSHOT_EVERY);
}

pub(super) fn entries_in(directory: &Path) -> u64 {
    let database = redb::Database::open(store_file(directory)).unwrap();
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    let log: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("entries");
    redb::ReadableTableMetadata::len(&transaction.open_table(log).unwrap()).unwrap()
}

/// The file as it is when the commit is done and the image is not yet published is what a crash leaves.
#[test]
fn a_crash_between_commit_and_publish_keeps_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    std::fs::create_dir(crashed.path().join("metadata")).unwrap();
    let (from, to) = (store_file(directory.path()), store_file(crashed.path()));
    let publish = move |_| {
        std::fs::copy(&from, &to).unwrap();
    };
    let (handle, _thread) =
        start(directory.path(), alone(), address(), &mailboxes(0).0, Box::new(publish)).unwrap();
    for (at, command) in [register(), create(1), create(2), delete(1)].into_iter().enumerate() {
        block_on(handle.submit(command)).unwrap();
        // The copy was made before the answer.
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("metadata")).unwrap();
        std::fs::copy(store_file(crashed.path()), store_file(copy.path())).unwrap();
        assert_eq!(found(copy.path()).unwrap().version(), at as u64 + 1);
        assert_eq!(found(copy.path()), Ok(handle.image()));
    }
}

/// With `damage` done to a data directory, a start is refused with a message that names `file` and says
/// `expect`.
fn check_refused(damage: impl FnOnce(&Path), file: &str, expect: &str) {
    let (directory, _) = directory_with(&[register(), create(1)]);
    damage(directory.path());
    let error = run(directory.path()).map(|_| ()).unwrap_err().to_string();
    let file = directory.path().join(file).display().to_string();
    assert!(error.starts_with(&file) && error.contains(expect), "{error}\nexpected: {file}: …{expect}…");
}

#[test]
fn foreign_and_damaged_stores_are_refused() {
    let redb = "metadata/metadata.redb";
    let write = |bytes: &'static [u8]| move |at: &Path| std::fs::write(store_file(at), bytes).unwrap();
    check_refused(write(b""), redb, "not a metadata store of this broker, or it is damaged (it is empty)");
    check_refused(write(b"SQLite format 3\0 and so on"), redb, "not a metadata store of this broker");
    check_refused(write(&[0; 1 << 16]), redb, "not a metadata store of this broker");
    let cut = |at: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(store_file(at)).unwrap();
        file.set_len(5000).unwrap();
    };
    check_refused(cut, redb, "not a metadata store of this broker");
    let other = |at: &Path| {
        std::fs::remove_file(store_file(at)).unwrap();
        redb::Database::create(store_file(at)).unwrap();
    };
    check_refused(other, redb, "Table 'about' does not exist");
    let newer = |at: &Path| {
        let database = redb::Database::create(store_file(at)).unwrap();
        let transaction = database.begin_write().unwrap();
        let about: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("about");
        transaction.open_table(about).unwrap().insert("format", 3).unwrap();
        transaction.commit().unwrap();
    };
    check_refused(newer, redb, "its format is 3, this broker reads 1 and 2");
    let log: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("entries");
    let edit = |act: fn(&mut redb::Table<'_, u64, &'static [u8]>)| {
        move |at: &Path| {
            let database = redb::Database::create(store_file(at)).unwrap();
            let transaction = database.begin_write().unwrap();
            act(&mut transaction.open_table(log).unwrap());
            transaction.commit().unwrap();
        }
    };
    check_refused(
        edit(|log| drop(log.remove(1).unwrap())),
        redb,
        "its log has entry 2 at 2, where 1 should be",
    );
    check_refused(
        edit(|log| drop(log.insert(3, b"no entry".as_slice()).unwrap())),
        redb,
        "entry 3: not a RLE1 buffer",
    );
    // What was said to be committed was on the device before.
    check_refused(
        edit(|log| log.retain_in(1.., |_, _| false).unwrap()),
        redb,
        "is committed, and the log ends at 1",
    );
    let somebody = |at: &Path| {
        let database = redb::Database::create(store_file(at)).unwrap();
        let transaction = database.begin_write().unwrap();
        let about: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("about");
        transaction.open_table(about).unwrap().insert("broker", 7).unwrap();
        transaction.commit().unwrap();
    };
    check_refused(somebody, redb, "it is broker 7's, and this is broker 1");
    let lost = |at: &Path| {
        std::fs::create_dir_all(at.join("topics/00")).unwrap();
        std::fs::remove_dir_all(at.join("metadata")).unwrap();
    };
    check_refused(lost, redb, "it is missing, and");
    let directory = |at: &Path| {
        std::fs::remove_file(store_file(at)).unwrap();
        std::fs::create_dir(store_file(at)).unwrap();
    };
    check_refused(directory, redb, "Is a directory");
    let file = |at: &Path| {
        std::fs::remove_dir_all(at.join("metadata")).unwrap();
        std::fs::write(at.join("metadata"), "").unwrap();
    };
    check_refused(file, redb, "Not a directory");
}

#[test]
fn one_broker_per_directory() {
    let (directory, _) = directory_with(&[register()]);
    let (_handle, thread) = run(directory.path()).unwrap();
    let error = run(directory.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another broker is running on this data directory"), "{error}");
    thread.stop();
    run(directory.path()).unwrap();
}

#[test]
fn an_unfinished_creation_is_no_store() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("metadata")).unwrap();
    std::fs::write(directory.path().join("metadata/metadata.redb.new"), "half").unwrap();
    assert_eq!(found(directory.path()).unwrap().version(), 0);
}

/// Whatever bit flips: the start is refused and says which file, or everything is there. Nothing is lost in
/// silence, and nothing panics.
#[test]
fn flipped_bits_are_found() {
    let commands: Vec<_> = std::iter::once(register()).chain((1..40).map(create)).collect();
    let (directory, image) = directory_with(&commands);
    // As it is while a broker runs, too.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::create_dir(crashed.path().join("metadata")).unwrap();
    {
        let (_handle, _thread) = run(directory.path()).unwrap();
        std::fs::copy(store_file(directory.path()), store_file(crashed.path())).unwrap();
    }
    let refused = AtomicU64::new(0);
    for at in [directory.path(), crashed.path()] {
        let bytes = std::fs::read(store_file(at)).unwrap();
        let check = |byte: usize| {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1 << (byte % 8);
            let copy = tempfile::tempdir().unwrap();
            std::fs::create_dir(copy.path().join("metadata")).unwrap();
            std::fs::write(store_file(copy.path()), &damaged).unwrap();
            match found(copy.path()) {
                Ok(found) => assert_eq!(found, image, "byte {byte} flipped"),
                Err(error) => {
                    refused.fetch_add(1, SeqCst);
                    assert!(error.to_string().contains("metadata.redb: "), "byte {byte}: {error}");
                }
            }
        };
        // All of the header's page, and samples of the pages that hold something.
        let rest = (4096..bytes.len()).filter(|&byte| bytes[byte] != 0).step_by(97);
        let flips: Vec<usize> = (0..320).step_by(3).chain(rest).collect();
        // Each start waits for the device a few times; together they wait for the same.
        std::thread::scope(|scope| {
            for share in flips.chunks(flips.len().div_ceil(8)) {
                scope.spawn(|| share.iter().for_each(|&byte| check(byte)));
            }
        });
    }
    let refused = refused.into_inner();
    assert!(refused > 20, "only {refused} flips were noticed");
}

#[test]
fn many_submitters() {
    let (directory, _) = directory_with(&[register()]);
    let published = Arc::new(Mutex::new(Vec::new()));
    let log = published.clone();
    let publish = move |image: Arc<Image>| log.lock().unwrap().push(image.version());
    let (handle, thread) =
        start(directory.path(), alone(), address(), &mailboxes(0).0, Box::new(publish)).unwrap();
    std::thread::scope(|scope| {
        for submitter in 0..8u128 {
            let handle = &handle;
            scope.spawn(move || {
                for turn in 0..25 {
                    let id = TopicId::new(submitter * 1000 + turn);
                    block_on(handle.submit(create(id.get()))).unwrap();
                    assert!(handle.image().topic(id).is_some(), "published before the answer");
                }
            });
        }
    });
    thread.stop();
    assert_eq!(handle.image().version(), 1 + 8 * 25);
    let published = published.lock().unwrap();
    assert!(published.is_sorted() && published.last() == Some(&201), "{published:?}");
    assert_eq!(found(directory.path()), Ok(handle.image()));
}

#[test]
fn answers_reach_a_glommio_executor() {
    let (directory, _) = directory_with(&[register()]);
    let (handle, thread) = run(directory.path()).unwrap();
    let submitter = handle.clone();
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .spawn(move || async move {
            for id in 1..4 {
                submitter.submit(create(id)).await.unwrap();
            }
        })
        .unwrap();
    executor.join().unwrap();
    thread.stop();
    assert_eq!(handle.image().topic_count(), 3);
}

/// Fails operations of the file: those with numbers in `from..until`, counted from when it is armed.
#[derive(Default)]
struct Faults {
    count: AtomicU64,
    from: AtomicU64,
    until: AtomicU64,
}

impl Faults {
    fn arm(&self, from: u64, until: u64) {
        self.count.store(0, SeqCst);
        self.from.store(from, SeqCst);
        self.until.store(until, SeqCst);
    }

    fn gate(self: &Arc<Self>, kind: ErrorKind, sync_too: bool) -> Gate {
        let faults = self.clone();
        Arc::new(move |operation| {
            let number = faults.count.fetch_add(1, SeqCst);
            let hit = (faults.from.load(SeqCst)..faults.until.load(SeqCst)).contains(&number);
            if hit && (sync_too || operation != Operation::Sync) {
                return Err(io::Error::new(kind, "made by the test"));
            }
            Ok(())
        })
    }
}

/// What happens when operations `from..until` of a commit fail with `kind`.
struct Case {
    answer: Result<Outcome, MetadataError>,
    /// Of the next command, with the faults gone.
    next: Result<Outcome, MetadataError>,
    /// Which topics a restart finds.
    kept: [bool; 2],
    reserve: bool,
    /// Whether any operation failed.
    reached: bool,
}

fn with_faults(kind: ErrorKind, sync_too: bool, from: u64, until: u64) -> Case {
    let (directory, _) = directory_with(&[register()]);
    let faults = Arc::new(Faults::default());
    let (handle, thread) = start_with(
        directory.path(),
        alone(),
        address(),
        &mailboxes(0).0,
        Box::new(|_| ()),
        faults.gate(kind, sync_too),
    )
    .unwrap();
    faults.arm(from, until);
    let answer = block_on(handle.submit(create(1)));
    let reached = faults.count.load(SeqCst) > from;
    assert_eq!(handle.image().topic(TopicId::new(1)).is_some(), answer.is_ok(), "serving goes on unchanged");
    faults.arm(0, 0);
    let next = block_on(handle.submit(create(2)));
    thread.stop();
    let reserve = directory.path().join("metadata/reserve");
    let reserve = std::fs::metadata(reserve).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64);
    let image = found(directory.path()).unwrap();
    let kept = [1, 2].map(|id| image.topic(TopicId::new(id)).is_some());
    Case { answer, next, kept, reserve, reached }
}

#[test]
fn a_full_disk_takes_the_reserve() {
    let mut from = 0;
    loop {
        let case = with_faults(ErrorKind::StorageFull, false, from, from + 1);
        if !case.reached {
            break;
        }
        assert!(case.answer.is_ok() && case.next.is_ok(), "{from}: {:?}, {:?}", case.answer, case.next);
        assert_eq!((case.kept, case.reserve), ([true, true], true), "{from}");
        from += 1;
    }
    assert!(from > 3, "only {from} operations were made to fail");
}

/// While there is no space, what comes is refused and what is under way waits; then all of that is done.
#[test]
fn a_full_disk_delays_and_loses_nothing() {
    let (directory, _) = directory_with(&[register()]);
    let faults = Arc::new(Faults::default());
    let gate = faults.gate(ErrorKind::StorageFull, false);
    let (handle, thread) =
        start_with(directory.path(), alone(), address(), &mailboxes(0).0, Box::new(|_| ()), gate).unwrap();
    faults.arm(0, u64::MAX);
    // Under way before any other: the writer has noticed nothing yet.
    let mut first = Box::pin(handle.submit(create(1)));
    let begun = block_on(poll_fn(|context| Poll::Ready(first.as_mut().poll(context))));
    assert!(begun.is_pending(), "{begun:?}");
    // Those before the writer has noticed wait with the first.
    let refused = (2..).map(|id| block_on(handle.submit(create(id)))).find(|result| {
        result.as_ref().is_err_and(|error| error.error_code() == ErrorCode::MetadataUnavailable)
    });
    assert!(refused.is_some());
    faults.arm(0, 0);
    // It is done whether or not the one who asked has had the patience to see it.
    let first = block_on(first);
    assert!(matches!(first, Ok(_) | Err(MetadataError::OutcomeUnknown(_))), "{first:?}");
    // Refused until the writer has found that there is room.
    let last = (0..).map(|_| block_on(handle.submit(create(1000)))).find(|result| {
        !result.as_ref().is_err_and(|error| error.error_code() == ErrorCode::MetadataUnavailable)
    });
    last.unwrap().unwrap();
    thread.stop();
    let image = found(directory.path()).unwrap();
    assert!([1, 1000].iter().all(|id| image.topic(TopicId::new(*id)).is_some()));
}

/// Wherever the room ends, and with it the reserve: a start that cannot go on ends, and says why.
#[test]
fn a_start_without_room_says_so() {
    let (directory, image) = directory_with(&[register()]);
    let faults = Arc::new(Faults::default());
    let gate = faults.gate(ErrorKind::StorageFull, false);
    let owner = Owner { broker: 1, address: address() };
    drop(Store::open(directory.path(), &owner, gate.clone()).unwrap());
    let opening = faults.count.load(SeqCst);
    let start =
        || start_with(directory.path(), alone(), address(), &mailboxes(0).0, Box::new(|_| ()), gate.clone());
    // The last time it opens, and its first commit fails.
    for from in 0..=opening {
        drop(std::fs::remove_file(directory.path().join("metadata/reserve")));
        faults.arm(from, u64::MAX);
        let Err(MetadataError::Store(error)) = start().map(|_| ()) else { panic!("{from}: it starts") };
        assert_eq!(error.path, store_file(directory.path()), "{from}");
        let parts =
            ["the disk is full: there is no room for the metadata", "made by the test", "free some space"];
        assert!(parts.iter().all(|part| error.problem.contains(part)), "{from}: {error}");
    }
    faults.arm(0, 0);
    let (handle, thread) = start().unwrap();
    assert_eq!(handle.image(), image);
    thread.stop();
}

#[test]
fn a_failing_device_is_not_asked_twice() {
    let (mut from, mut unknown) = (0, 0);
    loop {
        let case = with_faults(ErrorKind::Other, true, from, from + 1);
        if !case.reached {
            break;
        }
        match &case.answer {
            Ok(_) => assert!(case.next.is_ok() && case.kept == [true, true], "{from}"),
            Err(MetadataError::OutcomeUnknown(_)) => {
                unknown += 1;
                let Err(MetadataError::Unavailable(why)) = &case.next else {
                    panic!("{from}: {:?}", case.next)
                };
                assert!(why.contains("restart the broker"), "{why}");
                assert!(!case.kept[1], "{from}: what was refused has no effect");
            }
            Err(error) => panic!("{from}: {error}"),
        }
        from += 1;
    }
    assert!(unknown > 3, "only {unknown} operations were made to fail");
}

#[test]
fn a_command_that_could_not_be_read_back_is_refused() {
    let (directory, _) = directory_with(&[register(), create(1)]);
    let (handle, thread) = run(directory.path()).unwrap();
    let zeros = "0".repeat(COMMAND_BYTES_MAX);
    let set = vec![("retention.ms".to_owned(), zeros)];
    let alter = Command::AlterTopicConfigs { id: TopicId::new(1), set, unset: vec![] };
    let error = block_on(handle.submit(alter)).unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::InvalidRequest, "{error}");
    thread.stop();
    assert_eq!(found(directory.path()).unwrap().version(), 2);
}

#[test]
fn new_ids_differ() {
    assert_ne!(new_topic_id(), new_topic_id());
}
