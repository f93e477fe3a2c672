//! Ringlog under test, through its own client library.
//!
//! Every producer and every consumer has a client of its own, and with it connections, as if each were a process
//! of its own. Every acknowledgement waits for the device; that is what the broker means by it.

use super::deliveries::{Delivery, watch};
use super::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, Parts, Producer,
    ProducerOptions,
};
use futures_util::future::LocalBoxFuture;
use ringlog_client::{
    Acks, Client, ClientConfig, ConsumerConfig, DeliveryFuture, Linger, NewTopic, ProducerConfig,
    ProducerRecord, StartFrom,
};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// How long making or deleting a topic may take.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(180);

/// Ringlog at an address.
pub struct RinglogDriver {
    brokers: String,
    acks: Acks,
    replication_factor: u32,
}

impl RinglogDriver {
    /// Brokers at `HOST:PORT[,…]`.
    pub fn new(brokers: &str, acks: Acks) -> Self {
        Self { brokers: brokers.to_owned(), acks, replication_factor: 0 }
    }

    /// Topics are made with so many replicas of each partition; 0 = the broker's default.
    pub fn replicated(self, replication_factor: u32) -> Self {
        Self { replication_factor, ..self }
    }

    async fn client(&self) -> Result<Client, DriverError> {
        let config = ClientConfig::new(self.brokers.as_str()).map_err(failed)?;
        Client::connect(config).await.map_err(failed)
    }

    /// For topics: thousands of partitions are made and removed by one request.
    async fn patient_client(&self) -> Result<Client, DriverError> {
        let config = ClientConfig::new(self.brokers.as_str()).map_err(failed)?;
        Client::connect(ClientConfig { request_timeout: TOPIC_TIMEOUT, ..config }).await.map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError { driver: "ringlog", message: error.to_string() }
}

impl Driver for RinglogDriver {
    fn name(&self) -> &'static str {
        "ringlog"
    }

    fn durability(&self) -> Durability {
        match self.acks {
            Acks::None => Durability::None,
            Acks::Leader | Acks::All => Durability::Device,
        }
    }

    fn durability_settings(&self) -> String {
        let acks = match self.acks {
            Acks::None => "acks 0",
            Acks::Leader => "acks 1",
            Acks::All => "acks all",
        };
        match self.replication_factor {
            0 => acks.to_owned(),
            replicas => format!("{acks}, {replicas} replicas"),
        }
    }

    fn compresses(&self) -> bool {
        true
    }

