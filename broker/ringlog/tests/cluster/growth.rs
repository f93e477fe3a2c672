//! A cluster that grows, shrinks and changes while it serves: nothing is lost, nothing is there twice, and who produces
//! and consumes sees no error.
//!
//! Everything is done by the commands that a person uses, under producers that want every acknowledgement from the whole
//! in-sync set and a consumer that follows. What is measured and not judged is how long nothing was acknowledged.

use crate::brokers::{Cluster, of_topic, run, until};
use crate::faults::{read_log, whole};
use crate::load::{Load, PARTITIONS, TOPIC};
use crate::trouble::until_votes;
use ringlog_client::{
    Client, ClusterDescription, NewTopic, PartitionReplicas, ProducerConfig, ProducerRecord,
};
use std::collections::BTreeSet;
use std::time::Instant;

async fn create_topic(client: &Client, replication_factor: u32) {
    let topic = NewTopic { partitions: PARTITIONS, replication_factor, ..NewTopic::named(TOPIC) };
    client.admin().create_topic(&topic).await.expect("there are enough brokers");
}

/// The topic in as many copies on so many brokers, and a load that goes on.
async fn under_load(cluster: &Cluster, brokers: usize, replication_factor: u32) -> (Client, Load) {
    let client = cluster.connect().await;
    whole(&client, brokers).await;
    create_topic(&client, replication_factor).await;
    whole(&client, brokers).await;
    let load = Load::start(&cluster.addresses());
    load.goes_on().await;
    (client, load)
}

/// Brokers that keep partitions of the topic, each once.
async fn keepers(client: &Client) -> BTreeSet<u32> {
    let cluster = client.admin().describe_cluster(None).await.expect("it answers");
    of_topic(&cluster, TOPIC).flat_map(|one| one.replicas.iter().map(|replica| replica.broker)).collect()
}

/// Who keeps each partition of a topic, the preferred leader first, or is to.
fn replicas(cluster: &ClusterDescription, topic: &str) -> Vec<Vec<u32>> {
    of_topic(cluster, topic).map(|one| one.replicas.iter().map(|replica| replica.broker).collect()).collect()
}

/// What a plan that is only shown would do to partitions of a topic: which, from where, where to. Nothing is done.
async fn planned(cluster: &Cluster, client: &Client, command: &str) -> Vec<(usize, Vec<u64>, Vec<u64>)> {
    let before = client.admin().describe_cluster(None).await.expect("it answers");
    let moves = cluster.json(&format!("{command} --dry-run"));
    let after = client.admin().describe_cluster(None).await.expect("it answers");
    assert_eq!(replicas(&after, TOPIC), replicas(&before, TOPIC), "{command}");
    assert!(
        after.partitions().all(|(_, one)| !one.is_moving()) && after.brokers == before.brokers,
        "{after:#?}"
    );
    let brokers = |list: &serde_json::Value| -> Vec<u64> {
        list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("a number")).collect()
    };
    assert!(moves.iter().all(|one| one["kind"] == "move" && one["bytes"].is_u64()), "{moves:?}");
    let of_topic = moves.iter().filter(|one| one["topic"] == TOPIC);
    let number = |one: &serde_json::Value| one["partition"].as_u64().expect("a number") as usize;
    of_topic.map(|one| (number(one), brokers(&one["from"]), brokers(&one["to"]))).collect()
}

