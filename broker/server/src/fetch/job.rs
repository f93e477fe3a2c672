//! A fetch that is not answered: reads its entries here and at other shards until there is enough.
//!
//! ```text
//! reserve → pass: every shard at once, none waits → enough? answer
//!         → park here and there, holding nothing → woken or expired → again
//! ```
//!
//! Owned by the fetch's task, on the shard of its connection. The sum over all shards is at most the
//! terms' `max_bytes`, or one batch if that is larger; what the sum lacks of `min_bytes` is waited for
//! everywhere in equal parts: if it comes, it comes to one of them at least. A shard that reads for another
//! never waits for room while the other holds some: it answers `OVERLOADED` for its entries.

use super::{FetchEntry, Found, ParkedFetch, RETRY_AFTER_MS, RemoteFetch, RemoteWait, Room, WaitedEntry};
use crate::connection::Connection;
use crate::error_code;
use crate::mailbox::{Message, Refused};
use crate::outbox::Piece;
use crate::partition::reader::ReadError;
use crate::partition::tail_cache::Slice;
use crate::reply_budget::Reservation;
use crate::shard::{Location, Partition, Shard};
use crate::storage::count;
use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::{Either, LocalBoxFuture, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use logic::fetch_waiters::{NotParked, Waited, WaiterKey};
use logic::ids::ShardId;
use logic::limits::BATCH_BYTES_MAX;
use schema::error_code::ErrorCode;
use schema::record_batch;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a reply's head: at most so many for each entry…
const HEAD_BYTES_PER_ENTRY: usize = 128;
/// … and so many besides, the message included.
const HEAD_BYTES: usize = 4096;

/// What a fetch wants.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Wait for so many bytes…
    pub min_bytes: usize,
    /// … until then, milliseconds of the broker's clock.
    pub wait_until_ms: u64,
    /// Nothing is done for the request any more from then on.
    pub deadline_ms: u64,
    /// Bytes of the whole reply at most.
    pub max_bytes: usize,
}

/// Why a fetch is not answered with what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There was no room for its reply in time.
    Overloaded,
    /// Its deadline has passed.
    TimedOut,
    /// Nobody is there to hear the answer.
    Gone,
}

/// Room for a reply, in the connection's budget and the shard's.
pub type Held = [Reservation; 2];

impl<B> Found<B> {
    fn at(partition: &Partition, error: Option<ErrorCode>) -> Self {
        let (high_watermark, log_start) =
            partition.with_log(|log| (log.high_watermark().get(), log.log_start().get()));
        Self { high_watermark, log_start, ..Self::nothing(error) }
    }
}

impl Found<Slice> {
    /// What was read, as far as the room of the whole reply goes.
    fn stored(partition: &Partition, slices: Vec<Slice>, entry: &FetchEntry, left: Left) -> Self {
        let bytes: usize = slices.iter().map(|slice| slice.range.len()).sum();
        let nothing = Self::at(partition, None);
        if bytes > left.bytes && !left.one_batch {
            return Self { cut: true, ..nothing };
        }
        // Only who was kept short needs to know whether there is more.
        let cut = left.bytes < entry.max_bytes && ends_below(&slices, nothing.high_watermark);
        Self { bytes, cut, body: slices, ..nothing }
    }
}

/// Whether stored batches end below an offset. A slice that begins inside a batch, because the batch lies in two
/// pieces of the file, does not say where it ends: then there may be more, and looking again costs less than
/// waiting for what is there.
fn ends_below(slices: &[Slice], offset: u64) -> bool {
    slices.last().is_some_and(|last| {
        let last = record_batch::batches(last.bytes()).last().and_then(Result::ok);
        last.is_none_or(|(header, _)| header.end_offset() < offset)
    })
}

/// What is left of the reply's room for one entry.
#[derive(Clone, Copy)]
struct Left {
    bytes: usize,
    /// The first batch may be larger.
    one_batch: bool,
}

impl Left {
    fn of(room: Room, total: usize) -> Self {
        Self { bytes: room.bytes.saturating_sub(total), one_batch: room.one_batch && total == 0 }
    }

    /// Bytes to read of an entry; 0 = nothing.
    fn to_read(self, entry: &FetchEntry) -> usize {
        entry.max_bytes.min(self.bytes).max(usize::from(self.one_batch))
    }
}

/// One look at all entries.
struct Pass {
    found: Vec<Found<Piece>>,
    bytes: usize,
}

/// Entries of one shard, by their places in the request; `None` = this shard.
type Group = (Option<ShardId>, Vec<usize>);

