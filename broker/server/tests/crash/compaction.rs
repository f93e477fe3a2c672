//! Compaction, retention and crashes in virtual time, against a model: the map of the latest values.
//!
//! A seed is a tree of lives of one log with few keys. Each life appends, compacts, deletes, reads, crashes; every
//! image of a crash is recovered and judged, and some of them live on. Judged after each recovery: of every
//! key the latest record is there (a tombstone at least as long as promised, and nothing older in its place); what
//! is missing was superseded; offsets, batches and bytes of what is there are those that were appended; the
//! last batch of every producer is there, and its next one is taken; looking up by time finds what reading finds; no
//! file is left that does not count. Some logs are not compacted but lose their oldest segments by size or time: none
//! that is to be kept, and all others.
//! One rule deleted at a time (`logic::rules`) must be missed.

use super::Dice;
use super::disk::{CrashDisk, CrashEnvironment, Habits, Mode};
use super::image::Image;
use super::life::{root, settle};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::log::compaction::CompactionSettings;
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings, Segment, SegmentName};
use logic::producer_state::{Admission, ProducerError};
use schema::compression;
use schema::record_batch::{self, BatchBuilder, Compression, Header, Producer};
use server::partition::reader::ReadError;
use server::partition::tail_cache::Slice;
use server::partition::{DurabilityWaiter, Partition, PartitionSettings};
use server::storage::disk::Disk;
use server::storage::{DiskPolicy, Storage, is_no_space, partition_directory};
use server::store::Store;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const IDENTITY: LogIdentity = LogIdentity {
    partition: TopicPartition { topic: TopicId::new(0xc0), partition: PartitionIndex::new(0) },
    generation: 1,
};
const DEPTH_MAX: u32 = 5;
const STEPS_MAX: u32 = 20_000;
/// Between the time of the first record and that of the first life.
const CLOCKS_APART_MS: i64 = 1_700_000_000_000 - 1_000_000;

/// What a run of seeds came to.
#[derive(Default)]
pub struct Report {
    pub seeds: u64,
    pub lives: u64,
    pub steps: u64,
    pub images: u64,
    pub passes: u64,
    pub removed_records: u64,
    pub expired_tombstones: u64,
    pub retained_records: u64,
    pub virtual_ms: i64,
    pub violations: Vec<String>,
}

impl Report {
    fn fail(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }
}

/// A batch as it was appended.
struct Appended {
    base: u64,
    end: u64,
    producer: i64,
    /// Of the record behind its last one: epoch and sequence.
    next: (i16, i32),
    append_ms: i64,
    /// Key, value (`None` = a tombstone), timestamp.
    records: Vec<(u8, Option<u64>, i64)>,
}

#[derive(Clone, Default)]
struct Model {
    batches: Vec<Rc<Appended>>,
    acknowledged: u64,
    /// The log's start that somebody was told to be durable.
    deleted_below: u64,
    /// The highest start that was seen.
    start_seen: u64,
    /// When somebody asked for a pass, milliseconds.
    passes_ms: Vec<i64>,
    number: u64,
    /// Of each producer: the epoch and sequence to go on with.
    sequences: [(i16, i32); 3],
}

struct Waiter(Rc<RefCell<Model>>);

impl DurabilityWaiter for Waiter {
    fn durable(&self, _: u32, durable_end: Offset) {
        let mut model = self.0.borrow_mut();
        model.acknowledged = model.acknowledged.max(durable_end.get());
    }
    fn closed(&self, _: u32) {}
}

