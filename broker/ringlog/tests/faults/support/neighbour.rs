//! A well-behaved producer and consumer that run beside an attack: what happens to others must not happen
//! to them.

use super::records::{Maker, prove};
use super::{client, create_topic, in_time};
use ringlog_client::{ConsumerConfig, ProducerConfig, ProducerRecord, StartFrom};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const PARTITIONS: u32 = 2;
const RECORDS_PER_TURN: usize = 20;

/// Runs until [`Neighbour::finish`].
pub struct Neighbour {
    enough: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

impl Neighbour {
    /// Moves in.
    pub fn start(address: SocketAddr) -> Self {
        let (enough, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (enough, turns) = (enough.clone(), turns.clone());
            std::thread::spawn(move || super::block_on(live(address, &enough, &turns)))
        };
        Self { enough, turns, thread }
    }

    /// Waits for one whole turn that began after now: the broker still serves others.
    #[track_caller]
    pub fn is_served(&self) {
        let before = self.turns.load(Ordering::SeqCst);
        let began = std::time::Instant::now();
        while self.turns.load(Ordering::SeqCst) < before + 2 {
            assert!(!self.thread.is_finished(), "the neighbour has failed");
            assert!(began.elapsed() < super::DEADLINE, "the neighbour is not served");
            std::thread::yield_now();
        }
    }

    /// Ends; how many records were produced and consumed, which is the same.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.enough.store(true, Ordering::SeqCst);
        self.thread.join().expect("the neighbour noticed nothing")
    }
}

/// Turns of producing some records and consuming exactly these, in their order.
async fn live(address: SocketAddr, enough: &AtomicBool, turns: &AtomicU64) -> u64 {
    let client = client(address).await;
    create_topic(&client, "neighbour", PARTITIONS, &[]).await;
    let producer = client.producer(ProducerConfig { resend_when_unknown: false, ..Default::default() });
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("neighbour", StartFrom::Earliest).await.expect("the topic is there");
    let mut maker = Maker::new(u64::MAX, 7);
    let mut records = 0;
    let mut next_offset = [0; PARTITIONS as usize];
    while !enough.load(Ordering::SeqCst) {
        let mut sent = Vec::with_capacity(RECORDS_PER_TURN);
        for at in 0..RECORDS_PER_TURN {
            let value = maker.value(100 + at * 10);
            let proof = prove(&value).expect("it was just made");
            let record = ProducerRecord::new("neighbour", value).to_partition(at as u32 % PARTITIONS);
            sent.push((proof, in_time("sending", producer.send(record)).await.expect("it is taken")));
        }
        let mut expected = Vec::with_capacity(RECORDS_PER_TURN);
        for (proof, delivery) in sent {
            let receipt = in_time("an acknowledgement", delivery).await.expect("it is acknowledged");
            expected.push((receipt.partition, receipt.offset, proof));
        }
        let mut found = Vec::with_capacity(RECORDS_PER_TURN);
        while found.len() < expected.len() {
            let record = in_time("a record", consumer.next()).await.expect("assigned").expect("served");
            let next = &mut next_offset[record.partition as usize];
            assert_eq!(record.offset, *next, "partition {}", record.partition);
            *next += 1;
            let proof = prove(&record.value.expect("a value")).expect("its own bytes");
            found.push((record.partition, record.offset, proof));
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        records += found.len() as u64;
        turns.fetch_add(1, Ordering::SeqCst);
    }
    in_time("closing", producer.close()).await.expect("nothing failed");
    records
}
