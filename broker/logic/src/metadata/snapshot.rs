//! A whole image as bytes: what the metadata store keeps so that its log can be cut, and what a broker
//! that is far behind will be sent.
//!
//! Bytes: `schema/definitions/metadata.fbs`, root `Image`, file identifier `RLI1`. What can be derived
//! (names, loads, typed settings) is not stored. Partitions are structs with one flat list of their
//! replicas per topic, because a table per partition costs a hundred times as much to verify.

use super::command::{BrokerRegistration, DecodeError};
use super::command_bytes::{
    decode_aligned, decode_configs, decode_suspects, encode_configs, encode_rack, encode_suspects, topic_id,
};
use super::image::{Broker, Image, Parts, Topic};
use super::partition::{Partition, Replica};
use super::topic_config::{SETTINGS, TopicConfig};
use crate::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, ReplicaGeneration, ShardId};
use crate::limits::{BROKERS_MAX, TOPICS_MAX};
use flatbuffers::{FlatBufferBuilder, VerifierOptions};
use schema::metadata as fb;
use std::num::NonZeroU64;
use std::sync::Arc;

/// The file identifier of an image.
pub const IMAGE_IDENTIFIER: &str = "RLI1";

/// Tables in the largest image: each topic, each of its settings, each broker, and the root.
const TABLES_MAX: usize = TOPICS_MAX * 16 + BROKERS_MAX + 1;
const _: () = assert!(TOPICS_MAX * 16 <= 1 << 24, "the verifier's work is bounded");

/// The largest image, bytes, vectors counted as often as they are referred to.
const APPARENT_BYTES_MAX: usize = 1 << 30;

/// The bytes of `image`.
pub fn encode(image: &Image) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(4096);
    let b = &mut builder;
    let topics: Vec<_> = image
        .topics()
        .map(|topic| {
            let name = b.create_string(&topic.name);
            let overrides = topic.overrides.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let configs = encode_configs(b, overrides);
            let states: Vec<_> = topic.partitions.iter().map(state).collect();
            let partitions = b.create_vector(&states);
            let both = |partition: &'_ Partition| {
                partition.brokers().chain(partition.in_sync.iter().copied()).collect()
            };
            let members: Vec<u32> =
                topic.partitions.iter().flat_map::<Vec<_>, _>(both).map(BrokerId::get).collect();
            let members = b.create_vector(&members);
            // All of these are left out as long as the topic is as it was made.
            let replication: Vec<_> = topic.partitions.iter().map(replication).collect();
            let is_new = replication.iter().all(|state| *state == fb::ReplicationState::default());
            let replication = (!is_new).then(|| b.create_vector(&replication));
            let replicas = || topic.partitions.iter().flat_map(|partition| partition.replicas.iter());
            let generations: Vec<u32> = replicas().map(|replica| replica.generation.get()).collect();
            let are_first = generations.iter().all(|generation| *generation == 0);
            let generations = (!are_first).then(|| b.create_vector(&generations));
            let three = |partition: &Partition| {
                let sets = [&partition.eligible, &partition.adding, &partition.removing];
                sets.into_iter().flat_map(|set| set.iter().map(|broker| broker.get())).collect::<Vec<_>>()
            };
            let sets: Vec<u32> = topic.partitions.iter().flat_map(three).collect();
            let sets = (!sets.is_empty()).then(|| b.create_vector(&sets));
            let homes = topic.partitions.iter().flat_map(|partition| partition.homes.iter());
            let homes: Vec<_> =
                homes.map(|(broker, shard)| fb::Home::new(broker.get(), shard.get())).collect();
            let homes = (!homes.is_empty()).then(|| b.create_vector(&homes));
            let id = fb::Id::from_u128(topic.id.get());
            let args = fb::TopicArgs {
                id: Some(&id),
                name: Some(name),
                version: topic.version,
                partitions: Some(partitions),
                members: Some(members),
                configs: Some(configs),
                replication,
                generations,
                sets,
                homes,
            };
            fb::Topic::create(b, &args)
        })
        .collect();
    let topics = b.create_vector(&topics);
    let brokers: Vec<_> = image
        .brokers()
        .map(|broker| {
            let registration = &broker.registration;
            let host = b.create_string(&registration.host);
            let rack = encode_rack(b, &registration.rack);
            let suspects = encode_suspects(b, broker.suspects.iter());
            let storage_uuid = fb::Id::from_u128(registration.storage_uuid);
            let has_own_epoch = broker.epoch.get() != broker.version;
            let args = fb::BrokerArgs {
                broker: registration.broker.get(),
                host: Some(host),
                port: registration.port,
                shards: registration.shards,
                storage_uuid: Some(&storage_uuid),
                version: broker.version,
                rack,
                epoch: if has_own_epoch { broker.epoch.get() } else { 0 },
                fenced: broker.fenced,
                draining: broker.draining,
                suspects,
            };
            fb::Broker::create(b, &args)
        })
        .collect();
    let brokers = b.create_vector(&brokers);
    let deletions: Vec<_> = image
        .deletions()
        .map(|(version, id)| fb::Deletion::new(&fb::Id::from_u128(id.get()), version))
        .collect();
    let deletions = b.create_vector(&deletions);
    let cluster_id = image.cluster_id().map(fb::Id::from_u128);
    let args = fb::ImageArgs {
        version: image.version(),
        topics: Some(topics),
        brokers: Some(brokers),
        deletions: Some(deletions),
        forgotten_version: image.forgotten_version(),
        next_producer_id: image.next_producer_id(),
        cluster_id: cluster_id.as_ref(),
        catch_up_bytes_per_second: image.catch_up_bytes_per_second().map_or(0, NonZeroU64::get),
    };
    let root = fb::Image::create(b, &args);
    b.finish(root, Some(IMAGE_IDENTIFIER));
    b.finished_data().to_vec()
}

