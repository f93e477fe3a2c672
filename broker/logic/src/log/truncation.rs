//! Cutting a log: it ends lower, or begins anew, and nothing that was cut can come back.
//!
//! A cut is a roll: the log goes on in its next segment, whose header says where in an earlier one it goes on from, with
//! a higher incarnation. Nothing that was ever acknowledged is written over: what the cut leaves of a group inside
//! which it lies is written again as the first group of the new segment.
//!
//! ```text
//! driver walks to the Cut → Log::plan_cut → writes the first group, syncs; writes the header, syncs → Log::cut
//! ```
//!
//! The header is what counts, and stands in one sector: before it is on the device recovery finds the log as it was,
//! after it as it is now, whatever a checkpoint says. So the two syncs must be in this order, and nothing is told
//! before the second. Absent on purpose: looking for the place, which takes reading.

use crate::ids::Offset;
use crate::limits::BLOCK_BYTES;
use crate::log::append::{DurablePoint, Log, OpenGroup, Segment};
use crate::log::index::Index;
use schema::segment::{GroupHeader, SegmentHeader, SegmentState};

/// Where a log is cut: behind a whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment that holds the last group that stays as it is.
    pub sequence: u64,
    /// Where that group ends, bytes from the segment's start.
    pub position: u64,
    /// One past its last offset.
    pub offset: Offset,
    /// The chain up to there.
    pub chain: u64,
    /// The largest timestamp of what stays in the segment, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
}

/// Where a log goes on after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAt {
    /// Behind a group.
    Group(Cut),
    /// Nothing stays: the log begins at this offset.
    Nothing(Offset),
}

/// What must be on the device before a log is cut, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutPlan {
    /// The header of the first group, to be written at [`BLOCK_BYTES`] of segment `opens.sequence`.
    pub group: GroupHeader,
    /// The header of the segment, for its first block.
    pub opens: SegmentHeader,
}

impl Log {
    /// How the log is cut at `at`, and goes on with `rest`: what is left of the group behind it, or an empty group.
    /// Everything of the log is durable, nothing is pending, and the next segment is in place.
    ///
    /// # Panics
    /// If that is not so.
    pub fn plan_cut(&self, at: CutAt, rest: &OpenGroup, now_ms: i64) -> CutPlan {
        let partition = self.identity().partition;
        assert!(
            self.in_flight() == 0 && self.durable_end() == self.log_end(),
            "log {partition} cut at {} while it is written to",
            rest.end
        );
        let (sequence, nonce) = self.placed().expect("the caller has put a segment in place");
        let (base, previous_end, previous_chain) = match at {
            CutAt::Group(cut) => {
                assert!(
                    cut.offset >= self.log_start() && cut.offset <= rest.end && rest.end <= self.log_end(),
                    "log {partition}: cut at {} behind {}",
                    rest.end,
                    cut.offset
                );
                (cut.offset, cut.position, cut.chain)
            }
            CutAt::Nothing(start) => (start, 0, 0),
        };
        assert!(rest.base == base && rest.end >= base, "log {partition}: the rest begins at {}", rest.base);
        let identity = self.identity();
        let incarnation = self.incarnation() + 1;
        let opens = SegmentHeader {
            state: SegmentState::Open,
            nonce,
            incarnation,
            topic_id: partition.topic.get(),
            partition: partition.partition.get(),
            generation: identity.generation,
            sequence,
            base_offset: base.get(),
            previous_end,
            previous_chain,
            durable_floor: base.get(),
            opened_ms: now_ms,
        };
        let mut group = GroupHeader {
            nonce,
            incarnation,
            topic_id: partition.topic.get(),
            partition: partition.partition.get(),
            generation: identity.generation,
            sequence,
            leader_epoch: rest.leader_epoch.get(),
            base_offset: rest.base.get(),
            end_offset: rest.end.get(),
            payload_bytes: rest.payload_bytes,
            batch_count: rest.batch_count,
            max_timestamp_ms: rest.max_timestamp_ms,
            append_time_ms: rest.append_time_ms,
            // If the header does not follow, it must not speak of offsets that the log never had.
            durable_floor: if previous_end == 0 { 0 } else { base.get() },
            chain: 0,
            payload_crc: rest.payload_crc,
        };
        group.chain = group.chain_after(previous_chain);
        CutPlan { group, opens }
    }

    /// What `plan` says is on the device: the log is what it says. The segments that are cut off, oldest first.
    pub fn cut(&mut self, at: CutAt, plan: &CutPlan) -> Vec<Segment> {
        let end = Offset::new(plan.group.end_offset);
        let cut_off = match at {
            CutAt::Group(cut) => {
                let keep = self.segments.partition_point(|segment| segment.sequence <= cut.sequence);
                let cut_off = self.segments.split_off(keep).into();
                let last = self.segments.back_mut().expect("the segment that is cut");
                assert!(last.sequence == cut.sequence && last.rewritten.is_none(), "cut in {}", last.name());
                last.end_position = cut.position;
                last.max_timestamp_ms = cut.max_timestamp_ms;
                if let Some(index) = &mut last.index {
                    index.truncate(cut.position);
                }
                self.damaged.retain(|range| range.start < end.get());
                self.epochs.retain(|(_, start)| *start < end);
                self.high_watermark = self.high_watermark.min(end);
                cut_off
            }
            CutAt::Nothing(start) => {
                self.damaged.clear();
                self.epochs.clear();
                self.log_start = start;
                self.high_watermark = start;
                std::mem::take(&mut self.segments).into()
            }
        };
        self.placed = None;
        self.incarnation = plan.opens.incarnation;
        let mut index = Index::default();
        index.note(Offset::new(plan.group.base_offset), BLOCK_BYTES as u64, -1);
        self.segments.push_back(Segment {
            sequence: plan.opens.sequence,
            nonce: plan.opens.nonce,
            base: Offset::new(plan.opens.base_offset),
            end_position: BLOCK_BYTES as u64 + plan.group.disk_bytes(),
            max_timestamp_ms: plan.group.max_timestamp_ms,
            opened_ms: plan.opens.opened_ms,
            index: Some(index),
            rewritten: None,
        });
        self.chain = plan.group.chain;
        self.durable_point = DurablePoint {
            sequence: plan.opens.sequence,
            position: BLOCK_BYTES as u64 + plan.group.disk_bytes(),
            chain: plan.group.chain,
        };
        (self.log_end, self.sealed_end, self.durable_end) = (end, end, end);
        self.attested_end = Offset::new(plan.opens.base_offset);
        self.roll_next = false;
        // What a checkpoint says of the log as it was does not count for what it is now.
        self.checkpointed_sequence = None;
        self.replacements += 1;
        cut_off
    }
}
