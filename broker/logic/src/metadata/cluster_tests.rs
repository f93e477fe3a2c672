//! Histories of a cluster in words against what its one partition becomes, and random ones against the invariants.

use super::*;
use crate::ids::{PartitionIndex, TopicId};
use crate::metadata::command::{BrokerRegistration, Command, InSyncMember, Placement};
use crate::metadata::snapshot;
use proptest::prelude::*;

const ID: TopicPartition = TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(0) };

fn brokers(list: &str) -> Vec<BrokerId> {
    let ids = list.split(',').filter(|word| !word.is_empty());
    ids.map(|word| BrokerId::new(word.parse().expect("a broker"))).collect()
}

/// The command of one line; epochs and generations are those of `image` unless `stale` says otherwise.
///
/// `register B [disk D] [suspect E:END]`, `fence B`, `unfence B`, `drain B`, `stay B`, `remove B`, `create A,B,…`,
/// `alter SENDER A,B,… [to B]`, `clean B`, `reassign A,B,…`, `call off`, `elect B`, `unclean B`, `home B SHARD`, `min N`.
fn command(image: &Image, line: &str) -> Command {
    let words: Vec<&str> = line.split_whitespace().collect();
    let id = |at: usize| BrokerId::new(words[at].parse().expect("a broker"));
    let epoch = |broker: BrokerId| image.broker(broker).map_or(BrokerEpoch::new(0), |known| known.epoch);
    let entry = || image.partition(ID).expect("the partition is there");
    let after = |word: &str| words.iter().position(|known| *known == word).map(|at| words[at + 1]);
    match words[0] {
        "register" => {
            let broker = id(1);
            let disk = after("disk").map_or(1, |disk| disk.parse().unwrap());
            let suspects = after("suspect").map(|position| {
                let (epoch, end) = position.split_once(':').unwrap();
                let replica = entry().replica(broker).expect("it has a replica");
                Suspect {
                    partition: ID,
                    generation: replica.generation,
                    last_epoch: LeaderEpoch::new(epoch.parse().unwrap()),
                    end: Offset::new(end.parse().unwrap()),
                }
            });
            let registration = BrokerRegistration {
                broker,
                host: format!("node{broker}"),
                port: 9644,
                shards: 4,
                storage_uuid: disk,
                rack: String::new(),
            };
            let suspects = suspects.into_iter().collect();
            Command::RegisterBroker { registration, suspects, starts_fenced: true }
        }
        "fence" => Command::FenceBroker { broker: id(1), epoch: epoch(id(1)) },
        "unfence" => Command::UnfenceBroker { broker: id(1), epoch: epoch(id(1)) },
        "drain" => Command::DrainBroker { broker: id(1), draining: true },
        "stay" => Command::DrainBroker { broker: id(1), draining: false },
        "remove" => Command::RemoveBroker { broker: id(1) },
        "create" => {
            let brokers = brokers(words[1]);
            let placement = Placement { replication_factor: brokers.len() as u32, brokers };
            Command::CreateTopic { id: ID.topic, name: "t".into(), placement, configs: vec![] }
        }
        "alter" => {
            let member = |broker: BrokerId| InSyncMember {
                broker,
                epoch: epoch(broker),
                generation: entry().replica(broker).map_or(ReplicaGeneration::new(0), |own| own.generation),
            };
            Command::AlterPartition(AlterPartition {
                partition: ID,
                sender: id(1),
                leader_epoch: entry().leader_epoch,
                partition_epoch: entry().partition_epoch,
                in_sync: brokers(words[2]).into_iter().map(member).collect(),
                transfer_to: after("to").map(|to| BrokerId::new(to.parse().unwrap())),
            })
        }
        "clean" => Command::MarkClean {
            partition: ID,
            generation: entry().replica(id(1)).unwrap().generation,
            broker: id(1),
            broker_epoch: epoch(id(1)),
            leader_epoch: entry().leader_epoch,
        },
        "reassign" => Command::ReassignPartitions {
            partitions: vec![Reassignment { partition: ID, replicas: brokers(words[1]) }],
        },
        "call" => {
            Command::ReassignPartitions { partitions: vec![Reassignment { partition: ID, replicas: vec![] }] }
        }
        "elect" => Command::ElectLeaders { elections: vec![(ID, id(1))], unclean: false },
        "unclean" => Command::ElectLeaders { elections: vec![(ID, id(1))], unclean: true },
        "home" => {
            Command::MoveHome { partition: ID, broker: id(1), shard: ShardId::new(words[2].parse().unwrap()) }
        }
        "min" => Command::AlterTopicConfigs {
            id: ID.topic,
            set: vec![("min.insync.replicas".into(), words[1].into())],
            unset: vec![],
        },
        other => panic!("{other} is not a command"),
    }
}

