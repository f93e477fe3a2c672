//! What was appended, what was acknowledged, and the judge of a recovery.
//!
//! The ledger of a life is cloned into every image that is taken from it: an image is judged by what had
//! been promised at that moment. Batches are kept whole from offset 0 on, because a crash may bring back
//! what retention had dropped; nothing else may differ by a byte.
//!
//! Some batches have a producer, who sends again what was not acknowledged, at most five of them at a time.
//!
//! Judged after every recovery: nothing acknowledged is missing without being reported; nothing has
//! other bytes, stands twice or has gaps; the log ends where a batch ends; nothing that an earlier
//! recovery cut has come back; the verdict on the tail is the one that the bytes deserve; what a producer may
//! send again is recognised if it is there.

use super::disk::CrashDisk;
use super::image::{BLOCK, GroupNote, Image};
use logic::ids::{LeaderEpoch, Offset};
use logic::limits::PRODUCER_IN_FLIGHT_MAX;
use logic::log::{LogIdentity, SegmentName};
use logic::producer_state::{Admission, ProducerError};
use schema::record_batch::{self, Header};
use server::partition::reader::ReadError;
use server::partition::tail_cache::Slice;
use server::partition::{DurabilityWaiter, Partition, PartitionSettings};
use server::storage::{is_no_space, partition_directory};
use server::store::{Released, Store};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

/// A batch with its final bytes.
pub struct Batch {
    pub base: u64,
    pub end: u64,
    pub bytes: Vec<u8>,
}

impl Batch {
    pub fn header(&self) -> Header {
        Header::decode(&self.bytes).expect("it was made by a producer")
    }
}

/// One partition's promises.
#[derive(Clone)]
pub struct Slot {
    pub identity: LogIdentity,
    pub settings: PartitionSettings,
    /// The store that serves it, as the metadata says.
    pub home: usize,
    /// There are other replicas, which nobody plays: what is doubted is noted on the disk.
    pub replicated: bool,
    pub batches: Vec<Rc<Batch>>,
    pub acknowledged: u64,
    pub log_start: u64,
    pub deleted: bool,
    /// Not acknowledged and not there any more: their producers will send them again, in this order.
    pub to_send_again: Vec<Rc<Batch>>,
    /// The next sequence of each of its producers.
    pub sequences: [i32; PRODUCERS],
}

/// Producers of one partition.
pub const PRODUCERS: usize = 2;

impl Slot {
    pub fn new(identity: LogIdentity, settings: PartitionSettings, home: usize, replicated: bool) -> Self {
        Self {
            identity,
            settings,
            home,
            replicated,
            batches: Vec::new(),
            acknowledged: 0,
            log_start: 0,
            deleted: false,
            to_send_again: Vec::new(),
            sequences: [0; PRODUCERS],
        }
    }

    /// In which epoch it is opened by the life of this number; `None`: in that of its log.
    pub fn epoch(&self, life: u32) -> Option<LeaderEpoch> {
        (!self.replicated).then_some(LeaderEpoch::new(life))
    }

    /// Batches of a producer, in the order of their sequences, with those to be sent again.
    pub fn batches_of(&self, producer: usize) -> impl DoubleEndedIterator<Item = &Rc<Batch>> {
        let batches = self.batches.iter().chain(&self.to_send_again);
        batches.filter(move |batch| batch.header().producer_id == producer as i64)
    }
}

#[derive(Clone, Default)]
pub struct Ledger {
    pub slots: Vec<Slot>,
}

impl Ledger {
    /// Whether a submitted group has not been promised to anybody.
    pub fn is_open(&self, note: &GroupNote) -> bool {
        let slot = self.slots.iter().find(|slot| !slot.deleted && slot.identity.partition == note.partition);
        slot.is_some_and(|slot| note.end == note.base || note.end > slot.acknowledged)
    }
}

/// Writes acknowledgements into the ledger.
pub struct Acknowledge {
    pub ledger: Rc<RefCell<Ledger>>,
    pub slot: usize,
}

impl DurabilityWaiter for Acknowledge {
    fn durable(&self, token: u32, durable_end: Offset) {
        let mut ledger = self.ledger.borrow_mut();
        let slot = &mut ledger.slots[self.slot];
        let end = slot.batches[token as usize].end;
        assert!(durable_end.get() >= end, "{end} acknowledged, durable {durable_end}");
        slot.acknowledged = slot.acknowledged.max(end);
    }

