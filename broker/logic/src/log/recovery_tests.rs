//! Recovery, row by row: a script writes a log with the real machine, loses, tears and rots bytes of it,
//! and recovers. Each row says what the last recovery of its script found.
//!
//! A script is words: `a3` writes a group of three records and has it acknowledged, `f3` leaves it in
//! flight though written, `l3` in flight and lost, `t3` in flight and torn behind its first sector; `A`
//! and `T` do so with 1.5 MiB. `E` attests, `R` lets the next group roll, `H` besides loses the header of
//! the segment that it rolls into, `P` places a segment ahead, `S0` does so with the file of segment 0. `C` takes a checkpoint, `Q` one of an
//! orderly end, `O` loses the newest. `W0.2` rewrites segments 0 to 2 into one, `w0.2` leaves their files there. `D3` moves the log's start to 3 and removes files, `K3` moves it and the files stay.
//! `X3` cuts the log at offset 3, `G3` discards all and begins at 3, durably, and the files that go stay in the directory; `U3` and `g3` crash before the header is written.
//! `x0.2` rots the header in block 2 of segment 0, `n0.2` its nonce, `y0.2` its payload, `z0.2` zeroes the
//! block, `-1` removes segment 1. `!` recovers and goes on from there.

use super::*;
use crate::ids::{PartitionIndex, TopicId, TopicPartition};
use crate::log::append::{Log, LogSettings, OpenGroup, RoundId};
use crate::log::tiles::{SourcesEnd, Tiles};
use crate::log::truncation::{Cut, CutAt};
use schema::segment::GROUP_HEADER_BYTES;
use std::collections::BTreeMap;

const IDENTITY: LogIdentity = LogIdentity {
    partition: TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(3) },
    generation: 2,
};
const SETTINGS: LogSettings = LogSettings { segment_bytes: 1 << 20, segment_ms: i64::MAX };

/// CRC-32C, bit by bit: another implementation than the one that is tested.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Acknowledged,
    InFlight,
    Lost,
    Torn,
}

struct Bench {
    log: Log,
    files: BTreeMap<SegmentName, Vec<u8>>,
    /// Checkpoints before the newest.
    older: Vec<PartitionCheckpoint>,
    checkpoint: Option<PartitionCheckpoint>,
    clean: bool,
    round: u64,
    nonce: u64,
    roll: bool,
    lose_header: bool,
    last: Option<Recovered>,
}

impl Bench {
    fn new() -> Self {
        Self {
            log: Log::new(IDENTITY, SETTINGS, LogStart::new()),
            files: BTreeMap::new(),
            older: Vec::new(),
            checkpoint: None,
            clean: false,
            round: 0,
            nonce: 0x1234_5678_9abc_def0,
            roll: false,
            lose_header: false,
            last: None,
        }
    }

    fn put(&mut self, sequence: u64, position: u64, bytes: &[u8]) {
        let name = self.name(sequence);
        let file = self.files.get_mut(&name).expect("a file that is in place");
        let end = position as usize + bytes.len();
        if file.len() < end {
            file.resize(end.next_multiple_of(BLOCK_BYTES), 0);
        }
        file[position as usize..end].copy_from_slice(bytes);
    }

    fn place(&mut self, sequence: u64) {
        self.place_over(sequence, vec![0; 16 * BLOCK_BYTES]);
    }

    /// Places a segment in a file with these bytes.
    fn place_over(&mut self, sequence: u64, file: Vec<u8>) {
        self.nonce =
            self.nonce.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let header = SegmentHeader {
            state: SegmentState::Placed,
            nonce: self.nonce,
            incarnation: self.log.incarnation(),
            topic_id: IDENTITY.partition.topic.get(),
            partition: IDENTITY.partition.partition.get(),
            generation: IDENTITY.generation,
            sequence,
            base_offset: 0,
            previous_end: 0,
            previous_chain: 0,
            durable_floor: 0,
            opened_ms: 0,
        };
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(&mut block);
        self.files.insert(SegmentName::appended(sequence), file);
        self.put(sequence, 0, &block);
        self.log.segment_placed(sequence, self.nonce);
    }

