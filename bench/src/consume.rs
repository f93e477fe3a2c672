//! Consuming: fetches one after the other from the start of a partition to its end, and again; of several in turn.
//!
//! Owner: a run. Each of a connection's `in_flight` workers reads its partitions on its own. Batches are
//! walked by their headers, as every consumer must, and checked by their CRC where that is asked for.

use crate::load::{Lane, LoadConfig, LoadError, all, is_repeatable, workers};
use crate::meter::Meter;
use ringlog_client::reply::Reply;
use ringlog_client::request::{FetchEntry, Request};
use ringlog_client::{PartitionLog, PartitionPlace};
use schema::record_batch::{self, BatchError};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Reads until the meter says that it is over. `logs` has the partitions' first offsets.
pub async fn run(
    lanes: &[Lane],
    logs: &[PartitionLog],
    config: &LoadConfig,
    meter: &Rc<RefCell<Meter>>,
) -> Result<(), LoadError> {
    let mut running = Vec::new();
    for (lane, worker) in workers(lanes, config.in_flight) {
        let mut offsets = Vec::with_capacity(lane.places.len());
        for place in lane.places.iter() {
            let log = logs.iter().find(|log| log.partition == place.partition);
            let log = log.ok_or(LoadError::UnexpectedReply("DescribeLogs"))?;
            if log.log_start == log.high_watermark {
                let partition = log.partition;
                return Err(LoadError::Invalid(format!(
                    "partition {partition} is empty: produce to it first"
                )));
            }
            offsets.push((log.log_start, log.log_start));
        }
        let (lane, meter) = (lane.clone(), meter.clone());
        let (fetch_bytes, verify) = (config.fetch_bytes, config.verify);
        running.push(tokio::task::spawn_local(async move {
            for at in lane.turns(worker) {
                let sent = Instant::now();
                if meter.borrow().is_over(sent) {
                    break;
                }
                let (first, offset) = &mut offsets[at];
                match fetch(&lane, lane.places[at], *offset, fetch_bytes, verify).await? {
                    Some(read) => {
                        meter.borrow_mut().answered(sent, Instant::now(), read.records, read.bytes);
                        // Nothing new is the end: from the start again.
                        *offset = read.end_offset.unwrap_or(*first);
                    }
                    None => {
                        meter.borrow_mut().refused(Instant::now());
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            Ok(())
        }));
    }
    all(running).await
}

struct Read {
    end_offset: Option<u64>,
    records: u64,
    bytes: u64,
}

/// `None` is a refusal that may be repeated.
async fn fetch(
    lane: &Lane,
    place: PartitionPlace,
    offset: u64,
    max_bytes: u32,
    verify: bool,
) -> Result<Option<Read>, LoadError> {
    let partition = place.partition;
    let entry =
        FetchEntry { topic: lane.topic, partition, leader_epoch: place.leader_epoch, offset, max_bytes };
    let request =
        Request::Fetch { max_wait_ms: 0, min_bytes: 1, max_bytes, rack: None, entries: vec![entry] };
    let response = lane.connection.request(request, TIMEOUT).await?;
    let (code, result) = match (response.error, response.reply) {
        (Some(error), _) => (Some(error.code), None),
        (None, Reply::Fetch(results)) => {
            let result = results.into_iter().next().ok_or(LoadError::UnexpectedReply("Fetch"))?;
            (result.error, Some(result))
        }
        _ => return Err(LoadError::UnexpectedReply("Fetch")),
    };
    match (code, result) {
        (None, Some(result)) => match walk(&result.batches, verify) {
            Ok(read) => Ok(Some(read)),
            Err(error) => Err(LoadError::Damaged { partition, offset, error }),
        },
        (Some(code), _) if is_repeatable(code) => Ok(None),
        (Some(code), _) => Err(LoadError::Refused { partition, code }),
        (None, None) => Err(LoadError::UnexpectedReply("Fetch")),
    }
}

fn walk(batches: &[u8], verify: bool) -> Result<Read, BatchError> {
    let mut read = Read { end_offset: None, records: 0, bytes: batches.len() as u64 };
    for batch in record_batch::batches(batches) {
        let (header, bytes) = batch?;
        if verify {
            record_batch::verify(bytes)?;
        }
        read.end_offset = Some(header.end_offset());
        read.records += u64::from(header.record_count);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::record_batch::{BatchBuilder, set_base_offset};

    fn batches() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut builder = BatchBuilder::new();
        for base_offset in [10, 12] {
            builder.append(0, None, Some(b"one"), &[]);
            builder.append(0, None, Some(b"two"), &[]);
            let mut batch = builder.finish();
            set_base_offset(&mut batch, base_offset);
            bytes.extend(batch);
        }
        bytes
    }

    #[test]
    fn walking_counts_and_checks() {
        let whole = batches();
        let read = walk(&whole, true).unwrap();
        assert_eq!((read.end_offset, read.records, read.bytes), (Some(14), 4, whole.len() as u64));
        assert_eq!(walk(&[], true).unwrap().end_offset, None);

        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(matches!(walk(&flipped, true), Err(BatchError::Crc { .. })));
        assert!(walk(&flipped, false).is_ok(), "without the check nobody looks");
        assert!(matches!(walk(&whole[..whole.len() - 1], false), Err(BatchError::Truncated { .. })));
    }
}
