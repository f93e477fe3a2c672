//! Apache Iggy under test, through its Rust SDK, the crate `iggy`.
//!
//! A topic is a stream with one topic of the same name. A producer has a connection of its own, on which the
//! protocol has one request at a time; what comes meanwhile is collected by partition, and the next request
//! carries a batch of the partition whose turn it is. A consumer polls its partitions in turn, because the
//! server does not wait for messages. When the server answers is its configuration's matter
//! (`system.partition`: `messages_required_to_save`, `enforce_fsync`), which is asked for with a snapshot of it.
//! Absent on purpose: the key, which decides the partition and is not stored; consumer groups and stored
//! offsets; the SDK's own producer and consumer, which add queues and threads to the same requests.

use super::room::Room;
use super::topics::{Partitions, Topic, Topics};
use super::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, Producer,
    ProducerOptions,
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use iggy::prelude::{
    Client, CompressionAlgorithm, Identifier, IggyByteSize, IggyExpiry, IggyMessage, MaxTopicSize,
    MessageClient, Partitioning, PollingStrategy, SnapshotCompression, StreamClient, SystemClient,
    SystemSnapshotType, TcpClient, TcpClientConfig, TcpClientReconnectionConfig, TopicClient, UserClient,
};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The first user of a server that was started with `--with-default-root-credentials`.
const USER: &str = "iggy";
const PASSWORD: &str = "iggy";
/// Bytes of a batch at most, where the workload does not say; as our own client's batches.
const BATCH_BYTES: usize = 64 << 10;
/// Messages that a consumer asks for at a time.
const POLL_MESSAGES: u32 = 1000;
/// How long a consumer rests after a turn in which no partition had anything; the server does not wait.
const POLL_REST: Duration = Duration::from_millis(1);
/// The server refuses a topic that may not grow to one segment, of 1 GiB by default.
const TOPIC_BYTES_MIN: u64 = 1 << 30;

/// An Iggy server at an address.
pub struct IggyDriver {
    address: String,
    durability: Durability,
    settings: String,
    topics: Topics,
}

impl IggyDriver {
    /// The server at `HOST:PORT` of its TCP transport.
    ///
    /// # Errors
    /// It does not answer, or its first user has another password than the documented one.
    pub async fn connect(address: &str) -> Result<Self, DriverError> {
        let mut driver = Self {
            address: address.to_owned(),
            durability: Durability::Memory,
            settings: String::new(),
            topics: Topics::default(),
        };
        let client = driver.client().await?;
        let version = client.get_stats().await.map_err(failed)?.iggy_server_version;
        let types = vec![SystemSnapshotType::ServerConfig];
        let snapshot = client.snapshot(SnapshotCompression::Stored, types).await;
        let told = snapshot.ok().and_then(|archive| first_stored_file(&archive.0).map(str::to_owned));
        let (durability, meaning) = stated(told.as_deref());
        driver.durability = durability;
        driver.settings = format!("iggy-server {version}, {meaning}");
        Ok(driver)
    }

    /// A connection that is signed in. It is not made anew when the server goes: a run would hang on it.
    async fn client(&self) -> Result<TcpClient, DriverError> {
        let client = TcpClient::create(Arc::new(TcpClientConfig {
            server_address: self.address.clone(),
            reconnection: TcpClientReconnectionConfig { enabled: false, ..Default::default() },
            // The SDK leaves Nagle's algorithm on, which would hold the ends of requests back.
            nodelay: true,
            ..TcpClientConfig::default()
        }));
        let client = client.map_err(failed)?;
        let connected = client.connect().await;
        connected.map_err(|error| failed(format!("cannot connect to {}: {error}", self.address)))?;
        client.login_user(USER, PASSWORD).await.map_err(|error| {
            failed(format!(
                "{} does not let {USER} in ({error}); start it with --with-default-root-credentials",
                self.address
            ))
        })?;
        Ok(client)
    }
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError { driver: "iggy", message: error.to_string() }
}

fn named(name: &str) -> Result<Identifier, DriverError> {
    Identifier::named(name).map_err(failed)
}

/// The content of the first file of a ZIP archive, if it is stored as it is and is text.
fn first_stored_file(archive: &[u8]) -> Option<&str> {
    // The local header: signature, version, flags, method, time, date, CRC, both sizes, lengths of name and extra.
    const HEADER_BYTES: usize = 30;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*archive.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*archive.get(at..)?.first_chunk()?));
    let is_stored = archive.starts_with(b"PK\x03\x04") && u16_at(8)? == 0;
    let from = HEADER_BYTES + usize::from(u16_at(26)?) + usize::from(u16_at(28)?);
    let content = archive.get(from..from.checked_add(u32_at(18)? as usize)?)?;
    if is_stored { std::str::from_utf8(content).ok() } else { None }
}