/// `leader.epoch/partition epoch isr replicas`, then what else there is.
fn text(image: &Image) -> String {
    let Some(entry) = image.partition(ID) else { return "no partition".to_owned() };
    let list = |set: &mut dyn Iterator<Item = String>| set.collect::<Vec<_>>().join(",");
    let plain = |set: &[BrokerId]| list(&mut set.iter().map(|broker| broker.to_string()));
    let replica = |replica: &Replica| match replica.generation.get() {
        0 => replica.broker.to_string(),
        generation => format!("{}.{generation}", replica.broker),
    };
    let leader = entry.leader.map_or("-".to_owned(), |leader| leader.to_string());
    let mut text = format!(
        "{leader} e{} pe{} isr {} of {}",
        entry.leader_epoch,
        entry.partition_epoch,
        plain(&entry.in_sync),
        list(&mut entry.replicas.iter().map(replica))
    );
    let sets = [("elr", &entry.eligible), ("adding", &entry.adding), ("removing", &entry.removing)];
    for (name, set) in sets.into_iter().filter(|(_, set)| !set.is_empty()) {
        text += &format!(" {name} {}", plain(set));
    }
    if let Some(to) = entry.transfer_to {
        text += &format!(" to {to}");
    }
    let suspect = |replica: &&Replica| Brokers(&image.brokers).suspect(ID, replica).is_some();
    let suspects = list(&mut entry.replicas.iter().filter(suspect).map(|replica| replica.broker.to_string()));
    if !suspects.is_empty() {
        text += &format!(" suspect {suspects}");
    }
    text
}

/// Brokers 1 to 4, registered and serving; the partition on 1, 2, 3.
const START: &str = "register 1; register 2; register 3; register 4; \
     unfence 1; unfence 2; unfence 3; unfence 4; create 1,2,3";

fn run(mut image: Image, script: &str) -> Image {
    for line in script.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        let command = command(&image, line);
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes).as_ref(), Ok(&command), "{line}");
        image = match image.apply(&command) {
            Ok((next, _)) => next,
            Err(error) => panic!("{line}: {error}"),
        };
        assert_eq!(snapshot::decode(&snapshot::encode(&image)).as_ref(), Ok(&image), "{line}");
    }
    image
}

/// `script` after the start leads to `expect`.
fn check(script: &str, expect: &str) {
    let image = run(run(Image::default(), START), script);
    assert_eq!(text(&image), expect, "{script}");
}

/// The last line of `script` is refused with a message that has `problem`.
fn check_refused(script: &str, problem: &str) {
    let (before, last) = script.rsplit_once(';').unwrap_or(("", script));
    let image = run(run(Image::default(), START), before);
    let error = image.apply(&command(&image, last.trim())).expect_err(script);
    assert!(error.to_string().contains(problem), "{script}: {error}");
}

#[test]
pub(crate) fn in_sync_sets() {
    check("", "1 e0 pe0 isr 1,2,3 of 1,2,3");
    check("alter 1 1,2", "1 e0 pe1 isr 1,2 of 1,2,3");
    check("alter 1 1", "1 e0 pe1 isr 1 of 1,2,3 elr 2,3");
    check("alter 1 1; alter 1 1,2", "1 e0 pe2 isr 1,2 of 1,2,3");
    check("alter 1 1,2,3", "1 e0 pe1 isr 1,2,3 of 1,2,3");
    check("alter 1 1,2 to 2", "2 e1 pe1 isr 1,2 of 1,2,3");
    check_refused("alter 2 1,2", "the metadata changed meanwhile");
}

