//! The life of a follower's log under crashes: batches of leaders are appended, the log is cut or discarded, and what
//! an image holds must be what was promised, as it was before a cut that nobody has been told of, or as it is after.
//!
//! One log per root seed. The promise is a list of batches, and up to where they are durable. After a recovery what is
//! there is the promise, and the life goes on from it. After each cut and each recovery the last batch that the table of
//! producers knows of each must be the last one that the log holds of it.

use super::Dice;
use super::disk::{CrashDisk, CrashEnvironment, Habits, Mode};
use super::image::Image;
use super::ledger::Tally;
use super::life::{root, settle};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings};
use schema::checkpoint::ProducerSummary;
use schema::record_batch::{self, BatchBuilder, Producer};
use server::partition::{DurabilityWaiter, Partition, PartitionSettings};
use server::storage::{DiskPolicy, Storage};
use server::store::Store;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const IDENTITY: LogIdentity = LogIdentity {
    partition: TopicPartition { topic: TopicId::new(0xc07), partition: PartitionIndex::new(0) },
    generation: 1,
};
const UUID: u128 = 0xf0110;
const DEPTH_MAX: u32 = 4;

/// A batch with its final bytes.
struct Batch {
    end: u64,
    producer: Producer,
    bytes: Vec<u8>,
}

/// What the log holds.
#[derive(Clone, Default)]
struct Promise {
    start: u64,
    batches: Vec<Rc<Batch>>,
    /// Durable, and told.
    acknowledged: u64,
}

impl Promise {
    fn end(&self) -> u64 {
        self.batches.last().map_or(self.start, |batch| batch.end)
    }

    /// Nothing at `to` and above; all that is left is durable.
    fn cut(&self, to: u64) -> Self {
        let batches: Vec<_> = self.batches.iter().filter(|batch| batch.end <= to).cloned().collect();
        let mut cut = Self { start: self.start, batches, acknowledged: 0 };
        cut.acknowledged = cut.end();
        cut
    }

    /// Of each producer: end offset, epoch and sequence of its last batch.
    fn producers(&self) -> BTreeMap<i64, Last> {
        let last = |batch: &Rc<Batch>| {
            let Producer { id, epoch, base_sequence } = batch.producer;
            (id, (batch.end, epoch, base_sequence))
        };
        self.batches.iter().map(last).collect()
    }

    /// Who sends the next batch: one of a few, most of whom send often, and all of whom begin a new epoch now and then.
    fn next_producer(&self, dice: &mut Dice) -> Producer {
        let id = [0, 0, 0, 0, 0, 1, 1, 2][dice.below(8) as usize];
        let last = self.batches.iter().rev().find(|batch| batch.producer.id == id);
        match last {
            None => Producer { id, epoch: 0, base_sequence: 0 },
            Some(last) if dice.chance(5) => Producer { id, epoch: last.producer.epoch + 1, base_sequence: 0 },
            Some(last) => {
                let header = record_batch::Header::decode(&last.bytes).expect("it was built");
                last.producer.after(header.record_count)
            }
        }
    }

    /// Whether a log of `start..end` that holds `bytes` keeps it.
    fn is_kept_by(&self, start: u64, end: u64, bytes: &[u8]) -> bool {
        let left = self.cut(end);
        let expected = left.batches.iter().flat_map(|batch| &batch.bytes);
        start == self.start && end >= self.acknowledged && left.end() == end && bytes.iter().eq(expected)
    }
}

/// End offset, epoch and first sequence of a producer's last batch.
type Last = (u64, i16, i32);

/// The last batch that the table knows of each producer.
fn known_producers(partition: &Partition<CrashDisk>) -> BTreeMap<i64, Last> {
    let last = |summary: &ProducerSummary| {
        let batch = summary.batches.last().expect("none is without");
        let records = batch.last_sequence - batch.first_sequence + 1;
        (summary.producer_id, (batch.base_offset + records as u64, batch.epoch, batch.first_sequence))
    };
    partition.checkpoint().producers.iter().map(last).collect()
}

