//! One consumer group: who is in it, who holds what, who is going to hold what.
//!
//! Owned by the coordinator of its partition. Every change of members, subscriptions or their topics raises the
//! group's epoch and computes a target at once; members come closer to it one heartbeat at a time:
//!
//! ```text
//! target without p ─► assigned → revoking: the member is told, stops, commits
//!                  ─► it shows the new epoch, owning p no more: p is free
//! target with p    ─► its next heartbeat, if p is free: assigned
//! ```
//!
//! Invariants: a partition is in `owners` exactly if one member has it in `assigned` or `revoking`, and that member
//! is the owner; every change of what is on disk is in `out` in an order in which no prefix has two owners;
//! `epoch` is never below the epoch of a member that has left.
//!
//! Absent on purpose: time-outs as timers (the coordinator asks for the next deadline), generations in which
//! everybody stops.

use super::assignor::{Assignor, Counts, Subscriber, assign};
use super::member::{AWAY_EPOCH, Holding, Member};
use super::offsets::{Offsets, to_record};
use super::records::KnownGroup;
use super::request::{Description, GroupState, Listed, MemberDescription, Progress};
use super::{Now, Topics};
use crate::ids::TopicPartition;
use crate::limits::PATTERN_COMPILED_BYTES_MAX;
use crate::rules::{Rule, holds};
use regex::{Regex, RegexBuilder};
use schema::group_record::{Fact, GroupRecord, GroupValue, OffsetValue};
use std::collections::{BTreeMap, BTreeSet};

/// A group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub id: String,
    pub epoch: i32,
    /// -1 = it has members.
    pub empty_since_ms: i64,
    pub members: BTreeMap<String, Member>,
    /// Static members: instance → member.
    pub instances: BTreeMap<String, String>,
    pub owners: BTreeMap<TopicPartition, String>,
    pub offsets: Offsets,
    pub assignor: Assignor,
}

/// Compiles a subscription's expression, anchored at both ends.
pub(super) fn compile(pattern: &str) -> Result<Option<Regex>, regex::Error> {
    if pattern.is_empty() {
        return Ok(None);
    }
    let anchored = format!("^(?:{pattern})$");
    RegexBuilder::new(&anchored).size_limit(PATTERN_COMPILED_BYTES_MAX).build().map(Some)
}

impl Group {
    pub fn new(id: String, wall_ms: i64) -> Self {
        Self {
            id,
            epoch: 0,
            empty_since_ms: wall_ms,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            owners: BTreeMap::new(),
            offsets: Offsets::default(),
            assignor: Assignor::default(),
        }
    }

    /// The group that the records tell of. Members that contradict each other, which only damage can bring
    /// about, are left out: they join again.
    pub fn from_known(id: String, known: KnownGroup, now: Now, out: &mut Vec<GroupRecord>) -> Self {
        let mut group = Self::new(id, now.wall_ms);
        if let Some(value) = known.value {
            group.epoch = value.epoch;
            group.empty_since_ms = value.empty_since_ms;
        }
        let (mut targets, mut currents) = (known.targets, known.currents);
        for (name, stated) in known.members {
            let pattern = compile(&stated.pattern).ok().flatten();
            let mut member = Member::new(stated, pattern, now.ms);
            member.target = targets.remove(&name).unwrap_or_default();
            let Some(current) = currents.remove(&name) else {
                // The end of the log cut its join in two: it was never told that it is in.
                group.forget(&name, out);
                continue;
            };
            member.set_current(current);
            let contradicts = member.held().any(|id| group.owners.contains_key(&id))
                || member.stated.instance_id.as_ref().is_some_and(|i| group.instances.contains_key(i));
            group.epoch = group.epoch.max(member.epoch);
            if contradicts {
                group.forget(&name, out);
                continue;
            }
            if !member.revoking.is_empty() {
                member.revocation_ends_ms =
                    Some(now.ms.saturating_add(u64::from(member.stated.rebalance_timeout_ms)));
            }
            group.owners.extend(member.held().map(|id| (id, name.clone())));
            if let Some(instance) = &member.stated.instance_id {
                group.instances.insert(instance.clone(), name.clone());
            }
            group.members.insert(name, member);
        }
        for name in targets.keys().chain(currents.keys()) {
            group.forget(name, out);
        }
        for (id, value) in known.offsets {
            group.offsets.set(id, Some(value));
        }
        if group.members.is_empty() != (group.empty_since_ms >= 0) {
            group.empty_since_ms = if group.members.is_empty() { now.wall_ms } else { -1 };
        }
        let value = GroupValue { epoch: group.epoch, empty_since_ms: group.empty_since_ms };
        if known.value != Some(value) {
            group.record_group(out);
        }
        group
    }

