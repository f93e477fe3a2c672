//! A segment on disk: one header block, then flush groups, then (once sealed) an index footer.
//!
//! ```text
//! 0      segment header, one block
//! 4096   group: header (128 B), payload (record batches, back to back), zeros to the next block
//! ...    group
//! end    footer: sparse index, only a hint
//! ```
//!
//! Everything starts on a block of 4 KiB, all numbers are little-endian, every structure carries its own
//! checksum and the nonce of its file, so that old bytes of a recycled file are never taken for new
//! ones. A *chain* runs through all groups of a partition: each group's chain is a hash over the chain
//! before it and its own identity, so a group proves everything before it. All headers fit into the
//! first 512 bytes of their block, which devices write whole or not at all.
//!
//! A segment that compaction has *rewritten* is written whole before it gets its name, so nothing of it is ever
//! torn. Behind its header stands a second one ([`RewrittenHeader`]) that says which segments it stands for and
//! where in the chain; its groups tile its offsets without gaps, though batches within them may be missing.
//!
//! Format decisions are in `docs/adr/0003-on-disk-format.md`.

/// The unit of alignment on disk, bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a group's header; the payload follows.
pub const GROUP_HEADER_BYTES: usize = 128;
/// Bytes of a segment header that carry something; the rest of its block is zeros.
pub const SEGMENT_HEADER_BYTES: usize = 128;
/// The format version that this build writes and reads.
pub const FORMAT_VERSION: u16 = 1;

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"RLSG");
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"RLGR");
const REWRITTEN_MAGIC: u32 = u32::from_le_bytes(*b"RLRW");
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"RLIX");

/// Why bytes are not the structure that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Fewer bytes than the structure has.
    #[error("{found} bytes, need {needed}")]
    Short {
        /// Bytes there.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Another kind of bytes: zeros, payload, or something foreign.
    #[error("no magic number")]
    Magic,
    /// Written by a newer build.
    #[error("format version {found}, this build reads {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The checksum does not match.
    #[error("checksum {found:08x}, computed {computed:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// A length that cannot be.
    #[error("impossible length {found}")]
    Length {
        /// As stored.
        found: u64,
    },
}

/// Whether a segment has been opened for appending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SegmentState {
    /// Put in its place ahead of need; holds no groups yet, `base_offset` and what follows are zero.
    Placed = 0,
    /// The log has rolled into it.
    Open = 1,
}

/// Block 0 of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Placed ahead, or rolled into.
    pub state: SegmentState,
    /// Drawn anew each time the file is used for another segment.
    pub nonce: u64,
    /// The log's incarnation when the header was written.
    pub incarnation: u64,
    /// The topic.
    pub topic_id: u128,
    /// The partition.
    pub partition: u32,
    /// The replica generation of the partition on this broker.
    pub generation: u32,
    /// The number in the file's name.
    pub sequence: u64,
    /// The offset of its first record.
    pub base_offset: u64,
    /// Where the groups of the segment before end, bytes from its start.
    pub previous_end: u64,
    /// The chain before the first group.
    pub previous_chain: u64,
    /// Every offset below was known durable when this was written.
    pub durable_floor: u64,
    /// When the log rolled into it, milliseconds since 1970.
    pub opened_ms: i64,
}

/// Where a rewritten segment's second header stands in block 0.
const REWRITTEN_AT: usize = SEGMENT_HEADER_BYTES;
/// Bytes of it.
const REWRITTEN_HEADER_BYTES: usize = 80;

/// What a rewritten segment attests besides its [`SegmentHeader`]: it stands for all that the segments from
/// `sequence` to `last_sequence` held between its base offset and `end_offset`, and the chain goes on behind it
/// as it did behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewrittenHeader {
    /// The nonce of the file.
    pub nonce: u64,
    /// The last segment that it stands for.
    pub last_sequence: u64,
    /// How often these offsets have been rewritten; rises.
    pub revision: u32,
    /// One past its last offset: the base offset of the segment after it.
    pub end_offset: u64,
    /// Where its own groups end, bytes from its start.
    pub end_position: u64,
    /// Where the groups of the last of its sources ended: what the next segment's `previous_end` says.
    pub source_end: u64,
    /// The chain after its sources: what the next segment's `previous_chain` says.
    pub end_chain: u64,
    /// Below this offset no key stands twice in the log.
    pub clean_until: u64,
    /// The largest timestamp in it, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
}