/// The promises of a moment.
#[derive(Clone, Default)]
struct Promises {
    now: Promise,
    /// What is, or is not any more, if a cut is under way: `now` is what it leads to.
    before: Option<Promise>,
    epoch: u32,
}

struct Told(Rc<RefCell<Promises>>);

impl DurabilityWaiter for Told {
    fn durable(&self, token: u32, end: Offset) {
        assert!(end.get() >= u64::from(token));
        let mut promises = self.0.borrow_mut();
        let promises = &mut *promises;
        let known = promises.before.as_mut().unwrap_or(&mut promises.now);
        known.acknowledged = known.acknowledged.max(u64::from(token));
    }

    fn closed(&self, _: u32) {}
}

struct Job {
    image: Image,
    promises: Promises,
    depth: u32,
    seed: u64,
    steps: u64,
}

struct Life {
    disk: CrashDisk,
    store: Rc<Store<CrashDisk>>,
    partition: Rc<Partition<CrashDisk>>,
    promises: Rc<RefCell<Promises>>,
    tally: Rc<RefCell<Tally>>,
    dice: Dice,
    depth: u32,
    jobs: Vec<Job>,
    ticking: Rc<Cell<bool>>,
}

fn settings(dice: &mut Dice) -> PartitionSettings {
    let segment_ms = [3, 20, i64::MAX][dice.below(3) as usize];
    PartitionSettings {
        log: LogSettings { segment_bytes: 1 << 20, segment_ms },
        retention: RetentionSettings { retention_ms: -1, retention_bytes: -1 },
        compaction: None,
        max_message_bytes: 4 << 20,
        log_append_time: false,
    }
}

/// Everything from the log's start on, as another replica would be sent it.
async fn read_all(store: &Store<CrashDisk>, partition: &Rc<Partition<CrashDisk>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = partition.with_log(|log| log.log_start());
    loop {
        let read = partition.read_for_push(&store.chunks, next, 300_000).await.expect("readable");
        if read.slices.is_empty() {
            return bytes;
        }
        read.slices.iter().for_each(|slice| bytes.extend_from_slice(slice.bytes()));
        next = read.end;
    }
}

/// Opens the log of an image, and judges it.
async fn open(
    disk: CrashDisk,
    seed: u64,
    settings: PartitionSettings,
    promises: Promises,
    tally: Rc<RefCell<Tally>>,
) -> (Rc<Store<CrashDisk>>, Rc<Partition<CrashDisk>>, Promises) {
    let environment = CrashEnvironment::new(&disk, seed);
    let policy = DiskPolicy { one_flush_covers_all_files: seed.is_multiple_of(4), ..DiskPolicy::default() };
    let opened = Storage::open(disk, environment, policy, &root(), ShardId::new(0), UUID).await;
    let (storage, checkpoint) = opened.expect("the storage opens");
    let store = Store::new(storage, checkpoint, 2);
    let partition = store.open_partition(IDENTITY, settings, LeaderEpoch::new(1)).await.expect("it opens");
    partition.replicate(true);
    let (start, end) = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
    store.begin_service().await.expect("the first checkpoint");
    let bytes = read_all(&store, &partition).await;
    let after = promises.now.is_kept_by(start, end, &bytes)
        && (promises.before.is_none() || end == promises.now.end());
    let unchanged = promises.before.as_ref().filter(|before| before.is_kept_by(start, end, &bytes));
    let report = partition.report().clone();
    if !(after || unchanged.is_some()) {
        let mut tally = tally.borrow_mut();
        tally.lost += 1;
        let told =
            |promise: &Promise| format!("{}..{} told {}", promise.start, promise.end(), promise.acknowledged);
        tally.failures.push(format!(
            "found {start}..{end}, promised {}, before the cut {:?}; {report:?}",
            told(&promises.now),
            promises.before.as_ref().map(told)
        ));
    }
    if !report.lost.is_empty() {
        let mut tally = tally.borrow_mut();
        tally.misjudged += 1;
        tally.failures.push(format!("lost {:?} without damage", report.lost));
    }
    if promises.before.is_some() {
        let event = if after { "cuts in doubt that have happened" } else { "cuts in doubt that have not" };
        tally.borrow_mut().add(event, 1);
    }
    let mut now = if after { promises.now.clone() } else { unchanged.cloned().unwrap_or_default() }.cut(end);
    now.acknowledged = end;
    judge_producers(&partition, &now, &mut tally.borrow_mut(), "after a recovery");
    (store, partition, Promises { now, before: None, epoch: promises.epoch })
}

