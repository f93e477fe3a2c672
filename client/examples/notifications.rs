//! Notifications to many groups: one topic, and every group that subscribes sees all of it.
//!
//! Each service is a group of its own with its own place in the log. A service that comes later, or was down, misses
//! nothing, and nobody waits for it.
//!
//! `cargo run -p ringlog-client --example notifications -- 127.0.0.1:9644`

use ringlog_client::{
    Client, ClientConfig, ClientError, ErrorCode, GroupConfig, NewTopic, ProducerConfig, ProducerRecord,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use tokio::task::JoinSet;

type AnyError = Box<dyn Error + Send + Sync>;

const TOPIC: &str = "notifications";
const COUNT: usize = 30;
const USERS: [&str; 3] = ["ann", "bob", "cem"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    run(&brokers, &mut std::io::stdout()).await
}

/// Everything; says on `out` what it sees.
pub async fn run(brokers: &str, out: &mut impl Write) -> Result<(), AnyError> {
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    match client.admin().create_topic(&NewTopic { partitions: 3, ..NewTopic::named(TOPIC) }).await {
        Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
        made => drop(made?),
    }
    let producer = client.producer(ProducerConfig::default());
    for number in 0..COUNT {
        // The user is the key: what concerns one user stays in order.
        let record = ProducerRecord::new(TOPIC, number.to_string()).with_key(USERS[number % USERS.len()]);
        drop(producer.send(record).await?);
    }
    producer.close().await?;

    let mut services = JoinSet::new();
    for service in ["email", "push"] {
        services.spawn(deliver(client.clone(), service));
    }
    let mut lines = BTreeMap::new();
    while let Some(done) = services.join_next().await {
        let (service, line) = done??;
        lines.insert(service, line);
    }
    // It was not there when the others read, and sees the same.
    let (service, line) = deliver(client.clone(), "audit").await?;
    lines.insert(service, line);
    for (service, line) in lines {
        writeln!(out, "{service}: {line}")?;
    }
    Ok(())
}

/// One service: a group with one member, which reads on where the group was the last time.
async fn deliver(client: Client, service: &'static str) -> Result<(&'static str, String), AnyError> {
    let mut consumer = client.group_consumer(GroupConfig::new(service).with_topic(TOPIC))?;
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..COUNT {
        let record = consumer.next().await?;
        let [user, number] = [record.key, record.value]
            .map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned());
        last.insert(user, number);
    }
    // Commits the place of the group, and leaves.
    consumer.close().await?;
    let last: Vec<String> = last.into_iter().map(|(user, number)| format!("{user} {number}")).collect();
    Ok((service, format!("{COUNT} delivered, the last to {}", last.join(", "))))
}
