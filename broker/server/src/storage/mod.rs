//! The files of one shard: where they are, how they come and go.
//!
//! ```text
//! <data>/storage.uuid                identity of this disk
//! <data>/flush                       never extended; its fdatasync is the flush of the device
//! <data>/shard-<k>/checkpoint.{a,b}  alternating
//! <data>/shard-<k>/reserve           blocks for checkpoints and truncations when the disk is full
//! <data>/shard-<k>/spare/            recycled segments, and new ones before they get their name
//! <data>/topics/<topic-id>/<partition>.<generation>/<sequence>.log, or what compaction made of several
//! ```
//!
//! One [`Storage`] per shard, shared by its partitions, generic over the disk. A segment is made in
//! `spare/`, its header and first zeroed bytes are synced, then it is renamed into place and both
//! directories are synced: a name in a partition's directory always has a sound header behind it.
//! Write and sync errors are not retried: after a failed sync nobody knows what the device holds, so the
//! process ends with a message and recovers.

pub mod agenda;
pub mod buffer;
pub mod checkpoints;
pub mod disk;
pub mod leftovers;
pub mod read_files;
pub mod recover;
pub mod ring;
pub mod room;
pub mod zeroing_pace;

use agenda::Agenda;
use buffer::{Buffer, BufferPool};
use checkpoints::{CHECKPOINTS, CheckpointRefusal, checkpoint_name, shard_directory, usable_checkpoint};
use disk::{Disk, Write};
use logic::ids::{ShardId, TopicId, TopicPartition};
use logic::limits::{
    BLOCK_BYTES, DSYNC_WRITES_DEFAULT, DSYNC_WRITES_MAX, PREWRITE_BYTES_MIN, PREWRITE_CHUNK_BYTES,
    PREWRITE_FIRST_BYTES_MAX, PREWRITE_FIRST_BYTES_PER_SHARD, PRODUCER_EXPIRATION_MS_DEFAULT, RESERVE_BYTES,
    ROUND_BYTES_MAX, ROUND_BYTES_MIN, SPARE_SEGMENTS_MAX, TRUNCATE_STEP_BYTES, WRITE_BYTES_MAX,
    WRITE_BYTES_MIN,
};
use logic::log::{LogIdentity, SegmentName, append::SegmentNeeded};
use read_files::ReadFiles;
use schema::checkpoint::Checkpoint;
use schema::segment::{SegmentHeader, SegmentState};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zeroing_pace::ZeroingPace;

/// The name of the file whose blocks a shard gives back when the disk is full.
pub const RESERVE: &str = "reserve";

