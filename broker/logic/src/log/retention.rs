//! Which segments have outlived `retention.ms` or `retention.bytes`.
//!
//! Whole segments only, oldest first, never the active one, never above the high watermark. A pure
//! function of the log; the driver moves the start and reclaims the files.

use crate::ids::Offset;
use crate::log::append::Log;

/// What a topic keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// `retention.ms`; negative = for ever.
    pub retention_ms: i64,
    /// `retention.bytes` of a partition; negative = without bound.
    pub retention_bytes: i64,
}

/// The new start of the log, if segments can go.
pub fn new_log_start(log: &Log, settings: RetentionSettings, now_ms: i64) -> Option<Offset> {
    let segments = log.segments();
    let mut bytes: u64 = segments.iter().map(|segment| segment.end_position).sum();
    let mut start = None;
    for pair in segments.iter().zip(segments.iter().skip(1)) {
        let (segment, next) = pair;
        if next.base > log.high_watermark() {
            break;
        }
        // A segment without timestamps counts from when it was opened.
        let newest_ms = segment.max_timestamp_ms.max(segment.opened_ms.min(next.opened_ms));
        let newest_ms = if segment.max_timestamp_ms >= 0 { segment.max_timestamp_ms } else { newest_ms };
        let expired = settings.retention_ms >= 0 && now_ms.saturating_sub(newest_ms) > settings.retention_ms;
        // What remains without this segment must still reach the bound.
        let oversize = settings.retention_bytes >= 0
            && bytes.saturating_sub(segment.end_position) >= settings.retention_bytes as u64;
        if !expired && !oversize {
            break;
        }
        bytes -= segment.end_position;
        start = Some(next.base);
    }
    start.filter(|start| *start > log.log_start())
}
