//! What one thread of a run has seen, and how threads are put together.
//!
//! One per thread, merged when all have ended. A record belongs to the measured window if it was *intended*
//! in it, however late it was sent or acknowledged: its latency is complete, and a broker that stalls cannot
//! hide records in the time after. Throughput counts by the moment of arrival.

use crate::driver::{Observer, PARTS, Parts};
use crate::live::LiveCounters;
use crate::stamp::{Stamp, now_ns};
use crate::window::Measured;
use hdrhistogram::Histogram;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// No latency is longer, nanoseconds; what is, is recorded as this.
pub(crate) const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Latencies are explained in classes of an eighth of an octave.
const CLASSES_PER_OCTAVE: u32 = 8;
/// The one of [`PARTS`] that is the batch's, not the record's.
const CLIENT_QUEUE: usize = 0;

/// One second of the run.
#[derive(Clone, Debug)]
pub struct Second {
    /// Records acknowledged in it.
    pub acknowledged: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// Records received in it.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Latency of the acknowledgements that came in it.
    pub latency_ns: Histogram<u64>,
}

/// The time of acknowledgements of one class of latency, part by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// How many.
    pub records: u64,
    /// The sum of their whole times.
    pub total_ns: u64,
    /// The sums of the parts.
    pub parts_ns: Parts,
}

/// What has been seen.
#[derive(Clone, Debug)]
pub struct Recording {
    /// From the intended moment to the acknowledgement.
    pub acknowledge_ns: Histogram<u64>,
    /// From the intended moment to the consumer.
    pub end_to_end_ns: Histogram<u64>,
    /// By class of latency, where the driver knows the parts.
    pub classes: Vec<Class>,
    /// Second by second since the start.
    pub seconds: Vec<Second>,
    /// Records acknowledged in the window.
    pub acknowledged: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// Records received in the window, over all subscriptions.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Records acknowledged at all.
    pub acknowledged_in_all: u64,
    /// Records of this run received at all.
    pub received_in_all: u64,
    /// Records that were not acknowledged.
    pub failed: u64,
    /// Records that were intended and never sent, because their producer was too far behind.
    pub abandoned: u64,
    /// Why the last of them was not.
    pub last_failure: Option<String>,
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            acknowledge_ns: latencies(3),
            end_to_end_ns: latencies(3),
            classes: Vec::new(),
            seconds: Vec::new(),
            acknowledged: 0,
            acknowledged_bytes: 0,
            received: 0,
            received_bytes: 0,
            acknowledged_in_all: 0,
            received_in_all: 0,
            failed: 0,
            abandoned: 0,
            last_failure: None,
        }
    }
}

fn latencies(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, digits).expect("these bounds are valid")
}

/// Which class a latency belongs to.
pub(crate) fn class_of(latency_ns: u64) -> usize {
    let latency_ns = latency_ns.max(1);
    let octave = latency_ns.ilog2();
    // The bits behind the first one.
    let fraction = ((latency_ns as u128 * u128::from(CLASSES_PER_OCTAVE)) >> octave) as u32;
    (octave * CLASSES_PER_OCTAVE + fraction - CLASSES_PER_OCTAVE) as usize
}

/// The parts of one record's time: it may have joined its batch late, and waited in the client's queue for
/// less than the batch did.
fn own(parts: &Parts, latency_ns: u64) -> Parts {
    let excess = parts.iter().sum::<u64>().saturating_sub(latency_ns);
    let mut own = *parts;
    own[CLIENT_QUEUE] = own[CLIENT_QUEUE].saturating_sub(excess);
    own
}

/// The shortest latency of a class.
pub(crate) fn class_floor_ns(class: usize) -> u64 {
    let (octave, fraction) =
        (class as u32 / CLASSES_PER_OCTAVE, class as u64 % u64::from(CLASSES_PER_OCTAVE));
    let floor = (u128::from(CLASSES_PER_OCTAVE) + u128::from(fraction)) << octave;
    // Octaves that are shorter than their classes have some that are never used.
    floor.div_ceil(u128::from(CLASSES_PER_OCTAVE)) as u64
}

