//! The demo's producer: every record once, in order, durable, each acknowledgement noted.
//!
//! Owner: a thread with a runtime of its own. One task per partition awaits that partition's deliveries in
//! the order of sending, so that no latency contains the wait for another partition's.
//! First as fast as it goes, then for a while at a steady rate: a latency at full rate is mostly the length of
//! the queue, one at a steady rate is what an acknowledgement takes.
//! Each record carries its sequence number and the time of its sending in one header.

use super::flights::Flights;
use super::ledger::Ledger;
use super::{PARTITIONS, TOPIC};
use crate::failure::Failure;
use bytes::{BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use ringlog_client::{
    BrokerStatus, Client, DeliveryFuture, Durability, Partitioner, Producer, ProducerConfig, ProducerRecord,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The name of the header.
pub const HEADER: &str = "sent";
/// Sequence number and nanoseconds since the demo's origin, big-endian.
pub const HEADER_BYTES: usize = 16;
/// What may be on its way: enough for full batches of all partitions, little enough that a latency is
/// not mostly a queue.
const BUFFER_BYTES: usize = 4 << 20;
const PROGRESS_STEP: u64 = 4096;
/// After so many records the writer lets the connection and the acknowledgements have the thread.
const RECORDS_PER_TURN: u64 = 32;
/// Records per second of the steady part: few enough that nothing queues.
pub const STEADY_RECORDS_S: u64 = 20_000;
const STEADY_SECONDS: u64 = 2;

/// The two parts of producing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// As fast as it goes: rates, and latencies of a full pipe.
    FullRate,
    /// At [`STEADY_RECORDS_S`]: latencies of a pipe that is not full.
    Steady,
}

impl Part {
    /// How many records the first part has.
    pub fn records_at_full_rate(flights: &Flights) -> u64 {
        let total = flights.total_records();
        total - (STEADY_RECORDS_S * STEADY_SECONDS).min(total / 4)
    }

    /// The part of a record.
    pub fn of(sequence: u64, flights: &Flights) -> Self {
        if sequence < Self::records_at_full_rate(flights) { Part::FullRate } else { Part::Steady }
    }
}

/// What came of it.
pub struct Written {
    /// What was acknowledged.
    pub ledger: Ledger,
    /// Records, of both parts.
    pub acknowledged: u64,
    /// Acknowledgements that cannot be: an offset twice, another partition than the key's, less durability
    /// than asked for.
    pub wrong_receipts: u64,
    /// Of keys and values.
    pub bytes_at_full_rate: u64,
    /// At full rate: from the first send to the last acknowledgement.
    pub elapsed: Duration,
    /// From sending to acknowledgement, nanoseconds; by [`Part`].
    pub acknowledge_ns: [Histogram<u64>; 2],
    /// The broker's counters before.
    pub status_before: BrokerStatus,
    /// The broker's counters after the part at full rate.
    pub status_after: BrokerStatus,
}

struct Sent {
    future: DeliveryFuture,
    sequence: u32,
    at: Instant,
}

/// Latencies from a nanosecond to two minutes.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("valid bounds")
}

/// Produces everything and waits for every acknowledgement.
pub async fn write(
    client: &Client,
    flights: &Arc<Flights>,
    origin: Instant,
    bar: &ProgressBar,
) -> Result<Written, Failure> {
    let producer = client.producer(ProducerConfig {
        batch_size: 256 << 10,
        buffer_memory: BUFFER_BYTES,
        // A duplicate is to be the broker's fault, not ours.
        resend_when_unknown: false,
        ..ProducerConfig::default()
    });
    let mut noting = JoinSet::new();
    let queues = (0..PARTITIONS).map(|partition| {
        // Bounded by the producer's memory, as each record holds some until it is acknowledged.
        let (queue, deliveries) = mpsc::unbounded_channel();
        noting.spawn(note(partition, flights.clone(), deliveries, bar.clone()));
        queue
    });
    let writer = Writer { topic: TOPIC.into(), producer, flights, origin, queues: queues.collect() };
    let status_before = client.admin().status().await?;
    let started = Instant::now();
    let bytes_at_full_rate = writer.send_at_full_rate().await?;
    writer.producer.flush().await?;
    let elapsed = started.elapsed();
    let status_after = client.admin().status().await?;
    writer.send_steadily().await?;
    writer.producer.close().await?;
    drop(writer.queues);
    let mut written = Written {
        ledger: Ledger::new(PARTITIONS),
        acknowledged: 0,
        wrong_receipts: 0,
        bytes_at_full_rate,
        elapsed,
        acknowledge_ns: [histogram(), histogram()],
        status_before,
        status_after,
    };
    while let Some(noted) = noting.join_next().await {
        written.add(noted.map_err(|error| Failure::operation(error.to_string()))??);
    }
    bar.finish();
    Ok(written)
}

