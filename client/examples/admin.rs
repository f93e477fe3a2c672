//! Prints the topics, their settings and what the broker says about itself.
//!
//! `cargo run -p ringlog-client --example admin -- 127.0.0.1:9644`

use ringlog_client::{Client, ClientConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    let admin = Client::connect(ClientConfig::new(brokers)?).await?.admin();
    for topic in admin.list_topics().await? {
        println!("{} ({}), {} partitions", topic.name, topic.id, topic.partitions.len());
        for log in admin.describe_logs(&topic.name).await? {
            println!("  {}: {} to {}, {} bytes", log.partition, log.log_start, log.high_watermark, log.bytes);
        }
        for setting in admin.describe_configs(&topic.name).await? {
            println!("  {} = {}", setting.name, setting.value);
        }
    }
    let status = admin.status().await?;
    println!("broker {} {} up {:?}", status.broker, status.version, status.uptime);
    for notice in status.notices {
        println!("note: {notice}");
    }
    Ok(())
}