impl RewrittenHeader {
    /// Writes the header into `block`, behind the segment's own.
    pub fn encode(&self, block: &mut [u8]) {
        let out = &mut block[REWRITTEN_AT..REWRITTEN_AT + REWRITTEN_HEADER_BYTES];
        out.fill(0);
        let mut w = start_header(out, REWRITTEN_MAGIC, 0);
        w.put(self.revision.to_le_bytes());
        w.put(self.nonce.to_le_bytes());
        w.put(self.last_sequence.to_le_bytes());
        w.put(self.end_offset.to_le_bytes());
        w.put(self.end_position.to_le_bytes());
        w.put(self.source_end.to_le_bytes());
        w.put(self.end_chain.to_le_bytes());
        w.put(self.clean_until.to_le_bytes());
        w.put(self.max_timestamp_ms.to_le_bytes());
        finish_header(out);
    }

    /// Reads and checks the header of `block`.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentError> {
        let bytes = block.get(REWRITTEN_AT..).unwrap_or_default();
        let (mut r, _) = open_header(bytes, REWRITTEN_HEADER_BYTES, REWRITTEN_MAGIC)?;
        Ok(Self {
            revision: r.u32(),
            nonce: r.u64(),
            last_sequence: r.u64(),
            end_offset: r.u64(),
            end_position: r.u64(),
            source_end: r.u64(),
            end_chain: r.u64(),
            clean_until: r.u64(),
            max_timestamp_ms: r.i64(),
        })
    }
}

/// The first 128 bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// The nonce of the segment.
    pub nonce: u64,
    /// The log's incarnation.
    pub incarnation: u64,
    /// The topic.
    pub topic_id: u128,
    /// The partition.
    pub partition: u32,
    /// The replica generation of the partition on this broker.
    pub generation: u32,
    /// The number of the segment: with it a group says where it belongs even if the segment's header has rotted.
    pub sequence: u64,
    /// The leader epoch that its batches were appended in.
    pub leader_epoch: u32,
    /// Offset of the first record; for an empty group, where the log stands.
    pub base_offset: u64,
    /// One past the last record.
    pub end_offset: u64,
    /// Bytes of payload after the header.
    pub payload_bytes: u32,
    /// Record batches in the payload; 0 = an *open* group, which only attests.
    pub batch_count: u32,
    /// The largest timestamp of its records, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
    /// When the leader appended it, milliseconds since 1970.
    pub append_time_ms: i64,
    /// Every offset below was known durable when this was written.
    pub durable_floor: u64,
    /// The chain up to and including this group: see [`GroupHeader::chain_after`].
    pub chain: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// Bytes that a group of `payload_bytes` takes on disk.
pub const fn group_bytes(payload_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

/// Writes fields one after another into a fixed buffer.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
    }
}

/// Reads fields one after another; the caller has checked the length.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
    fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.take())
    }
    fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.take())
    }
}

/// Offset of the header checksum in segment and group headers alike: after magic, version and flags.
const CHECKSUM_AT: usize = 8;

/// The checksum of a header whose checksum field counts as zero.
fn header_checksum(header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..CHECKSUM_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &header[CHECKSUM_AT + 4..])
}

/// Checks length, magic, version and checksum of a header; a reader at its fifth field and its flags.
fn open_header(bytes: &[u8], length: usize, magic: u32) -> Result<(Reader<'_>, u16), SegmentError> {
    if bytes.len() < length {
        return Err(SegmentError::Short { found: bytes.len(), needed: length });
    }
    let mut reader = Reader { bytes: &bytes[..length], at: 0 };
    if reader.u32() != magic {
        return Err(SegmentError::Magic);
    }
    let version = reader.u16();
    let flags = reader.u16();
    let found = reader.u32();
    let computed = header_checksum(&bytes[..length]);
    if found != computed {
        return Err(SegmentError::Checksum { found, computed });
    }
    if version != FORMAT_VERSION {
        return Err(SegmentError::Version { found: version });
    }
    Ok((reader, flags))
}

fn start_header(out: &mut [u8], magic: u32, flags: u16) -> Writer<'_> {
    let mut writer = Writer { out, at: 0 };
    writer.put(magic.to_le_bytes());
    writer.put(FORMAT_VERSION.to_le_bytes());
    writer.put(flags.to_le_bytes());
    writer.put([0; 4]);
    writer
}

fn finish_header(out: &mut [u8]) {
    let checksum = header_checksum(out);
    out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
}

