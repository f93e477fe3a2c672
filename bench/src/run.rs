//! One run of a workload against one driver.
//!
//! ```text
//! topics → producers and consumers on their threads → (backlog) → warm up → measure → drain → topics deleted
//! ```
//!
//! Every thread has a runtime of its own, pinned if asked; producers and consumers are dealt out over them
//! and never move. With a rate the loop is open: records are intended for fixed times and count from there.
//! Without one it is closed: a producer sends as fast as its client takes records, or keeps a fixed number
//! of them unacknowledged. All threads begin at one moment; what they saw is merged after the last has ended.

use crate::driver::{ConsumerShare, Driver, DriverError, Observer, OutgoingRecord, ProducerOptions};
use crate::pacer::Pacer;
use crate::recorder::{LiveCounters, Recorder, Recording, Window};
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};
use crate::workload::{KeyDistributor, Workload};
use bytes::Bytes;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long connecting may take, all producers and consumers together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long acknowledgements and records may come in after the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// From the last thread's readiness to the start.
const START_AFTER: Duration = Duration::from_millis(50);
/// How many keys there are, as in the original.
const KEYS: usize = 10_000;

/// Where and how a run happens, besides its workload.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Cores that the threads are pinned to, one each; none = one unpinned thread.
    pub client_cores: Vec<usize>,
    /// Ask where the time of acknowledgements went.
    pub explain: bool,
}

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The broker, or the way to it.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The host.
    #[error("cannot run the load: {0}")]
    Host(#[from] io::Error),
    /// A core that is not there.
    #[error("cannot pin a thread to core {0}")]
    Core(usize),
    /// Connecting took too long.
    #[error("producers and consumers were not connected within {CONNECT_TIMEOUT:?}")]
    NotReady,
}

/// The run so far, once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// Since the start, seconds.
    pub elapsed_s: f64,
    /// Of so many.
    pub total_s: f64,
    /// Records acknowledged so far.
    pub acknowledged: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// Records received so far.
    pub received: u64,
    /// Records that failed so far.
    pub failed: u64,
}

/// The parts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Topics and connections.
    #[default]
    Connecting,
    /// Producing without consuming.
    Backlog,
    /// Not measured yet.
    WarmUp,
    /// Measured.
    Measuring,
    /// Waiting for what is still on its way.
    Draining,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What was seen.
    pub recording: Recording,
    /// When it was measured, seconds since the start.
    pub window_s: (f64, f64),
    /// Seconds from the start until the backlog had been consumed, if there was one.
    pub backlog_drained_s: Option<f64>,
    /// Records that were acknowledged and not received by every subscription before the end.
    pub not_received: u64,
    /// The broker's counters, as the run added to them.
    pub counters: Vec<(String, u64)>,
}

/// What every thread is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Connect,
    /// Produce as fast as it goes, consumers wait.
    Backlog,
    /// Everything begins: start, window, when to stop sending.
    Start {
        start_ns: u64,
        window: Window,
    },
    /// Consumers end.
    Stop,
}

/// What threads tell the one that leads.
enum Told {
    Ready,
    Sent,
    Ended(Box<Recording>),
    Failed(RunError),
}

/// Runs `workload` once and reports its progress. Call on a thread without a runtime.
///
/// # Errors
/// The first thing that went wrong for good; topics are deleted in any case.
pub fn run(
    driver: &dyn Driver,
    workload: &Workload,
    options: &RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<RunResult, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let run_id = fastrand::u64(1..);
    let topics: Vec<String> = (0..workload.topics).map(|n| format!("bench-{run_id:016x}-{n}")).collect();
    progress(Progress::default());
    let made = local.block_on(&runtime, async {
        for topic in &topics {
            driver.create_topic(topic, workload.partitions_per_topic, workload.retention_bytes).await?;
        }
        Ok::<_, DriverError>(driver.counters().await)
    });
    let result = made.map_err(RunError::from).and_then(|before| {
        let result = Lead { driver, workload, options, topics: &topics, run_id }.run(&runtime, progress)?;
        let after = local.block_on(&runtime, driver.counters());
        Ok(RunResult { counters: added(&before, &after), ..result })
    });
    local.block_on(&runtime, async {
        for topic in &topics {
            // A topic that was not made cannot be deleted; the first error is the one that matters.
            let _ = driver.delete_topic(topic).await;
        }
    });
    result
}

