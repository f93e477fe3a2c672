//! Frames of a replication stream: what a leader and a follower say to each other about many partitions at once.
//!
//! ```text
//! prefix and padding as in `frame`; metadata: FlatBuffer, root Frame (RLR1); body: the batches of the appends
//! ```
//!
//! [`FrameWriter`] gathers messages into the next frame and is used again for the one after it; [`frame`] checks a
//! received one, and [`Frame::messages`] gives its messages in the order in which they were sent. A writer takes kinds in
//! the order of [`Kind`] only; what goes back in it begins another frame. Invariants: the lengths of the appends sum up to
//! the body, the counts of the openings to the epochs. Absent on purpose: what the messages mean, which is decided in
//! `logic`.

pub use crate::generated::replication_generated::replication::{
    Acknowledgement, Append, EpochStart, Match, Matched, Open, Opened, Opening, Refusal, Reset, Watermarks,
};

use crate::frame::{self, FrameError};
use crate::generated::replication_generated::replication as generated;
use flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};

/// The file identifier of a frame.
pub const FRAME_IDENTIFIER: &str = generated::FRAME_IDENTIFIER;

/// [`Append::previous_epoch`] when there is no record before.
pub const NO_EPOCH: u32 = u32::MAX;

/// Tables of a frame: the root.
const TABLES_MAX: usize = 1;

/// The kinds of messages, in the order in which a frame has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Open`].
    Open,
    /// [`Reset`].
    Reset,
    /// [`Match`].
    Match,
    /// [`Append`].
    Append,
    /// [`Watermarks`].
    Watermarks,
    /// [`Opened`].
    Opened,
    /// [`Matched`].
    Matched,
    /// [`Acknowledgement`].
    Acknowledgement,
    /// [`Refusal`].
    Refusal,
}

