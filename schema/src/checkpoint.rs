//! A shard's checkpoint on disk: where each of its partitions stood, so that recovery need not read
//! what was written before.
//!
//! A checkpoint only ever claims what was durable when it was made; recovery continues from there. Two
//! files alternate; the one with the higher generation and a sound checksum counts. Little-endian,
//! padded with zeros to whole blocks.

use crate::segment::BLOCK_BYTES;

const MAGIC: u32 = u32::from_le_bytes(*b"RLCP");
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 56;
const CRC_AT: usize = 8;
const PARTITION_BYTES: usize = 80;
const SEGMENT_BYTES: usize = 48;
const EPOCH_BYTES: usize = 16;

/// Why bytes are not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Shorter than its header or than its header says.
    #[error("truncated")]
    Truncated,
    /// Not a checkpoint.
    #[error("no magic number")]
    Magic,
    /// Written by a newer build.
    #[error("format version {0}, this build reads {VERSION}")]
    Version(u16),
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
    /// A sound checksum over what cannot be, see [`PartitionCheckpoint::is_consistent`].
    #[error("it contradicts itself about partition {partition} of topic {topic_id:032x}")]
    Contradiction {
        /// The topic.
        topic_id: u128,
        /// The partition.
        partition: u32,
    },
}

/// What all partitions of a shard looked like at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rises with every checkpoint of the shard.
    pub generation: u64,
    /// The identity of the data directory that it belongs to.
    pub storage_uuid: u128,
    /// Whether it was made by an orderly shutdown.
    pub clean: bool,
    /// In any order.
    pub partitions: Vec<PartitionCheckpoint>,
}

/// One partition's durable state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionCheckpoint {
    /// The topic.
    pub topic_id: u128,
    /// The partition.
    pub partition: u32,
    /// The replica generation.
    pub generation: u32,
    /// The log's incarnation.
    pub incarnation: u64,
    /// The first offset that is still served.
    pub log_start: u64,
    /// Every offset below is durable; the end of the group that ends at `position`.
    pub durable_end: u64,
    /// Where that group ends in the last of `segments`, bytes.
    pub position: u64,
    /// The chain up to there.
    pub chain: u64,
    /// Oldest first; the last one is the one appended to.
    pub segments: Vec<SegmentSummary>,
    /// (leader epoch, its first offset), oldest first.
    pub epochs: Vec<(u32, u64)>,
}

/// What need not be read from a segment again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentSummary {
    /// The number in the file's name.
    pub sequence: u64,
    /// Its nonce.
    pub nonce: u64,
    /// The offset of its first record.
    pub base_offset: u64,
    /// Where its groups end, bytes from its start.
    pub end_position: u64,
    /// The largest timestamp in it, milliseconds; -1 without records.
    pub max_timestamp_ms: i64,
    /// When the log rolled into it, milliseconds since 1970.
    pub opened_ms: i64,
}

