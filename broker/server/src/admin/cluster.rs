//! Requests about the cluster: who is in it, who keeps and leads what, and changes of that.
//!
//! Answered by every broker. What is described is its image; changes are commands, made durable by the metadata like all
//! others. What they lead to (replicas that fill up, leaders that hand over) is the controller's and the leaders'
//! business, and goes on after the answer. Absent on purpose: choosing brokers. Whoever moves partitions says where to.

use super::metadata::NO_BROKER;
use super::{Reply, strings, submit};
use crate::metadata::{MetadataError, Quorum};
use crate::shard::Shard;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use logic::ids::{BrokerId, PartitionIndex, TopicPartition};
use logic::limits::{
    OFFSETS_TOPIC_REPLICAS_MAX, PARTITIONS_PER_TOPIC_MAX, REPLICAS_PER_PARTITION_MAX, TOPICS_PER_REQUEST_MAX,
};
use logic::metadata::{Broker, Command, Image, Partition, Reassignment, Topic};
use schema::error_code::ErrorCode;
use schema::wire;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::rc::Rc;

/// Moves in one request.
const MOVES_MAX: usize = 10_000;

/// A request, copied out of its frame.
pub enum Request {
    /// Everything, or the topics of these names.
    Describe(Option<Vec<String>>),
    /// Other replicas: topic, partition, brokers.
    Reassign(Vec<(String, u32, Vec<u32>)>),
    /// A broker gives its leaderships away, or takes part again.
    Drain(u32, bool),
    /// A broker goes for good.
    Remove(u32),
    /// What each broker sends at most to replicas that catch up, bytes per second.
    LimitCatchUp(Option<NonZeroU64>),
    /// Preferred leaders, or, uncleanly, any: partitions by topic, of which none means all.
    Elect(Option<Vec<(String, Vec<u32>)>>, bool),
}

impl Request {
    /// Whether it asks, and changes nothing.
    pub(super) fn describes(&self) -> bool {
        matches!(self, Self::Describe(_))
    }

    pub(super) fn parse(request: &wire::Request<'_>) -> Option<Self> {
        use wire::RequestApi as Api;
        Some(match request.api_type() {
            Api::DescribeClusterRequest => {
                let topics = request.api_as_describe_cluster_request()?.topics();
                Self::Describe(topics.map(|topics| strings(Some(topics))))
            }
            Api::ReassignPartitionsRequest => {
                let moves = request.api_as_reassign_partitions_request()?.moves();
                let moves = moves.iter().flatten().take(MOVES_MAX + 1).map(|one| {
                    let replicas = one.replicas().into_iter().flatten().take(REPLICAS_PER_PARTITION_MAX + 1);
                    (one.topic().unwrap_or("").to_owned(), one.partition(), replicas.collect())
                });
                Self::Reassign(moves.collect())
            }
            Api::DrainBrokerRequest => {
                let drain = request.api_as_drain_broker_request()?;
                Self::Drain(drain.broker(), drain.draining())
            }
            Api::LimitCatchUpRequest => {
                let limit = request.api_as_limit_catch_up_request()?;
                Self::LimitCatchUp(NonZeroU64::new(limit.bytes_per_second()))
            }
            Api::RemoveBrokerRequest => Self::Remove(request.api_as_remove_broker_request()?.broker()),
            Api::ElectLeadersRequest => {
                let elect = request.api_as_elect_leaders_request()?;
                let topics = elect.topics().map(|topics| {
                    let topics = topics.iter().take(TOPICS_PER_REQUEST_MAX).map(|topic| {
                        let partitions = topic.partitions();
                        let partitions = partitions.iter().flatten().take(PARTITIONS_PER_TOPIC_MAX as usize);
                        (topic.name().unwrap_or("").to_owned(), partitions.collect())
                    });
                    topics.collect()
                });
                Self::Elect(topics, elect.unclean())
            }
            _ => return None,
        })
    }
}

/// A partition whose leader was to be elected, and who was.
struct Elected {
    topic: String,
    partition: u32,
    result: Result<BrokerId, ErrorCode>,
}

