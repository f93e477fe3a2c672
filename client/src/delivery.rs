//! What becomes of a sent record: the future, the receipt, the error.
//!
//! Owner: one [`Outcome`] per batch, shared by the batch and the futures of its records, so that a
//! record costs no allocation of its own. Lifecycle: made with the batch, settled exactly once: by the
//! reply, by the deadline, or, as a last resort, by the batch being dropped. Invariant: every future
//! resolves as long as its batch is somewhere; a batch cannot vanish unsettled. Absent on purpose:
//! cancelling; dropping a future leaves its record to be sent.

use crate::client::ClientError;
use crate::connection::ConnectionError;
use crate::reply::{BrokerAnatomy, BrokerError, Durability};
use schema::error_code::ErrorCode;
use schema::record_batch::BatchError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Why a record was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// The topic could not be found, or its metadata could not be learnt.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The broker refused the batch; nothing was appended.
    #[error("topic '{topic}' partition {partition}: {error}")]
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What the broker said.
        error: BrokerError,
    },
    /// Not acknowledged within `delivery_timeout`. Where `outcome_unknown`, the record may or may not
    /// be in the log.
    #[error(
        "topic '{topic}' partition {partition}: not acknowledged within {waited:?}, {}{}",
        if *outcome_unknown { "it may or may not have been written: read back before sending again" } else { "and not written" },
        reason.as_ref().map(|reason| format!("; last: {reason}")).unwrap_or_default()
    )]
    TimedOut {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// `delivery_timeout`.
        waited: Duration,
        /// Whether the batch left this process at least once without a clear refusal.
        outcome_unknown: bool,
        /// What went wrong last, if anything did.
        reason: Option<Arc<str>>,
    },
    /// The connection broke after the batch was sent, and resending is off.
    #[error(
        "topic '{topic}' partition {partition}: {error}; the record may or may not have been written: read back before sending again"
    )]
    OutcomeUnknown {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What broke.
        error: Arc<str>,
    },
    /// The request could not be sent at all.
    #[error(transparent)]
    Connection(ConnectionError),
    /// One record is larger than the whole buffer.
    #[error("a record of {bytes} bytes does not fit buffer_memory ({limit} bytes); raise it")]
    RecordTooLarge {
        /// Upper bound of the encoded record.
        bytes: usize,
        /// `buffer_memory`, or what a batch's length field can say.
        limit: usize,
    },
    /// The topic keeps the latest record of each key, and the record has none. From `send` itself: it was not taken.
    #[error(
        "topic '{topic}' keeps the latest record of each key (cleanup.policy has compact): every record needs a key"
    )]
    KeyRequired {
        /// The topic.
        topic: Arc<str>,
    },
    /// [`crate::Producer::send_encoded`] was given something that is not one record batch.
    #[error("not one record batch: {0}")]
    InvalidBatch(BatchError),
    /// The broker acknowledged something else than what was sent.
    #[error(
        "the broker's acknowledgement does not match the request; upgrade the older of client and broker"
    )]
    UnexpectedReply,
    /// The producer was closed, or its runtime ended. From `send` itself: the record was not taken. From
    /// its future: the record may or may not have been written.
    #[error("the producer is closed")]
    Closed,
}

impl ProduceError {
    /// Whether the record may be in the log all the same.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            ProduceError::TimedOut { outcome_unknown, .. } => *outcome_unknown,
            ProduceError::OutcomeUnknown { .. } | ProduceError::UnexpectedReply => true,
            // The runtime may have ended with the batch on its way.
            ProduceError::Closed => true,
            ProduceError::Client(_)
            | ProduceError::Refused { .. }
            | ProduceError::Connection(_)
            | ProduceError::RecordTooLarge { .. }
            | ProduceError::KeyRequired { .. }
            | ProduceError::InvalidBatch(_) => false,
        }
    }

    /// The broker's error code, if a broker refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ProduceError::Client(error) => error.code(),
            ProduceError::Refused { error, .. } => Some(error.code),
            _ => None,
        }
    }
}

/// Where the time of one acknowledgement went. The client's two parts lie around the broker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anatomy {
    /// In this process: the batch's first record → its request handed to the connection.
    pub client_queue_ns: u64,
    /// Request handed to the connection → reply; contains the broker's share.
    pub round_trip_ns: u64,
    /// The broker's share, part by part.
    pub broker: BrokerAnatomy,
}

