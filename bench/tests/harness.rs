//! The harness itself under test: a broker made here plants delays of known size, and the figures must show
//! them where they were planted.
//!
//! Real clocks, real threads. What is asserted are counts, and bounds in the direction in which a busy host
//! cannot push: a planted delay is a lower bound of what is measured. Where a bound is from above, it is the
//! planted delay itself, many times what the made-up broker needs otherwise.

use bench::driver::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, PARTS, Producer,
    ProducerOptions,
};
use bench::report::{Report, Surroundings};
use bench::run::{RunOptions, RunResult, find_rate, run};
use bench::search::{Ended, SearchLimits, Verdict};
use bench::stamp::now_ns;
use bench::workload::Workload;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// What every acknowledgement takes.
const SERVICE: Duration = Duration::from_millis(1);
const MS: u64 = 1_000_000;

/// What the made-up broker does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Every `nth` acknowledgement takes longer, and the broker says in which part.
    Delay {
        nth: u64,
        delay: Duration,
        part: &'static str,
    },
    /// Once, this long after the first record was intended, nothing is acknowledged for a while; if it
    /// blocks, nothing is taken either.
    Stall {
        after: Duration,
        length: Duration,
        blocks: bool,
    },
    /// One record after the other.
    OneByOne,
}

/// The made-up broker.
struct Fake {
    plan: Plan,
    /// From the moment a record is acknowledged to the consumer.
    deliver_after: Duration,
    acknowledged: Arc<AtomicU64>,
    /// What goes from producers to the consumer of the topic.
    to_consumer: mpsc::UnboundedSender<(Instant, Bytes)>,
    from_producers: Mutex<Option<mpsc::UnboundedReceiver<(Instant, Bytes)>>>,
}

impl Fake {
    fn new(plan: Plan) -> Self {
        let (to_consumer, from_producers) = mpsc::unbounded_channel();
        Self {
            plan,
            deliver_after: Duration::ZERO,
            acknowledged: Arc::default(),
            to_consumer,
            from_producers: Mutex::new(Some(from_producers)),
        }
    }
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn durability(&self) -> Durability {
        Durability::None
    }

    fn durability_settings(&self) -> String {
        "made up".to_owned()
    }

    fn create_topic<'a>(&'a self, _: &'a str, _: u32, _: u64) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }

    fn delete_topic<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { Ok(()) })
    }

    fn producer<'a>(
        &'a self,
        _: &'a str,
        _: ProducerOptions,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Producer>, DriverError>> {
        let producer = FakeProducer {
            plan: self.plan,
            observer,
            acknowledged: self.acknowledged.clone(),
            to_consumer: self.to_consumer.clone(),
            open: Rc::default(),
            settled: Rc::default(),
            taken: 0,
            first_intended_ns: None,
            free_at: Instant::now(),
        };
        Box::pin(async move { Ok(Box::new(producer) as Box<dyn Producer>) })
    }

    fn consumer<'a>(
        &'a self,
        _: &'a str,
        _: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        let incoming = self.from_producers.lock().unwrap().take().expect("one consumer per test");
        let consumer = FakeConsumer { incoming, observer, deliver_after: self.deliver_after };
        Box::pin(async move { Ok(Box::new(consumer) as Box<dyn Consumer>) })
    }
}

struct FakeProducer {
    plan: Plan,
    observer: Rc<dyn Observer>,
    acknowledged: Arc<AtomicU64>,
    to_consumer: mpsc::UnboundedSender<(Instant, Bytes)>,
    open: Rc<Cell<u64>>,
    settled: Rc<Notify>,
    taken: u64,
    first_intended_ns: Option<u64>,
    free_at: Instant,
}

/// The moment `at_ns` of the harness's clock.
fn instant(at_ns: u64) -> Instant {
    Instant::now() + Duration::from_nanos(at_ns.saturating_sub(now_ns()))
}

