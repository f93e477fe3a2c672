//! A broker as a member of its cluster: how it joins, registers and is heard; what it does when it leads the
//! metadata.

use super::codec::Builder;
use super::machine::SNAPSHOT_EVERY;
use super::network::{CallError, Wire};
use super::peers::{Asked, Member, Word};
use super::raft::Proposal;
use super::{Life, MetadataError};
use flatbuffers::{UnionWIPOffset, WIPOffset};
use logic::ids::{BrokerEpoch, BrokerId};
use logic::metadata::controller::{Controller, Effect, Event, Heartbeat};
use logic::metadata::{Command, Image, Outcome};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use schema::consensus as fb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a command waits for a leader, and for its answer.
const SUBMIT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);
/// How long a new broker asks to be let in before its start fails.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// Between two words of where a broker is that is not registered yet.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(200);
/// A member that joined and has not registered for so long is forgotten.
const UNREGISTERED_MAX: Duration = Duration::from_secs(60);

/// Why a broker is not heard any more under its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beaten {
    /// It has to register anew.
    Again,
    /// It was removed from the cluster.
    Removed,
    /// The metadata has stopped.
    Stopped,
}

/// What trying a command once came to.
enum Tried {
    Done(Result<Outcome, MetadataError>),
    /// It had no effect; why, for when there is no time left.
    Again(String),
}

