//! Producing: one batch, encoded once, sent again and again.
//!
//! Owner: a run. Each of a connection's `in_flight` workers has one request on its way. The broker
//! overwrites only base offset and leader epoch, which the CRC does not cover, so that one batch serves all.

use crate::load::{Lane, LoadConfig, LoadError, all, is_repeatable, workers};
use crate::meter::Meter;
use bytes::Bytes;
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{Acks, Durability, ErrorCode, PartitionPlace};
use schema::record_batch::BatchBuilder;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const TIMEOUT: Duration = Duration::from_secs(30);
/// After a refusal that says no time of its own.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(1);

/// What became of one request.
enum Outcome {
    Acknowledged(Option<Durability>),
    /// To be sent again after a while.
    Refused(ErrorCode, Duration),
}

/// Sends until the meter says that it is over.
pub async fn run(lanes: &[Lane], config: &LoadConfig, meter: &Rc<RefCell<Meter>>) -> Result<(), LoadError> {
    let batch = batch(config);
    let (records, bytes) = (config.records_per_request as u64, payload_bytes(config));
    let mut running = Vec::new();
    for (lane, worker) in workers(lanes, config.in_flight) {
        let (lane, batch, meter, acks) = (lane.clone(), batch.clone(), meter.clone(), config.acks);
        running.push(tokio::task::spawn_local(async move {
            for at in lane.turns(worker) {
                let sent = Instant::now();
                if meter.borrow().is_over(sent) {
                    break;
                }
                match produce(&lane, lane.places[at], batch.clone(), acks).await? {
                    Outcome::Acknowledged(durability) => {
                        let mut meter = meter.borrow_mut();
                        meter.answered(sent, Instant::now(), records, bytes);
                        meter.durability = durability.map(name).or(meter.durability);
                    }
                    Outcome::Refused(_, wait) => {
                        meter.borrow_mut().refused(Instant::now());
                        tokio::time::sleep(wait).await;
                    }
                }
            }
            Ok(())
        }));
    }
    all(running).await
}

/// Appends about `fill_bytes` to every partition of every lane.
pub async fn fill(lanes: &[Lane], config: &LoadConfig) -> Result<(), LoadError> {
    let batch = batch(config);
    let mut running = Vec::new();
    let mut filled = std::collections::BTreeSet::new();
    for lane in lanes {
        let new: Vec<PartitionPlace> =
            lane.places.iter().filter(|place| filled.insert(place.partition)).copied().collect();
        let missing = Rc::new(Cell::new(config.fill_bytes * new.len() as u64));
        for worker in 0..4 {
            let (lane, new, batch, missing) = (lane.clone(), new.clone(), batch.clone(), missing.clone());
            running.push(tokio::task::spawn_local(async move {
                for place in new.iter().cycle().skip(worker) {
                    if missing.get() == 0 {
                        break;
                    }
                    missing.set(missing.get().saturating_sub(batch.len() as u64));
                    produce_surely(&lane, *place, &batch).await?;
                }
                Ok(())
            }));
        }
    }
    all(running).await
}

/// Sends again what is refused, for a while.
async fn produce_surely(lane: &Lane, place: PartitionPlace, batch: &Bytes) -> Result<(), LoadError> {
    let started = Instant::now();
    while let Outcome::Refused(code, wait) = produce(lane, place, batch.clone(), Acks::Leader).await? {
        if started.elapsed() > TIMEOUT {
            return Err(LoadError::Refused { partition: place.partition, code });
        }
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

async fn produce(lane: &Lane, place: PartitionPlace, batch: Bytes, acks: Acks) -> Result<Outcome, LoadError> {
    let partition = place.partition;
    let entry = ProduceEntry { topic: lane.topic, partition, leader_epoch: place.leader_epoch, batch };
    let request = Request::Produce { acks, explain: false, entries: vec![entry] };
    let response = lane.connection.request(request, TIMEOUT).await?;
    let (code, retry_after, durability) = match (response.error, response.reply) {
        (Some(error), _) => (Some(error.code), error.retry_after, None),
        (None, Reply::Empty) if acks == Acks::None => (None, Duration::ZERO, None),
        (None, Reply::Produce { results, .. }) => {
            let result = results.first().ok_or(LoadError::UnexpectedReply("Produce"))?;
            (result.error, response.throttle, Some(result.durability))
        }
        _ => return Err(LoadError::UnexpectedReply("Produce")),
    };
    match code {
        None => Ok(Outcome::Acknowledged(durability)),
        Some(code) if is_repeatable(code) => Ok(Outcome::Refused(code, retry_after.max(RETRY_AFTER_MIN))),
        Some(code) => Err(LoadError::Refused { partition, code }),
    }
}

/// One batch of values that do not compress.
fn batch(config: &LoadConfig) -> Bytes {
    let mut random = fastrand::Rng::with_seed(1);
    let mut value = vec![0; config.record_bytes];
    let mut builder = BatchBuilder::new();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    for _ in 0..config.records_per_request {
        random.fill(&mut value);
        builder.append(now_ms, None, Some(&value), &[]);
    }
    builder.finish().into()
}

fn payload_bytes(config: &LoadConfig) -> u64 {
    (config.record_bytes * config.records_per_request) as u64
}

fn name(durability: Durability) -> &'static str {
    match durability {
        Durability::None => "none",
        Durability::LeaderDevice => "leader-device",
        Durability::AllInSyncDevice => "all-in-sync-device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::record_batch;

    #[test]
    fn the_batch_is_one_that_a_broker_accepts() {
        for (record_bytes, records_per_request) in [(0, 1), (100, 1), (1000, 1000)] {
            let config = LoadConfig { record_bytes, records_per_request, ..LoadConfig::default() };
            let batch = batch(&config);
            let header = record_batch::validate_produced(&batch, 1 << 20).expect("a sound batch");
            assert_eq!(header.record_count as usize, records_per_request);
            let values: usize = record_batch::records(&batch)
                .unwrap()
                .map(|record| record.unwrap().value.unwrap().len())
                .sum();
            assert_eq!(values as u64, payload_bytes(&config));
        }
    }
}