/// One broker becomes three, four and five, with more copies and more votes on the metadata; then the first one goes.
#[test]
fn one_broker_grows_to_five_and_the_first_one_goes() {
    run(async || {
        let arguments = ["--metadata-voters", "5", "--http", "127.0.0.1:0"];
        let mut cluster = Cluster::with(1, &arguments);
        let (client, load) = under_load(&cluster, 1, 1).await;
        // Offsets of a group, which only this broker has.
        cluster.ok(&format!("group reset readers --topic {TOPIC} --to 3"));

        let began = Instant::now();
        let (second, third) = (cluster.grow(&arguments), cluster.grow(&arguments));
        whole(&client, 3).await;
        until_votes(&cluster, 1, 3, 0).await;
        load.silence("two join", began);
        until(&client, "the offsets are on three brokers", |cluster| {
            of_topic(cluster, "__consumer_offsets").all(|one| one.in_sync() == 3)
        })
        .await;
        let said = cluster.ok("topic create by-default --partitions 2");
        assert!(said.contains("2 partitions, on 3 brokers each"), "{said}");

        let began = Instant::now();
        let said = cluster.ok(&format!("topic alter {TOPIC} --replication-factor 3"));
        assert!(said.contains("4 partitions"), "{said}");
        assert_eq!(keepers(&client).await, BTreeSet::from([1, second, third]));
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("three copies", began);

        let began = Instant::now();
        let fourth = cluster.grow(&arguments);
        whole(&client, 4).await;
        // An even number would stand no more failures.
        until_votes(&cluster, fourth, 3, 1).await;
        let plan = planned(&cluster, &client, &format!("cluster add {fourth}")).await;
        let comes = |(_, from, to): &(_, Vec<u64>, Vec<u64>)| {
            !from.contains(&fourth.into()) && to.contains(&fourth.into())
        };
        assert!(!plan.is_empty() && plan.iter().all(comes), "{plan:?}");
        cluster.ok(&format!("cluster add {fourth}"));
        assert!(keepers(&client).await.contains(&fourth));
        load.goes_on().await;
        load.silence("a fourth is added", began);

        let began = Instant::now();
        let fifth = cluster.grow(&arguments);
        whole(&client, 5).await;
        for id in [1, second, third, fourth, fifth] {
            until_votes(&cluster, id, 5, 0).await;
        }
        cluster.ok(&format!("cluster add {fifth}"));
        assert!(keepers(&client).await.contains(&fifth));
        load.goes_on().await;
        load.silence("a fifth is added", began);

        let began = Instant::now();
        cluster.ok(&format!("topic alter {TOPIC} --partitions 6"));
        until(&client, "six partitions", |cluster| of_topic(cluster, TOPIC).count() == 6).await;
        load.spread(6);
        load.goes_on().await;
        load.silence("two more partitions", began);

        let began = Instant::now();
        let plan = planned(&cluster, &client, "cluster drain 1").await;
        let goes = |(_, from, to): &(_, Vec<u64>, Vec<u64>)| from.contains(&1) && !to.contains(&1);
        assert!(!plan.is_empty() && plan.iter().all(goes), "{plan:?}");
        cluster.ok("cluster drain 1");
        assert_eq!(keepers(&client).await, BTreeSet::from([second, third, fourth, fifth]));
        let (removed, said) = cluster.run("cluster remove 1");
        assert!(!removed && said.contains("stop it first"), "{said}");
        cluster.stop(1);
        cluster.ok("cluster remove 1");
        // Who has asked about nothing else knows no broker but the first.
        let client = cluster.connect().await;
        until(&client, "four brokers", |cluster| {
            cluster.brokers.iter().map(|broker| broker.id).eq([second, third, fourth, fifth])
        })
        .await;
        until_votes(&cluster, second, 3, 1).await;
        load.goes_on().await;
        load.silence("the first one goes", began);
        whole(&client, 4).await;
        let readers = client.admin().describe_group("readers").await.expect("it has a coordinator");
        let committed: Vec<_> = readers.offsets.iter().map(|one| (one.partition, one.offset)).collect();
        assert_eq!(committed, [0, 1, 2, 3].map(|partition| (partition, Some(3))));
        load.finish(&client).await;
    });
}

/// Three brokers on three racks and a fourth on one of theirs: a disk is replaced, partitions are moved and called back,
/// each broker is restarted as for an upgrade, and every partition is led by its preferred leader in the end.
#[test]
fn disks_brokers_and_leaders_change_and_clients_do_not_notice() {
    run(async || {
        let mut cluster = Cluster::default();
        for rack in ["red", "green", "blue"] {
            cluster.grow(&["--rack", rack]);
        }
        let (client, load) = under_load(&cluster, 3, 3).await;

        // As for an upgrade: one after the other, leaderships first.
        for id in 1..=3 {
            let began = Instant::now();
            cluster.ok(&format!("cluster drain {id} --leaders-only"));
            cluster.stop(id);
            cluster.start(id);
            cluster.ok(&format!("cluster undrain {id}"));
            whole(&client, 3).await;
            load.goes_on().await;
            load.silence(&format!("broker {id} is restarted"), began);
        }

        // By itself: nobody asks for it.
        let began = Instant::now();
        until(&client, "preferred leaders", |cluster| {
            cluster.partitions().all(|(_, one)| one.leader == one.preferred_leader())
        })
        .await;
        load.goes_on().await;
        load.silence("preferred leaders lead", began);

        let began = Instant::now();
        cluster.stop(3);
        cluster.replace_disk(3);
        cluster.start(3);
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("a disk is replaced", began);

        // A new host takes over the number of an old one.
        let began = Instant::now();
        cluster.stop(2);
        cluster.replace_disk(2);
        cluster.move_elsewhere(2);
        cluster.start(2);
        whole(&client, 3).await;
        load.goes_on().await;
        load.silence("a broker is replaced", began);

        let began = Instant::now();
        let fourth = cluster.grow(&["--rack", "blue"]);
        whole(&client, 4).await;
        // It gets its share, and two of one rack never keep the same partition, as long as there are others.
        let plan = planned(&cluster, &client, "cluster rebalance").await;
        assert!(plan.iter().any(|(_, _, to)| to.contains(&fourth.into())), "{plan:?}");
        cluster.ok("cluster rebalance");
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let mut moved = 0;
        for partition in of_topic(&described, TOPIC) {
            let keeps = |id: u32| partition.replicas.iter().any(|replica| replica.broker == id);
            assert!(!(keeps(3) && keeps(fourth)), "{partition:?}");
            moved += u32::from(keeps(fourth));
        }
        assert!(moved > 0, "{described:#?}");
        load.goes_on().await;
        load.silence("a fourth on a known rack", began);

        let began = Instant::now();
        cluster.ok(&format!("cluster move {TOPIC}:0 --to 2,1,3"));
        cluster.ok("cluster rebalance");
        cluster.ok("cluster elect");
        load.goes_on().await;
        load.silence("a move and a rebalance", began);

        let began = Instant::now();
        cluster.ok(&format!("topic alter {TOPIC} --replication-factor 2"));
        until(&client, "two copies", |cluster| {
            of_topic(cluster, TOPIC).all(|one| one.replicas.len() == 2 && !one.is_moving())
        })
        .await;
        load.goes_on().await;
        load.silence("two copies", began);
        load.finish(&client).await;
    });
}

