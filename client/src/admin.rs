//! Topics, settings, offsets, and what a broker says about itself.
//!
//! Owner: whoever administers; a cheap handle on the shared cluster. Lifecycle: each call is one request
//! (two where a change must have become visible), tried again only while it is sure to have had no
//! effect. Invariant: when [`Admin::create_topic`] or [`Admin::create_partitions`] returns, metadata
//! shows every partition. Absent on purpose: batches of topics in one call; a loop does the same.

use crate::client::ClientError;
use crate::cluster::{Cluster, Home, READ_ATTEMPT, Topic};
use crate::reply::{
    BrokerError, BrokerStatus, ConfigValue, PartitionLog, PartitionPlace, Reply, TopicMetadata, TopicOutcome,
};
use crate::request::{DeleteRecordsEntry, ListOffsetsEntry, NewTopic, OffsetSpec, Request, TopicId};
use schema::error_code::{Class, ErrorCode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A topic and where its partitions are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// In ascending order.
    pub partitions: Vec<PartitionPlace>,
}

/// A place of a partition turned into an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// Timestamp of the record there, milliseconds since 1970; `None` where the broker does not know.
    pub timestamp_ms: Option<i64>,
}

/// The administrator's handle; see [`crate::Client::admin`].
#[derive(Clone)]
pub struct Admin {
    pub(crate) cluster: Arc<Cluster>,
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    /// Makes a topic and waits until its partitions are served.
    ///
    /// # Errors
    /// `TOPIC_EXISTS`, `INVALID_TOPIC_NAME`, `INVALID_PARTITIONS`, `INVALID_CONFIG` and the like as
    /// [`ClientError::Broker`]. After a lost connection the topic may or may not exist.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<TopicId, ClientError> {
        let request = Request::CreateTopic { topic: topic.clone(), validate_only: false };
        let id = self.change(request, "CreateTopics").await?.id;
        self.wait_for(&topic.name, topic.partitions.max(1) as usize).await?;
        Ok(id)
    }

    /// Checks whether a topic could be made.
    pub async fn validate_topic(&self, topic: &NewTopic) -> Result<(), ClientError> {
        let request = Request::CreateTopic { topic: topic.clone(), validate_only: true };
        self.change(request, "CreateTopics").await.map(drop)
    }

    /// Deletes a topic with all its records.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = Request::DeleteTopic { name: name.to_owned() };
        self.change(request, "DeleteTopics").await?;
        self.cluster.forget(name);
        Ok(())
    }

    /// Every topic, by name.
    pub async fn list_topics(&self) -> Result<Vec<TopicDescription>, ClientError> {
        let metadata = self.cluster.ask_metadata(None).await?;
        let described = metadata.topics.into_iter().filter(|topic| topic.error.is_none()).map(describe);
        let mut topics: Vec<_> = described.collect();
        topics.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(topics)
    }

    /// One topic.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        let metadata = self.cluster.ask_metadata(Some(vec![name.to_owned()])).await?;
        match metadata.topics.into_iter().find(|topic| topic.name == name) {
            Some(topic) => match topic.error {
                None => Ok(describe(topic)),
                Some(code) => Err(refused(name, BrokerError::of(code))),
            },
            None => Err(ClientError::UnknownTopic { name: name.into() }),
        }
    }

    /// Changes settings: `set` as (name, value), `unset` back to the default.
    pub async fn alter_configs(
        &self,
        name: &str,
        set: &[(String, String)],
        unset: &[String],
    ) -> Result<(), ClientError> {
        let request =
            Request::AlterConfigs { topic: name.to_owned(), set: set.to_vec(), unset: unset.to_vec() };
        self.change(request, "AlterConfigs").await.map(drop)
    }

    /// Every setting of a topic, with its default flag and documentation.
    pub async fn describe_configs(&self, name: &str) -> Result<Vec<ConfigValue>, ClientError> {
        let unexpected = ClientError::UnexpectedReply { request: "DescribeConfigs" };
        match self.ask(name, Request::DescribeConfigs { topic: name.to_owned() }).await? {
            Reply::Configs(topics) => match topics.into_iter().next() {
                Some(topic) => match topic.error {
                    None => Ok(topic.values),
                    Some(code) => Err(refused(name, BrokerError::of(code))),
                },
                None => Err(unexpected),
            },
            _ => Err(unexpected),
        }
    }

    /// Adds partitions up to `total` and waits until they are served. Keys may land elsewhere from now
    /// on: the hash is taken modulo the number of partitions.
    pub async fn create_partitions(&self, name: &str, total: u32) -> Result<(), ClientError> {
        let request = Request::CreatePartitions { topic: name.to_owned(), count: total };
        self.change(request, "CreatePartitions").await?;
        self.wait_for(name, total as usize).await.map(drop)
    }

    /// What the leader of each partition of a topic stores of it; partitions without a leader are not there.
    pub async fn describe_logs(&self, name: &str) -> Result<Vec<PartitionLog>, ClientError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let topic = self.cluster.refresh(name, Instant::now()).await?;
            let error = match self.describe_logs_once(&topic).await {
                Ok(logs) => return Ok(logs),
                Err(error) => error,
            };
            attempt += 1;
            let wait = self.cluster.config.backoff(attempt);
            if !retry_may_help(&error, attempt)
                || started.elapsed() + wait > self.cluster.config.request_timeout
            {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn describe_logs_once(&self, topic: &Topic) -> Result<Vec<PartitionLog>, ClientError> {
        let leaders: BTreeSet<u32> = topic.places.iter().filter_map(|place| place.leader).collect();
        let mut logs = Vec::with_capacity(topic.places.len());
        for broker in leaders {
            logs.extend(self.logs_led_by(broker, topic).await?);
        }
        logs.sort_unstable_by_key(|log| log.partition);
        Ok(logs)
    }

    /// What `broker` stores of the partitions of a topic that it leads.
    pub(crate) async fn logs_led_by(
        &self,
        broker: u32,
        topic: &Topic,
    ) -> Result<Vec<PartitionLog>, ClientError> {
        let unexpected = || ClientError::UnexpectedReply { request: "DescribeLogs" };
        let connection = self.cluster.connection_to(broker).await?;
        let request = Request::DescribeLogs { topic: topic.name.to_string() };
        let reply = connection.request(request, self.cluster.config.request_timeout).await?.into_result()?;
        let Reply::Logs(described) = reply else { return Err(unexpected()) };
        let described = described.into_iter().next().ok_or_else(unexpected)?;
        if let Some(code) = described.error {
            return Err(refused(&topic.name, BrokerError::of(code)));
        }
        let leads = |log: &PartitionLog| {
            topic.places.get(log.partition as usize).is_some_and(|place| place.leader == Some(broker))
        };
        Ok(described.partitions.into_iter().filter(leads).collect())
    }

    /// Turns places into offsets, in the order asked; each partition's leader is asked.
    pub async fn list_offsets(
        &self,
        name: &str,
        places: &[(u32, OffsetSpec)],
    ) -> Result<Vec<ListedOffset>, ClientError> {
        list_offsets(&self.cluster, name, places).await
    }

    /// Deletes the records of each partition below an offset (`None` = all that are visible) and returns
    /// (partition, first offset that is kept), in the order asked, once that is durable. Files go in the
    /// background, segment by segment.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` above the high watermark; partitions asked of other leaders may be done already.
    /// To ask again does no harm.
    pub async fn delete_records(
        &self,
        name: &str,
        before: &[(u32, Option<u64>)],
    ) -> Result<Vec<(u32, u64)>, ClientError> {
        let started = Instant::now();
        let mut topic = self.cluster.topic(name).await?;
        let mut attempt = 0;
        loop {
            let error = match delete_records_once(&self.cluster, &topic, before).await {
                Ok(starts) => return Ok(starts),
                Err(error) => error,
            };
            attempt += 1;
            let wait = self.cluster.config.backoff(attempt);
            if !retry_may_help(&error, attempt)
                || started.elapsed() + wait > self.cluster.config.request_timeout
            {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            topic = self.cluster.refresh(name, Instant::now()).await?;
        }
    }

    /// What a broker is and does: whichever answers for the cluster. For a certain one: [`Admin::status_of`].
    pub async fn status(&self) -> Result<BrokerStatus, ClientError> {
        self.ask_status(false, false).await
    }

    /// The same, with what went in and out of each topic ([`BrokerStatus::topics`]): more work for the broker.
    pub async fn status_with_topics(&self) -> Result<BrokerStatus, ClientError> {
        self.ask_status(true, false).await
    }

    /// The same, with the groups that it coordinates and how far they are behind ([`BrokerStatus::groups`]).
    pub async fn status_in_full(&self) -> Result<BrokerStatus, ClientError> {
        self.ask_status(true, true).await
    }

    async fn ask_status(&self, topics: bool, groups: bool) -> Result<BrokerStatus, ClientError> {
        match self.cluster.ask(Request::Status { topics, groups, partitions: false }).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::UnexpectedReply { request: "Status" }),
        }
    }

    async fn change(&self, request: Request, what: &'static str) -> Result<TopicOutcome, ClientError> {
        let name = match &request {
            Request::CreateTopic { topic, .. } => topic.name.clone(),
            Request::DeleteTopic { name } => name.clone(),
            Request::AlterConfigs { topic, .. } | Request::CreatePartitions { topic, .. } => topic.clone(),
            _ => String::new(),
        };
        match self.ask(&name, request).await? {
            Reply::Outcomes(outcomes) => match outcomes.into_iter().next() {
                Some(TopicOutcome { error: Some(error), .. }) => Err(refused(&name, error)),
                Some(outcome) => Ok(outcome),
                None => Err(ClientError::UnexpectedReply { request: what }),
            },
            _ => Err(ClientError::UnexpectedReply { request: what }),
        }
    }

    async fn ask(&self, name: &str, request: Request) -> Result<Reply, ClientError> {
        self.cluster.ask(request).await.map_err(|error| match error {
            ClientError::Broker(error) => refused(name, error),
            other => other,
        })
    }

    /// A change is committed before every core has heard of it.
    async fn wait_for(&self, name: &str, partitions: usize) -> Result<Arc<Topic>, ClientError> {
        let started = Instant::now();
        let mut wait = Duration::from_millis(1);
        loop {
            match self.cluster.refresh(name, Instant::now()).await {
                Ok(topic) if topic.places.len() >= partitions => return Ok(topic),
                Ok(_) | Err(ClientError::UnknownTopic { .. })
                    if started.elapsed() < self.cluster.config.request_timeout => {}
                Ok(topic) => return Ok(topic),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.cluster.config.retry_backoff_max);
        }
    }
}

