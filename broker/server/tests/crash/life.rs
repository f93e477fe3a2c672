//! One start of a broker's stores over an image: recovery, judgement, work, crashes.
//!
//! A life runs on the executor of its root seed. It drives the disk itself: every step lets ready tasks
//! run, then completes an operation, lets time pass or does something that a broker would do. At any step
//! a crash may be taken; the life goes on as if nothing had happened, the images begin lives of their own.
//! There is one store, or two between which partitions move (`homes`).

use super::Dice;
use super::disk::{CrashDisk, CrashEnvironment, Habits, Mode};
use super::homes;
use super::image::{Entry, Image};
use super::ledger::{self, Acknowledge, Batch, Case, Ledger, PRODUCERS, Slot, Tally};
use logic::ids::{Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::PRODUCER_IN_FLIGHT_MAX;
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings};
use logic::producer_state::{Admission, ProducerError};
use schema::record_batch::{self, BatchBuilder, Producer};
use schema::segment::GROUP_HEADER_BYTES;
use server::partition::reader::ReadError;
use server::partition::tail_cache::Slice;
use server::partition::{Partition, PartitionSettings};
use server::storage::{DiskPolicy, Storage, is_no_space, partition_directory};
use server::store::Store;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

pub const UUID: u128 = 0x5eed;
/// Lives that follow one another through crashes.
const DEPTH_MAX: u32 = 4;
/// How often who waits for room looks again.
pub const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A life that does not get ahead in so many steps is stuck.
const STEPS_MAX: u32 = 200_000;

/// What the lives of one root seed have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    pub one_flush_covers_all_files: bool,
    pub rounds_in_flight: usize,
    /// Stores; partitions move if there is more than one.
    pub shards: usize,
    pub partitions: u64,
    pub settings: PartitionSettings,
    /// Bytes of a batch are drawn from here.
    pub batch_bytes: Vec<u64>,
    pub steps: u64,
    /// Crashes of a hundred steps.
    pub crash_percent: u64,
    /// The disk is full now and then.
    pub fills_up: bool,
    /// Images that get flipped bits, of a hundred.
    pub flip_percent: u64,
}

impl Plan {
    /// The plan of a root seed.
    pub fn draw(seed: u64, flips: bool) -> Self {
        let mut dice = Dice::new(seed);
        // Every fourth seed fills whole segments, so that they are recycled; the others roll by time.
        let fills = dice.chance(25);
        let batch_bytes = match fills {
            true => vec![200, 30_000, 60_000, 61_300, 130_000, 250_000],
            false => match dice.below(3) {
                0 => vec![100, 100, 500, 3_800, 3_990],
                1 => vec![100, 4_000, 9_000, 20_000],
                _ => vec![100, 2_000, 40_000, 100, 500, 1_300_000],
            },
        };
        let segment_ms = if fills { i64::MAX } else { [8, 25, 60, 1_000_000][dice.below(4) as usize] };
        let retention_bytes = match fills {
            true => 1 << 20,
            false => [-1, 60_000, 200_000][dice.below(3) as usize],
        };
        Self {
            one_flush_covers_all_files: dice.chance(75),
            rounds_in_flight: 1 + dice.below(4) as usize,
            shards: 1,
            partitions: if fills { 1 + dice.below(2) } else { 1 + dice.below(5) },
            settings: PartitionSettings {
                log: LogSettings { segment_bytes: 1 << 20, segment_ms },
                retention: RetentionSettings { retention_ms: -1, retention_bytes },
                compaction: None,
                max_message_bytes: 4 << 20,
                log_append_time: dice.chance(20),
            },
            batch_bytes,
            steps: if fills { 500 } else { 350 },
            crash_percent: if fills { 4 } else { 7 },
            fills_up: dice.chance(25),
            flip_percent: if flips { 100 } else { 0 },
        }
    }
}

/// A life to be lived.
pub struct Job {
    pub image: Image,
    pub ledger: Ledger,
    pub depth: u32,
    pub seed: u64,
    pub steps: u64,
    pub flipped: bool,
    pub clean: bool,
}

impl Job {
    /// The first life of a root seed.
    pub fn root(seed: u64, plan: &Plan) -> Self {
        let slots = (0..plan.partitions)
            .map(|partition| {
                let home = partition as usize % plan.shards;
                Slot::new(
                    identity(partition as u32, 1),
                    plan.settings,
                    home,
                    plan.is_replicated(partition as u32),
                )
            })
            .collect();
        Self {
            image: Image::fresh(&root()),
            ledger: Ledger { slots },
            depth: 0,
            seed,
            steps: plan.steps,
            flipped: false,
            clean: false,
        }
    }
}

