//! What was acknowledged: per partition, and where the time went.
//!
//! Owner: the collecting side of one `ringlog produce`, then its output. Deliveries are awaited in the order
//! of sending; that is enough to count them and costs one queue.

use super::Delivery;
use super::receipts::Receipts;
use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted, duration_us, grouped};
use hdrhistogram::Histogram;
use ringlog_client::{Anatomy, Durability, ProduceError, Receipt};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// What one partition acknowledged.
#[derive(Clone, Copy)]
struct Acknowledged {
    records: u64,
    /// `None` where nobody tells.
    first_offset: Option<u64>,
    last_offset: Option<u64>,
    durability: Durability,
}

/// The parts of an acknowledgement's time, in their order.
pub const PARTS: [&str; 8] =
    ["client queue", "round trip", "receive", "core hop", "append", "device", "replicate", "acknowledge"];

/// See the module.
pub struct Tally {
    /// Records.
    pub acknowledged: u64,
    /// Records.
    pub failed: u64,
    /// Of those acknowledged: records that the broker had from an attempt whose answer was lost.
    duplicates: u64,
    /// Of those that failed.
    pub first_error: Option<ProduceError>,
    line_bytes: u64,
    partitions: BTreeMap<u32, Acknowledged>,
    /// One per [`PARTS`]; empty without anatomies.
    parts_ns: Vec<Histogram<u64>>,
}

impl Tally {
    /// Awaits all deliveries; with `receipts` each is printed. After the first failure it takes no more: the
    /// sender sees the closed queue.
    ///
    /// # Errors
    /// Of the output.
    pub async fn collect(
        topic: &str,
        mut deliveries: mpsc::UnboundedReceiver<Delivery>,
        mut receipts: Option<Receipts>,
        output: &mut Output,
    ) -> Result<Self, Failure> {
        let mut tally = Self {
            acknowledged: 0,
            failed: 0,
            duplicates: 0,
            first_error: None,
            line_bytes: 0,
            partitions: BTreeMap::new(),
            parts_ns: Vec::new(),
        };
        while let Some(mut delivery) = deliveries.recv().await {
            let delivered = tokio::select! {
                biased;
                delivered = &mut delivery.future => delivered,
                // Who reads along has all there is before this waits.
                () = std::future::ready(()) => {
                    output.flush()?;
                    delivery.future.await
                }
            };
            match delivered {
                Ok(receipt) => {
                    tally.note(&receipt, delivery.bytes);
                    if let Some(receipts) = &mut receipts {
                        receipts.print(topic, delivery.line, &receipt, output)?;
                    }
                }
                Err(error) => {
                    tally.failed += 1;
                    tally.first_error.get_or_insert(error);
                    deliveries.close();
                }
            }
            if deliveries.is_empty() {
                output.flush()?;
            }
        }
        Ok(tally)
    }

    fn note(&mut self, receipt: &Receipt, line_bytes: u64) {
        self.acknowledged += 1;
        self.duplicates += u64::from(receipt.duplicate);
        self.line_bytes += line_bytes;
        let offset = (receipt.offset != Receipt::OFFSET_UNKNOWN).then_some(receipt.offset);
        let partition = self.partitions.entry(receipt.partition).or_insert(Acknowledged {
            records: 0,
            first_offset: offset,
            last_offset: offset,
            durability: receipt.durability,
        });
        partition.records += 1;
        partition.first_offset = partition.first_offset.min(offset);
        partition.last_offset = partition.last_offset.max(offset);
        if let Some(anatomy) = &receipt.anatomy {
            if self.parts_ns.is_empty() {
                let new = || Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("valid bounds");
                self.parts_ns = (0..PARTS.len()).map(|_| new()).collect();
            }
            for (histogram, ns) in self.parts_ns.iter_mut().zip(parts(anatomy)) {
                histogram.saturating_record(ns);
            }
        }
    }

