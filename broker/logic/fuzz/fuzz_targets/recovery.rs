//! Fuzzes recovery over a small log that is made by a recipe and then damaged by it.
//!
//! Invariants, whatever the damage: recovery ends within a bounded number of reads, and without a panic;
//! what it gives is in order; offsets that an unharmed checkpoint attests are never cut off in silence. An
//! undamaged log is recovered whole, clean, and with nothing lost.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use logic::ids::{PartitionIndex, TopicId, TopicPartition};
use logic::log::{LogIdentity, SegmentName};
use logic::log::recovery::{Recovered, Recovery, SegmentFile, Tail};
use schema::checkpoint::{PartitionCheckpoint, SegmentSummary};
use schema::segment::{BLOCK_BYTES, GROUP_HEADER_BYTES, GroupHeader, SegmentHeader, SegmentState};

const TOPIC: u128 = 42;
const PARTITION: u32 = 3;
const SEGMENTS_MAX: usize = 4;
const GROUPS_MAX: usize = 8;
const READS_MAX: usize = 5000;
/// Lies have a sound checksum, so some program has written them: not the ends of the number line.
const BELIEVABLE: u64 = (1 << 48) - 1;

#[derive(Arbitrary, Debug)]
struct Group {
    records: u8,
    payload: u16,
    /// How far the floor lags.
    lag: u8,
}

#[derive(Arbitrary, Debug)]
enum Harm {
    Flip { file: u8, at: u32, bit: u8 },
    Zero { file: u8, block: u8, blocks: u8 },
    Cut { file: u8, bytes: u32 },
    Remove { file: u8 },
    /// A block of one file written over a block of another, as a misdirected write does.
    Misdirect { from: u8, from_block: u8, to: u8, to_block: u8 },
    /// A group header with sound checksums and nonsense in it.
    Lie { file: u8, group: u8, field: u8, value: u64 },
    /// The same of a segment header.
    LieAbove { file: u8, field: u8, value: u64 },
}

#[derive(Arbitrary, Debug)]
struct Recipe {
    segments: Vec<Vec<Group>>,
    /// After how many groups the checkpoint was made.
    checkpoint_after: Option<u8>,
    clean: bool,
    /// A segment that was placed ahead.
    placed: bool,
    harms: Vec<Harm>,
    /// A checkpoint with nonsense in it.
    lies: Vec<(u8, u64)>,
}

struct File {
    sequence: u64,
    bytes: Vec<u8>,
    /// Where each group stands.
    groups: Vec<usize>,
}

struct Log {
    files: Vec<File>,
    end: u64,
    checkpoint: Option<PartitionCheckpoint>,
}

