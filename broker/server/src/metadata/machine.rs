//! The state machine: commands → image, published to all shards.
//!
//! The image is in memory; the store has a snapshot of it and the log since. Applied in the order of the log, a
//! command gives the same on every broker, so its outcome is read here, wherever it was asked for
//! ([`Applied::outcome`]).

use super::codec::Malformed;
use super::log::Log;
use super::raft::{LogId, Snapshot, SnapshotMeta, StoredMembership, Types};
use super::store::StoredSnapshot;
use super::{MetadataError, Publish};
use futures_util::{Stream, StreamExt};
use logic::metadata::{Command, Image, Outcome, snapshot};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{Notify, watch};

/// Entries since the last snapshot, of this life or of earlier ones, before there is another, at least. As many are
/// kept in the log for who lags.
pub(super) const SNAPSHOT_EVERY: u64 = 1024;
/// Outcomes of the newest commands, kept for who asked for them.
const OUTCOMES_KEPT: usize = 4096;

/// What a command did, or why it was refused.
type Verdict = Result<Outcome, MetadataError>;

/// What is applied, for others than the machine.
pub(super) struct Applied {
    image: Arc<RwLock<Arc<Image>>>,
    outcomes: Mutex<VecDeque<(LogId, Verdict)>>,
    /// Entries applied: the index after the last.
    next: watch::Sender<u64>,
    /// Enough entries were applied since the last snapshot.
    log_is_long: Notify,
}

impl Applied {
    pub fn new(image: Arc<RwLock<Arc<Image>>>) -> Arc<Self> {
        let next = watch::channel(0).0;
        Arc::new(Self { image, outcomes: Mutex::default(), next, log_is_long: Notify::new() })
    }

    /// Waits until entry `id` is applied and published here, and says what it did. `None`: a snapshot went past it, or
    /// another entry took its place.
    pub async fn outcome(&self, id: LogId) -> Option<Verdict> {
        let mut next = self.next.subscribe();
        next.wait_for(|next| *next > id.index).await.ok()?;
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let at = outcomes.binary_search_by_key(&id.index, |(id, _)| id.index).ok()?;
        let (found, outcome) = &outcomes[at];
        (*found == id).then(|| outcome.clone())
    }

    /// Changes with every entry that is applied.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// Waits until there should be a snapshot.
    pub async fn log_is_long(&self) {
        self.log_is_long.notified().await;
    }

    fn publish(&self, image: Arc<Image>, publish: &Publish) {
        *self.image.write().unwrap_or_else(PoisonError::into_inner) = image.clone();
        publish(image);
    }
}

/// See the [module](self).
pub(super) struct Machine {
    log: Log,
    applied: Arc<Applied>,
    publish: Arc<Mutex<Publish>>,
    image: Arc<Image>,
    last: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<StoredSnapshot>,
}

impl Machine {
    /// The machine as of the stored snapshot; what is committed since is applied again by Raft.
    pub fn new(
        log: Log,
        applied: Arc<Applied>,
        publish: Arc<Mutex<Publish>>,
        stored: Option<StoredSnapshot>,
    ) -> Result<Self, String> {
        let mut machine = Self {
            log,
            applied,
            publish,
            image: Arc::default(),
            last: None,
            membership: StoredMembership::default(),
            snapshot: None,
        };
        if let Some(stored) = stored {
            machine.image = Arc::new(snapshot::decode(&stored.image).map_err(|error| error.to_string())?);
            machine.last = stored.id;
            machine.membership = stored.membership.clone();
            machine.snapshot = Some(stored);
            machine.show();
        }
        Ok(machine)
    }

    /// Publishes the image, and lets those go on who wait for what is in it.
    fn show(&self) {
        let publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        self.applied.publish(self.image.clone(), &publish);
        drop(publish);
        self.applied.next.send_replace(self.last.map_or(0, |last| last.index + 1));
        // Again with every entry: who asks for it while one is being made is not heard.
        if self.is_log_long() {
            self.applied.log_is_long.notify_one();
        }
    }

    /// Whether a snapshot is worth making. Only a large image is worth a longer log.
    fn is_log_long(&self) -> bool {
        let entries = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        let since = entries(self.last) - entries(self.snapshot.as_ref().and_then(|snapshot| snapshot.id));
        since >= SNAPSHOT_EVERY.max(self.image.topic_count() as u64)
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() }
    }

    fn note(&self, id: LogId, result: Verdict) {
        let mut outcomes = self.applied.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if outcomes.len() == OUTCOMES_KEPT {
            outcomes.pop_front();
        }
        outcomes.push_back((id, result));
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Arc<[u8]>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut responders = Vec::new();
        let mut failed = Ok(());
        while let Some(next) = entries.next().await {
            let (entry, responder) = match next {
                Ok(next) => next,
                Err(error) => {
                    failed = Err(error);
                    break;
                }
            };
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(group) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), group);
                }
                EntryPayload::Normal(proposal) => {
                    // Every broker must do the same, and this one cannot.
                    let command = Command::decode(&proposal.0).unwrap_or_else(|error| {
                        let index = entry.log_id.index;
                        crate::fatal(&format!("the metadata's entry {index} cannot be applied: {error}"))
                    });
                    let result = self.image.apply(&command).map(|(image, outcome)| {
                        self.image = Arc::new(image);
                        outcome
                    });
                    self.note(entry.log_id, result.map_err(MetadataError::from));
                }
            }
            self.last = Some(entry.log_id);
            responders.extend(responder);
        }
        // Published before anybody is answered.
        self.show();
        responders.into_iter().for_each(|responder| responder.send(()));
        failed
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // Asked for once too often, it would only be written again.
        if !force && !self.is_log_long() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let image: Arc<[u8]> = snapshot::encode(&self.image).into();
        let meta = self.meta();
        let stored = StoredSnapshot { id: self.last, membership: self.membership.clone(), image };
        self.snapshot = Some(stored.clone());
        Builder { log: self.log.clone(), meta, stored }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Arc<[u8]>) -> Result<(), io::Error> {
        let decoded =
            snapshot::decode(&image).map_err(|error| io::Error::other(Malformed(error.to_string())))?;
        let stored = StoredSnapshot { id: meta.last_log_id, membership: meta.last_membership.clone(), image };
        self.log.store_snapshot(stored.clone()).await?;
        self.image = Arc::new(decoded);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some(stored);
        self.show();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshot.as_ref().map(|stored| Snapshot {
            meta: SnapshotMeta { last_log_id: stored.id, last_membership: stored.membership.clone() },
            snapshot: stored.image.clone(),
        }))
    }
}

/// Makes a snapshot durable.
pub(super) struct Builder {
    log: Log,
    meta: SnapshotMeta,
    stored: StoredSnapshot,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Arc<[u8]>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.log.store_snapshot(self.stored.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: self.stored.image.clone() })
    }
}
