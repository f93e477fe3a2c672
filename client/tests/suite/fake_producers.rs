//! What a partition of the broker in memory knows of its producers: the answers of a real one, in few words.
//!
//! Owner: one `FakePartition`. Absent on purpose: bounds, expiry, durability.

use ringlog_client::ErrorCode;
use schema::record_batch::{Header, Producer};
use std::collections::BTreeMap;

#[derive(Default)]
struct Known {
    /// Producer, records, base offset; in the order of the log.
    batches: Vec<(Producer, u32, u64)>,
    /// The last epoch in which there was a gap.
    ended: Option<i16>,
}

#[derive(Default)]
pub struct FakeProducers(BTreeMap<i64, Known>);

impl FakeProducers {
    /// `None`: the batch is to be appended at `base`, and is noted there; else where it is.
    pub fn admit(&mut self, header: &Header, base: u64) -> Result<Option<u64>, ErrorCode> {
        if header.producer_id < 0 {
            return Ok(None);
        }
        let batch = Producer {
            id: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        };
        if !self.0.contains_key(&batch.id) && batch.base_sequence != 0 {
            return Err(ErrorCode::UnknownProducerId);
        }
        let known = self.0.entry(batch.id).or_default();
        let same = (batch, header.record_count);
        if let Some((_, _, base)) = known.batches.iter().find(|(sent, count, _)| (*sent, *count) == same) {
            return Ok(Some(*base));
        }
        let newest = known.batches.last().map(|(newest, count, _)| newest.after(*count));
        let expected = match newest {
            Some(next) if next.epoch > batch.epoch => return Err(ErrorCode::InvalidProducerEpoch),
            Some(next) if next.epoch == batch.epoch => next.base_sequence,
            _ => 0,
        };
        if batch.base_sequence != expected || known.ended.is_some_and(|ended| batch.epoch <= ended) {
            known.ended = known.ended.max(Some(batch.epoch));
            return Err(ErrorCode::OutOfOrderSequence);
        }
        known.batches.push((batch, header.record_count, base));
        Ok(None)
    }

    /// As if all had been silent for a day.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// The epochs in which a producer's batches came, each once, in their order.
    pub fn epochs(&self) -> Vec<i16> {
        let mut epochs: Vec<i16> =
            self.0.values().flat_map(|known| known.batches.iter().map(|(batch, ..)| batch.epoch)).collect();
        epochs.dedup();
        epochs
    }
}
