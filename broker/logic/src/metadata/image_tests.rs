//! Tables of commands against images.

use super::*;
use crate::limits;
use crate::metadata::snapshot;
use proptest::prelude::*;
use std::num::NonZeroU64;

pub(crate) fn broker(id: u32, shards: u16) -> Command {
    Command::RegisterBroker {
        registration: BrokerRegistration {
            broker: BrokerId::new(id),
            host: format!("node{id}"),
            port: 9644,
            shards,
            storage_uuid: u128::from(id),
            rack: String::new(),
        },
        suspects: vec![],
        starts_fenced: false,
    }
}

pub(crate) fn create(id: u128, name: &str, partitions: u32) -> Command {
    Command::CreateTopic {
        id: TopicId::new(id),
        name: name.into(),
        placement: Placement::single(BrokerId::new(1), partitions),
        configs: vec![],
    }
}

pub(crate) fn delete(id: u128) -> Command {
    Command::DeleteTopic { id: TopicId::new(id) }
}

pub(crate) fn alter(id: u128, set: &[(&str, &str)], unset: &[&str]) -> Command {
    Command::AlterTopicConfigs {
        id: TopicId::new(id),
        set: set.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        unset: unset.iter().map(|name| name.to_string()).collect(),
    }
}

pub(crate) fn grow(id: u128, count: u32, added: u32) -> Command {
    let placement = Placement::single(BrokerId::new(1), added);
    Command::CreatePartitions { id: TopicId::new(id), count, placement }
}

pub(crate) fn image_of(commands: &[Command]) -> Image {
    commands.iter().fold(Image::default(), |image, command| match image.apply(command) {
        Ok((next, _)) => next,
        Err(error) => panic!("{command:?}: {error}"),
    })
}

/// One broker of two shards, topics 10 "a" with 2 partitions and 11 "b" with 1, topic 12 deleted.
fn sample() -> Image {
    image_of(&[broker(1, 2), create(10, "a", 2), create(11, "b", 1), create(12, "c", 1), delete(12)])
}

/// `command` on the sample gives `expect`, or an error with this code and text.
fn check(command: Command, expect: Result<Outcome, (ErrorCode, &str)>) {
    let before = sample();
    match (before.apply(&command), expect) {
        (Ok((after, outcome)), Ok(expect)) => {
            assert_eq!(outcome, expect, "{command:?}");
            assert_eq!(after.version(), before.version() + 1);
            assert_eq!(snapshot::decode(&snapshot::encode(&after)), Ok(after), "{command:?}");
        }
        (Err(error), Err((code, text))) => {
            assert_eq!(error.error_code(), code, "{command:?}: {error}");
            assert!(error.to_string().contains(text), "{command:?}: {error}");
        }
        (got, expect) => panic!("{command:?}: {got:?}, expected {expect:?}"),
    }
    assert_eq!(before, sample(), "an image never changes");
}

#[test]
fn the_bound_of_catching_up_stays_until_it_is_changed() {
    let limit = |rate: u64| Command::LimitCatchUp { bytes_per_second: NonZeroU64::new(rate) };
    for rate in [50_000_000, 0] {
        let bytes_per_second = NonZeroU64::new(rate);
        check(limit(rate), Ok(Outcome::CatchUpLimited { bytes_per_second }));
    }
    let image = image_of(&[limit(7), broker(1, 2), create(10, "a", 1)]);
    assert_eq!(image.catch_up_bytes_per_second(), NonZeroU64::new(7));
    assert_eq!(image.apply(&limit(0)).unwrap().0.catch_up_bytes_per_second(), None);
}

