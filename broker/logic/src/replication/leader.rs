//! A leader: what it has told its followers, what they have acknowledged, and what is therefore committed.
//!
//! Made when metadata gives this broker a new leader epoch, gone with the next. Everything said in it names the
//! epoch and, for each peer, the opening; answers to an earlier one are ignored.

use super::message::{Append, Body, FromFollower, FromLeader, Message};
use super::peer::{Peer, Phase};
use super::replica::{AppendHead, Core, Position};
use super::rules::{Rule, holds};
use super::{Alter, Effect, Effects, NotAdmitted, Stream, View};
use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, OpenSequence, PartitionEpoch, ReplicaGeneration,
};
use crate::limits::{
    ALTER_REFUSED_BACKOFF_MS, ALTER_RETRY_MS, REPORT_RETRY_MS, TRANSFER_MS_MAX, WATERMARK_DELAY_MS,
};

/// How far a follower is, for who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Whose replica it is.
    pub broker: BrokerId,
    /// Whether it is in the committed in-sync set.
    pub in_sync: bool,
    /// Whether it follows: the partition is open there and matched.
    pub following: bool,
    /// Whether it holds the high watermark: it is, or may be, in the set.
    pub counts: bool,
    /// Everything below is on its device, as it last said in this epoch; `None` = it has said nothing.
    pub acked: Option<Offset>,
    /// When it last had everything, milliseconds of the clock of steps.
    pub caught_up_ms: u64,
}

/// What [`super::Event::Pushed`] says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub to: BrokerId,
    pub open_sequence: OpenSequence,
    pub end: Offset,
    pub from_memory: bool,
}

/// A change of the set that metadata has not answered. Whether it happened is not known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    alter: Alter,
    retry_ms: u64,
}

/// The leadership is being given away: nothing is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Transfer {
    to: BrokerId,
    until_ms: u64,
}

/// The leading replica's own state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    broker: BrokerId,
    broker_epoch: BrokerEpoch,
    generation: ReplicaGeneration,
    epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    /// The log's end when this epoch began.
    start: Offset,
    /// The size of the committed in-sync set, this replica included.
    in_sync: usize,
    min_in_sync: usize,
    peers: Vec<Peer>,
    pending: Option<Pending>,
    /// After a refusal nothing is asked for before.
    alter_after_ms: u64,
    transfer_wanted: Option<BrokerId>,
    transfer: Option<Transfer>,
    /// After a transfer that came to nothing none begins before.
    transfer_after_ms: u64,
    deadline_ms: u64,
}

impl Leader {
    /// Leads from the log's end on, in the epoch of `view`.
    pub fn new(
        core: &mut Core,
        now_ms: u64,
        view: &View,
        connected: &[BrokerId],
        effects: &mut Effects,
    ) -> Self {
        let epoch = view.leader_epoch;
        let start = core.position.log_end;
        let last = core.position.epochs.last();
        // A broker that is alone with its partition may go on in the epoch that it led in before it restarted.
        let alone = view.replicas.len() == 1 && last == Some(epoch);
        assert!(
            alone || last.is_none_or(|last| last < epoch),
            "I1: leads in epoch {epoch} with a log of epoch {last:?}",
        );
        core.position.epochs.begin(epoch, start);
        effects.push(Effect::BecameLeader { epoch, start });
        let mut leader = Self {
            broker: core.here.broker,
            broker_epoch: core.here.broker_epoch,
            generation: core.here.generation,
            epoch,
            partition_epoch: view.partition_epoch,
            start,
            in_sync: 1,
            min_in_sync: 1,
            peers: Vec::new(),
            pending: None,
            alter_after_ms: 0,
            transfer_wanted: None,
            transfer: None,
            transfer_after_ms: 0,
            deadline_ms: u64::MAX,
        };
        leader.take_in(core, now_ms, view, connected, effects);
        leader
    }

    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    pub fn start(&self) -> Offset {
        self.start
    }

