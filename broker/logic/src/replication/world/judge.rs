//! What the [`World`] promises: a ledger of everything that anybody was shown or told, and a judge who compares it with
//! every disk and every replica after every step, by the numbers of the protocol's invariants.
//!
//! I7 is an assertion of the machines too, which ends a broker; I12, liveness, is judged by the simulation. Absent on purpose: I10, of groups, whose
//! commits are records like others here; `group/simulation.rs` judges it.

use super::{Disk, ID, Record, TOPIC, World, id};
use crate::ids::*;
use crate::metadata::Image;
use crate::replication::Replica;
use crate::replication::message::Status;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What was promised to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// What a leader has shown at each offset.
    pub committed: Vec<Record>,
    /// In which leader epoch each was shown first.
    pub shown_in: Vec<LeaderEpoch>,
    pub acked: BTreeSet<u32>,
    /// What is below was deleted: nobody needs it.
    pub log_start: u64,
    /// `(broker, generation, epoch)` that answered an opening.
    pub opened: BTreeSet<(BrokerId, ReplicaGeneration, LeaderEpoch)>,
    pub led: BTreeMap<LeaderEpoch, BrokerId>,
}

impl World {
    pub fn true_high_watermark(&self) -> u64 {
        self.ledger.committed.len() as u64
    }

