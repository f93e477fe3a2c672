//! Requests about topics, offsets, logs and the broker itself.
//!
//! None is on the data path. Changes go to the metadata thread and are answered once they are durable
//! and published; questions about partitions of other shards go through their mailboxes.

mod cluster;
mod delete_records;
mod homes;
mod logs;
mod metadata;
mod placed;
mod status;

pub use delete_records::delete_records_here;
pub use logs::list_offsets_here;

use crate::connection::InFlight;
use crate::group;
use crate::mailbox::Message;
use crate::metadata::{MetadataError, new_topic_id};
use crate::shard::Shard;
use crate::stall;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use futures_channel::oneshot;
use futures_util::future::join_all;
use logic::ids::{ShardId, TopicId};
use logic::limits::TOPICS_PER_REQUEST_MAX;
use logic::metadata::{Command, CommandError, Image, NewTopic, Outcome, topic_config};
use schema::error_code::ErrorCode;
use schema::wire;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Partitions of a topic that is created without saying how many.
const PARTITIONS_DEFAULT: u32 = 1;

/// A request, copied out of its frame.
pub enum Request {
    /// Which topics there are, and where.
    Metadata(Option<Vec<String>>),
    /// Offsets by time.
    ListOffsets(Vec<(TopicId, Vec<(u32, i64)>)>),
    /// New topics.
    CreateTopics(Vec<AskedTopic>, bool),
    /// Topics that go.
    DeleteTopics(Vec<String>),
    /// Settings of a topic.
    AlterConfigs(String, Vec<(String, String)>, Vec<String>),
    /// What the settings are.
    DescribeConfigs(Vec<String>),
    /// More partitions.
    CreatePartitions(String, u32),
    /// Logs of topics.
    DescribeLogs(Vec<String>),
    /// The broker.
    Status { topics: bool, groups: bool, partitions: bool },
    /// A producer's id and epoch; what it has, or -1.
    InitProducer(i64, i16),
    /// Records that go: partition and the new start, by topic.
    DeleteRecords(Vec<(TopicId, Vec<(u32, u64)>)>),
    /// Partitions that are to be served by other cores.
    MoveHomes(Vec<homes::Asked>),
    /// Brokers, replicas, leaders.
    Cluster(cluster::Request),
}

/// A topic that is asked for.
pub struct AskedTopic {
    name: String,
    partitions: u32,
    replication_factor: u32,
    configs: Vec<(String, String)>,
}

type Strings<'a> = flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<&'a str>>;
type Configs<'a> = flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<wire::ConfigEntry<'a>>>;

/// The names of a list, each once: naming a topic again does not make the answer longer.
fn strings(list: Option<Strings<'_>>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let names = list.iter().flatten().take(TOPICS_PER_REQUEST_MAX);
    names.filter(|name| seen.insert(*name)).map(str::to_owned).collect()
}

fn configs(list: Option<Configs<'_>>) -> Vec<(String, String)> {
    list.iter()
        .flatten()
        .take(TOPICS_PER_REQUEST_MAX)
        .map(|entry| (entry.name().unwrap_or("").to_owned(), entry.value().unwrap_or("").to_owned()))
        .collect()
}

