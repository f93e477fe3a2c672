//! One of many workers of a group: prints what it is given, and which partitions come and go.
//!
//! `cargo run -p ringlog-client --example group -- workers jobs 127.0.0.1:9644`, in several terminals.

use ringlog_client::{
    AssignedPartition, Client, ClientConfig, GroupConfig, GroupPartition, RebalanceListener, RevokedPartition,
};

struct Announce;

impl RebalanceListener for Announce {
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        for assigned in partitions {
            println!("assigned {} from offset {}", assigned.partition, assigned.offset);
        }
    }

    fn revoked(&mut self, partitions: &mut [RevokedPartition]) {
        for revoked in partitions {
            println!(
                "revoked {} at {}; committing {:?}",
                revoked.partition, revoked.position, revoked.commit
            );
        }
    }

    fn lost(&mut self, partitions: &[GroupPartition]) {
        for lost in partitions {
            println!("lost {lost}");
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (group, topic, brokers) = (next("workers"), next("jobs"), next("127.0.0.1"));

    let client = Client::connect(ClientConfig::new(brokers)?).await?;
    let mut worker = client.group_consumer(GroupConfig::new(group).with_topic(topic).with_manual_commit())?;
    worker.set_listener(Announce);
    // Enough for an example; a worker goes on for ever.
    for _ in 0..100 {
        let batch = worker.poll().await?;
        for record in batch.records() {
            let record = record?;
            let value = String::from_utf8_lossy(record.value.unwrap_or_default());
            println!("{}/{} {}: {value}", batch.topic(), batch.partition(), record.offset);
        }
        worker.commit_batch(&batch).await?;
    }
    worker.close().await?;
    Ok(())
}