impl Written {
    fn add(&mut self, noted: Noted) {
        self.wrong_receipts += noted.wrong;
        for (sum, part) in self.acknowledge_ns.iter_mut().zip(&noted.acknowledge_ns) {
            sum.add(part).expect("all histograms have the same bounds");
        }
        for (offset, sequence) in noted.places {
            self.acknowledged += 1;
            if !self.ledger.note(noted.partition, offset, sequence) {
                self.wrong_receipts += 1;
            }
        }
    }
}

struct Writer<'a> {
    topic: Arc<str>,
    producer: Producer,
    flights: &'a Flights,
    origin: Instant,
    /// By partition.
    queues: Vec<mpsc::UnboundedSender<Sent>>,
}

impl Writer<'_> {
    /// Gives the bytes of keys and values.
    async fn send_at_full_rate(&self) -> Result<u64, Failure> {
        let mut bytes = 0;
        for sequence in 0..Part::records_at_full_rate(self.flights) {
            bytes += self.send(sequence).await?;
            if sequence.is_multiple_of(RECORDS_PER_TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(bytes)
    }

    async fn send_steadily(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let first = Part::records_at_full_rate(self.flights);
        for sequence in first..self.flights.total_records() {
            let due = started + Duration::from_nanos((sequence - first) * 1_000_000_000 / STEADY_RECORDS_S);
            // The timer ticks in milliseconds: what is due within one goes together.
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            self.send(sequence).await?;
        }
        Ok(())
    }

    /// Gives the bytes of key and value.
    async fn send(&self, sequence: u64) -> Result<u64, Failure> {
        let record = self.flights.record(sequence);
        let bytes = record.key.len() + record.value.len();
        // Where Kafka's clients would put the key; the receipt must say the same.
        let belongs = Partitioner::Default.choose(TOPIC, Some(&record.key), None, PARTITIONS).unwrap_or(0);
        let at = Instant::now();
        let header = encode_header(sequence, (at - self.origin).as_nanos() as u64);
        let record = ProducerRecord {
            topic: self.topic.clone(),
            partition: None,
            key: Some(record.key),
            value: Some(record.value),
            headers: vec![(HEADER.to_owned(), Some(header))],
            timestamp_ms: Some(record.timestamp_ms),
        };
        let future = self.producer.send(record).await?;
        // Sequence numbers fit: their count is bounded by `--megabytes`.
        let sent = Sent { future, sequence: sequence as u32, at };
        // A task that has ended did so with an error, which the flush tells.
        let _ = self.queues[belongs as usize].send(sent);
        Ok(bytes as u64)
    }
}

/// One partition's acknowledgements.
struct Noted {
    partition: u32,
    /// Offset and sequence number.
    places: Vec<(u64, u32)>,
    wrong: u64,
    acknowledge_ns: [Histogram<u64>; 2],
}

async fn note(
    partition: u32,
    flights: Arc<Flights>,
    mut deliveries: mpsc::UnboundedReceiver<Sent>,
    bar: ProgressBar,
) -> Result<Noted, Failure> {
    let mut noted =
        Noted { partition, places: Vec::new(), wrong: 0, acknowledge_ns: [histogram(), histogram()] };
    let mut not_shown = 0;
    while let Some(sent) = deliveries.recv().await {
        let receipt = sent.future.await?;
        let part = Part::of(u64::from(sent.sequence), &flights) as usize;
        noted.acknowledge_ns[part].saturating_record(sent.at.elapsed().as_nanos() as u64);
        if receipt.partition != partition || receipt.durability == Durability::None {
            noted.wrong += 1;
        }
        noted.places.push((receipt.offset, sent.sequence));
        not_shown += 1;
        if not_shown == PROGRESS_STEP {
            bar.inc(std::mem::take(&mut not_shown));
        }
    }
    Ok(noted)
}

/// Sequence number and time of sending, from a record's header.
pub fn decode_header(value: &[u8]) -> Option<(u64, u64)> {
    let (sequence, rest) = value.split_first_chunk()?;
    let (sent_ns, rest) = rest.split_first_chunk()?;
    rest.is_empty().then(|| (u64::from_be_bytes(*sequence), u64::from_be_bytes(*sent_ns)))
}

/// The opposite of [`decode_header`].
pub fn encode_header(sequence: u64, sent_ns: u64) -> Bytes {
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_u64(sequence);
    header.put_u64(sent_ns);
    header.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = encode_header(7, u64::MAX);
        assert_eq!(header.len(), HEADER_BYTES);
        assert_eq!(decode_header(&header), Some((7, u64::MAX)));
        for wrong in [&b""[..], &header[..15], &[&header[..], b"x"].concat()] {
            assert_eq!(decode_header(wrong), None, "{} bytes", wrong.len());
        }
    }
}
