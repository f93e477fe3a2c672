//! Tables for the disk profile: figures → choice, files that are none, disks that are others.

use super::*;
use DurableBy::{Dsync, Flush};
use logic::limits::KIB;

type Row = (DurableBy, usize, usize, usize, f64, f64);

/// `rows`: durable by, bytes of a write, writes, rounds in flight, lower decile in microseconds, MB/s.
fn figures(rows: &[Row]) -> Vec<DiskFigure> {
    let figure = |&(durable_by, write_bytes, writes, rounds, p10_us, mb_s): &Row| DiskFigure {
        shape: Shape { durable_by, write_bytes, writes, rounds },
        p10_us,
        // A neighbour's noise, which must not decide.
        p50_us: 4000.0,
        p99_us: 9000.0,
        mb_s,
        measured: 100,
    };
    rows.iter().map(figure).collect()
}

/// Times of 1, 2, 3 … writes of 4 KiB: durable each, with one flush.
fn small(pairs: &[(f64, f64)]) -> Vec<Row> {
    let rows = pairs.iter().enumerate().flat_map(|(at, (dsync, flush))| {
        [(Dsync, BLOCK_BYTES, at + 1, 1, *dsync, 10.0), (Flush, BLOCK_BYTES, at + 1, 1, *flush, 10.0)]
    });
    rows.collect()
}

/// MB/s of one write per round by depth.
fn depths(bytes: usize, mb_s: &[(usize, f64)]) -> Vec<Row> {
    mb_s.iter().map(|(depth, mb_s)| (Dsync, bytes, 1, *depth, (bytes * depth) as f64 / mb_s, 1.0)).collect()
}

#[track_caller]
fn check(rows: &[Row], one_flush: bool, expect: (usize, usize, usize, usize), why: &[&str]) {
    let choice = choose(&figures(rows), one_flush);
    let got = (
        choice.dsync_writes_max,
        choice.rounds_in_flight,
        choice.round_bytes_max / MIB,
        choice.write_bytes_max / KIB,
    );
    assert_eq!(got, expect, "{:?}", choice.why);
    let text = choice.why.join("\n");
    for part in why {
        assert!(text.contains(part), "'{part}' is not in {text}");
    }
}

#[test]
fn durable_writes_as_long_as_they_pay() {
    let rows: &[(&[(f64, f64)], usize)] = &[
        (&[(100.0, 200.0), (120.0, 200.0), (210.0, 200.0)], 2),
        (&[(100.0, 200.0), (120.0, 200.0), (130.0, 200.0), (190.0, 200.0)], 4),
        // Less than 5 % is no gain.
        (&[(196.0, 200.0), (120.0, 200.0)], 0),
        (&[(190.0, 200.0), (191.0, 200.0)], 1),
        // What pays again after it did not is noise.
        (&[(100.0, 200.0), (300.0, 200.0), (100.0, 200.0)], 1),
    ];
    for (pairs, expect) in rows {
        check(&small(pairs), true, (*expect, 2, 16, 1024), &["with one flush", "not compared"]);
        check(&small(pairs), false, (DSYNC_WRITES_DEFAULT, 2, 16, 1024), &["durable by itself"]);
    }
    check(&[], true, (DSYNC_WRITES_DEFAULT, 2, 16, 1024), &["not compared: the default"]);
    // One of a pair is missing: nothing to compare; more writes than the broker permits do not count.
    check(&small(&[(1.0, 2.0)])[..1], true, (DSYNC_WRITES_DEFAULT, 2, 16, 1024), &["not compared"]);
    let many = [(Dsync, BLOCK_BYTES, 65, 1, 1.0, 1.0), (Flush, BLOCK_BYTES, 65, 1, 9.0, 1.0)];
    check(&many, true, (DSYNC_WRITES_DEFAULT, 2, 16, 1024), &["not compared"]);
    let reasons = choose(&figures(&small(&[(100.0, 200.0), (120.0, 200.0), (210.0, 200.0)])), true).why;
    let expect = "2 writes of 4 KiB 120 us durable each, 200 us with one flush; 3 writes of 4 KiB 210 us durable \
                  each, 200 us with one flush";
    assert_eq!(reasons[0], expect);
}

