//! What goes wrong says what to do, with the exit status that it should have.

use crate::process::{Broker, directory, file, run};

#[test]
fn without_a_broker() {
    // Port 9 (discard) of this host: nobody listens there.
    let brokers = ["--brokers", "127.0.0.1:9"];
    let rows: [&[&str]; 5] =
        [&["topic", "list"], &["produce", "t"], &["consume", "t"], &["status"], &["bench", "load"]];
    for line in rows {
        let line = [line, &brokers].concat();
        run(&line).failed(1, &["no broker answers at 127.0.0.1:9", "ringlog serve"]);
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let directory = directory();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let unknown = file(directory.path(), "unknown.toml", b"port = 9644\n");
    let wrong = file(directory.path(), "wrong.toml", b"listen = 'everywhere'\n");
    let not_a_directory = file(directory.path(), "file", b"");
    let [unknown, wrong, not_a_directory] =
        [&unknown, &wrong, &not_a_directory].map(|path| path.to_str().unwrap());
    let rows: [(&[&str], &[&str]); 13] = [
        (&["frobnicate"], &["frobnicate", "--help"]),
        (&["produce"], &["TOPIC"]),
        (&["produce", "t", "--acks", "2"], &["0, 1 or all"]),
        (&["produce", "t", "--file", "/no/such/file"], &["/no/such/file", "No such file"]),
        (&["consume", "t", "--offset", "yesterday"], &["earliest", "@TIME"]),
        (&["consume", "t", "--brokers", "host:port"], &["host:port", "HOST:PORT"]),
        (&["serve", "--data", data, "--listen", "nowhere"], &["--listen"]),
        (&["serve", "--data", data, "--config", unknown], &["port", "data"]),
        (&["serve", "--data", data, "--config", wrong], &["wrong.toml", "listen"]),
        (&["serve", "--data", data, "--cores", "9999"], &["core 9999", "cores are"]),
        (&["serve", "--data", data, "--rounds-in-flight", "5"], &["1 to 4"]),
        (&["serve", "--data", not_a_directory, "--listen", "127.0.0.1:0"], &["cannot start", "file"]),
        (&["serve", "--data", data, "--listen", "192.0.2.1:1"], &["cannot start", "192.0.2.1:1"]),
    ];
    for (line, says) in rows {
        run(line).failed(2, says);
    }
    assert!(!std::path::Path::new(data).exists(), "a broker that did not start made a directory");
}

#[test]
fn a_second_broker_is_refused() {
    let (data, other) = (directory(), directory());
    let broker = Broker::start(data.path());
    let path = |directory: &tempfile::TempDir| directory.path().to_str().unwrap().to_owned();
    run(&["serve", "--data", &path(&other), "--listen", &broker.address])
        .failed(2, &["cannot start", &broker.address, "--listen"]);
    run(&["serve", "--data", &path(&data), "--listen", "127.0.0.1:0"])
        .failed(2, &["cannot start", data.path().to_str().unwrap()]);
    broker.run_with(&["produce", "t"], b"still served\n").ok();
}

#[test]
fn unknown_things_are_named() {
    let data = directory();
    let broker = Broker::start(data.path());
    let missing: &[&str] = &["there is no topic 'missing'", "ringlog topic create missing"];
    broker.run(&["consume", "missing"]).failed(1, missing);
    broker.run_with(&["produce", "missing", "--no-create"], b"x\n").failed(1, missing);
    broker.run_with(&["produce", "missing", "--partition", "3"], b"x\n").failed(1, missing);
    assert!(broker.run(&["topic", "list", "--format", "json"]).ok().text().is_empty(), "nothing was made");
    broker.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    broker.run(&["consume", "t", "--partition", "2"]).failed(1, &["2 partitions", "no partition 2"]);
    // One record above max.message.bytes, which is refused without harm to the next.
    let large = vec![b'x'; 2 << 20];
    broker.run_with(&["produce", "t"], &large).failed(1, &["1 of 1 record", "max.message.bytes"]);
    broker.run_with(&["produce", "t"], b"small\n").ok();
    assert_eq!(broker.run(&["consume", "t", "--until-end"]).ok().text(), "small\n");
    // The bound is the topic's, and may change.
    broker.run(&["topic", "alter", "t", "--set", "max.message.bytes=4MiB"]).ok();
    broker.run_with(&["produce", "t"], &large).ok();
    broker.run(&["topic", "alter", "t", "--set", "max.message.bytes=1KiB"]).ok();
    broker.run_with(&["produce", "t"], &large[..2000]).failed(1, &["max.message.bytes"]);
    assert_eq!(
        broker.run(&["consume", "t", "--until-end"]).ok().stdout.len(),
        "small\n".len() + large.len() + 1
    );
}
