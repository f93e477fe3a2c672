//! The demo's result: figures, and whether anything was lost or differs.
//!
//! Owner: one demo. As JSON the names of the fields are an interface that programs rely on; they are only
//! added to. Counts of faults are sums over the three readings, so that one number says it all.

use super::PARTITIONS;
use super::flights::Flights;
use super::ledger::Tally;
use super::reader::Reading;
use super::writer::{Part, STEADY_RECORDS_S, Written};
use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted, duration_us, grouped};
use hdrhistogram::Histogram;
use ringlog_client::BrokerStatus;
use std::time::Duration;

/// See the module.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Records acknowledged.
    pub produced: u64,
    /// Records read from the start.
    pub consumed: u64,
    /// Acknowledged and not read, in any reading.
    pub lost: u64,
    /// Read twice in one reading.
    pub duplicated: u64,
    /// Read behind a later record of the same key.
    pub out_of_order: u64,
    /// Read, and never acknowledged or not asked for.
    pub unexpected: u64,
    /// Partitions whose order, offsets, keys or values differ from what was acknowledged.
    pub differing_partitions: u64,
    /// Receipts that cannot be.
    pub wrong_receipts: u64,
    /// Records that the search by time skipped.
    pub missed_by_timestamp: u64,
    /// Different keys, each checked for its order.
    pub keys: u32,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Of `produced`, how many were sent as fast as it goes; the rest at `steady_rate_records_s`.
    pub produced_at_full_rate: u64,
    /// 10^6 bytes of keys and values, at full rate.
    pub produced_mb: f64,
    /// From the first send to the last acknowledgement, at full rate.
    pub produce_seconds: f64,
    /// Records acknowledged per second, at full rate.
    pub produce_records_s: f64,
    /// 10^6 bytes of keys and values per second, at full rate.
    pub produce_mb_s: f64,
    /// Reading from the start, checking included.
    pub consume_seconds: f64,
    /// The same.
    pub consume_records_s: f64,
    /// The same.
    pub consume_mb_s: f64,
    /// From sending to acknowledgement, at full rate.
    pub ack_p50_us: f64,
    /// One in a hundred took longer.
    pub ack_p99_us: f64,
    /// One in a thousand took longer.
    pub ack_p999_us: f64,
    /// From sending to the live reader, at full rate.
    pub e2e_p50_us: f64,
    /// One in a hundred took longer.
    pub e2e_p99_us: f64,
    /// One in a thousand took longer.
    pub e2e_p999_us: f64,
    /// Records per second of the steady part.
    pub steady_rate_records_s: u64,
    /// From sending to acknowledgement, in the steady part.
    pub steady_ack_p50_us: f64,
    /// One in a hundred took longer.
    pub steady_ack_p99_us: f64,
    /// One in a thousand took longer.
    pub steady_ack_p999_us: f64,
    /// From sending to the live reader, in the steady part.
    pub steady_e2e_p50_us: f64,
    /// One in a hundred took longer.
    pub steady_e2e_p99_us: f64,
    /// One in a thousand took longer.
    pub steady_e2e_p999_us: f64,
    /// Read by the live reader.
    pub consumed_live: u64,
    /// The time that was searched for, milliseconds since 1970.
    pub from_timestamp_ms: i64,
    /// Read from there on.
    pub consumed_from_timestamp: u64,
    /// While producing at full rate, all shards; `None` where the broker does not count it.
    pub flush_rounds: Option<u64>,
    /// Written per round, padding included.
    pub bytes_per_round: Option<u64>,
    /// Median length of a round; the worst shard's.
    pub round_p50_us: Option<u64>,
    /// One in a hundred took longer.
    pub round_p99_us: Option<u64>,
    /// Requests that came to another core than the partition's.
    pub forwarded_requests: Option<u64>,
    /// Of the embedded broker.
    pub shards: usize,
    /// Where it was, and what that means.
    pub data_directory: String,
}

