//! A queue: one group, many workers, each job done by one of them.
//!
//! The partitions are shared out among the workers, so there are at most as many at work as partitions. Asking for
//! the next job says that the one before is done. A worker that leaves hands its partitions on at once; one that dies
//! is missed after its session timeout, and its jobs since the last commit are done again by another.
//!
//! `cargo run -p ringlog-client --example work_queue -- 127.0.0.1:9644`

use ringlog_client::{
    AssignedPartition, Client, ClientConfig, ClientError, ErrorCode, GroupConfig, NewTopic, ProducerConfig,
    ProducerRecord, RebalanceListener,
};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

type AnyError = Box<dyn Error + Send + Sync>;

const TOPIC: &str = "images";
const PARTITIONS: u32 = 4;
const WORKERS: usize = 3;
const JOBS: u32 = 40;
/// After so many the first worker goes home.
const FIRST_WORKERS_JOBS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    run(&brokers, &mut std::io::stdout()).await
}

/// What a worker says.
enum Said {
    Ready(usize),
    Done(usize, String),
}

/// Everything; says on `out` what it sees.
pub async fn run(brokers: &str, out: &mut impl Write) -> Result<(), AnyError> {
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    match client.admin().create_topic(&NewTopic { partitions: PARTITIONS, ..NewTopic::named(TOPIC) }).await {
        Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
        made => drop(made?),
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let (go_home, stop) = watch::channel(());
    let mut workers = JoinSet::new();
    for number in 0..WORKERS {
        let jobs_max = if number == 0 { FIRST_WORKERS_JOBS } else { usize::MAX };
        workers.spawn(work(client.clone(), number, jobs_max, tell.clone(), stop.clone()));
    }
    // If all of them fail, so does waiting for what they say.
    drop(tell);

    let mut ready = BTreeSet::new();
    while ready.len() < WORKERS {
        if let Said::Ready(worker) = told.recv().await.ok_or("the workers are gone")? {
            ready.insert(worker);
        }
    }
    let producer = client.producer(ProducerConfig::default());
    for job in 0..JOBS {
        let record = ProducerRecord::new(TOPIC, format!("image {job}")).to_partition(job % PARTITIONS);
        drop(producer.send(record).await?);
    }
    producer.close().await?;

    let mut jobs = BTreeSet::new();
    let mut shares: BTreeMap<usize, usize> = BTreeMap::new();
    while jobs.len() < JOBS as usize {
        if let Said::Done(worker, job) = told.recv().await.ok_or("the workers are gone")? {
            *shares.entry(worker).or_default() += 1;
            jobs.insert(job);
        }
    }
    drop(go_home);
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    for (worker, share) in &shares {
        writeln!(out, "worker {worker} did {share} jobs")?;
    }
    let done: usize = shares.values().sum();
    writeln!(out, "{} jobs, {} of them twice", jobs.len(), done - jobs.len())?;
    Ok(())
}

/// One worker, until it is told to go home.
async fn work(
    client: Client,
    number: usize,
    jobs_max: usize,
    tell: mpsc::UnboundedSender<Said>,
    mut stop: watch::Receiver<()>,
) -> Result<(), AnyError> {
    let mut consumer = client.group_consumer(GroupConfig::new("resizers").with_topic(TOPIC))?;
    consumer.set_listener(Listener { number, tell: tell.clone() });
    for _ in 0..jobs_max {
        let record = tokio::select! {
            record = consumer.next() => record?,
            _ = stop.changed() => break,
        };
        // Here the work is done.
        let job = String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
        tell.send(Said::Done(number, job))?;
    }
    // Commits what was done and leaves.
    Ok(consumer.close().await?)
}

/// Says when a worker has partitions.
struct Listener {
    number: usize,
    tell: mpsc::UnboundedSender<Said>,
}

impl RebalanceListener for Listener {
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        if !partitions.is_empty() {
            // Nobody listens when all is done.
            let _ = self.tell.send(Said::Ready(self.number));
        }
    }
}
