//! Commands as bytes: `schema/definitions/metadata.fbs`, root `Command`, file identifier `RLM1`.
//!
//! Decoding verifies and never panics; whether a command makes sense is
//! [`Image::apply`](super::Image::apply)'s business.

use super::command::{
    AlterPartition, BrokerRegistration, COMMAND_BYTES_MAX, Command, DecodeError, InSyncMember, Placement,
    Reassignment, Suspect,
};
use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionEpoch, PartitionIndex, ReplicaGeneration, ShardId,
    TopicId, TopicPartition,
};
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, VerifierOptions, WIPOffset};
use schema::metadata as fb;
use std::num::NonZeroU64;

impl Command {
    /// The bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::with_capacity(256);
        let b = &mut builder;
        let (kind_type, kind) = match self {
            Self::CreateTopic { id, name, placement, configs } => {
                let name = b.create_string(name);
                let placement = encode_placement(b, placement);
                let configs = encode_configs(b, configs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                let id = fb::Id::from_u128(id.get());
                let args = fb::CreateTopicArgs {
                    id: Some(&id),
                    name: Some(name),
                    placement: Some(placement),
                    configs: Some(configs),
                };
                (fb::CommandKind::CreateTopic, fb::CreateTopic::create(b, &args).as_union_value())
            }
            Self::DeleteTopic { id } => {
                let id = fb::Id::from_u128(id.get());
                let args = fb::DeleteTopicArgs { id: Some(&id) };
                (fb::CommandKind::DeleteTopic, fb::DeleteTopic::create(b, &args).as_union_value())
            }
            Self::AlterTopicConfigs { id, set, unset } => {
                let set = encode_configs(b, set.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                let unset: Vec<_> = unset.iter().map(|name| b.create_string(name)).collect();
                let unset = b.create_vector(&unset);
                let id = fb::Id::from_u128(id.get());
                let args = fb::AlterTopicConfigsArgs { id: Some(&id), set: Some(set), unset: Some(unset) };
                let table = fb::AlterTopicConfigs::create(b, &args);
                (fb::CommandKind::AlterTopicConfigs, table.as_union_value())
            }
            Self::CreatePartitions { id, count, placement } => {
                let placement = encode_placement(b, placement);
                let id = fb::Id::from_u128(id.get());
                let args =
                    fb::CreatePartitionsArgs { id: Some(&id), count: *count, placement: Some(placement) };
                (fb::CommandKind::CreatePartitions, fb::CreatePartitions::create(b, &args).as_union_value())
            }
            Self::RegisterBroker { registration, suspects, starts_fenced } => {
                let host = b.create_string(&registration.host);
                let rack = encode_rack(b, &registration.rack);
                let suspects = encode_suspects(b, suspects.iter());
                let storage_uuid = fb::Id::from_u128(registration.storage_uuid);
                let args = fb::RegisterBrokerArgs {
                    broker: registration.broker.get(),
                    host: Some(host),
                    port: registration.port,
                    shards: registration.shards,
                    storage_uuid: Some(&storage_uuid),
                    rack,
                    suspects,
                    starts_fenced: *starts_fenced,
                };
                (fb::CommandKind::RegisterBroker, fb::RegisterBroker::create(b, &args).as_union_value())
            }
            Self::AllocateProducerIds { broker, count } => {
                let args = fb::AllocateProducerIdsArgs { broker: broker.get(), count: *count };
                let table = fb::AllocateProducerIds::create(b, &args);
                (fb::CommandKind::AllocateProducerIds, table.as_union_value())
            }
            Self::InitializeCluster { id } => {
                let id = fb::Id::from_u128(*id);
                let table = fb::InitializeCluster::create(b, &fb::InitializeClusterArgs { id: Some(&id) });
                (fb::CommandKind::InitializeCluster, table.as_union_value())
            }
            Self::FenceBroker { broker, epoch } => {
                let args = fb::FenceBrokerArgs { broker: broker.get(), epoch: epoch.get() };
                (fb::CommandKind::FenceBroker, fb::FenceBroker::create(b, &args).as_union_value())
            }
            Self::UnfenceBroker { broker, epoch } => {
                let args = fb::UnfenceBrokerArgs { broker: broker.get(), epoch: epoch.get() };
                (fb::CommandKind::UnfenceBroker, fb::UnfenceBroker::create(b, &args).as_union_value())
            }
            Self::DrainBroker { broker, draining } => {
                let args = fb::DrainBrokerArgs { broker: broker.get(), draining: *draining };
                (fb::CommandKind::DrainBroker, fb::DrainBroker::create(b, &args).as_union_value())
            }
            Self::LimitCatchUp { bytes_per_second } => {
                let bytes_per_second = bytes_per_second.map_or(0, NonZeroU64::get);
                let args = fb::LimitCatchUpArgs { bytes_per_second };
                (fb::CommandKind::LimitCatchUp, fb::LimitCatchUp::create(b, &args).as_union_value())
            }
            Self::RemoveBroker { broker } => {
                let args = fb::RemoveBrokerArgs { broker: broker.get() };
                (fb::CommandKind::RemoveBroker, fb::RemoveBroker::create(b, &args).as_union_value())
            }
            Self::AlterPartition(alter) => {
                let member = |member: &InSyncMember| {
                    let InSyncMember { broker, epoch, generation } = *member;
                    fb::InSyncMember::new(broker.get(), generation.get(), epoch.get())
                };
                let in_sync: Vec<_> = alter.in_sync.iter().map(member).collect();
                let in_sync = b.create_vector(&in_sync);
                let topic = fb::Id::from_u128(alter.partition.topic.get());
                let args = fb::AlterPartitionArgs {
                    topic: Some(&topic),
                    partition: alter.partition.partition.get(),
                    sender: alter.sender.get(),
                    leader_epoch: alter.leader_epoch.get(),
                    partition_epoch: alter.partition_epoch.get(),
                    in_sync: Some(in_sync),
                    transfer_to: alter.transfer_to.map(BrokerId::get),
                };
                (fb::CommandKind::AlterPartition, fb::AlterPartition::create(b, &args).as_union_value())
            }
            Self::MarkClean { partition, generation, broker, broker_epoch, leader_epoch } => {
                let topic = fb::Id::from_u128(partition.topic.get());
                let args = fb::MarkCleanArgs {
                    topic: Some(&topic),
                    partition: partition.partition.get(),
                    generation: generation.get(),
                    broker: broker.get(),
                    broker_epoch: broker_epoch.get(),
                    leader_epoch: leader_epoch.get(),
                };
                (fb::CommandKind::MarkClean, fb::MarkClean::create(b, &args).as_union_value())
            }
            Self::ReassignPartitions { partitions } => {
                let brokers =
                    partitions.iter().flat_map(|one| one.replicas.iter().map(|broker| broker.get()));
                let brokers: Vec<u32> = brokers.collect();
                let brokers = b.create_vector(&brokers);
                let one = |one: &Reassignment| {
                    let topic = fb::Id::from_u128(one.partition.topic.get());
                    fb::Reassignment::new(&topic, one.partition.partition.get(), one.replicas.len() as u32)
                };
                let partitions: Vec<_> = partitions.iter().map(one).collect();
                let partitions = b.create_vector(&partitions);
                let args =
                    fb::ReassignPartitionsArgs { partitions: Some(partitions), brokers: Some(brokers) };
                let table = fb::ReassignPartitions::create(b, &args);
                (fb::CommandKind::ReassignPartitions, table.as_union_value())
            }
            Self::ElectLeaders { elections, unclean } => {
                let one = |(partition, leader): &(TopicPartition, BrokerId)| {
                    let topic = fb::Id::from_u128(partition.topic.get());
                    fb::Election::new(&topic, partition.partition.get(), leader.get())
                };
                let elections: Vec<_> = elections.iter().map(one).collect();
                let elections = b.create_vector(&elections);
                let args = fb::ElectLeadersArgs { elections: Some(elections), unclean: *unclean };
                (fb::CommandKind::ElectLeaders, fb::ElectLeaders::create(b, &args).as_union_value())
            }
            Self::MoveHome { partition, broker, shard } => {
                let topic = fb::Id::from_u128(partition.topic.get());
                let args = fb::MoveHomeArgs {
                    topic: Some(&topic),
                    partition: partition.partition.get(),
                    broker: broker.get(),
                    shard: shard.get(),
                };
                (fb::CommandKind::MoveHome, fb::MoveHome::create(b, &args).as_union_value())
            }
        };
        let root = fb::Command::create(b, &fb::CommandArgs { kind_type, kind: Some(kind) });
        b.finish(root, Some(fb::COMMAND_IDENTIFIER));
        b.finished_data().to_vec()
    }

    /// The command of `bytes`, which must be 8-aligned in memory (as [`decode_aligned`] makes them).
    fn decode_in_place(bytes: &[u8]) -> Result<Self, DecodeError> {
        let options = VerifierOptions {
            max_depth: 8,
            max_tables: 4096,
            max_apparent_size: 2 * COMMAND_BYTES_MAX,
            ignore_missing_null_terminator: false,
        };
        let command = fb::root_as_command_with_opts(&options, bytes)
            .map_err(|error| DecodeError::Invalid(error.to_string()))?;
        if let Some(table) = command.kind_as_create_topic() {
            Ok(Self::CreateTopic {
                id: topic_id(table.id()),
                name: table.name().to_owned(),
                placement: decode_placement(&table.placement()),
                configs: decode_configs(table.configs()),
            })
        } else if let Some(table) = command.kind_as_delete_topic() {
            Ok(Self::DeleteTopic { id: topic_id(table.id()) })
        } else if let Some(table) = command.kind_as_alter_topic_configs() {
            let unset = table.unset().map(|names| names.iter().map(str::to_owned).collect());
            Ok(Self::AlterTopicConfigs {
                id: topic_id(table.id()),
                set: decode_configs(table.set()),
                unset: unset.unwrap_or_default(),
            })
        } else if let Some(table) = command.kind_as_create_partitions() {
            Ok(Self::CreatePartitions {
                id: topic_id(table.id()),
                count: table.count(),
                placement: decode_placement(&table.placement()),
            })
        } else if let Some(table) = command.kind_as_register_broker() {
            let registration = BrokerRegistration {
                broker: BrokerId::new(table.broker()),
                host: table.host().to_owned(),
                port: table.port(),
                shards: table.shards(),
                storage_uuid: table.storage_uuid().as_u128(),
                rack: table.rack().unwrap_or_default().to_owned(),
            };
            let suspects = decode_suspects(table.suspects());
            Ok(Self::RegisterBroker { registration, suspects, starts_fenced: table.starts_fenced() })
        } else if let Some(table) = command.kind_as_allocate_producer_ids() {
            let (broker, count) = (BrokerId::new(table.broker()), table.count());
            Ok(Self::AllocateProducerIds { broker, count })
        } else if let Some(table) = command.kind_as_initialize_cluster() {
            Ok(Self::InitializeCluster { id: table.id().as_u128() })
        } else if let Some(table) = command.kind_as_fence_broker() {
            let (broker, epoch) = (BrokerId::new(table.broker()), BrokerEpoch::new(table.epoch()));
            Ok(Self::FenceBroker { broker, epoch })
        } else if let Some(table) = command.kind_as_unfence_broker() {
            let (broker, epoch) = (BrokerId::new(table.broker()), BrokerEpoch::new(table.epoch()));
            Ok(Self::UnfenceBroker { broker, epoch })
        } else if let Some(table) = command.kind_as_drain_broker() {
            Ok(Self::DrainBroker { broker: BrokerId::new(table.broker()), draining: table.draining() })
        } else if let Some(table) = command.kind_as_limit_catch_up() {
            Ok(Self::LimitCatchUp { bytes_per_second: NonZeroU64::new(table.bytes_per_second()) })
        } else if let Some(table) = command.kind_as_remove_broker() {
            Ok(Self::RemoveBroker { broker: BrokerId::new(table.broker()) })
        } else if let Some(table) = command.kind_as_alter_partition() {
            let member = |member: &fb::InSyncMember| InSyncMember {
                broker: BrokerId::new(member.broker()),
                epoch: BrokerEpoch::new(member.epoch()),
                generation: ReplicaGeneration::new(member.generation()),
            };
            Ok(Self::AlterPartition(AlterPartition {
                partition: topic_partition(table.topic(), table.partition()),
                sender: BrokerId::new(table.sender()),
                leader_epoch: LeaderEpoch::new(table.leader_epoch()),
                partition_epoch: PartitionEpoch::new(table.partition_epoch()),
                in_sync: table.in_sync().iter().map(member).collect(),
                transfer_to: table.transfer_to().map(BrokerId::new),
            }))
        } else if let Some(table) = command.kind_as_mark_clean() {
            Ok(Self::MarkClean {
                partition: topic_partition(table.topic(), table.partition()),
                generation: ReplicaGeneration::new(table.generation()),
                broker: BrokerId::new(table.broker()),
                broker_epoch: BrokerEpoch::new(table.broker_epoch()),
                leader_epoch: LeaderEpoch::new(table.leader_epoch()),
            })
        } else if let Some(table) = command.kind_as_reassign_partitions() {
            decode_reassignments(&table)
        } else if let Some(table) = command.kind_as_elect_leaders() {
            let one = |election: &fb::Election| {
                let partition = topic_partition(election.topic(), election.partition());
                (partition, BrokerId::new(election.leader()))
            };
            let elections = table.elections().iter().map(one).collect();
            Ok(Self::ElectLeaders { elections, unclean: table.unclean() })
        } else if let Some(table) = command.kind_as_move_home() {
            Ok(Self::MoveHome {
                partition: topic_partition(table.topic(), table.partition()),
                broker: BrokerId::new(table.broker()),
                shard: ShardId::new(table.shard()),
            })
        } else {
            Err(DecodeError::UnknownKind(command.kind_type().0))
        }
    }

    /// Verifies and decodes what [`Command::encode`] made.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_aligned(bytes, fb::COMMAND_IDENTIFIER, Self::decode_in_place)
    }
}