    fn closed(&self, _: u32) {}
}

/// What was found over all images.
#[derive(Default)]
pub struct Tally {
    pub images: u64,
    pub lost: u64,
    pub misjudged: u64,
    pub failures: Vec<String>,
    /// What happened, to see that the tests reach what they are for.
    pub events: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, event: &'static str, count: u64) {
        *self.events.entry(event).or_default() += count;
    }

    fn fail(&mut self, text: String) {
        if self.failures.len() < 20 {
            self.failures.push(text);
        }
    }

    pub fn merge(&mut self, other: Tally) {
        self.images += other.images;
        self.lost += other.lost;
        self.misjudged += other.misjudged;
        other.failures.into_iter().for_each(|failure| self.fail(failure));
        other.events.into_iter().for_each(|(event, count)| self.add(event, count));
    }
}

/// What must be judged and how.
pub struct Case<'a> {
    pub image: &'a Image,
    pub root: &'a Path,
    /// Bits were flipped: losses are permitted if they are reported.
    pub flipped: bool,
    /// The last life ended in order: nothing may have to be read.
    pub clean: bool,
    /// The disk may have been full, down to the reserve: no checkpoint could be written.
    pub filled: bool,
}

/// Opens a partition and judges what its recovery found; `None`: there is no room.
pub async fn open_and_judge(
    store: &Rc<Store<CrashDisk>>,
    disk: &CrashDisk,
    ledger: &Rc<RefCell<Ledger>>,
    at: usize,
    epoch: u32,
    case: &Case<'_>,
    tally: &Rc<RefCell<Tally>>,
) -> Option<Rc<Partition<CrashDisk>>> {
    let slot = ledger.borrow().slots[at].clone();
    let partition = match store.open_partition(slot.identity, slot.settings, slot.epoch(epoch)).await {
        Ok(partition) => partition,
        Err(error) if is_no_space(&error) => return None,
        Err(error) => panic!("{}: {error}", slot.identity.partition),
    };
    let (start, end) = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
    settle_slot(&mut ledger.borrow_mut().slots[at], start, end, disk);
    let id = slot.identity.partition;
    let report = partition.report().clone();
    let mut tally = tally.borrow_mut();
    tally.add("partitions recovered", 1);
    if !case.flipped {
        if end < slot.acknowledged || start > slot.log_start {
            let missing = slot.batches.iter().filter(|batch| {
                batch.end <= slot.acknowledged
                    && (batch.end > end || batch.end <= start && batch.end > slot.log_start)
            });
            tally.lost += missing.count() as u64;
            tally.fail(format!(
                "{id}: found {start}..{end}, promised {}..{}, report {report:?}",
                slot.log_start, slot.acknowledged
            ));
        }
        let whole = end == 0 || slot.batches.iter().any(|batch| batch.end == end);
        if !whole {
            tally.misjudged += 1;
            let last = slot.batches.last().map_or(0, |batch| batch.end);
            tally.fail(format!("{id}: the log ends at {end}, where no batch ends; appended up to {last}"));
        }
        if !report.lost.is_empty() {
            tally.misjudged += 1;
            tally.fail(format!("{id}: lost {:?} without damage", report.lost));
        }
        judge_tail(&partition, &slot, end, case, &mut tally);
        judge_producers(&partition, &ledger.borrow().slots[at], slot.acknowledged, case.filled, &mut tally);
        if case.clean && report.bytes_read > 2 * BLOCK as u64 && !has_leftovers(&partition, case) {
            tally.misjudged += 1;
            tally.fail(format!("{id}: {} bytes read after an orderly end", report.bytes_read));
        }
    } else {
        tally.add("lost ranges reported", report.lost.len() as u64);
        tally.add("unproven tails reported", u64::from(report.unproven.is_some()));
    }
    drop(tally);
    Some(partition)
}

/// Whether the last life has left files behind the end of the log: it ended before those of a log that was cut were reclaimed.
fn has_leftovers(partition: &Partition<CrashDisk>, case: &Case<'_>) -> bool {
    let directory = partition_directory(case.root, &partition.identity());
    let (last, placed) =
        partition.with_log(|log| (log.segments().back().map(|last| last.sequence), log.placed()));
    let behind = |name: SegmentName| {
        Some(name.first) > last && placed.is_none_or(|(sequence, _)| sequence != name.first)
    };
    case.image.files().any(|(path, _)| {
        let name = path.file_name().and_then(|name| SegmentName::parse(name.to_str()?));
        path.parent() == Some(directory.as_path()) && name.is_some_and(behind)
    })
}

