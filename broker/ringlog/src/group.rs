//! `ringlog group`: list, describe, reset, delete.
//!
//! Each is a few requests to the groups' coordinators and its answer as tables or JSON lines; nothing is kept. Groups are
//! seen whether they have members or not: the lag of one whose workers are all dead is what one wants to see most.

mod describe;
mod reset;

use crate::client::BrokersArguments;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table};
use ringlog_client::{Admin, StartFrom};
use serde_json::json;

/// `ringlog group …`
#[derive(clap::Args)]
pub struct GroupArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(clap::Subcommand)]
enum GroupCommand {
    /// Every group
    List,
    /// A group's members, committed offsets, lag, and when retention overtakes it
    Describe {
        /// The group
        group: String,
    },
    /// Set where a group without members goes on; make the group if there is none
    Reset {
        /// The group
        group: String,
        /// earliest, latest, an offset, or @TIME: the first record at or after it (RFC 3339, or milliseconds since
        /// 1970)
        #[arg(long, value_name = "PLACE", value_parser = crate::consume::place, allow_hyphen_values = true)]
        to: StartFrom,
        /// Only this topic; may be repeated. Without it every topic for which the group has committed
        #[arg(long = "topic", value_name = "TOPIC")]
        topics: Vec<String>,
        /// Only this partition; may be repeated
        #[arg(long, value_name = "P")]
        partition: Vec<u32>,
        /// Say what would be set, and set nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a group without members, with its offsets
    Delete {
        /// The group
        group: String,
    },
}

/// Runs it.
pub fn run(arguments: GroupArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    crate::block_on(async {
        let admin = arguments.brokers.connect().await?.admin();
        match arguments.command {
            GroupCommand::List => list(&admin, &mut output).await?,
            GroupCommand::Describe { group } => {
                describe::print(&admin.group_lag(&group).await?, &mut output)?;
            }
            GroupCommand::Reset { group, to, topics, partition, dry_run } => {
                let reset =
                    reset::Reset { group: &group, to, topics: &topics, partitions: &partition, dry_run };
                reset.run(&admin, &mut output).await?;
            }
            GroupCommand::Delete { group } => {
                admin.delete_group(&group).await?;
                if output.is_json() {
                    output.json(&json!({ "group": group, "done": "deleted" }))?;
                } else {
                    output.line(&format!("deleted group {group}"))?;
                }
            }
        }
        output.flush()
    })
}

async fn list(admin: &Admin, output: &mut Output) -> Result<(), Failure> {
    let groups = admin.list_groups().await?;
    if output.is_json() {
        return groups.iter().try_for_each(|group| {
            output.json(&json!({
                "group": group.group, "state": group.state.name(), "members": group.members,
                "committed_partitions": group.committed_partitions, "assignor": group.assignor,
                "coordinator_partition": group.coordinator_partition,
            }))
        });
    }
    if groups.is_empty() {
        return output.line("no groups; join one: ringlog consume TOPIC --group NAME");
    }
    let mut table = Table::new(&["GROUP", "STATE", ">MEMBERS", ">COMMITTED PARTITIONS", "ASSIGNOR"]);
    for group in &groups {
        table.row([
            group.group.clone(),
            group.state.name().to_owned(),
            group.members.to_string(),
            group.committed_partitions.to_string(),
            group.assignor.clone(),
        ]);
    }
    output.table(&table)
}
