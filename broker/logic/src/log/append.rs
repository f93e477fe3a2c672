//! The append side of one partition's log: offsets, groups, rolling, durability.
//!
//! Owned by the partition's home shard; made by recovery or new, lives until the partition is closed.
//! The driver copies bytes and writes; this decides where they go and what they are worth.
//!
//! ```text
//! append → (pending group, driver's buffer) → seal → placement → Written(round) → durable end
//! ```
//!
//! Invariants, asserted in release too: offsets never repeat; groups are sealed in offset order and
//! placed without gaps; the durable end only covers a prefix of sealed groups; nothing above the high
//! watermark is read. Absent on purpose: clocks, files, record contents.

use crate::ids::{LeaderEpoch, Offset, TopicPartition};
use crate::limits::{BLOCK_BYTES, LOADED_INDEXES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::log::index::Index;
use crate::log::segment_name::SegmentName;
use schema::checkpoint::{PartitionCheckpoint, SegmentSummary};
use schema::segment::{GroupHeader, SegmentHeader, SegmentState, group_bytes};
use std::collections::VecDeque;
use std::ops::Range;

/// Which log this is, in every header it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogIdentity {
    /// Topic and partition.
    pub partition: TopicPartition,
    /// The replica generation: a partition removed and added again is another log.
    pub generation: u32,
}

/// The settings that appending obeys; changed while running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// `segment.bytes`.
    pub segment_bytes: u64,
    /// `segment.ms`.
    pub segment_ms: i64,
}

impl LogSettings {
    /// The size of a segment's file: what retention can remove at once is never larger.
    pub fn physical_bytes(&self) -> u64 {
        self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX).next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// A flush round of the shard, numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundId(pub u64);

/// A group that is being filled: what the log must know of the driver's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenGroup {
    /// First offset.
    pub base: Offset,
    /// One past the last.
    pub end: Offset,
    /// The epoch of its batches.
    pub leader_epoch: LeaderEpoch,
    /// Bytes of batches.
    pub payload_bytes: u32,
    /// Number of batches.
    pub batch_count: u32,
    /// Largest timestamp, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
    /// When its first batch came, milliseconds since 1970.
    pub append_time_ms: i64,
    /// CRC-32C of the batches as they go to disk.
    pub payload_crc: u32,
}

/// Where a sealed group goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The segment.
    pub sequence: u64,
    /// Bytes from its start.
    pub position: u64,
    /// Bytes to write.
    pub bytes: u64,
}

/// What sealing decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The header for the start of the group's buffer.
    pub header: GroupHeader,
    /// Where to write it.
    pub placement: Placement,
    /// The log has rolled: write this header into block 0 of the segment in the same round.
    pub opens: Option<SegmentHeader>,
    /// The segment that was left by it; its index footer can be written at `end_position`.
    pub closes: Option<u64>,
}

/// A segment must be put in place before the group can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentNeeded {
    /// The number of the file to make.
    pub sequence: u64,
    /// Its size.
    pub bytes: u64,
}

/// One file of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The number in the file's name.
    pub sequence: u64,
    /// Its nonce.
    pub nonce: u64,
    /// Offset of its first record.
    pub base: Offset,
    /// Where its sealed groups end, bytes from its start.
    pub end_position: u64,
    /// Largest timestamp in it, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
    /// When the log rolled into it, milliseconds since 1970.
    pub opened_ms: i64,
    /// `None` = on disk only: load the footer, or rebuild it by a scan.
    pub index: Option<Index>,
    /// What compaction made of it; `None` = as it was appended.
    pub rewritten: Option<Rewritten>,
}

/// What is particular about a segment that compaction has rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The last of the numbers that it stands for.
    pub last: u64,
    /// How often these offsets have been rewritten, from 1.
    pub revision: u32,
    /// Below this offset no key stands twice in the log.
    pub clean_until: Offset,
}

impl Segment {
    /// The name of its file.
    pub fn name(&self) -> SegmentName {
        let Rewritten { last, revision, .. } =
            self.rewritten.unwrap_or(Rewritten { last: self.sequence, revision: 0, clean_until: self.base });
        SegmentName { first: self.sequence, last, revision }
    }

