//! Which records of a compacted log stay.
//!
//! Three machines, each owned by the task that compacts one log and gone with it; bytes in, bytes out:
//!
//! ```text
//! look     → is it due? what is dirty?
//! Pass     → learn(dirty batches): key → latest offset;  filter(batch): unchanged, fewer records, gone
//! group_by → which segments become one         (tiles.rs lays out what is left of them)
//! ```
//!
//! Invariants: of every key the record with the highest offset stays (a tombstone at least
//! `delete.retention.ms` after the pass that first met it, and while something older could still be hidden
//! in a batch that cannot be unpacked); offsets never change; the last batch of each producer stays, if
//! only as a header, because it says where the producer's sequence is; the active segment, and the last record
//! of the log, are never touched. Keys are told apart by 128 bits of a seeded hash. Records without a key are
//! refused ([`check_keys`]); those that came before the log was compacted go. Control batches stay. Absent on purpose: files, time, pace.

use crate::ids::Offset;
use crate::limits::{COMPACTION_MAP_BYTES_MAX, COMPACTION_PRODUCERS_MAX, UNPACKED_BATCH_BYTES_MAX};
use crate::log::append::Log;
use crate::rules::{Rule, holds};
use schema::compression;
use schema::record_batch::{self, BatchError, Compression, Header, NO_PRODUCER, Record};
use std::collections::HashMap;

/// What a compacted topic obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionSettings {
    /// `min.cleanable.dirty.ratio`, in millionths.
    pub min_dirty_millionths: u32,
    /// `min.compaction.lag.ms`: younger records stay.
    pub min_lag_ms: i64,
    /// `max.compaction.lag.ms`: older ones are looked at, however few they are.
    pub max_lag_ms: i64,
    /// `delete.retention.ms`: how long a tombstone is to be seen after a pass has met it.
    pub delete_retention_ms: i64,
}

/// What compaction would find in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Bytes of segments in which every key stands once.
    pub clean_bytes: u64,
    /// Bytes of segments that may be compacted and are not.
    pub dirty_bytes: u64,
    /// The first offset that no pass has looked at.
    pub first_dirty: Offset,
    /// One past the last offset that may be looked at.
    pub end: Offset,
    /// Something dirty is older than `max.compaction.lag.ms`.
    pub overdue: bool,
    /// When the next look can find more although nothing is appended, milliseconds since 1970; `i64::MAX` = never.
    pub next_ms: i64,
}

impl Look {
    /// The dirty part of what may be compacted, in millionths.
    pub fn dirty_millionths(&self) -> u32 {
        let whole = u128::from(self.clean_bytes) + u128::from(self.dirty_bytes);
        // Below a million, which fits.
        (u128::from(self.dirty_bytes) * 1_000_000).checked_div(whole).unwrap_or(0) as u32
    }

    /// Whether it is time for a pass.
    pub fn is_due(&self, settings: &CompactionSettings) -> bool {
        self.dirty_bytes > 0 && (self.overdue || self.dirty_millionths() >= settings.min_dirty_millionths)
    }
}

/// Looks at a log. Whole segments behind the active one, oldest first, up to the first that is too young; one
/// record is always left above them, so that the log never ends in a gap.
pub fn look(log: &Log, settings: &CompactionSettings, now_ms: i64) -> Look {
    let start = log.segments().front().map_or(log.log_start(), |segment| segment.base);
    let mut found = Look { first_dirty: start, end: start, next_ms: i64::MAX, ..Look::default() };
    let mut clean = true;
    for (segment, next) in log.segments().iter().zip(log.segments().iter().skip(1)) {
        let young =
            settings.min_lag_ms > 0 && now_ms.saturating_sub(segment.max_timestamp_ms) < settings.min_lag_ms;
        if next.base >= log.high_watermark() || next.sequence > log.durable_position().0 {
            // What is committed, and durable, grows without an append.
            if log.high_watermark() < log.log_end() {
                found.next_ms = now_ms;
            }
            break;
        }
        if young {
            found.next_ms = found.next_ms.min(segment.max_timestamp_ms.saturating_add(settings.min_lag_ms));
            break;
        }
        found.end = next.base;
        clean &= segment.clean_until() >= next.base;
        if clean {
            found.clean_bytes += segment.end_position;
            found.first_dirty = next.base;
            continue;
        }
        if found.dirty_bytes == 0 {
            found.first_dirty = segment.clean_until().max(segment.base);
        }
        found.dirty_bytes += segment.end_position;
        found.overdue |= now_ms.saturating_sub(segment.opened_ms) > settings.max_lag_ms;
        let late_ms = segment.opened_ms.saturating_add(settings.max_lag_ms).saturating_add(1);
        found.next_ms = found.next_ms.min(late_ms);
    }
    found
}

