//! How what is left of some segments becomes one segment.
//!
//! Owned by the task that rewrites; alive for one output. It is fed with the groups of the sources and with the
//! batches that are left of them, in order, and gives groups to write. Invariants: the groups *tile* the
//! offsets from the first source's base to the last one's end, without gaps, although batches are missing in them, so
//! that recovery and readers tell a loss from compaction; a group has batches of one leader epoch and one
//! incarnation, and epochs begin where they began; all carry the new file's nonce and a chain that begins as the
//! first source's did. Where the sources' chain ended is attested by the file's header, not by the groups.

use crate::limits::{BLOCK_BYTES, COMPACTION_GROUP_BYTES};
use crate::log::append::LogIdentity;
use crate::log::index::Index;
use schema::record_batch::Header;
use schema::segment::{GroupHeader, RewrittenHeader, SegmentHeader};

/// A group to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// For the start of its buffer.
    pub header: GroupHeader,
    /// Batches, back to back.
    pub payload: Vec<u8>,
    /// Where in the file, bytes from its start.
    pub position: u64,
}

#[derive(Debug)]
struct Open {
    base: u64,
    leader_epoch: u32,
    incarnation: u64,
    append_time_ms: i64,
    max_timestamp_ms: i64,
    batch_count: u32,
    payload: Vec<u8>,
}

/// The layout of one rewritten segment.
#[derive(Debug)]
pub struct Tiles {
    /// Of the first source, with the new nonce.
    header: SegmentHeader,
    open: Option<Open>,
    end: u64,
    chain: u64,
    position: u64,
    max_timestamp_ms: i64,
    index: Index,
}

impl Tiles {
    /// A segment in place of the one that `first` is the header of, and of those that follow it.
    pub fn new(identity: LogIdentity, first: SegmentHeader, nonce: u64) -> Self {
        assert!(
            first.topic_id == identity.partition.topic.get()
                && first.partition == identity.partition.partition.get()
                && first.generation == identity.generation,
            "log {}: a segment of another log is rewritten",
            identity.partition
        );
        Self {
            header: SegmentHeader { nonce, ..first },
            open: None,
            end: first.base_offset,
            chain: first.previous_chain,
            position: BLOCK_BYTES as u64,
            max_timestamp_ms: -1,
            index: Index::default(),
        }
    }

    /// The next group of the sources; its batches follow.
    pub fn source(&mut self, group: &GroupHeader) -> Option<Tile> {
        if let Some(open) = &mut self.open
            && (open.leader_epoch, open.incarnation) == (group.leader_epoch, group.incarnation)
        {
            // The latest counts: by it producers are remembered.
            open.append_time_ms = open.append_time_ms.max(group.append_time_ms);
            return None;
        }
        let tile = self.close(group.base_offset);
        self.open = Some(Open {
            base: self.end,
            leader_epoch: group.leader_epoch,
            incarnation: group.incarnation,
            append_time_ms: group.append_time_ms,
            max_timestamp_ms: -1,
            batch_count: 0,
            payload: Vec::new(),
        });
        tile
    }

    /// A batch that is left of the group given last.
    pub fn batch(&mut self, batch: &[u8], header: &Header) -> Option<Tile> {
        let open = self.open.as_ref().expect("a batch belongs to a group");
        let (leader_epoch, incarnation, append_time_ms) =
            (open.leader_epoch, open.incarnation, open.append_time_ms);
        let full = !open.payload.is_empty() && open.payload.len() + batch.len() > COMPACTION_GROUP_BYTES;
        let tile = if full { self.close(header.base_offset) } else { None };
        let open = self.open.get_or_insert(Open {
            base: self.end,
            leader_epoch,
            incarnation,
            append_time_ms,
            max_timestamp_ms: -1,
            batch_count: 0,
            payload: Vec::new(),
        });
        open.payload.extend_from_slice(batch);
        open.batch_count += 1;
        if header.record_count > 0 {
            open.max_timestamp_ms = open.max_timestamp_ms.max(header.max_timestamp_ms);
        }
        tile
    }