#[test]
fn topics() {
    let id = TopicId::new(20);
    let name = |name: &str| create(20, name, 1);
    let created = |partitions| Ok(Outcome::TopicCreated { id, partitions });
    let longest = "x".repeat(249);
    let too_long = "x".repeat(250);
    use ErrorCode::*;
    let rows = [
        (name("new"), created(1)),
        (name(&longest), created(1)),
        (name("A.b_c-9"), created(1)),
        (name("..."), created(1)),
        (name("c"), created(1)),
        (name(""), Err((InvalidTopicName, "it is empty"))),
        (name("."), Err((InvalidTopicName, "directory"))),
        (name(".."), Err((InvalidTopicName, "directory"))),
        (name(&too_long), Err((InvalidTopicName, "longer than 249"))),
        (name("a/b"), Err((InvalidTopicName, "permitted are"))),
        (name("flüge"), Err((InvalidTopicName, "permitted are"))),
        (name("a b"), Err((InvalidTopicName, "permitted are"))),
        (name("a\0"), Err((InvalidTopicName, "permitted are"))),
        (name("a"), Err((TopicExists, "topic a is there"))),
        (create(10, "new", 1), Err((InvalidRequest, "is used already"))),
        (create(12, "new", 1), Err((InvalidRequest, "is used already"))),
        (create(20, "new", 10_000), created(10_000)),
        (create(20, "new", 0), Err((InvalidPartitions, "1 to 10000"))),
        (create(20, "new", 10_001), Err((InvalidPartitions, "10001 partitions"))),
        (delete(10), Ok(Outcome::TopicDeleted { id: TopicId::new(10), name: "a".into() })),
        (delete(12), Err((UnknownTopic, "no topic has the id"))),
        (delete(99), Err((UnknownTopic, "no topic has the id"))),
    ];
    for (command, expect) in rows {
        check(command, expect);
    }
}

#[test]
fn placements() {
    let placed = |replication_factor, brokers: &[u32]| Command::CreateTopic {
        id: TopicId::new(20),
        name: "new".into(),
        placement: Placement {
            replication_factor,
            brokers: brokers.iter().copied().map(BrokerId::new).collect(),
        },
        configs: vec![],
    };
    use ErrorCode::*;
    check(placed(0, &[1]), Err((InvalidRequest, "different sizes")));
    check(placed(2, &[1]), Err((InvalidRequest, "different sizes")));
    check(placed(2, &[1, 1]), Err((InvalidRequest, "one broker twice")));
    check(placed(1, &[1, 7]), Err((InvalidRequest, "broker 7 is not registered")));

    // Leaders and followers go round over three brokers.
    let image = image_of(&[broker(1, 1), broker(2, 1), broker(5, 1)]);
    let new = |partitions, replication_factor| NewTopic {
        id: TopicId::new(20),
        name: "new".into(),
        partitions,
        replication_factor,
        configs: vec![],
    };
    let command = image.create_topic(new(6, 2)).unwrap();
    let image = image.apply(&command).unwrap().0;
    let topic = image.topic_by_name("new").unwrap();
    let leading =
        |id| topic.partitions.iter().filter(|entry| entry.leader == Some(BrokerId::new(id))).count();
    assert_eq!([leading(1), leading(2), leading(5)], [2, 2, 2]);
    assert!(topic.partitions.iter().all(|entry| entry.replicas.len() == 2 && entry.in_sync.len() == 2));
    // More partitions go on where the round stopped.
    let grown = image.apply(&image.create_partitions(topic.id, 9).unwrap()).unwrap().0;
    let grown = grown.topic_by_name("new").unwrap();
    assert!(grown.partitions.iter().skip(6).eq(topic.partitions.iter().take(3)));
    let refused = |new| image.create_topic(new).unwrap_err().error_code();
    assert_eq!(refused(new(1, 4)), InvalidReplicationFactor);
    assert_eq!(refused(new(1, 0)), InvalidReplicationFactor);
    assert_eq!(refused(new(0, 1)), InvalidPartitions);
    assert_eq!(refused(new(u32::MAX, 1)), InvalidPartitions);
}

#[test]
fn partitions_are_only_added() {
    let id = TopicId::new(10);
    use ErrorCode::*;
    check(grow(10, 5, 3), Ok(Outcome::PartitionsCreated { id, count: 5 }));
    check(grow(10, 2, 0), Err((InvalidPartitions, "has 2 partitions; 2 would not be more")));
    check(grow(10, 1, 1), Err((InvalidPartitions, "would not be more")));
    check(grow(10, 5, 2), Err((InvalidPartitions, "the topic changed meanwhile")));
    check(grow(10, 10_001, 9_999), Err((InvalidPartitions, "1 to 10000")));
    check(grow(99, 5, 3), Err((UnknownTopic, "")));
}