    pub fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    #[inline]
    pub fn admit(&self) -> Result<LeaderEpoch, NotAdmitted> {
        let (in_sync, min_in_sync) = (self.in_sync, self.min_in_sync);
        if self.transfer.is_some() {
            Err(NotAdmitted::NotLeader)
        } else if in_sync < min_in_sync {
            Err(NotAdmitted::NotEnoughReplicas { in_sync, min_in_sync })
        } else {
            Ok(self.epoch)
        }
    }

    pub fn progress(&self) -> impl Iterator<Item = PeerProgress> + '_ {
        self.peers.iter().map(|peer| PeerProgress {
            broker: peer.broker,
            in_sync: peer.in_sync,
            following: peer.phase == Phase::Following,
            counts: peer.maximal,
            acked: peer.last_acked,
            caught_up_ms: peer.caught_up_ms,
        })
    }

    // ---- Metadata ------------------------------------------------------------------------------------

    /// Metadata of this epoch changed. A partition epoch above a pending change's is the answer to it, whichever way:
    /// what is committed now is the set, and copies of the change that are still on their way are dead.
    pub fn adopt(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        view: &View,
        connected: &[BrokerId],
        effects: &mut Effects,
    ) {
        self.partition_epoch = view.partition_epoch;
        let answered = self.pending.take_if(|pending| pending.alter.partition_epoch < view.partition_epoch);
        if let Some(pending) = answered {
            self.transfer = None;
            let asked = &pending.alter.in_sync;
            let granted = asked.len() == view.in_sync.len()
                && asked.iter().all(|(broker, ..)| view.in_sync.contains(broker));
            if !granted || pending.alter.transfer_to.is_some() {
                self.alter_after_ms = now_ms + ALTER_REFUSED_BACKOFF_MS;
                self.transfer_after_ms = now_ms + REPORT_RETRY_MS;
            }
        }
        self.take_in(core, now_ms, view, connected, effects);
        self.advance(core, now_ms, effects);
    }

    /// The peers and the sets of `view`. While a change is pending, the maximal set keeps what may be in it.
    fn take_in(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        view: &View,
        connected: &[BrokerId],
        effects: &mut Effects,
    ) {
        self.min_in_sync = view.min_in_sync;
        self.in_sync = view.in_sync.len();
        self.broker_epoch = core.here.broker_epoch;
        self.transfer_wanted = view.transfer_to.filter(|to| *to != self.broker);
        if self.pending.is_none()
            && self.transfer.is_some_and(|transfer| Some(transfer.to) != self.transfer_wanted)
        {
            self.transfer = None;
        }
        // A replica that is gone, or is another one now, takes what was known of it along.
        let others = || view.replicas.iter().filter(|member| member.broker != self.broker);
        self.peers.retain(|peer| {
            others().any(|member| (member.broker, member.generation) == (peer.broker, peer.generation))
        });
        for member in view.replicas.iter().filter(|member| member.broker != self.broker) {
            let at = self.peers.iter().position(|peer| peer.broker == member.broker).unwrap_or_else(|| {
                self.peers.push(Peer::new(member, now_ms));
                self.peers.len() - 1
            });
            let peer = &mut self.peers[at];
            peer.follow_metadata(member);
            if peer.is_of_an_earlier_registration() {
                peer.reopen_at(now_ms);
            }
            peer.in_sync = view.in_sync.contains(&peer.broker);
            let asked = self.pending.as_ref().is_some_and(|pending| pending.names(peer.broker));
            peer.maximal = peer.in_sync || asked;
            if peer.phase == Phase::Down && connected.contains(&peer.broker) {
                peer.open(self.epoch, &core.position, now_ms, effects);
            }
        }
        self.schedule_all(core, now_ms);
    }

    // ---- The log -------------------------------------------------------------------------------------

    /// The log grew from `base` on. Nothing here depends on how many records that are.
    #[inline]
    pub fn appended(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        base: Offset,
        epoch: LeaderEpoch,
        effects: &mut Effects,
    ) {
        assert!(epoch == self.epoch, "appended in epoch {epoch}, and this one is {}", self.epoch);
        for peer in &mut self.peers {
            if peer.phase == Phase::Following {
                peer.grown(base, core.position.log_end, now_ms);
                peer.push(core.position.log_end, effects);
            }
            if peer.in_sync {
                self.deadline_ms = self.deadline_ms.min(peer.caught_up_ms + core.settings.lag_ms_max);
            }
        }
        if !holds(Rule::Sync) {
            self.advance(core, now_ms, effects);
        }
    }

    pub fn log_start(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        for peer in &mut self.peers {
            // What it needs next is gone.
            if peer.phase == Phase::Following && peer.next < core.position.log_start {
                peer.open(self.epoch, &core.position, now_ms, effects);
            }
        }
        self.schedule_watermarks(core, now_ms);
        self.schedule_all(core, now_ms);
    }

    /// What is committed now, and what follows from it.
    #[inline]
    pub fn advance(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        let committed = self.committed(&core.position);
        if core.position.raise_high_watermark(committed, effects) {
            self.schedule_watermarks(core, now_ms);
        }
        if self.needs_attention() {
            self.attend(core, now_ms, effects);
        }
    }

    /// The minimum of what all members have durably that are, or may be, in the in-sync set.
    #[inline]
    fn committed(&self, position: &Position) -> Offset {
        if self.in_sync < self.min_in_sync && holds(Rule::StrictMinimum) {
            return position.high_watermark;
        }
        let own = if holds(Rule::Sync) { position.durable_end } else { position.log_end };
        let counts = |peer: &&Peer| if holds(Rule::MaximalSet) { peer.maximal } else { peer.in_sync };
        self.peers.iter().filter(counts).map(|peer| peer.acked).fold(own, Offset::min)
    }

    /// Whether a set could change, or a leader: not so for a full set that nobody wants to leave.
    #[inline]
    fn needs_attention(&self) -> bool {
        self.transfer_wanted.is_some()
            || self.peers.iter().any(|peer| !peer.in_sync || peer.unfit || peer.suspect)
    }

    // ---- Followers -----------------------------------------------------------------------------------

    pub fn stream(&mut self, core: &mut Core, now_ms: u64, peer: BrokerId, up: bool, effects: &mut Effects) {
        let Some(peer) = self.peers.iter_mut().find(|known| known.broker == peer) else { return };
        peer.down();
        if up {
            peer.open(self.epoch, &core.position, now_ms, effects);
        }
        self.schedule_all(core, now_ms);
    }

    /// A follower answers, in this epoch. Only what belongs to the opening of now counts.
    #[inline]
    pub fn message(
        &mut self,
        core: &mut Core,
        now_ms: u64,
        from: BrokerId,
        open_sequence: OpenSequence,
        body: FromFollower,
        effects: &mut Effects,
    ) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.broker == from) else { return };
        if open_sequence != peer.open_sequence && holds(Rule::MatchOpenings) {
            return;
        }
        let mut is_ack = false;
        match body {
            FromFollower::Ack { durable_end } => {
                is_ack = peer.phase == Phase::Following;
                if !peer.acknowledged(durable_end, &core.position, now_ms, effects) {
                    peer.reopen_at(now_ms);
                    is_ack = false;
                }
            }
            FromFollower::Opened(opened) => {
                peer.opened(self.epoch, &opened, &core.position, effects);
                if peer.is_of_an_earlier_registration() {
                    peer.reopen_at(now_ms);
                }
            }
            FromFollower::Matched { end } => {
                peer.matched(self.epoch, end, &core.position, now_ms, effects);
                // It may need no batch, and still know nothing of the high watermark.
                self.schedule_watermarks(core, now_ms);
            }
            FromFollower::Nack(nack) => peer.refused(nack, now_ms),
        }
        if !is_ack {
            self.schedule_all(core, now_ms);
        }
        self.advance(core, now_ms, effects);
    }

    pub fn fingerprint(&mut self, offset: Offset, value: Option<u64>, effects: &mut Effects) {
        for peer in &mut self.peers {
            peer.fingerprint(self.epoch, offset, value, effects);
        }
    }

    pub fn append_head(&mut self, position: &Position, to: BrokerId) -> Option<AppendHead> {
        let peer = self.peers.iter_mut().find(|peer| peer.broker == to)?;
        if !peer.pushing || peer.next >= position.log_end {
            return None;
        }
        let Position { high_watermark, log_start, .. } = *position;
        peer.told(position);
        let previous_epoch = position.epochs.epoch_before(peer.next);
        let append = Append { base: peer.next, previous_epoch, high_watermark, log_start };
        Some(AppendHead { leader_epoch: self.epoch, open_sequence: peer.open_sequence, append })
    }

    #[inline]
    pub fn pushed(&mut self, core: &mut Core, now_ms: u64, sent: Sent, effects: &mut Effects) {
        let Sent { to, open_sequence, end, from_memory } = sent;
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.broker == to) else { return };
        if peer.pushing && peer.open_sequence == open_sequence {
            let log_end = core.position.log_end;
            assert!(peer.next < end && end <= log_end, "pushed {}..{end} of {log_end}", peer.next);
            peer.pushing = false;
            peer.next = end;
            peer.choose_stream(from_memory);
            peer.push(log_end, effects);
            self.schedule_watermarks(core, now_ms);
        }
    }

    /// High watermarks that no batch carries go by themselves, a little later.
    #[inline]
    fn schedule_watermarks(&mut self, core: &Core, now_ms: u64) {
        for peer in &mut self.peers {
            if peer.watermark_waits(&core.position) {
                peer.watermark_ms = peer.watermark_ms.min(now_ms + WATERMARK_DELAY_MS);
                self.deadline_ms = self.deadline_ms.min(peer.watermark_ms);
            }
        }
    }

    pub fn push_failed(&mut self, now_ms: u64, to: BrokerId, open_sequence: OpenSequence) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.broker == to) else { return };
        if peer.pushing && peer.open_sequence == open_sequence {
            peer.reopen_at(now_ms);
            self.deadline_ms = self.deadline_ms.min(peer.retry_ms);
        }
    }

    // ---- Time ----------------------------------------------------------------------------------------

    pub fn tick(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        for peer in &mut self.peers {
            if peer.phase != Phase::Down && peer.retry_ms <= now_ms {
                peer.open(self.epoch, &core.position, now_ms, effects);
            }
            if peer.watermark_ms <= now_ms {
                if peer.watermark_waits(&core.position) {
                    let Position { high_watermark, log_start, .. } = core.position;
                    let body = FromLeader::Watermarks { high_watermark, log_start };
                    peer.told(&core.position);
                    effects.push(peer.message(self.epoch, body));
                }
                peer.watermark_ms = u64::MAX;
            }
        }
        self.attend(core, now_ms, effects);
    }

    /// Asks metadata for what it should change, and computes when to look again.
    fn attend(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        if let Some(pending) = &mut self.pending {
            // No answer is no refusal: it may have happened, or happen yet. Only asking again gets an answer.
            if pending.retry_ms <= now_ms {
                if holds(Rule::KeepPending) {
                    pending.retry_ms = now_ms + ALTER_RETRY_MS;
                    effects.push(Effect::Alter(pending.alter.clone()));
                } else {
                    self.pending = None;
                    self.peers.iter_mut().for_each(|peer| peer.maximal = peer.in_sync);
                }
            }
        }
        self.change_leader(core, now_ms, effects);
        self.change_set(core, now_ms, effects);
        self.report_clean(core, now_ms, effects);
        self.schedule_all(core, now_ms);
    }

    /// One change at a time, of those that are due: out who is behind or unfit, else in who has caught up.
    fn change_set(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        if self.pending.is_some() || now_ms < self.alter_after_ms || self.transfer.is_some() {
            return;
        }
        let position = &core.position;
        let lag_ms_max = core.settings.lag_ms_max;
        let behind = |peer: &Peer| peer.unfit || peer.is_behind(position.log_end, now_ms, lag_ms_max);
        // Where all are slow it is not one member's fault, and being slow is better than being too few.
        let quick = |peer: &&Peer| peer.in_sync && !behind(peer) && peer.slow_since_ms() == u64::MAX;
        let quick = self.peers.iter().filter(quick).count();
        let do_without = quick > 0 && 1 + quick >= self.min_in_sync;
        let slow = |peer: &Peer| do_without && now_ms >= peer.slow_since_ms().saturating_add(lag_ms_max);
        let leaves = |peer: &Peer| peer.in_sync && (behind(peer) || slow(peer));
        let joins = |peer: &Peer| {
            // Who would have to leave again at once does not join: while the high watermark stands still, being above it
            // says nothing of how far behind somebody is.
            let whole = peer.has_everything(position.log_end);
            let slow = peer.slow_since_ms() < u64::MAX && !whole;
            !peer.in_sync && peer.may_join() && !behind(peer) && !slow && {
                (peer.acked >= position.high_watermark || !holds(Rule::JoinAboveHighWatermark))
                    && (peer.acked >= self.start || !holds(Rule::JoinAboveEpochStart))
            }
        };
        let shrinks = self.peers.iter().any(leaves);
        let grows = !shrinks && self.peers.iter().any(joins);
        if shrinks || grows {
            let member =
                |peer: &&Peer| (peer.in_sync && !(shrinks && leaves(peer))) || (grows && joins(peer));
            let members: Vec<BrokerId> = self.peers.iter().filter(member).map(|peer| peer.broker).collect();
            self.ask(&members, None, now_ms, effects);
        }
    }

    /// Gives the leadership to who shall have it: stops admitting, waits until that replica has everything, asks.
    fn change_leader(&mut self, core: &mut Core, now_ms: u64, effects: &mut Effects) {
        if self.pending.is_some() {
            return;
        }
        let ready = |to: BrokerId| {
            let peer = self.peers.iter().find(|peer| peer.broker == to)?;
            (peer.phase == Phase::Following && peer.in_sync && peer.may_join()).then_some(peer.acked)
        };
        match self.transfer {
            None => {
                if let Some(to) = self.transfer_wanted
                    && now_ms >= self.transfer_after_ms
                    && ready(to).is_some()
                {
                    self.transfer = Some(Transfer { to, until_ms: now_ms + TRANSFER_MS_MAX });
                    self.change_leader(core, now_ms, effects);
                }
            }
            Some(transfer) => match ready(transfer.to) {
                Some(acked) if acked == core.position.log_end => {
                    let in_sync = self.peers.iter().filter(|peer| peer.in_sync);
                    let members: Vec<BrokerId> = in_sync.map(|peer| peer.broker).collect();
                    self.ask(&members, Some(transfer.to), now_ms, effects);
                }
                Some(_) if now_ms < transfer.until_ms => {}
                Some(_) | None => {
                    self.transfer = None;
                    self.transfer_after_ms = now_ms + REPORT_RETRY_MS;
                }
            },
        }
    }

    /// Asks for a set of this replica and `members`. From now on all of them count for what is committed.
    fn ask(
        &mut self,
        members: &[BrokerId],
        transfer_to: Option<BrokerId>,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let mut in_sync = vec![(self.broker, self.broker_epoch, self.generation)];
        for peer in &mut self.peers {
            if members.contains(&peer.broker) {
                peer.maximal = true;
                in_sync.push((peer.broker, peer.joining_epoch(), peer.generation));
            }
        }
        let alter =
            Alter { leader_epoch: self.epoch, partition_epoch: self.partition_epoch, in_sync, transfer_to };
        effects.push(Effect::Alter(alter.clone()));
        self.pending = Some(Pending { alter, retry_ms: now_ms + ALTER_RETRY_MS });
    }

    /// A suspect follower that has everything the leader began with, and everything committed, is clean.
    fn report_clean(&mut self, core: &Core, now_ms: u64, effects: &mut Effects) {
        let epoch_start = if holds(Rule::CleanAboveEpochStart) { self.start } else { Offset::new(0) };
        let whole = epoch_start.max(core.position.high_watermark);
        for peer in &mut self.peers {
            if peer.suspect
                && peer.phase == Phase::Following
                && peer.acked >= whole
                && now_ms >= peer.clean_report_ms
                && let Some(broker_epoch) = peer.opened_epoch()
            {
                peer.clean_report_ms = now_ms + REPORT_RETRY_MS;
                effects.push(Effect::ReportClean {
                    broker: peer.broker,
                    broker_epoch,
                    generation: peer.generation,
                    leader_epoch: self.epoch,
                });
            }
        }
    }

    /// When the next tick is due, from scratch.
    fn schedule_all(&mut self, core: &Core, now_ms: u64) {
        let mut deadline_ms = self.pending.as_ref().map_or(u64::MAX, |pending| pending.retry_ms);
        let idle = self.pending.is_none();
        if let Some(transfer) = self.transfer
            && idle
        {
            deadline_ms = deadline_ms.min(transfer.until_ms);
        }
        let mut later = |at_ms: u64| deadline_ms = deadline_ms.min(at_ms);
        if idle
            && self.transfer.is_none()
            && self.transfer_wanted.is_some()
            && self.transfer_after_ms > now_ms
        {
            later(self.transfer_after_ms);
        }
        if idle && self.alter_after_ms > now_ms {
            later(self.alter_after_ms);
        }
        for peer in &self.peers {
            later(peer.watermark_ms);
            if peer.phase != Phase::Down {
                later(peer.retry_ms);
            }
            if peer.suspect && peer.clean_report_ms > now_ms {
                later(peer.clean_report_ms);
            }
            if idle && peer.in_sync && !peer.has_everything(core.position.log_end) {
                later((peer.caught_up_ms + core.settings.lag_ms_max).max(self.alter_after_ms));
                let slow_ms = peer.slow_since_ms().saturating_add(core.settings.lag_ms_max);
                // Who may not leave for that is looked at when something else happens.
                if slow_ms > now_ms {
                    later(slow_ms.max(self.alter_after_ms));
                }
            }
        }
        self.deadline_ms = deadline_ms;
    }
}

