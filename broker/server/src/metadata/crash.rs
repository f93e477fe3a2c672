//! Crash images of the store: what a power cut leaves at any moment, and what a start makes of it.
//!
//! The file is looked at before each operation, so each write is known by the blocks that it changed. An image is the
//! file as of a sync, and of the blocks written since, in their order, some. A start must find the commits that were
//! answered, and of the one under way all or nothing.
//!
//! `RINGLOG_METADATA_CRASH_SEEDS` sets how many lives of a store are watched, `RINGLOG_METADATA_CRASH_FIRST` the first one's
//! seed; a life that fails says its seed.

use super::raft::{Entry, Leader, LogId, Membership, Node, Proposal, StoredMembership, Vote};
use super::store::{Contents, Op, Operation, Owner, Store, StoredSnapshot};
use openraft::EntryPayload;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What a device writes as a whole.
const BLOCK: usize = 512;
/// Commits of one life of a store.
const COMMITS: u64 = 40;
/// Images of each commit.
const IMAGES: usize = 12;

/// The file before an operation.
struct Look {
    operation: Operation,
    file: Vec<u8>,
    /// Commits answered by then.
    answered: usize,
}

#[derive(Default)]
struct Watched {
    looks: Vec<Look>,
    answered: usize,
}

fn owner() -> Owner {
    Owner { broker: 1, address: "127.0.0.1:1".to_owned() }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("metadata/metadata.redb")
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Leader { term, node_id: 1 }, index)
}

/// What commits make of the contents, as plain as it gets.
#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    snapshot: Option<StoredSnapshot>,
    joining: bool,
    removed: bool,
}

impl Expected {
    fn of(contents: Contents) -> Self {
        let Contents { entries, vote, committed, purged, snapshot, joining, removed } = contents;
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        Self { entries, vote, committed, purged, snapshot, joining, removed }
    }

    fn perform(&mut self, op: &Op) {
        match op {
            Op::Append(entry) => drop(self.entries.insert(entry.log_id.index, entry.clone())),
            Op::Truncate(from) => drop(self.entries.split_off(from)),
            Op::Purge(to) => {
                self.entries = self.entries.split_off(&(to.index + 1));
                self.purged = Some(*to);
            }
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Committed(id) => self.committed = *id,
            Op::Snapshot(snapshot) => self.snapshot = Some(snapshot.clone()),
            Op::Joining(joining) => self.joining = *joining,
            Op::Removed => self.removed = true,
        }
    }
}

/// What Raft asks for: mostly entries, now and then all the rest. `next`: the index that comes next; `kept`: the first
/// that is in the log.
fn commit(random: &mut impl FnMut(u64) -> u64, next: &mut u64, kept: &mut u64, term: &mut u64) -> Vec<Op> {
    let mut ops = Vec::new();
    match random(10) {
        0 => {
            *term += 1;
            ops.push(Op::Vote(Vote {
                leader_id: Leader { term: *term, node_id: 1 },
                committed: random(2) == 0,
            }));
        }
        1 if *next > *kept + 1 => {
            *next = *kept + 1 + random(*next - *kept - 1);
            ops.push(Op::Truncate(*next));
        }
        2 if *next > *kept + 2 => {
            let at = *kept + random(*next - *kept - 2);
            *kept = at + 1;
            let last = id(*term, at);
            let group = Membership::new(vec![[1].into()], BTreeMap::from([(1, Node::new("a:1"))])).unwrap();
            let membership = StoredMembership::new(Some(last), group);
            // A good few pages.
            let image: Arc<[u8]> = (0..20_000 + random(50_000)).map(|at| at as u8).collect();
            ops.push(Op::Snapshot(StoredSnapshot { id: Some(last), membership, image }));
            ops.push(Op::Purge(last));
        }
        3 => ops.push(Op::Joining(random(2) == 0)),
        _ => {}
    }
    for _ in 0..1 + random(4) {
        let bytes: Arc<[u8]> = (0..random(3_000)).map(|_| random(256) as u8).collect();
        ops.push(Op::Append(Entry {
            log_id: id(*term, *next),
            payload: EntryPayload::Normal(Proposal(bytes)),
        }));
        *next += 1;
    }
    ops.push(Op::Committed(Some(id(*term, *next - 1))));
    ops
}

