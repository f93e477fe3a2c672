//! Redis streams under test, through the crate `redis`.
//!
//! A partition is a stream of its own, `TOPIC:N`. A producer has a connection of its own, collects what is
//! there into batches, and has several of them on the way. A batch is a pipeline of `XADD`s, and of more than
//! one a transaction (`MULTI`, `EXEC`): as whole as a batch of ours, and synced once. A consumer blocks in `XREAD` on all its partitions. What an acknowledgement means is asked of the server
//! (`appendonly`, `appendfsync`).
//! Absent on purpose: the key, which decides the partition and is not stored; consumer groups, which make
//! every read a write.

use super::room::Room;
use super::topics::{Partitions, Topic, Topics};
use super::{
    Consumer, ConsumerShare, Driver, DriverError, Durability, Observer, OutgoingRecord, Producer,
    ProducerOptions,
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, Value};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// How long an answer to a pipeline may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a pipeline at most, where the workload does not say; as our own client's batches.
const BATCH_BYTES: usize = 64 << 10;
/// Pipelines on the way, where the workload does not say; as Kafka's clients have requests.
const IN_FLIGHT: usize = 5;
/// Entries of each partition that a consumer asks for at a time.
const READ_ENTRIES: usize = 500;
/// How long a read waits for entries.
const READ_BLOCK_MS: usize = 1000;

/// A Redis server at an address.
pub struct RedisDriver {
    client: Client,
    durability: Durability,
    settings: String,
    topics: Topics,
}

impl RedisDriver {
    /// The server at `HOST:PORT`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn connect(address: &str) -> Result<Self, DriverError> {
        let info = format!("redis://{address}").into_connection_info().map_err(failed)?;
        // The crate leaves Nagle's algorithm on, which would hold small pipelines back.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let mut driver = Self {
            client: Client::open(info).map_err(failed)?,
            durability: Durability::Memory,
            settings: String::new(),
            topics: Topics::default(),
        };
        let mut connection = driver.connection(Some(ANSWER_TIMEOUT)).await?;
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection).await.map_err(failed)?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let append_only = setting(&mut connection, "appendonly").await;
        let append_fsync = setting(&mut connection, "appendfsync").await;
        let (durability, meaning) = stated(append_only.as_deref(), append_fsync.as_deref());
        driver.durability = durability;
        driver.settings = format!("redis-server {}, {meaning}", version.unwrap_or("of an unknown version"));
        Ok(driver)
    }

    async fn connection(&self, timeout: Option<Duration>) -> Result<MultiplexedConnection, DriverError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(timeout);
        self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError { driver: "redis", message: error.to_string() }
}

/// A setting of the server, if it may be asked for.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    let pair: Vec<String> = command.arg("GET").arg(name).query_async(connection).await.ok()?;
    pair.into_iter().nth(1)
}

/// What an acknowledgement means under these settings.
fn stated(append_only: Option<&str>, append_fsync: Option<&str>) -> (Durability, String) {
    match (append_only, append_fsync) {
        (Some("yes"), Some("always")) => {
            (Durability::Device, "appendonly yes, appendfsync always".to_owned())
        }
        (Some("yes"), Some("no")) => (Durability::PageCache, "appendonly yes, appendfsync no".to_owned()),
        // While a sync runs the server puts off writes for up to two seconds, and answers all the same.
        (Some("yes"), Some("everysec")) => (
            Durability::Memory,
            "appendonly yes, appendfsync everysec: in the page cache but while a sync runs".to_owned(),
        ),
        (Some("no"), _) => (Durability::Memory, "appendonly no".to_owned()),
        _ => (Durability::Memory, "appendonly and appendfsync not told".to_owned()),
    }
}

/// The stream of a partition.
fn stream_key(topic: &str, partition: u32) -> String {
    format!("{topic}:{partition}")
}

