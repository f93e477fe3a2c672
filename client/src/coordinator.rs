//! The way to one group's coordinator: found by the group's id, kept as a connection, found anew when it moves.
//!
//! Owner: one group consumer shares one [`Coordinator`] among its heartbeats, commits and questions for offsets; an
//! admin makes one per call. Lifecycle: connects when first asked; a connection that broke, or a broker that is not
//! the coordinator any more, is forgotten and looked for again at the next request. Invariant: what is asked here does
//! no harm twice, so that [`Coordinator::ask`] may repeat it. Absent on purpose: what the answers mean.

use crate::client::ClientError;
use crate::cluster::{Cluster, Home};
use crate::connection::{Connection, ConnectionError};
use crate::reply::Reply;
use crate::request::Request;
use schema::OFFSETS_TOPIC;
use schema::error_code::{Class, ErrorCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module.
pub(crate) struct Coordinator {
    pub cluster: Arc<Cluster>,
    pub group: Arc<str>,
    connection: tokio::sync::Mutex<Option<Found>>,
}

/// The coordinator as it was found.
#[derive(Clone)]
struct Found {
    connection: Connection,
    /// The group's partition of the offsets topic, and who led it.
    partition: u32,
    home: Home,
}

impl Coordinator {
    pub(crate) fn new(cluster: Arc<Cluster>, group: &str) -> Self {
        Self { cluster, group: group.into(), connection: tokio::sync::Mutex::default() }
    }

    async fn find(&self) -> Result<Found, ClientError> {
        let mut slot = self.connection.lock().await;
        if let Some(found) = slot.as_ref().filter(|found| !found.connection.is_closed()) {
            return Ok(found.clone());
        }
        *slot = None;
        // Whoever comes here has no coordinator, or lost it: what is remembered is of no use.
        let topic = self.cluster.refresh(OFFSETS_TOPIC, Instant::now()).await?;
        let partition = schema::coordinator_partition(&self.group, topic.places.len() as u32);
        let home = topic.leader(partition)?;
        // A connection of its own: a heartbeat must not stand behind somebody's large batches.
        let connection = self.cluster.open(home).await?;
        Ok(slot.insert(Found { connection, partition, home }).clone())
    }

    async fn forget(&self) {
        *self.connection.lock().await = None;
    }

    /// One try.
    pub(crate) async fn try_once(&self, request: Request, timeout: Duration) -> Result<Reply, ClientError> {
        let Found { connection, partition, home } = self.find().await?;
        let answer = tokio::select! {
            answer = connection.request(request, timeout) => answer,
            () = self.cluster.moved_away(OFFSETS_TOPIC, partition, home) => {
                connection.give_up("it does not answer, and another broker coordinates the group by now");
                Err(ConnectionError::Lost {
                    address: connection.address().into(),
                    reason: "another broker coordinates the group by now".into(),
                })
            }
        };
        match answer {
            Ok(response) => match response.into_result() {
                Ok(reply) => Ok(reply),
                Err(error) => {
                    if error.class() == Class::RefreshAndRetry {
                        self.forget().await;
                    }
                    Err(error.into())
                }
            },
            Err(error) => {
                if !matches!(error, ConnectionError::TooManyPending { .. }) {
                    self.forget().await;
                }
                Err(error.into())
            }
        }
    }

    /// Tries until it is answered for good, at most until `deadline`.
    pub(crate) async fn ask(&self, request: Request, deadline: Instant) -> Result<Reply, ClientError> {
        let mut attempt = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.min(self.cluster.config.request_timeout).max(Duration::from_millis(1));
            let error = match self.try_once(request.clone(), timeout).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            attempt += 1;
            let wait = wait_of(&error).max(self.cluster.config.backoff(attempt));
            if !may_pass(&error) || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// Whether the same request can succeed later.
pub(crate) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Connection(error) => !matches!(error, ConnectionError::RequestTooLarge { .. }),
        // The offsets topic is made when it is asked for, and seen a little later.
        ClientError::UnknownTopic { .. }
        | ClientError::UnknownPartition { .. }
        | ClientError::NoLeader { .. }
        | ClientError::UnknownBroker { .. } => true,
        ClientError::Broker(error) => error.class() != Class::Fatal,
        ClientError::Config(_) | ClientError::UnexpectedReply { .. } => false,
    }
}

/// How long the broker asks to wait.
pub(crate) fn wait_of(error: &ClientError) -> Duration {
    match error {
        ClientError::Broker(error) => error.retry_after,
        _ => Duration::ZERO,
    }
}

/// Whether the coordinator says that this member is not in its group, or not as it believes.
pub(crate) fn is_fenced(error: &ClientError) -> bool {
    matches!(error.code(), Some(ErrorCode::UnknownMemberId | ErrorCode::FencedMemberEpoch))
}