impl Checkpoint {
    /// The file's bytes, whole blocks.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        for partition in &self.partitions {
            out.extend_from_slice(&partition.topic_id.to_le_bytes());
            out.extend_from_slice(&partition.partition.to_le_bytes());
            out.extend_from_slice(&partition.generation.to_le_bytes());
            for value in [
                partition.incarnation,
                partition.log_start,
                partition.durable_end,
                partition.position,
                partition.chain,
                partition.segments.len() as u64,
                partition.epochs.len() as u64,
            ] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            for segment in &partition.segments {
                for value in [segment.sequence, segment.nonce, segment.base_offset, segment.end_position] {
                    out.extend_from_slice(&value.to_le_bytes());
                }
                out.extend_from_slice(&segment.max_timestamp_ms.to_le_bytes());
                out.extend_from_slice(&segment.opened_ms.to_le_bytes());
            }
            for (epoch, start) in &partition.epochs {
                out.extend_from_slice(&u64::from(*epoch).to_le_bytes());
                out.extend_from_slice(&start.to_le_bytes());
            }
        }
        let length = out.len() as u64;
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&u16::from(self.clean).to_le_bytes());
        out[16..24].copy_from_slice(&length.to_le_bytes());
        out[24..32].copy_from_slice(&self.generation.to_le_bytes());
        out[32..48].copy_from_slice(&self.storage_uuid.to_le_bytes());
        out[48..56].copy_from_slice(&(self.partitions.len() as u64).to_le_bytes());
        let crc = checksum(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        out
    }

    /// Reads and checks a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        if bytes.len() < HEADER_BYTES {
            return Err(CheckpointError::Truncated);
        }
        if bytes[..4] != MAGIC.to_le_bytes() {
            return Err(CheckpointError::Magic);
        }
        let length = u64::from_le_bytes(field(bytes, 16)?) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return Err(CheckpointError::Truncated);
        }
        let bytes = &bytes[..length];
        if checksum(bytes) != u32::from_le_bytes(field(bytes, CRC_AT)?) {
            return Err(CheckpointError::Checksum);
        }
        let version = u16::from_le_bytes(field(bytes, 4)?);
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let count = u64::from_le_bytes(field(bytes, 48)?) as usize;
        let mut at = HEADER_BYTES;
        let mut partitions = Vec::with_capacity(count.min(length / PARTITION_BYTES));
        for _ in 0..count {
            let number =
                |index: usize| Ok::<_, CheckpointError>(u64::from_le_bytes(field(bytes, at + index)?));
            let mut partition = PartitionCheckpoint {
                topic_id: u128::from_le_bytes(field(bytes, at)?),
                partition: u32::from_le_bytes(field(bytes, at + 16)?),
                generation: u32::from_le_bytes(field(bytes, at + 20)?),
                incarnation: number(24)?,
                log_start: number(32)?,
                durable_end: number(40)?,
                position: number(48)?,
                chain: number(56)?,
                segments: Vec::new(),
                epochs: Vec::new(),
            };
            let (segments, epochs) = (number(64)?, number(72)?);
            at += PARTITION_BYTES;
            for _ in 0..segments {
                let number =
                    |index: usize| Ok::<_, CheckpointError>(u64::from_le_bytes(field(bytes, at + index)?));
                partition.segments.push(SegmentSummary {
                    sequence: number(0)?,
                    nonce: number(8)?,
                    base_offset: number(16)?,
                    end_position: number(24)?,
                    max_timestamp_ms: number(32)? as i64,
                    opened_ms: number(40)? as i64,
                });
                at += SEGMENT_BYTES;
            }
            for _ in 0..epochs {
                let epoch = u64::from_le_bytes(field(bytes, at)?) as u32;
                partition.epochs.push((epoch, u64::from_le_bytes(field(bytes, at + 8)?)));
                at += EPOCH_BYTES;
            }
            if !partition.is_consistent() {
                let PartitionCheckpoint { topic_id, partition, .. } = partition;
                return Err(CheckpointError::Contradiction { topic_id, partition });
            }
            partitions.push(partition);
        }
        Ok(Self {
            generation: u64::from_le_bytes(field(bytes, 24)?),
            storage_uuid: u128::from_le_bytes(field(bytes, 32)?),
            clean: bytes[6] & 1 == 1,
            partitions,
        })
    }
}

impl PartitionCheckpoint {
    /// Whether its numbers can all be true: segments and epochs in order, ends on whole blocks, nothing above
    /// the durable end. Recovery relies on it.
    pub fn is_consistent(&self) -> bool {
        let blocks = |position: u64| position.is_multiple_of(BLOCK_BYTES as u64);
        self.log_start <= self.durable_end
            && blocks(self.position)
            && self.segments.iter().all(|segment| blocks(segment.end_position))
            && self.segments.is_sorted_by(|a, b| a.sequence < b.sequence && a.base_offset <= b.base_offset)
            && self.segments.last().is_none_or(|last| last.base_offset <= self.durable_end)
            && self.epochs.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], CheckpointError> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(CheckpointError::Truncated)
}

/// The checksum over everything, its own field counted as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[CRC_AT + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        Checkpoint {
            generation: 9,
            storage_uuid: 0xabcdef,
            clean: true,
            partitions: (0..3)
                .map(|n| PartitionCheckpoint {
                    topic_id: 77 + n,
                    partition: n as u32,
                    generation: 1,
                    incarnation: 4,
                    log_start: 10,
                    durable_end: 500,
                    position: 8192,
                    chain: 42,
                    segments: (0..n as u64)
                        .map(|s| SegmentSummary {
                            sequence: s,
                            nonce: s + 1,
                            base_offset: s * 100,
                            end_position: 4096,
                            max_timestamp_ms: -1,
                            opened_ms: 5,
                        })
                        .collect(),
                    epochs: vec![(0, 0), (3, 120)],
                })
                .collect(),
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/checkpoint_v1.bin");
        if std::env::var_os("RINGLOG_BLESS").is_some() {
            std::fs::write(golden, &bytes).unwrap();
        }
        assert!(std::fs::read(golden).unwrap() == bytes, "the format of version 1 has changed");
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), sample());
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
    }

    #[test]
    fn contradictions_are_noticed() {
        let rows: [fn(&mut PartitionCheckpoint); 7] = [
            |p| p.log_start = 501,
            |p| p.durable_end = 99,
            |p| p.position += 1,
            |p| p.segments[0].end_position = 100,
            |p| p.segments[0].base_offset = 101,
            |p| p.segments[0].sequence = 1,
            |p| p.epochs[1].0 = 0,
        ];
        for (row, change) in rows.iter().enumerate() {
            let mut checkpoint = sample();
            change(&mut checkpoint.partitions[2]);
            let found = Checkpoint::decode(&checkpoint.encode());
            assert_eq!(
                found,
                Err(CheckpointError::Contradiction { topic_id: 79, partition: 2 }),
                "row {row}"
            );
        }
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = sample().encode();
        let length = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        for at in 0..length {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Checkpoint::decode(&damaged).is_err(), "byte {at}");
            assert!(Checkpoint::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
