//! Activity tracking: what the users of a site do, in a topic per kind of event, partitioned by user.
//!
//! The topics have the same number of partitions and the same key, so that all a user does is in partitions of one
//! number. A worker per number, which reads it in every topic, knows all about its users and nothing of others.
//!
//! `cargo run -p ringlog-client --example activity -- 127.0.0.1:9644`

use ringlog_client::{
    Client, ClientConfig, ClientError, ConsumerConfig, ErrorCode, NewTopic, OffsetSpec, ProducerConfig,
    ProducerRecord, StartFrom,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use tokio::task::JoinSet;

type AnyError = Box<dyn Error + Send + Sync>;

const TOPICS: [&str; 2] = ["click", "upload"];
const PARTITIONS: u32 = 4;
const USERS: [&str; 5] = ["ann", "bob", "cem", "dia", "eve"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    run(&brokers, &mut std::io::stdout()).await
}

/// Everything; says on `out` what it sees.
pub async fn run(brokers: &str, out: &mut impl Write) -> Result<(), AnyError> {
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    for name in TOPICS {
        let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named(name) };
        match client.admin().create_topic(&topic).await {
            Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
            made => drop(made?),
        }
    }
    track(&client).await?;

    let mut workers = JoinSet::new();
    for partition in 0..PARTITIONS {
        let client = client.clone();
        workers.spawn(async move { Ok::<_, AnyError>((partition, count(&client, partition).await?)) });
    }
    let mut seen = BTreeMap::new();
    while let Some(done) = workers.join_next().await {
        let (partition, users) = done??;
        seen.insert(partition, users);
    }
    for (partition, users) in seen {
        for (user, [clicks, uploads]) in users {
            writeln!(out, "worker {partition}: {user} clicked {clicks} times, uploaded {uploads} files")?;
        }
    }
    Ok(())
}

/// What the site's servers do: the user is the key. Every fourth event is an upload.
async fn track(client: &Client) -> Result<(), AnyError> {
    let producer = client.producer(ProducerConfig::default());
    for event in 0..100 {
        let topic = if event % 4 == 3 { "upload" } else { "click" };
        let record =
            ProducerRecord::new(topic, format!("/page/{event}")).with_key(USERS[event % USERS.len()]);
        // Not awaited one by one: `close` fails if one of them does.
        drop(producer.send(record).await?);
    }
    Ok(producer.close().await?)
}

/// What a worker knows of its users: events per topic, up to where the topics end now.
async fn count(client: &Client, partition: u32) -> Result<BTreeMap<String, [u64; 2]>, AnyError> {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let mut ends = Vec::new();
    for topic in TOPICS {
        let listed = client.admin().list_offsets(topic, &[(partition, OffsetSpec::Latest)]).await?;
        ends.extend(listed.iter().map(|end| (topic, end.offset)));
        consumer.assign(topic, &[(partition, StartFrom::Earliest)]).await?;
    }
    let mut users: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    while ends.iter().any(|(topic, end)| consumer.position(topic, partition) < Some(*end)) {
        let record = consumer.next().await.ok_or("nothing is assigned")??;
        let user = String::from_utf8_lossy(&record.key.unwrap_or_default()).into_owned();
        users.entry(user).or_default()[usize::from(&*record.topic == "upload")] += 1;
    }
    Ok(users)
}
