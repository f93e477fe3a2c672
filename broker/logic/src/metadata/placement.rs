//! Where replicas go: a policy, which a later version may change, because a command carries its result.
//!
//! Leaders go round robin over the brokers, in an order in which racks take turns, from a start that depends on the
//! topic. Followers go to the brokers after the leader's, on racks that the partition is not on yet as long as there
//! are any; with every round of leaders they begin one broker further on, so that what one broker led is not
//! all led by the same other one after it. Fenced and draining brokers get nothing.

use super::command::{BrokerRegistration, Placement};
use super::image::{CommandError, Image, check_partition_count};
use crate::ids::{BrokerId, TopicId};
use crate::limits::REPLICAS_PER_PARTITION_MAX;
use crate::routing;
use std::collections::{BTreeMap, VecDeque};

impl Image {
    /// The replica sets of `partitions` of topic `id`, on the brokers that serve and do not drain.
    pub(super) fn place(
        &self,
        id: TopicId,
        partitions: std::ops::Range<u32>,
        replication_factor: u32,
    ) -> Result<Placement, CommandError> {
        let able = self.brokers().filter(|broker| !broker.fenced && !broker.draining);
        let brokers = racks_in_turn(able.map(|broker| &broker.registration));
        let most = brokers.len().min(REPLICAS_PER_PARTITION_MAX);
        if replication_factor == 0 || replication_factor as usize > most {
            return Err(CommandError::InvalidReplicationFactor {
                replication_factor,
                brokers: brokers.len(),
            });
        }
        check_partition_count(partitions.end.into())?;
        let start = routing::start_of(id);
        let placed = partitions.flat_map(|index| replica_set(&brokers, start, index, replication_factor));
        Ok(Placement { replication_factor, brokers: placed.collect() })
    }
}

/// The brokers with their racks, so that neighbours are on different racks as far as that goes. Brokers that stand
/// nowhere in particular are each on a rack of their own.
fn racks_in_turn<'a>(brokers: impl Iterator<Item = &'a BrokerRegistration>) -> Vec<(BrokerId, &'a str)> {
    let mut racks: BTreeMap<(&str, Option<BrokerId>), VecDeque<BrokerId>> = BTreeMap::new();
    for broker in brokers {
        let alone = broker.rack.is_empty().then_some(broker.broker);
        racks.entry((&broker.rack, alone)).or_default().push_back(broker.broker);
    }
    let mut ordered = Vec::new();
    while !racks.is_empty() {
        racks.retain(|(rack, _), left| {
            ordered.extend(left.pop_front().map(|broker| (broker, *rack)));
            !left.is_empty()
        });
    }
    ordered
}

/// The leader of partition `index`, then its followers.
fn replica_set(brokers: &[(BrokerId, &str)], start: u64, index: u32, size: u32) -> Vec<BrokerId> {
    let count = brokers.len() as u64;
    let first = (start % count + u64::from(index)) % count;
    let at = |turn: u64| brokers[((first + turn) % count) as usize];
    let (leader, rack) = at(0);
    let mut chosen = vec![leader];
    let mut racks = vec![rack];
    // Each round of leaders begins its followers one broker further on.
    let others = count.saturating_sub(1).max(1);
    let shift = u64::from(index) / count % others;
    while chosen.len() < size as usize {
        let turns = (0..others).map(|turn| at(1 + (shift + turn) % others));
        let free: Vec<_> = turns.filter(|(broker, _)| !chosen.contains(broker)).collect();
        let fresh = free.iter().find(|(_, rack)| rack.is_empty() || !racks.contains(rack));
        let (broker, rack) = *fresh.or(free.first()).expect("there are at least `size` brokers");
        chosen.push(broker);
        racks.push(rack);
    }
    chosen
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
