//! What a log's bytes are worth after a crash.
//!
//! A state machine that is fed with blocks: it asks for reads ([`Recovery::need`]), gets bytes
//! ([`Recovery::feed`]) and ends with one honest verdict. It lives while a partition is opened.
//!
//! ```text
//! Headers ─► Scan ─► (end of the valid chain: V) ─► Window ─► clean | unproven tail
//!              ▲                                        └────► Resync ─► corrupt: lost range, scan on
//!              └────────────────────────────────────────────────┘
//! ```
//!
//! V is the end of the unbroken chain of sound groups; F is the largest *floor*, an offset that some
//! group, header or checkpoint attests as durable. V < F means acknowledged records are gone: corrupt,
//! never truncated in silence. V ≥ F with remains of our own writes behind V may be a torn write that was
//! never acknowledged or rot of one that was: that cannot be told apart, and is said so (*unproven*).
//! Only groups of the current incarnation or a later one count as remains: a cut group of an earlier one
//! can never come back. Headers fit into a sector, so a torn write leaves a sound header or none: one that
//! fails its checksum has rotted, whatever incarnation it claims.
//!
//! What the scan passes over is folded into the table of producers, behind the checkpoint's summary.
//!
//! Segments that compaction has rewritten stand for others (`segment_name` says which count). Behind a checkpoint
//! only their headers are read, or, where those have rotted before a checkpoint knew the file, the headers of their
//! groups, which say the same; without one their groups are scanned like any other, and where they end the chain
//! goes on as their header says.
//!
//! A log that was cut goes on in a segment whose header says where in an earlier one it does so (`truncation`): where
//! the scan comes to that place, it goes on there, however much stands behind. A cut since the checkpoint makes the
//! checkpoint one of a log that is not there any more: then all is read. What stands behind a place where the log
//! was cut is never taken for a part of it.
//!
//! It reads from the checkpoint to V, a window behind it and one of each file behind that, not the data kept. Absent on purpose:
//! files, truncation, and the decision what a replica does with a verdict.

use crate::ids::{LeaderEpoch, Offset};
use crate::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, READ_BYTES_MAX, RECOVERY_WINDOW_BYTES};
use crate::log::append::{LogIdentity, LogStart, Rewritten, Segment};
use crate::log::index::Index;
use crate::log::segment_name::SegmentName;
use crate::producer_state::{ProducerBatch, ProducerTable};
use crate::rules::{Rule, holds};
use schema::checkpoint::{PartitionCheckpoint, SegmentSummary};
use schema::record_batch;
use schema::segment::{GroupHeader, RewrittenHeader, SegmentHeader, SegmentState};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const BLOCK: u64 = BLOCK_BYTES as u64;
const WINDOW: u64 = RECOVERY_WINDOW_BYTES as u64;
/// Read of every file first: its header and the header of its first group, which stands in if the
/// segment's own has rotted.
const HEAD_BYTES: usize = 2 * BLOCK_BYTES;
/// Where a group's header has the nonce of its segment.
const NONCE_AT: Range<usize> = 16..24;
/// A damaged header is ours if its nonce differs in no more bits than these. Headers are written whole, so
/// it takes rot to damage one, and the nonces of two files differ in about 32 bits.
const NONCE_ROT_BITS_MAX: u32 = 8;

/// A file of the log as the directory shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its name.
    pub name: SegmentName,
    /// Its length.
    pub bytes: u64,
}

/// A read that the machine needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The file.
    pub name: SegmentName,
    /// From where, a multiple of the block size.
    pub position: u64,
    /// How many bytes; fewer may be fed only where the file ends.
    pub bytes: usize,
}

/// What stands behind the end of the valid chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing of ours.
    Clean,
    /// Remains of writes that may or may not have been acknowledged.
    Unproven {
        /// The first offset that is cut.
        from: Offset,
        /// One past the last offset that the remains name, if any can be read.
        until: Option<Offset>,
    },
}

/// The outcome of a recovery.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What the log goes on from.
    pub start: LogStart,
    /// What it says about its producers.
    pub producers: ProducerTable,
    /// What was behind its end.
    pub tail: Tail,
    /// Acknowledged offsets that are lost, as far as they were not known before.
    pub lost: Vec<Range<u64>>,
    /// Files to reclaim, after the truncation is durable.
    pub discard: Vec<SegmentName>,
    /// An empty group of the new incarnation must be durable before the log is used, so that what was
    /// cut cannot come back.
    pub must_open: bool,
    /// Blocks of zeros in groups that were perhaps not durable, whose checksums cannot tell whether they were ever written:
    /// to be written, because a file's blocks up to the end of the log count as written from now on.
    pub zeros: Vec<(SegmentName, Range<u64>)>,
    /// Bytes that were read.
    pub bytes_read: u64,
}

/// Blocks of zeros in a sound group.
#[derive(Debug)]
struct Zeros {
    name: SegmentName,
    positions: Range<u64>,
    /// The end of the group.
    end: u64,
}

#[derive(Debug)]
struct File {
    file: SegmentFile,
    header: Option<SegmentHeader>,
    /// The second header, of a rewritten segment whose first one is sound.
    rewritten: Option<RewrittenHeader>,
    /// The header of its first group, if the segment's own cannot be read.
    first: Option<GroupHeader>,
    /// What its groups say, if its headers and the checkpoint say nothing.
    walked: Option<Walked>,
    /// Its header says that it is only placed, but a group of its own stands in it, of this incarnation: a cut that
    /// did not come about.
    began_cut: Option<u64>,
}

/// How far the headers of a segment's groups lead.
#[derive(Clone, Copy, Debug)]
struct Walked {
    position: u64,
    offset: u64,
    max_timestamp_ms: i64,
}

/// Where the scan stands: everything before it is sound.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    file: usize,
    nonce: u64,
    position: u64,
    offset: u64,
    chain: u64,
    incarnation: u64,
    /// The first group after lost ones proves itself by its checksums; its chain is taken on trust.
    trust_chain: bool,
}

