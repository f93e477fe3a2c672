//! Which core of a broker serves a partition: what it carries, and how it is moved.
//!
//! Owner: [`Admin`] makes the requests, the connection decodes the answers. Plain values; bytes and FlatBuffers do not leave
//! this file. Which partitions should move is worked out by [`crate::core_plan`]. Absent on purpose: retries. A move that
//! was lost on the way may have been made; to ask again is right.

use crate::admin::Admin;
use crate::client::ClientError;
use crate::reply::{BrokerError, BrokerStatus, PartitionTraffic, Reply, ReplyError, code};
use crate::request::Request;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use schema::error_code::ErrorCode;
use schema::wire;
use std::time::Duration;

/// A partition that is to be served by another core of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeMove {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The core, from 0.
    pub shard: u32,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeMoved {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The core that had it, and for how long the partition took nothing; the core that was asked for and zero if it had
    /// it already. Or why it stays where it is.
    pub result: Result<(u32, Duration), BrokerError>,
}

impl Admin {
    /// Has a broker serve its replica of a partition on another core: the core that had it, and for how long the partition
    /// took nothing. Producers and consumers go on by themselves.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_REPLICA_ASSIGNMENT` (the broker has no replica), `INVALID_REQUEST` (it
    /// has no such core, or the replica is being repaired); the broker is not known, or does not answer.
    pub async fn move_home(&self, broker: u32, to: &HomeMove) -> Result<(u32, Duration), ClientError> {
        let request = Request::MoveHomes { moves: vec![to.clone()] };
        match self.ask_broker(broker, request).await? {
            Reply::HomesMoved(moved) => match moved.into_iter().next() {
                Some(moved) => Ok(moved.result?),
                None => Err(ClientError::UnexpectedReply { request: "MoveHomes" }),
            },
            _ => Err(ClientError::UnexpectedReply { request: "MoveHomes" }),
        }
    }

    /// What went in and out of each partition of a broker since it took it over, with the core that has it, by topic.
    ///
    /// # Errors
    /// The broker is not known, or does not answer.
    pub async fn traffic_of(&self, broker: u32) -> Result<Vec<(String, PartitionTraffic)>, ClientError> {
        let request = Request::Status { topics: true, groups: false, partitions: true };
        let status = self.status_of_with(broker, request).await?;
        let topics = status.topics.into_iter();
        let partitions =
            topics.flat_map(|topic| topic.traffic.into_iter().map(move |one| (topic.name.clone(), one)));
        Ok(partitions.collect())
    }

    pub(crate) async fn status_of_with(
        &self,
        broker: u32,
        request: Request,
    ) -> Result<BrokerStatus, ClientError> {
        match self.ask_broker(broker, request).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::UnexpectedReply { request: "Status" }),
        }
    }

    pub(crate) async fn ask_broker(&self, broker: u32, request: Request) -> Result<Reply, ClientError> {
        let known = self.cluster.brokers().get(&broker).cloned();
        let connection = match self.cluster.connection_to(broker).await {
            // It may have come, or moved, since the brokers were learnt.
            Err(error @ (ClientError::UnknownBroker { .. } | ClientError::Connection(_))) => {
                self.cluster.find().await?;
                if self.cluster.brokers().get(&broker) == known.as_ref() {
                    return Err(error);
                }
                self.cluster.connection_to(broker).await?
            }
            connection => connection?,
        };
        let response = connection.request(request, self.cluster.config.request_timeout).await?;
        Ok(response.into_result()?)
    }
}

pub(crate) fn encode(
    b: &mut FlatBufferBuilder<'static>,
    moves: &[HomeMove],
) -> (wire::RequestApi, WIPOffset<UnionWIPOffset>) {
    let moves: Vec<_> = moves
        .iter()
        .map(|one| {
            let topic = Some(b.create_string(&one.topic));
            let args = wire::HomeMoveArgs { topic, partition: one.partition, shard: one.shard };
            wire::HomeMove::create(b, &args)
        })
        .collect();
    let moves = Some(b.create_vector(&moves));
    let api = wire::MoveHomesRequest::create(b, &wire::MoveHomesRequestArgs { moves }).as_union_value();
    (wire::RequestApi::MoveHomesRequest, api)
}

pub(crate) fn moved(reply: &wire::MoveHomesResponse<'_>) -> Result<Vec<HomeMoved>, ReplyError> {
    let mut moved = Vec::new();
    for one in reply.moved().into_iter().flatten() {
        let refused = |code: ErrorCode| BrokerError {
            message: one.message().unwrap_or_default().into(),
            ..BrokerError::of(code)
        };
        moved.push(HomeMoved {
            topic: one.topic().unwrap_or_default().to_owned(),
            partition: one.partition(),
            result: match code(one.error())? {
                None => Ok((one.from(), Duration::from_micros(one.pause_us()))),
                Some(code) => Err(refused(code)),
            },
        });
    }
    Ok(moved)
}
