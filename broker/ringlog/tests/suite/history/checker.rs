//! Looks for what must not be in a history: see [`Anomaly`].
//!
//! A history is what producers, members and the log itself said; all times are of one monotonic clock. Invariant:
//! an anomaly is reported only if it is one whatever the delays were between what happened and what was written down.
//! Reading again after a fault (at least once) is no anomaly; it is counted.

use std::collections::{BTreeMap, BTreeSet};

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// An acknowledged record is not where it was acknowledged.
    LostWrite,
    /// The log has a record twice.
    Duplicate,
    /// A producer's records of one partition are not in the order in which they were sent.
    NonMonotonicSend,
    /// A member read something else at an offset than the log has there.
    InconsistentOffset,
    /// A member read an offset at or below one that it had read, without having lost the partition.
    NonMonotonicPoll,
    /// A member left out an offset.
    SkippedPoll,
    /// Nobody of the group has read a record.
    Unseen,
    /// A committed offset went back.
    OffsetRegression,
    /// A commit above what anybody of the group had read.
    CommitAhead,
    /// A commit was accepted while another member held the partition.
    StaleCommit,
    /// Two members held a partition at once.
    TwoOwners,
    /// The group ended at another offset than the log.
    Unfinished,
}

/// Every kind, in order.
pub const ANOMALIES: [Anomaly; 12] = [
    Anomaly::LostWrite,
    Anomaly::Duplicate,
    Anomaly::NonMonotonicSend,
    Anomaly::InconsistentOffset,
    Anomaly::NonMonotonicPoll,
    Anomaly::SkippedPoll,
    Anomaly::Unseen,
    Anomaly::OffsetRegression,
    Anomaly::CommitAhead,
    Anomaly::StaleCommit,
    Anomaly::TwoOwners,
    Anomaly::Unfinished,
];

/// What a member wrote down, in its own order. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was given a partition, and begins at an offset.
    Assigned { at: u64, partition: u32, offset: u64 },
    /// It was asked to give it up, and has read up to a position, which is committed before it is given up.
    Revoked { at: u64, partition: u32, position: u64 },
    /// It was put out.
    Lost { at: u64, partition: u32 },
    /// A record was handed out.
    Polled { at: u64, partition: u32, offset: u64, value: String },
    /// A commit was answered; `ok`: accepted.
    Committed { called: u64, answered: u64, partition: u32, offset: u64, ok: bool },
}

/// Everything that was said.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Group and events of each member.
    pub members: Vec<(String, Vec<Event>)>,
    /// Values by partition, offset by offset.
    pub log: Vec<Vec<String>>,
    /// Acknowledged: partition, offset, value.
    pub acknowledged: Vec<(u32, u64, String)>,
    /// What each group has committed in the end, by partition.
    pub committed: BTreeMap<String, BTreeMap<u32, u64>>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// In words.
    pub anomalies: Vec<(Anomaly, String)>,
    /// Events and records looked at.
    pub operations: usize,
    /// Records that were handed out more than once within a group.
    pub read_again: usize,
}

impl Verdict {
    fn add(&mut self, kind: Anomaly, what: String) {
        self.anomalies.push((kind, what));
    }

    /// How many of each kind.
    pub fn counts(&self) -> BTreeMap<Anomaly, usize> {
        ANOMALIES
            .iter()
            .map(|kind| (*kind, self.anomalies.iter().filter(|one| one.0 == *kind).count()))
            .collect()
    }
}

/// A member has had a partition.
#[derive(Clone, Debug)]
struct Holding {
    member: usize,
    partition: u32,
    from: u64,
    start: u64,
    /// The last moment at which it surely held it.
    until: u64,
}

/// A commit that was accepted.
#[derive(Clone, Copy, Debug)]
struct Commit {
    member: usize,
    called: u64,
    answered: u64,
    offset: u64,
}

/// Looks at everything.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    check_log(history, &mut verdict);
    let groups: BTreeSet<&String> = history.members.iter().map(|(group, _)| group).collect();
    for group in groups {
        check_group(history, group, &mut verdict);
    }
    verdict
}

