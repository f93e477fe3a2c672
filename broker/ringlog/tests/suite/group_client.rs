//! The client's group consumer against a real broker process, call by call.

use crate::process::{Broker, directory};
use ringlog_client::{
    AssignedPartition, AutoOffsetReset, Client, ClientConfig, ErrorCode, GroupConfig, GroupConsumer,
    GroupError, GroupPartition, NewTopic, ProducerConfig, ProducerRecord, RebalanceListener,
    RevokedPartition, StartFrom,
};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const TOPIC: &str = "t";
const LIMIT: Duration = Duration::from_secs(60);

async fn client_of(broker: &Broker) -> Client {
    Client::connect(ClientConfig::new(&broker.address).unwrap()).await.unwrap()
}

async fn create(client: &Client, partitions: u32) {
    client.admin().create_topic(&NewTopic { partitions, ..NewTopic::named(TOPIC) }).await.unwrap();
}

/// `count` records to each partition, each a batch of its own.
async fn fill(client: &Client, partitions: u32, count: u32) {
    let producer = client.producer(ProducerConfig::default());
    for _ in 0..count {
        for partition in 0..partitions {
            let record = ProducerRecord::new(TOPIC, format!("{partition}")).to_partition(partition);
            producer.send(record).await.unwrap().await.unwrap();
        }
    }
    producer.close().await.unwrap();
}

fn config(group: &str) -> GroupConfig {
    GroupConfig::new(group).with_topic(TOPIC).with_manual_commit()
}

async fn next(consumer: &mut GroupConsumer) -> (u32, u64) {
    let record = tokio::time::timeout(LIMIT, consumer.next()).await.expect("a record").unwrap();
    (record.partition, record.offset)
}

/// Whether nothing more comes. Polls for a while: it takes part in rebalances meanwhile.
async fn nothing(consumer: &mut GroupConsumer) {
    let more = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(more.is_err(), "{more:?}");
}

/// Polls for a while, whatever comes.
async fn nothing_or_more(consumer: &mut GroupConsumer) {
    let _ = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
}

/// What a listener heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl RebalanceListener for Heard {
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        let mut heard = self.0.lock().unwrap();
        heard.extend(partitions.iter().map(|one| format!("assigned {} at {}", one.partition, one.offset)));
    }

    fn lost(&mut self, partitions: &[GroupPartition]) {
        self.0.lock().unwrap().extend(partitions.iter().map(|one| format!("lost {one}")));
    }

    fn revoked(&mut self, partitions: &mut [RevokedPartition]) {
        for one in partitions {
            one.commit = Some(one.position);
            self.0.lock().unwrap().push(format!("revoked {} at {}", one.partition, one.position));
        }
    }
}

