//! `ringlog doctor` and `ringlog tune` as processes: what they print, how they exit, on a host as it is and
//! in environments that are made worse on purpose.
//!
//! Limits and filters belong to the child alone; `tune` writes to made-up trees only. What needs a right that
//! is missing says so in a line that starts with SKIPPED. Absent on purpose: each finding by itself, which
//! the tables of the `tuning` crate test.

#[path = "faults/support/refuse_io_uring.rs"]
mod refuse_io_uring;
#[path = "faults/support/skipped.rs"]
mod skipped;

use refuse_io_uring::refuse_io_uring;
use serde_json::Value;
use skipped::skipped;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

/// A directory on the disk of the build.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's directory can be written to")
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    command.args(words).env_remove("RINGLOG_DATA").env_remove("RINGLOG_LOG");
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary was built")
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    format!("{stdout}{stderr}")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object in each line")).collect()
}

/// Runs `doctor` on `data`, prepared by `prepare`; checks the exit status and what must be in a finding.
#[track_caller]
fn check(data: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command), expect: &[(&str, &str)]) {
    let mut doctor = command(&["doctor", "--format", "json", "--all", "--data"]);
    doctor.arg(data).args(arguments);
    prepare(&mut doctor);
    let output = run(&mut doctor);
    let found = lines(&output);
    for (name, severity) in expect {
        let finding = found.iter().find(|finding| finding["name"] == *name);
        let finding = finding.unwrap_or_else(|| panic!("no {name} in {found:?}"));
        assert_eq!(finding["severity"], *severity, "{finding}");
        let well = *severity == "ok";
        assert!(["cost", "fix"].iter().all(|key| (finding[*key] == "") == well), "{finding}");
    }
    let has = |severity: &str| found.iter().any(|finding| finding["severity"] == severity);
    let status = if has("fatal") { 2 } else { i32::from(has("warning")) };
    assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    assert!(found.len() > 40, "every check says something: {found:?}");
}

const FREE: &[&str] = &["--listen", "127.0.0.1:0"];

#[test]
fn the_host_as_it_is() {
    let data = directory();
    check(data.path(), FREE, |_| {}, &[("io_uring", "ok"), ("data_directory", "ok"), ("listen", "ok")]);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "it left something behind");
    let missing = data.path().join("not/yet");
    check(&missing, FREE, |_| {}, &[("data_directory", "ok")]);
    assert!(!data.path().join("not").exists());
}

/// `tuning` depends on none of the broker's crates: what it knows of their bounds is compared here.
#[test]
fn bounds_are_those_of_the_broker() {
    let shard = logic::limits::SHARD_MEMORY_BYTES_MAX as u64;
    let known = tuning::MEMORY_BYTES_PER_SHARD;
    assert!(
        (shard..shard + shard / 2).contains(&known),
        "a shard may use {shard}, doctor reckons with {known}"
    );
}

#[test]
fn for_people() {
    let data = directory();
    let mut doctor = command(&["doctor", "--listen", "127.0.0.1:0", "--shards", "1", "--cores", "none"]);
    let plain = text(&run(doctor.arg("--data").arg(data.path())));
    let all = text(&run(doctor.arg("--all")));
    for (name, shown) in [("without a complaint (--all shows them)", true), ("io_uring  ", false)] {
        assert_eq!(plain.contains(name), shown, "{plain}");
    }
    assert!(all.contains("has every operation that the broker uses"), "{all}");
    // A complaint has three lines.
    let complaints = plain.lines().filter(|line| !line.starts_with("  ")).count() - 1;
    assert_eq!(plain.lines().filter(|line| line.starts_with("  fix    ")).count(), complaints, "{plain}");
}

#[test]
fn wrong_usage() {
    for (words, part) in [
        (&["doctor", "--shards", "0"][..], "shards is 1 to 65535"),
        (&["doctor", "--cores", "9999"], "core 9999"),
        (&["doctor", "--listen", "nowhere"], "--listen"),
        (&["tune"], "--profile"),
        (&["tune", "--profile", "fast"], "production"),
        (&["tune", "--undo", "--profile", "production"], "cannot be used with"),
    ] {
        let output = run(&mut command(words));
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text(&output).contains(part), "{words:?}: {}", text(&output));
    }
}

