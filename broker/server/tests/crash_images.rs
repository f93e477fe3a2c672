//! Crash images: at any moment of the real storage code's life the power goes; every image of the device
//! that may be left is recovered by the real recovery and compared with what had been acknowledged.
//!
//! Prints one line per test, past the harness's capture. `RINGLOG_CRASH_IMAGES` sets how many images are
//! checked at least, `RINGLOG_CRASH_SEED` runs one seed alone: a failure names the seed.

mod crash;

use crash::image::Image;
use crash::ledger::Tally;
use crash::life::{Plan, root};
use crash::scripts::{self, Script};
use logic::limits::{LOG_IN_FLIGHT_BYTES_MAX, PREWRITE_BYTES_PER_SECOND};
use logic::producer_state::Admission;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Lines appear in a plain `cargo test` too: written past the capture of the harness.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(name: &str, first_seed: u64, images: u64, flips: bool) -> Tally {
    run_lives(name, first_seed, images, |seed| crash::life::run(seed, flips))
}

/// Runs seed after seed until so many images have been checked.
fn run_lives(name: &str, first_seed: u64, images: u64, lives: impl Fn(u64) -> Tally) -> Tally {
    let images = number("RINGLOG_CRASH_IMAGES").unwrap_or(images);
    let only = number("RINGLOG_CRASH_SEED");
    let mut total = Tally::default();
    let mut seed = only.unwrap_or(first_seed);
    loop {
        let replay =
            format!("replay: RINGLOG_CRASH_SEED={seed} cargo test -p server --test crash_images {name}");
        match catch_unwind(AssertUnwindSafe(|| lives(seed))) {
            Ok(tally) => {
                let failed = !tally.failures.is_empty();
                total.merge(tally);
                if failed {
                    print(&replay);
                    break;
                }
            }
            Err(panic) => {
                print(&replay);
                std::panic::resume_unwind(panic);
            }
        }
        if only.is_some() || total.images >= images {
            break;
        }
        seed += 1;
    }
    for failure in &total.failures {
        print(failure);
    }
    if std::env::var_os("RINGLOG_CRASH_EVENTS").is_some() {
        for (event, count) in &total.events {
            print(&format!("  {count:>9} {event}"));
        }
    }
    total
}