fn added(before: &[(String, u64)], after: &[(String, u64)]) -> Vec<(String, u64)> {
    let earlier: std::collections::HashMap<_, _> = before.iter().cloned().collect();
    after
        .iter()
        .map(|(name, value)| match name.ends_with("_total") {
            true => (name.clone(), value - earlier.get(name).copied().unwrap_or(0).min(*value)),
            // A level, not a sum.
            false => (name.clone(), *value),
        })
        .collect()
}

/// The thread that leads: tells the others when, waits for them.
struct Lead<'a> {
    driver: &'a dyn Driver,
    workload: &'a Workload,
    options: &'a RunOptions,
    topics: &'a [String],
    run_id: u64,
}

/// What one thread has to do: its producers and consumers.
#[derive(Default)]
struct Share<'a> {
    /// (topic, the producer's number among all).
    producers: Vec<(&'a str, usize)>,
    consumers: Vec<(&'a str, ConsumerShare)>,
}

impl<'a> Lead<'a> {
    fn shares(&self, threads: usize) -> Vec<Share<'a>> {
        let mut shares: Vec<Share<'a>> = (0..threads).map(|_| Share::default()).collect();
        let workload = self.workload;
        let mut next = (0..threads).cycle();
        let mut number = 0;
        for topic in self.topics {
            for _ in 0..workload.producers_per_topic {
                shares[next.next().unwrap_or(0)].producers.push((topic, number));
                number += 1;
            }
        }
        for topic in self.topics {
            for subscription in 0..workload.subscriptions_per_topic as usize {
                for index in 0..workload.consumer_per_subscription as usize {
                    let share = ConsumerShare {
                        consumers: workload.consumer_per_subscription as usize,
                        index,
                        subscription,
                        from_start: true,
                    };
                    shares[next.next().unwrap_or(0)].consumers.push((topic, share));
                }
            }
        }
        shares
    }

    fn run(
        &self,
        runtime: &tokio::runtime::Runtime,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RunResult, RunError> {
        let threads = self.options.client_cores.len().max(1);
        let live: Vec<Arc<LiveCounters>> = (0..threads).map(|_| Arc::default()).collect();
        let (signal, signals) = watch::channel(Signal::Connect);
        let (tell, mut told) = mpsc::unbounded_channel();
        std::thread::scope(|scope| {
            for (at, share) in self.shares(threads).into_iter().enumerate() {
                let core = self.options.client_cores.get(at).copied();
                let thread = Thread {
                    driver: self.driver,
                    workload: self.workload,
                    options: self.options,
                    run_id: self.run_id,
                    producers: self.topics.len() * self.workload.producers_per_topic as usize,
                    share,
                    signals: signals.clone(),
                    tell: tell.clone(),
                };
                let live = live[at].clone();
                scope.spawn(move || thread.run(core, live));
            }
            drop(tell);
            // Whatever happens, threads hear that it is over.
            let result = runtime.block_on(self.lead(&signal, &mut told, &live, progress));
            signal.send_replace(Signal::Stop);
            result
        })
    }

    async fn lead(
        &self,
        signal: &watch::Sender<Signal>,
        told: &mut mpsc::UnboundedReceiver<Told>,
        live: &[Arc<LiveCounters>],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RunResult, RunError> {
        let workload = self.workload;
        let threads = live.len();
        let mut ready = 0;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, async {
            while ready < threads {
                match told.recv().await {
                    Some(Told::Ready) => ready += 1,
                    Some(Told::Failed(error)) => return Err(error),
                    Some(Told::Sent | Told::Ended(_)) | None => return Err(RunError::NotReady),
                }
            }
            Ok(())
        });
        connecting.await.map_err(|_| RunError::NotReady)??;

        let backlog_bytes = (workload.consumer_backlog_size_gb * 1e9) as u64;
        let began_ns = now_ns();
        if backlog_bytes > 0 {
            signal.send_replace(Signal::Backlog);
            loop {
                let now = seen(live, Phase::Backlog, began_ns, 0.0);
                progress(now);
                if now.acknowledged_bytes >= backlog_bytes {
                    break;
                }
                if let Ok(Some(Told::Failed(error))) =
                    tokio::time::timeout(Duration::from_millis(100), told.recv()).await
                {
                    return Err(error);
                }
            }
        }

        let start_ns = now_ns() + START_AFTER.as_nanos() as u64;
        let from_ns = start_ns + workload.warm_up().as_nanos() as u64;
        let window = Window { from_ns, until_ns: from_ns + workload.measured().as_nanos() as u64 };
        let total_s = (window.until_ns - start_ns) as f64 / 1e9;
        signal.send_replace(Signal::Start { start_ns, window });
        let (mut sent, mut backlog_drained_s) = (0, None);
        while sent < threads {
            let phase = match now_ns() {
                now if now < window.from_ns => Phase::WarmUp,
                now if now < window.until_ns => Phase::Measuring,
                _ => Phase::Draining,
            };
            let now = seen(live, phase, start_ns, total_s);
            progress(now);
            if backlog_bytes > 0 && backlog_drained_s.is_none() && self.is_caught_up(&now) {
                backlog_drained_s = Some(now.elapsed_s);
            }
            match tokio::time::timeout(Duration::from_millis(200), told.recv()).await {
                Ok(Some(Told::Sent)) => sent += 1,
                Ok(Some(Told::Failed(error))) => return Err(error),
                Ok(Some(Told::Ready | Told::Ended(_)) | None) | Err(_) => {}
            }
        }
        // Everything has been acknowledged or has failed; what consumers still miss may be on its way.
        let deadline_ns = now_ns() + DRAIN_TIMEOUT.as_nanos() as u64;
        loop {
            let now = seen(live, Phase::Draining, start_ns, total_s);
            progress(now);
            if self.is_caught_up(&now) || now_ns() > deadline_ns {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        signal.send_replace(Signal::Stop);
        let mut recording = Recording::default();
        let mut ended = 0;
        while ended < threads {
            match told.recv().await {
                Some(Told::Ended(part)) => {
                    recording.merge(&part);
                    ended += 1;
                }
                Some(Told::Failed(error)) => return Err(error),
                Some(Told::Ready | Told::Sent) => {}
                None => break,
            }
        }
        let wanted = recording.acknowledged_in_all * u64::from(workload.subscriptions_per_topic);
        Ok(RunResult {
            not_received: match self.has_consumers() {
                true => wanted.saturating_sub(recording.received_in_all),
                false => 0,
            },
            recording,
            window_s: ((window.from_ns - start_ns) as f64 / 1e9, total_s),
            backlog_drained_s,
            counters: Vec::new(),
        })
    }

    fn has_consumers(&self) -> bool {
        self.workload.subscriptions_per_topic > 0 && self.workload.consumer_per_subscription > 0
    }

    fn is_caught_up(&self, now: &Progress) -> bool {
        !self.has_consumers()
            || now.received >= now.acknowledged * u64::from(self.workload.subscriptions_per_topic)
    }
}

fn seen(live: &[Arc<LiveCounters>], phase: Phase, start_ns: u64, total_s: f64) -> Progress {
    let sum = |counter: fn(&LiveCounters) -> &std::sync::atomic::AtomicU64| {
        live.iter().map(|live| counter(live).load(Ordering::Relaxed)).sum()
    };
    Progress {
        phase,
        elapsed_s: now_ns().saturating_sub(start_ns) as f64 / 1e9,
        total_s,
        acknowledged: sum(|live| &live.acknowledged),
        acknowledged_bytes: sum(|live| &live.acknowledged_bytes),
        received: sum(|live| &live.received),
        failed: sum(|live| &live.failed),
    }
}

/// One thread of the load.
struct Thread<'a> {
    driver: &'a dyn Driver,
    workload: &'a Workload,
    options: &'a RunOptions,
    run_id: u64,
    /// Producers of all threads: they share the rate.
    producers: usize,
    share: Share<'a>,
    signals: watch::Receiver<Signal>,
    tell: mpsc::UnboundedSender<Told>,
}

impl Thread<'_> {
    fn run(self, core: Option<usize>, live: Arc<LiveCounters>) {
        let tell = self.tell.clone();
        let result = pin(core).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, self.work(live))
        });
        // Nobody listens any more: another thread has failed before.
        let _ = tell.send(match result {
            Ok(recording) => Told::Ended(Box::new(recording)),
            Err(error) => Told::Failed(error),
        });
    }

    async fn work(mut self, live: Arc<LiveCounters>) -> Result<Recording, RunError> {
        let recorder = Rc::new(Recorder::new(self.run_id, live));
        let observer: Rc<dyn Observer> = recorder.clone();
        let options = ProducerOptions {
            batch_bytes: self.workload.batch_size,
            linger_ms: self.workload.linger_ms,
            in_flight: self.workload.requests_in_flight,
            explain: self.options.explain,
        };
        let payloads = Rc::new(payloads(self.workload));
        let mut senders = Vec::new();
        for (topic, number) in &self.share.producers {
            let producer = self.driver.producer(topic, options, observer.clone()).await?;
            senders.push(Sender {
                producer,
                number: *number,
                random: fastrand::Rng::with_seed(*number as u64),
                payloads: payloads.clone(),
                run: self.run_id,
                keys: self.workload.key_distributor,
                recorder: recorder.clone(),
                sent: 0,
            });
        }
        let has_backlog = self.workload.consumer_backlog_size_gb > 0.0;
        let mut consumers = tokio::task::JoinSet::new();
        if !has_backlog {
            self.consume(&mut consumers, &observer).await?;
        }
        let _ = self.tell.send(Told::Ready);
        let mut signal = self.next_signal(Signal::Connect).await;
        if signal == Signal::Backlog {
            let mut signals = self.signals.clone();
            let over = async move { signals.wait_for(|signal| *signal != Signal::Backlog).await.is_ok() };
            senders = self.fill(senders, over).await?;
            signal = self.next_signal(Signal::Backlog).await;
            self.consume(&mut consumers, &observer).await?;
        }
        let Signal::Start { start_ns, window } = signal else { return Ok(recorder.take()) };
        recorder.begin(start_ns, window);
        tokio::time::sleep(Duration::from_nanos(start_ns.saturating_sub(now_ns()))).await;
        let rate = self.workload.producer_rate / self.producers as f64;
        // Producers of one thread share what they may have unacknowledged.
        let limit = match self.workload.records_in_flight as u64 {
            0 => u64::MAX,
            limit => limit * self.share.producers.len() as u64,
        };
        let mut sending = tokio::task::JoinSet::new();
        for mut sender in senders {
            let producers = self.producers as u64;
            sending.spawn_local(async move {
                if rate > 0.0 {
                    // Producers of one rate do not send at the same moment.
                    let shift_ns = (1e9 / rate) as u64 * sender.number as u64 / producers;
                    sender.at_rate(start_ns + shift_ns, window.until_ns, rate).await?;
                } else {
                    sender.closed_loop(window.until_ns, limit).await?;
                }
                match tokio::time::timeout(DRAIN_TIMEOUT, sender.producer.flush()).await {
                    Ok(flushed) => Ok(flushed?),
                    // What is missing shows in the counts.
                    Err(_) => Ok::<(), RunError>(()),
                }
            });
        }
        while !sending.is_empty() {
            tokio::select! {
                Some(ended) = sending.join_next() => flatten(ended)?,
                Some(ended) = consumers.join_next() => flatten(ended)?,
            }
        }
        let _ = self.tell.send(Told::Sent);
        loop {
            tokio::select! {
                biased;
                stopped = self.signals.wait_for(|signal| *signal == Signal::Stop) => {
                    let _ = stopped;
                    return Ok(recorder.take());
                }
                Some(ended) = consumers.join_next() => flatten(ended)?,
            }
        }
    }

    async fn next_signal(&mut self, after: Signal) -> Signal {
        match self.signals.wait_for(|signal| *signal != after).await {
            Ok(signal) => *signal,
            // Who leads has given up.
            Err(_) => Signal::Stop,
        }
    }

    async fn consume(
        &self,
        consumers: &mut tokio::task::JoinSet<Result<(), RunError>>,
        observer: &Rc<dyn Observer>,
    ) -> Result<(), RunError> {
        for (topic, share) in &self.share.consumers {
            let mut consumer = self.driver.consumer(topic, share.clone(), observer.clone()).await?;
            consumers.spawn_local(async move { Ok(consumer.run().await?) });
        }
        Ok(())
    }

    /// Sends as fast as it goes until the backlog is there.
    async fn fill(
        &self,
        senders: Vec<Sender>,
        over: impl std::future::Future<Output = bool>,
    ) -> Result<Vec<Sender>, RunError> {
        let stop = Rc::new(std::cell::Cell::new(false));
        let mut filling = tokio::task::JoinSet::new();
        for mut sender in senders {
            let stop = stop.clone();
            filling.spawn_local(async move {
                while !stop.get() {
                    sender.send(now_ns()).await?;
                }
                sender.producer.flush().await?;
                Ok::<_, RunError>(sender)
            });
        }
        let mut over = std::pin::pin!(over);
        let mut filled = Vec::new();
        while !filling.is_empty() {
            tokio::select! {
                _ = &mut over, if !stop.get() => stop.set(true),
                Some(ended) = filling.join_next() => match ended {
                    Ok(sender) => filled.push(sender?),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },
            }
        }
        Ok(filled)
    }
}

