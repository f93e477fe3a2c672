//! Whatever speaks Kafka's protocol under test, through `rdkafka` (librdkafka).
//!
//! A broker that runs already: nothing here starts one. A producer has a client of its own, `acks=all`, and
//! the batches of that client. To Kafka an acknowledgement from all in-sync replicas means their page
//! caches; `flush.messages=1` on the topic makes them sync first, which is set where the device is wanted,
//! and read back. What other brokers of the protocol do by themselves cannot be asked, and is not claimed.
//! Absent on purpose: consumer groups; partitions are assigned.

use super::deliveries::{Delivery, watch};
use super::room::Room;
use super::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, Producer,
    ProducerOptions,
};
use futures_util::future::LocalBoxFuture;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Message, Offset, TopicPartitionList};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the cluster may take to describe itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster at an address.
pub struct KafkaDriver {
    brokers: String,
    sync_each: bool,
}

impl KafkaDriver {
    /// Brokers at `HOST:PORT[,…]`; with `sync_each`, topics are made so that they sync before they
    /// acknowledge.
    ///
    /// # Errors
    /// None of the brokers answers.
    pub fn connect(brokers: &str, sync_each: bool) -> Result<Self, DriverError> {
        let driver = Self { brokers: brokers.to_owned(), sync_each };
        let client: FutureProducer = driver.config().create().map_err(failed)?;
        client.client().fetch_metadata(None, ANSWER_TIMEOUT).map_err(failed)?;
        Ok(driver)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("socket.nagle.disable", "true");
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, DriverError> {
        self.config().create().map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError { driver: "kafka", message: error.to_string() }
}

impl Driver for KafkaDriver {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn durability(&self) -> Durability {
        if self.sync_each { Durability::Device } else { Durability::PageCache }
    }

    fn durability_settings(&self) -> String {
        match self.sync_each {
            true => "acks=all, flush.messages=1 on the topic",
            false => "acks=all, syncing left to the broker's settings, which were not asked",
        }
        .to_owned()
    }

    fn create_topic<'a>(
        &'a self,
        topic: &'a str,
        partitions: u32,
        retention_bytes: u64,
    ) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let retention = retention_bytes.to_string();
            // -1: as many replicas as the cluster gives by itself.
            let mut new = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(-1));
            if retention_bytes > 0 {
                new = new.set("retention.bytes", &retention);
            }
            if self.sync_each {
                new = new.set("flush.messages", "1");
            }
            let (admin, options) = (self.admin()?, AdminOptions::new());
            for made in admin.create_topics([&new], &options).await.map_err(failed)? {
                made.map_err(|(topic, error)| failed(format!("cannot make {topic}: {error}")))?;
            }
            if self.sync_each {
                let resource = ResourceSpecifier::Topic(topic);
                let described = admin.describe_configs([&resource], &options).await;
                let described = described.map_err(failed)?.into_iter().next();
                let config = described.ok_or_else(|| failed("the topic's settings are not told"))?;
                let config = config.map_err(failed)?;
                let flush = config.get("flush.messages").and_then(|entry| entry.value.clone());
                if flush.as_deref() != Some("1") {
                    return Err(failed(
                        "the broker does not take flush.messages=1 and acknowledges from where it likes; \
                         compare with --defaults",
                    ));
                }
            }
            Ok(())
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let deleted = self.admin()?.delete_topics(&[topic], &AdminOptions::new()).await;
            for deleted in deleted.map_err(failed)? {
                deleted.map_err(|(topic, error)| failed(format!("cannot delete {topic}: {error}")))?;
            }
            Ok(())
        })
    }

    fn producer<'a>(
        &'a self,
        topic: &'a str,
        options: ProducerOptions,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Producer>, DriverError>> {
        Box::pin(async move {
            let mut config = self.config();
            config.set("acks", "all").set("partitioner", "murmur2_random");
            // The room bounds what is open: the client's own queue is never full before.
            config.set("queue.buffering.max.messages", "10000000");
            config.set("queue.buffering.max.kbytes", "1048576").set("message.max.bytes", "8388608");
            if options.batch_bytes > 0 {
                config.set("batch.size", options.batch_bytes.to_string());
                config.set("batch.num.messages", "1000000");
            }
            if let Some(linger_ms) = options.linger_ms {
                config.set("linger.ms", linger_ms.to_string());
            }
            if options.in_flight > 0 {
                config.set("max.in.flight.requests.per.connection", options.in_flight.to_string());
            }
            let client: FutureProducer = config.create().map_err(failed)?;
            // Learns the topic now rather than with the first record.
            client.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT).map_err(failed)?;
            let room = Rc::new(Room::new(observer));
            // Bounded by the room: a record that is not let in is not in here.
            let (deliveries, incoming) = mpsc::unbounded_channel::<Delivery<DeliveryFuture>>();
            let settling = room.clone();
            tokio::task::spawn_local(watch(incoming, move |delivery, intended_ns, bytes| match delivery {
                Ok(Ok(_)) => settling.acknowledged(intended_ns, bytes),
                Ok(Err((error, _))) => settling.failed(bytes, &error.to_string()),
                Err(_) => settling.failed(bytes, "the client was closed"),
            }));
            let topic = topic.to_owned();
            Ok(Box::new(KafkaProducer { client, topic, room, deliveries }) as Box<dyn Producer>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        Box::pin(async move {
            let mut config = self.config();
            config.set("group.id", "ringlog-bench").set("enable.auto.commit", "false");
            let consumer: StreamConsumer = config.create().map_err(failed)?;
            let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).map_err(failed)?;
            let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            let start = if share.from_start { Offset::Beginning } else { Offset::End };
            let mut assigned = TopicPartitionList::new();
            for partition in share.partitions(partitions as u32) {
                assigned.add_partition_offset(topic, partition as i32, start).map_err(failed)?;
            }
            consumer.assign(&assigned).map_err(failed)?;
            Ok(Box::new(KafkaConsumer { consumer, observer }) as Box<dyn Consumer>)
        })
    }
}

