//! Plans for small clusters, as text: brokers as `id@rack`, with `!` if they take nothing; partitions as their brokers.

use super::*;
use crate::cluster_request::{ReplicaState, TopicReplicas};
use crate::request::TopicId;

fn cluster(brokers: &str, partitions: &[&str]) -> ClusterDescription {
    let broker = |text: &str| {
        let (text, draining) = text.strip_suffix('!').map_or((text, false), |text| (text, true));
        let (id, rack) = text.split_once('@').map_or((text, None), |(id, rack)| (id, Some(rack.to_owned())));
        BrokerDescription {
            id: id.parse().unwrap(),
            host: String::new(),
            port: 1,
            shards: 1,
            rack,
            epoch: 1,
            fenced: false,
            draining,
            replicas: 0,
            leaders: 0,
            suspects: 0,
        }
    };
    let replica = |id: &str| ReplicaState {
        broker: id.parse().unwrap(),
        generation: 0,
        in_sync: true,
        eligible: false,
        adding: false,
        removing: false,
        shard: 0,
    };
    let partition = |(at, text): (usize, &&str)| {
        let replicas: Vec<_> = text.split(' ').map(replica).collect();
        PartitionReplicas {
            partition: at as u32,
            leader: Some(replicas[0].broker),
            leader_epoch: 0,
            partition_epoch: 0,
            min_in_sync: 1,
            replicas,
        }
    };
    let topic = TopicReplicas {
        name: "t".to_owned(),
        id: TopicId(1),
        error: None,
        internal: false,
        partitions: partitions.iter().enumerate().map(partition).collect(),
    };
    ClusterDescription {
        brokers: brokers.split(' ').map(broker).collect(),
        topics: vec![topic],
        ..Default::default()
    }
}

