//! The recording disk: in memory, with operations that complete in any order, and a crash at any moment.
//!
//! One per life; handles share it. What it promises is what `server::storage::disk` documents, and not a
//! bit more: a write in flight or not flushed may be there, be gone, or be there in some sectors of 512
//! bytes; a length that was not synced may be anything between; a name that was not synced may be the old
//! or the new one, each by itself. A full disk refuses blocks that a file does not have, and
//! half of the time names that a directory does not have. One that fills up may have some blocks left, so that a write
//! that meets its end is cut short, and gets back those of files that are removed. Virtual time passes only when the driver says so.
//!
//! After [`CrashDisk::die`] nothing completes any more and nobody is remembered, so that what was running
//! on it is freed.

use super::Dice;
use super::image::{BLOCK, Block, Content, Entry, GroupNote, Image, ImageFile, SECTOR, zeros};
use logic::ids::{PartitionIndex, TopicId, TopicPartition};
use schema::segment::GroupHeader;
use server::storage::Environment;
use server::storage::buffer::Buffer;
use server::storage::disk::{Disk, Write};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const SECTORS: usize = BLOCK / SECTOR;

/// How this disk behaves in a life.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Any file's sync flushes all published blocks.
    pub one_flush_covers_all_files: bool,
    /// Operations of a hundred that complete at once.
    pub eager_percent: u64,
}

/// A write or truncation that is not durable.
struct Pending {
    submitted: u64,
    completed: Option<u64>,
    durable: bool,
    into_written: bool,
    id: u64,
    change: Change,
}

enum Change {
    Write {
        first: usize,
        blocks: Vec<Block>,
        /// Sectors that a later durable write has replaced; empty = none.
        replaced: Vec<bool>,
    },
    Truncate(u64),
}

struct Inode {
    id: u64,
    now: Rc<Content>,
    durable: Rc<Content>,
    written: Rc<Vec<bool>>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Node {
    File(u64),
    Directory,
}

#[derive(Default)]
struct Directory {
    now: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    pending: Vec<(u64, String, Option<Node>)>,
}

impl Directory {
    fn change(&mut self, tick: u64, name: &str, node: Option<Node>) {
        match &node {
            Some(node) => self.now.insert(name.to_owned(), node.clone()),
            None => self.now.remove(name),
        };
        self.pending.push((tick, name.to_owned(), node));
    }
}

/// Something that somebody waits for.
#[derive(Default)]
struct Awaited {
    remaining: Cell<usize>,
    no_space: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

enum Operation {
    Write { inode: u64, id: u64 },
    Sync { inode: u64, submitted: u64 },
    Pause,
}

struct World {
    dice: Dice,
    habits: Habits,
    tick: u64,
    next_file: u64,
    next_write: u64,
    inodes: BTreeMap<u64, Inode>,
    directories: BTreeMap<PathBuf, Directory>,
    operations: Vec<(Operation, Rc<Awaited>)>,
    sleepers: Vec<(u64, Rc<Awaited>)>,
    groups: Vec<GroupNote>,
    clock_ns: u64,
    epoch_ms: i64,
    /// No file gets blocks that it does not have, but for the last ones.
    full: bool,
    /// Blocks that a full disk has left.
    left: usize,
    /// They get more when a file is removed.
    gives_back: bool,
    /// No directory has room for a name that it does not have.
    no_names: bool,
    dead: bool,
    /// Bytes of files that the device refuses to read.
    unreadable: Vec<(u64, Range<u64>)>,
    /// A directory whose syncs do not end.
    held: Option<PathBuf>,
    /// A place in a file: writes to it are submitted and do not complete.
    held_place: Option<(u64, u64)>,
    held_writes: Vec<(Operation, Rc<Awaited>)>,
    /// Syncs of files do not complete.
    holds_syncs: bool,
    held_syncs: Vec<(Operation, Rc<Awaited>)>,
    /// Reads do not complete until they are let go.
    holds_reads: bool,
    held_reads: Vec<(Operation, Rc<Awaited>)>,
}

/// The handle of the disk, and of its clock.
#[derive(Clone)]
pub struct CrashDisk(Rc<RefCell<World>>);

/// An open file.
#[derive(Clone)]
pub struct CrashFile(u64);

struct Wait {
    disk: CrashDisk,
    awaited: Rc<Awaited>,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let dead = self.disk.0.borrow().dead;
        if self.awaited.remaining.get() == 0 && !dead {
            return Poll::Ready(());
        }
        *self.awaited.waker.borrow_mut() = (!dead).then(|| context.waker().clone());
        Poll::Pending
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

fn split(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().expect("a path with a name").to_string_lossy().into_owned();
    (path.parent().expect("a path with a directory").to_owned(), name)
}

impl Inode {
    fn from_image(file: &ImageFile) -> Self {
        Self {
            id: file.id,
            now: file.content.clone(),
            durable: file.content.clone(),
            written: file.written.clone(),
            pending: Vec::new(),
        }
    }

