//! One thread of a run: its producers, its consumers, and what it is told.
//!
//! Owner: the run that started it; it ends with the run. Lifecycle: connects, says that it is ready, makes a
//! backlog if asked, sends until the end, waits for acknowledgements, receives until told to stop, hands over
//! what it has recorded. Invariant: nothing of it leaves the thread but that recording and the live counters.

use super::open::OpenRecords;
use super::{RunError, RunOptions, Signal, Told};
use crate::driver::{ConsumerShare, Driver, DriverError, Observer, OutgoingRecord, ProducerOptions};
use crate::live::LiveCounters;
use crate::pacer::Pacer;
use crate::recorder::{Recorder, Recording};
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};
use crate::window::Measured;
use crate::workload::{KeyDistributor, Workload};
use bytes::Bytes;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How many keys there are, as in the original.
const KEYS: usize = 10_000;

/// What one thread has to do: its producers and consumers.
#[derive(Default)]
pub(super) struct Share<'a> {
    /// (topic, the producer's number among all).
    pub producers: Vec<(&'a str, usize)>,
    pub consumers: Vec<(&'a str, ConsumerShare)>,
}

/// One thread of the load.
pub(super) struct Thread<'a> {
    pub driver: &'a dyn Driver,
    pub workload: &'a Workload,
    pub options: &'a RunOptions,
    pub run_id: u64,
    pub measured: Arc<Measured>,
    /// Producers of all threads: they share the rate.
    pub producers: usize,
    pub share: Share<'a>,
    pub signals: watch::Receiver<Signal>,
    pub tell: mpsc::UnboundedSender<Told>,
}

impl Thread<'_> {
    /// Does everything on this thread, pinned to `core` if there is one.
    pub fn run(self, core: Option<usize>, live: Arc<LiveCounters>) {
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
        let recorder = Rc::new(Recorder::new(self.run_id, self.measured.clone(), live));
        let observer: Rc<dyn Observer> = recorder.clone();
        let options = ProducerOptions {
            batch_bytes: self.workload.batch_size,
            linger_ms: self.workload.linger_ms,
            in_flight: self.workload.requests_in_flight,
            compression: self.workload.compression,
            explain: self.options.explain,
        };
        let payloads = Rc::new(payloads(self.workload));
        let mut senders = Vec::new();
        for (topic, number) in &self.share.producers {
            let open = Rc::new(OpenRecords::new(recorder.clone()));
            let producer = self.driver.producer(topic, options, open.clone()).await?;
            senders.push(Sender {
                producer,
                number: *number,
                random: fastrand::Rng::with_seed(*number as u64),
                payloads: payloads.clone(),
                run: self.run_id,
                keys: self.workload.key_distributor,
                recorder: recorder.clone(),
                open,
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
        let Signal::Start { start_ns } = signal else { return Ok(recorder.take()) };
        recorder.begin(start_ns);
        tokio::time::sleep(Duration::from_nanos(start_ns.saturating_sub(now_ns()))).await;
        let rate = self.workload.producer_rate / self.producers as f64;
        let limit = match self.workload.records_in_flight as u64 {
            0 => u64::MAX,
            limit => limit,
        };
        let mut sending = tokio::task::JoinSet::new();
        for mut sender in senders {
            let producers = self.producers as u64;
            let measured = self.measured.clone();
            let RunOptions { give_up_after, drain_timeout, .. } = *self.options;
            sending.spawn_local(async move {
                if rate > 0.0 {
                    // Producers of one rate do not send at the same moment.
                    let shift_ns = (1e9 / rate) as u64 * sender.number as u64 / producers;
                    sender.at_rate(start_ns + shift_ns, &measured, rate, give_up_after).await?;
                } else {
                    sender.closed_loop(&measured, limit).await?;
                }
                match tokio::time::timeout(drain_timeout, sender.producer.flush()).await {
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
                    sender.breathe().await;
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
    let ratio = workload.random_share();
    (0..workload.payloads())
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
    open: Rc<OpenRecords>,
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
        // Before it is handed over: a driver may report it before it takes the next.
        self.open.sent();
        self.producer.send(OutgoingRecord { key, value: value.into(), intended_ns }).await
    }

    /// Sends what is intended, however late; no more once it is later than `give_up_after`.
    async fn at_rate(
        &mut self,
        start_ns: u64,
        measured: &Measured,
        rate: f64,
        give_up_after: Option<Duration>,
    ) -> Result<(), RunError> {
        let mut pacer = Pacer::new(start_ns, rate)?;
        loop {
            let intended_ns = pacer.next().await?;
            let until_ns = measured.window().until_ns;
            if intended_ns >= until_ns {
                return Ok(());
            }
            let late_ns = now_ns().saturating_sub(intended_ns);
            if give_up_after.is_some_and(|most| u128::from(late_ns) > most.as_nanos()) {
                self.recorder.abandoned(((until_ns - intended_ns) as f64 / 1e9 * rate).ceil() as u64);
                return Ok(());
            }
            self.send(intended_ns).await?;
            self.breathe().await;
        }
    }

    /// Sends until the end, never with more than `limit` records unacknowledged.
    async fn closed_loop(&mut self, measured: &Measured, limit: u64) -> Result<(), RunError> {
        loop {
            self.open.are_fewer_than(limit).await;
            let now = now_ns();
            if now >= measured.window().until_ns {
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
