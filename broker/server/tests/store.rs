//! The store over the real ring disk, end to end: append, wait for durability, read from memory and from
//! the device, roll, drop and recycle segments, checkpoint, stop cleanly, start again, also without
//! having stopped.
//!
//! Owns a directory under the target directory per test. Crashes are not played here (`crash_images`
//! does): a store that is "left" is merely dropped, so that everything written is still there.

use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings};
use logic::producer_state::Admission;
use schema::record_batch::{self, BatchBuilder, Producer};
use schema::segment::GROUP_HEADER_BYTES;
use server::partition::reader::ReadError;
use server::partition::{DurabilityWaiter, Partition, PartitionSettings, Standing};
use server::storage::disk::{Disk, Failed, Write};
use server::storage::ring::RingDisk;
use server::storage::{DiskPolicy, Environment, Storage};
use server::store::Store;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

const UUID: u128 = 77;
const TOPIC: TopicId = TopicId::new(0xf00d);

/// Real time, which a test may let pass faster, and nonces that do not repeat within a test.
struct Host {
    began: Instant,
    ahead_ms: Cell<i64>,
    nonce: Cell<u64>,
}

impl Environment for Host {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + self.began.elapsed().as_millis() as i64 + self.ahead_ms.get()
    }
    fn monotonic_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
    fn nonce(&self) -> u64 {
        let nonce = self.nonce.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.nonce.set(nonce);
        nonce
    }
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(glommio::timer::sleep(duration))
    }
}