/// Checks the file identifier, then hands `bytes` on at the alignment that the verifier insists on.
pub(super) fn decode_aligned<T>(
    bytes: &[u8],
    identifier: &'static str,
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    if bytes.get(4..8) != Some(identifier.as_bytes()) {
        return Err(DecodeError::WrongIdentifier { expected: identifier });
    }
    decode(schema::frame::Aligned::default().align(bytes))
}

pub(super) fn topic_id(id: &fb::Id) -> TopicId {
    TopicId::new(id.as_u128())
}

fn topic_partition(topic: &fb::Id, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic_id(topic), partition: PartitionIndex::new(partition) }
}

fn decode_reassignments(table: &fb::ReassignPartitions<'_>) -> Result<Command, DecodeError> {
    let mut brokers = table.brokers().into_iter().flatten().map(BrokerId::new);
    let mut partitions = Vec::with_capacity(table.partitions().len());
    for one in table.partitions() {
        let replicas: Vec<_> = brokers.by_ref().take(one.replicas() as usize).collect();
        if replicas.len() != one.replicas() as usize {
            return Err(DecodeError::Inconsistent(
                "partitions have more replicas than are listed".to_owned(),
            ));
        }
        let partition = topic_partition(one.topic(), one.partition());
        partitions.push(Reassignment { partition, replicas });
    }
    if brokers.next().is_some() {
        return Err(DecodeError::Inconsistent("more replicas are listed than partitions have".to_owned()));
    }
    Ok(Command::ReassignPartitions { partitions })
}

