//! Bugs that were found once, each as a script: start, append, stop or pull the plug, damage, start again.
//!
//! Runs on the recording disk with everything completing at once, so that a script reads top to bottom.

use super::Dice;
use super::disk::{CrashDisk, CrashEnvironment, Habits, Mode};
use super::image::{Entry, Image};
use super::life::{root, settle};
use logic::ids::{LeaderEpoch, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings};
use schema::record_batch::{self, BatchBuilder};
use schema::segment::BLOCK_BYTES;
use server::partition::reader::ReadError;
use server::partition::{DurabilityWaiter, Partition, PartitionSettings};
use server::storage::{DiskPolicy, Storage, partition_directory, segment_name};
use server::store::Store;
use std::cell::Cell;
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
        let habits = Habits { one_flush_covers_all_files: true, eager_percent: 100 };
        let disk = CrashDisk::new(image, habits, 1);
        let environment = CrashEnvironment::new(&disk, image.next_file);
        let policy = DiskPolicy { one_flush_covers_all_files: true, ..DiskPolicy::default() };
        let (storage, checkpoint) =
            Storage::open(disk.clone(), environment, policy, &root(), ShardId::new(0), 9).await?;
        let store = Store::new(storage, checkpoint, 2);
        let settings = PartitionSettings {
            log: LogSettings { segment_bytes: 1 << 20, segment_ms },
            retention: RetentionSettings { retention_ms: -1, retention_bytes: -1 },
            compaction: None,
            max_message_bytes: 1 << 20,
            log_append_time: false,
        };
        let partition = store.open_partition(IDENTITY, settings, LeaderEpoch::new(1)).await?;
        store.begin_service().await?;
        Ok(Self { disk, store, partition, acknowledged: Rc::default() })
    }

    /// Appends batches of one record, each in a group of its own; the acknowledged end.
    pub async fn append(&self, batches: u64) -> u64 {
        for _ in 0..batches {
            let mut builder = BatchBuilder::new();
            builder.append(1_700_000_000_000, None, Some(&[7; 1000]), &[]);
            let bytes = builder.finish();
            let header = record_batch::validate_produced(&bytes, 1 << 20).expect("a sound batch");
            let end = self.partition.append_copy(&bytes, &header).end;
            self.partition.when_durable(end, self.acknowledged.clone(), 0);
            self.store.mark_dirty(self.partition.id());
            settle().await;
        }
        self.acknowledged.0.get()
    }

    pub async fn shut_down(&self) {
        self.store.shut_down().await.expect("an orderly end");
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

/// The path of a segment.
pub fn segment(sequence: u64) -> PathBuf {
    partition_directory(&root(), &IDENTITY).join(segment_name(sequence))
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

/// Runs a script on an executor of its own.
pub fn run(script: impl Future<Output = ()>) {
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).make();
    executor.expect("an executor").run(script);
}
