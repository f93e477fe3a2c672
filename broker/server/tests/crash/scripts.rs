//! Bugs that were found once, each as a script: start, append, stop or pull the plug, damage, start again.
//!
//! Runs on the recording disk with everything completing at once, so that a script reads top to bottom.

use super::Dice;
use super::disk::{CrashDisk, CrashEnvironment, Habits, Mode};
use super::image::{Entry, Image};
use super::life::{root, settle};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{DSYNC_WRITES_DEFAULT, PREWRITE_FIRST_BYTES_MAX};
use logic::log::compaction::CompactionSettings;
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings, SegmentName};
use logic::producer_state::Admission;
use schema::checkpoint::Checkpoint;
use schema::record_batch::{self, BatchBuilder, Header, Producer};
use schema::segment::BLOCK_BYTES;
use server::partition::reader::ReadError;
use server::partition::{DurabilityWaiter, Partition, PartitionSettings};
use server::storage::{DiskPolicy, Storage, is_no_space, partition_directory, segment_name};
use server::store::Store;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const IDENTITY: LogIdentity = LogIdentity {
    partition: TopicPartition { topic: TopicId::new(5), partition: PartitionIndex::new(0) },
    generation: 1,
};

#[derive(Default)]
struct Acknowledged(Cell<u64>);

impl DurabilityWaiter for Acknowledged {
    fn durable(&self, _: u32, durable_end: Offset) {
        self.0.set(durable_end.get());
    }
    fn closed(&self, _: u32) {}
}

/// A running store with one partition.
pub struct Script {
    disk: CrashDisk,
    store: Rc<Store<CrashDisk>>,
    pub partition: Rc<Partition<CrashDisk>>,
    acknowledged: Rc<Acknowledged>,
}

impl Script {
    /// Starts over an image; every group gets a segment of its own if `segment_ms` is 0.
    pub async fn start(image: &Image, segment_ms: i64) -> io::Result<Self> {
        Self::start_with(image, segment_ms, None, false, DSYNC_WRITES_DEFAULT).await
    }

    /// The same, where every write counts on a flush of the device if it may.
    pub async fn start_sharing(image: &Image) -> io::Result<Self> {
        Self::start_with(image, i64::MAX, None, false, 0).await
    }

    /// The same with a compacted log.
    pub async fn start_compacted(image: &Image) -> io::Result<Self> {
        let settings = CompactionSettings {
            min_dirty_millionths: 0,
            min_lag_ms: 0,
            max_lag_ms: i64::MAX,
            delete_retention_ms: 0,
        };
        Self::start_with(image, 0, Some(settings), false, DSYNC_WRITES_DEFAULT).await
    }

    /// The same on a disk that is full already.
    pub async fn start_full(image: &Image) -> io::Result<Self> {
        Self::start_with(image, i64::MAX, None, true, DSYNC_WRITES_DEFAULT).await
    }

    async fn start_with(
        image: &Image,
        segment_ms: i64,
        compaction: Option<CompactionSettings>,
        full: bool,
        dsync_writes_max: usize,
    ) -> io::Result<Self> {
        let habits = Habits { one_flush_covers_all_files: true, eager_percent: 100 };
        let disk = CrashDisk::new(image, habits, 1);
        disk.set_full(full);
        let environment = CrashEnvironment::new(&disk, image.next_file);
        let policy =
            DiskPolicy { one_flush_covers_all_files: true, dsync_writes_max, ..DiskPolicy::default() };
        let (storage, checkpoint) =
            Storage::open(disk.clone(), environment, policy, &root(), ShardId::new(0), 9).await?;
        let store = Store::new(storage, checkpoint, 2);
        let settings = settings(segment_ms, compaction);
        let partition = store.open_partition(IDENTITY, settings, LeaderEpoch::new(1)).await?;
        store.begin_service().await?;
        Ok(Self { disk, store, partition, acknowledged: Rc::default() })
    }

    /// Appends batches of one record, each in a group of its own; the acknowledged end.
    pub async fn append(&self, batches: u64) -> u64 {
        self.append_of(batches, 1000).await
    }

    /// The same with records of so many bytes.
    async fn append_of(&self, batches: u64, bytes: usize) -> u64 {
        for _ in 0..batches {
            let key = self.partition.with_log(|log| log.log_end().get() % 3) as u8;
            let (bytes, header) = batch(key, bytes);
            let end = self.partition.append_copy(&bytes, &header).end;
            self.partition.when_durable(end, self.acknowledged.clone(), 0);
            self.store.mark_dirty(self.partition.id());
            settle().await;
        }
        self.acknowledged.0.get()
    }