impl Recording {
    /// Adds what another thread has seen.
    pub fn merge(&mut self, other: &Self) {
        let add = |sum: &mut Histogram<u64>, part: &Histogram<u64>| {
            sum.add(part).expect("histograms of the same bounds");
        };
        add(&mut self.acknowledge_ns, &other.acknowledge_ns);
        add(&mut self.end_to_end_ns, &other.end_to_end_ns);
        self.classes.resize(self.classes.len().max(other.classes.len()), Class::default());
        for (sum, part) in self.classes.iter_mut().zip(&other.classes) {
            sum.records += part.records;
            sum.total_ns += part.total_ns;
            sum.parts_ns.iter_mut().zip(part.parts_ns).for_each(|(sum, part)| *sum += part);
        }
        for (at, second) in other.seconds.iter().enumerate() {
            let sum = self.second(at);
            sum.acknowledged += second.acknowledged;
            sum.acknowledged_bytes += second.acknowledged_bytes;
            sum.received += second.received;
            sum.received_bytes += second.received_bytes;
            add(&mut sum.latency_ns, &second.latency_ns);
        }
        self.acknowledged += other.acknowledged;
        self.acknowledged_bytes += other.acknowledged_bytes;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.acknowledged_in_all += other.acknowledged_in_all;
        self.received_in_all += other.received_in_all;
        self.failed += other.failed;
        self.abandoned += other.abandoned;
        if other.last_failure.is_some() {
            self.last_failure.clone_from(&other.last_failure);
        }
    }

    fn second(&mut self, at: usize) -> &mut Second {
        while self.seconds.len() <= at {
            self.seconds.push(Second {
                acknowledged: 0,
                acknowledged_bytes: 0,
                received: 0,
                received_bytes: 0,
                latency_ns: latencies(2),
            });
        }
        &mut self.seconds[at]
    }

    /// How the time of acknowledgements around a quantile of their latency splits: the mean of each of
    /// [`PARTS`], and of the wait before the record was handed over, nanoseconds. `None` without parts.
    pub fn explain(&self, quantile: f64) -> Option<(Parts, u64)> {
        let at = class_of(self.acknowledge_ns.value_at_quantile(quantile));
        // The class of the quantile, or the nearest one with records.
        let nearest = (0..self.classes.len())
            .filter(|class| self.classes[*class].records > 0)
            .min_by_key(|class| class.abs_diff(at))?;
        let class = &self.classes[nearest];
        let mut parts = [0; PARTS.len()];
        parts.iter_mut().zip(class.parts_ns).for_each(|(mean, sum)| *mean = sum / class.records);
        let known: u64 = parts.iter().sum();
        Some((parts, (class.total_ns / class.records).saturating_sub(known)))
    }
}

/// Records what the producers and consumers of one thread see.
pub struct Recorder {
    run: u64,
    start_ns: std::cell::Cell<u64>,
    measured: Arc<Measured>,
    live: Arc<LiveCounters>,
    recording: RefCell<Recording>,
}

impl Recorder {
    /// A recorder of the run `run`, which measures in `measured`.
    pub fn new(run: u64, measured: Arc<Measured>, live: Arc<LiveCounters>) -> Self {
        Self { run, start_ns: std::cell::Cell::new(now_ns()), measured, live, recording: RefCell::default() }
    }

    /// The run starts at `start_ns`. Seconds count from there: those in which a backlog was made are forgotten.
    pub fn begin(&self, start_ns: u64) {
        self.recording.borrow_mut().seconds.clear();
        self.start_ns.set(start_ns);
    }

    /// What has been seen so far; taken out.
    pub fn take(&self) -> Recording {
        self.recording.take()
    }

    /// Records that were intended will not be sent.
    pub fn abandoned(&self, records: u64) {
        self.recording.borrow_mut().abandoned += records;
    }

    fn second_of(&self, now_ns: u64) -> usize {
        (now_ns.saturating_sub(self.start_ns.get()) / 1_000_000_000) as usize
    }