/// A message as it was received.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    /// Asks a follower what it has.
    Open(&'a Open),
    /// Drop everything.
    Reset(&'a Reset),
    /// Drop what differs.
    Match(&'a Match),
    /// Batches, and their bytes.
    Append(&'a Append, &'a [u8]),
    /// Where the leader stands.
    Watermarks(&'a Watermarks),
    /// What the follower has, and its epochs, oldest first.
    Opened(&'a Opened, Epochs<'a>),
    /// The follower's log ends where it was told to.
    Matched(&'a Matched),
    /// Everything below is on the follower's device.
    Acknowledgement(&'a Acknowledgement),
    /// The follower does not do it.
    Refusal(&'a Refusal),
}

impl Message<'_> {
    /// Which opening it belongs to.
    pub fn opening(&self) -> &Opening {
        match self {
            Message::Open(message) => message.opening(),
            Message::Reset(message) => message.opening(),
            Message::Match(message) => message.opening(),
            Message::Append(message, _) => message.opening(),
            Message::Watermarks(message) => message.opening(),
            Message::Opened(message, _) => message.opening(),
            Message::Matched(message) => message.opening(),
            Message::Acknowledgement(message) => message.opening(),
            Message::Refusal(message) => message.opening(),
        }
    }
}

/// The epochs that belong to one [`Opened`].
#[derive(Clone, Copy)]
pub struct Epochs<'a> {
    all: Option<Vector<'a, EpochStart>>,
    first: usize,
    count: usize,
}

impl<'a> Epochs<'a> {
    /// Oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a EpochStart> + use<'a> {
        let Self { all, first, count } = *self;
        (first..first + count).map(move |at| all.expect("counted when the frame was checked").get(at))
    }
}

impl std::fmt::Debug for Epochs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Epochs<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Opening {
    /// The topic's identity as one number.
    pub fn topic(&self) -> u128 {
        (u128::from(self.topic_high()) << 64) | u128::from(self.topic_low())
    }

    /// An opening of a partition of the topic with this identity.
    pub fn of(topic: u128, partition: u32, leader_epoch: u32, number: u32) -> Self {
        Self::new((topic >> 64) as u64, topic as u64, partition, leader_epoch, number, 0)
    }
}

/// A frame whose metadata has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    root: generated::Frame<'a>,
    messages: usize,
}

/// Checks the metadata of a frame with a body of `body_bytes`. At most `messages_max` messages and epochs are accepted.
///
/// `metadata` must be 8-aligned in memory, or valid buffers are refused: see [`frame::Aligned`].
///
/// # Errors
/// It is not such a frame, or its lengths do not sum up.
pub fn frame(metadata: &[u8], body_bytes: usize, messages_max: usize) -> Result<Frame<'_>, FrameError> {
    frame::check_identifier(metadata, FRAME_IDENTIFIER)?;
    let root = generated::root_as_frame_with_opts(&frame::verifier(TABLES_MAX), metadata)
        .map_err(|_| FrameError::InvalidMetadata)?;
    let count = |vector: Option<usize>| vector.unwrap_or(0);
    let epochs = count(root.epochs().map(|all| all.len()));
    let messages = count(root.opens().map(|all| all.len()))
        + count(root.resets().map(|all| all.len()))
        + count(root.matches().map(|all| all.len()))
        + count(root.appends().map(|all| all.len()))
        + count(root.watermarks().map(|all| all.len()))
        + count(root.opened().map(|all| all.len()))
        + count(root.matched().map(|all| all.len()))
        + count(root.acknowledgements().map(|all| all.len()))
        + count(root.refusals().map(|all| all.len()));
    if messages + epochs > messages_max {
        return Err(FrameError::TooManyMessages { messages: messages + epochs, limit: messages_max });
    }
    let named: u64 = root.appends().iter().flatten().map(|append| u64::from(append.body_length())).sum();
    if named != body_bytes as u64 {
        return Err(FrameError::BodyDiffers { named, body: body_bytes });
    }
    let counted: u64 = root.opened().iter().flatten().map(|opened| u64::from(opened.epochs())).sum();
    if counted != epochs as u64 {
        return Err(FrameError::InvalidMetadata);
    }
    Ok(Frame { root, messages })
}

impl<'a> Frame<'a> {
    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The appends alone.
    pub fn appends(&self) -> impl Iterator<Item = &'a Append> + use<'a> {
        self.root.appends().into_iter().flatten()
    }

    /// All messages in the order in which they were sent; `body` is the frame's.
    ///
    /// # Panics
    /// The body is shorter than the one that the frame was checked with.
    pub fn messages(&self, body: &'a [u8]) -> impl Iterator<Item = Message<'a>> + use<'a> {
        let root = self.root;
        let mut at = 0;
        let appends = root.appends().into_iter().flatten().map(move |append| {
            let begin = at;
            at += append.body_length() as usize;
            Message::Append(append, &body[begin..at])
        });
        let all = root.epochs();
        let mut first = 0;
        let opened = root.opened().into_iter().flatten().map(move |opened| {
            let epochs = Epochs { all, first, count: opened.epochs() as usize };
            first += epochs.count;
            Message::Opened(opened, epochs)
        });
        let opens = root.opens().into_iter().flatten().map(Message::Open);
        let resets = root.resets().into_iter().flatten().map(Message::Reset);
        let matches = root.matches().into_iter().flatten().map(Message::Match);
        let watermarks = root.watermarks().into_iter().flatten().map(Message::Watermarks);
        let matched = root.matched().into_iter().flatten().map(Message::Matched);
        let acknowledgements = root.acknowledgements().into_iter().flatten().map(Message::Acknowledgement);
        let refusals = root.refusals().into_iter().flatten().map(Message::Refusal);
        let from_leader = opens.chain(resets).chain(matches).chain(appends).chain(watermarks);
        let from_follower = opened.chain(matched).chain(acknowledgements).chain(refusals);
        from_leader.chain(from_follower)
    }
}

/// Gathers the messages of the next frame. Its memory is used again for every frame.
#[derive(Default)]
pub struct FrameWriter {
    opens: Vec<Open>,
    resets: Vec<Reset>,
    matches: Vec<Match>,
    appends: Vec<Append>,
    watermarks: Vec<Watermarks>,
    opened: Vec<Opened>,
    epochs: Vec<EpochStart>,
    matched: Vec<Matched>,
    acknowledgements: Vec<Acknowledgement>,
    refusals: Vec<Refusal>,
    messages: usize,
    body_bytes: usize,
    latest: Option<Kind>,
    builder: FlatBufferBuilder<'static>,
}

impl FrameWriter {
    /// Messages and epochs gathered.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether nothing has been gathered.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes of the batches of the gathered appends.
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Whether a message of this kind may follow in this frame.
    pub fn takes(&self, kind: Kind) -> bool {
        self.latest.is_none_or(|latest| kind >= latest)
    }

    /// Notes a message of a kind that the frame takes.
    ///
    /// # Panics
    /// It does not: the other end would handle it before what it follows.
    fn add(&mut self, kind: Kind) {
        assert!(self.takes(kind), "{kind:?} after {:?} in one frame", self.latest);
        self.latest = Some(kind);
        self.messages += 1;
    }

    /// Adds an [`Open`].
    pub fn open(&mut self, message: Open) {
        self.add(Kind::Open);
        self.opens.push(message);
    }

    /// Adds a [`Reset`].
    pub fn reset(&mut self, message: Reset) {
        self.add(Kind::Reset);
        self.resets.push(message);
    }

    /// Adds a [`Match`].
    pub fn match_(&mut self, message: Match) {
        self.add(Kind::Match);
        self.matches.push(message);
    }

    /// Adds an [`Append`], whose batches the caller sends with the body.
    pub fn append(&mut self, message: Append) {
        self.add(Kind::Append);
        self.body_bytes += message.body_length() as usize;
        self.appends.push(message);
    }

    /// Adds [`Watermarks`].
    pub fn watermarks(&mut self, message: Watermarks) {
        self.add(Kind::Watermarks);
        self.watermarks.push(message);
    }

    /// Adds an [`Opened`] and its epochs, oldest first, whose number is in it.
    pub fn opened(&mut self, message: Opened, epochs: impl IntoIterator<Item = EpochStart>) {
        self.add(Kind::Opened);
        let before = self.epochs.len();
        self.epochs.extend(epochs);
        let added = self.epochs.len() - before;
        assert!(added == message.epochs() as usize, "{added} epochs for {message:?}");
        self.messages += added;
        self.opened.push(message);
    }

    /// Adds a [`Matched`].
    pub fn matched(&mut self, message: Matched) {
        self.add(Kind::Matched);
        self.matched.push(message);
    }

    /// Adds an [`Acknowledgement`].
    pub fn acknowledgement(&mut self, message: Acknowledgement) {
        self.add(Kind::Acknowledgement);
        self.acknowledgements.push(message);
    }

    /// Adds a [`Refusal`].
    pub fn refusal(&mut self, message: Refusal) {
        self.add(Kind::Refusal);
        self.refusals.push(message);
    }

    /// Appends the frame's head to `out`, for a body of [`FrameWriter::body_bytes`], and begins the next frame.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.builder.reset();
        let builder = &mut self.builder;
        let arguments = generated::FrameArgs {
            opens: vector(builder, &mut self.opens),
            resets: vector(builder, &mut self.resets),
            matches: vector(builder, &mut self.matches),
            appends: vector(builder, &mut self.appends),
            watermarks: vector(builder, &mut self.watermarks),
            opened: vector(builder, &mut self.opened),
            epochs: vector(builder, &mut self.epochs),
            matched: vector(builder, &mut self.matched),
            acknowledgements: vector(builder, &mut self.acknowledgements),
            refusals: vector(builder, &mut self.refusals),
        };
        let root = generated::Frame::create(builder, &arguments);
        builder.finish(root, Some(FRAME_IDENTIFIER));
        frame::encode_head(out, builder.finished_data(), self.body_bytes);
        self.messages = 0;
        self.body_bytes = 0;
        self.latest = None;
    }
}

/// The vector of what was gathered, which is forgotten; `None` if that is nothing.
fn vector<T: flatbuffers::Push + Copy>(
    builder: &mut FlatBufferBuilder<'static>,
    items: &mut Vec<T>,
) -> Option<WIPOffset<Vector<'static, T::Output>>> {
    let made = (!items.is_empty()).then(|| builder.create_vector(items));
    items.clear();
    made
}

#[cfg(test)]
#[path = "replication_tests.rs"]
mod tests;