    fn empty(id: u64) -> Self {
        let (now, durable) = (Rc::default(), Rc::default());
        Self { id, now, durable, written: Rc::default(), pending: Vec::new() }
    }

    fn is_written(&self, first: usize, blocks: usize) -> bool {
        (first..first + blocks).all(|at| self.written.get(at).copied().unwrap_or(false))
    }

    /// How many of so many blocks from `first` on fit where `left` are left, and how many of those they take.
    fn fit(&self, first: usize, blocks: usize, left: usize) -> (usize, usize) {
        let mut taken = 0;
        for block in 0..blocks {
            let takes = usize::from(!self.is_written(first + block, 1));
            if taken + takes > left {
                return (block, taken);
            }
            taken += takes;
        }
        (blocks, taken)
    }

    /// Everything that readers see from now on.
    fn complete(&mut self, at: usize, tick: u64) {
        self.pending[at].completed = Some(tick);
        let now = Rc::make_mut(&mut self.now);
        match &self.pending[at].change {
            Change::Write { first, blocks, .. } => {
                for (n, block) in blocks.iter().enumerate() {
                    now.set(first + n, block.clone());
                }
                now.length = now.length.max(((first + blocks.len()) * BLOCK) as u64);
            }
            Change::Truncate(bytes) => now.set_length(*bytes),
        }
        if self.pending[at].durable {
            self.make_durable(at);
        }
    }

    fn make_durable(&mut self, at: usize) {
        let done = self.pending.remove(at);
        let durable = Rc::make_mut(&mut self.durable);
        match done.change {
            Change::Truncate(bytes) => {
                durable.set_length(bytes);
                Rc::make_mut(&mut self.written).truncate((bytes as usize).div_ceil(BLOCK));
            }
            Change::Write { first, blocks, replaced } => {
                let written = Rc::make_mut(&mut self.written);
                if written.len() < first + blocks.len() {
                    written.resize(first + blocks.len(), false);
                }
                for (n, block) in blocks.iter().enumerate() {
                    written[first + n] = true;
                    apply(durable, first + n, block, |sector| {
                        replaced.get(n * SECTORS + sector).is_none_or(|replaced| !replaced)
                    });
                }
                durable.length = durable.length.max(((first + blocks.len()) * BLOCK) as u64);
                // What had completed before this was submitted can never come back over it.
                for older in &mut self.pending {
                    if older.completed.is_none_or(|completed| completed > done.submitted) {
                        continue;
                    }
                    if let Change::Write { first: from, blocks: old, replaced } = &mut older.change {
                        let overlap = first.max(*from)..(first + blocks.len()).min(*from + old.len());
                        if !overlap.is_empty() {
                            replaced.resize(old.len() * SECTORS, false);
                            replaced[(overlap.start - *from) * SECTORS..(overlap.end - *from) * SECTORS]
                                .fill(true);
                        }
                    }
                }
            }
        }
    }

