//! What `ringlog group describe` prints: the group, its members, and each partition with its lag.

use crate::failure::Failure;
use crate::output::{Output, Table, duration_ms, grouped};
use ringlog_client::group_request::{GroupTopic, MemberDescription};
use ringlog_client::{GroupLag, PartitionLag};
use serde_json::{Value, json};

/// See the module.
pub fn print(lag: &GroupLag, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() { print_json(lag, output) } else { print_tables(lag, output) }
}

fn topics_json(topics: &[GroupTopic]) -> Value {
    topics
        .iter()
        .map(|topic| (topic.name.clone(), json!(topic.partitions)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

fn print_json(lag: &GroupLag, output: &mut Output) -> Result<(), Failure> {
    let group = &lag.group;
    output.json(&json!({
        "kind": "group", "group": group.group, "state": group.state.name(), "members": group.members.len(),
        "group_epoch": group.group_epoch, "assignor": group.assignor,
        "coordinator_partition": group.coordinator_partition, "lag_records": lag.records(),
        "empty_since_ms": Some(group.empty_since_ms).filter(|ms| *ms >= 0),
    }))?;
    for member in &group.members {
        output.json(&json!({
            "kind": "member", "group": group.group, "member_id": member.member_id,
            "instance_id": or_null(&member.instance_id), "client_id": member.client_id,
            "member_epoch": member.member_epoch, "topics": member.topics, "pattern": or_null(&member.pattern),
            "assignment": topics_json(&member.assignment), "revoking": topics_json(&member.revoking),
            "target": topics_json(&member.target), "silent_ms": member.silent.as_millis() as u64,
            "session_timeout_ms": member.session_timeout.as_millis() as u64,
        }))?;
    }
    for one in &lag.partitions {
        output.json(&json!({
            "kind": "partition", "group": group.group, "topic": one.topic, "partition": one.partition,
            "committed": one.committed, "commit_time_ms": one.commit_time_ms, "log_start": one.log_start,
            "log_end": one.log_end, "lag_records": one.records, "overtaken_records": one.overtaken,
            "first_unread_ms": one.first_unread_ms, "lag_ms": one.behind_ms,
            "overtaken_in_ms": one.overtaken_in_ms, "member_id": one.member_id,
        }))?;
    }
    Ok(())
}

fn print_tables(lag: &GroupLag, output: &mut Output) -> Result<(), Failure> {
    let group = &lag.group;
    let with = match group.members.len() {
        0 => "no members".to_owned(),
        1 => "1 member".to_owned(),
        count => format!("{count} members"),
    };
    output.line(&format!(
        "group {}: {}, {with}, assignor {}, {} records behind",
        group.group,
        group.state.name(),
        group.assignor,
        grouped(lag.records())
    ))?;
    if !group.members.is_empty() {
        output.line("")?;
        let mut table =
            Table::new(&["MEMBER", "INSTANCE", "CLIENT", ">EPOCH", ">HEARD", "PARTITIONS", "GIVING UP"]);
        for member in &group.members {
            table.row(member_row(member));
        }
        output.table(&table)?;
    }
    if lag.partitions.is_empty() {
        return output.line("nothing committed");
    }
    output.line("")?;
    let mut table = Table::new(&[
        "TOPIC",
        ">PARTITION",
        ">COMMITTED",
        ">END",
        ">LAG",
        ">BEHIND",
        ">OVERTAKEN IN",
        "MEMBER",
    ]);
    for one in &lag.partitions {
        table.row(partition_row(one));
    }
    output.table(&table)?;
    let overtaken: u64 = lag.partitions.iter().map(|one| one.overtaken).sum();
    if overtaken > 0 {
        output.line(&format!(
            "retention has deleted {} records that the group had not read; it goes on at the first that is kept",
            grouped(overtaken)
        ))?;
    }
    Ok(())
}

fn topics_text(topics: &[GroupTopic]) -> String {
    let mut by_name: Vec<&GroupTopic> = topics.iter().collect();
    by_name.sort_by(|one, other| one.name.cmp(&other.name));
    let each = by_name.into_iter().map(|topic| {
        let partitions: Vec<String> = topic.partitions.iter().map(u32::to_string).collect();
        format!("{}/{}", topic.name, partitions.join(","))
    });
    let text = each.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

fn member_row(member: &MemberDescription) -> [String; 7] {
    let instance = if member.instance_id.is_empty() { "-".to_owned() } else { member.instance_id.clone() };
    let epoch = if member.member_epoch == -2 { "away".to_owned() } else { member.member_epoch.to_string() };
    [
        member.member_id.clone(),
        instance,
        member.client_id.clone(),
        epoch,
        format!("{} ago", duration_ms(member.silent.as_millis() as u64)),
        topics_text(&member.assignment),
        topics_text(&member.revoking),
    ]
}

fn partition_row(one: &PartitionLag) -> [String; 8] {
    let overtaken = match one.overtaken_in_ms {
        _ if one.overtaken > 0 => format!("{} lost", grouped(one.overtaken)),
        Some(0) => "now".to_owned(),
        Some(ms) => duration_ms(ms),
        None => "-".to_owned(),
    };
    [
        one.topic.clone(),
        one.partition.to_string(),
        one.committed.map_or("-".to_owned(), |offset| offset.to_string()),
        one.log_end.to_string(),
        grouped(one.records),
        if one.records == 0 { "-".to_owned() } else { duration_ms(one.behind_ms) },
        overtaken,
        one.member_id.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