impl Report {
    /// What the writer did.
    pub fn new(flights: &Flights, written: &Written, from_timestamp_ms: i64) -> Self {
        let seconds = written.elapsed.as_secs_f64().max(1e-6);
        let full = Part::FullRate as usize;
        let [ack_p50_us, ack_p99_us, ack_p999_us] = quantiles_us(&written.acknowledge_ns[full]);
        let steady = Part::Steady as usize;
        let [steady_ack_p50_us, steady_ack_p99_us, steady_ack_p999_us] =
            quantiles_us(&written.acknowledge_ns[steady]);
        let records = Part::records_at_full_rate(flights);
        let produced_mb = written.bytes_at_full_rate as f64 / 1e6;
        let mut report = Self {
            produced: written.acknowledged,
            produced_at_full_rate: records,
            wrong_receipts: written.wrong_receipts + written.ledger.gaps(),
            keys: flights.keys(),
            partitions: PARTITIONS,
            produced_mb,
            produce_seconds: seconds,
            produce_records_s: records as f64 / seconds,
            produce_mb_s: produced_mb / seconds,
            ack_p50_us,
            ack_p99_us,
            ack_p999_us,
            steady_rate_records_s: STEADY_RECORDS_S,
            steady_ack_p50_us,
            steady_ack_p99_us,
            steady_ack_p999_us,
            from_timestamp_ms,
            ..Self::default()
        };
        report.count_rounds(&written.status_before, &written.status_after);
        report
    }

    /// What the broker's disk did between two looks at its counters.
    fn count_rounds(&mut self, before: &BrokerStatus, after: &BrokerStatus) {
        let between = |name| Some(after.counter(name)?.saturating_sub(before.counter(name)?));
        let worst = |name: &str| after.shards.iter().filter_map(|shard| shard.counter(name)).max();
        self.flush_rounds = between("flush_rounds_total");
        self.bytes_per_round = (self.flush_rounds.filter(|rounds| *rounds > 0))
            .and_then(|rounds| Some(between("flush_bytes_total")? / rounds));
        self.round_p50_us = worst("round_p50_us");
        self.round_p99_us = worst("round_p99_us");
    }

    /// What was read: live, from the start, from a timestamp; what everything is, and what is since then.
    pub fn add_readings(
        &mut self,
        live: &Reading,
        whole: &Reading,
        late: &Reading,
        all: &Tally,
        since: &Tally,
    ) {
        let checked: [(&Reading, &Tally); 3] = [(live, all), (whole, all), (late, since)];
        for (reading, expected) in checked {
            self.lost += reading.tally.lost(expected);
            self.duplicated += reading.tally.duplicated;
            self.out_of_order += reading.tally.out_of_order;
            self.unexpected += reading.tally.unknown + reading.tally.extra(expected);
            self.differing_partitions += reading.tally.differing_partitions(expected);
        }
        let seconds = whole.elapsed.as_secs_f64().max(1e-6);
        self.consumed = whole.tally.records;
        self.consume_seconds = seconds;
        self.consume_records_s = whole.tally.records as f64 / seconds;
        self.consume_mb_s = whole.tally.bytes as f64 / 1e6 / seconds;
        self.consumed_live = live.tally.records;
        self.consumed_from_timestamp = late.tally.records;
        [self.e2e_p50_us, self.e2e_p99_us, self.e2e_p999_us] =
            quantiles_us(&live.end_to_end_ns[Part::FullRate as usize]);
        [self.steady_e2e_p50_us, self.steady_e2e_p99_us, self.steady_e2e_p999_us] =
            quantiles_us(&live.end_to_end_ns[Part::Steady as usize]);
    }

