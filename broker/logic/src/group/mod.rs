//! Consumer groups: members share the partitions of the topics that they subscribe to, and commit how far they came.
//!
//! A [`Coordinator`] is the state of one partition of the internal topic `__consumer_offsets`: all groups whose id
//! hashes to it. Owned by the shard that leads the partition. Lifecycle: [`Replay`] takes every record of the
//! partition, [`Coordinator::load`] makes the coordinator of it; then [`Coordinator::step`] per request. A step
//! changes the state at once and hands out the records that make the change permanent, and the answer; the
//! driver appends the records and gives the answer only when they, and all before them, are durable. So what
//! anybody was told survives; what the coordinator alone knew may be lost with it, and nobody is the wiser. A
//! coordinator that cannot write its records is thrown away and loaded anew.
//!
//! Architecture invariants: the records, latest of each key, are the state ([`Coordinator::facts`]), except for
//! what time has to do with: sessions begin anew after a load. Nothing here waits, and no rebalance stops a
//! member that keeps its partitions.
//!
//! The protocol is stated in `schema/definitions/wire.fbs`; where it differs from KIP-848 and why, in
//! `docs/adr/0010-consumer-groups.md`.

pub mod assignor;
// One noun, one file: a group is one of the nouns here.
#[expect(clippy::module_inception)]
mod group;
mod heartbeat;
pub mod member;
pub mod offsets;
pub mod records;
pub mod request;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use records::Replay;
pub use request::{Event, GroupError, Reply};

use crate::ids::{PartitionIndex, TopicId, TopicPartition};
use crate::limits::{
    GROUP_ID_BYTES_MAX, GROUPS_PER_COORDINATOR_MAX, OFFSET_METADATA_BYTES_MAX, OFFSETS_PER_COORDINATOR_MAX,
    OFFSETS_RETENTION_MINUTES_DEFAULT, OFFSETS_SWEEP_MS, OFFSETS_SWEPT_MAX,
};
use crate::metadata::Image;
use crate::rules::{Rule, holds};
use group::Group;
use request::{Commit, FetchOffsets, GroupState, LEAVE_EPOCH, Progress};
use schema::error_code::ErrorCode;
use schema::group_record::{GroupRecord, OffsetValue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Both clocks at the moment of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes back, for time-outs, milliseconds.
    pub ms: u64,
    /// The time of day, for what outlives the process, milliseconds since 1970.
    pub wall_ms: i64,
}

/// The topics that there are; the broker's own are not among them.
pub trait Topics: std::fmt::Debug + Send + Sync {
    /// The topic of a name.
    fn by_name(&self, name: &str) -> Option<TopicId>;
    /// How many partitions a topic has; `None` = there is no such topic.
    fn partitions(&self, id: TopicId) -> Option<u32>;
    /// Every topic with its name.
    fn each(&self, visit: &mut dyn FnMut(&str, TopicId));
}

impl Topics for Image {
    fn by_name(&self, name: &str) -> Option<TopicId> {
        self.topic_by_name(name).filter(|topic| !topic.is_internal()).map(|topic| topic.id)
    }

    fn partitions(&self, id: TopicId) -> Option<u32> {
        self.topic(id).filter(|topic| !topic.is_internal()).map(|topic| topic.partitions.len() as u32)
    }

    fn each(&self, visit: &mut dyn FnMut(&str, TopicId)) {
        self.topics_by_name()
            .filter(|topic| !topic.is_internal())
            .for_each(|topic| visit(&topic.name, topic.id));
    }
}

/// What a coordinator is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long offsets outlive their group's last member, milliseconds.
    pub offsets_retention_ms: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { offsets_retention_ms: OFFSETS_RETENTION_MINUTES_DEFAULT as i64 * 60_000 }
    }
}

/// What a step asks of the driver.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// To be appended to the coordinator's partition, in this order.
    pub records: Vec<GroupRecord>,
    /// To be given when everything appended so far is durable. `None` = nobody asked.
    pub reply: Option<Result<Reply, GroupError>>,
}

/// The groups of one partition of the offsets topic.
#[derive(Clone, Debug)]
pub struct Coordinator {
    settings: Settings,
    topics: Arc<dyn Topics>,
    groups: BTreeMap<String, Group>,
    /// When each member is out: (deadline, group, member).
    deadlines: BTreeSet<(u64, String, String)>,
    /// Of all groups.
    offsets: usize,
    next_sweep_ms: u64,
}

