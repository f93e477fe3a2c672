//! Partitions of a group consumer that come and go.
//!
//! Owner: the poll of a [`GroupConsumer`], and its end. Lifecycle of a partition: it is in the assignment → its position is
//! found (`positions`) → it is read → it is given up: stopped, the listener told, its position committed → let go, and
//! the heartbeat that says so is sent at once. Invariants: one release at a time; what belongs to a former life of the
//! member is buried before anything of the new one is looked at. Absent on purpose: who gets what, which the
//! coordinator decides.

use super::committing::Outcome;
use super::membership::Key;
use super::positions::{self, Position};
use super::{AssignedPartition, GroupConsumer, GroupError, GroupPartition, Held, RevokedPartition, Stage};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

/// Partitions on their way out.
pub(super) struct Release {
    pub(super) partitions: Vec<(GroupPartition, Key)>,
    pub(super) done: Outcome,
}

impl GroupConsumer {
    /// Takes up what heartbeats have brought.
    pub(super) fn look(&mut self) -> Result<(), GroupError> {
        let membership = self.membership.clone();
        let mut member = membership.lock();
        let failed = member.failed.clone();
        let is_lost = member.generation != self.generation;
        self.generation = member.generation;
        if is_lost {
            // What the new life has been given is looked at below, after the old one is buried.
            drop(member);
            self.bury();
            member = membership.lock();
            if member.generation != self.generation {
                drop(member);
                return self.look();
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut is_changed = false;
        let mut leaving = Vec::new();
        if self.release.is_none() {
            let gone = |held: &Held, partition: u32| !member.assignment.contains_key(&(held.id, partition));
            let gone = self.held.iter().filter(|(name, held)| gone(held, name.partition));
            leaving = gone.map(|(name, _)| name.clone()).collect();
        }
        let new: Vec<(Key, Arc<str>)> = (member.assignment.iter())
            .filter(|(key, name)| !member.owned.contains(*key) && !name.is_empty())
            .map(|(key, name)| (*key, name.clone()))
            .collect();
        for ((id, partition), topic) in new {
            // A topic of the same name that is going must be gone first.
            if let Entry::Vacant(entry) = self.held.entry(GroupPartition { topic, partition }) {
                entry.insert(Held {
                    id,
                    stage: Stage::Waiting,
                    processed: 0,
                    committed: None,
                    is_paused: false,
                });
                member.owned.insert((id, partition));
                is_changed = true;
            }
        }
        drop(member);
        if !leaving.is_empty() {
            is_changed = true;
            self.give_up(leaving);
        }
        if is_changed {
            self.find();
        }
        Ok(())
    }

    /// Everything held is lost.
    pub(super) fn bury(&mut self) {
        (self.finding, self.release, self.handed, self.auto_commit) = (None, None, None, None);
        let lost: Vec<GroupPartition> = std::mem::take(&mut self.held).into_keys().collect();
        for partition in &lost {
            self.consumer.remove(&partition.topic, partition.partition);
        }
        if let (Some(listener), false) = (&mut self.listener, lost.is_empty()) {
            listener.lost(&lost);
        }
    }

    /// Stops partitions, tells the application, commits, and then lets go.
    pub(super) fn give_up(&mut self, leaving: Vec<GroupPartition>) {
        let auto_commits = self.membership.config.auto_commit_interval.is_some();
        let mut told = Vec::new();
        let mut partitions = Vec::new();
        for partition in leaving {
            let Some(held) = self.held.get_mut(&partition) else { continue };
            partitions.push((partition.clone(), (held.id, partition.partition)));
            if held.stage == Stage::Reading {
                let position = self.consumer.position(&partition.topic, partition.partition);
                let commit = auto_commits.then_some(held.processed);
                told.push(RevokedPartition {
                    position: position.unwrap_or(held.processed),
                    partition,
                    commit,
                });
            }
            held.stage = Stage::Releasing;
        }
        for (partition, _) in &partitions {
            self.consumer.remove(&partition.topic, partition.partition);
        }
        if let (Some(listener), false) = (&mut self.listener, told.is_empty()) {
            listener.revoked(&mut told);
        }
        let mut offsets = BTreeMap::new();
        for RevokedPartition { partition, commit, .. } in told {
            let held = &self.held[&partition];
            if let Some(offset) = commit.filter(|offset| held.committed != Some(*offset) || !auto_commits) {
                offsets.insert((held.id, partition.partition), offset);
            }
        }
        let deadline = Instant::now() + self.membership.config.rebalance_timeout;
        // Behind the commits that are under way, or they would overtake it.
        match self.submit(offsets, deadline) {
            Ok(done) => self.release = Some(Release { partitions, done }),
            // Fenced meanwhile: the next look finds out. Or the queue is full, which only a coordinator that is away
            // can do; then whoever comes next reads some records again.
            Err(_) => self.let_go(&partitions),
        }
    }

    pub(super) fn released(&mut self, outcome: Result<(), GroupError>) {
        let Some(release) = self.release.take() else { return };
        match outcome {
            // Fenced: everything is lost, as the next look will find.
            Ok(()) | Err(GroupError::PartitionsLost) => {}
            Err(error) => self.errors.push(error),
        }
        self.let_go(&release.partitions);
    }

    pub(super) fn let_go(&mut self, partitions: &[(GroupPartition, Key)]) {
        let mut member = self.membership.lock();
        if member.generation == self.generation {
            for (_, key) in partitions {
                member.owned.remove(key);
            }
        }
        drop(member);
        for (partition, _) in partitions {
            self.held.remove(partition);
        }
        // At once: somebody waits for them. And there may be more to take up.
        self.membership.wake();
        self.membership.news.notify_one();
    }

    /// Begins to find where the partitions start that have no position yet.
    fn find(&mut self) {
        let waiting = self.held.iter().filter(|(_, held)| held.stage == Stage::Waiting);
        let wanted: BTreeMap<Key, Arc<str>> =
            waiting.map(|(name, held)| ((held.id, name.partition), name.topic.clone())).collect();
        self.finding = None;
        if !wanted.is_empty() {
            let mut task = JoinSet::new();
            task.spawn(positions::find(self.membership.clone(), self.generation, wanted));
            self.finding = Some(task);
        }
    }

    pub(super) fn found(&mut self, found: Result<Vec<Position>, GroupError>) -> Result<(), GroupError> {
        self.finding = None;
        let found = match found {
            Ok(found) if self.membership.lock().generation == self.generation => found,
            // The next look buries them.
            Ok(_) => return Ok(()),
            Err(error) => {
                self.find();
                return Err(error);
            }
        };
        let mut told = Vec::new();
        let mut begun = Vec::new();
        for position in found {
            let partition = GroupPartition { topic: position.topic.name.clone(), partition: position.key.1 };
            let waits = |held: &&mut Held| held.stage == Stage::Waiting && held.id == position.key.0;
            let Some(held) = self.held.get_mut(&partition).filter(waits) else { continue };
            held.stage = Stage::Reading;
            held.committed = position.committed;
            if position.offset.is_none() {
                self.errors.push(GroupError::NoOffset { partition: partition.clone() });
            }
            begun.push((position.topic.clone(), position.offset.is_none()));
            told.push(AssignedPartition {
                partition,
                committed: position.committed,
                offset: position.offset.unwrap_or(0),
            });
        }
        if let (Some(listener), false) = (&mut self.listener, told.is_empty()) {
            listener.assigned(&mut told);
        }
        for (assigned, (topic, is_unknown)) in told.into_iter().zip(begun) {
            let AssignedPartition { partition, offset, .. } = assigned;
            self.consumer.add(&topic, partition.partition, offset);
            if let Some(held) = self.held.get_mut(&partition) {
                held.processed = offset;
                if is_unknown && offset == 0 {
                    // Nothing to commit until it is sought.
                    held.committed = Some(0);
                    self.consumer.halt(&partition.topic, partition.partition);
                }
                if held.is_paused {
                    self.consumer.pause(&partition.topic, partition.partition);
                }
            }
        }
        // Those whose topic was not to be found.
        self.find();
        Ok(())
    }
}

pub(super) async fn settled(release: &mut Option<Release>) -> Result<(), GroupError> {
    match release {
        Some(release) => (&mut release.done).await.unwrap_or(Err(GroupError::PartitionsLost)),
        None => std::future::pending().await,
    }
}

pub(super) async fn found(
    finding: &mut Option<JoinSet<Result<Vec<Position>, GroupError>>>,
) -> Result<Vec<Position>, GroupError> {
    if let Some(task) = finding
        && let Some(found) = task.join_next().await
    {
        // A panic in there is one here.
        return found.expect("finding positions does not panic");
    }
    std::future::pending().await
}