fn text(moves: &[Reassignment]) -> String {
    let one = |one: &Reassignment| {
        let replicas: Vec<String> = one.replicas.iter().map(u32::to_string).collect();
        format!("{}:{}", one.partition, replicas.join(" "))
    };
    moves.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn replication_factors() {
    let rows: [(&str, &[&str], usize, &str); 6] = [
        ("1 2 3", &["1", "2"], 3, "0:1 3 2, 1:2 1 3"),
        // The least loaded first, and another rack before that.
        ("1 2 3", &["1 2", "1 2", "3"], 2, "2:3 1"),
        ("1@a 2@a 3@b", &["1", "2"], 2, "0:1 3, 1:2 3"),
        ("1@a 2@a 3@b", &["1 2 3"], 2, "0:1 3"),
        // The leader stays.
        ("1 2 3", &["3 2 1"], 1, "0:3"),
        ("1 2 3", &["1 2"], 2, ""),
    ];
    for (brokers, partitions, factor, expect) in rows {
        let plan = replication_factor(&cluster(brokers, partitions), "t", factor, &Loads::new()).unwrap();
        assert_eq!(text(&plan), expect, "{brokers}: {partitions:?} to {factor}");
    }
    let few = replication_factor(&cluster("1 2 3!", &["1"]), "t", 3, &Loads::new());
    let expect = PlanError::TooFewBrokers { topic: "t".to_owned(), partition: 0, needed: 3, able: 2 };
    assert_eq!(few, Err(expect));
    let unknown = replication_factor(&cluster("1", &["1"]), "u", 1, &Loads::new());
    assert_eq!(unknown, Err(PlanError::UnknownTopic("u".to_owned())));
}

#[test]
fn drains() {
    let rows: [(&str, &[&str], u32, &str); 4] = [
        ("1 2 3 4", &["1 2 3", "2 3 4", "3 1 2"], 1, "0:4 2 3, 2:3 4 2"),
        ("1@a 2@a 3@b 4@b", &["1 3", "1 3"], 1, "0:2 3, 1:2 3"),
        ("1! 2 3", &["1 2"], 1, "0:3 2"),
        ("1 2", &["2"], 1, ""),
    ];
    for (brokers, partitions, broker, expect) in rows {
        let plan = drain(&cluster(brokers, partitions), broker, &Loads::new()).unwrap();
        assert_eq!(text(&plan), expect, "{brokers}: {partitions:?} without {broker}");
    }
    // The brokers' own topic makes do with a copy less, but not with none.
    let mut own = cluster("1 2 3", &["1 2 3", "2 3"]);
    own.topics[0].internal = true;
    assert_eq!(text(&drain(&own, 1, &Loads::new()).unwrap()), "0:2 3");
    let mut last = cluster("1", &["1"]);
    last.topics[0].internal = true;
    assert!(matches!(drain(&last, 1, &Loads::new()), Err(PlanError::TooFewBrokers { .. })));
    let few = drain(&cluster("1 2 3", &["1 2 3"]), 1, &Loads::new()).unwrap_err();
    assert!(few.to_string().contains("add brokers"), "{few}");
    assert_eq!(drain(&cluster("1", &["1"]), 9, &Loads::new()), Err(PlanError::UnknownBroker(9)));
}

#[test]
fn rebalances() {
    let rows: [(&str, &[&str], Option<u32>, &str); 6] = [
        ("1 2", &["1", "2"], None, ""),
        ("1 2", &["1", "1", "1", "1"], None, "0:2, 1:2"),
        ("1 2 3", &["1 2", "1 2", "1 2"], None, "0:3 2, 1:1 3, 2:2 1"),
        // Only leaders.
        ("1 2", &["1 2", "1 2", "1 2", "1 2"], None, "0:2 1, 1:2 1"),
        // A rack is not given up for an even load.
        ("1@a 2@b 3@b", &["1 2", "1 2"], None, "0:3 1"),
        ("1 2 3", &["1", "1", "1", "2", "2", "2"], Some(3), "0:3, 3:3"),
    ];
    for (brokers, partitions, only_to, expect) in rows {
        let plan = rebalance(&cluster(brokers, partitions), only_to, &Loads::new()).unwrap();
        assert_eq!(text(&plan), expect, "{brokers}: {partitions:?} to {only_to:?}");
    }
    let unable = rebalance(&cluster("1 2!", &["1"]), Some(2), &Loads::new());
    assert_eq!(unable, Err(PlanError::Unable(2)));
}

#[test]
fn bytes_weigh_more_than_counts() {
    let loads: Loads = [(("t".to_owned(), 0), 1 << 30), (("t".to_owned(), 1), 1 << 30)].into();
    let plan = rebalance(&cluster("1 2", &["1", "1", "2", "2"]), None, &loads).unwrap();
    assert_eq!(text(&plan), "0:2");
}

/// Whatever is there, a plan ends, names each broker once, leaves the number of replicas as it is, and makes nothing worse.
#[test]
fn plans_of_random_clusters() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.u32(2..9);
        let racks = random.u32(1..4);
        let brokers: Vec<String> = (0..count).map(|id| format!("{id}@{}", id % racks)).collect();
        let mut partitions = Vec::new();
        let mut loads = Loads::new();
        for at in 0..random.u32(1..40) {
            let mut ids: Vec<u32> = (0..count).collect();
            random.shuffle(&mut ids);
            ids.truncate(random.usize(1..=3.min(count as usize)));
            partitions.push(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
            loads.insert(("t".to_owned(), at), random.u64(0..1 << 33));
        }
        let partitions: Vec<&str> = partitions.iter().map(String::as_str).collect();
        let cluster = cluster(&brokers.join(" "), &partitions);
        let spread = |scales: &Scales<'_>| {
            scales.weight.values().max().unwrap() - scales.weight.values().min().unwrap()
        };
        let before = spread(&Scales::new(&cluster, &loads));
        let plan = rebalance(&cluster, None, &loads).unwrap();
        let mut after = Scales::new(&cluster, &loads);
        for one in &plan {
            let partition = &cluster.topics[0].partitions[one.partition as usize];
            let old = future(partition);
            let distinct: BTreeSet<_> = one.replicas.iter().collect();
            assert_eq!((distinct.len(), one.replicas.len()), (old.len(), old.len()), "seed {seed}");
            let weight = weigh(&loads, "t", one.partition);
            old.iter().for_each(|id| after.take(*id, weight));
            one.replicas.iter().for_each(|id| after.add(*id, weight));
        }
        assert!(spread(&after) <= before, "seed {seed}: {} from {before}", spread(&after));
    }
}
