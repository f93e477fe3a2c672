//! Whole brokers in one process: they form a cluster, lose members and get them back.

use super::codec::Builder;
use super::machine::SNAPSHOT_EVERY;
use super::network::{PIECE_BYTES, Wire};
use super::peers::{Asked, Peers};
use super::store::{Contents, Owner, Store};
use super::tests::entries_in;
use super::{MetadataHandle, Quorum};
use crate::broker::StartError;
use crate::{Broker, BrokerConfig, ClusterConfig};
use futures_executor::block_on;
use logic::ids::{BrokerEpoch, BrokerId, TopicId};
use logic::limits::PARTITIONS_PER_TOPIC_MAX;
use logic::metadata::{BrokerRegistration, Command, Placement, snapshot};
use schema::consensus as fb;
use schema::error_code::ErrorCode;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn start(data: &Path, broker: u32, listen: SocketAddr, join: &[SocketAddr]) -> Broker {
    try_start(data, broker, listen, join).unwrap()
}

fn try_start(
    data: &Path,
    broker: u32,
    listen: SocketAddr,
    join: &[SocketAddr],
) -> Result<Broker, StartError> {
    let cluster = ClusterConfig {
        broker: BrokerId::new(broker),
        join: join.iter().map(SocketAddr::to_string).collect(),
        ..ClusterConfig::default()
    };
    // Not every file system that tests run on takes direct writes.
    let config = BrokerConfig { cluster, direct: false, ..BrokerConfig::new(data, listen) };
    Broker::start(config)
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn metadata(broker: &Broker) -> MetadataHandle {
    broker.observer().metadata
}

fn wait_for(what: &str, broker: &Broker, is_so: impl Fn(&MetadataHandle, &Quorum) -> bool) {
    let handle = metadata(broker);
    let deadline = Instant::now() + LIMIT;
    while !is_so(&handle, &handle.quorum()) {
        assert!(Instant::now() < deadline, "no {what}: {:?}", handle.quorum());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn create(broker: &Broker, id: u128, on: u32) -> Result<(), ErrorCode> {
    let command = Command::CreateTopic {
        id: TopicId::new(id),
        name: format!("topic-{id}"),
        placement: Placement::single(BrokerId::new(on), 2),
        configs: vec![],
    };
    block_on(metadata(broker).submit(command)).map(|_| ()).map_err(|error| {
        eprintln!("topic-{id}: {error}");
        error.error_code()
    })
}

fn has(handle: &MetadataHandle, id: u128) -> bool {
    handle.image().topic(TopicId::new(id)).is_some()
}

#[test]
fn three_brokers_form_a_cluster_and_outlive_its_leader() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = start(directories[0].path(), 0, any(), &[]);
    create(&first, 1, 0).unwrap();
    let second = start(directories[1].path(), 1, any(), &[first.address()]);
    assert!(has(&metadata(&second), 1), "it follows before it is ready");
    // By way of a broker that does not lead.
    let third = start(directories[2].path(), 2, any(), &[second.address()]);
    wait_for("three votes", &first, |_, quorum| quorum.voters.len() == 3);
    wait_for("brokers that serve", &first, |handle, _| {
        handle.image().brokers().filter(|broker| !broker.fenced).count() == 3
    });
    for (id, broker) in [(2, &first), (3, &second), (4, &third)] {
        create(broker, id, 0).unwrap();
        assert!(has(&metadata(broker), id), "published before the answer");
        assert_eq!(create(broker, id, 0), Err(ErrorCode::TopicExists));
    }
    let (address, cluster) = (first.address(), metadata(&first).image().cluster_id());
    assert!(cluster.is_some() && cluster == metadata(&third).image().cluster_id());
    first.stop().unwrap();
    wait_for("leader", &second, |_, quorum| quorum.leader.is_some_and(|leader| leader.get() != 0));
    create(&third, 5, 1).unwrap();
    assert!(metadata(&third).image().broker(BrokerId::new(0)).is_some_and(|broker| broker.fenced));
    // It comes back without being told where the others are.
    let first = start(directories[0].path(), 0, address, &[]);
    wait_for("image", &first, |handle, _| has(handle, 5));
    wait_for("broker that serves again", &second, |handle, _| {
        handle.image().broker(BrokerId::new(0)).is_some_and(|broker| !broker.fenced)
    });
    for broker in [first, second, third] {
        broker.stop().unwrap();
    }
}

#[test]
fn without_a_majority_nothing_changes_and_what_is_known_stays() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = start(directories[0].path(), 0, any(), &[]);
    let second = start(directories[1].path(), 1, any(), &[first.address()]);
    let third = start(directories[2].path(), 2, any(), &[first.address()]);
    wait_for("three votes", &third, |_, quorum| quorum.voters.len() == 3);
    create(&third, 1, 2).unwrap();
    for broker in [&first, &second, &third] {
        wait_for("answer to a heartbeat", broker, |handle, _| handle.is_heard());
    }
    let addresses = [first.address(), second.address()];
    first.stop().unwrap();
    second.stop().unwrap();
    let refused = create(&third, 2, 2);
    assert!(matches!(refused, Err(ErrorCode::MetadataUnavailable | ErrorCode::TimedOut)), "{refused:?}");
    assert!(has(&metadata(&third), 1));
    // Whether it leads the metadata of nobody or follows who is gone, it knows that its image may be old.
    wait_for("end of the answers", &third, |handle, _| !handle.is_heard());
    let address = third.address();
    third.stop().unwrap();
    // All start anew, with nothing but their disks.
    let brokers: Vec<_> = [addresses[0], addresses[1], address]
        .into_iter()
        .enumerate()
        .map(|(id, address)| start(directories[id].path(), id as u32, address, &[]))
        .collect();
    // In this life: what its disk tells of the last one is known at once.
    wait_for("broker that serves", &brokers[0], |handle, _| {
        let life = metadata(&brokers[2]).registration();
        let known = handle.image().broker(BrokerId::new(2)).map(|broker| (broker.epoch, broker.fenced));
        life.get() > 0 && known == Some((life, false))
    });
    create(&brokers[0], 3, 2).unwrap();
    assert!(has(&metadata(&brokers[0]), 1));
    for broker in brokers {
        broker.stop().unwrap();
    }
}

/// Commands that are refused, and are entries of the log all the same; many at once, so that few commits do them.
fn refuse_many(broker: &Broker, many: u64) {
    for _ in 0..many.div_ceil(SNAPSHOT_EVERY / 2) {
        let refused = (0..SNAPSHOT_EVERY / 2).map(|_| {
            let handle = metadata(broker);
            async move { handle.submit(Command::DeleteTopic { id: TopicId::new(1) }).await }
        });
        block_on(futures_util::future::join_all(refused));
    }
}

/// Makes the image larger than a piece of a snapshot. The partitions are those of a broker that is registered and nowhere:
/// nobody opens them.
fn enlarge(broker: &Broker) {
    let handle = metadata(broker);
    let nowhere = BrokerId::new(9);
    let registration = BrokerRegistration {
        broker: nowhere,
        host: "127.0.0.1".into(),
        port: 1,
        shards: 8,
        storage_uuid: 9,
        rack: String::new(),
    };
    let register = Command::RegisterBroker { registration, suspects: vec![], starts_fenced: true };
    block_on(handle.submit(register)).unwrap();
    let mut id = 1_000;
    let deadline = Instant::now() + LIMIT;
    while snapshot::encode(&handle.image()).len() <= PIECE_BYTES {
        assert!(Instant::now() < deadline, "{} bytes", snapshot::encode(&handle.image()).len());
        // It is not heard, so it serves for a moment only.
        let epoch = handle.image().broker(nowhere).unwrap().epoch;
        let _ = block_on(handle.submit(Command::UnfenceBroker { broker: nowhere, epoch }));
        let create = Command::CreateTopic {
            id: TopicId::new(id),
            name: format!("topic-{id}"),
            placement: Placement::single(nowhere, PARTITIONS_PER_TOPIC_MAX),
            configs: vec![],
        };
        id += u128::from(block_on(handle.submit(create)).is_ok());
    }
}

/// What the store of `broker` holds, as a copy of it says: it may be in use. `None`: it was written meanwhile.
fn stored(directory: &Path, broker: u32) -> Option<Contents> {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("metadata")).unwrap();
    let file = "metadata/metadata.redb";
    std::fs::copy(directory.join(file), copy.path().join(file)).unwrap();
    let owner = Owner { broker: broker.into(), address: String::new() };
    Store::open(copy.path(), &owner, Arc::new(|_| Ok(()))).ok().map(|(_, contents)| contents)
}