/// Counts what became durable and wakes whoever waits for a number of it.
#[derive(Default)]
struct Acks {
    durable: Cell<u64>,
    closed: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Acks {
    fn more(&self, counter: &Cell<u64>) {
        counter.set(counter.get() + 1);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn wait(&self, count: u64) {
        poll_fn(|context| {
            if self.durable.get() + self.closed.get() >= count {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl DurabilityWaiter for Acks {
    fn durable(&self, _: u32, _: Offset) {
        self.more(&self.durable);
    }
    fn closed(&self, _: u32) {
        self.more(&self.closed);
    }
}

/// A store, what was appended to it, and what was acknowledged.
struct Rig {
    host: Rc<Host>,
    store: Rc<Store<RingDisk>>,
    acks: Rc<Acks>,
    expected: u64,
    appended: Vec<Vec<Vec<u8>>>,
}

fn settings(retention_bytes: i64) -> PartitionSettings {
    PartitionSettings {
        log: LogSettings { segment_bytes: 1 << 20, segment_ms: i64::MAX },
        retention: RetentionSettings { retention_ms: -1, retention_bytes },
        compaction: None,
        max_message_bytes: 4 << 20,
        log_append_time: false,
    }
}

fn identity(partition: u32) -> LogIdentity {
    LogIdentity {
        partition: TopicPartition { topic: TOPIC, partition: PartitionIndex::new(partition) },
        generation: 1,
    }
}

/// A batch of `records` whose bytes tell who wrote them.
fn batch(partition: u32, number: usize, records: usize, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for record in 0..records {
        let mut value = format!("{partition}/{number}/{record}/").into_bytes();
        value.resize(value_bytes.max(value.len()), b'a' + (number % 26) as u8);
        builder.append(1_700_000_000_000 + number as i64, None, Some(&value), &[]);
    }
    builder.finish()
}

impl Rig {
    async fn open(root: &Path, partitions: u32, retention_bytes: i64, service: bool) -> Self {
        Self::open_shard(root, 0, 0..partitions, retention_bytes, service).await
    }

    /// A shard that has some of the partitions.
    async fn open_shard(
        root: &Path,
        shard: u16,
        partitions: std::ops::Range<u32>,
        retention_bytes: i64,
        service: bool,
    ) -> Self {
        std::fs::create_dir_all(root.join("topics")).expect("the directory can be made");
        if !root.join("flush").exists() {
            std::fs::write(root.join("flush"), vec![0; 4096]).expect("the flush file can be made");
        }
        let disk = RingDisk::new(true, false).expect("a ring");
        let nonce = u64::from(std::process::id()) + (u64::from(shard) << 40);
        let host = Rc::new(Host { began: Instant::now(), ahead_ms: Cell::new(0), nonce: Cell::new(nonce) });
        let policy = DiskPolicy { one_flush_covers_all_files: true, ..DiskPolicy::default() };
        let (storage, checkpoint) =
            Storage::open(disk, host.clone(), policy, root, ShardId::new(shard), UUID)
                .await
                .expect("storage opens");
        let store = Store::new(storage, checkpoint, 2);
        let appended = vec![Vec::new(); partitions.end as usize];
        for partition in partitions {
            store
                .open_partition(identity(partition), settings(retention_bytes), LeaderEpoch::new(1))
                .await
                .expect("the partition opens");
        }
        if service {
            store.begin_service().await.expect("the first checkpoint");
        }
        Self { host, store, acks: Rc::default(), expected: 0, appended }
    }

    fn partition(&self, partition: u32) -> Rc<Partition<RingDisk>> {
        self.store.partition(&identity(partition).partition).expect("the partition is open")
    }

    fn append(&mut self, partition: u32, records: usize, value_bytes: usize, in_place: bool) {
        let home = self.partition(partition);
        let number = self.appended[partition as usize].len();
        let mut bytes = batch(partition, number, records, value_bytes);
        let header = record_batch::validate_produced(&bytes, 8 << 20).expect("a sound batch");
        let appended = if in_place {
            let mut buffer = self.store.storage.pool.take(GROUP_HEADER_BYTES + bytes.len());
            buffer[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + bytes.len()].copy_from_slice(&bytes);
            home.append_in_place(buffer, &header)
        } else {
            home.append_copy(&bytes, &header)
        };
        record_batch::set_base_offset(&mut bytes, appended.base.get());
        record_batch::set_leader_epoch(&mut bytes, 1);
        self.appended[partition as usize].push(bytes);
        home.when_durable(appended.end, self.acks.clone(), 0);
        self.expected += 1;
        self.store.mark_dirty(home.id());
    }

    async fn settle(&self) {
        self.acks.wait(self.expected).await;
    }

    /// Reads a partition from its start, and compares with what was appended; the bytes that were read.
    async fn check(&self, partition: u32, appended: &[Vec<u8>], max_bytes: usize) -> usize {
        let home = self.partition(partition);
        let start = home.with_log(|log| log.log_start());
        let expected: Vec<u8> = appended
            .iter()
            .filter(|batch| record_batch::Header::decode(batch).expect("sound").end_offset() > start.get())
            .flatten()
            .copied()
            .collect();
        let mut found = Vec::new();
        let mut offset = start;
        loop {
            let slices = home.read(&self.store.chunks, offset, max_bytes).await.expect("readable");
            if slices.is_empty() {
                break;
            }
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.bytes()).copied().collect();
            for batch in record_batch::batches(&bytes) {
                offset = Offset::new(batch.expect("whole batches").0.end_offset());
            }
            found.extend(bytes);
        }
        assert_eq!(offset, home.high_watermark(), "partition {partition}");
        assert!(found == expected, "partition {partition}: {} of {} bytes", found.len(), expected.len());
        found.len()
    }
}

/// Runs a test on an executor of its own, with an empty directory.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let root = directory.path().to_owned();
    glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .spawn(move || test(root))
        .expect("an executor")
        .join()
        .expect("the test passes");
}

#[test]
fn what_is_acknowledged_is_read_from_memory_and_from_the_device() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 3, -1, true).await;
        for number in 0..40 {
            for partition in 0..3 {
                rig.append(partition, 1 + number % 5, 100 + 997 * number % 20_000, number % 7 == 3);
            }
            if number % 9 == 0 {
                rig.settle().await;
            }
        }
        rig.settle().await;
        for partition in 0..3 {
            rig.check(partition, &rig.appended[partition as usize], 100_000).await;
        }
        let reads = rig.store.storage.counters.reads.get();
        assert_eq!(reads, 0, "the tail is served from memory");
        assert_eq!(rig.store.storage.dirty_bytes(), 0);
        let appended = rig.appended.clone();
        rig.store.shut_down().await.expect("an orderly end");
        drop(rig);

        let rig = Rig::open(&root, 3, -1, true).await;
        for partition in 0..3 {
            let report = rig.partition(partition).report().clone();
            assert!(report.bytes_read <= 8192, "a clean start reads {} bytes", report.bytes_read);
            rig.check(partition, &appended[partition as usize], 50_000).await;
        }
        assert!(rig.store.storage.counters.reads.get() > 0);
        assert_eq!(rig.store.storage.notices(), Vec::<String>::new());
    });
}

/// The first that is asked of a log after a start is what its last batch is: a large segment is not read from its start for that.
#[test]
fn the_end_of_a_log_is_found_without_reading_all_of_it() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        let home = rig.partition(0);
        let log = LogSettings { segment_bytes: 128 << 20, segment_ms: i64::MAX };
        home.set_settings(PartitionSettings { log, ..home.settings() });
        // The settings count from the next segment on.
        while home.with_log(|log| log.segments().len()) < 2 {
            rig.append(0, 1, 500_000, false);
            rig.settle().await;
        }
        for _ in 0..40 {
            rig.append(0, 1, 500_000, false);
            rig.settle().await;
        }
        let (start, end) = home.with_log(|log| (log.segments()[1].base, log.log_end()));
        let known = home.fingerprint(&rig.store.chunks, end).await.expect("it is in memory");
        assert!(known.is_some());
        rig.store.shut_down().await.expect("an orderly end");
        drop((home, rig));