    /// Below this offset it holds nothing that compaction has not looked at.
    pub fn clean_until(&self) -> Offset {
        self.rewritten.map_or(self.base, |rewritten| rewritten.clean_until)
    }
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    round: RoundId,
    written: bool,
    end: Offset,
    /// The log's state once this group is durable.
    durable: DurablePoint,
}

/// Where the log stood after its last durable group: what a checkpoint claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DurablePoint {
    pub(super) sequence: u64,
    pub(super) position: u64,
    pub(super) chain: u64,
}

/// The state of one partition's log.
#[derive(Debug)]
pub struct Log {
    identity: LogIdentity,
    settings: LogSettings,
    pub(super) epochs: Vec<(LeaderEpoch, Offset)>,
    pub(super) incarnation: u64,
    pub(super) log_start: Offset,
    pub(super) log_end: Offset,
    pub(super) sealed_end: Offset,
    pub(super) durable_end: Offset,
    /// Every offset below is committed; of a log with one replica this is what is durable.
    pub(super) high_watermark: Offset,
    /// Somebody else than the durable end moves the high watermark.
    replicated: bool,
    /// The highest floor that a durable group or checkpoint attests.
    pub(super) attested_end: Offset,
    pub(super) chain: u64,
    pub(super) durable_point: DurablePoint,
    pub(super) segments: VecDeque<Segment>,
    pub(super) placed: Option<(u64, u64)>,
    next_sequence: u64,
    in_flight: VecDeque<InFlight>,
    pub(super) damaged: Vec<Range<u64>>,
    /// The next group must start a new segment although this one has room.
    pub(super) roll_next: bool,
    /// The segment that the newest checkpoint on the device goes on from. Those before it are not read by
    /// a recovery, so they may be replaced. `None`: the log has been cut since.
    pub(super) checkpointed_sequence: Option<u64>,
    /// How often segments have been replaced in this life.
    pub(super) replacements: u64,
}

/// What a log starts from: the outcome of recovery, or [`LogStart::new`].
#[derive(Clone, Debug)]
pub struct LogStart {
    /// The incarnation for everything written from now on.
    pub incarnation: u64,
    /// The first offset that is served.
    pub log_start: Offset,
    /// The next offset.
    pub log_end: Offset,
    /// The chain up to there.
    pub chain: u64,
    /// Oldest first, the last one is appended to; empty for a new log.
    pub segments: Vec<Segment>,
    /// A segment that is in place and unopened: sequence and nonce.
    pub placed: Option<(u64, u64)>,
    /// The number for the next file to be made.
    pub next_sequence: u64,
    /// Leader epochs and where they began.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    /// Offsets that are lost and answered with an error.
    pub damaged: Vec<Range<u64>>,
    /// Whether appending must go on in a new segment.
    pub roll_next: bool,
}

impl LogStart {
    /// A log with nothing in it.
    pub fn new() -> Self {
        Self {
            incarnation: 1,
            log_start: Offset::new(0),
            log_end: Offset::new(0),
            chain: 0,
            segments: Vec::new(),
            placed: None,
            next_sequence: 0,
            epochs: Vec::new(),
            damaged: Vec::new(),
            roll_next: false,
        }
    }
}

impl Default for LogStart {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// A log that goes on from `start`.
    pub fn new(identity: LogIdentity, settings: LogSettings, start: LogStart) -> Self {
        let segments: VecDeque<Segment> = start.segments.into();
        let durable_point = DurablePoint {
            sequence: segments.back().map_or(0, |segment| segment.sequence),
            position: segments.back().map_or(0, |segment| segment.end_position),
            chain: start.chain,
        };
        Self {
            identity,
            settings,
            epochs: start.epochs,
            incarnation: start.incarnation,
            log_start: start.log_start,
            log_end: start.log_end,
            sealed_end: start.log_end,
            durable_end: start.log_end,
            high_watermark: start.log_end,
            replicated: false,
            attested_end: start.log_end,
            chain: start.chain,
            durable_point,
            segments,
            placed: start.placed,
            next_sequence: start.next_sequence,
            in_flight: VecDeque::new(),
            damaged: start.damaged,
            roll_next: start.roll_next,
            checkpointed_sequence: Some(0),
            replacements: 0,
        }
    }

