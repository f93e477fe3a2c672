//! One replica: its log's position, what its log is worth, and its role as metadata gives it.

use super::epoch_history::EpochHistory;
use super::follower::Follower;
use super::leader::{Leader, PeerProgress, Sent};
use super::message::{Append, Body, FromFollower, FromLeader, Message, Nack, Status};
use super::rules::{Rule, holds};
use super::{Effect, Effects, Event, Here, Member, NotAdmitted, Settings, Start, View};
use crate::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence};
use crate::limits::REPORT_RETRY_MS;
use std::sync::Arc;

/// How far a replica's log is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub log_start: Offset,
    pub log_end: Offset,
    pub durable_end: Offset,
    pub high_watermark: Offset,
    pub epochs: EpochHistory,
}

impl Position {
    /// The high watermark rises to `to`, if that is higher.
    #[inline]
    pub fn raise_high_watermark(&mut self, to: Offset, effects: &mut Effects) -> bool {
        if to <= self.high_watermark {
            return false;
        }
        assert!(to <= self.log_end, "high watermark {to} above the log's end {}", self.log_end);
        self.high_watermark = to;
        effects.push(Effect::SetHighWatermark(to));
        true
    }
}

/// Why a replica's log is not to be relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Suspicion {
    /// The registration that named it. Metadata that knows this registration knows the suspicion, and what it says of
    /// it from there on is right. `None` = the broker must register anew.
    named_in: Option<BrokerEpoch>,
    /// Metadata that knows that registration has been seen.
    heard: bool,
    /// What is at this offset and above is cut away at the next match, although it looks the same.
    pub trusted_end: Option<Offset>,
}

/// What the log is worth, and whether metadata can know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Health {
    pub suspicion: Option<Suspicion>,
    /// When to report it again; `u64::MAX` = never.
    report_ms: u64,
}

impl Health {
    pub fn status(&self) -> Status {
        if self.suspicion.is_some() { Status::Suspect } else { Status::Clean }
    }

    /// The log does not have what it should, from `trusted_end` on; metadata is not told yet.
    pub fn doubt(&mut self, here: Here, trusted_end: Offset, now_ms: u64, effects: &mut Effects) {
        let before = self.suspicion.and_then(|suspicion| suspicion.trusted_end).unwrap_or(trusted_end);
        self.suspicion =
            Some(Suspicion { named_in: None, heard: false, trusted_end: Some(before.min(trusted_end)) });
        self.report(here, now_ms, effects);
    }

    /// Metadata that has heard of it believes in more of the log than there is: it is told anew.
    fn correct(&mut self, here: Here, now_ms: u64, effects: &mut Effects) {
        if let Some(suspicion) = &mut self.suspicion {
            (suspicion.named_in, suspicion.heard) = (None, false);
            self.report(here, now_ms, effects);
        }
    }

    /// Whether metadata cannot know yet.
    pub fn is_unheard(&self) -> bool {
        self.suspicion.is_some_and(|suspicion| !suspicion.heard)
    }

    fn report(&mut self, here: Here, now_ms: u64, effects: &mut Effects) {
        effects.push(Effect::ReportSuspect { generation: here.generation });
        self.report_ms = now_ms + REPORT_RETRY_MS;
    }

    /// Metadata says whether this replica is suspect, and knows registration `me.broker_epoch`.
    fn follow(&mut self, me: &Member) {
        match &mut self.suspicion {
            Some(suspicion) if suspicion.named_in.is_some_and(|named| named <= me.broker_epoch) => {
                suspicion.heard = true;
                if me.suspect.is_none() {
                    self.suspicion = None;
                }
            }
            None if me.suspect.is_some() => {
                self.suspicion =
                    Some(Suspicion { named_in: Some(me.broker_epoch), heard: true, trusted_end: None });
            }
            // What metadata says is older than what this replica knows.
            Some(_) | None => {}
        }
    }
}

