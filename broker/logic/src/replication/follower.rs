//! A follower: it opens its log to the leader of its own metadata's epoch, lets it be cut where the two part, appends
//! what it is sent, and acknowledges what its device has.
//!
//! Made when metadata names a leader epoch, gone with the next.

use super::message::{Append, Body, FromFollower, FromLeader, Message, Nack, Opened};
use super::replica::{Core, Work};
use super::rules::{Rule, holds};
use super::{Effect, Effects, View};
use crate::ids::{BrokerId, LeaderEpoch, Offset, OpenSequence, ReplicaGeneration};
use crate::limits::EPOCHS_NAMED_MAX;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Nothing is open: only `Open` is listened to.
    Closed,
    /// Opened by the leader; answered when all of the log is durable and nobody is cutting it.
    Settling,
    /// `Opened` was sent.
    Opened,
    /// The fingerprint at the cut is being read here.
    Comparing { to: Offset, fingerprint: u64 },
    /// The log is being cut or emptied.
    Cutting,
    /// The log is a part of the leader's: appends and acknowledges.
    Following,
}

/// The following replica's own state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Follower {
    leader: BrokerId,
    epoch: LeaderEpoch,
    view: Arc<View>,
    open_sequence: OpenSequence,
    phase: Phase,
    /// What the leader knows to be durable.
    acked: Offset,
    /// What the leader said in this opening.
    leader_high_watermark: Offset,
    leader_log_start: Offset,
}

impl Follower {
    pub fn new(leader: BrokerId, view: Arc<View>) -> Self {
        Self {
            leader,
            epoch: view.leader_epoch,
            view,
            open_sequence: OpenSequence::new(0),
            phase: Phase::Closed,
            acked: Offset::new(0),
            leader_high_watermark: Offset::new(0),
            leader_log_start: Offset::new(0),
        }
    }

