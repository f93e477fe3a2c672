//! What `ringlog group describe` prints: the group, its members, and each partition with its lag.

use crate::failure::Failure;
use crate::output::{Output, Table, counted, duration_ms, grouped};
use ringlog_client::group_request::{GroupTopic, MemberDescription};
use ringlog_client::{GroupLag, PartitionLag};
use serde_json::{Value, json};

/// What a leader that does not answer knows.
const UNKNOWN: &str = "?";

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
        "unknown_partitions": lag.unknown_partitions(),
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
            "committed": one.committed, "commit_time_ms": one.commit_time_ms, "member_id": one.member_id,
            "log_start": one.behind.map(|behind| behind.log_start),
            "log_end": one.behind.map(|behind| behind.log_end),
            "lag_records": one.behind.map(|behind| behind.records),
            "overtaken_records": one.behind.map(|behind| behind.overtaken),
            "first_unread_ms": one.behind.and_then(|behind| behind.first_unread_ms),
            "lag_ms": one.behind.and_then(|behind| behind.ms),
            "overtaken_in_ms": one.behind.and_then(|behind| behind.overtaken_in_ms),
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
        lag.records().map_or(UNKNOWN.to_owned(), grouped)
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
    match lag.unknown_partitions() as u64 {
        0 => {}
        unknown => output.line(&format!(
            "{} without an answer: nobody leads it, or who does is silent; see: ringlog cluster status",
            counted(unknown, "partition")
        ))?,
    }
    let overtaken: u64 =
        lag.partitions.iter().flat_map(|one| one.behind).map(|behind| behind.overtaken).sum();
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
    let unknown = || UNKNOWN.to_owned();
    let (end, records, time, overtaken) = match &one.behind {
        Some(behind) => {
            let time = match behind.ms {
                _ if behind.records == 0 => "-".to_owned(),
                Some(ms) => duration_ms(ms),
                None => unknown(),
            };
            let overtaken = match behind.overtaken_in_ms {
                _ if behind.overtaken > 0 => format!("{} lost", grouped(behind.overtaken)),
                Some(0) => "now".to_owned(),
                Some(ms) => duration_ms(ms),
                None => "-".to_owned(),
            };
            (behind.log_end.to_string(), grouped(behind.records), time, overtaken)
        }
        None => (unknown(), unknown(), unknown(), unknown()),
    };
    [
        one.topic.clone(),
        one.partition.to_string(),
        one.committed.map_or("-".to_owned(), |offset| offset.to_string()),
        end,
        records,
        time,
        overtaken,
        one.member_id.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlog_client::PartitionBehind;
    use ringlog_client::request::TopicId;

    #[test]
    fn what_is_not_known_is_told_apart_from_nothing() {
        let behind = PartitionBehind {
            log_start: 2,
            log_end: 9,
            records: 4,
            overtaken: 0,
            first_unread_ms: Some(7),
            ms: Some(1_500),
            overtaken_in_ms: Some(60_000),
        };
        let row = |behind| {
            let one = PartitionLag {
                topic: "t".to_owned(),
                topic_id: TopicId(0),
                partition: 1,
                committed: Some(5),
                commit_time_ms: None,
                member_id: None,
                behind,
            };
            partition_row(&one)[3..7].to_vec()
        };
        let read = PartitionBehind { records: 0, first_unread_ms: None, ms: Some(0), ..behind };
        let unreadable = PartitionBehind { first_unread_ms: None, ms: None, overtaken_in_ms: None, ..behind };
        let overtaken = PartitionBehind { overtaken: 3, records: 7, overtaken_in_ms: Some(0), ..behind };
        for (behind, expect) in [
            (Some(behind), ["9", "4", "1.5 s", "1 min 0 s"]),
            (Some(read), ["9", "0", "-", "1 min 0 s"]),
            (Some(unreadable), ["9", "4", "?", "-"]),
            (Some(overtaken), ["9", "7", "1.5 s", "3 lost"]),
            (None, ["?", "?", "?", "?"]),
        ] {
            assert_eq!(row(behind), expect, "{behind:?}");
        }
    }
}