/// Nothing for a broker that stands nowhere in particular.
pub(super) fn encode_rack<'b>(b: &mut FlatBufferBuilder<'b>, rack: &str) -> Option<WIPOffset<&'b str>> {
    (!rack.is_empty()).then(|| b.create_string(rack))
}

/// Nothing for a broker without suspects.
pub(super) fn encode_suspects<'b, 'a>(
    b: &mut FlatBufferBuilder<'b>,
    suspects: impl Iterator<Item = &'a Suspect>,
) -> Option<WIPOffset<Vector<'b, fb::Suspect>>> {
    let one = |suspect: &Suspect| {
        fb::Suspect::new(
            &fb::Id::from_u128(suspect.partition.topic.get()),
            suspect.partition.partition.get(),
            suspect.generation.get(),
            suspect.last_epoch.get(),
            suspect.end.get(),
        )
    };
    let suspects: Vec<_> = suspects.map(one).collect();
    (!suspects.is_empty()).then(|| b.create_vector(&suspects))
}

pub(super) fn decode_suspects(suspects: Option<Vector<'_, fb::Suspect>>) -> Vec<Suspect> {
    let one = |suspect: &fb::Suspect| Suspect {
        partition: topic_partition(suspect.topic(), suspect.partition()),
        generation: ReplicaGeneration::new(suspect.generation()),
        last_epoch: LeaderEpoch::new(suspect.last_epoch()),
        end: Offset::new(suspect.end()),
    };
    suspects.into_iter().flatten().map(one).collect()
}