/// What the driver is doing to the log on this replica's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    None,
    Truncating {
        to: Offset,
    },
    /// Its own wish: what goes is lost.
    Shedding {
        to: Offset,
    },
    Resetting {
        log_start: Offset,
    },
}

/// What both roles work with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Core {
    pub here: Here,
    pub settings: Settings,
    pub position: Position,
    pub health: Health,
    pub work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Nobody leads, or metadata does not mean this replica, or it cannot lead now.
    Idle,
    Leader(Leader),
    Follower(Follower),
}

/// The replication of one partition on one broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    core: Core,
    view: Option<Arc<View>>,
    /// Brokers with streams to and from here.
    connected: Vec<BrokerId>,
    role: Role,
}

impl Replica {
    /// A replica whose log was recovered. It does nothing before it is told of metadata. Its high watermark begins at
    /// the log's start: what it was is not on the device, and a leader tells it again.
    pub fn new(here: Here, settings: Settings, start: Start) -> Self {
        let Start { log_start, log_end, epochs, status, trusted_end } = start;
        let epochs = EpochHistory::new(epochs);
        let high_watermark = if holds(Rule::BeginAtLogStart) { log_start } else { log_end };
        let position = Position { log_start, log_end, durable_end: log_end, high_watermark, epochs };
        let suspicion = (status == Status::Suspect).then_some(Suspicion {
            named_in: Some(here.broker_epoch),
            heard: false,
            trusted_end,
        });
        let health = Health { suspicion, report_ms: u64::MAX };
        let core = Core { here, settings, position, health, work: Work::None };
        Self { core, view: None, connected: Vec::new(), role: Role::Idle }
    }

