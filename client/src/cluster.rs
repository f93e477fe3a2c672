//! What a client knows of the cluster: its topics, its brokers, and the connections to them.
//!
//! Owner: every producer, consumer and admin of one client shares one [`Cluster`]. Invariants: one pooled connection per
//! (broker, shard), opened by the first who needs it while others wait; metadata is an immutable snapshot of each topic,
//! and what is learnt of a partition never goes back to an older leader; no lock is held across an await except those
//! that exist to make others wait for the same work.
//!
//! Leaders that fail: whoever notices asks with [`Cluster::relearn`]. Any broker can answer. Those who ask while somebody
//! else does share the answer; those who ask again without news are slowed down, each by its own jitter, so that a
//! failed broker does not bring a herd upon the others.
//!
//! Absent on purpose: knowledge of what is sent; which broker is asked ([`crate::bootstrap`]).

use crate::bootstrap::Bootstrap;
use crate::client::ClientError;
use crate::config::ClientConfig;
use crate::connection::{Connection, ConnectionError};
use crate::reply::{BrokerEndpoint, BrokerError, Metadata, PartitionPlace, Reply, TopicMetadata};
use crate::request::{Request, TopicId};
use schema::error_code::{Class, ErrorCode};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest pause between two questions for a topic whose leaders fail.
const RELEARN_PAUSE_MAX: Duration = Duration::from_millis(250);
/// A question that any broker can answer from memory goes to another one after so long.
pub(crate) const READ_ATTEMPT: Duration = Duration::from_secs(3);

/// Where a partition is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Home {
    pub broker: u32,
    pub shard: u32,
}

impl Home {
    /// Where a partition is that has no leader: nobody can be connected to there, and whoever tries asks again.
    pub(crate) const NOBODY: Home = Home { broker: u32::MAX, shard: 0 };

    pub(crate) fn of(place: &PartitionPlace) -> Self {
        match place.leader {
            Some(broker) => Self { broker, shard: place.shard },
            None => Self::NOBODY,
        }
    }
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

    /// Where a partition is; [`Home::NOBODY`] without a leader. `None`: there is no such partition.
    pub(crate) fn home(&self, partition: u32) -> Option<Home> {
        self.places.get(partition as usize).map(Home::of)
    }

    /// Where a partition is led.
    pub(crate) fn leader(&self, partition: u32) -> Result<Home, ClientError> {
        match Home::of(&self.place(partition)?) {
            Home::NOBODY => Err(ClientError::NoLeader { name: self.name.clone(), partition }),
            home => Ok(home),
        }
    }