        let rig = Rig::open(&root, 1, -1, true).await;
        let (home, reads) = (rig.partition(0), || rig.store.storage.counters.read_bytes.get());
        assert_eq!(home.fingerprint(&rig.store.chunks, end).await.expect("readable"), known);
        assert!(reads() < 4 << 20, "{} bytes read", reads());
        // Whoever looks further back has all of it read, and found.
        let early = Offset::new(start.get() + 1);
        assert!(home.fingerprint(&rig.store.chunks, early).await.expect("readable").is_some());
        assert!(reads() > 16 << 20, "{} bytes read", reads());
    });
}

/// What was cut off at the end and may have been acknowledged is not forgotten by a start that dies before anybody knows of
/// it, where other replicas have it.
#[test]
fn a_doubted_tail_is_remembered_until_it_is_repaired() {
    // The epoch of a log that is alone; `None` = it has other replicas.
    for alone in [None, Some(LeaderEpoch::new(1))] {
        run(move |root| async move {
            let mut rig = Rig::open(&root, 1, -1, true).await;
            for _ in 0..3 {
                rig.append(0, 2, 3_000, false);
                rig.settle().await;
            }
            let last = rig.appended[0][2].clone();
            drop(rig);
            // The last group rots.
            flip(&root, &last[last.len() - 2_000..]);
            // What each start finds, the second one as if the first had died at once.
            for start in 0..4 {
                let rig = Rig::open(&root, 0, -1, false).await;
                let home =
                    rig.store.open_partition(identity(0), settings(-1), alone).await.expect("it opens");
                assert_eq!(home.lost_from(), None);
                let unproven = home.report().unproven.map(|(from, _)| from);
                let doubted = home.report().doubted;
                let remembered = (alone.is_none() && (1..3).contains(&start)).then_some(4);
                assert_eq!((unproven, doubted), ((start == 0).then_some(4), remembered), "start {start}");
                if start == 2 {
                    home.forget_doubts().await.expect("it is forgotten");
                }
            }
        });
    }
}

/// What is lost up to the end, and was acknowledged for certain, is noted by the start that finds it, where other replicas have it,
/// and until it is cut away the next one finds it, too.
#[test]
fn an_end_that_is_lost_is_found_until_it_is_cut_away() {
    for alone in [None, Some(LeaderEpoch::new(1))] {
        run(move |root| async move {
            let mut rig = Rig::open(&root, 2, -1, true).await;
            for _ in 0..3 {
                rig.append(0, 2, 3_000, false);
                rig.settle().await;
            }
            // What is written behind it says that it was durable; with the next round.
            assert!(rig.partition(0).attest_if_idle(i64::MAX));
            rig.store.mark_dirty(identity(0).partition);
            rig.append(1, 1, 100, false);
            rig.settle().await;
            let last = rig.appended[0][2].clone();
            drop(rig);
            flip(&root, &last[last.len() - 2_000..]);
            for start in 0..4 {
                let rig = Rig::open(&root, 0, -1, false).await;
                let home =
                    rig.store.open_partition(identity(0), settings(-1), alone).await.expect("it opens");
                let doubted = (alone.is_none() && start > 0).then_some(4);
                assert_eq!((home.report().unproven, home.report().doubted), (None, doubted), "start {start}");
                let end = home.with_log(|log| log.log_end().get());
                let found = (home.lost_from().map(Offset::get), end);
                let is_cut = alone.is_none() && start > 1;
                assert_eq!(found, if is_cut { (None, 4) } else { (Some(4), 6) }, "start {start}");
                if start == 1 && alone.is_none() {
                    rig.store.begin_service().await.expect("a checkpoint");
                    let end = rig.store.truncate(&home, Offset::new(4)).await.expect("it is cut");
                    assert_eq!(end, Offset::new(4));
                }
            }
        });
    }
}

/// Flips a bit of what stands in one file of the logs below `root`.
fn flip(root: &Path, found: &[u8]) {
    let names = |path: std::path::PathBuf| {
        let names = std::fs::read_dir(path).expect("a directory");
        names.map(|name| name.expect("a name").path()).collect::<Vec<_>>()
    };
    let mut rotted = 0;
    for path in names(root.join("topics")).into_iter().flat_map(names).flat_map(names) {
        let mut bytes = std::fs::read(&path).expect("it can be read");
        if let Some(at) = bytes.windows(found.len()).position(|window| window == found) {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("it can be written");
            rotted += 1;
        }
    }
    assert_eq!(rotted, 1);
}

