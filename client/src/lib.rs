//! The async client of the Ringlog broker, for tokio: [`Producer`], [`Consumer`], [`GroupConsumer`], [`Admin`].
//!
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, ConsumerConfig, ProducerConfig, ProducerRecord, StartFrom};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let producer = client.producer(ProducerConfig::default());
//! let receipt = producer.send(ProducerRecord::new("events", "hello").with_key("k")).await?.await?;
//! println!("offset {} of partition {}: {:?}", receipt.offset, receipt.partition, receipt.durability);
//!
//! let mut consumer = client.consumer(ConsumerConfig::default());
//! consumer.assign("events", &[(receipt.partition, StartFrom::Earliest)]).await?;
//! if let Some(fetched) = consumer.next_batch().await {
//!     for record in fetched?.records() {
//!         println!("{:?}", record?.value);
//!     }
//! }
//! producer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Owner: the application, inside one tokio runtime with IO and time. Lifecycle: a [`Client`] learns the
//! cluster and lends its connections; producers and consumers have background tasks that end with them.
//! Invariants: memory is bounded by `buffer_memory` and `prefetch_bytes`; dropping never blocks; each
//! partition is reached on the core that owns it. Absent on purpose: transactions,
//! TLS (a later issue); a synchronous interface.
//!
//! Code map: [`connection`] frames and pipelining; [`request`] and [`reply`] what can be said; `client`
//! metadata and pool; `producer` → `accumulator` (rules) → `sender` (driver); `consumer` → `fetcher`;
//! `group_consumer` → `coordinator` (who to ask), `consumer`.

pub mod connection;
pub mod group_request;
pub mod reply;
pub mod request;

mod accumulator;
mod admin;
mod client;
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

pub use config::{ClientConfig, ConfigError};
pub use connection::{Connection, ConnectionError};
pub use consumer::{
    AutoOffsetReset, ConsumeError, ConsumedRecord, Consumer, ConsumerConfig, FetchedBatch, FetchedRecords,
    StartFrom,
};
pub use delivery::{Anatomy, BatchDelivery, BatchReceipt, DeliveryFuture, ProduceError, Receipt};
pub use group_admin::{GroupLag, PartitionLag};
pub use group_consumer::{
    AssignedPartition, Assignor, CommitFuture, GroupConfig, GroupConsumer, GroupError, GroupPartition,
    RebalanceListener, RevokedPartition,
};
pub use partitioner::{CustomPartitioner, Partitioner, kafka_hash};
pub use producer::{BATCH_SIZE_MAX, Linger, Producer, ProducerConfig, ProducerRecord};
pub use reply::{
    BrokerAnatomy, BrokerError, BrokerStatus, ConfigValue, Durability, GroupBehind, GroupStatus,
    PartitionCompaction, PartitionLog, PartitionPlace, ShardStatus, TopicStatus,
};
pub use request::{Acks, NewTopic, OffsetSpec, TopicId};
pub use schema::compression::UnpackError;
pub use schema::error_code::ErrorCode;
pub use schema::record_batch::{BatchError, Compression, Headers, Record};
pub use settings::SettingError;