    // ---- Records -------------------------------------------------------------------------------------

    fn record(&self, fact: Fact) -> GroupRecord {
        GroupRecord { group: self.id.clone(), fact }
    }

    pub fn record_group(&self, out: &mut Vec<GroupRecord>) {
        let value = GroupValue { epoch: self.epoch, empty_since_ms: self.empty_since_ms };
        out.push(self.record(Fact::Group(Some(value))));
    }

    pub fn record_member(&self, name: &str, out: &mut Vec<GroupRecord>) {
        out.push(self.record(Fact::Member(name.to_owned(), Some(self.members[name].stated.clone()))));
    }

    fn record_target(&self, name: &str, out: &mut Vec<GroupRecord>) {
        out.push(self.record(Fact::Target(name.to_owned(), Some(self.members[name].target_value()))));
    }

    pub fn record_current(&self, name: &str, out: &mut Vec<GroupRecord>) {
        if holds(Rule::RecordCurrent) {
            out.push(self.record(Fact::Current(name.to_owned(), Some(self.members[name].current()))));
        }
    }

    /// Tombstones of a member: what it holds first, so that no prefix has it twice.
    fn forget(&self, name: &str, out: &mut Vec<GroupRecord>) {
        if holds(Rule::RecordRemovals) {
            out.push(self.record(Fact::Current(name.to_owned(), None)));
            out.push(self.record(Fact::Target(name.to_owned(), None)));
            out.push(self.record(Fact::Member(name.to_owned(), None)));
        }
    }

    /// Everything that is on disk of the group, if all of `out` is.
    pub fn facts(&self) -> Vec<GroupRecord> {
        let mut out = Vec::new();
        self.record_group(&mut out);
        for name in self.members.keys() {
            self.record_member(name, &mut out);
            self.record_target(name, &mut out);
            out.push(self.record(Fact::Current(name.clone(), Some(self.members[name].current()))));
        }
        for (id, value) in self.offsets.iter() {
            out.push(self.record(Fact::Offset(to_record(id), Some(value.clone()))));
        }
        out
    }

    // ---- Members -------------------------------------------------------------------------------------

    fn raise_epoch(&mut self, above: i32) {
        let floor = if holds(Rule::RaiseEpochs) { self.epoch.max(above) } else { self.epoch };
        self.epoch = floor + 1;
    }

    /// Adds a member that holds nothing, and gives it what is free.
    pub fn join(&mut self, name: &str, member: Member, topics: &dyn Topics, out: &mut Vec<GroupRecord>) {
        if let Some(instance) = &member.stated.instance_id {
            self.instances.insert(instance.clone(), name.to_owned());
        }
        self.members.insert(name.to_owned(), member);
        self.empty_since_ms = -1;
        self.raise_epoch(0);
        self.record_group(out);
        self.record_member(name, out);
        self.resolve(name, topics);
        self.retarget(topics, out);
        self.record_target(name, out);
        self.admit(name, Holding::new(), out);
    }

    /// A member that is in already says that it holds nothing, and takes its place anew.
    pub fn rejoin(&mut self, name: &str, topics: &dyn Topics, out: &mut Vec<GroupRecord>) {
        self.release_all(name);
        let epoch = self.members[name].epoch;
        self.raise_epoch(epoch);
        self.record_group(out);
        self.record_member(name, out);
        self.resolve(name, topics);
        self.retarget(topics, out);
        self.admit(name, Holding::new(), out);
    }