    /// The file after a crash.
    fn crash(&self, mode: Mode, dice: &mut Dice) -> ImageFile {
        if self.pending.is_empty() {
            return ImageFile { id: self.id, content: self.durable.clone(), written: self.written.clone() };
        }
        let mut content = (*self.durable).clone();
        let mut written = (*self.written).clone();
        let mut length = content.length;
        let lucky = dice.below(self.pending.len() as u64 + 1) as usize;
        for (order, pending) in self.pending.iter().enumerate() {
            let fate = mode.fate(order.cmp(&lucky), dice);
            match &pending.change {
                Change::Truncate(bytes) => {
                    if fate != Fate::Drop && (fate == Fate::Keep || dice.chance(50)) {
                        content.set_length(*bytes);
                        written.truncate((*bytes as usize).div_ceil(BLOCK));
                        length = *bytes;
                    }
                }
                Change::Write { first, blocks, replaced } => {
                    for (n, block) in blocks.iter().enumerate() {
                        let (mut kept, mut any, mut visible) = (true, false, false);
                        apply(&mut content, first + n, block, |sector| {
                            let keep = match fate {
                                Fate::Keep => true,
                                Fate::Drop => false,
                                Fate::Tear { percent } => dice.chance(percent),
                            };
                            let dead = replaced.get(n * SECTORS + sector).copied().unwrap_or(false);
                            kept &= keep;
                            any |= keep && !dead;
                            let bytes = &block[sector * SECTOR..(sector + 1) * SECTOR];
                            visible |= keep && !dead && bytes.iter().any(|byte| *byte != 0);
                            keep && !dead
                        });
                        // A block is written as a whole or not: one that was not reads as zeros.
                        if kept || visible {
                            if written.len() <= first + n {
                                written.resize(first + n + 1, false);
                            }
                            written[first + n] = true;
                        }
                        if any {
                            length = length.max(((first + n + 1) * BLOCK) as u64);
                        }
                    }
                }
            }
        }
        // The length of an extension that was not synced.
        let floor = content.length.min(length);
        if mode != Mode::Keep && length > floor && dice.chance(50) {
            let blocks = (length - floor) / BLOCK as u64 + 1;
            let cut = floor + dice.below(blocks) * BLOCK as u64;
            let odd = if dice.chance(10) { dice.below(SECTORS as u64) * SECTOR as u64 } else { 0 };
            length = (cut + odd).min(length);
        }
        content.blocks.truncate((length as usize).div_ceil(BLOCK));
        content.set_length(length);
        written.truncate(length as usize / BLOCK);
        ImageFile { id: self.id, content: Rc::new(content), written: Rc::new(written) }
    }
}

/// Puts the chosen sectors of a block into a file.
fn apply(content: &mut Content, at: usize, block: &Block, mut keep: impl FnMut(usize) -> bool) {
    let mut kept = [false; SECTORS];
    (0..SECTORS).for_each(|sector| kept[sector] = keep(sector));
    if kept == [false; SECTORS] {
        return;
    }
    if kept == [true; SECTORS] {
        return content.set(at, block.clone());
    }
    let mut mixed = content.block(at);
    let bytes = Rc::make_mut(&mut mixed);
    for sector in (0..SECTORS).filter(|sector| kept[*sector]) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        bytes[range.clone()].copy_from_slice(&block[range]);
    }
    content.set(at, mixed);
}

/// What becomes of everything that is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All gone.
    Drop,
    /// All there.
    Keep,
    /// Each by itself.
    Any,
    /// All in pieces.
    Tear,
    /// The first ones of each file are there, the next in pieces, the rest gone.
    Prefix,
    /// The other way round: early ones are lost, late ones are there.
    Suffix,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    Tear { percent: u64 },
}

impl Mode {
    pub const ALL: [Mode; 6] = [Mode::Drop, Mode::Keep, Mode::Any, Mode::Tear, Mode::Prefix, Mode::Suffix];

