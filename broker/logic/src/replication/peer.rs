//! One follower as its leader sees it: from opening the partition there to acknowledging what is pushed.
//!
//! ```text
//! Down ─▶ Opening ─▶ (Comparing) ─▶ Matching ─▶ Following
//!   ▲        ▲                                      │
//!   └────────┴── Waiting ◀── refused, no answer ◀───┘
//! ```
//! Owned by the leader of one epoch. `acked` is 0 until the logs are matched, so that a follower whose log is not
//! known to be the leader's holds the high watermark where it is.

use super::leader::{message, stream_for};
use super::message::{FromLeader, Message, Nack, Opened, Status};
use super::replica::Position;
use super::rules::{Rule, holds};
use super::{Effect, Effects, Member, Stream};
use crate::ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence, ReplicaGeneration};
use crate::limits::{
    OPEN_TIMEOUT_MS_MAX, OPEN_TIMEOUT_MS_MIN, REOPEN_BACKOFF_MS_MAX, REOPEN_BACKOFF_MS_MIN, REPLICA_SLOW_MS,
};

/// How far opening is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// There is no stream.
    Down,
    /// It refused or failed; opened again at `retry_ms`.
    Waiting,
    /// `Open` was sent.
    Opening,
    /// The fingerprint at the cut is being read here.
    Comparing { to: Offset },
    /// `Match` or `Reset` was sent; its log will end at `to` or, after a match, below.
    Matching { to: Offset },
    /// Matched: batches are pushed and acknowledgements count.
    Following,
}

/// A follower.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub broker: BrokerId,
    pub generation: ReplicaGeneration,
    /// Of the broker's registration that metadata knows.
    broker_epoch: BrokerEpoch,
    available: bool,
    pub suspect: bool,
    /// In the committed in-sync set.
    pub in_sync: bool,
    /// In the committed set, or in the one that is asked for.
    pub maximal: bool,
    pub phase: Phase,
    pub open_sequence: OpenSequence,
    /// The registration and status that answered the opening of now.
    opened: Option<(BrokerEpoch, Status)>,
    /// Everything below is durable there, and the same as here.
    pub acked: Offset,
    /// The last of these that was known, for who watches: it stays when the follower goes. `None` = none in this epoch.
    pub last_acked: Option<Offset>,
    /// What is pushed next.
    pub next: Offset,
    /// The driver has been asked to push, and has not reported.
    pub pushing: bool,
    stream: Stream,
    /// It changes to the other stream when everything sent by this one is acknowledged, so that nothing overtakes.
    change_to: Option<Stream>,
    /// It said that it cannot keep up with the set: full, or suspect before metadata knows.
    pub unfit: bool,
    /// When it last had everything.
    pub caught_up_ms: u64,
    /// Since when all that it acknowledges has taken it [`REPLICA_SLOW_MS`] or longer; `u64::MAX` = it has not.
    slow_since_ms: u64,
    /// Once it has acknowledged this offset, it had everything at that time.
    mark: (Offset, u64),
    /// The high watermark and the log's start that it was told last.
    told: (Offset, Offset),
    /// When they are told by themselves; `u64::MAX` = they need not be.
    pub watermark_ms: u64,
    /// When to open again, or to begin opening anew; `u64::MAX` = never.
    pub retry_ms: u64,
    backoff_ms: u64,
    /// How long the next opening may go without an answer.
    patience_ms: u64,
    /// When it may be reported clean again.
    pub clean_report_ms: u64,
}

impl Peer {
    /// A follower that is not connected. It counts as caught up now: a leader gives everybody time to appear.
    pub fn new(member: &Member, now_ms: u64) -> Self {
        let zero = Offset::new(0);
        Self {
            broker: member.broker,
            generation: member.generation,
            broker_epoch: member.broker_epoch,
            available: member.available,
            suspect: member.suspect.is_some(),
            in_sync: false,
            maximal: false,
            phase: Phase::Down,
            open_sequence: OpenSequence::new(0),
            opened: None,
            acked: zero,
            last_acked: None,
            next: zero,
            pushing: false,
            stream: Stream::Live,
            change_to: None,
            unfit: false,
            caught_up_ms: now_ms,
            slow_since_ms: u64::MAX,
            mark: (zero, now_ms),
            told: (zero, zero),
            watermark_ms: u64::MAX,
            retry_ms: u64::MAX,
            backoff_ms: REOPEN_BACKOFF_MS_MIN,
            patience_ms: OPEN_TIMEOUT_MS_MIN,
            clean_report_ms: 0,
        }
    }

    pub fn follow_metadata(&mut self, member: &Member) {
        self.broker_epoch = member.broker_epoch;
        self.available = member.available;
        self.suspect = member.suspect.is_some();
    }

    pub fn message(&self, leader_epoch: LeaderEpoch, body: FromLeader) -> Effect {
        let message: Message = message(leader_epoch, self.open_sequence, body);
        Effect::Send { to: self.broker, message }
    }

    // ---- Opening -------------------------------------------------------------------------------------