    fn acknowledged_at(&self, now_ns: u64, intended_ns: u64, bytes: usize, parts: Option<&Parts>) {
        let latency_ns = now_ns.saturating_sub(intended_ns).clamp(1, LATENCY_NS_MAX);
        let window = self.measured.window();
        let mut recording = self.recording.borrow_mut();
        let recording = &mut *recording;
        recording.acknowledged_in_all += 1;
        let second = recording.second(self.second_of(now_ns));
        second.acknowledged += 1;
        second.acknowledged_bytes += bytes as u64;
        second.latency_ns.saturating_record(latency_ns);
        if window.holds(now_ns) {
            recording.acknowledged += 1;
            recording.acknowledged_bytes += bytes as u64;
        }
        if !window.holds(intended_ns) {
            return;
        }
        recording.acknowledge_ns.saturating_record(latency_ns);
        if let Some(parts) = parts {
            let at = class_of(latency_ns);
            if recording.classes.len() <= at {
                recording.classes.resize(at + 1, Class::default());
            }
            let class = &mut recording.classes[at];
            class.records += 1;
            class.total_ns += latency_ns;
            class.parts_ns.iter_mut().zip(own(parts, latency_ns)).for_each(|(sum, part)| *sum += part);
        }
    }

    fn received_at(&self, now_ns: u64, value: &[u8]) {
        let Some(stamp) = Stamp::read(value).filter(|stamp| stamp.run == self.run) else { return };
        let window = self.measured.window();
        let mut recording = self.recording.borrow_mut();
        recording.received_in_all += 1;
        let second = recording.second(self.second_of(now_ns));
        second.received += 1;
        second.received_bytes += value.len() as u64;
        if window.holds(now_ns) {
            recording.received += 1;
            recording.received_bytes += value.len() as u64;
        }
        if window.holds(stamp.intended_ns) {
            let latency_ns = now_ns.saturating_sub(stamp.intended_ns).clamp(1, LATENCY_NS_MAX);
            recording.end_to_end_ns.saturating_record(latency_ns);
        }
    }
}

impl Observer for Recorder {
    fn acknowledged(&self, intended_ns: u64, bytes: usize, parts: Option<&Parts>) {
        let now_ns = now_ns();
        self.acknowledged_at(now_ns, intended_ns, bytes, parts);
        self.live.acknowledged(bytes, now_ns.saturating_sub(intended_ns));
    }