impl Coordinator {
    /// The coordinator of what has been read. Sessions begin now. `effects` has what is to be set right.
    pub fn load(
        replay: Replay,
        settings: Settings,
        topics: Arc<dyn Topics>,
        now: Now,
        effects: &mut Effects,
    ) -> Self {
        let mut coordinator = Self {
            settings,
            topics,
            groups: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            offsets: 0,
            next_sweep_ms: now.ms,
        };
        for (id, known) in replay.groups {
            let mut group = Group::from_known(id.clone(), known, now, &mut effects.records);
            for (name, member) in &group.members {
                coordinator.deadlines.insert((member.deadline_ms(), id.clone(), name.clone()));
            }
            // Topics may have changed while nobody coordinated.
            group.follow_topics(&*coordinator.topics, &mut effects.records);
            coordinator.offsets += group.offsets.len();
            coordinator.groups.insert(id, group);
        }
        coordinator
    }

    /// Does what `event` asks for.
    pub fn step(&mut self, now: Now, event: Event, effects: &mut Effects) {
        let out = &mut effects.records;
        let reply = match event {
            Event::Heartbeat(heartbeat) => self.heartbeat(now, heartbeat, out).map(Reply::Heartbeat),
            Event::Commit(commit) => self.commit(now, commit, out).map(Reply::Committed),
            Event::FetchOffsets(fetch) => self.fetch(&fetch).map(Reply::Offsets),
            Event::Describe(group) => match self.groups.get(&group) {
                Some(group) => Ok(Reply::Described(Box::new(group.described(now)))),
                None => Err(GroupError::UnknownGroup(group)),
            },
            Event::List => Ok(Reply::Listed(self.groups.values().map(Group::listed).collect())),
            Event::Delete(group) => self.delete(group, out),
            Event::TopicsChanged(topics) => return self.follow_topics(topics, out),
            Event::Tick => return self.tick(now, out),
        };
        effects.reply = Some(reply);
    }

    /// When [`Event::Tick`] is due, milliseconds.
    pub fn next_deadline_ms(&self) -> u64 {
        let first = self.deadlines.first().map_or(u64::MAX, |(deadline, _, _)| *deadline);
        first.min(self.next_sweep_ms)
    }

    /// Everything that is on disk if all records are: what a load must bring back.
    pub fn facts(&self) -> Vec<GroupRecord> {
        self.groups.values().flat_map(Group::facts).collect()
    }

    /// Every committed offset with its group and what the group does, for lag.
    pub fn committed(&self) -> impl Iterator<Item = (&str, GroupState, TopicPartition, &OffsetValue)> {
        self.groups.values().flat_map(|group| {
            let state = group.state();
            group.offsets.iter().map(move |(id, value)| (group.id.as_str(), state, id, value))
        })
    }

    /// Every group with how far it has come, for lag. At most `room` partitions are listed, and `room` shrinks by
    /// them: a group that does not fit comes without.
    pub fn progress(&self, room: &mut usize) -> Vec<Progress> {
        self.groups.values().map(|group| group.progress(room)).collect()
    }

    // ---- Offsets -------------------------------------------------------------------------------------

    fn commit(
        &mut self,
        now: Now,
        commit: Commit,
        out: &mut Vec<GroupRecord>,
    ) -> Result<Vec<(TopicPartition, Option<ErrorCode>)>, GroupError> {
        check_group_id(&commit.group)?;
        if commit.member.is_empty() {
            return self.commit_without_member(now, commit, out);
        }
        let unknown =
            || GroupError::UnknownMember { group: commit.group.clone(), member: commit.member.clone() };
        let group = self.groups.get_mut(&commit.group).ok_or_else(unknown)?;
        let member = group.members.get(&commit.member).ok_or_else(unknown)?;
        let fenced = holds(Rule::FenceCommits);
        if fenced && (commit.epoch <= 0 || commit.epoch > member.epoch) {
            return Err(GroupError::Stale { epoch: member.epoch, found: commit.epoch });
        }
        let holds_it: Vec<bool> = commit
            .entries
            .iter()
            .map(|(id, ..)| !fenced || member.holds_since(*id).is_some_and(|since| since <= commit.epoch))
            .collect();
        let mut results = Vec::with_capacity(commit.entries.len());
        for ((id, offset, leader_epoch, metadata), holds_it) in commit.entries.into_iter().zip(holds_it) {
            let error = if holds_it { None } else { Some(ErrorCode::StaleMemberEpoch) };
            let value = OffsetValue { offset, leader_epoch, commit_time_ms: now.wall_ms, metadata };
            let error = error.or_else(|| keep(&mut self.offsets, group, &*self.topics, id, value, out));
            results.push((id, error));
        }
        Ok(results)
    }