#[test]
fn segments_roll_and_are_recycled() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 2, 2 << 20, true).await;
        for number in 0..200 {
            for partition in 0..2 {
                rig.append(partition, 3, 15_000 + number * 37, number % 3 == 0);
            }
            if number % 4 == 0 {
                rig.settle().await;
                rig.store.tick().await;
            }
            if number % 20 == 0 {
                rig.store.enforce_retention().await;
            }
            if number % 50 == 0 {
                rig.store.checkpoint(false).await.expect("a checkpoint");
            }
        }
        rig.settle().await;
        rig.store.tick().await;
        rig.store.enforce_retention().await;
        let counters = &rig.store.storage.counters;
        let (created, recycled) = (counters.segments_created.get(), counters.segments_recycled.get());
        assert!(created + recycled > 10 && recycled > 0, "{created} created, {recycled} recycled");
        for partition in 0..2 {
            let kept = rig.check(partition, &rig.appended[partition as usize], 1 << 20).await;
            assert!((2 << 20..5 << 20).contains(&kept), "partition {partition} keeps {kept} bytes");
            let home = rig.partition(partition);
            assert!(home.with_log(|log| log.log_start()).get() > 0);
            // Still in memory, and gone all the same.
            assert!(home.tail_bytes() > 5 << 20 && home.read_tail(Offset::new(0), 1000).is_none());
            let gone = home.read(&rig.store.chunks, Offset::new(0), 1000).await;
            assert!(matches!(gone, Err(ReadError::OutOfRange { .. })), "{gone:?}");
        }
        let appended = rig.appended.clone();
        // Not shut down: the next start must recover.
        drop(rig);
        let mut rig = Rig::open(&root, 2, 2 << 20, true).await;
        rig.appended = appended;
        for partition in 0..2 {
            rig.check(partition, &rig.appended[partition as usize], 300_000).await;
            assert_eq!(rig.partition(partition).report().lost, vec![]);
            assert_eq!(rig.partition(partition).report().unproven, None);
        }
        for number in 0..30 {
            rig.append(0, 2, 40_000 + number, false);
            rig.settle().await;
        }
        rig.check(0, &rig.appended[0], 1 << 20).await;
        rig.store.shut_down().await.expect("an orderly end");
    });
}

const HOUR_MS: i64 = 3_600_000;

impl Rig {
    /// Nothing is appended for an hour: what becomes of the logs, each the number of its segments.
    async fn an_hour_passes(&self) -> Vec<usize> {
        self.host.ahead_ms.set(self.host.ahead_ms.get() + HOUR_MS);
        self.store.tick().await;
        self.store.enforce_retention().await;
        self.segments()
    }

    fn segments(&self) -> Vec<usize> {
        let partitions = self.store.partitions();
        partitions.iter().map(|home| home.with_log(|log| log.segments().len())).collect()
    }
}

#[test]
fn retention_finds_what_falls_due_in_logs_that_nobody_appends_to() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 4, -1, true).await;
        for _ in 0..12 {
            (0..4).for_each(|partition| rig.append(partition, 1, 300_000, true));
            rig.settle().await;
            rig.store.tick().await;
        }
        let all = rig.segments();
        assert!(all.iter().all(|segments| *segments > 2), "{all:?}");
        let keeps = |retention_ms| {
            let retention = RetentionSettings { retention_ms, retention_bytes: -1 };
            PartitionSettings { retention, ..settings(-1) }
        };
        let [by_time, by_setting, deleted, committed] =
            [0, 1, 2, 3].map(|partition| rig.partition(partition));
        by_time.set_settings(keeps(3 * HOUR_MS + HOUR_MS / 2));
        by_setting.set_settings(keeps(10 * HOUR_MS));
        for _ in 0..3 {
            assert_eq!(rig.an_hour_passes().await, all);
        }
        assert_eq!(rig.an_hour_passes().await, [1, all[1], all[2], all[3]], "its time has come");
        by_setting.set_settings(keeps(HOUR_MS));
        rig.store.enforce_retention().await;
        assert_eq!(rig.segments(), [1, 1, all[2], all[3]], "it keeps less from now on");
        deleted.delete_before(None).expect("up to the end");
        assert_eq!(rig.segments(), [1, 1, 1, all[3]], "somebody wants it gone");
        let files = |partition: &Partition<RingDisk>| {
            let log = format!("{}.1", partition.id().partition);
            std::fs::read_dir(root.join("topics").join(TOPIC.to_string()).join(log))
                .expect("its directory")
                .count()
        };
        assert!(files(&deleted) > 2);
        rig.store.enforce_retention().await;
        assert!(files(&deleted) <= 2, "the active one, and perhaps the next");
        // It comes back with replicas that may not have it: what is committed is found out later.
        drop((by_time, by_setting, deleted, committed, rig));
        let rig = Rig::open(&root, 4, -1, true).await;
        let committed = rig.partition(3);
        committed.replicate(true);
        committed.set_settings(keeps(HOUR_MS));
        committed.set_standing(Standing { leads: true, applied: true, follows: None, refusal: None });
        assert_eq!(rig.an_hour_passes().await[3], all[3], "above the high watermark");
        committed.set_high_watermark(committed.with_log(|log| log.log_end()));
        rig.store.enforce_retention().await;
        assert_eq!(rig.segments()[3], 1);
    });
}