/// Verifies and decodes what [`encode`] made. Never panics.
pub fn decode(bytes: &[u8]) -> Result<Image, DecodeError> {
    decode_aligned(bytes, IMAGE_IDENTIFIER, decode_in_place)
}

fn state(partition: &Partition) -> fb::PartitionState {
    fb::PartitionState::new(
        partition.leader.map_or(0, BrokerId::get),
        partition.leader_epoch.get(),
        partition.partition_epoch.get(),
        partition.replicas.len() as u16,
        partition.in_sync.len() as u16,
    )
}

fn replication(partition: &Partition) -> fb::ReplicationState {
    fb::ReplicationState::new(
        partition.eligible.len() as u16,
        partition.adding.len() as u16,
        partition.removing.len() as u16,
        partition.homes.len() as u16,
        partition.transfer_to.map_or(0, BrokerId::get),
        partition.leader.is_none(),
        partition.transfer_to.is_some(),
    )
}

fn decode_in_place(bytes: &[u8]) -> Result<Image, DecodeError> {
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: TABLES_MAX,
        max_apparent_size: APPARENT_BYTES_MAX,
        ignore_missing_null_terminator: false,
    };
    let image = flatbuffers::root_with_opts::<fb::Image<'_>>(&options, bytes)
        .map_err(|error| DecodeError::Invalid(error.to_string()))?;
    let topics = image.topics().into_iter().flatten().map(|topic| decode_topic(&topic));
    let brokers: Vec<_> =
        image.brokers().into_iter().flatten().map(|broker| decode_broker(&broker)).collect();
    if let Some(broker) = brokers.iter().find(|broker| broker.registration.shards == 0) {
        let id = broker.registration.broker;
        return Err(DecodeError::Inconsistent(format!("broker {id} has no shards")));
    }
    let deletions = image.deletions().into_iter().flatten();
    Image::from_parts(Parts {
        version: image.version(),
        cluster_id: image.cluster_id().map_or(0, fb::Id::as_u128),
        topics: topics.collect::<Result<_, _>>()?,
        brokers,
        deletions: deletions.map(|deletion| (deletion.version(), topic_id(deletion.id()))).collect(),
        forgotten_version: image.forgotten_version(),
        next_producer_id: image.next_producer_id(),
        catch_up_bytes_per_second: NonZeroU64::new(image.catch_up_bytes_per_second()),
    })
}

fn decode_broker(broker: &fb::Broker<'_>) -> Broker {
    let mut suspects = decode_suspects(broker.suspects());
    suspects.sort_by_key(|suspect| suspect.partition);
    Broker {
        registration: BrokerRegistration {
            broker: BrokerId::new(broker.broker()),
            host: broker.host().to_owned(),
            port: broker.port(),
            shards: broker.shards(),
            storage_uuid: broker.storage_uuid().as_u128(),
            rack: broker.rack().unwrap_or_default().to_owned(),
        },
        epoch: BrokerEpoch::new(if broker.epoch() == 0 { broker.version() } else { broker.epoch() }),
        fenced: broker.fenced(),
        draining: broker.draining(),
        suspects: suspects.into(),
        version: broker.version(),
    }
}

/// The next `count` of `list`; `None` if there are fewer.
fn take<T>(list: &mut impl Iterator<Item = T>, count: u16) -> Option<Vec<T>> {
    let taken: Vec<T> = list.by_ref().take(count.into()).collect();
    (taken.len() == usize::from(count)).then_some(taken)
}