/// A log has been opened: what was cut is gone for good from now on, and what is there is seen by consumers.
fn settle_slot(slot: &mut Slot, start: u64, end: u64, disk: &CrashDisk) {
    let (kept, cut): (Vec<_>, Vec<_>) = slot.batches.drain(..).partition(|batch| batch.end <= end);
    slot.batches = kept;
    let again = cut.into_iter().filter(|batch| batch.header().producer_id >= 0);
    slot.to_send_again.splice(..0, again);
    slot.acknowledged = end;
    slot.log_start = start;
    disk.retain_groups(|note| note.partition != slot.identity.partition);
}

/// Judges a partition that another store has released, as it is open where it has come to.
pub fn judge_taken_over(
    partition: &Partition<CrashDisk>,
    released: &Released,
    disk: &CrashDisk,
    slot: &mut Slot,
    filled: bool,
    tally: &mut Tally,
) {
    let (start, end) = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
    let (id, report, promised) = (partition.id(), partition.report().clone(), slot.acknowledged);
    let last = slot.batches.last().map_or(slot.log_start, |batch| batch.end);
    settle_slot(slot, start, end, disk);
    let whole = slot.batches.last().map_or(end == start, |batch| batch.end == end);
    let all = !released.at_rest || end == last && report.unproven.is_none();
    let known = (released.checkpoint.durable_end, released.checkpoint.log_start);
    if end < promised || known != (known.0.min(end), start) || !whole || !all || !report.lost.is_empty() {
        tally.lost += u64::from(end < promised);
        tally.misjudged += 1;
        tally.fail(format!(
            "{id}: taken over as {start}..{end}, promised ..{promised}, appended ..{last}, at rest {}: {report:?}",
            released.at_rest
        ));
    }
    judge_producers(partition, slot, promised, filled, tally);
}

/// Whether what producers may send again is recognised where it is: whatever is there and was not acknowledged, and
/// the newest. Older ones of the last five are recognised or said to be forgotten, and never appended anew: a
/// checkpoint tells of durable batches alone, and those behind it that a crash took had pushed older ones out of the
/// table. Their producers had been answered, or they would not have sent that many more. Where no checkpoint could be
/// written, a batch below the log's start may be forgotten with all that its producer had there; it is refused then.
fn judge_producers(
    partition: &Partition<CrashDisk>,
    slot: &Slot,
    acknowledged: u64,
    filled: bool,
    tally: &mut Tally,
) {
    let id = slot.identity.partition;
    let log_start = partition.with_log(|log| log.log_start().get());
    for producer in 0..PRODUCERS {
        let of_log = slot.batches.iter().filter(|batch| batch.header().producer_id == producer as i64);
        for (age, batch) in of_log.rev().take(PRODUCER_IN_FLIGHT_MAX).enumerate() {
            match partition.admit_producer(&batch.header()) {
                Ok(Admission::Duplicate(note))
                    if note.base.get() == batch.base && note.end().get() == batch.end =>
                {
                    tally.add("batches sent again and recognised", 1);
                }
                Err(ProducerError::Forgotten { .. }) if age > 0 && batch.end <= acknowledged => {
                    tally.add("acknowledged batches sent again and forgotten", 1);
                }
                Err(ProducerError::OutOfOrder { .. } | ProducerError::Unknown { .. })
                    if filled && batch.end <= acknowledged.min(log_start) =>
                {
                    tally.add("batches below the start of a log that filled the disk, refused", 1);
                }
                other => {
                    tally.misjudged += 1;
                    tally.fail(format!("{id}: batch {}..{} sent again: {other:?}", batch.base, batch.end));
                }
            }
        }
    }
}