impl Request {
    /// Copies a request out of its frame; `None` if it is none of these.
    pub fn parse(request: &wire::Request<'_>) -> Option<Self> {
        use wire::RequestApi as Api;
        Some(match request.api_type() {
            Api::MetadataRequest => {
                let metadata = request.api_as_metadata_request()?;
                Self::Metadata(metadata.topics().map(|topics| strings(Some(topics))))
            }
            Api::ListOffsetsRequest => {
                let topics = request.api_as_list_offsets_request()?.topics();
                let topics = topics.iter().flatten().take(TOPICS_PER_REQUEST_MAX).filter_map(|topic| {
                    let id = TopicId::new(topic.id()?.as_u128());
                    let entries = topic.entries()?.iter().map(|e| (e.partition(), e.timestamp_ms()));
                    Some((id, entries.collect()))
                });
                Self::ListOffsets(topics.collect())
            }
            Api::CreateTopicsRequest => {
                let create = request.api_as_create_topics_request()?;
                let topics = create.topics();
                let topics = topics.iter().flatten().take(TOPICS_PER_REQUEST_MAX).map(|topic| AskedTopic {
                    name: topic.name().unwrap_or("").to_owned(),
                    partitions: topic.partitions(),
                    replication_factor: topic.replication_factor(),
                    configs: configs(topic.configs()),
                });
                Self::CreateTopics(topics.collect(), create.validate_only())
            }
            Api::DeleteTopicsRequest => {
                Self::DeleteTopics(strings(request.api_as_delete_topics_request()?.names()))
            }
            Api::AlterConfigsRequest => {
                let alter = request.api_as_alter_configs_request()?;
                let topic = alter.topic().unwrap_or("").to_owned();
                Self::AlterConfigs(topic, configs(alter.set()), strings(alter.unset()))
            }
            Api::DescribeConfigsRequest => {
                Self::DescribeConfigs(strings(request.api_as_describe_configs_request()?.topics()))
            }
            Api::CreatePartitionsRequest => {
                let create = request.api_as_create_partitions_request()?;
                Self::CreatePartitions(create.topic().unwrap_or("").to_owned(), create.count())
            }
            Api::DescribeLogsRequest => {
                Self::DescribeLogs(strings(request.api_as_describe_logs_request()?.topics()))
            }
            Api::StatusRequest => {
                let status = request.api_as_status_request()?;
                let (topics, groups, partitions) = (status.topics(), status.groups(), status.partitions());
                Self::Status { topics, groups, partitions }
            }
            Api::InitProducerRequest => {
                let init = request.api_as_init_producer_request()?;
                Self::InitProducer(init.producer_id(), init.producer_epoch())
            }
            Api::DeleteRecordsRequest => {
                let topics = request.api_as_delete_records_request()?.topics();
                let topics = topics.iter().flatten().take(TOPICS_PER_REQUEST_MAX).filter_map(|topic| {
                    let id = TopicId::new(topic.id()?.as_u128());
                    let entries = topic.entries()?.iter().map(|e| (e.partition(), e.before()));
                    Some((id, entries.collect()))
                });
                Self::DeleteRecords(topics.collect())
            }
            Api::MoveHomesRequest => Self::MoveHomes(homes::parse(&request.api_as_move_homes_request()?)),
            _ => return cluster::Request::parse(request).map(Self::Cluster),
        })
    }
}

impl Request {
    /// What the broker itself does it can always tell.
    fn needs_no_metadata(&self) -> bool {
        matches!(self, Self::Status { .. })
    }

    /// Whether an answer from before the broker was away is of use: where brokers are is a hint, and a description says how
    /// far it can be relied on.
    fn bears_old_metadata(&self) -> bool {
        match self {
            Self::Metadata(Some(names)) => names.is_empty(),
            Self::Cluster(request) => request.describes(),
            _ => false,
        }
    }
}