#[test]
fn configs() {
    let id = TopicId::new(10);
    use ErrorCode::*;
    let altered = Ok(Outcome::TopicConfigsAltered { id });
    check(alter(10, &[("retention.ms", "1h")], &["segment.ms"]), altered);
    check(alter(10, &[("retention.ms", "x")], &[]), Err((InvalidConfig, "retention.ms=x")));
    check(alter(10, &[], &["colour"]), Err((InvalidConfig, "colour is not a setting")));
    check(alter(10, &[("segment.bytes", "1MiB")], &[]), Err((InvalidConfig, "cannot hold a batch")));
    check(alter(10, &[("min.insync.replicas", "2")], &[]), Err((InvalidConfig, "never be reached")));
    check(alter(99, &[], &[]), Err((UnknownTopic, "")));

    let small = alter(10, &[("segment.bytes", "1MiB"), ("max.message.bytes", "512KiB")], &[]);
    let image = image_of(&[broker(1, 2), create(10, "a", 2), small]);
    assert_eq!(image.topic(id).unwrap().config.segment_bytes, 1 << 20);
    let error = image.apply(&alter(10, &[], &["max.message.bytes"])).unwrap_err();
    assert_eq!(error.error_code(), InvalidConfig, "settings are checked as a whole");
}

#[test]
fn brokers() {
    let with = |change: fn(&mut BrokerRegistration)| {
        let mut command = broker(1, 2);
        let Command::RegisterBroker { registration, .. } = &mut command else { unreachable!() };
        change(registration);
        command
    };
    let epoch = BrokerEpoch::new(sample().version() + 1);
    let registered = || Ok(Outcome::BrokerRegistered { broker: BrokerId::new(1), epoch });
    use ErrorCode::InvalidRequest;
    check(with(|_| ()), registered());
    check(with(|r| r.host = "10.0.0.1".into()), registered());
    check(with(|r| r.shards = 7), registered());
    check(with(|r| r.shards = 0), Err((InvalidRequest, "no shards")));
    check(with(|r| r.port = 0), Err((InvalidRequest, "port")));
    check(with(|r| r.host = "".into()), Err((InvalidRequest, "host")));
    check(with(|r| r.host = "a b".into()), Err((InvalidRequest, "host")));
    check(with(|r| r.storage_uuid = 9), Err((InvalidRequest, "not the one that its metadata belongs to")));
}

#[test]
fn producer_ids_are_given_to_one_broker_only() {
    let ids = |id, count| Command::AllocateProducerIds { broker: BrokerId::new(id), count };
    let most = limits::PRODUCER_IDS_PER_BLOCK_MAX;
    use ErrorCode::InvalidRequest;
    check(ids(1, 1000), Ok(Outcome::ProducerIdsAllocated { first: 0, count: 1000 }));
    check(ids(1, most), Ok(Outcome::ProducerIdsAllocated { first: 0, count: most }));
    check(ids(1, 0), Err((InvalidRequest, "0 producer ids")));
    check(ids(1, most + 1), Err((InvalidRequest, "a block has 1 to 1000000")));
    check(ids(9, 1), Err((InvalidRequest, "not registered")));
    let mut image = image_of(&[broker(1, 2), broker(2, 2)]);
    for (broker, first) in [(1, 0), (2, 10), (1, 20)] {
        let (next, outcome) = image.apply(&ids(broker, 10)).unwrap();
        assert_eq!(outcome, Outcome::ProducerIdsAllocated { first, count: 10 });
        image = snapshot::decode(&snapshot::encode(&next)).unwrap();
    }
    assert_eq!(image.next_producer_id(), 30);
}