    /// Opens two logs of a new topic at once, while the name of the topic's directory cannot become durable, and
    /// appends to each as soon as it is open: which of them were acknowledged before it could (`false`) and in all.
    /// After each acknowledgement a power cut must leave the log's first segment.
    pub async fn open_two_of_a_topic(&self) -> [Vec<u32>; 2] {
        let acknowledged: Rc<RefCell<Vec<u32>>> = Rc::default();
        self.disk.hold_syncs_of(Some(root().join("topics")));
        for index in 0..2 {
            let (store, acknowledged) = (self.store.clone(), acknowledged.clone());
            let partition = TopicPartition { topic: TopicId::new(6), partition: PartitionIndex::new(index) };
            let (identity, settings) = (LogIdentity { partition, generation: 1 }, self.partition.settings());
            let disk = self.disk.clone();
            glommio::spawn_local(async move {
                let partition =
                    store.open_partition(identity, settings, LeaderEpoch::new(1)).await.expect("it opens");
                let (bytes, header) = batch(0, 1000);
                let told = Rc::new(Acknowledged::default());
                partition.when_durable(partition.append_copy(&bytes, &header).end, told.clone(), 0);
                store.mark_dirty(partition.id());
                while told.0.get() == 0 {
                    store.storage.environment.sleep(Duration::from_millis(1)).await;
                }
                acknowledged.borrow_mut().push(index);
                let image = disk.crash(Mode::Drop, &mut Dice::new(1));
                let segment = partition_directory(&root(), &identity).join(segment_name(0));
                let there = image.files().any(|(path, _)| path == segment);
                assert!(there, "a power cut takes what partition {index} has acknowledged");
            })
            .detach();
        }
        self.pass_a_second().await;
        let early = acknowledged.borrow().clone();
        self.disk.hold_syncs_of(None);
        self.pass_a_second().await;
        let all = acknowledged.borrow().clone();
        [early, all]
    }

    /// While the index footer of a full segment is on its way, retention takes the segment, and others are filled, of
    /// which one could have got its file; then the footer arrives, and the power goes. The image, and the end of what was
    /// acknowledged.
    pub async fn drop_a_segment_under_its_footer(&self) -> (Image, u64) {
        let segments = || self.partition.with_log(|log| log.segments().clone());
        while segments().len() < 2 {
            self.append_of(1, 200_000).await;
        }
        self.disk.hold_writes_at(&segment(0), segments()[0].end_position);
        let (store, partition) = (self.store.clone(), self.partition.clone());
        glommio::spawn_local(async move { store.tick().await }).detach();
        settle().await;
        let settings = self.partition.settings();
        let retention = RetentionSettings { retention_ms: -1, retention_bytes: 0 };
        self.partition.set_settings(PartitionSettings { retention, ..settings });
        glommio::spawn_local(async move { drop(partition.enforce_retention().await) }).detach();
        settle().await;
        self.partition.set_settings(settings);
        while segments().len() < 4 {
            // Other sizes: where the footer belongs there are batches now.
            self.append_of(1, 100_000).await;
        }
        assert_eq!(self.disk.release_writes(), 1, "no footer was on its way");
        self.pass_a_second().await;
        (self.disk.crash(Mode::Keep, &mut Dice::new(1)), self.acknowledged.0.get())
    }

    /// Where a batch belongs, zeros are on their way; then they have arrived, and their sync is held. Up to where the log is
    /// acknowledged before each of the two, and after.
    pub async fn append_where_zeros_are_written(&self) -> [u64; 3] {
        // The rest of what was zeroed at first is small enough for more to be wanted, and too small for the next batch.
        self.append(1).await;
        self.disk.hold_writes_at(&segment(0), PREWRITE_FIRST_BYTES_MAX);
        self.append_of(1, PREWRITE_FIRST_BYTES_MAX as usize - 32_000).await;
        self.disk.hold_syncs();
        let held_back = self.append_of(1, 100_000).await;
        assert_eq!(self.disk.release_writes(), 1, "no zeros were on their way");
        settle().await;
        let passed = self.acknowledged.0.get();
        assert_eq!(self.disk.release_syncs(), 1, "no sync was on its way");
        settle().await;
        [held_back, passed, self.append(1).await]
    }