#[derive(Clone, Copy)]
struct Plan {
    settings: PartitionSettings,
    delete_retention_ms: i64,
    keys: u64,
    one_flush_covers_all_files: bool,
    fills_up: bool,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let delete_retention_ms = [0, 300, 2_000][dice.below(3) as usize];
        let compacts = !dice.chance(15);
        let by_size = dice.chance(if compacts { 25 } else { 50 });
        let by_time = !compacts && !by_size;
        let compaction = CompactionSettings {
            min_dirty_millionths: [0, 0, 300_000, 500_000][dice.below(4) as usize],
            min_lag_ms: if dice.chance(20) { 200 } else { 0 },
            max_lag_ms: if dice.chance(20) { 1_000 } else { i64::MAX },
            delete_retention_ms,
        };
        Self {
            settings: PartitionSettings {
                log: LogSettings { segment_bytes: 1 << 20, segment_ms: [8, 25, 60][dice.below(3) as usize] },
                retention: RetentionSettings {
                    // A record's time is its number's, the clock's is another.
                    retention_ms: if by_time { CLOCKS_APART_MS + dice.below(2_000) as i64 } else { -1 },
                    retention_bytes: if by_size { 200_000 } else { -1 },
                },
                compaction: compacts.then_some(compaction),
                max_message_bytes: 4 << 20,
                log_append_time: false,
            },
            delete_retention_ms,
            keys: [2, 8, 60][dice.below(3) as usize],
            one_flush_covers_all_files: dice.chance(75),
            fills_up: dice.chance(15),
        }
    }
}

struct Job {
    image: Image,
    model: Model,
    depth: u32,
    steps: u64,
    seed: u64,
}

struct Life<'a> {
    plan: &'a Plan,
    disk: CrashDisk,
    store: Rc<Store<CrashDisk>>,
    partition: Rc<Partition<CrashDisk>>,
    model: Rc<RefCell<Model>>,
    report: Rc<RefCell<Report>>,
    dice: Dice,
    depth: u32,
    jobs: Vec<Job>,
    compacting: Rc<Cell<bool>>,
    ticking: Rc<Cell<bool>>,
}

/// Whether the log of a seed is compacted; if not, retention alone makes it smaller.
#[cfg(feature = "mutants")]
pub fn compacts(seed: u64) -> bool {
    Plan::draw(seed).settings.compaction.is_some()
}

/// Runs a seed with all lives that come of it.
pub fn run(seed: u64, report: Report) -> Report {
    let executor =
        glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).make().expect("an executor");
    executor.run(async {
        let report = Rc::new(RefCell::new(report));
        report.borrow_mut().seeds += 1;
        let plan = Plan::draw(seed);
        let (image, model) = (Image::fresh(&root()), Model::default());
        let mut jobs = vec![Job { image, model, depth: 0, steps: 500, seed }];
        while let Some(job) = jobs.pop() {
            let more = live(job, &plan, &report).await;
            jobs.extend(more);
            if report.borrow().violations.len() >= 3 {
                break;
            }
        }
        settle().await;
        std::mem::take(&mut *report.borrow_mut())
    })
}

