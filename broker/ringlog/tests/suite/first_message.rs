//! Three commands to the first message, and it is still there after a stop.

use crate::process::{Broker, directory};

#[test]
fn three_commands_to_the_first_message() {
    let data = directory();
    let broker = Broker::start(data.path());
    let said = broker.first_lines.join("\n");
    for part in [data.path().to_str().unwrap(), "2 shards, not pinned to cores", "listening on 127.0.0.1:0"] {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }

    let produced = broker.run_with(&["produce", "greetings"], b"hello\n").ok();
    assert!(produced.stderr.contains("created topic greetings with "), "{}", produced.stderr);
    assert!(produced.stderr.contains("ringlog topic create NAME --partitions N"), "{}", produced.stderr);
    assert!(produced.text().contains("1 record in topic greetings: partition 0, offset 0, durability "));
    assert!(!produced.text().contains("durability none"), "{}", produced.text());

    let consumed = broker.run(&["consume", "greetings", "--max", "1"]).ok();
    assert_eq!(consumed.text(), "hello\n");

    let again = broker.run_with(&["produce", "greetings", "--no-create"], b"again\n").ok();
    assert!(!again.stderr.contains("created"), "{}", again.stderr);

    for (signal, name) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT")] {
        let data = directory();
        let broker = Broker::start(data.path());
        let (status, said) = broker.stop(signal);
        assert!(status.success(), "{status}");
        assert!(said[0].contains(name) && said.last().unwrap() == "stopped in order", "{said:?}");
    }

    let (status, _) = broker.stop(libc::SIGTERM);
    assert!(status.success());
    let broker = Broker::start(data.path());
    let kept = broker.run(&["consume", "greetings", "--until-end"]).ok();
    let mut kept: Vec<String> = kept.text().lines().map(str::to_owned).collect();
    kept.sort();
    assert_eq!(kept, ["again", "hello"]);
}

#[test]
fn settings_from_a_file() {
    let directory = directory();
    let data = directory.path().join("of-the-file");
    let text = format!(
        "data = '{}'\nlisten = '127.0.0.1:0'\nshards = 3\ncores = 'none'\nrounds-in-flight = 1\n",
        data.display()
    );
    let file = crate::process::file(directory.path(), "ringlog.toml", text.as_bytes());
    // The harness gives --data, which is over the file's.
    let other = directory.path().join("of-the-line");
    let broker = Broker::start_with(&other, &["--config", file.to_str().unwrap(), "--shards", "1"]);
    assert!(other.exists() && !data.exists());
    assert!(broker.first_lines.iter().any(|line| line.starts_with("1 shard,")), "{:?}", broker.first_lines);
    let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
    assert_eq!(status["shards"].as_array().unwrap().len(), 1);
}
