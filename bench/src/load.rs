//! Closed-loop load: each connection keeps a fixed number of requests in flight to its own partitions.
//!
//! Requests are raw, one per batch, and the batch is encoded once and sent again and again, so that what is
//! measured is the broker and the wire, not the making of records.
//! Lifecycle of a run: connect → make the topic where it is missing → (for consuming) fill it → open the
//! connections → warm up → measure → delete the topic if this run made it.
//! Invariants: one thread does all of it; a request counts when its reply arrives inside the measured time;
//! a refusal that may be repeated is counted apart, any other ends the run.
//! Absent on purpose: open-loop load. A closed loop slows down with the broker, so that its latency is that
//! of this many requests in flight, not of an arrival rate.

use crate::meter::Meter;
use crate::{consume, produce};
use ringlog_client::{
    Acks, Client, ClientConfig, ClientError, Connection, ConnectionError, ErrorCode, NewTopic,
    PartitionPlace, TopicId,
};
use schema::error_code::Class;
use schema::record_batch::{BatchError, HEADER_BYTES};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Which way the records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Append.
    Produce,
    /// Read from the start, again and again.
    Consume,
}

/// What to do. Serialised with every report, so that a figure never stands alone.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoadConfig {
    /// `HOST:PORT[,…]`.
    pub brokers: String,
    /// The topic; made where it is missing, and then deleted at the end.
    pub topic: String,
    /// Which way.
    pub mode: Mode,
    /// Bytes of one record's value.
    pub record_bytes: usize,
    /// Records in one request's batch.
    pub records_per_request: usize,
    /// Requests in flight per connection.
    pub in_flight: usize,
    /// Connections; connection `i` of `n` uses partition `i` modulo their number, on the core that owns it, and in turn
    /// with it the partitions `i + n`, `i + 2n`, … of the same core.
    pub connections: usize,
    /// Partitions of the topic if it is made.
    pub partitions: u32,
    /// What an acknowledgement waits for.
    #[serde(serialize_with = "acks_name")]
    pub acks: Acks,
    /// How long to measure.
    pub seconds: f64,
    /// How long to run before that.
    pub warmup_seconds: f64,
    /// The core that the load runs on; `None` = wherever the kernel puts it.
    pub client_core: Option<usize>,
    /// `retention.bytes` of the topic if it is made: what keeps the disk from filling up.
    pub retention_bytes: u64,
    /// Consuming: bytes at most in one reply.
    pub fetch_bytes: u32,
    /// Consuming: bytes that each partition is filled to first, if the topic is made.
    pub fill_bytes: u64,
    /// Consuming: whether the CRC of every batch is checked.
    pub verify: bool,
    /// Whether a topic that this run made is left there.
    pub keep_topic: bool,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            brokers: format!("127.0.0.1:{}", schema::DEFAULT_PORT),
            topic: "bench-load".to_owned(),
            mode: Mode::Produce,
            record_bytes: 1000,
            records_per_request: 1000,
            in_flight: 1,
            connections: 1,
            partitions: 1,
            acks: Acks::All,
            seconds: 10.0,
            warmup_seconds: 2.0,
            client_core: None,
            retention_bytes: 4 << 30,
            fetch_bytes: 1 << 20,
            fill_bytes: 512 << 20,
            verify: false,
            keep_topic: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoadReport {
    /// What was asked for.
    #[serde(flatten)]
    pub config: LoadConfig,
    /// Replies inside the measured time.
    pub requests: u64,
    /// Refusals that may be repeated (`OVERLOADED`, `STORAGE_FULL`, `NOT_LEADER`), and were.
    pub refused: u64,
    /// Replies per second.
    pub requests_s: f64,
    /// Records per second.
    pub records_s: f64,
    /// Producing: 10^6 bytes of values per second. Consuming: 10^6 bytes of batches per second.
    pub mb_s: f64,
    /// Median from send to reply, microseconds.
    pub p50_us: f64,
    /// One request in a hundred took longer.
    pub p99_us: f64,
    /// One request in a thousand took longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// The durability that the last receipt stated; `None` without receipts.
    pub durability: Option<&'static str>,
    /// How many cores the broker has.
    pub broker_shards: u32,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Settings that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The cluster cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A request was refused for good.
    #[error("partition {partition}: {}: {}", code.name(), code.advice())]
    Refused {
        /// The partition.
        partition: u32,
        /// Why.
        code: ErrorCode,
    },
    /// What was read is damaged.
    #[error("partition {partition} offset {offset}: {error}")]
    Damaged {
        /// The partition.
        partition: u32,
        /// Where the fetch began.
        offset: u64,
        /// What is wrong.
        error: BatchError,
    },
    /// A reply without what was asked for.
    #[error("the broker answered {0} with something else; upgrade the older of client and broker")]
    UnexpectedReply(&'static str),
    /// No runtime.
    #[error("cannot start the load's runtime: {0}")]
    Runtime(#[from] io::Error),
}

impl From<ringlog_client::ConfigError> for LoadError {
    fn from(error: ringlog_client::ConfigError) -> Self {
        Self::Client(error.into())
    }
}

/// Runs the load on a thread of its own and waits for the end.
///
/// # Errors
/// [`LoadError::Invalid`] before anything was sent; all else is from the first request that failed for good.
pub fn run(config: &LoadConfig) -> Result<LoadReport, LoadError> {
    check(config)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(config.client_core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, load(config))
        });
        // A panic in there is a bug of this crate; it goes on here.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn check(config: &LoadConfig) -> Result<(), LoadError> {
    let invalid = |text: String| Err(LoadError::Invalid(text));
    let pending_max = ringlog_client::connection::PENDING_MAX;
    if config.records_per_request == 0 || config.connections == 0 || config.partitions == 0 {
        return invalid("records per request, connections and partitions are at least 1".into());
    }
    if config.in_flight == 0 || config.in_flight > pending_max {
        return invalid(format!("in flight is 1 to {pending_max}"));
    }
    if config.seconds.is_nan() || config.seconds <= 0.0 || config.seconds > 86_400.0 {
        return invalid("seconds is above 0, at most 86400".into());
    }
    if config.warmup_seconds.is_nan() || !(0.0..=86_400.0).contains(&config.warmup_seconds) {
        return invalid("warm-up is 0 to 86400 seconds".into());
    }
    let batch_bytes = config.record_bytes.saturating_mul(config.records_per_request);
    if batch_bytes > 8 << 20 {
        return invalid(format!("a request of {batch_bytes} bytes; a batch has at most 8 MiB"));
    }
    Ok(())
}