impl SegmentHeader {
    /// Writes the header into the start of `block`.
    pub fn encode(&self, block: &mut [u8]) {
        let out = &mut block[..SEGMENT_HEADER_BYTES];
        out.fill(0);
        let mut w = start_header(out, SEGMENT_MAGIC, self.state as u16);
        w.put(self.generation.to_le_bytes());
        w.put(self.nonce.to_le_bytes());
        w.put(self.incarnation.to_le_bytes());
        w.put(self.topic_id.to_le_bytes());
        w.put(self.partition.to_le_bytes());
        w.put([0; 4]);
        w.put(self.sequence.to_le_bytes());
        w.put(self.base_offset.to_le_bytes());
        w.put(self.previous_end.to_le_bytes());
        w.put(self.previous_chain.to_le_bytes());
        w.put(self.durable_floor.to_le_bytes());
        w.put(self.opened_ms.to_le_bytes());
        finish_header(out);
    }

    /// Reads and checks a header.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentError> {
        let (mut r, flags) = open_header(block, SEGMENT_HEADER_BYTES, SEGMENT_MAGIC)?;
        let generation = r.u32();
        let nonce = r.u64();
        let incarnation = r.u64();
        let topic_id = r.u128();
        let partition = r.u32();
        r.u32();
        Ok(Self {
            state: if flags & 1 == 1 { SegmentState::Open } else { SegmentState::Placed },
            nonce,
            incarnation,
            topic_id,
            partition,
            generation,
            sequence: r.u64(),
            base_offset: r.u64(),
            previous_end: r.u64(),
            previous_chain: r.u64(),
            durable_floor: r.u64(),
            opened_ms: r.i64(),
        })
    }
}

impl GroupHeader {
    /// Writes the header into the start of `block`.
    pub fn encode(&self, block: &mut [u8]) {
        let out = &mut block[..GROUP_HEADER_BYTES];
        out.fill(0);
        let mut w = start_header(out, GROUP_MAGIC, 0);
        w.put(self.payload_crc.to_le_bytes());
        w.put(self.nonce.to_le_bytes());
        w.put(self.incarnation.to_le_bytes());
        w.put(self.topic_id.to_le_bytes());
        w.put(self.partition.to_le_bytes());
        w.put(self.leader_epoch.to_le_bytes());
        w.put(self.base_offset.to_le_bytes());
        w.put(self.end_offset.to_le_bytes());
        w.put(self.payload_bytes.to_le_bytes());
        w.put(self.batch_count.to_le_bytes());
        w.put(self.max_timestamp_ms.to_le_bytes());
        w.put(self.append_time_ms.to_le_bytes());
        w.put(self.durable_floor.to_le_bytes());
        w.put(self.chain.to_le_bytes());
        w.put(self.sequence.to_le_bytes());
        w.put(self.generation.to_le_bytes());
        finish_header(out);
    }

    /// Reads and checks a header; the payload is checked by [`GroupHeader::payload_is_sound`].
    pub fn decode(block: &[u8]) -> Result<Self, SegmentError> {
        let (mut r, _) = open_header(block, GROUP_HEADER_BYTES, GROUP_MAGIC)?;
        let header = Self {
            payload_crc: r.u32(),
            nonce: r.u64(),
            incarnation: r.u64(),
            topic_id: r.u128(),
            partition: r.u32(),
            leader_epoch: r.u32(),
            base_offset: r.u64(),
            end_offset: r.u64(),
            payload_bytes: r.u32(),
            batch_count: r.u32(),
            max_timestamp_ms: r.i64(),
            append_time_ms: r.i64(),
            durable_floor: r.u64(),
            chain: r.u64(),
            sequence: r.u64(),
            generation: r.u32(),
        };
        if header.end_offset < header.base_offset {
            return Err(SegmentError::Length { found: header.end_offset });
        }
        Ok(header)
    }

    /// The nonce and incarnation of a block that looks like a group's start even though its checksum
    /// fails: recovery tells a damaged group of ours from old bytes by them. `None` without the magic.
    pub fn claimed_identity(block: &[u8]) -> Option<(u64, u64)> {
        if block.len() < GROUP_HEADER_BYTES || block[..4] != GROUP_MAGIC.to_le_bytes() {
            return None;
        }
        let mut r = Reader { bytes: block, at: 16 };
        Some((r.u64(), r.u64()))
    }

    /// Whether `payload` (exactly `payload_bytes` long) has the checksum of the header.
    pub fn payload_is_sound(&self, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes as usize && crc32c::crc32c(payload) == self.payload_crc
    }