/// All of the log is durable.
fn judge_producers(partition: &Partition<CrashDisk>, now: &Promise, tally: &mut Tally, when: &str) {
    let (known, kept) = (known_producers(partition), now.producers());
    if known != kept {
        tally.misjudged += 1;
        let (start, end) = (now.start, now.end());
        tally.failures.push(format!(
            "{when} of {start}..{end} producers are known as {known:?}, the log holds {kept:?}"
        ));
    }
}

async fn live(job: Job, settings: PartitionSettings, tally: &Rc<RefCell<Tally>>) -> Vec<Job> {
    let mut dice = Dice::new(job.seed);
    let eager_percent = if job.steps == 0 { 100 } else { [0, 20, 50, 80][dice.below(4) as usize] };
    let habits = Habits { one_flush_covers_all_files: job.seed.is_multiple_of(4), eager_percent };
    let disk = CrashDisk::new(&job.image, habits, dice.next());
    let opened = Rc::new(RefCell::new(None));
    {
        let (opened, disk, seed, promises) = (opened.clone(), disk.clone(), job.seed, job.promises);
        let tally = tally.clone();
        glommio::spawn_local(async move {
            let found = open(disk, seed, settings, promises, tally).await;
            *opened.borrow_mut() = Some(found);
        })
        .detach();
    }
    while opened.borrow().is_none() {
        settle().await;
        if !disk.complete_one() {
            disk.pass_to_next();
        }
    }
    let (store, partition, promises) = opened.borrow_mut().take().expect("it has been opened");
    if !tally.borrow().failures.is_empty() {
        return Vec::new();
    }
    if job.depth > 0 {
        tally.borrow_mut().images += 1;
    }
    let mut life = Life {
        disk,
        store,
        partition,
        promises: Rc::new(RefCell::new(promises)),
        tally: tally.clone(),
        dice,
        depth: job.depth,
        jobs: Vec::new(),
        ticking: Rc::default(),
    };
    for _ in 0..job.steps {
        life.step().await;
    }
    life.disk.die();
    settle().await;
    life.jobs
}

impl Life {
    async fn step(&mut self) {
        settle().await;
        if self.dice.chance(12) {
            self.crash();
        }
        match self.dice.below(100) {
            0..20 => self.append(),
            20..65 => {
                for _ in 0..=self.dice.below(3) {
                    self.disk.complete_one();
                }
            }
            65..85 => self.disk.pass(Duration::from_micros(100 + self.dice.below(4_000))),
            85..90 => self.tick(),
            90 => {
                self.disk.pass(Duration::from_millis(150));
                self.tick();
            }
            91 => self.checkpoint(),
            _ => self.cut(),
        }
    }

    /// Batches of the leader of now, or of a later one.
    fn append(&mut self) {
        if self.promises.borrow().before.is_some() {
            return;
        }
        let mut pushed = Vec::new();
        let mut promises = self.promises.borrow_mut();
        for _ in 0..=self.dice.below(4) {
            if self.dice.chance(15) {
                promises.epoch += 1;
            }
            let records = 1 + self.dice.below(3);
            let bytes = [50, 800, 4_000, 30_000, 200_000][self.dice.below(5) as usize];
            let producer = promises.now.next_producer(&mut self.dice);
            let mut builder = BatchBuilder::new().with_producer(producer);
            for _ in 0..records {
                let value: Vec<u8> = (0..bytes / 8).flat_map(|_| self.dice.next().to_le_bytes()).collect();
                builder.append(1_700_000_000_000, None, Some(&value), &[]);
            }
            let mut bytes = builder.finish();
            let base = promises.now.end();
            record_batch::set_base_offset(&mut bytes, base);
            record_batch::set_leader_epoch(&mut bytes, promises.epoch);
            pushed.extend_from_slice(&bytes);
            promises.now.batches.push(Rc::new(Batch { end: base + records, producer, bytes }));
        }
        let (end, epoch) = (promises.now.end(), LeaderEpoch::new(promises.epoch));
        drop(promises);
        self.partition.append_pushed(&pushed, epoch).expect("they follow");
        let waiter = Rc::new(Told(self.promises.clone()));
        self.partition.when_durable(Offset::new(end), waiter, end as u32);
        self.store.mark_dirty(self.partition.id());
    }

