//! The result of the demo with a cluster: whether anything was lost or differs, and how long partitions were unavailable.
//!
//! As JSON the names of the fields are an interface that programs rely on; they are only added to.

use super::produce::Written;
use crate::demo::ledger::Tally;
use crate::failure::Failure;
use crate::output::{Output, Table, duration_us, grouped};
use ringlog_client::ClusterDescription;
use std::time::{Duration, Instant};

/// How long one partition took nothing after the kill.
#[derive(Debug, serde::Serialize)]
pub struct Unavailable {
    /// Which.
    pub partition: u32,
    /// The killed broker led it.
    pub led: bool,
    /// The longest time without an acknowledgement that reaches beyond the kill, from the kill on.
    pub ms: f64,
}

/// See the module.
#[derive(Debug, Default, serde::Serialize)]
pub struct Outcome {
    /// Brokers at the start.
    pub brokers: usize,
    /// Partitions of the topic.
    pub partitions: usize,
    /// How often each is kept.
    pub replication_factor: u32,
    /// Records acknowledged by all in-sync replicas.
    pub produced: u64,
    /// Records read by the group.
    pub consumed: u64,
    /// Acknowledged and not read, in any reading.
    pub lost: u64,
    /// Read twice in one reading.
    pub duplicated: u64,
    /// Read behind a later record of the same key.
    pub out_of_order: u64,
    /// Read, and never acknowledged.
    pub unexpected: u64,
    /// Partitions whose order, offsets, keys or values differ from what was acknowledged.
    pub differing_partitions: u64,
    /// Receipts that cannot be, and offsets that nobody was told.
    pub wrong_receipts: u64,
    /// Records that were sent again after a lost answer, and recognised.
    pub recognised: u64,
    /// The broker that was killed.
    pub killed_broker: u32,
    /// Partitions that it led.
    pub partitions_led: usize,
    /// Each partition, in order.
    pub unavailable: Vec<Unavailable>,
    /// From the kill to the next acknowledgement: the middle one of the partitions that it led.
    pub unavailable_p50_ms: f64,
    /// The longest.
    pub unavailable_max_ms: f64,
    /// The longest pause of any other partition from the kill on.
    pub others_max_ms: f64,
    /// From sending to acknowledgement, of all records.
    pub ack_p50_us: f64,
    /// One in a hundred took longer.
    pub ack_p99_us: f64,
    /// Of the producer.
    pub seconds: f64,
    /// From the killed broker's new start until every partition had all its replicas in sync.
    pub filled_up_s: f64,
    /// Where, and on what.
    pub data_directory: String,
}

impl Outcome {
    /// What the producer and the cluster say. `before`: the cluster just before the kill.
    pub fn new(before: &ClusterDescription, victim: u32, written: &Written, killed_at: Instant) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let mut unavailable = Vec::new();
        for (_, partition) in before.partitions() {
            let pauses = &written.pauses[partition.partition as usize];
            // A pause that was over before the kill is none of its doing.
            let after = pauses.iter().filter(|(_, to)| *to > killed_at);
            let longest = after.map(|(from, to)| *to - killed_at.max(*from)).max().unwrap_or_default();
            let led = partition.leader == Some(victim);
            unavailable.push(Unavailable { partition: partition.partition, led, ms: ms(longest) });
        }
        unavailable.sort_unstable_by_key(|one| one.partition);
        let times = |of_victim: bool| {
            let mut times: Vec<f64> =
                unavailable.iter().filter(|one| one.led == of_victim).map(|one| one.ms).collect();
            times.sort_unstable_by(f64::total_cmp);
            times
        };
        let (led, others) = (times(true), times(false));
        let us = |quantile| written.acknowledge_ns.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            brokers: before.brokers.len(),
            partitions: before.partitions().count(),
            produced: written.acknowledged,
            wrong_receipts: written.wrong_receipts + written.ledger.gaps(),
            recognised: written.recognised,
            killed_broker: victim,
            partitions_led: led.len(),
            unavailable_p50_ms: led.get(led.len() / 2).copied().unwrap_or_default(),
            unavailable_max_ms: led.last().copied().unwrap_or_default(),
            others_max_ms: others.last().copied().unwrap_or_default(),
            unavailable,
            ack_p50_us: us(0.5),
            ack_p99_us: us(0.99),
            seconds: written.elapsed.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Adds what a reading found; the first is the group's.
    pub fn add_reading(&mut self, read: &Tally, expected: &Tally) {
        if self.consumed == 0 {
            self.consumed = read.records;
        }
        self.lost += read.lost(expected);
        self.duplicated += read.duplicated;
        self.out_of_order += read.out_of_order;
        self.unexpected += read.unknown + read.extra(expected);
        self.differing_partitions += read.differing_partitions(expected);
    }

    /// What is wrong, if anything.
    pub fn fault(&self) -> Option<String> {
        let faults = [
            (self.lost, "acknowledged records lost"),
            (self.duplicated, "records read twice"),
            (self.out_of_order, "records out of order"),
            (self.unexpected, "unexpected records"),
            (self.differing_partitions, "partitions that differ"),
            (self.wrong_receipts, "wrong receipts"),
        ];
        let faults: Vec<String> = faults
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", grouped(*count)))
            .collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }

    /// As a table, or one JSON object.
    pub fn print(&self, output: &mut Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.json(self);
        }
        let ms = |ms: f64| duration_us(ms * 1e3);
        let mut table = Table::new(&["", ">RESULT", ""]);
        let mut row = |name: &str, value: String, remark: &str| {
            table.row([name.to_owned(), value, remark.to_owned()]);
        };
        row("produced", grouped(self.produced), "acknowledged by every in-sync replica");
        row("read by the group", grouped(self.consumed), "");
        row("lost", grouped(self.lost), "acknowledged and not read");
        row("duplicated", grouped(self.duplicated), "");
        row("out of order", grouped(self.out_of_order), "within a key");
        row("differing partitions", grouped(self.differing_partitions), "order, offsets, keys, values");
        row("sent again, recognised", grouped(self.recognised), "their answer was lost with the broker");
        let led = format!("of the {} partitions that it led", self.partitions_led);
        row("broker killed", self.killed_broker.to_string(), &format!("it led {}", self.partitions_led));
        for Unavailable { partition, led, ms: longest } in &self.unavailable {
            let remark = if *led { "it led this one" } else { "led by another broker" };
            row(&format!("unavailable, partition {partition}"), ms(*longest), remark);
        }
        row("unavailable p50", ms(self.unavailable_p50_ms), &led);
        row("unavailable max", ms(self.unavailable_max_ms), &led);
        row("others' longest pause", ms(self.others_max_ms), "of partitions led by other brokers");
        row("acknowledged p50", duration_us(self.ack_p50_us), "the kill included");
        row("acknowledged p99", duration_us(self.ack_p99_us), "the kill included");
        row("filled up again", format!("{:.1} s", self.filled_up_s), "started again until all are in sync");
        output.table(&table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named() {
        let well = Outcome { produced: 5, consumed: 5, ..Outcome::default() };
        assert_eq!(well.fault(), None);
        let ill = Outcome { lost: 2, wrong_receipts: 1, ..Outcome::default() };
        assert_eq!(ill.fault().unwrap(), "2 acknowledged records lost, 1 wrong receipts");
    }
}