    fn fate(self, order: std::cmp::Ordering, dice: &mut Dice) -> Fate {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let tear = Fate::Tear { percent: [10, 50, 90, 98][dice.below(4) as usize] };
        match (self, order) {
            (Mode::Drop, _) => Fate::Drop,
            (Mode::Keep, _) => Fate::Keep,
            (Mode::Tear, _) | (Mode::Prefix | Mode::Suffix, Equal) => tear,
            (Mode::Prefix, Less) | (Mode::Suffix, Greater) => Fate::Keep,
            (Mode::Prefix, Greater) | (Mode::Suffix, Less) => Fate::Drop,
            (Mode::Any, _) => [Fate::Keep, Fate::Drop, tear][dice.below(3) as usize],
        }
    }
}

impl World {
    /// Whether a file is one that compaction makes, which is synced before it has a name in a log.
    fn is_synced_as_a_whole(&self, file: u64) -> bool {
        let mut names = self.directories.values().flat_map(|directory| &directory.now);
        names
            .any(|(name, node)| matches!(node, Node::File(id) if *id == file) && name.starts_with("rewrite-"))
    }

    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn perform(&mut self, operation: Operation) {
        let tick = self.tick();
        match operation {
            Operation::Pause => {}
            Operation::Write { inode, id } => {
                let inode = self.inodes.get_mut(&inode).expect("a file that is written");
                let at = inode.pending.iter().position(|pending| pending.id == id);
                inode.complete(at.expect("a write completes once"), tick);
            }
            Operation::Sync { inode, submitted } => {
                let all = self.habits.one_flush_covers_all_files;
                for other in self.inodes.values_mut() {
                    let own = other.id == inode;
                    if !own && !all {
                        continue;
                    }
                    let mut at = 0;
                    while at < other.pending.len() {
                        let pending = &other.pending[at];
                        let before = pending.completed.is_some_and(|completed| completed < submitted);
                        if before && (own || pending.into_written) {
                            other.make_durable(at);
                        } else {
                            at += 1;
                        }
                    }
                }
            }
        }
    }

    /// Performs the operation now or lets it wait for its turn.
    fn start(&mut self, operation: Operation, awaited: &Rc<Awaited>) {
        let eager = self.habits.eager_percent;
        if !self.dead && self.dice.chance(eager) {
            self.perform(operation);
            awaited.remaining.set(awaited.remaining.get() - 1);
        } else {
            self.operations.push((operation, awaited.clone()));
        }
    }

    fn lookup(&self, path: &Path) -> Option<Node> {
        let (directory, name) = split(path);
        self.directories.get(&directory)?.now.get(&name).cloned()
    }

    fn change(&mut self, path: &Path, node: Option<Node>) -> io::Result<()> {
        let tick = self.tick();
        let (directory, name) = split(path);
        let directory = self.directories.get_mut(&directory).ok_or_else(|| not_found(path))?;
        directory.change(tick, &name, node);
        Ok(())
    }
}

impl CrashDisk {
    /// The disk after a start with this image.
    pub fn new(image: &Image, habits: Habits, seed: u64) -> Self {
        let mut inodes = BTreeMap::new();
        let mut directories = BTreeMap::new();
        for (path, names) in &image.directories {
            let mut now = BTreeMap::new();
            for (name, entry) in names {
                let node = match entry {
                    Entry::Directory => Node::Directory,
                    Entry::File(file) => {
                        inodes.entry(file.id).or_insert_with(|| Inode::from_image(file));
                        Node::File(file.id)
                    }
                };
                now.insert(name.clone(), node);
            }
            let durable = now.clone();
            directories.insert(path.clone(), Directory { now, durable, pending: Vec::new() });
        }
        Self(Rc::new(RefCell::new(World {
            dice: Dice::new(seed),
            habits,
            tick: 0,
            next_file: image.next_file,
            next_write: 0,
            inodes,
            directories,
            operations: Vec::new(),
            sleepers: Vec::new(),
            groups: image
                .unacknowledged
                .iter()
                .map(|note| GroupNote { inherited: true, ..note.clone() })
                .collect(),
            clock_ns: 0,
            epoch_ms: image.now_ms,
            full: false,
            left: 0,
            gives_back: false,
            no_names: false,
            dead: false,
            unreadable: Vec::new(),
            held: None,
            held_place: None,
            held_writes: Vec::new(),
            holds_syncs: false,
            held_syncs: Vec::new(),
            holds_reads: false,
            held_reads: Vec::new(),
        })))
    }

    /// Completes one operation, any of those under way; whether there was one.
    pub fn complete_one(&self) -> bool {
        let mut world = self.0.borrow_mut();
        if world.operations.is_empty() {
            return false;
        }
        let count = world.operations.len() as u64;
        let at = world.dice.below(count) as usize;
        let (operation, awaited) = world.operations.swap_remove(at);
        drop(world);
        self.complete(operation, &awaited);
        true
    }