    /// Keeps what is known of partitions whose leader is newer than here: another broker may lag behind.
    fn no_older_than(&mut self, known: &Topic) {
        if self.id == known.id {
            for (place, known) in self.places.iter_mut().zip(&known.places) {
                if known.leader_epoch > place.leader_epoch {
                    *place = *known;
                }
            }
        }
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
    bootstrap: Bootstrap,
}

#[derive(Default)]
struct Image {
    /// The newest metadata that any broker has told of.
    version: u64,
    brokers: Arc<HashMap<u32, BrokerEndpoint>>,
    topics: HashMap<Arc<str>, Arc<Topic>>,
    /// Topics that the next question for metadata is to name.
    wanted: BTreeSet<Arc<str>>,
    paces: HashMap<Arc<str>, Pace>,
}

/// When a topic whose leaders fail was asked for last, and how long to wait before the next time.
struct Pace {
    asked_at: Instant,
    pause: Duration,
}

impl Cluster {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            image: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            pool: Mutex::default(),
            bootstrap: Bootstrap::default(),
        }
    }

    /// Learns the brokers from the first that answers.
    pub(crate) async fn find(&self) -> Result<(), ClientError> {
        // An empty list of topics: brokers only.
        let metadata = self.ask_metadata(Some(Vec::new())).await?;
        self.absorb(metadata, &[]);
        Ok(())
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic, from memory if it is known and young enough.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<Topic>, ClientError> {
        let known = self.known_topic(name);
        match known {
            Some(topic) if topic.learnt_at.elapsed() < self.config.metadata_max_age => Ok(topic),
            _ => self.refresh(name, Instant::now()).await,
        }
    }

    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.image().topics.get(name).cloned()
    }

    /// The topic is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.image().topics.remove(name);
    }

    pub(crate) fn brokers(&self) -> Arc<HashMap<u32, BrokerEndpoint>> {
        self.image().brokers.clone()
    }

    /// The topic as it was learnt after `not_before`; many who ask at once, for whatever topics, cost one request.
    pub(crate) async fn refresh(&self, name: &str, not_before: Instant) -> Result<Arc<Topic>, ClientError> {
        self.image().wanted.insert(name.into());
        let _turn = self.refreshing.lock().await;
        let names: Vec<String> = {
            let mut image = self.image();
            if let Some(topic) = image.topics.get(name)
                && topic.learnt_at > not_before
            {
                return Ok(topic.clone());
            }
            // Whoever had the turn before may have taken the name along and failed.
            image.wanted.insert(name.into());
            std::mem::take(&mut image.wanted).iter().map(|name| (**name).to_owned()).collect()
        };
        let metadata = self.ask_metadata(Some(names.clone())).await?;
        let refused = metadata.topics.iter().find(|topic| topic.name == name).and_then(|topic| topic.error);
        self.absorb(metadata, &names);
        match (self.known_topic(name), refused) {
            (_, Some(code)) if code != ErrorCode::UnknownTopic => Err(BrokerError::of(code).into()),
            (Some(topic), _) => Ok(topic),
            (None, _) => Err(ClientError::UnknownTopic { name: name.into() }),
        }
    }

    /// [`Self::refresh`] for those whom a leader has failed: the longer there is no news, the less often it asks.
    pub(crate) async fn relearn(&self, name: &str, not_before: Instant) -> Result<Arc<Topic>, ClientError> {
        let due = self.image().paces.get(name).map(|pace| pace.asked_at + pace.pause);
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
        let before = self.known_topic(name);
        let learnt = self.refresh(name, not_before).await;
        let news = match (&learnt, &before) {
            (Ok(topic), Some(before)) => topic.id != before.id || topic.places != before.places,
            (Ok(_), None) => true,
            (Err(_), _) => false,
        };
        let first = self.config.retry_backoff.min(RELEARN_PAUSE_MAX);
        let mut image = self.image();
        let pace = image.paces.entry(name.into()).or_insert(Pace { asked_at: Instant::now(), pause: first });
        // One that was left alone for long begins anew.
        let quiet = pace.asked_at.elapsed() > 4 * RELEARN_PAUSE_MAX;
        let doubled = if news || quiet { first } else { (pace.pause * 2).min(RELEARN_PAUSE_MAX) };
        *pace = Pace { asked_at: Instant::now(), pause: doubled.mul_f64(0.75 + fastrand::f64() / 4.0) };
        learnt
    }

    /// Ends when a partition that is led by `home`, as far as was known, is led by somebody else. Others are asked once
    /// `home` has been silent for [`ClientConfig::leader_check_after`], and again after as long.
    pub(crate) async fn moved_away(&self, name: &str, partition: u32, home: Home) {
        loop {
            tokio::time::sleep(self.config.leader_check_after).await;
            if let Ok(topic) = self.relearn(name, Instant::now()).await
                && topic.home(partition).is_some_and(|now| now != home && now != Home::NOBODY)
            {
                return;
            }
        }
    }

    /// Every topic of the cluster, past any memory. A broker that lags behind what is known is asked only if there is
    /// no other.
    pub(crate) async fn ask_metadata(&self, topics: Option<Vec<String>>) -> Result<Metadata, ClientError> {
        let mut others = self.brokers().len();
        loop {
            let metadata = match self.ask(Request::Metadata { topics: topics.clone() }).await? {
                Reply::Metadata(metadata) => metadata,
                _ => return Err(ClientError::UnexpectedReply { request: "Metadata" }),
            };
            if metadata.version >= self.image().version || others <= 1 {
                return Ok(metadata);
            }
            others -= 1;
            self.bootstrap.turn_away().await;
        }
    }

    /// The broker that was asked last is of no use just now: the next question goes to another.
    pub(crate) async fn turn_away(&self) {
        self.bootstrap.turn_away().await;
    }

    /// Makes `metadata` the present; a topic of `asked` that it does not hold is gone.
    fn absorb(&self, metadata: Metadata, asked: &[String]) {
        let learnt_at = Instant::now();
        let mut image = self.image();
        image.version = metadata.version;
        if !metadata.brokers.is_empty() {
            let brokers: HashMap<u32, BrokerEndpoint> =
                metadata.brokers.into_iter().map(|broker| (broker.id, broker)).collect();
            if *image.brokers != brokers {
                let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
                pool.retain(|home, _| brokers.contains_key(&home.broker));
                image.brokers = Arc::new(brokers);
            }
        }
        let mut before: HashMap<&str, Arc<Topic>> = HashMap::new();
        for name in asked {
            before.extend(image.topics.remove(name.as_str()).map(|topic| (name.as_str(), topic)));
        }
        for topic in metadata.topics {
            // Positions must be partition numbers; a list with gaps is of no use.
            let whole = topic.partitions.iter().zip(0u32..).all(|(place, at)| place.partition == at);
            if topic.error.is_none() && whole && !topic.partitions.is_empty() {
                let name: Arc<str> = topic.name.into();
                let TopicMetadata { id, partitions: places, compacted, .. } = topic;
                let mut topic = Topic { name: name.clone(), id, places, compacted, learnt_at };
                if let Some(known) = before.get(&*name) {
                    topic.no_older_than(known);
                }
                image.topics.insert(name, Arc::new(topic));
            }
        }
        if image.paces.len() > 2 * image.topics.len() + 16 {
            let Image { paces, topics, .. } = &mut *image;
            paces.retain(|name, _| topics.contains_key(name));
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

    /// A connection to any core of `broker`: the one that answers for the cluster, if it is that broker's.
    pub(crate) async fn connection_to(&self, broker: u32) -> Result<Connection, ClientError> {
        let started = Instant::now();
        match self.bootstrap.connection(&self.config, &self.brokers()).await {
            Ok(connection) if connection.hello().broker == broker => return Ok(connection),
            _ => {}
        }
        let mut attempt = 0;
        loop {
            let error = match self.connection(Home { broker, shard: 0 }).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let unanswered = matches!(error, ClientError::Connection(ConnectionError::Unanswered { .. }));
            if !unanswered || !self.tries_again(started, &mut attempt).await {
                return Err(error);
            }
        }
    }

    /// A connection to whichever broker answers, for a request that began at `started`: as long as one takes connections, and as
    /// the request may take.
    async fn any_connection(&self, started: Instant) -> Result<Connection, ClientError> {
        let mut attempt = 0;
        loop {
            let none = match self.bootstrap.connection(&self.config, &self.brokers()).await {
                Ok(connection) => return Ok(connection),
                Err(none) => none,
            };
            if !none.may_answer || !self.tries_again(started, &mut attempt).await {
                return Err(none.first);
            }
        }
    }

    /// Waits a moment; `false` = another attempt to connect would not fit into the request that began at `started`.
    async fn tries_again(&self, started: Instant, attempt: &mut u32) -> bool {
        *attempt += 1;
        let wait = self.config.backoff(*attempt);
        let fits = started.elapsed() + wait + self.config.attempt_timeout() <= self.config.request_timeout;
        if fits {
            tokio::time::sleep(wait).await;
        }
        fits
    }

    /// A connection to `home` outside the pool.
    pub(crate) async fn open(&self, home: Home) -> Result<Connection, ClientError> {
        if home == Home::NOBODY {
            return Err(BrokerError::of(ErrorCode::LeaderNotAvailable).into());
        }
        let brokers = self.brokers();
        let endpoint = brokers.get(&home.broker).ok_or(ClientError::UnknownBroker { broker: home.broker })?;
        let address = self.bootstrap.address_of(endpoint).await;
        Ok(Connection::open(&address, Some(home.shard), &self.config).await?)
    }

    /// Asks whichever broker answers. Tries again, within the request timeout, what is sure to have had
    /// no effect or has none by nature; the latter of another broker when one does not answer.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let brokers = self.brokers();
            let connection = self.any_connection(started).await?;
            let left = self.config.request_timeout.saturating_sub(started.elapsed());
            let mut timeout = left.max(Duration::from_millis(1));
            let several = brokers.len().max(self.config.brokers.len()) > 1;
            if request.is_read_only() && several {
                timeout = timeout.min(READ_ATTEMPT);
            }
            attempt += 1;
            let asked_at = Instant::now();
            let (error, wait) = match connection.request(request.clone(), timeout).await {
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
                        if again && several {
                            // It may be this broker only: cut off, or about to stop.
                            self.bootstrap.turn_away().await;
                        }
                        (ClientError::from(error), again.then_some(wait))
                    }
                },
                Err(error) => {
                    let again = match &error {
                        ConnectionError::Lost { .. } => request.is_read_only(),
                        ConnectionError::TimedOut { .. } => request.is_read_only() && several,
                        ConnectionError::TooManyPending { .. } => true,
                        _ => false,
                    };
                    if !matches!(error, ConnectionError::TooManyPending { .. }) {
                        self.bootstrap.turn_away().await;
                    }
                    (ClientError::from(error), again.then(|| self.config.backoff(attempt)))
                }
            };
            // A refusal that took its time says more than an attempt that is cut off, after which nobody knows.
            let takes = if request.is_read_only() { Duration::ZERO } else { asked_at.elapsed() };
            match wait {
                Some(wait) if started.elapsed() + wait + takes < self.config.request_timeout => {
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(error),
            }
        }
    }
}