#[tokio::test]
async fn group_consumer_calls() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    create(&client, 1).await;
    fill(&client, 1, 10).await;
    let mut consumer = client.group_consumer(config("g")).unwrap();
    assert_eq!(consumer.committed(TOPIC, 0).await.unwrap(), None);
    for offset in 0..4 {
        assert_eq!(next(&mut consumer).await, (0, offset));
    }
    assert_eq!(consumer.position(TOPIC, 0), Some(4));
    assert_eq!(consumer.assignment().len(), 1);
    consumer.commit().await.unwrap();
    assert_eq!(consumer.committed(TOPIC, 0).await.unwrap(), Some(4));

    // Paused, it is still the member's; resumed, it goes on where it was.
    consumer.pause(TOPIC, 0);
    nothing(&mut consumer).await;
    assert_eq!(consumer.position(TOPIC, 0), Some(4));
    consumer.resume(TOPIC, 0);
    assert_eq!(next(&mut consumer).await, (0, 4));
    consumer.seek(TOPIC, 0, StartFrom::Offset(8)).await.unwrap();
    assert_eq!(next(&mut consumer).await, (0, 8));
    consumer.seek(TOPIC, 0, StartFrom::Earliest).await.unwrap();
    assert_eq!(next(&mut consumer).await, (0, 0));

    // Commits in the background reach the coordinator in order.
    let commits: Vec<_> =
        (1..=9).map(|offset| consumer.commit_offsets(&[(TOPIC, 0, offset)]).unwrap()).collect();
    for commit in commits {
        commit.wait().await.unwrap();
    }
    assert_eq!(consumer.committed(TOPIC, 0).await.unwrap(), Some(9));
    assert!(matches!(consumer.commit_offsets(&[(TOPIC, 7, 1)]), Err(GroupError::PartitionsLost)));
    assert_eq!(consumer.seek("other", 0, StartFrom::Earliest).await, Err(GroupError::PartitionsLost));
    // Without auto-commit, closing commits nothing.
    consumer.close().await.unwrap();

    let mut consumer = client.group_consumer(config("g")).unwrap();
    assert_eq!(next(&mut consumer).await, (0, 9));
    consumer.close().await.unwrap();

    // Auto-commit: what the last poll handed out is committed when the next begins, or at the end.
    let mut auto = config("auto");
    auto.auto_commit_interval = Some(Duration::from_millis(1));
    let mut consumer = client.group_consumer(auto.clone()).unwrap();
    for offset in 0..3 {
        assert_eq!(next(&mut consumer).await, (0, offset));
    }
    assert!(
        consumer.committed(TOPIC, 0).await.unwrap().is_none_or(|offset| offset <= 2),
        "not yet processed"
    );
    consumer.close().await.unwrap();
    let mut consumer = client.group_consumer(auto.clone()).unwrap();
    assert_eq!(consumer.committed(TOPIC, 0).await.unwrap(), Some(3));
    assert_eq!(next(&mut consumer).await, (0, 3));
    // One that is dropped has told nobody about its last record.
    drop(consumer);

    // Where to begin without a committed offset.
    let mut latest = config("latest");
    latest.consumer.auto_offset_reset = AutoOffsetReset::Latest;
    let mut consumer = client.group_consumer(latest).unwrap();
    nothing(&mut consumer).await;
    while consumer.position(TOPIC, 0).is_none() {
        nothing(&mut consumer).await;
    }
    fill(&client, 1, 1).await;
    assert_eq!(next(&mut consumer).await, (0, 10));
    consumer.close().await.unwrap();
    let mut error = config("error");
    error.consumer.auto_offset_reset = AutoOffsetReset::Error;
    let mut consumer = client.group_consumer(error).unwrap();
    let failed = tokio::time::timeout(LIMIT, consumer.next()).await.expect("an error");
    assert!(matches!(failed, Err(GroupError::NoOffset { .. })), "{failed:?}");
    consumer.seek(TOPIC, 0, StartFrom::Offset(7)).await.unwrap();
    assert_eq!(next(&mut consumer).await, (0, 7));
    consumer.close().await.unwrap();

    let refused = client.group_consumer(GroupConfig::new("g")).err();
    assert!(matches!(refused, Some(GroupError::NoSubscription { .. })), "{refused:?}");
    let mut consumer = client.group_consumer(GroupConfig::new("g").with_pattern("(")).unwrap();
    let failed = tokio::time::timeout(LIMIT, consumer.poll()).await.expect("an error").unwrap_err();
    assert!(failed.is_final() && failed.code() == Some(ErrorCode::InvalidPattern), "{failed}");
}

#[tokio::test]
async fn a_listener_hears_first_and_nothing_is_read_twice() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    create(&client, 2).await;
    fill(&client, 2, 5).await;
    let (heard, other) = (Heard::default(), Heard::default());
    let mut one = client.group_consumer(config("g")).unwrap();
    one.set_listener(heard.clone());
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        assert!(seen.insert(next(&mut one).await), "read twice");
    }
    assert_eq!(*heard.0.lock().unwrap(), ["assigned t/0 at 0", "assigned t/1 at 0"]);
    // A second member: it is given what the first has let go of, at the position that its listener committed.
    let mut two = client.group_consumer(config("g")).unwrap();
    two.set_listener(other.clone());
    let until = Instant::now() + LIMIT;
    while other.0.lock().unwrap().is_empty() {
        tokio::join!(nothing(&mut one), nothing(&mut two));
        assert!(Instant::now() < until, "nothing moves: {:?}", heard.0.lock().unwrap());
    }
    let revoked = heard.0.lock().unwrap()[2].clone();
    let moved = other.0.lock().unwrap()[0].clone();
    assert_eq!(revoked.strip_prefix("revoked"), moved.strip_prefix("assigned"), "{revoked}, {moved}");
    assert!(revoked.ends_with("at 5"));
    fill(&client, 2, 5).await;
    for _ in 0..5 {
        assert!(seen.insert(next(&mut one).await) && seen.insert(next(&mut two).await), "read twice");
    }
    assert_eq!(seen.len(), 20);
    // It changes its mind: the other one has everything.
    two.subscribe(vec!["elsewhere".to_owned()], None);
    while heard.0.lock().unwrap().len() < 4 {
        tokio::join!(nothing(&mut one), nothing(&mut two));
        assert!(Instant::now() < until, "nothing moves back: {:?}", heard.0.lock().unwrap());
    }
    assert!(heard.0.lock().unwrap()[3].starts_with("assigned") && two.assignment().is_empty());
    one.close().await.unwrap();
    two.close().await.unwrap();
}