/// What storage takes from outside besides the disk: time and randomness, so that tests decide both.
pub trait Environment {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
    /// Nanoseconds of a clock that never goes back.
    fn monotonic_ns(&self) -> u64;
    /// A number that has not been used before.
    fn nonce(&self) -> u64;
    /// Waits.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// Counters of a shard's storage, read by `Status`.
#[derive(Debug, Default)]
pub struct StorageCounters {
    /// Flush rounds that became durable.
    pub rounds: Cell<u64>,
    /// Groups written.
    pub groups: Cell<u64>,
    /// Bytes written in groups, headers and padding included.
    pub group_bytes: Cell<u64>,
    /// Of those, bytes of batches.
    pub payload_bytes: Cell<u64>,
    /// Flushes of the device for a whole round.
    pub device_flushes: Cell<u64>,
    /// Writes that were durable by themselves.
    pub durable_writes: Cell<u64>,
    /// Groups written behind the zeroed part of their file.
    pub unprepared_groups: Cell<u64>,
    /// Bytes zeroed ahead.
    pub zeroed_bytes: Cell<u64>,
    /// Segments made anew.
    pub segments_created: Cell<u64>,
    /// Segments made from a recycled file.
    pub segments_recycled: Cell<u64>,
    /// Bytes read from segments.
    pub read_bytes: Cell<u64>,
    /// Reads of segments.
    pub reads: Cell<u64>,
    /// Checkpoints written.
    pub checkpoints: Cell<u64>,
    /// Passes of compaction that have come to their end.
    pub compaction_passes: Cell<u64>,
    /// Passes that came to no end: damage, the device, no space.
    pub compaction_given_up: Cell<u64>,
    /// Bytes that compaction has read.
    pub compaction_read_bytes: Cell<u64>,
    /// Bytes that compaction has written.
    pub compaction_written_bytes: Cell<u64>,
    /// Records that compaction has removed.
    pub compaction_removed_records: Cell<u64>,
    /// Bytes of segments that compaction has replaced, less those in their place.
    pub compaction_removed_bytes: Cell<u64>,
    /// Passes of scrubbing over all that is stored.
    pub scrub_passes: Cell<u64>,
    /// Bytes that scrubbing has read.
    pub scrubbed_bytes: Cell<u64>,
    /// Ranges of offsets that were found damaged: by recovery, readers, or scrubbing.
    pub damaged_ranges: Cell<u64>,
}

/// Adds to a counter.
pub fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// How this disk is to be used: what the host was found to permit, and what the disk was found to be good at.
/// None of it changes what an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskPolicy {
    /// One sync of any file flushes the device for all: ext4 or XFS with barriers, one device.
    pub one_flush_covers_all_files: bool,
    /// A round of at most so many writes makes each durable by itself, 0 to [`DSYNC_WRITES_MAX`]; a larger one
    /// shares a flush, where one covers all files.
    pub dsync_writes_max: usize,
    /// A round takes no further group above this, bytes, [`ROUND_BYTES_MIN`] to [`ROUND_BYTES_MAX`].
    pub round_bytes_max: usize,
    /// The largest single write of a round, bytes, whole blocks, [`WRITE_BYTES_MIN`] to [`WRITE_BYTES_MAX`].
    pub write_bytes_max: usize,
}

impl DiskPolicy {
    /// What is wrong with it, in the words of the settings.
    pub fn complaint(&self) -> Option<String> {
        let bounds = [
            ("durable writes of a small round", self.dsync_writes_max, 0, DSYNC_WRITES_MAX),
            ("bytes of a round", self.round_bytes_max, ROUND_BYTES_MIN, ROUND_BYTES_MAX),
            ("bytes of a write", self.write_bytes_max, WRITE_BYTES_MIN, WRITE_BYTES_MAX),
        ];
        let outside = bounds.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value));
        if let Some((what, value, least, most)) = outside {
            return Some(format!("{what} must be {least} to {most}, not {value}"));
        }
        let whole = self.write_bytes_max.is_multiple_of(BLOCK_BYTES);
        (!whole).then(|| format!("bytes of a write must be whole blocks, not {}", self.write_bytes_max))
    }
}

impl Default for DiskPolicy {
    /// The safe choices for a disk that nothing is known of.
    fn default() -> Self {
        Self {
            one_flush_covers_all_files: false,
            dsync_writes_max: DSYNC_WRITES_DEFAULT,
            round_bytes_max: ROUND_BYTES_MAX,
            write_bytes_max: WRITE_BYTES_MAX,
        }
    }
}

/// A segment file that readers hold while they read.
pub struct OpenSegment<F> {
    /// The file.
    pub file: F,
    /// Counted from before the file is opened: a file in use is neither recycled nor removed.
    pub used: Rc<()>,
}

/// A segment file in place.
pub struct PlacedSegment<F> {
    /// The open file.
    pub file: F,
    /// Its nonce.
    pub nonce: u64,
    /// Up to here its blocks are written and published.
    pub prewritten_end: u64,
}

/// A recycled file: its blocks are written and published up to `bytes`.
struct Spare {
    path: PathBuf,
    bytes: u64,
}

