//! Which segments have outlived `retention.ms` or `retention.bytes`.
//!
//! Whole segments only, oldest first, never the active one, never above the high watermark. A pure
//! function of the log; the driver moves the start and reclaims the files.

use crate::ids::Offset;
use crate::log::append::{Log, Segment};
use crate::rules::{Rule, holds};

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
        let expired = settings.retention_ms >= 0
            && (now_ms.saturating_sub(newest_ms(segment, next)) > settings.retention_ms
                || !holds(Rule::KeepTime));
        // What remains without this segment must still reach the bound.
        let left = if holds(Rule::KeepBytes) { bytes.saturating_sub(segment.end_position) } else { bytes };
        let oversize = settings.retention_bytes >= 0 && left >= settings.retention_bytes as u64;
        if !expired && !oversize {
            break;
        }
        bytes -= segment.end_position;
        start = Some(next.base);
    }
    start.filter(|start| *start > log.log_start())
}

/// When [`new_log_start`], which has just been followed, can find more although nothing is appended, milliseconds since 1970;
/// `None` = never.
pub fn next_look_ms(log: &Log, settings: RetentionSettings, now_ms: i64) -> Option<i64> {
    let (segment, next) = log.segments().front().zip(log.segments().get(1))?;
    // What is committed grows without an append.
    if next.base > log.high_watermark() {
        return Some(now_ms);
    }
    (settings.retention_ms >= 0)
        .then(|| newest_ms(segment, next).saturating_add(settings.retention_ms).saturating_add(1))
}

/// How young the youngest record is. A segment without timestamps counts from when it was opened.
fn newest_ms(segment: &Segment, next: &Segment) -> i64 {
    match segment.max_timestamp_ms {
        stamped @ 0.. => stamped,
        none => none.max(segment.opened_ms.min(next.opened_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionIndex, TopicId, TopicPartition};
    use crate::log::append::{LogIdentity, LogSettings, LogStart, Segment};

    /// Bytes, largest timestamp, when opened.
    type Bounds = (u64, i64, i64);
    /// Segments, retention_ms, retention_bytes, now, the new start.
    type Row<'a> = (&'a [Bounds], i64, i64, i64, Option<u64>);

    /// A log of segments of 10 records each.
    fn log(segments: &[Bounds]) -> Log {
        let partition = TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(0) };
        let segments: Vec<Segment> = (0..)
            .zip(segments)
            .map(|(sequence, (end_position, max_timestamp_ms, opened_ms))| Segment {
                sequence,
                nonce: sequence,
                base: Offset::new(sequence * 10),
                end_position: *end_position,
                max_timestamp_ms: *max_timestamp_ms,
                opened_ms: *opened_ms,
                index: None,
                rewritten: None,
            })
            .collect();
        let log_end = Offset::new(segments.len() as u64 * 10);
        Log::new(
            LogIdentity { partition, generation: 1 },
            LogSettings { segment_bytes: 1 << 20, segment_ms: 1000 },
            LogStart { log_end, segments, ..LogStart::new() },
        )
    }

    #[test]
    fn whole_old_or_superfluous_segments_go_and_the_active_one_stays() {
        let four = [(100, 10, 0), (100, 20, 10), (100, 30, 20), (100, 40, 30)];
        let unordered = [(100, 90, 0), (100, 20, 10), (100, 30, 20)];
        let no_timestamps = [(100, -1, 0), (100, -1, 50), (100, -1, 60)];
        let rows: [Row; 14] = [
            (&four, -1, -1, i64::MAX, None),
            (&four, 5, -1, 15, None),
            (&four, 5, -1, 16, Some(10)),
            (&four, 5, -1, 26, Some(20)),
            (&four, 5, -1, 1_000_000, Some(30)),
            (&four, 0, -1, 11, Some(10)),
            // What remains reaches the bound.
            (&four, -1, 400, 0, None),
            (&four, -1, 301, 0, None),
            (&four, -1, 300, 0, Some(10)),
            (&four, -1, 0, 0, Some(30)),
            (&four, 5, 300, 26, Some(20)),
            // Oldest first: a young one at the front keeps what is behind it.
            (&unordered, 5, -1, 50, None),
            // Without timestamps the time of opening counts.
            (&no_timestamps, 5, -1, 10, Some(10)),
            (&[(100, 10, 0)], 0, 0, 1_000, None),
        ];
        for (n, (segments, retention_ms, retention_bytes, now_ms, start)) in rows.into_iter().enumerate() {
            let settings = RetentionSettings { retention_ms, retention_bytes };
            let mut log = log(segments);
            let found = new_log_start(&log, settings, now_ms);
            assert_eq!(found.map(Offset::get), start, "row {n}");
            found.map(|found| log.advance_start(found));
            // Nothing before the time that is said to be the next, something then.
            let next_ms = next_look_ms(&log, settings, now_ms);
            let before_ms = next_ms.map_or(i64::MAX, |next_ms| next_ms - 1);
            assert_eq!(new_log_start(&log, settings, before_ms), None, "row {n}");
            if let Some(next_ms) = next_ms {
                assert!(next_ms > now_ms && new_log_start(&log, settings, next_ms).is_some(), "row {n}");
            }
        }
    }

    #[test]
    fn what_is_not_committed_is_looked_at_again() {
        let mut log = log(&[(100, 10, 0), (100, 20, 10)]);
        log.replicate(Offset::new(0));
        let settings = RetentionSettings { retention_ms: 5, retention_bytes: -1 };
        assert_eq!((new_log_start(&log, settings, 50), next_look_ms(&log, settings, 50)), (None, Some(50)));
    }
}