    /// A batch of zeros of which a power cut has left every block with anything in it, and no other.
    pub async fn append_zeros_that_are_not_written(&self) -> Image {
        let mut builder = BatchBuilder::new();
        builder.append(1_700_000_000_000, Some(&[1]), Some(&vec![0; 500_000]), &[]);
        let bytes = builder.finish();
        let header = record_batch::validate_produced(&bytes, 1 << 20).expect("a sound batch");
        self.partition.append_copy(&bytes, &header);
        self.store.mark_dirty(self.partition.id());
        settle().await;
        let mut image = self.image();
        assert!(image.unwrite_zeros(&segment(0)) > 100, "the batch is not on the device");
        image
    }

    /// Fills segments, which retention takes, until the file of the first one is another segment's and full again: up to where
    /// the log is acknowledged, and where it ends.
    pub async fn append_in_the_file_of_the_first_segment(&self) -> (u64, u64) {
        let retention = RetentionSettings { retention_ms: -1, retention_bytes: 0 };
        self.partition.set_settings(PartitionSettings { retention, ..self.partition.settings() });
        for _ in 0..40 {
            self.append_of(1, 100_000).await;
            let (store, partition) = (self.store.clone(), self.partition.clone());
            glommio::spawn_local(async move {
                store.tick().await;
                store.checkpoint(false).await.expect("a checkpoint");
                partition.enforce_retention().await.expect("files go");
            })
            .detach();
            self.pass_a_second().await;
        }
        assert!(self.store.storage.counters.segments_recycled.get() > 0, "no file was recycled");
        (self.acknowledged.0.get(), self.partition.with_log(|log| log.log_end().get()))
    }

    /// Appends more than may be in flight of one log while its first write does not end, then lets it end: how many bytes
    /// were under way, up to where the log is acknowledged in the end, and where it ends.
    pub async fn append_more_than_may_be_in_flight(&self) -> (u64, u64, u64) {
        let settings = self.partition.settings();
        let log = LogSettings { segment_bytes: 64 << 20, ..settings.log };
        self.partition.set_settings(PartitionSettings { log, ..settings });
        // They count from the next segment on.
        let last = || self.partition.with_log(|log| log.segments().back().cloned());
        while last().is_none_or(|last| last.sequence == 0) {
            self.append_of(1, 500_000).await;
        }
        let last = last().expect("a segment");
        let before = self.store.storage.counters.group_bytes.get();
        self.disk.hold_writes_at(&segment(last.sequence), last.end_position);
        for _ in 0..40 {
            let (bytes, header) = batch(0, 1_000_000);
            let end = self.partition.append_copy(&bytes, &header).end;
            self.partition.when_durable(end, self.acknowledged.clone(), 0);
        }
        self.store.mark_dirty(self.partition.id());
        self.pass_a_second().await;
        let under_way = self.store.storage.counters.group_bytes.get() - before;
        assert!(self.disk.release_writes() > 0, "no write was held");
        self.pass_a_second().await;
        (under_way, self.acknowledged.0.get(), self.partition.with_log(|log| log.log_end().get()))
    }

    pub async fn shut_down(&self) {
        self.store.shut_down().await.expect("an orderly end");
    }

    /// Appends the first batch of a producer.
    async fn append_of_producer(&self) -> Header {
        let mut builder = BatchBuilder::new();
        builder.set_producer(Producer { id: 7, epoch: 0, base_sequence: 0 });
        builder.append(1_700_000_000_000, None, Some(&[7; 1000]), &[]);
        let bytes = builder.finish();
        let header = record_batch::validate_produced(&bytes, 1 << 20).expect("a sound batch");
        assert_eq!(self.partition.admit_producer(&header), Ok(Admission::Append));
        self.partition.append_copy(&bytes, &header);
        self.store.mark_dirty(self.partition.id());
        settle().await;
        header
    }

