//! Where to read: a fetch offset becomes a segment and a position, or the reason why not.
//!
//! Pure look-ups on [`Log`]; the driver reads, checks and sends. Nothing at or above the high watermark
//! is ever planned.

use crate::ids::Offset;
use crate::limits::BLOCK_BYTES;
use crate::log::append::Log;

/// The answer to "where is this offset".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPlan {
    /// Start reading groups here.
    At(ReadFrom),
    /// Nothing there yet: the offset is the high watermark.
    Wait,
    /// The segment's index is not in memory, or not enough of it: load it, then plan again.
    LoadIndex {
        /// The segment.
        sequence: u64,
        /// What is looked for, if it is an offset: an index of the segment's end will do if it reaches so far back.
        offset: Option<Offset>,
    },
    /// Below the log's start or above its end.
    OutOfRange,
    /// Acknowledged once and lost: the bytes fail their checksums.
    Damaged {
        /// The first offset that is lost.
        from: Offset,
        /// The first offset after it that can be read.
        until: Offset,
    },
}

/// A place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadFrom {
    /// The segment.
    pub sequence: u64,
    /// Its nonce, which every group in it must carry.
    pub nonce: u64,
    /// Where to start: the group there is at or before the one that is looked for.
    pub position: u64,
    /// Where the segment's groups end as of now.
    pub end_position: u64,
}

/// Up to where a reader may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// The high watermark: consumers, groups, whoever asks.
    Committed,
    /// The durable end: other replicas.
    Durable,
}

/// What stands for a batch where two logs are compared: its place, epoch and checksum, hashed.
pub fn fingerprint(batch: &schema::record_batch::Header) -> u64 {
    let mix = |hash: u64, value: u64| {
        let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
    };
    let fields =
        [batch.base_offset, batch.end_offset() - 1, u64::from(batch.leader_epoch), u64::from(batch.crc)];
    fields.into_iter().fold(0, mix)
}

impl Log {
    /// Where readers of this kind stop.
    pub fn end_for(&self, below: Below) -> Offset {
        match below {
            Below::Committed => self.high_watermark(),
            Below::Durable => self.durable_end(),
        }
    }

    /// Plans a read from `offset`.
    pub fn plan_read(&self, offset: Offset, below: Below) -> ReadPlan {
        if offset < self.log_start() || offset > self.log_end() {
            return ReadPlan::OutOfRange;
        }
        if offset >= self.end_for(below) {
            return ReadPlan::Wait;
        }
        if let Some(range) = self.damaged().iter().find(|range| range.contains(&offset.get())) {
            return ReadPlan::Damaged { from: Offset::new(range.start), until: Offset::new(range.end) };
        }
        let after = self.segments().partition_point(|segment| segment.base <= offset);
        match after.checked_sub(1) {
            Some(at) => self.plan_in_segment(at, Some(offset), |index| index.position_of(offset)),
            None => ReadPlan::OutOfRange,
        }
    }

    /// Plans the search for the first record at or after `timestamp_ms`; `Wait` if there is none.
    pub fn plan_timestamp(&self, timestamp_ms: i64) -> ReadPlan {
        match self.segments().iter().position(|segment| segment.max_timestamp_ms >= timestamp_ms) {
            Some(at) => self.plan_in_segment(at, None, |index| index.position_of_timestamp(timestamp_ms)),
            None => ReadPlan::Wait,
        }
    }

    /// Plans reading on after the end of segment `sequence`.
    pub fn plan_after(&self, sequence: u64) -> Option<ReadFrom> {
        let after = self.segments().partition_point(|segment| segment.sequence <= sequence);
        self.segments().get(after).map(|segment| ReadFrom {
            sequence: segment.sequence,
            nonce: segment.nonce,
            position: BLOCK_BYTES as u64,
            end_position: segment.end_position,
        })
    }

    fn plan_in_segment(
        &self,
        at: usize,
        offset: Option<Offset>,
        find: impl Fn(&crate::log::index::Index) -> Option<u64>,
    ) -> ReadPlan {
        let segment = &self.segments()[at];
        let found = segment.index.as_ref().and_then(|index| {
            let start = index.is_whole().then_some(BLOCK_BYTES as u64);
            find(index).or(start)
        });
        match found {
            Some(position) => ReadPlan::At(ReadFrom {
                sequence: segment.sequence,
                nonce: segment.nonce,
                position,
                end_position: segment.end_position,
            }),
            None => ReadPlan::LoadIndex { sequence: segment.sequence, offset },
        }
    }
}