pub fn root() -> PathBuf {
    PathBuf::from("/data")
}

fn identity(partition: u32, generation: u32) -> LogIdentity {
    let partition = PartitionIndex::new(partition);
    LogIdentity { partition: TopicPartition { topic: TopicId::new(0xcafe), partition }, generation }
}

/// Lets everything run that is ready.
pub async fn settle() {
    for _ in 0..12 {
        let mut first = true;
        poll_fn(|context| {
            if std::mem::take(&mut first) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

pub struct Life<'a> {
    pub plan: &'a Plan,
    pub disk: CrashDisk,
    pub ledger: Rc<RefCell<Ledger>>,
    pub tally: Rc<RefCell<Tally>>,
    pub dice: Dice,
    pub depth: u32,
    jobs: Vec<Job>,
    pub stores: Vec<Rc<Store<CrashDisk>>>,
    /// What is served, by its slot.
    pub open: Rc<RefCell<BTreeMap<usize, Rc<Partition<CrashDisk>>>>>,
    /// Slots whose partition is on its way from one store to another, until the first has forgotten it.
    pub moving: Rc<RefCell<BTreeSet<usize>>>,
    /// The stores are ending: nobody takes anything over any more.
    pub stopping: Rc<Cell<bool>>,
    /// Partitions that the start has found no room to open.
    unopened: Rc<Cell<usize>>,
    ticking: Rc<Cell<bool>>,
    retaining: Rc<Cell<bool>>,
    number: u64,
}

type Opened = Rc<RefCell<Vec<Rc<Store<CrashDisk>>>>>;

/// Lives a life; the lives that begin with its crashes.
pub async fn live(mut job: Job, plan: &Plan, tally: &Rc<RefCell<Tally>>) -> Vec<Job> {
    if plan.shards > 1 {
        homes::give_checkpoints(&mut job.image, plan.shards, &job.ledger);
    }
    let mut dice = Dice::new(job.seed);
    let leaf = job.steps == 0;
    let eager_percent = if leaf && !dice.chance(15) { 100 } else { [0, 20, 50, 80][dice.below(4) as usize] };
    let one_flush_covers_all_files = plan.one_flush_covers_all_files;
    let habits = Habits { one_flush_covers_all_files, eager_percent };
    let disk = CrashDisk::new(&job.image, habits, dice.next());
    if plan.fills_up && plan.shards > 1 && job.depth > 0 && dice.chance(30) {
        disk.fill_up();
        tally.borrow_mut().add("starts on a full disk", 1);
    }
    let environments: Vec<_> = (0..plan.shards).map(|_| CrashEnvironment::new(&disk, dice.next())).collect();
    let mut life = Life {
        plan,
        disk: disk.clone(),
        ledger: Rc::new(RefCell::new(job.ledger)),
        tally: tally.clone(),
        dice,
        depth: job.depth,
        jobs: Vec::new(),
        stores: Vec::new(),
        open: Rc::default(),
        moving: Rc::default(),
        stopping: Rc::default(),
        unopened: Rc::default(),
        ticking: Rc::default(),
        retaining: Rc::default(),
        number: 0,
    };
    // Recovery is a task like any other: crashes come while it writes.
    let opened: Opened = Rc::default();
    {
        let (opened, ledger, open) = (opened.clone(), life.ledger.clone(), life.open.clone());
        let (tally, disk, rounds) = (tally.clone(), disk.clone(), plan.rounds_in_flight);
        let (image, flipped, clean, epoch) = (job.image, job.flipped, job.clean, job.depth + 1);
        let filled = plan.fills_up;
        let serve = !leaf || life.dice.chance(20);
        let (unopened, stopping) = (life.unopened.clone(), life.stopping.clone());
        glommio::spawn_local(async move {
            let policy = DiskPolicy { one_flush_covers_all_files, ..DiskPolicy::default() };
            let mut stores = Vec::new();
            for (shard, environment) in environments.into_iter().enumerate() {
                let shard = ShardId::new(shard as u16);
                let (storage, checkpoint) =
                    Storage::open(disk.clone(), environment, policy, &root(), shard, UUID)
                        .await
                        .expect("the storage opens");
                stores.push(Store::new(storage, checkpoint, rounds));
            }
            let case = Case { image: &image, root: &root(), flipped, clean, filled };
            let before = ledger.borrow().slots.clone();
            let mut no_room = Vec::new();
            for (at, _) in before.iter().enumerate().filter(|(_, slot)| !slot.deleted) {
                let store = &stores[before[at].home];
                match ledger::open_and_judge(store, &disk, &ledger, at, epoch, &case, &tally).await {
                    Some(partition) => drop(open.borrow_mut().insert(at, partition)),
                    None => no_room.push(at),
                }
            }
            unopened.set(no_room.len());
            for store in stores.iter().filter(|_| serve) {
                store.begin_service().await.expect("the first checkpoint");
            }
            let read = async |at: usize, partition: &Rc<Partition<CrashDisk>>| {
                let max_bytes = [3_000, 100_000, 2_000_000][at % 3];
                let store = &stores[before[at].home];
                ledger::read_and_judge(store, partition, &before[at], max_bytes, &case, &tally).await;
            };
            let partitions: Vec<_> = open.borrow().iter().map(|(at, open)| (*at, open.clone())).collect();
            for (at, partition) in partitions {
                read(at, &partition).await;
            }
            if !leaf {
                *opened.borrow_mut() = stores.clone();
            }
            for at in no_room {
                tally.borrow_mut().add("partitions that waited for room at a start", 1);
                let store = &stores[before[at].home];
                let partition = loop {
                    store.storage.environment.sleep(LOOK_AGAIN).await;
                    // What a stopping store has is in its last checkpoint.
                    if stopping.get() {
                        return;
                    }
                    let judged = ledger::open_and_judge(store, &disk, &ledger, at, epoch, &case, &tally);
                    if let Some(partition) = judged.await {
                        break partition;
                    }
                };
                // Before anybody appends to it.
                read(at, &partition).await;
                open.borrow_mut().insert(at, partition);
                unopened.set(unopened.get() - 1);
            }
            *opened.borrow_mut() = stores;
        })
        .detach();
    }
    let mut steps = 0;
    loop {
        settle().await;
        if !opened.borrow().is_empty() {
            break;
        }
        if !job.flipped && life.depth > 0 && life.depth < DEPTH_MAX && life.dice.chance(3) {
            tally.borrow_mut().add("crashes during recovery", 1);
            life.crash(1);
        }
        if !disk.complete_one() {
            disk.pass_to_next();
        }
        if disk.is_full() && life.dice.chance(2) {
            disk.set_full(false);
        }
        steps += 1;
        assert!(steps < STEPS_MAX, "recovery is stuck");
    }
    life.stores = opened.take();
    if job.depth > 0 {
        tally.borrow_mut().images += 1;
    }
    if !leaf {
        life.work(job.steps).await;
    } else if !job.flipped && life.dice.chance(10) {
        // What has been recovered can be appended to.
        life.send_again();
        life.append();
        life.drain().await;
    }
    life.end().await
}

impl Life<'_> {
    /// The store that serves a partition; the one where it is at home if none does.
    fn store(&self, at: usize) -> &Rc<Store<CrashDisk>> {
        let slot = &self.ledger.borrow().slots[at];
        let serving = self.stores.iter().find(|store| store.partition(&slot.identity.partition).is_some());
        serving.unwrap_or(&self.stores[slot.home])
    }

    pub fn event(&self, event: &'static str) {
        self.tally.borrow_mut().add(event, 1);
    }

    async fn work(&mut self, steps: u64) {
        self.send_again();
        for _ in 0..steps {
            settle().await;
            if self.plan.shards > 1 {
                self.check_homes();
                // Now and then one after the other.
                if self.dice.chance(4) {
                    self.move_home();
                }
            }
            let moves = !self.moving.borrow().is_empty();
            if self.dice.chance(self.plan.crash_percent) || moves && self.dice.chance(40) {
                self.event("crashes during work");
                self.crash(2);
            }
            if self.plan.fills_up && self.dice.chance(if self.disk.is_full() { 4 } else { 1 }) {
                match self.disk.is_full() {
                    true => self.disk.set_full(false),
                    false if self.plan.shards > 1 => self.disk.fill_up(),
                    false => self.disk.set_full(true),
                }
                self.event("disk filled or freed");
            }
            if moves && self.disk.is_full() && self.dice.chance(10) {
                // Who releases a partition does not wait for room for ever, and who takes it over looks again.
                self.disk.pass(Duration::from_millis(500));
            }
            match self.dice.below(100) {
                0..20 => self.append(),
                20..62 => {
                    for _ in 0..=self.dice.below(3) {
                        self.disk.complete_one();
                    }
                }
                62..82 => self.disk.pass(Duration::from_micros(100 + self.dice.below(4_000))),
                82..90 => self.tick(),
                90..91 => {
                    // An idle while: logs get attested.
                    self.disk.pass(Duration::from_millis(150));
                    self.tick();
                }
                91 => {
                    if self.dice.chance(20) {
                        self.disk.pass(Duration::from_secs(12));
                        self.tick();
                    }
                }
                92..94 => self.retain(),
                94 => self.checkpoint(),
                95..98 => self.read(),
                98 => self.delete(),
                _ => self.create(),
            }
        }
        if self.dice.chance(50) {
            self.drain().await;
            self.event("lives drained");
            if self.dice.chance(50) {
                self.shut_down().await;
            }
        } else if self.dice.chance(40) {
            // In the middle of everything.
            self.disk.set_full(false);
            self.append();
            self.shut_down().await;
        }
    }

    /// Takes images of this moment.
    fn crash(&mut self, images: u64) {
        for (at, partition) in self.open.borrow().iter() {
            let slot = &mut self.ledger.borrow_mut().slots[*at];
            slot.log_start = slot.log_start.max(partition.with_log(|log| log.log_start().get()));
        }
        for _ in 0..images {
            let mode = Mode::ALL[self.dice.below(6) as usize];
            self.take(mode, false);
        }
    }

    fn take(&mut self, mode: Mode, clean: bool) {
        let ledger = self.ledger.borrow().clone();
        let mut image = self.disk.crash(mode, &mut self.dice);
        image.unacknowledged.retain(|note| ledger.is_open(note));
        let depth = self.depth + 1;
        if self.dice.chance(self.plan.flip_percent) {
            for _ in 0..3 {
                let mut image = image.clone();
                self.flip(&mut image, &ledger);
                let (ledger, seed) = (ledger.clone(), self.dice.next());
                self.jobs.push(Job { image, ledger, depth, seed, steps: 0, flipped: true, clean: false });
            }
        }
        let works = depth < DEPTH_MAX && self.dice.chance(if depth == 1 { 7 } else { 15 });
        let steps = if works { 15 + self.dice.below(60) } else { 0 };
        if works || self.plan.flip_percent == 0 {
            let seed = self.dice.next();
            self.jobs.push(Job { image, ledger, depth, seed, steps, flipped: false, clean });
        }
    }

    /// Flips up to three bits that lie close together: in the newest groups, anywhere in a segment, in a
    /// segment's header, in a checkpoint.
    fn flip(&mut self, image: &mut Image, ledger: &Ledger) {
        let slots: Vec<&Slot> = ledger.slots.iter().filter(|slot| !slot.deleted).collect();
        if slots.is_empty() {
            return;
        }
        let slot = slots[self.dice.below(slots.len() as u64) as usize];
        let shard = root().join("shard-0");
        let what = self.dice.below(10);
        let directory = if what == 0 { shard } else { partition_directory(&root(), &slot.identity) };
        let files: Vec<(String, u64)> = image.directories.get(&directory).map_or_else(Vec::new, |names| {
            let bytes = |entry: &Entry| match entry {
                // Zeros at the end hold nothing.
                Entry::File(file) => {
                    let blocks = &file.content.blocks;
                    let used = blocks.iter().rposition(|block| block.iter().any(|byte| *byte != 0));
                    used.map(|used| (used as u64 + 1) * 4096)
                }
                Entry::Directory => None,
            };
            names.iter().filter_map(|(name, entry)| Some((name.clone(), bytes(entry)?))).collect()
        });
        if files.is_empty() {
            return;
        }
        let last = files.len() - 1;
        let (name, bytes) = match what {
            1..6 => files[last.saturating_sub(self.dice.below(2) as usize)].clone(),
            _ => files[self.dice.below(files.len() as u64) as usize].clone(),
        };
        let dice = &mut self.dice;
        let position = match what {
            6 => dice.below(128),
            // Headers of the newest groups, then anything in them.
            1..4 => (bytes - 4096 * (1 + dice.below((bytes / 4096).min(6)))) + dice.below(128),
            4..6 => bytes - 1 - dice.below(bytes.min(40_000)),
            _ => dice.below(bytes),
        };
        let bits: Vec<(u64, u8)> = (0..=dice.below(3))
            .map(|_| ((position + dice.below(8)).min(bytes - 1), dice.below(8) as u8))
            .collect();
        image.flip(&directory.join(name), &bits);
    }

    /// A batch of `bytes`; of a producer, mostly, if it has not too many on their way.
    fn batch(&mut self, at: usize, bytes: u64) -> Vec<u8> {
        self.number += 1;
        let records = 1 + self.dice.below(3);
        let mut builder = BatchBuilder::new();
        let producer = self.dice.below(PRODUCERS as u64 + 1) as usize;
        if producer < PRODUCERS {
            let slot = &mut self.ledger.borrow_mut().slots[at];
            let out =
                slot.batches_of(producer).rev().take_while(|batch| batch.end > slot.acknowledged).count();
            if out < PRODUCER_IN_FLIGHT_MAX {
                let base_sequence = slot.sequences[producer];
                slot.sequences[producer] += records as i32;
                builder.set_producer(Producer { id: producer as i64, epoch: 0, base_sequence });
            }
        }
        // Some records are zeros, which is also what blocks hold that were never written.
        let zeros = self.dice.chance(20);
        for _ in 0..records {
            let mut value = Vec::with_capacity((bytes / records) as usize + 16);
            if zeros {
                value.resize((bytes / records) as usize + 8, 0);
            }
            while (value.len() as u64) < bytes / records + 8 {
                value.extend_from_slice(&self.dice.next().to_le_bytes());
            }
            builder.append(1_700_000_000_000 + self.number as i64, None, Some(&value), &[]);
        }
        builder.finish()
    }

    fn append(&mut self) {
        let open: Vec<_> = self.open.borrow().iter().map(|(at, open)| (*at, open.clone())).collect();
        for (at, partition) in open {
            self.send_again_to(at, &partition);
            if !self.dice.chance(60) || partition.has_stopped() {
                continue;
            }
            for _ in 0..=self.dice.below(3) {
                let choice = self.dice.below(self.plan.batch_bytes.len() as u64) as usize;
                let bytes = self.plan.batch_bytes[choice];
                // Very large batches are rare.
                let bytes = if bytes > 1_000_000 && !self.dice.chance(6) { 300 } else { bytes };
                let bytes = self.batch(at, bytes);
                self.append_one(at, &partition, bytes);
            }
            if self.dice.chance(20) {
                self.repeat(at, &partition);
            }
            self.store(at).mark_dirty(partition.id());
        }
    }

    /// What was lost in the last crash and not acknowledged comes again, before anything new of its producer.
    fn send_again(&mut self) {
        let open: Vec<_> = self.open.borrow().iter().map(|(at, open)| (*at, open.clone())).collect();
        for (at, partition) in open {
            self.send_again_to(at, &partition);
        }
    }

    fn send_again_to(&mut self, at: usize, partition: &Rc<Partition<CrashDisk>>) {
        if partition.has_stopped() {
            return;
        }
        let again = std::mem::take(&mut self.ledger.borrow_mut().slots[at].to_send_again);
        self.tally.borrow_mut().add("batches sent again and appended", again.len() as u64);
        for batch in again {
            self.append_one(at, partition, batch.bytes.clone());
            self.store(at).mark_dirty(partition.id());
        }
    }

    /// The answer to one of the newest batches was lost: it comes again, and is answered when it is durable.
    fn repeat(&mut self, at: usize, partition: &Rc<Partition<CrashDisk>>) {
        let slot = self.ledger.borrow().slots[at].clone();
        let producer = self.dice.below(PRODUCERS as u64) as usize;
        let newest: Vec<_> = slot.batches_of(producer).rev().take(PRODUCER_IN_FLIGHT_MAX).cloned().collect();
        if newest.is_empty() || partition.is_closed() {
            return;
        }
        let batch = &newest[self.dice.below(newest.len() as u64) as usize];
        match partition.admit_producer(&batch.header()) {
            Ok(Admission::Duplicate(note)) if note.base.get() == batch.base => {
                let token = slot.batches.binary_search_by_key(&batch.base, |batch| batch.base);
                let waiter = Rc::new(Acknowledge { ledger: self.ledger.clone(), slot: at });
                partition.when_durable(note.end(), waiter, token.expect("it is there") as u32);
                self.event("repetitions answered");
            }
            // Below the start of a log that filled the disk, so that no checkpoint told of it: see `judge_producers`.
            Err(
                ProducerError::Forgotten { .. }
                | ProducerError::OutOfOrder { .. }
                | ProducerError::Unknown { .. },
            ) if self.plan.fills_up && batch.end <= partition.with_log(|log| log.log_start().get()) => {
                self.event("repetitions of what a full disk made forgotten");
            }
            other => panic!("{} sent again: {other:?}", batch.base),
        }
    }

    fn append_one(&mut self, at: usize, partition: &Rc<Partition<CrashDisk>>, mut bytes: Vec<u8>) {
        let header = record_batch::validate_produced(&bytes, 8 << 20).expect("a sound batch");
        let admitted = partition.admit_producer(&header);
        if let Err(ProducerError::OutOfOrder { .. } | ProducerError::Unknown { .. }) = admitted
            && self.plan.fills_up
        {
            // All that its producer had is below the start of a log that filled the disk: see `judge_producers`.
            let ledger = self.ledger.borrow();
            let mut batches = ledger.slots[at].batches.iter().rev();
            let newest = batches.find(|batch| batch.header().producer_id == header.producer_id);
            let log_start = partition.with_log(|log| log.log_start().get());
            assert!(newest.is_some_and(|batch| batch.end <= log_start), "batch {header:?}: {admitted:?}");
            self.event("batches of a producer that a full disk made forgotten");
            return;
        }
        assert_eq!(admitted, Ok(Admission::Append), "batch {header:?}");
        let appended = if self.dice.chance(30) {
            let mut buffer = partition.storage().pool.take(GROUP_HEADER_BYTES + bytes.len());
            buffer[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + bytes.len()].copy_from_slice(&bytes);
            partition.append_in_place(buffer, &header)
        } else {
            partition.append_copy(&bytes, &header)
        };
        record_batch::set_base_offset(&mut bytes, appended.base.get());
        record_batch::set_leader_epoch(&mut bytes, partition.leader_epoch().get());
        if self.plan.settings.log_append_time {
            record_batch::set_log_append_time(&mut bytes, appended.append_time_ms);
        }
        let mut ledger = self.ledger.borrow_mut();
        let slot = &mut ledger.slots[at];
        let last = slot.batches.last().map_or(0, |batch| batch.end);
        assert_eq!(appended.base.get(), last, "offsets go on where the log ended");
        let token = slot.batches.len() as u32;
        slot.batches.push(Rc::new(Batch { base: appended.base.get(), end: appended.end.get(), bytes }));
        drop(ledger);
        let waiter = Rc::new(Acknowledge { ledger: self.ledger.clone(), slot: at });
        partition.when_durable(appended.end, waiter, token);
    }

    fn tick(&mut self) {
        if self.ticking.replace(true) {
            return;
        }
        let (stores, ticking) = (self.stores.clone(), self.ticking.clone());
        glommio::spawn_local(async move {
            for store in stores {
                store.tick().await;
            }
            ticking.set(false);
        })
        .detach();
    }

    fn retain(&mut self) {
        if self.retaining.replace(true) {
            return;
        }
        let (stores, retaining, tally) = (self.stores.clone(), self.retaining.clone(), self.tally.clone());
        glommio::spawn_local(async move {
            for store in stores {
                let dropped = store.enforce_retention().await;
                tally.borrow_mut().add("segments dropped by retention", dropped);
            }
            retaining.set(false);
        })
        .detach();
    }

    fn checkpoint(&mut self) {
        let which = if self.plan.shards > 1 { self.dice.below(self.plan.shards as u64) } else { 0 };
        let store = self.stores[which as usize].clone();
        glommio::spawn_local(async move {
            let result = store.checkpoint(false).await;
            assert!(result.as_ref().map_or_else(is_no_space, |()| true), "{result:?}");
        })
        .detach();
    }

    /// A consumer somewhere in a log.
    fn read(&mut self) {
        let Some((at, partition)) = self.any_open() else { return };
        let (start, end) = partition.with_log(|log| (log.log_start().get(), log.high_watermark().get()));
        if start == end {
            return;
        }
        let offset = start + self.dice.below(end - start);
        let max_bytes = [1, 5_000, 300_000][self.dice.below(3) as usize];
        let (store, ledger) = (self.store(at).clone(), self.ledger.clone());
        self.event("reads while appending");
        glommio::spawn_local(async move {
            let slices = match partition.read(&store.chunks, Offset::new(offset), max_bytes).await {
                Ok(slices) => slices,
                Err(ReadError::Closed) => return,
                Err(_) if partition.with_log(|log| log.log_start().get()) > offset => return,
                // Its files are on their way out.
                Err(ReadError::Device(_)) if partition.is_closed() => return,
                Err(error) => panic!("reading {offset} of {start}..{end}: {error}"),
            };
            let bytes = slices.iter().map(Slice::bytes).collect::<Vec<_>>().concat();
            let mut next = offset;
            let slot = ledger.borrow().slots[at].clone();
            for (n, batch) in record_batch::batches(&bytes).enumerate() {
                let (header, bytes) = batch.expect("whole batches are served");
                assert!(header.end_offset() > next && (n == 0 || header.base_offset == next));
                let known = slot.batches.binary_search_by_key(&header.base_offset, |batch| batch.base);
                assert!(slot.batches[known.expect("a batch that was appended")].bytes == bytes);
                // Nobody is told any more once the partition is closed.
                let told = header.end_offset() <= slot.acknowledged || partition.is_closed();
                assert!(told, "served before it is acknowledged");
                next = header.end_offset();
            }
            let gone = partition.is_closed() || partition.with_log(|log| log.log_start().get()) > offset;
            assert!(next > offset || gone, "nothing is served at {offset} of {start}..{end}");
        })
        .detach();
    }

    pub fn any_open(&mut self) -> Option<(usize, Rc<Partition<CrashDisk>>)> {
        let mut open: Vec<_> = self.open.borrow().iter().map(|(at, open)| (*at, open.clone())).collect();
        let count = open.len() as u64;
        (count > 0).then(|| open.swap_remove(self.dice.below(count) as usize))
    }

    fn delete(&mut self) {
        if !self.dice.chance(40) {
            return;
        }
        let Some((at, partition)) = self.any_open() else { return };
        if self.moving.borrow().contains(&at) {
            return;
        }
        self.event("partitions deleted");
        self.open.borrow_mut().remove(&at);
        self.store(at).close_partition(&partition.id()).expect("it was open");
        self.ledger.borrow_mut().slots[at].deleted = true;
        self.disk.retain_groups(|note| note.partition != partition.id());
        glommio::spawn_local(async move { partition.delete_files().await.expect("files go") }).detach();
    }

    /// Makes a deleted partition again, as another generation.
    fn create(&mut self) {
        let (at, identity) = {
            let mut ledger = self.ledger.borrow_mut();
            let missing = (0..self.plan.partitions as u32).find(|partition| {
                !ledger.slots.iter().any(|slot| {
                    !slot.deleted && slot.identity.partition == self::identity(*partition, 1).partition
                })
            });
            let Some(partition) = missing else { return };
            let identity = identity(partition, 2 + ledger.slots.len() as u32);
            let settings = self.plan.settings;
            let home = partition as usize % self.plan.shards;
            let replicated = self.plan.is_replicated(partition);
            ledger.slots.push(Slot::new(identity, settings, home, replicated));
            (ledger.slots.len() - 1, identity)
        };
        self.event("partitions made again");
        let (store, open, settings) = (self.store(at).clone(), self.open.clone(), self.plan.settings);
        let epoch = self.ledger.borrow().slots[at].epoch(self.depth + 1);
        glommio::spawn_local(async move {
            match store.open_partition(identity, settings, epoch).await {
                Ok(partition) => drop(open.borrow_mut().insert(at, partition)),
                Err(error) => assert!(is_no_space(&error), "making partition {identity:?}: {error}"),
            }
        })
        .detach();
    }

    /// Runs without crashes until everything is acknowledged; space has returned.
    async fn drain(&mut self) {
        self.disk.set_full(false);
        let mut steps = 0;
        loop {
            settle().await;
            let done = self.open.borrow().iter().all(|(at, _)| {
                let ledger = self.ledger.borrow();
                let slot = &ledger.slots[*at];
                slot.batches.last().is_none_or(|batch| batch.end <= slot.acknowledged)
            });
            if done && self.moving.borrow().is_empty() && self.unopened.get() == 0 {
                for store in &self.stores {
                    let held: usize = store.partitions().iter().map(|open| open.tail_bytes()).sum();
                    assert_eq!(store.tail_bytes(), held, "bytes in the tail caches");
                }
                return;
            }
            // Who releases a partition sleeps again and again.
            let sleeps = steps % 100 == 99 && !self.moving.borrow().is_empty();
            if sleeps || !self.disk.complete_one() && !self.disk.pass_to_next() {
                // What waits for housekeeping gets it.
                self.disk.pass(Duration::from_millis(100));
                self.tick();
            }
            steps += 1;
            let loads: Vec<_> = self.stores.iter().map(|store| store.load()).collect();
            assert!(steps < 5_000, "appends are stuck: loads {loads:?}, moving {:?}", self.moving.borrow());
        }
    }

    /// An orderly end, and images of the time after it.
    async fn shut_down(&mut self) {
        let ended = Rc::new(Cell::new(0));
        // Where something is on its way, or waits for room, the last checkpoint of whoever knows of it claims no orderly end.
        let moves = !self.moving.borrow().is_empty() || self.unopened.get() > 0;
        self.stopping.set(true);
        for store in self.stores.clone() {
            let ended = ended.clone();
            glommio::spawn_local(async move {
                store.shut_down().await.expect("an orderly end");
                ended.set(ended.get() + 1);
            })
            .detach();
        }
        let mut steps = 0;
        while ended.get() < self.stores.len() {
            settle().await;
            if self.dice.chance(2) {
                self.crash(1);
            }
            if steps < 30 && self.dice.chance(5) {
                // Connections that do not know yet.
                self.append();
            }
            if self.dice.chance(20) || !self.disk.complete_one() {
                self.disk.pass(Duration::from_millis(1));
            }
            steps += 1;
            assert!(steps < STEPS_MAX, "the shut-down is stuck");
        }
        self.event("orderly ends");
        for store in self.stores.iter().filter(|_| self.moving.borrow().is_empty()) {
            if !store.partitions().iter().any(|partition| partition.has_pending()) {
                assert_eq!(store.storage.dirty_bytes(), 0, "bytes that are not durable");
            }
        }
        // Too late: no such append may be acknowledged, or the clean checkpoint would be wrong.
        self.append();
        for _ in 0..40 {
            settle().await;
            if !self.disk.complete_one() {
                self.disk.pass(Duration::from_millis(1));
            }
        }
        // Still under way: partitions that were being made. The metadata would make them again.
        let all_open = {
            let ledger = self.ledger.borrow();
            let slots = ledger.slots.iter().filter(|slot| !slot.deleted).count();
            slots == self.open.borrow().len() && !moves
        };
        for (at, partition) in self.open.borrow().iter() {
            let slot = &mut self.ledger.borrow_mut().slots[*at];
            slot.log_start = slot.log_start.max(partition.with_log(|log| log.log_start().get()));
        }
        for mode in [Mode::Drop, Mode::Keep, Mode::Any] {
            self.take(mode, all_open);
        }
    }

    /// Pulls the plug.
    async fn end(mut self) -> Vec<Job> {
        for store in std::mem::take(&mut self.stores) {
            let counters = &store.storage.counters;
            let mut tally = self.tally.borrow_mut();
            for (event, counter) in [
                ("rounds", &counters.rounds),
                ("groups", &counters.groups),
                ("device flushes", &counters.device_flushes),
                ("segments created", &counters.segments_created),
                ("segments recycled", &counters.segments_recycled),
                ("checkpoints", &counters.checkpoints),
            ] {
                tally.add(event, counter.get());
            }
        }
        self.disk.die();
        self.open.borrow_mut().clear();
        settle().await;
        self.jobs
    }
}

/// Runs a root seed with all lives that come of it.
pub fn run(seed: u64, flips: bool) -> Tally {
    run_plan(seed, &Plan::draw(seed, flips))
}

/// The same by a plan.
pub fn run_plan(seed: u64, plan: &Plan) -> Tally {
    let executor =
        glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).make().expect("an executor");
    executor.run(async {
        let tally: Rc<RefCell<Tally>> = Rc::default();
        let mut jobs = vec![Job::root(seed, plan)];
        while let Some(job) = jobs.pop() {
            let more = live(job, plan, &tally).await;
            jobs.extend(more);
            if tally.borrow().failures.len() >= 5 {
                break;
            }
        }
        settle().await;
        std::mem::take(&mut *tally.borrow_mut())
    })
}
