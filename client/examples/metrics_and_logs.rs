//! Metrics and logs of many hosts: much data, of which a little is kept, read again by time and by header.
//!
//! Each topic has a retention of its own, by age or by size. Metrics are packed with zstd and read from a
//! timestamp on; log lines have their level in a header, so that a reader that wants errors looks at no text.
//!
//! `cargo run -p ringlog-client --example metrics_and_logs -- 127.0.0.1:9644`

use bytes::Bytes;
use ringlog_client::{
    Acks, Client, ClientConfig, ClientError, Compression, ConsumedRecord, ConsumerConfig, ErrorCode,
    NewTopic, OffsetSpec, ProducerConfig, ProducerRecord, StartFrom,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const PARTITIONS: u32 = 2;
const HOSTS: [&str; 3] = ["db-1", "web-1", "web-2"];
const SECONDS: i64 = 120;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    run(&brokers, &mut std::io::stdout()).await
}

/// Everything; says on `out` what it sees.
pub async fn run(brokers: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    for (name, setting, value) in [("metrics", "retention.ms", "1h"), ("logs", "retention.bytes", "64MiB")] {
        let configs = vec![(setting.to_owned(), value.to_owned())];
        let topic = NewTopic { partitions: PARTITIONS, configs, ..NewTopic::named(name) };
        match client.admin().create_topic(&topic).await {
            Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
            made => drop(made?),
        }
    }
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    report(&client, now_ms).await?;

    // The last minute: from the first record that is young enough, without those behind it that are older all the
    // same, because the clocks of hosts differ.
    let since_ms = now_ms - 60_000;
    let mut loads: BTreeMap<Bytes, Vec<f64>> = BTreeMap::new();
    let recent = read(&client, "metrics", StartFrom::Timestamp(since_ms)).await?;
    for record in recent.into_iter().filter(|record| record.timestamp_ms >= since_ms) {
        let load = String::from_utf8_lossy(&record.value.unwrap_or_default()).parse()?;
        loads.entry(record.key.unwrap_or_default()).or_default().push(load);
    }
    for (host, loads) in loads {
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let host = String::from_utf8_lossy(&host);
        writeln!(out, "{host}: cpu {mean:.1} % over the last {} seconds", loads.len())?;
    }

    let error = ("level".to_owned(), Some("error".into()));
    for record in read(&client, "logs", StartFrom::Earliest).await? {
        if record.headers.contains(&error) {
            let [host, text] = [record.key, record.value].map(Option::unwrap_or_default);
            writeln!(out, "{}: {}", String::from_utf8_lossy(&host), String::from_utf8_lossy(&text))?;
        }
    }
    Ok(())
}

/// What the agents on the hosts do, over the last two minutes.
async fn report(client: &Client, now_ms: i64) -> Result<(), Box<dyn Error>> {
    let producer = client.producer(ProducerConfig {
        acks: Acks::Leader,
        compression: Compression::Zstd,
        ..ProducerConfig::default()
    });
    for second in 0..SECONDS {
        let timestamp_ms = Some(now_ms - (SECONDS - second) * 1000);
        for (number, host) in HOSTS.into_iter().enumerate() {
            let load = number as i64 * 10 + second % 10;
            let metric = ProducerRecord::new("metrics", load.to_string()).with_key(host);
            drop(producer.send(ProducerRecord { timestamp_ms, ..metric }).await?);

            let is_error = (second, host) == (100, "db-1");
            let (level, text) = if is_error { ("error", "disk is full") } else { ("info", "all is well") };
            let headers = vec![("level".to_owned(), Some(level.into()))];
            let line = ProducerRecord::new("logs", text).with_key(host);
            drop(producer.send(ProducerRecord { timestamp_ms, headers, ..line }).await?);
        }
    }
    // Fails if one of them did.
    Ok(producer.close().await?)
}

/// All that the topic holds now, from `start` on.
async fn read(client: &Client, topic: &str, start: StartFrom) -> Result<Vec<ConsumedRecord>, Box<dyn Error>> {
    let places: Vec<_> = (0..PARTITIONS).map(|partition| (partition, OffsetSpec::Latest)).collect();
    let ends = client.admin().list_offsets(topic, &places).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, start).await?;
    let mut records = Vec::new();
    while ends.iter().any(|end| consumer.position(topic, end.partition) < Some(end.offset)) {
        records.push(consumer.next().await.ok_or("nothing is assigned")??);
    }
    Ok(records)
}