#[derive(Debug)]
enum Phase {
    Rewritten { next: usize },
    Groups { next: usize, position: u64 },
    Headers { next: usize },
    Scan { bytes: usize },
    Window { file: usize, position: u64, budget: u64 },
    Resync { file: usize, position: u64, bytes: usize },
    Done,
}

/// Remains of our own writes behind the valid chain.
#[derive(Clone, Copy, Debug, Default)]
struct Remains {
    torn: bool,
    until: Option<u64>,
}

/// The recovery of one log.
#[derive(Debug)]
pub struct Recovery {
    identity: LogIdentity,
    /// The directory.
    listing: Vec<SegmentFile>,
    files: Vec<File>,
    /// Where in the chain segments go on, and which one does: the last, because a cut supersedes what was behind it.
    goes_on: BTreeMap<(u64, u64), usize>,
    /// Segments whose headers have rotted: their first groups say where they go on.
    rotted: Vec<usize>,
    /// Rewritten segments behind the checkpoint.
    behind: Vec<File>,
    /// Numbers of segments as they were appended that are there, behind the checkpoint.
    appended: BTreeSet<u64>,
    start: Option<u64>,
    ended_in_order: bool,
    phase: Phase,
    cursor: Option<Cursor>,
    segments: Vec<Segment>,
    epochs: Vec<(LeaderEpoch, Offset)>,
    producers: ProducerTable,
    log_start: u64,
    floor: u64,
    incarnation_max: u64,
    lost: Vec<Range<u64>>,
    remains: Remains,
    zeros: Vec<Zeros>,
    discard: Vec<SegmentName>,
    checkpoint: Option<PartitionCheckpoint>,
    corrupt_tail: bool,
    clean: bool,
    bytes_read: u64,
}

impl Recovery {
    /// A recovery over `files` (in the order of their numbers), starting from the shard's checkpoint of
    /// this partition if there is one. `clean`: that checkpoint was made by an orderly shutdown, nothing
    /// was written after it, so nothing but the header of a segment placed ahead is read.
    pub fn new(
        identity: LogIdentity,
        checkpoint: Option<PartitionCheckpoint>,
        clean: bool,
        files: &[SegmentFile],
    ) -> Self {
        let active = checkpoint.as_ref().and_then(|c| c.segments.last()).map(|segment| segment.sequence);
        let rewritten: Vec<SegmentName> =
            files.iter().map(|file| file.name).filter(|name| name.is_rewritten()).collect();
        let counts = |file: &&SegmentFile| {
            !rewritten.iter().any(|other| other.supersedes(file.name)) || !holds(Rule::DiscardSuperseded)
        };
        let mut discard: Vec<SegmentName> =
            files.iter().filter(|file| !counts(file)).map(|file| file.name).collect();
        // An older checkpoint may go on from a segment that has been rewritten since: then all is read.
        let appended = |active: &u64| SegmentName::appended(*active);
        let start =
            active.filter(|active| files.iter().filter(counts).any(|file| file.name == appended(active)));
        let mut kept = Vec::new();
        let (mut behind, mut numbers) = (Vec::new(), BTreeSet::new());
        for file in files.iter().filter(counts) {
            let read = File {
                file: *file,
                header: None,
                rewritten: None,
                first: None,
                walked: None,
                began_cut: None,
            };
            match start {
                // Sealed before the checkpoint: known without reading, if the checkpoint lists it. What has
                // been rewritten since says itself what it is.
                Some(active) if file.name.last < active => {
                    let known = |c: &PartitionCheckpoint| {
                        c.segments.iter().any(|s| file.name.covers(s.sequence) && s.sequence < active)
                    };
                    match checkpoint.as_ref().is_some_and(known) {
                        true if file.name.is_rewritten() => behind.push(read),
                        true => drop(numbers.insert(file.name.first)),
                        false => discard.push(file.name),
                    }
                }
                _ => kept.push(read),
            }
        }
        let mut recovery = Self {
            identity,
            listing: files.to_vec(),
            files: kept,
            goes_on: BTreeMap::new(),
            rotted: Vec::new(),
            behind,
            appended: numbers,
            start,
            ended_in_order: clean,
            phase: Phase::Rewritten { next: 0 },
            cursor: None,
            segments: Vec::new(),
            epochs: Vec::new(),
            producers: ProducerTable::default(),
            log_start: 0,
            floor: checkpoint.as_ref().map_or(0, |c| c.durable_end),
            incarnation_max: checkpoint.as_ref().map_or(0, |c| c.incarnation),
            lost: Vec::new(),
            remains: Remains::default(),
            zeros: Vec::new(),
            discard,
            corrupt_tail: false,
            clean: false,
            checkpoint,
            bytes_read: 0,
        };
        if let Some(checkpoint) = &recovery.checkpoint {
            recovery.log_start = checkpoint.log_start;
            // What was on its way when the checkpoint was made may be lost with its epoch. What another leader sends next may
            // be of an earlier one.
            recovery.epochs = checkpoint
                .epochs
                .iter()
                .filter(|(_, start)| *start < checkpoint.durable_end)
                .map(|(epoch, start)| (LeaderEpoch::new(*epoch), Offset::new(*start)))
                .collect();
        }
        if recovery.behind.is_empty() {
            recovery.begin_headers();
        }
        recovery
    }

    /// What is behind the checkpoint is known: goes on with the headers of the rest.
    fn begin_headers(&mut self) {
        if self.start.is_some() {
            self.start_from_checkpoint();
        }
        // What the checkpoint does not describe, it cannot vouch for.
        let described =
            self.checkpoint.as_ref().is_some_and(|c| self.start.is_some() || c.segments.is_empty());
        self.clean = self.ended_in_order && described;
        self.next_header(0);
    }