    pub fn leader(&self) -> BrokerId {
        self.leader
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Metadata of this epoch changed.
    pub fn adopt(&mut self, view: Arc<View>) {
        self.view = view;
    }

    /// Without the rule that it acts only in the epoch that its own metadata names.
    pub fn obey(&mut self, leader: BrokerId, epoch: LeaderEpoch) {
        if epoch > self.epoch {
            (self.leader, self.epoch, self.open_sequence) = (leader, epoch, OpenSequence::new(0));
            self.close();
        }
    }

    /// Does not follow on: the leader must open again.
    pub fn refuse(&mut self, nack: Nack, effects: &mut Effects) {
        if self.phase != Phase::Closed {
            self.close();
            self.send(FromFollower::Nack(nack), effects);
        }
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.acked = Offset::new(0);
        self.leader_high_watermark = Offset::new(0);
        self.leader_log_start = Offset::new(0);
    }

    fn send(&self, body: FromFollower, effects: &mut Effects) {
        let (leader_epoch, open_sequence) = (self.epoch, self.open_sequence);
        let message = Message { leader_epoch, open_sequence, body: Body::FromFollower(body) };
        effects.push(Effect::Send { to: self.leader, message });
    }

    /// The leader of this epoch says something.
    #[inline]
    pub fn message(
        &mut self,
        core: &mut Core,
        open_sequence: OpenSequence,
        body: FromLeader,
        effects: &mut Effects,
    ) {
        if let FromLeader::Open { generation, .. } = body {
            if open_sequence > self.open_sequence {
                self.open(core, open_sequence, generation, effects);
            }
            return;
        }
        if open_sequence != self.open_sequence && holds(Rule::MatchOpenings) {
            return;
        }
        match (body, self.phase) {
            (FromLeader::Append(append), Phase::Following) => self.append(core, append, effects),
            (FromLeader::Watermarks { high_watermark, log_start }, Phase::Following) => {
                self.hear(core, high_watermark, log_start, effects);
            }
            (FromLeader::Match { to, fingerprint }, Phase::Opened) => {
                self.compare(core, to, fingerprint, effects);
            }
            (FromLeader::Reset { log_start }, Phase::Opened) => self.reset(core, log_start, effects),
            // What was on its way when this replica refused to follow on.
            (_, _) => {}
        }
    }

    // ---- Opening -------------------------------------------------------------------------------------

    /// Whatever was said before is void: only this opening's messages count from here on.
    fn open(
        &mut self,
        core: &mut Core,
        open_sequence: OpenSequence,
        generation: ReplicaGeneration,
        effects: &mut Effects,
    ) {
        self.open_sequence = open_sequence;
        self.close();
        if generation != core.here.generation && holds(Rule::CheckGeneration) {
            return self.send(FromFollower::Nack(Nack::NotReplica), effects);
        }
        if core.health.suspicion.is_some() && (core.health.is_unheard() || self.counts(core)) {
            // To be repaired it may have to give up what metadata believes it has: metadata must know first.
            return self.send(FromFollower::Nack(Nack::Suspect), effects);
        }
        self.phase = Phase::Settling;
        self.settle(core, effects);
    }

    /// Whether metadata counts this replica among those that have everything committed. A suspect that is still
    /// eligible does not count: it would lead only if no clean one could, and one leads.
    fn counts(&self, core: &Core) -> bool {
        self.view.in_sync.contains(&core.here.broker)
    }

    /// Whether its log has everything that is committed and is on its way to have what will be, as far as this broker
    /// knows.
    pub fn is_current(&self, core: &Core) -> bool {
        self.phase == Phase::Following && core.health.suspicion.is_none() && self.counts(core)
    }

    fn settle(&mut self, core: &Core, effects: &mut Effects) {
        let position = &core.position;
        let synced = position.durable_end == position.log_end || !holds(Rule::Sync);
        if self.phase == Phase::Settling && core.work == Work::None && synced {
            self.phase = Phase::Opened;
            let epochs = position.epochs.entries();
            let opened = Opened {
                broker_epoch: core.here.broker_epoch,
                generation: core.here.generation,
                epochs: epochs[epochs.len().saturating_sub(EPOCHS_NAMED_MAX)..].to_vec(),
                log_start: position.log_start,
                durable_end: position.log_end,
                status: core.health.status(),
            };
            self.send(FromFollower::Opened(Box::new(opened)), effects);
        }
    }

    fn compare(&mut self, core: &mut Core, to: Offset, fingerprint: Option<u64>, effects: &mut Effects) {
        let position = &core.position;
        if to < position.log_start || position.log_end < to {
            return self.refuse(Nack::Gap, effects);
        }
        if !holds(Rule::CutByEpochs) {
            return self.cut(core, to.min(position.high_watermark), effects);
        }
        let trusted = core.health.suspicion.and_then(|suspicion| suspicion.trusted_end);
        match fingerprint {
            Some(fingerprint)
                if position.log_start < to
                    && trusted.is_none_or(|trusted| to <= trusted)
                    && holds(Rule::CompareFingerprints) =>
            {
                self.phase = Phase::Comparing { to, fingerprint };
                effects.push(Effect::ReadFingerprint { offset: to });
            }
            Some(_) | None => self.cut(core, trusted.map_or(to, |trusted| trusted.min(to)), effects),
        }
    }

    /// The fingerprint of this log at the cut.
    pub fn fingerprint(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        offset: Offset,
        value: Option<u64>,
        effects: &mut Effects,
    ) {
        let Phase::Comparing { to, fingerprint } = self.phase else { return };
        if to != offset {
            return;
        }
        if value.is_none_or(|value| value == fingerprint) {
            return self.cut(core, to, effects);
        }
        // One epoch, one offset, and other bytes: nothing in this log is to be relied upon.
        let log_start = core.position.log_start;
        core.health.doubt(core.here, log_start, now_ms, effects);
        self.refuse(Nack::Suspect, effects);
    }

    /// Discards what is at `to` and above. Its log is the leader's then.
    fn cut(&mut self, core: &mut Core, to: Offset, effects: &mut Effects) {
        let to = to.max(core.position.log_start);
        let position = &mut core.position;
        assert!(
            to >= position.high_watermark || core.health.suspicion.is_some(),
            "I7: the leader of epoch {} cuts a clean log at {to}, below its high watermark {}",
            self.epoch,
            position.high_watermark,
        );
        if to == position.log_end && !position.epochs.reaches(to) {
            return self.follow(core, effects);
        }
        self.phase = Phase::Cutting;
        core.work = Work::Truncating { to };
        effects.push(Effect::Truncate { to });
    }

    fn reset(&mut self, core: &mut Core, log_start: Offset, effects: &mut Effects) {
        assert!(
            log_start >= core.position.high_watermark || core.health.suspicion.is_some(),
            "I7: the leader of epoch {} begins a clean log anew at {log_start}, below its high watermark {}",
            self.epoch,
            core.position.high_watermark,
        );
        self.phase = Phase::Cutting;
        core.work = Work::Resetting { log_start };
        effects.push(Effect::Reset { log_start });
    }

    /// The log was cut, for this opening or for one that is void by now.
    pub fn work_done(&mut self, core: &mut Core, effects: &mut Effects) {
        match self.phase {
            Phase::Cutting => self.follow(core, effects),
            Phase::Settling => self.settle(core, effects),
            Phase::Closed | Phase::Opened | Phase::Comparing { .. } | Phase::Following => {}
        }
    }

    fn follow(&mut self, core: &mut Core, effects: &mut Effects) {
        self.phase = Phase::Following;
        self.acked = core.position.durable_end;
        self.send(FromFollower::Matched { end: core.position.log_end }, effects);
    }

    // ---- Following -----------------------------------------------------------------------------------

    #[inline]
    fn append(&mut self, core: &mut Core, append: Append, effects: &mut Effects) {
        let position = &core.position;
        let Append { base, previous_epoch, high_watermark, log_start } = append;
        // Below its first offset a log has no epoch to compare, the leader's neither.
        let is_first = base == position.log_start || base == log_start;
        let follows =
            base == position.log_end && (is_first || previous_epoch == position.epochs.epoch_before(base));
        if !follows && holds(Rule::RefuseGaps) {
            return self.refuse(Nack::Gap, effects);
        }
        effects.push(Effect::Append);
        self.hear(core, high_watermark, log_start, effects);
    }

    /// The leader's high watermark counts as far as this log is durable; its log start as far as that.
    #[inline]
    fn hear(&mut self, core: &mut Core, high_watermark: Offset, log_start: Offset, effects: &mut Effects) {
        self.leader_high_watermark = self.leader_high_watermark.max(high_watermark);
        self.leader_log_start = self.leader_log_start.max(log_start);
        self.advance(core, effects);
    }

    #[inline]
    fn advance(&mut self, core: &mut Core, effects: &mut Effects) {
        let position = &mut core.position;
        let own = if holds(Rule::Sync) { position.durable_end } else { position.log_end };
        position.raise_high_watermark(self.leader_high_watermark.min(own), effects);
        let log_start = self.leader_log_start.min(position.high_watermark);
        if log_start > position.log_start {
            position.log_start = log_start;
            position.epochs.advance_start(log_start);
            effects.push(Effect::SetLogStart(log_start));
        }
    }

    /// More of the log is durable: one acknowledgement for all of it.
    #[inline]
    pub fn durable(&mut self, core: &mut Core, effects: &mut Effects) {
        match self.phase {
            Phase::Following => {
                let position = &core.position;
                let end = if holds(Rule::Sync) { position.durable_end } else { position.log_end };
                if end > self.acked {
                    self.acked = end;
                    self.send(FromFollower::Ack { durable_end: end }, effects);
                }
                self.advance(core, effects);
            }
            Phase::Settling => self.settle(core, effects),
            Phase::Closed | Phase::Opened | Phase::Comparing { .. } | Phase::Cutting => {}
        }
    }
}