/// A power cut before the operation `at`: of the blocks written since the last sync, some.
fn image(looks: &[Look], at: usize, random: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
    // Before a sync that was done, and so after it.
    let synced =
        looks[..at].iter().rposition(|look| look.operation == Operation::Sync).map_or(0, |sync| sync + 1);
    let mut found = looks[synced].file.clone();
    for pair in looks[synced..=at].windows(2) {
        let (before, after) = (&pair[0].file, &pair[1].file);
        // Lengths are as the file system last said; all that is new may be missing.
        found.resize(after.len(), 0);
        for (block, new) in after.chunks(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + new.len();
            if before.get(range.clone()) != Some(new) && random(2) == 0 {
                found[range].copy_from_slice(new);
            }
        }
    }
    found
}

/// One life of a store, the same for the same seed; how many images of it were looked at.
fn life(seed: u64) -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * seed + 1);
    // xorshift
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let directory = tempfile::tempdir().unwrap();
    let watched = Arc::new(Mutex::new(Watched::default()));
    let (looking, path) = (watched.clone(), file(directory.path()));
    let gate = Arc::new(move |operation| {
        let mut watched = looking.lock().unwrap();
        // The reserve and the making of the file are not this test's.
        if let (Ok(file), answered) = (std::fs::read(&path), watched.answered) {
            watched.looks.push(Look { operation, file, answered });
        }
        Ok(())
    });
    let (mut store, contents) = Store::open(directory.path(), &owner(), gate).unwrap();
    let mut after = vec![Expected::of(contents)];
    watched.lock().unwrap().looks.clear();
    let (mut next, mut kept, mut term) = (0, 0, 1);
    let mut images = 0;
    for _ in 0..COMMITS {
        let ops = commit(&mut random, &mut next, &mut kept, &mut term);
        store.commit(&ops).unwrap();
        let mut expected = after.last().unwrap().clone();
        ops.iter().for_each(|op| expected.perform(op));
        after.push(expected);
        let looks = {
            let mut watched = watched.lock().unwrap();
            watched.answered += 1;
            // What was written last is seen before the next one only.
            let mut looks = std::mem::take(&mut watched.looks);
            let file = std::fs::read(file(directory.path())).unwrap();
            looks.push(Look { operation: Operation::Write, file, answered: watched.answered });
            looks
        };
        let mut moments: Vec<usize> = (1..IMAGES).map(|_| random(looks.len() as u64) as usize).collect();
        moments.push(looks.len() - 1);
        for at in moments {
            let crashed = tempfile::tempdir().unwrap();
            std::fs::create_dir(crashed.path().join("metadata")).unwrap();
            std::fs::write(file(crashed.path()), image(&looks, at, &mut random)).unwrap();
            let opened = Store::open(crashed.path(), &owner(), Arc::new(|_| Ok(())));
            let (_, contents) =
                opened.unwrap_or_else(|error| panic!("seed {seed}, commit {}: {error}", looks[at].answered));
            let found = Expected::of(contents);
            let answered = looks[at].answered;
            let may_be = &after[answered..after.len().min(answered + 2)];
            assert!(
                may_be.contains(&found),
                "seed {seed}, before operation {at} of commit {answered}: {found:?}"
            );
            images += 1;
        }
    }
    images
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_power_cut_leaves_what_was_answered() {
    let seeds = setting("RINGLOG_METADATA_CRASH_SEEDS", 1);
    let first = setting("RINGLOG_METADATA_CRASH_FIRST", 0);
    let images: usize = (first..first + seeds).map(life).sum();
    println!("{images} crash images of the metadata store in {seeds} lives, 0 lost, 0 misjudged");
}