impl Reply {
    pub(super) async fn cluster(&self, shard: &Rc<Shard>, request: Request) {
        match request {
            Request::Describe(names) => self.describe_cluster(shard, names),
            Request::Reassign(moves) => self.reassign(shard, moves).await,
            Request::Drain(broker, draining) => {
                let command = Command::DrainBroker { broker: BrokerId::new(broker), draining };
                if self.change_broker(shard, broker, command).await {
                    self.send(wire::ResponseApi::DrainBrokerResponse, |builder| {
                        let args = wire::DrainBrokerResponseArgs {};
                        wire::DrainBrokerResponse::create(builder, &args).as_union_value()
                    });
                }
            }
            Request::Remove(broker) => {
                let command = Command::RemoveBroker { broker: BrokerId::new(broker) };
                if self.change_broker(shard, broker, command).await {
                    self.send(wire::ResponseApi::RemoveBrokerResponse, |builder| {
                        let args = wire::RemoveBrokerResponseArgs {};
                        wire::RemoveBrokerResponse::create(builder, &args).as_union_value()
                    });
                }
            }
            Request::LimitCatchUp(bytes_per_second) => {
                let is_so = shard.metadata.image().catch_up_bytes_per_second() == bytes_per_second;
                if !is_so && let Err(error) = submit(shard, Command::LimitCatchUp { bytes_per_second }).await
                {
                    return self.refuse(error.error_code(), &error.to_string());
                }
                self.send(wire::ResponseApi::LimitCatchUpResponse, |builder| {
                    let args = wire::LimitCatchUpResponseArgs {};
                    wire::LimitCatchUpResponse::create(builder, &args).as_union_value()
                });
            }
            Request::Elect(topics, unclean) => self.elect(shard, topics, unclean).await,
        }
    }

    /// Changes a broker that is registered; a change that was made already is done. `false`: refused.
    async fn change_broker(&self, shard: &Rc<Shard>, broker: u32, command: Command) -> bool {
        let image = shard.metadata.image();
        let Some(known) = image.broker(BrokerId::new(broker)) else {
            let text = format!("there is no broker {broker}; see ringlog cluster status");
            self.refuse(ErrorCode::UnknownBroker, &text);
            return false;
        };
        match command {
            Command::DrainBroker { draining, .. } if known.draining == draining => return true,
            Command::RemoveBroker { broker } if !known.fenced || image.replicas_of(broker) > 0 => {
                let text = match known.fenced {
                    true => format!(
                        "broker {broker} has {} replicas; move them: ringlog cluster drain {broker}",
                        image.replicas_of(broker)
                    ),
                    false => format!("broker {broker} is alive; stop it first"),
                };
                self.refuse(ErrorCode::BrokerInUse, &text);
                return false;
            }
            _ => {}
        }
        match submit(shard, command).await {
            Ok(_) => true,
            Err(error) => {
                self.refuse(error.error_code(), &error.to_string());
                false
            }
        }
    }

    async fn reassign(&self, shard: &Rc<Shard>, moves: Vec<(String, u32, Vec<u32>)>) {
        if moves.len() > MOVES_MAX {
            let text = format!("more than {MOVES_MAX} moves in one request");
            return self.refuse(ErrorCode::InvalidRequest, &text);
        }
        let image = shard.metadata.image();
        let mut partitions = Vec::with_capacity(moves.len());
        for (name, partition, replicas) in moves {
            let found = image.topic_by_name(&name).map(|topic| {
                let partition = PartitionIndex::new(partition);
                let entry = topic.partitions.get(partition.get() as usize);
                (TopicPartition { topic: topic.id, partition }, topic, entry)
            });
            let (id, topic, entry) = match found {
                None => {
                    let text = format!("there is no topic {name:?}; see ringlog topic list");
                    return self.refuse(ErrorCode::UnknownTopic, &text);
                }
                Some((_, _, None)) => {
                    let text = format!("topic {name} has no partition {partition}");
                    return self.refuse(ErrorCode::UnknownPartition, &text);
                }
                Some((id, topic, Some(entry))) => (id, topic, entry),
            };
            if replicas.is_empty() && !entry.is_reassigned() {
                let text = format!("topic {name} partition {partition} is not being moved");
                return self.refuse(ErrorCode::NoReassignment, &text);
            }
            if let Some(copies) = copies_kept(&image, topic).filter(|copies| replicas.len() < *copies)
                && !replicas.is_empty()
            {
                let text = format!(
                    "topic {name} partition {partition}: the brokers' own topic keeps {copies} copies as long as there are brokers \
                     for them; it would get them back"
                );
                return self.refuse(ErrorCode::InvalidReplicaAssignment, &text);
            }
            if let Some(unknown) = replicas.iter().find(|id| image.broker(BrokerId::new(**id)).is_none()) {
                let text = format!("topic {name} partition {partition}: there is no broker {unknown}");
                return self.refuse(ErrorCode::InvalidReplicaAssignment, &text);
            }
            let replicas = replicas.into_iter().map(BrokerId::new).collect();
            partitions.push(Reassignment { partition: id, replicas });
        }
        if !partitions.is_empty()
            && let Err(error) = submit(shard, Command::ReassignPartitions { partitions }).await
        {
            let code = match error {
                MetadataError::Rejected(_) => ErrorCode::InvalidReplicaAssignment,
                _ => error.error_code(),
            };
            return self.refuse(code, &error.in_words(&image));
        }
        self.send(wire::ResponseApi::ReassignPartitionsResponse, |builder| {
            let args = wire::ReassignPartitionsResponseArgs {};
            wire::ReassignPartitionsResponse::create(builder, &args).as_union_value()
        });
    }