    /// Writes what was acknowledged.
    pub fn print(
        &self,
        topic: &str,
        created: bool,
        elapsed: Duration,
        output: &mut Output,
    ) -> Result<(), Failure> {
        if output.is_json() {
            return self.print_json(topic, created, elapsed, output);
        }
        match self.partitions.iter().next() {
            None => eprintln!("nothing was sent to topic {topic}"),
            Some((partition, one)) if self.acknowledged == 1 => {
                let at = one.first_offset.map_or("unknown".to_owned(), |offset| offset.to_string());
                output.line(&format!(
                    "1 record in topic {topic}: partition {partition}, offset {at}, durability {}",
                    durability(one.durability)
                ))?;
            }
            Some(_) => {
                let mut table = Table::new(&[">PARTITION", ">RECORDS", ">FIRST", ">LAST", "DURABILITY"]);
                let offset = |offset: Option<u64>| offset.map_or("-".to_owned(), |offset| offset.to_string());
                for (partition, one) in &self.partitions {
                    table.row([
                        partition.to_string(),
                        grouped(one.records),
                        offset(one.first_offset),
                        offset(one.last_offset),
                        durability(one.durability).to_owned(),
                    ]);
                }
                output.table(&table)?;
                let seconds = elapsed.as_secs_f64().max(1e-6);
                output.line(&format!(
                    "{} in topic {topic}, {} in {:.2} s: {} records/s, {}/s",
                    counted(self.acknowledged, "record"),
                    bytes(self.line_bytes),
                    seconds,
                    grouped((self.acknowledged as f64 / seconds) as u64),
                    bytes((self.line_bytes as f64 / seconds) as u64)
                ))?;
            }
        }
        if self.duplicates > 0 {
            output.line(&format!(
                "{} sent again after a lost answer: the broker had them, they are there once",
                counted(self.duplicates, "record")
            ))?;
        }
        if !self.parts_ns.is_empty() {
            output.line("")?;
            let mut table = Table::new(&["TIME SPENT", ">P50", ">P99", ">P99.9", ">MAX"]);
            let us = |ns: u64| duration_us(ns as f64 / 1e3);
            for (name, histogram) in PARTS.iter().zip(&self.parts_ns) {
                table.row([
                    (*name).to_owned(),
                    us(histogram.value_at_quantile(0.5)),
                    us(histogram.value_at_quantile(0.99)),
                    us(histogram.value_at_quantile(0.999)),
                    us(histogram.max()),
                ]);
            }
            output.table(&table)?;
        }
        Ok(())
    }

    fn print_json(
        &self,
        topic: &str,
        created: bool,
        elapsed: Duration,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let partitions: Vec<_> = (self.partitions.iter())
            .map(|(partition, one)| {
                json!({
                    "partition": partition, "records": one.records, "first_offset": one.first_offset,
                    "last_offset": one.last_offset, "durability": durability(one.durability),
                })
            })
            .collect();
        let explain: serde_json::Map<_, _> = (PARTS.iter().zip(&self.parts_ns))
            .map(|(name, histogram)| {
                let quantile = |q| histogram.value_at_quantile(q);
                let value = json!({
                    "p50_ns": quantile(0.5), "p99_ns": quantile(0.99), "p999_ns": quantile(0.999),
                    "max_ns": histogram.max(),
                });
                (name.replace(' ', "_"), value)
            })
            .collect();
        output.json(&json!({
            "topic": topic, "created_topic": created, "acknowledged": self.acknowledged,
            "failed": self.failed, "duplicates": self.duplicates, "bytes": self.line_bytes, "seconds": elapsed.as_secs_f64(),
            "partitions": partitions, "explain": explain,
        }))
    }
}

/// In the order of [`PARTS`], nanoseconds.
pub fn parts(anatomy: &Anatomy) -> [u64; PARTS.len()] {
    let broker = &anatomy.broker;
    [
        anatomy.client_queue_ns,
        anatomy.round_trip_ns,
        broker.receive_ns,
        broker.core_hop_ns,
        broker.append_ns,
        broker.device_ns,
        broker.replicate_ns,
        broker.acknowledge_ns,
    ]
}

/// Its name in results.
pub fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::None => "none",
        Durability::LeaderDevice => "leader-device",
        Durability::AllInSyncDevice => "all-in-sync-device",
    }
}
