//! Planning, applying and undoing on made-up trees.

use super::apply::{apply_with, undo_with};
use super::plan::plan_with;
use super::*;
use crate::tests::MadeUp;
use std::io;
use std::path::{Path, PathBuf};

/// A host with everything that can be mended.
fn neglected() -> MadeUp {
    let mut made = MadeUp::good();
    made.subject.cores = Some(vec![0, 1]);
    for (path, text) in [
        ("proc/sys/net/core/somaxconn", "128\n"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "512\n"),
        ("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n"),
        ("proc/sys/net/ipv4/ip_local_reserved_ports", "5000\n"),
        ("proc/sys/kernel/perf_event_paranoid", "2\n"),
        ("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n"),
        ("proc/sys/vm/dirty_background_ratio", "20\n"),
        ("proc/vmstat", "nr_dirty_background_threshold 390624\n"),
        ("sys/devices/system/node/node1/cpulist", "4-7\n"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "schedutil\n"),
        ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n"),
        ("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "none [mq-deadline] bfq\n"),
        ("sys/devices/pci/net0/net/eth0/queues/rx-0/rps_cpus", "f3\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
    ] {
        made.put(path, text);
    }
    made
}

fn planned(made: &MadeUp, profile: Profile) -> Plan {
    plan_with(profile, &made.sources, &made.subject, made.measured)
}

/// `path old -> new` of each step, paths without the directory of the test.
fn lines(made: &MadeUp, plan: &Plan) -> Vec<String> {
    let root = made.path("").canonicalize().unwrap();
    let short = |path: &Path| {
        let path = path.strip_prefix(&root).or_else(|_| path.strip_prefix(made.path(""))).unwrap();
        path.display().to_string()
    };
    plan.steps.iter().map(|step| format!("{} {} -> {}", short(&step.path), step.old, step.new)).collect()
}

#[test]
fn a_profile_changes_what_it_says() {
    let made = neglected();
    let ports = "proc/sys/net/ipv4/ip_local_reserved_ports 5000 -> 5000,9644";
    let huge = "sys/kernel/mm/transparent_hugepage/enabled always -> madvise";
    let backlog = "proc/sys/net/core/somaxconn 128 -> 4096";
    let production = [
        backlog,
        "proc/sys/net/ipv4/tcp_max_syn_backlog 512 -> 4096",
        ports,
        huge,
        "proc/sys/vm/swappiness 60 -> 1",
        "proc/sys/vm/dirty_background_bytes 0 -> 268435456",
        "proc/sys/vm/dirty_bytes 0 -> 1073741824",
        "proc/sys/kernel/numa_balancing 1 -> 0",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor schedutil -> performance",
        "sys/devices/pci/nvme0/nvme0n1/queue/scheduler mq-deadline -> none",
    ];
    let benchmark = [
        "sys/class/net/eth0/queues/rx-0/rps_cpus f3 -> 000000f0",
        "sys/devices/system/cpu/cpu0/cpuidle/state1/disable 0 -> 1",
        "proc/sys/kernel/perf_event_paranoid 2 -> 1",
    ];
    let development = [backlog, ports, huge, benchmark[2]];
    assert_eq!(lines(&made, &planned(&made, Profile::Production)), production);
    assert_eq!(lines(&made, &planned(&made, Profile::Benchmark)), [&production[..], &benchmark].concat());
    assert_eq!(lines(&made, &planned(&made, Profile::Development)), development);
}

#[test]
fn a_good_host_is_left_alone() {
    let made = MadeUp::good();
    for profile in [Profile::Production, Profile::Development, Profile::Benchmark] {
        let plan = planned(&made, profile);
        assert_eq!(plan.steps, [], "{profile:?}");
        // Limits are advice always: this process cannot know who will start the broker.
        assert_eq!(plan.advice.len(), 1, "{:?}", plan.advice);
        assert!(plan.advice[0].lines.contains(&"LimitMEMLOCK=125829120".to_owned()), "{:?}", plan.advice);
        let state = made.path("state.json");
        assert_eq!(apply(&plan, profile, &made.sources, &state).unwrap(), []);
        assert!(!state.exists());
    }
}

/// What the kernel reads back after a port was reserved: sorted, neighbours merged.
#[test]
fn a_port_is_reserved_as_the_kernel_writes_it() {
    let rows = [
        ("1024\t65535", "", Some("9644")),
        ("1024\t65535", "9643", Some("9643-9644")),
        ("1024\t65535", "30000", Some("9644,30000")),
        ("1024\t65535", "9640-9643,9645-9646,30000", Some("9640-9646,30000")),
        ("1024\t65535", "9644", None),
        ("1024\t65535", "9000-9999", None),
        // Raised, because these are few; the port is reserved, or none of them.
        ("9000\t9999", "9644", None),
        ("50000\t50999", "", None),
    ];
    for (range, reserved, expect) in rows {
        let made = MadeUp::good();
        made.put("proc/sys/net/ipv4/ip_local_port_range", range);
        made.put("proc/sys/net/ipv4/ip_local_reserved_ports", &format!("{reserved}\n"));
        let plan = planned(&made, Profile::Production);
        let written = plan.steps.iter().find(|step| step.finding == "local_ports");
        assert_eq!(written.map(|step| step.new.as_str()), expect, "{range} {reserved}");
    }
}

#[test]
fn what_lasts_and_what_cannot_be_mended_is_advice() {
    let made = neglected();
    made.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    let plan = planned(&made, Profile::Production);
    let text = format!("{:?}", plan.advice);
    for part in ["60-ringlog.conf", "net.core.somaxconn = 4096", "clock_source: ", "LimitNOFILE="] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("huge_pages"), "it is mended: {text}");
}

/// All files of the trees, as they are.
fn snapshot(made: &MadeUp) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => walk(&entry.path(), files),
                kind if kind.is_file() => {
                    let text = std::fs::read_to_string(entry.path()).unwrap();
                    let value = crate::sources::chosen(text.trim()).to_owned();
                    // These leading zeros mean nothing.
                    files.push((entry.path(), value.trim_start_matches("000000").to_owned()));
                }
                _ => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(&made.path(""), &mut files);
    files.sort();
    files
}

