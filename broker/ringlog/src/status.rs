//! `ringlog status`: what the broker says about itself.
//!
//! One request, and one for the state of the cluster's partitions; counters are shown as the broker names them, so that a new one needs no change here.

use crate::client::BrokersArguments;
use crate::cluster::describe::Health;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, grouped};
use ringlog_client::BrokerStatus;
use serde_json::json;
use std::collections::BTreeMap;

/// `ringlog status`
#[derive(clap::Args)]
pub struct StatusArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Runs it.
pub fn run(arguments: &StatusArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    crate::block_on(async {
        let admin = arguments.brokers.connect().await?.admin();
        let status = admin.status().await?;
        let health = Health::of(&admin.describe_cluster(None).await?);
        print(&status, &health, &mut output)?;
        output.flush()
    })
}

fn print(status: &BrokerStatus, health: &Health, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        let shards: Vec<_> = (status.shards.iter())
            .map(|shard| {
                let counters: BTreeMap<&str, u64> =
                    shard.counters.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                json!({ "shard": shard.shard, "counters": counters })
            })
            .collect();
        return output.json(&json!({
            "broker": status.broker, "version": status.version, "data_directory": status.data_directory,
            "uptime_ms": status.uptime.as_millis() as u64, "shards": shards, "notices": status.notices,
            "cluster": health,
        }));
    }
    output.line(&format!("broker {} {}", status.broker, status.version))?;
    output.line(&format!("data directory {}", status.data_directory))?;
    output.line(&format!("up {} s", grouped(status.uptime.as_secs())))?;
    output.line(&format!("cluster: {}", health.words()))?;
    for notice in &status.notices {
        output.line(&format!("notice: {notice}"))?;
    }
    output.line("")?;
    let headings: Vec<String> = std::iter::once("COUNTER".to_owned())
        .chain(status.shards.iter().map(|shard| format!(">SHARD {}", shard.shard)))
        .collect();
    let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    // In the order in which the first shard has them; all shards have the same.
    for (name, _) in status.shards.first().map_or(&[][..], |shard| &shard.counters) {
        let values = status.shards.iter().map(|shard| shard.counter(name).map_or("-".to_owned(), grouped));
        table.row_of(std::iter::once(name.clone()).chain(values).collect());
    }
    output.table(&table)
}