    /// The chain after this group, given the chain before it: XXH64 over the chain before, offsets,
    /// epoch, incarnation and payload checksum.
    pub fn chain_after(&self, before: u64) -> u64 {
        let mut bytes = [0; 44];
        let mut w = Writer { out: &mut bytes, at: 0 };
        w.put(before.to_le_bytes());
        w.put(self.base_offset.to_le_bytes());
        w.put(self.end_offset.to_le_bytes());
        w.put(self.leader_epoch.to_le_bytes());
        w.put(self.incarnation.to_le_bytes());
        w.put(self.payload_crc.to_le_bytes());
        w.put(self.payload_bytes.to_le_bytes());
        xxhash_rust::xxh64::xxh64(&bytes, 0)
    }

    /// Bytes of the whole group on disk.
    pub fn disk_bytes(&self) -> u64 {
        group_bytes(self.payload_bytes as usize) as u64
    }
}

/// One entry of the sparse index: where a group starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The group's base offset.
    pub offset: u64,
    /// The group's place in the segment, bytes.
    pub position: u64,
    /// The largest timestamp of all groups of the segment *before* this one, milliseconds.
    pub max_timestamp_before_ms: i64,
}

const FOOTER_HEADER_BYTES: usize = 32;
const INDEX_ENTRY_BYTES: usize = 24;

/// The footer of a sealed segment: its sparse index. A hint, which can always be rebuilt.
pub struct Footer;

impl Footer {
    /// Bytes on disk for `entries`.
    pub fn disk_bytes(entries: usize) -> usize {
        (FOOTER_HEADER_BYTES + entries * INDEX_ENTRY_BYTES).next_multiple_of(BLOCK_BYTES)
    }

    /// Writes the footer into `out`, which has [`Footer::disk_bytes`] zeroed bytes.
    pub fn encode(nonce: u64, entries: &[IndexEntry], out: &mut [u8]) {
        let length = FOOTER_HEADER_BYTES + entries.len() * INDEX_ENTRY_BYTES;
        let mut w = start_header(out, FOOTER_MAGIC, 0);
        w.put((entries.len() as u32).to_le_bytes());
        w.put(nonce.to_le_bytes());
        w.put([0; 8]);
        for entry in entries {
            w.put(entry.offset.to_le_bytes());
            w.put(entry.position.to_le_bytes());
            w.put(entry.max_timestamp_before_ms.to_le_bytes());
        }
        finish_header(&mut out[..length]);
    }

    /// How many bytes a footer whose first block is `block` has; `None` if it is none of this segment.
    pub fn peek_bytes(nonce: u64, block: &[u8]) -> Option<usize> {
        if block.len() < FOOTER_HEADER_BYTES || block[..4] != FOOTER_MAGIC.to_le_bytes() {
            return None;
        }
        let mut r = Reader { bytes: block, at: 12 };
        let count = r.u32() as usize;
        (r.u64() == nonce && count < (1 << 20)).then(|| Self::disk_bytes(count))
    }

    /// Reads and checks a footer.
    pub fn decode(nonce: u64, bytes: &[u8]) -> Result<Vec<IndexEntry>, SegmentError> {
        if bytes.len() < FOOTER_HEADER_BYTES {
            return Err(SegmentError::Short { found: bytes.len(), needed: FOOTER_HEADER_BYTES });
        }
        let count = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        let length = count
            .checked_mul(INDEX_ENTRY_BYTES)
            .and_then(|entries| entries.checked_add(FOOTER_HEADER_BYTES))
            .filter(|length| *length <= bytes.len())
            .ok_or(SegmentError::Length { found: count as u64 })?;
        let (mut r, _) = open_header(bytes, length, FOOTER_MAGIC)?;
        r.u32();
        if r.u64() != nonce {
            return Err(SegmentError::Magic);
        }
        r.u64();
        Ok((0..count)
            .map(|_| IndexEntry { offset: r.u64(), position: r.u64(), max_timestamp_before_ms: r.i64() })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Open,
            nonce: 0x0102_0304_0506_0708,
            incarnation: 3,
            topic_id: 0xfeed_0000_0000_0000_0000_0000_0000_0042,
            partition: 7,
            generation: 1,
            sequence: 12,
            base_offset: 1000,
            previous_end: 65_536,
            previous_chain: 99,
            durable_floor: 998,
            opened_ms: 1_700_000_000_000,
        }
    }

