//! One reading of the demo's topic: from given offsets, to a given end, every record looked at.
//!
//! Owner: whoever runs it, on its runtime. Batches are read as they lie in the memory that the socket
//! filled; each record's header tells its number and when it was sent.
//! Invariant: ends when every partition's position has reached its end, or when nothing came for
//! [`STALLED_AFTER`], which leaves records lost in the comparison.

use super::flights::Flights;
use super::ledger::Tally;
use super::writer::{HEADER, Part, decode_header, histogram};
use super::{PARTITIONS, TOPIC};
use crate::failure::Failure;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use ringlog_client::{Client, Consumer, ConsumerConfig, FetchedBatch, StartFrom};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longer than any pause of a disk that works.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Where a reading ends.
pub enum Until {
    /// At these offsets.
    Ends(Vec<u64>),
    /// At the offsets that the writer will tell when it has finished.
    Finished(watch::Receiver<Option<Vec<u64>>>),
}

/// What came of it.
pub struct Reading {
    /// What was read.
    pub tally: Tally,
    /// From the assignment to the last record.
    pub elapsed: Duration,
    /// From sending to reading, nanoseconds; by [`Part`].
    pub end_to_end_ns: [Histogram<u64>; 2],
}

/// Reads all partitions from `starts`.
pub async fn read(
    client: &Client,
    flights: &Flights,
    starts: &[u64],
    mut until: Until,
    origin: Instant,
    bar: &ProgressBar,
) -> Result<Reading, Failure> {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let from: Vec<_> =
        (0..).zip(starts).map(|(partition, start)| (partition, StartFrom::Offset(*start))).collect();
    let started = Instant::now();
    consumer.assign(TOPIC, &from).await?;
    let mut reading = Reading {
        tally: Tally::new(flights, PARTITIONS),
        elapsed: Duration::ZERO,
        end_to_end_ns: [histogram(), histogram()],
    };
    loop {
        if let Until::Ends(ends) = &until
            && at_ends(&consumer, ends)
        {
            break;
        }
        match next(&mut consumer, &mut until).await? {
            Next::Fetched(fetched) => {
                reading.note(flights, &fetched, origin)?;
                reading.elapsed = started.elapsed();
                bar.set_position(reading.tally.records);
            }
            Next::Finished(ends) => until = Until::Ends(ends),
            Next::Stalled => break,
        }
    }
    bar.finish();
    Ok(reading)
}

enum Next {
    Fetched(FetchedBatch),
    Finished(Vec<u64>),
    Stalled,
}

async fn next(consumer: &mut Consumer, until: &mut Until) -> Result<Next, Failure> {
    let finished = async {
        match until {
            Until::Ends(_) => std::future::pending().await,
            Until::Finished(watching) => {
                let ends = watching.wait_for(Option::is_some).await;
                ends.map(|ends| ends.clone().unwrap_or_default())
            }
        }
    };
    tokio::select! {
        fetched = consumer.next_batch() => match fetched {
            Some(fetched) => Ok(Next::Fetched(fetched?)),
            None => Ok(Next::Stalled),
        },
        ends = finished => match ends {
            Ok(ends) => Ok(Next::Finished(ends)),
            Err(_) => Err(Failure::operation("the writer ended before it had finished")),
        },
        () = tokio::time::sleep(STALLED_AFTER) => Ok(Next::Stalled),
    }
}

fn at_ends(consumer: &Consumer, ends: &[u64]) -> bool {
    let mut ends = (0..).zip(ends);
    ends.all(|(partition, end)| consumer.position(TOPIC, partition).is_none_or(|position| position >= *end))
}

impl Reading {
    fn note(&mut self, flights: &Flights, fetched: &FetchedBatch, origin: Instant) -> Result<(), Failure> {
        // All records of a batch arrived together.
        let now_ns = origin.elapsed().as_nanos() as u64;
        for record in fetched.records() {
            let record = record?;
            let header = record.headers().next().and_then(Result::ok);
            let header = header.filter(|(name, _)| *name == HEADER).and_then(|(_, value)| value);
            let header = header.and_then(decode_header);
            if let Some((sequence, sent_ns)) = header {
                let part = Part::of(sequence, flights) as usize;
                self.end_to_end_ns[part].saturating_record(now_ns.saturating_sub(sent_ns));
            }
            let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
            let sequence = header.map(|(sequence, _)| sequence);
            self.tally.note(flights, fetched.partition(), record.offset, sequence, key, value);
        }
        Ok(())
    }
}