    /// The next read; `None` when the verdict is ready.
    pub fn need(&self) -> Option<ReadRequest> {
        match self.phase {
            Phase::Rewritten { next } => {
                Some(ReadRequest { name: self.behind[next].file.name, position: 0, bytes: HEAD_BYTES })
            }
            Phase::Groups { next, position } => {
                Some(ReadRequest { name: self.behind[next].file.name, position, bytes: BLOCK_BYTES })
            }
            Phase::Headers { next } => {
                Some(ReadRequest { name: self.files[next].file.name, position: 0, bytes: HEAD_BYTES })
            }
            Phase::Scan { bytes } => {
                let cursor = self.cursor.as_ref()?;
                Some(ReadRequest {
                    name: self.files[cursor.file].file.name,
                    position: cursor.position,
                    bytes,
                })
            }
            Phase::Window { file, position, budget } => Some(ReadRequest {
                name: self.files[file].file.name,
                position,
                bytes: (READ_BYTES_MAX as u64).min(budget) as usize,
            }),
            Phase::Resync { file, position, bytes } => {
                Some(ReadRequest { name: self.files[file].file.name, position, bytes })
            }
            Phase::Done => None,
        }
    }

    /// Feeds the bytes of the read that was asked for; fewer than asked means that the file ends there,
    /// an unreadable range is fed as zeros.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes_read += bytes.len() as u64;
        match self.phase {
            Phase::Rewritten { next } => {
                self.behind[next].read_head(&self.identity, bytes);
                match self.behind[next].first.filter(|first| !self.is_known(first.nonce)) {
                    Some(first) => {
                        let (offset, max_timestamp_ms) = (first.base_offset, -1);
                        self.behind[next].walked = Some(Walked { position: BLOCK, offset, max_timestamp_ms });
                        self.phase = Phase::Groups { next, position: BLOCK };
                    }
                    None => self.next_behind(next + 1),
                }
            }
            Phase::Groups { next, .. } => match self.behind[next].walk(bytes) {
                Some(position) => self.phase = Phase::Groups { next, position },
                None => self.next_behind(next + 1),
            },
            Phase::Headers { next } => self.feed_header(next, bytes),
            Phase::Scan { .. } => self.feed_scan(bytes),
            Phase::Window { file, position, budget } => self.feed_window(file, position, budget, bytes),
            Phase::Resync { file, position, bytes: asked } => self.feed_resync(file, position, asked, bytes),
            Phase::Done => {}
        }
    }

    fn next_behind(&mut self, next: usize) {
        match next < self.behind.len() {
            true => self.phase = Phase::Rewritten { next },
            false => self.begin_headers(),
        }
    }

    /// Whether the checkpoint describes the segment of this nonce.
    fn is_known(&self, nonce: u64) -> bool {
        self.checkpoint.iter().flat_map(|c| &c.segments).any(|segment| segment.nonce == nonce)
    }

    fn lose(&mut self, from: Option<u64>, until: u64) {
        self.lost.extend(from.filter(|from| *from < until).map(|from| from..until));
    }

    fn start_from_checkpoint(&mut self) {
        let Some(checkpoint) = self.checkpoint.clone() else { return };
        let Some((active, sealed)) = checkpoint.segments.split_last() else { return };
        self.producers = ProducerTable::restore(&checkpoint.producers);
        let mut expected = None;
        let mut stood_for = None;
        for summary in sealed {
            if let Some(at) = self.behind.iter().position(|file| file.file.name.covers(summary.sequence)) {
                // Several of the checkpoint's may have become one.
                if stood_for.replace(at) == Some(at) {
                    continue;
                }
                match self.behind[at].describe(summary) {
                    Some(segment) => {
                        self.lose(expected.take(), segment.base.get());
                        self.segments.push(segment);
                        // Where its groups lead no further, the rest is lost.
                        expected = self.behind[at].walked.map(|walked| walked.offset);
                    }
                    None => drop(expected.get_or_insert(summary.base_offset)),
                }
                continue;
            }
            if !self.appended.contains(&summary.sequence) {
                // Dropped by retention from the front; a gap behind kept segments is a loss.
                if self.segments.is_empty() {
                    continue;
                }
                expected.get_or_insert(summary.base_offset);
                continue;
            }
            self.lose(expected.take(), summary.base_offset);
            self.segments.push(summary_segment(summary, summary.end_position));
        }
        self.lose(expected.take(), active.base_offset);
        let first = self.segments.first().map_or(active.base_offset, |segment| segment.base.get());
        self.log_start = self.log_start.max(first);
        let mut segment = summary_segment(active, checkpoint.position);
        if checkpoint.position <= BLOCK {
            segment.index = Some(Index::default());
        }
        self.segments.push(segment);
        self.cursor = Some(Cursor {
            file: 0,
            nonce: active.nonce,
            position: checkpoint.position.max(BLOCK),
            offset: checkpoint.durable_end,
            chain: checkpoint.chain,
            incarnation: checkpoint.incarnation,
            trust_chain: false,
        });
    }

    fn feed_header(&mut self, next: usize, bytes: &[u8]) {
        let file = &mut self.files[next];
        file.read_head(&self.identity, bytes);
        let incarnation = file.header.map(|header| header.incarnation);
        let incarnation = incarnation.or(file.first.map(|first| first.incarnation));
        self.incarnation_max = self.incarnation_max.max(incarnation.unwrap_or(0));
        self.next_header(next + 1);
    }

    fn next_header(&mut self, mut next: usize) {
        // The checkpoint's own segment is described by it.
        let described = usize::from(self.clean && self.cursor.is_some());
        next = next.max(described);
        if next < self.files.len() {
            self.phase = Phase::Headers { next };
        } else if self.clean && self.files[described..].iter().all(|file| begun(file).is_none()) {
            self.phase = Phase::Done;
        } else {
            self.start_scan();
        }
    }

    /// Whether there was a cut that the checkpoint knows nothing of: a segment of a later incarnation begins below what
    /// the checkpoint attests, or at its end but before the empty groups there, or begins the log anew (`Some(true)`).
    fn cut_since_checkpoint(&self) -> Option<bool> {
        let checkpoint = self.checkpoint.as_ref()?;
        if self.start.is_none() && checkpoint.durable_end == 0 {
            // All is read as it is.
            return None;
        }
        let opened = self.files.iter().filter(|file| !file.file.name.is_rewritten()).filter_map(begun);
        let later =
            opened.map(|(_, begun)| begun).filter(|begun| begun.incarnation() > checkpoint.incarnation);
        let cuts = later.filter(|begun| {
            begun.begins_log()
                || begun.base_offset() < checkpoint.durable_end
                || begun.base_offset() == checkpoint.durable_end && begun.goes_on_before(checkpoint)
        });
        cuts.map(|begun| begun.begins_log()).reduce(|anew, other| anew || other)
    }

    /// Begins again with nothing of the checkpoint but what a cut leaves of it; `anew`: of a log that was discarded.
    fn forget_checkpoint(&mut self, anew: bool) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        let mut left = PartitionCheckpoint {
            durable_end: 0,
            position: 0,
            chain: 0,
            segments: Vec::new(),
            epochs: Vec::new(),
            ..checkpoint
        };
        if anew {
            left.log_start = 0;
            left.producers = Vec::new();
        }
        let (identity, listing, bytes_read) =
            (self.identity, std::mem::take(&mut self.listing), self.bytes_read);
        *self = Self::new(identity, Some(left), false, &listing);
        self.bytes_read = bytes_read;
    }

    /// All headers are known: begin where the checkpoint says, or with the oldest opened segment, or the last one
    /// that begins the log.
    fn start_scan(&mut self) {
        if let Some(anew) = self.cut_since_checkpoint() {
            return self.forget_checkpoint(anew);
        }
        for (at, file) in self.files.iter().enumerate() {
            match (begun(file), file.header) {
                (Some((_, Begun::Header(header))), _) => {
                    self.goes_on.insert((header.previous_end, header.previous_chain), at);
                }
                (Some((_, Begun::FirstGroup(_))), None) => self.rotted.push(at),
                (Some(_) | None, _) => {}
            }
        }
        if self.cursor.is_none() {
            let anew =
                self.files.iter().rposition(|file| begun(file).is_some_and(|(_, begun)| begun.begins_log()));
            let first = self.files.iter().position(|file| begun(file).is_some());
            let anew = anew.filter(|anew| Some(*anew) > first);
            let first = anew.or(first);
            if let Some(first) = first.filter(|first| self.is_behind_placed(*first)) {
                self.floor = self.floor_with_headers(first);
            }
            let first = first.filter(|first| self.is_log_start(*first));
            let Some(first) = first else {
                // Nothing was ever opened, or all headers are gone.
                self.remains.torn = self.files.iter().any(|file| file.header.is_none());
                if self.floor > self.log_start {
                    self.lost.push(self.log_start..self.floor);
                    self.corrupt_tail = true;
                    self.phase = Phase::Done;
                } else {
                    self.window_from(0, BLOCK, WINDOW);
                }
                return;
            };
            let unreadable = anew.is_none() && self.files[..first].iter().any(|file| file.header.is_none());
            let (segment, cursor) = begin(first, begun(&self.files[first]).expect("found as begun"));
            if unreadable && cursor.offset > self.log_start {
                self.lost.push(self.log_start..cursor.offset);
            }
            self.log_start = self.log_start.max(cursor.offset);
            self.cursor = Some(cursor);
            self.segments.push(segment);
        }
        self.scan_on();
    }

    /// Whether a segment that is only placed is before this one.
    fn is_behind_placed(&self, file: usize) -> bool {
        if begun(&self.files[file]).is_some_and(|(_, begun)| begun.begins_log()) {
            return false;
        }
        let mut before = self.files[..file].iter().filter_map(|file| file.header);
        before.any(|header| header.state == SegmentState::Placed)
    }

    /// The largest floor that is known with the headers from `first` on; of whatever incarnation, because no
    /// chain says yet which of them have been cut.
    fn floor_with_headers(&self, first: usize) -> u64 {
        let floors = self.files[first..].iter().filter_map(begun).map(|(_, begun)| begun.durable_floor());
        floors.fold(self.floor, u64::max)
    }

    /// Whether the oldest opened segment is where the log begins. Behind one that is only placed it is not,
    /// unless its offset is attested: a segment is opened by a write before those of the next one, so the
    /// write was lost, and a segment is dropped only once a later one is durable.
    fn is_log_start(&self, first: usize) -> bool {
        let base = begun(&self.files[first]).map_or(0, |(_, begun)| begun.base_offset());
        !self.is_behind_placed(first) || base <= self.floor.max(self.log_start)
    }

    /// Continues the scan at the cursor: into the next segment if the chain leads there, else here.
    fn scan_on(&mut self) {
        while self.enter_next_segment() {}
        let cursor = self.cursor.expect("a scan has a cursor");
        let left = self.files[cursor.file].file.bytes.saturating_sub(cursor.position);
        if left == 0 {
            self.stop(&[]);
        } else {
            self.phase = Phase::Scan { bytes: left.min(READ_BYTES_MAX as u64) as usize };
        }
    }

    /// Moves into the segment whose header says that the log goes on there from exactly here: the next one, or one
    /// that was opened by a cut.
    fn enter_next_segment(&mut self) -> bool {
        let cursor = self.cursor.expect("a scan has a cursor");
        let known = self.goes_on.get(&(cursor.position, cursor.chain)).copied();
        // Of a cut whose header has rotted, the first group says so.
        let rotted = self.rotted.iter().rev().copied().find(|at| {
            self.files[*at].first.is_some_and(|first| first.chain == first.chain_after(cursor.chain))
        });
        let cut = known.max(rotted).filter(|at| *at > cursor.file + 1);
        cut.is_some_and(|at| self.enter_segment(at)) || self.enter_segment(cursor.file + 1)
    }

    fn enter_segment(&mut self, at: usize) -> bool {
        let cursor = self.cursor.expect("a scan has a cursor");
        let Some(next) = self.files.get(at).and_then(begun) else { return false };
        // Behind a rewritten segment the chain goes on as it did behind its sources.
        let here = &self.files[cursor.file];
        let whole = |rewritten: &RewrittenHeader| {
            rewritten.end_position == cursor.position && rewritten.end_offset == cursor.offset
        };
        let (end, chain) = match (here.rewritten.filter(whole), next.1) {
            (Some(rewritten), _) => (rewritten.source_end, rewritten.end_chain),
            // What says so has rotted; but nothing is rewritten before all of the next segment's past is durable.
            (None, Begun::Header(header))
                if here.file.name.is_rewritten()
                    && here.rewritten.is_none()
                    && header.base_offset == cursor.offset =>
            {
                (header.previous_end, header.previous_chain)
            }
            (None, _) if here.file.name.is_rewritten() => return false,
            (None, _) => (cursor.position, cursor.chain),
        };
        let follows = match next.1 {
            Begun::Header(header) => {
                header.previous_end == end
                    && header.previous_chain == chain
                    && header.incarnation >= cursor.incarnation
                    && header.base_offset >= cursor.offset
            }
            // Its chain proves that it follows.
            Begun::FirstGroup(first) => {
                first.chain == first.chain_after(chain)
                    && first.incarnation >= cursor.incarnation
                    && first.base_offset == cursor.offset
            }
        };
        if !follows {
            return false;
        }
        let (segment, entered) = begin(at, next);
        if entered.offset > cursor.offset {
            // The log was continued after a loss that was reported then.
            self.lost.push(cursor.offset..entered.offset);
        }
        if let Begun::Header(header) = next.1 {
            self.floor = self.floor.max(header.durable_floor);
        }
        self.segments.push(segment);
        self.cursor = Some(entered);
        true
    }

    fn feed_scan(&mut self, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let mut cursor = self.cursor.expect("a scan has a cursor");
            let rest = &bytes[at.min(bytes.len())..];
            if rest.len() < BLOCK_BYTES {
                if at == 0 {
                    return self.stop(rest);
                }
                return self.scan_on();
            }
            let Ok(header) = GroupHeader::decode(rest) else { return self.stop(rest) };
            let continues = self.is_ours(&header, cursor.nonce)
                && header.base_offset == cursor.offset
                && header.incarnation >= cursor.incarnation
                && (cursor.trust_chain || header.chain == header.chain_after(cursor.chain));
            let group = header.disk_bytes();
            if !continues || group > GROUP_BYTES_MAX as u64 {
                return self.stop(rest);
            }
            if group as usize > rest.len() {
                let left = self.files[cursor.file].file.bytes.saturating_sub(cursor.position);
                if group > left || at == 0 && bytes.len() >= group as usize {
                    return self.stop(rest);
                }
                if let Phase::Scan { bytes: asked } = self.phase
                    && at == 0
                    && asked >= group as usize
                {
                    // The file ends inside the group although the directory says otherwise.
                    return self.stop(rest);
                }
                // The group reaches past what was read: ask for all of it.
                self.phase = Phase::Scan { bytes: (group as usize).max(READ_BYTES_MAX).min(left as usize) };
                return;
            }
            let payload = &rest[schema::segment::GROUP_HEADER_BYTES..][..header.payload_bytes as usize];
            if !header.payload_is_sound(payload) {
                return self.stop(rest);
            }
            let segment = self.segments.last_mut().expect("a scan has a segment");
            if let Some(index) = &mut segment.index {
                index.note(Offset::new(header.base_offset), cursor.position, segment.max_timestamp_ms);
            }
            segment.end_position = cursor.position + group;
            segment.max_timestamp_ms = segment.max_timestamp_ms.max(header.max_timestamp_ms);
            let epoch = LeaderEpoch::new(header.leader_epoch);
            let holds_offsets = header.end_offset > header.base_offset;
            if holds_offsets && self.epochs.last().is_none_or(|(last, _)| *last < epoch) {
                self.epochs.push((epoch, Offset::new(header.base_offset)));
            }
            note_producers(&mut self.producers, &header, payload);
            if header.durable_floor > self.floor {
                self.floor = header.durable_floor;
                self.zeros.retain(|zeros| zeros.end > header.durable_floor);
            }
            self.note_zeros(&header, &rest[..group as usize]);
            self.incarnation_max = self.incarnation_max.max(header.incarnation);
            cursor.position += group;
            cursor.offset = header.end_offset;
            cursor.chain = header.chain;
            cursor.incarnation = header.incarnation;
            cursor.trust_chain = false;
            self.cursor = Some(cursor);
            at += group as usize;
            if self.enter_next_segment() {
                return self.scan_on();
            }
        }
    }

    /// Notes the blocks of a group that are zeros, unless it is known to be durable.
    fn note_zeros(&mut self, header: &GroupHeader, group: &[u8]) {
        if header.end_offset <= self.floor {
            return;
        }
        let cursor = self.cursor.expect("a scan has a cursor");
        let name = self.files[cursor.file].file.name;
        let blocks = group.chunks_exact(BLOCK_BYTES).zip((cursor.position..).step_by(BLOCK_BYTES));
        for (_, at) in blocks.filter(|(block, _)| block.iter().all(|byte| *byte == 0)) {
            match self.zeros.last_mut().filter(|last| last.name == name && last.positions.end == at) {
                Some(last) => (last.positions.end, last.end) = (at + BLOCK, header.end_offset),
                None => {
                    self.zeros.push(Zeros { name, positions: at..at + BLOCK, end: header.end_offset });
                }
            }
        }
    }

    /// Whether what begins at `base_offset` in a file has been cut off: a later segment of a higher incarnation begins
    /// there or below.
    fn is_cut_off(&self, file: usize, incarnation: u64, base_offset: u64) -> bool {
        self.files[file + 1..]
            .iter()
            .filter(|later| !later.file.name.is_rewritten())
            .filter_map(begun)
            .any(|(_, begun)| begun.incarnation() > incarnation && begun.base_offset() <= base_offset)
    }

    fn is_ours(&self, header: &GroupHeader, nonce: u64) -> bool {
        header.nonce == nonce
            && header.topic_id == self.identity.partition.topic.get()
            && header.partition == self.identity.partition.partition.get()
    }

    /// The chain ends at the cursor; `block` is what stands there.
    fn stop(&mut self, block: &[u8]) {
        let cursor = self.cursor.expect("a scan has a cursor");
        // A file of which not even the header can be read may have held anything.
        let unreadable = self.files[cursor.file + 1..].iter().any(|file| file.header.is_none());
        self.remains = Remains { torn: unreadable || is_remains(block, &cursor), until: None };
        for at in cursor.file + 1..self.files.len() {
            if let Some(header) = opened(&self.files[at])
                && header.incarnation >= cursor.incarnation
                && !self.is_cut_off(at, header.incarnation, header.base_offset)
            {
                self.floor = self.floor.max(header.durable_floor);
            }
        }
        if cursor.offset < self.floor {
            self.resync_from(cursor.file, cursor.position + BLOCK);
        } else {
            self.window_from(cursor.file, cursor.position, WINDOW);
        }
    }

    /// Looks at the window from here on, or decides if there is nothing more to look at. Each file has one: what was in flight
    /// may have begun the next one early.
    fn window_from(&mut self, mut file: usize, mut position: u64, mut budget: u64) {
        while file < self.files.len() && (budget < BLOCK || self.files[file].file.bytes <= position) {
            (file, position, budget) = (file + 1, BLOCK, WINDOW);
        }
        self.phase = match file < self.files.len() {
            true => Phase::Window { file, position, budget },
            false => Phase::Done,
        };
    }

    fn feed_window(&mut self, file: usize, position: u64, budget: u64, bytes: &[u8]) {
        let (offset, incarnation) = self.cursor.map_or((self.log_start, 0), |c| (c.offset, c.incarnation));
        let nonce = self.nonce_of(file);
        for block in bytes.chunks(BLOCK_BYTES) {
            let Ok(header) = GroupHeader::decode(block) else { continue };
            let counts = nonce.is_some_and(|nonce| self.is_ours(&header, nonce))
                && header.incarnation >= incarnation
                && header.base_offset >= offset
                && !self.is_cut_off(file, header.incarnation, header.base_offset);
            if counts {
                self.remains.torn = true;
                self.remains.until = self.remains.until.max(Some(header.end_offset));
                self.floor = self.floor.max(header.durable_floor);
                self.incarnation_max = self.incarnation_max.max(header.incarnation);
            }
        }
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.offset < self.floor) {
            return self.resync_from(cursor.file, cursor.position + BLOCK);
        }
        let read = (bytes.len() as u64).max(BLOCK).next_multiple_of(BLOCK);
        self.window_from(file, position + read, budget.saturating_sub(read));
    }

    fn nonce_of(&self, file: usize) -> Option<u64> {
        match self.cursor.filter(|cursor| cursor.file == file) {
            Some(cursor) => Some(cursor.nonce),
            None => {
                let File { header, first, .. } = &self.files[file];
                header.map(|header| header.nonce).or(first.map(|first| first.nonce))
            }
        }
    }

    /// Acknowledged records are missing at the cursor: look for the next sound group.
    fn resync_from(&mut self, mut file: usize, mut position: u64) {
        while file < self.files.len() && self.files[file].file.bytes < position + BLOCK {
            file += 1;
            position = BLOCK;
        }
        if file < self.files.len() {
            let left = self.files[file].file.bytes - position;
            self.phase = Phase::Resync { file, position, bytes: left.min(READ_BYTES_MAX as u64) as usize };
            return;
        }
        let cursor = self.cursor.expect("a resync follows a scan");
        self.lost.push(cursor.offset..self.floor);
        self.corrupt_tail = true;
        self.phase = Phase::Done;
    }

    fn feed_resync(&mut self, file: usize, position: u64, asked: usize, bytes: &[u8]) {
        let cursor = self.cursor.expect("a resync follows a scan");
        let begun = file == cursor.file || begun(&self.files[file]).is_some();
        let Some(nonce) = self.nonce_of(file).filter(|_| begun) else {
            // Without its header nothing in the file can be trusted; without an open one nothing counts.
            return self.resync_from(file + 1, BLOCK);
        };
        for at in (0..bytes.len().saturating_sub(BLOCK_BYTES - 1)).step_by(BLOCK_BYTES) {
            let Ok(header) = GroupHeader::decode(&bytes[at..]) else { continue };
            // A group of an earlier incarnation has been cut.
            let counts = self.is_ours(&header, nonce)
                && header.base_offset >= cursor.offset
                && header.incarnation >= cursor.incarnation
                && !self.is_cut_off(file, header.incarnation, header.base_offset);
            if !counts {
                continue;
            }
            self.incarnation_max = self.incarnation_max.max(header.incarnation);
            let group = header.disk_bytes() as usize;
            let here = position + at as u64;
            let payload = bytes[at..]
                .get(schema::segment::GROUP_HEADER_BYTES..)
                .and_then(|rest| rest.get(..header.payload_bytes as usize));
            match payload {
                Some(payload) if header.payload_is_sound(payload) => {
                    return self.resume_at(file, nonce, here, &header);
                }
                None if group <= GROUP_BYTES_MAX && !(at == 0 && asked >= group) => {
                    self.phase = Phase::Resync { file, position: here, bytes: group };
                    return;
                }
                _ => {}
            }
        }
        let read = (bytes.len() as u64).max(BLOCK).next_multiple_of(BLOCK);
        self.resync_from(file, position + read);
    }

    /// A sound group behind the loss: what lies between is lost, the scan goes on with it.
    fn resume_at(&mut self, file: usize, nonce: u64, position: u64, header: &GroupHeader) {
        let cursor = self.cursor.expect("a resync follows a scan");
        if header.base_offset > cursor.offset {
            self.lost.push(cursor.offset..header.base_offset);
        }
        for skipped in cursor.file + 1..=file {
            if let Some((described, begun)) = begun(&self.files[skipped])
                && !self.is_cut_off(skipped, begun.incarnation(), begun.base_offset())
            {
                self.segments.push(begin(file, (described, begun)).0);
            }
        }
        self.cursor = Some(Cursor {
            file,
            nonce,
            position,
            offset: header.base_offset,
            chain: cursor.chain,
            incarnation: header.incarnation.max(1),
            trust_chain: true,
        });
        self.scan_on();
    }

    /// The verdict. Call when [`Recovery::need`] is `None`.
    pub fn finish(mut self) -> Recovered {
        assert!(matches!(self.phase, Phase::Done), "recovery finished early");
        let last_sequence = self
            .files
            .iter()
            .map(|file| file.file.name.last)
            .chain(self.checkpoint.iter().flat_map(|c| c.segments.iter().map(|s| s.sequence)))
            .max();
        let cursor_file = self.cursor.map(|cursor| cursor.file);
        let end = if self.corrupt_tail {
            self.floor
        } else {
            self.cursor.map_or(self.log_start, |cursor| cursor.offset)
        };
        let tail = if self.remains.torn && !self.corrupt_tail {
            Tail::Unproven { from: Offset::new(end), until: self.remains.until.map(Offset::new) }
        } else {
            Tail::Clean
        };
        // Segments behind the end: one that is placed and next in line is kept if nothing was cut.
        let mut placed = None;
        let mut cut = self.remains.torn || self.corrupt_tail;
        for (at, file) in self.files.iter().enumerate() {
            let kept = cursor_file.is_some_and(|cursor| at <= cursor)
                && self.segments.iter().any(|segment| segment.name() == file.file.name);
            if kept {
                continue;
            }
            let behind = cursor_file.is_none_or(|cursor| at > cursor);
            if let Some(incarnation) = file.began_cut {
                // What a cut that did not come about has left in it is not to be met again.
                self.incarnation_max = self.incarnation_max.max(incarnation);
                self.discard.push(file.file.name);
                continue;
            }
            match file.header {
                Some(SegmentHeader { state: SegmentState::Placed, nonce, .. })
                    if placed.is_none() && behind =>
                {
                    placed = Some((file.file.name.first, nonce));
                }
                header => {
                    self.discard.push(file.file.name);
                    let held = header.map_or(!self.clean, |header| header.state == SegmentState::Open);
                    cut |= behind && held;
                }
            }
        }
        if cut || placed.is_some_and(|(sequence, _)| Some(sequence) != last_sequence) {
            self.discard.extend(placed.take().map(|(sequence, _)| SegmentName::appended(sequence)));
        }
        let must_open = cut && !self.segments.is_empty();
        if let Some(checkpoint) = &self.checkpoint {
            // Where the scan did not begin at the checkpoint, it has not seen what retention had dropped by then.
            self.producers.merge_older(&checkpoint.producers, Offset::new(self.log_start));
        }
        let start = LogStart {
            incarnation: self.incarnation_max + 1,
            log_start: Offset::new(self.log_start),
            log_end: Offset::new(end),
            chain: self.cursor.map_or(0, |cursor| cursor.chain),
            segments: self.segments,
            placed,
            next_sequence: last_sequence.map_or(0, |last| last + 1),
            epochs: self.epochs,
            damaged: self.lost.iter().filter(|range| range.end > self.log_start).cloned().collect(),
            roll_next: self.corrupt_tail,
        };
        Recovered {
            start,
            producers: self.producers,
            tail,
            lost: self.lost,
            discard: self.discard,
            must_open,
            zeros: self.zeros.into_iter().map(|zeros| (zeros.name, zeros.positions)).collect(),
            bytes_read: self.bytes_read,
        }
    }
}