/// Handles a request as a task of its own.
pub fn handle(shard: &Rc<Shard>, id: u64, request: Request, in_flight: InFlight) {
    let shard = shard.clone();
    stall::spawn("an administrative request", async move {
        let reply = Reply { id, in_flight };
        if !request.needs_no_metadata() {
            shard.caught_up().await;
            if !shard.is_registered() && !request.bears_old_metadata() {
                let text = "this broker has just started and does not know yet what was decided without it: a majority of \
                            the metadata's voters must run and reach it";
                return reply.refuse(ErrorCode::MetadataUnavailable, text);
            }
        }
        match request {
            Request::Metadata(names) => {
                // Whoever names it looks for a coordinator. Not made: the answer says that it is not there.
                if names.iter().flatten().any(|name| *name == schema::OFFSETS_TOPIC) {
                    let _ = group::ensure_topic(&shard).await;
                }
                reply.metadata(&shard, names);
            }
            Request::ListOffsets(topics) => reply.list_offsets(&shard, topics).await,
            Request::CreateTopics(topics, validate_only) => {
                reply.create_topics(&shard, topics, validate_only).await;
            }
            Request::DeleteTopics(names) => reply.delete_topics(&shard, names).await,
            Request::AlterConfigs(topic, set, unset) => {
                let alter = |_: &Image, id| {
                    Ok(Command::AlterTopicConfigs { id, set: set.clone(), unset: unset.clone() })
                };
                let outcome = change(&shard, &topic, alter).await;
                reply.one_outcome(outcome, wire::ResponseApi::AlterConfigsResponse);
            }
            Request::DescribeConfigs(names) => reply.describe_configs(&shard, names),
            Request::CreatePartitions(topic, count) => {
                let outcome = change(&shard, &topic, |image, id| image.create_partitions(id, count)).await;
                reply.one_outcome(outcome, wire::ResponseApi::CreatePartitionsResponse);
            }
            Request::DescribeLogs(names) => reply.describe_logs(&shard, names).await,
            Request::Status { topics, groups, partitions } => {
                reply.status(&shard, topics, groups, partitions).await;
            }
            Request::InitProducer(id, epoch) => reply.init_producer(&shard, id, epoch).await,
            Request::DeleteRecords(topics) => reply.delete_records(&shard, topics).await,
            Request::MoveHomes(moves) => reply.move_homes(&shard, moves).await,
            Request::Cluster(request) => reply.cluster(&shard, request).await,
        }
    })
    .detach();
}

/// What a change of one topic came to.
struct TopicOutcome {
    name: String,
    id: TopicId,
    failed: Option<(ErrorCode, String)>,
}

impl TopicOutcome {
    fn new(name: &str, result: Result<TopicId, MetadataError>) -> Self {
        match result {
            Ok(id) => Self { name: name.to_owned(), id, failed: None },
            Err(error) => Self {
                name: name.to_owned(),
                id: TopicId::default(),
                failed: Some((error.error_code(), error.to_string())),
            },
        }
    }

    fn unknown(name: &str) -> Self {
        let text = format!("there is no topic {name:?}; see ringlog topic list");
        Self { name: name.to_owned(), id: TopicId::default(), failed: Some((ErrorCode::UnknownTopic, text)) }
    }

    fn internal(name: &str) -> Self {
        let text = format!("{name} is the broker's own: it can be read, not written, changed or deleted");
        Self { name: name.to_owned(), id: TopicId::default(), failed: Some((ErrorCode::InternalTopic, text)) }
    }

    fn encode<'f>(&self, builder: &mut FlatBufferBuilder<'f>) -> WIPOffset<wire::TopicOutcome<'f>> {
        let name = builder.create_string(&self.name);
        let message = self.failed.as_ref().map(|(_, text)| builder.create_string(text));
        wire::TopicOutcome::create(
            builder,
            &wire::TopicOutcomeArgs {
                name: Some(name),
                id: Some(&wire::TopicId::from_u128(self.id.get())),
                error: self.failed.as_ref().map_or(0, |(code, _)| code.to_wire()),
                message,
            },
        )
    }
}

/// Changes one topic by the command that `make` makes.
async fn change(
    shard: &Rc<Shard>,
    name: &str,
    make: impl Fn(&Image, TopicId) -> Result<Command, CommandError>,
) -> TopicOutcome {
    let image = shard.metadata.image();
    let Some(topic) = image.topic_by_name(name) else { return TopicOutcome::unknown(name) };
    if topic.is_internal() {
        return TopicOutcome::internal(name);
    }
    let result = submit_placed(shard, |image| make(image, topic.id)).await.map(|_| topic.id);
    TopicOutcome::new(name, result)
}

