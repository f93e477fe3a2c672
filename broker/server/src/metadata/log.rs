//! Raft's log: in memory since the last snapshot, and written by a thread of its own.
//!
//! Appends are in memory at once and told of when the device has them. The writer takes what waits and makes it
//! one commit, so a burst of commands costs as many syncs as one. When the disk is full it tries again until there
//! is space; commands that come meanwhile are refused by [`Log::full`]'s word.
//!
//! Invariant: writes reach the device in the order in which Raft asked for them.
//! Invariant: what is said to be committed is never stored ahead of the entries that it names: it goes with the next
//! write.

use super::panics;
use super::raft::{Entry, LogId, Types, Vote};
use super::store::{CommitError, Contents, Op, Store, StoredSnapshot};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the writer waits for space before it tries again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// Bytes of commands that one message to a follower carries, unless a single one is larger.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Who is told when a write is on the device.
enum Done {
    Append(IOFlushed<Types>),
    Waiter(oneshot::Sender<Result<(), io::Error>>),
    Nobody,
}

struct Job {
    ops: Vec<Op>,
    done: Done,
}

#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry of the newest snapshot.
    snapshot: Option<LogId>,
}

/// The log; cheap to clone.
#[derive(Clone)]
pub(super) struct Log {
    memory: Arc<Mutex<Memory>>,
    jobs: Sender<Job>,
    full: Arc<Mutex<Option<String>>>,
}

/// The thread that writes.
pub(super) struct Writer(JoinHandle<()>);

impl Log {
    /// The log that `contents` holds, written to `store`.
    pub fn start(store: Store, contents: &mut Contents) -> io::Result<(Self, Writer)> {
        let entries = std::mem::take(&mut contents.entries);
        let memory = Memory {
            entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
            vote: contents.vote,
            committed: contents.committed,
            purged: contents.purged,
            snapshot: contents.snapshot.as_ref().and_then(|snapshot| snapshot.id),
        };
        let (jobs, queue) = channel();
        let full = Arc::new(Mutex::new(None));
        let said = full.clone();
        let thread = std::thread::Builder::new()
            .name("ringlog-meta-log".to_owned())
            .spawn(move || write_all(store, &queue, &said))?;
        Ok((Self { memory: Arc::new(Mutex::new(memory)), jobs, full }, Writer(thread)))
    }

    /// Why the disk takes nothing just now.
    pub fn full(&self) -> Option<String> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the disk takes nothing; why.
    pub async fn no_room(&self) -> String {
        loop {
            if let Some(why) = self.full() {
                return why;
            }
            tokio::time::sleep(SPACE_RETRY).await;
        }
    }

    /// Whether it has never been part of a group.
    pub fn is_pristine(&self) -> bool {
        let memory = self.memory();
        memory.vote.is_none() && memory.entries.is_empty() && memory.purged.is_none()
    }

    /// Stores a snapshot, and waits until the device has it. One that was begun before a newer one came from the leader is
    /// dropped: the log is cut up to the newer one.
    pub async fn store_snapshot(&self, snapshot: StoredSnapshot) -> Result<(), io::Error> {
        {
            let mut memory = self.memory();
            if memory.snapshot > snapshot.id {
                return Ok(());
            }
            memory.snapshot = snapshot.id;
        }
        self.write(vec![Op::Snapshot(snapshot)]).await
    }

    /// Notes durably that this broker begins to join a cluster, or has joined.
    pub async fn note_joining(&self, joining: bool) -> Result<(), io::Error> {
        self.write(vec![Op::Joining(joining)]).await
    }

    /// Notes durably that this broker was removed from its cluster.
    pub async fn note_removed(&self) -> Result<(), io::Error> {
        self.write(vec![Op::Removed]).await
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `ops` to the writer, with what is committed by now.
    fn send(&self, mut ops: Vec<Op>, done: Done) -> Result<(), io::Error> {
        if let Some(committed) = self.memory().committed {
            ops.push(Op::Committed(Some(committed)));
        }
        self.jobs.send(Job { ops, done }).map_err(|_| io::Error::other("the metadata store is closed"))
    }

    async fn write(&self, ops: Vec<Op>) -> Result<(), io::Error> {
        let (done, answer) = oneshot::channel();
        self.send(ops, Done::Waiter(done))?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the metadata store is closed")))
    }
}

impl Writer {
    /// Waits until everything is written. All [`Log`]s must be gone.
    pub fn join(self) {
        // A panic of the thread has ended the process.
        let _ = self.0.join();
    }
}

fn write_all(mut store: Store, queue: &Receiver<Job>, full: &Mutex<Option<String>>) {
    panics::end_the_process();
    while let Ok(first) = queue.recv() {
        let mut ops = first.ops;
        let mut waiting = vec![first.done];
        while let Ok(next) = queue.try_recv() {
            ops.extend(next.ops);
            waiting.push(next.done);
        }
        let mut closing = false;
        let result = loop {
            match store.commit(&ops) {
                Ok(()) => break Ok(()),
                Err(CommitError::Broken(why)) => break Err(why),
                Err(CommitError::NoSpace(why)) if closing => break Err(why),
                Err(CommitError::NoSpace(why)) => {
                    let mut said = full.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.replace(why.clone()).is_none() {
                        tracing::error!(
                            "the metadata store waits for space on its disk, and nothing is changed before: {why}"
                        );
                    }
                }
            }
            match queue.recv_timeout(SPACE_RETRY) {
                Ok(next) => {
                    ops.extend(next.ops);
                    waiting.push(next.done);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // One more try, and no more.
                Err(RecvTimeoutError::Disconnected) => closing = true,
            }
        };
        if full.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() && result.is_ok() {
            tracing::info!("the metadata store has space again");
        }
        if let Err(why) = &result {
            tracing::error!("the metadata store failed: {why}");
        }
        for done in waiting {
            let result = result.clone().map_err(io::Error::other);
            match done {
                Done::Append(callback) => callback.io_completed(result),
                // Nobody waits any more if this fails.
                Done::Waiter(waiter) => drop(waiter.send(result)),
                Done::Nobody => {}
            }
        }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        // BTreeMap panics where the start lies behind the end.
        let start = match bounds.0 {
            Bound::Included(start) => start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match bounds.1 {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => end,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        Ok(self.memory().entries.range(start..end).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut bytes = 0;
        let mut some = Vec::new();
        for (_, entry) in self.memory().entries.range(start..end.max(start)) {
            if let openraft::EntryPayload::Normal(proposal) = &entry.payload {
                bytes += proposal.0.len();
            }
            if bytes > MESSAGE_BYTES_MAX && !some.is_empty() {
                break;
            }
            some.push(entry.clone());
        }
        Ok(some)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let memory = self.memory();
        let last = memory.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(vec![Op::Vote(*vote)]).await?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let ops = entries.iter().cloned().map(Op::Append).collect();
        self.memory().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        self.send(ops, Done::Append(callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        self.memory().entries.split_off(&from);
        self.send(vec![Op::Truncate(from)], Done::Nobody)
    }

    async fn purge(&mut self, to: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.memory();
            memory.purged = memory.purged.max(Some(to));
            memory.entries = memory.entries.split_off(&(to.index + 1));
        }
        self.send(vec![Op::Purge(to)], Done::Nobody)
    }
}