    /// A checkpoint knows a producer of the log, which is then discarded and goes on at 10. Retention drops the segment that says
    /// so, because nothing is in it: the images before and after the next checkpoint, and the batch of that producer.
    pub async fn drop_what_says_that_the_log_was_discarded(&self) -> ([Image; 2], Header) {
        let header = self.append_of_producer().await;
        self.checkpoint().await;
        let (store, partition, begun) =
            (self.store.clone(), self.partition.clone(), Rc::new(Cell::new(None)));
        let at = begun.clone();
        glommio::spawn_local(async move { at.set(store.reset(&partition, Offset::new(10)).await.ok()) })
            .detach();
        self.pass_a_second().await;
        assert_eq!(begun.get(), Some(Offset::new(10)));
        let segments = || self.partition.with_log(|log| log.segments().clone());
        let says_so = segment(segments()[0].sequence);
        assert_eq!(self.append(1).await, 11);
        let left = |image: &Image| image.files().filter(|(path, _)| *path == says_so).count();
        self.store.enforce_retention().await;
        assert_eq!(segments().len(), 1, "the log begins behind it");
        let early = self.image();
        self.checkpoint().await;
        self.store.enforce_retention().await;
        let late = self.image();
        assert_eq!((left(&early), left(&late)), (1, 0), "it goes with the checkpoint");
        ([early, late], header)
    }

    /// Another store takes the partition over, of which retention has dropped the segment that alone tells of a producer; then
    /// the power goes, before any checkpoint. The image, and the batch of that producer.
    pub async fn hand_over_a_dropped_segment(&self) -> (Image, Header) {
        let header = self.append_of_producer().await;
        assert_eq!(self.append(3).await, 4);
        let settings = self.partition.settings();
        let retention = RetentionSettings { retention_ms: -1, retention_bytes: 0 };
        self.partition.set_settings(PartitionSettings { retention, ..settings });
        assert!(self.partition.enforce_retention().await.expect("nothing goes yet") > 0);
        let released = self.store.release(&self.partition.id(), || ()).await.expect("it is open");
        let environment = CrashEnvironment::new(&self.disk, 7);
        let policy = DiskPolicy { one_flush_covers_all_files: true, ..DiskPolicy::default() };
        let disk = self.disk.clone();
        let (storage, _) =
            Storage::open(disk, environment, policy, &root(), ShardId::new(1), 9).await.expect("it opens");
        let store = Store::new(storage, None, 2);
        let settings = self.partition.settings();
        store.take_over(IDENTITY, settings, LeaderEpoch::new(1), &released).await.expect("it opens");
        // What retention does there at once changes nothing: there is no checkpoint yet.
        store.enforce_retention().await;
        let early = self.image();
        assert!(store.checkpoint_now().await.expect("there is room"));
        store.enforce_retention().await;
        let late = self.image();
        let left = |image: &Image| image.files().filter(|(path, _)| *path == segment(0)).count();
        assert_eq!((left(&early), left(&late)), (1, 0), "it goes with the checkpoint");
        (early, header)
    }

    /// Ends the store while the partition is being released: it is idle, and its release has not noticed. Whether the
    /// last checkpoint says that nothing is written after it.
    pub async fn end_while_it_is_released(&self) -> bool {
        assert_eq!(self.append_of(1, 100_000).await, 1);
        self.disk.hold_writes_at(&segment(0), PREWRITE_FIRST_BYTES_MAX);
        // Slowly, so that little is written ahead.
        for bytes in [55_000, 36_000, 30_000] {
            self.disk.pass(Duration::from_secs(3));
            self.append_of(1, bytes).await;
        }
        let (store, id) = (self.store.clone(), self.partition.id());
        glommio::spawn_local(async move { drop(store.release(&id, || ()).await) }).detach();
        settle().await;
        assert!(self.partition.winds_down() && self.partition.is_busy(), "nothing is written ahead");
        assert_eq!(self.disk.release_writes(), 1);
        settle().await;
        assert!(!self.partition.is_busy() && !self.partition.is_closed());
        self.shut_down().await;
        let image = self.image();
        let bytes = image.read(&newest_checkpoint(&image)).expect("it is there");
        Checkpoint::decode(&bytes).expect("it is sound").clean
    }

    /// Appends a batch that is larger than what has blocks already, while the disk is full.
    pub async fn append_to_full_disk(&self) {
        self.disk.set_full(true);
        let mut builder = BatchBuilder::new();
        builder.append(1_700_000_000_000, None, Some(&[7; 300_000]), &[]);
        let bytes = builder.finish();
        let header = record_batch::validate_produced(&bytes, 1 << 20).expect("a sound batch");
        self.partition.append_copy(&bytes, &header);
        self.store.mark_dirty(self.partition.id());
        self.pass_a_second().await;
    }