fn pin(core: Option<usize>) -> Result<(), LoadError> {
    let Some(core) = core else {
        return Ok(());
    };
    let known = core_affinity::get_core_ids().unwrap_or_default();
    match known.iter().find(|id| id.id == core) {
        Some(id) if core_affinity::set_for_current(*id) => Ok(()),
        Some(_) => Err(LoadError::Invalid(format!("core {core} cannot be pinned to"))),
        None => {
            let cores: Vec<String> = known.iter().map(|id| id.id.to_string()).collect();
            Err(LoadError::Invalid(format!("there is no core {core}; usable are {}", cores.join(", "))))
        }
    }
}

/// One connection and the partitions it works on.
#[derive(Clone)]
pub(crate) struct Lane {
    pub connection: Connection,
    pub topic: TopicId,
    /// At least one, all on the connection's core.
    pub places: Rc<[PartitionPlace]>,
}

impl Lane {
    /// The partitions in turn for worker `worker` of this lane: workers begin at different ones.
    pub fn turns(&self, worker: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.places.len();
        (worker % count..count).chain(std::iter::repeat_with(move || 0..count).flatten())
    }
}

/// Every worker of every lane with its number.
pub(crate) fn workers(lanes: &[Lane], in_flight: usize) -> impl Iterator<Item = (&Lane, usize)> {
    lanes.iter().flat_map(move |lane| (0..in_flight).map(move |worker| (lane, worker)))
}

async fn load(config: &LoadConfig) -> Result<LoadReport, LoadError> {
    let client = Client::connect(ClientConfig::new(config.brokers.as_str())?).await?;
    let made = ensure_topic(&client, config).await?;
    let result = measure(&client, config, made).await;
    if made && !config.keep_topic {
        let deleted = client.admin().delete_topic(&config.topic).await;
        // The first error is the one that matters.
        if result.is_ok() {
            deleted?;
        }
    }
    result
}

