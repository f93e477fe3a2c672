//! Heartbeats: a member joins, says that it lives, changes its mind, gives up partitions, leaves.
//!
//! Part of the [`Coordinator`]; a heartbeat is checked as a whole before anything changes. Invariants: a refused
//! heartbeat leaves no trace but a session that goes on; a member that shows the epoch before the current one has
//! missed an answer, gets it again, and moves no further until it shows the current one.

use super::assignor::Assignor;
use super::group::{Group, compile};
use super::member::{AWAY_EPOCH, Member};
use super::request::{GroupError, GroupState, Heartbeat, HeartbeatReply, JOIN_EPOCH, LEAVE_EPOCH};
use super::{Coordinator, Now, check_group_id};
use crate::limits::{
    GROUP_ID_BYTES_MAX, HEARTBEAT_INTERVAL_MOVING_MS, HEARTBEAT_INTERVAL_MS, MEMBER_ID_BYTES_MAX,
    MEMBER_TEXT_BYTES_MAX, MEMBERS_PER_GROUP_MAX, PATTERN_BYTES_MAX, REBALANCE_TIMEOUT_MS_DEFAULT,
    SESSION_TIMEOUT_MS_DEFAULT, SESSION_TIMEOUT_MS_MAX, SESSION_TIMEOUT_MS_MIN, SUBSCRIPTION_BYTES_MAX,
};
use crate::rules::{Rule, holds};
use regex::Regex;
use schema::group_record::{GroupRecord, MemberValue};

/// Heartbeats that fit into a session at least.
const HEARTBEATS_PER_SESSION: u32 = 4;

fn too_long(what: &str, bytes: usize, most: usize) -> Result<(), GroupError> {
    if bytes <= most {
        return Ok(());
    }
    Err(GroupError::Invalid(format!("{what} of {bytes} bytes; permitted are {most}")))
}

/// Checks what can be checked without the group; the compiled pattern, if there is a new one.
fn check(heartbeat: &Heartbeat) -> Result<Option<Option<Regex>>, GroupError> {
    check_group_id(&heartbeat.group)?;
    if heartbeat.member.is_empty() {
        return Err(GroupError::Invalid("a heartbeat without a member id; choose a UUID".to_owned()));
    }
    too_long("a member id", heartbeat.member.len(), MEMBER_ID_BYTES_MAX)?;
    if heartbeat.epoch < AWAY_EPOCH {
        return Err(GroupError::Invalid(format!("member epoch {} means nothing", heartbeat.epoch)));
    }
    if let Some(instance) = &heartbeat.instance {
        too_long("an instance id", instance.len(), GROUP_ID_BYTES_MAX)?;
    }
    too_long("a rack", heartbeat.rack.as_deref().map_or(0, str::len), MEMBER_TEXT_BYTES_MAX)?;
    let timeout_ms = heartbeat.session_timeout_ms;
    if timeout_ms != 0 && !(SESSION_TIMEOUT_MS_MIN..=SESSION_TIMEOUT_MS_MAX).contains(&timeout_ms) {
        return Err(GroupError::SessionTimeout(timeout_ms));
    }
    let names: usize = heartbeat.topics.iter().flatten().map(|topic| topic.len() + 2).sum();
    too_long("a subscription", names, SUBSCRIPTION_BYTES_MAX)?;
    if let Some(assignor) = &heartbeat.assignor
        && !assignor.is_empty()
        && Assignor::from_name(assignor).is_none()
    {
        return Err(GroupError::UnsupportedAssignor(assignor.clone()));
    }
    let Some(pattern) = &heartbeat.pattern else { return Ok(None) };
    too_long("a pattern", pattern.len(), PATTERN_BYTES_MAX)?;
    compile(pattern).map(Some).map_err(|error| GroupError::InvalidPattern(error.to_string()))
}

/// What a member says in its join.
fn stated(heartbeat: &Heartbeat) -> MemberValue {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let mut client_id = heartbeat.client_id.clone();
    // Only a name for people: cut where the limit is, not refused.
    let end =
        (0..=MEMBER_TEXT_BYTES_MAX.min(client_id.len())).rev().find(|&at| client_id.is_char_boundary(at));
    client_id.truncate(end.unwrap_or(0));
    MemberValue {
        instance_id: heartbeat.instance.clone().filter(|instance| !instance.is_empty()),
        rack: heartbeat.rack.clone().unwrap_or_default(),
        client_id,
        rebalance_timeout_ms: or(heartbeat.rebalance_timeout_ms, REBALANCE_TIMEOUT_MS_DEFAULT),
        session_timeout_ms: or(heartbeat.session_timeout_ms, SESSION_TIMEOUT_MS_DEFAULT),
        topics: heartbeat.topics.clone().unwrap_or_default(),
        pattern: heartbeat.pattern.clone().unwrap_or_default(),
        assignor: heartbeat.assignor.clone().unwrap_or_default(),
    }
}