#[cfg(test)]
impl Leader {
    /// All times are the same, for a model without a clock.
    pub fn forget_times(&mut self) {
        let forget = |at_ms: &mut u64| *at_ms = if *at_ms == u64::MAX { u64::MAX } else { 0 };
        for peer in &mut self.peers {
            peer.forget_times();
        }
        self.pending.iter_mut().for_each(|pending| forget(&mut pending.retry_ms));
        self.transfer.iter_mut().for_each(|transfer| forget(&mut transfer.until_ms));
        forget(&mut self.alter_after_ms);
        forget(&mut self.transfer_after_ms);
        self.deadline_ms = 0;
    }
}

impl Pending {
    fn names(&self, broker: BrokerId) -> bool {
        self.alter.in_sync.iter().any(|(member, ..)| *member == broker)
    }
}

/// The stream that a peer's batches go by, chosen from where they were read.
pub(super) fn stream_for(maximal: bool, from_memory: bool) -> Stream {
    if maximal || from_memory { Stream::Live } else { Stream::CatchUp }
}

/// The body of a message to a follower.
pub(super) fn message(leader_epoch: LeaderEpoch, open_sequence: OpenSequence, body: FromLeader) -> Message {
    Message { leader_epoch, open_sequence, body: Body::FromLeader(body) }
}