impl Producer for FakeProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let first_ns = *self.first_intended_ns.get_or_insert(record.intended_ns);
            self.taken += 1;
            let (mut until, mut planted) = (Instant::now() + SERVICE, None);
            match self.plan {
                Plan::Nothing => {}
                Plan::Delay { nth, delay, part } => {
                    if self.taken.is_multiple_of(nth) {
                        until += delay;
                        planted = PARTS.iter().position(|name| *name == part).map(|at| (at, delay));
                    }
                }
                Plan::Stall { after, length, blocks } => {
                    let from_ns = first_ns + after.as_nanos() as u64;
                    let end_ns = from_ns + length.as_nanos() as u64;
                    if (from_ns..end_ns).contains(&(now_ns() + SERVICE.as_nanos() as u64)) {
                        until = instant(end_ns);
                        if blocks {
                            sleep_until(until).await;
                        }
                    }
                }
                Plan::OneByOne => {
                    until = self.free_at.max(Instant::now()) + SERVICE;
                    self.free_at = until;
                }
            }
            let handed_over_ns = now_ns();
            self.open.set(self.open.get() + 1);
            let (observer, open, settled) = (self.observer.clone(), self.open.clone(), self.settled.clone());
            let (acknowledged, to_consumer) = (self.acknowledged.clone(), self.to_consumer.clone());
            tokio::task::spawn_local(async move {
                sleep_until(until).await;
                let mut parts = [0; PARTS.len()];
                let whole = now_ns() - handed_over_ns;
                let delay_ns = planted.map_or(0, |(_, delay)| delay.as_nanos() as u64);
                parts[1] = whole.saturating_sub(delay_ns);
                if let Some((at, _)) = planted {
                    parts[at] = delay_ns;
                }
                acknowledged.fetch_add(1, Ordering::Relaxed);
                observer.acknowledged(record.intended_ns, record.value.len(), Some(&parts));
                // Nobody consumes in most tests.
                let _ = to_consumer.send((Instant::now(), record.value));
                open.set(open.get() - 1);
                settled.notify_waiters();
            });
            Ok(())
        })
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            while self.open.get() > 0 {
                self.settled.notified().await;
            }
            Ok(())
        })
    }
}

struct FakeConsumer {
    incoming: mpsc::UnboundedReceiver<(Instant, Bytes)>,
    observer: Rc<dyn Observer>,
    deliver_after: Duration,
}

impl Consumer for FakeConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            while let Some((acknowledged_at, value)) = self.incoming.recv().await {
                sleep_until(acknowledged_at + self.deliver_after).await;
                self.observer.received(&value);
            }
            Ok(())
        })
    }
}

/// One producer, 1.5 s after 0.2 s of warming up, nobody consumes.
fn workload(rate: f64) -> Workload {
    Workload {
        message_size: 64,
        producer_rate: rate,
        subscriptions_per_topic: 0,
        consumer_per_subscription: 0,
        test_duration_minutes: 1.5 / 60.0,
        warmup_duration_minutes: 0.2 / 60.0,
        ..Workload::default()
    }
}

fn ran(fake: &Fake, workload: &Workload, options: &RunOptions) -> RunResult {
    run(fake, workload, options, &mut |_| {}).expect("the made-up broker works")
}

/// Records whose acknowledgement took at least `ms`.
fn at_least_ms(result: &RunResult, ms: u64) -> u64 {
    // Buckets are a thousandth wide: one below counts in.
    result.recording.acknowledge_ns.count_between(ms * MS - ms * MS / 500, u64::MAX)
}

fn quantile_ms(result: &RunResult, quantile: f64) -> f64 {
    result.recording.acknowledge_ns.value_at_quantile(quantile) as f64 / MS as f64
}