    /// A static member is back, perhaps under another name: it has what waited for it.
    pub fn come_back(
        &mut self,
        before: &str,
        name: &str,
        mut member: Member,
        topics: &dyn Topics,
        out: &mut Vec<GroupRecord>,
    ) {
        let old = self.members.remove(before).expect("the instance's member is in the group");
        self.owners.retain(|_, owner| owner != before);
        if before != name {
            self.forget(before, out);
        }
        let instance = member.stated.instance_id.clone().expect("a static member has an instance id");
        self.instances.insert(instance, name.to_owned());
        member.target = old.target;
        self.owners.extend(old.assigned.keys().map(|id| (*id, name.to_owned())));
        let waiting = old.assigned;
        self.members.insert(name.to_owned(), member);
        self.raise_epoch(old.epoch);
        self.record_group(out);
        self.record_member(name, out);
        self.record_target(name, out);
        self.resolve(name, topics);
        self.retarget(topics, out);
        self.admit(name, waiting, out);
    }

    /// The first assignment of a member: what waited for it and is still meant for it, and what is free.
    fn admit(&mut self, name: &str, waiting: Holding, out: &mut Vec<GroupRecord>) {
        let epoch = self.epoch;
        let member = self.members.get_mut(name).expect("the member has just been added");
        // What waited and is not meant for it any more is free: the process that held it is gone.
        for id in waiting.keys().filter(|id| !member.target.contains(id)) {
            self.owners.remove(id);
        }
        member.assigned =
            waiting.into_keys().filter(|id| member.target.contains(id)).map(|id| (id, epoch)).collect();
        for id in &member.target {
            if !self.owners.contains_key(id) || !holds(Rule::WaitForRelease) {
                self.owners.insert(*id, name.to_owned());
                member.assigned.insert(*id, epoch);
            }
        }
        member.epoch = 0;
        member.enter_epoch(epoch);
        self.record_current(name, out);
    }

    fn release_all(&mut self, name: &str) {
        let member = self.members.get_mut(name).expect("only members release");
        for id in std::mem::take(&mut member.assigned).keys() {
            self.owners.remove(id);
        }
        for id in std::mem::take(&mut member.revoking).keys() {
            self.owners.remove(id);
        }
        member.revocation_ends_ms = None;
    }

    /// A member is out: its partitions are free.
    pub fn remove(&mut self, name: &str, now: Now, topics: &dyn Topics, out: &mut Vec<GroupRecord>) {
        self.release_all(name);
        let member = self.members.remove(name).expect("only members are removed");
        if let Some(instance) = &member.stated.instance_id {
            self.instances.remove(instance);
        }
        self.forget(name, out);
        self.raise_epoch(member.epoch);
        if self.members.is_empty() {
            self.empty_since_ms = now.wall_ms;
        }
        self.record_group(out);
        self.retarget(topics, out);
    }

    /// A static member is away for a while: it holds nothing now, and what it was assigned waits for it.
    pub fn go_away(&mut self, name: &str, out: &mut Vec<GroupRecord>) {
        let member = self.members.get_mut(name).expect("only members go away");
        for id in std::mem::take(&mut member.revoking).keys() {
            self.owners.remove(id);
        }
        member.revocation_ends_ms = None;
        let epoch = member.epoch;
        (member.previous_epoch, member.epoch) = (AWAY_EPOCH, AWAY_EPOCH);
        self.raise_epoch(epoch);
        self.record_current(name, out);
        self.record_group(out);
    }

    /// Finds the topics that a member's subscription means.
    pub fn resolve(&mut self, name: &str, topics: &dyn Topics) {
        let member = self.members.get_mut(name).expect("only members subscribe");
        let mut found: BTreeSet<_> =
            member.stated.topics.iter().filter_map(|topic| topics.by_name(topic)).collect();
        if let Some(pattern) = &member.pattern {
            topics.each(&mut |topic, id| {
                if pattern.is_match(topic) {
                    found.insert(id);
                }
            });
        }
        member.topics = found;
    }

