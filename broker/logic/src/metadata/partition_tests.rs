//! The rules as tables: a partition's sets before, a change, and what the rules make of it.

use super::*;
use crate::ids::{BrokerEpoch, PartitionIndex, TopicId};
use crate::metadata::command::BrokerRegistration;

const ID: TopicPartition = TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(0) };

/// Brokers 1 to 5. `fenced`, `draining` and `suspect` name some of them; a suspect's position is `(epoch, end)`.
#[derive(Default)]
struct Cluster {
    fenced: &'static [u32],
    draining: &'static [u32],
    suspect: &'static [(u32, (u32, u64))],
}

fn ids(brokers: &[u32]) -> Arc<[BrokerId]> {
    brokers.iter().copied().map(BrokerId::new).collect()
}

fn plain(brokers: &[BrokerId]) -> Vec<u32> {
    brokers.iter().map(|broker| broker.get()).collect()
}

impl Cluster {
    fn brokers(&self) -> OrdMap<BrokerId, Arc<Broker>> {
        let one = |id: u32| {
            let suspects = self.suspect.iter().filter(|(of, _)| *of == id);
            let suspects = suspects.map(|(_, (epoch, end))| Suspect {
                partition: ID,
                generation: ReplicaGeneration::new(0),
                last_epoch: LeaderEpoch::new(*epoch),
                end: Offset::new(*end),
            });
            let registration = BrokerRegistration {
                broker: BrokerId::new(id),
                host: "h".into(),
                port: 1,
                shards: 1,
                storage_uuid: 1,
                rack: String::new(),
            };
            let broker = Broker {
                registration,
                epoch: BrokerEpoch::new(1),
                fenced: self.fenced.contains(&id),
                draining: self.draining.contains(&id),
                suspects: suspects.collect(),
                version: 1,
            };
            (BrokerId::new(id), Arc::new(broker))
        };
        (1..=5).map(one).collect()
    }
}

/// A partition on brokers, with an in-sync set, eligible leaders and a leader; both epochs are 10.
fn partition(replicas: &[u32], in_sync: &[u32], eligible: &[u32], leader: Option<u32>) -> Partition {
    Partition {
        leader: leader.map(BrokerId::new),
        leader_epoch: LeaderEpoch::new(10),
        partition_epoch: PartitionEpoch::new(10),
        eligible: ids(eligible),
        ..Partition::new(&ids(replicas), &ids(in_sync), &config(0))
    }
}

fn config(min: u32) -> TopicConfig {
    TopicConfig { min_insync_replicas: min, ..TopicConfig::default() }
}

/// `leader e+n pe+n isr [..] elr [..] [replicas [..]]`, in words that a row can hold.
fn text(before: &Partition, after: &Partition) -> String {
    let leader = after.leader.map_or("none".to_owned(), |leader| leader.to_string());
    let epochs = (
        after.leader_epoch.get() - before.leader_epoch.get(),
        after.partition_epoch.get() - before.partition_epoch.get(),
    );
    format!(
        "leader {leader} e+{} pe+{} isr {:?} elr {:?}",
        epochs.0,
        epochs.1,
        plain(&after.in_sync),
        plain(&after.eligible)
    )
}