/// Far from each other and from zero, as random ones are: recovery takes a nearby one for a rotten one.
fn nonce_of(sequence: u64) -> u64 {
    (sequence + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn make(recipe: &Recipe) -> Log {
    let mut files = Vec::new();
    let mut checkpoint = None;
    let mut summaries: Vec<SegmentSummary> = Vec::new();
    let (mut offset, mut floor, mut chain, mut made) = (0u64, 0u64, 0u64, 0u8);
    let mut previous_end = 0;
    // A segment is opened together with its first group.
    let segments = recipe.segments.iter().filter(|groups| !groups.is_empty());
    for (number, groups) in segments.take(SEGMENTS_MAX).enumerate() {
        let sequence = number as u64;
        let nonce = nonce_of(sequence);
        let header = SegmentHeader {
            state: SegmentState::Open,
            nonce,
            incarnation: 1,
            topic_id: TOPIC,
            partition: PARTITION,
            generation: 0,
            sequence,
            base_offset: offset,
            previous_end,
            previous_chain: chain,
            durable_floor: floor,
            opened_ms: 0,
        };
        let mut bytes = vec![0; BLOCK_BYTES];
        header.encode(&mut bytes);
        summaries.push(SegmentSummary {
            sequence,
            nonce,
            base_offset: offset,
            end_position: BLOCK_BYTES as u64,
            max_timestamp_ms: -1,
            opened_ms: 0,
        });
        let mut at = Vec::new();
        for group in groups.iter().take(GROUPS_MAX) {
            let payload: Vec<u8> = (0..usize::from(group.payload % 9000)).map(|byte| byte as u8).collect();
            floor = floor.max(offset.saturating_sub(u64::from(group.lag)));
            let mut header = GroupHeader {
                nonce,
                incarnation: 1,
                topic_id: TOPIC,
                partition: PARTITION,
                generation: 0,
                sequence,
                leader_epoch: 0,
                base_offset: offset,
                end_offset: offset + u64::from(group.records),
                payload_bytes: payload.len() as u32,
                batch_count: u32::from(group.records > 0),
                max_timestamp_ms: 5,
                append_time_ms: 5,
                durable_floor: floor,
                chain: 0,
                payload_crc: crc32c::crc32c(&payload),
            };
            header.chain = header.chain_after(chain);
            chain = header.chain;
            offset = header.end_offset;
            at.push(bytes.len());
            let start = bytes.len();
            bytes.resize(start + header.disk_bytes() as usize, 0);
            header.encode(&mut bytes[start..]);
            bytes[start + GROUP_HEADER_BYTES..][..payload.len()].copy_from_slice(&payload);
            if let Some(summary) = summaries.last_mut() {
                summary.end_position = bytes.len() as u64;
            }
            made += 1;
            if recipe.checkpoint_after == Some(made) {
                checkpoint = Some(PartitionCheckpoint {
                    topic_id: TOPIC,
                    partition: PARTITION,
                    generation: 0,
                    incarnation: 1,
                    log_start: 0,
                    durable_end: offset,
                    position: bytes.len() as u64,
                    chain,
                    segments: summaries.clone(),
                    epochs: vec![(0, 0)],
                    producers: Vec::new(),
                });
            }
        }
        previous_end = bytes.len() as u64;
        // Zeros ahead, as a prepared segment has them.
        bytes.resize(bytes.len() + 4 * BLOCK_BYTES, 0);
        files.push(File { sequence, bytes, groups: at });
    }
    if recipe.placed && !files.is_empty() {
        let header = SegmentHeader {
            state: SegmentState::Placed,
            nonce: nonce_of(files.len() as u64),
            incarnation: 1,
            topic_id: TOPIC,
            partition: PARTITION,
            generation: 0,
            sequence: files.len() as u64,
            base_offset: 0,
            previous_end: 0,
            previous_chain: 0,
            durable_floor: 0,
            opened_ms: 0,
        };
        let mut bytes = vec![0; 4 * BLOCK_BYTES];
        header.encode(&mut bytes);
        files.push(File { sequence: files.len() as u64, bytes, groups: Vec::new() });
    }
    Log { files, end: offset, checkpoint }
}

fn pick(files: &mut [File], number: u8) -> Option<&mut File> {
    let length = files.len();
    files.get_mut(usize::from(number).checked_rem(length)?)
}

fn harm(files: &mut Vec<File>, harm: &Harm) -> Option<()> {
    match *harm {
        Harm::Flip { file, at, bit } => {
            let bytes = &mut pick(files, file)?.bytes;
            let at = (at as usize).checked_rem(bytes.len())?;
            bytes[at] ^= 1 << (bit % 8);
        }
        Harm::Zero { file, block, blocks } => {
            let bytes = &mut pick(files, file)?.bytes;
            let from = (usize::from(block) * BLOCK_BYTES).min(bytes.len());
            let to = (from + usize::from(blocks) * BLOCK_BYTES).min(bytes.len());
            bytes[from..to].fill(0);
        }
        Harm::Cut { file, bytes } => {
            let file = pick(files, file)?;
            let length = file.bytes.len() + 1;
            file.bytes.truncate(bytes as usize % length);
        }
        Harm::Remove { file } => {
            let length = files.len();
            files.remove(usize::from(file).checked_rem(length)?);
        }
        Harm::Misdirect { from, from_block, to, to_block } => {
            let from = &pick(files, from)?.bytes;
            let start = (usize::from(from_block) * BLOCK_BYTES).checked_rem(from.len().max(1))?;
            let block = from.get(start..start + BLOCK_BYTES)?.to_vec();
            let to = &mut pick(files, to)?.bytes;
            let start = (usize::from(to_block) * BLOCK_BYTES).checked_rem(to.len().max(1))?;
            to.get_mut(start..start + BLOCK_BYTES)?.copy_from_slice(&block);
        }
        Harm::Lie { file, group, field, value } => {
            let file = pick(files, file)?;
            let at = *file.groups.get(usize::from(group).checked_rem(file.groups.len())?)?;
            let mut header = GroupHeader::decode(file.bytes.get(at..)?).ok()?;
            let value = value & BELIEVABLE;
            match field % 8 {
                0 => header.base_offset = value,
                1 => header.end_offset = value,
                2 => header.payload_bytes = value as u32,
                3 => header.incarnation = value,
                4 => header.durable_floor = value,
                5 => header.chain = value,
                6 => header.nonce = value,
                _ => header.batch_count = value as u32,
            }
            header.encode(file.bytes.get_mut(at..)?);
        }
        Harm::LieAbove { file, field, value } => {
            let file = pick(files, file)?;
            let mut header = SegmentHeader::decode(&file.bytes).ok()?;
            let value = value & BELIEVABLE;
            match field % 8 {
                0 => header.base_offset = value,
                1 => header.previous_end = value,
                2 => header.previous_chain = value,
                3 => header.incarnation = value,
                4 => header.durable_floor = value,
                5 => header.nonce = value,
                6 => header.opened_ms = value as i64,
                _ => header.state = SegmentState::Placed,
            }
            header.encode(&mut file.bytes);
        }
    }
    Some(())
}

fn lie(checkpoint: &mut PartitionCheckpoint, field: u8, value: u64) {
    let value = value & BELIEVABLE;
    match field % 9 {
        0 => checkpoint.durable_end = value,
        1 => checkpoint.position = value,
        2 => checkpoint.chain = value,
        3 => checkpoint.incarnation = value,
        4 => checkpoint.log_start = value,
        5 => checkpoint.segments.clear(),
        6 => checkpoint.epochs.push((value as u32, value)),
        7 => checkpoint.segments.iter_mut().for_each(|segment| segment.base_offset ^= value),
        _ => checkpoint.segments.iter_mut().for_each(|segment| segment.end_position ^= value),
    }
}

fn recover(files: &[File], checkpoint: Option<PartitionCheckpoint>, clean: bool) -> Recovered {
    let id = TopicPartition { topic: TopicId::new(TOPIC), partition: PartitionIndex::new(PARTITION) };
    let identity = LogIdentity { partition: id, generation: 0 };
    let listed: Vec<SegmentFile> = files
        .iter()
        .map(|file| SegmentFile { name: SegmentName::appended(file.sequence), bytes: file.bytes.len() as u64 })
        .collect();
    let mut recovery = Recovery::new(identity, checkpoint, clean, &listed);
    for _ in 0..READS_MAX {
        let Some(request) = recovery.need() else { return recovery.finish() };
        assert!(request.bytes > 0 && request.bytes <= 64 << 20, "{request:?}");
        let file = files.iter().find(|file| file.sequence == request.name.first).expect("a listed file");
        let from = usize::try_from(request.position).unwrap_or(usize::MAX).min(file.bytes.len());
        let to = from.saturating_add(request.bytes).min(file.bytes.len());
        recovery.feed(&file.bytes[from..to]);
    }
    panic!("recovery does not end");
}

fuzz_target!(|recipe: Recipe| {
    let Log { mut files, end, mut checkpoint } = make(&recipe);
    // An orderly shutdown writes its checkpoint at the end.
    let clean = recipe.clean && checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.durable_end == end);
    let unharmed = recover(&files, checkpoint.clone(), clean);
    assert_eq!(unharmed.start.log_end.get(), end);
    assert!(unharmed.lost.is_empty() && unharmed.start.damaged.is_empty());
    assert_eq!(unharmed.tail, Tail::Clean);

    for one in recipe.harms.iter().take(8) {
        // A harm that hits nothing is none.
        let _ = harm(&mut files, one);
    }
    let attested = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.durable_end);
    let lies = recipe.harms.iter().any(|harm| matches!(harm, Harm::Lie { .. } | Harm::LieAbove { .. }));
    let honest = recipe.lies.is_empty() && !lies;
    if let Some(checkpoint) = &mut checkpoint {
        for (field, value) in recipe.lies.iter().take(4) {
            lie(checkpoint, *field, *value);
        }
        // The storage refuses one that contradicts itself as it refuses a damaged one.
        if !checkpoint.is_consistent() {
            return;
        }
    }
    let recovered = recover(&files, checkpoint, clean);
    let start = &recovered.start;
    assert!(start.segments.is_sorted_by_key(|segment| segment.sequence));
    assert!(start.damaged.iter().chain(&recovered.lost).all(|range| range.start <= range.end));
    if honest {
        assert!(start.log_start <= start.log_end);
        assert!(start.segments.is_sorted_by_key(|segment| segment.base));
        assert!(start.log_end.get() >= attested, "{start:?} {:?}", recovered.lost);
        assert!(start.damaged.iter().all(|range| range.end <= start.log_end.get()));
    }
});