    /// The stream is gone, and all that was on its way.
    pub fn down(&mut self) {
        self.forget();
        self.phase = Phase::Down;
        self.retry_ms = u64::MAX;
    }

    /// Begins anew: what was said under earlier openings means nothing any more.
    pub fn open(
        &mut self,
        leader_epoch: LeaderEpoch,
        position: &Position,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        self.forget();
        self.open_sequence = OpenSequence::new(self.open_sequence.get() + 1);
        self.phase = Phase::Opening;
        self.retry_ms = now_ms + self.patience_ms;
        self.patience_ms = (2 * self.patience_ms).min(OPEN_TIMEOUT_MS_MAX);
        let body = FromLeader::Open { generation: self.generation, log_start: position.log_start };
        effects.push(self.message(leader_epoch, body));
    }

    /// Opens again, later; twice as much later each time, until it follows.
    pub fn reopen_at(&mut self, now_ms: u64) {
        self.forget();
        self.phase = Phase::Waiting;
        self.retry_ms = now_ms + self.backoff_ms;
        self.backoff_ms = (2 * self.backoff_ms).min(REOPEN_BACKOFF_MS_MAX);
        self.patience_ms = OPEN_TIMEOUT_MS_MIN;
    }

    fn forget(&mut self) {
        self.opened = None;
        self.acked = Offset::new(0);
        self.pushing = false;
        self.change_to = None;
        self.told = (Offset::new(0), Offset::new(0));
        self.watermark_ms = u64::MAX;
    }

    /// Says where the follower's log must be cut.
    pub fn opened(
        &mut self,
        leader_epoch: LeaderEpoch,
        opened: &Opened,
        position: &Position,
        effects: &mut Effects,
    ) {
        if self.phase != Phase::Opening
            || (opened.generation != self.generation && holds(Rule::CheckGeneration))
        {
            return;
        }
        self.opened = Some((opened.broker_epoch, opened.status));
        let Position { log_start, log_end, .. } = *position;
        let common = position.epochs.common_end(log_end, &opened.epochs, opened.durable_end);
        let no_common =
            (log_start <= opened.log_start && opened.log_start <= log_end).then_some(opened.log_start);
        match common.or(no_common).filter(|to| log_start <= *to && opened.log_start <= *to) {
            None => {
                self.phase = Phase::Matching { to: log_start };
                effects.push(self.message(leader_epoch, FromLeader::Reset { log_start }));
            }
            // Nothing is below on one of the sides.
            Some(to) if to == log_start || to == opened.log_start => {
                self.phase = Phase::Matching { to };
                effects.push(self.message(leader_epoch, FromLeader::Match { to, fingerprint: None }));
            }
            Some(to) => {
                self.phase = Phase::Comparing { to };
                effects.push(Effect::ReadFingerprint { offset: to });
            }
        }
    }

    /// The fingerprint of this log at the cut.
    pub fn fingerprint(
        &mut self,
        leader_epoch: LeaderEpoch,
        offset: Offset,
        value: Option<u64>,
        effects: &mut Effects,
    ) {
        if self.phase == (Phase::Comparing { to: offset }) {
            self.phase = Phase::Matching { to: offset };
            effects.push(self.message(leader_epoch, FromLeader::Match { to: offset, fingerprint: value }));
        }
    }

    /// The logs are the same up to `end`, which is durable there.
    pub fn matched(
        &mut self,
        leader_epoch: LeaderEpoch,
        end: Offset,
        position: &Position,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let Phase::Matching { to } = self.phase else { return };
        if end > to {
            return self.reopen_at(now_ms);
        }
        if end < position.log_start {
            // Retention was faster: the follower needs what is gone by now.
            return self.open(leader_epoch, position, now_ms, effects);
        }
        self.phase = Phase::Following;
        self.acked = end;
        self.last_acked = Some(end);
        self.next = end;
        self.unfit = false;
        self.retry_ms = u64::MAX;
        self.backoff_ms = REOPEN_BACKOFF_MS_MIN;
        self.patience_ms = OPEN_TIMEOUT_MS_MIN;
        self.mark = (position.log_end, now_ms);
        self.slow_since_ms = u64::MAX;
        if end >= position.log_end {
            self.caught_up_ms = now_ms;
        }
        self.stream = stream_for(self.maximal || end == position.log_end, false);
        self.push(position.log_end, effects);
    }

    /// It does not follow.
    pub fn refused(&mut self, nack: Nack, now_ms: u64) {
        match nack {
            Nack::StorageFull | Nack::Suspect => self.unfit = true,
            Nack::Gap | Nack::StaleLeader | Nack::UnknownEpoch | Nack::NotReplica => {}
        }
        self.reopen_at(now_ms);
    }

    // ---- Following -----------------------------------------------------------------------------------

    /// The log grew from `base`. Who had everything until now had it until now.
    #[inline]
    pub fn grown(&mut self, base: Offset, log_end: Offset, now_ms: u64) {
        if self.acked >= base {
            self.caught_up_ms = now_ms;
            self.mark = (log_end, now_ms);
        }
    }

