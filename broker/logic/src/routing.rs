//! Which shard of a broker serves a partition.
//!
//! A pure function of the topic's id, the partition and the number of shards, so that every core, every
//! broker and every restart agrees without asking. Partitions of one topic go round robin over the shards,
//! so that one busy topic loads all cores alike (their loads differ by at most one partition); the start
//! depends on the id, so that many topics of one partition do not pile up on shard 0.
//!
//! The function is part of the on-disk contract of per-shard files (checkpoints): it never changes. When a
//! broker starts with another number of shards, partitions move between its shards; their files do not.
//!
//! Absent on purpose: load. A partition does not move because its core is busy.

use crate::ids::{PartitionIndex, ShardId, TopicId};

/// The shard that serves `partition` of `topic` on a broker of `shards` shards (at least 1).
pub fn home_shard(topic: TopicId, partition: PartitionIndex, shards: u16) -> ShardId {
    assert!(shards > 0, "a broker has at least one shard");
    let shards = u64::from(shards);
    let turn = start_of(topic) % shards + u64::from(partition.get());
    // Below `shards`, which came from a u16.
    ShardId::new((turn % shards) as u16)
}

/// Where the round robin of `topic` starts, before it is taken modulo the number of places.
pub fn start_of(topic: TopicId) -> u64 {
    let id = topic.get();
    // The finalizer of SplitMix64 (Steele, Lea, Flood 2014) over both halves: ids made by people, such as
    // 1, 2, 3, spread as well as random ones.
    let mut z =
        (id as u64).wrapping_add(((id >> 64) as u64).rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(partitions: impl Iterator<Item = (u128, u32)>, shards: u16) -> (u32, u32) {
        let mut loads = vec![0u32; usize::from(shards)];
        for (topic, partition) in partitions {
            let shard = home_shard(TopicId::new(topic), PartitionIndex::new(partition), shards);
            loads[usize::from(shard.get())] += 1;
        }
        (*loads.iter().min().unwrap(), *loads.iter().max().unwrap())
    }

    #[test]
    fn never_changes() {
        let rows = [
            // topic id, partition, shards, home
            (0u128, 0, 1, 0),
            (1, 0, 8, 1),
            (1, 1, 8, 2),
            (u128::MAX, u32::MAX, u16::MAX, 5063),
            (0x0011_2233_4455_6677_8899_aabb_ccdd_eeff, 5, 3, 2),
        ];
        for (topic, partition, shards, home) in rows {
            let got = home_shard(TopicId::new(topic), PartitionIndex::new(partition), shards);
            assert_eq!(got, ShardId::new(home), "topic {topic} partition {partition} of {shards}");
        }
    }

    #[test]
    fn many_small_topics_spread() {
        // (topics, shards, largest permitted load in percent of the mean): five sigma of a random spread.
        for (topics, shards, percent_max) in [(1_000u128, 2, 116), (10_000, 8, 115), (10_000, 64, 141)] {
            let mean = topics as u32 / u32::from(shards);
            let (least, most) = loads((1..=topics).map(|topic| (topic, 0)), shards);
            assert!(most * 100 <= mean * percent_max, "{topics} over {shards}: {most}, mean {mean}");
            assert!(least * percent_max >= mean * 60, "{topics} over {shards}: {least}, mean {mean}");
        }
    }

    proptest! {
        #[test]
        fn one_topic_is_balanced_to_one(topic: u128, partitions in 1u32..500, shards in 1u16..70) {
            let (least, most) = loads((0..partitions).map(|partition| (topic, partition)), shards);
            prop_assert!(most - least <= 1);
        }
    }
}
