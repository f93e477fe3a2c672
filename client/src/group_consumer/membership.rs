//! A member of a group as its coordinator knows it: heartbeats in the background, and what they bring.
//!
//! Owner: one task per group consumer sends heartbeats; the consumer looks at the shared [`Member`] whenever it is
//! polled. Lifecycle: joins at once → heartbeats → leaves when it is closed; joins anew whenever it is fenced.
//! Invariants: never two heartbeats at once; a heartbeat's epoch and its `owned` are read under one lock, and a
//! partition enters `owned` under that lock before it is used and leaves it after its last use, so that no heartbeat gives
//! up what is in use; every loss raises `generation`, and nothing of an older generation is used, handed out or
//! committed. Without an answer for the session timeout, counted from when the answered heartbeat was sent, the member
//! holds itself to be out before the coordinator does. Absent on purpose: records and offsets.

use super::{GroupConfig, GroupError};
use crate::client::ClientError;
use crate::coordinator::{Coordinator, is_fenced, may_pass, wait_of};
use crate::group_request::{
    GroupTopic, Heartbeat, HeartbeatReply, JOIN_EPOCH, LEAVE_EPOCH, LEAVE_STATIC_EPOCH,
};
use crate::reply::Reply;
use crate::request::{Request, TopicId};
use schema::error_code::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Tries of the heartbeat that leaves.
const LEAVE_TRIES: u32 = 5;

/// A partition by its topic's identity.
pub(crate) type Key = (TopicId, u32);

/// What task and consumer share.
pub(crate) struct Member {
    /// Rises whenever everything held is lost.
    pub generation: u64,
    /// Of the latest answer; 0 = not in the group.
    pub epoch: i32,
    /// All that may be held, with the topics' names.
    pub assignment: BTreeMap<Key, Arc<str>>,
    /// All that is in use.
    pub owned: BTreeSet<Key>,
    /// Why it is over.
    pub failed: Option<GroupError>,
    /// The session is good until then; `None` = not in the group.
    lease_ends: Option<Instant>,
    session_timeout: Duration,
    topics: Vec<String>,
    pattern: Option<String>,
    /// Rises with every new subscription.
    subscription: u64,
    subscription_told: u64,
    is_polling: bool,
    polled_at: Instant,
    /// Out of the group because nobody polls.
    is_dormant: bool,
    leaving: Option<i32>,
}

impl Member {
    /// Everything held is somebody else's from now on; joins anew.
    fn lose(&mut self) {
        self.generation += 1;
        self.epoch = JOIN_EPOCH;
        self.assignment.clear();
        self.owned.clear();
        self.lease_ends = None;
    }
}

/// See the module.
pub(crate) struct Membership {
    pub config: GroupConfig,
    pub coordinator: Coordinator,
    /// A random UUID.
    pub member_id: String,
    member: Mutex<Member>,
    /// The consumer has something to look at.
    pub news: Notify,
    /// The next heartbeat is due now.
    wake: Notify,
}

/// A heartbeat and what it was sent for.
struct Beat {
    heartbeat: Heartbeat,
    generation: u64,
    subscription: u64,
}

impl Membership {
    pub(crate) fn new(config: GroupConfig, coordinator: Coordinator) -> Self {
        let member = Member {
            generation: 0,
            epoch: JOIN_EPOCH,
            assignment: BTreeMap::new(),
            owned: BTreeSet::new(),
            failed: None,
            lease_ends: None,
            session_timeout: config.session_timeout,
            topics: config.topics.clone(),
            pattern: config.pattern.clone(),
            subscription: 0,
            subscription_told: 0,
            is_polling: false,
            polled_at: Instant::now(),
            is_dormant: false,
            leaving: None,
        };
        Self {
            config,
            coordinator,
            member_id: random_uuid(),
            member: Mutex::new(member),
            news: Notify::new(),
            wake: Notify::new(),
        }
    }