async fn live(job: Job, plan: &Plan, report: &Rc<RefCell<Report>>) -> Vec<Job> {
    let mut dice = Dice::new(job.seed);
    let leaf = job.steps == 0;
    let eager_percent = if leaf { 100 } else { [0, 20, 50, 80][dice.below(4) as usize] };
    let one_flush_covers_all_files = plan.one_flush_covers_all_files;
    let disk = CrashDisk::new(&job.image, Habits { one_flush_covers_all_files, eager_percent }, dice.next());
    let environment = CrashEnvironment::new(&disk, dice.next());
    let began_ms = job.image.now_ms;
    let (model, expected) = (Rc::new(RefCell::new(job.model.clone())), job.model);
    type Opened = (Rc<Store<CrashDisk>>, Rc<Partition<CrashDisk>>);
    let opened: Rc<RefCell<Option<Opened>>> = Rc::default();
    {
        let (opened, model, disk, report) = (opened.clone(), model.clone(), disk.clone(), report.clone());
        let (settings, retention_ms) = (plan.settings, plan.delete_retention_ms);
        let (epoch, timestamps) = (LeaderEpoch::new(job.depth + 1), (dice.next(), dice.next()));
        glommio::spawn_local(async move {
            let policy = DiskPolicy { one_flush_covers_all_files, ..DiskPolicy::default() };
            let (storage, checkpoint) =
                Storage::open(disk, environment, policy, &root(), ShardId::new(0), 0x5eed)
                    .await
                    .expect("it opens");
            let store = Store::new(storage, checkpoint, 2);
            let partition = store.open_partition(IDENTITY, settings, epoch).await.expect("the log opens");
            let (start, end) = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
            // What does not count is gone: it would take space for ever, and might count one day.
            let known: Vec<SegmentName> = partition.with_log(|log| {
                let placed = log.placed().map(|(sequence, _)| SegmentName::appended(sequence));
                log.segments().iter().map(Segment::name).chain(placed).collect()
            });
            let listed =
                store.storage.disk.list(&partition_directory(&root(), &IDENTITY)).await.expect("it is there");
            let names = listed.iter().filter_map(|(name, _)| SegmentName::parse(name));
            for name in names.filter(|name| !known.contains(name)) {
                report.borrow_mut().fail(format!("{name} is left, the log has {known:?}"));
            }
            {
                let found = partition.report();
                let mut report = report.borrow_mut();
                if end < expected.acknowledged
                    || start < expected.deleted_below
                    || start > expected.start_seen
                {
                    report.fail(format!(
                        "found {start}..{end}, promised {}..{}, start seen {}: {found:?}",
                        expected.deleted_below, expected.acknowledged, expected.start_seen
                    ));
                }
                if !found.lost.is_empty() {
                    report.fail(format!("lost without damage: {found:?}"));
                }
                // What was cut is gone for good.
                let mut model = model.borrow_mut();
                model.batches.retain(|batch| batch.end <= end);
                for producer in 0..3 {
                    let own = model.batches.iter().rev().find(|batch| batch.producer == producer);
                    model.sequences[producer as usize] = own.map_or((0, 0), |batch| batch.next);
                }
                let whole = end == 0 || model.batches.last().is_some_and(|last| last.end == end);
                if !whole {
                    report.fail(format!("the log ends at {end}, where no batch ends"));
                }
                (model.acknowledged, model.start_seen) = (end, start);
            }
            match store.begin_service().await {
                Err(error) if !is_no_space(&error) => panic!("{error}"),
                _ => {}
            }
            let model = model.borrow().clone();
            judge(&store, &partition, &model, retention_ms, Some(timestamps), &report).await;
            *opened.borrow_mut() = Some((store, partition));
        })
        .detach();
    }
    let mut waited = 0;
    loop {
        settle().await;
        if opened.borrow().is_some() {
            break;
        }
        if !disk.complete_one() {
            disk.pass_to_next();
        }
        waited += 1;
        assert!(waited < STEPS_MAX, "recovery is stuck");
    }
    {
        let mut report = report.borrow_mut();
        report.lives += u64::from(!leaf);
        report.images += u64::from(job.depth > 0);
    }
    let (store, partition) = opened.borrow_mut().take().expect("it is open");
    let mut life = Life {
        plan,
        disk: disk.clone(),
        store,
        partition,
        model,
        report: report.clone(),
        dice,
        depth: job.depth,
        jobs: Vec::new(),
        compacting: Rc::default(),
        ticking: Rc::default(),
    };
    life.work(job.steps).await;
    {
        let counters = &life.store.storage.counters;
        let mut report = report.borrow_mut();
        report.passes += counters.compaction_passes.get();
        report.removed_records += counters.compaction_removed_records.get();
        report.virtual_ms += life.store.storage.environment.now_ms() - began_ms;
    }
    disk.die();
    let jobs = std::mem::take(&mut life.jobs);
    drop(life);
    settle().await;
    jobs
}