fn decode_topic(topic: &fb::Topic<'_>) -> Result<Topic, DecodeError> {
    let inconsistent = |what: &str| DecodeError::Inconsistent(format!("topic {}: {what}", topic.name()));
    let too_few = || inconsistent("its partitions have more than it lists");
    let mut members = topic.members().iter().map(BrokerId::new);
    let mut generations = topic.generations().map(|all| all.iter().map(ReplicaGeneration::new));
    let mut sets = topic.sets().into_iter().flatten().map(BrokerId::new);
    let homes = topic.homes().into_iter().flatten();
    let mut homes = homes.map(|home| (BrokerId::new(home.broker()), ShardId::new(home.shard())));
    let replication = topic.replication();
    if replication.is_some_and(|all| all.len() != topic.partitions().len()) {
        return Err(too_few());
    }
    let mut partitions = imbl::Vector::new();
    for (at, state) in topic.partitions().iter().enumerate() {
        let rest = replication.map_or(fb::ReplicationState::default(), |all| *all.get(at));
        let mut replicas = Vec::with_capacity(state.replicas().into());
        for broker in take(&mut members, state.replicas()).ok_or_else(too_few)? {
            let generation = match &mut generations {
                None => ReplicaGeneration::new(0),
                Some(all) => all.next().ok_or_else(too_few)?,
            };
            replicas.push(Replica { broker, generation });
        }
        let mut set = |count: u16| take(&mut sets, count).ok_or_else(too_few);
        let leader = BrokerId::new(state.leader());
        partitions.push_back(Partition {
            leader: (!rest.leaderless()).then_some(leader),
            leader_epoch: LeaderEpoch::new(state.leader_epoch()),
            partition_epoch: PartitionEpoch::new(state.partition_epoch()),
            replicas: replicas.into(),
            in_sync: take(&mut members, state.in_sync()).ok_or_else(too_few)?.into(),
            eligible: set(rest.eligible())?.into(),
            adding: set(rest.adding())?.into(),
            removing: set(rest.removing())?.into(),
            transfer_to: rest.transferring().then_some(BrokerId::new(rest.transfer_to())),
            homes: take(&mut homes, rest.homes()).ok_or_else(too_few)?.into(),
        });
        let last: &Partition = &partitions[at];
        let known = |broker: &BrokerId| last.is_replica(*broker);
        let sets = [&last.in_sync, &last.eligible, &last.adding, &last.removing];
        if !sets.into_iter().flat_map(|set| set.iter()).all(known)
            || last.leader.is_some_and(|leader| !last.is_in_sync(leader))
        {
            return Err(inconsistent("a partition is led by, or counts on, a broker that does not keep it"));
        }
    }
    if members.next().is_some()
        || sets.next().is_some()
        || homes.next().is_some()
        || generations.is_some_and(|mut all| all.next().is_some())
    {
        return Err(inconsistent("it lists more than its partitions have"));
    }
    let overrides: std::collections::BTreeMap<_, _> = decode_configs(topic.configs()).into_iter().collect();
    if overrides.len() > SETTINGS.len() {
        return Err(inconsistent("more settings than there are"));
    }
    let config = TopicConfig::from_overrides(&overrides).map_err(|error| inconsistent(&error.to_string()))?;
    Ok(Topic {
        id: topic_id(topic.id()),
        name: topic.name().into(),
        version: topic.version(),
        partitions,
        overrides,
        config: Arc::new(config),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;
    use crate::metadata::command::{Command, Placement};
    use crate::routing;
    use proptest::prelude::*;

    /// Three brokers, two topics, one deletion.
    fn sample() -> Image {
        let mut image = Image::default();
        for broker in 1..=3 {
            let registration = BrokerRegistration {
                broker: BrokerId::new(broker),
                host: format!("node{broker}"),
                port: 9644,
                shards: 2,
                storage_uuid: u128::from(broker) << 100,
                rack: String::new(),
            };
            let register = Command::RegisterBroker { registration, suspects: vec![], starts_fenced: false };
            image = image.apply(&register).unwrap().0;
        }
        for (id, name) in [(5, "flights"), (3, "weather"), (9, "gone")] {
            let start = routing::start_of(TopicId::new(id)) % 3;
            let at = |turn: u64| BrokerId::new(((start + turn) % 3) as u32 + 1);
            let brokers = (0..4).flat_map(|partition| [at(partition), at(partition + 1)]).collect();
            let create = Command::CreateTopic {
                id: TopicId::new(id),
                name: name.into(),
                placement: Placement { replication_factor: 2, brokers },
                configs: vec![("retention.ms".into(), "3600000".into())],
            };
            image = image.apply(&create).unwrap().0;
        }
        image.apply(&Command::DeleteTopic { id: TopicId::new(9) }).unwrap().0
    }

    #[test]
    fn an_image_survives_its_bytes() {
        for image in [Image::default(), sample()] {
            let bytes = encode(&image);
            assert_eq!(decode(&bytes), Ok(image.clone()));
            assert_eq!(encode(&decode(&bytes).unwrap()), bytes, "equal images have equal bytes");
        }
    }

    #[test]
    fn the_format_does_not_change_unnoticed() {
        let bytes = encode(&sample());
        assert_eq!((bytes.len(), fnv1a(&bytes)), (824, 2_975_342_930_066_407_025));
    }

    /// A checksum that needs no dependency.
    fn fnv1a(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn what_is_not_an_image() {
        let command = Command::DeleteTopic { id: TopicId::new(1) }.encode();
        let rows: [(&[u8], &str); 3] = [
            (b"", "not a RLI1 buffer"),
            (&command, "not a RLI1 buffer"),
            (b"\xff\xff\xff\x7fRLI1", "not a valid"),
        ];
        for (bytes, expect) in rows {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(expect), "{bytes:02x?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode(&sample());
            let cut = cut.index(bytes.len());
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = decode(&bytes);
            let _ = decode(&bytes[..cut]);
        }
    }
}
