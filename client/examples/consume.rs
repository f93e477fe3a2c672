//! Prints what a topic holds, batch by batch without a copy, until nothing new comes for a second.
//!
//! `cargo run -p ringlog-client --example consume -- greetings 127.0.0.1:9644`

use ringlog_client::{Client, ClientConfig, ConsumerConfig, StartFrom};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "greetings".to_owned());
    let brokers = arguments.next().unwrap_or_else(|| "127.0.0.1".to_owned());

    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(&topic, StartFrom::Earliest).await?;
    // Waiting for a batch can be given up at any time; nothing is lost.
    while let Ok(Some(fetched)) = tokio::time::timeout(Duration::from_secs(1), consumer.next_batch()).await {
        let fetched = fetched?;
        for record in fetched.records() {
            let record = record?;
            let value = String::from_utf8_lossy(record.value.unwrap_or_default());
            println!("{}/{}: {value}", fetched.partition(), record.offset);
        }
    }
    Ok(())
}