#[test]
fn whose_life_has_ended_by_removal() {
    let start = run(Image::default(), START);
    let broker = BrokerId::new(4);
    let life = start.broker(broker).expect("it is registered").epoch;
    assert!(!Image::default().has_removed(broker, life), "an image from before it knows nothing");
    for (script, expect) in [
        ("", false),
        ("fence 4; drain 4", false),
        ("fence 4; remove 4", true),
        ("fence 4; remove 4; fence 3", true),
        // Under its number there is somebody: it itself, or another one.
        ("fence 4; remove 4; register 4", false),
    ] {
        let image = run(start.clone(), script);
        assert_eq!(image.has_removed(broker, life), expect, "{script}");
        let later = BrokerEpoch::new(image.version() + 1);
        assert!(!image.has_removed(broker, later), "{script}: it is not known yet");
    }
}

#[test]
pub(crate) fn refusals_are_committed() {
    // Each raises the partition's epoch and changes nothing else.
    check("alter 1 2,3", "1 e0 pe1 isr 1,2,3 of 1,2,3");
    check("alter 1 1,4", "1 e0 pe1 isr 1,2,3 of 1,2,3");
    check("alter 1 1,1", "1 e0 pe1 isr 1,2,3 of 1,2,3");
    check("alter 1 1,2 to 3", "1 e0 pe1 isr 1,2,3 of 1,2,3");
    check("fence 3; alter 1 1,2,3", "1 e0 pe2 isr 1,2 of 1,2,3");
    check("alter 1 1,2; drain 3; alter 1 1,2,3", "1 e0 pe2 isr 1,2 of 1,2,3");
    // Who drains already counts as long as it is there.
    check("drain 3; alter 1 1,3", "1 e0 pe1 isr 1,3 of 1,2,3");
    check("register 3 suspect 0:9; unfence 3; alter 1 1,2,3", "1 e0 pe2 isr 1,2 of 1,2,3 suspect 3");
}