#[tokio::test]
async fn a_member_that_does_not_poll_leaves_and_comes_back() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    create(&client, 1).await;
    fill(&client, 1, 3).await;
    let mut lazy = config("g");
    lazy.max_poll_interval = Duration::from_millis(200);
    let mut one = client.group_consumer(lazy).unwrap();
    assert_eq!(next(&mut one).await, (0, 0));
    one.commit().await.unwrap();
    // Another one gets the partition although the first lives.
    let mut two = client.group_consumer(config("g")).unwrap();
    assert_eq!(next(&mut two).await, (0, 1));
    assert!(matches!(one.commit().await, Err(GroupError::PartitionsLost)));
    two.commit().await.unwrap();
    two.close().await.unwrap();
    assert_eq!(next(&mut one).await, (0, 2));
    one.close().await.unwrap();
}

/// A member that is asked to give up a partition and does not, because it is busy with what it was handed, is put out after its
/// rebalance time-out: nothing else would do it, since its heartbeats go on and its session is half an hour.
#[tokio::test]
async fn a_member_that_gives_nothing_up_in_time_is_put_out() {
    const REBALANCE: Duration = Duration::from_millis(500);
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    create(&client, 2).await;
    fill(&client, 2, 3).await;
    let mut busy = config("g");
    busy.set("rebalance.timeout.ms", &REBALANCE.as_millis().to_string()).unwrap();
    busy.set("session.timeout.ms", "30m").unwrap();
    busy.set("max.poll.interval.ms", "1h").unwrap();
    let heard = Heard::default();
    let mut one = client.group_consumer(busy).unwrap();
    one.set_listener(heard.clone());
    next(&mut one).await;
    assert_eq!(one.assignment().len(), 2);
    one.commit().await.unwrap();
    // It is not polled from here on.
    let joined = Instant::now();
    let mut two = client.group_consumer(config("g")).unwrap();
    while two.assignment().is_empty() {
        nothing_or_more(&mut two).await;
        assert!(joined.elapsed() < LIMIT, "nothing moves: {:?}", heard.0.lock().unwrap());
    }
    assert!(joined.elapsed() >= REBALANCE, "before its time was up");
    let told = heard.0.lock().unwrap().clone();
    assert_eq!(told, ["assigned t/0 at 0", "assigned t/1 at 0"], "it is told by polls alone");
    assert!(matches!(one.commit().await, Err(GroupError::PartitionsLost)));
    // Polled again it is told, and comes back for its share.
    while one.assignment().len() != 1 || two.assignment().len() != 1 {
        tokio::join!(nothing_or_more(&mut one), nothing_or_more(&mut two));
        assert!(joined.elapsed() < LIMIT, "it does not come back: {:?}", heard.0.lock().unwrap());
    }
    // What it was asked for it may still believe to give up; the other one it was never asked for.
    let told = heard.0.lock().unwrap()[2..4].to_vec();
    assert!(told.iter().any(|word| word.starts_with("lost t/")), "{told:?}");
    for partition in ["t/0", "t/1"] {
        assert!(told.iter().any(|word| word.contains(partition)), "{told:?}");
    }
    assert_ne!(one.assignment(), two.assignment());
    one.close().await.unwrap();
    two.close().await.unwrap();
}

/// Two topics of two partitions, two members: `range` gives partitions of equal numbers to one member, `uniform` as many
/// to each.
#[tokio::test]
async fn assignors_by_name() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    for topic in ["left", "right"] {
        client.admin().create_topic(&NewTopic { partitions: 2, ..NewTopic::named(topic) }).await.unwrap();
    }
    for assignor in ["range", "uniform"] {
        let group = format!("by-{assignor}");
        let member = || {
            let mut config = GroupConfig::new(&group).with_topic("left").with_topic("right");
            config.set("group.remote.assignor", assignor).unwrap();
            client.group_consumer(config).unwrap()
        };
        let (mut one, mut two) = (member(), member());
        let until = Instant::now() + LIMIT;
        while one.assignment().len() != 2 || two.assignment().len() != 2 {
            tokio::join!(nothing(&mut one), nothing(&mut two));
            assert!(Instant::now() < until, "{assignor}: {:?}, {:?}", one.assignment(), two.assignment());
        }
        let all: BTreeSet<String> =
            one.assignment().iter().chain(&two.assignment()).map(ToString::to_string).collect();
        assert_eq!(all.len(), 4, "each partition has one member: {all:?}");
        if assignor == "range" {
            for consumer in [&one, &two] {
                let numbers: BTreeSet<u32> = consumer.assignment().iter().map(|one| one.partition).collect();
                assert_eq!(numbers.len(), 1, "{:?}", consumer.assignment());
            }
        }
        let described = broker.run(&["group", "describe", &group, "--format", "json"]).ok().text();
        assert!(described.contains(&format!("\"assignor\":\"{assignor}\"")), "{described}");
        one.close().await.unwrap();
        two.close().await.unwrap();
    }
}