/// Takes in the batches of a sound group.
fn note_producers(producers: &mut ProducerTable, header: &GroupHeader, payload: &[u8]) {
    for (batch, _) in record_batch::batches(payload).map_while(Result::ok) {
        if let Some(noted) = ProducerBatch::of(&batch) {
            producers.replay(&noted, Offset::new(batch.base_offset), header.append_time_ms);
        }
    }
}

impl File {
    /// Takes what the first blocks of the file say, if they are this log's.
    fn read_head(&mut self, identity: &LogIdentity, bytes: &[u8]) {
        let name = self.file.name;
        self.header = SegmentHeader::decode(bytes).ok().filter(|header| {
            header.topic_id == identity.partition.topic.get()
                && header.partition == identity.partition.partition.get()
                && header.generation == identity.generation
                && header.sequence == name.first
        });
        if name.is_rewritten() {
            let second = RewrittenHeader::decode(bytes).ok();
            self.rewritten = second.filter(|second| {
                self.header.is_some_and(|header| header.nonce == second.nonce)
                    && (second.last_sequence, second.revision) == (name.last, name.revision)
            });
            // One without the other says too little.
            self.header = self.header.filter(|_| self.rewritten.is_some());
        }
        let placed = self.header.filter(|header| header.state == SegmentState::Placed);
        if let (Some(placed), Some(block)) = (placed, bytes.get(BLOCK_BYTES..)) {
            let first = GroupHeader::decode(block).ok().filter(|first| first.nonce == placed.nonce);
            // Behind a roll whose header was lost, a group has the incarnation that its file was placed in.
            let cut = first.filter(|first| first.incarnation > placed.incarnation);
            self.began_cut = cut.map(|first| first.incarnation);
        }
        if self.header.is_none() {
            let first = bytes.get(BLOCK_BYTES..).map(GroupHeader::decode);
            // In a recycled file it may be a group of what the file held before.
            self.first = first.and_then(Result::ok).filter(|first| {
                first.topic_id == identity.partition.topic.get()
                    && first.partition == identity.partition.partition.get()
                    && first.generation == identity.generation
                    && first.sequence == name.first
            });
        }
    }