/// `name-number`: the producer, and which of its records it is.
fn parse(value: &str) -> Option<(&str, u64)> {
    let (producer, number) = value.rsplit_once('-')?;
    Some((producer, number.parse().ok()?))
}

fn check_log(history: &History, verdict: &mut Verdict) {
    for (partition, offset, value) in &history.acknowledged {
        verdict.operations += 1;
        let found = history.log.get(*partition as usize).and_then(|log| log.get(*offset as usize));
        if found != Some(value) {
            let what = format!("{value} was acknowledged at {partition}/{offset}, where {found:?} is");
            verdict.add(Anomaly::LostWrite, what);
        }
    }
    let mut places: BTreeMap<&String, (usize, usize)> = BTreeMap::new();
    for (partition, log) in history.log.iter().enumerate() {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (offset, value) in log.iter().enumerate() {
            verdict.operations += 1;
            if let Some(before) = places.insert(value, (partition, offset)) {
                verdict
                    .add(Anomaly::Duplicate, format!("{value} at {before:?} and {:?}", (partition, offset)));
            }
            if let Some((producer, number)) = parse(value)
                && let Some(before) = last.insert(producer, number)
                && before > number
            {
                verdict.add(
                    Anomaly::NonMonotonicSend,
                    format!("{value} after {before} at {partition}/{offset}"),
                );
            }
        }
    }
}

fn check_group(history: &History, group: &str, verdict: &mut Verdict) {
    let mut holdings: Vec<Holding> = Vec::new();
    let mut commits: BTreeMap<u32, Vec<Commit>> = BTreeMap::new();
    // Reads: (partition, offset) → when first.
    let mut read: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let mut reads = 0;
    let members = history.members.iter().enumerate().filter(|(_, (of, _))| of == group);
    for (member, (_, events)) in members {
        // Partition → its present holding and the next offset expected.
        let mut present: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
        for event in events {
            verdict.operations += 1;
            match event {
                Event::Assigned { at, partition, offset } => {
                    present.insert(*partition, (holdings.len(), *offset));
                    let (from, until) = (*at, *at);
                    holdings.push(Holding { member, partition: *partition, from, start: *offset, until });
                }
                Event::Revoked { at, partition, position } => {
                    if let Some((holding, next)) = present.remove(partition) {
                        holdings[holding].until = *at;
                        if next != *position {
                            let what = format!(
                                "{group} member {member} gives up {partition} at {position}, having read up to {next}"
                            );
                            verdict.add(Anomaly::SkippedPoll, what);
                        }
                    }
                }
                Event::Lost { partition, .. } => {
                    // When it was put out nobody knows here; it held it at its last commit.
                    present.remove(partition);
                }
                Event::Polled { at, partition, offset, value } => {
                    reads += 1;
                    read.entry((*partition, *offset)).or_insert(*at);
                    let stored =
                        history.log.get(*partition as usize).and_then(|log| log.get(*offset as usize));
                    if stored != Some(value) {
                        let what =
                            format!("{group} read {value} at {partition}/{offset}, where {stored:?} is");
                        verdict.add(Anomaly::InconsistentOffset, what);
                    }
                    let who = format!("{group} member {member}: {partition}/{offset}");
                    match present.get_mut(partition) {
                        Some((_, next)) => {
                            if *offset < *next {
                                verdict.add(Anomaly::NonMonotonicPoll, format!("{who} after {}", *next - 1));
                            } else if *offset > *next {
                                verdict.add(Anomaly::SkippedPoll, format!("{who}, expected {next}"));
                            }
                            *next = (*next).max(*offset + 1);
                        }
                        None => verdict.add(Anomaly::TwoOwners, format!("{who} was read without holding it")),
                    }
                }
                Event::Committed { called, answered, partition, offset, ok: true } => {
                    if let Some((holding, _)) = present.get(partition) {
                        holdings[*holding].until = holdings[*holding].until.max(*called);
                    }
                    let (called, answered, offset) = (*called, *answered, *offset);
                    commits.entry(*partition).or_default().push(Commit { member, called, answered, offset });
                }
                Event::Committed { ok: false, .. } => {}
            }
        }
    }
    verdict.read_again += reads - read.len();
    check_commits(group, &holdings, &commits, verdict);
    for (partition, commits) in &commits {
        // Offset → when the last of those below it was first read; `None` = one was not.
        let mut read_below = vec![Some(0)];
        for offset in 0..commits.iter().map(|commit| commit.offset).max().unwrap_or(0) {
            let before = read_below[offset as usize];
            let at = read.get(&(*partition, offset)).copied();
            read_below.push(before.zip(at).map(|(before, at)| before.max(at)));
        }
        for commit in commits {
            // What was read just before is written down before the commit is called.
            let when = read_below[commit.offset as usize];
            if when.is_none_or(|at| at > commit.answered) {
                let what = format!("{group} {partition}: {} committed, not all below it read", commit.offset);
                verdict.add(Anomaly::CommitAhead, what);
            }
        }
    }
    for (partition, log) in history.log.iter().enumerate() {
        let partition = partition as u32;
        for offset in (0..log.len() as u64).filter(|offset| !read.contains_key(&(partition, *offset))) {
            verdict.add(Anomaly::Unseen, format!("{group} never read {partition}/{offset}"));
        }
        let committed = history.committed.get(group).and_then(|group| group.get(&partition)).copied();
        if committed.unwrap_or(0) != log.len() as u64 {
            let what = format!("{group} {partition}: committed {committed:?}, the log ends at {}", log.len());
            verdict.add(Anomaly::Unfinished, what);
        }
    }
}