struct KafkaProducer {
    client: FutureProducer,
    topic: String,
    room: Rc<Room>,
    deliveries: mpsc::UnboundedSender<Delivery<DeliveryFuture>>,
}

impl Producer for KafkaProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let OutgoingRecord { key, value, intended_ns } = record;
            let bytes = value.len();
            self.room.enter(bytes).await;
            let mut outgoing = FutureRecord::<[u8], [u8]>::to(&self.topic).payload(&value);
            outgoing.key = key.as_deref();
            match self.client.send_result(outgoing) {
                Ok(future) => {
                    // The watcher lives as long as this producer.
                    let _ = self.deliveries.send(Delivery { future, intended_ns, bytes });
                    Ok(())
                }
                Err((error, _)) => {
                    self.room.failed(bytes, &error.to_string());
                    Err(failed(error))
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

struct KafkaConsumer {
    consumer: StreamConsumer,
    observer: Rc<dyn Observer>,
}

impl Consumer for KafkaConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            loop {
                let message = self.consumer.recv().await.map_err(failed)?;
                if let Some(value) = message.payload() {
                    self.observer.received(value);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Parts;
    use rdkafka::mocking::MockCluster;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use tokio::sync::Notify;

    #[derive(Default)]
    struct Seen {
        acknowledged: RefCell<BTreeSet<u64>>,
        received: RefCell<BTreeSet<Vec<u8>>>,
        changed: Notify,
    }

    impl Observer for Seen {
        fn acknowledged(&self, intended_ns: u64, _: usize, _: Option<&Parts>) {
            assert!(self.acknowledged.borrow_mut().insert(intended_ns), "{intended_ns} came twice");
        }
        fn failed(&self, reason: &str) {
            panic!("{reason}");
        }
        fn received(&self, value: &[u8]) {
            self.received.borrow_mut().insert(value.to_vec());
            self.changed.notify_waiters();
        }
    }

    /// librdkafka's own imitation of a cluster: the protocol is real, disks are not.
    #[test]
    fn what_is_acknowledged_is_received() {
        const RECORDS: u64 = 500;
        let cluster = MockCluster::new(1).expect("a cluster in this process");
        cluster.create_topic("drive", 3, 1).expect("a topic");
        let driver = KafkaDriver::connect(&cluster.bootstrap_servers(), false).expect("it is there");
        assert_eq!(driver.durability(), Durability::PageCache);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let seen = Rc::new(Seen::default());
            let options =
                ProducerOptions { linger_ms: Some(0.0), in_flight: 1, ..ProducerOptions::default() };
            let mut producer = driver.producer("drive", options, seen.clone()).await.expect("a producer");
            for number in 0..RECORDS {
                let value = number.to_le_bytes().to_vec();
                let key = number.is_multiple_of(2).then(|| value.clone().into());
                let record = OutgoingRecord { key, value: value.into(), intended_ns: number };
                producer.send(record).await.expect("it has room");
            }
            producer.flush().await.expect("all come back");
            assert_eq!(seen.acknowledged.borrow().len() as u64, RECORDS);
            let share = ConsumerShare { consumers: 1, index: 0, from_start: true };
            let mut consumer = driver.consumer("drive", share, seen.clone()).await.expect("a consumer");
            let all = async {
                while (seen.received.borrow().len() as u64) < RECORDS {
                    seen.changed.notified().await;
                }
            };
            tokio::select! {
                ended = consumer.run() => panic!("the consumer ended: {ended:?}"),
                () = all => {}
            }
        });
    }
}