    pub(super) fn complain(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// I1, I11 and the rules of a partition, when metadata goes on to `next`.
    pub(super) fn judge_metadata(&mut self, next: &Image) {
        let known = self.image().clone();
        let (Some(before), Some(after)) = (known.partition(ID), next.partition(ID)) else { return };
        if after.leader_epoch < before.leader_epoch || after.partition_epoch < before.partition_epoch {
            self.complain("I1: an epoch went back".into());
        }
        if before.leader != after.leader && before.leader_epoch == after.leader_epoch {
            self.complain(format!("I1: epoch {} has two leaders", after.leader_epoch));
        }
        let fenced = |broker: &&BrokerId| next.broker(**broker).is_none_or(|known| known.fenced);
        if let Some(fenced) = after.in_sync.iter().find(fenced) {
            self.complain(format!("broker {fenced} is fenced and in sync"));
        }
        let joined = after.in_sync.iter().filter(|broker| !before.in_sync.contains(broker));
        let mut missing = Vec::new();
        for broker in joined {
            let generation = after.replica(*broker).map(|replica| replica.generation).unwrap_or_default();
            let elected = after.leader == Some(*broker);
            if !elected && !self.ledger.opened.contains(&(*broker, generation, before.leader_epoch)) {
                missing.push(*broker);
            }
        }
        for broker in missing {
            self.complain(format!("I11: broker {broker} joined without having opened in the epoch"));
        }
    }

    /// I7: a clean replica is to discard what is at `to` and above.
    pub(super) fn judge_cut(&mut self, broker: u32, to: Offset) {
        let Some(replica) = &self.nodes[broker as usize].replica else { return };
        let high_watermark = replica.high_watermark();
        if replica.status() == Status::Clean && to < high_watermark {
            self.complain(format!(
                "I7: broker {broker} is cut at {to}, below its high watermark {high_watermark}"
            ));
        }
    }

    /// The high watermark of a replica moved: a leader shows what is below, and answers.
    pub(super) fn committed(&mut self, broker: u32, to: u64) {
        let node = &mut self.nodes[broker as usize];
        let Some(disk) = &node.disk else { return };
        let led = node.replica.as_ref().and_then(Replica::leads);
        let leads = led.is_some();
        let mut wrong = None;
        for offset in disk.log_start.max(self.ledger.log_start)..to {
            let Some(record) = disk.records.get(offset as usize).copied().flatten() else {
                wrong = wrong
                    .or(Some(format!("I6: broker {broker} shows offset {offset} and has nothing there")));
                continue;
            };
            match self.ledger.committed.get(offset as usize) {
                Some(known) if *known != record => {
                    wrong = wrong.or(Some(format!(
                        "I6: offset {offset} was {known:?}, broker {broker} has {record:?}"
                    )));
                }
                Some(_) => {}
                None if leads && self.ledger.committed.len() as u64 == offset => {
                    if self.ledger.committed.iter().any(|known| known.sequence == record.sequence) {
                        wrong = wrong.or(Some(format!("I8: {record:?} is there twice")));
                    }
                    self.ledger.committed.push(record);
                    self.ledger.shown_in.extend(led);
                }
                None => wrong = wrong.or(Some(format!("I6: broker {broker} shows {offset} before a leader"))),
            }
        }
        if leads {
            let acked = &mut self.ledger.acked;
            node.waiters.retain(|(end, sequence)| {
                if *end <= to {
                    acked.insert(*sequence);
                }
                *end > to
            });
        }
        if let Some(wrong) = wrong {
            self.complain(wrong);
        }
    }

    /// Whether a broker's disk durably has everything that was ever shown.
    pub fn is_whole(&self, broker: u32) -> bool {
        let Some(disk) = &self.nodes[broker as usize].disk else { return self.ledger.committed.is_empty() };
        let has = |(offset, known): (usize, &Record)| {
            offset < disk.log_start.max(self.ledger.log_start) as usize
                || disk.records.get(offset) == Some(&Some(*known))
        };
        disk.synced >= self.ledger.committed.len() && self.ledger.committed.iter().enumerate().all(has)
    }

    /// Whether metadata counts it among those that may have everything.
    pub fn counts(&self, broker: u32) -> bool {
        let partition = self.image().partition(ID).expect("it is there");
        partition.in_sync.contains(&id(broker)) || partition.eligible.contains(&id(broker))
    }

    /// Whether a disk may lose what it had synced: one at a time, and only while a clean replica that may lead has
    /// everything. More than that no protocol survives.
    pub fn may_lose(&self, broker: u32) -> bool {
        let partition = self.image().partition(ID).expect("it is there");
        let config = &self.image().topic(TOPIC).expect("it is there").config;
        let brokers = || 0..self.nodes.len() as u32;
        let sound = |other: u32| {
            other != broker && self.counts(other) && self.is_whole(other) && !self.is_suspect(other)
        };
        partition.min_in_sync(config) > 1
            && self.nodes.iter().all(|node| !node.lost)
            && !brokers().any(|other| self.is_suspect(other))
            && brokers().any(sound)
    }

    pub fn is_suspect(&self, broker: u32) -> bool {
        let image = self.image();
        let generation = image.partition(ID).and_then(|entry| entry.replica(id(broker)).copied());
        let known = image.broker(id(broker));
        generation.zip(known).is_some_and(|(replica, known)| known.suspect(ID, replica.generation).is_some())
    }

    pub fn judge(&mut self) {
        let image = self.image().clone();
        let Some(partition) = image.partition(ID) else { return };
        for broker in 0..self.nodes.len() as u32 {
            let node = &self.nodes[broker as usize];
            if node.lost && self.is_whole(broker) && !self.is_suspect(broker) && !node.register {
                self.nodes[broker as usize].lost = false;
            }
            let node = &self.nodes[broker as usize];
            let Some(disk) = node.disk.clone() else { continue };
            if !node.lost && (disk.synced as u64) < node.promised {
                let (synced, promised) = (disk.synced, node.promised);
                self.complain(format!("I5: broker {broker} acknowledged {promised} and has {synced}"));
            }
            let node = &self.nodes[broker as usize];
            let Some(replica) = &node.replica else { continue };
            let high_watermark = replica.high_watermark().get();
            let mut wrong = None;
            if high_watermark > self.true_high_watermark() {
                wrong = Some(format!("I6: broker {broker} shows {high_watermark}, which no leader has"));
            }
            if let Some(epoch) = replica.leads() {
                let counts: BTreeSet<BrokerId> =
                    replica.peers().filter(|peer| peer.counts).map(|peer| peer.broker).collect();
                let missing = partition.in_sync.iter().chain(partition.eligible.iter()).find(|member| {
                    **member != id(broker) && !counts.contains(member) && !self.is_suspect(member.get())
                });
                let view_in_sync = 1 + replica.peers().filter(|peer| peer.in_sync).count();
                let config = &image.topic(TOPIC).expect("it is there").config;
                if (partition.leader, partition.leader_epoch) == (Some(id(broker)), epoch)
                    && view_in_sync >= partition.min_in_sync(config)
                    && let Some(missing) = missing
                {
                    wrong = wrong.or(Some(format!("I4: leader {broker} does not count {missing}")));
                }
                if replica.is_applied() && !node.lost {
                    let known = self.ledger.committed.iter().enumerate();
                    let mut lost = known.filter(|(offset, known)| {
                        self.ledger.shown_in[*offset] <= epoch
                            && *offset >= disk.log_start as usize
                            && disk.records.get(*offset) != Some(&Some(**known))
                    });
                    if let Some((offset, known)) = lost.next_back() {
                        wrong = wrong.or(Some(format!("I8: leader {broker} lacks {known:?} at {offset}")));
                    }
                    // What it calls the latest is not less than what an earlier leader did.
                    let earlier = self.ledger.shown_in.partition_point(|shown| *shown < epoch) as u64;
                    if high_watermark < earlier {
                        let what = format!(
                            "I6: leader {broker} says that {high_watermark} is latest, and {earlier} was"
                        );
                        wrong = wrong.or(Some(what));
                    }
                }
            }
            if let Some(wrong) = wrong {
                self.complain(wrong);
            }
        }
        for member in partition.in_sync.iter().chain(partition.eligible.iter()) {
            let broker = member.get();
            if !self.nodes[broker as usize].lost && !self.is_suspect(broker) && !self.is_whole(broker) {
                self.complain(format!("I3: broker {broker} may lead and has not everything"));
            }
        }
        let acked = &self.ledger.acked;
        let shown: BTreeSet<u32> = self.ledger.committed.iter().map(|record| record.sequence).collect();
        if let Some(lost) = acked.iter().find(|sequence| !shown.contains(sequence)) {
            let lost = *lost;
            self.complain(format!("I8: {lost} was acknowledged and never committed"));
        }
        self.judge_bytes();
        self.judge_producers();
    }

    /// I2: one offset and one epoch are one record everywhere.
    fn judge_bytes(&mut self) {
        let disks: Vec<&Disk> =
            self.nodes.iter().filter(|node| !node.lost).filter_map(|node| node.disk.as_ref()).collect();
        let mut wrong = None;
        for (at, one) in disks.iter().enumerate() {
            for other in &disks[at + 1..] {
                let kept = self.ledger.log_start as usize;
                for (offset, (a, b)) in one.records.iter().zip(&other.records).enumerate().skip(kept) {
                    if let (Some(a), Some(b)) = (a, b)
                        && a.epoch == b.epoch
                        && a != b
                    {
                        wrong = Some(format!("I2: offset {offset} is {a:?} and {b:?}"));
                    }
                }
            }
        }
        if let Some(wrong) = wrong {
            self.complain(wrong);
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A panic of a machine is a violation, which whoever runs the world reports itself.
pub fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}