#[test]
fn time_stamps_are_found_and_offsets_out_of_range_refused() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        for number in 0..120 {
            rig.append(0, 2, 12_000 + number, false);
            if number % 10 == 0 {
                rig.settle().await;
            }
        }
        rig.settle().await;
        let home = rig.partition(0);
        for number in [0i64, 1, 50, 119] {
            let found = home.offset_of_timestamp(&rig.store.chunks, 1_700_000_000_000 + number).await;
            let expected = (Offset::new(2 * number as u64), 1_700_000_000_000 + number);
            assert_eq!(found.expect("readable"), Some(expected));
        }
        let late = home.offset_of_timestamp(&rig.store.chunks, 1_700_000_000_120).await;
        assert_eq!(late.expect("readable"), None);
        let beyond = home.read(&rig.store.chunks, Offset::new(241), 1000).await;
        assert!(matches!(beyond, Err(ReadError::OutOfRange { .. })), "{beyond:?}");
        assert!(home.read(&rig.store.chunks, Offset::new(240), 1000).await.expect("the end").is_empty());
    });
}

#[test]
fn a_partition_is_deleted_while_rounds_are_in_flight() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 2, -1, true).await;
        for number in 0..20 {
            rig.append(0, 1, 200_000 + number, true);
            rig.append(1, 1, 1000, false);
        }
        // Let a round begin, then pull the partition away.
        glommio::timer::sleep(Duration::from_micros(100)).await;
        let closed = rig.store.close_partition(&identity(0).partition).expect("it was open");
        rig.settle().await;
        closed.delete_files().await.expect("its files go");
        assert_eq!(rig.store.storage.dirty_bytes(), 0);
        assert!(!root.join("topics").join(TOPIC.to_string()).join("0.1").exists());
        rig.check(1, &rig.appended[1], 1 << 20).await;
        rig.store.shut_down().await.expect("an orderly end");
    });
}

/// From one shard to another and back, while rounds are in flight: the new one goes on where the old one was without reading
/// what there is, and checkpoints of the old one say where that is until it is told to forget it.
#[test]
fn a_partition_is_handed_from_shard_to_shard() {
    run(|root| async move {
        let mut rigs = [
            Rig::open_shard(&root, 0, 0..1, -1, true).await,
            Rig::open_shard(&root, 1, 1..1, -1, true).await,
        ];
        let id = identity(0).partition;
        for turn in 0..6u32 {
            let (from, to) = (turn as usize % 2, 1 - turn as usize % 2);
            for number in 0..12 {
                rigs[from].append(0, 1, 30_000 + 100 * number, number % 2 == 0);
            }
            let told = Cell::new(0);
            let home = rigs[from].partition(0);
            let before = rigs[from].acks.durable.get();
            let released =
                rigs[from].store.release(&id, || told.set(told.get() + 1)).await.expect("it was open");
            assert!(home.is_closed() && home.has_stopped() && released.at_rest);
            assert_eq!((told.get(), rigs[from].acks.durable.get()), (1, before + 12), "all of it is durable");
            assert_eq!(rigs[from].store.storage.dirty_bytes(), 0);
            assert!(
                rigs[from].store.partition(&id).is_none()
                    && rigs[from].store.release(&id, || ()).await.is_none()
            );
            let epoch = LeaderEpoch::new(1);
            let opened = rigs[to]
                .store
                .take_over(identity(0), settings(-1), epoch, &released)
                .await
                .expect("it opens");
            let report = opened.report();
            assert!(
                report.lost.is_empty() && report.unproven.is_none() && report.bytes_read <= 16 << 10,
                "{report:?}"
            );
            // A cut that was about to begin leaves alone what is another shard's now.
            let cut = rigs[from].store.truncate(&home, Offset::new(1)).await;
            assert_eq!(cut.expect_err("it is closed").kind(), std::io::ErrorKind::NotConnected);
            rigs[to].appended[0].clear();
            let appended = std::mem::take(&mut rigs[from].appended[0]);
            rigs[to].check(0, &appended, 1 << 20).await;
            rigs[to].appended[0] = appended;
            // Whatever is written of checkpoints now, one of them says where the log stood.
            rigs[from].store.checkpoint(false).await.expect("a checkpoint");
            rigs[to].store.checkpoint(false).await.expect("a checkpoint");
            rigs[from].store.forget_released(&identity(0));
            rigs[from].store.checkpoint(false).await.expect("a checkpoint");
        }
        let appended = rigs[0].appended[0].clone();
        drop(rigs);
        // Left as by a crash: where it was last it is found.
        let rig = Rig::open(&root, 1, -1, true).await;
        rig.check(0, &appended, 1 << 20).await;
        let report = rig.partition(0).report().clone();
        assert!(report.lost.is_empty() && report.unproven.is_none(), "{report:?}");
        rig.store.shut_down().await.expect("an orderly end");
    });
}