/// What an acknowledgement means under the server's configuration, as far as it was told.
fn stated(config: Option<&str>) -> (Durability, String) {
    let parsed: Option<toml::Table> = config.and_then(|text| text.parse().ok());
    let partition = parsed.as_ref().and_then(|table| table.get("system")?.get("partition"));
    let required = partition.and_then(|it| it.get("messages_required_to_save")?.as_integer());
    let fsync = partition.and_then(|it| it.get("enforce_fsync")?.as_bool());
    let (Some(required), Some(fsync)) = (required, fsync) else {
        return (Durability::Memory, "system.partition not told".to_owned());
    };
    let durability = match (required, fsync) {
        (1, true) => Durability::Device,
        (1, false) => Durability::PageCache,
        // Requests that fill the buffer are written before they are answered, the others are not.
        _ => Durability::Memory,
    };
    (durability, format!("messages_required_to_save {required}, enforce_fsync {fsync}"))
}

impl Driver for IggyDriver {
    fn name(&self) -> &'static str {
        "iggy"
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
            let client = self.client().await?;
            // First: what was made in part is deleted with the topic.
            self.topics.add(topic, Topic { partitions, retention_bytes });
            client.create_stream(topic).await.map_err(failed)?;
            let bytes_max = (retention_bytes * u64::from(partitions)).max(TOPIC_BYTES_MIN);
            let size = match retention_bytes {
                0 => MaxTopicSize::ServerDefault,
                _ => MaxTopicSize::Custom(IggyByteSize::from(bytes_max)),
            };
            let (none, expiry) = (CompressionAlgorithm::None, IggyExpiry::ServerDefault);
            let made = client.create_topic(&named(topic)?, topic, partitions, none, None, expiry, size).await;
            made.map_err(failed)?;
            Ok(())
        })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.topics.find("iggy", topic)?;
            self.client().await?.delete_stream(&named(topic)?).await.map_err(failed)?;
            self.topics.remove(topic);
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
            let partitions = self.topics.find("iggy", topic)?.partitions;
            let room = Rc::new(Room::new(observer));
            // Bounded by the room: a record that is not let in is not in here.
            let (records, incoming) = mpsc::unbounded_channel();
            let batcher = Batcher {
                client: self.client().await?,
                topic: named(topic)?,
                batch_bytes: if options.batch_bytes > 0 { options.batch_bytes } else { BATCH_BYTES },
                linger: Duration::from_secs_f64(options.linger_ms.unwrap_or(0.0) / 1e3),
                queues: (0..partitions).map(|_| Queue::default()).collect(),
                turns: VecDeque::new(),
                room: room.clone(),
            };
            tokio::task::spawn_local(batcher.run(incoming));
            let partitions = Partitions::new(partitions);
            Ok(Box::new(IggyProducer { partitions, room, records }) as Box<dyn Producer>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("iggy", topic)?.partitions;
            let (client, name) = (self.client().await?, named(topic)?);
            let mut positions: Vec<(u32, u64)> = share.partitions(partitions).map(|it| (it, 0)).collect();
            if !share.from_start {
                let details = client.get_topic(&name, &name).await.map_err(failed)?;
                let known = details.map(|details| details.partitions).unwrap_or_default();
                for (partition, next) in &mut positions {
                    let filled = known.iter().find(|it| it.id == *partition && it.messages_count > 0);
                    *next = filled.map_or(0, |it| it.current_offset + 1);
                }
            }
            Ok(Box::new(IggyConsumer { client, topic: name, positions, observer }) as Box<dyn Consumer>)
        })
    }
}

/// A record that is in the room.
struct Entry {
    partition: u32,
    value: Bytes,
    intended_ns: u64,
}

struct IggyProducer {
    partitions: Partitions,
    room: Rc<Room>,
    records: mpsc::UnboundedSender<Entry>,
}

impl Producer for IggyProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let OutgoingRecord { key, value, intended_ns } = record;
            self.room.enter(value.len()).await;
            let partition = self.partitions.choose(key.as_deref());
            // The batcher lives as long as this producer.
            let _ = self.records.send(Entry { partition, value, intended_ns });
            Ok(())
        })
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            self.room.is_empty().await;
            Ok(())
        })
    }
}

/// What waits for a partition.
#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// When its first entry came.
    since: Option<Instant>,
}

/// Makes batches of records and sends one at a time; ends with its producer.
struct Batcher {
    client: TcpClient,
    topic: Identifier,
    batch_bytes: usize,
    linger: Duration,
    queues: Vec<Queue>,
    /// The partitions for which something waits, in the order in which that began.
    turns: VecDeque<u32>,
    room: Rc<Room>,
}

