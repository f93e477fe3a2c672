//! What a client knows of the cluster: its topics, its brokers, and the connections to them.
//!
//! Owner: every producer, consumer and admin of one [`Client`] shares one [`Cluster`]. Lifecycle: made
//! by [`Client::connect`], which needs one broker to answer; lives as long as any of them. Invariants:
//! one pooled connection per (broker, shard), opened by the first who needs it while others wait;
//! metadata is an immutable snapshot replaced as a whole; neither lock is held across an await except
//! the two that exist to make others wait for the same work. Absent on purpose: knowledge of what is
//! sent.

use crate::admin::Admin;
use crate::config::{ClientConfig, ConfigError};
use crate::connection::{Connection, ConnectionError};
use crate::consumer::{Consumer, ConsumerConfig};
use crate::group_consumer::{GroupConfig, GroupConsumer, GroupError};
use crate::producer::{Producer, ProducerConfig};
use crate::reply::{BrokerEndpoint, BrokerError, Metadata, PartitionPlace, Reply, TopicMetadata};
use crate::request::{Request, TopicId};
use schema::error_code::{Class, ErrorCode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// Connects to the first of the configured brokers that answers and learns the cluster from it.
    ///
    /// # Errors
    /// [`ConnectionError::Unreachable`] of the last broker tried when none answers.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let cluster = Cluster {
            config,
            image: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            pool: Mutex::default(),
            bootstrap: tokio::sync::Mutex::default(),
        };
        // An empty list of topics: brokers only.
        let metadata = cluster.ask_metadata(Some(Vec::new())).await?;
        cluster.absorb(metadata, &[]);
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

/// Where a partition is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Home {
    pub broker: u32,
    pub shard: u32,
}

/// A topic as it was when the metadata was learnt.
#[derive(Debug)]
pub(crate) struct Topic {
    pub name: Arc<str>,
    pub id: TopicId,
    /// Position = partition.
    pub places: Vec<PartitionPlace>,
    /// Whether records must have keys.
    pub compacted: bool,
    pub learnt_at: Instant,
}

impl Topic {
    pub(crate) fn place(&self, partition: u32) -> Result<PartitionPlace, ClientError> {
        self.places.get(partition as usize).copied().ok_or_else(|| ClientError::UnknownPartition {
            name: self.name.clone(),
            partition,
            partitions: self.places.len() as u32,
        })
    }

    pub(crate) fn home(&self, partition: u32) -> Option<Home> {
        let place = self.places.get(partition as usize)?;
        Some(Home { broker: place.broker, shard: place.shard })
    }
}

/// One pooled connection; the lock makes others wait while one opens it.
type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// What all parts of one client share.
pub(crate) struct Cluster {
    pub config: ClientConfig,
    image: Mutex<Image>,
    refreshing: tokio::sync::Mutex<()>,
    pool: Mutex<HashMap<Home, Slot>>,
    bootstrap: tokio::sync::Mutex<Option<Connection>>,
}

#[derive(Default)]
struct Image {
    brokers: Arc<HashMap<u32, BrokerEndpoint>>,
    topics: HashMap<Arc<str>, Arc<Topic>>,
}