fn describe(topic: TopicMetadata) -> TopicDescription {
    TopicDescription { name: topic.name, id: topic.id, partitions: topic.partitions }
}

/// A missing topic is told by its name.
fn refused(name: &str, error: BrokerError) -> ClientError {
    match error.code {
        ErrorCode::UnknownTopic => ClientError::UnknownTopic { name: name.into() },
        _ => ClientError::Broker(error),
    }
}

/// Whether asking again, of newer metadata, may give another answer. A missing partition is looked for once.
pub(crate) fn retry_may_help(error: &ClientError, attempt: u32) -> bool {
    match error {
        ClientError::Connection(_) | ClientError::UnknownBroker { .. } | ClientError::NoLeader { .. } => true,
        ClientError::UnknownPartition { .. } => attempt <= 1,
        ClientError::Broker(error) => error.class() != Class::Fatal,
        _ => false,
    }
}

/// Which of the asked places each home has.
fn by_home(
    topic: &Topic,
    partitions: impl Iterator<Item = u32>,
) -> Result<BTreeMap<Home, Vec<usize>>, ClientError> {
    let mut by_home: BTreeMap<Home, Vec<usize>> = BTreeMap::new();
    for (at, partition) in partitions.enumerate() {
        by_home.entry(topic.leader(partition)?).or_default().push(at);
    }
    Ok(by_home)
}