/// Where a log begins.
fn begin(contents: &Contents) -> u64 {
    contents.purged.map_or(0, |purged| purged.index + 1)
}

/// Where it ends.
fn end(contents: &Contents) -> u64 {
    contents.entries.last().map_or(begin(contents), |last| last.log_id.index + 1)
}

fn wait_for_image_of(other: &Broker, broker: &Broker) {
    wait_for("image like the others'", broker, |handle, _| handle.image() == metadata(other).image());
}

#[test]
fn who_was_away_catches_up_by_the_log_or_by_a_snapshot() {
    let directories: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let at = |broker: u32| directories[broker as usize].path();
    let first = start(at(0), 0, any(), &[]);
    let second = start(at(1), 1, any(), &[first.address()]);
    let third = start(at(2), 2, any(), &[first.address()]);
    wait_for("three votes", &first, |_, quorum| quorum.voters.len() == 3);
    let address = third.address();

    // Away for a few commands: what it lacks is in the others' logs.
    third.stop().unwrap();
    let before = stored(at(2), 2).unwrap();
    (10..20).for_each(|id| create(&first, id, 0).unwrap());
    let third = start(at(2), 2, address, &[]);
    wait_for_image_of(&first, &third);
    assert!(has(&metadata(&third), 19));
    third.stop().unwrap();
    let after = stored(at(2), 2).unwrap();
    assert!(after.snapshot.is_none() && begin(&after) == 0 && end(&after) >= end(&before) + 10, "{after:?}");

    // Away for so many that nobody has the entries any more that come next for it.
    enlarge(&first);
    refuse_many(&second, 3 * SNAPSHOT_EVERY);
    create(&first, 20, 0).unwrap();
    for broker in [0, 1] {
        wait_for("log that begins later", &first, |_, _| {
            stored(at(broker), broker).is_some_and(|contents| begin(&contents) > end(&after))
        });
    }
    let third = start(at(2), 2, address, &[]);
    wait_for_image_of(&first, &third);
    // It goes on as a member like the others.
    create(&third, 21, 0).unwrap();
    wait_for("vote", &third, |_, quorum| quorum.voters.contains(&BrokerId::new(2)));

    // A new one comes in the same way.
    let fourth = start(at(3), 3, any(), &[third.address()]);
    create(&fourth, 22, 0).unwrap();
    for broker in [&second, &third, &fourth] {
        wait_for_image_of(&first, broker);
    }
    let bytes = snapshot::encode(&metadata(&fourth).image()).len();
    assert!(bytes > PIECE_BYTES, "{bytes} bytes are more than one piece");

    // What was received is on the disk.
    third.stop().unwrap();
    fourth.stop().unwrap();
    for broker in [2, 3] {
        let contents = stored(at(broker), broker).unwrap();
        let snapshot = contents.snapshot.as_ref().expect("it has one");
        assert!(begin(&contents) > end(&after) && snapshot.image.len() > PIECE_BYTES);
    }
    let third = start(at(2), 2, address, &[]);
    wait_for_image_of(&first, &third);
    for broker in [first, second, third] {
        broker.stop().unwrap();
    }
}