impl Cluster {
    /// The topic, from memory if it is known and young enough.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<Topic>, ClientError> {
        let known = self.known_topic(name);
        match known {
            Some(topic) if topic.learnt_at.elapsed() < self.config.metadata_max_age => Ok(topic),
            _ => self.refresh(name, Instant::now()).await,
        }
    }

    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner).topics.get(name).cloned()
    }

    /// The topic is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.image.lock().unwrap_or_else(PoisonError::into_inner).topics.remove(name);
    }

    pub(crate) fn brokers(&self) -> Arc<HashMap<u32, BrokerEndpoint>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner).brokers.clone()
    }

    /// The topic as it was learnt after `not_before`; many who ask at once cost one request.
    pub(crate) async fn refresh(&self, name: &str, not_before: Instant) -> Result<Arc<Topic>, ClientError> {
        let _turn = self.refreshing.lock().await;
        if let Some(topic) = self.known_topic(name)
            && topic.learnt_at > not_before
        {
            return Ok(topic);
        }
        let metadata = self.ask_metadata(Some(vec![name.to_owned()])).await?;
        let refused = metadata.topics.iter().find(|topic| topic.name == name).and_then(|topic| topic.error);
        self.absorb(metadata, &[name]);
        match (self.known_topic(name), refused) {
            (_, Some(code)) if code != ErrorCode::UnknownTopic => Err(BrokerError::of(code).into()),
            (Some(topic), _) => Ok(topic),
            (None, _) => Err(ClientError::UnknownTopic { name: name.into() }),
        }
    }

    /// Every topic of the cluster, past any memory.
    pub(crate) async fn ask_metadata(&self, topics: Option<Vec<String>>) -> Result<Metadata, ClientError> {
        match self.ask(Request::Metadata { topics }).await? {
            Reply::Metadata(metadata) => Ok(metadata),
            _ => Err(ClientError::UnexpectedReply { request: "Metadata" }),
        }
    }

    /// Makes `metadata` the present; a topic of `asked` that it does not hold is gone.
    fn absorb(&self, metadata: Metadata, asked: &[&str]) {
        let learnt_at = Instant::now();
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        if !metadata.brokers.is_empty() {
            let brokers = metadata.brokers.into_iter().map(|broker| (broker.id, broker)).collect();
            image.brokers = Arc::new(brokers);
        }
        for name in asked {
            image.topics.remove(*name);
        }
        for topic in metadata.topics {
            // Positions must be partition numbers; a list with gaps is of no use.
            let whole = topic.partitions.iter().zip(0u32..).all(|(place, at)| place.partition == at);
            if topic.error.is_none() && whole && !topic.partitions.is_empty() {
                let name: Arc<str> = topic.name.into();
                let TopicMetadata { id, partitions: places, compacted, .. } = topic;
                let topic = Topic { name: name.clone(), id, places, compacted, learnt_at };
                image.topics.insert(name, Arc::new(topic));
            }
        }
    }

    /// The pooled connection to `home`.
    pub(crate) async fn connection(&self, home: Home) -> Result<Connection, ClientError> {
        let slot = {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            pool.entry(home).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        *slot = None;
        Ok(slot.insert(self.open(home).await?).clone())
    }

    /// A connection to `home` outside the pool.
    pub(crate) async fn open(&self, home: Home) -> Result<Connection, ClientError> {
        let brokers = self.brokers();
        let endpoint = brokers.get(&home.broker).ok_or(ClientError::UnknownBroker { broker: home.broker })?;
        let address = self.address_of(endpoint).await;
        Ok(Connection::open(&address, Some(home.shard), &self.config).await?)
    }

    /// Host and port of a broker. One that listens on every address advertises none: then it is where
    /// it was found.
    async fn address_of(&self, endpoint: &BrokerEndpoint) -> String {
        let anywhere = matches!(endpoint.host.as_str(), "" | "0.0.0.0" | "::" | "[::]");
        if anywhere {
            let bootstrap = self.bootstrap.lock().await;
            if let Some(connection) = bootstrap.as_ref()
                && let Some((host, _)) = connection.address().rsplit_once(':')
            {
                return format!("{host}:{}", endpoint.port);
            }
            return format!("127.0.0.1:{}", endpoint.port);
        }
        match endpoint.host.contains(':') && !endpoint.host.starts_with('[') {
            true => format!("[{}]:{}", endpoint.host, endpoint.port),
            false => format!("{}:{}", endpoint.host, endpoint.port),
        }
    }

    /// A connection to whichever broker answers, for requests that any can serve.
    async fn any_connection(&self) -> Result<Connection, ClientError> {
        let mut bootstrap = self.bootstrap.lock().await;
        if let Some(connection) = bootstrap.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        *bootstrap = None;
        let brokers = self.brokers();
        let learnt = brokers.values().map(|broker| format!("{}:{}", broker.host, broker.port));
        let mut last = ClientError::Config(ConfigError::NoBrokers);
        for address in self.config.brokers.iter().cloned().chain(learnt) {
            match Connection::open(&address, None, &self.config).await {
                Ok(connection) => return Ok(bootstrap.insert(connection).clone()),
                Err(error) if matches!(last, ClientError::Config(_)) => last = error.into(),
                Err(_) => {}
            }
        }
        Err(last)
    }

    /// Asks whichever broker answers. Tries again, within the request timeout, what is sure to have had
    /// no effect or has none by nature.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let connection = self.any_connection().await?;
            let left = self.config.request_timeout.saturating_sub(started.elapsed());
            let left = left.max(Duration::from_millis(1));
            attempt += 1;
            let (error, wait) = match connection.request(request.clone(), left).await {
                Ok(response) => match response.into_result() {
                    Ok(reply) => return Ok(reply),
                    Err(error) => {
                        let wait = error.retry_after.max(self.config.backoff(attempt));
                        let again = match error.class() {
                            // What is not there will not come by waiting.
                            _ if matches!(
                                error.code,
                                ErrorCode::UnknownTopic | ErrorCode::UnknownPartition
                            ) =>
                            {
                                false
                            }
                            Class::Retry | Class::RefreshAndRetry => true,
                            Class::Unknown => request.is_read_only(),
                            Class::Fatal => false,
                        };
                        (ClientError::from(error), again.then_some(wait))
                    }
                },
                Err(error) => {
                    let again = match &error {
                        ConnectionError::Lost { .. } => request.is_read_only(),
                        ConnectionError::TooManyPending { .. } => true,
                        _ => false,
                    };
                    (ClientError::from(error), again.then(|| self.config.backoff(attempt)))
                }
            };
            match wait {
                Some(wait) if started.elapsed() + wait < self.config.request_timeout => {
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(error),
            }
        }
    }
}