    /// What is wrong, if anything is.
    pub fn fault(&self) -> Option<String> {
        let counts = [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.out_of_order, "out of order"),
            (self.unexpected, "unexpected"),
            (self.missed_by_timestamp, "skipped by the search for a timestamp"),
        ];
        let records =
            counts.iter().map(|(count, what)| (*count, format!("{} {what}", counted(*count, "record"))));
        let others = [
            (
                self.differing_partitions,
                counted(self.differing_partitions, "partition") + " with other content",
            ),
            (self.wrong_receipts, counted(self.wrong_receipts, "wrong receipt")),
            (u64::from(self.produced == 0), "nothing was produced".to_owned()),
        ];
        let found: Vec<String> =
            records.chain(others).filter(|(count, _)| *count > 0).map(|(_, what)| what).collect();
        (!found.is_empty()).then(|| found.join(", "))
    }

    /// The table, or the object.
    pub fn print(&self, output: &mut Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.json(self);
        }
        let rate = |records: f64, mb: f64| [grouped(records as u64), format!("{mb:.0}")];
        let [produce_records, produce_mb] = rate(self.produce_records_s, self.produce_mb_s);
        let [consume_records, consume_mb] = rate(self.consume_records_s, self.consume_mb_s);
        output.line("")?;
        let mut table = Table::new(&["RATE", ">RECORDS", ">SECONDS", ">RECORDS/S", ">MB/S"]);
        table.row([
            "produced, durable".into(),
            grouped(self.produced_at_full_rate),
            format!("{:.2}", self.produce_seconds),
            produce_records,
            produce_mb,
        ]);
        table.row([
            "read from the start, checked".into(),
            grouped(self.consumed),
            format!("{:.2}", self.consume_seconds),
            consume_records,
            consume_mb,
        ]);
        output.table(&table)?;
        output.line("")?;
        let mut table = Table::new(&["LATENCY", "RATE", ">P50", ">P99", ">P99.9"]);
        let full = [
            ("send to durable acknowledgement", [self.ack_p50_us, self.ack_p99_us, self.ack_p999_us]),
            ("send to live reader", [self.e2e_p50_us, self.e2e_p99_us, self.e2e_p999_us]),
        ];
        let steady = [
            (full[0].0, [self.steady_ack_p50_us, self.steady_ack_p99_us, self.steady_ack_p999_us]),
            (full[1].0, [self.steady_e2e_p50_us, self.steady_e2e_p99_us, self.steady_e2e_p999_us]),
        ];
        let steady_rate = format!("{}/s", grouped(self.steady_rate_records_s));
        for (rate, rows) in [(steady_rate, steady), ("full".to_owned(), full)] {
            for (what, [p50, p99, p999]) in rows {
                let [p50, p99, p999] = [p50, p99, p999].map(duration_us);
                table.row([what.to_owned(), rate.clone(), p50, p99, p999]);
            }
        }
        output.table(&table)?;
        output.line("")?;
        let known = |value: Option<u64>, text: fn(u64) -> String| value.map_or("-".to_owned(), text);
        let time = |value| known(value, |us| duration_us(us as f64));
        let from = jiff::Timestamp::from_millisecond(self.from_timestamp_ms);
        let mut table = Table::new(&["WHAT HAPPENED", ">VALUE"]);
        let rows = [
            ("flush rounds".to_owned(), known(self.flush_rounds, grouped)),
            ("bytes per round".to_owned(), known(self.bytes_per_round, bytes)),
            ("round p50".to_owned(), time(self.round_p50_us)),
            ("round p99".to_owned(), time(self.round_p99_us)),
            ("requests forwarded between cores".to_owned(), known(self.forwarded_requests, grouped)),
            ("read live".to_owned(), grouped(self.consumed_live)),
            (
                format!("read from {}", from.map_or_else(|_| String::new(), |from| from.to_string())),
                grouped(self.consumed_from_timestamp),
            ),
            ("lost".to_owned(), grouped(self.lost)),
            ("duplicated".to_owned(), grouped(self.duplicated)),
            (format!("out of order, of {} keys", grouped(self.keys.into())), grouped(self.out_of_order)),
            ("partitions with other content".to_owned(), grouped(self.differing_partitions)),
        ];
        for (name, value) in rows {
            table.row([name, value]);
        }
        output.table(&table)?;
        output.line("")?;
        match self.fault() {
            None => {
                output.line("every record that was acknowledged was read back as it was sent, three times")
            }
            Some(_) => output.line("records are missing or differ: see the counts above"),
        }
    }
}

fn quantiles_us(histogram: &Histogram<u64>) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|quantile| {
        let duration = Duration::from_nanos(histogram.value_at_quantile(quantile));
        duration.as_secs_f64() * 1e6
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_that_is_not_zero_is_a_fault() {
        type Change = fn(&mut Report);
        let rows: [(Change, Option<&str>); 10] = [
            (|_| {}, None),
            (|report| report.lost = 1, Some("1 record lost")),
            (|report| report.duplicated = 2, Some("2 records duplicated")),
            (|report| report.out_of_order = 1, Some("out of order")),
            (|report| report.unexpected = 1, Some("unexpected")),
            (|report| report.missed_by_timestamp = 1, Some("skipped")),
            (|report| report.differing_partitions = 1, Some("1 partition with other content")),
            (|report| report.wrong_receipts = 1, Some("wrong receipt")),
            (|report| report.produced = 0, Some("nothing")),
            (|report| report.forwarded_requests = Some(9), None),
        ];
        for (change, expect) in rows {
            let mut report = Report { produced: 1, consumed: 1, ..Report::default() };
            change(&mut report);
            let fault = report.fault();
            match expect {
                None => assert_eq!(fault, None),
                Some(expect) => {
                    assert!(fault.as_deref().is_some_and(|fault| fault.contains(expect)), "{fault:?}")
                }
            }
        }
    }
}