    fn complete(&self, operation: Operation, awaited: &Awaited) {
        self.0.borrow_mut().perform(operation);
        awaited.remaining.set(awaited.remaining.get() - 1);
        if awaited.remaining.get() == 0
            && let Some(waker) = awaited.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Lets time pass and wakes who has slept long enough.
    pub fn pass(&self, duration: Duration) {
        let mut world = self.0.borrow_mut();
        world.clock_ns += duration.as_nanos() as u64;
        let now = world.clock_ns;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut world.sleepers).into_iter().partition(|(until, _)| *until <= now);
        world.sleepers = later;
        drop(world);
        for (_, awaited) in due {
            awaited.remaining.set(0);
            if let Some(waker) = awaited.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Lets time pass until the next sleeper wakes; whether there was one.
    pub fn pass_to_next(&self) -> bool {
        let (next, now) = {
            let world = self.0.borrow();
            (world.sleepers.iter().map(|(until, _)| *until).min(), world.clock_ns)
        };
        next.map(|next| self.pass(Duration::from_nanos(next.saturating_sub(now)))).is_some()
    }

    /// Takes all space away, or gives it back.
    pub fn set_full(&self, full: bool) {
        let mut world = self.0.borrow_mut();
        world.full = full;
        (world.left, world.gives_back) = (0, false);
        world.no_names = full && world.dice.chance(50);
    }

    /// Takes all space but for the last blocks, or all of it, as the dice say.
    pub fn fill_up(&self) {
        self.set_full(true);
        let mut world = self.0.borrow_mut();
        world.left = [0, 1, 3, 40, 400][world.dice.below(5) as usize];
        world.gives_back = world.dice.chance(50);
    }

    /// Takes the room for names in directories away, or gives it back: files get blocks all the same.
    pub fn set_no_names(&self, no_names: bool) {
        self.0.borrow_mut().no_names = no_names;
    }

    /// Refuses from now on to read these bytes of a file.
    pub fn set_unreadable(&self, path: &Path, bytes: Range<u64>) {
        let mut world = self.0.borrow_mut();
        let Some(Node::File(id)) = world.lookup(path) else { panic!("{} does not exist", path.display()) };
        world.unreadable.push((id, bytes));
    }

    /// Syncs of this directory wait from now on (`None` = of no directory) until time passes that lets them go.
    pub fn hold_syncs_of(&self, directory: Option<PathBuf>) {
        self.0.borrow_mut().held = directory;
    }

    /// Writes to this place of a file do not complete from now on, whatever the file's name becomes.
    pub fn hold_writes_at(&self, path: &Path, position: u64) {
        let mut world = self.0.borrow_mut();
        let Some(Node::File(id)) = world.lookup(path) else { panic!("{} does not exist", path.display()) };
        world.held_place = Some((id, position));
    }

    /// Those that were held complete now; how many they are.
    pub fn release_writes(&self) -> usize {
        let held = std::mem::take(&mut self.0.borrow_mut().held_writes);
        let writes = held.len();
        self.0.borrow_mut().held_place = None;
        held.into_iter().for_each(|(operation, awaited)| self.complete(operation, &awaited));
        writes
    }

    /// Syncs of files do not complete from now on.
    pub fn hold_syncs(&self) {
        self.0.borrow_mut().holds_syncs = true;
    }

    /// Those that were held complete now; how many they are.
    pub fn release_syncs(&self) -> usize {
        let held = std::mem::take(&mut self.0.borrow_mut().held_syncs);
        let syncs = held.len();
        self.0.borrow_mut().holds_syncs = false;
        held.into_iter().for_each(|(operation, awaited)| self.complete(operation, &awaited));
        syncs
    }

    /// Reads do not complete from now on.
    pub fn hold_reads(&self) {
        self.0.borrow_mut().holds_reads = true;
    }

    /// Those that were held complete now, and those that come are held; how many they are.
    pub fn release_reads(&self) -> usize {
        let held = std::mem::take(&mut self.0.borrow_mut().held_reads);
        let reads = held.len();
        held.into_iter().for_each(|(operation, awaited)| self.complete(operation, &awaited));
        reads
    }

    /// Whether there is no space.
    pub fn is_full(&self) -> bool {
        self.0.borrow().full
    }

    /// Nothing completes any more; whoever waits is forgotten.
    pub fn die(&self) {
        let (operations, sleepers) = {
            let mut world = self.0.borrow_mut();
            world.dead = true;
            (std::mem::take(&mut world.operations), std::mem::take(&mut world.sleepers))
        };
        for (_, awaited) in operations {
            drop(awaited.waker.borrow_mut().take());
        }
        for (_, awaited) in sleepers {
            drop(awaited.waker.borrow_mut().take());
        }
    }

    /// Notes of groups that are settled (acknowledged, or cut by a finished recovery) are dropped.
    pub fn retain_groups(&self, keep: impl Fn(&GroupNote) -> bool) {
        self.0.borrow_mut().groups.retain(keep);
    }

    /// A log is opened by another store while the disk goes on: what has not been acknowledged may be cut from now on.
    pub fn inherit_groups(&self, partition: TopicPartition) {
        let mut world = self.0.borrow_mut();
        let of_it = world.groups.iter_mut().filter(|note| note.partition == partition);
        of_it.for_each(|note| note.inherited = true);
    }

    /// What a crash at this moment leaves.
    pub fn crash(&self, mode: Mode, dice: &mut Dice) -> Image {
        let world = self.0.borrow();
        let mut files: BTreeMap<u64, Rc<ImageFile>> = BTreeMap::new();
        let mut directories = BTreeMap::new();
        // A directory whose name is lost takes everything in it along: parents come first in the map.
        for (path, directory) in &world.directories {
            let (parent, name) = split(path);
            let orphan = directories
                .get(&parent)
                .is_some_and(|names: &BTreeMap<String, Entry>| !names.contains_key(&name))
                || world.directories.contains_key(&parent) && !directories.contains_key(&parent);
            if orphan {
                continue;
            }
            let mut nodes = directory.durable.clone();
            for (_, name, node) in &directory.pending {
                let keep = match mode {
                    Mode::Drop => false,
                    Mode::Keep => true,
                    _ => dice.chance(50),
                };
                match node {
                    Some(node) if keep => drop(nodes.insert(name.clone(), node.clone())),
                    None if keep => drop(nodes.remove(name)),
                    _ => {}
                }
            }
            let names = nodes
                .into_iter()
                .map(|(name, node)| {
                    let entry = match node {
                        Node::Directory => Entry::Directory,
                        Node::File(id) => Entry::File(
                            files
                                .entry(id)
                                .or_insert_with(|| Rc::new(world.inodes[&id].crash(mode, dice)))
                                .clone(),
                        ),
                    };
                    (name, entry)
                })
                .collect();
            directories.insert(path.clone(), names);
        }
        let now_ms = world.epoch_ms + (world.clock_ns / 1_000_000) as i64;
        let (unacknowledged, next_file) = (world.groups.clone(), world.next_file);
        Image { directories, unacknowledged, next_file, now_ms }
    }

    /// Until time has passed.
    fn sleep(&self, duration: Duration) -> Wait {
        let awaited = Rc::new(Awaited::default());
        awaited.remaining.set(1);
        let mut world = self.0.borrow_mut();
        let until = world.clock_ns + duration.as_nanos() as u64;
        world.sleepers.push((until, awaited.clone()));
        drop(world);
        Wait { disk: self.clone(), awaited }
    }

    fn pause(&self) -> Wait {
        let awaited = Rc::new(Awaited::default());
        awaited.remaining.set(1);
        self.0.borrow_mut().start(Operation::Pause, &awaited);
        Wait { disk: self.clone(), awaited }
    }

    fn pause_of_read(&self) -> Wait {
        if !self.0.borrow().holds_reads {
            return self.pause();
        }
        let awaited = Rc::new(Awaited::default());
        awaited.remaining.set(1);
        self.0.borrow_mut().held_reads.push((Operation::Pause, awaited.clone()));
        Wait { disk: self.clone(), awaited }
    }
}

fn to_blocks(bytes: &[u8]) -> Vec<Block> {
    let zero = zeros();
    bytes
        .chunks_exact(BLOCK)
        .map(|chunk| match chunk == &zero[..] {
            true => zero.clone(),
            false => Rc::new(<[u8; BLOCK]>::try_from(chunk).expect("a whole block")),
        })
        .collect()
}

impl Disk for CrashDisk {
    type File = CrashFile;

    async fn create(&self, path: &Path) -> io::Result<CrashFile> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        if world.lookup(path).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
        }
        if world.full && world.left == 0 {
            return Err(no_space());
        }
        let id = world.next_file;
        world.next_file += 1;
        world.change(path, Some(Node::File(id)))?;
        world.inodes.insert(id, Inode::empty(id));
        Ok(CrashFile(id))
    }

