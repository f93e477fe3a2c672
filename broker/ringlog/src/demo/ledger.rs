//! What was acknowledged, and whether a reading agrees with it.
//!
//! Owner: the writer makes the [`Ledger`] from receipts; each reading makes a [`Tally`]; the ledger makes
//! the tally that a perfect reading has. Invariants: the ledger is the only source of what is expected; a
//! digest per partition covers order, offsets, keys and values of all its records, so that two tallies that
//! agree read the same. Absent on purpose: keeping what was read.

use super::flights::Flights;
use xxhash_rust::xxh64::xxh64;

/// No record was acknowledged at this offset.
const NOTHING: u32 = u32::MAX;

/// Sequence numbers by partition and offset, from the receipts.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    partitions: Vec<Vec<u32>>,
}

impl Ledger {
    /// Nothing acknowledged yet.
    pub fn new(partitions: u32) -> Self {
        Self { partitions: vec![Vec::new(); partitions as usize] }
    }

    /// The record `sequence` was acknowledged there. Whether nothing else was.
    pub fn note(&mut self, partition: u32, offset: u64, sequence: u32) -> bool {
        let places = &mut self.partitions[partition as usize];
        let offset = offset as usize;
        if places.len() <= offset {
            places.resize(offset + 1, NOTHING);
        }
        let free = places[offset] == NOTHING;
        places[offset] = sequence;
        free
    }

    /// The offset after the last record of each partition.
    pub fn ends(&self) -> Vec<u64> {
        self.partitions.iter().map(|places| places.len() as u64).collect()
    }

    /// Offsets below an acknowledged one at which nothing was acknowledged.
    pub fn gaps(&self) -> u64 {
        self.partitions.iter().flatten().filter(|sequence| **sequence == NOTHING).count() as u64
    }

    /// Acknowledged records at or after `starts`.
    pub fn records_from(&self, starts: &[u64]) -> u64 {
        let held = self.partitions.iter().zip(starts);
        held.map(|(places, start)| (places.len() as u64).saturating_sub(*start)).sum()
    }

    /// Records below `starts` that are at or after `from_ms` all the same: a search by time must not skip
    /// any.
    pub fn missed(&self, flights: &Flights, starts: &[u64], from_ms: i64) -> u64 {
        let held = self.partitions.iter().zip(starts);
        let skipped = held.flat_map(|(places, start)| places.iter().take(*start as usize));
        let late =
            |sequence: &&u32| **sequence != NOTHING && flights.timestamp_ms(u64::from(**sequence)) >= from_ms;
        skipped.filter(late).count() as u64
    }
}

/// What a reading found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// All that was read.
    pub records: u64,
    /// Of keys and values.
    pub bytes: u64,
    /// Read before in this reading.
    pub duplicated: u64,
    /// Behind a later record of the same key.
    pub out_of_order: u64,
    /// Without a number, or with one that was never given.
    pub unknown: u64,
    /// One per partition.
    digests: Vec<u64>,
    /// One bit per sequence number.
    seen: Vec<u64>,
    /// By key: the last sequence number, plus one.
    last_of_key: Vec<u64>,
    total: u64,
}

impl Tally {
    /// Nothing read yet.
    pub fn new(flights: &Flights, partitions: u32) -> Self {
        let total = flights.total_records();
        Self {
            records: 0,
            bytes: 0,
            duplicated: 0,
            out_of_order: 0,
            unknown: 0,
            digests: vec![0; partitions as usize],
            seen: vec![0; total.div_ceil(64) as usize],
            last_of_key: vec![0; flights.keys() as usize],
            total,
        }
    }

    /// What a perfect reading of everything at or after `starts` finds.
    pub fn expected(flights: &Flights, ledger: &Ledger, starts: &[u64]) -> Self {
        let mut tally = Self::new(flights, ledger.partitions.len() as u32);
        for ((partition, places), start) in (0..).zip(&ledger.partitions).zip(starts) {
            for (offset, sequence) in (0..).zip(places).skip(*start as usize) {
                if *sequence != NOTHING {
                    let record = flights.record(u64::from(*sequence));
                    tally.note(
                        flights,
                        partition,
                        offset,
                        Some(u64::from(*sequence)),
                        &record.key,
                        &record.value,
                    );
                }
            }
        }
        tally
    }