#[test]
pub(crate) fn a_set_from_an_earlier_life_is_refused() {
    let image = run(run(Image::default(), START), "alter 1 1,2");
    let early = command(&image, "alter 1 1,2,3");
    // Broker 3 starts again; it was in no in-sync set, so the partition's epoch is the same.
    let image = run(image, "register 3; unfence 3");
    let (image, outcome) = image.apply(&early).unwrap();
    let Outcome::PartitionAlterRefused { refusal, partition_epoch, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(refusal, AlterRefusal::StaleBroker(BrokerId::new(3)));
    assert_eq!(partition_epoch, PartitionEpoch::new(2));
    // A copy of it that is late means nothing any more.
    assert!(matches!(image.apply(&early), Err(CommandError::Stale(_))));
    // A removed and added replica is another one.
    let image = run(image, "reassign 1,2");
    let mut early = command(&image, "alter 1 1,2");
    let image = run(image, "reassign 1,2,3");
    let Command::AlterPartition(alter) = &mut early else { unreachable!() };
    let entry = image.partition(ID).unwrap();
    (alter.leader_epoch, alter.partition_epoch) = (entry.leader_epoch, entry.partition_epoch);
    let third = InSyncMember {
        broker: BrokerId::new(3),
        epoch: image.broker(BrokerId::new(3)).unwrap().epoch,
        generation: ReplicaGeneration::new(0),
    };
    alter.in_sync.push(third);
    let Outcome::PartitionAlterRefused { refusal, .. } = image.apply(&early).unwrap().1 else { panic!() };
    assert_eq!(refusal, AlterRefusal::StaleGeneration(BrokerId::new(3)));
}

/// A topic was made while too few of a partition's brokers served for anything to be acknowledged. The only one in sync lost its
/// disk, and nobody could lead, although nothing was lost (simulator, seed 18330).
#[test]
pub(crate) fn topics_of_brokers_that_are_late() {
    let check = |serving: &str, script: &str, expect: &str| {
        let image = run(Image::default(), "register 1; register 2; register 3");
        let image = run(run(image, serving), "create 1,2,3");
        assert_eq!(text(&run(image, script)), expect, "{serving}; create 1,2,3; {script}");
    };
    check("unfence 1", "", "1 e0 pe0 isr 1 of 1,2,3 elr 2,3");
    check("unfence 1; unfence 2", "", "1 e0 pe0 isr 1,2 of 1,2,3");
    check("unfence 1", "unfence 2; alter 1 1,2", "1 e0 pe1 isr 1,2 of 1,2,3");
    check("unfence 1", "register 1 disk 9; unfence 1", "- e1 pe1 isr  of 1,2,3 elr 2,3");
    check("unfence 1", "register 1 disk 9; unfence 3", "3 e2 pe2 isr 3 of 1,2,3 elr 2");
    check("unfence 1", "register 2 disk 9; register 1 disk 9; unfence 2", "- e1 pe2 isr  of 1,2,3 elr 3");
}

/// A leader that was alone kept what it could not read, although another one had everything that was acknowledged and waited for
/// it (simulator, seed 5052).
#[test]
fn who_would_lead_in_place_of_a_leader_that_is_alone() {
    let check = |script: &str, expect: Option<u32>| {
        let image = run(run(Image::default(), START), script);
        assert_eq!(image.heir(ID), expect.map(BrokerId::new), "{script}");
    };
    check("alter 1 1,2", None);
    check("alter 1 1", Some(2));
    check("alter 1 1; fence 2", Some(3));
    check("alter 1 1; fence 2; fence 3", None);
    check("alter 1 1; register 2 suspect 0:9; unfence 2", Some(3));
    check("alter 1 1; register 2 suspect 0:9; unfence 2; fence 3", None);
    check("alter 1 1; register 2 disk 9; unfence 2; fence 3", None);
}

#[test]
pub(crate) fn brokers_come_and_go() {
    check("fence 1", "2 e1 pe1 isr 2,3 of 1,2,3");
    check("fence 1; unfence 1", "2 e1 pe1 isr 2,3 of 1,2,3");
    // Registering ends the earlier life at once.
    check("register 1", "2 e1 pe1 isr 2,3 of 1,2,3");
    check("register 2", "1 e0 pe1 isr 1,3 of 1,2,3");
    check("fence 1; fence 2; fence 3", "- e3 pe3 isr  of 1,2,3 elr 2,3");
    check("fence 1; fence 2; fence 3; unfence 1", "- e3 pe3 isr  of 1,2,3 elr 2,3");
    check("fence 1; fence 2; fence 3; unfence 1; unfence 2", "2 e4 pe4 isr 2 of 1,2,3 elr 3");
    check("fence 1; fence 2; fence 3; register 3; unfence 3", "3 e4 pe4 isr 3 of 1,2,3 elr 2");
    // Another disk: what it had acknowledged is not there any more.
    check("fence 1; fence 2; fence 3; register 3 disk 9; unfence 3", "- e3 pe4 isr  of 1,2,3 elr 2");
    check("register 2 disk 9; unfence 2", "1 e0 pe1 isr 1,3 of 1,2,3");
    check_refused("fence 1; fence 1", "fenced already");
    check_refused("unfence 1", "not fenced");
    check_refused("drain 1; drain 1", "drains already");
    check_refused("remove 1", "alive");
    check_refused("fence 1; remove 1", "1 replicas");
    assert!(run(run(Image::default(), START), "fence 4; remove 4").broker(BrokerId::new(4)).is_none());
    let image = run(Image::default(), START);
    let late = command(&image, "fence 1");
    let image = run(image, "register 1; unfence 1");
    assert!(matches!(image.apply(&late), Err(CommandError::Stale(_))), "an earlier life is not fenced");
}

#[test]
pub(crate) fn suspects() {
    check("register 3 suspect 0:9", "1 e0 pe1 isr 1,2 of 1,2,3 suspect 3");
    check("register 3 suspect 0:9; unfence 3; clean 3", "1 e0 pe2 isr 1,2 of 1,2,3");
    check("register 3 suspect 0:9; unfence 3; clean 3; alter 1 1,2,3", "1 e0 pe3 isr 1,2,3 of 1,2,3");
    // It is forgotten neither by another life nor by silence, but with the disk.
    check("register 3 suspect 0:9; register 3", "1 e0 pe1 isr 1,2 of 1,2,3 suspect 3");
    check("register 3 suspect 0:9; register 3 disk 5", "1 e0 pe1 isr 1,2 of 1,2,3");
    check_refused("clean 3", "is not suspect");
    let image = run(run(Image::default(), START), "register 3 suspect 0:9; unfence 3");
    let late = command(&image, "clean 3");
    for since in ["fence 1", "register 3; unfence 3"] {
        let image = run(image.clone(), since);
        assert!(matches!(image.apply(&late), Err(CommandError::Stale(_))), "{since}");
    }
    // All three lost something: nobody leads before all who could have everything are there, then the best.
    let all = "fence 3; fence 2; fence 1; register 1 suspect 0:50; register 2 suspect 0:60; ";
    check(&format!("{all} unfence 1"), "- e1 pe3 isr  of 1,2,3 elr 1,2 suspect 1,2");
    check(&format!("{all} unfence 1; unfence 3"), "- e1 pe3 isr  of 1,2,3 elr 1,2 suspect 1,2");
    check(&format!("{all} unfence 1; unfence 2"), "2 e2 pe4 isr 2 of 1,2,3 elr 1 suspect 1");
}

#[test]
pub(crate) fn reassignments() {
    check("reassign 4,2,3", "1 e0 pe1 isr 2,3,1 of 4.1,2,3,1 adding 4 removing 1");
    check("reassign 4,2,3; alter 1 1,2,3,4", "4 e1 pe2 isr 4,2,3 of 4.1,2,3");
    check("reassign 4,2,3; call off", "1 e1 pe2 isr 2,3,1 of 2,3,1");
    check("reassign 3,2,1", "1 e0 pe1 isr 3,2,1 of 3,2,1");
    check("reassign 1", "1 e1 pe1 isr 1 of 1");
    check("reassign 1,2,3", "1 e0 pe0 isr 1,2,3 of 1,2,3");
    // Who was alone leads the others in an epoch of their own.
    check("reassign 1; reassign 1,2", "1 e2 pe2 isr 1 of 1,2.2 adding 2");
    check("reassign 1; reassign 2", "1 e2 pe2 isr 1 of 2.2,1 adding 2 removing 1");
    // Those that stay must be enough.
    check("alter 1 1,3; reassign 1,2", "1 e0 pe2 isr 1,3 of 1,2,3 removing 3");
    check("alter 1 1,3; reassign 1,2; alter 1 1,2,3", "1 e1 pe3 isr 1,2 of 1,2");
    check("reassign 1,2; reassign 1,2,3", "1 e1 pe2 isr 1,2 of 1,2,3.2 adding 3");
    // An added replica is not eligible by that.
    check("reassign 1,4; fence 1", "2 e1 pe2 isr 2,3 of 1,4.1,2,3 adding 4 removing 2,3");
    check_refused("reassign 4,2; reassign 1,2", "being reassigned");
    check_refused("reassign 1,1", "twice");
    check_refused("reassign 1,9", "not registered");
    check_refused("drain 4; reassign 1,4", "drains");
    check_refused("min 2; reassign 1", "can never be reached");
    check_refused("call off", "not being reassigned");
    check_refused("reassign 4,2; alter 1 1,4; fence 1; call off", "of the replicas of before are in sync");
}

#[test]
fn one_replica_grows_to_three_while_it_serves() {
    let script = "reassign 1; reassign 1,2,3";
    check(script, "1 e2 pe2 isr 1 of 1,2.2,3.2 adding 2,3");
    check(&format!("{script}; alter 1 1,2"), "1 e2 pe3 isr 1,2 of 1,2.2,3.2 adding 2,3");
    check(&format!("{script}; alter 1 1,2; alter 1 1,2,3"), "1 e3 pe4 isr 1,2,3 of 1,2.2,3.2");
}

#[test]
pub(crate) fn leaders_by_wish_and_by_force() {
    check("elect 2", "1 e0 pe1 isr 1,2,3 of 1,2,3 to 2");
    check("elect 2; alter 1 1,2,3 to 2", "2 e1 pe2 isr 1,2,3 of 1,2,3");
    check("elect 2; alter 1 1,3", "1 e0 pe2 isr 1,3 of 1,2,3");
    check("elect 1", "1 e0 pe0 isr 1,2,3 of 1,2,3");
    check_refused("alter 1 1,2; elect 3", "not in sync");
    check_refused("unclean 2", "has a leader");
    let lost = "alter 1 1,2; fence 2; fence 1;";
    check(lost, "- e1 pe3 isr  of 1,2,3 elr 1,2");
    // The others may have what is given up by this: they are suspect.
    check(&format!("{lost} unclean 3"), "3 e2 pe4 isr 3 of 1,2,3 suspect 1,2");
    check_refused(&format!("{lost} unclean 1"), "does not serve");
    check_refused(&format!("{lost} unclean 4"), "has no replica");
}

#[test]
pub(crate) fn homes() {
    let image = run(Image::default(), START);
    let home = |image: &Image| image.home_of(BrokerId::new(2), ID, image.partition(ID)).unwrap().get();
    let other = (home(&image) + 1) % 4;
    let moved = run(image.clone(), &format!("home 2 {other}"));
    assert_eq!(home(&moved), other);
    let other = |image: &Image| image.home_of(BrokerId::new(1), ID, image.partition(ID));
    assert_eq!(other(&moved), other(&image));
    // All replicas meet anew under a new epoch, led as before.
    assert_eq!(text(&moved), "1 e1 pe1 isr 1,2,3 of 1,2,3");
    assert_eq!(text(&run(moved.clone(), &format!("home 2 {}", home(&moved)))), text(&moved), "it is there");
    let back = run(moved.clone(), &format!("home 2 {}", home(&image)));
    assert!(back.partition(ID).unwrap().homes.is_empty());
    assert_eq!(back.replicas_of(BrokerId::new(2)), 1);
    // It goes with the replica.
    assert!(run(moved, "reassign 1,3").partition(ID).unwrap().homes.is_empty());
    check_refused("home 2 4", "4 shards");
    check_refused("home 4 0", "no replica");
    let doubted = "alter 1 1,3; register 2 suspect 0:7; unfence 2; home 2";
    check_refused(&format!("{doubted} {}", 3 - home(&image)), "is suspect");
}

/// A random line, most of the time one that means something.
fn any_line() -> impl Strategy<Value = String> {
    let broker = 1u32..=4;
    let set = prop::sample::subsequence(vec![1u32, 2, 3, 4], 1..=4).prop_shuffle();
    let list = |set: Vec<u32>| set.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    prop_oneof![
        4 => broker.clone().prop_map(|b| format!("register {b}")),
        1 => (broker.clone(), 0u32..3, 0u64..9).prop_map(|(b, e, end)| format!("register {b} suspect {e}:{end}")),
        1 => (broker.clone(), 1u32..4).prop_map(|(b, disk)| format!("register {b} disk {disk}")),
        8 => broker.clone().prop_map(|b| format!("unfence {b}")),
        4 => broker.clone().prop_map(|b| format!("fence {b}")),
        1 => broker.clone().prop_map(|b| format!("drain {b}")),
        1 => broker.clone().prop_map(|b| format!("stay {b}")),
        1 => broker.clone().prop_map(|b| format!("clean {b}")),
        8 => (broker.clone(), set.clone()).prop_map(move |(b, s)| format!("alter {b} {}", list(s))),
        2 => (broker.clone(), set.clone(), broker.clone()).prop_map(move |(b, s, to)| format!("alter {b} {} to {to}", list(s))),
        3 => set.prop_map(move |s| format!("reassign {}", list(s))),
        1 => Just("call off".to_owned()),
        1 => broker.clone().prop_map(|b| format!("elect {b}")),
        1 => broker.clone().prop_map(|b| format!("unclean {b}")),
        1 => (broker, 0u32..5).prop_map(|(b, shard)| format!("home {b} {shard}")),
        1 => (0u32..4).prop_map(|min| format!("min {min}")),
    ]
}

/// What holds of every partition, and of every change of one.
fn check_invariants(before: &Image, image: &Image, command: &Command) -> Result<(), TestCaseError> {
    let (old, new) = (before.partition(ID).unwrap(), image.partition(ID).unwrap());
    let config = &image.topic(ID.topic).unwrap().config;
    let why = || format!("{command:?}: {} -> {}", text(before), text(image));
    let distinct = |set: &[BrokerId]| set.iter().collect::<BTreeSet<_>>().len() == set.len();
    prop_assert!(new.leader.is_none_or(|leader| new.is_in_sync(leader)), "{}", why());
    prop_assert!(new.leader.is_some() || new.in_sync.is_empty(), "{}", why());
    for set in [&new.in_sync, &new.eligible, &new.adding, &new.removing] {
        prop_assert!(distinct(set) && set.iter().all(|broker| new.is_replica(*broker)), "{}", why());
    }
    prop_assert!(new.eligible.iter().all(|broker| !new.is_in_sync(*broker)), "{}", why());
    prop_assert!(new.eligible.is_empty() || new.in_sync.len() < new.min_in_sync(config), "{}", why());
    for broker in new.in_sync.iter() {
        let known = image.broker(*broker).unwrap();
        let replica = new.replica(*broker).unwrap();
        prop_assert!(!known.fenced && known.suspect(ID, replica.generation).is_none(), "{}", why());
    }
    let (e, pe) = ((old.leader_epoch, new.leader_epoch), (old.partition_epoch, new.partition_epoch));
    prop_assert!(
        e.0 <= e.1 && e.1.get() - e.0.get() <= 1 && pe.0 <= pe.1 && pe.1.get() - pe.0.get() <= 1,
        "{}",
        why()
    );
    prop_assert!(old.leader == new.leader || e.0 < e.1, "{}", why());
    prop_assert!(old == new || pe.0 < pe.1, "{}", why());
    // A generation is used once: what is new has one that nothing had before.
    for replica in new.replicas.iter().filter(|replica| !old.has_replica(replica.broker, replica.generation))
    {
        prop_assert!(replica.generation.get() == pe.1.get() && replica.generation.get() > 0, "{}", why());
        prop_assert!(!new.is_in_sync(replica.broker), "{}", why());
    }
    // Only an unclean election leads past those who may have everything, and only another disk forgets one.
    let forced = matches!(command, Command::ElectLeaders { unclean: true, .. });
    if let Some(leader) = new.leader.filter(|_| !forced) {
        let entered = matches!(command, Command::AlterPartition(alter)
            if alter.in_sync.iter().any(|member| member.broker == leader));
        prop_assert!(old.is_in_sync(leader) || old.eligible.contains(&leader) || entered, "{}", why());
    }
    for broker in old.in_sync.iter().chain(old.eligible.iter()).filter(|_| !forced) {
        let stays = new.is_in_sync(*broker) || new.eligible.contains(broker);
        let disk = |image: &Image| image.broker(*broker).map(|known| known.registration.storage_uuid);
        let enough = new.in_sync.len() >= new.min_in_sync(config);
        prop_assert!(stays || enough || disk(before) != disk(image), "{}", why());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_in_any_history(lines in prop::collection::vec(any_line(), 1..60)) {
        let mut image = run(Image::default(), START);
        let mut held: Vec<Command> = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let has_replica = |line: &str| {
                let broker = line.split_whitespace().nth(1).unwrap_or_default().parse().unwrap_or_default();
                image.partition(ID).unwrap().is_replica(BrokerId::new(broker))
            };
            if (line.contains("suspect") || line.starts_with("clean")) && !has_replica(line) {
                continue;
            }
            // Some are applied late, when what they say may be of the past.
            held.push(command(&image, line));
            let late = (at % 5 == 4).then(|| held.swap_remove(at % held.len()));
            let now = late.unwrap_or_else(|| held.pop().unwrap());
            if let Ok((next, _)) = image.apply(&now) {
                check_invariants(&image, &next, &now)?;
                image = next;
            }
        }
        prop_assert_eq!(snapshot::decode(&snapshot::encode(&image)), Ok(image));
    }
}