/// A kernel, as far as it matters: amounts and ratios are one setting.
fn kernel(path: &Path, value: &str) -> io::Result<()> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let twin = match name.split_once("_bytes") {
        Some((stem, "")) => Some(format!("{stem}_ratio")),
        _ => name.strip_suffix("_ratio").map(|stem| format!("{stem}_bytes")),
    };
    if let Some(twin) = twin {
        if value == "0" {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        std::fs::write(path.with_file_name(twin), "0\n")?;
    }
    std::fs::write(path, format!("{value}\n"))
}

#[test]
fn undoing_restores_everything() {
    let made = neglected();
    let before = snapshot(&made);
    let state = made.path("state/tune.json");
    // Two profiles in a row: the second finds what the first has left.
    for profile in [Profile::Production, Profile::Benchmark] {
        let plan = planned(&made, profile);
        let made_changes = apply_with(&plan, profile, &made.sources, &state, &mut kernel).unwrap();
        assert_eq!(made_changes.len(), plan.steps.len());
        assert_eq!(planned(&made, profile).steps, [], "{profile:?} has mended everything it can");
    }
    assert_eq!(made.read("proc/sys/vm/dirty_ratio"), "0");
    let tried = undo(&made.sources, &state, true).unwrap();
    assert!(tried.iter().all(|undone| undone.outcome == Outcome::Restorable), "{tried:#?}");
    assert!(state.exists());
    let undone = undo_with(&made.sources, &state, false, &mut kernel).unwrap();
    assert!(undone.iter().all(|undone| undone.outcome == Outcome::Restored), "{undone:#?}");
    assert_eq!(undone.len(), 13);
    assert!(undone.is_sorted_by(|a, b| a.change.at_unix_ms >= b.change.at_unix_ms), "the latest first");
    assert!(!state.exists());
    assert_eq!(snapshot(&made), before);
    let again = undo(&made.sources, &state, false).unwrap_err();
    assert!(matches!(again, TuneError::NothingToUndo { .. }), "{again}");
}

#[test]
fn the_same_file_twice_goes_back_to_the_first_value() {
    let made = neglected();
    let state = made.path("state.json");
    let path = made.path("proc/sys/vm/swappiness");
    for (old, new) in [("60", "10"), ("10", "1")] {
        let restore = Setting { path: path.clone(), value: old.into() };
        let step = Step { finding: "swap", path: path.clone(), old: old.into(), new: new.into(), restore };
        let plan = Plan { steps: vec![step], advice: vec![] };
        apply(&plan, Profile::Production, &made.sources, &state).unwrap();
    }
    let tried = undo(&made.sources, &state, true).unwrap();
    assert!(tried.iter().all(|undone| undone.outcome == Outcome::Restorable), "{tried:#?}");
    undo(&made.sources, &state, false).unwrap();
    assert_eq!(made.read("proc/sys/vm/swappiness"), "60");
}