/// A follower of the metadata, which is asked for nothing by anybody, cuts its log by itself.
#[test]
fn a_follower_of_many_short_lives_keeps_a_short_log() {
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = start(directories[0].path(), 0, any(), &[]);
    let mut address = any();
    let mut most = 0;
    for life in 0..8 {
        let second = start(directories[1].path(), 1, address, &[first.address()]);
        address = second.address();
        refuse_many(&first, SNAPSHOT_EVERY / 2);
        create(&first, 2 + life, 0).unwrap();
        wait_for("topic", &second, |handle, _| has(handle, 2 + life));
        second.stop().unwrap();
        most = most.max(entries_in(directories[1].path()));
    }
    assert!(most < 3 * SNAPSHOT_EVERY, "{most} entries in the log of {}", 4 * SNAPSHOT_EVERY);
    first.stop().unwrap();
}

/// What `broker` says to a heartbeat of `life`.
fn answer_to(broker: &Broker, (id, epoch): (BrokerId, BrokerEpoch)) -> Asked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let image = Arc::new(RwLock::new(metadata(broker).image()));
        let peers = Peers::new(id, image, tokio::sync::mpsc::channel(1).0);
        let wire = Wire::connect(&peers, &broker.address().to_string(), None).await.unwrap();
        let args = fb::HeartbeatArgs { broker: id.get(), epoch: epoch.get(), version: 0, stopping: true };
        let ask = |b: &mut Builder| (fb::Ask::Heartbeat, fb::Heartbeat::create(b, &args).as_union_value());
        Asked::of(&wire.call(LIMIT, ask).await.unwrap()).unwrap()
    })
}