/// The segments below `until`, in groups that each become one segment of at most `bytes_max` (one that is
/// larger by itself excepted): their numbers.
pub fn group_by(log: &Log, until: Offset, bytes_max: u64) -> Vec<Vec<u64>> {
    let mut groups: Vec<Vec<u64>> = Vec::new();
    let mut bytes = u64::MAX;
    for segment in log.segments().iter().take_while(|segment| segment.base < until) {
        match groups.last_mut() {
            Some(group) if bytes.saturating_add(segment.end_position) <= bytes_max => {
                bytes += segment.end_position;
                group.push(segment.sequence);
            }
            _ => {
                bytes = segment.end_position;
                groups.push(vec![segment.sequence]);
            }
        }
    }
    groups
}

/// Key → latest offset, in a bounded table.
#[derive(Debug)]
struct OffsetMap {
    seed: u64,
    /// Hash in two halves, offset; an offset of [`FREE`] is a free place. A power of two of them.
    places: Vec<[u64; 3]>,
    used: usize,
    places_max: usize,
}

const FREE: u64 = u64::MAX;
const PLACES_MIN: usize = 1024;

impl OffsetMap {
    fn new(seed: u64, bytes_max: usize) -> Self {
        // The largest power of two that fits.
        let places_max = 1usize << (bytes_max / size_of::<[u64; 3]>()).max(2).ilog2();
        let places = vec![[0, 0, FREE]; PLACES_MIN.min(places_max)];
        Self { seed, places, used: 0, places_max }
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        let hash = xxhash_rust::xxh3::xxh3_128_with_seed(key, self.seed);
        (hash as u64, (hash >> 64) as u64)
    }

    /// Where a hash stands, or where it would.
    fn place(&self, (low, high): (u64, u64)) -> usize {
        let mask = self.places.len() - 1;
        let mut at = low as usize & mask;
        while self.places[at][2] != FREE && (self.places[at][0] != low || self.places[at][1] != high) {
            at = (at + 1) & mask;
        }
        at
    }

    /// Notes that `key` stands at `offset`; offsets rise. `false` if there is no place for one more key.
    fn note(&mut self, key: &[u8], offset: u64) -> bool {
        let hash = self.hash(key);
        let mut at = self.place(hash);
        if self.places[at][2] == FREE {
            // Three quarters full, look-ups are still short.
            if (self.used + 1) * 4 > self.places.len() * 3 {
                if self.places.len() == self.places_max {
                    return false;
                }
                self.grow();
                at = self.place(hash);
            }
            self.used += 1;
        }
        self.places[at] = [hash.0, hash.1, offset];
        true
    }

    fn grow(&mut self) {
        let twice = vec![[0, 0, FREE]; 2 * self.places.len()];
        for old in std::mem::replace(&mut self.places, twice) {
            if old[2] != FREE {
                let at = self.place((old[0], old[1]));
                self.places[at] = old;
            }
        }
    }

    fn latest(&self, key: &[u8]) -> Option<u64> {
        let offset = self.places[self.place(self.hash(key))][2];
        (offset != FREE).then_some(offset)
    }
}

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// All of it, byte for byte.
    Unchanged,
    /// Fewer records, or a horizon; perhaps only its header.
    Fewer(Vec<u8>),
    /// Nothing.
    Gone,
}

/// What a pass has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassCounts {
    /// Records that went: a later one has the same key.
    pub superseded: u64,
    /// Tombstones that went.
    pub tombstones: u64,
    /// Records that went because they have no key.
    pub without_key: u64,
    /// Batches that could not be looked into.
    pub opaque_batches: u64,
}