/// Submits what `make` makes of the metadata, which may place partitions on brokers that serve.
async fn submit_placed(
    shard: &Rc<Shard>,
    make: impl Fn(&Image) -> Result<Command, CommandError>,
) -> Result<Outcome, MetadataError> {
    placed::submit(|| shard.metadata.image(), async |command| submit(shard, command).await, make).await
}

/// Changes the metadata, and waits until every shard acts by it: whoever is told of a new topic can use it
/// at once.
pub async fn submit(shard: &Rc<Shard>, command: Command) -> Result<Outcome, MetadataError> {
    let outcome = shard.metadata.submit(command).await?;
    let version = shard.metadata.image().version();
    let others = other_shards(shard).map(|other| ask(shard, other, |reply| Message::Settle(version, reply)));
    join_all(others).await;
    shard.settled(version).await;
    Ok(outcome)
}

/// All shards of this broker but this one.
pub fn other_shards(shard: &Shard) -> impl Iterator<Item = ShardId> {
    let own = shard.identity.shard;
    (0..shard.identity.shards).map(ShardId::new).filter(move |other| *other != own)
}

struct Reply {
    id: u64,
    in_flight: InFlight,
}

impl Reply {
    fn send(
        &self,
        kind: wire::ResponseApi,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<UnionWIPOffset>,
    ) {
        self.in_flight.connection().reply(Vec::new(), |builder| {
            let api = build(builder);
            wire::Response::create(
                builder,
                &wire::ResponseArgs { id: self.id, api_type: kind, api: Some(api), ..Default::default() },
            )
        });
    }

    fn refuse(&self, code: ErrorCode, text: &str) {
        self.in_flight.connection().reply_error(self.id, code, text, 0);
    }

    fn one_outcome(&self, outcome: TopicOutcome, kind: wire::ResponseApi) {
        self.send(kind, |builder| {
            let outcome = Some(outcome.encode(builder));
            if kind == wire::ResponseApi::AlterConfigsResponse {
                let args = wire::AlterConfigsResponseArgs { outcome };
                return wire::AlterConfigsResponse::create(builder, &args).as_union_value();
            }
            let args = wire::CreatePartitionsResponseArgs { outcome };
            wire::CreatePartitionsResponse::create(builder, &args).as_union_value()
        });
    }

    /// A new id with epoch 0, or the next epoch of one that was given out.
    async fn init_producer(&self, shard: &Shard, id: i64, epoch: i16) {
        let refuse = |code, text: &str| self.refuse(code, text);
        let (id, epoch) = match (id, epoch) {
            (-1, -1) | (0.., i16::MAX) => {
                match shard.producer_ids.next(&shard.metadata, shard.identity.broker).await {
                    Ok(id) => (id, 0),
                    Err(error) => return refuse(error.error_code(), &error.to_string()),
                }
            }
            (0.., 0..) if id < shard.metadata.image().next_producer_id() => (id, epoch + 1),
            (0.., 0..) => return refuse(ErrorCode::UnknownProducerId, "this id has never been given out"),
            _ => {
                return refuse(
                    ErrorCode::InvalidRequest,
                    "producer id and epoch are both -1 or both not negative",
                );
            }
        };
        self.send(wire::ResponseApi::InitProducerResponse, |builder| {
            let args = wire::InitProducerResponseArgs { producer_id: id, producer_epoch: epoch };
            wire::InitProducerResponse::create(builder, &args).as_union_value()
        });
    }