    /// A commit of somebody who assigns partitions by himself, or of a person.
    fn commit_without_member(
        &mut self,
        now: Now,
        commit: Commit,
        out: &mut Vec<GroupRecord>,
    ) -> Result<Vec<(TopicPartition, Option<ErrorCode>)>, GroupError> {
        if commit.epoch != LEAVE_EPOCH {
            let text = format!("a commit without a member has epoch -1, not {}", commit.epoch);
            return Err(GroupError::Invalid(text));
        }
        if self.groups.get(&commit.group).is_some_and(|group| !group.members.is_empty()) {
            return Err(GroupError::NotEmpty(commit.group));
        }
        let topics = self.topics.clone();
        if !self.groups.contains_key(&commit.group) {
            self.check_room()?;
        }
        let is_new = !self.groups.contains_key(&commit.group);
        let group =
            self.groups.entry(commit.group.clone()).or_insert_with(|| Group::new(commit.group, now.wall_ms));
        if is_new {
            group.record_group(out);
        }
        let results = commit.entries.into_iter().map(|(id, offset, leader_epoch, metadata)| {
            let value = OffsetValue { offset, leader_epoch, commit_time_ms: now.wall_ms, metadata };
            (id, keep(&mut self.offsets, group, &*topics, id, value, out))
        });
        Ok(results.collect())
    }

    fn fetch(&self, fetch: &FetchOffsets) -> Result<Vec<(TopicPartition, Option<OffsetValue>)>, GroupError> {
        let group = self.groups.get(&fetch.group);
        if !fetch.member.is_empty() {
            let member = group.and_then(|group| group.members.get(&fetch.member));
            let member = member.ok_or_else(|| GroupError::UnknownMember {
                group: fetch.group.clone(),
                member: fetch.member.clone(),
            })?;
            let (epoch, found) = (member.epoch, fetch.epoch);
            if found <= 0 || found != epoch && found != member.previous_epoch {
                return Err(GroupError::Stale { epoch, found });
            }
        }
        let committed = |id| group.and_then(|group| group.offsets.get(id)).cloned();
        Ok(match &fetch.partitions {
            Some(ids) => ids.iter().map(|id| (*id, committed(*id))).collect(),
            None => {
                let all = group.into_iter().flat_map(|group| group.offsets.iter());
                all.map(|(id, value)| (id, Some(value.clone()))).collect()
            }
        })
    }

    // ---- Groups --------------------------------------------------------------------------------------

    fn check_room(&self) -> Result<(), GroupError> {
        if self.groups.len() < GROUPS_PER_COORDINATOR_MAX { Ok(()) } else { Err(GroupError::TooManyGroups) }
    }

    fn delete(&mut self, id: String, out: &mut Vec<GroupRecord>) -> Result<Reply, GroupError> {
        match self.groups.get(&id) {
            None => Err(GroupError::UnknownGroup(id)),
            Some(group) if !group.members.is_empty() => Err(GroupError::NotEmpty(id)),
            Some(_) => {
                self.bury(&id, out);
                Ok(Reply::Deleted)
            }
        }
    }

    fn bury(&mut self, id: &str, out: &mut Vec<GroupRecord>) {
        if let Some(group) = self.groups.remove(id) {
            self.offsets -= group.offsets.len();
            group.bury(out);
        }
    }

    fn follow_topics(&mut self, topics: Arc<dyn Topics>, out: &mut Vec<GroupRecord>) {
        self.topics = topics;
        for group in self.groups.values_mut() {
            self.offsets -= group.offsets.len();
            group.follow_topics(&*self.topics, out);
            self.offsets += group.offsets.len();
        }
    }