pub(super) fn encode_configs<'b, 'a>(
    b: &mut FlatBufferBuilder<'b>,
    configs: impl Iterator<Item = (&'a str, &'a str)>,
) -> WIPOffset<Vector<'b, ForwardsUOffset<fb::ConfigEntry<'b>>>> {
    let entries: Vec<_> = configs
        .map(|(name, value)| {
            let name = b.create_string(name);
            let value = b.create_string(value);
            fb::ConfigEntry::create(b, &fb::ConfigEntryArgs { name: Some(name), value: Some(value) })
        })
        .collect();
    b.create_vector(&entries)
}

pub(super) fn decode_configs(
    configs: Option<Vector<'_, ForwardsUOffset<fb::ConfigEntry<'_>>>>,
) -> Vec<(String, String)> {
    let entries = configs.into_iter().flatten();
    entries.map(|entry| (entry.name().to_owned(), entry.value().to_owned())).collect()
}

fn encode_placement<'b>(
    b: &mut FlatBufferBuilder<'b>,
    placement: &Placement,
) -> WIPOffset<fb::Placement<'b>> {
    let brokers: Vec<u32> = placement.brokers.iter().map(|broker| broker.get()).collect();
    let brokers = b.create_vector(&brokers);
    let args = fb::PlacementArgs { replication_factor: placement.replication_factor, brokers: Some(brokers) };
    fb::Placement::create(b, &args)
}

fn decode_placement(placement: &fb::Placement<'_>) -> Placement {
    Placement {
        replication_factor: placement.replication_factor(),
        brokers: placement.brokers().iter().map(BrokerId::new).collect(),
    }
}

#[cfg(test)]
#[path = "command_bytes_tests.rs"]
mod tests;
