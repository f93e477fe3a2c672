//! What a disk makes of flush rounds: their latency and bandwidth by size, number of writes and depth, with each
//! write durable by itself or all of them by one flush.
//!
//! The questions are data: a [`Shape`] per row, asked for a part of the time of a [`Thoroughness`]. Owner:
//! `ringlog doctor --disk`, and `serve` at its first start. Everything happens on pre-written blocks of two
//! files without names, so that nothing is left however the process ends. Shapes that are compared with each
//! other run by turns in short slices: a neighbour's noise meets both.
//! Invariants: a deadline bounds the whole, short of one operation that does not come back; what was not
//! measured is absent, never guessed. Absent on purpose: a judgement, which is [`crate::disk_profile`]'s.

use super::storage::{SYNC, Scratch, sync_entry, transferred, write_entry};
use super::{CeilingError, Sample, on_last_core};
use crate::aligned::AlignedBuffer;
use crate::disk_profile::{DiskFigure, DurableBy, Shape};
use crate::ring::Ring;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// A round whose writes are smaller is one of many partitions: they go to distant places. Larger ones are
/// pieces of one group.
const PIECE_BYTES: usize = 64 * KIB;

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoroughness {
    /// About a second: what the choices cannot do without.
    Short,
    /// About 15 seconds: all of it.
    Full,
}

impl Thoroughness {
    /// No case begins after this.
    fn limit(self) -> Duration {
        match self {
            Thoroughness::Short => Duration::from_millis(1200),
            Thoroughness::Full => Duration::from_secs(19),
        }
    }

    /// The written blocks that everything goes round in.
    fn scratch_bytes(self) -> usize {
        match self {
            Thoroughness::Short => 8 * MIB,
            Thoroughness::Full => 64 * MIB,
        }
    }
}

/// Shapes that run by turns, and how long each of them does.
struct Case {
    shapes: Vec<Shape>,
    each: Duration,
    slices: u32,
}

