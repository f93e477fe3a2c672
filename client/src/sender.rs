//! The one task that sends a producer's batches.
//!
//! Owner: spawned by [`crate::Producer`], which it does not keep alive. Lifecycle: runs until the
//! accumulator is closed and everything in it is settled; when its runtime ends before that, what is
//! left fails as closed. Invariants: it alone drains and settles; requests of a connection are sent in
//! the order in which they were drained, because sending does not await. Absent on purpose: the rules
//! of what may leave when, which are the accumulator's.

use crate::accumulator::{Batch, Flight, Verdict, Work};
use crate::client::ClientError;
use crate::cluster::{Home, Topic};
use crate::connection::{Connection, ConnectionError};
use crate::delivery::{Anatomy, BatchReceipt, ProduceError, Receipt};
use crate::producer::Shared;
use crate::reply::{BrokerAnatomy, BrokerError, Durability, ProduceResult, Reply, Response};
use crate::request::{Acks, ProduceEntry, Request, TopicId};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use schema::error_code::{Class, ErrorCode};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often deadlines are looked at, as a share of the delivery timeout.
const TICKS_PER_TIMEOUT: u32 = 16;
/// Bounds of that.
const TICK_MIN: Duration = Duration::from_millis(5);
const TICK_MAX: Duration = Duration::from_secs(1);

enum Event {
    Opened(Home, Result<Connection, ClientError>),
    Landed(Landing),
    Learnt(usize, Result<Arc<Topic>, ClientError>),
    Identified(Result<(i64, i16), ClientError>),
}

/// A request that has come back.
struct Landing {
    home: Home,
    cargo: Vec<(Batch, TopicId)>,
    sent_at: Instant,
    result: Result<Response, ConnectionError>,
}

/// Fails what is left when the task ends, however it ends.
struct LastRites(Arc<Shared>);

impl Drop for LastRites {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let last_rites = LastRites(shared);
    let mut sender = Sender {
        shared: &last_rites.0,
        connections: HashMap::new(),
        events: FuturesUnordered::new(),
        ticked_at: Instant::now(),
        look_again: false,
    };
    sender.run().await;
}

struct Sender<'a> {
    shared: &'a Arc<Shared>,
    connections: HashMap<Home, Connection>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    ticked_at: Instant,
    /// Something changed after the last drain without an event to come.
    look_again: bool,
}

