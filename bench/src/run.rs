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

mod open;
mod search;
mod thread;

pub use search::{FoundRate, find_rate};

use crate::driver::{ConsumerShare, Driver, DriverError};
use crate::live::{Counts, LastSecond, LiveCounters, Speed};
use crate::recorder::Recording;
use crate::stamp::now_ns;
use crate::window::{Measured, Window};
use crate::workload::Workload;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thread::{Share, Thread};
use tokio::sync::{mpsc, watch};

/// How long connecting may take, all producers and consumers together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long acknowledgements and records may come in after the end, unless something else is said.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How often a run that measures a volume looks whether it is there.
const VOLUME_INTERVAL: Duration = Duration::from_millis(10);
/// From there to the end of what is measured: every thread must see it coming.
const VOLUME_END_AFTER: Duration = Duration::from_millis(1);
/// From the last thread's readiness to the start.
const START_AFTER: Duration = Duration::from_millis(50);
/// Where and how a run happens, besides its workload.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Cores that the threads are pinned to, one each; none = one unpinned thread.
    pub client_cores: Vec<usize>,
    /// Ask where the time of acknowledgements went.
    pub explain: bool,
    /// With a rate: a producer that is later than this sends no more. `None` = it sends everything that was
    /// intended, which is what an honest latency needs; a search only wants to know that it was too much.
    pub give_up_after: Option<Duration>,
    /// How long acknowledgements and records may come in after the end.
    pub drain_timeout: Duration,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { client_cores: Vec::new(), explain: false, give_up_after: None, drain_timeout: DRAIN_TIMEOUT }
    }
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
    /// The driver cannot do what the workload asks for.
    #[error(
        "the driver '{driver}' cannot compress batches, and the workload asks for {compression}: take \
         compression: none, or a driver that can (ringlog)"
    )]
    Compression {
        /// Which one.
        driver: &'static str,
        /// The codec.
        compression: &'static str,
    },
    /// The limits of a search allow no trial at all.
    #[error("the limits of the search allow no trial: allow at least one step")]
    NoTrial,
}

/// The run so far, several times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// In a search: which step, counted from 1, and its rate.
    pub step: Option<(usize, f64)>,
    /// The last second.
    pub speed: Speed,
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
    /// Seconds from the start until consumers were less than a second behind, if there was a backlog.
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
    /// Everything begins; what is measured, and so when to stop sending, is in [`Measured`].
    Start {
        start_ns: u64,
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
    progress(Progress::default());
    with_topics(driver, workload, |topics| topics.run(workload, options, progress))
}