impl Driver for RedisDriver {
    fn name(&self) -> &'static str {
        "redis"
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
        // A stream comes into being with its first entry.
        self.topics.add(topic, Topic { partitions, retention_bytes });
        Box::pin(async { Ok(()) })
    }

    fn delete_topic<'a>(&'a self, topic: &'a str) -> LocalBoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("redis", topic)?.partitions;
            let mut connection = self.connection(Some(ANSWER_TIMEOUT)).await?;
            let mut command = redis::cmd("UNLINK");
            for partition in 0..partitions {
                command.arg(stream_key(topic, partition));
            }
            command.query_async::<Value>(&mut connection).await.map_err(failed)?;
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
            let known = self.topics.find("redis", topic)?;
            let room = Rc::new(Room::new(observer));
            // Bounded by the room: a record that is not let in is not in here.
            let (records, incoming) = mpsc::unbounded_channel();
            let pipeliner = Pipeliner {
                connection: self.connection(Some(ANSWER_TIMEOUT)).await?,
                keys: (0..known.partitions).map(|partition| stream_key(topic, partition)).collect(),
                retention_bytes: known.retention_bytes,
                batch_bytes: if options.batch_bytes > 0 { options.batch_bytes } else { BATCH_BYTES },
                linger: Duration::from_secs_f64(options.linger_ms.unwrap_or(0.0) / 1e3),
                in_flight: Arc::new(Semaphore::new(match options.in_flight {
                    0 => IN_FLIGHT,
                    in_flight => in_flight,
                })),
                room: room.clone(),
            };
            tokio::task::spawn_local(pipeliner.run(incoming));
            let partitions = Partitions::new(known.partitions);
            Ok(Box::new(RedisProducer { partitions, room, records }) as Box<dyn Producer>)
        })
    }

    fn consumer<'a>(
        &'a self,
        topic: &'a str,
        share: ConsumerShare,
        observer: Rc<dyn Observer>,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Consumer>, DriverError>> {
        Box::pin(async move {
            let partitions = self.topics.find("redis", topic)?.partitions;
            // No timeout: a read waits until there is something.
            let mut connection = self.connection(None).await?;
            let mut positions = Vec::new();
            for partition in share.partitions(partitions) {
                let key = stream_key(topic, partition);
                let after = match share.from_start {
                    true => None,
                    false => last_id(&mut connection, &key).await?,
                };
                positions.push((key, after.unwrap_or_else(|| "0-0".to_owned())));
            }
            Ok(Box::new(RedisConsumer { connection, positions, observer }) as Box<dyn Consumer>)
        })
    }
}

/// The id of a stream's last entry, if it has one.
async fn last_id(connection: &mut MultiplexedConnection, key: &str) -> Result<Option<String>, DriverError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    let last: Value = command.query_async(connection).await.map_err(failed)?;
    Ok(entries(&last).next().map(|(id, _)| id.to_owned()))
}

/// A record that is in the room.
struct Entry {
    partition: u32,
    value: Bytes,
    intended_ns: u64,
}

struct RedisProducer {
    partitions: Partitions,
    room: Rc<Room>,
    records: mpsc::UnboundedSender<Entry>,
}

impl Producer for RedisProducer {
    fn send(&mut self, record: OutgoingRecord) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            let OutgoingRecord { key, value, intended_ns } = record;
            self.room.enter(value.len()).await;
            let partition = self.partitions.choose(key.as_deref());
            // The pipeliner lives as long as this producer.
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

/// Makes pipelines of records and sends them; ends with its producer.
struct Pipeliner {
    connection: MultiplexedConnection,
    keys: Rc<[String]>,
    retention_bytes: u64,
    batch_bytes: usize,
    linger: Duration,
    in_flight: Arc<Semaphore>,
    room: Rc<Room>,
}

impl Pipeliner {
    async fn run(self, mut incoming: mpsc::UnboundedReceiver<Entry>) {
        while let Some(first) = incoming.recv().await {
            let full_by = Instant::now() + self.linger;
            // What comes while all pipelines are on their way goes into the next one.
            let Ok(place) = self.in_flight.clone().acquire_owned().await else { return };
            let mut bytes = first.value.len();
            let mut batch = vec![first];
            while bytes < self.batch_bytes {
                let next = match incoming.try_recv() {
                    Ok(next) => Some(next),
                    Err(_) if self.linger.is_zero() => None,
                    Err(_) => tokio::time::timeout_at(full_by, incoming.recv()).await.ok().flatten(),
                };
                let Some(next) = next else { break };
                bytes += next.value.len();
                batch.push(next);
            }
            let pipeline = self.pipeline(&batch);
            let (mut connection, room) = (self.connection.clone(), self.room.clone());
            tokio::task::spawn_local(async move {
                // Of a transaction the last answer alone says what became of it.
                let (skipped, wanted) = if pipeline.is_transaction() { (batch.len() + 1, 1) } else { (0, 1) };
                let answers = connection.send_packed_commands(&pipeline, skipped, wanted).await;
                drop(place);
                settle(&room, &batch, answers);
            });
        }
    }