impl Batcher {
    async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Entry>) {
        loop {
            while let Ok(entry) = incoming.try_recv() {
                self.take(entry);
            }
            let Some(&partition) = self.turns.front() else {
                match incoming.recv().await {
                    Some(entry) => self.take(entry),
                    None => return,
                }
                continue;
            };
            let queue = &self.queues[partition as usize];
            let due = queue.since.map(|since| since + self.linger);
            if let Some(due) = due.filter(|due| queue.bytes < self.batch_bytes && *due > Instant::now()) {
                // A fuller batch is worth the wait.
                if let Ok(Some(entry)) = tokio::time::timeout_at(due, incoming.recv()).await {
                    self.take(entry);
                    continue;
                }
            }
            self.turns.pop_front();
            self.send(partition).await;
        }
    }

    fn take(&mut self, entry: Entry) {
        let queue = &mut self.queues[entry.partition as usize];
        if queue.entries.is_empty() {
            self.turns.push_back(entry.partition);
            queue.since = Some(Instant::now());
        }
        queue.bytes += entry.value.len();
        queue.entries.push_back(entry);
    }

    /// Sends a batch of what waits for a partition, and waits for its answer.
    async fn send(&mut self, partition: u32) {
        let queue = &mut self.queues[partition as usize];
        let (mut batch, mut messages, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(entry) =
            queue.entries.pop_front_if(|it| batch.is_empty() || bytes + it.value.len() <= self.batch_bytes)
        {
            bytes += entry.value.len();
            match IggyMessage::builder().payload(entry.value.clone()).build() {
                Ok(message) => {
                    messages.push(message);
                    batch.push((entry.intended_ns, entry.value.len()));
                }
                Err(error) => self.room.failed(entry.value.len(), &error.to_string()),
            }
        }
        queue.bytes -= bytes;
        if !queue.entries.is_empty() {
            queue.since = Some(Instant::now());
            self.turns.push_back(partition);
        }
        if messages.is_empty() {
            return;
        }
        let where_to = Partitioning::partition_id(partition);
        let answer = self.client.send_messages(&self.topic, &self.topic, &where_to, &mut messages).await;
        for (intended_ns, bytes) in batch {
            match &answer {
                Ok(()) => self.room.acknowledged(intended_ns, bytes),
                Err(error) => self.room.failed(bytes, &error.to_string()),
            }
        }
    }
}

struct IggyConsumer {
    client: TcpClient,
    topic: Identifier,
    /// (partition, offset of the next message).
    positions: Vec<(u32, u64)>,
    observer: Rc<dyn Observer>,
}

impl Consumer for IggyConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            if self.positions.is_empty() {
                return std::future::pending().await;
            }
            let reader = iggy::prelude::Consumer::default();
            loop {
                let mut some = false;
                for (partition, next) in &mut self.positions {
                    let from = PollingStrategy::offset(*next);
                    let (topic, at) = (&self.topic, Some(*partition));
                    let polled = self
                        .client
                        .poll_messages(topic, topic, at, &reader, &from, POLL_MESSAGES, false)
                        .await;
                    for message in polled.map_err(failed)?.messages {
                        some = true;
                        *next = message.header.offset + 1;
                        self.observer.received(&message.payload);
                    }
                }
                if !some {
                    tokio::time::sleep(POLL_REST).await;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_claimed_that_the_server_did_not_say() {
        let config = |required: u32, fsync: bool| {
            format!(
                "[tcp]\nenabled = true\n[system.partition]\nenforce_fsync = {fsync}\nmessages_required_to_save = {required}\n"
            )
        };
        let rows = [
            (Some(config(1, true)), Durability::Device),
            (Some(config(1, false)), Durability::PageCache),
            (Some(config(1024, true)), Durability::Memory),
            (Some(config(1024, false)), Durability::Memory),
            (Some("[system.partition]\nenforce_fsync = true\n".to_owned()), Durability::Memory),
            (Some("no [configuration".to_owned()), Durability::Memory),
            (None, Durability::Memory),
        ];
        for (config, durability) in rows {
            assert_eq!(stated(config.as_deref()).0, durability, "{config:?}");
        }
    }

    #[test]
    fn a_stored_file_is_read_and_nothing_else() {
        let archive = |method: u16, size: u32| {
            let mut archive = b"PK\x03\x04\x14\x00\x00\x00".to_vec();
            archive.extend(method.to_le_bytes());
            archive.extend([0; 8]);
            archive.extend(size.to_le_bytes());
            archive.extend(size.to_le_bytes());
            archive.extend(5u16.to_le_bytes());
            archive.extend(2u16.to_le_bytes());
            archive.extend(b"a.txt??contentPK\x01\x02");
            archive
        };
        assert_eq!(first_stored_file(&archive(0, 7)), Some("content"));
        assert_eq!(first_stored_file(&archive(8, 7)), None);
        assert_eq!(first_stored_file(&archive(0, 700)), None);
        assert_eq!(first_stored_file(&archive(0, u32::MAX)), None);
        assert_eq!(first_stored_file(b"PK\x03\x04"), None);
        assert_eq!(first_stored_file(b""), None);
    }
}