/// What a member has said before, changed by what it says now.
fn restated(before: &MemberValue, heartbeat: &Heartbeat) -> MemberValue {
    let mut after = before.clone();
    let text = |now: &Option<String>, field: &mut String| {
        if let Some(now) = now {
            field.clone_from(now);
        }
    };
    text(&heartbeat.rack, &mut after.rack);
    text(&heartbeat.pattern, &mut after.pattern);
    text(&heartbeat.assignor, &mut after.assignor);
    if let Some(topics) = &heartbeat.topics {
        after.topics.clone_from(topics);
    }
    if heartbeat.rebalance_timeout_ms != 0 {
        after.rebalance_timeout_ms = heartbeat.rebalance_timeout_ms;
    }
    if heartbeat.session_timeout_ms != 0 {
        after.session_timeout_ms = heartbeat.session_timeout_ms;
    }
    after
}

impl Coordinator {
    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        heartbeat: Heartbeat,
        out: &mut Vec<GroupRecord>,
    ) -> Result<HeartbeatReply, GroupError> {
        let pattern = check(&heartbeat)?;
        let known = self.groups.get(&heartbeat.group).and_then(|group| group.members.get(&heartbeat.member));
        let before_ms = known.map(Member::deadline_ms);
        let reply = match heartbeat.epoch {
            JOIN_EPOCH => self.join(now, &heartbeat, pattern.flatten(), out),
            LEAVE_EPOCH | AWAY_EPOCH => self.leave(now, &heartbeat, out),
            _ => self.live(now, &heartbeat, pattern, out),
        };
        self.set_deadline(&heartbeat.group, &heartbeat.member, before_ms);
        reply
    }

    fn join(
        &mut self,
        now: Now,
        heartbeat: &Heartbeat,
        pattern: Option<Regex>,
        out: &mut Vec<GroupRecord>,
    ) -> Result<HeartbeatReply, GroupError> {
        let (id, name) = (&heartbeat.group, &heartbeat.member);
        let stated = stated(heartbeat);
        let existing = self.groups.get(id);
        let in_place = existing
            .zip(stated.instance_id.as_ref())
            .and_then(|(group, instance)| group.instances.get(instance))
            .cloned();
        if let (Some(group), Some(holder)) = (existing, &in_place)
            && holder != name
            && !group.members[holder].is_away()
            && holds(Rule::KeepInstances)
        {
            return Err(GroupError::UnreleasedInstance(stated.instance_id.unwrap_or_default()));
        }
        match existing {
            None => self.check_room()?,
            Some(group) => {
                let is_more = in_place.is_none() && !group.members.contains_key(name);
                if is_more && group.members.len() >= MEMBERS_PER_GROUP_MAX {
                    return Err(GroupError::TooManyMembers(id.clone()));
                }
            }
        }
        let topics = self.topics.clone();
        let group = self.groups.entry(id.clone()).or_insert_with(|| Group::new(id.clone(), now.wall_ms));
        let mut replaced = None;
        if group.members.get(name).is_some_and(|before| before.stated.instance_id != stated.instance_id) {
            // Another instance under the same member id: the old one is over.
            group.remove(name, now, &*topics, out);
        }
        match (group.members.get(name), in_place) {
            // The answer to its join was lost: it gets it again, unless it says something else now.
            (Some(before), _) if before.previous_epoch == JOIN_EPOCH && before.stated == stated => {
                group.members.get_mut(name).expect("it was found").heard(now.ms);
            }
            (Some(before), _) if !before.is_away() => {
                let member = group.members.get_mut(name).expect("it was found");
                (member.stated, member.pattern) = (stated, pattern);
                member.heard(now.ms);
                group.rejoin(name, &*topics, out);
            }
            (_, Some(before)) => {
                replaced = Some((before.clone(), group.members[&before].deadline_ms()));
                group.come_back(&before, name, Member::new(stated, pattern, now.ms), &*topics, out);
            }
            _ => group.join(name, Member::new(stated, pattern, now.ms), &*topics, out),
        }
        let reply = reply(group, name, true);
        if let Some((before, deadline_ms)) = replaced {
            self.deadlines.remove(&(deadline_ms, id.clone(), before));
        }
        Ok(reply)
    }

    fn leave(
        &mut self,
        now: Now,
        heartbeat: &Heartbeat,
        out: &mut Vec<GroupRecord>,
    ) -> Result<HeartbeatReply, GroupError> {
        let member = self.member(heartbeat)?;
        let session_timeout_ms = member.stated.session_timeout_ms;
        let (is_static, is_away) = (member.stated.instance_id.is_some(), member.is_away());
        if heartbeat.epoch == AWAY_EPOCH && is_static {
            let group = self.groups.get_mut(&heartbeat.group).expect("its member was found");
            group.members.get_mut(&heartbeat.member).expect("it was found").heard(now.ms);
            if !is_away {
                group.go_away(&heartbeat.member, out);
            }
        } else {
            self.remove_member(now, &heartbeat.group, &heartbeat.member, out);
        }
        Ok(HeartbeatReply { epoch: heartbeat.epoch, interval_ms: 0, session_timeout_ms, assignment: None })
    }

    /// The member that a heartbeat is of.
    fn member(&self, heartbeat: &Heartbeat) -> Result<&Member, GroupError> {
        let group = self.groups.get(&heartbeat.group);
        if let Some(member) = group.and_then(|group| group.members.get(&heartbeat.member)) {
            return Ok(member);
        }
        let taken = group
            .zip(heartbeat.instance.as_ref())
            .is_some_and(|(group, instance)| group.instances.contains_key(instance));
        Err(match &heartbeat.instance {
            Some(instance) if taken => GroupError::FencedInstance(instance.clone()),
            _ => {
                GroupError::UnknownMember { group: heartbeat.group.clone(), member: heartbeat.member.clone() }
            }
        })
    }

    fn live(
        &mut self,
        now: Now,
        heartbeat: &Heartbeat,
        pattern: Option<Option<Regex>>,
        out: &mut Vec<GroupRecord>,
    ) -> Result<HeartbeatReply, GroupError> {
        let member = self.member(heartbeat)?;
        let is_current = heartbeat.epoch == member.epoch;
        let missed_an_answer = heartbeat.epoch == member.previous_epoch && !member.is_away();
        if !is_current && !missed_an_answer && holds(Rule::FenceHeartbeats) {
            return Err(GroupError::Fenced { epoch: member.epoch, found: heartbeat.epoch });
        }
        let topics = self.topics.clone();
        let group = self.groups.get_mut(&heartbeat.group).expect("its member was found");
        let name = &heartbeat.member;
        let member = group.members.get_mut(name).expect("it was found");
        let after = restated(&member.stated, heartbeat);
        if after != member.stated {
            let before = std::mem::replace(&mut member.stated, after);
            if let Some(pattern) = pattern {
                member.pattern = pattern;
            }
            let after = &member.stated;
            let another = (&before.topics, &before.pattern, &before.assignor)
                != (&after.topics, &after.pattern, &after.assignor);
            group.record_member(name, out);
            if another {
                group.resubscribe(name, &*topics, out);
            }
        }
        group.members.get_mut(name).expect("it was found").heard(now.ms);
        let mut is_news = !is_current;
        // An older epoch acknowledges nothing: it may have been sent before the member was told.
        if is_current || !holds(Rule::ReleaseNeedsEpoch) || !holds(Rule::FenceHeartbeats) {
            is_news |= group.reconcile(name, heartbeat.owned.as_ref(), now, out);
        }
        let assigned = &group.members[name].assigned;
        is_news |= heartbeat.owned.as_ref().is_some_and(|owned| !owned.iter().eq(assigned.keys()));
        Ok(reply(group, name, is_news))
    }
}

fn reply(group: &Group, name: &str, is_news: bool) -> HeartbeatReply {
    let member = &group.members[name];
    let interval_ms = match group.state() {
        GroupState::Reconciling => HEARTBEAT_INTERVAL_MOVING_MS,
        GroupState::Stable | GroupState::Empty => HEARTBEAT_INTERVAL_MS,
    };
    let session_timeout_ms = member.stated.session_timeout_ms;
    HeartbeatReply {
        epoch: member.epoch,
        interval_ms: interval_ms.min(session_timeout_ms / HEARTBEATS_PER_SESSION),
        session_timeout_ms,
        assignment: is_news.then(|| member.assigned.keys().copied().collect()),
    }
}