/// One pass over a log.
#[derive(Debug)]
pub struct Pass {
    map: OffsetMap,
    /// Producer → base offset of its last batch in the dirty part.
    producers: HashMap<i64, u64>,
    first_dirty: u64,
    /// One past the last offset that has been learned.
    learned_until: u64,
    now_ms: i64,
    delete_retention_ms: i64,
    counts: PassCounts,
}

impl Pass {
    /// A pass over what `look` found. `seed` is not to be guessed by who chooses keys.
    pub fn new(look: &Look, settings: &CompactionSettings, now_ms: i64, seed: u64) -> Self {
        Self::with_room(look, settings, now_ms, seed, COMPACTION_MAP_BYTES_MAX)
    }

    /// The same with less memory for keys, bytes.
    pub fn with_room(
        look: &Look,
        settings: &CompactionSettings,
        now_ms: i64,
        seed: u64,
        map_bytes_max: usize,
    ) -> Self {
        Self {
            map: OffsetMap::new(seed, map_bytes_max.min(COMPACTION_MAP_BYTES_MAX)),
            producers: HashMap::new(),
            first_dirty: look.first_dirty.get(),
            learned_until: look.first_dirty.get(),
            now_ms,
            delete_retention_ms: settings.delete_retention_ms,
            counts: PassCounts::default(),
        }
    }

    /// Below this offset every key is clean once the pass is through.
    pub fn learned_until(&self) -> Offset {
        Offset::new(self.learned_until)
    }

    /// What has been done.
    pub fn counts(&self) -> PassCounts {
        self.counts
    }

    /// Learns a stored batch of the dirty part; batches come in the order of their offsets. `false` when
    /// memory is used up: what is above [`Pass::learned_until`] is for a later pass.
    ///
    /// # Errors
    /// It is no batch. One that is compressed and cannot be unpacked is passed over: all of it stays.
    pub fn learn(&mut self, batch: &[u8]) -> Result<bool, BatchError> {
        let header = Header::decode(batch)?;
        if header.end_offset() <= self.first_dirty {
            return Ok(true);
        }
        let known = self.producers.contains_key(&header.producer_id);
        if header.producer_id != NO_PRODUCER && (known || self.producers.len() < COMPACTION_PRODUCERS_MAX) {
            self.producers.insert(header.producer_id, header.base_offset);
        }
        if !header.attributes.is_control()
            && let Ok(plain) = Plain::of(batch, &header)
        {
            for record in record_batch::records(plain.bytes(batch))? {
                let record = record?;
                let Some(key) = record.key.filter(|_| record.offset >= self.first_dirty) else { continue };
                if !self.map.note(key, record.offset) {
                    self.learned_until = record.offset;
                    return Ok(false);
                }
            }
        }
        self.learned_until = header.end_offset();
        Ok(true)
    }

    /// Everything below `end` has been learned.
    pub fn learned_all(&mut self, end: Offset) {
        self.learned_until = end.get();
    }

    /// What stays of a stored batch; batches come in the order of their offsets, from the log's start.
    ///
    /// # Errors
    /// It is no batch.
    pub fn filter(&mut self, batch: &[u8]) -> Result<Left, BatchError> {
        let header = Header::decode(batch)?;
        if header.base_offset >= self.learned_until || header.attributes.is_control() {
            return Ok(Left::Unchanged);
        }
        if header.record_count == 0 {
            return Ok(if self.is_last_of_producer(&header) { Left::Unchanged } else { Left::Gone });
        }
        let Ok(plain) = Plain::of(batch, &header) else {
            self.counts.opaque_batches += 1;
            return Ok(Left::Unchanged);
        };
        let compression = header.attributes.compression()?;
        let plain = plain.bytes(batch);
        // A horizon counts where a pass has set it, not where a producer has written one.
        let trusted = header.attributes.has_delete_horizon() && header.end_offset() <= self.first_dirty;
        let horizon_ms = trusted.then_some(header.base_timestamp_ms);
        let (mut left, mut new_tombstone) = (0, false);
        for record in record_batch::records(plain)? {
            let record = record?;
            let stays = self.stays(&record, horizon_ms);
            self.count(&record, stays);
            left += u32::from(stays == Stays::Yes);
            let met = record.offset < self.learned_until && record.key.is_some() && record.value.is_none();
            new_tombstone |= met && stays == Stays::Yes && !trusted;
        }
        if left == header.record_count && !new_tombstone {
            return Ok(Left::Unchanged);
        }
        if left == 0 && !self.is_last_of_producer(&header) {
            return Ok(Left::Gone);
        }
        let new_horizon_ms = new_tombstone.then(|| self.now_ms.saturating_add(self.delete_retention_ms));
        let fewer = record_batch::retain(
            plain,
            |record| self.stays(record, horizon_ms) == Stays::Yes,
            new_horizon_ms,
        )?;
        Ok(Left::Fewer(match left {
            0 => fewer,
            _ => compression::compress(fewer, compression),
        }))
    }