    /// Takes the block of the next group's header; where the one behind it is, if there is one.
    fn walk(&mut self, bytes: &[u8]) -> Option<u64> {
        let (first, walked) = (self.first?, self.walked.as_mut()?);
        let header = GroupHeader::decode(bytes).ok().filter(|header| {
            (header.nonce, header.topic_id, header.partition)
                == (first.nonce, first.topic_id, first.partition)
                && header.base_offset == walked.offset
        })?;
        let end = walked.position + header.disk_bytes();
        if header.disk_bytes() > GROUP_BYTES_MAX as u64 || end > self.file.bytes {
            return None;
        }
        *walked = Walked {
            position: end,
            offset: header.end_offset,
            max_timestamp_ms: walked.max_timestamp_ms.max(header.max_timestamp_ms),
        };
        (end + BLOCK <= self.file.bytes).then_some(end)
    }

    /// A rewritten segment by its headers; if they have rotted, by what the checkpoint says of it, provided
    /// that it means this very file, or by its groups.
    fn describe(&self, summary: &SegmentSummary) -> Option<Segment> {
        let name = self.file.name;
        if let (Some(header), Some(second)) = (self.header, self.rewritten) {
            let rewritten = Rewritten {
                last: name.last,
                revision: name.revision,
                clean_until: Offset::new(second.clean_until),
            };
            return Some(Segment {
                sequence: name.first,
                nonce: header.nonce,
                base: Offset::new(header.base_offset),
                end_position: second.end_position,
                max_timestamp_ms: second.max_timestamp_ms,
                opened_ms: header.opened_ms,
                index: None,
                rewritten: Some(rewritten),
            });
        }
        if let (Some(first), Some(walked)) = (self.first, self.walked) {
            return (walked.position > BLOCK).then(|| Segment {
                sequence: name.first,
                nonce: first.nonce,
                base: Offset::new(first.base_offset),
                end_position: walked.position,
                max_timestamp_ms: walked.max_timestamp_ms,
                opened_ms: first.append_time_ms,
                index: None,
                rewritten: Some(Rewritten {
                    last: name.last,
                    revision: name.revision,
                    clean_until: Offset::new(first.base_offset),
                }),
            });
        }
        let same = self.first.is_some_and(|first| first.nonce == summary.nonce);
        same.then(|| Segment {
            rewritten: Some(Rewritten {
                last: name.last,
                revision: name.revision,
                clean_until: Offset::new(summary.base_offset),
            }),
            ..summary_segment(summary, summary.end_position)
        })
    }
}