impl Life<'_> {
    fn now_ms(&self) -> i64 {
        self.store.storage.environment.now_ms()
    }

    async fn work(&mut self, steps: u64) {
        for _ in 0..steps {
            settle().await;
            self.report.borrow_mut().steps += 1;
            // More often while something is being put in place.
            if self.dice.chance(if self.compacting.get() { 6 } else { 2 }) {
                self.crash();
            }
            if self.plan.fills_up && self.dice.chance(if self.disk.is_full() { 5 } else { 1 }) {
                self.disk.set_full(!self.disk.is_full());
            }
            match self.dice.below(100) {
                0..18 => self.append(),
                18..58 => {
                    for _ in 0..=self.dice.below(4) {
                        self.disk.complete_one();
                    }
                }
                58..74 => self.disk.pass(Duration::from_micros(100 + self.dice.below(4_000))),
                74..80 => self.disk.pass(Duration::from_millis(20 + self.dice.below(100))),
                80..86 => self.tick(),
                86..93 => self.compact(),
                93 => self.retain(),
                94 => self.delete_records(),
                95..98 => self.read(),
                98 => self.checkpoint(),
                _ => self.disk.pass(Duration::from_secs(1)),
            }
        }
    }

    fn crash(&mut self) {
        let now = self.partition.with_log(|log| log.log_start().get());
        let model = {
            let mut model = self.model.borrow_mut();
            model.start_seen = model.start_seen.max(now);
            model.clone()
        };
        let mode = Mode::ALL[self.dice.below(6) as usize];
        let mut image = self.disk.crash(mode, &mut self.dice);
        // Verdicts on tails are judged elsewhere.
        self.disk.retain_groups(|_| false);
        image.unacknowledged.clear();
        let depth = self.depth + 1;
        let works = depth < DEPTH_MAX && self.dice.chance(12);
        let steps = if works { 80 + self.dice.below(160) } else { 0 };
        self.jobs.push(Job { image, model, depth, steps, seed: self.dice.next() });
    }

    fn append(&mut self) {
        for _ in 0..=self.dice.below(2) {
            let mut model = self.model.borrow_mut();
            let mut builder = BatchBuilder::new();
            let producer = self.dice.below(4) as i64 - 1;
            let count = 1 + self.dice.below(4);
            let mut next = (0, 0);
            if let Ok(at) = usize::try_from(producer) {
                let (mut epoch, mut base_sequence) = model.sequences[at];
                let start = self.partition.with_log(|log| log.log_start().get());
                let mut last = model.batches.iter().rev().filter(|batch| batch.producer == producer);
                if last.next().is_none_or(|last| last.base < start) {
                    // It may have been forgotten with its batches.
                    (epoch, base_sequence) = (epoch + 1, 0);
                }
                builder.set_producer(Producer { id: producer, epoch, base_sequence });
                next = (epoch, base_sequence + count as i32);
            }
            let mut records = Vec::new();
            for _ in 0..count {
                model.number += 1;
                let key = self.dice.below(self.plan.keys) as u8;
                let value = (!self.dice.chance(20)).then_some(model.number);
                let timestamp_ms = 1_000_000 + model.number as i64 * 10 - self.dice.below(40) as i64;
                let bytes = value.map(|value| value.to_le_bytes().repeat(1 + self.dice.below(300) as usize));
                builder.append(timestamp_ms, Some(&[key]), bytes.as_deref(), &[]);
                records.push((key, value, timestamp_ms));
            }
            let plain = builder.finish();
            let batch = match self.dice.below(5) {
                0 => compression::compress(plain, Compression::Lz4),
                1 => compression::compress(plain, Compression::Zstd),
                _ => plain,
            };
            let header = record_batch::validate_produced(&batch, 4 << 20).expect("a sound batch");
            let append_ms = self.now_ms();
            match self.partition.admit_producer(&header) {
                Ok(Admission::Append) => {}
                // In flight are at most a few of one producer.
                Err(ProducerError::InFlight) => return,
                other => {
                    let known = (header.producer_id, header.producer_epoch, header.base_sequence);
                    return self.report.borrow_mut().fail(format!("batch of producer {known:?}: {other:?}"));
                }
            }
            if let Ok(at) = usize::try_from(producer) {
                model.sequences[at] = next;
            }
            let appended = self.partition.append_copy(&batch, &header);
            let (base, end) = (appended.base.get(), appended.end.get());
            model.batches.push(Rc::new(Appended { base, end, producer, next, append_ms, records }));
            drop(model);
            self.partition.when_durable(appended.end, Rc::new(Waiter(self.model.clone())), 0);
        }
        self.store.mark_dirty(self.partition.id());
    }

    fn tick(&mut self) {
        if self.ticking.replace(true) {
            return;
        }
        let (store, ticking) = (self.store.clone(), self.ticking.clone());
        glommio::spawn_local(async move {
            store.tick().await;
            ticking.set(false);
        })
        .detach();
    }

    fn compact(&mut self) {
        if self.compacting.replace(true) {
            return;
        }
        let now_ms = self.now_ms();
        self.model.borrow_mut().passes_ms.push(now_ms);
        let (store, compacting) = (self.store.clone(), self.compacting.clone());
        glommio::spawn_local(async move {
            store.compact().await;
            compacting.set(false);
        })
        .detach();
    }

    fn retain(&mut self) {
        let store = self.store.clone();
        let (partition, model, report) = (self.partition.clone(), self.model.clone(), self.report.clone());
        let (retention, only) = (self.plan.settings.retention, self.plan.settings.compaction.is_none());
        glommio::spawn_local(async move {
            let now_ms = store.storage.environment.now_ms();
            let start = || partition.with_log(|log| log.log_start().get());
            let before = start();
            // Up to the first wait, nobody else moves the start.
            let mut enforcing = std::pin::pin!(store.enforce_retention());
            let first = futures_util::poll!(&mut enforcing);
            if only {
                judge_retention(&partition, &model.borrow(), retention, now_ms, before, &report);
            }
            if first.is_pending() {
                enforcing.await;
            }
        })
        .detach();
    }

    fn checkpoint(&mut self) {
        let store = self.store.clone();
        glommio::spawn_local(async move {
            let result = store.checkpoint(false).await;
            assert!(result.as_ref().map_or_else(is_no_space, |()| true), "{result:?}");
        })
        .detach();
    }

    fn delete_records(&mut self) {
        let (start, end) = self.partition.with_log(|log| (log.log_start().get(), log.high_watermark().get()));
        let before = start + self.dice.below((end - start) / 4 + 1);
        let moved = self.partition.delete_before(Some(Offset::new(before))).expect("it is visible");
        let (store, model) = (self.store.clone(), self.model.clone());
        glommio::spawn_local(async move {
            match store.checkpoint_now().await {
                Ok(true) => {
                    let mut model = model.borrow_mut();
                    model.deleted_below = model.deleted_below.max(moved.get());
                }
                Ok(false) => {}
                Err(error) => assert!(is_no_space(&error), "{error}"),
            }
        })
        .detach();
    }

    /// A consumer somewhere in the log: what it gets was appended, and it gets something.
    fn read(&mut self) {
        let (start, end) = self.partition.with_log(|log| (log.log_start().get(), log.high_watermark().get()));
        if start == end {
            return;
        }
        let offset = start + self.dice.below(end - start);
        let max_bytes = [1, 5_000, 300_000][self.dice.below(3) as usize];
        let (store, partition, model) = (self.store.clone(), self.partition.clone(), self.model.clone());
        let report = self.report.clone();
        glommio::spawn_local(async move {
            match partition.read(&store.chunks, Offset::new(offset), max_bytes).await {
                Ok(slices) => {
                    let bytes = slices.iter().map(Slice::bytes).collect::<Vec<_>>().concat();
                    let mut next = offset;
                    for batch in record_batch::batches(&bytes) {
                        let (header, _) = batch.expect("whole batches are served");
                        let model = model.borrow();
                        let known =
                            model.batches.binary_search_by_key(&header.base_offset, |batch| batch.base);
                        let same = known.is_ok_and(|at| model.batches[at].end == header.end_offset());
                        if !same || header.end_offset() <= next {
                            let found = (header.base_offset, header.end_offset());
                            report.borrow_mut().fail(format!("read {found:?} at {next}, asked for {offset}"));
                        }
                        next = header.end_offset();
                    }
                    if next == offset && partition.with_log(|log| log.log_start().get()) <= offset {
                        report.borrow_mut().fail(format!("nothing is served at {offset} of {start}..{end}"));
                    }
                }
                Err(_) if partition.with_log(|log| log.log_start().get()) > offset => {}
                Err(ReadError::Closed) => {}
                Err(error) => {
                    report.borrow_mut().fail(format!("reading {offset} of {start}..{end}: {error}"))
                }
            }
        })
        .detach();
    }
}