    async fn open(&self, path: &Path) -> io::Result<CrashFile> {
        self.pause().await;
        match self.0.borrow().lookup(path) {
            Some(Node::File(id)) => Ok(CrashFile(id)),
            _ => Err(not_found(path)),
        }
    }

    fn length(&self, file: &CrashFile) -> io::Result<u64> {
        Ok(self.0.borrow().inodes[&file.0].now.length)
    }

    fn write(&self, writes: Vec<Write<CrashFile>>) -> impl Future<Output = io::Result<()>> + 'static + use<> {
        let awaited = Rc::new(Awaited::default());
        awaited.remaining.set(writes.len());
        let mut world = self.0.borrow_mut();
        let full = world.full;
        for Write { file, buffer, range, position, durable } in writes {
            let bytes = &buffer[range];
            assert!(bytes.len() % BLOCK == 0 && position % BLOCK as u64 == 0 && bytes.len() <= 1 << 20);
            if let Ok(header) = GroupHeader::decode(bytes) {
                let partition = TopicPartition {
                    topic: TopicId::new(header.topic_id),
                    partition: PartitionIndex::new(header.partition),
                };
                let (base, end) = (header.base_offset, header.end_offset);
                let header = bytes[..128].try_into().expect("a header");
                world.groups.push(GroupNote {
                    partition,
                    base,
                    end,
                    file: file.0,
                    position,
                    header,
                    inherited: false,
                });
            }
            let (submitted, id) = (world.tick(), world.next_write);
            world.next_write += 1;
            let mut blocks = to_blocks(bytes);
            let first = position as usize / BLOCK;
            let inode = &world.inodes[&file.0];
            let into_written = inode.is_written(first, blocks.len());
            let shares_flush = !durable && GroupHeader::decode(bytes).is_ok();
            assert!(
                into_written || !shares_flush || world.is_synced_as_a_whole(file.0),
                "a group at {position} of file {} counts on a flush of the device, but its blocks are new",
                file.0
            );
            if full && !into_written {
                // The other writes of the batch go on: a full disk is found in the middle of a round.
                let (fit, taken) = inode.fit(first, blocks.len(), world.left);
                world.left -= taken;
                awaited.no_space.set(awaited.no_space.get() || fit < blocks.len());
                blocks.truncate(fit);
                if fit == 0 {
                    awaited.remaining.set(awaited.remaining.get() - 1);
                    continue;
                }
            }
            let inode = world.inodes.get_mut(&file.0).expect("an open file");
            let change = Change::Write { first, blocks, replaced: Vec::new() };
            inode.pending.push(Pending { submitted, completed: None, durable, into_written, id, change });
            let operation = Operation::Write { inode: file.0, id };
            match world.held_place == Some((file.0, position)) {
                true => world.held_writes.push((operation, awaited.clone())),
                false => world.start(operation, &awaited),
            }
        }
        drop(world);
        let wait = Wait { disk: self.clone(), awaited };
        async move {
            let awaited = wait.awaited.clone();
            wait.await;
            if awaited.no_space.get() { Err(no_space()) } else { Ok(()) }
        }
    }

