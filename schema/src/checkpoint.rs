//! A shard's checkpoint on disk: where each of its partitions stood, so that recovery need not read
//! what was written before.
//!
//! A checkpoint only ever claims what was durable when it was made; recovery continues from there. Two
//! files alternate; the one with the higher generation and a sound checksum counts. Little-endian,
//! padded with zeros to whole blocks. Version 2 adds the producers of each partition; without any, version 1
//! is written, which older builds read.

use crate::segment::BLOCK_BYTES;

const MAGIC: u32 = u32::from_le_bytes(*b"RLCP");
/// The newest that is read.
const VERSION: u16 = 2;
/// The one without producers.
const VERSION_WITHOUT_PRODUCERS: u16 = 1;
const HEADER_BYTES: usize = 56;
const CRC_AT: usize = 8;
/// Without the number of producers that version 2 has behind it.
const PARTITION_BYTES: usize = 80;
const PRODUCER_BYTES: usize = 16;
const PRODUCER_BATCH_BYTES: usize = 32;
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
    /// What the log below `durable_end` says about its producers, by rising ids.
    pub producers: Vec<ProducerSummary>,
}

/// What need not be read from the log again to recognise a producer's repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerSummary {
    /// The producer.
    pub producer_id: i64,
    /// Its newest batches, oldest first, at least one.
    pub batches: Vec<ProducerBatchSummary>,
}

/// One batch of a producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerBatchSummary {
    /// Offset of its first record.
    pub base_offset: u64,
    /// When it was appended, milliseconds since 1970.
    pub append_time_ms: i64,
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// The producer's epoch.
    pub epoch: i16,
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
        let with_producers = self.partitions.iter().any(|partition| !partition.producers.is_empty());
        let version = if with_producers { VERSION } else { VERSION_WITHOUT_PRODUCERS };
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
            if with_producers {
                out.extend_from_slice(&(partition.producers.len() as u64).to_le_bytes());
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
            for producer in &partition.producers {
                out.extend_from_slice(&producer.producer_id.to_le_bytes());
                out.extend_from_slice(&(producer.batches.len() as u64).to_le_bytes());
                for batch in &producer.batches {
                    out.extend_from_slice(&batch.base_offset.to_le_bytes());
                    out.extend_from_slice(&batch.append_time_ms.to_le_bytes());
                    out.extend_from_slice(&batch.first_sequence.to_le_bytes());
                    out.extend_from_slice(&batch.last_sequence.to_le_bytes());
                    out.extend_from_slice(&i64::from(batch.epoch).to_le_bytes());
                }
            }
        }
        let length = out.len() as u64;
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&version.to_le_bytes());
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
        if !(VERSION_WITHOUT_PRODUCERS..=VERSION).contains(&version) {
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
                producers: Vec::new(),
            };
            let (segments, epochs) = (number(64)?, number(72)?);
            at += PARTITION_BYTES;
            let mut producers = 0;
            if version > VERSION_WITHOUT_PRODUCERS {
                producers = u64::from_le_bytes(field(bytes, at)?);
                at += 8;
            }
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
            for _ in 0..producers {
                let mut producer = ProducerSummary {
                    producer_id: i64::from_le_bytes(field(bytes, at)?),
                    batches: Vec::new(),
                };
                let batches = u64::from_le_bytes(field(bytes, at + 8)?);
                at += PRODUCER_BYTES;
                for _ in 0..batches {
                    producer.batches.push(ProducerBatchSummary {
                        base_offset: u64::from_le_bytes(field(bytes, at)?),
                        append_time_ms: i64::from_le_bytes(field(bytes, at + 8)?),
                        first_sequence: i32::from_le_bytes(field(bytes, at + 16)?),
                        last_sequence: i32::from_le_bytes(field(bytes, at + 20)?),
                        epoch: i64::from_le_bytes(field(bytes, at + 24)?) as i16,
                    });
                    at += PRODUCER_BATCH_BYTES;
                }
                partition.producers.push(producer);
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
    /// Whether its numbers can all be true: segments, epochs and producers in order, ends on whole blocks, nothing above
    /// the durable end. Recovery relies on it.
    pub fn is_consistent(&self) -> bool {
        let blocks = |position: u64| position.is_multiple_of(BLOCK_BYTES as u64);
        self.log_start <= self.durable_end
            && blocks(self.position)
            && self.segments.iter().all(|segment| blocks(segment.end_position))
            && self.segments.is_sorted_by(|a, b| a.sequence < b.sequence && a.base_offset <= b.base_offset)
            && self.segments.last().is_none_or(|last| last.base_offset <= self.durable_end)
            && self.epochs.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1)
            && self.producers.is_sorted_by(|a, b| a.producer_id < b.producer_id)
            && self.producers.iter().all(|producer| producer.is_consistent(self.durable_end))
    }
}

