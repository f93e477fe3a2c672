//! What a metadata thread shares between its tasks: who it is, where the others are, what they say.

use super::machine::Applied;
use super::network::{CallError, Kind, Link};
use super::raft::{LogId, Raft};
use super::{MetadataError, codec};
use crate::mailbox::Mailboxes;
use logic::ids::{BrokerEpoch, BrokerId};
use logic::metadata::Image;
use logic::metadata::controller::Heartbeat;
use openraft::Instant as _;
use schema::consensus as fb;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc;

/// What the controller's task is told by others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    Heartbeat(Heartbeat),
    Refused(BrokerId),
}

/// Where a broker is, as was heard.
struct Heard {
    address: String,
    /// It has said so itself, when its registration was this one: it comes back, and is registered anew later.
    said_after: Option<BrokerEpoch>,
}

/// See the [module](self).
pub(super) struct Peers {
    me: BrokerId,
    image: Arc<RwLock<Arc<Image>>>,
    /// Where brokers are that are not registered, or not there any more.
    heard: Mutex<BTreeMap<u64, Heard>>,
    links: Mutex<BTreeMap<(u64, Kind), Arc<Link>>>,
    words: mpsc::Sender<Word>,
}

impl Peers {
    pub fn new(me: BrokerId, image: Arc<RwLock<Arc<Image>>>, words: mpsc::Sender<Word>) -> Arc<Self> {
        Arc::new(Self { me, image, heard: Mutex::default(), links: Mutex::default(), words })
    }

    pub fn me(&self) -> BrokerId {
        self.me
    }

    pub fn image(&self) -> Arc<Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where `target` is said to be, unless it is known better.
    pub fn learn(&self, target: u64, address: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(target).or_insert_with(|| Heard { address: address.to_owned(), said_after: None });
    }

    /// `target` says itself where it is.
    pub fn moved(&self, target: u64, address: &str) {
        let image = self.image();
        let registered = u32::try_from(target).ok().and_then(|id| image.broker(BrokerId::new(id)));
        let said_after = Some(registered.map_or(BrokerEpoch::default(), |broker| broker.epoch));
        let heard = Heard { address: address.to_owned(), said_after };
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(target, heard);
    }

    /// Where `target` is: as it has said since it registered, by that registration, else as heard. With an empty disk it
    /// needs the log before it can register, wherever it is now.
    pub fn address(&self, target: u64) -> Option<String> {
        let image = self.image();
        let registered = u32::try_from(target).ok().and_then(|id| image.broker(BrokerId::new(id)));
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = heard.get(&target);
        match registered.filter(|broker| !broker.registration.host.is_empty()) {
            Some(broker) if heard.is_none_or(|heard| heard.said_after < Some(broker.epoch)) => {
                Some(format!("{}:{}", broker.registration.host, broker.registration.port))
            }
            _ => heard.map(|heard| heard.address.clone()),
        }
    }

    pub fn link(&self, target: u64, kind: Kind) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.entry((target, kind)).or_insert_with(|| Arc::new(Link::new(target))).clone()
    }

    /// Nobody listens at `target`'s port.
    pub fn note_refused(&self, target: u64) {
        if let Ok(target) = u32::try_from(target) {
            self.tell(Word::Refused(BrokerId::new(target)));
        }
    }

    /// Tells the controller; what does not fit is said again soon.
    pub fn tell(&self, word: Word) {
        let _ = self.words.try_send(word);
    }
}

/// What asking the leader came to.
pub(super) enum Asked {
    Committed(LogId),
    Heard,
    /// The life of the broker that asks is over.
    Removed,
    Joined,
    /// It is not the leader; where that is, if it knows.
    Redirected(Option<(u64, String)>),
    Refused(String),
    Unknown(String),
}

impl Asked {
    pub fn of(bytes: &[u8]) -> Result<Self, codec::Malformed> {
        codec::read_response(bytes, |response| {
            Ok(match response.answer_type() {
                fb::Answer::Submitted => {
                    let submitted = response.answer_as_submitted();
                    match submitted {
                        Some(submitted) => Self::Committed(codec::log_id_of(submitted.id())),
                        None => Self::Unknown("an empty answer".to_owned()),
                    }
                }
                fb::Answer::Heard => Self::Heard,
                fb::Answer::Removed => Self::Removed,
                fb::Answer::Joined => Self::Joined,
                fb::Answer::Redirect => {
                    Self::Redirected(response.answer_as_redirect().and_then(|redirect| {
                        let address = redirect.address().unwrap_or_default().to_owned();
                        redirect.known().then(|| (redirect.leader(), address))
                    }))
                }
                fb::Answer::Refused => Self::Refused(
                    response
                        .answer_as_refused()
                        .map_or_else(String::new, |refused| refused.message().to_owned()),
                ),
                fb::Answer::Unknown => Self::Unknown(
                    response
                        .answer_as_unknown()
                        .map_or_else(String::new, |unknown| unknown.message().to_owned()),
                ),
                other => Self::Unknown(format!("the answer {}", other.0)),
            })
        })
    }
}

/// The tasks' common ground.
#[derive(Clone)]
pub(super) struct Member {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub applied: Arc<Applied>,
    pub log: super::log::Log,
    pub settings: super::ClusterConfig,
    /// Where the others find this broker, host:port.
    pub address: String,
    /// The way to the shards.
    pub mailboxes: Mailboxes,
    /// Whether it is a member, as far as it has been told: see [`Member::is_admitted`].
    pub admitted: Arc<AtomicBool>,
}

impl Member {
    /// The leader as far as this broker knows.
    pub fn leader(&self) -> Option<u64> {
        use openraft::async_runtime::WatchReceiver;
        self.raft.server_metrics().borrow_watched().current_leader
    }

    pub fn leads(&self) -> bool {
        self.leader() == Some(u64::from(self.peers.me().get()))
    }

    /// Of who leads: whether a majority has answered it lately. One that was cut off leads on, and decides nothing.
    pub fn has_majority(&self) -> bool {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        let alone = voters.next() == Some(u64::from(self.peers.me().get())) && voters.next().is_none();
        let answered = metrics.last_quorum_acked.as_deref();
        alone || answered.is_some_and(|at| at.elapsed() < self.settings.contact())
    }

    /// Whether this broker takes part in Raft. One with an empty disk does not before it is let in: its number may be
    /// that of a member, which those who lead take for one that has what it had.
    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Asks `target`.
    pub async fn ask(
        &self,
        target: u64,
        patience: Duration,
        ask: impl FnOnce(&mut codec::Builder) -> (fb::Ask, flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset>),
    ) -> Result<Asked, CallError> {
        let link = self.peers.link(target, Kind::Requests);
        let bytes = link.call(&self.peers, patience, ask).await?;
        Ok(Asked::of(&bytes).unwrap_or_else(|error| Asked::Unknown(error.to_string())))
    }

    /// Why nothing can be written just now.
    pub fn full(&self) -> Option<MetadataError> {
        self.log.full().map(MetadataError::Unavailable)
    }
}