#[test]
fn as_few_rounds_in_flight_as_are_enough() {
    type Depths<'a> = &'a [(usize, f64)];
    let rows: &[(Depths<'_>, Depths<'_>, usize, usize)] = &[
        // A disk that does one thing at a time.
        (&[(1, 10.0), (2, 10.5), (4, 10.2)], &[(1, 110.0), (2, 111.0), (4, 90.0)], 1, 2),
        // One that likes company; for small writes more of it.
        (&[(1, 10.0), (2, 19.0), (3, 27.0), (4, 36.0)], &[(1, 500.0), (2, 990.0), (4, 1000.0)], 4, 16),
        (&[(1, 10.0), (2, 19.0), (4, 19.5)], &[(1, 500.0), (2, 990.0), (4, 1000.0)], 2, 16),
        // One of the two is enough to know.
        (&[], &[(1, 300.0), (2, 400.0), (3, 500.0), (4, 505.0)], 3, 9),
        (&[(1, 10.0), (2, 20.0)], &[], 2, 16),
        // From a single depth nothing follows for it, but for the size of a round.
        (&[(1, 10.0)], &[(1, 400.0)], 2, 7),
        // A slow one: a round is a megabyte at least.
        (&[], &[(1, 8.0), (2, 8.0)], 1, 1),
        // Depths that the broker has not are not chosen.
        (&[(1, 10.0), (2, 10.0), (8, 90.0)], &[], 1, 16),
    ];
    for (small, large, rounds, mib) in rows {
        let rows = [depths(BLOCK_BYTES, small), depths(MIB, large)].concat();
        for one_flush in [true, false] {
            check(&rows, one_flush, (DSYNC_WRITES_DEFAULT, *rounds, *mib, 1024), &[]);
        }
    }
}

#[test]
fn writes_as_large_as_the_disk_likes_them() {
    let pieces = |mb_s: &[(usize, f64)]| -> Vec<Row> {
        mb_s.iter()
            .map(|(kib, mb_s)| (Flush, kib * KIB, 4096 / kib, 1, (4 * MIB) as f64 / mb_s, 1.0))
            .collect()
    };
    let rows: &[(&[(usize, f64)], usize)] = &[
        (&[(128, 900.0), (256, 1000.0), (512, 1010.0), (1024, 990.0)], 1024),
        (&[(128, 900.0), (256, 1000.0), (512, 950.0), (1024, 600.0)], 512),
        (&[(128, 2000.0), (256, 1000.0), (512, 900.0), (1024, 600.0)], 128),
        (&[(128, 2000.0)], 1024),
        // What the broker does not permit.
        (&[(64, 9000.0), (512, 900.0), (1024, 600.0), (2048, 5000.0)], 512),
    ];
    for (mb_s, expect) in rows {
        check(&pieces(mb_s), true, (DSYNC_WRITES_DEFAULT, 2, 16, *expect), &[]);
        // Where no flush is shared nothing was measured that would say it.
        check(&pieces(mb_s), false, (DSYNC_WRITES_DEFAULT, 2, 16, 1024), &[]);
    }
}

#[test]
fn a_choice_is_within_the_limits_whatever_the_figures_say() {
    let mut random = 1u64;
    let mut next = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    for _ in 0..20_000 {
        let rows: Vec<Row> = (0..12)
            .map(|_| {
                let bytes = [0, 1, BLOCK_BYTES, 100_000, 128 * KIB, MIB, 4 * MIB, usize::MAX][next(8)];
                let writes = [0, 1, 2, 4, 32, 64, 65, usize::MAX][next(8)];
                let value = [0.0, 1e-300, 1.0, 500.0, 1e300][next(5)];
                ([Dsync, Flush][next(2)], bytes, writes, next(9), value, [value, 100.0][next(2)])
            })
            .collect();
        let choice = choose(&figures(&rows), next(2) == 0);
        assert!(choice.dsync_writes_max <= DSYNC_WRITES_MAX, "{rows:?}");
        assert!((1..=ROUNDS_IN_FLIGHT_MAX).contains(&choice.rounds_in_flight), "{rows:?}");
        assert!((ROUND_BYTES_MIN..=ROUND_BYTES_MAX).contains(&choice.round_bytes_max), "{rows:?}");
        assert!((WRITE_BYTES_MIN..=WRITE_BYTES_MAX).contains(&choice.write_bytes_max), "{rows:?}");
        assert!(choice.write_bytes_max.is_multiple_of(BLOCK_BYTES), "{rows:?}");
    }
}