    /// Cuts the log somewhere, or discards it.
    fn cut(&mut self) {
        if self.promises.borrow().before.is_some() {
            return;
        }
        let mut promises = self.promises.borrow_mut();
        let known = promises.now.clone();
        let anew = self.dice.chance(12);
        let to = match anew {
            true => known.end() + self.dice.below(20),
            // Mostly near the end, where leaders part.
            false if self.dice.chance(70) => {
                known.end() - self.dice.below(known.end() - known.start + 1).min(6)
            }
            false => known.start + self.dice.below(known.end() - known.start + 1),
        };
        promises.now = match anew {
            true => Promise { start: to, batches: Vec::new(), acknowledged: to },
            false => known.cut(to),
        };
        promises.before = Some(known);
        drop(promises);
        self.tally.borrow_mut().add(if anew { "logs discarded" } else { "logs cut" }, 1);
        let (store, partition, promises) =
            (self.store.clone(), self.partition.clone(), self.promises.clone());
        let tally = self.tally.clone();
        glommio::spawn_local(async move {
            let to = Offset::new(to);
            let end = match anew {
                true => store.reset(&partition, to).await,
                false => store.truncate(&partition, to).await,
            };
            let end = end.expect("it is cut").get();
            let mut promises = promises.borrow_mut();
            assert_eq!(end, promises.now.end(), "cut at {to}");
            promises.before = None;
            judge_producers(&partition, &promises.now, &mut tally.borrow_mut(), "after a cut");
        })
        .detach();
    }

    fn tick(&mut self) {
        if self.ticking.replace(true) {
            return;
        }
        let (store, ticking) = (self.store.clone(), self.ticking.clone());
        glommio::spawn_local(async move {
            store.tick().await;
            store.enforce_retention().await;
            ticking.set(false);
        })
        .detach();
    }

    fn checkpoint(&mut self) {
        let store = self.store.clone();
        glommio::spawn_local(async move { store.checkpoint(false).await.expect("there is room") }).detach();
    }

    fn crash(&mut self) {
        for _ in 0..2 {
            let mode = Mode::ALL[self.dice.below(6) as usize];
            let image = self.disk.crash(mode, &mut self.dice);
            let depth = self.depth + 1;
            let works = depth < DEPTH_MAX && self.dice.chance(if depth == 1 { 8 } else { 15 });
            let steps = if works { 15 + self.dice.below(60) } else { 0 };
            let (promises, seed) = (self.promises.borrow().clone(), self.dice.next());
            self.jobs.push(Job { image, promises, depth, seed, steps });
        }
    }
}

/// Runs a root seed with all lives that come of it.
pub fn run(seed: u64) -> Tally {
    let executor =
        glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).make().expect("an executor");
    executor.run(async {
        let tally: Rc<RefCell<Tally>> = Rc::default();
        let settings = settings(&mut Dice::new(seed));
        let image = Image::fresh(&root());
        let mut jobs = vec![Job { image, promises: Promises::default(), depth: 0, seed, steps: 300 }];
        while let Some(job) = jobs.pop() {
            jobs.extend(live(job, settings, &tally).await);
            if tally.borrow().failures.len() >= 5 {
                break;
            }
        }
        settle().await;
        std::mem::take(&mut *tally.borrow_mut())
    })
}