impl ProducerSummary {
    /// Whether its numbers can all be true: nothing negative, batches in order and below the durable end.
    fn is_consistent(&self, durable_end: u64) -> bool {
        let sound = |batch: &ProducerBatchSummary| {
            batch.epoch >= 0
                && batch.first_sequence >= 0
                && batch.last_sequence >= 0
                && batch.base_offset < durable_end
        };
        self.producer_id >= 0
            && !self.batches.is_empty()
            && self.batches.iter().all(sound)
            && self.batches.is_sorted_by(|a, b| a.base_offset < b.base_offset)
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
                    producers: Vec::new(),
                })
                .collect(),
        }
    }

    /// The sample with two producers in its last partition.
    fn with_producers() -> Checkpoint {
        let batch = |base_offset, first_sequence| ProducerBatchSummary {
            base_offset,
            append_time_ms: 1_700_000_000_000,
            first_sequence,
            last_sequence: first_sequence + 9,
            epoch: 3,
        };
        let mut checkpoint = sample();
        checkpoint.partitions[2].producers = vec![
            ProducerSummary { producer_id: 5, batches: vec![batch(100, 0), batch(110, 10)] },
            ProducerSummary { producer_id: 9, batches: vec![batch(490, 70)] },
        ];
        checkpoint
    }

    #[test]
    fn golden_bytes() {
        let golden = |version| format!("{}/testdata/checkpoint_v{version}.bin", env!("CARGO_MANIFEST_DIR"));
        for (version, checkpoint) in [(1, sample()), (2, with_producers())] {
            let bytes = checkpoint.encode();
            if std::env::var_os("RINGLOG_BLESS").is_some() {
                std::fs::write(golden(version), &bytes).unwrap();
            }
            let stored = std::fs::read(golden(version)).unwrap();
            assert!(stored == bytes, "the format of version {version} has changed");
            assert_eq!(Checkpoint::decode(&bytes).unwrap(), checkpoint);
            assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        }
    }

    #[test]
    fn contradictions_are_noticed() {
        let rows: [fn(&mut PartitionCheckpoint); 13] = [
            |p| p.log_start = 501,
            |p| p.durable_end = 99,
            |p| p.position += 1,
            |p| p.segments[0].end_position = 100,
            |p| p.segments[0].base_offset = 101,
            |p| p.segments[0].sequence = 1,
            |p| p.epochs[1].0 = 0,
            |p| p.producers[0].producer_id = -1,
            |p| p.producers[0].producer_id = 9,
            |p| p.producers[1].batches.clear(),
            |p| p.producers[0].batches[0].base_offset = 110,
            |p| p.producers[1].batches[0].base_offset = 500,
            |p| p.producers[1].batches[0].first_sequence = -5,
        ];
        for (row, change) in rows.iter().enumerate() {
            let mut checkpoint = with_producers();
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
        let bytes = with_producers().encode();
        let length = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        for at in 0..length {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Checkpoint::decode(&damaged).is_err(), "byte {at}");
            assert!(Checkpoint::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