    async fn pass_a_second(&self) {
        for _ in 0..1000 {
            self.disk.pass(Duration::from_millis(1));
            settle().await;
        }
    }

    /// Three consumers of the same chunk of a segment that grows: one reads it from the device, two wait for that. What comes
    /// is enough for the last of them alone; how many have been served in the end.
    pub async fn read_a_chunk_that_grows(&self) -> usize {
        let served = Rc::new(Cell::new(0));
        let read = async |offset: u64| {
            let (store, partition, served) = (self.store.clone(), self.partition.clone(), served.clone());
            glommio::spawn_local(async move {
                let slices = partition.read(&store.chunks, Offset::new(offset), 1).await;
                assert!(!slices.expect("it is there").is_empty());
                served.set(served.get() + 1);
            })
            .detach();
            settle().await;
        };
        let grow = async || {
            self.append(1).await;
            // So that the device is asked.
            while self.partition.tail_groups() > 0 {
                self.partition.evict_tail();
            }
        };
        grow().await;
        read(0).await;
        assert_eq!(served.replace(0), 1, "its file and its index are known from now on");
        grow().await;
        self.disk.hold_reads();
        read(1).await;
        grow().await;
        read(2).await;
        read(0).await;
        assert_eq!(served.get(), 0);
        for _ in 0..2 {
            assert_eq!(self.disk.release_reads(), 1, "one reads for all");
            settle().await;
        }
        served.get()
    }

    /// Rounds under way, and whether the disk counts as full.
    pub fn waits(&self) -> (usize, bool) {
        (self.store.load().0, self.store.storage.is_full())
    }

    /// Deletes the partition; whether its files are gone a second later.
    pub async fn delete(&self) -> bool {
        self.store.close_partition(&self.partition.id()).expect("it was open");
        let (partition, gone) = (self.partition.clone(), Rc::new(Cell::new(false)));
        let done = gone.clone();
        glommio::spawn_local(async move {
            partition.delete_files().await.expect("files go");
            done.set(true);
        })
        .detach();
        self.pass_a_second().await;
        gone.get()
    }

    /// The time in which so many tasks at once each get so many turns to zero.
    pub async fn zeroing_took(&self, tasks: usize, turns: usize, bytes: u64) -> Duration {
        let storage = self.store.storage.clone();
        let began_ns = storage.environment.monotonic_ns();
        let left = Rc::new(Cell::new(tasks));
        for _ in 0..tasks {
            let (storage, left) = (storage.clone(), left.clone());
            glommio::spawn_local(async move {
                for _ in 0..turns {
                    storage.wait_zeroing_turn(bytes).await;
                }
                left.set(left.get() - 1);
            })
            .detach();
        }
        settle().await;
        while left.get() > 0 {
            assert!(self.disk.pass_to_next(), "nobody waits for his turn");
            settle().await;
        }
        Duration::from_nanos(storage.environment.monotonic_ns() - began_ns)
    }

    /// The device refuses from now on to read these bytes of a segment.
    pub fn make_unreadable(&self, sequence: u64, bytes: Range<u64>) {
        self.disk.set_unreadable(&segment(sequence), bytes);
    }

    /// Looks for something to compact; whether there was something.
    pub async fn compact(&self) -> bool {
        // Nothing is compacted before its index is written.
        self.store.tick().await;
        settle().await;
        let found = Rc::new(Cell::new(None));
        let (store, done) = (self.store.clone(), found.clone());
        glommio::spawn_local(async move { done.set(Some(store.compact().await)) }).detach();
        for _ in 0..100_000 {
            settle().await;
            if let Some(found) = found.get() {
                // The sources go behind it.
                self.pass_a_second().await;
                return found;
            }
            self.disk.pass(Duration::from_millis(1));
        }
        panic!("compaction does not end");
    }

    /// Passes that came to their end, and that did not.
    pub fn passes(&self) -> (u64, u64) {
        let counters = &self.store.storage.counters;
        (counters.compaction_passes.get(), counters.compaction_given_up.get())
    }

    pub fn set_full(&self, full: bool) {
        self.disk.set_full(full);
    }

    pub fn set_no_names(&self, no_names: bool) {
        self.disk.set_no_names(no_names);
    }

    pub fn pass(&self, time: Duration) {
        self.disk.pass(time);
    }

