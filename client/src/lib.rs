//! The async client of the Ringlog broker, for tokio: [`Producer`], [`Consumer`], [`GroupConsumer`], [`Admin`].
//!
//! ## Produce
//! Every acknowledgement is a receipt: where the record is, and which durability was reached.
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let producer = client.producer(ProducerConfig::default());
//! let receipt = producer.send(ProducerRecord::new("events", "hello").with_key("k")).await?.await?;
//! println!("offset {} of partition {}: {:?}", receipt.offset, receipt.partition, receipt.durability);
//! // Many at once: whatever fails is told by `flush` or `close`.
//! for number in 0..1000 {
//!     drop(producer.send(ProducerRecord::new("events", number.to_string())).await?);
//! }
//! producer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! ## Consume
//! Partitions of one's own choice, from a place of one's own choice: earliest, latest, an offset, a time.
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, ConsumerConfig, StartFrom};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let mut consumer = client.consumer(ConsumerConfig::default());
//! consumer.assign("events", &[(0, StartFrom::Earliest)]).await?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     println!("{} {:?} {:?}", record.offset, record.key, record.value);
//! }
//! # Ok(())
//! # }
//! ```
//! [`Consumer::next_batch`] hands out the same without a copy.
//!
//! ## Share the work: groups
//! Each partition has one member of the group; who comes, goes or dies changes who has which.
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, GroupConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let mut worker = client.group_consumer(GroupConfig::new("workers").with_topic("events"))?;
//! for _ in 0..100 {
//!     let record = worker.next().await?;
//!     println!("{} {:?}", record.offset, record.value);
//!     // To ask for the next says that this one is done: it is committed by itself, every five seconds.
//! }
//! worker.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! ## Topics, groups, the broker: [`Admin`]
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, NewTopic, OffsetSpec};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let admin = client.admin();
//! let configs = vec![("retention.ms".to_owned(), "30d".to_owned())];
//! admin.create_topic(&NewTopic { partitions: 8, configs, ..NewTopic::named("events") }).await?;
//! for end in admin.list_offsets("events", &[(0, OffsetSpec::Latest)]).await? {
//!     println!("partition {} ends at {}", end.partition, end.offset);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! ## Settings
//! Fields of [`ProducerConfig`], [`ConsumerConfig`] and [`GroupConfig`]; or by the names that the field uses, as text:
//! ```
//! use ringlog_client::{ConsumerConfig, Linger, ProducerConfig};
//!
//! let mut producer = ProducerConfig::default();
//! producer.set("linger.ms", "5")?;
//! producer.set("batch.size", "256KiB")?;
//! assert_eq!(producer.linger, Linger::Fixed(std::time::Duration::from_millis(5)));
//! let mut consumer = ConsumerConfig::default();
//! let error = consumer.set("fetch.wait", "1").unwrap_err().to_string();
//! assert!(error.contains("fetch.max.wait.ms"));
//! # Ok::<(), ringlog_client::SettingError>(())
//! ```
//!
//! Owner: the application, inside one tokio runtime with IO and time. Lifecycle: a [`Client`] learns the
//! cluster and lends its connections; producers and consumers have background tasks that end with them.
//! Invariants: memory is bounded by `buffer_memory` and `prefetch_bytes`; dropping never blocks; each
//! partition is reached on the core that owns it. Absent on purpose: transactions, TLS (a later issue); a synchronous
//! interface.
//!
//! Code map: [`connection`] frames and pipelining; [`request`] and [`reply`] what can be said; `cluster`
//! metadata and pool; `bootstrap` whom to ask; `producer` → `accumulator` (rules) → `sender` (driver); `consumer` → `fetcher`;
//! `group_consumer` → `coordinator` (who to ask), `consumer`.

pub mod cluster_request;
pub mod connection;
pub mod core_plan;
pub mod group_request;
pub mod homes;
pub mod plan;
pub mod reply;
pub mod request;

mod accumulator;
mod admin;
mod bootstrap;
mod client;
mod cluster;
mod cluster_admin;
mod config;
mod consumer;
mod coordinator;
mod delivery;
mod fetcher;
mod group_admin;
mod group_consumer;
mod partitioner;
mod producer;
mod sender;
mod sequencer;
mod settings;

pub use admin::{Admin, ListedOffset, TopicDescription};
pub use client::{Client, ClientError};

pub use cluster_request::{
    BrokerDescription, ClusterDescription, ElectionOutcome, PartitionReplicas, QuorumMember, Reassignment,
    ReplicaState, TopicReplicas,
};
pub use config::{ClientConfig, ConfigError};
pub use connection::{Connection, ConnectionError};
pub use consumer::{
    AutoOffsetReset, ConsumeError, ConsumedRecord, Consumer, ConsumerConfig, FetchedBatch, FetchedRecords,
    StartFrom,
};
pub use delivery::{Anatomy, BatchDelivery, BatchReceipt, DeliveryFuture, ProduceError, Receipt};
pub use group_admin::{GroupLag, PartitionBehind, PartitionLag};
pub use group_consumer::{
    AssignedPartition, Assignor, CommitFuture, GroupConfig, GroupConsumer, GroupError, GroupPartition,
    RebalanceListener, RevokedPartition,
};
pub use homes::HomeMove;
pub use partitioner::{CustomPartitioner, Partitioner, kafka_hash};
pub use producer::{BATCH_SIZE_MAX, Linger, Producer, ProducerConfig, ProducerRecord};
pub use reply::{
    BrokerAnatomy, BrokerError, BrokerStatus, ConfigValue, Durability, GroupBehind, GroupStatus,
    PartitionCompaction, PartitionLog, PartitionPlace, PartitionTraffic, ReplicaProgress, ShardStatus,
    TopicStatus,
};
pub use request::{Acks, NewTopic, OffsetSpec, TopicId};
pub use schema::compression::UnpackError;
pub use schema::error_code::ErrorCode;
pub use schema::record_batch::{BatchError, Compression, Headers, Record};
pub use settings::SettingError;
