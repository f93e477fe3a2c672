//! A database's change log: a compacted topic that gives the latest state first, and then every change as it comes.
//!
//! The key is the row's, the value is the whole row, no value means that the row is gone. Compaction keeps at least
//! the latest record of each key, so a reader that starts at the beginning never needs the database: cache, search
//! index or copy are made from the log alone, and stay up to date with the same loop.
//!
//! `cargo run -p ringlog-client --example change_log -- 127.0.0.1:9644`

use ringlog_client::{
    Client, ClientConfig, ClientError, ConsumedRecord, Consumer, ConsumerConfig, ErrorCode, NewTopic,
    OffsetSpec, Producer, ProducerConfig, ProducerRecord, StartFrom,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;

const TOPIC: &str = "customers";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    run(&brokers, &mut std::io::stdout()).await
}

/// Everything; says on `out` what it sees.
pub async fn run(brokers: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    let configs = vec![("cleanup.policy".to_owned(), "compact".to_owned())];
    match client.admin().create_topic(&NewTopic { partitions: 1, configs, ..NewTopic::named(TOPIC) }).await {
        Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
        made => drop(made?),
    }
    let database = client.producer(ProducerConfig::default());
    let moves = (0..1000).map(|year| format!("cem, house {year}"));
    for row in moves {
        change(&database, "17", Some(&row)).await?;
    }
    change(&database, "18", Some("dia, Lisbon")).await?;
    change(&database, "19", Some("eve, Oslo")).await?;
    change(&database, "18", None).await?;
    database.flush().await?;

    // Up to where the log ends now it is the state.
    let end = client.admin().list_offsets(TOPIC, &[(0, OffsetSpec::Latest)]).await?[0].offset;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(TOPIC, &[(0, StartFrom::Earliest)]).await?;
    let mut rows = BTreeMap::new();
    while consumer.position(TOPIC, 0) < Some(end) {
        apply(&mut rows, &next(&mut consumer).await?);
    }
    for (key, row) in &rows {
        writeln!(out, "state: {key} is {row}")?;
    }

    // From there on it is the live stream, with the same consumer.
    change(&database, "20", Some("fay, Rome")).await?;
    change(&database, "17", None).await?;
    database.close().await?;
    for _ in 0..2 {
        let record = next(&mut consumer).await?;
        apply(&mut rows, &record);
        match (text(record.key.as_deref()), record.value) {
            (key, Some(row)) => writeln!(out, "live: {key} is {}", text(Some(&row)))?,
            (key, None) => writeln!(out, "live: {key} is gone")?,
        }
    }
    writeln!(out, "rows now: {}", rows.keys().cloned().collect::<Vec<_>>().join(", "))?;
    Ok(())
}

/// What the database does at each commit; no row is a deletion.
async fn change(database: &Producer, key: &str, row: Option<&str>) -> Result<(), Box<dyn Error>> {
    let value = row.map(|row| row.to_owned().into());
    let record = ProducerRecord { value, ..ProducerRecord::new(TOPIC, "") }.with_key(key.to_owned());
    // Its failure is told by the next `flush` or `close`.
    drop(database.send(record).await?);
    Ok(())
}

async fn next(consumer: &mut Consumer) -> Result<ConsumedRecord, Box<dyn Error>> {
    Ok(consumer.next().await.ok_or("nothing is assigned")??)
}

/// One change more.
fn apply(rows: &mut BTreeMap<String, String>, record: &ConsumedRecord) {
    let key = text(record.key.as_deref());
    match &record.value {
        Some(row) => rows.insert(key, text(Some(row))),
        None => rows.remove(&key),
    };
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