/// The files of one shard.
pub struct Storage<D: Disk> {
    /// The disk.
    pub disk: D,
    /// Time and randomness.
    pub environment: Rc<dyn Environment>,
    /// Buffers of this shard.
    pub pool: Rc<BufferPool>,
    /// What the host permits.
    pub policy: DiskPolicy,
    /// What has been done.
    pub counters: StorageCounters,
    /// `producer.id.expiration.ms`.
    pub producer_expiration_ms: Cell<i64>,
    /// How many partitions the shard has open.
    pub partitions: Cell<usize>,
    /// When retention is next to look at partitions.
    pub retention: Agenda,
    /// When compaction is.
    pub compaction: Agenda,
    /// Files that readers use.
    pub read_files: ReadFiles<OpenSegment<D::File>>,
    root: PathBuf,
    shard: ShardId,
    uuid: u128,
    flush_file: D::File,
    spares: RefCell<Vec<Spare>>,
    spare_number: Cell<u64>,
    checkpoint_generation: Cell<u64>,
    notices: RefCell<Vec<String>>,
    /// Logs of which it has been said what their recovery found, and which found no room to be opened after that.
    pub(crate) announced: RefCell<BTreeSet<LogIdentity>>,
    names: RefCell<HashMap<TopicId, Arc<str>>>,
    /// Producers that the shard's partitions know.
    producers: Cell<usize>,
    /// Files are kept until there is another checkpoint.
    checkpoint_wanted: Cell<bool>,
    /// The last attempt at a checkpoint found no space.
    no_room_for_checkpoint: Cell<bool>,
    dirty_bytes: Cell<usize>,
    waiting_for_room: Cell<usize>,
    low: Cell<bool>,
    /// The reserve file is there, and its blocks with it.
    reserved: Cell<bool>,
    zeroing_pace: RefCell<ZeroingPace>,
    /// One chunk of them, which nobody writes to.
    zeros: OnceCell<Rc<Buffer>>,
}

/// The data directory's path for the segments of a log.
pub fn partition_directory(root: &Path, identity: &LogIdentity) -> PathBuf {
    topic_directory(root, identity.partition.topic)
        .join(format!("{}.{}", identity.partition.partition, identity.generation))
}

/// The data directory's path for the partitions of a topic.
pub fn topic_directory(root: &Path, topic: TopicId) -> PathBuf {
    root.join("topics").join(topic.to_string())
}

/// Bytes zeroed in a new segment before its first group, where the shard has `partitions`.
fn first_zeros(partitions: usize) -> u64 {
    let share = PREWRITE_FIRST_BYTES_PER_SHARD / (partitions.max(1) as u64);
    let blocks = share / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    blocks.clamp(PREWRITE_BYTES_MIN, PREWRITE_FIRST_BYTES_MAX)
}

/// The file name of a segment as it was appended.
pub fn segment_name(sequence: u64) -> String {
    SegmentName::appended(sequence).to_string()
}