/// A broker that nobody reaches is removed. It comes back to a cluster in which nobody speaks to it, and of which it knows the
/// leader of then, who is gone: it is told all the same, ends, and stays away until its disk is empty.
#[test]
fn a_broker_that_was_removed_while_it_was_away_ends_and_stays_away() {
    run(async || {
        let mut cluster = Cluster::with(4, &["--http", "127.0.0.1:0"]);
        let client = cluster.connect().await;
        whole(&client, 4).await;
        until_votes(&cluster, 4, 3, 1).await;
        let leads = client.admin().describe_cluster(None).await.expect("it answers").controller;
        let leads = leads.filter(|leads| *leads != 4).expect("one that votes leads the metadata");
        cluster.pause(4);
        cluster.stop(leads);
        until(&client, "it is missed", |cluster| {
            cluster.brokers.iter().any(|broker| broker.id == 4 && broker.fenced)
        })
        .await;
        cluster.ok("cluster remove 4");
        let other = (1..4).find(|id| *id != leads).expect("there are two more");
        until_votes(&cluster, other, 3, 0).await;
        cluster.resume(4);
        let (status, said) = cluster.ended(4);
        let told = "this broker was removed from its cluster (`ringlog cluster remove`): to join again, start it with an \
                    empty data directory and --join";
        assert!(status.code() == Some(1) && said.contains(told), "{status}: {said}");
        let said = cluster.refusal(4);
        assert!(said.contains(told), "{said}");
        cluster.start(leads);
        cluster.replace_disk(4);
        cluster.start(4);
        whole(&client, 4).await;
    });
}

/// A move that may copy next to nothing per second does not end before the bound is lifted, and holds up nobody. It can be
/// given up meanwhile.
#[test]
fn a_throttled_move_waits_and_the_others_do_not() {
    run(async || {
        let mut cluster = Cluster::of(2);
        let client = cluster.connect().await;
        whole(&client, 2).await;
        let topic = NewTopic { partitions: 1, replication_factor: 1, ..NewTopic::named("old") };
        client.admin().create_topic(&topic).await.expect("there are brokers");
        create_topic(&client, 2).await;
        let producer = client.producer(ProducerConfig::default());
        let mut sent = Vec::new();
        for number in 0..64 {
            let value = format!("{number}-{}", "x".repeat(100_000));
            sent.push(producer.send(ProducerRecord::new("old", value)).await.expect("it is taken"));
        }
        for delivery in sent {
            delivery.await.expect("it is acknowledged");
        }
        producer.close().await.expect("the brokers are there");
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let from = of_topic(&described, "old").next().and_then(|one| one.leader).expect("it has a leader");
        let to = 3 - from;
        // What is in memory is sent as what is new is: the old is to be read from the device.
        cluster.stop(from);
        cluster.start(from);
        whole(&client, 2).await;
        let load = Load::start(&cluster.addresses());
        load.goes_on().await;

        let said = cluster.ok(&format!("cluster move old:0 --to {to} --dry-run"));
        assert!(said.contains("1 partition, 6.") && said.contains(" MB to copy"), "{said}");
        let still = client.admin().describe_cluster(None).await.expect("it answers");
        assert_eq!(replicas(&still, "old"), replicas(&described, "old"), "it was to be shown only");

        cluster.ok(&format!("cluster move old:0 --to {to} --throttle 1kB --no-wait"));
        let status = cluster.ok("cluster status");
        assert!(status.contains("1.0 kB/s") && status.contains("1 moving"), "{status}");
        // Others go on, as long as this takes.
        for _ in 0..5 {
            load.goes_on().await;
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            assert!(of_topic(&described, "old").all(PartitionReplicas::is_moving), "{described:#?}");
        }
        // Given up, everything is as it was; and it can be begun anew.
        let said = cluster.ok("cluster move old:0 --cancel");
        assert!(said.contains("as before"), "{said}");
        let described = client.admin().describe_cluster(None).await.expect("it answers");
        let kept = of_topic(&described, "old").next().expect("it is there");
        assert!(!kept.is_moving() && kept.replicas.len() == 1 && kept.leader == Some(from), "{kept:?}");
        // Whoever waits is told how far it is, where there is no terminal too.
        let waits = cluster.begin(&format!("cluster move old:0 --to {to}"));
        let said = waits.line();
        assert!(said.starts_with("moving: 0 of 1 partition done, ") && said.ends_with(" behind"), "{said}");
        assert!(cluster.ok("cluster status").contains("1 moving"));
        let said = cluster.ok("cluster throttle none");
        assert!(said.contains("as fast as there is room"), "{said}");
        until(&client, "the move is done", |cluster| {
            of_topic(cluster, "old").all(|one| !one.is_moving() && one.leader == Some(to))
        })
        .await;
        waits.finish();
        let log = read_log(&client, "old", 1).await;
        let numbers: Vec<_> = log[0].iter().map(|value| value.split('-').next().expect("a number")).collect();
        assert_eq!(numbers, (0..64).map(|number| number.to_string()).collect::<Vec<_>>());
        load.finish(&client).await;
    });
}