    /// A subscription changed.
    pub fn resubscribe(&mut self, name: &str, topics: &dyn Topics, out: &mut Vec<GroupRecord>) {
        self.raise_epoch(0);
        self.record_group(out);
        self.resolve(name, topics);
        self.retarget(topics, out);
    }

    /// Topics came, grew or went: whether that means another target.
    pub fn follow_topics(&mut self, topics: &dyn Topics, out: &mut Vec<GroupRecord>) {
        let names: Vec<String> = self.members.keys().cloned().collect();
        names.iter().for_each(|name| self.resolve(name, topics));
        let mut changes = Vec::new();
        if self.retarget(topics, &mut changes) {
            self.raise_epoch(0);
            self.record_group(out);
            out.extend(changes);
        }
        let gone = self.offsets.of_topics(|topic| topics.partitions(topic).is_none());
        self.drop_offsets(&gone, out);
    }

    pub fn drop_offsets(&mut self, gone: &[TopicPartition], out: &mut Vec<GroupRecord>) {
        for id in gone {
            self.offsets.set(*id, None);
            out.push(self.record(Fact::Offset(to_record(*id), None)));
        }
    }

    /// What most members ask for.
    fn elect(&self) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(assignor) = Assignor::from_name(&member.stated.assignor) {
                *votes.entry(assignor).or_default() += 1;
            }
        }
        let most = votes.values().copied().max().unwrap_or(0);
        votes
            .into_iter()
            .find(|(_, count)| *count == most)
            .map_or(Assignor::default(), |(assignor, _)| assignor)
    }

    /// Computes every member's target anew; whether one changed.
    fn retarget(&mut self, topics: &dyn Topics, out: &mut Vec<GroupRecord>) -> bool {
        self.assignor = self.elect();
        let mut counts = Counts::new();
        for topic in self.members.values().flat_map(|member| &member.topics) {
            if let Some(count) = topics.partitions(*topic) {
                counts.insert(*topic, count);
            }
        }
        // Static members by their instance, so that whoever replaces one has its place.
        let mut order: Vec<(&str, &String)> = self
            .members
            .iter()
            .map(|(name, member)| (member.stated.instance_id.as_deref().unwrap_or(name), name))
            .collect();
        order.sort_unstable();
        let order: Vec<String> = order.into_iter().map(|(_, name)| name.clone()).collect();
        let nothing = BTreeSet::new();
        let subscribers: Vec<Subscriber<'_>> = order
            .iter()
            .map(|name| {
                let member = &self.members[name];
                let previous = if holds(Rule::MoveLittle) { &member.target } else { &nothing };
                Subscriber { topics: &member.topics, previous }
            })
            .collect();
        let targets = assign(self.assignor, &subscribers, &counts);
        let mut changed = false;
        for (name, target) in order.iter().zip(targets) {
            let member = self.members.get_mut(name).expect("the order has members only");
            if member.target == target {
                continue;
            }
            changed = true;
            member.target = target;
            self.record_target(name, out);
            self.release_away(name, out);
        }
        changed
    }

    /// What a member that is away is not going to have any more is free at once: nobody works on it.
    fn release_away(&mut self, name: &str, out: &mut Vec<GroupRecord>) {
        let member = self.members.get_mut(name).expect("only members have targets");
        if !member.is_away() {
            return;
        }
        let lost: Vec<_> = member.assigned.keys().filter(|id| !member.target.contains(id)).copied().collect();
        for id in &lost {
            member.assigned.remove(id);
            self.owners.remove(id);
        }
        if !lost.is_empty() {
            self.record_current(name, out);
        }
    }

    /// One step of a member towards its target; whether its assignment changed.
    pub fn reconcile(
        &mut self,
        name: &str,
        owned: Option<&BTreeSet<TopicPartition>>,
        now: Now,
        out: &mut Vec<GroupRecord>,
    ) -> bool {
        let member = self.members.get_mut(name).expect("only members reconcile");
        let mut released = false;
        if let Some(owned) = owned {
            let given_up: Vec<_> = member.revoking.keys().filter(|id| !owned.contains(id)).copied().collect();
            released = !given_up.is_empty();
            for id in given_up {
                member.revoking.remove(&id);
                self.owners.remove(&id);
            }
            if member.revoking.is_empty() {
                member.revocation_ends_ms = None;
            }
        }
        let lose: Vec<_> = member.assigned.keys().filter(|id| !member.target.contains(id)).copied().collect();
        let owners = &self.owners;
        let is_free = |id: &TopicPartition| {
            !owners.contains_key(id)
                || !holds(Rule::WaitForRelease) && owners.get(id).is_some_and(|owner| owner != name)
        };
        let gain: Vec<_> = member.target.iter().filter(|id| is_free(id)).copied().collect();
        let changed = !lose.is_empty() || !gain.is_empty();
        if changed {
            member.enter_epoch(self.epoch.max(member.epoch + 1));
            for id in lose {
                let since = member.assigned.remove(&id).expect("it was assigned a moment ago");
                member.revoking.insert(id, since);
                let ends_ms = now.ms.saturating_add(u64::from(member.stated.rebalance_timeout_ms));
                member.revocation_ends_ms.get_or_insert(ends_ms);
            }
            for id in gain {
                member.assigned.insert(id, member.epoch);
                self.owners.insert(id, name.to_owned());
            }
        }
        if changed || released {
            self.record_current(name, out);
        }
        changed
    }

    // ---- What people see -----------------------------------------------------------------------------

    pub fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.members.values().all(Member::is_settled) {
            GroupState::Stable
        } else {
            GroupState::Reconciling
        }
    }

    pub fn listed(&self) -> Listed {
        Listed {
            group: self.id.clone(),
            state: self.state(),
            members: self.members.len() as u32,
            offsets: self.offsets.len() as u32,
            assignor: self.assignor.name(),
        }
    }

    pub fn progress(&self, room: &mut usize) -> Progress {
        let held = || self.members.values().flat_map(Member::held);
        let bound = self.offsets.len() + held().count();
        let positions = (bound <= *room).then(|| {
            let mut positions: BTreeMap<TopicPartition, Option<u64>> = held().map(|id| (id, None)).collect();
            positions.extend(self.offsets.iter().map(|(id, value)| (id, Some(value.offset))));
            positions.into_iter().collect::<Vec<_>>()
        });
        let partitions = positions.as_ref().map_or(bound, Vec::len);
        *room -= positions.as_ref().map_or(0, Vec::len);
        Progress {
            group: self.id.clone(),
            state: self.state(),
            members: self.members.len() as u32,
            partitions: partitions as u32,
            positions,
        }
    }

    pub fn described(&self, now: Now) -> Description {
        let member = |(id, member): (&String, &Member)| MemberDescription {
            id: id.clone(),
            stated: member.stated.clone(),
            epoch: member.epoch,
            assigned: member.assigned.keys().copied().collect(),
            revoking: member.revoking.keys().copied().collect(),
            target: member.target.iter().copied().collect(),
            silent_ms: now.ms.saturating_sub(member.heard_ms),
        };
        Description {
            group: self.id.clone(),
            state: self.state(),
            epoch: self.epoch,
            assignor: self.assignor.name(),
            empty_since_ms: self.empty_since_ms,
            members: self.members.iter().map(member).collect(),
            offsets: self.offsets.iter().map(|(id, value)| (id, value.clone())).collect(),
        }
    }

    /// Keeps an offset.
    pub fn commit(&mut self, id: TopicPartition, value: OffsetValue, out: &mut Vec<GroupRecord>) {
        out.push(self.record(Fact::Offset(to_record(id), Some(value.clone()))));
        self.offsets.set(id, Some(value));
    }

    /// Tombstones of everything; the group has no members.
    pub fn bury(&self, out: &mut Vec<GroupRecord>) {
        assert!(self.members.is_empty(), "group {:?} is deleted although it has members", self.id);
        for (id, _) in self.offsets.iter() {
            out.push(self.record(Fact::Offset(to_record(id), None)));
        }
        out.push(self.record(Fact::Group(None)));
    }
}
