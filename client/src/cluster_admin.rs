//! Brokers, replicas and leaders: the part of [`Admin`] about the cluster.
//!
//! Each call is one request to whichever broker answers. Changes are committed when a call returns; what follows from
//! them goes on, and [`Admin::describe_cluster`] shows how far it is. Where partitions should go is worked out by
//! [`crate::plan`]. Absent on purpose: waiting for a move to end.

use crate::admin::Admin;
use crate::client::ClientError;
use crate::cluster_request::{ClusterDescription, ElectionOutcome, Reassignment};
use crate::reply::{BrokerError, BrokerStatus, PartitionLog, Reply};
use crate::request::Request;
use std::num::NonZeroU64;

/// Moves sent in one request.
const MOVES_PER_REQUEST: usize = 1_000;

impl Admin {
    /// Brokers, the metadata's quorum, and the replicas of `topics` (`None` = all). A broker that does not hear from the
    /// others is asked only if there is no other.
    pub async fn describe_cluster(
        &self,
        topics: Option<&[String]>,
    ) -> Result<ClusterDescription, ClientError> {
        let request = Request::DescribeCluster { topics: topics.map(<[String]>::to_vec) };
        let mut others = self.cluster.brokers().len();
        loop {
            let description = match self.cluster.ask(request.clone()).await? {
                Reply::Cluster(description) => *description,
                _ => return Err(ClientError::UnexpectedReply { request: "DescribeCluster" }),
            };
            if !description.behind || others <= 1 {
                return Ok(description);
            }
            others -= 1;
            self.cluster.turn_away().await;
        }
    }

    /// What one broker of the cluster is and does, as [`Admin::status`].
    ///
    /// # Errors
    /// It is not known, or does not answer.
    pub async fn status_of(&self, broker: u32) -> Result<BrokerStatus, ClientError> {
        self.status_of_with(broker, Request::Status { topics: false, groups: false, partitions: false }).await
    }

    /// The same, as [`Admin::status_in_full`]: topics as far as they are on that broker, and the groups that it
    /// coordinates, with their lag wherever it is.
    ///
    /// # Errors
    /// It is not known, or does not answer.
    pub async fn full_status_of(&self, broker: u32) -> Result<BrokerStatus, ClientError> {
        self.status_of_with(broker, Request::Status { topics: true, groups: true, partitions: false }).await
    }

    /// What one broker stores of a topic, whether it leads or follows; [`Admin::describe_logs`] asks the leaders.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`. The broker is not known, or does not answer.
    pub async fn describe_logs_of(&self, broker: u32, topic: &str) -> Result<Vec<PartitionLog>, ClientError> {
        let unexpected = || ClientError::UnexpectedReply { request: "DescribeLogs" };
        let request = Request::DescribeLogs { topic: topic.to_owned() };
        let Reply::Logs(described) = self.ask_broker(broker, request).await? else {
            return Err(unexpected());
        };
        let described = described.into_iter().next().ok_or_else(unexpected)?;
        match described.error {
            Some(code) => Err(BrokerError::of(code).into()),
            None => Ok(described.partitions),
        }
    }

    /// Gives partitions other replicas, or, where none are named, gives up the move that is under way.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, `INVALID_REPLICA_ASSIGNMENT`, `NO_REASSIGNMENT`. Of up to 1 000 moves all are
    /// made or none; of more, those before the refused thousand are made.
    pub async fn reassign_partitions(&self, moves: &[Reassignment]) -> Result<(), ClientError> {
        for moves in moves.chunks(MOVES_PER_REQUEST) {
            self.cluster.ask(Request::ReassignPartitions { moves: moves.to_vec() }).await?;
        }
        Ok(())
    }

    /// Has a broker give its leaderships away and get no new replicas, or take part again. Its replicas stay.
    ///
    /// # Errors
    /// `UNKNOWN_BROKER`.
    pub async fn drain_broker(&self, broker: u32, draining: bool) -> Result<(), ClientError> {
        self.cluster.ask(Request::DrainBroker { broker, draining }).await.map(drop)
    }

    /// Sets what each broker sends at most to replicas that catch up, moved ones and those that come back, all together;
    /// `None` = as much as there is room for. In force at once, and until it is set anew.
    pub async fn limit_catch_up(&self, bytes_per_second: Option<NonZeroU64>) -> Result<(), ClientError> {
        self.cluster.ask(Request::LimitCatchUp { bytes_per_second }).await.map(drop)
    }

    /// Forgets a broker that is stopped and has no replicas.
    ///
    /// # Errors
    /// `UNKNOWN_BROKER`, `BROKER_IN_USE`.
    pub async fn remove_broker(&self, broker: u32) -> Result<(), ClientError> {
        self.cluster.ask(Request::RemoveBroker { broker }).await.map(drop)
    }

    /// Has preferred leaders take over where they are in sync; of the topics and partitions named (none of a topic's =
    /// all), or everywhere. With `unclean` a partition without a leader gets one that may lack acknowledged records,
    /// which are then lost; those must be named.
    pub async fn elect_leaders(
        &self,
        topics: Option<&[(String, Vec<u32>)]>,
        unclean: bool,
    ) -> Result<Vec<ElectionOutcome>, ClientError> {
        let request = Request::ElectLeaders { topics: topics.map(<[_]>::to_vec), unclean };
        match self.cluster.ask(request).await? {
            Reply::Elected(outcomes) => Ok(outcomes),
            _ => Err(ClientError::UnexpectedReply { request: "ElectLeaders" }),
        }
    }
}
