//! What all suites need: a broker process, a client that says raw bytes, batches that prove themselves,
//! and a well-behaved neighbour.
//!
//! Lifecycle: each test makes its own data directory and broker; both go with it.
//! Absent on purpose: retries and sleeps. Whoever waits, waits for something, with a deadline.

pub mod neighbour;
pub mod process;
pub mod raw;
pub mod records;
pub mod refuse_io_uring;
pub mod segments;
pub mod skipped;

use ringlog_client::{BrokerStatus, Client, ClientConfig, NewTopic, TopicDescription};
use server::broker::{Broker, BrokerConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// What turns a hang into a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A directory for one test's data; it stays, and is named, when the test fails.
pub struct Directory(Option<TempDir>);

impl Directory {
    /// On the disk that temporary files are on.
    pub fn new() -> Self {
        Self(Some(tempfile::tempdir().expect("a directory")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until dropped").path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take()
            && std::thread::panicking()
        {
            eprintln!("the data are kept in {}", directory.keep().display());
        }
    }
}

/// A broker in this process on `directory`, whose configuration `change` completes.
pub fn embedded(directory: &Directory, change: impl FnOnce(&mut BrokerConfig)) -> Broker {
    let mut config = BrokerConfig::new(directory.path(), SocketAddr::from(([127, 0, 0, 1], 0)));
    change(&mut config);
    Broker::start(config).expect("it starts")
}

/// Runs `future` on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// `future`, or a panic that names `what`.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Asks `ready` again and again, yielding to the broker between, until it gives something.
pub async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(value) = ready().await {
                return value;
            }
        }
    };
    in_time(what, asking).await
}

/// A connected client.
pub async fn client(address: SocketAddr) -> Client {
    let mut config = ClientConfig::new(address.to_string()).expect("an address");
    config.request_timeout = DEADLINE;
    in_time("connecting", Client::connect(config)).await.expect("the broker answers")
}

/// Makes a topic and waits until all its partitions can be used.
pub async fn create_topic(
    client: &Client,
    name: &str,
    partitions: u32,
    configs: &[(&str, &str)],
) -> TopicDescription {
    // Their records are years old: age deletes nothing, however long a test takes.
    let kept = [("retention.ms", "-1")];
    let configs = kept.iter().chain(configs);
    let configs = configs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let topic = NewTopic { partitions, configs, ..NewTopic::named(name) };
    client.admin().create_topic(&topic).await.expect("the topic is made");
    usable(client, name).await
}

/// Waits until all partitions of a topic are open: their shards learn of them after the answer.
pub async fn usable(client: &Client, name: &str) -> TopicDescription {
    let open = async || {
        let logs = client.admin().describe_logs(name).await.ok()?;
        let closed = Some(ringlog_client::ErrorCode::NotLeader);
        (!logs.is_empty() && logs.iter().all(|log| log.error != closed)).then_some(())
    };
    until("the partitions are open", open).await;
    client.admin().describe_topic(name).await.expect("the topic is there")
}

/// The sum of one counter over all shards.
pub fn counter(status: &BrokerStatus, name: &str) -> u64 {
    status.counter(name).unwrap_or_else(|| panic!("no counter {name}"))
}

/// Waits until a counter satisfies `wanted`.
pub async fn counter_is(client: &Client, name: &str, wanted: impl Fn(u64) -> bool) -> u64 {
    let found = async || {
        let status = client.admin().status().await.ok()?;
        Some(counter(&status, name)).filter(|value| wanted(*value))
    };
    until(name, found).await
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}
