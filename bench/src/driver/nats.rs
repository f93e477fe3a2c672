//! NATS JetStream under test, through `async-nats`.
//!
//! A partition is a stream of its own, in files, with one subject. A producer has a connection of its own
//! and publishes without waiting; the client bounds the open acknowledgements (5,000 by default). A publish
//! is acknowledged when the server has written it to the stream's file; whether that file is synced first
//! is the server's `sync_interval`, asked of its monitoring port. Without such a port nothing is claimed
//! beyond the server's default, the page cache.
//! Absent on purpose: the key, which decides the partition and is not stored; batches, which JetStream has
//! only as transactions, since 2.12 and for streams that allow them.

use super::deliveries::{Delivery, watch};
use super::room::Room;
use super::topics::{Partitions, Topic, Topics};
use super::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, Producer,
    ProducerOptions,
};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{Context, ContextBuilder, PublishAckFuture};
use async_nats::jetstream::stream;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::select_all;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// How long an answer may take. 5,000 publishes that are synced one by one take seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that a consumer asks for at a time.
const PULL_MESSAGES: usize = 1000;

/// A NATS server at an address.
pub struct NatsDriver {
    address: String,
    durability: Durability,
    settings: String,
    topics: Topics,
}

impl NatsDriver {
    /// The server at `HOST:PORT`, whose monitoring port is at `monitor`.
    ///
    /// # Errors
    /// One of them does not answer, or the server runs without JetStream.
    pub async fn connect(address: &str, monitor: Option<&str>) -> Result<Self, DriverError> {
        let mut driver = Self {
            address: address.to_owned(),
            durability: Durability::PageCache,
            settings: "JetStream, file storage; sync_interval not asked: no monitoring port".to_owned(),
            topics: Topics::default(),
        };
        // An unreachable server is noticed now rather than in the middle of a run.
        driver.context().await?.query_account().await.map_err(|error| {
            failed(format!("{address} has no JetStream ({error}); start nats-server with --jetstream"))
        })?;
        if let Some(monitor) = monitor {
            let text = varz(monitor).await.map_err(|error| failed(format!("{monitor}/varz: {error}")))?;
            (driver.durability, driver.settings) =
                stated(&text).map_err(|error| failed(format!("{monitor}/varz: {error}")))?;
        }
        Ok(driver)
    }

    async fn context(&self) -> Result<Context, DriverError> {
        let client = async_nats::connect(self.address.as_str())
            .await
            .map_err(|error| failed(format!("cannot connect to {}: {error}", self.address)))?;
        Ok(ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client))
    }
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError { driver: "nats", message: error.to_string() }
}

/// Name and subject of a partition's stream.
fn stream_name(topic: &str, partition: u32) -> String {
    format!("{topic}-{partition}")
}

/// The server's variables, as its monitoring port tells them.
async fn varz(monitor: &str) -> std::io::Result<String> {
    let mut socket = tokio::net::TcpStream::connect(monitor).await?;
    socket.write_all(b"GET /varz HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200") => {
            Ok(body.to_owned())
        }
        _ => Err(std::io::Error::other("no monitoring port of a NATS server")),
    }
}

/// What an acknowledgement means, from the server's variables.
fn stated(varz: &str) -> Result<(Durability, String), serde_json::Error> {
    let varz: serde_json::Value = serde_json::from_str(varz)?;
    let config = &varz["jetstream"]["config"];
    let always = config["sync_always"].as_bool() == Some(true);
    let (durability, sync) = match (always, config["sync_interval"].as_u64()) {
        (true, _) => (Durability::Device, "sync_interval always".to_owned()),
        (false, Some(ns)) => (Durability::PageCache, format!("sync_interval {} s", ns / 1_000_000_000)),
        // Before 2.10 it could not be set.
        (false, None) => (Durability::PageCache, "sync_interval 120 s, built in".to_owned()),
    };
    let version = varz["version"].as_str().unwrap_or("of an unknown version");
    Ok((durability, format!("nats-server {version}, JetStream, file storage, {sync}")))
}

impl Driver for NatsDriver {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn durability_settings(&self) -> String {
        self.settings.clone()
    }

