//! Metadata: which brokers and topics there are, and who leads which partition.
//!
//! Answered by every broker from its own image, also by one that lags behind; the version tells. One that has just
//! started waits for what it has missed ([`Shard::caught_up`]), and until then tells of brokers alone.

use super::Reply;
use crate::shard::Shard;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use logic::ids::{BrokerId, PartitionIndex, TopicPartition};
use logic::metadata::topic_config::CleanupPolicy;
use logic::metadata::{Image, Topic};
use schema::error_code::ErrorCode;
use schema::wire;
use std::sync::Arc;

/// Stands for a broker where there is none.
pub(super) const NO_BROKER: u32 = u32::MAX;

impl Reply {
    pub(super) fn metadata(&self, shard: &Shard, names: Option<Vec<String>>) {
        let image = shard.metadata.image();
        let topics: Vec<(String, Option<Arc<Topic>>)> = match names {
            Some(names) => names
                .into_iter()
                .map(|name| {
                    let found = image.topic_by_name(&name).cloned();
                    (name, found)
                })
                .collect(),
            None => {
                image.topics_by_name().map(|topic| (topic.name.to_string(), Some(topic.clone()))).collect()
            }
        };
        self.send(wire::ResponseApi::MetadataResponse, |builder| {
            let brokers: Vec<_> = image
                .brokers()
                .map(|broker| {
                    let registration = &broker.registration;
                    let host = builder.create_string(&registration.host);
                    let rack = Some(&registration.rack).filter(|rack| !rack.is_empty());
                    let rack = rack.map(|rack| builder.create_string(rack));
                    wire::BrokerEndpoint::create(
                        builder,
                        &wire::BrokerEndpointArgs {
                            id: registration.broker.get(),
                            host: Some(host),
                            port: registration.port,
                            shards: u32::from(registration.shards),
                            rack,
                            fenced: broker.fenced,
                        },
                    )
                })
                .collect();
            let topics: Vec<_> = topics
                .iter()
                .map(|(name, topic)| encode_topic(builder, &image, name, topic.as_deref()))
                .collect();
            let (brokers, topics) = (builder.create_vector(&brokers), builder.create_vector(&topics));
            let cluster = image.cluster_id().map(wire::TopicId::from_u128);
            let args = wire::MetadataResponseArgs {
                version: image.version(),
                brokers: Some(brokers),
                topics: Some(topics),
                cluster: cluster.as_ref(),
            };
            wire::MetadataResponse::create(builder, &args).as_union_value()
        });
    }
}

fn encode_topic<'f>(
    builder: &mut FlatBufferBuilder<'f>,
    image: &Image,
    name: &str,
    topic: Option<&Topic>,
) -> WIPOffset<wire::TopicMetadata<'f>> {
    let places: Vec<wire::PartitionPlace> = topic
        .iter()
        .flat_map(|topic| {
            topic.partitions.iter().enumerate().map(|(index, partition)| (topic.id, index, partition))
        })
        .map(|(topic, index, partition)| {
            let index = PartitionIndex::new(index as u32);
            let id = TopicPartition { topic, partition: index };
            let home = partition.leader.and_then(|leader| image.home_of(leader, id, Some(partition)));
            wire::PartitionPlace::new(
                index.get(),
                partition.leader.map_or(NO_BROKER, BrokerId::get),
                home.map_or(0, |shard| u32::from(shard.get())),
                partition.leader_epoch.get(),
            )
        })
        .collect();
    let places = builder.create_vector(&places);
    let name = builder.create_string(name);
    wire::TopicMetadata::create(
        builder,
        &wire::TopicMetadataArgs {
            name: Some(name),
            id: topic.map(|topic| wire::TopicId::from_u128(topic.id.get())).as_ref(),
            error: topic.map_or(ErrorCode::UnknownTopic.to_wire(), |_| 0),
            partitions: Some(places),
            internal: topic.is_some_and(|topic| topic.is_internal()),
            compacted: topic.is_some_and(|topic| topic.config.cleanup_policy != CleanupPolicy::Delete),
        },
    )
}
