//! Appending: a batch gets its offsets and its place in a pending group.
//!
//! A batch is copied once, from the socket's buffer into its group; one that was received into an aligned
//! buffer becomes a group as it is. Nothing is written here: the next round takes the groups. The caller has
//! checked the batch, its checksum included.

use super::{Appended, Partition, PendingGroup};
use crate::storage::buffer::Buffer;
use crate::storage::disk::Disk;
use logic::ids::LeaderEpoch;
use logic::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use logic::log::OpenGroup;
use schema::record_batch::{self, Header};
use schema::segment::{GROUP_HEADER_BYTES, group_bytes};

impl<D: Disk> Partition<D> {
    /// Appends a checked batch, copying it into the pending group.
    pub fn append_copy(&self, batch: &[u8], header: &Header) -> Appended {
        let (appended, epoch) = self.assign(header);
        let mut pending = self.pending.borrow_mut();
        let length = batch.len();
        let joins = pending.back().is_some_and(|last| {
            !last.closed
                && last.group.leader_epoch == epoch
                && group_bytes(last.group.payload_bytes as usize + length) <= GROUP_BYTES_MAX
        });
        if !joins {
            let buffer = self.storage.pool.take(group_bytes(length));
            pending.push_back(PendingGroup { buffer, group: open_group(&appended, epoch), closed: false });
        }
        let last = pending.back_mut().expect("a group has just been made sure of");
        let start = GROUP_HEADER_BYTES + last.group.payload_bytes as usize;
        self.ensure_room(last, start + length);
        self.storage.add_dirty(length);
        let place = &mut last.buffer[start..start + length];
        place.copy_from_slice(batch);
        self.stamp(place, header, &appended, epoch, &mut last.group);
        appended
    }

    /// Appends a checked batch that was received into `buffer`, right behind the room for the group's
    /// header. The buffer becomes the group.
    pub fn append_in_place(&self, mut buffer: Buffer, header: &Header) -> Appended {
        let (appended, epoch) = self.assign(header);
        let mut group = open_group(&appended, epoch);
        let length = header.batch_bytes;
        self.storage.add_dirty(length);
        let place = &mut buffer[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + length];
        self.stamp(place, header, &appended, epoch, &mut group);
        self.pending.borrow_mut().push_back(PendingGroup { buffer, group, closed: true });
        appended
    }

    fn assign(&self, header: &Header) -> (Appended, LeaderEpoch) {
        let epoch = self.leader_epoch.get();
        let base = self.log.borrow_mut().append(header.last_offset_delta + 1, epoch);
        let append_time_ms = match header.producer_id {
            0.. => {
                let admitted = self.admitted.take().filter(|(end, _)| *end == base);
                let Some((_, time_ms)) = admitted else {
                    panic!(
                        "log {}: a producer's batch appended at {base} that was not admitted there",
                        self.id()
                    )
                };
                time_ms
            }
            _ => self.storage.environment.now_ms(),
        };
        self.last_append_ms.set(append_time_ms);
        let end = base.advance(u64::from(header.last_offset_delta) + 1);
        (Appended { base, end, append_time_ms }, epoch)
    }

    pub(super) fn ensure_room(&self, pending: &mut PendingGroup, bytes: usize) {
        if bytes <= pending.buffer.len() {
            return;
        }
        pending.buffer.expand();
        if bytes <= pending.buffer.len() {
            return;
        }
        let used = GROUP_HEADER_BYTES + pending.group.payload_bytes as usize;
        let mut larger = self.storage.pool.take((2 * pending.buffer.len()).min(GROUP_BYTES_MAX).max(bytes));
        larger[..used].copy_from_slice(&pending.buffer[..used]);
        pending.buffer = larger;
    }

    /// Writes what the broker decides into a batch in its final place, and adds it to the group.
    fn stamp(
        &self,
        batch: &mut [u8],
        header: &Header,
        appended: &Appended,
        epoch: LeaderEpoch,
        group: &mut OpenGroup,
    ) {
        record_batch::set_base_offset(batch, appended.base.get());
        record_batch::set_leader_epoch(batch, epoch.get());
        let mut max_timestamp_ms = header.max_timestamp_ms;
        let mut crc = Some(header.crc);
        if self.settings.get().log_append_time {
            record_batch::set_log_append_time(batch, appended.append_time_ms);
            max_timestamp_ms = appended.append_time_ms;
            crc = None;
        }
        group.payload_crc = record_batch::extend_crc(group.payload_crc, batch, crc);
        group.payload_bytes += batch.len() as u32;
        group.batch_count += 1;
        group.end = appended.end;
        group.max_timestamp_ms = group.max_timestamp_ms.max(max_timestamp_ms);
    }

    /// Puts an attestation into the next round if the log has gone idle without one.
    pub fn attest_if_idle(&self, idle_since_ms: i64) -> bool {
        if self.closed.get()
            || self.cutting.get()
            || self.last_append_ms.get() > idle_since_ms
            || !self.pending.borrow().is_empty()
        {
            return false;
        }
        let Some(group) = self.log.borrow_mut().attestation(self.storage.environment.now_ms()) else {
            return false;
        };
        let buffer = self.storage.pool.take(BLOCK_BYTES);
        self.pending.borrow_mut().push_back(PendingGroup { buffer, group, closed: true });
        true
    }
}

fn open_group(appended: &Appended, leader_epoch: LeaderEpoch) -> OpenGroup {
    OpenGroup {
        base: appended.base,
        end: appended.base,
        leader_epoch,
        payload_bytes: 0,
        batch_count: 0,
        max_timestamp_ms: -1,
        append_time_ms: appended.append_time_ms,
        payload_crc: 0,
    }
}