    fn create_topic<'a>(
        &'a self,
        topic: &'a str,
        partitions: u32,
        retention_bytes: u64,
    ) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let context = self.context().await?;
            // First: what was made in part is deleted with the topic.
            self.topics.add(topic, Topic { partitions, retention_bytes });
            for partition in 0..partitions {
                let name = stream_name(topic, partition);
                let config = stream::Config {
                    subjects: vec![name.clone()],
                    storage: stream::StorageType::File,
                    max_bytes: if retention_bytes > 0 { retention_bytes as i64 } else { -1 },
                    name,
                    ..stream::Config::default()
                };
                context.create_stream(config).await.map_err(failed)?;
            }
            Ok(())
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("nats", topic)?.partitions;
            let context = self.context().await?;
            for partition in 0..partitions {
                context.delete_stream(stream_name(topic, partition)).await.map_err(failed)?;
            }
            self.topics.remove(topic);
            Ok(())
        })
    }

    fn producer<'a>(
        &'a self,
        topic: &'a str,
        _options: ProducerOptions,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Producer>, DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("nats", topic)?.partitions;
            let room = Rc::new(Room::new(observer));
            // Bounded by the room: a record that is not let in is not in here.
            let (deliveries, incoming) = mpsc::unbounded_channel::<Delivery<PublishAckFuture>>();
            let settling = room.clone();
            tokio::task::spawn_local(watch(incoming, move |answer, intended_ns, bytes| match answer {
                Ok(_) => settling.acknowledged(intended_ns, bytes),
                Err(error) => settling.failed(bytes, &error.to_string()),
            }));
            Ok(Box::new(NatsProducer {
                context: self.context().await?,
                subjects: (0..partitions).map(|partition| stream_name(topic, partition)).collect(),
                partitions: Partitions::new(partitions),
                room,
                deliveries,
            }) as Box<dyn Producer>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("nats", topic)?.partitions;
            let context = self.context().await?;
            let mut streams = Vec::new();
            for partition in share.partitions(partitions) {
                let config = pull::Config {
                    deliver_policy: match share.from_start {
                        true => DeliverPolicy::All,
                        false => DeliverPolicy::New,
                    },
                    // A log is read, nothing is taken from it.
                    ack_policy: AckPolicy::None,
                    ..pull::Config::default()
                };
                let stream = context.get_stream(stream_name(topic, partition)).await.map_err(failed)?;
                let consumer = stream.create_consumer(config).await.map_err(failed)?;
                let pulling = consumer.stream().max_messages_per_batch(PULL_MESSAGES);
                streams.push(pulling.messages().await.map_err(failed)?);
            }
            Ok(Box::new(NatsConsumer { streams, observer }) as Box<dyn Consumer>)
        })
    }
}

struct NatsProducer {
    context: Context,
    subjects: Vec<String>,
    partitions: Partitions,
    room: Rc<Room>,
    deliveries: mpsc::UnboundedSender<Delivery<PublishAckFuture>>,
}

impl Producer for NatsProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let OutgoingRecord { key, value, intended_ns } = record;
            let bytes = value.len();
            self.room.enter(bytes).await;
            let subject = &self.subjects[self.partitions.choose(key.as_deref()) as usize];
            match self.context.publish(subject.clone(), value).await {
                Ok(future) => {
                    // The watcher lives as long as this producer.
                    let _ = self.deliveries.send(Delivery { future, intended_ns, bytes });
                    Ok(())
                }
                Err(error) => {
                    let reason = format!("{error}; records above the server's max_payload need it raised");
                    self.room.failed(bytes, &reason);
                    Err(failed(reason))
                }
            }
        })
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            self.room.is_empty().await;
            Ok(())
        })
    }
}

struct NatsConsumer {
    streams: Vec<pull::Stream>,
    observer: Rc<dyn Observer>,
}

impl Consumer for NatsConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let mut messages = select_all(&mut self.streams);
            while let Some(message) = messages.next().await {
                self.observer.received(&message.map_err(failed)?.payload);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_believed_about_syncing() {
        let rows = [
            // As 2.15 says it.
            (
                r#"{"version":"2.15.1","jetstream":{"config":{"sync_interval":120000000000,"sync_always":true}}}"#,
                Durability::Device,
                "nats-server 2.15.1, JetStream, file storage, sync_interval always",
            ),
            (
                r#"{"version":"2.15.1","jetstream":{"config":{"sync_interval":120000000000}}}"#,
                Durability::PageCache,
                "nats-server 2.15.1, JetStream, file storage, sync_interval 120 s",
            ),
            // As 2.9 does.
            (
                r#"{"version":"2.9.10","jetstream":{"config":{"max_memory":1}}}"#,
                Durability::PageCache,
                "nats-server 2.9.10, JetStream, file storage, sync_interval 120 s, built in",
            ),
        ];
        for (varz, durability, settings) in rows {
            assert_eq!(stated(varz).expect(varz), (durability, settings.to_owned()));
        }
        assert!(stated("<html>").is_err());
    }
}
