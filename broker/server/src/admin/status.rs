//! Status: what the broker is and does, gathered from all its shards.

use super::{Reply, ask, other_shards};
use crate::group;
use crate::group::lag::{self, Leader};
use crate::mailbox::{Message, ShardReport};
use crate::shard::Shard;
use crate::traffic::{self, Amounts, PartitionReport};
use futures_util::future::join_all;
use schema::wire;
use std::rc::Rc;

impl Reply {
    pub(super) async fn status(&self, shard: &Rc<Shard>, topics: bool, groups: bool, partitions: bool) {
        let all = if topics { partition_reports(shard).await } else { Vec::new() };
        let topics = match topics {
            true => traffic::by_topic(&all, &shard.metadata.image()),
            false => Vec::new(),
        };
        let groups = if groups { group_reports(shard).await } else { Vec::new() };
        let asked = other_shards(shard).map(|other| ask(shard, other, Message::Status));
        let mut reports: Vec<ShardReport> = join_all(asked).await.into_iter().flatten().collect();
        reports.push(shard.report());
        reports.sort_by_key(|report| report.shard);
        self.send(wire::ResponseApi::StatusResponse, |builder| {
            let shards: Vec<_> = reports
                .iter()
                .map(|report| {
                    let counters: Vec<_> = report
                        .counters
                        .iter()
                        .map(|(name, value)| {
                            let name = Some(builder.create_string(name));
                            wire::Counter::create(builder, &wire::CounterArgs { name, value: *value })
                        })
                        .collect();
                    let counters = Some(builder.create_vector(&counters));
                    let number = u32::from(report.shard.get());
                    wire::ShardStatus::create(builder, &wire::ShardStatusArgs { shard: number, counters })
                })
                .collect();
            let notices: Vec<_> = reports
                .iter()
                .flat_map(|report| &report.notices)
                .map(|notice| builder.create_string(notice))
                .collect();
            let topics: Vec<_> = topics
                .iter()
                .map(|topic| {
                    let args = wire::TopicStatusArgs {
                        name: Some(builder.create_string(&topic.name)),
                        partitions: topic.partitions,
                        produced_batches: topic.produced_batches,
                        produced_records: topic.produced_records,
                        produced_bytes: topic.produced_bytes,
                        fetched_bytes: topic.fetched_bytes,
                        segments: topic.segments,
                        log_bytes: topic.log_bytes,
                        traffic: partitions.then(|| {
                            let first = all.partition_point(|one| one.log.id.topic < topic.id);
                            let own = all[first..].iter().take_while(|one| one.log.id.topic == topic.id);
                            builder.create_vector(&own.map(encode_traffic).collect::<Vec<_>>())
                        }),
                    };
                    wire::TopicStatus::create(builder, &args)
                })
                .collect();
            let groups: Vec<_> = groups
                .iter()
                .map(|group| {
                    let args = wire::GroupStatusArgs {
                        group: Some(builder.create_string(&group.group)),
                        state: group::wire::state(group.state),
                        members: group.members,
                        partitions: group.partitions,
                        lag_known: group.records().is_some(),
                        lag_records: group.records().unwrap_or(0),
                        lag_ms: group.ms().unwrap_or(0),
                        lag_ms_unknown: group.ms().is_none(),
                        unknown_partitions: group.unknown_partitions() as u32,
                    };
                    wire::GroupStatus::create(builder, &args)
                })
                .collect();
            let topics = builder.create_vector(&topics);
            let groups = builder.create_vector(&groups);
            let shards = builder.create_vector(&shards);
            let notices = builder.create_vector(&notices);
            let version = builder.create_string(env!("CARGO_PKG_VERSION"));
            let directory = builder.create_string(&shard.store.storage.root().display().to_string());
            let args = wire::StatusResponseArgs {
                broker: shard.identity.broker.get(),
                version: Some(version),
                data_directory: Some(directory),
                uptime_ms: shard.now_ms(),
                shards: Some(shards),
                notices: Some(notices),
                topics: Some(topics),
                groups: Some(groups),
            };
            wire::StatusResponse::create(builder, &args).as_union_value()
        });
    }
}

fn encode_traffic(one: &PartitionReport) -> wire::PartitionTraffic {
    let Amounts { produced_batches, produced_records, produced_bytes, fetched_bytes, replicated_bytes } =
        one.amounts;
    wire::PartitionTraffic::new(
        one.log.id.partition.get(),
        u32::from(one.log.shard.get()),
        produced_batches,
        produced_records,
        produced_bytes,
        fetched_bytes,
        replicated_bytes,
    )
}

/// Every partition of this broker, in the order of their ids.
async fn partition_reports(shard: &Rc<Shard>) -> Vec<PartitionReport> {
    let others = other_shards(shard).map(|other| ask(shard, other, Message::Traffic));
    let (own, others) = futures_util::join!(traffic::gather(shard), join_all(others));
    let mut all: Vec<PartitionReport> =
        own.into_iter().chain(others.into_iter().flatten().flatten()).collect();
    all.sort_by_key(|one| one.log.id);
    all
}

/// Every group of this broker, and how far it is behind.
async fn group_reports(shard: &Rc<Shard>) -> Vec<lag::GroupReport> {
    let own = shard.identity.shard;
    let others = other_shards(shard).map(|other| ask(shard, other, Message::Progress));
    let (here, others) = futures_util::join!(lag::gather(shard), join_all(others));
    let all: Vec<lag::Gathered> = others.into_iter().flatten().chain([here]).collect();
    let groups: Vec<_> = all.into_iter().flat_map(|gathered| gathered.groups).collect();
    let image = shard.metadata.image();
    let questions = lag::questions(&groups, &image, shard.identity.here());
    let answers = questions.into_iter().map(|(leader, asked)| async move {
        match leader {
            Leader::Shard(home) if home == own => lag::answer(shard, asked).await,
            Leader::Shard(home) => {
                ask(shard, home, |reply| Message::Lag(asked, reply)).await.unwrap_or_default()
            }
            Leader::Broker(broker) => shard.metadata.measure_lag(broker, asked).await,
        }
    });
    let answers = join_all(answers).await.into_iter().flatten().collect();
    lag::reports(groups, answers, &image)
}