    fn write(&mut self, group: OpenGroup, payload: &[u8], fate: Fate) {
        if std::mem::take(&mut self.roll) {
            self.log.set_settings(LogSettings { segment_ms: 0, ..SETTINGS });
        }
        if let Some(needed) = self.log.segment_needed(group.payload_bytes, 1000) {
            self.place(needed.sequence);
        }
        self.round += 1;
        let sealed = self.log.seal(&group, RoundId(self.round), 1000);
        self.log.set_settings(SETTINGS);
        let mut bytes = vec![0; sealed.placement.bytes as usize];
        sealed.header.encode(&mut bytes);
        bytes[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        if let Some(header) = sealed.opens
            && !std::mem::take(&mut self.lose_header)
        {
            let mut block = vec![0; BLOCK_BYTES];
            header.encode(&mut block);
            self.put(sealed.placement.sequence, 0, &block);
        }
        let kept = match fate {
            Fate::Acknowledged | Fate::InFlight => bytes.len(),
            // The header's bytes and zeros where the payload should be.
            Fate::Torn => GROUP_HEADER_BYTES,
            Fate::Lost => 0,
        };
        self.put(sealed.placement.sequence, sealed.placement.position, &bytes[..kept]);
        if fate == Fate::Acknowledged {
            self.log.written(RoundId(self.round));
        }
    }

    fn group(&mut self, records: u32, payload_bytes: usize, fate: Fate) {
        let base = self.log.log_end().get();
        let payload: Vec<u8> = (0..payload_bytes).map(|at| (at as u64 * 7 + base) as u8 | 1).collect();
        self.group_of(records, &payload, fate);
    }

    fn group_of(&mut self, records: u32, payload: &[u8], fate: Fate) {
        let epoch = LeaderEpoch::new(1);
        let base = self.log.append(records, epoch);
        let group = OpenGroup {
            base,
            end: base.advance(u64::from(records)),
            leader_epoch: epoch,
            payload_bytes: payload.len() as u32,
            batch_count: 1,
            max_timestamp_ms: 500,
            append_time_ms: 1000,
            payload_crc: crc32c(payload),
        };
        self.write(group, payload, fate);
    }

    /// Where the log is cut for `to`, and how many bytes of the group there stay.
    fn cut_place(&self, to: u64) -> (Cut, usize, GroupHeader) {
        let after = self.log.segments().partition_point(|segment| segment.base.get() <= to);
        let segment = &self.log.segments()[after - 1];
        let file = &self.files[&segment.name()];
        let mut cut = Cut {
            sequence: segment.sequence,
            position: BLOCK,
            offset: segment.base,
            chain: SegmentHeader::decode(file).expect("its header").previous_chain,
            max_timestamp_ms: -1,
        };
        loop {
            let group = GroupHeader::decode(&file[cut.position as usize..]).expect("a group");
            if group.base_offset >= to {
                return (cut, 0, group);
            }
            if group.end_offset > to {
                return (cut, group.payload_bytes as usize / 2, group);
            }
            cut.position += group.disk_bytes();
            cut.offset = Offset::new(group.end_offset);
            cut.chain = group.chain;
            cut.max_timestamp_ms = cut.max_timestamp_ms.max(group.max_timestamp_ms);
            if cut.position >= segment.end_position {
                return (cut, 0, group);
            }
        }
    }

    fn cut(&mut self, to: u64, anew: bool, finished: bool) {
        if self.log.placed().is_none() {
            self.place(self.log.next_segment().sequence);
        }
        let end = Offset::new(to);
        let (at, mut rest, payload) = match anew {
            true => {
                let rest = OpenGroup { base: end, end, ..self.log.empty_group(1000) };
                (CutAt::Nothing(end), rest, Vec::new())
            }
            false => {
                let (cut, kept, group) = self.cut_place(to);
                let from = cut.position as usize + GROUP_HEADER_BYTES;
                let name = self.name(cut.sequence);
                let payload = self.files[&name][from..from + kept].to_vec();
                let rest = OpenGroup {
                    base: cut.offset,
                    end,
                    leader_epoch: LeaderEpoch::new(group.leader_epoch),
                    payload_bytes: kept as u32,
                    batch_count: u32::from(kept > 0),
                    ..self.log.empty_group(1000)
                };
                (CutAt::Group(cut), rest, payload)
            }
        };
        rest.payload_crc = crc32c(&payload);
        let plan = self.log.plan_cut(at, &rest, 1000);
        let mut bytes = vec![0; plan.group.disk_bytes() as usize];
        plan.group.encode(&mut bytes);
        bytes[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        self.put(plan.opens.sequence, BLOCK, &bytes);
        if finished {
            let mut block = vec![0; BLOCK_BYTES];
            plan.opens.encode(&mut block);
            self.put(plan.opens.sequence, 0, &block);
            self.log.cut(at, &plan);
            assert_eq!((self.log.log_end(), self.log.durable_end()), (end, end));
        }
    }

    /// The file of a segment: of several the one that counts.
    fn name(&self, sequence: u64) -> SegmentName {
        let of = self.files.keys().filter(|name| name.first == sequence);
        of.max_by_key(|name| name.revision).copied().expect("a file of this number")
    }

    /// Rewrites segments into one of which no batch is left; `remove` = the sources' names are gone.
    fn rewrite(&mut self, first: u64, last: u64, remove: bool) {
        let sources: Vec<Segment> = self
            .log
            .segments()
            .iter()
            .filter(|segment| (first..=last).contains(&segment.sequence))
            .cloned()
            .collect();
        let next = self.log.segments().iter().find(|segment| segment.sequence > last).expect("one behind");
        let end = next.base.get();
        let next = SegmentHeader::decode(&self.files[&next.name()]).expect("its header");
        let (oldest, newest) = (&sources[0], &sources[sources.len() - 1]);
        let head = SegmentHeader::decode(&self.files[&oldest.name()]).expect("its header");
        let mut tiles = Tiles::new(IDENTITY, head, 4000 + first + last);
        let mut out = Vec::new();
        for source in &sources {
            let mut at = BLOCK_BYTES;
            while (at as u64) < source.end_position {
                let group = GroupHeader::decode(&self.files[&source.name()][at..]).expect("a group");
                out.extend(tiles.source(&group));
                at += group.disk_bytes() as usize;
            }
        }
        out.extend(tiles.last(end));
        let ends = SourcesEnd {
            last_sequence: newest.name().last,
            revision: 1 + sources.iter().map(|source| source.name().revision).max().unwrap_or(0),
            position: next.previous_end,
            chain: next.previous_chain,
            clean_until: end,
            opened_ms: newest.opened_ms,
        };
        let (head, second) = tiles.headers(&ends);
        let mut file = vec![0; tiles.end_position() as usize];
        head.encode(&mut file);
        second.encode(&mut file);
        for tile in out {
            tile.header.encode(&mut file[tile.position as usize..]);
        }
        let segment = Segment {
            nonce: head.nonce,
            end_position: second.end_position,
            rewritten: Some(Rewritten {
                last: ends.last_sequence,
                revision: ends.revision,
                clean_until: Offset::new(end),
            }),
            ..oldest.clone()
        };
        self.files.insert(segment.name(), file);
        let nonces: Vec<u64> = sources.iter().map(|source| source.nonce).collect();
        for source in self.log.replace(&nonces, segment).expect("they are there") {
            if remove {
                self.files.remove(&source.name());
            }
        }
    }

    fn recover(&mut self) {
        let files: Vec<SegmentFile> = self
            .files
            .iter()
            .map(|(name, bytes)| SegmentFile { name: *name, bytes: bytes.len() as u64 })
            .collect();
        let mut recovery = Recovery::new(IDENTITY, self.checkpoint.clone(), self.clean, &files);
        let mut reads = 0;
        while let Some(request) = recovery.need() {
            let file = &self.files[&request.name];
            let from = (request.position as usize).min(file.len());
            recovery.feed(&file[from..file.len().min(from + request.bytes)]);
            reads += 1;
            assert!(reads < 10_000, "recovery reads for ever");
        }
        let recovered = recovery.finish();
        self.log = Log::new(IDENTITY, SETTINGS, recovered.start.clone());
        (self.roll, self.lose_header, self.clean) = (false, false, false);
        if recovered.must_open {
            let group = self.log.empty_group(1000);
            self.write(group, &[], Fate::Acknowledged);
        }
        for name in &recovered.discard {
            self.files.remove(name);
        }
        self.last = Some(recovered);
    }

    fn word(&mut self, word: &str) {
        let (verb, rest) = word.split_at(1);
        let number = || rest.parse::<u64>().expect("a number");
        let place = || {
            let (sequence, block) = rest.split_once('.').expect("segment.block");
            (sequence.parse::<u64>().unwrap(), block.parse::<usize>().unwrap() * BLOCK_BYTES)
        };
        match verb {
            "a" => self.group(number() as u32, 300, Fate::Acknowledged),
            "f" => self.group(number() as u32, 300, Fate::InFlight),
            "l" => self.group(number() as u32, 300, Fate::Lost),
            "t" => self.group(number() as u32, 300, Fate::Torn),
            "A" => self.group(number() as u32, 3 << 19, Fate::Acknowledged),
            "T" => self.group(number() as u32, 3 << 19, Fate::Torn),
            "v" => self.group_of(number() as u32, &[0; 3 * BLOCK_BYTES], Fate::InFlight),
            "V" => self.group_of(number() as u32, &[0; 3 * BLOCK_BYTES], Fate::Acknowledged),
            "E" => {
                let group = self.log.attestation(1000).expect("nothing attests the end yet");
                self.write(group, &[], Fate::Acknowledged);
            }
            "R" => self.roll = true,
            "H" => self.lose_header = true,
            "P" => self.place(self.log.segments().back().map_or(0, |segment| segment.sequence + 1)),
            "S" => {
                let file = self.files.remove(&self.name(number())).expect("a file to recycle");
                self.place_over(self.log.segments().back().map_or(0, |segment| segment.sequence + 1), file);
            }
            "C" | "Q" => {
                let checkpoint = self.log.checkpoint();
                self.log.checkpointed(&checkpoint);
                self.older.extend(self.checkpoint.replace(checkpoint));
                self.clean = verb == "Q";
            }
            "D" | "K" => {
                for segment in self.log.advance_start(Offset::new(number())) {
                    if verb == "D" {
                        self.files.remove(&segment.name());
                    }
                }
            }
            "x" | "y" | "n" => {
                let (sequence, position) = place();
                let at = position
                    + if verb == "y" {
                        200
                    } else if verb == "n" {
                        17
                    } else {
                        40
                    };
                let name = self.name(sequence);
                self.files.get_mut(&name).expect("a file")[at] ^= 0x10;
            }
            "z" => {
                let (sequence, position) = place();
                let name = self.name(sequence);
                self.files.get_mut(&name).expect("a file")[position..position + BLOCK_BYTES].fill(0);
            }
            "-" => drop(self.files.remove(&self.name(number()))),
            "O" => self.checkpoint = self.older.pop(),
            "W" | "w" => {
                let (first, last) = rest.split_once('.').expect("first.last");
                self.rewrite(first.parse().unwrap(), last.parse().unwrap(), verb == "W");
            }
            "X" | "U" => self.cut(number(), false, verb == "X"),
            "G" | "g" => self.cut(number(), true, verb == "G"),
            "!" => self.recover(),
            other => panic!("{other}"),
        }
    }

    fn verdict(&self) -> String {
        let Some(recovered) = &self.last else { return String::new() };
        let start = &recovered.start;
        let mut out = format!("{}..{}", start.log_start, start.log_end);
        match recovered.tail {
            Tail::Clean => out += " clean",
            Tail::Unproven { from, until } => {
                assert_eq!(from, start.log_end);
                out += &format!(" unproven ..{}", until.map_or("?".to_owned(), |until| until.to_string()));
            }
        }
        recovered.lost.iter().for_each(|lost| out += &format!(" lost {}..{}", lost.start, lost.end));
        for name in &recovered.discard {
            out += &match name.is_rewritten() {
                true => format!(" discard {}-{}", name.first, name.last),
                false => format!(" discard {}", name.first),
            };
        }
        for (name, at) in &recovered.zeros {
            out += &format!(" zeros {}:{}..{}", name.first, at.start / BLOCK, at.end / BLOCK);
        }
        if let Some((sequence, _)) = start.placed {
            out += &format!(" placed {sequence}");
        }
        if recovered.must_open {
            out += " open";
        }
        out
    }
}

fn bench(script: &str) -> Bench {
    let mut bench = Bench::new();
    script.split_whitespace().for_each(|word| bench.word(word));
    bench
}

fn check(rows: &[(&str, &str)]) {
    for (script, expect) in rows {
        assert_eq!(&bench(script).verdict(), expect, "{script}");
    }
}

#[test]
fn clean_ends() {
    check(&[
        ("!", "0..0 clean"),
        ("P !", "0..0 clean placed 0"),
        ("a3 !", "0..3 clean"),
        ("a3 a2 E !", "0..5 clean"),
        // Not acknowledged, but whole: it stays.
        ("a3 f2 !", "0..5 clean"),
        ("a3 l2 !", "0..3 clean"),
        ("a3 P !", "0..3 clean placed 1"),
        ("a3 R a2 R a2 !", "0..7 clean"),
        // The header of the next segment is there, its first group is not.
        ("a3 R l2 !", "0..3 clean"),
        ("a3 R l2 ! a2 !", "0..5 clean"),
        // Groups larger than a read, and than a segment.
        ("A3 a1 A2 !", "0..6 clean"),
    ]);
}

#[test]
fn unproven_tails() {
    check(&[
        ("a3 t2 !", "0..3 unproven ..5 open"),
        ("a1 T3 !", "0..1 unproven ..4 open"),
        // A later round landed, an earlier one did not.
        ("a3 l2 f2 !", "0..3 unproven ..7 open"),
        ("a3 l2 l1 l1 f2 !", "0..3 unproven ..9 open"),
        ("a3 l2 R f2 !", "0..3 unproven ..7 discard 1 open"),
        ("a3 l2 R l2 !", "0..3 clean discard 1 open"),
        // The header of the segment that the log rolled into was lost, its group was not.
        ("a3 R H f2 !", "0..3 unproven ..5 discard 1 open"),
        ("H f3 !", "0..0 unproven ..3 discard 0"),
        ("H t3 ! a1 !", "0..1 clean"),
        // So was that of the first segment, and the log had rolled on meanwhile.
        ("H l3 R f2 !", "0..0 unproven ..5 discard 1 discard 0"),
        ("H f3 R f2 R f1 !", "0..0 unproven ..6 discard 1 discard 2 discard 0"),
        ("H l3 R f2 ! a1 R a1 !", "0..2 clean"),
        // Acknowledged and rotten, and nothing attests it: cannot be told from a torn write.
        ("a3 a2 y0.2 !", "0..3 unproven ..5 open"),
        ("a3 a2 x0.2 !", "0..3 unproven ..? open"),
        ("a3 a2 n0.2 !", "0..3 unproven ..? open"),
        ("a3 n0.1 !", "0..0 unproven ..? open"),
        ("a3 a2 E x0.2 x0.3 !", "0..3 unproven ..? open"),
    ]);
}

#[test]
fn what_was_cut_never_comes_back() {
    check(&[
        ("a3 l2 f2 f2 ! !", "0..3 clean"),
        ("a3 l1 f1 f1 ! a1 !", "0..4 clean"),
        // The cut group stands exactly where the log ends now, with the offset that comes next.
        ("a3 l1 l1 f1 ! a2 !", "0..5 clean"),
        ("a3 t2 ! ! !", "0..3 clean"),
        ("a3 t2 ! a1 t2 !", "0..4 unproven ..6 open"),
        // Numbers of discarded segments are not used again while their names may come back.
        ("a3 l2 R f2 ! R a1 !", "0..4 clean"),
        ("a3 R H f2 ! R a1 R a1 !", "0..5 clean"),
        // Behind a loss, too, only what was not cut is taken up.
        ("a3 l1 f1 f1 f1 ! a1 R l1 y0.3 !", "0..4 clean lost 3..4 discard 1 open"),
    ]);
}

#[test]
fn corruption_is_named_and_the_rest_is_kept() {
    check(&[
        ("a3 a2 E y0.2 !", "0..5 clean lost 3..5"),
        ("a3 a2 E x0.2 !", "0..5 clean lost 3..5"),
        ("a3 a2 E z0.2 !", "0..5 clean lost 3..5"),
        ("a3 a2 a2 a2 E y0.2 x0.3 !", "0..9 clean lost 3..7"),
        ("a3 a2 a2 a2 E y0.1 y0.3 !", "0..9 clean lost 0..3 lost 5..7"),
        ("a3 a2 R a2 y0.2 !", "0..7 clean lost 3..5"),
        ("A3 R A2 E y0.1 !", "0..5 clean lost 0..3"),
        // The end is lost and attested: the log goes on behind it, in a new segment.
        ("a3 a2 R l2 y0.2 !", "0..5 clean lost 3..5 discard 1 open"),
        ("a3 a2 R l2 y0.2 ! a2 !", "0..7 clean lost 3..5"),
        // Whole files are gone.
        ("a3 R a2 R a2 -1 !", "0..7 clean lost 3..5"),
        ("a3 R a2 R a2 C -1 !", "0..7 clean lost 3..5"),
        ("a3 R a2 C R a2 -1 !", "0..7 clean lost 3..5"),
        ("a3 C -0 !", "0..3 clean lost 0..3"),
        ("a3 C -0 ! a2 !", "3..5 clean"),
    ]);
}

#[test]
fn rotten_segment_headers() {
    check(&[
        // The first group says what the header would.
        ("a3 x0.0 !", "0..3 clean"),
        ("a3 R a2 x1.0 !", "0..5 clean"),
        ("a3 R a2 x0.0 !", "0..5 clean"),
        ("a3 R a2 R a2 x1.0 !", "0..7 clean"),
        ("a3 C x0.0 !", "0..3 clean"),
        // Nothing says what was in the file.
        ("a3 x0.0 x0.1 !", "0..0 unproven ..? discard 0"),
        ("a3 R a2 x1.0 x1.1 !", "0..3 unproven ..? discard 1 open"),
        ("a3 P x1.0 !", "0..3 unproven ..? discard 1 open"),
        ("a3 P Q x1.0 !", "0..3 clean discard 1"),
        // Not even that: what stands there is of the time before the file was recycled.
        ("a3 R a2 K3 S0 -1 x2.0 !", "0..0 unproven ..? discard 2"),
        ("a3 R a2 K3 S0 x2.0 !", "3..5 unproven ..? discard 2 open"),
        ("a3 R a2 R a2 x1.0 x1.1 !", "0..7 clean lost 3..5 discard 1"),
    ]);
}

#[test]
fn from_a_checkpoint() {
    check(&[
        ("a3 C a2 !", "0..5 clean"),
        ("a3 C R a2 R a2 !", "0..7 clean"),
        ("a3 C t2 !", "0..3 unproven ..5 open"),
        // Taken while a later group and a roll are in flight.
        ("a3 f2 C f2 !", "0..7 clean"),
        ("a3 R f2 C !", "0..5 clean"),
        ("a3 R H f2 C !", "0..3 unproven ..5 discard 1 open"),
        // Damage before it is found when it is read.
        ("a3 a2 C y0.1 a1 !", "0..6 clean"),
        ("a3 Q !", "0..3 clean"),
        ("a3 P Q !", "0..3 clean placed 1"),
        ("P Q !", "0..0 clean placed 0"),
        // An old one.
        ("a3 C l1 f1 ! a1 R a2 !", "0..6 clean"),
    ]);
}

#[test]
fn after_retention() {
    check(&[
        ("a3 R a2 D3 !", "3..5 clean"),
        // The removal was lost.
        ("a3 R a2 K3 !", "0..5 clean"),
        ("a3 R a2 K3 C !", "3..5 clean discard 0"),
        ("a3 R a2 R a2 D5 C !", "5..7 clean"),
        // Files that the checkpoint lists went after it, the active one of then too.
        ("a3 R a2 C D3 !", "3..5 clean"),
        ("a3 C R a2 D3 !", "3..5 clean"),
        ("a3 R a2 C R a2 D5 P !", "5..7 clean placed 3"),
    ]);
}

#[test]
fn a_clean_start_reads_heads_and_a_crash_not_what_was_checkpointed() {
    let read = |script: &str| bench(script).last.expect("recovered").bytes_read;
    assert_eq!(read("A3 A3 A3 Q !"), 0);
    assert_eq!(read("A3 A3 A3 P Q !"), HEAD_BYTES as u64);
    // The window behind the end and the head of the active segment, not the 4.5 MiB before.
    let after_crash = read("A3 A3 A3 R a1 C a1 !");
    assert!(after_crash <= 3 * 16 * BLOCK, "{after_crash} bytes");
}

/// Blocks that were never written read as zeros: where nothing says that a group was durable, its zeros may be such.
#[test]
fn zeros_that_may_never_have_been_written_are_named() {
    check(&[
        ("a3 v2 !", "0..5 clean zeros 0:3..6"),
        ("a3 v2 f1 v1 !", "0..7 clean zeros 0:3..6 zeros 0:8..11"),
        ("v2 R v1 !", "0..3 clean zeros 0:2..5 zeros 1:2..5"),
        // The group behind it, or the checkpoint, says that it was durable.
        ("V2 a1 v1 !", "0..4 clean zeros 0:7..10"),
        ("V2 C !", "0..2 clean"),
        ("V2 E !", "0..2 clean"),
        ("V2 !", "0..2 clean zeros 0:2..5"),
    ]);
}

#[test]
fn incarnations_rise_and_epochs_are_found_again() {
    let mut bench = bench("a3 l1 f1 !");
    assert_eq!(bench.log.incarnation(), 2);
    bench.word("!");
    assert_eq!(bench.log.incarnation(), 3);
    assert_eq!(bench.log.epochs(), &[(LeaderEpoch::new(1), Offset::new(0))]);
    // A checkpoint's incarnation counts although no group has it.
    bench.word("C");
    bench.word("!");
    assert_eq!(bench.log.incarnation(), 4);
}

/// A leader's first records of an epoch were on their way when a checkpoint was made, and are lost. Others had made a leader
/// that does not know of them, and its records from there on are of an epoch between.
#[test]
fn an_epoch_goes_with_its_records() {
    for end in ["!", "C !"] {
        let mut bench = bench("a3");
        bench.log.append(2, LeaderEpoch::new(4));
        bench.word("C");
        end.split(' ').for_each(|word| bench.word(word));
        assert_eq!(bench.log.epochs(), &[(LeaderEpoch::new(1), Offset::new(0))], "{end}");
        assert_eq!(bench.log.append(1, LeaderEpoch::new(2)), Offset::new(3), "{end}");
    }
}

#[test]
fn the_nonce_is_where_the_rot_rule_looks() {
    let bench = bench("a3");
    let block = &bench.files[&SegmentName::appended(0)][BLOCK_BYTES..2 * BLOCK_BYTES];
    let header = GroupHeader::decode(block).expect("a group");
    assert_eq!(block[NONCE_AT], header.nonce.to_le_bytes());
}

#[test]
fn cuts() {
    check(&[
        ("a3 a2 a2 X5 !", "0..5 clean"),
        ("a3 a2 a2 X5 a4 !", "0..9 clean"),
        ("a3 a2 a2 X5 a4 R a1 !", "0..10 clean"),
        // Inside a group: what is below stays.
        ("a3 a4 X5 a1 !", "0..6 clean"),
        ("a3 X1 !", "0..1 clean"),
        // It has come about, or not at all; then nothing of it is met again.
        ("a3 a4 U5 !", "0..7 clean discard 1"),
        ("a3 a4 U5 ! a1 R a1 !", "0..9 clean"),
        ("a3 P a4 U5 !", "0..7 clean discard 1"),
        ("a3 ! a4 U5 !", "0..7 clean discard 1"),
        // Below the segment that is appended to; at the begin of one, and inside.
        ("a3 R a2 R a2 X4 !", "0..4 clean discard 2"),
        ("a3 R a2 R a2 X4 a3 R a2 !", "0..9 clean discard 2"),
        ("a3 R a2 R a2 X3 !", "0..3 clean discard 2"),
        ("a3 R a2 R a2 X3 -2 a1 !", "0..4 clean"),
        ("a3 R a2 R a2 U3 !", "0..7 clean discard 3"),
        ("a3 R a2 R a2 X2 a1 !", "0..3 clean discard 1 discard 2"),
        // Again, above and below.
        ("a3 a2 a2 X5 a2 X4 !", "0..4 clean discard 1"),
        ("a3 a2 a2 X5 a2 X6 a1 !", "0..7 clean"),
        ("a3 a2 a2 X5 X5 !", "0..5 clean"),
        ("a3 a2 a2 X5 a1 X5 a1 X5 a3 !", "0..8 clean discard 2"),
        // A checkpoint of before, and one of after.
        ("a3 a2 C a2 X5 a1 !", "0..6 clean"),
        ("a3 a2 a2 C X3 !", "0..3 clean"),
        ("a3 a2 a2 C X3 a1 !", "0..4 clean"),
        ("a3 a2 a2 C U3 !", "0..7 clean discard 1"),
        ("a3 R a2 R a2 C X4 a1 !", "0..5 clean discard 2"),
        ("a3 a2 a2 C X3 a1 C a1 !", "0..5 clean"),
        ("a3 a2 a2 C X3 a1 Q !", "0..4 clean"),
        ("a3 a2 a2 C X3 a1 C a1 O !", "0..5 clean"),
        ("a3 a2 a2 C ! X3 a1 ! a1 !", "0..5 clean"),
        // A checkpoint behind the empty group of a cut, and another cut at the same offset.
        ("a3 a2 a2 X5 C a2 X5 a1 !", "0..6 clean"),
        ("a3 a2 a2 X5 C a2 X5 a1 x2.0 !", "0..6 clean discard 1"),
        ("a3 a2 a2 X5 C a2 X5 C a2 X5 !", "0..5 clean discard 2"),
        ("a3 a2 a2 X5 C a2 U5 !", "0..7 clean discard 2"),
        // What was cut does not come back, whatever rots.
        ("a3 a2 a2 X5 a1 x1.0 !", "0..6 clean"),
        ("a3 a2 a2 C X5 a1 x1.0 !", "0..6 clean"),
        ("a3 a2 a2 X5 a1 x1.1 !", "0..5 unproven ..6 open"),
        ("a3 a2 a2 X5 a1 x1.0 x1.1 !", "0..7 unproven ..? discard 1 open"),
        ("a3 a2 a2 X5 y0.2 !", "0..5 clean lost 3..5"),
        ("a3 R a2 R a2 X4 y0.1 !", "0..4 clean lost 0..3 discard 1 discard 2"),
        ("a3 a2 X3 t2 !", "0..3 unproven ..5 open"),
    ]);
}

#[test]
fn logs_that_begin_anew() {
    check(&[
        ("a3 a2 G10 !", "10..10 clean discard 0"),
        ("a3 a2 G10 a2 R a1 !", "10..13 clean discard 0"),
        ("G10 a2 !", "10..12 clean"),
        // Begun and not come about: something of ours is there.
        ("a3 a2 g10 !", "0..5 unproven ..10 discard 1 open"),
        ("a3 a2 C G10 a2 !", "10..12 clean discard 0"),
        ("a3 a2 C G10 a2 C a1 !", "10..13 clean discard 0"),
        ("a3 a2 C G10 a2 C a1 O !", "10..13 clean discard 0"),
        ("a3 a2 C g10 !", "0..5 unproven ..10 discard 1 open"),
        ("a3 a2 g4 !", "0..5 clean discard 1"),
        // Below where the log began.
        ("a3 R a3 D3 C G2 a1 !", "2..3 clean discard 1"),
        ("a3 a2 G10 a2 G4 a1 !", "4..5 clean discard 0 discard 1"),
        ("a3 a2 G10 a2 X11 a2 !", "10..13 clean discard 0"),
        ("a3 a2 C G10 a2 x1.0 !", "10..12 clean discard 0"),
    ]);
}

/// Four segments, the last two records of which stay as they are.
const FOUR: &str = "a3 R a2 R a2 R a1";

#[test]
fn rewritten_segments_stand_for_their_sources() {
    let rows = [
        ("C W0.1 !", "0..8 clean"),
        ("C W0.0 !", "0..8 clean"),
        ("C W0.1 a4 R a2 !", "0..14 clean"),
        ("C W0.1 Q !", "0..8 clean"),
        ("C W0.1 W0.2 !", "0..8 clean"),
        ("C W1.2 W0.1 !", "0..8 clean"),
        // Their names are still there.
        ("C w0.1 !", "0..8 clean discard 0 discard 1"),
        ("C w0.1 w0.2 !", "0..8 clean discard 0 discard 0-1 discard 1 discard 2"),
        ("C w0.1 Q !", "0..8 clean discard 0 discard 1"),
        // A tail is judged as ever.
        ("C W0.1 l1 f1 !", "0..8 unproven ..10 open"),
        ("C W0.1 D5 !", "5..8 clean"),
        ("C W0.1 K5 C !", "5..8 clean discard 0-1"),
        // Without the checkpoint, and with one that goes on from what has been rewritten since.
        ("C W0.1 O !", "0..8 clean"),
        ("C w0.1 O !", "0..8 clean discard 0 discard 1"),
        ("C W1.2 O !", "0..8 clean"),
        ("C W0.0 W1.2 O !", "0..8 clean"),
        ("C W0.1 W0.2 O ! a2 !", "0..10 clean"),
        ("C W0.1 ! C W0.2 ! O O !", "0..8 clean"),
        // Its header has rotted: the checkpoint knows the file, or its first group stands in.
        ("C W0.1 C x0.0 !", "0..8 clean"),
        ("C W0.1 O x0.0 !", "0..8 clean"),
        ("C W0.1 x0.0 !", "0..8 clean"),
        ("C W1.2 x1.0 !", "0..8 clean"),
        ("C W0.1 -0 !", "5..8 clean"),
        ("C W1.2 -1 !", "0..8 clean lost 3..7"),
    ];
    for (script, expect) in rows {
        assert_eq!(bench(&format!("{FOUR} {script}")).verdict(), expect, "{script}");
    }
    assert_eq!(bench("a3 C R a2 R a2 R a1 C W0.1 O !").verdict(), "0..8 clean");
    assert_eq!(bench("a3 R a2 R a2 C W0.1 O x0.0 !").verdict(), "0..7 clean");
    let names = |script: &str| {
        let log = bench(&format!("{FOUR} {script}")).log;
        log.segments().iter().map(|segment| segment.name().to_string()).collect::<Vec<_>>()
    };
    for script in ["C W0.1 W0.2", "C W0.1 W0.2 !", "C W0.1 W0.2 Q !", "C W0.1 W0.2 O !"] {
        let expect = [SegmentName { first: 0, last: 2, revision: 2 }, SegmentName::appended(3)];
        assert_eq!(names(script), expect.map(|name| name.to_string()), "{script}");
    }
    let log = bench(&format!("{FOUR} C W0.1 Q !")).log;
    assert_eq!(log.segments()[0].clean_until(), Offset::new(5));
}