fn flatten(ended: Result<Result<(), RunError>, tokio::task::JoinError>) -> Result<(), RunError> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}

fn pin(core: Option<usize>) -> Result<(), RunError> {
    let Some(core) = core else { return Ok(()) };
    let known = core_affinity::get_core_ids().unwrap_or_default();
    match known.into_iter().find(|id| id.id == core) {
        Some(id) if core_affinity::set_for_current(id) => Ok(()),
        _ => Err(RunError::Core(core)),
    }
}

/// Payloads made beforehand, each as random as the workload says.
fn payloads(workload: &Workload) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(1);
    let count = if workload.use_randomized_payloads { workload.randomized_payload_pool_size } else { 1 };
    let ratio = if workload.use_randomized_payloads { workload.random_bytes_ratio } else { 0.0 };
    (0..count)
        .map(|_| {
            let mut payload = vec![b'x'; workload.message_size];
            random.fill(&mut payload[..(workload.message_size as f64 * ratio) as usize]);
            payload
        })
        .collect()
}

/// One producer and what it sends.
struct Sender {
    producer: Box<dyn crate::driver::Producer>,
    number: usize,
    random: fastrand::Rng,
    payloads: Rc<Vec<Vec<u8>>>,
    run: u64,
    keys: KeyDistributor,
    recorder: Rc<Recorder>,
    sent: u64,
}