#[test]
fn a_shard_never_gets_too_many_partitions() {
    let max = limits::PARTITIONS_PER_SHARD_MAX as u32;
    let per_topic = limits::PARTITIONS_PER_TOPIC_MAX;
    let topics = u128::from(2 * max / per_topic);
    let name = |id: u128| format!("t{id}");
    let mut image = image_of(&[broker(1, 2)]);
    for id in 0..topics {
        image = image.apply(&create(id, &name(id), per_topic)).unwrap().0;
    }
    let full = image.apply(&create(1000, "more", 1)).unwrap_err();
    assert!(matches!(full, CommandError::ShardFull { .. }), "{full}");
    assert!(image.apply(&broker(1, 1)).is_err(), "half the shards cannot serve them");
    let wider = image.apply(&broker(1, 4)).unwrap().0;
    assert!(wider.apply(&create(1000, "more", 1)).is_ok());
    let freed = image.apply(&delete(0)).unwrap().0;
    assert!(freed.apply(&create(1000, "more", per_topic)).is_ok());
}

#[test]
fn deletions_are_remembered_up_to_a_limit() {
    let mut image = image_of(&[broker(1, 1)]);
    for id in 0..=DELETIONS_KEPT_MAX as u128 {
        image = image.apply(&create(id, "t", 1)).unwrap().0;
        image = image.apply(&delete(id)).unwrap().0;
    }
    assert_eq!(image.deletions().len(), DELETIONS_KEPT_MAX);
    assert!(!image.is_deleted(TopicId::new(0)) && image.is_deleted(TopicId::new(1)));
    assert_eq!(image.forgotten_version(), 3, "register, create, delete");
    assert_eq!(snapshot::decode(&snapshot::encode(&image)), Ok(image));
}

pub(crate) fn any_command() -> impl Strategy<Value = Command> {
    let id = 0u128..6;
    let name = prop::sample::select(vec!["a", "b", "c", "..", "d"]);
    let config = prop::sample::select(vec![("retention.ms", "1h"), ("segment.ms", "1d"), ("nonsense", "1")]);
    prop_oneof![
        3 => (id.clone(), name, 0u32..5).prop_map(|(id, name, partitions)| create(id, name, partitions)),
        2 => id.clone().prop_map(delete),
        2 => (id.clone(), config).prop_map(|(id, set)| alter(id, &[set], &[])),
        1 => (id.clone(), 0u32..9, 0u32..5).prop_map(|(id, count, added)| grow(id, count, added)),
        1 => (1u32..3, 0u16..4).prop_map(|(id, shards)| broker(id, shards)),
        1 => (1u32..3, 0u32..3).prop_map(|(id, count)| {
            Command::AllocateProducerIds { broker: BrokerId::new(id), count }
        }),
    ]
}

proptest! {
    /// The indexes agree with the topics, and a snapshot taken anywhere continues as the original does.
    #[test]
    fn any_history(commands in prop::collection::vec(any_command(), 0..40), cut in 0usize..40) {
        let mut image = image_of(&[broker(1, 2)]);
        let mut restored = None;
        for (at, command) in commands.iter().enumerate() {
            if at == cut {
                restored = Some(snapshot::decode(&snapshot::encode(&image)).unwrap());
            }
            let result = image.apply(command);
            if let Some(copy) = &mut restored {
                let same = copy.apply(command);
                prop_assert_eq!(&same, &result);
                if let Ok((next, _)) = same {
                    *copy = next;
                }
            }
            if let Ok((next, _)) = result {
                image = next;
            }
            prop_assert_eq!(image.names.len(), image.topics.len());
            prop_assert_eq!(image.changed.len(), image.topics.len());
            for topic in image.topics() {
                prop_assert_eq!(image.names.get(&*topic.name), Some(&topic.id));
                prop_assert_eq!(image.changed.contains(&(topic.version, topic.id)), true);
            }
            let replicas: usize = image.topics().flat_map(|topic| topic.partitions.iter()).map(|p| p.replicas.len()).sum();
            prop_assert_eq!(image.loads.values().map(|load| *load as usize).sum::<usize>(), replicas);
            prop_assert!(image.topics_changed_after(image.version()).next().is_none());
        }
    }
}