async fn delete_records_once(
    cluster: &Cluster,
    topic: &Topic,
    before: &[(u32, Option<u64>)],
) -> Result<Vec<(u32, u64)>, ClientError> {
    let mut starts = vec![None; before.len()];
    for (home, positions) in by_home(topic, before.iter().map(|(partition, _)| *partition))? {
        let entry = |at: &usize| DeleteRecordsEntry {
            topic: topic.id,
            partition: before[*at].0,
            before: before[*at].1,
        };
        let entries = positions.iter().map(entry).collect();
        let connection = cluster.connection(home).await?;
        let response =
            connection.request(Request::DeleteRecords { entries }, cluster.config.request_timeout).await?;
        let note = response.note.clone();
        let unexpected = ClientError::UnexpectedReply { request: "DeleteRecords" };
        let Reply::DeletedRecords(results) = response.into_result()? else {
            return Err(unexpected);
        };
        if results.len() != positions.len() {
            return Err(unexpected);
        }
        for (at, result) in positions.into_iter().zip(results) {
            if let Some(code) = result.error {
                return Err(BrokerError { message: note, ..BrokerError::of(code) }.into());
            }
            if result.partition != before[at].0 {
                return Err(unexpected);
            }
            starts[at] = Some((result.partition, result.log_start));
        }
    }
    Ok(starts.into_iter().flatten().collect())
}