/// Whether the verdict on the tail is the one that the bytes deserve.
fn judge_tail(partition: &Partition<CrashDisk>, slot: &Slot, end: u64, case: &Case<'_>, tally: &mut Tally) {
    let id = slot.identity.partition;
    let directory = partition_directory(case.root, &slot.identity);
    let sequence_of = |note: &GroupNote| {
        case.image.files().find_map(|(path, file)| {
            let name = path.file_name()?.to_str()?;
            let here = file.id == note.file && path.parent() == Some(directory.as_path());
            here.then(|| SegmentName::parse(name).map(|name| name.first)).flatten()
        })
    };
    // A submitted and unpromised group of which the header is there, behind the end of the log.
    let remains = |note: &&GroupNote| {
        let behind = sequence_of(note).is_some_and(|sequence| {
            partition.with_log(|log| {
                let last = log.segments().back().is_some_and(|last| last.sequence == sequence);
                log.segment(sequence).is_none_or(|segment| {
                    // A cut is followed by the opening group.
                    note.position + (if last { BLOCK as u64 } else { 0 }) >= segment.end_position
                })
            })
        });
        note.partition == id && note.base >= end && behind && case.image.holds(note)
    };
    let open = case.image.unacknowledged.iter();
    match partition.report().unproven {
        Some((from, until)) => {
            tally.add("unproven tails", 1);
            if from != end || open.clone().filter(remains).count() == 0 {
                tally.misjudged += 1;
                tally.fail(format!(
                    "{id}: unproven {from}..{until:?} behind {end}, but nothing of ours is there"
                ));
            }
        }
        None => {
            tally.add("clean tails", 1);
            if let Some(note) = open.filter(|note| note.end > end && !note.inherited).find(remains) {
                tally.misjudged += 1;
                tally.fail(format!(
                    "{id}: clean at {end}, but the group {}..{} is at {} of file {}",
                    note.base, note.end, note.position, note.file
                ));
            }
        }
    }
}

/// Reads a partition from start to end and compares it with the promises.
pub async fn read_and_judge(
    store: &Rc<Store<CrashDisk>>,
    partition: &Rc<Partition<CrashDisk>>,
    slot: &Slot,
    max_bytes: usize,
    case: &Case<'_>,
    tally: &Rc<RefCell<Tally>>,
) {
    let (start, end) = partition.with_log(|log| (log.log_start().get(), log.log_end().get()));
    let id = slot.identity.partition;
    let mut reported: Vec<std::ops::Range<u64>> = partition.report().lost.clone();
    if let Some((from, _)) = partition.report().unproven {
        reported.push(from..u64::MAX);
    }
    let mut served: Vec<(u64, u64)> = Vec::new();
    let mut wrong = Vec::new();
    let mut offset = start;
    while offset < end {
        match partition.read(&store.chunks, Offset::new(offset), max_bytes).await {
            Ok(slices) => {
                let bytes = slices.iter().map(Slice::bytes).collect::<Vec<_>>().concat();
                let before = offset;
                for batch in record_batch::batches(&bytes) {
                    let (header, bytes) = batch.expect("whole batches are served");
                    let known = slot.batches.binary_search_by_key(&header.base_offset, |batch| batch.base);
                    let same = known.is_ok_and(|at| slot.batches[at].bytes == bytes);
                    if !same || header.base_offset != offset && served.last().is_some() && !case.flipped {
                        wrong.push(header.base_offset);
                    }
                    served.push((header.base_offset, header.end_offset()));
                    offset = header.end_offset();
                }
                if offset <= before {
                    wrong.push(before);
                    break;
                }
            }
            Err(ReadError::Damaged { from, until }) => {
                reported.push(from.get()..until.get());
                if until.get() <= offset {
                    wrong.push(offset);
                    break;
                }
                offset = until.get();
            }
            Err(error) => {
                wrong.push(offset);
                tally.borrow_mut().fail(format!("{id}: reading {offset} of {start}..{end}: {error}"));
                break;
            }
        }
    }
    let mut tally = tally.borrow_mut();
    for batch in slot.batches.iter().filter(|batch| {
        batch.end > slot.log_start.min(start)
            && batch.base >= slot.log_start
            && batch.end <= slot.acknowledged
    }) {
        let is_served = served.binary_search(&(batch.base, batch.end)).is_ok();
        let is_reported =
            case.flipped && reported.iter().any(|range| range.start < batch.end && range.end > batch.base);
        if is_served && !wrong.contains(&batch.base) {
            tally.add("acknowledged batches read back", 1);
        } else if is_reported {
            tally.add("acknowledged batches lost and reported", 1);
        } else {
            tally.lost += 1;
            tally.fail(format!(
                "{id}: acknowledged batch {}..{} is not served and not reported ({reported:?}); log {start}..{end}",
                batch.base, batch.end
            ));
        }
    }
    if !wrong.is_empty() {
        tally.lost += 1;
        tally.fail(format!("{id}: wrong bytes, gaps or nothing at offsets {wrong:?} of {start}..{end}"));
    }
}
