//! A producer that wants every acknowledgement from the whole in-sync set, and a consumer that follows, while a cluster
//! changes under them.
//!
//! Owner: one test, which judges in the end. What is measured and not judged is how long nothing was acknowledged.

use crate::DEADLINE;
use crate::faults::read_log;
use ringlog_client::{Acks, Client, ClientConfig, ConsumerConfig, ProducerConfig, ProducerRecord, StartFrom};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is produced and consumed; it is there before.
pub const TOPIC: &str = "grows";
/// Of the topic, to begin with.
pub const PARTITIONS: u32 = 4;
/// Records that are waited for together.
const TOGETHER: usize = 20;

/// What the load was told.
#[derive(Default)]
struct Told {
    /// When, partition, offset, value; as it came.
    acknowledged: Mutex<Vec<(Instant, u32, u64, String)>>,
    /// What the consumer has read.
    consumed: Mutex<Vec<(u32, u64, String)>>,
    /// What anybody was refused.
    errors: Mutex<Vec<String>>,
    partitions: AtomicU32,
    stop: AtomicBool,
    /// The producer has been answered for everything.
    produced: AtomicBool,
}

/// A producer and a consumer that go on until they are stopped.
pub struct Load {
    told: Arc<Told>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Both of them, who know these brokers.
    pub fn start(brokers: &str) -> Self {
        let told = Arc::new(Told::default());
        told.partitions.store(PARTITIONS, Ordering::Relaxed);
        let on_its_own = |work: AsyncWork| {
            let (brokers, told) = (brokers.to_owned(), told.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let mut config = ClientConfig::new(brokers).expect("addresses");
                    config.request_timeout = Duration::from_secs(2);
                    let client = Client::connect(config).await.expect("a broker is there");
                    match work {
                        AsyncWork::Produce => produce(&client, &told).await,
                        AsyncWork::Consume => consume(&client, &told).await,
                    }
                });
            })
        };
        let threads = vec![on_its_own(AsyncWork::Produce), on_its_own(AsyncWork::Consume)];
        Self { told, threads }
    }

    /// Produces to so many partitions from now on.
    pub fn spread(&self, partitions: u32) {
        self.told.partitions.store(partitions, Ordering::Relaxed);
    }

    /// Waits for acknowledgements of what was sent from now on.
    pub async fn goes_on(&self) {
        let limit = Instant::now() + DEADLINE;
        let count = || self.told.acknowledged.lock().unwrap().len();
        let enough = count() + 3 * TOGETHER;
        while count() < enough {
            assert!(
                Instant::now() < limit,
                "nothing is acknowledged: {:?}",
                self.told.errors.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Says how long nothing was acknowledged since `from`.
    pub fn silence(&self, what: &str, from: Instant) {
        let told = self.told.acknowledged.lock().unwrap();
        let mut longest = Duration::ZERO;
        for pair in told.windows(2).filter(|pair| pair[1].0 > from) {
            longest = longest.max(pair[1].0 - pair[0].0);
        }
        let (took, longest) = (from.elapsed().as_millis(), longest.as_millis());
        println!("{what}: {took} ms, nothing acknowledged for {longest} ms at most");
    }

    /// Stops, and judges.
    pub async fn finish(self, client: &Client) {
        self.told.stop.store(true, Ordering::Relaxed);
        let partitions = self.told.partitions.load(Ordering::Relaxed);
        let acknowledged = self.threads.into_iter().try_for_each(JoinHandle::join);
        acknowledged.expect("the load panicked");
        let log = read_log(client, TOPIC, partitions).await;
        let errors = self.told.errors.lock().unwrap();
        assert!(errors.is_empty(), "clients saw errors: {errors:#?}");
        let acknowledged = self.told.acknowledged.lock().unwrap();
        let consumed = self.told.consumed.lock().unwrap();
        for (partition, offset, value) in acknowledged
            .iter()
            .map(|(_, p, o, v)| (p, o, v))
            .chain(consumed.iter().map(|(p, o, v)| (p, o, v)))
        {
            let found = log[*partition as usize].get(*offset as usize);
            assert_eq!(found, Some(value), "{partition} at {offset}");
        }
        // Everything was acknowledged, so that there is nothing else, and each once.
        let all: Vec<&String> = log.iter().flatten().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "something is there twice");
        assert_eq!(all.len(), acknowledged.len());
        for partition in &log {
            let numbers: Vec<u64> = partition.iter().map(|value| value.parse().expect("a number")).collect();
            assert!(numbers.is_sorted(), "order is lost");
        }
        let followed: usize = log[..PARTITIONS as usize].iter().map(Vec::len).sum();
        assert_eq!(consumed.len(), followed, "the consumer has seen all of what it follows, once");
        println!("{} acknowledged and there once, {} consumed in order", all.len(), consumed.len());
    }
}

enum AsyncWork {
    Produce,
    Consume,
}

async fn produce(client: &Client, told: &Told) {
    let producer = client.producer(ProducerConfig { acks: Acks::All, ..ProducerConfig::default() });
    let mut number = 0u64;
    while !told.stop.load(Ordering::Relaxed) {
        let mut pending = Vec::with_capacity(TOGETHER);
        for _ in 0..TOGETHER {
            let partition = (number % u64::from(told.partitions.load(Ordering::Relaxed))) as u32;
            let record = ProducerRecord::new(TOPIC, number.to_string()).to_partition(partition);
            match producer.send(record).await {
                Ok(delivery) => pending.push((number, delivery)),
                Err(error) => told.errors.lock().unwrap().push(format!("{number} is not taken: {error}")),
            }
            number += 1;
        }
        for (number, delivery) in pending {
            match delivery.await {
                Ok(receipt) => told.acknowledged.lock().unwrap().push((
                    Instant::now(),
                    receipt.partition,
                    receipt.offset,
                    number.to_string(),
                )),
                Err(error) => told.errors.lock().unwrap().push(format!("{number}: {error}")),
            }
        }
    }
    producer.close().await.expect("the brokers are there");
    told.produced.store(true, Ordering::Relaxed);
}

/// Reads what is there and what comes, until everything acknowledged has been seen.
async fn consume(client: &Client, told: &Told) {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let all: Vec<_> = (0..PARTITIONS).map(|partition| (partition, StartFrom::Earliest)).collect();
    consumer.assign(TOPIC, &all).await.expect("it is there");
    let limit = Instant::now() + 4 * DEADLINE;
    loop {
        if told.produced.load(Ordering::Relaxed) {
            let acknowledged = told.acknowledged.lock().unwrap();
            let followed = acknowledged.iter().filter(|(_, partition, ..)| *partition < PARTITIONS).count();
            if told.consumed.lock().unwrap().len() >= followed {
                return;
            }
        }
        assert!(Instant::now() < limit, "the consumer does not get to the end");
        match tokio::time::timeout(Duration::from_millis(50), consumer.next()).await {
            Ok(Some(Ok(record))) => {
                let value = String::from_utf8_lossy(&record.value.expect("all have one")).into_owned();
                told.consumed.lock().unwrap().push((record.partition, record.offset, value));
            }
            Ok(Some(Err(error))) => told.errors.lock().unwrap().push(format!("consuming: {error}")),
            Ok(None) => return,
            Err(_) => {}
        }
    }
}