#[test]
fn crash_images() {
    let tally = run("crash_images", 1, 40_000, false);
    print(&format!(
        "crash images: {} checked, {} acknowledged lost, {} tails misjudged",
        tally.images, tally.lost, tally.misjudged
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
}

#[test]
fn crash_images_with_bit_flips() {
    let tally = run("crash_images_with_bit_flips", 1_000_001, 20_000, true);
    print(&format!(
        "crash images with bit flips: {} checked, {} acknowledged lost without being reported",
        tally.images, tally.lost
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
}

#[test]
fn cuts_and_appends_of_a_follower() {
    let tally = run_lives("cuts_and_appends_of_a_follower", 2_000_001, 20_000, crash::cuts::run);
    print(&format!(
        "crash images of a follower: {} checked, {} lost or back, {} misjudged",
        tally.images, tally.lost, tally.misjudged
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
}

/// Partitions move between two stores meanwhile: see `crash::homes`.
#[test]
fn partitions_move_into_power_cuts() {
    let moving = |seed| crash::life::run_plan(seed, &Plan::draw_moving(seed));
    let tally = run_lives("partitions_move_into_power_cuts", 3_000_002, 12_000, moving);
    let count = |event| tally.events.get(event).copied().unwrap_or(0);
    print(&format!(
        "crash images of moves: {} checked, {} moves, {} with records under way; {} waited for room, and {} at a \
         start; {} acknowledged lost, {} misjudged",
        tally.images,
        count("partitions moved"),
        count("partitions that were not at rest"),
        count("partitions that waited for room"),
        count("partitions that waited for room at a start"),
        tally.lost,
        tally.misjudged
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
    let met = ["partitions moved", "partitions that waited for room at a start"];
    assert!(number("RINGLOG_CRASH_SEED").is_some() || met.iter().all(|event| count(event) > 0));
}

/// Seeds of compaction under crashes, in virtual time: see `crash::compaction`.
#[test]
fn compaction_images() {
    let only = number("RINGLOG_COMPACTION_SEED");
    let seeds = number("RINGLOG_COMPACTION_SEEDS").unwrap_or(12);
    let first = only.unwrap_or(1);
    let mut report = crash::compaction::Report::default();
    for seed in first..first + if only.is_some() { 1 } else { seeds } {
        let replay = format!(
            "replay: RINGLOG_COMPACTION_SEED={seed} cargo test -p server --test crash_images compaction"
        );
        report = match catch_unwind(AssertUnwindSafe(|| crash::compaction::run(seed, report))) {
            Ok(report) => report,
            Err(panic) => {
                print(&replay);
                std::panic::resume_unwind(panic);
            }
        };
        if !report.violations.is_empty() {
            print(&replay);
            break;
        }
    }
    report.violations.iter().for_each(|violation| print(violation));
    print(&format!(
        "compaction: {} seeds, {} lives, {} steps in {} virtual s, {} images checked, {} passes, {} records removed, \
         {} keys with an expired tombstone, {} records deleted by retention alone, {} violations",
        report.seeds,
        report.lives,
        report.steps,
        report.virtual_ms / 1000,
        report.images,
        report.passes,
        report.removed_records,
        report.expired_tombstones,
        report.retained_records,
        report.violations.len()
    ));
    assert!(report.violations.is_empty());
    assert!(
        only.is_some()
            || seeds < 12
            || report.passes > 0
                && report.removed_records > 0
                && report.expired_tombstones > 0
                && report.retained_records > 0
    );
}

#[test]
fn damage_is_served_around() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.append(10).await, 10);
        script.shut_down().await;
        let mut image = script.image();
        script.end().await;
        // Group n is in block n + 1: a payload, a header, the last group's header.
        image.flip(&scripts::segment(0), &[(scripts::payload(5), 3), (7 * 4096 + 50, 0), (10 * 4096 + 1, 7)]);
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.read_each().await, "....x.x..x");
        // Read again, the same: what was noted as damaged has not grown.
        assert_eq!(script.read_each().await, "....x.x..x");
        assert_eq!(script.append(1).await, 11);
        assert_eq!(script.read_each().await, "....x.x..x.");
        script.end().await;
    });
}

/// What cannot be read costs what stands there, be it groups or an index, and nothing else.
#[test]
fn unreadable_bytes_are_read_around() {
    scripts::run(async {
        // (every group in a segment of its own, segment, unreadable blocks, what is served of ten groups)
        let rows = [
            (true, 3, 2..3, ".........."),
            (true, 3, 1..3, "...x......"),
            (true, 3, 0..16, "...x......"),
            (false, 0, 6..7, ".....x...."),
            (false, 0, 11..16, ".........."),
            (false, 0, 10..11, ".........x"),
            (false, 0, 0..1, ".........."),
        ];
        for (each, sequence, blocks, expected) in rows {
            let segment_ms = if each { 0 } else { i64::MAX };
            let script = Script::start(&Image::fresh(&root()), segment_ms).await.expect("it starts");
            assert_eq!(script.append(10).await, 10);
            script.shut_down().await;
            let image = script.image();
            script.end().await;
            let script = Script::start(&image, segment_ms).await.expect("it starts");
            script.make_unreadable(sequence, blocks.start * 4096..blocks.end * 4096);
            assert_eq!(script.read_each().await, expected, "blocks {blocks:?} of segment {sequence}");
            script.end().await;
        }
    });
}

/// The round that waits for space has groups of the very partition that would give space back.
#[test]
fn a_partition_is_deleted_on_a_full_disk() {
    scripts::run(async {
        for segment_ms in [0, i64::MAX] {
            let script = Script::start(&Image::fresh(&root()), segment_ms).await.expect("it starts");
            assert_eq!(script.append(4).await, 4);
            script.append_to_full_disk().await;
            let rounds = if segment_ms == 0 { 0 } else { 1 };
            assert_eq!(script.waits(), (rounds, true), "segment.ms {segment_ms}: nothing waits for space");
            assert!(script.delete().await, "segment.ms {segment_ms}: the deletion does not end");
            // Nobody waits any more, so nobody else is refused.
            assert_eq!(script.waits(), (0, false), "segment.ms {segment_ms}");
            script.end().await;
        }
    });
}

/// What a dropped segment alone tells of stays on the device until a checkpoint says it, also when the partition moves.
#[test]
fn a_dropped_segment_outlives_a_move_until_a_checkpoint() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), 0).await.expect("it starts");
        let (image, header) = script.hand_over_a_dropped_segment().await;
        script.end().await;
        let script = Script::start(&image, 0).await.expect("it starts");
        let again = script.partition.admit_producer(&header);
        assert!(matches!(again, Ok(Admission::Duplicate(_))), "the producer is forgotten: {again:?}");
        script.end().await;
    });
}

/// What a checkpoint says of a log that was discarded since does not count, also when the segment that says so is dropped.
#[test]
fn a_segment_that_tells_of_a_cut_outlives_it_until_a_checkpoint() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), 0).await.expect("it starts");
        let (images, header) = script.drop_what_says_that_the_log_was_discarded().await;
        script.end().await;
        for image in images {
            let script = Script::start(&image, 0).await.expect("it starts");
            assert_eq!(script.offsets().await, [10]);
            // A repetition would be answered with an offset of the log that is gone.
            assert_eq!(script.partition.admit_producer(&header), Ok(Admission::Append));
            script.end().await;
        }
    });
}