#[test]
fn planted_delays_appear_in_their_percentile_and_their_part() {
    // (every nth, ms, part), quantiles that must show it, quantiles that must not.
    type Row = ((u64, u64, &'static str), &'static [f64], &'static [f64]);
    let rows: [Row; 3] = [
        ((50, 200, "device"), &[0.99, 0.999], &[0.5]),
        ((5, 100, "core hop"), &[0.9, 0.99, 0.999], &[0.5]),
        ((1, 80, "receive"), &[0.5, 0.99, 0.999], &[]),
    ];
    for ((nth, ms, part), shown, hidden) in rows {
        let fake = Fake::new(Plan::Delay { nth, delay: Duration::from_millis(ms), part });
        let workload = workload(1000.0);
        let result = ran(&fake, &workload, &RunOptions { explain: true, ..RunOptions::default() });
        let count = result.recording.acknowledge_ns.len();
        assert_eq!(count, 1500, "{part}: an open loop sends what it intends");
        // Of every nth record exactly one was delayed, wherever the window begins.
        assert!(at_least_ms(&result, ms) >= count / nth, "{part}: {}", at_least_ms(&result, ms));
        for quantile in shown {
            let is = quantile_ms(&result, *quantile);
            assert!(is >= ms as f64 * 0.998, "{part}: p{} is {is} ms", quantile * 100.0);
        }
        for quantile in hidden {
            let is = quantile_ms(&result, *quantile);
            assert!(is < ms as f64, "{part}: p{} is {is} ms", quantile * 100.0);
        }
        let report = Report::new(&fake, &workload, result, Surroundings::default(), 0);
        assert_eq!(report.explained.len(), 3, "p50, p99 and p99.9");
        for explained in report.explained {
            let largest =
                explained.parts_us.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are parts");
            let planted = explained.parts_us.iter().find(|(name, _)| name == part).expect("it is a part").1;
            if shown.contains(&explained.quantile) {
                // Records that the host delayed as long may lie in the same class: half is generous.
                assert!(planted >= ms as f64 * 500.0, "{part}: {explained:?}");
                assert_eq!(largest.0, part, "{explained:?}");
            } else {
                assert_eq!(planted, 0.0, "{part}: {explained:?}");
            }
        }
    }
}

#[test]
fn a_volume_ends_the_measured_time() {
    const VOLUME_BYTES: u64 = 200_000;
    for rate in [0.0, 2000.0] {
        let fake = Fake::new(Plan::Nothing);
        // A day: without the volume this test would not end.
        let limit = Workload { test_duration_minutes: 1440.0, records_in_flight: 100, ..workload(rate) };
        let result = ran(&fake, &Workload { test_volume_gb: 2e-4, ..limit }, &RunOptions::default());
        let recording = &result.recording;
        assert!(recording.acknowledged_bytes >= VOLUME_BYTES, "{rate}: {}", recording.acknowledged_bytes);
        assert_eq!(recording.acknowledged_in_all, fake.acknowledged.load(Ordering::Relaxed), "{rate}");
        let (from_s, until_s) = result.window_s;
        assert!(from_s < until_s && until_s < 86_400.0, "{rate}: {:?}", result.window_s);
    }
}

#[test]
fn a_stalled_broker_shows_in_an_open_loop_and_hides_in_a_closed_one() {
    const RATE: f64 = 1000.0;
    const STALL_MS: u64 = 400;
    for blocks in [false, true] {
        let plan = Plan::Stall {
            after: Duration::from_millis(600),
            length: Duration::from_millis(STALL_MS),
            blocks,
        };
        let open =
            ran(&Fake::new(plan), &workload(RATE), &RunOptions { explain: true, ..RunOptions::default() });
        assert_eq!(open.recording.acknowledge_ns.len(), 1500, "blocks {blocks}: nothing is left out");
        // A record that was intended t ms before the end of the stall took at least t ms, sent or not.
        for ms in [50, 100, 200, 300, 390] {
            let late = at_least_ms(&open, ms);
            let least = (RATE / 1e3 * (STALL_MS - ms) as f64) as u64 - 2;
            assert!(late >= least, "blocks {blocks}: {late} records took {ms} ms, at least {least} must");
        }
        assert!(quantile_ms(&open, 0.99) >= 350.0, "blocks {blocks}: {}", quantile_ms(&open, 0.99));
        let (_, before_ns) = open.recording.explain(0.99).expect("parts were given");
        if blocks {
            assert!(before_ns >= 300 * MS, "the wait was before the client: {before_ns}");
        }

        // Who waits for every reply before sending the next meets the stall once.
        let one_at_a_time = Workload { records_in_flight: 1, ..workload(0.0) };
        let closed = ran(&Fake::new(plan), &one_at_a_time, &RunOptions::default());
        let late = at_least_ms(&closed, 200);
        assert!((1..=3).contains(&late), "blocks {blocks}: {late} of a closed loop's records were late");
        assert!(closed.recording.acknowledge_ns.len() > 150, "{}", closed.recording.acknowledge_ns.len());
        assert!(quantile_ms(&closed, 0.5) < 200.0, "{}", quantile_ms(&closed, 0.5));
    }
}

#[test]
fn threads_are_merged_into_one_recording() {
    let fake = Fake::new(Plan::Delay { nth: 10, delay: Duration::from_millis(100), part: "append" });
    // Three threads on a core that is surely there, five producers dealt out over them.
    let core = core_affinity::get_core_ids().expect("cores are known").first().expect("one").id;
    let options = RunOptions { client_cores: vec![core; 3], explain: true, ..RunOptions::default() };
    let result = ran(&fake, &Workload { producers_per_topic: 5, ..workload(1000.0) }, &options);
    let recording = &result.recording;
    assert_eq!(recording.acknowledged_in_all, fake.acknowledged.load(Ordering::Relaxed));
    let count = recording.acknowledge_ns.len();
    assert!((1495..=1505).contains(&count), "each producer rounds for itself: {count}");
    assert_eq!(recording.classes.iter().map(|class| class.records).sum::<u64>(), count);
    assert_eq!(
        recording.seconds.iter().map(|second| second.acknowledged).sum::<u64>(),
        recording.acknowledged_in_all
    );
    let by_second: u64 = recording.seconds.iter().map(|second| second.latency_ns.len()).sum();
    assert_eq!(by_second, recording.acknowledged_in_all);
    // Each producer counts to ten for itself.
    assert!(at_least_ms(&result, 100) + 5 >= count / 10, "{}", at_least_ms(&result, 100));
}

#[test]
fn a_driver_that_cannot_compress_refuses_to_be_asked() {
    let fake = Fake::new(Plan::Nothing);
    let mut packed = workload(500.0);
    packed.compress("zstd".parse().expect("a codec"));
    let refused = run(&fake, &packed, &RunOptions::default(), &mut |_| {});
    let message = refused.expect_err("it cannot").to_string();
    assert!(message.contains("'fake' cannot compress") && message.contains("zstd"), "{message}");
    packed.compress("none".parse().expect("a codec"));
    ran(&fake, &packed, &RunOptions::default());
}

#[test]
fn a_delay_behind_the_acknowledgement_is_in_the_end_to_end_latency_only() {
    let fake = Fake { deliver_after: Duration::from_millis(150), ..Fake::new(Plan::Nothing) };
    let consumed = Workload { subscriptions_per_topic: 1, consumer_per_subscription: 1, ..workload(500.0) };
    let result = ran(&fake, &consumed, &RunOptions::default());
    let recording = &result.recording;
    assert_eq!((recording.end_to_end_ns.len(), result.not_received), (750, 0));
    assert!(recording.end_to_end_ns.min() >= 149 * MS, "{}", recording.end_to_end_ns.min());
    assert!(quantile_ms(&result, 0.5) < 150.0, "{}", quantile_ms(&result, 0.5));
}

#[test]
fn a_backlog_is_made_before_the_run_and_is_not_in_its_seconds() {
    let fake = Fake::new(Plan::Nothing);
    let rate = workload(500.0);
    let workload = Workload {
        subscriptions_per_topic: 1,
        consumer_per_subscription: 1,
        consumer_backlog_size_gb: 1000.0 * rate.message_size as f64 / 1e9,
        warmup_duration_minutes: 0.0,
        ..rate
    };
    let result = ran(&fake, &workload, &RunOptions::default());
    let recording = &result.recording;
    assert!(recording.acknowledged_in_all >= 1000 + 750, "{}", recording.acknowledged_in_all);
    let by_second: u64 = recording.seconds.iter().map(|second| second.acknowledged).sum();
    assert_eq!((by_second, recording.acknowledge_ns.len(), result.not_received), (750, 750, 0));
    assert!(result.backlog_drained_s.is_some_and(|seconds| seconds > 0.0), "{:?}", result.backlog_drained_s);
}

#[test]
fn the_rate_that_a_broker_can_keep_is_found() {
    // One record after the other, a millisecond each: 1000 per second and no more.
    let fake = Fake::new(Plan::OneByOne);
    let small = Workload {
        test_duration_minutes: 0.5 / 60.0,
        warmup_duration_minutes: 0.1 / 60.0,
        find_rate_for_p99_ms: Some(250.0),
        ..workload(0.0)
    };
    let limits = SearchLimits { start_records_s: 200.0, records_s_min: 25.0, ..SearchLimits::new(250e3, 64) };
    let mut steps_shown = 0;
    let found = find_rate(&fake, &small, limits, &RunOptions::default(), &mut |now| {
        steps_shown = steps_shown.max(now.step.map_or(0, |(step, _)| step));
    })
    .expect("the made-up broker works");
    let search = &found.search;
    assert_eq!(search.ended, Ended::Found, "{search:?}");
    assert_eq!(steps_shown, search.steps.len());
    let held = search.held_records_s.expect("25 records per second are no load");
    // 98 % of the rate are enough, and two records may come in from before the window.
    assert!(held <= 1000.0 / 0.98 + 5.0, "{search:?}");
    assert!(search.steps.iter().any(|step| step.verdict != Verdict::Held), "{search:?}");
    // What is reported is the run at that rate.
    assert_eq!((found.workload.producer_rate, found.workload.find_rate_for_p99_ms), (held, None));
    let step = search.steps.iter().rfind(|step| step.records_s == held && step.verdict == Verdict::Held);
    let p99_us = found.result.recording.acknowledge_ns.value_at_quantile(0.99) as f64 / 1e3;
    assert_eq!(step.expect("it was tried").p99_us, p99_us);
    let count = found.result.recording.acknowledge_ns.len() as f64;
    assert!((count - held / 2.0).abs() <= 1.0, "half a second of {held}/s: {count}");
}

#[test]
fn who_is_too_far_behind_gives_up_and_says_so() {
    let plan =
        Plan::Stall { after: Duration::from_millis(400), length: Duration::from_millis(600), blocks: true };
    let fake = Fake::new(plan);
    let options = RunOptions { give_up_after: Some(Duration::from_millis(300)), ..RunOptions::default() };
    let result = ran(&fake, &workload(1000.0), &options);
    let sent = fake.acknowledged.load(Ordering::Relaxed);
    // Of 1700 intended records those after the stall are not sent, and none is forgotten.
    assert_eq!(sent + result.recording.abandoned, 1700, "{sent} sent");
    assert!(result.recording.abandoned >= 1200, "{}", result.recording.abandoned);
}