    async fn create_topics(&self, shard: &Rc<Shard>, topics: Vec<AskedTopic>, validate_only: bool) {
        let mut outcomes = Vec::with_capacity(topics.len());
        for asked in topics {
            if asked.name == schema::OFFSETS_TOPIC {
                outcomes.push(TopicOutcome::internal(&asked.name));
                continue;
            }
            let new = NewTopic {
                id: new_topic_id(),
                name: asked.name.clone(),
                partitions: if asked.partitions == 0 { PARTITIONS_DEFAULT } else { asked.partitions },
                replication_factor: asked.replication_factor,
                configs: asked.configs,
            };
            let make = |image: &Image| {
                let replication_factor = match new.replication_factor {
                    0 => image.replicas_by_default(shard.identity.replication_factor),
                    asked => asked,
                };
                image.create_topic(NewTopic { replication_factor, ..new.clone() })
            };
            let result = match validate_only {
                true => {
                    let image = shard.metadata.image();
                    let applied = make(&image).and_then(|command| image.apply(&command));
                    applied.map(|_| TopicId::default()).map_err(MetadataError::from)
                }
                false => submit_placed(shard, make).await.map(|outcome| match outcome {
                    Outcome::TopicCreated { id, .. } => id,
                    _ => TopicId::default(),
                }),
            };
            outcomes.push(TopicOutcome::new(&asked.name, result));
        }
        self.send(wire::ResponseApi::CreateTopicsResponse, |builder| {
            let outcomes: Vec<_> = outcomes.iter().map(|outcome| outcome.encode(builder)).collect();
            let outcomes = Some(builder.create_vector(&outcomes));
            wire::CreateTopicsResponse::create(builder, &wire::CreateTopicsResponseArgs { outcomes })
                .as_union_value()
        });
    }

    async fn delete_topics(&self, shard: &Rc<Shard>, names: Vec<String>) {
        let mut outcomes = Vec::with_capacity(names.len());
        for name in &names {
            outcomes.push(change(shard, name, |_, id| Ok(Command::DeleteTopic { id })).await);
        }
        self.send(wire::ResponseApi::DeleteTopicsResponse, |builder| {
            let outcomes: Vec<_> = outcomes.iter().map(|outcome| outcome.encode(builder)).collect();
            let outcomes = Some(builder.create_vector(&outcomes));
            wire::DeleteTopicsResponse::create(builder, &wire::DeleteTopicsResponseArgs { outcomes })
                .as_union_value()
        });
    }

    fn describe_configs(&self, shard: &Shard, names: Vec<String>) {
        let image = shard.metadata.image();
        self.send(wire::ResponseApi::DescribeConfigsResponse, |builder| {
            let topics: Vec<_> = names
                .iter()
                .map(|name| {
                    let topic = image.topic_by_name(name);
                    let described: Vec<topic_config::Described> =
                        topic.map(|topic| topic.config.describe(&topic.overrides)).unwrap_or_default();
                    let values: Vec<_> = described
                        .iter()
                        .map(|one| {
                            let name = builder.create_string(one.name);
                            let value = builder.create_string(&one.value);
                            let documentation = builder.create_string(&one.documentation);
                            wire::ConfigValue::create(
                                builder,
                                &wire::ConfigValueArgs {
                                    name: Some(name),
                                    value: Some(value),
                                    is_default: one.is_default,
                                    documentation: Some(documentation),
                                },
                            )
                        })
                        .collect();
                    let values = builder.create_vector(&values);
                    let name = builder.create_string(name);
                    wire::TopicConfig::create(
                        builder,
                        &wire::TopicConfigArgs {
                            name: Some(name),
                            id: topic.map(|topic| wire::TopicId::from_u128(topic.id.get())).as_ref(),
                            error: topic.map_or(ErrorCode::UnknownTopic.to_wire(), |_| 0),
                            values: Some(values),
                        },
                    )
                })
                .collect();
            let topics = Some(builder.create_vector(&topics));
            wire::DescribeConfigsResponse::create(builder, &wire::DescribeConfigsResponseArgs { topics })
                .as_union_value()
        });
    }
}

/// Asks another shard and waits for its answer; `None` if it is stopping.
pub async fn ask<T>(
    shard: &Shard,
    to: ShardId,
    message: impl FnOnce(oneshot::Sender<T>) -> Message,
) -> Option<T> {
    shard.mailboxes.ask(to, message).await
}