/// What comes of wanting to wait.
enum Waiting<'a> {
    /// Something came meanwhile: look again.
    Again,
    /// Too many wait already: answer with what there is.
    Full,
    /// Each ends with whether it was waited for; the first one counts.
    Begun(FuturesUnordered<LocalBoxFuture<'a, bool>>),
}

/// A fetch that is not answered.
pub struct Job {
    /// Where its connection is.
    pub shard: Rc<Shard>,
    /// Who asks.
    pub connection: Rc<Connection>,
    /// For what.
    pub entries: Vec<FetchEntry>,
    /// How much, and for how long.
    pub terms: Terms,
}

impl Job {
    /// The whole answer, if it lies in memory, is enough, and there is room for it now.
    pub fn in_memory(&self) -> Option<(Vec<Found<Piece>>, Held)> {
        let room = Room { bytes: self.terms.max_bytes, one_batch: true };
        let mut found = Vec::with_capacity(self.entries.len());
        let mut bytes = 0;
        for entry in &self.entries {
            let Location::Here(partition) = self.shard.locate(entry.id) else { return None };
            if refusal(&self.shard, &partition, entry).is_some() {
                return None;
            }
            let one = from_tail(&partition, entry, Left::of(room, bytes))?;
            bytes += one.bytes;
            found.push(one.map(Piece::Stored));
        }
        let pass = Pass { found, bytes };
        if !self.is_enough(&pass) {
            return None;
        }
        let held = self.try_reserve(bytes + self.head_bytes())?;
        count(&self.shard.counters.fetches_from_memory, 1);
        Some((pass.found, held))
    }

    /// Reads until there is enough or the time is over.
    ///
    /// # Errors
    /// There is no room for the reply, no time left, or no connection.
    pub async fn run(&self) -> Result<(Vec<Found<Piece>>, Held), Refusal> {
        let mut may_wait = true;
        loop {
            let held = self.reserve().await?;
            let groups = self.groups();
            let pass = self.pass(&groups).await;
            let over = self.shard.now_ms() >= self.terms.wait_until_ms || self.shard.is_stopping();
            if over || !may_wait || self.is_enough(&pass) {
                return Ok((pass.found, held));
            }
            // In the same turn as the last look at this shard's watermarks: nothing slips between.
            let mut waits = match self.wait(&groups, &pass) {
                Waiting::Again => continue,
                Waiting::Full => {
                    count(&self.shard.counters.overloaded, 1);
                    return Ok((pass.found, held));
                }
                Waiting::Begun(waits) => waits,
            };
            // Buffers and room are not held while waiting; a wait that is given up leaves nothing behind.
            drop(pass);
            drop(held);
            may_wait = waits.next().await.unwrap_or(false);
        }
    }

    // ---- Room ----------------------------------------------------------------------------------------

    fn head_bytes(&self) -> usize {
        HEAD_BYTES + HEAD_BYTES_PER_ENTRY * self.entries.len()
    }

    /// The largest reply that this fetch can get.
    fn reply_bytes_max(&self) -> usize {
        let entries = self.entries.iter().map(|entry| entry.max_bytes.max(BATCH_BYTES_MAX));
        let of_entries = entries.fold(0, usize::saturating_add);
        self.terms.max_bytes.max(BATCH_BYTES_MAX).min(of_entries) + self.head_bytes()
    }

    fn try_reserve(&self, bytes: usize) -> Option<Held> {
        let own = self.connection.replies.try_reserve(bytes)?;
        Some([own, self.shard.replies.try_reserve(bytes)?])
    }

    /// Takes room for the largest reply; waits for that of its own connection as long as it may, for that
    /// of the shard not longer than it would for bytes.
    async fn reserve(&self) -> Result<Held, Refusal> {
        self.check_asker()?;
        let bytes = self.reply_bytes_max();
        if let Some(held) = self.try_reserve(bytes) {
            return Ok(held);
        }
        let deadline_ms = self.terms.deadline_ms;
        let own = self.within(deadline_ms, self.connection.replies.reserve(bytes)).await;
        let own = own.ok_or(Refusal::TimedOut)?;
        let shortest_ms = self.shard.now_ms() + u64::from(RETRY_AFTER_MS);
        let until_ms = self.terms.wait_until_ms.max(shortest_ms).min(deadline_ms);
        let shared = self.within(until_ms, self.shard.replies.reserve(bytes)).await;
        self.check_asker()?;
        Ok([own, shared.ok_or(Refusal::Overloaded)?])
    }

