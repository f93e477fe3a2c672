//! Tables of brokers with racks against replica sets.

use super::*;
use crate::ids::{PartitionIndex, TopicPartition};
use crate::metadata::command::Command;

/// Brokers as `id@rack`, all of one shard; `!` at the end = it is fenced, `?` = it drains.
fn image(brokers: &str) -> Image {
    let mut image = Image::default();
    for word in brokers.split_whitespace() {
        let (fenced, draining) = (word.ends_with('!'), word.ends_with('?'));
        let (id, rack) = word.trim_end_matches(['!', '?']).split_once('@').unwrap();
        let broker = BrokerId::new(id.parse().unwrap());
        let registration = BrokerRegistration {
            broker,
            host: "h".into(),
            port: 1,
            shards: 1,
            storage_uuid: 1,
            rack: rack.into(),
        };
        let register = Command::RegisterBroker { registration, suspects: vec![], starts_fenced: fenced };
        image = image.apply(&register).unwrap().0;
        if draining {
            image = image.apply(&Command::DrainBroker { broker, draining }).unwrap().0;
        }
    }
    image
}

/// The sets of 12 partitions of topic 1, the leader first.
fn place(brokers: &str, replication_factor: u32) -> Vec<Vec<u32>> {
    let placement = image(brokers).place(TopicId::new(1), 0..12, replication_factor).unwrap();
    placement.replica_sets().map(|set| set.iter().map(|broker| broker.get()).collect()).collect()
}

#[test]
fn replicas_are_on_as_many_racks_as_there_are() {
    let rows = [
        ("1@ 2@ 3@", 2, 2),
        ("1@a 2@a 3@b 4@b", 2, 2),
        ("1@a 2@a 3@b 4@b", 3, 2),
        ("1@a 2@a 3@a 4@b 5@c", 3, 3),
        ("1@a 2@a 3@a 4@a 5@b", 2, 2),
        ("1@a 2@b 3@c 4@a 5@b 6@c", 3, 3),
        ("1@ 2@a 3@a", 2, 2),
    ];
    for (brokers, size, racks) in rows {
        let rack = |id: u32| {
            let word = brokers.split_whitespace().find(|word| word.starts_with(&format!("{id}@"))).unwrap();
            let (id, rack) = word.split_once('@').unwrap();
            if rack.is_empty() { id.to_owned() } else { rack.to_owned() }
        };
        for set in place(brokers, size) {
            let distinct: std::collections::BTreeSet<_> = set.iter().map(|&id| rack(id)).collect();
            let members: std::collections::BTreeSet<_> = set.iter().collect();
            assert_eq!((distinct.len(), members.len()), (racks, size as usize), "{brokers}: {set:?}");
        }
    }
}

#[test]
fn leaders_and_followers_are_spread() {
    for (brokers, size) in [("1@ 2@ 3@ 4@", 3), ("1@a 2@b 3@a 4@b", 2), ("1@a 2@b 3@c 4@a 5@b 6@c", 3)] {
        let sets = place(brokers, size);
        let count = |wanted: &dyn Fn(&Vec<u32>) -> bool| sets.iter().filter(|set| wanted(set)).count();
        let ids: Vec<u32> = (1..=brokers.split_whitespace().count() as u32).collect();
        for &id in &ids {
            assert_eq!(count(&|set| set[0] == id), 12 / ids.len(), "{brokers}: leader {id}");
            let kept = count(&|set| set.contains(&id));
            let even = 12 * size as usize / ids.len();
            assert!(kept.abs_diff(even) <= 1, "{brokers}: {id} keeps {kept} of {even}");
        }
    }
    // What one broker leads is not all led by the same other one when it goes.
    let heirs: std::collections::BTreeSet<u32> =
        place("1@ 2@ 3@ 4@", 2).into_iter().filter(|set| set[0] == 1).map(|set| set[1]).collect();
    assert!(heirs.len() > 1, "{heirs:?}");
}

#[test]
fn only_brokers_that_serve_and_stay_get_any() {
    let sets = place("1@ 2@! 3@ 4@? 5@", 3);
    assert!(sets.iter().flatten().all(|id| [1, 3, 5].contains(id)), "{sets:?}");
    let refused = image("1@ 2@! 3@ 4@?").place(TopicId::new(1), 0..1, 3).unwrap_err();
    assert_eq!(refused, CommandError::InvalidReplicationFactor { replication_factor: 3, brokers: 2 });
}

#[test]
fn a_consumer_reads_in_its_own_rack_if_an_in_sync_replica_is_there() {
    let topic = TopicId::new(1);
    let id = TopicPartition { topic, partition: PartitionIndex::new(0) };
    // Brokers, those that keep the partition, those that are fenced afterwards, the consumer's rack, where it reads.
    let rows = [
        ("1@a 2@b 3@c", "1 2 3", "", "b", Some(2)),
        ("1@a 2@b 3@c", "1 2 3", "", "c", Some(3)),
        // The leader is there, or nobody, or nobody says where he is.
        ("1@a 2@b 3@c", "1 2 3", "", "a", None),
        ("1@a 2@a 3@b", "1 2 3", "", "a", None),
        ("1@a 2@b 3@c", "1 2 3", "", "d", None),
        ("1@a 2@ 3@", "1 2 3", "", "", None),
        // It is there, and keeps nothing of it; or it is not heard.
        ("1@a 2@b 3@c", "1 3", "", "b", None),
        ("1@a 2@b 3@c", "1 2 3", "2", "b", None),
        ("1@a 2@b 3@b", "1 2 3", "2", "b", Some(3)),
    ];
    for (brokers, keep, fenced, rack, expect) in rows {
        let ids = |text: &str| -> Vec<BrokerId> {
            text.split_whitespace().map(|id| BrokerId::new(id.parse().unwrap())).collect()
        };
        let placement = Placement { replication_factor: ids(keep).len() as u32, brokers: ids(keep) };
        let create = Command::CreateTopic { id: topic, name: "t".into(), placement, configs: vec![] };
        let mut image = image(brokers).apply(&create).unwrap().0;
        for broker in ids(fenced) {
            let epoch = image.broker(broker).unwrap().epoch;
            image = image.apply(&Command::FenceBroker { broker, epoch }).unwrap().0;
        }
        let found = image.replica_in_rack(rack, id).map(|(broker, _)| broker.get());
        assert_eq!(found, expect, "{brokers}, kept by {keep}, without {fenced}: {rack}");
    }
}
