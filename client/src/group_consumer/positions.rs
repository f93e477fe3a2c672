//! Where a member begins to read the partitions that it was given: at the committed offset, or as the reset policy says.
//!
//! Owner: a task of the group consumer, ended when the partitions change. Invariant: the committed offset is asked for
//! after the partition was given, and by a member in its epoch: nobody can commit behind its back any more.

use super::membership::{Key, Membership};
use super::{GroupError, GroupPartition};
use crate::admin::list_offsets;
use crate::client::ClientError;
use crate::cluster::Topic;
use crate::consumer::AutoOffsetReset;
use crate::coordinator::{is_fenced, may_pass, wait_of};
use crate::group_request::{GroupTopic, OffsetFetch};
use crate::reply::Reply;
use crate::request::{OffsetSpec, Request};
use schema::error_code::ErrorCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a topic that is not to be found is looked for.
const ABSENT_RETRY: Duration = Duration::from_millis(200);

/// Where one partition begins.
pub(crate) struct Position {
    pub key: Key,
    pub topic: Arc<Topic>,
    pub committed: Option<u64>,
    /// `None`: nothing is committed, and the policy is not to guess.
    pub offset: Option<u64>,
}

/// The positions of `wanted`, of those partitions whose topics are there.
pub(crate) async fn find(
    membership: Arc<Membership>,
    generation: u64,
    wanted: BTreeMap<Key, Arc<str>>,
) -> Result<Vec<Position>, GroupError> {
    let committed = committed(&membership, generation, &wanted).await?;
    let cluster = &membership.coordinator.cluster;
    loop {
        let mut positions = Vec::new();
        for run in wanted.iter().collect::<Vec<_>>().chunk_by(|one, next| one.0.0 == next.0.0) {
            let ((id, _), name) = run[0];
            let topic = match cluster.topic(name).await {
                Ok(topic)
                    if topic.id == *id
                        && run.iter().all(|((_, p), _)| (*p as usize) < topic.places.len()) =>
                {
                    Ok(topic)
                }
                Ok(topic) => cluster.refresh(name, topic.learnt_at).await,
                Err(error) => Err(error),
            };
            let topic = match topic {
                Ok(topic) if topic.id == *id => topic,
                // Deleted, perhaps made again: the coordinator will say so.
                Ok(_) | Err(ClientError::UnknownTopic { .. }) => continue,
                Err(error) if may_pass(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            let missing: Vec<u32> =
                run.iter().filter(|(key, _)| !committed.contains_key(key)).map(|((_, p), _)| *p).collect();
            let spec = match membership.config.consumer.auto_offset_reset {
                AutoOffsetReset::Earliest => Some(OffsetSpec::Earliest),
                AutoOffsetReset::Latest => Some(OffsetSpec::Latest),
                AutoOffsetReset::Error => None,
            };
            let mut starts = BTreeMap::new();
            if let Some(spec) = spec.filter(|_| !missing.is_empty()) {
                let places: Vec<_> = missing.iter().map(|partition| (*partition, spec)).collect();
                match list_offsets(cluster, name, &places).await {
                    Ok(listed) => {
                        starts.extend(listed.into_iter().map(|listed| (listed.partition, listed.offset)))
                    }
                    Err(error) if may_pass(&error) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            for (key, _) in run.iter().filter(|((_, p), _)| (*p as usize) < topic.places.len()) {
                let committed = committed.get(*key).copied();
                let offset = committed.or_else(|| starts.get(&key.1).copied());
                positions.push(Position { key: **key, topic: topic.clone(), committed, offset });
            }
        }
        if !positions.is_empty() {
            return Ok(positions);
        }
        tokio::time::sleep(ABSENT_RETRY).await;
    }
}

/// Committed offsets, asked for in the member's name for as long as it takes.
async fn committed(
    membership: &Membership,
    generation: u64,
    wanted: &BTreeMap<Key, Arc<str>>,
) -> Result<BTreeMap<Key, u64>, GroupError> {
    let mut topics: Vec<GroupTopic> = Vec::new();
    for (id, partition) in wanted.keys() {
        match topics.last_mut() {
            Some(topic) if topic.id == *id => topic.partitions.push(*partition),
            _ => topics.push(GroupTopic { id: *id, name: String::new(), partitions: vec![*partition] }),
        }
    }
    let config = &membership.coordinator.cluster.config;
    let mut attempt = 0;
    loop {
        let epoch = membership.epoch_of(generation);
        let Some(epoch) = epoch else {
            // Whoever polls sees that too, and ends this task.
            std::future::pending::<()>().await;
            return Err(GroupError::PartitionsLost);
        };
        let fetch = OffsetFetch {
            group: membership.config.group.clone(),
            member_id: membership.member_id.clone(),
            member_epoch: epoch,
            topics: Some(topics.clone()),
        };
        let request = Request::OffsetFetch(Box::new(fetch));
        let error = match membership.coordinator.try_once(request, config.request_timeout).await {
            Ok(Reply::CommittedOffsets(offsets)) => {
                let known =
                    offsets.into_iter().filter_map(|one| Some(((one.topic, one.partition), one.offset?)));
                return Ok(known.collect());
            }
            Ok(_) => return Err(ClientError::UnexpectedReply { request: "OffsetFetch" }.into()),
            Err(error) => error,
        };
        attempt += 1;
        // The epoch has risen meanwhile, or the member is out: its heartbeats find out which.
        let is_stale = is_fenced(&error) || error.code() == Some(ErrorCode::StaleMemberEpoch);
        if is_stale {
            membership.wake();
        } else if !may_pass(&error) {
            return Err(error.into());
        }
        tokio::time::sleep(wait_of(&error).max(config.backoff(attempt))).await;
    }
}

/// The offsets that a group has committed for some partitions, asked by nobody in particular.
pub(crate) async fn committed_by_name(
    membership: &Membership,
    partition: &GroupPartition,
) -> Result<Option<u64>, GroupError> {
    let cluster = &membership.coordinator.cluster;
    let topic = cluster.topic(&partition.topic).await?;
    let fetch = OffsetFetch {
        group: membership.config.group.clone(),
        member_id: String::new(),
        member_epoch: crate::group_request::NO_MEMBER_EPOCH,
        topics: Some(vec![GroupTopic {
            id: topic.id,
            name: String::new(),
            partitions: vec![partition.partition],
        }]),
    };
    let deadline = Instant::now() + cluster.config.request_timeout;
    match membership.coordinator.ask(Request::OffsetFetch(Box::new(fetch)), deadline).await? {
        Reply::CommittedOffsets(offsets) => Ok(offsets.first().and_then(|one| one.offset)),
        _ => Err(ClientError::UnexpectedReply { request: "OffsetFetch" }.into()),
    }
}
