//! `ringlog demo --brokers 3`: three processes, one of which is killed while it leads; its own report says what came of it.

use std::process::Command;

#[test]
fn the_demo_of_three_loses_nothing_and_says_for_how_long() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
    let place = directory.path().to_str().expect("it is text");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    command.args(["demo", "--brokers", "3", "--seconds", "4", "--megabytes", "9"]);
    command.args(["--format", "json", "--data", place]);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    let number =
        |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {report}"));
    // Four repetitions of 27,004 flights are 10.7 MB, three are fewer than 9.
    assert_eq!(report["produced"], 4 * 27_004, "{report}");
    assert_eq!(report["consumed"], report["produced"], "{report}");
    for name in ["lost", "duplicated", "out_of_order", "unexpected", "differing_partitions", "wrong_receipts"]
    {
        assert_eq!(report[name], 0, "{name} in {report}");
    }
    assert!((1.0..=3.0).contains(&number("killed_broker")), "{report}");
    // Whoever leads most of eight partitions leads three at least, and was missed.
    assert!(number("partitions_led") >= 3.0, "{report}");
    assert!(0.0 < number("unavailable_p50_ms"), "{report}");
    assert!(number("unavailable_p50_ms") <= number("unavailable_max_ms"), "{report}");
    // Each partition is told of, and the figures above are of them.
    let told = report["unavailable"].as_array().expect("a list");
    let of = |led: bool| -> Vec<f64> {
        let some = told.iter().filter(|one| one["led"] == led);
        some.map(|one| one["ms"].as_f64().expect("a number")).collect()
    };
    assert!(told.iter().map(|one| one["partition"].as_u64()).eq((0..8).map(Some)), "{report}");
    assert_eq!(of(true).len() as f64, number("partitions_led"), "{report}");
    assert!(of(true).iter().all(|ms| *ms > 0.0), "{report}");
    for (led, most) in [(true, "unavailable_max_ms"), (false, "others_max_ms")] {
        assert_eq!(of(led).into_iter().reduce(f64::max), Some(number(most)), "{report}");
    }
    assert!(number("ack_p99_us") > 0.0 && number("filled_up_s") > 0.0, "{report}");
    let left = std::fs::read_dir(place).expect("it is there").count();
    assert_eq!(left, 0, "the temporary directory is gone");
}