    async fn elect(&self, shard: &Rc<Shard>, topics: Option<Vec<(String, Vec<u32>)>>, unclean: bool) {
        let image = shard.metadata.image();
        let all_named = |topics: &Vec<(String, Vec<u32>)>| topics.iter().all(|(_, named)| !named.is_empty());
        if unclean && !topics.as_ref().is_some_and(all_named) {
            let text = "an unclean election may lose records: name its topics and partitions";
            return self.refuse(ErrorCode::InvalidRequest, text);
        }
        let mut elections = Vec::new();
        let mut outcomes = Vec::new();
        let named = topics.is_some();
        let topics = topics.unwrap_or_else(|| {
            image.topics_by_name().map(|topic| (topic.name.to_string(), Vec::new())).collect()
        });
        for (name, partitions) in topics {
            let Some(topic) = image.topic_by_name(&name) else {
                let text = format!("there is no topic {name:?}; see ringlog topic list");
                return self.refuse(ErrorCode::UnknownTopic, &text);
            };
            let all = partitions.is_empty();
            let count = topic.partitions.len() as u32;
            let partitions = if all { (0..count).collect() } else { partitions };
            for partition in partitions {
                let Some(entry) = topic.partitions.get(partition as usize) else {
                    let text = format!("topic {name} has no partition {partition}");
                    return self.refuse(ErrorCode::UnknownPartition, &text);
                };
                let result = candidate(&image, entry, unclean);
                let id = TopicPartition { topic: topic.id, partition: PartitionIndex::new(partition) };
                elections.extend(result.ok().map(|broker| (id, broker)));
                if result != Err(ErrorCode::ElectionNotNeeded) || (named && !all) {
                    outcomes.push(Elected { topic: name.clone(), partition, result });
                }
            }
        }
        if !elections.is_empty() {
            let command = Command::ElectLeaders { elections: elections.clone(), unclean };
            if unclean {
                tracing::warn!("unclean election asked for by a client, records may be lost: {elections:?}");
            }
            if let Err(error) = submit(shard, command).await {
                return self.refuse(error.error_code(), &error.in_words(&image));
            }
        }
        self.send(wire::ResponseApi::ElectLeadersResponse, |builder| {
            let outcomes: Vec<_> = outcomes
                .iter()
                .map(|elected| {
                    let args = wire::PartitionOutcomeArgs {
                        topic: Some(builder.create_string(&elected.topic)),
                        partition: elected.partition,
                        error: elected.result.err().map_or(0, ErrorCode::to_wire),
                        leader: elected.result.map_or(NO_BROKER, BrokerId::get),
                    };
                    wire::PartitionOutcome::create(builder, &args)
                })
                .collect();
            let outcomes = Some(builder.create_vector(&outcomes));
            let args = wire::ElectLeadersResponseArgs { outcomes };
            wire::ElectLeadersResponse::create(builder, &args).as_union_value()
        });
    }

    fn describe_cluster(&self, shard: &Shard, names: Option<Vec<String>>) {
        let image = shard.metadata.image();
        let names =
            names.unwrap_or_else(|| image.topics_by_name().map(|topic| topic.name.to_string()).collect());
        let loads = Loads::of(&image);
        self.send(wire::ResponseApi::DescribeClusterResponse, |builder| {
            let brokers: Vec<_> =
                image.brokers().map(|broker| encode_broker(builder, &image, broker, &loads)).collect();
            let topics: Vec<_> = names
                .iter()
                .map(|name| {
                    encode_replicas(builder, &image, name, image.topic_by_name(name).map(|topic| &**topic))
                })
                .collect();
            let brokers = Some(builder.create_vector(&brokers));
            let topics = Some(builder.create_vector(&topics));
            let cluster = image.cluster_id().map(wire::TopicId::from_u128);
            let quorum = shard.metadata.quorum();
            let members = encode_quorum(&quorum, shard.identity.broker);
            let args = wire::DescribeClusterResponseArgs {
                cluster: cluster.as_ref(),
                version: image.version(),
                answered_by: shard.identity.broker.get(),
                controller: quorum.leader.map_or(-1, |leader| leader.get().into()),
                term: quorum.term,
                committed: quorum.committed,
                quorum: Some(builder.create_vector(&members)),
                brokers,
                topics,
                catch_up_bytes_per_second: image.catch_up_bytes_per_second().map_or(0, NonZeroU64::get),
                behind: !shard.metadata.is_current(shard.identity.broker),
            };
            wire::DescribeClusterResponse::create(builder, &args).as_union_value()
        });
    }
}