fn opened(file: &File) -> Option<SegmentHeader> {
    file.header.filter(|header| header.state == SegmentState::Open)
}

/// What says that a segment has been rolled into: its header, or its first group in place of it.
#[derive(Clone, Copy)]
enum Begun {
    Header(SegmentHeader),
    FirstGroup(GroupHeader),
}

impl Begun {
    fn base_offset(&self) -> u64 {
        match self {
            Self::Header(header) => header.base_offset,
            Self::FirstGroup(group) => group.base_offset,
        }
    }

    fn incarnation(&self) -> u64 {
        match self {
            Self::Header(header) => header.incarnation,
            Self::FirstGroup(group) => group.incarnation,
        }
    }

    /// Whether nothing is before it: the log's first, or the first since all was discarded.
    fn begins_log(&self) -> bool {
        match self {
            Self::Header(header) => header.previous_end == 0,
            Self::FirstGroup(group) => group.chain == group.chain_after(0),
        }
    }

    /// Whether the place from which it goes on may be before the checkpoint's, at the same offset. A cut there is in the
    /// checkpoint's segment or a later one; that of the latter may look like one of the former, which costs reading.
    fn goes_on_before(&self, checkpoint: &PartitionCheckpoint) -> bool {
        match self {
            Self::Header(header) => header.previous_end < checkpoint.position,
            Self::FirstGroup(group) => group.chain != group.chain_after(checkpoint.chain),
        }
    }

