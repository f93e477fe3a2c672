//! What is to be sent over a socket: pieces in order, some made here, some the stored batches themselves.
//!
//! Owned by one connection or stream. Batches are sent from the memory that they were written from or read into; nothing
//! is gathered into one buffer first. Absent on purpose: bounds, which differ between who fills it.

use crate::partition::tail_cache::Slice;
use crate::socket::Socket;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

/// Pieces handed to the socket at once.
const PIECES_AT_ONCE: usize = 64;
/// Small replies are gathered up to this size.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Bytes to be sent.
pub enum Piece {
    /// Made here.
    Owned(Vec<u8>),
    /// Stored batches, unchanged.
    Stored(Slice),
    /// Stored batches that came from another core.
    Copied(Bytes),
}

impl Piece {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Owned(bytes) => bytes,
            Piece::Stored(slice) => slice.bytes(),
            Piece::Copied(bytes) => bytes,
        }
    }
}

/// The pieces that are not sent yet.
#[derive(Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that have been sent.
    sent: usize,
}

impl Outbox {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds one piece; an empty one is nothing.
    pub fn push(&mut self, piece: Piece) {
        if !piece.bytes().is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// Has `write` add bytes behind everything else; how many it added. Small additions share a piece while it waits;
    /// one that is being sent, or is large, is left alone.
    pub fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let joins = self.pieces.len() > 1
            && matches!(self.pieces.back(), Some(Piece::Owned(bytes)) if bytes.len() < PIECE_BYTES_MAX);
        if !joins {
            self.pieces.push_back(Piece::Owned(Vec::with_capacity(256)));
        }
        let Some(Piece::Owned(bytes)) = self.pieces.back_mut() else { return 0 };
        let before = bytes.len();
        write(bytes);
        let added = bytes.len() - before;
        if bytes.is_empty() {
            self.pieces.pop_back();
        }
        added
    }

    /// Sends what the kernel takes at once; how many bytes, 0 only from a socket that is over.
    pub fn poll_send(&mut self, socket: &Socket, context: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); PIECES_AT_ONCE];
        let mut pieces = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let bytes = piece.bytes();
            *slice = IoSlice::new(if pieces == 0 { &bytes[self.sent..] } else { bytes });
            pieces += 1;
        }
        let bytes = ready!(socket.poll_send(context, &slices[..pieces]))?;
        self.advance(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some(front) = self.pieces.front() {
            let left = front.bytes().len() - self.sent;
            if bytes < left {
                self.sent += bytes;
                return;
            }
            bytes -= left;
            self.sent = 0;
            self.pieces.pop_front();
        }
    }
}