    fn create_topic<'a>(
        &'a self,
        topic: &'a str,
        partitions: u32,
        retention_bytes: u64,
    ) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let mut configs = vec![("max.message.bytes".to_owned(), (8 << 20).to_string())];
            if retention_bytes > 0 {
                configs.push(("retention.bytes".to_owned(), retention_bytes.to_string()));
            }
            let name = topic.to_owned();
            let topic = NewTopic { name, partitions, replication_factor: self.replication_factor, configs };
            self.patient_client().await?.admin().create_topic(&topic).await.map(drop).map_err(failed)
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(
            async move { self.patient_client().await?.admin().delete_topic(topic).await.map_err(failed) },
        )
    }

    fn counters(&self) -> LocalBoxFuture<'_, Vec<(String, u64)>> {
        Box::pin(async move {
            let Ok(client) = self.client().await else { return Vec::new() };
            let Ok(status) = client.admin().status().await else { return Vec::new() };
            let mut sums = std::collections::BTreeMap::new();
            for (name, value) in status.shards.into_iter().flat_map(|shard| shard.counters) {
                *sums.entry(name).or_insert(0) += value;
            }
            sums.into_iter().collect()
        })
    }

    fn producer<'a>(
        &'a self,
        topic: &'a str,
        options: ProducerOptions,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Producer>, DriverError>> {
        Box::pin(async move {
            let mut config = ProducerConfig {
                acks: self.acks,
                explain: options.explain,
                compression: options.compression,
                ..ProducerConfig::default()
            };
            if options.batch_bytes > 0 {
                config.batch_size = options.batch_bytes;
            }
            if let Some(linger_ms) = options.linger_ms {
                config.linger = Linger::Fixed(Duration::from_secs_f64(linger_ms / 1e3));
            }
            if options.in_flight > 0 {
                config.max_in_flight_requests_per_connection = options.in_flight;
            }
            let producer = self.client().await?.producer(config);
            // Learns the topic now rather than with the first record.
            producer.partitions(topic).await.map_err(failed)?;
            Ok(Box::new(RinglogProducer::new(producer, topic, observer)) as Box<dyn Producer>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        Box::pin(async move {
            let client = self.client().await?;
            let described = client.admin().describe_topic(topic).await.map_err(failed)?;
            let start = if share.from_start { StartFrom::Earliest } else { StartFrom::Latest };
            let partitions = share.partitions(described.partitions.len() as u32);
            let partitions: Vec<(u32, StartFrom)> = partitions.map(|partition| (partition, start)).collect();
            let mut consumer = client.consumer(ConsumerConfig::default());
            consumer.assign(topic, &partitions).await.map_err(failed)?;
            Ok(Box::new(RinglogConsumer { consumer, observer }) as Box<dyn Consumer>)
        })
    }
}

/// Deliveries that have not come back.
#[derive(Default)]
struct Open {
    count: Cell<usize>,
    none: Notify,
}

struct RinglogProducer {
    producer: ringlog_client::Producer,
    topic: Arc<str>,
    deliveries: mpsc::UnboundedSender<Delivery<DeliveryFuture>>,
    open: Rc<Open>,
}

impl RinglogProducer {
    fn new(producer: ringlog_client::Producer, topic: &str, observer: Rc<dyn Observer>) -> Self {
        // Bounded by the producer's own memory: a record that is not taken is not in here.
        let (deliveries, incoming) = mpsc::unbounded_channel::<Delivery<DeliveryFuture>>();
        let open = Rc::new(Open::default());
        let settling = open.clone();
        tokio::task::spawn_local(watch(incoming, move |delivered, intended_ns, bytes| {
            match delivered {
                Ok(receipt) => {
                    observer.acknowledged(intended_ns, bytes, receipt.anatomy.map(parts).as_ref());
                }
                Err(error) => observer.failed(&error.to_string()),
            }
            settling.count.set(settling.count.get() - 1);
            if settling.count.get() == 0 {
                settling.none.notify_waiters();
            }
        }));
        Self { producer, topic: topic.into(), deliveries, open }
    }
}

fn parts(anatomy: ringlog_client::Anatomy) -> Parts {
    let broker = anatomy.broker;
    [
        anatomy.client_queue_ns,
        anatomy.round_trip_ns.saturating_sub(broker.total_ns()),
        broker.receive_ns,
        broker.core_hop_ns,
        broker.append_ns,
        broker.device_ns,
        broker.replicate_ns,
        broker.acknowledge_ns,
    ]
}

impl Producer for RinglogProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let OutgoingRecord { key, value, intended_ns } = record;
            let bytes = value.len();
            let mut outgoing = ProducerRecord::new(self.topic.clone(), value);
            outgoing.key = key;
            let future = self.producer.send(outgoing).await.map_err(failed)?;
            self.open.count.set(self.open.count.get() + 1);
            // The watcher lives as long as this producer.
            let _ = self.deliveries.send(Delivery { future, intended_ns, bytes });
            Ok(())
        })
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            // What failed has been reported record by record.
            let _ = self.producer.flush().await;
            while self.open.count.get() > 0 {
                self.open.none.notified().await;
            }
            Ok(())
        })
    }
}

struct RinglogConsumer {
    consumer: ringlog_client::Consumer,
    observer: Rc<dyn Observer>,
}

impl Consumer for RinglogConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            while let Some(fetched) = self.consumer.next_batch().await {
                for record in fetched.map_err(failed)?.records() {
                    if let Some(value) = record.map_err(failed)?.value {
                        self.observer.received(value);
                    }
                }
            }
            Ok(())
        })
    }
}