    fn stays(&self, record: &Record<'_>, horizon_ms: Option<i64>) -> Stays {
        if record.offset >= self.learned_until {
            return Stays::Yes;
        }
        let Some(key) = record.key else { return Stays::WithoutKey };
        let latest = self.map.latest(key);
        if latest.is_some_and(|latest| latest > record.offset || !holds(Rule::KeepLatest)) {
            return Stays::Superseded;
        }
        // Behind a batch that nobody can look into, an older value may come to light again.
        let expired = horizon_ms.is_some_and(|ms| self.now_ms >= ms || !holds(Rule::KeepTombstones));
        match record.value.is_none() && expired && self.counts.opaque_batches == 0 {
            true => Stays::Expired,
            false => Stays::Yes,
        }
    }

    fn count(&mut self, record: &Record<'_>, stays: Stays) {
        match stays {
            Stays::Yes => {}
            Stays::Superseded if record.value.is_none() => self.counts.tombstones += 1,
            Stays::Superseded => self.counts.superseded += 1,
            Stays::Expired => self.counts.tombstones += 1,
            Stays::WithoutKey => self.counts.without_key += 1,
        }
    }

    /// Whether this batch says where its producer's sequence is.
    fn is_last_of_producer(&self, header: &Header) -> bool {
        header.producer_id != NO_PRODUCER
            && holds(Rule::KeepLastOfProducer)
            && self.producers.get(&header.producer_id).is_none_or(|last| *last <= header.base_offset)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    Yes,
    Superseded,
    Expired,
    WithoutKey,
}

/// Why a batch is not for a compacted log.
#[derive(Debug, thiserror::Error)]
pub enum NotCompactable {
    /// A record has no key.
    #[error("the record at {0} has no key")]
    WithoutKey(u64),
    /// Its records are not what its header says.
    #[error(transparent)]
    Records(#[from] BatchError),
    /// It cannot be unpacked.
    #[error(transparent)]
    Packed(#[from] compression::UnpackError),
}

/// Whether every record of `batch` has a key, so that a log can be compacted by it. Walks all records, and unpacks them
/// if need be: for batches of compacted topics alone.
///
/// # Errors
/// [`NotCompactable`].
pub fn check_keys(batch: &[u8], header: &Header) -> Result<(), NotCompactable> {
    if header.attributes.is_control() {
        return Ok(());
    }
    let plain = Plain::of(batch, header)?;
    for record in record_batch::records(plain.bytes(batch))? {
        let record = record?;
        if record.key.is_none() {
            return Err(NotCompactable::WithoutKey(record.offset));
        }
    }
    Ok(())
}

/// A batch's records, unpacked if need be.
struct Plain(Option<Vec<u8>>);

impl Plain {
    fn of(batch: &[u8], header: &Header) -> Result<Self, compression::UnpackError> {
        if header.attributes.compression()? == Compression::None {
            return Ok(Self(None));
        }
        Ok(Self(compression::unpack(batch, UNPACKED_BATCH_BYTES_MAX)?.map(Vec::from)))
    }

    fn bytes<'a>(&'a self, batch: &'a [u8]) -> &'a [u8] {
        self.0.as_deref().unwrap_or(batch)
    }
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