    fn durable_floor(&self) -> u64 {
        match self {
            Self::Header(header) => header.durable_floor,
            Self::FirstGroup(group) => group.durable_floor,
        }
    }
}

fn begun(file: &File) -> Option<(&File, Begun)> {
    let begun = opened(file).map(Begun::Header).or(file.first.map(Begun::FirstGroup))?;
    Some((file, begun))
}

/// The segment and the cursor at its start.
fn begin(file: usize, (described, begun): (&File, Begun)) -> (Segment, Cursor) {
    let name = described.file.name;
    let base = begun.base_offset();
    let (nonce, opened_ms, chain, incarnation) = match begun {
        Begun::Header(h) => (h.nonce, h.opened_ms, Some(h.previous_chain), h.incarnation),
        Begun::FirstGroup(g) => (g.nonce, g.append_time_ms, None, g.incarnation),
    };
    let clean_until = Offset::new(described.rewritten.map_or(base, |second| second.clean_until));
    let segment = Segment {
        sequence: name.first,
        nonce,
        base: Offset::new(base),
        end_position: BLOCK,
        max_timestamp_ms: -1,
        opened_ms,
        index: Some(Index::default()),
        rewritten: name.is_rewritten().then_some(Rewritten {
            last: name.last,
            revision: name.revision,
            clean_until,
        }),
    };
    let cursor = Cursor {
        file,
        nonce,
        position: BLOCK,
        offset: base,
        chain: chain.unwrap_or(0),
        incarnation,
        trust_chain: chain.is_none(),
    };
    (segment, cursor)
}

/// Whether the block at the end of the valid chain is, or was, a group that belongs there.
fn is_remains(block: &[u8], cursor: &Cursor) -> bool {
    if let Ok(header) = GroupHeader::decode(block) {
        return header.nonce == cursor.nonce && header.incarnation >= cursor.incarnation;
    }
    let claimed = block.get(NONCE_AT).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    claimed.is_some_and(|claimed| (claimed ^ cursor.nonce).count_ones() <= NONCE_ROT_BITS_MAX)
}

fn summary_segment(summary: &SegmentSummary, end_position: u64) -> Segment {
    Segment {
        sequence: summary.sequence,
        nonce: summary.nonce,
        base: Offset::new(summary.base_offset),
        end_position,
        max_timestamp_ms: summary.max_timestamp_ms,
        opened_ms: summary.opened_ms,
        index: None,
        rewritten: None,
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