    /// Ends the open group at offset `end`.
    fn close(&mut self, end: u64) -> Option<Tile> {
        let open = self.open.take()?;
        assert!(end >= open.base, "a group from {} ends at {end}", open.base);
        if open.payload.is_empty() && end == open.base {
            return None;
        }
        let mut header = GroupHeader {
            nonce: self.header.nonce,
            incarnation: open.incarnation,
            topic_id: self.header.topic_id,
            partition: self.header.partition,
            generation: self.header.generation,
            sequence: self.header.sequence,
            leader_epoch: open.leader_epoch,
            base_offset: open.base,
            end_offset: end,
            payload_bytes: open.payload.len() as u32,
            batch_count: open.batch_count,
            max_timestamp_ms: open.max_timestamp_ms,
            append_time_ms: open.append_time_ms,
            durable_floor: open.base,
            chain: 0,
            payload_crc: schema::crc::of(&open.payload),
        };
        header.chain = header.chain_after(self.chain);
        self.chain = header.chain;
        self.end = end;
        let position = self.position;
        self.index.note(crate::ids::Offset::new(open.base), position, self.max_timestamp_ms);
        self.max_timestamp_ms = self.max_timestamp_ms.max(open.max_timestamp_ms);
        self.position += header.disk_bytes();
        Some(Tile { header, payload: open.payload, position })
    }

    /// The last group, which ends where the last source did: at least one group covers every offset.
    pub fn last(&mut self, end_offset: u64) -> Option<Tile> {
        let tile = self.close(end_offset);
        assert!(
            self.end == end_offset,
            "segment {} rewritten up to {}, its sources end at {end_offset}",
            self.header.sequence,
            self.end
        );
        tile
    }

    /// The headers for block 0 once all groups are written. `sources` is what the last source attests.
    pub fn headers(&self, sources: &SourcesEnd) -> (SegmentHeader, RewrittenHeader) {
        let header = SegmentHeader {
            // Everything in it is durable before it gets its name.
            durable_floor: self.end,
            opened_ms: sources.opened_ms,
            ..self.header
        };
        let rewritten = RewrittenHeader {
            nonce: self.header.nonce,
            last_sequence: sources.last_sequence,
            revision: sources.revision,
            end_offset: self.end,
            end_position: self.position,
            source_end: sources.position,
            end_chain: sources.chain,
            clean_until: sources.clean_until.min(self.end),
            max_timestamp_ms: self.max_timestamp_ms,
        };
        (header, rewritten)
    }

    /// Where its groups end so far, bytes from the file's start.
    pub fn end_position(&self) -> u64 {
        self.position
    }

    /// The sparse index of its groups.
    pub fn index(&self) -> &Index {
        &self.index
    }
}