    pub fn notices(&self) -> Vec<String> {
        self.store.storage.notices()
    }

    pub async fn checkpoint(&self) {
        self.store.checkpoint(false).await.expect("there is room");
    }

    /// Moves the log's start, durably.
    pub async fn delete_before(&self, offset: u64) {
        assert_eq!(self.partition.delete_before(Some(Offset::new(offset))), Some(Offset::new(offset)));
        assert!(self.store.checkpoint_now().await.expect("there is room"));
    }

    /// The offsets of all records that are there; what is damaged is left out.
    pub async fn offsets(&self) -> Vec<u64> {
        let (mut at, end) = self.partition.with_log(|log| (log.log_start(), log.high_watermark()));
        let mut offsets = Vec::new();
        while at < end {
            match self.partition.read(&self.store.chunks, at, 1).await {
                Ok(slices) => {
                    let Some(first) = slices.first() else { break };
                    let records = record_batch::records(first.bytes()).expect("a sound batch");
                    let next = Offset::new(records.header().end_offset());
                    assert!(next > at, "the log leads nowhere at {at}");
                    offsets.extend(records.map(|record| record.expect("a sound record").offset));
                    at = next;
                }
                Err(ReadError::Damaged { until, .. }) => at = until,
                Err(error) => panic!("{at}: {error}"),
            }
        }
        offsets
    }

    /// What is on the device now.
    pub fn image(&self) -> Image {
        self.disk.crash(Mode::Drop, &mut Dice::new(1))
    }

    /// The offsets from 0 on, each read by itself: `.` = served, `x` = damaged, alone by itself.
    pub async fn read_each(&self) -> String {
        let end = self.partition.high_watermark().get();
        let mut out = String::new();
        for offset in 0..end {
            match self.partition.read(&self.store.chunks, Offset::new(offset), 1).await {
                Ok(slices) => {
                    let bytes = slices.first().map_or(&[][..], |slice| slice.bytes());
                    let served = record_batch::verify(bytes).is_ok_and(|header| header.base_offset == offset);
                    out.push(if served { '.' } else { '?' });
                }
                Err(ReadError::Damaged { from, until }) => {
                    let alone = from.get() == offset && until.get() == offset + 1;
                    out.push(if alone { 'x' } else { 'X' });
                }
                Err(_) => out.push('!'),
            }
        }
        out
    }

    pub async fn end(self) {
        self.disk.pass(Duration::from_secs(1));
        self.disk.die();
        drop(self);
        settle().await;
    }
}

fn settings(segment_ms: i64, compaction: Option<CompactionSettings>) -> PartitionSettings {
    PartitionSettings {
        log: LogSettings { segment_bytes: 1 << 20, segment_ms },
        retention: RetentionSettings { retention_ms: -1, retention_bytes: -1 },
        compaction,
        max_message_bytes: 1 << 20,
        log_append_time: false,
    }
}

/// A batch of one record.
fn batch(key: u8, bytes: usize) -> (Vec<u8>, Header) {
    let mut builder = BatchBuilder::new();
    builder.append(1_700_000_000_000, Some(&[key]), Some(&vec![7; bytes]), &[]);
    let bytes = builder.finish();
    let header = record_batch::validate_produced(&bytes, 1 << 20).expect("a sound batch");
    (bytes, header)
}

/// The path of a segment.
pub fn segment(sequence: u64) -> PathBuf {
    partition_directory(&root(), &IDENTITY).join(segment_name(sequence))
}

/// The files that compaction has made: those that have a name in the log, and those that have not.
pub fn rewritten(image: &Image) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let name = |path: &PathBuf| path.file_name().expect("a file").to_string_lossy().into_owned();
    let named = |path: &PathBuf| SegmentName::parse(&name(path)).is_some_and(|name| name.is_rewritten());
    let files = image.files().map(|(path, _)| path);
    let made = files.filter(|path| named(path) || name(path).starts_with("rewrite-"));
    made.partition(named)
}

/// The place of the payload of the group in a block.
pub fn payload(block: u64) -> u64 {
    block * BLOCK_BYTES as u64 + 300
}