fn check_commits(
    group: &str,
    holdings: &[Holding],
    commits: &BTreeMap<u32, Vec<Commit>>,
    verdict: &mut Verdict,
) {
    for (partition, commits) in commits {
        for one in commits {
            for later in
                commits.iter().filter(|later| later.called > one.answered && later.offset < one.offset)
            {
                let what = format!("{group} {partition}: {} after {} was answered", later.offset, one.offset);
                verdict.add(Anomaly::OffsetRegression, what);
            }
        }
    }
    let none = Vec::new();
    for holding in holdings {
        let commits = commits.get(&holding.partition).unwrap_or(&none);
        let partition = holding.partition;
        for commit in commits.iter().filter(|commit| commit.answered < holding.from) {
            if commit.offset > holding.start {
                let what = format!(
                    "{group} {partition}: member {} begins at {} after {} was committed",
                    holding.member, holding.start, commit.offset
                );
                verdict.add(Anomaly::OffsetRegression, what);
            }
        }
        for commit in commits.iter().filter(|commit| {
            commit.member != holding.member && commit.called > holding.from && commit.answered < holding.until
        }) {
            let what = format!(
                "{group} {partition}: member {} committed {} while member {} had it",
                commit.member, commit.offset, holding.member
            );
            verdict.add(Anomaly::StaleCommit, what);
        }
        for other in holdings.iter().filter(|other| {
            other.partition == partition
                && other.member != holding.member
                && other.from > holding.from
                && other.from < holding.until
        }) {
            let what = format!(
                "{group} {partition}: member {} got it while member {} had it",
                other.member, holding.member
            );
            verdict.add(Anomaly::TwoOwners, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history in which a partition moves from one member to another, in order.
    fn sound() -> History {
        let value = |offset: u64| format!("p-{offset}");
        let polled = |at, offset| Event::Polled { at, partition: 0, offset, value: value(offset) };
        let committed = |called, offset| Event::Committed {
            called,
            answered: called + 1,
            partition: 0,
            offset,
            ok: true,
        };
        let first = vec![
            Event::Assigned { at: 10, partition: 0, offset: 0 },
            polled(11, 0),
            polled(12, 1),
            committed(13, 2),
            polled(15, 2),
            Event::Revoked { at: 20, partition: 0, position: 3 },
        ];
        let second = vec![
            Event::Assigned { at: 30, partition: 0, offset: 3 },
            polled(31, 3),
            polled(32, 4),
            committed(40, 5),
            Event::Revoked { at: 50, partition: 0, position: 5 },
        ];
        History {
            members: vec![("g".to_owned(), first), ("g".to_owned(), second)],
            log: vec![(0..5).map(value).collect()],
            acknowledged: (0..5).map(|offset| (0, offset, value(offset))).collect(),
            committed: BTreeMap::from([("g".to_owned(), BTreeMap::from([(0, 5)]))]),
        }
    }

    #[test]
    fn a_sound_history_has_no_anomalies() {
        let verdict = check(&sound());
        assert_eq!(verdict.anomalies, []);
        assert_eq!((verdict.operations, verdict.read_again), (21, 0));
        // A member that is killed and comes back reads again what was not committed: no anomaly.
        let mut again = sound();
        again.members[0].1.truncate(5);
        again.members[1].1[0] = Event::Assigned { at: 30, partition: 0, offset: 2 };
        let polled = Event::Polled { at: 31, partition: 0, offset: 2, value: "p-2".to_owned() };
        again.members[1].1.insert(1, polled);
        let verdict = check(&again);
        assert_eq!((verdict.anomalies, verdict.read_again), (vec![], 1));
    }

    #[test]
    fn planted_anomalies_are_found() {
        type Row = (Anomaly, fn(&mut History));
        let rows: [Row; 17] = [
            (Anomaly::LostWrite, |history| history.acknowledged.push((0, 5, "p-5".to_owned()))),
            (Anomaly::LostWrite, |history| history.log[0].swap(3, 4)),
            (Anomaly::Duplicate, |history| history.log[0][4] = "p-3".to_owned()),
            (Anomaly::NonMonotonicSend, |history| history.log[0].swap(0, 1)),
            (Anomaly::InconsistentOffset, |history| {
                history.members[0].1[1] =
                    Event::Polled { at: 11, partition: 0, offset: 0, value: "other".to_owned() };
            }),
            (Anomaly::NonMonotonicPoll, |history| {
                let event = history.members[0].1[1].clone();
                history.members[0].1.insert(3, event);
            }),
            (Anomaly::SkippedPoll, |history| drop(history.members[0].1.remove(2))),
            (Anomaly::SkippedPoll, |history| {
                history.members[0].1[5] = Event::Revoked { at: 20, partition: 0, position: 4 };
            }),
            (Anomaly::Unseen, |history| drop(history.members[1].1.remove(2))),
            (Anomaly::OffsetRegression, |history| {
                history.members[1].1[0] = Event::Assigned { at: 30, partition: 0, offset: 1 };
            }),
            (Anomaly::OffsetRegression, |history| {
                let late = Event::Committed { called: 45, answered: 46, partition: 0, offset: 4, ok: true };
                history.members[1].1.insert(4, late);
            }),
            (Anomaly::CommitAhead, |history| {
                history.members[0].1[3] =
                    Event::Committed { called: 13, answered: 14, partition: 0, offset: 3, ok: true };
            }),
            (Anomaly::StaleCommit, |history| {
                let late = Event::Committed { called: 33, answered: 34, partition: 0, offset: 3, ok: true };
                history.members[0].1.push(late);
            }),
            (Anomaly::TwoOwners, |history| {
                history.members[1].1[0] = Event::Assigned { at: 18, partition: 0, offset: 3 };
            }),
            (Anomaly::TwoOwners, |history| {
                let polled = Event::Polled { at: 33, partition: 0, offset: 3, value: "p-3".to_owned() };
                history.members[0].1.push(polled);
            }),
            (Anomaly::Unfinished, |history| {
                history.committed.get_mut("g").unwrap().insert(0, 4);
            }),
            (Anomaly::Unfinished, |history| history.committed.clear()),
        ];
        for (kind, plant) in rows {
            let mut history = sound();
            plant(&mut history);
            let verdict = check(&history);
            assert!(verdict.counts()[&kind] > 0, "{kind:?} was planted, found {:?}", verdict.anomalies);
        }
        let planted: BTreeSet<Anomaly> = rows.iter().map(|(kind, _)| *kind).collect();
        assert!(planted.into_iter().eq(ANOMALIES), "every kind is planted");
        // What looks like one and is none: a commit that was refused, one whose answer came late.
        let mut refused = sound();
        let late = Event::Committed { called: 33, answered: 34, partition: 0, offset: 3, ok: false };
        refused.members[0].1.push(late);
        assert_eq!(check(&refused).anomalies, []);
    }
}