    /// Whether somebody still wants the answer.
    fn check_asker(&self) -> Result<(), Refusal> {
        if self.connection.is_dead() {
            return Err(Refusal::Gone);
        }
        if self.shard.now_ms() >= self.terms.deadline_ms {
            return Err(Refusal::TimedOut);
        }
        Ok(())
    }

    async fn within<T>(&self, until_ms: u64, future: impl Future<Output = T> + Unpin) -> Option<T> {
        if until_ms == u64::MAX {
            return Some(future.await);
        }
        let left = Duration::from_millis(until_ms.saturating_sub(self.shard.now_ms()));
        match select(future, Box::pin(glommio::timer::sleep(left))).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(_) => None,
        }
    }

    // ---- Reading -------------------------------------------------------------------------------------

    /// The entries by shard, in the order in which the request names the shards first.
    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let home = match self.shard.locate(entry.id) {
                Location::Shard(home) => Some(home),
                Location::Here(_) | Location::Nowhere(_) => None,
            };
            match groups.iter_mut().find(|(other, _)| *other == home) {
                Some((_, group)) => group.push(at),
                None => groups.push((home, vec![at])),
            }
        }
        groups
    }

    /// Asks all shards at once, each for its share; if that is not enough although there is more, those
    /// that have it for what is left.
    async fn pass(&self, groups: &[Group]) -> Pass {
        let max_bytes = self.terms.max_bytes;
        let mut pass = Pass { found: self.entries.iter().map(|_| Found::nothing(None)).collect(), bytes: 0 };
        let mut asked = FuturesUnordered::new();
        for (home, group) in groups {
            let bytes = max_bytes / self.entries.len() * group.len();
            let room = match groups.len() {
                1 => Room { bytes: max_bytes, one_batch: true },
                _ => Room { bytes, one_batch: false },
            };
            asked.push(self.ask(*home, group.clone(), room));
        }
        while let Some(part) = asked.next().await {
            pass.take(part);
        }
        for (home, group) in groups.iter().filter(|_| groups.len() > 1) {
            if self.missing_bytes(&pass) == 0 {
                break;
            }
            let again: Vec<usize> = group.iter().copied().filter(|at| pass.found[*at].cut).collect();
            if again.is_empty() {
                continue;
            }
            // Their share goes back into the whole.
            pass.take(again.iter().map(|at| (*at, Found::nothing(None))).collect());
            let room = Room { bytes: max_bytes - pass.bytes, one_batch: pass.bytes == 0 };
            let part = self.ask(*home, again, room).await;
            pass.take(part);
        }
        pass
    }

    async fn ask(&self, home: Option<ShardId>, at: Vec<usize>, room: Room) -> Vec<(usize, Found<Piece>)> {
        let entries: Vec<FetchEntry> = at.iter().map(|&at| self.entries[at]).collect();
        let found: Vec<_> = match home {
            None => {
                let found = read(&self.shard, &entries, room).await;
                found.into_iter().map(|found| found.map(Piece::Stored)).collect()
            }
            Some(home) => match self.forward(home, entries, room).await {
                Ok(parts) => parts.into_iter().map(|part| part.map(Piece::Copied)).collect(),
                Err(code) => at.iter().map(|_| Found::nothing(Some(code))).collect(),
            },
        };
        at.into_iter().zip(found).collect()
    }

    async fn forward(
        &self,
        home: ShardId,
        entries: Vec<FetchEntry>,
        room: Room,
    ) -> Result<Vec<Found<Bytes>>, ErrorCode> {
        count(&self.shard.counters.forwarded, 1);
        let remote = RemoteFetch { entries, room, deadline_ms: self.terms.deadline_ms };
        let (reply, parts) = oneshot::channel();
        match self.shard.mailboxes.try_send(home, Message::Fetch(remote, reply)) {
            Ok(()) => parts.await.map_err(|_| ErrorCode::ShuttingDown),
            Err(Refused::Full) => {
                count(&self.shard.counters.overloaded, 1);
                Err(ErrorCode::Overloaded)
            }
            Err(Refused::Closed) => Err(ErrorCode::ShuttingDown),
        }
    }

    /// Whether a pass is to be answered with, whatever time is left.
    fn is_enough(&self, pass: &Pass) -> bool {
        let settled = |found: &Found<Piece>| found.error.is_some() || found.cut;
        self.missing_bytes(pass) == 0 || pass.found.iter().any(settled)
    }

    /// Bytes without which the fetch waits: what the reply cannot carry is not waited for.
    fn missing_bytes(&self, pass: &Pass) -> usize {
        let entries = self.entries.iter().map(|entry| entry.max_bytes.max(1));
        let most = entries.fold(0, usize::saturating_add).min(self.terms.max_bytes.max(1));
        self.terms.min_bytes.max(1).min(most).saturating_sub(pass.bytes)
    }

    // ---- Waiting -------------------------------------------------------------------------------------

    /// Waits for what is missing, here and at the other shards.
    fn wait(&self, groups: &[Group], pass: &Pass) -> Waiting<'_> {
        let min_bytes = self.missing_bytes(pass).div_ceil(groups.len()) as u64;
        let waits = FuturesUnordered::new();
        for (home, group) in groups {
            let entries: Vec<WaitedEntry> = group
                .iter()
                .map(|&at| (&self.entries[at], &pass.found[at]))
                .filter(|(entry, found)| found.bytes < entry.max_bytes.max(1))
                .map(|(entry, found)| WaitedEntry {
                    entry: *entry,
                    seen: found.high_watermark,
                    room_bytes: (entry.max_bytes.max(1) - found.bytes) as u64,
                })
                .collect();
            if entries.is_empty() {
                continue;
            }
            let wait = RemoteWait { entries, min_bytes, until_ms: self.terms.wait_until_ms };
            let Some(home) = *home else {
                match park(&self.shard, &wait) {
                    Parking::Moved => return Waiting::Again,
                    Parking::Full => return Waiting::Full,
                    Parking::Parked(parked) => waits.push(Box::pin(async move {
                        parked.woken().await;
                        true
                    }) as LocalBoxFuture<'_, bool>),
                }
                continue;
            };
            let (reply, woken) = oneshot::channel();
            if self.shard.mailboxes.try_send(home, Message::AwaitBytes(wait, reply)).is_err() {
                return Waiting::Full;
            }
            waits.push(Box::pin(async move { woken.await.unwrap_or(false) }));
        }
        Waiting::Begun(waits)
    }
}