    fn group(payload: &[u8]) -> GroupHeader {
        let mut header = GroupHeader {
            nonce: 0x0102_0304_0506_0708,
            incarnation: 3,
            topic_id: 0xfeed_0000_0000_0000_0000_0000_0000_0042,
            partition: 7,
            generation: 1,
            sequence: 12,
            leader_epoch: 5,
            base_offset: 1000,
            end_offset: 1003,
            payload_bytes: payload.len() as u32,
            batch_count: 1,
            max_timestamp_ms: 1_700_000_000_123,
            append_time_ms: 1_700_000_000_124,
            durable_floor: 999,
            chain: 0,
            payload_crc: crc32c::crc32c(payload),
        };
        header.chain = header.chain_after(99);
        header
    }

    /// The bytes of version 1 never change: a new version gets a new file.
    #[test]
    fn golden_bytes() {
        let payload = b"three records of a batch";
        let mut bytes = vec![0; 2 * BLOCK_BYTES];
        segment().encode(&mut bytes[..BLOCK_BYTES]);
        group(payload).encode(&mut bytes[BLOCK_BYTES..]);
        bytes[BLOCK_BYTES + GROUP_HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
        let entries = [IndexEntry { offset: 1000, position: 4096, max_timestamp_before_ms: -1 }];
        let mut footer = vec![0; Footer::disk_bytes(entries.len())];
        Footer::encode(7, &entries, &mut footer);
        bytes.extend_from_slice(&footer);

        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/segment_v1.bin");
        if std::env::var_os("RINGLOG_BLESS").is_some() {
            std::fs::write(golden, &bytes).unwrap();
        }
        assert!(std::fs::read(golden).unwrap() == bytes, "the format of version 1 has changed");
        assert_eq!(SegmentHeader::decode(&bytes).unwrap(), segment());
        let found = GroupHeader::decode(&bytes[BLOCK_BYTES..]).unwrap();
        assert_eq!(found, group(payload));
        assert!(found.payload_is_sound(payload));
        assert_eq!(found.disk_bytes(), 4096);
        assert_eq!(Footer::peek_bytes(7, &footer), Some(4096));
        assert_eq!(Footer::decode(7, &footer).unwrap(), entries);
        assert!(Footer::decode(8, &footer).is_err());
    }

    fn rewritten() -> RewrittenHeader {
        RewrittenHeader {
            nonce: 0x0102_0304_0506_0708,
            last_sequence: 19,
            revision: 3,
            end_offset: 2000,
            end_position: 40_960,
            source_end: 1 << 20,
            end_chain: 0xabcd,
            clean_until: 1990,
            max_timestamp_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn a_rewritten_segment_says_so() {
        let mut block = vec![0; BLOCK_BYTES];
        segment().encode(&mut block);
        assert!(RewrittenHeader::decode(&block).is_err(), "it has not been rewritten");
        rewritten().encode(&mut block);
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/segment_rewritten_v1.bin");
        if std::env::var_os("RINGLOG_BLESS").is_some() {
            std::fs::write(golden, &block[..256]).unwrap();
        }
        assert!(std::fs::read(golden).unwrap() == block[..256], "the format of version 1 has changed");
        assert_eq!(SegmentHeader::decode(&block).unwrap(), segment());
        assert_eq!(RewrittenHeader::decode(&block).unwrap(), rewritten());
        for bit in REWRITTEN_AT * 8..(REWRITTEN_AT + REWRITTEN_HEADER_BYTES) * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(RewrittenHeader::decode(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..REWRITTEN_AT + REWRITTEN_HEADER_BYTES {
            assert!(RewrittenHeader::decode(&block[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let mut block = vec![0; BLOCK_BYTES];
        group(b"payload").encode(&mut block);
        let mut head = vec![0; BLOCK_BYTES];
        segment().encode(&mut head);
        for bit in 0..GROUP_HEADER_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            head[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupHeader::decode(&block).is_err(), "group bit {bit}");
            assert!(SegmentHeader::decode(&head).is_err(), "segment bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
            head[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_chain_tells_every_field_apart() {
        let base = group(b"payload");
        let rows: [fn(&mut GroupHeader); 6] = [
            |g| g.base_offset -= 1,
            |g| g.end_offset += 1,
            |g| g.leader_epoch += 1,
            |g| g.incarnation += 1,
            |g| g.payload_crc ^= 1,
            |g| g.payload_bytes += 1,
        ];
        for change in rows {
            let mut other = base;
            change(&mut other);
            assert_ne!(other.chain_after(1), base.chain_after(1));
        }
        assert_ne!(base.chain_after(1), base.chain_after(2));
    }
}