    fn failed(&self, reason: &str) {
        let mut recording = self.recording.borrow_mut();
        recording.failed += 1;
        recording.last_failure = Some(reason.to_owned());
        self.live.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn received(&self, value: &[u8]) {
        self.received_at(now_ns(), value);
        self.live.received.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Window;

    const WINDOW: Window = Window { from_ns: 1_000, until_ns: 2_000_000_000 };

    fn measured() -> Arc<Measured> {
        let measured = Arc::new(Measured::default());
        measured.begin(WINDOW);
        measured
    }

    fn recorder() -> Recorder {
        let recorder = Recorder::new(7, measured(), Arc::default());
        recorder.begin(0);
        recorder
    }

    #[test]
    fn merged_recordings_equal_one_big_one() {
        let (one, parts) = (recorder(), [recorder(), recorder(), recorder()]);
        let mut random = fastrand::Rng::with_seed(3);
        for n in 0..20_000 {
            let intended_ns = random.u64(0..2_100_000_000);
            let now_ns = intended_ns + (1u64 << random.u32(0..33)) + random.u64(0..1000);
            let explained: Parts = std::array::from_fn(|part| random.u64(0..10 * (part as u64 + 1)));
            let mut payload = [0; 32];
            Stamp { intended_ns, run: 7 }.write(&mut payload);
            for recorder in [&one, &parts[n % 3]] {
                recorder.acknowledged_at(now_ns, intended_ns, 100, Some(&explained));
                recorder.received_at(now_ns + 5, &payload);
            }
        }
        let one = one.take();
        let mut merged = Recording::default();
        parts.iter().for_each(|part| merged.merge(&part.take()));
        assert_eq!(merged.acknowledge_ns, one.acknowledge_ns);
        assert_eq!(merged.end_to_end_ns, one.end_to_end_ns);
        assert_eq!(merged.classes, one.classes);
        assert_eq!(merged.seconds.len(), one.seconds.len());
        let counts = |recording: &Recording| {
            (
                recording.acknowledged,
                recording.received,
                recording.acknowledged_in_all,
                recording.received_bytes,
            )
        };
        assert_eq!(counts(&merged), counts(&one));
        assert!(one.acknowledge_ns.len() > 10_000 && one.seconds.len() > 2);
    }

    #[test]
    fn a_record_counts_where_it_was_intended() {
        // (intended, acknowledged), whether its latency counts, whether its throughput counts.
        let rows = [
            (900, 1_500, false, true),
            (1_000, 1_500, true, true),
            (1_999_999_999, 5_000_000_000, true, false),
            (2_000_000_000, 2_000_000_001, false, false),
        ];
        for (intended_ns, now_ns, latency, throughput) in rows {
            let recorder = recorder();
            let mut payload = [0; 16];
            Stamp { intended_ns, run: 7 }.write(&mut payload);
            recorder.acknowledged_at(now_ns, intended_ns, 10, None);
            recorder.received_at(now_ns, &payload);
            let recording = recorder.take();
            for (latencies, counted, in_all) in [
                (&recording.acknowledge_ns, recording.acknowledged, recording.acknowledged_in_all),
                (&recording.end_to_end_ns, recording.received, recording.received_in_all),
            ] {
                assert_eq!((latencies.len() == 1, counted == 1), (latency, throughput), "{intended_ns}");
                assert_eq!(in_all, 1, "{intended_ns}");
            }
        }
    }

    #[test]
    fn a_record_that_joins_a_batch_waited_for_less_than_the_batch() {
        assert_eq!(PARTS[CLIENT_QUEUE], "client queue");
        // (latency, the batch's queue, device), the record's (queue, before the client).
        let rows = [(1000, 300, 600, 300, 100), (1000, 400, 600, 400, 0), (1000, 900, 600, 400, 0)];
        for (latency_ns, queue_ns, device_ns, own_queue_ns, before_ns) in rows {
            let recorder = recorder();
            let mut parts = [0; PARTS.len()];
            (parts[CLIENT_QUEUE], parts[5]) = (queue_ns, device_ns);
            recorder.acknowledged_at(10_000 + latency_ns, 10_000, 10, Some(&parts));
            let (explained, before) = recorder.take().explain(0.5).expect("parts were given");
            assert_eq!((explained[CLIENT_QUEUE], before), (own_queue_ns, before_ns), "{queue_ns}");
        }
    }

    #[test]
    fn seconds_begin_with_the_run() {
        let recorder = recorder();
        recorder.acknowledged_at(1_500_000_000, 1_400_000_000, 10, None);
        recorder.begin(10_000_000_000);
        recorder.acknowledged_at(10_500_000_000, 10_400_000_000, 10, None);
        let recording = recorder.take();
        assert_eq!((recording.seconds.len(), recording.acknowledged_in_all), (1, 2));
        assert_eq!(recording.seconds[0].acknowledged, 1);
    }

    #[test]
    fn records_of_another_run_do_not_count() {
        let recorder = recorder();
        for (run, received) in [(6, 0), (7, 1)] {
            let mut payload = [0; 16];
            Stamp { intended_ns: 1_500, run }.write(&mut payload);
            recorder.received_at(1_600, &payload);
            assert_eq!(recorder.recording.borrow().received_in_all, received);
        }
    }

    #[test]
    fn a_planted_delay_is_found_in_its_part_and_its_percentile() {
        let recorder = recorder();
        for n in 0..1000u64 {
            // One in a hundred waits 50 ms for the device; the rest takes 1 ms.
            let device_ns = if n % 100 == 0 { 50_000_000 } else { 500_000 };
            let mut parts = [0; PARTS.len()];
            parts[1] = 400_000;
            parts[5] = device_ns;
            // 100 µs passed before the record was handed over.
            let intended_ns = 10_000 + n * 1_000_000;
            recorder.acknowledged_at(intended_ns + device_ns + 500_000, intended_ns, 10, Some(&parts));
        }
        let recording = recorder.take();
        for (quantile, device_ns) in [(0.5, 500_000), (0.98, 500_000), (0.995, 50_000_000)] {
            let (parts, before) = recording.explain(quantile).expect("parts were given");
            assert_eq!(PARTS[5], "device");
            assert_eq!((parts[5], parts[1], before), (device_ns, 400_000, 100_000), "{quantile}");
        }
    }

    #[test]
    fn classes_follow_the_latency() {
        let mut before = 0;
        for latency_ns in (1..2000).chain((12..63).map(|bit| 1u64 << bit)) {
            let class = class_of(latency_ns);
            assert!(class >= before, "{latency_ns}");
            assert!(class_floor_ns(class) <= latency_ns, "{latency_ns}");
            assert!(class_floor_ns(class + 1) > latency_ns || latency_ns < 8, "{latency_ns}");
            before = class;
        }
        assert!(class_of(LATENCY_NS_MAX) < 1000);
    }
}
