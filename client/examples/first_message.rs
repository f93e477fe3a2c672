//! Sends one message and prints its receipt.
//!
//! `cargo run -p ringlog-client --example first_message -- 127.0.0.1:9644`

use ringlog_client::{
    Client, ClientConfig, ClientError, ErrorCode, NewTopic, ProducerConfig, ProducerRecord,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    match client.admin().create_topic(&NewTopic::named("greetings")).await {
        Ok(id) => println!("created topic greetings, id {id}"),
        Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => {}
        Err(error) => return Err(error.into()),
    }

    let producer = client.producer(ProducerConfig { explain: true, ..Default::default() });
    let record = ProducerRecord::new("greetings", "hello, log").with_key("first");
    // The first await waits for memory, the second for the acknowledgement.
    let receipt = producer.send(record).await?.await?;
    println!("partition {} offset {}: {:?}", receipt.partition, receipt.offset, receipt.durability);
    if let Some(anatomy) = receipt.anatomy {
        println!(
            "{} us, of which the device {} us",
            anatomy.round_trip_ns / 1000,
            anatomy.broker.device_ns / 1000
        );
    }
    producer.close().await?;
    Ok(())
}