#[test]
fn a_port_and_a_directory_that_cannot_be_used() {
    let data = directory();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check(data.path(), &["--listen", &address], |_| {}, &[("listen", "fatal")]);
    let file = data.path().join("file");
    std::fs::write(&file, "").unwrap();
    check(&file, FREE, |_| {}, &[("data_directory", "fatal"), ("io_uring", "ok"), ("o_direct", "ok")]);
}

/// Sets both limits of the child.
fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    let set = move || {
        // SAFETY: the limit outlives the call.
        match unsafe { libc::setrlimit(resource, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec one system call is made.
    unsafe { command.pre_exec(set) };
}

#[test]
fn low_limits() {
    let data = directory();
    let locked = |command: &mut Command| limit(command, libc::RLIMIT_MEMLOCK, 64 << 10);
    check(data.path(), FREE, locked, &[("locked_memory", "fatal"), ("io_uring", "ok")]);
    let files = |command: &mut Command| limit(command, libc::RLIMIT_NOFILE, 100);
    check(data.path(), FREE, files, &[("open_files", "fatal")]);
}

#[test]
fn without_io_uring() {
    check(directory().path(), FREE, refuse_io_uring, &[("io_uring", "fatal"), ("o_direct", "ok")]);
}

#[test]
fn a_file_system_in_memory() {
    let shm = Path::new("/dev/shm");
    if tuning::host_facts(shm).map_or(true, |facts| !facts.volatile) {
        skipped("a file system in memory: /dev/shm is none, or cannot be written to");
        return;
    }
    let expect =
        [("file_system", "warning"), ("scheduler", "ok"), ("flush_round", "ok"), ("write_cache", "ok")];
    check(shm, FREE, |_| {}, &expect);
}

#[test]
fn a_user_without_rights() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        skipped("a user without rights: only root can become one");
        return;
    }
    const NOBODY: u32 = 65534;
    // A place that everybody can reach, for the binary too.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = place.path().join("ringlog");
    std::fs::copy(env!("CARGO_BIN_EXE_ringlog"), &binary).unwrap();
    let doctor = |data: &Path| {
        let mut command = Command::new(&binary);
        let words = ["doctor", "--format", "json", "--all", "--listen", "127.0.0.1:0", "--data"];
        lines(&run(command.args(words).arg(data).uid(NOBODY).gid(NOBODY)))
    };
    let severity =
        |found: &[Value], name: &str| found.iter().find(|it| it["name"] == name).unwrap()["severity"].clone();
    let found = doctor(place.path());
    assert_eq!(severity(&found, "data_directory"), "fatal", "{found:?}");
    let own = place.path().join("data");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let found = doctor(&own);
    assert_eq!(severity(&found, "data_directory"), "ok", "{found:?}");
    assert_eq!(severity(&found, "io_uring"), "ok", "{found:?}");

    let tree = Tree::new();
    let mut tune = Command::new(&binary);
    tune.args(["tune", "--profile", "production"])
        .args(tree.roots())
        .arg("--state")
        .arg(own.join("tune.json"));
    let output = run(tune.uid(NOBODY).gid(NOBODY));
    assert_eq!(output.status.code(), Some(1));
    for part in ["nothing was changed", "somaxconn", "CAP_NET_ADMIN", "swappiness", "CAP_SYS_ADMIN"] {
        assert!(text(&output).contains(part), "{part} is not in {}", text(&output));
    }
    assert_eq!(tree.values(), Tree::BEFORE);
    assert!(!own.join("tune.json").exists());
}

/// The few files that `tune` finds something in.
struct Tree(tempfile::TempDir);

impl Tree {
    const FILES: [&str; 3] = ["sys/net/core/somaxconn", "sys/vm/swappiness", "sys/vm/dirty_bytes"];
    const BEFORE: [&str; 3] = ["128", "60", "0"];
    const AFTER: [&str; 3] = ["4096", "1", "0"];

    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        // Others may look.
        std::fs::set_permissions(tree.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for (path, value) in Self::FILES.iter().zip(Self::BEFORE) {
            tree.put(path, value);
        }
        tree.put("swaps", "Filename\n/dev/sda2 partition 1 0 -2");
        tree
    }