/// A broker that was removed while its process lived learnt nothing of the metadata any more, was answered all the same, and
/// took what it knew for what is. The third stops here all but its metadata, so that nobody takes it for one that serves.
#[test]
fn who_was_removed_is_told_and_does_not_come_back() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = start(directories[0].path(), 0, any(), &[]);
    let second = start(directories[1].path(), 1, any(), &[first.address()]);
    let third = start(directories[2].path(), 2, any(), &[first.address()]);
    wait_for("three votes", &third, |_, quorum| quorum.voters.len() == 3);
    for broker in [&first, &second, &third] {
        wait_for("answer to a heartbeat", broker, |handle, _| handle.is_heard());
    }
    let life = (BrokerId::new(2), metadata(&third).registration());
    block_on(metadata(&third).leave());
    assert!(!matches!(answer_to(&first, life), Asked::Removed), "it is fenced, and a member");
    block_on(metadata(&first).submit(Command::RemoveBroker { broker: life.0 })).unwrap();
    // It has nothing any more that could be told of it. Whoever is asked answers, whether it leads the metadata or not.
    wait_for("word of it", &third, |handle, _| *handle.life.removed.borrow());
    wait_for("image like the first's", &second, |handle, _| handle.image().broker(life.0).is_none());
    for broker in [&first, &second] {
        assert!(matches!(answer_to(broker, life), Asked::Removed));
        let later = BrokerEpoch::new(metadata(&first).image().version() + 1);
        assert!(!matches!(answer_to(broker, (life.0, later)), Asked::Removed), "it may have registered anew");
    }
    wait_for("group without it", &first, |_, quorum| {
        !quorum.voters.contains(&life.0) && !quorum.observers.contains(&life.0)
    });
    third.stop().unwrap();
    for join in [vec![], vec![first.address()]] {
        let error = try_start(directories[2].path(), 2, any(), &join).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), crate::broker::REMOVED, "with {join:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    let third = start(empty.path(), 2, any(), &[first.address()]);
    wait_for("broker that serves", &first, |handle, _| {
        handle.image().broker(life.0).is_some_and(|broker| !broker.fenced)
    });
    for broker in [first, second, third] {
        broker.stop().unwrap();
    }
}

/// As from copies of all their disks that are restored on other hosts: where they were nobody is any more. Two of them are told
/// of the first, and nobody of the two.
#[test]
fn brokers_that_are_all_elsewhere_find_each_other() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = start(directories[0].path(), 0, any(), &[]);
    let second = start(directories[1].path(), 1, any(), &[first.address()]);
    let third = start(directories[2].path(), 2, any(), &[first.address()]);
    wait_for("three votes", &third, |_, quorum| quorum.voters.len() == 3);
    create(&third, 1, 0).unwrap();
    let before = [&first, &second, &third].map(Broker::address);
    std::thread::scope(|scope| {
        for broker in [first, second, third] {
            scope.spawn(move || broker.stop().unwrap());
        }
    });

    let first = start(directories[0].path(), 0, any(), &[]);
    let second = start(directories[1].path(), 1, any(), &[first.address()]);
    let third = start(directories[2].path(), 2, any(), &[first.address()]);
    let brokers = [first, second, third];
    for broker in &brokers {
        wait_for("image in which all serve where they are", broker, |handle, _| {
            let image = handle.image();
            brokers.iter().zip(0..).all(|(other, id)| {
                let (known, port) = (image.broker(BrokerId::new(id)).unwrap(), other.address().port());
                known.registration.port == port && !known.fenced
            })
        });
    }
    let now = brokers.each_ref().map(Broker::address);
    assert!(now.iter().all(|address| !before.contains(address)), "{before:?} {now:?}");
    create(&brokers[2], 2, 0).unwrap();
    assert!(has(&metadata(&brokers[2]), 1));
    for broker in brokers {
        broker.stop().unwrap();
    }
}