/// Makes the topics of `workload`, does something with them, and deletes them, whatever became of it.
fn with_topics<T>(
    driver: &dyn Driver,
    workload: &Workload,
    work: impl FnOnce(&mut Topics<'_>) -> Result<T, RunError>,
) -> Result<T, RunError> {
    if workload.is_compressed() && !driver.compresses() {
        let (driver, compression) = (driver.name(), workload.compression.name());
        return Err(RunError::Compression { driver, compression });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let id = fastrand::u64(1..);
    let names: Vec<String> = (0..workload.topics).map(|n| format!("bench-{id:016x}-{n}")).collect();
    let made = local.block_on(&runtime, async {
        for name in &names {
            driver.create_topic(name, workload.partitions_per_topic, workload.retention_bytes).await?;
        }
        Ok::<_, DriverError>(())
    });
    let mut topics = Topics { driver, names, runtime, local, runs: 0 };
    let result = made.map_err(RunError::from).and_then(|()| work(&mut topics));
    topics.local.block_on(&topics.runtime, async {
        for name in &topics.names {
            // A topic that was not made cannot be deleted; the first error is the one that matters.
            let _ = driver.delete_topic(name).await;
        }
    });
    result
}

/// Topics of a broker, for one run or several after each other.
struct Topics<'a> {
    driver: &'a dyn Driver,
    names: Vec<String>,
    runtime: tokio::runtime::Runtime,
    local: tokio::task::LocalSet,
    runs: usize,
}

impl Topics<'_> {
    fn run(
        &mut self,
        workload: &Workload,
        options: &RunOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RunResult, RunError> {
        let before = self.local.block_on(&self.runtime, self.driver.counters());
        let lead = Lead {
            driver: self.driver,
            workload,
            options,
            topics: &self.names,
            run_id: fastrand::u64(1..),
            // What an earlier run has left is not this one's.
            from_start: self.runs == 0,
        };
        self.runs += 1;
        let result = lead.run(&self.runtime, progress)?;
        let after = self.local.block_on(&self.runtime, self.driver.counters());
        Ok(RunResult { counters: added(&before, &after), ..result })
    }
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
    /// Consumers read what is in the topics already.
    from_start: bool,
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
            for _ in 0..workload.subscriptions_per_topic as usize {
                for index in 0..workload.consumer_per_subscription as usize {
                    let share = ConsumerShare {
                        consumers: workload.consumer_per_subscription as usize,
                        index,
                        from_start: self.from_start,
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
        let measured = Arc::new(Measured::default());
        std::thread::scope(|scope| {
            for (at, share) in self.shares(threads).into_iter().enumerate() {
                let core = self.options.client_cores.get(at).copied();
                let thread = Thread {
                    driver: self.driver,
                    workload: self.workload,
                    options: self.options,
                    run_id: self.run_id,
                    measured: measured.clone(),
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
            let result = runtime.block_on(self.lead(&signal, &mut told, &measured, &live, progress));
            signal.send_replace(Signal::Stop);
            result
        })
    }

    async fn lead(
        &self,
        signal: &watch::Sender<Signal>,
        told: &mut mpsc::UnboundedReceiver<Told>,
        measured: &Measured,
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

        let mut watch = Watch { live, last: LastSecond::default() };
        let backlog_bytes = (workload.consumer_backlog_size_gb * 1e9) as u64;
        let began_ns = now_ns();
        let mut filled = 0;
        if backlog_bytes > 0 {
            signal.send_replace(Signal::Backlog);
            loop {
                let now = watch.seen(Phase::Backlog, began_ns, 0.0);
                progress(now);
                filled = now.acknowledged;
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
        measured.begin(Window { from_ns, until_ns: from_ns + workload.measured().as_nanos() as u64 });
        signal.send_replace(Signal::Start { start_ns });
        let mut volume = Volume::of(workload);
        let interval = if volume.is_some() { VOLUME_INTERVAL } else { PROGRESS_INTERVAL };
        let since_start_s = |at_ns: u64| (at_ns - start_ns) as f64 / 1e9;
        let (mut sent, mut backlog_drained_s) = (0, None);
        while sent < threads {
            let window = measured.window();
            let phase = match now_ns() {
                now if now < window.from_ns => Phase::WarmUp,
                now if now < window.until_ns => Phase::Measuring,
                _ => Phase::Draining,
            };
            let mut now = watch.seen(phase, start_ns, since_start_s(window.until_ns));
            if let (Some(volume), Phase::Measuring) = (&mut volume, phase) {
                match volume.seen(&now) {
                    0 => measured.end(window.until_ns.min(now_ns() + VOLUME_END_AFTER.as_nanos() as u64)),
                    left => now.total_s = now.total_s.min(now.elapsed_s + left as f64 / 1e6 / now.speed.mb_s),
                }
            }
            progress(now);
            if backlog_bytes > 0 && backlog_drained_s.is_none() && self.lags_a_second(&now, filled) {
                backlog_drained_s = Some(now.elapsed_s);
            }
            match tokio::time::timeout(interval, told.recv()).await {
                Ok(Some(Told::Sent)) => sent += 1,
                Ok(Some(Told::Failed(error))) => return Err(error),
                Ok(Some(Told::Ready | Told::Ended(_)) | None) | Err(_) => {}
            }
        }
        let window = measured.window();
        let total_s = since_start_s(window.until_ns);
        // Everything has been acknowledged or has failed; what consumers still miss may be on its way.
        let deadline_ns = now_ns() + self.options.drain_timeout.as_nanos() as u64;
        loop {
            let now = watch.seen(Phase::Draining, start_ns, total_s);
            progress(now);
            let caught_up = self.is_caught_up(&now);
            if backlog_bytes > 0 && backlog_drained_s.is_none() && caught_up {
                backlog_drained_s = Some(now.elapsed_s);
            }
            if caught_up || now_ns() > deadline_ns {
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
            window_s: (since_start_s(window.from_ns), total_s),
            backlog_drained_s,
            counters: Vec::new(),
        })
    }

    fn has_consumers(&self) -> bool {
        self.workload.subscriptions_per_topic > 0 && self.workload.consumer_per_subscription > 0
    }

    /// Whether consumers have all but what a second brings: while producing goes on, some records are always
    /// on their way. `filled`: the records of the backlog.
    fn lags_a_second(&self, now: &Progress, filled: u64) -> bool {
        let a_second = now.acknowledged.saturating_sub(filled) as f64 / now.elapsed_s.max(1.0);
        let before = now.acknowledged.saturating_sub(a_second as u64);
        self.is_caught_up(&Progress { acknowledged: before, ..*now })
    }

    fn is_caught_up(&self, now: &Progress) -> bool {
        !self.has_consumers()
            || now.received >= now.acknowledged * u64::from(self.workload.subscriptions_per_topic)
    }
}

/// How much is to be acknowledged in the measured time before it ends.
struct Volume {
    bytes: u64,
    /// Acknowledged before; unknown until the measured time has begun.
    before: Option<u64>,
}

impl Volume {
    fn of(workload: &Workload) -> Option<Self> {
        let bytes = (workload.test_volume_gb * 1e9) as u64;
        (bytes > 0).then_some(Self { bytes, before: None })
    }

    /// Bytes that are missing, from what was acknowledged since measuring began.
    fn seen(&mut self, now: &Progress) -> u64 {
        let before = *self.before.get_or_insert(now.acknowledged_bytes);
        self.bytes.saturating_sub(now.acknowledged_bytes - before)
    }
}

/// Reads what the threads have counted.
struct Watch<'a> {
    live: &'a [Arc<LiveCounters>],
    last: LastSecond,
}

impl Watch<'_> {
    fn seen(&mut self, phase: Phase, start_ns: u64, total_s: f64) -> Progress {
        let now = Counts::of(self.live.iter().map(Arc::as_ref), now_ns());
        let Counts { at_ns, acknowledged, acknowledged_bytes, received, failed, .. } = now;
        Progress {
            phase,
            step: None,
            speed: self.last.add(now),
            elapsed_s: at_ns.saturating_sub(start_ns) as f64 / 1e9,
            total_s,
            acknowledged,
            acknowledged_bytes,
            received,
            failed,
        }
    }
}