/// Whether the topic was made.
async fn ensure_topic(client: &Client, config: &LoadConfig) -> Result<bool, LoadError> {
    match client.admin().describe_topic(&config.topic).await {
        Ok(_) => return Ok(false),
        Err(ClientError::UnknownTopic { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let batch_bytes = HEADER_BYTES + config.records_per_request * (config.record_bytes + 64);
    let mut configs = vec![("retention.bytes".to_owned(), config.retention_bytes.to_string())];
    if batch_bytes > 1 << 20 {
        configs.push(("max.message.bytes".to_owned(), batch_bytes.to_string()));
    }
    let topic = NewTopic {
        name: config.topic.clone(),
        partitions: config.partitions,
        replication_factor: 0,
        configs,
    };
    client.admin().create_topic(&topic).await?;
    Ok(true)
}

async fn measure(client: &Client, config: &LoadConfig, made: bool) -> Result<LoadReport, LoadError> {
    let topic = client.admin().describe_topic(&config.topic).await?;
    let mut lanes = Vec::with_capacity(config.connections);
    for index in 0..config.connections {
        let first = topic.partitions[index % topic.partitions.len()];
        let nobody =
            || ClientError::NoLeader { name: topic.name.as_str().into(), partition: first.partition };
        let connection = client.open_connection(first.leader.ok_or_else(nobody)?, first.shard).await?;
        let others = topic.partitions.iter().skip(index).step_by(config.connections).skip(1);
        let here = others.filter(|place| (place.leader, place.shard) == (first.leader, first.shard));
        let places = std::iter::once(first).chain(here.copied()).collect();
        lanes.push(Lane { connection, topic: topic.id, places });
    }
    let broker_shards = lanes[0].connection.hello().shards;
    if config.mode == Mode::Consume && made {
        produce::fill(&lanes, config).await?;
    }
    let from = Instant::now() + Duration::from_secs_f64(config.warmup_seconds);
    let meter = Rc::new(RefCell::new(Meter::new(from, Duration::from_secs_f64(config.seconds))));
    match config.mode {
        Mode::Produce => produce::run(&lanes, config, &meter).await?,
        Mode::Consume => {
            let starts = client.admin().describe_logs(&config.topic).await?;
            consume::run(&lanes, &starts, config, &meter).await?;
        }
    }
    let meter = meter.borrow();
    let seconds = config.seconds;
    let quantile = |q| meter.latency_ns.value_at_quantile(q) as f64 / 1e3;
    Ok(LoadReport {
        config: config.clone(),
        requests: meter.requests,
        refused: meter.refused,
        requests_s: meter.requests as f64 / seconds,
        records_s: meter.records as f64 / seconds,
        mb_s: meter.bytes as f64 / 1e6 / seconds,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        max_us: meter.latency_ns.max() as f64 / 1e3,
        durability: meter.durability,
        broker_shards,
    })
}

/// Waits for all workers; the first failure ends the wait, and with the runtime the others.
pub(crate) async fn all(
    workers: Vec<tokio::task::JoinHandle<Result<(), LoadError>>>,
) -> Result<(), LoadError> {
    let mut set = tokio::task::JoinSet::new();
    for worker in workers {
        set.spawn_local(worker);
    }
    while let Some(ended) = set.join_next().await {
        match ended {
            Ok(Ok(result)) => result?,
            Ok(Err(error)) | Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Cancelled: the runtime is going down with an error of another worker.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Ok(())
}

/// Whether the same request can succeed a moment later. A core that has not heard of a new topic yet says
/// that it is not the leader.
pub(crate) fn is_repeatable(code: ErrorCode) -> bool {
    matches!(code.class(), Class::Retry | Class::RefreshAndRetry)
}

fn acks_name<S: serde::Serializer>(acks: &Acks, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match acks {
        Acks::None => "0",
        Acks::Leader => "1",
        Acks::All => "all",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_refused_before_anything_is_sent() {
        type Change = fn(&mut LoadConfig);
        let rows: [(Change, &str); 7] = [
            (|config| config.in_flight = 0, "in flight"),
            (|config| config.in_flight = 1025, "in flight"),
            (|config| config.connections = 0, "at least 1"),
            (|config| config.seconds = 0.0, "seconds"),
            (|config| config.seconds = f64::NAN, "seconds"),
            (|config| config.record_bytes = 16 << 20, "at most 8 MiB"),
            (|config| config.client_core = Some(usize::MAX), "no core"),
        ];
        for (change, expect) in rows {
            // Port 9 of this host: whoever tries it would fail otherwise.
            let mut config = LoadConfig { brokers: "127.0.0.1:9".into(), ..LoadConfig::default() };
            change(&mut config);
            match run(&config) {
                Err(LoadError::Invalid(text)) => assert!(text.contains(expect), "{text}: no '{expect}'"),
                other => panic!("expected a refusal with '{expect}', not {other:?}"),
            }
        }
    }

    #[test]
    fn without_a_broker_the_error_names_the_address() {
        let config = LoadConfig { brokers: "127.0.0.1:9".into(), ..LoadConfig::default() };
        let error = run(&config).expect_err("nobody listens there").to_string();
        assert!(error.contains("127.0.0.1:9"), "{error}");
    }
}