    fn put(&self, path: &str, value: &str) {
        let path = self.0.path().join("proc").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{value}\n")).unwrap();
    }

    fn values(&self) -> [String; 3] {
        let read = |path| std::fs::read_to_string(self.0.path().join("proc").join(path)).unwrap();
        Self::FILES.map(|path| read(path).trim().to_owned())
    }

    fn roots(&self) -> [String; 4] {
        let root = |name: &str| self.0.path().join(name).display().to_string();
        ["--proc-root".into(), root("proc"), "--sys-root".into(), root("sys")]
    }

    fn tune(&self, words: &[&str]) -> Output {
        let state = self.0.path().join("tune.json");
        run(command(&["tune"]).args(words).args(self.roots()).arg("--state").arg(state))
    }
}

#[test]
fn tune_applies_and_undoes() {
    let tree = Tree::new();
    #[track_caller]
    fn says(output: &Output, code: i32, parts: &[&str]) {
        assert_eq!(output.status.code(), Some(code), "{}", text(output));
        for part in parts {
            assert!(text(output).contains(part), "{part} is not in {}", text(output));
        }
    }
    let production = ["--profile", "production"];
    let tried = tree.tune(&[&production[..], &["--dry-run"]].concat());
    says(
        &tried,
        0,
        &["somaxconn", "128", "4096", "swappiness", "2 values would be written", "LimitMEMLOCK="],
    );
    assert_eq!(tree.values(), Tree::BEFORE, "a dry run changes nothing");
    says(&tree.tune(&["--undo"]), 1, &["nothing to undo"]);

    says(&tree.tune(&production), 0, &["2 values written", "ringlog tune --undo --state"]);
    assert_eq!(tree.values(), Tree::AFTER);
    says(&tree.tune(&production), 0, &["nothing to change"]);

    says(&tree.tune(&["--undo", "--dry-run"]), 0, &["would be restored"]);
    assert_eq!(tree.values(), Tree::AFTER);
    tree.put(Tree::FILES[0], "8192");
    says(&tree.tune(&["--undo"]), 0, &["restored", "left: somebody else wrote 8192"]);
    assert_eq!(tree.values(), ["8192", "60", "0"]);
    says(&tree.tune(&["--undo"]), 1, &["nothing to undo"]);
}

#[test]
fn tune_for_programs() {
    let tree = Tree::new();
    let steps = |output: &Output, action: &str| {
        let lines = lines(output).into_iter().filter(|line| line["action"] == action);
        lines.map(|line| (line["old"].clone(), line["new"].clone())).collect::<Vec<_>>()
    };
    let expect = [("128".into(), "4096".into()), ("60".into(), "1".into())];
    let tried = tree.tune(&["--profile", "production", "--dry-run", "--format", "json"]);
    assert_eq!(steps(&tried, "would write"), expect);
    let done = tree.tune(&["--profile", "production", "--format", "json"]);
    assert_eq!(steps(&done, "wrote"), expect);
    let undone = lines(&tree.tune(&["--undo", "--format", "json"]));
    assert!(undone.iter().all(|line| line["outcome"] == "restored"), "{undone:?}");
    assert_eq!(undone[0]["finding"], "swap", "the latest first");
    assert_eq!(tree.values(), Tree::BEFORE);
}

/// Set in the process whose test is to be skipped.
const SKIPS: &str = "RINGLOG_TEST_SKIPS";

/// CI counts lines that begin so, of tests that pass, whose output the harness keeps to itself.
#[test]
fn what_is_skipped_is_seen() {
    if std::env::var_os(SKIPS).is_some() {
        println!("kept by the harness");
        return skipped("made by the test");
    }
    let mut child = Command::new(std::env::current_exe().expect("it runs"));
    // One thread: the harness says which test it begins, and ends that line later.
    let child = child.args(["--exact", "what_is_skipped_is_seen", "--test-threads", "1"]).env(SKIPS, "1");
    let output = child.output().expect("it runs");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("it is text");
    assert!(output.status.success() && !said.contains("kept by the harness"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("SKIPPED")).count(), 1, "{said}");
}