/// What recovery looks at behind the end of a log is bounded by what may be in flight of it.
#[test]
fn so_much_of_a_log_is_in_flight_and_no_more() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        let (under_way, acknowledged, end) = script.append_more_than_may_be_in_flight().await;
        let most = LOG_IN_FLIGHT_BYTES_MAX as u64;
        assert!(under_way <= most && under_way > most / 2, "{under_way} bytes under way");
        assert!(acknowledged == end && end > 40, "{acknowledged} of {end}");
        script.end().await;
    });
}

/// Zeros are what blocks read as that were never written: whoever finds them in a batch after a crash writes them, because the
/// file is another segment's one day, and what is written then counts on its blocks. The disk ends a write that does so wrongly.
#[test]
fn zeros_found_after_a_crash_are_written() {
    scripts::run(async {
        let script = Script::start_sharing(&Image::fresh(&root())).await.expect("it starts");
        let image = script.append_zeros_that_are_not_written().await;
        script.end().await;
        let script = Script::start_sharing(&image).await.expect("it starts");
        let (acknowledged, end) = script.append_in_the_file_of_the_first_segment().await;
        assert_eq!(acknowledged, end);
        script.end().await;
    });
}

/// Whoever takes the partition over writes after that checkpoint.
#[test]
fn an_end_in_the_middle_of_a_release_is_no_clean_one() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert!(!script.end_while_it_is_released().await);
        script.end().await;
    });
}

#[test]
fn partitions_share_the_pace_of_zeroing() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        let (partitions, turns, bytes) = (4, 10, 128 * 1024);
        let took = script.zeroing_took(partitions, turns, bytes).await;
        // The first turn is at once.
        let chunks = (partitions * turns - 1) as u64;
        assert_eq!(took.as_nanos() as u64, chunks * (bytes * 1_000_000_000 / PREWRITE_BYTES_PER_SECOND));
        script.end().await;
    });
}

#[test]
fn an_older_clean_checkpoint_does_not_count_beside_a_damaged_one() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        script.append(3).await;
        script.shut_down().await;
        let image = script.image();
        script.end().await;
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.append(4).await, 7);
        let mut image = script.image();
        script.end().await;
        image.flip(&scripts::newest_checkpoint(&image), &[(70, 2)]);
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.read_each().await, ".......");
        script.end().await;
    });
}

#[test]
fn nothing_is_written_after_an_orderly_end() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.append(3).await, 3);
        script.shut_down().await;
        assert_eq!(script.append(2).await, 3, "acknowledged behind a checkpoint that says nothing follows");
        let image = script.image();
        script.end().await;
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.read_each().await, "...");
        script.end().await;
    });
}

#[test]
fn a_newer_format_is_refused_and_not_taken_for_damage() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), 0).await.expect("it starts");
        assert_eq!(script.append(3).await, 3);
        let mut image = script.image();
        script.end().await;
        scripts::make_newer(&mut image, 2);
        let error = Script::start(&image, 0).await.err().expect("it refuses").to_string();
        assert!(error.contains("00000000000000000002.log has format version 2"), "{error}");
    });
}

/// Of two logs that are opened at once, the one that finds their topic's directory made does not know whether its name is
/// durable: it sees to it itself.
#[test]
fn a_directory_that_another_log_has_made_is_made_durable() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        let [early, mut all] = script.open_two_of_a_topic().await;
        assert!(early.is_empty(), "{early:?} acknowledged before the topic's directory was durable");
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
        script.end().await;
    });
}

/// A batch whose place is being zeroed waits for that write, and not for the sync behind it.
#[test]
fn a_batch_passes_the_sync_of_zeros() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.append_where_zeros_are_written().await, [2, 3, 4]);
        script.end().await;
    });
}

#[test]
fn a_start_without_room_for_a_cut_waits_for_it() {
    scripts::a_start_without_room_for_a_cut_waits_for_it();
}

/// What another one reads may not be enough for who waits for it, who reads it anew: whoever else waits goes on waiting for that.
#[test]
fn readers_of_a_chunk_that_grows_are_all_served() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.read_a_chunk_that_grows().await, 3, "one waits for ever");
        script.end().await;
    });
}

#[test]
fn a_dropped_segment_waits_for_its_footer() {
    scripts::a_dropped_segment_waits_for_its_footer();
}