/// Who keeps the metadata; nobody where this broker is alone.
fn encode_quorum(quorum: &Quorum, me: BrokerId) -> Vec<wire::QuorumMember> {
    let members = quorum.voters.iter().map(|broker| (*broker, true));
    let members = members.chain(quorum.observers.iter().map(|broker| (*broker, false)));
    let member = |(broker, voter): (BrokerId, bool)| {
        let own = (broker == me).then_some((quorum.log_end, Some(0)));
        let heard = quorum.heard.get(&broker).map(|at| at.elapsed().as_millis() as u64);
        let known = own.or_else(|| Some((*quorum.matched.get(&broker)?, heard)));
        let (matched, silent_ms) = known.unwrap_or_default();
        let leads = quorum.leader == Some(broker);
        // Who has never been heard has been silent for ever.
        let silent_ms = silent_ms.unwrap_or(u64::MAX);
        wire::QuorumMember::new(broker.get(), voter, leads, known.is_some(), 0, matched, silent_ms)
    };
    let members: Vec<_> = members.map(member).collect();
    if members.len() < 2 { Vec::new() } else { members }
}

/// How many copies the controller sees to that a topic has; `None` = as many as people ask for.
fn copies_kept(image: &Image, topic: &Topic) -> Option<usize> {
    topic.is_internal().then(|| image.replicas_at_most(OFFSETS_TOPIC_REPLICAS_MAX) as usize)
}

/// Who is to lead a partition.
fn candidate(image: &Image, entry: &Partition, unclean: bool) -> Result<BrokerId, ErrorCode> {
    let serves = |broker: &BrokerId| image.broker(*broker).is_some_and(|known| !known.fenced);
    if unclean {
        return match entry.leader {
            Some(_) => Err(ErrorCode::ElectionNotNeeded),
            // Who had everything once has the most, also if its end is in doubt.
            None => (entry.eligible.iter().copied().find(serves))
                .or_else(|| entry.brokers().find(serves))
                .ok_or(ErrorCode::NoEligibleLeader),
        };
    }
    let preferred = entry.preferred_leader().ok_or(ErrorCode::NoEligibleLeader)?;
    if entry.leader == Some(preferred) {
        return Err(ErrorCode::ElectionNotNeeded);
    }
    let able = entry.leader.is_some() && entry.is_in_sync(preferred) && serves(&preferred);
    able.then_some(preferred).ok_or(ErrorCode::NoEligibleLeader)
}

/// How many partitions each broker leads.
struct Loads {
    leaders: BTreeMap<BrokerId, u32>,
}

impl Loads {
    fn of(image: &Image) -> Self {
        let mut leaders = BTreeMap::new();
        let led = image.topics().flat_map(|topic| topic.partitions.iter()).filter_map(|entry| entry.leader);
        led.for_each(|leader| *leaders.entry(leader).or_default() += 1);
        Self { leaders }
    }
}

fn encode_broker<'f>(
    builder: &mut FlatBufferBuilder<'f>,
    image: &Image,
    broker: &Broker,
    loads: &Loads,
) -> WIPOffset<wire::BrokerDescription<'f>> {
    let registration = &broker.registration;
    let rack = Some(&registration.rack).filter(|rack| !rack.is_empty());
    let args = wire::BrokerDescriptionArgs {
        id: registration.broker.get(),
        host: Some(builder.create_string(&registration.host)),
        port: registration.port,
        shards: u32::from(registration.shards),
        rack: rack.map(|rack| builder.create_string(rack)),
        epoch: broker.epoch.get(),
        fenced: broker.fenced,
        draining: broker.draining,
        replicas: u32::try_from(image.replicas_of(registration.broker)).unwrap_or(u32::MAX),
        leaders: loads.leaders.get(&registration.broker).copied().unwrap_or(0),
        suspects: broker.suspects.len() as u32,
    };
    wire::BrokerDescription::create(builder, &args)
}