impl Member {
    /// Has `command` done, by whoever leads, and waits until this broker has it in its image.
    pub async fn submit(&self, command: &Command) -> Result<Outcome, MetadataError> {
        if let Some(error) = self.full() {
            return Err(error);
        }
        let bytes = command.encode();
        if bytes.len() > logic::metadata::command::COMMAND_BYTES_MAX {
            return Err(MetadataError::TooLarge { bytes: bytes.len() });
        }
        let proposal = Proposal(bytes.into());
        let deadline = Instant::now() + SUBMIT_PATIENCE;
        loop {
            if let Err(fatal) = &self.raft.metrics().borrow_watched().running_state {
                return Err(self.dead(&fatal.to_string()));
            }
            let why = match self.try_once(&proposal, deadline).await {
                Tried::Done(result) => return result,
                Tried::Again(why) => why,
            };
            if Instant::now() + RETRY >= deadline {
                return Err(MetadataError::Unavailable(self.explain(&why)));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn explain(&self, why: &str) -> String {
        let voters: Vec<String> = self.voters().iter().map(u64::to_string).collect();
        format!("{why}; a majority of the brokers {} must run and reach each other", voters.join(", "))
    }

    async fn try_once(&self, proposal: &Proposal, deadline: Instant) -> Tried {
        let Some(leader) = self.leader() else {
            return Tried::Again("nobody leads the metadata".to_owned());
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        let id = if leader == u64::from(self.peers.me().get()) {
            match tokio::time::timeout(patience, self.raft.client_write(proposal.clone())).await {
                Ok(Ok(response)) => response.log_id,
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                    return Tried::Again(
                        "the leader of the metadata does not hear from the others".to_owned(),
                    );
                }
                Ok(Err(error)) => {
                    if matches!(error, RaftError::Fatal(_)) {
                        // Who asks next is told that nothing is done here any more.
                        let mut metrics = self.raft.metrics();
                        let _ = metrics.wait_until(|metrics| metrics.running_state.is_err()).await;
                    }
                    return Tried::Done(Err(MetadataError::OutcomeUnknown(error.to_string())));
                }
                Err(_) => {
                    let why =
                        self.log.full().unwrap_or_else(|| self.explain("no majority has agreed in time"));
                    return Tried::Done(Err(MetadataError::OutcomeUnknown(why)));
                }
            }
        } else {
            let ask = |b: &mut Builder| {
                let command = Some(b.create_vector(&proposal.0[..]));
                (fb::Ask::Submit, fb::Submit::create(b, &fb::SubmitArgs { command }).as_union_value())
            };
            match self.ask(leader, patience, ask).await {
                Ok(Asked::Committed(id)) => id,
                Ok(Asked::Redirected(_)) => {
                    return Tried::Again(format!("broker {leader} does not lead the metadata any more"));
                }
                Ok(Asked::Refused(why)) => return Tried::Done(Err(MetadataError::Unavailable(why))),
                Ok(Asked::Unknown(why)) => return Tried::Done(Err(MetadataError::OutcomeUnknown(why))),
                Ok(Asked::Heard | Asked::Removed | Asked::Joined) => {
                    let why = format!("broker {leader} answers something else");
                    return Tried::Done(Err(MetadataError::OutcomeUnknown(why)));
                }
                Err(error) if error.sent => {
                    let why = format!("broker {leader}, which leads the metadata: {error}");
                    return Tried::Done(Err(MetadataError::OutcomeUnknown(why)));
                }
                Err(error) => return Tried::Again(format!("broker {leader} leads the metadata: {error}")),
            }
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        let outcome = tokio::time::timeout(patience, self.applied.outcome(id)).await;
        Tried::Done(outcome.ok().flatten().unwrap_or_else(|| {
            let why = "it is committed, and this broker has not seen yet what it did".to_owned();
            Err(MetadataError::OutcomeUnknown(why))
        }))
    }

    fn dead(&self, why: &str) -> MetadataError {
        MetadataError::Unavailable(format!(
            "the metadata of this broker has stopped ({why}); restart the broker"
        ))
    }

    /// Members of the group, with a vote or not.
    pub fn nodes(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.nodes().map(|(id, _)| *id).collect()
    }

    /// The same without this one.
    fn others(&self) -> impl Iterator<Item = u64> + use<> {
        let me = u64::from(self.peers.me().get());
        self.nodes().into_iter().filter(move |id| *id != me)
    }

    /// Members with a vote.
    pub fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.voter_ids().collect()
    }

    /// Whether nobody else is in the group: then there is nobody to hear from, and no clock is needed.
    pub fn is_alone(&self) -> bool {
        self.nodes() == BTreeSet::from([u64::from(self.peers.me().get())])
    }

    /// Whether Raft's clock runs: heartbeats, and elections when they are missed.
    pub fn keep_time(&self, on: bool) {
        self.raft.runtime_config().tick(on);
    }

    /// Asks to follow a cluster, until it is let in.
    pub async fn join(&self, storage_uuid: u128) -> Result<(), MetadataError> {
        let deadline = Instant::now() + JOIN_PATIENCE;
        let mut known: Vec<String> = self.settings.join.clone();
        let (mut last, mut told) = (String::new(), String::new());
        self.log.note_joining(true).await.map_err(|error| MetadataError::Join(error.to_string()))?;
        while Instant::now() < deadline {
            let Some(address) = known.first().cloned() else { break };
            // Each in its turn.
            known.rotate_left(1);
            match self.ask_to_join(&address, storage_uuid).await.map(|(_, asked)| asked) {
                Ok(Asked::Joined) => {
                    self.admitted.store(true, Ordering::Relaxed);
                    self.keep_time(true);
                    return Ok(());
                }
                Ok(Asked::Redirected(Some((_, leader)))) if !leader.is_empty() => {
                    known.retain(|address| *address != leader);
                    known.insert(0, leader);
                    continue;
                }
                Ok(Asked::Refused(why)) => return Err(MetadataError::Join(format!("{address}: {why}"))),
                Ok(Asked::Unknown(why)) => last = format!("{address}: {why}"),
                Ok(_) => last = format!("{address} does not know who leads the metadata"),
                Err(error) => last = error.to_string(),
            }
            // Once for each reason, not with every try.
            if told != last {
                tracing::info!("cannot join yet: {last}; it asks for up to {JOIN_PATIENCE:?}");
                told.clone_from(&last);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(MetadataError::Join(format!("not let in within {JOIN_PATIENCE:?}: {last}")))
    }

    /// It is registered by this life, and its log has that: so the group that the log speaks of last is one that knows
    /// this disk, and this broker may stand for election in it.
    pub async fn has_joined(&self) -> Result<(), MetadataError> {
        self.log.note_joining(false).await.map_err(|error| MetadataError::Join(error.to_string()))?;
        self.raft.runtime_config().elect(true);
        Ok(())
    }

    /// Who is at `address`, and what it says.
    async fn ask_to_join(&self, address: &str, storage_uuid: u128) -> Result<(u64, Asked), CallError> {
        let ask = |b: &mut Builder| -> (fb::Ask, WIPOffset<UnionWIPOffset>) {
            let args = fb::JoinArgs {
                broker: self.peers.me().get(),
                address: Some(b.create_string(&self.address)),
                storage_high: (storage_uuid >> 64) as u64,
                storage_low: storage_uuid as u64,
            };
            (fb::Ask::Join, fb::Join::create(b, &args).as_union_value())
        };
        let wire = Wire::connect(&self.peers, address, None).await?;
        let bytes = wire.call(SUBMIT_PATIENCE, ask).await?;
        let asked = Asked::of(&bytes).unwrap_or_else(|error| Asked::Unknown(error.to_string()));
        Ok((wire.broker, asked))
    }

    /// Tells those that this broker knows where it is, again and again: its address may have changed while it was away. So may
    /// theirs, as when all brokers are restored from copies on other hosts: whom it does not find where it was is
    /// looked for at the addresses that it was given.
    pub async fn announce(&self, storage_uuid: u128) {
        loop {
            let mut lost = BTreeSet::new();
            for target in self.others() {
                let reached = match self.peers.address(target) {
                    Some(address) => self.ask_to_join(&address, storage_uuid).await.ok(),
                    None => None,
                };
                if reached.is_none_or(|(broker, _)| broker != target) {
                    lost.insert(target);
                }
            }
            self.look_for(lost, storage_uuid).await;
            tokio::time::sleep(ANNOUNCE_AGAIN).await;
        }
    }

    /// Looks for brokers at the addresses that this one was given, and at those of which it hears there.
    async fn look_for(&self, mut lost: BTreeSet<u64>, storage_uuid: u128) {
        let mut addresses = self.settings.join.clone();
        let mut at = 0;
        while let Some(address) = addresses.get(at).filter(|_| !lost.is_empty()).cloned() {
            at += 1;
            let Ok((broker, asked)) = self.ask_to_join(&address, storage_uuid).await else { continue };
            if lost.remove(&broker) {
                tracing::info!("broker {broker} is at {address} now");
                self.peers.moved(broker, &address);
            }
            if let Asked::Redirected(Some((_, leader))) = asked
                && !leader.is_empty()
                && !addresses.contains(&leader)
            {
                addresses.push(leader);
            }
        }
    }

    /// Whether Raft has stopped, and with it this broker's metadata.
    pub fn is_stopped(&self) -> bool {
        self.raft.metrics().borrow_watched().running_state.is_err()
    }

    /// Tells the leader again and again that this life of the broker goes on, which is registered as `epoch` with this
    /// disk. Silent where there is nobody else.
    pub async fn beat(
        &self,
        (epoch, storage_uuid): (BrokerEpoch, u128),
        life: &Arc<Life>,
        followed: impl Fn() -> u64,
        stopping: watch::Receiver<bool>,
    ) -> Beaten {
        let mut images = self.applied.watch();
        let me = self.peers.me();
        let mut turn = 0;
        loop {
            // Who does not learn what the cluster decides must not be taken for one who does.
            if self.is_stopped() {
                tracing::error!("the metadata of this broker has stopped: it is not heard any more");
                return Beaten::Stopped;
            }
            let image = self.peers.image();
            // It hears of it by the log only if that came before the change of the group.
            if life.removed_epoch.load(Ordering::Relaxed) == epoch.get() || image.has_removed(me, epoch) {
                return Beaten::Removed;
            }
            if let Some(known) = image.broker(me).filter(|known| known.epoch > epoch) {
                if known.registration.storage_uuid != storage_uuid {
                    crate::fatal(&format!("another process has registered as broker {me} after this one"));
                }
                // Asked for once and done twice, or asked for by an earlier life of this data directory: nobody
                // knows what it named.
                return Beaten::Again;
            }
            if image.brokers().count() < 2 {
                if images.changed().await.is_err() {
                    return Beaten::Stopped;
                }
                continue;
            }
            let stopping = *stopping.borrow();
            let heartbeat = Heartbeat { broker: me, epoch, version: followed(), stopping };
            match self.leader() {
                Some(leader) if leader == u64::from(me.get()) => {
                    self.peers.tell(Word::Heartbeat(heartbeat));
                    if self.has_majority() {
                        life.note_heard();
                    }
                }
                Some(leader) => self.send_heartbeat(leader, heartbeat, life),
                None => {}
            }
            // Nobody tells a broker that was removed who leads by now: any of the others knows that it was.
            if !life.is_heard() {
                let others: Vec<u64> = self.others().collect();
                if let Some(other) = others.get(turn % others.len().max(1)) {
                    self.send_heartbeat(*other, heartbeat, life);
                }
                turn += 1;
            }
            tokio::time::sleep(self.settings.heartbeat).await;
        }
    }

    fn send_heartbeat(&self, target: u64, heartbeat: Heartbeat, life: &Arc<Life>) {
        let (member, life) = (self.clone(), life.clone());
        tokio::spawn(async move {
            let ask = |b: &mut Builder| {
                let args = fb::HeartbeatArgs {
                    broker: heartbeat.broker.get(),
                    epoch: heartbeat.epoch.get(),
                    version: heartbeat.version,
                    stopping: heartbeat.stopping,
                };
                (fb::Ask::Heartbeat, fb::Heartbeat::create(b, &args).as_union_value())
            };
            // Else the next one is under way soon.
            match member.ask(target, member.settings.session, ask).await {
                Ok(Asked::Heard) => life.note_heard(),
                Ok(Asked::Removed) => life.removed_epoch.store(heartbeat.epoch.get(), Ordering::Relaxed),
                _ => {}
            }
        });
    }

    /// Has the log cut again and again, whether this broker leads or not.
    pub async fn keep_log_short(&self) {
        // The last life may have ended between a snapshot and the cut that follows it.
        let snapshot = self.raft.metrics().borrow_watched().snapshot;
        if let Some(upto) = snapshot.and_then(|id| id.index.checked_sub(SNAPSHOT_EVERY))
            && self.raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
        loop {
            self.applied.log_is_long().await;
            // An error says that Raft has stopped.
            if self.raft.trigger().snapshot().await.is_err() {
                return;
            }
        }
    }

    /// Runs the controller, which does something while this broker leads the metadata of a cluster, and looks after
    /// the group.
    pub async fn drive(&self, mut words: mpsc::Receiver<Word>) {
        let began = Instant::now();
        let now_ms = || began.elapsed().as_millis() as u64;
        let mut controller = Controller::new(self.settings.controller(), self.peers.image());
        let mut images = self.applied.watch();
        let mut metrics = self.raft.server_metrics();
        let mut leads = false;
        let mut effects = Vec::new();
        let mut group = Group::default();
        loop {
            let image = self.peers.image();
            controller.step(now_ms(), Event::Image(image.clone()), &mut effects);
            // One broker alone is not watched by itself.
            let leads_now = self.leads() && image.brokers().count() > 1;
            if leads_now != leads {
                leads = leads_now;
                let event = if leads { Event::Leads } else { Event::LeadsNot };
                controller.step(now_ms(), event, &mut effects);
                group = Group::default();
            }
            self.keep_time(!self.is_alone() || !self.leads());
            if self.leads() && !self.is_alone() {
                group.look_after(self, &image);
            }
            self.propose(&mut effects);
            // A group that changes is looked at again without a cause of its own.
            let look = (self.leads() && !self.is_alone()).then(|| now_ms() + 1_000);
            let due = [controller.next_deadline_ms(), look].into_iter().flatten().min();
            let due = due.map(|due| tokio::time::Instant::from_std(began + Duration::from_millis(due)));
            tokio::select! {
                word = words.recv() => match word {
                    Some(Word::Heartbeat(heartbeat)) => {
                        controller.step(now_ms(), Event::Heartbeat(heartbeat), &mut effects);
                    }
                    Some(Word::Refused(broker)) => {
                        controller.step(now_ms(), Event::ConnectionRefused(broker), &mut effects);
                    }
                    None => return,
                },
                changed = images.changed() => if changed.is_err() { return },
                changed = metrics.changed() => if changed.is_err() { return },
                () = async { match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                } } => controller.step(now_ms(), Event::Tick, &mut effects),
            }
        }
    }

    fn propose(&self, effects: &mut Vec<Effect>) {
        for Effect::Propose(command) in effects.drain(..) {
            let member = self.clone();
            tokio::spawn(async move {
                tracing::info!("the controller asks for {command:?}");
                let proposal = Proposal(command.encode().into());
                // The controller learns from the next image, and asks again if there is none.
                if let Err(error) = member.raft.client_write(proposal).await {
                    tracing::info!("the controller's command was not done: {error}");
                }
            });
        }
    }

    /// Gives the leadership of the metadata to another voter, if there is one.
    pub async fn hand_over(&self) {
        let me = u64::from(self.peers.me().get());
        let Some(heir) = self.voters().into_iter().find(|voter| *voter != me) else { return };
        if self.leads() && self.raft.trigger().transfer_leader(heir).await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), async {
                while self.leads() {
                    tokio::time::sleep(RETRY).await;
                }
            })
            .await;
        }
    }
}

/// Who votes, and who is forgotten: looked after by who leads.
#[derive(Default)]
struct Group {
    /// Members that are not registered, and since when that is known.
    unregistered: BTreeMap<u64, Instant>,
    /// Registered at the last look.
    registered: BTreeSet<u64>,
    changing: Arc<AtomicBool>,
}

impl Group {
    fn look_after(&mut self, member: &Member, image: &Image) {
        if self.changing.load(Ordering::Relaxed) {
            return;
        }
        let nodes = member.nodes();
        let registered: BTreeSet<u64> =
            image.brokers().map(|broker| u64::from(broker.registration.broker.get())).collect();
        let now = Instant::now();
        self.unregistered.retain(|id, _| nodes.contains(id) && !registered.contains(id));
        let mut gone = BTreeSet::new();
        for id in nodes.difference(&registered) {
            let since = *self.unregistered.entry(*id).or_insert(now);
            if self.registered.contains(id) || now.duration_since(since) > UNREGISTERED_MAX {
                gone.insert(*id);
            }
        }
        let stays = |id: &u64| !gone.contains(id);
        let voters = member.voters();
        let wanted = wanted_voters(
            member.settings.metadata_voters,
            &voters.iter().copied().filter(stays).collect(),
            &nodes.iter().copied().filter(stays).filter(|id| may_vote(image, *id)).collect(),
        );
        // Known only now: who is gone was registered at the last look.
        if gone.is_empty() {
            self.registered = registered;
        }
        let change = if wanted != voters && !wanted.is_empty() {
            Some((ChangeMembers::ReplaceAllVoters(wanted), true))
        } else {
            (!gone.is_empty()).then_some((ChangeMembers::RemoveNodes(gone), false))
        };
        let Some((change, retain)) = change else { return };
        self.changing.store(true, Ordering::Relaxed);
        let (member, changing) = (member.clone(), self.changing.clone());
        tokio::spawn(async move {
            tracing::info!("the metadata's group changes: {change:?}");
            if let Err(error) = member.raft.change_membership(change, retain).await {
                tracing::info!("the metadata's group did not change: {error}");
            }
            changing.store(false, Ordering::Relaxed);
        });
    }
}

/// A registered broker that serves, and so has caught up.
fn may_vote(image: &Image, id: u64) -> bool {
    let known = u32::try_from(id).ok().and_then(|id| image.broker(BrokerId::new(id)));
    known.is_some_and(|known| !known.fenced && !known.draining)
}

/// An odd number, because an even one stands no more failures than one less; at most `most`. Who votes goes on
/// voting; who comes first by number is added.
fn wanted_voters(most: usize, voters: &BTreeSet<u64>, able: &BTreeSet<u64>) -> BTreeSet<u64> {
    let candidates: Vec<u64> = voters.iter().copied().chain(able.difference(voters).copied()).collect();
    let mut count = candidates.len().min(most.max(1));
    if count.is_multiple_of(2) {
        count = count.saturating_sub(1);
    }
    candidates.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_are_odd_and_stay() {
        type Row = (usize, &'static [u64], &'static [u64], &'static [u64]);
        let rows: [Row; 9] = [
            (3, &[0], &[0], &[0]),
            (3, &[0], &[0, 1], &[0]),
            (3, &[0], &[0, 1, 2], &[0, 1, 2]),
            (3, &[0], &[0, 1, 2, 3], &[0, 1, 2]),
            (3, &[0, 2, 3], &[0, 1, 2, 3], &[0, 2, 3]),
            (5, &[0, 1, 2], &[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]),
            // One that votes has failed: it is not replaced by itself.
            (3, &[0, 1, 2], &[0, 1, 3], &[0, 1, 2]),
            // One was removed, and another takes its place; or nobody can.
            (3, &[0, 1], &[0, 1, 3], &[0, 1, 3]),
            (3, &[0, 1], &[0, 1], &[0]),
        ];
        for (most, voters, able, expect) in rows {
            let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
            assert_eq!(
                wanted_voters(most, &set(voters), &set(able)),
                set(expect),
                "{most} {voters:?} {able:?}"
            );
        }
    }
}
