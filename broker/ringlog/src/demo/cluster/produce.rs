//! The demo's producer against a cluster: steady, acks=all, idempotent, every acknowledgement noted with its time.

use crate::demo::flights::Flights;
use crate::demo::ledger::Ledger;
use crate::demo::writer::encode_header;
use crate::demo::{PARTITIONS, TOPIC, writer};
use crate::failure::Failure;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use ringlog_client::{Client, DeliveryFuture, Durability, Partitioner, ProducerConfig, ProducerRecord};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Room for what is sent while a partition has no leader, so that the others go on meanwhile.
const BUFFER_BYTES: usize = 128 << 20;
/// Records of one turn of the timer.
const RECORDS_PER_TURN: u64 = 32;

/// What came of it.
pub struct Written {
    /// What was acknowledged.
    pub ledger: Ledger,
    /// Records.
    pub acknowledged: u64,
    /// Acknowledgements that cannot be.
    pub wrong_receipts: u64,
    /// Records that the broker had from an attempt whose answer was lost.
    pub recognised: u64,
    /// By partition: when acknowledgements came, each pause of more than a millisecond as (from, to).
    pub pauses: Vec<Vec<(Instant, Instant)>>,
    /// From sending to acknowledgement, nanoseconds.
    pub acknowledge_ns: Histogram<u64>,
    /// From the first send to the last acknowledgement.
    pub elapsed: Duration,
}

struct Sent {
    future: DeliveryFuture,
    sequence: u32,
    at: Instant,
}

/// Produces everything, evenly over `produce_for`; tells `third` when a third is sent.
pub async fn write(
    client: &Client,
    flights: &Arc<Flights>,
    produce_for: Duration,
    third: oneshot::Sender<()>,
    bar: &ProgressBar,
) -> Result<Written, Failure> {
    let config = ProducerConfig { buffer_memory: BUFFER_BYTES, ..ProducerConfig::default() };
    let producer = client.producer(config);
    let mut noting = JoinSet::new();
    let queues: Vec<_> = (0..PARTITIONS)
        .map(|partition| {
            // Bounded by the producer's memory, as each record holds some until it is acknowledged.
            let (queue, deliveries) = mpsc::unbounded_channel();
            noting.spawn(note(partition, deliveries, bar.clone()));
            queue
        })
        .collect();
    let topic: Arc<str> = TOPIC.into();
    let total = flights.total_records();
    let started = Instant::now();
    let mut third = Some(third);
    for sequence in 0..total {
        if sequence.is_multiple_of(RECORDS_PER_TURN) {
            let due = started + produce_for.mul_f64(sequence as f64 / total as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        if sequence >= total / 3
            && let Some(third) = third.take()
        {
            // Nobody who waits for it: the demo is ending.
            let _ = third.send(());
        }
        let record = flights.record(sequence);
        let belongs = Partitioner::Default.choose(TOPIC, Some(&record.key), None, PARTITIONS).unwrap_or(0);
        let at = Instant::now();
        let header = encode_header(sequence, (at - started).as_nanos() as u64);
        let record = ProducerRecord {
            topic: topic.clone(),
            partition: None,
            key: Some(record.key),
            value: Some(record.value),
            headers: vec![(writer::HEADER.to_owned(), Some(header))],
            timestamp_ms: Some(record.timestamp_ms),
        };
        let future = producer.send(record).await?;
        // Sequence numbers fit: their count is bounded by `--megabytes`.
        let _ = queues[belongs as usize].send(Sent { future, sequence: sequence as u32, at });
    }
    producer.close().await?;
    drop(queues);
    let mut written = Written {
        ledger: Ledger::new(PARTITIONS),
        acknowledged: 0,
        wrong_receipts: 0,
        recognised: 0,
        pauses: vec![Vec::new(); PARTITIONS as usize],
        acknowledge_ns: writer::histogram(),
        elapsed: Duration::ZERO,
    };
    while let Some(noted) = noting.join_next().await {
        written.add(noted.map_err(|error| Failure::operation(error.to_string()))??);
    }
    written.elapsed = started.elapsed();
    bar.finish();
    Ok(written)
}

impl Written {
    fn add(&mut self, noted: Noted) {
        self.wrong_receipts += noted.wrong;
        self.recognised += noted.recognised;
        self.acknowledge_ns.add(&noted.acknowledge_ns).expect("all histograms have the same bounds");
        self.pauses[noted.partition as usize] = noted.pauses;
        for (offset, sequence) in noted.places {
            self.acknowledged += 1;
            if !self.ledger.note(noted.partition, offset, sequence) {
                self.wrong_receipts += 1;
            }
        }
    }
}

/// One partition's acknowledgements.
struct Noted {
    partition: u32,
    /// Offset and sequence number.
    places: Vec<(u64, u32)>,
    wrong: u64,
    recognised: u64,
    pauses: Vec<(Instant, Instant)>,
    acknowledge_ns: Histogram<u64>,
}

async fn note(
    partition: u32,
    mut deliveries: mpsc::UnboundedReceiver<Sent>,
    bar: ProgressBar,
) -> Result<Noted, Failure> {
    let mut noted = Noted {
        partition,
        places: Vec::new(),
        wrong: 0,
        recognised: 0,
        pauses: Vec::new(),
        acknowledge_ns: writer::histogram(),
    };
    let mut last: Option<Instant> = None;
    while let Some(sent) = deliveries.recv().await {
        let receipt = sent.future.await?;
        let now = Instant::now();
        noted.acknowledge_ns.saturating_record((now - sent.at).as_nanos() as u64);
        if let Some(last) = last.filter(|last| now - *last > Duration::from_millis(1)) {
            noted.pauses.push((last, now));
        }
        last = Some(now);
        if receipt.partition != partition || receipt.durability != Durability::AllInSyncDevice {
            noted.wrong += 1;
        }
        noted.recognised += u64::from(receipt.duplicate);
        noted.places.push((receipt.offset, sent.sequence));
        bar.inc(1);
    }
    Ok(noted)
}
