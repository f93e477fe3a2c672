//! Which partitions of a broker should be served by other cores: plans of moves, made from what went in and out of them.
//!
//! Pure: nothing here asks anybody, so that a plan can be shown before it is carried out
//! ([`crate::Admin::move_home`]). Partitions go from the busiest core to the one that has least to do, as long as that evens
//! them out; each is moved once at most, because each move is a pause. Absent on purpose: other brokers
//! ([`crate::plan`]), and what cores do besides.

use crate::reply::PartitionTraffic;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a batch costs a core besides its bytes, in bytes: small batches are work, too.
const BATCH_WEIGHT: u64 = 4 << 10;
/// Cores whose loads differ by less than this share of the mean are left alone, percent…
const SPREAD_PERCENT: u64 = 10;
/// … and those that differ by less than this: it is not worth a pause. Bytes per second.
const SPREAD_MIN: u64 = 64 << 10;

/// What a partition is to its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLoad {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The core that has it.
    pub shard: u32,
    /// Bytes per second in and out, and what its batches cost besides.
    pub load: u64,
}

/// A move that evens cores out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The partition as it is.
    pub partition: PartitionLoad,
    /// The core that is to have it.
    pub to: u32,
}

/// What the partitions of a broker were to their cores between two looks at them ([`crate::Admin::traffic_of`]). One that
/// was not there at the first look, or went back since, is left out.
pub fn loads(
    before: &[(String, PartitionTraffic)],
    after: &[(String, PartitionTraffic)],
    between: Duration,
) -> Vec<PartitionLoad> {
    let known: BTreeMap<(&str, u32), &PartitionTraffic> =
        before.iter().map(|(topic, one)| ((topic.as_str(), one.partition), one)).collect();
    let weigh = |one: &PartitionTraffic| {
        let bytes = one.produced_bytes + one.fetched_bytes + one.replicated_bytes;
        bytes + one.produced_batches * BATCH_WEIGHT
    };
    let load = |(topic, now): &(String, PartitionTraffic)| {
        let first = known.get(&(topic.as_str(), now.partition))?;
        let amount = weigh(now).checked_sub(weigh(first))?;
        let per_second = u128::from(amount) * 1000 / between.as_millis().max(1);
        Some(PartitionLoad {
            topic: topic.clone(),
            partition: now.partition,
            shard: now.shard,
            load: u64::try_from(per_second).unwrap_or(u64::MAX),
        })
    };
    after.iter().filter_map(load).collect()
}

/// Moves that even out the cores of a broker that has so many.
pub fn spread(shards: u32, partitions: &[PartitionLoad]) -> Vec<PlannedMove> {
    let mut carried: BTreeMap<u32, u64> = (0..shards).map(|shard| (shard, 0)).collect();
    for one in partitions {
        *carried.entry(one.shard).or_default() += one.load;
    }
    let mean = carried.values().sum::<u64>() / u64::from(shards).max(1);
    let enough = (mean * SPREAD_PERCENT / 100).max(SPREAD_MIN);
    let mut resting: Vec<&PartitionLoad> = partitions.iter().filter(|one| one.load > 0).collect();
    let mut moves = Vec::new();
    loop {
        let busiest = carried.iter().max_by_key(|(shard, load)| (**load, std::cmp::Reverse(**shard)));
        let idlest = carried.iter().min_by_key(|(shard, load)| (**load, **shard));
        let Some(((&from, &most), (&to, &least))) = busiest.zip(idlest) else { return moves };
        let gap = most - least;
        if gap <= enough {
            return moves;
        }
        // More than the gap would only turn it round.
        let fits = (0..resting.len()).filter(|at| resting[*at].shard == from && resting[*at].load < gap);
        let Some(at) = fits.min_by_key(|at| (resting[*at].load.abs_diff(gap / 2), *at)) else {
            return moves;
        };
        let partition = resting.remove(at);
        carried.entry(from).and_modify(|load| *load -= partition.load);
        carried.entry(to).and_modify(|load| *load += partition.load);
        moves.push(PlannedMove { partition: partition.clone(), to });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partitions as core and load, in units that count.
    fn partitions(cores: &[(u32, u64)]) -> Vec<PartitionLoad> {
        let one = |(partition, (shard, load)): (usize, &(u32, u64))| PartitionLoad {
            topic: "t".to_owned(),
            partition: partition as u32,
            shard: *shard,
            load: load * SPREAD_MIN,
        };
        cores.iter().enumerate().map(one).collect()
    }

    #[test]
    fn plans() {
        type Row = (u32, &'static [(u32, u64)], &'static [(u32, u32, u32)]);
        let rows: [Row; 8] = [
            (2, &[], &[]),
            (1, &[(0, 90), (0, 10)], &[]),
            // Partition, from, to.
            (2, &[(0, 40), (0, 40)], &[(0, 0, 1)]),
            (2, &[(0, 40), (0, 20), (0, 20), (1, 0)], &[(0, 0, 1)]),
            // One that is all the load stays: elsewhere it would be the same.
            (2, &[(0, 90)], &[]),
            (2, &[(0, 50), (1, 49)], &[]),
            (3, &[(0, 30), (0, 30), (0, 30), (1, 0)], &[(0, 0, 1), (1, 0, 2)]),
            (2, &[(1, 10), (1, 6), (1, 4)], &[(0, 1, 0)]),
        ];
        for (shards, cores, expect) in rows {
            let plan = spread(shards, &partitions(cores));
            let found: Vec<_> =
                plan.iter().map(|one| (one.partition.partition, one.partition.shard, one.to)).collect();
            assert_eq!(found, expect, "{shards} cores, {cores:?}");
        }
    }

    #[test]
    fn random_plans_end_and_even_out() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let shards = random.u32(1..9);
            let all: Vec<_> =
                (0..random.usize(..60)).map(|_| (random.u32(..shards), random.u64(..50))).collect();
            let all = partitions(&all);
            let carried = |moves: &[PlannedMove]| {
                let mut carried = vec![0u64; shards as usize];
                for one in &all {
                    let moved = moves.iter().find(|moved| moved.partition == *one);
                    carried[moved.map_or(one.shard, |moved| moved.to) as usize] += one.load;
                }
                let most = carried.iter().max().copied().unwrap_or(0);
                most - carried.iter().min().copied().unwrap_or(0)
            };
            let plan = spread(shards, &all);
            assert!(plan.len() <= all.len() && carried(&plan) <= carried(&[]), "{all:?}: {plan:?}");
        }
    }

    #[test]
    fn loads_are_of_the_time_between() {
        let one = |partition, produced_bytes, produced_batches| {
            let traffic = PartitionTraffic {
                partition,
                shard: 1,
                produced_bytes,
                produced_batches,
                ..Default::default()
            };
            ("t".to_owned(), traffic)
        };
        let before = [one(0, 1000, 1), one(1, 9000, 9)];
        let after = [one(0, 5000, 3), one(1, 10, 1), one(2, 10, 1)];
        let found = loads(&before, &after, Duration::from_secs(2));
        let expect =
            PartitionLoad { topic: "t".to_owned(), partition: 0, shard: 1, load: 2000 + BATCH_WEIGHT };
        assert_eq!(found, [expect]);
    }
}