impl Sender {
    async fn send(&mut self, intended_ns: u64) -> Result<(), DriverError> {
        let mut value = self.payloads[self.sent as usize % self.payloads.len()].clone();
        Stamp { intended_ns, run: self.run }.write(&mut value[..STAMP_BYTES]);
        let key = match self.keys {
            KeyDistributor::NoKey => None,
            KeyDistributor::KeyRoundRobin => Some(self.sent as usize % KEYS),
            KeyDistributor::RandomNano => Some(self.random.usize(..KEYS)),
        };
        let key = key.map(|key| Bytes::copy_from_slice(&(key as u32).to_le_bytes()));
        self.sent += 1;
        self.producer.send(OutgoingRecord { key, value: value.into(), intended_ns }).await?;
        self.recorder.sent();
        Ok(())
    }

    async fn at_rate(&mut self, start_ns: u64, until_ns: u64, rate: f64) -> Result<(), RunError> {
        let mut pacer = Pacer::new(start_ns, rate)?;
        loop {
            let intended_ns = pacer.next().await?;
            if intended_ns >= until_ns {
                return Ok(());
            }
            self.send(intended_ns).await?;
            self.breathe().await;
        }
    }

    /// Sends until the end, never with more than `limit` records of this thread unacknowledged.
    async fn closed_loop(&mut self, until_ns: u64, limit: u64) -> Result<(), RunError> {
        loop {
            self.recorder.has_fewer_open_than(limit).await;
            let now = now_ns();
            if now >= until_ns {
                return Ok(());
            }
            self.send(now).await?;
            self.breathe().await;
        }
    }

    /// A client that always has room must not keep the thread from its other tasks.
    async fn breathe(&self) {
        if self.sent.is_multiple_of(16) {
            tokio::task::yield_now().await;
        }
    }
}