    /// Takes note of `event`, and adds to `effects` what is to be done. `now_ms` never goes back.
    ///
    /// # Panics
    /// If an invariant of replication is broken: the process must end.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Effects) {
        match event {
            Event::Appended { base, end, epoch } => self.appended(now_ms, base, end, epoch, effects),
            Event::Durable { end } => self.durable(now_ms, end, effects),
            Event::Message { from, message } => self.message(now_ms, from, message, effects),
            Event::Pushed { to, open_sequence, end, from_memory } => {
                if let Role::Leader(leader) = &mut self.role {
                    let sent = Sent { to, open_sequence, end, from_memory };
                    leader.pushed(&mut self.core, now_ms, sent, effects);
                }
            }
            Event::PushFailed { to, open_sequence } => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.push_failed(now_ms, to, open_sequence);
                }
            }
            Event::MetadataChanged(view) => self.metadata_changed(now_ms, view, effects),
            Event::Registered(broker_epoch) => self.registered(now_ms, broker_epoch, effects),
            Event::AppendRefused(nack) => {
                if let Role::Follower(follower) = &mut self.role {
                    follower.refuse(nack, effects);
                }
            }
            Event::Truncated { end } => self.truncated(now_ms, end, effects),
            Event::ResetDone => self.reset_done(now_ms, effects),
            Event::LogStart(log_start) => self.raise_log_start(now_ms, log_start, effects),
            Event::Fingerprint { offset, value } => match &mut self.role {
                Role::Leader(leader) => leader.fingerprint(offset, value, effects),
                Role::Follower(follower) => {
                    follower.fingerprint(&mut self.core, now_ms, offset, value, effects);
                }
                Role::Idle => {}
            },
            Event::Damaged { from } => {
                self.core.health.doubt(self.core.here, from, now_ms, effects);
                if let Role::Follower(follower) = &mut self.role {
                    follower.refuse(Nack::Suspect, effects);
                }
            }
            Event::TailLost { from } => {
                assert!(
                    self.view.is_none() && self.core.work == Work::None,
                    "lost from {from} on, in a role"
                );
                self.core.work = Work::Shedding { to: from };
                self.core.health.doubt(self.core.here, from, now_ms, effects);
                effects.push(Effect::Truncate { to: from });
            }
            Event::StreamUp(peer) => self.stream(now_ms, peer, true, effects),
            Event::StreamDown(peer) => self.stream(now_ms, peer, false, effects),
            Event::Tick => self.tick(now_ms, effects),
        }
    }

    /// When [`Event::Tick`] is due, milliseconds of the clock of [`Replica::step`]; `u64::MAX` = never.
    #[inline]
    pub fn next_deadline_ms(&self) -> u64 {
        let role = if let Role::Leader(leader) = &self.role { leader.deadline_ms() } else { u64::MAX };
        role.min(self.core.health.report_ms)
    }

    /// The epoch to append a produced batch in, or why not.
    #[inline]
    pub fn admit(&self) -> Result<LeaderEpoch, NotAdmitted> {
        match &self.role {
            Role::Leader(leader) => leader.admit(),
            Role::Follower(_) | Role::Idle => Err(NotAdmitted::NotLeader),
        }
    }

    /// What goes with the batches that are sent to `to` next: read from `base` on, up to the log's end. `None` =
    /// nothing is to be sent. What it says counts as sent: report [`Event::Pushed`] or [`Event::PushFailed`].
    pub fn append_head(&mut self, to: BrokerId) -> Option<AppendHead> {
        match &mut self.role {
            Role::Leader(leader) => leader.append_head(&self.core.position, to),
            Role::Follower(_) | Role::Idle => None,
        }
    }

    /// The epoch that this broker leads in.
    pub fn leads(&self) -> Option<LeaderEpoch> {
        match &self.role {
            Role::Leader(leader) => Some(leader.epoch()),
            Role::Follower(_) | Role::Idle => None,
        }
    }

    /// The epoch that this broker follows in as a sound member of the in-sync set: who reads may read here what is below
    /// the high watermark, which is then not long behind the leader's. `None` = only the leader serves.
    pub fn follows(&self) -> Option<LeaderEpoch> {
        match &self.role {
            Role::Follower(follower) => follower.is_current(&self.core).then(|| follower.epoch()),
            Role::Leader(_) | Role::Idle => None,
        }
    }

    /// Whether this broker leads and everything that earlier leaders committed is visible: only then it tells what
    /// is latest, and coordinates groups.
    pub fn is_applied(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        self.core.position.high_watermark >= leader.start() || !holds(Rule::AppliedAboveEpochStart)
    }

    /// Everything below is committed, as far as this replica knows.
    pub fn high_watermark(&self) -> Offset {
        self.core.position.high_watermark
    }

    /// Where the log ends.
    pub fn log_end(&self) -> Offset {
        self.core.position.log_end
    }

    /// Up to where it is on the device.
    pub fn durable_end(&self) -> Offset {
        self.core.position.durable_end
    }

    /// Its first offset.
    pub fn log_start(&self) -> Offset {
        self.core.position.log_start
    }

    /// The leader epochs of the log, the oldest first.
    pub fn epochs(&self) -> &[(LeaderEpoch, Offset)] {
        self.core.position.epochs.entries()
    }

    /// What the log is worth: a broker that registers names every replica that is suspect.
    pub fn status(&self) -> Status {
        self.core.health.status()
    }

    /// What metadata is told of a suspect, which may be elected for it when none but suspects are left: the last epoch of the
    /// log, and its end. What is lost at the end does not count, since nobody could have it from here.
    pub fn claim(&self) -> (LeaderEpoch, Offset) {
        let Core { position, work, .. } = &self.core;
        let lost_from = if let Work::Shedding { to } = work { *to } else { Offset::new(u64::MAX) };
        let mut epochs = position.epochs.entries().iter().rev();
        let last = epochs.find(|(_, start)| *start < lost_from);
        (last.map(|(epoch, _)| *epoch).unwrap_or_default(), position.log_end.min(lost_from))
    }

    /// Whether metadata may know of everything that is held against the log: a registration has named it, or there is
    /// nothing.
    pub fn is_named(&self) -> bool {
        self.core.health.suspicion.is_none_or(|suspicion| suspicion.named_in.is_some())
    }

    /// What is at this offset and above must be cut away although it may look sound; `None` = nothing must.
    pub fn doubted_from(&self) -> Option<Offset> {
        self.core.health.suspicion.and_then(|suspicion| suspicion.trusted_end)
    }

    /// How far the followers are, for who leads.
    pub fn peers(&self) -> impl Iterator<Item = PeerProgress> + '_ {
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower(_) | Role::Idle => None,
        };
        leader.into_iter().flat_map(Leader::progress)
    }

    // ---- The log -------------------------------------------------------------------------------------

    #[inline]
    fn appended(
        &mut self,
        now_ms: u64,
        base: Offset,
        end: Offset,
        epoch: LeaderEpoch,
        effects: &mut Effects,
    ) {
        let position = &mut self.core.position;
        assert!(base == position.log_end && base <= end, "appended {base}..{end} at {}", position.log_end);
        assert!(self.core.work == Work::None, "appended at {base} to a log that is being cut");
        position.epochs.begin(epoch, base);
        position.log_end = end;
        match &mut self.role {
            Role::Leader(leader) => leader.appended(&mut self.core, now_ms, base, epoch, effects),
            Role::Follower(follower) if !holds(Rule::Sync) => follower.durable(&mut self.core, effects),
            Role::Follower(_) | Role::Idle => {}
        }
    }

    #[inline]
    fn durable(&mut self, now_ms: u64, end: Offset, effects: &mut Effects) {
        let position = &mut self.core.position;
        assert!(end <= position.log_end, "durable up to {end}, and the log ends at {}", position.log_end);
        if end <= position.durable_end {
            return;
        }
        position.durable_end = end;
        match &mut self.role {
            Role::Leader(leader) => leader.advance(&mut self.core, now_ms, effects),
            Role::Follower(follower) => follower.durable(&mut self.core, effects),
            Role::Idle => {}
        }
    }

    fn truncated(&mut self, now_ms: u64, end: Offset, effects: &mut Effects) {
        let (Work::Truncating { to } | Work::Shedding { to }) = self.core.work else {
            panic!("truncated to {end} unasked")
        };
        let position = &mut self.core.position;
        assert!(position.log_start <= end && end <= to, "truncated to {end} instead of {to}");
        position.log_end = end;
        position.durable_end = end;
        position.high_watermark = position.high_watermark.min(end);
        position.epochs.truncate(end);
        if end < to && self.core.health.suspicion.is_none() {
            // What went besides may be committed, and metadata counts on it.
            self.core.health.doubt(self.core.here, end, now_ms, effects);
            if let Role::Follower(follower) = &mut self.role {
                follower.refuse(Nack::Suspect, effects);
            }
        }
        self.correct_claim(now_ms, effects);
        self.work_done(now_ms, effects);
    }

    fn reset_done(&mut self, now_ms: u64, effects: &mut Effects) {
        let Work::Resetting { log_start } = self.core.work else { panic!("reset unasked") };
        let epochs = EpochHistory::default();
        self.core.position = Position {
            log_start,
            log_end: log_start,
            durable_end: log_start,
            high_watermark: log_start,
            epochs,
        };
        self.correct_claim(now_ms, effects);
        self.work_done(now_ms, effects);
    }

    /// A suspect that is eligible may be elected for the end that it was named with, when none but suspects are left. A
    /// leader since then, or a crash, may have cut it: metadata must not count on what is gone, nor forget for it who has
    /// more.
    fn correct_claim(&mut self, now_ms: u64, effects: &mut Effects) {
        let Some(view) = &self.view else { return };
        let claim = self.core.member(view).and_then(|me| me.suspect);
        let claim = claim.filter(|_| view.eligible.contains(&self.core.here.broker));
        let is_less = claim.is_some_and(|claim| self.claim() < claim);
        let Core { here, health, .. } = &mut self.core;
        if is_less && !health.is_unheard() && holds(Rule::ClaimWhatIsThere) {
            health.correct(*here, now_ms, effects);
        }
    }

    fn work_done(&mut self, now_ms: u64, effects: &mut Effects) {
        let work = std::mem::replace(&mut self.core.work, Work::None);
        let log_end = self.core.position.log_end;
        if let Some(suspicion) = &mut self.core.health.suspicion {
            // Of what it has shed itself nobody has told it yet what there was: who takes the log over doubts it, too.
            let stays = |trusted: &Offset| *trusted < log_end || matches!(work, Work::Shedding { .. });
            suspicion.trusted_end = suspicion.trusted_end.filter(stays);
        }
        match &mut self.role {
            Role::Follower(follower) => follower.work_done(&mut self.core, effects),
            // It may have been waiting to lead.
            Role::Idle => self.assume_role(now_ms, effects),
            Role::Leader(_) => unreachable!("a leader's log is not cut"),
        }
    }

    fn raise_log_start(&mut self, now_ms: u64, log_start: Offset, effects: &mut Effects) {
        let position = &mut self.core.position;
        if log_start <= position.log_start {
            return;
        }
        let high_watermark = position.high_watermark;
        assert!(log_start <= high_watermark, "the log begins at {log_start}, above {high_watermark}");
        position.log_start = log_start;
        position.epochs.advance_start(log_start);
        if let Role::Leader(leader) = &mut self.role {
            leader.log_start(&mut self.core, now_ms, effects);
        }
    }

    // ---- Metadata ------------------------------------------------------------------------------------

    fn metadata_changed(&mut self, now_ms: u64, view: Arc<View>, effects: &mut Effects) {
        if self.view.as_ref().is_some_and(|known| view.partition_epoch < known.partition_epoch) {
            return;
        }
        if let Some(me) = self.core.member(&view) {
            self.core.health.follow(me);
        }
        self.view = Some(view);
        self.correct_claim(now_ms, effects);
        self.assume_role(now_ms, effects);
    }

    fn registered(&mut self, now_ms: u64, broker_epoch: BrokerEpoch, effects: &mut Effects) {
        self.core.here.broker_epoch = broker_epoch;
        self.core.health.report_ms = u64::MAX;
        if let Some(suspicion) = &mut self.core.health.suspicion {
            suspicion.named_in = Some(broker_epoch);
            suspicion.heard = false;
        }
        self.assume_role(now_ms, effects);
    }

    /// Becomes what the view says, as far as it is not yet.
    fn assume_role(&mut self, now_ms: u64, effects: &mut Effects) {
        let Some(view) = self.view.clone() else { return };
        let me = self.core.member(&view).copied();
        match (me, view.leader) {
            (Some(me), Some(leader)) if leader == self.core.here.broker => {
                self.lead(now_ms, &me, &view, effects);
            }
            (Some(_), Some(leader)) => self.follow(leader, &view, effects),
            _ => self.idle(effects),
        }
    }

    fn lead(&mut self, now_ms: u64, me: &Member, view: &Arc<View>, effects: &mut Effects) {
        if let Role::Leader(leader) = &mut self.role
            && leader.epoch() == view.leader_epoch
        {
            return leader.adopt(&mut self.core, now_ms, view, &self.connected, effects);
        }
        let registered =
            me.broker_epoch == self.core.here.broker_epoch || !holds(Rule::LeadInOwnRegistration);
        let clean = self.core.health.suspicion.is_none() || !holds(Rule::SuspectsDoNotLead);
        if !(registered && clean && self.core.work == Work::None) {
            // A suspicion that no registration has named is being reported; else metadata is about to change.
            return self.idle(effects);
        }
        // Waiters of an earlier epoch that this broker led go on waiting: their records are in the log still.
        let leader = Leader::new(&mut self.core, now_ms, view, &self.connected, effects);
        self.role = Role::Leader(leader);
        let Role::Leader(leader) = &mut self.role else { unreachable!() };
        leader.advance(&mut self.core, now_ms, effects);
    }

    fn follow(&mut self, leader: BrokerId, view: &Arc<View>, effects: &mut Effects) {
        if let Role::Follower(follower) = &mut self.role
            && follower.epoch() == view.leader_epoch
        {
            return follower.adopt(view.clone());
        }
        self.idle(effects);
        self.role = Role::Follower(Follower::new(leader, view.clone()));
    }

    fn idle(&mut self, effects: &mut Effects) {
        if matches!(self.role, Role::Leader(_)) {
            effects.push(Effect::RoleLost);
        }
        self.role = Role::Idle;
    }

    // ---- Peers ---------------------------------------------------------------------------------------

    fn stream(&mut self, now_ms: u64, peer: BrokerId, up: bool, effects: &mut Effects) {
        self.connected.retain(|broker| *broker != peer);
        if up {
            self.connected.push(peer);
        }
        match &mut self.role {
            Role::Leader(leader) => leader.stream(&mut self.core, now_ms, peer, up, effects),
            // The leader connects: whatever happens to its stream, it opens again, under a higher number.
            Role::Follower(_) | Role::Idle => {}
        }
    }

    #[inline]
    fn message(&mut self, now_ms: u64, from: BrokerId, message: Message, effects: &mut Effects) {
        match (message.body, &mut self.role) {
            (Body::FromFollower(body), Role::Leader(leader)) => {
                if message.leader_epoch == leader.epoch() {
                    leader.message(&mut self.core, now_ms, from, message.open_sequence, body, effects);
                }
            }
            (Body::FromLeader(body), Role::Follower(follower))
                if follower.leader() == from && follower.epoch() == message.leader_epoch =>
            {
                follower.message(&mut self.core, message.open_sequence, body, effects);
            }
            (Body::FromLeader(body), Role::Follower(follower)) if !holds(Rule::FollowOwnEpoch) => {
                follower.obey(from, message.leader_epoch);
                follower.message(&mut self.core, message.open_sequence, body, effects);
            }
            (Body::FromLeader(FromLeader::Open { .. } | FromLeader::Append(_)), _) => {
                let known = self.view.as_ref().map(|view| view.leader_epoch);
                let reason = if known.is_some_and(|known| message.leader_epoch < known) {
                    Nack::StaleLeader
                } else {
                    Nack::UnknownEpoch
                };
                let (leader_epoch, open_sequence) = (message.leader_epoch, message.open_sequence);
                let body = Body::FromFollower(FromFollower::Nack(reason));
                effects
                    .push(Effect::Send { to: from, message: Message { leader_epoch, open_sequence, body } });
            }
            // Said to an earlier role.
            (Body::FromLeader(_) | Body::FromFollower(_), _) => {}
        }
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Effects) {
        if self.core.health.report_ms <= now_ms {
            self.core.health.report(self.core.here, now_ms, effects);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.tick(&mut self.core, now_ms, effects);
        }
    }
}

#[cfg(test)]
impl Replica {
    /// All times are the same, for a model without a clock.
    pub fn forget_times(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.forget_times();
        }
        let report_ms = &mut self.core.health.report_ms;
        *report_ms = if *report_ms == u64::MAX { u64::MAX } else { 0 };
    }
}

impl Core {
    /// What a view says of this replica; `None` = it does not mean it.
    fn member<'a>(&self, view: &'a View) -> Option<&'a Member> {
        view.replicas.iter().find(|member| {
            member.broker == self.here.broker
                && (member.generation == self.here.generation || !holds(Rule::CheckGeneration))
        })
    }
}

/// What [`Replica::append_head`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendHead {
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The opening that the batches belong to.
    pub open_sequence: OpenSequence,
    /// What goes with them.
    pub append: Append,
}
