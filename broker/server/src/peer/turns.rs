//! Whose turn it is on a stream, and how much may be under way: fairness and credit.
//!
//! One for each stream of a link, owned by it. A partition that has batches for the peer asks once and gets a turn of one
//! chunk; then it asks again, behind the others. Bytes that were sent and not acknowledged count against the stream's
//! credit and the partition's share of it, so that a peer whose device is slow holds up neither this broker's memory nor
//! the other partitions. Invariants: a partition asks at most once at a time; credit never exceeds what was sent and is not
//! acknowledged. Absent on purpose: bytes, sockets, time.

use logic::ids::{Offset, OpenSequence, TopicPartition};
use std::collections::{HashMap, VecDeque};

/// Partitions that have something to send, and what is on its way.
pub struct Turns {
    ready: VecDeque<TopicPartition>,
    flights: HashMap<TopicPartition, Flight>,
    /// Bytes sent and not acknowledged, of all partitions.
    bytes: usize,
    bytes_max: usize,
    partition_bytes_max: usize,
}

/// What is on its way of one partition.
#[derive(Default)]
struct Flight {
    open_sequence: OpenSequence,
    /// End and bytes of each chunk, the oldest first.
    chunks: VecDeque<(Offset, usize)>,
    bytes: usize,
    /// Its turn came while it had too much under way.
    waits: bool,
}

impl Turns {
    /// Nobody asks yet.
    pub fn new(bytes_max: usize, partition_bytes_max: usize) -> Self {
        Self { ready: VecDeque::new(), flights: HashMap::new(), bytes: 0, bytes_max, partition_bytes_max }
    }

    /// Bytes sent and not acknowledged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A partition has batches for the peer.
    pub fn ask(&mut self, id: TopicPartition) {
        self.ready.push_back(id);
    }

    /// Whose turn it is; `None` = nobody's, or no credit is left.
    pub fn next(&mut self) -> Option<TopicPartition> {
        while self.bytes < self.bytes_max {
            let id = self.ready.pop_front()?;
            match self.flights.get_mut(&id) {
                Some(flight) if flight.bytes >= self.partition_bytes_max => flight.waits = true,
                _ => return Some(id),
            }
        }
        None
    }

    /// A chunk was sent: batches up to `end`.
    pub fn sent(&mut self, id: TopicPartition, open_sequence: OpenSequence, end: Offset, bytes: usize) {
        let flight = self.flights.entry(id).or_default();
        if flight.open_sequence != open_sequence {
            self.bytes -= flight.bytes;
            *flight = Flight { open_sequence, waits: flight.waits, ..Flight::default() };
        }
        flight.chunks.push_back((end, bytes));
        flight.bytes += bytes;
        self.bytes += bytes;
    }

    /// Everything below `durable_end` is on the peer's device.
    pub fn acknowledged(&mut self, id: TopicPartition, open_sequence: OpenSequence, durable_end: Offset) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if flight.open_sequence != open_sequence {
            return;
        }
        while let Some((_, bytes)) = flight.chunks.pop_front_if(|(end, _)| *end <= durable_end) {
            flight.bytes -= bytes;
            self.bytes -= bytes;
        }
        if flight.waits && flight.bytes < self.partition_bytes_max {
            flight.waits = false;
            self.ready.push_back(id);
        }
        if flight.chunks.is_empty() && !flight.waits {
            self.flights.remove(&id);
        }
    }

    /// What was on its way of a partition does not count any more: it is opened anew, refused, or gone.
    pub fn forget(&mut self, id: TopicPartition) {
        let Some(flight) = self.flights.remove(&id) else { return };
        self.bytes -= flight.bytes;
        if flight.waits {
            self.ready.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logic::ids::{PartitionIndex, TopicId};

    fn id(partition: u32) -> TopicPartition {
        TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(partition) }
    }

    const FIRST: OpenSequence = OpenSequence::new(1);

    fn turns(asking: &[u32]) -> Turns {
        let mut turns = Turns::new(100, 40);
        asking.iter().for_each(|&partition| turns.ask(id(partition)));
        turns
    }

    #[test]
    fn partitions_take_turns() {
        let mut turns = turns(&[1, 2, 3]);
        let mut order = Vec::new();
        for end in 1..=6 {
            let next = turns.next().unwrap();
            order.push(next.partition.get());
            turns.sent(next, FIRST, Offset::new(end), 10);
            turns.ask(next);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn one_partition_leaves_room_for_the_others() {
        let mut turns = turns(&[1, 2]);
        assert_eq!(turns.next(), Some(id(1)));
        // One batch may be larger than the share.
        turns.sent(id(1), FIRST, Offset::new(5), 60);
        turns.ask(id(1));
        assert_eq!(turns.next(), Some(id(2)));
        turns.sent(id(2), FIRST, Offset::new(1), 10);
        assert_eq!(turns.next(), None);
        // Not all of it: still nothing.
        turns.acknowledged(id(1), FIRST, Offset::new(4));
        assert_eq!(turns.next(), None);
        turns.acknowledged(id(1), FIRST, Offset::new(5));
        assert_eq!(turns.next(), Some(id(1)));
        assert_eq!(turns.bytes(), 10);
    }

    #[test]
    fn without_credit_it_is_nobodys_turn() {
        let mut turns = turns(&[1, 2, 3, 4]);
        for partition in [1, 2] {
            assert_eq!(turns.next(), Some(id(partition)));
            turns.sent(id(partition), FIRST, Offset::new(1), 50);
        }
        assert_eq!(turns.next(), None);
        turns.acknowledged(id(2), FIRST, Offset::new(9));
        assert_eq!(turns.next(), Some(id(3)));
        // What is opened anew gives its credit back, and an answer to what came before changes nothing.
        turns.forget(id(1));
        assert_eq!(turns.bytes(), 0);
        let second = OpenSequence::new(2);
        turns.sent(id(1), second, Offset::new(1), 30);
        turns.acknowledged(id(1), FIRST, Offset::new(1));
        assert_eq!(turns.bytes(), 30);
        turns.acknowledged(id(1), second, Offset::new(1));
        assert_eq!(turns.bytes(), 0);
    }

    #[test]
    fn who_waits_for_its_share_is_asked_again_when_opened_anew() {
        let mut turns = turns(&[1]);
        let next = turns.next().unwrap();
        turns.sent(next, FIRST, Offset::new(1), 40);
        turns.ask(next);
        assert_eq!(turns.next(), None);
        turns.forget(id(1));
        assert_eq!(turns.next(), Some(id(1)));
        assert_eq!((turns.next(), turns.bytes()), (None, 0));
    }
}