    fn read(
        &self,
        file: &CrashFile,
        position: u64,
        mut buffer: Buffer,
    ) -> impl Future<Output = io::Result<(Buffer, usize)>> + 'static + use<> {
        let (disk, id, pause) = (self.clone(), file.0, self.pause_of_read());
        async move {
            pause.await;
            let end = position + buffer.len() as u64;
            let refused =
                |(file, range): &(u64, Range<u64>)| *file == id && range.start < end && position < range.end;
            if disk.0.borrow().unreadable.iter().any(refused) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let read = disk.0.borrow().inodes[&id].now.read(position, &mut buffer);
            Ok((buffer, read))
        }
    }

    fn sync(&self, file: &CrashFile) -> impl Future<Output = io::Result<()>> + 'static + use<> {
        let awaited = Rc::new(Awaited::default());
        awaited.remaining.set(1);
        let mut world = self.0.borrow_mut();
        let submitted = world.tick();
        let operation = Operation::Sync { inode: file.0, submitted };
        match world.holds_syncs {
            true => world.held_syncs.push((operation, awaited.clone())),
            false => world.start(operation, &awaited),
        }
        drop(world);
        let wait = Wait { disk: self.clone(), awaited };
        async move {
            wait.await;
            Ok(())
        }
    }

    async fn truncate(&self, file: &CrashFile, bytes: u64) -> io::Result<()> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        let (submitted, id) = (world.tick(), world.next_write);
        world.next_write += 1;
        let completed = world.tick();
        let inode = world.inodes.get_mut(&file.0).expect("an open file");
        let change = Change::Truncate(bytes);
        let (durable, into_written) = (false, false);
        inode.pending.push(Pending { submitted, completed: None, durable, into_written, id, change });
        inode.complete(inode.pending.len() - 1, completed);
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        if world.no_names && world.lookup(to).is_none() {
            return Err(no_space());
        }
        let node = world.lookup(from).ok_or_else(|| not_found(from))?;
        world.change(to, Some(node))?;
        world.change(from, None)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        let node = world.lookup(path).ok_or_else(|| not_found(path))?;
        if let Node::File(id) = node
            && world.gives_back
        {
            world.left += world.inodes[&id].now.blocks.len();
        }
        world.change(path, None)
    }

    async fn make_directory(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        if world.full && world.left == 0 && !world.directories.contains_key(path) {
            return Err(no_space());
        }
        let mut missing: Vec<PathBuf> = path
            .ancestors()
            .take_while(|ancestor| !world.directories.contains_key(*ancestor))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        for directory in &missing {
            world.change(directory, Some(Node::Directory))?;
            world.directories.insert(directory.clone(), Directory::default());
        }
        Ok(missing)
    }

    async fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.pause().await;
        let mut world = self.0.borrow_mut();
        if !world.directories.get(path).ok_or_else(|| not_found(path))?.now.is_empty() {
            return Err(io::Error::other(format!("{} is not empty", path.display())));
        }
        // It stays known, so that a crash can bring it back.
        world.change(path, None)
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let submitted = self.0.borrow_mut().tick();
        self.pause().await;
        while self.0.borrow().held.as_deref() == Some(path) {
            self.sleep(Duration::from_millis(1)).await;
        }
        let mut world = self.0.borrow_mut();
        let directory = world.directories.get_mut(path).ok_or_else(|| not_found(path))?;
        for (tick, name, node) in std::mem::take(&mut directory.pending) {
            if tick > submitted {
                directory.pending.push((tick, name, node));
                continue;
            }
            match node {
                Some(node) => directory.durable.insert(name, node),
                None => directory.durable.remove(&name),
            };
        }
        Ok(())
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        self.pause().await;
        let world = self.0.borrow();
        let Some(directory) = world.directories.get(path) else { return Ok(Vec::new()) };
        let length = |node: &Node| match node {
            Node::File(id) => world.inodes[id].now.length,
            Node::Directory => 0,
        };
        Ok(directory.now.iter().map(|(name, node)| (name.clone(), length(node))).collect())
    }

    async fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

/// Time and nonces of a life.
pub struct CrashEnvironment {
    disk: CrashDisk,
    nonces: RefCell<Dice>,
}

impl CrashEnvironment {
    pub fn new(disk: &CrashDisk, seed: u64) -> Rc<Self> {
        Rc::new(Self { disk: disk.clone(), nonces: RefCell::new(Dice::new(seed)) })
    }
}

impl Environment for CrashEnvironment {
    fn now_ms(&self) -> i64 {
        let world = self.disk.0.borrow();
        world.epoch_ms + (world.clock_ns / 1_000_000) as i64
    }

    fn monotonic_ns(&self) -> u64 {
        self.disk.0.borrow().clock_ns
    }

    fn nonce(&self) -> u64 {
        self.nonces.borrow_mut().next()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.disk.sleep(duration))
    }
}