/// Where a partition is at home depends on how many shards a broker has. A member of a cluster that starts with another
/// number opens its partitions there before the cluster knows of it.
#[test]
fn a_member_may_start_with_another_number_of_shards() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let (client, load) = under_load(&cluster, 3, 3).await;
        for shards in [1, 2, 3] {
            cluster.stop(3);
            load.goes_on().await;
            cluster.start_with_shards(3, shards);
            whole(&client, 3).await;
            // It serves everything, from where the clients are sent.
            for partition in 0..PARTITIONS {
                cluster.ok(&format!("cluster move {TOPIC}:{partition} --to 3,1,2"));
            }
            cluster.ok("cluster elect");
            until(&client, "led by the member", |cluster| {
                of_topic(cluster, TOPIC).all(|partition| partition.leader == Some(3))
            })
            .await;
            load.goes_on().await;
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            assert_eq!(described.broker(3).map(|broker| broker.shards), Some(shards as u32));
            // Nothing is in the wrong place, and nothing was taken for a stranger's.
            for id in 1..=3 {
                let mut notices = cluster.notices(id).await;
                // That the host was busy says nothing of it.
                notices.retain(|notice| !notice.starts_with("STALL: "));
                assert!(notices.is_empty(), "broker {id}: {notices:?}");
            }
        }
        load.finish(&client).await;
    });
}

/// The replicas of a partition move between the cores of their brokers, the leader's and a follower's.
#[test]
fn homes_of_replicas_move_and_clients_do_not_notice() {
    run(async || {
        let cluster = Cluster::of(3);
        let (client, load) = under_load(&cluster, 3, 3).await;
        for turn in 0..2 {
            let described = client.admin().describe_cluster(None).await.expect("it answers");
            let partition = of_topic(&described, TOPIC).next().expect("it is there").clone();
            let leader = partition.leader.expect("it is led");
            let follower = partition.replicas.iter().find(|replica| replica.broker != leader);
            let shard = |broker: u32| {
                partition.replicas.iter().find(|one| one.broker == broker).expect("has it").shard
            };
            for broker in [leader, follower.expect("there are three").broker] {
                let (began, core) = (Instant::now(), 1 - shard(broker));
                let named = if broker == leader { String::new() } else { format!(" --broker {broker}") };
                let said = cluster.ok(&format!("cluster move-home {TOPIC}:0 --core {core}{named}"));
                assert!(said.contains("took nothing for"), "{said}");
                until(&client, "it is there, and in sync", |cluster| {
                    let partition = of_topic(cluster, TOPIC).next().expect("it is there");
                    let moved = partition.replicas.iter().find(|one| one.broker == broker);
                    partition.in_sync() == 3 && moved.is_some_and(|moved| moved.shard == core)
                })
                .await;
                load.goes_on().await;
                let what = if broker == leader { "the leader's home" } else { "a follower's home" };
                load.silence(&format!("{what}, turn {turn}"), began);
            }
        }
        load.finish(&client).await;
    });
}