fn profile() -> DiskProfile {
    DiskProfile {
        format_version: FORMAT_VERSION,
        measured_unix_s: 1_700_000_000,
        measured_by: MeasuredBy::Doctor,
        kernel: "6.1".into(),
        disk: disk(),
        figures: figures(&small(&[(100.0, 200.0)])),
    }
}

fn disk() -> DiskIdentity {
    DiskIdentity {
        device: "sda (8:0)".into(),
        device_bytes: Some(1 << 40),
        file_system: "ext4".into(),
        file_system_id: Some("abc".into()),
        write_cache: Some("write back".into()),
        fua: Some(true),
    }
}

#[test]
fn a_profile_survives_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let first = DiskProfile { measured_by: MeasuredBy::Serve, ..profile() };
    first.save(directory.path()).unwrap();
    let path = profile().save(directory.path()).unwrap();
    assert_eq!(path, directory.path().join(FILE_NAME));
    assert_eq!(DiskProfile::load(&path).unwrap(), profile());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left there");
    let nowhere = directory.path().join("not/there");
    assert!(profile().save(&nowhere).unwrap_err().to_string().contains("cannot write"));
}

#[test]
fn files_that_are_no_profile() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let missing = DiskProfile::load(&path).unwrap_err();
    assert!(missing.is_missing(), "{missing}");
    let whole = serde_json::to_string(&profile()).unwrap();
    let rows = [
        (String::new(), "damaged"),
        ("nonsense".to_owned(), "damaged"),
        ("{\"format_version\": 7}".to_owned(), "has format 7"),
        ("{\"format_version\": 1}".to_owned(), "damaged"),
        (whole[..whole.len() - 10].to_owned(), "damaged"),
        (whole.replace("\"p10_us\":100.0", "\"p10_us\":-1.0"), "a figure that cannot be"),
        (whole.replace("\"ext4\"", "4"), "damaged"),
        (" ".repeat(2 << 20), "too long"),
    ];
    for (text, expect) in rows {
        std::fs::write(&path, &text).unwrap();
        let error = DiskProfile::load(&path).unwrap_err();
        let shown = &text[..text.len().min(40)];
        assert!(error.to_string().contains(expect) && !error.is_missing(), "'{shown}': {error}");
    }
    std::fs::write(&path, whole).unwrap();
    assert_eq!(DiskProfile::load(&path).unwrap(), profile());
}

#[test]
fn another_disk_is_noticed() {
    let rows: &[(DiskIdentity, usize)] = &[
        (disk(), 0),
        // The same disk in another slot.
        (DiskIdentity { device: "sdb (8:16)".into(), ..disk() }, 0),
        (DiskIdentity { file_system_id: None, fua: None, ..disk() }, 0),
        (DiskIdentity { file_system_id: Some("abd".into()), ..disk() }, 1),
        (DiskIdentity { device_bytes: Some(1 << 41), ..disk() }, 1),
        (DiskIdentity { write_cache: Some("write through".into()), fua: Some(false), ..disk() }, 2),
        (DiskIdentity { file_system: "xfs".into(), ..disk() }, 1),
        (DiskIdentity::default(), 0),
    ];
    for (now, expect) in rows {
        assert_eq!(disk().differences(now).len(), *expect, "{now:?}");
    }
}

#[test]
fn this_disk_is_itself() {
    let directory = tempfile::tempdir().unwrap();
    let here = DiskIdentity::of(directory.path(), "0:0", "some");
    assert_eq!(here, DiskIdentity::of(directory.path(), "0:0", "some"));
    assert_eq!((here.device.as_str(), here.file_system.as_str()), ("0:0", "some"));
}