/// Gives a segment's header the next format version, and the checksum that belongs to it.
pub fn make_newer(image: &mut Image, sequence: u64) {
    let path = segment(sequence);
    let names = image.directories.get(path.parent().expect("a directory")).expect("the directory is there");
    let Some(Entry::File(file)) = names.get(&segment_name(sequence)) else { panic!("no segment {sequence}") };
    let mut header = [0; 128];
    file.content.read(0, &mut header);
    let before = header;
    header[4] += 1;
    header[8..12].fill(0);
    let checksum = crc32c::crc32c(&header);
    header[8..12].copy_from_slice(&checksum.to_le_bytes());
    for (at, (old, new)) in before.iter().zip(header).enumerate() {
        let bits: Vec<(u64, u8)> =
            (0..8).filter(|bit| (old ^ new) >> bit & 1 == 1).map(|bit| (at as u64, bit)).collect();
        image.flip(&path, &bits);
    }
}

/// The newest checkpoint's path: the one of the highest generation.
pub fn newest_checkpoint(image: &Image) -> PathBuf {
    let generation = |path: &PathBuf| {
        let files: Vec<_> = image.files().filter(|(found, _)| found == path).collect();
        let mut bytes = [0; 8];
        files.first().map(|(_, file)| file.content.read(24, &mut bytes));
        u64::from_le_bytes(bytes)
    };
    let shard = root().join("shard-0");
    let mut both = [shard.join("checkpoint.a"), shard.join("checkpoint.b")];
    both.sort_by_key(generation);
    let [_, newest] = both;
    newest
}

/// A start on a full disk finds that the end of a log has rotted, which goes on in another segment then, and no room for that: see
/// [`start_without_room_for_a_cut`].
pub fn a_start_without_room_for_a_cut_waits_for_it() {
    run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.append(6).await, 6);
        script.delete_before(4).await;
        script.checkpoint().await;
        assert_eq!(script.append(2).await, 8);
        let mut image = script.image();
        script.end().await;
        // The header of the last one attests the one before.
        image.flip(&segment(0), &[(payload(7), 3), (payload(8), 3)]);
        let image = start_without_room_for_a_cut(&image).await;
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.offsets().await, [4, 5], "deleted records stay deleted");
        script.end().await;
    });
}

/// What is left of a start that cannot open its partition when there is room for a checkpoint, before it tries again.
async fn start_without_room_for_a_cut(image: &Image) -> Image {
    let habits = Habits { one_flush_covers_all_files: true, eager_percent: 100 };
    let disk = CrashDisk::new(image, habits, 1);
    disk.set_full(true);
    let environment = CrashEnvironment::new(&disk, 7);
    let policy = DiskPolicy { one_flush_covers_all_files: true, ..DiskPolicy::default() };
    let opened = Storage::open(disk.clone(), environment, policy, &root(), ShardId::new(0), 9).await;
    let (storage, checkpoint) = opened.expect("it opens");
    let store = Store::new(storage, checkpoint, 2);
    let open = || store.open_partition(IDENTITY, settings(i64::MAX, None), LeaderEpoch::new(1));
    for _ in 0..2 {
        let refused = open().await.err();
        assert!(refused.as_ref().is_some_and(is_no_space), "{refused:?}");
        assert!(store.partition(&IDENTITY.partition).is_none());
    }
    store.begin_service().await.expect("nothing needs room");
    disk.set_full(false);
    store.checkpoint(false).await.expect("there is room");
    let image = disk.crash(Mode::Drop, &mut Dice::new(1));
    let partition = open().await.expect("there is room");
    let ends = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
    let lost = std::slice::from_ref(&(6..7));
    assert_eq!((ends, &partition.report().lost[..]), ((4, 7), lost));
    assert_eq!(store.storage.counters.damaged_ranges.get(), 1, "it is told of once");
    disk.die();
    image
}

/// A file is not given to another segment while something may still be written to it: see
/// [`Script::drop_a_segment_under_its_footer`].
pub fn a_dropped_segment_waits_for_its_footer() {
    run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        let (image, end) = script.drop_a_segment_under_its_footer().await;
        script.end().await;
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        let first = script.partition.with_log(|log| log.log_start().get());
        assert_eq!(script.offsets().await, (first..end).collect::<Vec<u64>>(), "acknowledged up to {end}");
        assert!(first > 0 && script.partition.report().lost.is_empty(), "{:?}", script.partition.report());
        script.end().await;
    });
}

/// Runs a script on an executor of its own.
pub fn run(script: impl Future<Output = ()>) {
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).make();
    executor.expect("an executor").run(script);
}
