//! The log of one partition: offsets, groups, segments, durability, recovery. Decisions only.
//!
//! | file | decides |
//! |---|---|
//! | `append` | which offsets a batch gets, where a group goes, when to roll, what is durable |
//! | `flush_round` | which groups go to the device together and when one flush covers them |
//! | `index` | where in a segment to look for an offset or a timestamp |
//! | `read` | which segment and position serve an offset |
//! | `retention` | which segments to drop |
//! | `compaction` | which records of a compacted log stay, and how the rewritten segment says so |
//! | `tiles` | how a rewritten segment is laid out |
//! | `segment_name` | which files of a directory count |
//! | `truncation` | how a log is cut so that nothing of it can come back |
//! | `recovery` | what a segment's bytes after a crash are worth |

pub mod append;
pub mod compaction;
pub mod flush_round;
pub mod index;
pub mod read;
pub mod recovery;
pub mod retention;
pub mod segment_name;
pub mod tiles;
pub mod truncation;

pub use append::{Log, LogIdentity, LogSettings, OpenGroup, Placement, RoundId, Sealed, Segment};
pub use segment_name::SegmentName;