/// Asks the leader of each partition, each connection once, again after leaders moved.
pub(crate) async fn list_offsets(
    cluster: &Cluster,
    name: &str,
    places: &[(u32, OffsetSpec)],
) -> Result<Vec<ListedOffset>, ClientError> {
    let started = Instant::now();
    let mut topic = cluster.topic(name).await?;
    let mut attempt = 0;
    loop {
        let error = match list_offsets_once(cluster, &topic, places).await {
            Ok(listed) => return Ok(listed),
            Err(error) => error,
        };
        attempt += 1;
        let wait = cluster.config.backoff(attempt);
        if !retry_may_help(&error, attempt) || started.elapsed() + wait > cluster.config.request_timeout {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
        topic = cluster.refresh(name, Instant::now()).await?;
    }
}

/// The same, once.
pub(crate) async fn list_offsets_once(
    cluster: &Cluster,
    topic: &Topic,
    places: &[(u32, OffsetSpec)],
) -> Result<Vec<ListedOffset>, ClientError> {
    let mut listed = vec![None; places.len()];
    for (home, positions) in by_home(topic, places.iter().map(|(partition, _)| *partition))? {
        let entries = (positions.iter())
            .map(|at| ListOffsetsEntry { topic: topic.id, partition: places[*at].0, spec: places[*at].1 })
            .collect();
        let connection = cluster.connection(home).await?;
        let request = Request::ListOffsets { entries };
        let response = connection.request(request, cluster.config.request_timeout.min(READ_ATTEMPT)).await?;
        let unexpected = ClientError::UnexpectedReply { request: "ListOffsets" };
        let Reply::ListOffsets(results) = response.into_result()? else {
            return Err(unexpected);
        };
        if results.len() != positions.len() {
            return Err(unexpected);
        }
        for (at, result) in positions.into_iter().zip(results) {
            if let Some(code) = result.error {
                return Err(BrokerError::of(code).into());
            }
            if result.partition != places[at].0 {
                return Err(unexpected);
            }
            listed[at] = Some(ListedOffset {
                partition: result.partition,
                offset: result.offset,
                timestamp_ms: (result.timestamp_ms >= 0).then_some(result.timestamp_ms),
            });
        }
    }
    // Every position was filled above: each is in exactly one group.
    Ok(listed.into_iter().flatten().collect())
}