    fn pipeline(&self, batch: &[Entry]) -> redis::Pipeline {
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        if batch.len() > 1 {
            // The server reads 16 KiB at a time and syncs what it has executed before it reads on. A
            // transaction is executed, and synced, at once.
            pipeline.atomic();
        }
        for entry in batch {
            let mut command = redis::cmd("XADD");
            command.arg(&self.keys[entry.partition as usize]);
            if self.retention_bytes > 0 {
                let entries_max = (self.retention_bytes / entry.value.len().max(1) as u64).max(1);
                command.arg("MAXLEN").arg("~").arg(entries_max);
            }
            command.arg("*").arg("v").arg(&entry.value[..]);
            pipeline.add_command(command);
        }
        pipeline
    }
}

fn settle(room: &Room, batch: &[Entry], answers: redis::RedisResult<Vec<Value>>) {
    let mut answers = match answers.map(|mut answers| answers.pop()) {
        Ok(Some(Value::Array(answers))) => answers.into_iter(),
        Ok(answer) => answer.into_iter().collect::<Vec<_>>().into_iter(),
        Err(error) => {
            let reason = error.to_string();
            return batch.iter().for_each(|entry| room.failed(entry.value.len(), &reason));
        }
    };
    for entry in batch {
        match answers.next() {
            Some(Value::BulkString(_) | Value::SimpleString(_)) => {
                room.acknowledged(entry.intended_ns, entry.value.len());
            }
            Some(Value::ServerError(error)) => room.failed(entry.value.len(), &error.to_string()),
            other => room.failed(entry.value.len(), &format!("XADD was answered with {other:?}")),
        }
    }
}

struct RedisConsumer {
    connection: MultiplexedConnection,
    /// (stream, id of the last entry that was received).
    positions: Vec<(String, String)>,
    observer: Rc<dyn Observer>,
}

impl Consumer for RedisConsumer {
    fn run(&mut self) -> LocalBoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            if self.positions.is_empty() {
                return std::future::pending().await;
            }
            loop {
                let mut command = redis::cmd("XREAD");
                command.arg("COUNT").arg(READ_ENTRIES).arg("BLOCK").arg(READ_BLOCK_MS).arg("STREAMS");
                for (key, _) in &self.positions {
                    command.arg(key);
                }
                for (_, after) in &self.positions {
                    command.arg(after);
                }
                let answer: Value = command.query_async(&mut self.connection).await.map_err(failed)?;
                // Nothing came in time.
                let Value::Array(streams) = answer else { continue };
                for stream in &streams {
                    self.receive(stream);
                }
            }
        })
    }
}

impl RedisConsumer {
    /// `[key, [[id, [field, value]], …]]`
    fn receive(&mut self, stream: &Value) {
        let Value::Array(parts) = stream else { return };
        let [key, list] = parts.as_slice() else { return };
        let Some(at) = self.positions.iter().position(|(known, _)| text(key) == Some(known)) else { return };
        for (id, value) in entries(list) {
            id.clone_into(&mut self.positions[at].1);
            self.observer.received(value);
        }
    }
}

/// The ids and values of `[[id, [field, value]], …]`.
fn entries(list: &Value) -> impl Iterator<Item = (&str, &[u8])> {
    let list = if let Value::Array(list) = list { list.as_slice() } else { &[] };
    list.iter().filter_map(|entry| {
        let Value::Array(parts) = entry else { return None };
        let [id, Value::Array(fields)] = parts.as_slice() else { return None };
        let [_, Value::BulkString(value)] = fields.as_slice() else { return None };
        Some((text(id)?, value.as_slice()))
    })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_claimed_that_the_server_did_not_say() {
        let rows = [
            (Some("yes"), Some("always"), Durability::Device),
            (Some("yes"), Some("no"), Durability::PageCache),
            (Some("yes"), Some("everysec"), Durability::Memory),
            (Some("no"), Some("always"), Durability::Memory),
            (Some("yes"), None, Durability::Memory),
            (None, None, Durability::Memory),
        ];
        for (append_only, append_fsync, durability) in rows {
            assert_eq!(stated(append_only, append_fsync).0, durability, "{append_only:?} {append_fsync:?}");
        }
    }
}
