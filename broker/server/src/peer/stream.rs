//! One connection between two brokers that carries frames of replication, both ways.
//!
//! Owned by the shard at this end. Whoever has something to say adds it to the frame that is being gathered; the writer
//! runs when everybody who was ready has spoken, so what belongs to one flush round goes out in one frame and one call.
//! Batches are sent from the memory that they are in, and received into one buffer that grows with a large frame, from
//! which they are copied into their group. Invariants: messages arrive in the order in which they were said; what is queued
//! is bounded, a peer that does not take it is given up. Absent on purpose: what the messages mean, connecting.

use super::wire;
use crate::outbox::{Outbox, Piece};
use crate::partition::tail_cache::Slice;
use crate::socket::Socket;
use crate::storage::count;
use logic::ids::{BrokerId, TopicPartition};
use logic::limits::{
    FRAME_BYTES_MAX, FRAME_METADATA_BYTES_MAX, REPLICATION_FRAME_BODY_BYTES, REPLICATION_FRAME_MESSAGES_MAX,
    REPLICATION_PROBE_AFTER_MS, REPLICATION_PROBES_MAX, REPLICATION_QUEUE_BYTES_MAX,
    REPLICATION_RECEIVE_BYTES,
};
use logic::replication::message::Message;
use rustix::net::Shutdown;
use schema::frame::{Aligned, FrameError, PREFIX_BYTES, Prefix};
use schema::replication::{self, Frame, FrameWriter};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What went over all streams of a shard.
#[derive(Debug, Default)]
pub struct StreamCounters {
    /// Frames sent.
    pub frames_sent: Cell<u64>,
    /// Their messages.
    pub messages_sent: Cell<u64>,
    /// Bytes sent.
    pub bytes_sent: Cell<u64>,
    /// Calls that sent them.
    pub sends: Cell<u64>,
    /// Frames received.
    pub frames_received: Cell<u64>,
    /// Bytes received.
    pub bytes_received: Cell<u64>,
    /// Calls that received them.
    pub receives: Cell<u64>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer has closed it, or it was closed here.
    #[error("the connection was closed")]
    Closed,
    /// The network.
    #[error(transparent)]
    Network(#[from] std::io::Error),
    /// The peer does not speak the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message with a number that means nothing to this version.
    #[error("a message that this version does not know")]
    UnknownMessage,
}

/// One end of a connection.
pub struct Stream {
    /// Who is at the other end.
    pub peer: BrokerId,
    socket: Socket,
    frame: RefCell<FrameWriter>,
    /// The batches of the frame, in the order of its appends.
    batches: RefCell<Vec<Slice>>,
    outbox: RefCell<Outbox>,
    /// Bytes in the outbox.
    queued: Cell<usize>,
    writer: RefCell<Option<Waker>>,
    closed: Cell<bool>,
    counters: Rc<StreamCounters>,
}

impl Stream {
    /// Over a connection that has said Hello.
    pub fn new(peer: BrokerId, socket: Socket, counters: Rc<StreamCounters>) -> Rc<Self> {
        socket.set_no_delay();
        let after = Duration::from_millis(REPLICATION_PROBE_AFTER_MS);
        socket.probe_silent_peer(after, after, REPLICATION_PROBES_MAX);
        socket.give_up_unacknowledged_after(after * (1 + REPLICATION_PROBES_MAX));
        Rc::new(Self {
            peer,
            socket,
            frame: RefCell::default(),
            batches: RefCell::default(),
            outbox: RefCell::default(),
            queued: Cell::new(0),
            writer: RefCell::default(),
            closed: Cell::new(false),
            counters,
        })
    }

    /// Whether nothing goes over it any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends it: reader and writer finish.
    pub fn close(&self) {
        if !self.closed.replace(true) {
            self.socket.shut_down(Shutdown::Both);
            self.wake_writer();
        }
    }