    /// Asks the driver for a push, unless it is asked or there is nothing.
    #[inline]
    pub fn push(&mut self, log_end: Offset, effects: &mut Effects) {
        if !self.pushing && self.next < log_end && self.change_to.is_none() {
            self.pushing = true;
            effects.push(Effect::Push { to: self.broker, stream: self.stream });
        }
    }

    /// Members, and those whose batches are still in memory, belong on the live stream.
    #[inline]
    pub fn choose_stream(&mut self, from_memory: bool) {
        let stream = stream_for(self.maximal, from_memory);
        self.change_to = (stream != self.stream).then_some(stream);
        self.change_stream();
    }

    fn change_stream(&mut self) {
        if self.acked >= self.next
            && let Some(stream) = self.change_to.take()
        {
            self.stream = stream;
        }
    }

    /// Everything below `durable_end` is on its device. False = it cannot be.
    #[inline]
    pub fn acknowledged(
        &mut self,
        durable_end: Offset,
        position: &Position,
        now_ms: u64,
        effects: &mut Effects,
    ) -> bool {
        if self.phase != Phase::Following {
            return true;
        }
        if durable_end > self.next && holds(Rule::MatchOpenings) {
            // With a push under way the driver may have sent more than it has reported.
            if !self.pushing || durable_end > position.log_end {
                return false;
            }
        }
        if durable_end <= self.acked {
            return true;
        }
        self.acked = durable_end;
        self.last_acked = Some(durable_end);
        if durable_end >= self.mark.0 {
            let slow = now_ms >= self.mark.1 + REPLICA_SLOW_MS;
            self.slow_since_ms = if slow { self.slow_since_ms.min(self.mark.1) } else { u64::MAX };
        }
        if durable_end >= position.log_end {
            self.caught_up_ms = now_ms;
        } else if durable_end >= self.mark.0 {
            self.caught_up_ms = self.caught_up_ms.max(self.mark.1);
            self.mark = (position.log_end, now_ms);
        }
        if self.change_to.is_some() {
            self.change_stream();
            self.push(position.log_end, effects);
        }
        true
    }

    /// It has been, or is being, told where the leader is.
    pub fn told(&mut self, position: &Position) {
        self.told = (position.high_watermark, position.log_start);
    }

    /// Whether no batch will tell it what it does not know.
    #[inline]
    pub fn watermark_waits(&self, position: &Position) -> bool {
        self.phase == Phase::Following
            && !self.pushing
            && self.told != (position.high_watermark, position.log_start)
    }

    // ---- The set -------------------------------------------------------------------------------------

    #[inline]
    pub fn has_everything(&self, log_end: Offset) -> bool {
        self.phase == Phase::Following && self.acked >= log_end
    }

    pub fn is_behind(&self, log_end: Offset, now_ms: u64, lag_ms_max: u64) -> bool {
        !self.has_everything(log_end) && now_ms >= self.caught_up_ms + lag_ms_max
    }

    /// Since when it has been slow; `u64::MAX` = it is not.
    pub fn slow_since_ms(&self) -> u64 {
        self.slow_since_ms
    }

    /// The registration that the opening of now was answered in.
    pub fn opened_epoch(&self) -> Option<BrokerEpoch> {
        self.opened.map(|(broker_epoch, _)| broker_epoch)
    }

    /// The broker has registered anew, while it ran and perhaps without knowing yet: what it said when the partition was
    /// opened is not enough to join the set, and it says it again only when it is asked.
    pub fn is_of_an_earlier_registration(&self) -> bool {
        self.opened_epoch().is_some_and(|opened| opened < self.broker_epoch)
    }

    /// Whether metadata would take it into the set, as far as can be known: it would check again.
    pub fn may_join(&self) -> bool {
        self.phase == Phase::Following
            && self.available
            && !self.suspect
            && (self.opened_epoch() == Some(self.broker_epoch) || !holds(Rule::CheckBrokerEpoch))
    }

    /// The registration to name it by: the one that was opened, or for who is in the set the known one.
    pub fn joining_epoch(&self) -> BrokerEpoch {
        match self.opened_epoch() {
            Some(opened) if holds(Rule::CheckBrokerEpoch) => opened,
            Some(_) | None => self.broker_epoch,
        }
    }
}

#[cfg(test)]
impl Peer {
    /// And what is only told.
    pub fn forget_times(&mut self) {
        self.last_acked = None;
        let forget = |at_ms: &mut u64| *at_ms = if *at_ms == u64::MAX { u64::MAX } else { 0 };
        forget(&mut self.caught_up_ms);
        forget(&mut self.slow_since_ms);
        forget(&mut self.mark.1);
        forget(&mut self.watermark_ms);
        forget(&mut self.retry_ms);
        forget(&mut self.clean_report_ms);
        self.backoff_ms = REOPEN_BACKOFF_MS_MIN;
        self.patience_ms = OPEN_TIMEOUT_MS_MIN;
    }
}