impl Pass {
    fn take(&mut self, part: Vec<(usize, Found<Piece>)>) {
        for (at, found) in part {
            self.bytes = self.bytes - self.found[at].bytes + found.bytes;
            self.found[at] = found;
        }
    }
}

/// What comes of parking.
pub enum Parking {
    /// There is something new already, or no time left.
    Moved,
    /// Too many wait, or the shard is stopping.
    Full,
    /// It waits.
    Parked(Parked),
}

/// A place among the waiting fetches, given up when dropped.
pub struct Parked {
    shard: Rc<Shard>,
    key: WaiterKey,
    fetch: Rc<ParkedFetch>,
}

impl Parked {
    /// Waits until there is something, or the time is over.
    pub async fn woken(&self) {
        self.fetch.wait().await;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.shard.waiters.borrow_mut().remove(self.key);
    }
}

/// Parks a fetch on a shard, unless there is something new already.
pub fn park(shard: &Rc<Shard>, wait: &RemoteWait) -> Parking {
    if shard.is_stopping() {
        return Parking::Full;
    }
    // What has changed since it was read is not told again: nobody who waits learns of it.
    let has_moved = |waited: &WaitedEntry| {
        shard.store.partition(&waited.entry.id).is_none_or(|partition| {
            partition.high_watermark().get() > waited.seen
                || refusal(shard, &partition, &waited.entry).is_some()
        })
    };
    if wait.entries.iter().any(has_moved) {
        return Parking::Moved;
    }
    let entries = wait.entries.iter();
    let waited: Vec<Waited> = entries
        .map(|one| Waited { partition: one.entry.id, have_bytes: 0, max_bytes: one.room_bytes })
        .collect();
    let fetch = Rc::new(ParkedFetch::default());
    let (now_ms, min_bytes) = (shard.now_ms(), wait.min_bytes.max(1));
    let parked = shard.waiters.borrow_mut().park(fetch.clone(), now_ms, wait.until_ms, min_bytes, &waited);
    match parked {
        Ok(key) => {
            shard.expiry.due(wait.until_ms);
            Parking::Parked(Parked { shard: shard.clone(), key, fetch })
        }
        Err(NotParked::Ready(_)) => Parking::Moved,
        Err(NotParked::Full(_)) => Parking::Full,
    }
}

/// Reads entries of this shard, one after the other, into `room` altogether.
pub async fn read(shard: &Shard, entries: &[FetchEntry], room: Room) -> Vec<Found<Slice>> {
    let mut found = Vec::with_capacity(entries.len());
    let mut total = 0;
    for entry in entries {
        let one = read_one(shard, entry, Left::of(room, total)).await;
        total += one.bytes;
        found.push(one);
    }
    found
}