    /// Has the writer look for something to send.
    pub fn wake_writer(&self) {
        let waker = self.writer.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Bytes that wait to be sent, those of the frame that is being gathered among them.
    pub fn waiting_bytes(&self) -> usize {
        self.queued.get() + self.frame.borrow().body_bytes()
    }

    /// Says something that has no batches.
    pub fn say(&self, id: TopicPartition, message: &Message) {
        self.add(id, message, Vec::new());
    }

    /// Says an append with its batches.
    pub fn append(&self, id: TopicPartition, message: &Message, batches: Vec<Slice>) {
        self.add(id, message, batches);
    }

    fn add(&self, id: TopicPartition, message: &Message, batches: Vec<Slice>) {
        if self.closed.get() {
            return;
        }
        let full = {
            let frame = self.frame.borrow();
            !frame.takes(wire::kind(message))
                || frame.len() + wire::weight(message) > REPLICATION_FRAME_MESSAGES_MAX
                || frame.body_bytes() >= REPLICATION_FRAME_BODY_BYTES
        };
        if full {
            self.seal();
        }
        let bytes = batches.iter().map(|slice| slice.range.len()).sum();
        wire::write(&mut self.frame.borrow_mut(), id, message, bytes);
        self.batches.borrow_mut().extend(batches);
        if self.queued.get() > REPLICATION_QUEUE_BYTES_MAX {
            tracing::warn!("broker {}: takes nothing of what is said to it; its stream is closed", self.peer);
            return self.close();
        }
        self.wake_writer();
    }

    /// Queues the frame that has been gathered, if anything is in it.
    fn seal(&self) {
        let mut frame = self.frame.borrow_mut();
        if frame.is_empty() {
            return;
        }
        count(&self.counters.frames_sent, 1);
        count(&self.counters.messages_sent, frame.len() as u64);
        let body_bytes = frame.body_bytes();
        let mut outbox = self.outbox.borrow_mut();
        let head_bytes = outbox.write(|bytes| frame.finish(bytes));
        self.batches.borrow_mut().drain(..).for_each(|slice| outbox.push(Piece::Stored(slice)));
        self.queued.set(self.queued.get() + head_bytes + body_bytes);
    }

    /// Sends what is said until the stream ends. `refill` may add appends whenever there is room for them.
    pub async fn write(&self, mut refill: impl FnMut()) {
        loop {
            let wrote = poll_fn(|context| {
                if self.closed.get() {
                    return Poll::Ready(false);
                }
                if self.waiting_bytes() < REPLICATION_FRAME_BODY_BYTES {
                    refill();
                }
                if self.outbox.borrow().is_empty() {
                    self.seal();
                }
                let mut outbox = self.outbox.borrow_mut();
                if outbox.is_empty() {
                    *self.writer.borrow_mut() = Some(context.waker().clone());
                    return Poll::Pending;
                }
                match outbox.poll_send(&self.socket, context) {
                    // Woken by the socket.
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(_) | Ok(0)) => Poll::Ready(false),
                    Poll::Ready(Ok(bytes)) => {
                        self.queued.set(self.queued.get() - bytes);
                        count(&self.counters.sends, 1);
                        count(&self.counters.bytes_sent, bytes as u64);
                        Poll::Ready(true)
                    }
                }
            })
            .await;
            if !wrote {
                break;
            }
            glommio::yield_if_needed().await;
        }
        self.close();
    }

    /// Receives frames and has each handled until the stream ends; why it did.
    pub async fn read(
        &self,
        mut handle: impl AsyncFnMut(Frame<'_>, &[u8]) -> Result<(), StreamError>,
    ) -> StreamError {
        let mut buffer = vec![0; REPLICATION_RECEIVE_BYTES];
        let mut aligned = Aligned::default();
        // What is received and not handled.
        let (mut begin, mut end) = (0, 0);
        let ended = loop {
            let mut needed = PREFIX_BYTES;
            while let Some(prefix) = buffer[begin..end].first_chunk::<PREFIX_BYTES>() {
                let prefix = match Prefix::decode(*prefix, FRAME_BYTES_MAX) {
                    Ok(prefix) if prefix.metadata_bytes <= FRAME_METADATA_BYTES_MAX => prefix,
                    Ok(prefix) => {
                        let (metadata, length) = (prefix.metadata_bytes, prefix.frame_bytes);
                        return self.end(FrameError::MetadataTooLong { metadata, length }.into());
                    }
                    Err(error) => return self.end(error.into()),
                };
                if end - begin < prefix.frame_bytes {
                    needed = prefix.frame_bytes;
                    break;
                }
                let bytes = &buffer[begin..begin + prefix.frame_bytes];
                let metadata = aligned.align(&bytes[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes]);
                let body = &bytes[prefix.body_start()..];
                let frame = match replication::frame(metadata, body.len(), REPLICATION_FRAME_MESSAGES_MAX) {
                    Ok(frame) => frame,
                    Err(error) => return self.end(error.into()),
                };
                count(&self.counters.frames_received, 1);
                if let Err(error) = handle(frame, body).await {
                    return self.end(error);
                }
                begin += prefix.frame_bytes;
                needed = PREFIX_BYTES;
                // A stream that always has frames must not keep the core from everybody else.
                glommio::yield_if_needed().await;
                if self.closed.get() {
                    return StreamError::Closed;
                }
            }
            if begin == end {
                (begin, end) = (0, 0);
                if buffer.len() > 4 * REPLICATION_RECEIVE_BYTES.max(REPLICATION_FRAME_BODY_BYTES) {
                    buffer = vec![0; REPLICATION_RECEIVE_BYTES];
                }
            } else if begin > 0 {
                buffer.copy_within(begin..end, 0);
                (begin, end) = (0, end - begin);
            }
            if needed > buffer.len() {
                buffer.resize(needed, 0);
            }
            // Of a large frame exactly the rest: nothing behind it has to be moved then.
            let most = if needed > REPLICATION_RECEIVE_BYTES { needed } else { buffer.len() };
            match poll_fn(|context| self.socket.poll_receive(context, &mut buffer[end..most])).await {
                Ok(0) => break StreamError::Closed,
                Ok(bytes) => {
                    count(&self.counters.receives, 1);
                    count(&self.counters.bytes_received, bytes as u64);
                    end += bytes;
                }
                Err(error) => break error.into(),
            }
        };
        self.end(ended)
    }

    fn end(&self, why: StreamError) -> StreamError {
        self.close();
        why
    }
}