/// The acknowledgement of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The partition.
    pub partition: u32,
    /// The record's offset; [`Receipt::OFFSET_UNKNOWN`] with `acks` none, where nobody tells.
    pub offset: u64,
    /// The record's timestamp, milliseconds since 1970, as the producer set it.
    pub timestamp_ms: i64,
    /// The durability reached.
    pub durability: Durability,
    /// Every offset of the partition below this is on the leader's device.
    pub durable_end: u64,
    /// When the leader appended it, milliseconds since 1970.
    pub append_time_ms: i64,
    /// The broker had it from an earlier attempt, whose answer was lost.
    pub duplicate: bool,
    /// Where the time went, with [`crate::ProducerConfig::explain`].
    pub anatomy: Option<Anatomy>,
}

impl Receipt {
    /// The offset of a record sent with `acks` none.
    pub const OFFSET_UNKNOWN: u64 = u64::MAX;
}

/// The acknowledgement of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchReceipt {
    /// The partition.
    pub partition: u32,
    /// The offset of the first record; [`Receipt::OFFSET_UNKNOWN`] with `acks` none.
    pub base_offset: u64,
    /// How many records.
    pub record_count: u32,
    /// The durability reached.
    pub durability: Durability,
    /// Every offset of the partition below this is on the leader's device.
    pub durable_end: u64,
    /// When the leader appended it, milliseconds since 1970.
    pub append_time_ms: i64,
    /// The broker had it from an earlier attempt, whose answer was lost.
    pub duplicate: bool,
    /// Where the time went, with [`crate::ProducerConfig::explain`].
    pub anatomy: Option<Anatomy>,
}

/// What becomes of one batch, shared by all who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    settled: OnceLock<Result<BatchReceipt, ProduceError>>,
    wakers: Mutex<Vec<Waker>>,
}

impl Outcome {
    /// Settles the batch; only the first time counts.
    pub(crate) fn settle(&self, result: Result<BatchReceipt, ProduceError>) {
        if self.settled.set(result).is_ok() {
            let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
            for waker in wakers {
                waker.wake();
            }
        }
    }

    /// `place` is where the caller's waker stands, kept from poll to poll.
    fn poll(
        &self,
        place: &mut Option<u32>,
        context: &Context<'_>,
    ) -> Poll<Result<BatchReceipt, ProduceError>> {
        if let Some(result) = self.settled.get() {
            return Poll::Ready(result.clone());
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        // Settled between the two looks: then nobody takes the wakers any more.
        if let Some(result) = self.settled.get() {
            return Poll::Ready(result.clone());
        }
        match place.and_then(|place| wakers.get_mut(place as usize)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *place = Some(wakers.len() as u32);
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

/// The acknowledgement of one record to come. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "an acknowledgement that nobody looks at is lost; Producer::flush reports failures too"]
pub struct DeliveryFuture {
    outcome: Arc<Outcome>,
    index: u32,
    place: Option<u32>,
    timestamp_ms: i64,
}

impl DeliveryFuture {
    pub(crate) fn new(outcome: Arc<Outcome>, index: u32, timestamp_ms: i64) -> Self {
        Self { outcome, index, place: None, timestamp_ms }
    }
}

impl Future for DeliveryFuture {
    type Output = Result<Receipt, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.outcome.poll(&mut this.place, context).map_ok(|batch| Receipt {
            partition: batch.partition,
            // An unknown offset stays unknown.
            offset: batch.base_offset.saturating_add(u64::from(this.index)),
            timestamp_ms: this.timestamp_ms,
            durability: batch.durability,
            durable_end: batch.durable_end,
            append_time_ms: batch.append_time_ms,
            duplicate: batch.duplicate,
            anatomy: batch.anatomy,
        })
    }
}

/// The acknowledgement of one batch to come. Dropping it does not take the batch back.
#[derive(Debug)]
#[must_use = "an acknowledgement that nobody looks at is lost; Producer::flush reports failures too"]
pub struct BatchDelivery {
    outcome: Arc<Outcome>,
    place: Option<u32>,
}

impl BatchDelivery {
    pub(crate) fn new(outcome: Arc<Outcome>) -> Self {
        Self { outcome, place: None }
    }
}

impl Future for BatchDelivery {
    type Output = Result<BatchReceipt, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.outcome.poll(&mut this.place, context)
    }
}
