//! The entry to a cluster, and why something asked of it came to nothing.
//!
//! Owner: the application; every producer, consumer and admin of one [`Client`] shares one [`Cluster`]. Lifecycle: made
//! by [`Client::connect`], which needs one broker to answer; the cluster lives as long as any of them.

use crate::admin::Admin;
use crate::cluster::{Cluster, Home};
use crate::config::{ClientConfig, ConfigError};
use crate::connection::{Connection, ConnectionError};
use crate::consumer::{Consumer, ConsumerConfig};
use crate::group_consumer::{GroupConfig, GroupConsumer, GroupError};
use crate::producer::{Producer, ProducerConfig};
use crate::reply::BrokerError;
use schema::error_code::ErrorCode;
use std::sync::Arc;

/// Why something asked of the cluster came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection, or it broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The broker refused.
    #[error("{0}")]
    Broker(#[from] BrokerError),
    /// No topic of this name.
    #[error("there is no topic '{name}'; create it: ringlog topic create {name}")]
    UnknownTopic {
        /// The name.
        name: Arc<str>,
    },
    /// The topic has fewer partitions.
    #[error(
        "topic '{name}' has {partitions} partitions, there is no partition {partition}; see: ringlog topic describe {name}"
    )]
    UnknownPartition {
        /// The topic.
        name: Arc<str>,
        /// The partition asked for.
        partition: u32,
        /// How many there are, from 0.
        partitions: u32,
    },
    /// The partition has no leader just now.
    #[error(
        "partition {partition} of topic '{name}' has no leader; if it lasts, see: ringlog cluster status"
    )]
    NoLeader {
        /// The topic.
        name: Arc<str>,
        /// The partition.
        partition: u32,
    },
    /// A partition is led by a broker that no metadata tells of.
    #[error("broker {broker} is not known yet; try again shortly")]
    UnknownBroker {
        /// The broker's number.
        broker: u32,
    },
    /// A reply without what was asked for.
    #[error("the broker answered {request} with something else; upgrade the older of client and broker")]
    UnexpectedReply {
        /// The request.
        request: &'static str,
    },
}

impl ClientError {
    /// The broker's error code, if a broker refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Broker(error) => Some(error.code),
            ClientError::UnknownTopic { .. } => Some(ErrorCode::UnknownTopic),
            ClientError::UnknownPartition { .. } => Some(ErrorCode::UnknownPartition),
            ClientError::NoLeader { .. } => Some(ErrorCode::LeaderNotAvailable),
            _ => None,
        }
    }
}

/// The entry to a cluster. Clones are cheap and share connections and metadata.
#[derive(Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Connects to the first of the configured brokers that answers and learns the cluster from it. A broker that
    /// does not answer at once is not waited for: the next is tried beside it.
    ///
    /// # Errors
    /// [`ConnectionError::Unreachable`] of the first broker tried when none answers. One that takes connections is tried for
    /// [`ClientConfig::request_timeout`].
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let cluster = Cluster::new(config);
        cluster.find().await?;
        Ok(Self { cluster: Arc::new(cluster) })
    }

    /// Topics, settings, offsets and status.
    pub fn admin(&self) -> Admin {
        Admin::new(self.cluster.clone())
    }

    /// A new producer with its own buffers.
    pub fn producer(&self, config: ProducerConfig) -> Producer {
        Producer::new(self.cluster.clone(), config)
    }

    /// A new consumer with its own connections and prefetch.
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        Consumer::new(self.cluster.clone(), config)
    }

    /// A new member of a consumer group; it joins at once.
    ///
    /// Must be called within a tokio runtime with IO and time.
    ///
    /// # Errors
    /// [`GroupError::NoSubscription`].
    pub fn group_consumer(&self, config: GroupConfig) -> Result<GroupConsumer, GroupError> {
        GroupConsumer::new(self.cluster.clone(), config)
    }

    /// The pooled connection to a shard of a broker; opened if need be. For load generators and tools:
    /// see [`Connection::send`].
    pub async fn connection(&self, broker: u32, shard: u32) -> Result<Connection, ClientError> {
        self.cluster.connection(Home { broker, shard }).await
    }

    /// A new connection of the caller's own to a shard of a broker.
    pub async fn open_connection(&self, broker: u32, shard: u32) -> Result<Connection, ClientError> {
        self.cluster.open(Home { broker, shard }).await
    }
}
