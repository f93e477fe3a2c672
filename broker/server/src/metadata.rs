//! The metadata thread: the only place where metadata changes.
//!
//! One std thread, off the data cores, owns the store and the order of the commands. It takes what waits in
//! its queue, applies it (`logic::metadata`), puts it on the device with one commit for all, publishes the
//! new image, and only then answers: whoever has an answer finds the change in every image he reads later.
//!
//! Lifecycle: [`start`] recovers and publishes the recovered image before it returns; [`MetadataThread::stop`]
//! finishes what is queued and joins. Handles may outlive the thread; they then say `Stopped`.
//!
//! Invariants: an image is published only after the device has every command in it. A refused command
//! leaves no trace. The data path never waits here: shards read images, they do not ask.
//!
//! Absent on purpose: Raft. It will take the place of the store's log; commands, images and handles stay.

mod store;

pub use store::StoreError;

use async_channel::{Receiver, Sender};
use logic::ids::TopicId;
use logic::limits::METADATA_QUEUE_MAX;
use logic::metadata::{Command, CommandError, Image, Outcome, command::COMMAND_BYTES_MAX};
use schema::error_code::ErrorCode;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use store::{AppendError, Gate, Store};

/// Told of every new image, on the metadata thread (the first time: on the thread that starts it). Must not
/// block for long: commands wait meanwhile.
pub type Publish = Box<dyn Fn(Arc<Image>) + Send>;

/// Why a command was not done, or the thread did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The store cannot be used: the broker does not start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread could not be made.
    #[error("cannot start the metadata thread: {0}")]
    Thread(String),
    /// The command makes no sense now.
    #[error(transparent)]
    Rejected(#[from] CommandError),
    /// The command is above the limit.
    #[error("the command has {bytes} bytes, the limit is {COMMAND_BYTES_MAX}; place fewer replicas at once")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The store could not take it, for want of space or because it is closed. It had no effect.
    #[error("the metadata store cannot be written: {0}")]
    Unavailable(String),
    /// The store failed in the middle. Whether the command counts is known after the next start.
    #[error("the metadata store failed and the change may or may not be kept: {0}; restart the broker")]
    OutcomeUnknown(String),
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopped,
}

impl MetadataError {
    /// The code on the wire.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::Store(_) | Self::Thread(_) | Self::Unavailable(_) => ErrorCode::MetadataUnavailable,
            Self::Rejected(error) => error.error_code(),
            Self::TooLarge { .. } => ErrorCode::InvalidRequest,
            Self::OutcomeUnknown(_) => ErrorCode::TimedOut,
            Self::Stopped => ErrorCode::ShuttingDown,
        }
    }
}

/// Reads and changes the metadata; cheap to clone, for every shard.
#[derive(Clone, Debug)]
pub struct MetadataHandle {
    queue: Sender<Request>,
    current: Arc<RwLock<Arc<Image>>>,
}

/// The running thread.
#[derive(Debug)]
pub struct MetadataThread {
    queue: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Request {
    command: Command,
    answer: Sender<Result<Outcome, MetadataError>>,
}

/// An id for a new topic: random, so that no two topics ever share one.
pub fn new_topic_id() -> TopicId {
    TopicId::new(rand::random())
}

/// Recovers the metadata in `<data_directory>/metadata`, publishes it and starts the thread.
pub fn start(
    data_directory: &Path,
    publish: Publish,
) -> Result<(MetadataHandle, MetadataThread), MetadataError> {
    start_with(data_directory, publish, Arc::new(|_| Ok(())))
}

fn start_with(
    data_directory: &Path,
    publish: Publish,
    gate: Gate,
) -> Result<(MetadataHandle, MetadataThread), MetadataError> {
    let (store, image) = Store::open(data_directory, gate)?;
    let image = Arc::new(image);
    publish(image.clone());
    let current = Arc::new(RwLock::new(image));
    let (sender, receiver) = async_channel::bounded(METADATA_QUEUE_MAX);
    let worker = Worker { store, current: current.clone(), publish, queue: receiver };
    let thread = std::thread::Builder::new()
        .name("ringlog-metadata".to_owned())
        .spawn(move || worker.run())
        .map_err(|error| MetadataError::Thread(error.to_string()))?;
    let handle = MetadataHandle { queue: sender.clone(), current };
    Ok((handle, MetadataThread { queue: sender, thread: Some(thread) }))
}

impl MetadataHandle {
    /// Hands `command` to the metadata thread and waits until it is durable and published. Waits for room in
    /// the queue. Works on any executor. Dropped while it waits, the command may still be done.
    pub async fn submit(&self, command: Command) -> Result<Outcome, MetadataError> {
        let (answer, reply) = async_channel::bounded(1);
        self.queue.send(Request { command, answer }).await.map_err(|_| MetadataError::Stopped)?;
        reply.recv().await.unwrap_or(Err(MetadataError::Stopped))
    }

    /// The latest image.
    pub fn image(&self) -> Arc<Image> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl MetadataThread {
    /// Takes no more commands, finishes those that are queued, and waits for the thread's end.
    pub fn stop(mut self) {
        if let Err(panic) = self.finish() {
            std::panic::resume_unwind(panic);
        }
    }

    fn finish(&mut self) -> std::thread::Result<()> {
        self.queue.close();
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for MetadataThread {
    fn drop(&mut self) {
        // A panic of the thread has been reported by its own hook.
        let _ = self.finish();
    }
}

struct Worker {
    store: Store,
    current: Arc<RwLock<Arc<Image>>>,
    publish: Publish,
    queue: Receiver<Request>,
}

impl Worker {
    fn run(mut self) {
        let mut batch = Vec::new();
        while let Ok(first) = self.queue.recv_blocking() {
            batch.push(first);
            while batch.len() < METADATA_QUEUE_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                batch.push(next);
            }
            self.commit(&mut batch);
        }
    }

    /// Applies all of `batch`, makes it durable at once, publishes, answers.
    fn commit(&mut self, batch: &mut Vec<Request>) {
        let mut image = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut commands = Vec::new();
        let mut results = Vec::with_capacity(batch.len());
        for request in batch.iter() {
            results.push(apply(&mut image, &mut commands, &request.command));
        }
        if !commands.is_empty() {
            match self.store.append(&commands, &image) {
                Ok(()) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = image.clone();
                    (self.publish)(image);
                }
                Err(error) => {
                    let error = match error {
                        AppendError::NoSpace(why) => MetadataError::Unavailable(why),
                        AppendError::Refused(why) => MetadataError::Unavailable(why),
                        AppendError::Broken(why) => MetadataError::OutcomeUnknown(why),
                    };
                    tracing::error!("{} metadata changes failed: {error}", commands.len());
                    // Also those that were refused: they may have been judged by what is not kept.
                    results.fill(Err(error));
                }
            }
        }
        for (request, result) in batch.drain(..).zip(results) {
            // Nobody waits any more if this fails: a client that went away.
            let _ = request.answer.try_send(result);
        }
    }
}

/// The next image and the bytes that lead to it, or why there are none.
fn apply(
    image: &mut Arc<Image>,
    commands: &mut Vec<Vec<u8>>,
    command: &Command,
) -> Result<Outcome, MetadataError> {
    let (next, outcome) = image.apply(command)?;
    let bytes = command.encode();
    if bytes.len() > COMMAND_BYTES_MAX {
        return Err(MetadataError::TooLarge { bytes: bytes.len() });
    }
    *image = Arc::new(next);
    commands.push(bytes);
    Ok(outcome)
}

#[cfg(test)]
mod tests;