/// What retention has just taken, from `before` to the log's start, and what it has left: a log that nothing else
/// makes smaller.
fn judge_retention(
    partition: &Partition<CrashDisk>,
    model: &Model,
    settings: RetentionSettings,
    now_ms: i64,
    before: u64,
    report: &RefCell<Report>,
) {
    let (start, visible, segments) = partition.with_log(|log| {
        let segments = log.segments().iter().map(|segment| (segment.base.get(), segment.end_position));
        (log.log_start().get(), log.high_watermark().get(), segments.collect::<Vec<(u64, u64)>>())
    });
    let newest_ms = |range: std::ops::Range<u64>| {
        let inside = model.batches.iter().filter(|batch| batch.base < range.end && batch.end > range.start);
        inside.flat_map(|batch| &batch.records).map(|(.., ms)| *ms).max()
    };
    let bytes: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
    let mut report = report.borrow_mut();
    if start > before {
        report.retained_records += start - before;
        let young = newest_ms(before..start).is_some_and(|ms| now_ms - ms <= settings.retention_ms);
        if settings.retention_bytes < 0 && young {
            report.fail(format!("retention took {before}..{start}, which is not old enough at {now_ms}"));
        }
        if settings.retention_ms < 0 && bytes < settings.retention_bytes as u64 {
            report.fail(format!("retention took {before}..{start}, and left {bytes} bytes"));
        }
    }
    // The oldest one, if somebody can see something of it, and something durable is behind it.
    if let [(base, first_bytes), (next, _), ..] = segments[..]
        && start < next
        && next <= visible
    {
        let old = newest_ms(base..next).is_some_and(|ms| now_ms - ms > settings.retention_ms);
        let large = bytes - first_bytes >= settings.retention_bytes as u64;
        if settings.retention_ms >= 0 && old || settings.retention_bytes >= 0 && large {
            report.fail(format!("retention left {base}..{next} of {bytes} bytes at {now_ms}: {segments:?}"));
        }
    }
}

