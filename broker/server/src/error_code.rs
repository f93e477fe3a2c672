//! Inner errors to wire codes, in one place, exhaustively: nothing unknown ever leaves the broker.

use crate::partition::reader::ReadError;
use logic::log::compaction::NotCompactable;
use logic::producer_state::ProducerError;
use logic::replication::NotAdmitted;
use schema::compression::UnpackError;
use schema::error_code::ErrorCode;
use schema::frame::FrameError;
use schema::record_batch::BatchError;

/// The code for a frame that cannot be decoded.
pub fn of_frame(error: &FrameError) -> ErrorCode {
    match error {
        FrameError::TooLong { .. } => ErrorCode::FrameTooLarge,
        FrameError::TooShort { .. }
        | FrameError::MetadataTooLong { .. }
        | FrameError::WrongIdentifier { .. }
        | FrameError::InvalidMetadata
        | FrameError::TooManyMessages { .. }
        | FrameError::BodyDiffers { .. } => ErrorCode::InvalidFrame,
    }
}

/// The code for a batch that is refused.
pub fn of_batch(error: &BatchError) -> ErrorCode {
    match error {
        BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        damage if damage.is_damage() => ErrorCode::CorruptBatch,
        _ => ErrorCode::InvalidBatch,
    }
}

/// The code for a batch that a compacted topic does not take.
pub fn of_keys(error: &NotCompactable) -> ErrorCode {
    match error {
        NotCompactable::WithoutKey(_) => ErrorCode::InvalidRecord,
        NotCompactable::Records(_)
        | NotCompactable::Packed(UnpackError::Batch(_) | UnpackError::Damaged { .. }) => {
            ErrorCode::InvalidBatch
        }
        NotCompactable::Packed(UnpackError::TooLarge { .. }) => ErrorCode::BatchTooLarge,
    }
}

/// The code for a batch that its producer's other batches do not permit.
pub fn of_producer(error: &ProducerError) -> ErrorCode {
    match error {
        ProducerError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
        ProducerError::Unknown { .. } => ErrorCode::UnknownProducerId,
        ProducerError::StaleEpoch { .. } => ErrorCode::InvalidProducerEpoch,
        ProducerError::Forgotten { .. } => ErrorCode::DuplicateSequence,
        ProducerError::InFlight => ErrorCode::Overloaded,
    }
}

/// The code for a batch that its partition does not take now.
pub fn of_admission(error: &NotAdmitted) -> ErrorCode {
    match error {
        NotAdmitted::NotLeader => ErrorCode::NotLeader,
        NotAdmitted::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
    }
}

/// The code for a read that gives nothing.
pub fn of_read(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Damaged { .. } => ErrorCode::CorruptRange,
        ReadError::Device(_) => ErrorCode::ReadFailed,
        ReadError::Closed => ErrorCode::NotLeader,
    }
}