fn settle(
    cluster: &Cluster,
    min: u32,
    before: &Partition,
    change: impl FnOnce(Change<'_>) -> Change<'_>,
) -> Option<Settled> {
    change(Change::new(ID, before)).settle(Brokers(&cluster.brokers()), &config(min))
}

/// Fencing `broker` of `before` gives `expect`.
fn check_fence(min: u32, before: Partition, fenced: &'static [u32], broker: u32, expect: &str) {
    let cluster = Cluster { fenced, ..Cluster::default() };
    let settled = settle(&cluster, min, &before, |change| change.without(BrokerId::new(broker), false));
    let got = settled.map_or("nothing".to_owned(), |settled| text(&before, &settled.partition));
    assert_eq!(got, expect, "{before:?} min {min}, {broker} goes, {fenced:?} fenced");
}

#[test]
pub(crate) fn fencing() {
    let full = || partition(&[1, 2, 3], &[1, 2, 3], &[], Some(1));
    let two = || partition(&[1, 2, 3], &[1, 2], &[], Some(1));
    let one = || partition(&[1, 2, 3], &[1], &[2], Some(1));
    // The leader: its follower in the order of the replicas takes over.
    check_fence(2, full(), &[1], 1, "leader 2 e+1 pe+1 isr [2, 3] elr []");
    // A follower: no new epoch.
    check_fence(2, full(), &[3], 3, "leader 1 e+0 pe+1 isr [1, 2] elr []");
    // Below the minimum those who had everything may lead.
    check_fence(2, two(), &[2, 3], 2, "leader 1 e+0 pe+1 isr [1] elr [2]");
    check_fence(2, two(), &[1, 3], 1, "leader 2 e+1 pe+1 isr [2] elr [1]");
    // With a minimum of one, nobody beside the last has everything for long.
    check_fence(1, two(), &[1, 3], 1, "leader 2 e+1 pe+1 isr [2] elr []");
    // Nobody is left in sync: an eligible one that serves leads, alone.
    check_fence(2, one(), &[1], 1, "leader 2 e+1 pe+1 isr [2] elr [1]");
    // None serves: no leader, and all of them stay eligible.
    check_fence(2, one(), &[1, 2], 1, "leader none e+1 pe+1 isr [] elr [1, 2]");
    check_fence(1, partition(&[1], &[1], &[], Some(1)), &[1], 1, "leader none e+1 pe+1 isr [] elr [1]");
    // Replica 3 serves and lags: it is not eligible, it may lack what was acknowledged.
    check_fence(2, one(), &[1, 2], 1, "leader none e+1 pe+1 isr [] elr [1, 2]");
    // Who is not in the set is not missed.
    check_fence(2, two(), &[3], 3, "nothing");
}

#[test]
fn the_default_minimum_follows_the_replicas() {
    check_fence(
        0,
        partition(&[1, 2, 3], &[1, 2], &[], Some(1)),
        &[2],
        2,
        "leader 1 e+0 pe+1 isr [1] elr [2]",
    );
    check_fence(0, partition(&[1, 2], &[1, 2], &[], Some(1)), &[2], 2, "leader 1 e+0 pe+1 isr [1] elr [2]");
    check_fence(0, partition(&[1], &[1], &[], Some(1)), &[1], 1, "leader none e+1 pe+1 isr [] elr [1]");
    let rows = [(0, 0, 1), (0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 5, 2), (1, 3, 1), (3, 3, 3)];
    for (set, replicas, expect) in rows {
        assert_eq!(config(set).min_in_sync(replicas), expect, "{set} with {replicas} replicas");
    }
    // While one replica grows to three, it stands for all.
    let mut growing = partition(&[1, 2, 3], &[1], &[], Some(1));
    growing.adding = ids(&[2, 3]);
    assert_eq!(growing.min_in_sync(&config(0)), 1);
    let mut shrinking = partition(&[1, 2, 3], &[1], &[], Some(1));
    shrinking.removing = ids(&[2, 3]);
    assert_eq!(shrinking.min_in_sync(&config(0)), 1);
}

#[test]
fn a_lost_disk_is_nothing_to_elect() {
    let cluster = Cluster { fenced: &[1, 2], ..Cluster::default() };
    let rows = [
        (partition(&[1, 2], &[1], &[2], Some(1)), 1, "leader none e+1 pe+1 isr [] elr [2]"),
        (partition(&[1, 2], &[1], &[2], Some(1)), 2, "leader 1 e+0 pe+1 isr [1] elr []"),
        (partition(&[1], &[1], &[], Some(1)), 1, "leader none e+1 pe+1 isr [] elr []"),
    ];
    for (before, broker, expect) in rows {
        let settled = settle(&cluster, 0, &before, |change| change.without(BrokerId::new(broker), true));
        assert_eq!(text(&before, &settled.unwrap().partition), expect, "{before:?} without {broker}");
    }
}

/// Electing for a partition without a leader, with `eligible` of `[1, 2, 3]`, gives `expect`, and cleans that broker.
fn check_election(cluster: Cluster, eligible: &[u32], expect: &str, cleaned: Option<u32>) {
    let before = partition(&[1, 2, 3], &[], eligible, None);
    let settled = settle(&cluster, 2, &before, |change| change);
    let got = settled.as_ref().map_or("nothing".to_owned(), |settled| text(&before, &settled.partition));
    assert_eq!(got, expect, "eligible {eligible:?}, fenced {:?}", cluster.fenced);
    assert_eq!(settled.and_then(|settled| settled.cleaned), cleaned.map(BrokerId::new));
}

#[test]
pub(crate) fn elections_among_the_eligible() {
    let cluster = Cluster::default;
    check_election(cluster(), &[2, 3], "leader 2 e+1 pe+1 isr [2] elr [3]", None);
    check_election(cluster(), &[], "nothing", None);
    check_election(Cluster { fenced: &[2], ..cluster() }, &[2, 3], "leader 3 e+1 pe+1 isr [3] elr [2]", None);
    check_election(Cluster { fenced: &[2, 3], ..cluster() }, &[2, 3], "nothing", None);
    // Who drains leads only if nobody else can.
    check_election(
        Cluster { draining: &[2], ..cluster() },
        &[2, 3],
        "leader 3 e+1 pe+1 isr [3] elr [2]",
        None,
    );
    check_election(Cluster { draining: &[2], ..cluster() }, &[2], "leader 2 e+1 pe+1 isr [2] elr []", None);
    // A clean one leads although a suspect has more.
    let suspect = &[(2, (9, 500))];
    check_election(Cluster { suspect, ..cluster() }, &[2, 3], "leader 3 e+1 pe+1 isr [3] elr [2]", None);
    // A suspect waits for the one that may be clean.
    check_election(Cluster { suspect, fenced: &[3], ..cluster() }, &[2, 3], "nothing", None);
    // All are suspect and there: the latest epoch, then the longest, then the preferred.
    let both = &[(2, (9, 500)), (3, (9, 501))];
    check_election(
        Cluster { suspect: both, ..cluster() },
        &[2, 3],
        "leader 3 e+1 pe+1 isr [3] elr [2]",
        Some(3),
    );
    check_election(Cluster { suspect: both, fenced: &[3], ..cluster() }, &[2, 3], "nothing", None);
    let later = &[(2, (9, 500)), (3, (8, 900))];
    check_election(
        Cluster { suspect: later, ..cluster() },
        &[2, 3],
        "leader 2 e+1 pe+1 isr [2] elr [3]",
        Some(2),
    );
    let equal = &[(2, (9, 500)), (3, (9, 500))];
    check_election(
        Cluster { suspect: equal, ..cluster() },
        &[2, 3],
        "leader 2 e+1 pe+1 isr [2] elr [3]",
        Some(2),
    );
    check_election(Cluster { suspect, ..cluster() }, &[2], "leader 2 e+1 pe+1 isr [2] elr []", Some(2));
}

#[test]
fn another_minimum_forgets_the_eligible_or_not() {
    let cluster = Cluster::default();
    let before = partition(&[1, 2, 3], &[1], &[2], Some(1));
    let settled = settle(&cluster, 1, &before, |change| change).unwrap();
    assert_eq!(text(&before, &settled.partition), "leader 1 e+0 pe+1 isr [1] elr []");
    // A higher one makes nobody eligible who has left.
    let before = partition(&[1, 2, 3], &[1], &[], Some(1));
    assert!(settle(&cluster, 2, &before, |change| change).is_none());
}

#[test]
pub(crate) fn reassignments_complete() {
    type Set = &'static [u32];
    let rows: [(Set, Set, Set, Set, &str, Set); 7] = [
        // replicas, adding, removing, in sync, expect, replicas then
        (&[4, 1], &[4], &[1], &[1], "nothing", &[4, 1]),
        (&[4, 1], &[4], &[1], &[4, 1], "leader 4 e+1 pe+1 isr [4] elr []", &[4]),
        (&[1, 4, 5], &[4, 5], &[], &[1, 4], "nothing", &[1, 4, 5]),
        (&[1, 4, 5], &[4, 5], &[], &[1, 4, 5], "leader 1 e+1 pe+1 isr [1, 4, 5] elr []", &[1, 4, 5]),
        (&[4, 5, 1, 2], &[4, 5], &[1, 2], &[4, 1, 2], "nothing", &[4, 5, 1, 2]),
        (&[4, 5, 1, 2], &[4, 5], &[1, 2], &[4, 5, 1], "leader 4 e+1 pe+1 isr [4, 5] elr []", &[4, 5]),
        // Enough of those that stay must be in sync.
        (&[1, 2, 3], &[], &[3], &[1, 3], "nothing", &[1, 2, 3]),
    ];
    for (replicas, adding, removing, in_sync, expect, then) in rows {
        let mut before = partition(replicas, in_sync, &[], Some(1));
        before.adding = ids(adding);
        before.removing = ids(removing);
        let settled = settle(&Cluster::default(), 0, &before, |change| change);
        let got = settled.as_ref().map_or("nothing".to_owned(), |settled| text(&before, &settled.partition));
        assert_eq!(got, expect, "{before:?}");
        let after = settled.map_or(before, |settled| settled.partition);
        assert_eq!(plain(&after.brokers().collect::<Vec<_>>()), then);
        assert_eq!(after.is_reassigned(), expect == "nothing");
    }
}

#[test]
fn a_wish_ends_with_the_leader_or_its_heir() {
    let with = |in_sync: &[u32], leader| {
        let mut before = partition(&[1, 2, 3], in_sync, &[], Some(leader));
        before.transfer_to = Some(BrokerId::new(2));
        before
    };
    let cluster = Cluster { fenced: &[1], ..Cluster::default() };
    for (in_sync, goes, wish) in [(&[1, 2, 3], 3, Some(2)), (&[1, 2, 3], 2, None), (&[1, 2, 3], 1, None)] {
        let before = with(in_sync, 1);
        let settled = settle(&cluster, 1, &before, |change| change.without(BrokerId::new(goes), false));
        assert_eq!(settled.unwrap().partition.transfer_to, wish.map(BrokerId::new), "{goes} goes");
    }
}