#[test]
fn rolls_survive_a_rotten_segment_header() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), 0).await.expect("it starts");
        assert_eq!(script.append(4).await, 4);
        let mut image = script.image();
        script.end().await;
        image.flip(&scripts::segment(2), &[(20, 1)]);
        let script = Script::start(&image, 0).await.expect("it starts");
        assert_eq!(script.append(1).await, 5);
        assert_eq!(script.read_each().await, ".....");
        script.end().await;
    });
}

/// A pass that meets the end of the disk, wherever, is given up: the log is as it was, nothing is left behind, and
/// once there is room the next one does it.
#[test]
fn no_space_for_a_rewritten_segment() {
    scripts::run(async {
        // (room for blocks, room for names)
        for (blocks, names) in [(true, false), (false, true), (false, false)] {
            let script = Script::start_compacted(&Image::fresh(&root())).await.expect("it starts");
            assert_eq!(script.append(6).await, 6);
            script.checkpoint().await;
            script.set_full(!blocks);
            script.set_no_names(!names);
            assert!(script.compact().await, "there was nothing to do");
            let case = format!("blocks {blocks}, names {names}");
            assert_eq!(script.passes(), (0, 1), "{case}");
            let told = script.notices().iter().any(|notice| {
                notice.contains("compaction gives up for 60 s: no space for a rewritten segment")
            });
            assert!(told, "{case}: {:?}", script.notices());
            assert!(!script.compact().await, "{case}: not at once again");
            let (named, unnamed) = scripts::rewritten(&script.image());
            assert!(named.is_empty() && unnamed.is_empty(), "{case}: {named:?} {unnamed:?}");
            assert_eq!(script.offsets().await, [0, 1, 2, 3, 4, 5], "{case}");
            script.set_full(false);
            script.pass(Duration::from_secs(61));
            assert!(script.compact().await, "{case}: not tried again");
            assert_eq!(script.passes(), (1, 1), "{case}");
            let left = script.offsets().await;
            assert!(left.len() < 6 && left.ends_with(&[3, 4, 5]), "{case}: {left:?}");
            let image = script.image();
            script.end().await;
            let script = Script::start_compacted(&image).await.expect("it starts");
            assert_eq!(script.offsets().await, left, "{case}: after a crash");
            script.end().await;
        }
    });
}

/// A rewritten segment's header that has rotted costs nothing: its groups say what they are, whether a checkpoint has
/// seen the file or not.
#[test]
fn rewritten_segments_survive_rotten_headers() {
    scripts::run(async {
        for (known, at) in [(false, 20), (false, 150), (true, 20), (true, 150)] {
            let script = Script::start_compacted(&Image::fresh(&root())).await.expect("it starts");
            assert_eq!(script.append(6).await, 6);
            assert!(script.compact().await);
            if known {
                script.checkpoint().await;
            }
            let left = script.offsets().await;
            assert!(left.len() < 6 && left.ends_with(&[3, 4, 5]), "{left:?}");
            let mut image = script.image();
            script.end().await;
            let (named, _) = scripts::rewritten(&image);
            assert_eq!(named.len(), 1, "{named:?}");
            image.flip(&named[0], &[(at, 1)]);
            // Twice: what the first start said of it must not be held against it by the second.
            for start in 0..2 {
                let script = Script::start_compacted(&image).await.expect("it starts");
                let case = format!("known {known}, byte {at}, start {start}");
                assert_eq!(script.offsets().await, left, "{case}");
                assert!(script.partition.report().lost.is_empty(), "{case}: {:?}", script.partition.report());
                image = script.image();
                script.end().await;
            }
        }
    });
}

/// On a full disk the start after an orderly end cannot write a checkpoint. What the last one says of deleted records is
/// true all the same, and what it says of an orderly end is not believed again.
#[test]
fn deleted_records_stay_deleted_over_a_start_on_a_full_disk() {
    scripts::run(async {
        let script = Script::start(&Image::fresh(&root()), i64::MAX).await.expect("it starts");
        assert_eq!(script.append(6).await, 6);
        script.delete_before(4).await;
        script.shut_down().await;
        let mut image = script.image();
        script.end().await;
        for start in 0..3 {
            let script = Script::start_full(&image).await.expect("it starts");
            assert!(script.notices().iter().any(|notice| notice.contains("no space for a checkpoint")));
            let expect: Vec<u64> = (4..6 + start).collect();
            assert_eq!(script.offsets().await, expect, "start {start}");
            // There are blocks ahead for this much; a start that trusts the clean end would not find it.
            assert_eq!(script.append(1).await, 7 + start);
            image = script.image();
            script.end().await;
        }
        let script = Script::start(&image, i64::MAX).await.expect("it starts");
        assert_eq!(script.offsets().await, [4, 5, 6, 7, 8]);
        script.end().await;
    });
}