/// Reads the whole log and compares it with the model. `timestamps` are two numbers to draw times from.
async fn judge(
    store: &Rc<Store<CrashDisk>>,
    partition: &Rc<Partition<CrashDisk>>,
    model: &Model,
    delete_retention_ms: i64,
    timestamps: Option<(u64, u64)>,
    report: &Rc<RefCell<Report>>,
) {
    let now_ms = store.storage.environment.now_ms();
    let (start, end) = partition.with_log(|log| (log.log_start().get(), log.high_watermark().get()));
    let mut wrong = Vec::new();
    // Offset → key, value, timestamp; and which batches are there.
    let mut served: BTreeMap<u64, (u8, Option<u64>, i64)> = BTreeMap::new();
    let mut bases: BTreeMap<u64, u64> = BTreeMap::new();
    let mut offset = start;
    while offset < end {
        let slices = match partition.read(&store.chunks, Offset::new(offset), 100_000).await {
            Ok(slices) => slices,
            Err(error) => {
                wrong.push(format!("reading {offset} of {start}..{end}: {error}"));
                break;
            }
        };
        let bytes = slices.iter().map(Slice::bytes).collect::<Vec<_>>().concat();
        let before = offset;
        for batch in record_batch::batches(&bytes) {
            let (_, batch) = batch.expect("whole batches are served");
            let header = record_batch::verify(batch).expect("a sound batch");
            if header.end_offset() <= offset {
                wrong.push(format!("batch {} served at {offset}", header.base_offset));
            }
            offset = header.end_offset();
            bases.insert(header.base_offset, header.end_offset());
            read_records(batch, &header, &mut served);
        }
        if offset == before {
            wrong.push(format!("nothing is served at {offset} of {start}..{end}"));
            break;
        }
    }
    let appended: Vec<&Rc<Appended>> =
        model.batches.iter().filter(|batch| batch.end > start && batch.end <= end).collect();
    let mut known = BTreeMap::new();
    let mut latest: BTreeMap<u8, u64> = BTreeMap::new();
    let mut producers: BTreeMap<i64, u64> = BTreeMap::new();
    for batch in &appended {
        for (offset, record) in (batch.base..).zip(&batch.records) {
            known.insert(offset, (*record, batch.append_ms));
            if offset >= start {
                latest.insert(record.0, offset);
            }
        }
        if batch.producer >= 0 && batch.base >= start {
            producers.insert(batch.producer, batch.base);
        }
    }
    for (offset, record) in &served {
        if known.get(offset).map(|(known, _)| known) != Some(record) {
            wrong.push(format!("offset {offset} is {record:?}, appended {:?}", known.get(offset)));
        }
    }
    for (base, end) in &bases {
        if !model.batches.iter().any(|batch| (batch.base, batch.end) == (*base, *end)) {
            wrong.push(format!("a batch {base}..{end} that nobody appended"));
        }
    }
    for (key, at) in &latest {
        if served.contains_key(at) {
            continue;
        }
        let ((_, value, _), append_ms) = known[at];
        // Not before the first pass that can have met it, and then as long as promised.
        let met = model.passes_ms.iter().find(|ms| **ms >= append_ms);
        let may_go = value.is_none() && met.is_some_and(|met| now_ms >= met + delete_retention_ms);
        if !may_go {
            wrong.push(format!("key {key}: its latest record {at} ({value:?}) is gone, log {start}..{end}"));
        }
        if let Some((old, _)) = served.iter().find(|(offset, (of, ..))| of == key && **offset >= start) {
            wrong.push(format!("key {key}: its tombstone {at} is gone, and {old} has come back"));
        }
        report.borrow_mut().expired_tombstones += u64::from(may_go);
    }
    for (offset, ((key, ..), _)) in known.range(start..) {
        if !served.contains_key(offset) && latest[key] < *offset {
            wrong.push(format!("offset {offset} is gone without reason"));
        }
    }
    for (producer, base) in producers {
        if !bases.contains_key(&base) {
            wrong.push(format!("the last batch {base} of producer {producer} is gone"));
        }
    }
    if let Some((one, other)) = timestamps {
        let most = 1_000_000 + model.number as i64 * 10;
        for ms in [one, other, one ^ other].map(|draw| 1_000_000 + (draw % (most - 999_999) as u64) as i64) {
            let expect = served.iter().find(|(offset, (.., at))| **offset >= start && *at >= ms);
            let expect = expect.map(|(offset, (.., at))| (*offset, *at));
            let found = partition.offset_of_timestamp(&store.chunks, ms).await.expect("it can be looked up");
            let found = found.map(|(offset, at)| (offset.get(), at));
            if found != expect {
                wrong.push(format!("at {ms} there is {found:?}, expected {expect:?}"));
            }
        }
    }
    for text in wrong.into_iter().take(5) {
        report.borrow_mut().fail(text);
    }
}

fn read_records(batch: &[u8], header: &Header, served: &mut BTreeMap<u64, (u8, Option<u64>, i64)>) {
    let unpacked = compression::unpack(batch, 16 << 20).expect("it unpacks");
    let plain = unpacked.as_deref().unwrap_or(batch);
    assert_eq!(record_batch::records(plain).expect("records").header().record_count, header.record_count);
    for record in record_batch::records(plain).expect("records") {
        let record = record.expect("a sound record");
        let value = record.value.map(|value| u64::from_le_bytes(value[..8].try_into().expect("eight bytes")));
        served.insert(record.offset, (record.key.expect("a key")[0], value, record.timestamp_ms));
    }
}