/// Metadata from a backup says an epoch that the log has left behind.
#[test]
fn a_leader_epoch_does_not_go_back() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        let home = rig.partition(0);
        rig.append(0, 1, 1000, false);
        for (said, in_force, notices) in [(5, 5, 0), (5, 5, 0), (2, 5, 1), (7, 7, 1)] {
            home.set_leader_epoch(LeaderEpoch::new(said));
            assert_eq!(home.leader_epoch().get(), in_force, "epoch {said}");
            rig.append(0, 1, 1000, false);
            rig.settle().await;
            assert_eq!(rig.store.storage.notices().len(), notices, "epoch {said}");
        }
        let epochs = home.with_log(|log| log.epochs().to_vec());
        rig.store.shut_down().await.expect("an orderly end");
        drop((home, rig));
        // Opened with epoch 1.
        let mut rig = Rig::open(&root, 1, -1, true).await;
        assert_eq!(rig.partition(0).leader_epoch().get(), 7);
        let notices = rig.store.storage.notices();
        assert!(
            notices.len() == 1 && notices[0].contains("the log has 7, which stays in force"),
            "{notices:?}"
        );
        rig.append(0, 1, 1000, true);
        rig.settle().await;
        assert_eq!(rig.partition(0).with_log(|log| log.epochs().to_vec()), epochs);
        rig.store.shut_down().await.expect("an orderly end");
    });
}

#[test]
fn a_failed_write_is_named() {
    run(|root| async move {
        let rig = Rig::open(&root, 1, -1, true).await;
        let (storage, id) = (rig.store.storage.clone(), identity(0).partition);
        storage.name_topic(TOPIC, "orders".into());
        let (opened_as, path) = (root.join("new"), root.join("segment.log"));
        let file = storage.disk.create(&opened_as).await.expect("a file");
        storage.disk.rename(&opened_as, &path).await.expect("its final name");
        let buffer = Rc::new(storage.pool.take(4096));
        // The second one lies behind the largest file there can be.
        let far = i64::MAX as u64 - 4095;
        let write = |position| {
            let (file, buffer) = (file.clone(), buffer.clone());
            Write { file, buffer, range: 0..4096, position, durable: false }
        };
        let error = storage.disk.write(vec![write(0), write(far), write(4096)]).await.expect_err("too far");
        assert_eq!(Failed::of(&error).map(|failed| failed.index), Some(1));
        let told = storage.failure("writing a flush round", Some(id), &error);
        let place = format!("{} at byte {far}: ", path.display());
        for part in
            ["of topic orders partition 0", &place, "the next start recovers", "dmesg", "start the broker"]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
        rig.store.shut_down().await.expect("an orderly end");
    });
}

/// Batches as a leader has them, from `base` on: (epoch, records) each.
fn led(base: u64, batches: &[(u32, usize)]) -> Vec<u8> {
    let mut next = base;
    let mut out = Vec::new();
    for (number, (epoch, records)) in batches.iter().enumerate() {
        let mut bytes = batch(0, next as usize + number, *records, 200);
        record_batch::set_base_offset(&mut bytes, next);
        record_batch::set_leader_epoch(&mut bytes, *epoch);
        next += *records as u64;
        out.extend(bytes);
    }
    out
}

impl Rig {
    /// Appends batches of a leader, and waits until they are durable.
    async fn follow(&mut self, bytes: &[u8], epoch: u32) -> Vec<(u64, u64, u32)> {
        let home = self.partition(0);
        let runs = home.append_pushed(bytes, LeaderEpoch::new(epoch)).expect("they follow");
        home.when_durable(runs[runs.len() - 1].end, self.acks.clone(), 0);
        self.expected += 1;
        self.store.mark_dirty(home.id());
        self.settle().await;
        runs.iter().map(|run| (run.base.get(), run.end.get(), run.epoch.get())).collect()
    }

