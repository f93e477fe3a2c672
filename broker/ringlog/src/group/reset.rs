//! `ringlog group reset`: where a group goes on.
//!
//! Invariant: what is printed is what was set, or with `--dry-run` would be, from the same computation.

use crate::failure::Failure;
use crate::output::{Output, Table};
use ringlog_client::{Admin, ErrorCode, StartFrom};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be set.
pub struct Reset<'a> {
    pub group: &'a str,
    pub to: StartFrom,
    pub topics: &'a [String],
    pub partitions: &'a [u32],
    pub dry_run: bool,
}

/// One partition: topic, partition, before, after.
type Change = (String, u32, Option<u64>, u64);

impl Reset<'_> {
    /// Sets, or says what it would set.
    pub async fn run(&self, admin: &Admin, output: &mut Output) -> Result<(), Failure> {
        let changes = self.changes(admin).await?;
        if !self.dry_run {
            let offsets: Vec<(&str, u32, u64)> = changes
                .iter()
                .map(|(topic, partition, _, after)| (topic.as_str(), *partition, *after))
                .collect();
            admin.set_group_offsets(self.group, &offsets).await?;
        }
        self.print(&changes, output)
    }

    async fn changes(&self, admin: &Admin) -> Result<Vec<Change>, Failure> {
        let mut before: BTreeMap<(String, u32), u64> = BTreeMap::new();
        match admin.describe_group(self.group).await {
            Ok(group) => {
                if !group.members.is_empty() {
                    let message = format!("group '{}' has members; stop its consumers first", self.group);
                    return Err(Failure::operation(message));
                }
                for one in group.offsets {
                    before.extend(one.offset.map(|offset| ((one.topic_name, one.partition), offset)));
                }
            }
            // It is made, if topics are named.
            Err(error) if error.code() == Some(ErrorCode::GroupNotFound) && !self.topics.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        let topics: BTreeSet<String> = match self.topics {
            [] => before.keys().map(|(topic, _)| topic.clone()).filter(|topic| !topic.is_empty()).collect(),
            named => named.iter().cloned().collect(),
        };
        if topics.is_empty() {
            let message =
                format!("group '{}' has committed nothing; name what to set with --topic", self.group);
            return Err(Failure::operation(message));
        }
        let mut changes = Vec::new();
        for topic in topics {
            let known = admin.describe_topic(&topic).await?.partitions;
            let wanted: BTreeSet<u32> = match self.partitions {
                [] => known.iter().map(|place| place.partition).collect(),
                some => some.iter().copied().collect(),
            };
            for (partition, after) in admin.resolve_offsets(&topic, &wanted, self.to).await? {
                let before = before.get(&(topic.clone(), partition)).copied();
                changes.push((topic.clone(), partition, before, after));
            }
        }
        Ok(changes)
    }

    fn print(&self, changes: &[Change], output: &mut Output) -> Result<(), Failure> {
        if output.is_json() {
            return changes.iter().try_for_each(|(topic, partition, before, after)| {
                output.json(&json!({
                    "group": self.group, "topic": topic, "partition": partition, "before": before, "after": after,
                    "dry_run": self.dry_run,
                }))
            });
        }
        output.line(match self.dry_run {
            true => "would set:",
            false => "set:",
        })?;
        let mut table = Table::new(&["TOPIC", ">PARTITION", ">BEFORE", ">AFTER"]);
        for (topic, partition, before, after) in changes {
            let before = before.map_or("-".to_owned(), |offset| offset.to_string());
            table.row([topic.clone(), partition.to_string(), before, after.to_string()]);
        }
        output.table(&table)
    }
}