impl<D: Disk> Storage<D> {
    /// Opens the shard's files, as far as they do not belong to a partition, and reads its checkpoint.
    /// `uuid` is the identity of the data directory, whose `flush` file exists.
    pub async fn open(
        disk: D,
        environment: Rc<dyn Environment>,
        policy: DiskPolicy,
        root: &Path,
        shard: ShardId,
        uuid: u128,
    ) -> io::Result<(Rc<Self>, Option<Checkpoint>)> {
        let own = shard_directory(root, shard);
        for made in disk.make_directory(&own.join("spare")).await? {
            if let Some(parent) = made.parent() {
                disk.sync_directory(parent).await?;
            }
        }
        let flush_file = disk.open(&root.join("flush")).await?;
        let storage = Rc::new(Self {
            disk,
            environment,
            pool: BufferPool::new(),
            policy,
            counters: StorageCounters::default(),
            producer_expiration_ms: Cell::new(PRODUCER_EXPIRATION_MS_DEFAULT as i64),
            partitions: Cell::new(0),
            producers: Cell::new(0),
            checkpoint_wanted: Cell::new(false),
            no_room_for_checkpoint: Cell::new(false),
            retention: Agenda::default(),
            compaction: Agenda::default(),
            read_files: ReadFiles::default(),
            root: root.to_owned(),
            shard,
            uuid,
            flush_file,
            spares: RefCell::new(Vec::new()),
            spare_number: Cell::new(0),
            checkpoint_generation: Cell::new(0),
            notices: RefCell::new(Vec::new()),
            announced: RefCell::default(),
            names: RefCell::default(),
            dirty_bytes: Cell::new(0),
            waiting_for_room: Cell::new(0),
            low: Cell::new(false),
            reserved: Cell::new(false),
            zeroing_pace: RefCell::default(),
            zeros: OnceCell::new(),
        });
        // What is in spare/ has no owner; its written blocks are not known to be published, so it goes.
        for (name, _) in storage.disk.list(&own.join("spare")).await? {
            storage.disk.remove(&own.join("spare").join(name)).await?;
        }
        match storage.keep_reserve().await {
            Err(error) if is_no_space(&error) => {}
            other => other?,
        }
        let checkpoint = storage.read_checkpoint().await?;
        if let Some(checkpoint) = &checkpoint {
            storage.checkpoint_generation.set(checkpoint.generation);
        }
        Ok((storage, checkpoint))
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn own_directory(&self) -> PathBuf {
        shard_directory(&self.root, self.shard)
    }

    /// What people call a topic, for messages.
    pub fn name_topic(&self, topic: TopicId, name: Arc<str>) {
        self.names.borrow_mut().insert(topic, name);
    }

    /// A partition as people know it: `topic NAME partition N`.
    pub fn label(&self, id: TopicPartition) -> String {
        match self.names.borrow().get(&id.topic) {
            Some(name) => format!("topic {name} partition {}", id.partition),
            None => format!("topic {} partition {}", id.topic, id.partition),
        }
    }

    /// Something that the operator should know; also logged.
    pub fn notice(&self, text: String) {
        tracing::warn!("{text}");
        self.remember(text);
    }

    /// Something that is good to know and no reason to worry; also logged.
    pub fn note(&self, text: String) {
        tracing::info!("{text}");
        self.remember(text);
    }

    fn remember(&self, text: String) {
        let mut notices = self.notices.borrow_mut();
        if notices.len() < 1000 && !notices.contains(&text) {
            notices.push(text);
        }
    }

    /// What the operator should know, oldest first.
    pub fn notices(&self) -> Vec<String> {
        self.notices.borrow().clone()
    }

    /// Bytes of groups that are not durable yet.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes.get()
    }

    /// Producers that the shard's partitions know.
    pub fn producers(&self) -> usize {
        self.producers.get()
    }

    /// A partition that knew `before` of them knows `after`.
    pub fn producers_changed(&self, before: usize, after: usize) {
        self.producers.set(self.producers.get() + after - before);
    }

    /// Asks for a checkpoint soon: files are kept until there is one.
    pub fn want_checkpoint(&self) {
        self.checkpoint_wanted.set(true);
    }

    /// Whether one has been asked for since this was last asked.
    pub fn take_checkpoint_wanted(&self) -> bool {
        self.checkpoint_wanted.take()
    }

    /// An attempt at a checkpoint is over; `no_space`: it failed for want of it.
    pub fn checkpoint_attempted(&self, no_space: bool) {
        self.no_room_for_checkpoint.set(no_space);
    }

    /// Whether the last attempt at a checkpoint found no space.
    pub fn has_no_room_for_checkpoint(&self) -> bool {
        self.no_room_for_checkpoint.get()
    }

    /// Accounts for bytes that became dirty.
    pub fn add_dirty(&self, bytes: usize) {
        self.dirty_bytes.set(self.dirty_bytes.get() + bytes);
    }

    /// Accounts for bytes that became durable.
    pub fn sub_dirty(&self, bytes: usize) {
        self.dirty_bytes.set(self.dirty_bytes.get() - bytes);
    }