#[test]
fn what_others_changed_meanwhile_is_left() {
    let made = neglected();
    let state = made.path("state.json");
    let plan = planned(&made, Profile::Development);
    apply(&plan, Profile::Development, &made.sources, &state).unwrap();
    made.put("proc/sys/net/core/somaxconn", "8192\n");
    made.put("proc/sys/kernel/perf_event_paranoid", "2\n");
    std::fs::remove_file(made.path("proc/sys/net/ipv4/ip_local_reserved_ports")).unwrap();
    let undone = undo(&made.sources, &state, false).unwrap();
    let outcomes: Vec<_> =
        undone.iter().map(|undone| (undone.change.finding.as_str(), &undone.outcome)).collect();
    let expect = [
        ("perf_events", &Outcome::AlreadyBefore),
        ("huge_pages", &Outcome::Restored),
        ("local_ports", &Outcome::Gone),
        ("backlog", &Outcome::ChangedMeanwhile { current: "8192".into() }),
    ];
    assert_eq!(outcomes, expect);
    assert_eq!(made.read("proc/sys/net/core/somaxconn"), "8192");
    assert!(!state.exists(), "nothing is left to undo");
}

#[test]
fn a_refusal_in_the_middle_keeps_what_was_done() {
    type Row = (&'static str, fn(&Path, &str) -> io::Result<()>, &'static str);
    let rows: [Row; 2] = [
        ("refused", |_, _| Err(io::ErrorKind::ReadOnlyFilesystem.into()), "read-only"),
        // The kernel takes it and keeps what it had.
        ("ignored", |_, _| Ok(()), "the kernel keeps always"),
    ];
    for (name, refuse, part) in rows {
        let made = neglected();
        let before = snapshot(&made);
        let state = made.path("state.json");
        let plan = planned(&made, Profile::Production);
        let mut writer = |path: &Path, value: &str| match path.ends_with("transparent_hugepage/enabled") {
            true => refuse(path, value),
            false => kernel(path, value),
        };
        let error = apply_with(&plan, Profile::Production, &made.sources, &state, &mut writer).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("3 of 10 changes were made"), "{name}: {text}");
        assert!(text.contains(part) && text.contains("--undo"), "{name}: {text}");
        let undone = undo(&made.sources, &state, false).unwrap();
        assert_eq!(undone.len(), 3, "{name}: what was not done is not recorded");
        assert_eq!(snapshot(&made), before, "{name}");
    }
}

#[test]
fn what_cannot_be_restored_stays_recorded() {
    let made = neglected();
    let before = snapshot(&made);
    let state = made.path("state.json");
    let plan = planned(&made, Profile::Development);
    apply(&plan, Profile::Development, &made.sources, &state).unwrap();
    let mut refuse = |path: &Path, value: &str| match path.ends_with("somaxconn") {
        true => Err(io::ErrorKind::PermissionDenied.into()),
        false => kernel(path, value),
    };
    let undone = undo_with(&made.sources, &state, false, &mut refuse).unwrap();
    let failed = |undone: &&Undone| matches!(undone.outcome, Outcome::Failed { .. });
    assert_eq!(undone.iter().filter(failed).count(), 1, "{undone:#?}");
    let undone = undo(&made.sources, &state, false).unwrap();
    assert_eq!(undone.len(), 1, "{undone:#?}");
    assert_eq!(snapshot(&made), before);
}

#[test]
fn without_rights_nothing_is_changed() {
    let made = neglected();
    let mut plan = planned(&made, Profile::Production);
    // A folder cannot be written to, not even by root, for whom modes mean nothing.
    plan.steps[4].path = made.path("proc/sys/vm");
    let before = snapshot(&made);
    let state = made.path("state.json");
    let error = apply(&plan, Profile::Production, &made.sources, &state).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("nothing was changed") && text.contains("proc/sys/vm"), "{text}");
    assert_eq!(snapshot(&made), before);
    assert!(!state.exists());
}

#[test]
fn a_state_file_that_cannot_be_kept_changes_nothing() {
    let made = neglected();
    let before = snapshot(&made);
    let plan = planned(&made, Profile::Production);
    let state = made.path("proc/swaps/state.json");
    let error = apply(&plan, Profile::Production, &made.sources, &state).unwrap_err();
    assert!(matches!(error, TuneError::State { .. }), "{error}");
    assert_eq!(snapshot(&made), before);
}

#[test]
fn a_state_file_of_others_is_refused() {
    let made = neglected();
    let state = made.path("state.json");
    let change = |path: &str| {
        format!(
            r#"{{"version":1,"changes":[{{"path":"{path}","old":"a","new":"b","finding":"swap",
            "restore":{{"path":"{path}","value":"a"}},"profile":"production","at_unix_ms":1}}]}}"#
        )
    };
    let rows = [
        ("not json".to_owned(), "expected"),
        (r#"{"version":2,"changes":[]}"#.to_owned(), "version 2"),
        (change("/etc/passwd"), "/etc/passwd"),
        (change(&made.path("proc/../etc").display().to_string()), "never changes"),
    ];
    for (text, part) in rows {
        std::fs::write(&state, &text).unwrap();
        let error = undo(&made.sources, &state, false).unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in {error}");
        assert_eq!(std::fs::read_to_string(&state).unwrap(), text, "it is left as it was");
    }
}
