//! The producer of the [`World`], one and idempotent, who sends again what has no answer; and the tables by which brokers
//! know what they have of it, kept as the broker's server keeps them: noted when appended, cut with the log, folded anew by
//! recovery.

use super::{Disk, Record, World};
use crate::ids::Offset;
use crate::producer_state::{Admission, Bounds, LogPlace, ProducerBatch, ProducerError, ProducerTable};
use crate::replication::rules::{Rule, holds};

const BOUNDS: Bounds = Bounds { expiration_ms: i64::MAX, producers_max: 1 };

/// Every record is a batch of its own.
fn batch(sequence: u32) -> ProducerBatch {
    let sequence = sequence as i32;
    ProducerBatch { id: 0, epoch: 0, first: sequence, last: sequence }
}

/// Takes in a record that was appended at `offset`.
pub(super) fn note(table: &mut ProducerTable, offset: u64, record: &Record) {
    table.replay(&batch(record.sequence), Offset::new(offset), 0);
}

/// The table as recovery makes it.
pub(super) fn fold(disk: &Disk) -> ProducerTable {
    let mut table = ProducerTable::default();
    for (offset, record) in disk.records.iter().enumerate() {
        if let Some(record) = record {
            note(&mut table, offset as u64, record);
        }
    }
    table
}

/// The log was cut at `end`, or emptied; `disk` is what is left of it.
pub(super) fn cut(table: &mut ProducerTable, end: Option<Offset>, disk: &Disk) {
    match end {
        _ if !holds(Rule::TableFollowsLog) => {}
        Some(end) => {
            let kept = match table.unknown_after_cut(end).is_empty() {
                true => ProducerTable::default(),
                false => fold(disk),
            };
            table.truncate(end, kept);
        }
        None => *table = ProducerTable::default(),
    }
}

impl World {
    /// The producer asks a broker to append a sequence, for the first time or again.
    pub(super) fn produce(&mut self, broker: u32, sequence: u32) {
        let node = &mut self.nodes[broker as usize];
        let (Some(replica), Some(disk)) = (&node.replica, &node.disk) else { return };
        let Ok(epoch) = replica.admit() else { return };
        let end = Offset::new(disk.records.len() as u64);
        let high_watermark = replica.high_watermark();
        // That a gap ends an epoch of its producer has a simulation of its own: here such a question was never asked.
        let mut table = node.producers.clone();
        match table.admit(0, &batch(sequence), LogPlace { end, durable_end: high_watermark }, BOUNDS) {
            Ok(Admission::Append) => {}
            Ok(Admission::Duplicate(note)) => {
                // A rule of who answers the producer, deleted like those of the machines.
                if high_watermark >= note.end() || !holds(Rule::DuplicatesWait) {
                    self.ledger.acked.insert(sequence);
                } else {
                    node.waiters.push((note.end().get(), sequence));
                }
                return;
            }
            // Its log was begun anew, above all that tells of the producer, who goes on after its last answer.
            Err(ProducerError::Unknown { .. })
                if disk.records.iter().any(Option::is_none)
                    && (0..sequence).all(|earlier| self.ledger.acked.contains(&earlier)) =>
            {
                table.replay(&batch(sequence), end, 0);
            }
            Err(_) => return,
        }
        node.producers = table;
        if self.unique {
            self.next_nonce += 1;
        }
        let record = Record { epoch, sequence, nonce: self.next_nonce };
        node.waiters.push((end.get() + 1, sequence));
        self.next_sequence = self.next_sequence.max(sequence + 1);
        self.append(broker, &[record]);
    }

    /// I9: a table of producers knows the last batches of its log and nothing else. A cut leaves it fewer than a fold would
    /// have, and never none. Of what is damaged it may tell until that is cut away, and of what retention took for longer.
    pub(super) fn judge_producers(&mut self) {
        let mut wrong = None;
        for (broker, node) in self.nodes.iter().enumerate() {
            let (Some(disk), Some(_)) = (&node.disk, &node.replica) else { continue };
            let log = || disk.records.iter().enumerate().skip(disk.log_start as usize);
            if log().any(|(_, record)| record.is_none()) {
                continue;
            }
            let summaries = node.producers.summaries(Offset::new(u64::MAX));
            let known = summaries.iter().flat_map(|summary| &summary.batches).rev();
            let known = known.map(|batch| (batch.base_offset, batch.first_sequence as u32));
            let mut known = known.take_while(|(base, _)| *base >= disk.log_start).peekable();
            let there = log().rev().filter_map(|(at, record)| Some((at as u64, (*record)?.sequence)));
            let mut there = there.peekable();
            let agrees = known.peek().is_some() == there.peek().is_some();
            if !agrees || known.any(|batch| there.next() != Some(batch)) {
                wrong = Some(format!("I9: broker {broker} has {:?}, and knows {summaries:?}", disk.records));
            }
        }
        if let Some(wrong) = wrong {
            self.complain(wrong);
        }
    }
}
