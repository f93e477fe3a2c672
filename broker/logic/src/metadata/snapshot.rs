//! A whole image as bytes: what the metadata store keeps so that its log can be cut, and what a broker
//! that is far behind will be sent.
//!
//! Bytes: `schema/definitions/metadata.fbs`, root `Image`, file identifier `RLI1`. What can be derived
//! (names, loads, typed settings) is not stored. Partitions are structs with one flat list of their
//! replicas per topic, because a table per partition costs a hundred times as much to verify.

use super::command::{
    BrokerRegistration, DecodeError, decode_aligned, decode_configs, encode_configs, topic_id,
};
use super::image::{BROKERS_MAX, Broker, Image, Partition, Parts, Topic};
use super::topic_config::{SETTINGS, TopicConfig};
use crate::ids::{BrokerId, LeaderEpoch};
use crate::limits::TOPICS_MAX;
use flatbuffers::{FlatBufferBuilder, VerifierOptions};
use schema::metadata as fb;
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
            let both = |partition: &Partition| [partition.replicas.clone(), partition.in_sync.clone()];
            let members: Vec<u32> = topic
                .partitions
                .iter()
                .flat_map(both)
                .flat_map(|set| set.iter().map(|broker| broker.get()).collect::<Vec<_>>())
                .collect();
            let members = b.create_vector(&members);
            let id = fb::Id::from_u128(topic.id.get());
            let args = fb::TopicArgs {
                id: Some(&id),
                name: Some(name),
                version: topic.version,
                partitions: Some(partitions),
                members: Some(members),
                configs: Some(configs),
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
            let storage_uuid = fb::Id::from_u128(registration.storage_uuid);
            let args = fb::BrokerArgs {
                broker: registration.broker.get(),
                host: Some(host),
                port: registration.port,
                shards: registration.shards,
                storage_uuid: Some(&storage_uuid),
                version: broker.version,
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
    let args = fb::ImageArgs {
        version: image.version(),
        topics: Some(topics),
        brokers: Some(brokers),
        deletions: Some(deletions),
        forgotten_version: image.forgotten_version(),
        next_producer_id: image.next_producer_id(),
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
        partition.leader.get(),
        partition.leader_epoch.get(),
        partition.partition_epoch,
        partition.replicas.len() as u16,
        partition.in_sync.len() as u16,
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
    let brokers = image.brokers().into_iter().flatten().map(|broker| Broker {
        registration: BrokerRegistration {
            broker: BrokerId::new(broker.broker()),
            host: broker.host().to_owned(),
            port: broker.port(),
            shards: broker.shards(),
            storage_uuid: broker.storage_uuid().as_u128(),
        },
        version: broker.version(),
    });
    let brokers: Vec<_> = brokers.collect();
    if let Some(broker) = brokers.iter().find(|broker| broker.registration.shards == 0) {
        let id = broker.registration.broker;
        return Err(DecodeError::Inconsistent(format!("broker {id} has no shards")));
    }
    let deletions = image.deletions().into_iter().flatten();
    Image::from_parts(Parts {
        version: image.version(),
        topics: topics.collect::<Result<_, _>>()?,
        brokers,
        deletions: deletions.map(|deletion| (deletion.version(), topic_id(deletion.id()))).collect(),
        forgotten_version: image.forgotten_version(),
        next_producer_id: image.next_producer_id(),
    })
}

fn decode_topic(topic: &fb::Topic<'_>) -> Result<Topic, DecodeError> {
    let inconsistent = |what: &str| DecodeError::Inconsistent(format!("topic {}: {what}", topic.name()));
    let mut members = topic.members().iter().map(BrokerId::new);
    let mut partitions = Vec::with_capacity(topic.partitions().len());
    for state in topic.partitions() {
        let mut take = |count: u16| -> Arc<[BrokerId]> { members.by_ref().take(count.into()).collect() };
        let (replicas, in_sync) = (take(state.replicas()), take(state.in_sync()));
        if replicas.len() != usize::from(state.replicas()) || in_sync.len() != usize::from(state.in_sync()) {
            return Err(inconsistent("its partitions have more replicas than it lists"));
        }
        partitions.push(Partition {
            leader: BrokerId::new(state.leader()),
            leader_epoch: LeaderEpoch::new(state.leader_epoch()),
            partition_epoch: state.partition_epoch(),
            in_sync: if in_sync == replicas { replicas.clone() } else { in_sync },
            replicas,
        });
    }
    if members.next().is_some() {
        return Err(inconsistent("it lists more replicas than its partitions have"));
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
        partitions: partitions.into(),
        overrides,
        config: Arc::new(config),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;
    use crate::metadata::command::Command;
    use crate::metadata::image::NewTopic;
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
            };
            image = image.apply(&Command::RegisterBroker(registration)).unwrap().0;
        }
        for (id, name) in [(5, "flights"), (3, "weather"), (9, "gone")] {
            let new = NewTopic {
                id: TopicId::new(id),
                name: name.into(),
                partitions: 4,
                replication_factor: 2,
                configs: vec![("retention.ms".into(), "1h".into())],
            };
            image = image.apply(&image.create_topic(new).unwrap()).unwrap().0;
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