/// Why this replica does not answer: only the leader does, and for who may read there a follower that is current.
fn refusal(shard: &Shard, partition: &Partition, entry: &FetchEntry) -> Option<ErrorCode> {
    let standing = partition.standing();
    let epoch = match standing.leads {
        true => partition.leader_epoch(),
        false => match standing.follows.filter(|_| entry.from_follower && shard.metadata.is_heard()) {
            Some(epoch) => epoch,
            None => return Some(ErrorCode::NotLeader),
        },
    };
    (entry.leader_epoch != epoch.get()).then_some(ErrorCode::FencedLeaderEpoch)
}

async fn read_one(shard: &Shard, entry: &FetchEntry, left: Left) -> Found<Slice> {
    let partition = match shard.locate(entry.id) {
        Location::Here(partition) => partition,
        Location::Shard(_) => return Found::nothing(Some(ErrorCode::NotLeader)),
        Location::Nowhere(code) => return Found::nothing(Some(code)),
    };
    match refusal(shard, &partition, entry) {
        None => {}
        // What a log says that nobody answers for means nothing.
        Some(ErrorCode::NotLeader) => return Found::nothing(Some(ErrorCode::NotLeader)),
        code => return Found::at(&partition, code),
    }
    if let Some(found) = from_tail(&partition, entry, left) {
        count(&shard.counters.fetches_from_memory, u64::from(found.bytes > 0));
        return found;
    }
    match partition.read(&shard.store.chunks, entry.offset, left.to_read(entry)).await {
        Ok(slices) => {
            count(&shard.counters.fetches_from_device, u64::from(!slices.is_empty()));
            Found::stored(&partition, slices, entry, left)
        }
        Err(error) => {
            tracing::debug!("partition {}: fetch of {}: {error}", entry.id, entry.offset);
            // Others have it, and one of them is about to lead.
            if matches!(error, ReadError::Damaged { .. }) && shard.replicas.repair(&entry.id) {
                return Found::at(&partition, Some(ErrorCode::NotLeader));
            }
            // What the follower lacks the leader may have: it says whether an offset is out of range.
            if !partition.standing().leads {
                return Found::nothing(Some(ErrorCode::NotLeader));
            }
            let label = shard.store.storage.label(entry.id);
            let message = Some(format!("{label}: {error}"));
            Found { message, ..Found::at(&partition, Some(error_code::of_read(&error))) }
        }
    }
}

/// What is known without reading the device.
fn from_tail(partition: &Partition, entry: &FetchEntry, left: Left) -> Option<Found<Slice>> {
    let to_read = left.to_read(entry);
    if to_read == 0 {
        let nothing = Found::at(partition, None);
        // An entry that wants nothing is not cut.
        let cut = entry.max_bytes > 0 && nothing.high_watermark > entry.offset.get();
        return Some(Found { cut, ..nothing });
    }
    Some(Found::stored(partition, partition.read_tail(entry.offset, to_read)?, entry, left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::buffer::BufferPool;
    use schema::record_batch::{BatchBuilder, set_base_offset};

    #[test]
    fn what_was_read_ends_below_the_watermark_or_not() {
        // Offsets 0..2 and 2..4, each batch of two records.
        let mut stored = Vec::new();
        for base_offset in [0, 2] {
            let mut builder = BatchBuilder::new();
            for _ in 0..2 {
                builder.append(1, None, Some(&[7; 100]), &[]);
            }
            let mut batch = builder.finish();
            set_base_offset(&mut batch, base_offset);
            stored.extend(batch);
        }
        let (half, whole) = (stored.len() / 2, stored.len());
        let pool = BufferPool::new();
        let mut buffer = pool.take(whole);
        buffer[..whole].copy_from_slice(&stored);
        let buffer = Rc::new(buffer);
        // Slices, high watermark, whether there is more.
        let rows: [(&[usize], u64, bool); 9] = [
            (&[], 4, false),
            (&[0, whole], 4, false),
            (&[0, whole], 5, true),
            (&[0, half], 2, false),
            (&[0, half], 4, true),
            (&[0, half, whole], 4, false),
            (&[0, half, whole], 5, true),
            // The last batch lies in two pieces: where it ends is not known.
            (&[0, half + 30, whole], 6, true),
            (&[0, whole - 1, whole], 6, true),
        ];
        for (cuts, high_watermark, expected) in rows {
            let slices: Vec<Slice> =
                cuts.windows(2).map(|cut| Slice { buffer: buffer.clone(), range: cut[0]..cut[1] }).collect();
            assert_eq!(ends_below(&slices, high_watermark), expected, "{cuts:?} below {high_watermark}");
        }
    }
}