    /// What other replicas would be sent from `offset` on.
    async fn pushed(&self, offset: u64) -> Vec<u8> {
        let home = self.partition(0);
        let mut found = Vec::new();
        let mut next = Offset::new(offset);
        loop {
            let read = home.read_for_push(&self.store.chunks, next, 500).await.expect("readable");
            if read.slices.is_empty() {
                return found;
            }
            read.slices.iter().for_each(|slice| found.extend_from_slice(slice.bytes()));
            next = read.end;
        }
    }

    fn ends(&self) -> (u64, u64, u64) {
        let log = |log: &logic::log::Log| (log.log_start(), log.durable_end(), log.high_watermark());
        let (start, end, committed) = self.partition(0).with_log(log);
        (start.get(), end.get(), committed.get())
    }
}

#[test]
fn a_follower_has_the_same_bytes_and_shows_what_is_committed() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        let home = rig.partition(0);
        home.replicate(true);
        let bytes = led(0, &[(1, 3), (1, 2), (2, 4), (4, 1)]);
        assert_eq!(rig.follow(&bytes, 4).await, [(0, 5, 1), (5, 9, 2), (9, 10, 4)]);
        let epochs: Vec<(u32, u64)> = home
            .with_log(|log| log.epochs().iter().map(|(epoch, start)| (epoch.get(), start.get())).collect());
        assert_eq!(epochs, [(1, 0), (2, 5), (4, 9)]);
        assert_eq!(rig.ends(), (0, 10, 0));
        // Nothing is committed: consumers see nothing, replicas all of it.
        assert!(home.read(&rig.store.chunks, Offset::new(0), 9000).await.expect("readable").is_empty());
        assert_eq!(rig.pushed(0).await, bytes);
        assert_eq!(rig.pushed(3).await, led(0, &[(1, 3), (1, 2), (2, 4), (4, 1)])[led(0, &[(1, 3)]).len()..]);
        // In the middle of a group.
        home.set_high_watermark(Offset::new(3));
        let seen = home.read(&rig.store.chunks, Offset::new(0), 9000).await.expect("readable");
        assert_eq!(
            seen.iter().flat_map(|slice| slice.bytes()).copied().collect::<Vec<u8>>(),
            led(0, &[(1, 3)])
        );
        assert!(home.read(&rig.store.chunks, Offset::new(3), 9000).await.expect("readable").is_empty());
        // What does not follow is not taken: a gap at the begin is the protocol's to see; here order, epoch, damage.
        let again = home.append_pushed(&bytes, LeaderEpoch::new(4));
        assert!(again.is_err() && home.append_pushed(&led(10, &[(3, 1)]), LeaderEpoch::new(4)).is_err());
        assert!(home.append_pushed(&led(10, &[(5, 1)]), LeaderEpoch::new(4)).is_err());
        let mut damaged = led(10, &[(4, 1), (4, 1)]);
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(home.append_pushed(&damaged, LeaderEpoch::new(4)).is_err());
        assert_eq!(rig.ends(), (0, 10, 3));
        let fingerprint = |offset| {
            let (home, chunks) = (home.clone(), rig.store.chunks.clone());
            async move { home.fingerprint(&chunks, Offset::new(offset)).await.expect("readable") }
        };
        assert!(fingerprint(3).await.is_some() && fingerprint(10).await.is_some());
        assert!(fingerprint(4).await.is_none() && fingerprint(0).await.is_none());
        rig.store.shut_down().await.expect("an orderly end");
        drop(rig);
        // From the device: groups of the same bytes.
        let rig = Rig::open(&root, 1, -1, true).await;
        assert_eq!(rig.pushed(0).await, bytes);
    });
}

