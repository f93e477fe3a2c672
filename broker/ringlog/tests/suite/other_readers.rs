//! Record batch v2 between this product and another implementation of it (the crate `kafka-protocol`): it reads what our
//! client wrote and our broker stored, and our client reads what it wrote, with every codec.
//!
//! Layout, checksum, variable-length numbers and the framing of the codecs are its own; inside, gzip, Snappy and Zstandard
//! are the libraries that we use too. Against other libraries there are the fixed batches of `schema/testdata`.
//! Absent on purpose: other versions of the format, which nobody here writes, and the wire around it.

use crate::process::{Broker, directory};
use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as other;
use ringlog_client::{
    Client, ClientConfig, Compression, ConsumerConfig, Linger, NewTopic, ProducerConfig, ProducerRecord,
    StartFrom,
};
use std::time::Duration;

const CODECS: [(Compression, other::Compression); 5] = [
    (Compression::None, other::Compression::None),
    (Compression::Gzip, other::Compression::Gzip),
    (Compression::Snappy, other::Compression::Snappy),
    (Compression::Lz4, other::Compression::Lz4),
    (Compression::Zstd, other::Compression::Zstd),
];

/// Enough for several blocks of every codec.
const COUNT: usize = 2000;
/// Records of a batch that the others write.
const PART: usize = 500;

/// What a record is about, whoever made it.
#[derive(Debug, PartialEq, Eq)]
struct Plain {
    offset: u64,
    timestamp_ms: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<(String, Option<Bytes>)>,
}

fn expected() -> Vec<Plain> {
    let some = |text: String| Some(Bytes::from(text));
    (0..COUNT)
        .map(|n| Plain {
            offset: n as u64,
            // Not in order, and far apart.
            timestamp_ms: 1_700_000_000_000 + (n as i64 * 7919) % 86_400_000,
            key: match n % 5 {
                0 => None,
                1 => Some(Bytes::new()),
                _ => some(format!("key-{n}")),
            },
            value: match n % 7 {
                0 => None,
                1 => Some(Bytes::new()),
                2 => Some((0..=255).collect()),
                _ => some(format!("a value that repeats, {n}; ").repeat(n % 11)),
            },
            headers: match n % 3 {
                0 => Vec::new(),
                1 => vec![("trace".to_owned(), some(format!("{n}")))],
                _ => vec![("b".to_owned(), None), ("a".to_owned(), Some(Bytes::new()))],
            },
        })
        .collect()
}

async fn client_of(broker: &Broker) -> Client {
    Client::connect(ClientConfig::new(broker.address.clone()).expect("an address")).await.expect("a broker")
}

/// A topic of one partition for each codec.
async fn create(client: &Client, topic: &str) {
    client
        .admin()
        .create_topic(&NewTopic { partitions: 1, ..NewTopic::named(topic) })
        .await
        .expect("it is made");
}

#[tokio::test]
async fn others_read_what_we_wrote() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    for (ours, theirs) in CODECS {
        let topic = ours.name();
        create(&client, topic).await;
        let producer = client.producer(ProducerConfig {
            compression: ours,
            batch_size: 64 << 10,
            linger: Linger::Fixed(Duration::from_secs(3600)),
            ..ProducerConfig::default()
        });
        for Plain { timestamp_ms, key, value, headers, .. } in expected() {
            let timestamp_ms = Some(timestamp_ms);
            let record = ProducerRecord {
                timestamp_ms,
                key,
                value,
                headers,
                ..ProducerRecord::new(topic, Bytes::new())
            };
            drop(producer.send(record).await.expect("it is taken"));
        }
        producer.close().await.expect("everything is acknowledged");

        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(topic, &[(0, StartFrom::Earliest)]).await.expect("the topic");
        let mut found = Vec::new();
        let mut batches = 0;
        while found.len() < COUNT {
            let fetched = consumer.next_batch().await.expect("assigned").expect("a batch");
            let mut stored = fetched.bytes().clone();
            for set in other::RecordBatchDecoder::decode_all(&mut stored).expect("they can read it") {
                batches += 1;
                assert_eq!((set.version, set.compression), (2, theirs));
                for record in &set.records {
                    assert!(record.producer_id >= 0 && record.sequence == found.len() as i32, "{record:?}");
                    assert_eq!(record.timestamp_type, other::TimestampType::Creation);
                    found.push(plain(record));
                }
            }
        }
        assert!(found == expected(), "{topic}: they read something else");
        assert!(batches > 1, "{topic}: {batches} batches");
        println!("{topic}: {COUNT} records in {batches} batches, read by both");
    }
}

fn plain(record: &other::Record) -> Plain {
    let headers = record.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    Plain {
        offset: record.offset as u64,
        timestamp_ms: record.timestamp,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

#[tokio::test]
async fn we_read_what_others_wrote() {
    let data = directory();
    let broker = Broker::start(data.path());
    let client = client_of(&broker).await;
    let producer = client.producer(ProducerConfig::default());
    for (ours, theirs) in CODECS {
        let topic = ours.name();
        create(&client, topic).await;
        let records: Vec<other::Record> = expected().into_iter().map(record).collect();
        for part in records.chunks(PART) {
            let mut batch = BytesMut::new();
            let options = other::RecordEncodeOptions { version: 2, compression: theirs };
            other::RecordBatchEncoder::encode(&mut batch, part, &options).expect("they can write it");
            let sent = producer.send_encoded(topic, 0, batch.freeze()).await.expect("it is one batch");
            sent.await.expect("the broker takes it");
        }
        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(topic, &[(0, StartFrom::Earliest)]).await.expect("the topic");
        let mut found = Vec::new();
        while found.len() < COUNT {
            let record = consumer.next().await.expect("assigned").expect("a record");
            let (key, value, headers) = (record.key, record.value, record.headers);
            found.push(Plain {
                offset: record.offset,
                timestamp_ms: record.timestamp_ms,
                key,
                value,
                headers,
            });
        }
        assert!(found == expected(), "{topic}: we read something else");
    }
}

fn record(plain: Plain) -> other::Record {
    let header = |(name, value): (String, Option<Bytes>)| (StrBytes::from_string(name), value);
    other::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: other::NO_PARTITION_LEADER_EPOCH,
        producer_id: other::NO_PRODUCER_ID,
        producer_epoch: other::NO_PRODUCER_EPOCH,
        timestamp_type: other::TimestampType::Creation,
        offset: plain.offset as i64,
        // None (-1) for the batch; theirs is counted on from there.
        sequence: (plain.offset as usize % PART) as i32 - 1,
        timestamp: plain.timestamp_ms,
        key: plain.key,
        value: plain.value,
        headers: plain.headers.into_iter().map(header).collect(),
    }
}