    /// The member, after a look at whether its session is over.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Member> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        if member.lease_ends.is_some_and(|end| end <= Instant::now()) {
            member.lose();
            self.wake.notify_one();
        }
        member
    }

    /// The latest epoch, if it is still that life.
    pub(crate) fn epoch_of(&self, generation: u64) -> Option<i32> {
        let member = self.lock();
        (member.generation == generation).then_some(member.epoch)
    }

    /// A heartbeat is due now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn poll_begins(&self) {
        let mut member = self.lock();
        member.is_polling = true;
        if member.is_dormant {
            member.is_dormant = false;
            self.wake.notify_one();
        }
    }

    pub(crate) fn poll_ends(&self) {
        let mut member = self.lock();
        member.is_polling = false;
        member.polled_at = Instant::now();
    }

    pub(crate) fn subscribe(&self, topics: Vec<String>, pattern: Option<String>) {
        let mut member = self.lock();
        (member.topics, member.pattern) = (topics, pattern);
        member.subscription += 1;
        self.wake.notify_one();
    }

    /// Asks the task to leave, for good or, a static member, for a while.
    pub(crate) fn leave(&self, for_good: bool) {
        let is_static = self.config.instance_id.is_some();
        let epoch = if is_static && !for_good { LEAVE_STATIC_EPOCH } else { LEAVE_EPOCH };
        self.lock().leaving = Some(epoch);
        self.wake.notify_one();
    }

    /// The task: until it has left, or cannot go on.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            if self.member.lock().unwrap_or_else(PoisonError::into_inner).leaving.is_some() {
                return self.say_goodbye(LEAVE_TRIES).await;
            }
            if self.is_dormant() {
                self.say_goodbye(1).await;
                // A poll, or the end.
                self.wait_for_poll().await;
                continue;
            }
            let beat = self.beat();
            let sent_at = Instant::now();
            let (generation, subscription) = (beat.generation, beat.subscription);
            let timeout =
                (self.config.session_timeout / 2).min(self.coordinator.cluster.config.request_timeout);
            let request = Request::Heartbeat(Box::new(beat.heartbeat));
            let answer = self.coordinator.try_once(request, timeout).await;
            let wait = match answer {
                Ok(Reply::Heartbeat(reply)) => {
                    failures = 0;
                    self.answered(generation, subscription, sent_at, reply)
                }
                Ok(_) => self.fail(ClientError::UnexpectedReply { request: "ConsumerGroupHeartbeat" }.into()),
                Err(error) => {
                    failures += 1;
                    self.refused(generation, error, failures)
                }
            };
            let Some(wait) = wait else { return };
            let _ = tokio::time::timeout(wait, self.wake.notified()).await;
        }
    }

    /// Whether nobody has polled for too long; then everything is lost.
    fn is_dormant(&self) -> bool {
        let mut member = self.lock();
        let idle = !member.is_polling && member.polled_at.elapsed() > self.config.max_poll_interval;
        if idle && !member.is_dormant {
            member.is_dormant = true;
            member.lose();
            self.news.notify_one();
        }
        member.is_dormant
    }

    async fn wait_for_poll(&self) {
        loop {
            {
                let member = self.lock();
                if !member.is_dormant || member.leaving.is_some() {
                    return;
                }
            }
            self.wake.notified().await;
        }
    }

    fn beat(&self) -> Beat {
        let member = self.lock();
        let is_join = member.epoch == JOIN_EPOCH;
        let config = &self.config;
        let restated = is_join || member.subscription != member.subscription_told;
        let mut owned: Vec<GroupTopic> = Vec::new();
        for (id, partition) in &member.owned {
            match owned.last_mut() {
                Some(topic) if topic.id == *id => topic.partitions.push(*partition),
                _ => owned.push(GroupTopic { id: *id, name: String::new(), partitions: vec![*partition] }),
            }
        }
        let heartbeat = Heartbeat {
            group: config.group.clone(),
            member_id: self.member_id.clone(),
            member_epoch: member.epoch,
            instance_id: config.instance_id.clone(),
            rack: config.consumer.rack.clone().filter(|_| is_join),
            rebalance_timeout_ms: if is_join { millis(config.rebalance_timeout) } else { 0 },
            session_timeout_ms: if is_join { millis(config.session_timeout) } else { 0 },
            topics: restated.then(|| member.topics.clone()),
            pattern: restated.then(|| member.pattern.clone().unwrap_or_default()),
            assignor: config.assignor.map(|assignor| assignor.name().to_owned()).filter(|_| is_join),
            owned: Some(owned),
        };
        Beat { heartbeat, generation: member.generation, subscription: member.subscription }
    }

    /// How long to wait for the next heartbeat.
    fn answered(
        &self,
        generation: u64,
        subscription: u64,
        sent_at: Instant,
        reply: HeartbeatReply,
    ) -> Option<Duration> {
        let mut member = self.lock();
        if member.generation != generation {
            // Of a life that is over: what it grants was never taken.
            return Some(Duration::ZERO);
        }
        member.epoch = reply.member_epoch;
        if !reply.session_timeout.is_zero() {
            member.session_timeout = reply.session_timeout;
        }
        member.lease_ends = Some(sent_at + member.session_timeout);
        member.subscription_told = subscription;
        if let Some(assignment) = reply.assignment {
            member.assignment = assignment
                .into_iter()
                .flat_map(|topic| {
                    let name: Arc<str> = topic.name.into();
                    topic.partitions.into_iter().map(move |partition| ((topic.id, partition), name.clone()))
                })
                .collect();
            self.news.notify_one();
        }
        Some(reply.interval)
    }

    fn refused(&self, generation: u64, error: ClientError, failures: u32) -> Option<Duration> {
        let wait = wait_of(&error).max(self.coordinator.cluster.config.backoff(failures));
        if is_fenced(&error) {
            let mut member = self.lock();
            if member.generation == generation {
                member.lose();
                self.news.notify_one();
            }
            return Some(Duration::ZERO).filter(|_| failures < 3).or(Some(wait));
        }
        // A static member that comes back must wait until the coordinator has given up its old self.
        if may_pass(&error) {
            // The lock looks whether the session is over.
            if self.lock().generation != generation {
                self.news.notify_one();
            }
            return Some(wait);
        }
        let group = self.config.group.clone();
        self.fail(match error {
            ClientError::Broker(error) if error.code == ErrorCode::FencedInstanceId => {
                GroupError::FencedInstance {
                    group,
                    instance: self.config.instance_id.clone().unwrap_or_default(),
                }
            }
            ClientError::Broker(error) => GroupError::Refused { group, error },
            error => GroupError::Client(error),
        })
    }

    fn fail(&self, error: GroupError) -> Option<Duration> {
        let mut member = self.lock();
        member.lose();
        member.failed = Some(error);
        self.news.notify_one();
        None
    }

    async fn say_goodbye(&self, tries: u32) {
        let Beat { mut heartbeat, .. } = self.beat();
        heartbeat.member_epoch = self.lock().leaving.unwrap_or(match &self.config.instance_id {
            Some(_) => LEAVE_STATIC_EPOCH,
            None => LEAVE_EPOCH,
        });
        heartbeat.owned = None;
        for attempt in 1..=tries {
            let request = Request::Heartbeat(Box::new(heartbeat.clone()));
            match self.coordinator.try_once(request, Duration::from_secs(5)).await {
                Err(error) if may_pass(&error) && attempt < tries => {
                    let backoff = self.coordinator.cluster.config.backoff(attempt);
                    tokio::time::sleep(wait_of(&error).max(backoff)).await;
                }
                // Whoever is not in the group need not leave it.
                _ => return,
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A UUID of version 4. Its bits are the keys that the standard library takes from the system.
fn random_uuid() -> String {
    let word = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    let seed = word() ^ word().rotate_left(32);
    // The keys of one thread follow each other: spread by a generator, and by the process.
    let mut random = fastrand::Rng::with_seed(seed ^ u64::from(std::process::id()).rotate_left(48));
    let bits = (u128::from(word() ^ random.u64(..)) << 64) | u128::from(word() ^ random.u64(..));
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let text = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_and_differ() {
        let ids: BTreeSet<String> = (0..1000).map(|_| random_uuid()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let bytes = id.as_bytes();
            assert_eq!(bytes.len(), 36, "{id}");
            assert!([8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-') && bytes[14] == b'4', "{id}");
            assert!(b"89ab".contains(&bytes[19]), "{id}");
        }
    }
}