/// The cases in the order of their weight for the choices: the deadline cuts off the end.
fn cases(thoroughness: Thoroughness) -> Vec<Case> {
    use DurableBy::{Dsync, Flush};
    let shape = |durable_by, write_bytes, writes, rounds| Shape { durable_by, write_bytes, writes, rounds };
    let both = |write_bytes, writes| {
        [Dsync, Flush].map(|durable_by| shape(durable_by, write_bytes, writes, 1)).to_vec()
    };
    let depths = |write_bytes, depths: &[usize]| {
        depths.iter().map(|&rounds| shape(Dsync, write_bytes, 1, rounds)).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    let mut case = |shapes, ms, slices| {
        cases.push(Case { shapes, each: Duration::from_millis(ms), slices });
    };
    match thoroughness {
        Thoroughness::Short => {
            [1, 2, 3, 4, 8].into_iter().for_each(|writes| case(both(4 * KIB, writes), 44, 2));
            case(depths(MIB, &[1, 2, 4]), 80, 2);
            case(depths(4 * KIB, &[2, 4]), 40, 1);
        }
        Thoroughness::Full => {
            [1, 2, 3, 4, 8, 16, 32].into_iter().for_each(|writes| case(both(4 * KIB, writes), 350, 5));
            case(depths(MIB, &[1, 2, 3, 4]), 400, 4);
            case(depths(4 * KIB, &[2, 3, 4]), 350, 5);
            let pieces = [128 * KIB, 256 * KIB, 512 * KIB, MIB];
            case(pieces.map(|bytes| shape(Flush, bytes, 4 * MIB / bytes, 1)).to_vec(), 400, 4);
            for bytes in [16 * KIB, 64 * KIB, 256 * KIB] {
                case(depths(bytes, &[1, 2, 4]), 300, 3);
            }
            [16 * KIB, 64 * KIB, 256 * KIB, MIB].into_iter().for_each(|bytes| {
                case(vec![shape(Flush, bytes, 1, 1)], 300, 1);
            });
        }
    }
    cases
}

/// Measures the device of `directory` (which must exist). Gives each figure to `report` as soon as it is there,
/// with the share of all that is done, 0 to 1.
///
/// # Errors
/// The directory has no `O_DIRECT`, no room, or no io_uring.
pub fn measure(
    directory: &Path,
    thoroughness: Thoroughness,
    report: &mut (dyn FnMut(&DiskFigure, f64) + Send),
) -> Result<(), CeilingError> {
    let fail = |error: io::Error| {
        let directory = directory.to_owned();
        match error.raw_os_error() {
            Some(libc::EINVAL) => CeilingError::NoDirectIo { directory },
            _ => CeilingError::Io { what: "measuring the disk".to_owned(), directory, error },
        }
    };
    on_last_core(|| measure_here(directory, thoroughness, report)).map_err(fail)
}

fn measure_here(
    directory: &Path,
    thoroughness: Thoroughness,
    report: &mut (dyn FnMut(&DiskFigure, f64) + Send),
) -> io::Result<()> {
    let deadline = Instant::now() + thoroughness.limit();
    let bench = Bench {
        file: Scratch::nameless(directory, "disk-profile.scratch", thoroughness.scratch_bytes())?,
        flush: Scratch::nameless(directory, "disk-profile.flush", 4 * KIB)?,
    };
    let cases = cases(thoroughness);
    let all: usize = cases.iter().map(|case| case.shapes.len()).sum();
    let mut done = 0;
    for case in &cases {
        let mut samples: Vec<Sample> = case.shapes.iter().map(|_| Sample::start()).collect();
        for _ in 0..case.slices {
            if Instant::now() >= deadline {
                return Ok(());
            }
            for (shape, sample) in case.shapes.iter().zip(&mut samples) {
                sample.add(&bench.run(shape, case.each / case.slices)?);
            }
        }
        for (shape, sample) in case.shapes.iter().zip(&samples) {
            done += 1;
            report(&figure(shape, sample), done as f64 / all as f64);
        }
    }
    Ok(())
}

fn figure(shape: &Shape, sample: &Sample) -> DiskFigure {
    let quantile = |q| sample.latency_ns.value_at_quantile(q) as f64 / 1e3;
    let seconds = sample.elapsed.as_secs_f64().max(1e-9);
    DiskFigure {
        shape: *shape,
        p10_us: quantile(0.1),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        mb_s: sample.bytes as f64 / 1e6 / seconds,
        measured: sample.operations,
    }
}

impl Sample {
    /// A further slice of the same; the time between them does not count.
    fn add(&mut self, slice: &Sample) {
        self.latency_ns.add(&slice.latency_ns).expect("the same bounds");
        self.operations += slice.operations;
        self.bytes += slice.bytes;
        self.elapsed += slice.elapsed;
    }
}

/// The files of one measurement.
struct Bench {
    file: Scratch,
    flush: Scratch,
}

/// A round under way.
struct Round {
    began: Instant,
    writes_left: usize,
}

impl Bench {
    /// Where write `write` of the `number`-th round goes.
    fn offset(&self, shape: &Shape, number: usize, write: usize) -> usize {
        let Shape { write_bytes, writes, .. } = *shape;
        if write_bytes > PIECE_BYTES {
            let places = self.file.bytes / write_bytes;
            return (number * writes + write) % places * write_bytes;
        }
        let places = self.file.bytes / writes / write_bytes;
        (write * places + number % places) * write_bytes
    }

    /// Keeps the shape's rounds in flight until `duration` is over and everything is durable. As in the broker,
    /// a flush is submitted after the completions that it is to cover, and at most one is in flight.
    fn run(&self, shape: &Shape, duration: Duration) -> io::Result<Sample> {
        let Shape { durable_by, write_bytes, writes, rounds } = *shape;
        assert!(writes * rounds * write_bytes <= self.file.bytes, "{shape:?} writes over itself");
        let buffer = AlignedBuffer::patterned(write_bytes * writes);
        let mut ring = Ring::new((writes * rounds + 1) as u32)?;
        let mut under_way: Vec<Option<Round>> = (0..rounds).map(|_| None).collect();
        let mut written: VecDeque<Instant> = VecDeque::new();
        let (mut covered, mut number) = (0, 0);
        let mut sample = Sample::start();
        loop {
            let busy = under_way.iter().flatten().count() + written.len();
            let free = under_way.iter().position(Option::is_none);
            if let Some(slot) = free
                && busy < rounds
                && sample.started.elapsed() < duration
            {
                under_way[slot] = Some(Round { began: Instant::now(), writes_left: writes });
                for (write, block) in buffer.chunks_exact(write_bytes).enumerate() {
                    let offset = self.offset(shape, number, write);
                    let entry = write_entry(&self.file, block, offset, durable_by == DurableBy::Dsync, slot);
                    // SAFETY: `buffer` was declared before `ring` and is dropped after it; the kernel only reads it.
                    unsafe { ring.push(entry) };
                }
                number += 1;
                continue;
            }
            if covered == 0 && !written.is_empty() {
                covered = written.len();
                // SAFETY: a sync points to no memory.
                unsafe { ring.push(sync_entry(&self.flush)) };
            }
            if busy == 0 {
                return Ok(sample);
            }
            let (slot, result) = ring.wait()?;
            if slot == SYNC {
                transferred(result, 0)?;
                written.drain(..covered).for_each(|began| sample.finished(began, writes * write_bytes));
                covered = 0;
                continue;
            }
            transferred(result, write_bytes)?;
            let round = &mut under_way[slot as usize];
            let open = round.as_mut().expect("a write of a round that is under way");
            open.writes_left -= 1;
            if open.writes_left > 0 {
                continue;
            }
            let began = open.began;
            *round = None;
            match durable_by {
                DurableBy::Flush => written.push_back(began),
                DurableBy::Dsync => sample.finished(began, writes * write_bytes),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::beside_this_test;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn shapes_are_asked_once_and_fit_their_time_and_file() {
        for (thoroughness, seconds) in [(Thoroughness::Short, 0.5..1.2), (Thoroughness::Full, 10.0..19.0)] {
            let cases = cases(thoroughness);
            let shapes: Vec<Shape> = cases.iter().flat_map(|case| case.shapes.clone()).collect();
            assert_eq!(shapes.iter().collect::<HashSet<_>>().len(), shapes.len(), "{thoroughness:?}");
            let total: f64 =
                cases.iter().map(|case| case.each.as_secs_f64() * case.shapes.len() as f64).sum();
            assert!(seconds.contains(&total), "{thoroughness:?}: {total} s");
            for shape in shapes {
                let bytes = shape.write_bytes * shape.writes * shape.rounds;
                assert!(bytes <= thoroughness.scratch_bytes(), "{shape:?}");
            }
        }
    }

    #[test]
    fn rounds_are_counted_and_their_writes_do_not_meet() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        let nameless = |bytes| Scratch::nameless(directory.path(), "scratch", bytes);
        let file = match nameless(2 * MIB) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            file => file.unwrap(),
        };
        let bench = Bench { file, flush: nameless(4 * KIB).unwrap() };
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "they have no names");
        let rows = [
            (DurableBy::Dsync, 4 * KIB, 1, 1),
            (DurableBy::Dsync, 4 * KIB, 3, 4),
            (DurableBy::Flush, 4 * KIB, 8, 1),
            (DurableBy::Flush, 4 * KIB, 2, 3),
            (DurableBy::Flush, 256 * KIB, 4, 2),
            (DurableBy::Dsync, MIB, 1, 2),
        ];
        for (durable_by, write_bytes, writes, rounds) in rows {
            let shape = Shape { durable_by, write_bytes, writes, rounds };
            let mut sample = bench.run(&shape, Duration::from_millis(5)).unwrap();
            assert!(sample.operations >= rounds as u64, "{shape:?}");
            assert_eq!(sample.bytes, sample.operations * (write_bytes * writes) as u64, "{shape:?}");
            for number in 0..1000 {
                let window =
                    (number..number + rounds).flat_map(|number| (0..writes).map(move |w| (number, w)));
                let places: HashSet<usize> = window.map(|(n, w)| bench.offset(&shape, n, w)).collect();
                assert_eq!(places.len(), writes * rounds, "{shape:?}");
                assert!(places.iter().all(|at| at + write_bytes <= bench.file.bytes), "{shape:?}");
            }
            let other = bench.run(&shape, Duration::from_millis(1)).unwrap();
            let (operations, elapsed) = (sample.operations, sample.elapsed);
            sample.add(&other);
            assert_eq!(sample.operations, operations + other.operations);
            assert_eq!(sample.elapsed, elapsed + other.elapsed);
        }
    }

    #[test]
    fn a_short_measurement_reports_what_it_was_asked() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        let mut figures = Vec::new();
        let mut shares = Vec::new();
        let done = measure(directory.path(), Thoroughness::Short, &mut |figure, share| {
            figures.push(figure.clone());
            shares.push(share);
        });
        match done {
            Err(CeilingError::NoDirectIo { .. }) => return,
            done => done.unwrap(),
        }
        assert!(figures.iter().all(|it| it.measured > 0 && it.p99_us >= it.p50_us && it.mb_s > 0.0));
        assert!(shares.is_sorted() && shares.iter().all(|share| (0.0..=1.0).contains(share)));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