#[test]
fn a_log_that_was_cut_goes_on_there() {
    // Batches of 3, 2, 4 and 1 records: where it is cut, where it ends then, the epochs that are left.
    let rows: [(u64, u64, &[u32]); 7] = [
        (9, 9, &[1, 2]),
        (7, 5, &[1]),
        (5, 5, &[1]),
        (4, 3, &[1]),
        (3, 3, &[1]),
        (10, 10, &[1, 2, 4]),
        (0, 0, &[]),
    ];
    for (cut, end, epochs) in rows {
        run(move |root| async move {
            let bytes = led(0, &[(1, 3), (1, 2), (2, 4), (4, 1)]);
            let mut rig = Rig::open(&root, 1, -1, true).await;
            rig.partition(0).replicate(true);
            rig.follow(&bytes, 4).await;
            rig.store.checkpoint(false).await.expect("a checkpoint of before");
            let home = rig.partition(0);
            let found = rig.store.truncate(&home, Offset::new(cut)).await.expect("it is cut");
            assert_eq!((found.get(), rig.ends().1), (end, end), "cut at {cut}");
            let left: Vec<u32> =
                home.with_log(|log| log.epochs().iter().map(|(epoch, _)| epoch.get()).collect());
            assert_eq!(left, epochs, "cut at {cut}");
            assert_eq!(rig.store.tail_bytes(), home.tail_bytes());
            let kept: usize = record_batch::batches(&bytes)
                .map(|batch| batch.expect("sound").0)
                .filter(|header| header.end_offset() <= end)
                .map(|header| header.batch_bytes)
                .sum();
            assert!(rig.pushed(0).await == bytes[..kept], "cut at {cut}");
            let more = led(end, &[(5, 2), (5, 1)]);
            rig.follow(&more, 5).await;
            let expected = [&bytes[..kept], &more[..]].concat();
            assert!(rig.pushed(0).await == expected, "cut at {cut}");
            // Left as by a crash, and once more.
            drop((home, rig));
            for _ in 0..2 {
                let rig = Rig::open(&root, 1, -1, true).await;
                assert_eq!(rig.ends(), (0, end + 3, end + 3), "cut at {cut}");
                assert!(rig.pushed(0).await == expected, "cut at {cut}");
                assert!(
                    rig.partition(0).report().lost.is_empty() && rig.partition(0).report().unproven.is_none()
                );
                // What went besides may have been acknowledged: that is not forgotten.
                let doubted = (end < cut).then_some(end);
                assert_eq!(rig.partition(0).report().doubted, doubted, "cut at {cut}");
            }
        });
    }
}

/// One batch of one record of a producer, or of none, at `base`.
fn sent(base: u64, producer: Producer, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new().with_producer(producer);
    builder.append(1_700_000_000_000, None, Some(&vec![b'v'; value_bytes]), &[]);
    let mut bytes = builder.finish();
    record_batch::set_base_offset(&mut bytes, base);
    record_batch::set_leader_epoch(&mut bytes, 1);
    bytes
}

/// As a suspect's log is cut. What is remembered of a producer is cut, and what is left of it lies two segments before.
#[test]
fn a_low_cut_forgets_no_producer() {
    let of = |id, base_sequence| Producer { id, epoch: 0, base_sequence };
    run(move |root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        rig.partition(0).replicate(true);
        let producers = (0..3)
            .map(|sequence| (of(1, sequence), 200))
            .chain([(Producer::NONE, 700_000); 3])
            .chain((3..13).map(|sequence| (of(1, sequence), 200)))
            .chain((0..3).map(|sequence| (of(2, sequence), 200)));
        // Each in a group of its own.
        for (base, (producer, value_bytes)) in producers.enumerate() {
            rig.follow(&sent(base as u64, producer, value_bytes), 1).await;
        }
        rig.store.checkpoint(false).await.expect("a checkpoint of before");
        let home = rig.partition(0);
        assert!(home.with_log(|log| log.segments().len()) >= 3 && home.producer_count() == 2);
        assert_eq!(rig.store.truncate(&home, Offset::new(6)).await.expect("it is cut").get(), 6);
        drop(home);
        // As it goes on, and as a recovery finds it.
        for _ in 0..2 {
            let home = rig.partition(0);
            assert_eq!((rig.ends().1, home.producer_count()), (6, 1));
            let admitted = |producer| {
                let header = record_batch::Header::decode(&sent(0, producer, 1)).expect("it was built");
                home.admit_producer(&header)
            };
            let again = admitted(of(1, 2)).expect("it is there");
            assert!(matches!(again, Admission::Duplicate(note) if note.base.get() == 2), "{again:?}");
            assert!(admitted(of(1, 4)).is_err(), "a gap");
            assert_eq!(admitted(of(2, 0)), Ok(Admission::Append), "nothing of it is left");
            drop((home, rig));
            rig = Rig::open(&root, 1, -1, true).await;
        }
    });
}

#[test]
fn a_log_that_was_discarded_begins_where_it_is_told() {
    run(|root| async move {
        let mut rig = Rig::open(&root, 1, -1, true).await;
        let home = rig.partition(0);
        home.replicate(true);
        rig.follow(&led(0, &[(1, 3), (1, 2)]), 1).await;
        rig.store.checkpoint(false).await.expect("a checkpoint of before");
        rig.store.reset(&home, Offset::new(40)).await.expect("it is discarded");
        assert_eq!(rig.ends(), (40, 40, 40));
        rig.follow(&led(40, &[(3, 2)]), 3).await;
        home.enforce_retention().await.expect("files go");
        drop((home, rig));
        let rig = Rig::open(&root, 1, -1, true).await;
        assert_eq!(rig.ends(), (40, 42, 42));
        assert_eq!(rig.pushed(40).await, led(40, &[(3, 2)]));
        assert!(rig.partition(0).report().lost.is_empty() && rig.partition(0).report().unproven.is_none());
    });
}