/// Where the sources of a rewritten segment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcesEnd {
    /// The last number that they stood for.
    pub last_sequence: u64,
    /// The number of this rewriting.
    pub revision: u32,
    /// What the next segment's `previous_end` says.
    pub position: u64,
    /// What the next segment's `previous_chain` says.
    pub chain: u64,
    /// Below this offset every key stands once in the log.
    pub clean_until: u64,
    /// When the log rolled into the last of them, milliseconds since 1970.
    pub opened_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionIndex, TopicId, TopicPartition};
    use schema::record_batch::{BatchBuilder, set_base_offset};
    use schema::segment::SegmentState;

    fn header() -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Open,
            nonce: 5,
            incarnation: 1,
            topic_id: 1,
            partition: 0,
            generation: 0,
            sequence: 4,
            base_offset: 100,
            previous_end: 8192,
            previous_chain: 77,
            durable_floor: 90,
            opened_ms: 3,
        }
    }

    fn source(base: u64, end: u64, leader_epoch: u32, incarnation: u64) -> GroupHeader {
        GroupHeader {
            nonce: 5,
            incarnation,
            topic_id: 1,
            partition: 0,
            generation: 0,
            sequence: 4,
            leader_epoch,
            base_offset: base,
            end_offset: end,
            payload_bytes: 0,
            batch_count: 1,
            max_timestamp_ms: 0,
            append_time_ms: 9,
            durable_floor: 0,
            chain: 0,
            payload_crc: 0,
        }
    }

    fn batch(base: u64, bytes: usize) -> (Vec<u8>, Header) {
        let mut builder = BatchBuilder::new();
        builder.append(1000 + base as i64, Some(b"k"), Some(&vec![7; bytes]), &[]);
        let mut batch = builder.finish();
        set_base_offset(&mut batch, base);
        let header = Header::decode(&batch).unwrap();
        (batch, header)
    }

    /// Groups of sources and batches that are left (offset, bytes); the tiles as (base, end, epoch, batches).
    type Row<'a> = (&'a [(u64, u64, u32, u64, &'a [(u64, usize)])], &'a [(u64, u64, u32, u32)]);

    #[test]
    fn groups_tile_their_offsets() {
        const LARGE: usize = COMPACTION_GROUP_BYTES - 50;
        let rows: [Row; 6] = [
            // Nothing is left: the offsets are still accounted for.
            (&[(100, 110, 1, 1, &[]), (110, 200, 1, 1, &[])], &[(100, 200, 1, 0)]),
            (
                &[(100, 110, 1, 1, &[(105, 10)]), (110, 200, 1, 1, &[(111, 10), (150, 10)])],
                &[(100, 200, 1, 3)],
            ),
            // An epoch begins where it began, whatever is left of it.
            (
                &[(100, 110, 1, 1, &[(105, 10)]), (110, 120, 2, 1, &[]), (120, 200, 3, 1, &[(130, 10)])],
                &[(100, 110, 1, 1), (110, 120, 2, 0), (120, 200, 3, 1)],
            ),
            // So does an incarnation; an open group that changes neither leaves no trace.
            (
                &[
                    (100, 110, 1, 1, &[(105, 10)]),
                    (110, 110, 1, 1, &[]),
                    (110, 110, 1, 2, &[]),
                    (110, 200, 1, 2, &[]),
                ],
                &[(100, 110, 1, 1), (110, 200, 1, 0)],
            ),
            (
                &[(100, 200, 1, 1, &[(105, 10), (120, LARGE), (130, 10)])],
                &[(100, 120, 1, 1), (120, 130, 1, 1), (130, 200, 1, 1)],
            ),
            (&[(100, 100, 1, 2, &[]), (100, 200, 1, 2, &[(199, 1)])], &[(100, 200, 1, 1)]),
        ];
        let identity = LogIdentity {
            partition: TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(0) },
            generation: 0,
        };
        for (n, (sources, expect)) in rows.into_iter().enumerate() {
            let mut tiles = Tiles::new(identity, header(), 6);
            let mut out = Vec::new();
            for (base, end, epoch, incarnation, batches) in sources {
                out.extend(tiles.source(&source(*base, *end, *epoch, *incarnation)));
                for (base, bytes) in *batches {
                    let (batch, header) = batch(*base, *bytes);
                    out.extend(tiles.batch(&batch, &header));
                }
            }
            out.extend(tiles.last(200));
            let found: Vec<_> = out
                .iter()
                .map(|t| {
                    (t.header.base_offset, t.header.end_offset, t.header.leader_epoch, t.header.batch_count)
                })
                .collect();
            assert_eq!(found, expect, "row {n}");
            let (mut chain, mut position) = (77, BLOCK_BYTES as u64);
            for tile in &out {
                assert_eq!((tile.header.nonce, tile.position), (6, position), "row {n}");
                assert_eq!(tile.header.chain, tile.header.chain_after(chain), "row {n}");
                assert!(tile.header.payload_is_sound(&tile.payload), "row {n}");
                chain = tile.header.chain;
                position += tile.header.disk_bytes();
            }
            let end = SourcesEnd {
                last_sequence: 6,
                revision: 2,
                position: 12_288,
                chain: 99,
                clean_until: 500,
                opened_ms: 8,
            };
            let (own, rewritten) = tiles.headers(&end);
            assert_eq!((own.nonce, own.previous_chain, own.durable_floor, own.opened_ms), (6, 77, 200, 8));
            assert_eq!(
                (rewritten.end_position, rewritten.end_offset, rewritten.clean_until),
                (position, 200, 200)
            );
        }
    }
}