fn encode_replicas<'f>(
    builder: &mut FlatBufferBuilder<'f>,
    image: &Image,
    name: &str,
    topic: Option<&Topic>,
) -> WIPOffset<wire::TopicReplicas<'f>> {
    let mut partitions = Vec::new();
    let mut replicas = Vec::new();
    for (topic, (index, entry)) in topic.iter().flat_map(|topic| {
        let entries = topic.partitions.iter().enumerate();
        entries.map(move |entry| (topic, entry))
    }) {
        let id = TopicPartition { topic: topic.id, partition: PartitionIndex::new(index as u32) };
        partitions.push(wire::PartitionState::new(
            id.partition.get(),
            entry.leader.map_or(NO_BROKER, BrokerId::get),
            entry.leader_epoch.get(),
            entry.partition_epoch.get(),
            entry.replicas.len() as u32,
            entry.min_in_sync(&topic.config) as u32,
        ));
        replicas.extend(entry.replicas.iter().map(|replica| {
            let home = image.home_of(replica.broker, id, Some(entry));
            wire::ReplicaState::new(
                replica.broker.get(),
                replica.generation.get(),
                entry.is_in_sync(replica.broker),
                entry.eligible.contains(&replica.broker),
                entry.adding.contains(&replica.broker),
                entry.removing.contains(&replica.broker),
                home.map_or(0, |shard| u32::from(shard.get())),
            )
        }));
    }
    let partitions = builder.create_vector(&partitions);
    let replicas = builder.create_vector(&replicas);
    let name = builder.create_string(name);
    let id = topic.map(|topic| wire::TopicId::from_u128(topic.id.get()));
    let args = wire::TopicReplicasArgs {
        name: Some(name),
        id: id.as_ref(),
        error: topic.map_or(ErrorCode::UnknownTopic.to_wire(), |_| 0),
        internal: topic.is_some_and(Topic::is_internal),
        partitions: Some(partitions),
        replicas: Some(replicas),
    };
    wire::TopicReplicas::create(builder, &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::images::{TOPIC, applied, fenced, three_brokers};

    #[test]
    fn the_groups_offsets_keep_their_copies() {
        let offsets = three_brokers(schema::OFFSETS_TOPIC, 3, &[1, 2, 3]);
        let kept = |image: &Image| copies_kept(image, image.topic(TOPIC).unwrap());
        assert_eq!(kept(&offsets), Some(3));
        // A broker that goes takes its copy along.
        let drain = Command::DrainBroker { broker: BrokerId::new(3), draining: true };
        assert_eq!(kept(&applied(&offsets, &drain)), Some(2));
        assert_eq!(kept(&three_brokers("t", 3, &[1, 2, 3])), None);
    }

    #[test]
    fn a_refusal_names_the_topic() {
        let image = three_brokers("t", 1, &[1, 2]);
        let partition =
            |partition| TopicPartition { topic: TOPIC, partition: PartitionIndex::new(partition) };
        let brokers = |brokers: &[u32]| brokers.iter().copied().map(BrokerId::new).collect();
        let rows: [(u32, &[u32], &str); 3] = [
            (1, &[3, 3], "topic t partition 1: one broker is there twice"),
            (0, &[7], "topic t partition 0: broker 7 is not registered"),
            (5, &[1], "there is no topic t partition 5"),
        ];
        for (number, replicas, expect) in rows {
            let reassignment = Reassignment { partition: partition(number), replicas: brokers(replicas) };
            let command = Command::ReassignPartitions { partitions: vec![reassignment] };
            let refused = MetadataError::Rejected(image.apply(&command).unwrap_err());
            assert_eq!(refused.in_words(&image), expect);
        }
    }

    #[test]
    fn by_force_who_had_everything_goes_first() {
        let image = fenced(&three_brokers("t", 2, &[1, 2]), 3);
        let led = image.topic_by_name("t").unwrap().partitions[0].clone();
        assert_eq!(candidate(&image, &led, true), Err(ErrorCode::ElectionNotNeeded));
        let (all, none): (&[u32], &[u32]) = (&[1, 2, 3], &[]);
        let rows = [
            (all, none, Ok(1)),
            (all, &[2], Ok(2)),
            (&[3, 2, 1], none, Ok(2)),
            (all, &[3], Ok(1)),
            (&[3], &[3], Err(ErrorCode::NoEligibleLeader)),
        ];
        for (replicas, eligible, expect) in rows {
            let replica =
                |broker: &u32| logic::metadata::Replica { broker: BrokerId::new(*broker), ..led.replicas[0] };
            let lost = Partition {
                leader: None,
                replicas: replicas.iter().map(replica).collect(),
                eligible: eligible.iter().copied().map(BrokerId::new).collect(),
                ..led.clone()
            };
            assert_eq!(
                candidate(&image, &lost, true),
                expect.map(BrokerId::new),
                "{replicas:?} {eligible:?}"
            );
        }
    }
}