    /// Sets the timer of a member to what the member says.
    fn set_deadline(&mut self, group: &str, member: &str, before_ms: Option<u64>) {
        let after = self.groups.get(group).and_then(|group| group.members.get(member));
        let after_ms = after.map(|member| member.deadline_ms());
        if before_ms == after_ms {
            return;
        }
        if let Some(before_ms) = before_ms {
            self.deadlines.remove(&(before_ms, group.to_owned(), member.to_owned()));
        }
        if let Some(after_ms) = after_ms {
            self.deadlines.insert((after_ms, group.to_owned(), member.to_owned()));
        }
    }

    fn remove_member(&mut self, now: Now, group: &str, member: &str, out: &mut Vec<GroupRecord>) {
        let entry = self.groups.get_mut(group).expect("the member's group is here");
        let deadline_ms = entry.members[member].deadline_ms();
        entry.remove(member, now, &*self.topics, out);
        self.deadlines.remove(&(deadline_ms, group.to_owned(), member.to_owned()));
    }

    fn tick(&mut self, now: Now, out: &mut Vec<GroupRecord>) {
        while let Some((deadline_ms, group, member)) = self.deadlines.first().cloned() {
            if deadline_ms > now.ms {
                break;
            }
            let over = &self.groups[&group].members[&member];
            let session = over.session_ends_ms <= now.ms;
            if session && !holds(Rule::EndSessions) || !session && !holds(Rule::EndRevocations) {
                // Only in the simulation: whoever should be out is looked at again later.
                self.deadlines.remove(&(deadline_ms, group.clone(), member.clone()));
                continue;
            }
            self.remove_member(now, &group, &member, out);
        }
        if now.ms >= self.next_sweep_ms {
            let more = self.sweep(now, out);
            self.next_sweep_ms = now.ms + if more { 1 } else { OFFSETS_SWEEP_MS };
        }
    }

    /// Drops expired offsets, and groups that have neither members nor offsets; whether there may be more.
    fn sweep(&mut self, now: Now, out: &mut Vec<GroupRecord>) -> bool {
        let mut left = OFFSETS_SWEPT_MAX;
        let mut over = Vec::new();
        for group in self.groups.values_mut() {
            if !group.members.is_empty() && holds(Rule::KeepOffsetsOfMembers) {
                continue;
            }
            let retention_ms = self.settings.offsets_retention_ms;
            let expired = group.offsets.expired(group.empty_since_ms, retention_ms, now.wall_ms, left);
            group.drop_offsets(&expired, out);
            self.offsets -= expired.len();
            left -= expired.len();
            let is_old = group.empty_since_ms.saturating_add(retention_ms) <= now.wall_ms;
            if group.offsets.is_empty() && group.members.is_empty() && is_old {
                over.push(group.id.clone());
            }
            if left == 0 {
                break;
            }
        }
        over.iter().for_each(|id| self.bury(id, out));
        left == 0
    }
}

/// Keeps one offset if its partition is there and there is room.
fn keep(
    total: &mut usize,
    group: &mut Group,
    topics: &dyn Topics,
    id: TopicPartition,
    value: OffsetValue,
    out: &mut Vec<GroupRecord>,
) -> Option<ErrorCode> {
    match topics.partitions(id.topic) {
        None => return Some(ErrorCode::UnknownTopic),
        Some(count) if id.partition.get() >= count => return Some(ErrorCode::UnknownPartition),
        Some(_) => {}
    }
    if value.metadata.len() > OFFSET_METADATA_BYTES_MAX {
        return Some(ErrorCode::OffsetMetadataTooLarge);
    }
    let is_new = group.offsets.get(id).is_none();
    if !group.offsets.has_room_for(id) || is_new && *total >= OFFSETS_PER_COORDINATOR_MAX {
        return Some(ErrorCode::GroupFull);
    }
    *total += usize::from(is_new);
    group.commit(id, value, out);
    None
}

fn check_group_id(id: &str) -> Result<(), GroupError> {
    if id.is_empty() || id.len() > GROUP_ID_BYTES_MAX {
        let text = format!("a group id of {} bytes; permitted are 1 to {GROUP_ID_BYTES_MAX}", id.len());
        return Err(GroupError::Invalid(text));
    }
    Ok(())
}

/// The partition of a topic, from its parts.
pub fn partition(topic: TopicId, index: u32) -> TopicPartition {
    TopicPartition { topic, partition: PartitionIndex::new(index) }
}