    /// Which log this is.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }
    /// The first offset that is served.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }
    /// The next offset to be given.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }
    /// Every offset below is on this broker's device.
    pub fn durable_end(&self) -> Offset {
        self.durable_end
    }
    /// Every offset below is committed, and visible to consumers: with one replica what is durable here, else what
    /// [`Log::set_high_watermark`] said.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }
    /// Whether the log has other replicas, so that its high watermark is not its durable end.
    pub fn is_replicated(&self) -> bool {
        self.replicated
    }
    /// From now on [`Log::set_high_watermark`] alone moves the high watermark, which is `known` for now: the log's
    /// start after a restart, because what is committed does not stand on the device.
    pub fn replicate(&mut self, known: Offset) {
        assert!(
            known >= self.log_start && known <= self.durable_end,
            "log {}: replicated from {known}",
            self.identity.partition
        );
        self.replicated = true;
        self.high_watermark = known;
    }
    /// Every offset below `to` is committed. It never goes back but by a truncation.
    pub fn set_high_watermark(&mut self, to: Offset) {
        assert!(
            self.replicated && to >= self.high_watermark && to <= self.durable_end,
            "log {}: high watermark {to} after {}, durable up to {}",
            self.identity.partition,
            self.high_watermark,
            self.durable_end
        );
        self.high_watermark = to;
    }
    /// The incarnation of what is written now.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
    /// The settings in force.
    pub fn settings(&self) -> LogSettings {
        self.settings
    }
    /// Changes the settings; they count from the next group on.
    pub fn set_settings(&mut self, settings: LogSettings) {
        self.settings = settings;
    }
    /// The files, oldest first.
    pub fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }
    /// The file with this number.
    pub fn segment(&self, sequence: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.sequence < sequence);
        self.segments.get(at).filter(|segment| segment.sequence == sequence)
    }
    /// Offsets that were acknowledged and are lost.
    pub fn damaged(&self) -> &[Range<u64>] {
        &self.damaged
    }
    /// The epoch of the last batch, and the offsets where epochs began.
    pub fn epochs(&self) -> &[(LeaderEpoch, Offset)] {
        &self.epochs
    }
    /// Groups that have been sealed and are not known durable.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Where the last durable group ends: segment and position.
    pub fn durable_position(&self) -> (u64, u64) {
        (self.durable_point.sequence, self.durable_point.position)
    }

    /// Where the durable groups of a segment end, bytes from its start; 0 for one that the log has rolled into
    /// without anything durable in it. `None` for a segment that is gone.
    pub fn durable_end_position(&self, sequence: u64) -> Option<u64> {
        let end = self.segment(sequence)?.end_position;
        Some(match sequence.cmp(&self.durable_point.sequence) {
            std::cmp::Ordering::Less => end,
            std::cmp::Ordering::Equal => end.min(self.durable_point.position),
            std::cmp::Ordering::Greater => 0,
        })
    }

    /// Gives the next `records` offsets to a batch of this epoch; the first of them. The caller has seen to it
    /// that epochs do not go back.
    pub fn append(&mut self, records: u32, leader_epoch: LeaderEpoch) -> Offset {
        let base = self.log_end;
        self.append_until(base.advance(u64::from(records)), leader_epoch);
        base
    }

    /// The log ends at `end` now: a batch of this epoch was appended that has its offsets, those that compaction has
    /// left out before it included.
    pub fn append_until(&mut self, end: Offset, leader_epoch: LeaderEpoch) {
        let base = self.log_end;
        match self.epochs.last() {
            Some((last, _)) if *last == leader_epoch => {}
            last => {
                assert!(
                    last.is_none_or(|(last, _)| *last < leader_epoch),
                    "log {}: leader epoch {leader_epoch} after {last:?}",
                    self.identity.partition
                );
                self.epochs.push((leader_epoch, base));
            }
        }
        self.log_end = end;
    }

    /// Whether a group of `payload_bytes` must wait for a new segment that is not in place yet. Asked
    /// before [`Log::seal`]; `now_ms` is milliseconds since 1970.
    pub fn segment_needed(&self, payload_bytes: u32, now_ms: i64) -> Option<SegmentNeeded> {
        (self.must_roll(payload_bytes, now_ms) && self.placed.is_none()).then(|| self.next_segment())
    }

    /// The segment to put in place ahead of need: once the active one is half full and none is there.
    pub fn segment_wanted(&self) -> Option<SegmentNeeded> {
        let half_full = self
            .segments
            .back()
            .is_some_and(|active| active.end_position * 2 > self.settings.physical_bytes());
        (half_full && self.placed.is_none()).then(|| self.next_segment())
    }

    /// The file that is put in place next.
    pub fn next_segment(&self) -> SegmentNeeded {
        SegmentNeeded { sequence: self.next_sequence, bytes: self.settings.physical_bytes() }
    }

    /// Whether `sequence` is the next file to be put in place, and none is.
    pub fn awaits_segment(&self, sequence: u64) -> bool {
        self.placed.is_none() && sequence == self.next_sequence
    }

    /// The segment `sequence` is in place, durable, with this nonce.
    pub fn segment_placed(&mut self, sequence: u64, nonce: u64) {
        assert!(
            sequence == self.next_sequence && self.placed.is_none(),
            "log {}: segment {sequence} placed, expected {}",
            self.identity.partition,
            self.next_sequence
        );
        self.placed = Some((sequence, nonce));
        self.next_sequence += 1;
    }

    /// The unopened segment that is in place: sequence and nonce.
    pub fn placed(&self) -> Option<(u64, u64)> {
        self.placed
    }

    fn must_roll(&self, payload_bytes: u32, now_ms: i64) -> bool {
        let Some(active) = self.segments.back() else { return true };
        if self.roll_next {
            return true;
        }
        let empty = active.end_position <= BLOCK_BYTES as u64;
        let bytes = group_bytes(payload_bytes as usize) as u64;
        // An empty segment takes any group: one larger than the segment must land somewhere.
        let full = !empty && active.end_position + bytes > self.settings.physical_bytes();
        let old = !empty && payload_bytes > 0 && now_ms - active.opened_ms >= self.settings.segment_ms;
        full || old
    }

    /// Gives the next group its header and its place. Groups are sealed in the order of their offsets;
    /// the caller has asked [`Log::segment_needed`] first.
    pub fn seal(&mut self, group: &OpenGroup, round: RoundId, now_ms: i64) -> Sealed {
        assert!(
            group.base == self.sealed_end && group.end >= group.base && group.end <= self.log_end,
            "log {}: group {}..{} sealed after {}",
            self.identity.partition,
            group.base,
            group.end,
            self.sealed_end
        );
        let (opens, closes) = if self.must_roll(group.payload_bytes, now_ms) {
            let (header, closes) = self.roll(group.base, now_ms);
            (Some(header), closes)
        } else {
            (None, None)
        };
        let durable_floor = self.durable_end;
        let incarnation = self.incarnation;
        let identity = self.identity;
        let before = self.chain;
        let active = self.segments.back_mut().expect("a log that has rolled has a segment");
        let mut header = GroupHeader {
            nonce: active.nonce,
            incarnation,
            topic_id: identity.partition.topic.get(),
            partition: identity.partition.partition.get(),
            generation: identity.generation,
            sequence: active.sequence,
            leader_epoch: group.leader_epoch.get(),
            base_offset: group.base.get(),
            end_offset: group.end.get(),
            payload_bytes: group.payload_bytes,
            batch_count: group.batch_count,
            max_timestamp_ms: group.max_timestamp_ms,
            append_time_ms: group.append_time_ms,
            durable_floor: durable_floor.get(),
            chain: 0,
            payload_crc: group.payload_crc,
        };
        header.chain = header.chain_after(before);
        let placement = Placement {
            sequence: active.sequence,
            position: active.end_position,
            bytes: header.disk_bytes(),
        };
        if let Some(index) = &mut active.index {
            index.note(group.base, placement.position, active.max_timestamp_ms);
        }
        active.end_position += placement.bytes;
        active.max_timestamp_ms = active.max_timestamp_ms.max(group.max_timestamp_ms);
        let durable =
            DurablePoint { sequence: active.sequence, position: active.end_position, chain: header.chain };
        self.chain = header.chain;
        self.sealed_end = group.end;
        self.in_flight.push_back(InFlight { round, written: false, end: group.end, durable });
        Sealed { header, placement, opens, closes }
    }

    fn roll(&mut self, base: Offset, now_ms: i64) -> (SegmentHeader, Option<u64>) {
        let (sequence, nonce) = self.placed.take().expect("the caller has asked for the segment");
        let closes = self.segments.back().map(|active| active.sequence);
        let header = SegmentHeader {
            state: SegmentState::Open,
            nonce,
            incarnation: self.incarnation,
            topic_id: self.identity.partition.topic.get(),
            partition: self.identity.partition.partition.get(),
            generation: self.identity.generation,
            sequence,
            base_offset: base.get(),
            previous_end: self.segments.back().map_or(0, |active| active.end_position),
            previous_chain: self.chain,
            durable_floor: self.durable_end.get(),
            opened_ms: now_ms,
        };
        self.segments.push_back(Segment {
            sequence,
            nonce,
            base,
            end_position: BLOCK_BYTES as u64,
            max_timestamp_ms: -1,
            opened_ms: now_ms,
            index: Some(Index::default()),
            rewritten: None,
        });
        self.roll_next = false;
        (header, closes)
    }

    /// A round is on the device. Returns the durable end if it moved; out of order rounds are kept until
    /// the ones before them arrive, because recovery only believes an unbroken chain.
    pub fn written(&mut self, round: RoundId) -> Option<Offset> {
        for group in self.in_flight.iter_mut().filter(|group| group.round == round) {
            group.written = true;
        }
        let before = self.durable_end;
        while let Some(group) = self.in_flight.front().copied().filter(|group| group.written) {
            self.in_flight.pop_front();
            self.durable_end = group.end;
            self.durable_point = group.durable;
        }
        assert!(self.durable_end >= before && self.durable_end <= self.sealed_end);
        if !self.replicated {
            self.high_watermark = self.durable_end;
        }
        (self.durable_end > before).then_some(self.durable_end)
    }

    /// An empty group that attests the durable end, if nothing on disk does: for a log that has gone
    /// idle, so that the last acknowledged groups cannot be mistaken for a torn tail for long.
    pub fn attestation(&mut self, now_ms: i64) -> Option<OpenGroup> {
        let idle = self.in_flight.is_empty() && self.sealed_end == self.log_end;
        if !idle || self.attested_end == self.durable_end || self.segments.is_empty() {
            return None;
        }
        self.attested_end = self.durable_end;
        Some(self.empty_group(now_ms))
    }

    /// An empty group at the end of the log: opens a new incarnation after a truncation, or attests.
    pub fn empty_group(&self, now_ms: i64) -> OpenGroup {
        OpenGroup {
            base: self.sealed_end,
            end: self.sealed_end,
            leader_epoch: self.epochs.last().map_or(LeaderEpoch::new(0), |(epoch, _)| *epoch),
            payload_bytes: 0,
            batch_count: 0,
            max_timestamp_ms: -1,
            append_time_ms: now_ms,
            payload_crc: 0,
        }
    }

    /// What a checkpoint may claim now: only what is durable. Its producers are the driver's to add.
    pub fn checkpoint(&self) -> PartitionCheckpoint {
        let point = self.durable_point;
        let segments = self
            .segments
            .iter()
            .filter(|segment| segment.sequence <= point.sequence)
            .map(|segment| SegmentSummary {
                sequence: segment.sequence,
                nonce: segment.nonce,
                base_offset: segment.base.get(),
                end_position: segment.end_position,
                max_timestamp_ms: segment.max_timestamp_ms,
                opened_ms: segment.opened_ms,
            })
            .collect::<Vec<_>>();
        PartitionCheckpoint {
            topic_id: self.identity.partition.topic.get(),
            partition: self.identity.partition.partition.get(),
            generation: self.identity.generation,
            incarnation: self.incarnation,
            log_start: self.log_start.get(),
            durable_end: self.durable_end.get(),
            position: point.position,
            chain: point.chain,
            segments,
            epochs: self
                .epochs
                .iter()
                .filter(|(_, start)| *start <= self.durable_end)
                .map(|(epoch, start)| (epoch.get(), start.get()))
                .collect(),
            producers: Vec::new(),
        }
    }

    /// This checkpoint is on the device.
    pub fn checkpointed(&mut self, checkpoint: &PartitionCheckpoint) {
        if checkpoint.incarnation != self.incarnation {
            // The log was cut since it was begun.
            return;
        }
        self.attested_end = self.attested_end.max(Offset::new(checkpoint.durable_end));
        let sequence = checkpoint.segments.last().map_or(0, |segment| segment.sequence);
        self.checkpointed_sequence = self.checkpointed_sequence.max(Some(sequence));
    }

    /// Whether a segment may be replaced as far as the checkpoint on the device is concerned: a recovery would
    /// go on behind it.
    pub fn is_behind_checkpoint(&self, name: SegmentName) -> bool {
        self.checkpointed_sequence.is_some_and(|sequence| name.last < sequence)
    }

    /// Whether the log has been cut, and no checkpoint on the device knows of that: then its segments must stay, because
    /// they alone say that what the checkpoint knows of epochs and producers does not count.
    pub fn is_cut_unknown(&self) -> bool {
        self.checkpointed_sequence.is_none()
    }

    /// Below this offset, which is the log's start at least, compaction has rewritten what there is.
    pub fn rewritten_until(&self) -> Offset {
        match self.segments.partition_point(|segment| segment.rewritten.is_some()) {
            0 => self.log_start,
            at => self.segments.get(at).map_or(self.log_start, |next| next.base.max(self.log_start)),
        }
    }

    /// How often segments have been replaced: a reader who finds another number than before plans again.
    pub fn replacements(&self) -> u64 {
        self.replacements
    }

    /// Puts a rewritten segment, which is in place and durable, where its sources (by their nonces) are; those
    /// that were still there. Retention may have taken the oldest of them meanwhile; `None` if it took all.
    pub fn replace(&mut self, sources: &[u64], segment: Segment) -> Option<Vec<Segment>> {
        let first = self.segments.iter().position(|known| sources.contains(&known.nonce))?;
        let gone = sources.iter().position(|nonce| *nonce == self.segments[first].nonce)?;
        let range = first..first + sources.len() - gone;
        let (name, oldest) = (segment.name(), &self.segments[first]);
        let found = self.segments.iter().skip(first).map(|known| known.nonce);
        let after = self.segments.get(range.end);
        assert!(
            found.take(range.len()).eq(sources[gone..].iter().copied())
                && (gone == 0 && (oldest.base, oldest.sequence) == (segment.base, segment.sequence)
                    || first == 0)
                && self.segments.range(range.clone()).all(|old| name.supersedes(old.name()))
                && after.is_some_and(|after| {
                    after.sequence > name.last && after.sequence <= self.durable_point.sequence
                })
                && self.is_behind_checkpoint(name),
            "log {}: {name} put in place of {} segments from {}",
            self.identity.partition,
            range.len(),
            oldest.name()
        );
        self.replacements += 1;
        let sources = self.segments.drain(range).collect();
        self.segments.insert(first, segment);
        Some(sources)
    }

    /// The index of the sealed segment with this number and nonce has been read or rebuilt. The oldest one
    /// loaded is forgotten when there are too many.
    pub fn index_loaded(&mut self, (sequence, nonce): (u64, u64), index: Index) {
        let sealed = self.segments.len().saturating_sub(1);
        let loaded: Vec<u64> = self
            .segments
            .iter()
            .take(sealed)
            .filter(|segment| segment.index.is_some() && segment.sequence != sequence)
            .map(|segment| segment.sequence)
            .collect();
        if loaded.len() >= LOADED_INDEXES_MAX {
            self.index_dropped(loaded[0]);
        }
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.nonce == nonce) {
            segment.index = Some(index);
        }
    }

    /// Forgets the index of a sealed segment whose footer is on disk.
    pub fn index_dropped(&mut self, sequence: u64) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.sequence == sequence) {
            segment.index = None;
        }
    }

    /// Moves the log's start to `offset` and forgets the segments below it; they, oldest first. The active
    /// segment stays.
    pub fn advance_start(&mut self, offset: Offset) -> Vec<Segment> {
        assert!(
            offset <= self.high_watermark(),
            "log {}: start moved to {offset}, above the high watermark {}",
            self.identity.partition,
            self.high_watermark()
        );
        self.log_start = self.log_start.max(offset);
        let mut dropped = Vec::new();
        while self.segments.len() > 1
            && self.segments[1].base <= self.log_start
            && self.segments[0].sequence < self.durable_point.sequence
        {
            dropped.extend(self.segments.pop_front());
        }
        let start = self.log_start.get();
        self.damaged.retain(|range| range.end > start);
        dropped
    }

    /// A range has been found damaged by a read.
    pub fn note_damage(&mut self, range: Range<u64>) {
        if !self.damaged.contains(&range) {
            self.damaged.push(range);
        }
    }
}

#[cfg(test)]
#[path = "append_tests.rs"]
mod tests;