    /// Flushes the device: every completed write into published blocks becomes durable.
    pub fn flush_device(&self) -> impl Future<Output = io::Result<()>> + 'static + use<D> {
        count(&self.counters.device_flushes, 1);
        self.disk.sync(&self.flush_file)
    }

    /// Puts a segment in its place: from a recycled file if there is one, else a new one.
    pub async fn place_segment(
        &self,
        identity: &LogIdentity,
        incarnation: u64,
        needed: SegmentNeeded,
    ) -> io::Result<PlacedSegment<D::File>> {
        let nonce = self.environment.nonce();
        let header = SegmentHeader {
            state: SegmentState::Placed,
            nonce,
            incarnation,
            topic_id: identity.partition.topic.get(),
            partition: identity.partition.partition.get(),
            generation: identity.generation,
            sequence: needed.sequence,
            base_offset: 0,
            previous_end: 0,
            previous_chain: 0,
            durable_floor: 0,
            opened_ms: 0,
        };
        let spare = self.spares.borrow_mut().pop();
        let path = match &spare {
            Some(spare) => spare.path.clone(),
            None => {
                let number = self.spare_number.replace(self.spare_number.get() + 1);
                self.own_directory().join("spare").join(format!("new-{number}"))
            }
        };
        let placed = self.make_segment(identity, &header, needed, spare, &path).await;
        if placed.is_err() {
            // The name may be gone already; what is left behind goes at the next start.
            let _ = self.disk.remove(&path).await;
        }
        placed
    }

    async fn make_segment(
        &self,
        identity: &LogIdentity,
        header: &SegmentHeader,
        needed: SegmentNeeded,
        spare: Option<Spare>,
        path: &Path,
    ) -> io::Result<PlacedSegment<D::File>> {
        let (file, prewritten_end) = match spare {
            Some(spare) => {
                let file = self.disk.open(path).await?;
                let mut block = self.pool.take(BLOCK_BYTES);
                block.fill(0);
                header.encode(&mut block);
                self.write_all(&file, Rc::new(block), 0, false).await?;
                count(&self.counters.segments_recycled, 1);
                (file, spare.bytes)
            }
            None => {
                let file = self.disk.create(path).await?;
                let bytes = first_zeros(self.partitions.get()).min(needed.bytes);
                let mut blocks = self.pool.take(bytes as usize);
                blocks.fill(0);
                header.encode(&mut blocks);
                self.write_all(&file, Rc::new(blocks), 0, false).await?;
                count(&self.counters.segments_created, 1);
                (file, bytes)
            }
        };
        self.disk.sync(&file).await?;
        let directory = partition_directory(&self.root, identity);
        self.disk.rename(path, &directory.join(segment_name(needed.sequence))).await?;
        self.disk.sync_directory(&directory).await?;
        self.disk.sync_directory(&self.own_directory().join("spare")).await?;
        Ok(PlacedSegment { file, nonce: header.nonce, prewritten_end })
    }

    /// Makes a file without a name of its own yet: what is left of it after a crash goes at the next start.
    pub async fn create_unnamed(&self) -> io::Result<(PathBuf, D::File)> {
        let number = self.spare_number.replace(self.spare_number.get() + 1);
        let path = self.own_directory().join("spare").join(format!("rewrite-{number}"));
        let file = self.disk.create(&path).await?;
        Ok((path, file))
    }

    /// Gives a file that is whole and synced its name in a log; durable with [`Self::sync_names`].
    ///
    /// # Errors
    /// The file has the name that it had.
    pub async fn give_name(&self, path: &Path, identity: &LogIdentity, name: SegmentName) -> io::Result<()> {
        self.disk.rename(path, &partition_directory(&self.root, identity).join(name.to_string())).await
    }

    /// Makes a name that was given durable.
    ///
    /// # Errors
    /// Whether the name is there after a crash is unknown.
    pub async fn sync_names(&self, identity: &LogIdentity) -> io::Result<()> {
        self.disk.sync_directory(&partition_directory(&self.root, identity)).await?;
        self.disk.sync_directory(&self.own_directory().join("spare")).await
    }

    /// Makes the name of a log's directory durable, and those of all directories above it up to the root.
    ///
    /// # Errors
    /// Whether they are there after a crash is unknown.
    pub async fn sync_directories_above(&self, directory: &Path) -> io::Result<()> {
        let below_root = |above: &&Path| above.starts_with(&self.root);
        for above in directory.ancestors().skip(1).take_while(below_root) {
            self.disk.sync_directory(above).await?;
        }
        Ok(())
    }

    /// Writes a buffer in permitted pieces.
    pub async fn write_all(
        &self,
        file: &D::File,
        buffer: Rc<Buffer>,
        position: u64,
        durable: bool,
    ) -> io::Result<()> {
        let length = buffer.len();
        self.disk.write(split_write(file, buffer, length, position, durable, WRITE_BYTES_MAX)).await
    }

    /// Waits for the turn to zero `bytes` in the background.
    pub async fn wait_zeroing_turn(&self, bytes: u64) {
        let now_ns = self.environment.monotonic_ns();
        let appended = self.counters.group_bytes.get();
        let wait_ns = self.zeroing_pace.borrow_mut().take_turn(now_ns, appended, bytes);
        if wait_ns > 0 {
            self.environment.sleep(Duration::from_nanos(wait_ns)).await;
        }
    }

    /// Writes zeros over `from..to`, a chunk at a time.
    pub async fn zero(&self, file: &D::File, from: u64, to: u64) -> io::Result<()> {
        let zeros = self.zeros.get_or_init(|| {
            let mut zeros = self.pool.take(PREWRITE_CHUNK_BYTES);
            zeros.fill(0);
            Rc::new(zeros)
        });
        let mut position = from;
        while position < to {
            let bytes = (to - position).min(PREWRITE_CHUNK_BYTES as u64) as usize;
            let write = Write {
                file: file.clone(),
                buffer: zeros.clone(),
                range: 0..bytes,
                position,
                durable: false,
            };
            self.disk.write(vec![write]).await?;
            count(&self.counters.zeroed_bytes, bytes as u64);
            position += bytes as u64;
        }
        Ok(())
    }

    /// Reclaims a segment file that nobody reads any more: as a spare if one is wanted and all its
    /// blocks up to `published_end` are worth keeping, else in steps.
    pub async fn reclaim(&self, path: &Path, published_end: u64, want_bytes: u64) -> io::Result<()> {
        // A segment ends with the last group that fitted: what is missing behind it is not worth a new file.
        let worth = want_bytes / 8 * 7;
        let recycle = published_end >= worth && self.spares.borrow().len() < SPARE_SEGMENTS_MAX;
        if recycle {
            let number = self.spare_number.replace(self.spare_number.get() + 1);
            let spare = self.own_directory().join("spare").join(format!("spare-{number}"));
            match self.disk.rename(path, &spare).await {
                Ok(()) => {
                    if let Some(directory) = path.parent() {
                        // The old name must be gone for good before the header is written anew.
                        self.disk.sync_directory(directory).await?;
                    }
                    self.spares.borrow_mut().push(Spare { path: spare, bytes: published_end });
                    return Ok(());
                }
                // Not even for a name: its blocks are what the disk needs.
                Err(error) if is_no_space(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let file = self.disk.open(path).await?;
        let mut length = self.disk.length(&file)?;
        while length > TRUNCATE_STEP_BYTES {
            length -= TRUNCATE_STEP_BYTES;
            self.disk.truncate(&file, length).await?;
            self.environment.sleep(Duration::from_millis(1)).await;
        }
        self.disk.remove(path).await?;
        match path.parent() {
            Some(directory) => self.disk.sync_directory(directory).await,
            None => Ok(()),
        }
    }

    /// Keeps some blocks for what must be written even when the disk is full: checkpoints, and the group that
    /// makes a truncation durable.
    ///
    /// # Errors
    /// There is no room for it.
    pub async fn keep_reserve(&self) -> io::Result<()> {
        if self.reserved.get() {
            return Ok(());
        }
        let directory = self.own_directory();
        let path = directory.join(RESERVE);
        for (name, bytes) in self.disk.list(&directory).await? {
            if name == RESERVE && bytes == RESERVE_BYTES {
                // Of an earlier life, made as below.
                self.reserved.set(true);
                return Ok(());
            }
            if name == RESERVE {
                self.disk.remove(&path).await?;
            }
        }
        let file = self.disk.create(&path).await?;
        if let Err(error) = self.zero(&file, 0, RESERVE_BYTES).await {
            // A part of it would only take from others what room there is.
            self.disk.remove(&path).await?;
            return Err(error);
        }
        self.disk.sync(&file).await?;
        self.disk.sync_directory(&directory).await?;
        self.reserved.set(true);
        Ok(())
    }

    /// Gives the reserve's blocks back to the disk, because it is full; whether there were any.
    pub async fn spend_reserve(&self) -> bool {
        if !self.reserved.replace(false) {
            return false;
        }
        self.notice("the disk is full: the reserve is being used".to_owned());
        let directory = self.own_directory();
        self.disk.remove(&directory.join(RESERVE)).await.is_ok()
            && self.disk.sync_directory(&directory).await.is_ok()
    }

    /// Takes back, where it stands, what checkpoints say of an orderly end: for a start on a disk that has no room for
    /// another checkpoint. All else that they attest stays true and is needed: where logs start above all, which
    /// stands nowhere else once records have been deleted.
    ///
    /// # Errors
    /// One cannot be read, or not be written over: then a start must not go on, because the next one would believe it.
    pub async fn revoke_orderly_end(&self) -> io::Result<()> {
        let directory = self.own_directory();
        for (name, length) in self.disk.list(&directory).await? {
            if !CHECKPOINTS.contains(&name.as_str()) {
                continue;
            }
            let file = self.disk.open(&directory.join(&name)).await?;
            let (mut buffer, read) = self.disk.read(&file, 0, self.pool.take(length as usize)).await?;
            let read = read.min(length as usize);
            // One that is damaged has been told of, and is not believed.
            let Ok(checkpoint) = usable_checkpoint(&buffer[..read], self.uuid) else { continue };
            if !checkpoint.clean {
                continue;
            }
            let bytes = Checkpoint { clean: false, ..checkpoint }.encode();
            assert!(
                bytes.len() == read && bytes[BLOCK_BYTES..] == buffer[BLOCK_BYTES..read],
                "checkpoint {name} differs behind its header from what it says"
            );
            // The header alone changes, and it stands in one sector: after a crash it is the old one or this one.
            buffer[..BLOCK_BYTES].copy_from_slice(&bytes[..BLOCK_BYTES]);
            let write = Write {
                file: file.clone(),
                buffer: Rc::new(buffer),
                range: 0..BLOCK_BYTES,
                position: 0,
                durable: false,
            };
            self.disk.write(vec![write]).await?;
            self.disk.sync(&file).await?;
        }
        Ok(())
    }

    /// Writes a checkpoint: temporary file, sync, rename over the older of the two, sync of the
    /// directory. Gives back what it says.
    pub async fn write_checkpoint(&self, mut checkpoint: Checkpoint) -> io::Result<Checkpoint> {
        checkpoint.generation = self.checkpoint_generation.get() + 1;
        checkpoint.storage_uuid = self.uuid;
        let bytes = checkpoint.encode();
        let directory = self.own_directory();
        let temporary = directory.join("checkpoint.new");
        let target = directory.join(checkpoint_name(checkpoint.generation));
        if self.disk.list(&directory).await?.iter().any(|(name, _)| name == "checkpoint.new") {
            self.disk.remove(&temporary).await?;
        }
        let mut buffer = self.pool.take(bytes.len());
        buffer[..bytes.len()].copy_from_slice(&bytes);
        buffer[bytes.len()..].fill(0);
        let file = self.disk.create(&temporary).await?;
        if let Err(error) = self.write_all(&file, Rc::new(buffer), 0, false).await {
            // A part of it would only take from others what room there is.
            self.disk.remove(&temporary).await?;
            return Err(error);
        }
        self.disk.sync(&file).await?;
        self.disk.rename(&temporary, &target).await?;
        self.disk.sync_directory(&directory).await?;
        self.checkpoint_generation.set(checkpoint.generation);
        count(&self.counters.checkpoints, 1);
        Ok(checkpoint)
    }

    async fn read_checkpoint(&self) -> io::Result<Option<Checkpoint>> {
        let directory = self.own_directory();
        let mut newest: Option<Checkpoint> = None;
        let mut damaged = false;
        for (name, length) in self.disk.list(&directory).await? {
            if !CHECKPOINTS.contains(&name.as_str()) {
                continue;
            }
            let path = directory.join(&name);
            let file = self.disk.open(&path).await?;
            let (buffer, read) = self.disk.read(&file, 0, self.pool.take(length as usize)).await?;
            match usable_checkpoint(&buffer[..read.min(length as usize)], self.uuid) {
                Ok(found) if newest.as_ref().is_none_or(|newest| newest.generation < found.generation) => {
                    newest = Some(found);
                }
                Ok(_) => {}
                Err(refusal @ CheckpointRefusal::Damaged(_)) => {
                    damaged = true;
                    self.notice(format!("checkpoint {} {refusal}", path.display()));
                }
                Err(refusal) => return Err(io::Error::other(format!("{} {refusal}", path.display()))),
            }
        }
        // The unreadable one may have been the newer, and then something was written after an orderly end.
        Ok(newest.map(|newest| Checkpoint { clean: newest.clean && !damaged, ..newest }))
    }

    /// Ends the process over a failed write or sync.
    pub fn fail(&self, what: &str, partition: Option<TopicPartition>, error: &io::Error) -> ! {
        crate::fatal(&self.failure(what, partition, error))
    }

    /// What is said of a failed write or sync: of whom, which file, what happens now, what to do.
    pub fn failure(&self, what: &str, partition: Option<TopicPartition>, error: &io::Error) -> String {
        let whose = partition.map(|partition| format!(" of {}", self.label(partition))).unwrap_or_default();
        format!(
            "{what}{whose} under {} failed: {error}. What the device holds is unknown, so this process ends \
             and the next start recovers; nothing acknowledged is affected. Look for errors of the device in \
             the kernel's log (dmesg), then start the broker again; if it fails again, move the data directory \
             to a sound device",
            self.root.display()
        )
    }
}

/// Cuts one write into pieces of `piece_bytes` (whole blocks) and a rest.
pub fn split_write<F: Clone>(
    file: &F,
    buffer: Rc<Buffer>,
    length: usize,
    position: u64,
    durable: bool,
    piece_bytes: usize,
) -> Vec<Write<F>> {
    (0..length)
        .step_by(piece_bytes)
        .map(|start| Write {
            file: file.clone(),
            buffer: buffer.clone(),
            range: start..length.min(start + piece_bytes),
            position: position + start as u64,
            durable,
        })
        .collect()
}

/// Whether an error says that there is no room.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Whether an error says that these bytes of the medium cannot be read: others of the file may.
pub fn is_unreadable(error: &io::Error) -> bool {
    let medium = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG, libc::EREMOTEIO];
    error.raw_os_error().is_some_and(|code| medium.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_segments_share_their_first_zeros() {
        let rows = [
            (0, PREWRITE_FIRST_BYTES_MAX),
            (1, PREWRITE_FIRST_BYTES_MAX),
            (2048, PREWRITE_FIRST_BYTES_MAX),
            (4096, PREWRITE_FIRST_BYTES_MAX / 2),
            (5000, 26 * BLOCK_BYTES as u64),
            (100_000, PREWRITE_BYTES_MIN),
        ];
        for (partitions, expect) in rows {
            assert_eq!(first_zeros(partitions), expect, "{partitions} partitions");
        }
    }
}