impl Sender<'_> {
    async fn run(&mut self) {
        let tick = (self.shared.config.delivery_timeout / TICKS_PER_TIMEOUT).clamp(TICK_MIN, TICK_MAX);
        let mut work = Vec::new();
        loop {
            let now = Instant::now();
            let next = {
                let mut accumulator = self.shared.lock();
                self.connections.retain(|home, connection| {
                    let open = !connection.is_closed();
                    if !open {
                        accumulator.lost(*home);
                    }
                    open
                });
                if now >= self.ticked_at + tick {
                    self.ticked_at = now;
                    accumulator.expire(now);
                }
                if accumulator.is_done() {
                    return;
                }
                let pressed = self.shared.pressed.load(Ordering::Relaxed) > 0;
                let next = accumulator.drain(now, pressed, &mut work);
                let next_tick = accumulator.has_unsettled().then(|| self.ticked_at + tick);
                [next, next_tick].into_iter().flatten().min()
            };
            for item in work.drain(..) {
                self.begin(item);
            }
            if std::mem::take(&mut self.look_again) {
                continue;
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                Some(event) = self.events.next() => {
                    self.handle(event);
                    self.handle_ready();
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Handles what has happened besides, so that one drain serves it all.
    fn handle_ready(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.handle(event);
        }
    }

    fn begin(&mut self, work: Work) {
        match work {
            Work::Open(home) => {
                let cluster = self.shared.cluster.clone();
                let opening = async move { Event::Opened(home, cluster.connection(home).await) };
                self.events.push(Box::pin(opening));
            }
            Work::Refresh(index, name) => {
                let cluster = self.shared.cluster.clone();
                let asked_at = Instant::now();
                let learning = async move { Event::Learnt(index, cluster.relearn(&name, asked_at).await) };
                self.events.push(Box::pin(learning));
            }
            Work::Identify => {
                let cluster = self.shared.cluster.clone();
                let asking = async move {
                    let reply = cluster.ask(Request::InitProducer { known: None }).await;
                    Event::Identified(reply.and_then(|reply| match reply {
                        Reply::Producer(id, epoch) if id >= 0 && epoch >= 0 => Ok((id, epoch)),
                        _ => Err(ClientError::UnexpectedReply { request: "InitProducer" }),
                    }))
                };
                self.events.push(Box::pin(asking));
            }
            Work::Send(flight) => self.send(flight),
            Work::Abandon(home) => {
                if let Some(connection) = self.connections.get(&home) {
                    connection.give_up("it does not answer, and others lead by now");
                }
            }
        }
    }

    fn send(&mut self, flight: Flight) {
        let home = flight.home;
        let config = &self.shared.config;
        let now = Instant::now();
        let mut entries = Vec::with_capacity(flight.cargo.len());
        let mut cargo = Vec::with_capacity(flight.cargo.len());
        let mut left = config.delivery_timeout;
        for (mut batch, topic, leader_epoch) in flight.cargo {
            entries.push(ProduceEntry {
                topic,
                partition: batch.route.partition,
                leader_epoch,
                batch: batch.encoded(config.compression),
            });
            left = left.min((batch.created_at + config.delivery_timeout).saturating_duration_since(now));
            cargo.push((batch, topic));
        }
        let timeout = left.clamp(Duration::from_millis(1), self.shared.cluster.config.request_timeout);
        let request = Request::Produce { acks: config.acks, explain: config.explain, entries };
        // The lane is open, so there is a connection; one that has just broken says so when used.
        let sent = match self.connections.get(&home) {
            Some(connection) => connection.send(request, timeout),
            None => Err(ConnectionError::Lost { address: "?".into(), reason: "not connected".into() }),
        };
        let landing = move |cargo, result| Event::Landed(Landing { home, cargo, sent_at: now, result });
        match sent {
            Ok(reply) => {
                self.events.push(Box::pin(async move { landing(cargo, reply.wait().await) }));
            }
            Err(error) => {
                self.handle(landing(cargo, Err(error)));
                self.look_again = true;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Opened(home, Ok(connection)) => {
                let request_bytes_max = connection.hello().max_request_bytes as usize;
                self.connections.insert(home, connection);
                self.shared.lock().opened(home, request_bytes_max);
            }
            Event::Opened(home, Err(error)) => {
                let reason: Arc<str> = error.to_string().into();
                let backoff = |failures| self.shared.cluster.config.backoff(failures);
                self.shared.lock().not_opened(home, &reason, backoff, now);
            }
            Event::Learnt(index, result) => {
                let mut accumulator = self.shared.lock();
                match result {
                    Ok(topic) => {
                        accumulator.learn(topic, now);
                    }
                    Err(error @ ClientError::UnknownTopic { .. }) => accumulator.fail_topic(index, &error),
                    // No broker answers just now. The batches wait; what is tried next asks again.
                    Err(_) => {}
                }
                accumulator.refreshed(index);
            }
            Event::Identified(Ok((id, epoch))) => self.shared.lock().identified(id, epoch),
            Event::Identified(Err(error)) => {
                let backoff = |failures| self.shared.cluster.config.backoff(failures);
                self.shared.lock().not_identified(&error, backoff, now);
            }
            Event::Landed(landing) => self.land(landing, now),
        }
    }

    fn land(&mut self, landing: Landing, now: Instant) {
        let Landing { home, cargo, sent_at, result } = landing;
        let (throttle, verdicts) = self.judge(&cargo, sent_at, result, now);
        let mut accumulator = self.shared.lock();
        accumulator.landed(home, throttle, now);
        for ((batch, _), verdict) in cargo.into_iter().zip(verdicts) {
            let backoff = self.shared.cluster.config.backoff(batch.attempts + 1);
            accumulator.settle(batch, verdict, backoff, now);
        }
    }

    /// What a reply means for each batch, in their order.
    fn judge(
        &self,
        cargo: &[(Batch, TopicId)],
        sent_at: Instant,
        result: Result<Response, ConnectionError>,
        now: Instant,
    ) -> (Duration, Vec<Verdict>) {
        let all =
            |verdict: &dyn Fn(&Batch) -> Verdict| cargo.iter().map(|(batch, _)| verdict(batch)).collect();
        let response = match result {
            Ok(response) => response,
            Err(error) => return (Duration::ZERO, all(&|batch| self.judge_connection(batch, &error))),
        };
        let throttle = response.throttle;
        if let Some(error) = &response.error {
            return (throttle, all(&|batch| self.judge_refusal(batch, error)));
        }
        let verdicts = match response.reply {
            Reply::Empty if self.shared.config.acks == Acks::None => {
                all(&|batch| Verdict::Acknowledged(unacknowledged(batch)))
            }
            Reply::Produce { results, anatomy } if matches_request(cargo, &results) => (cargo.iter())
                .zip(&results)
                .map(|((batch, _), result)| match result.error {
                    Some(code) => {
                        let error = BrokerError { message: response.note.clone(), ..BrokerError::of(code) };
                        self.judge_refusal(batch, &error)
                    }
                    None => Verdict::Acknowledged(receipt(batch, result, anatomy, sent_at, now)),
                })
                .collect(),
            _ => all(&|_| Verdict::Failed(ProduceError::UnexpectedReply)),
        };
        (throttle, verdicts)
    }

    fn judge_connection(&self, batch: &Batch, error: &ConnectionError) -> Verdict {
        let outcome_unknown = error.outcome_unknown();
        match error {
            ConnectionError::RequestTooLarge { .. } => {
                Verdict::Failed(ProduceError::Connection(error.clone()))
            }
            _ if outcome_unknown && !self.shared.config.resend_when_unknown => {
                Verdict::Failed(self.outcome_unknown(batch, error))
            }
            ConnectionError::Unreachable { .. }
            | ConnectionError::Unanswered { .. }
            | ConnectionError::Lost { .. }
            | ConnectionError::TimedOut { .. }
            | ConnectionError::Protocol { .. }
            | ConnectionError::TooManyPending { .. } => Verdict::Retry {
                wait: Duration::ZERO,
                refresh: !matches!(error, ConnectionError::TooManyPending { .. }),
                outcome_unknown,
                reason: error.to_string().into(),
            },
        }
    }

    fn judge_refusal(&self, batch: &Batch, error: &BrokerError) -> Verdict {
        let retry = |refresh, outcome_unknown| Verdict::Retry {
            wait: error.retry_after,
            refresh,
            outcome_unknown,
            reason: error.to_string().into(),
        };
        if batch.is_recognised() {
            let out_of_sequence = || Verdict::OutOfSequence { reason: error.to_string().into() };
            match error.code {
                ErrorCode::OutOfOrderSequence => return out_of_sequence(),
                // It is in the log, and the broker has forgotten where.
                ErrorCode::DuplicateSequence => return Verdict::Failed(self.outcome_unknown(batch, error)),
                // The broker cannot say whether it has a batch of a producer that it does not know any more.
                ErrorCode::UnknownProducerId | ErrorCode::InvalidProducerEpoch => {
                    return match batch.outcome_unknown {
                        true => Verdict::Failed(self.outcome_unknown(batch, error)),
                        false => out_of_sequence(),
                    };
                }
                _ => {}
            }
        }
        match error.class() {
            Class::Retry => retry(false, false),
            // A leader that is none any more cannot say what becomes of what it had appended.
            Class::RefreshAndRetry if error.code == ErrorCode::NotLeader => {
                match self.shared.config.resend_when_unknown {
                    true => retry(true, true),
                    false => Verdict::Failed(self.outcome_unknown(batch, error)),
                }
            }
            Class::RefreshAndRetry => retry(true, false),
            Class::Unknown if self.shared.config.resend_when_unknown => retry(false, true),
            Class::Unknown => Verdict::Failed(self.outcome_unknown(batch, error)),
            Class::Fatal => Verdict::Failed(ProduceError::Refused {
                topic: self.shared.lock().topic_name(batch.route),
                partition: batch.route.partition,
                error: error.clone(),
            }),
        }
    }

    fn outcome_unknown(&self, batch: &Batch, error: &dyn std::fmt::Display) -> ProduceError {
        ProduceError::OutcomeUnknown {
            topic: self.shared.lock().topic_name(batch.route),
            partition: batch.route.partition,
            error: error.to_string().into(),
        }
    }
}

fn matches_request(cargo: &[(Batch, TopicId)], results: &[ProduceResult]) -> bool {
    let same = |((batch, topic), result): (&(Batch, TopicId), &ProduceResult)| {
        *topic == result.topic && batch.route.partition == result.partition
    };
    cargo.len() == results.len() && cargo.iter().zip(results).all(same)
}

/// What can be said of a batch that nobody acknowledges.
fn unacknowledged(batch: &Batch) -> BatchReceipt {
    BatchReceipt {
        partition: batch.route.partition,
        base_offset: Receipt::OFFSET_UNKNOWN,
        record_count: batch.record_count,
        durability: Durability::None,
        durable_end: 0,
        append_time_ms: -1,
        duplicate: false,
        anatomy: None,
    }
}

fn receipt(
    batch: &Batch,
    result: &ProduceResult,
    anatomy: Option<BrokerAnatomy>,
    sent_at: Instant,
    now: Instant,
) -> BatchReceipt {
    BatchReceipt {
        partition: result.partition,
        base_offset: result.base_offset,
        record_count: batch.record_count,
        durability: result.durability,
        durable_end: result.durable_end,
        append_time_ms: result.append_time_ms,
        duplicate: result.duplicate,
        anatomy: anatomy.map(|broker| Anatomy {
            client_queue_ns: sent_at.saturating_duration_since(batch.created_at).as_nanos() as u64,
            round_trip_ns: now.saturating_duration_since(sent_at).as_nanos() as u64,
            broker,
        }),
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}