    /// One record, as it was read.
    pub fn note(
        &mut self,
        flights: &Flights,
        partition: u32,
        offset: u64,
        sequence: Option<u64>,
        key: &[u8],
        value: &[u8],
    ) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        if let Some(digest) = self.digests.get_mut(partition as usize) {
            *digest = xxh64(value, xxh64(key, *digest ^ offset));
        }
        let Some(sequence) = sequence.filter(|sequence| *sequence < self.total) else {
            self.unknown += 1;
            return;
        };
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        let last = &mut self.last_of_key[flights.key_id(sequence) as usize];
        if *last > sequence {
            self.out_of_order += 1;
        }
        *last = (*last).max(sequence + 1);
    }

    /// Records of `expected` that are not in this reading.
    pub fn lost(&self, expected: &Tally) -> u64 {
        let missing = expected.seen.iter().zip(&self.seen).map(|(expected, seen)| expected & !seen);
        missing.map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Records of this reading that are not in `expected`, without those that have no number.
    pub fn extra(&self, expected: &Tally) -> u64 {
        expected.lost(self)
    }

    /// Partitions whose records differ from `expected` in any way.
    pub fn differing_partitions(&self, expected: &Tally) -> u64 {
        self.digests.iter().zip(&expected.digests).filter(|(one, other)| one != other).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offset, sequence and what stands in the value's place, in one partition.
    type Read<'a> = (u64, Option<u64>, Option<&'a [u8]>);

    #[test]
    fn a_reading_is_judged() {
        let flights = Flights::load(1);
        let mut ledger = Ledger::new(1);
        // Records 0, 1 and 27003 share no key; 155 lines of 'NA' give two that do.
        let same = (1..27_004).find(|other| flights.key_id(*other) == flights.key_id(0)).unwrap();
        let sequences = [0, 1, same, 27_003];
        for (offset, sequence) in (0..).zip(sequences) {
            assert!(ledger.note(0, offset, sequence as u32));
        }
        let good: Vec<Read<'_>> =
            (0..).zip(sequences).map(|(at, sequence)| (at, Some(sequence), None)).collect();
        let changed = |change: &dyn Fn(&mut Vec<Read<'static>>)| {
            let mut reads: Vec<Read<'static>> =
                (0..).zip(sequences).map(|(at, sequence)| (at, Some(sequence), None)).collect();
            change(&mut reads);
            reads
        };
        // (what was read; lost, extra, duplicated, out of order, unknown, differing partitions)
        let rows = [
            (good, [0, 0, 0, 0, 0, 0]),
            (changed(&|reads| reads.truncate(3)), [1, 0, 0, 0, 0, 1]),
            (changed(&|reads| reads.push((4, Some(1), None))), [0, 0, 1, 0, 0, 1]),
            (changed(&|reads| reads.push((4, Some(2), None))), [0, 1, 0, 0, 0, 1]),
            (changed(&|reads| reads.swap(0, 2)), [0, 0, 0, 1, 0, 1]),
            (changed(&|reads| reads[1].1 = None), [1, 0, 0, 0, 1, 0]),
            (changed(&|reads| reads[1].1 = Some(27_004)), [1, 0, 0, 0, 1, 0]),
            (changed(&|reads| reads[1].2 = Some(b"other")), [0, 0, 0, 0, 0, 1]),
            (changed(&|reads| reads[1].0 = 7), [0, 0, 0, 0, 0, 1]),
        ];
        let expected = Tally::expected(&flights, &ledger, &[0]);
        assert_eq!(expected.records, 4);
        for (row, (reads, expect)) in rows.into_iter().enumerate() {
            let mut tally = Tally::new(&flights, 1);
            for (offset, sequence, value) in reads {
                // What stands in the record, whatever its number says.
                let truth = flights.record(sequence.filter(|sequence| *sequence < 27_004).unwrap_or(1));
                let value = value.unwrap_or(&truth.value);
                tally.note(&flights, 0, offset, sequence, &truth.key, value);
            }
            let got = [
                tally.lost(&expected),
                tally.extra(&expected),
                tally.duplicated,
                tally.out_of_order,
                tally.unknown,
                tally.differing_partitions(&expected),
            ];
            assert_eq!(got, expect, "row {row}");
        }
    }

    #[test]
    fn the_ledger_knows_its_gaps_and_what_a_search_missed() {
        let flights = Flights::load(1);
        let mut ledger = Ledger::new(2);
        assert!(ledger.note(0, 0, 0) && ledger.note(0, 2, 27_003) && ledger.note(1, 0, 27_002));
        assert!(!ledger.note(0, 2, 5), "two records at one offset");
        assert!(!ledger.note(0, 2, 27_003));
        assert_eq!((ledger.gaps(), ledger.ends()), (1, vec![3, 1]));
        assert_eq!(ledger.records_from(&[1, 1]), 2);
        let late_ms = flights.timestamp_ms(27_002).min(flights.timestamp_ms(27_003));
        for (starts, missed) in [([0, 0], 0), ([2, 0], 0), ([3, 0], 1), ([3, 1], 2)] {
            assert_eq!(ledger.missed(&flights, &starts, late_ms), missed, "{starts:?}");
        }
    }
}
