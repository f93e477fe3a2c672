//! Hosts that are not as they should be: a full disk, a strange or foreign directory, no io_uring, little
//! memory to lock, a file system in memory.
//!
//! What needs a right or a tool that is missing says so in a line that starts with SKIPPED. Nothing here
//! changes the host for others: file systems are loop devices and mounts of the test's own, and filters and
//! limits belong to the broker's process alone.

use crate::support::process::{NotStarted, Serve};
use crate::support::records::{Maker, Proof, prove};
use crate::support::refuse_io_uring::refuse_io_uring;
use crate::support::segments::read_segments;
use crate::support::skipped::skipped;
use crate::support::{Directory, block_on, client, create_topic, in_time, until, usable};
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{
    Acks, Client, ConnectionError, ConsumerConfig, ErrorCode, OffsetSpec, ProducerConfig, StartFrom,
};
use schema::segment::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a tool; why it did not work, if it did not.
fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{words:?}: {error}")),
    }
}

/// A file system of the test's own; unmounted when dropped.
struct Mount {
    path: PathBuf,
    _directory: Directory,
}

impl Mount {
    /// ext4 in a file of so many mebibytes.
    fn ext4(mebibytes: u64) -> Result<Self, String> {
        let directory = Directory::new();
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mebibytes << 20).map_err(|error| error.to_string())?;
        let image = image.display().to_string();
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", &image])?;
        Self::new(directory, &["-o", "loop", &image])
    }

    /// A file system without a device.
    fn virtual_one(kind: &str, options: &str) -> Result<Self, String> {
        Self::new(Directory::new(), &["-t", kind, "-o", options, kind])
    }

    fn new(directory: Directory, words: &[&str]) -> Result<Self, String> {
        let path = directory.path().join("mount");
        std::fs::create_dir(&path).map_err(|error| error.to_string())?;
        let target = path.display().to_string();
        run(&[&["mount"], words, &[target.as_str()]].concat())?;
        Ok(Self { path, _directory: directory })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run(&["umount", &self.path.display().to_string()]) {
            eprintln!("{error}");
        }
    }
}

/// `Some`, or a line that says why this test is skipped.
fn or_skip<T>(what: &str, result: Result<T, String>) -> Option<T> {
    result.inspect_err(|why| skipped(&format!("{what}: {why}"))).ok()
}

/// How long an acknowledgement is waited for where it may have to wait for space.
const PATIENCE: Duration = Duration::from_secs(3);
const TOPIC: &str = "host";
type Ledger = BTreeMap<u64, Proof>;

/// Why a produce has not been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Not {
    /// Nothing of it was appended.
    Taken(ErrorCode),
    /// It was appended and waits for space.
    Durable,
}

const FULL: Option<Not> = Some(Not::Taken(ErrorCode::StorageFull));

/// Produces batches until one is not acknowledged or `most` are there.
async fn produce(address: SocketAddr, maker: &mut Maker, ledger: &mut Ledger, most: usize) -> Option<Not> {
    let client = client(address).await;
    let topic = usable(&client, TOPIC).await;
    let place = topic.partitions[0];
    let connection = client.open_connection(0, place.shard).await.expect("a connection");
    for at in 0..most {
        // Small ones too: they are not received in place.
        let made = maker.batch(4, if at % 4 == 0 { 1000 } else { 200_000 });
        let leader_epoch = place.leader_epoch;
        let entry = ProduceEntry { topic: topic.id, partition: 0, leader_epoch, batch: made.batch };
        let request = Request::Produce { acks: Acks::All, explain: false, entries: vec![entry] };
        let reply = match connection.request(request, PATIENCE).await {
            Ok(response) => response.into_result(),
            Err(ConnectionError::TimedOut { .. }) => return Some(Not::Durable),
            Err(error) => panic!("{error}"),
        };
        let Ok(Reply::Produce { results, .. }) = reply else { panic!("{reply:?}") };
        match results[0].error {
            None => ledger.extend((results[0].base_offset..).zip(made.proofs)),
            Some(refusal) => return Some(Not::Taken(refusal)),
        }
    }
    None
}

/// Everything that was acknowledged is there, and can be read.
async fn compare(address: SocketAddr, ledger: &Ledger) {
    let client = client(address).await;
    usable(&client, TOPIC).await;
    let end =
        client.admin().list_offsets(TOPIC, &[(0, OffsetSpec::Latest)]).await.expect("it answers")[0].offset;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(TOPIC, StartFrom::Earliest).await.expect("it is there");
    let mut found = BTreeMap::new();
    while (found.len() as u64) < end {
        let record = in_time("reading back", consumer.next()).await.expect("assigned").expect("served");
        assert_eq!(record.offset, found.len() as u64);
        found.insert(record.offset, record.value.as_deref().and_then(prove).expect("its own bytes"));
    }
    let lost: Vec<_> = ledger.iter().filter(|(offset, proof)| found.get(offset) != Some(proof)).collect();
    assert!(lost.is_empty(), "lost or wrong: {lost:?}");
}

async fn make_topic(address: SocketAddr) {
    let client = client(address).await;
    let configs = [("segment.bytes", "4194304")];
    create_topic(&client, TOPIC, 1, &configs).await;
}

/// Waits until produce is taken again.
async fn produces_again(address: SocketAddr, maker: &mut Maker, ledger: &mut Ledger) {
    let client = client(address).await;
    until("space is noticed", async || produce(address, maker, ledger, 1).await.is_none().then_some(()))
        .await;
    drop(client);
}

#[test]
fn a_full_disk_refuses_and_resumes() {
    let Some(mount) = or_skip("a full disk", Mount::ext4(96)) else { return };
    let data = mount.path.join("data");
    let ballast = mount.path.join("ballast");
    let (mut maker, mut ledger) = (Maker::new(1, 1), Ledger::new());
    let broker = Serve::new(&data).start();
    let acknowledged = block_on(async {
        make_topic(broker.address).await;
        assert_eq!(produce(broker.address, &mut maker, &mut ledger, 20).await, None);
        // Somebody else takes some of the room, the log the rest.
        std::fs::write(&ballast, vec![1; 20 << 20]).expect("there is room");
        let refusal = produce(broker.address, &mut maker, &mut ledger, 10_000).await;
        assert!(refusal == FULL || refusal == Some(Not::Durable), "{refusal:?}");
        let acknowledged = ledger.len();
        // Refused again and again, nothing else suffers.
        for _ in 0..5 {
            assert_eq!(produce(broker.address, &mut maker, &mut ledger, 1).await, FULL);
        }
        compare(broker.address, &ledger).await;
        acknowledged
    });
    // Not a byte is left: neither a crash nor an orderly end loses anything, and the start works.
    fill(&mount.path.join("more"));
    block_on(compare(broker.address, &ledger));
    broker.kill();
    let broker = Serve::new(&data).start();
    block_on(async {
        compare(broker.address, &ledger).await;
        // Until it notices, it may still fill what was prepared.
        let full = async || (produce(broker.address, &mut maker, &mut ledger, 1).await == FULL).then_some(());
        until("the full disk is noticed", full).await;
    });
    broker.stop();
    let broker = Serve::new(&data).start();
    block_on(compare(broker.address, &ledger));
    // Space returns: so does produce, by itself.
    std::fs::remove_file(mount.path.join("more")).expect("it is there");
    std::fs::remove_file(&ballast).expect("it is there");
    block_on(async {
        produces_again(broker.address, &mut maker, &mut ledger).await;
        assert_eq!(produce(broker.address, &mut maker, &mut ledger, 10).await, None);
        compare(broker.address, &ledger).await;
    });
    broker.stop();
    let broker = Serve::new(&data).start();
    block_on(compare(broker.address, &ledger));
    broker.stop();
    println!(
        "full disk: {acknowledged} records acknowledged until it was full, {} in the end, 0 lost",
        ledger.len()
    );
}

/// A partition with a torn tail, whose segment has become too large meanwhile, needs room for another one before it is
/// served. Starts that have none, and no reserve, go on without it, again and again; it is served when there is.
#[test]
fn a_start_on_a_full_disk_serves_what_needs_no_room() {
    let Some(mount) = or_skip("starts on a full disk", Mount::ext4(96)) else { return };
    let data = mount.path.join("data");
    let (mut maker, mut ledger) = (Maker::new(1, 1), Ledger::new());
    let broker = Serve::new(&data).start();
    let torn = block_on(async {
        make_topic(broker.address).await;
        let client = client(broker.address).await;
        let torn = create_topic(&client, TORN, 1, &[]).await;
        assert_eq!(produce(broker.address, &mut maker, &mut ledger, 20).await, None);
        assert_eq!(send(&client, &mut maker).await, 0);
        assert_eq!(send(&client, &mut maker).await, 3);
        let torn = data.join("topics").join(torn.id.to_string()).join("0.0");
        let attested = async || {
            let segments = read_segments(&torn);
            let last = segments.last().and_then(|segment| segment.groups.last());
            last.is_some_and(|last| last.header.batch_count == 0 && last.header.base_offset == 6)
                .then_some(())
        };
        // From then on nothing is written to it.
        until("its end is attested", attested).await;
        let smaller = [("segment.bytes", "1048576"), ("max.message.bytes", "1000000")];
        let smaller = smaller.map(|(name, value)| (name.to_owned(), value.to_owned()));
        client.admin().alter_configs(TORN, &smaller, &[]).await.expect("it is altered");
        torn
    });
    broker.kill();
    leave_remains(&torn);
    let start_without_room = |start: u32| {
        // Somebody else has taken what the reserves gave back.
        let reserves = ["shard-0/reserve", "metadata/reserve"].map(|name| data.join(name));
        reserves.iter().for_each(|reserve| drop(std::fs::remove_file(reserve)));
        let taken = mount.path.join(format!("taken-{start}"));
        fill(&taken);
        // A few blocks for the metadata, which a start adds to; no segment fits into them.
        let file = OpenOptions::new().write(true).open(&taken).expect("it is there");
        let bytes = file.metadata().expect("its size").len();
        file.set_len(bytes.saturating_sub(256 << 10))
            .and_then(|()| file.sync_all())
            .expect("it is made shorter");
        let broker = Serve::new(&data).start();
        block_on(async {
            compare(broker.address, &ledger).await;
            let client = client(broker.address).await;
            let logs = client.admin().describe_logs(TORN).await.expect("it answers");
            assert!(logs[0].error.is_some(), "start {start}: {logs:?}");
            let notices = client.admin().status().await.expect("it answers").notices;
            let told =
                |text: &str| notices.iter().any(|notice| notice.contains(text) && notice.contains(TORN));
            assert!(told("cannot be opened: the disk is full"), "{notices:?}");
        });
        broker
    };
    start_without_room(0).kill();
    start_without_room(1).stop();
    let broker = start_without_room(2);
    assert_eq!(block_on(produce(broker.address, &mut maker, &mut ledger, 1)), FULL);
    for start in 0..3 {
        std::fs::remove_file(mount.path.join(format!("taken-{start}"))).expect("it is there");
    }
    block_on(async {
        produces_again(broker.address, &mut maker, &mut ledger).await;
        let client = client(broker.address).await;
        usable(&client, TORN).await;
        assert_eq!(send(&client, &mut maker).await, 6, "nothing of it is lost");
        compare(broker.address, &ledger).await;
    });
    broker.stop();
}

const TORN: &str = "torn";

/// Three records; the first one's offset.
async fn send(client: &Client, maker: &mut Maker) -> u64 {
    let producer = client.producer(ProducerConfig::default());
    let sent = producer.send_encoded(TORN, 0, maker.batch(3, 250_000).batch).await.expect("it is taken");
    in_time("an acknowledgement", sent).await.expect("it is acknowledged").base_offset
}

/// Behind the last group of a log stand remains of another one, as a power cut leaves them.
fn leave_remains(directory: &Path) {
    let segments = read_segments(directory);
    let segment = segments.last().expect("it has some");
    let last = segment.groups.last().expect("it has some");
    let file = OpenOptions::new().read(true).write(true).open(&segment.path).expect("the segment");
    let mut remains = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut remains, last.position).expect("it is that long");
    remains[40] ^= 1;
    file.write_all_at(&remains, last.position + last.header.disk_bytes()).expect("it is writable");
    file.sync_all().expect("the disk");
}

/// Takes every byte that the file system gives.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    for bytes in [1 << 20, 1 << 12] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
    // That it does not all fit is the point.
    let _ = file.sync_all();
}

#[test]
fn the_last_byte_is_taken_under_load() {
    fills_up_under_load("ext4", Mount::ext4(96));
}

/// Writes are cut short there by whole pages, where a disk refuses them as a whole.
#[test]
fn the_last_page_of_a_tmpfs_is_taken_under_load() {
    fills_up_under_load("tmpfs", Mount::virtual_one("tmpfs", "size=96m"));
}

fn fills_up_under_load(kind: &str, mount: Result<Mount, String>) {
    let Some(mount) = or_skip("a disk that fills up under load", mount) else { return };
    let data = mount.path.join("data");
    let (mut maker, mut ledger) = (Maker::new(1, 1), Ledger::new());
    let mut broker = Serve::new(&data).start();
    block_on(make_topic(broker.address));
    for round in 0..3 {
        let taken = mount.path.join("taken");
        let taking = {
            let taken = taken.clone();
            std::thread::spawn(move || fill(&taken))
        };
        let refusal = block_on(produce(broker.address, &mut maker, &mut ledger, 300));
        taking.join().expect("it only writes");
        let expected = [None, FULL, Some(Not::Durable)];
        assert!(expected.contains(&refusal), "round {round}: {refusal:?}");
        assert!(broker.is_running(), "round {round}: it ended on a full disk");
        block_on(compare(broker.address, &ledger));
        if round == 1 {
            broker.kill();
            broker = Serve::new(&data).start();
            block_on(compare(broker.address, &ledger));
        }
        std::fs::remove_file(&taken).expect("it is there");
        block_on(produces_again(broker.address, &mut maker, &mut ledger));
    }
    block_on(compare(broker.address, &ledger));
    broker.stop();
    println!("{kind} filled up under load: 3 times, {} records acknowledged, 0 lost", ledger.len());
}

#[test]
fn a_file_system_in_memory_works_and_says_what_is_lost() {
    for (kind, options, expect) in [
        (
            "tmpfs",
            "size=256m",
            vec!["warning (file_system)", "lives in memory", "nothing survives a restart"],
        ),
        (
            "ramfs",
            "mode=700",
            vec!["warning (file_system)", "lives in memory", "warning (o_direct)", "no O_DIRECT"],
        ),
    ] {
        let Some(mount) = or_skip(kind, Mount::virtual_one(kind, options)) else { continue };
        let data = mount.path.join("data");
        let (mut maker, mut ledger) = (Maker::new(1, 1), Ledger::new());
        let broker = Serve::new(&data).start();
        block_on(async {
            make_topic(broker.address).await;
            assert_eq!(produce(broker.address, &mut maker, &mut ledger, 30).await, None, "{kind}");
            compare(broker.address, &ledger).await;
        });
        let told = broker.kill();
        assert!(expect.iter().all(|part| told.contains(part)), "{kind}: {told}");
        let broker = Serve::new(&data).start();
        block_on(compare(broker.address, &ledger));
        broker.stop();
        println!("{kind}: works, and says what is lost");
    }
}

/// The start fails with a message that has all of these in it.
#[track_caller]
fn refuses(what: &str, serve: Serve, parts: &[&str]) {
    let Err(NotStarted { status, stderr }) = serve.try_start() else { panic!("{what}: it starts") };
    assert_eq!(status.code(), Some(2), "{what}: {status}: {stderr}");
    assert!(parts.iter().all(|part| stderr.contains(part)), "{what}, {parts:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

#[test]
fn directories_and_ports_that_cannot_be_used() {
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name);

    // Somebody else's: not a file of it is touched.
    std::fs::create_dir(path("foreign")).expect("a directory");
    std::fs::write(path("foreign").join("thesis.txt"), "irreplaceable").expect("a file");
    refuses(
        "foreign",
        Serve::new(&path("foreign")),
        &["thesis.txt", "not a Ringlog data directory", "--data"],
    );
    let left: Vec<_> = std::fs::read_dir(path("foreign")).expect("it is there").collect();
    assert_eq!(left.len(), 1, "{left:?}");

    std::fs::write(path("file"), "").expect("a file");
    refuses("a file", Serve::new(&path("file")), &["--data", "file"]);
    refuses("below a file", Serve::new(&path("file").join("data")), &["--data", "file"]);

    // Of another disk: the shard's checkpoint names it.
    let broker = Serve::new(&path("moved")).start();
    block_on(make_topic(broker.address));
    broker.stop();
    let identity = path("moved").join("storage.uuid");
    std::fs::write(&identity, format!("{:032x}\n", 12345)).expect("it is writable");
    refuses(
        "another identity",
        Serve::new(&path("moved")),
        &["data directory", "not the one that its metadata belongs to"],
    );
    std::fs::write(&identity, "nonsense").expect("it is writable");
    refuses("no identity", Serve::new(&path("moved")), &["storage.uuid", "damaged"]);

    // In use, by directory and by port.
    let first = Serve::new(&path("used")).start();
    refuses("the same directory", Serve::new(&path("used")), &["in use by another broker", "--data"]);
    let port = Serve::new(&path("other")).listen(first.address);
    refuses("the same port", port, &["cannot listen on", &first.address.to_string(), "--listen"]);
    block_on(async {
        make_topic(first.address).await;
        assert_eq!(produce(first.address, &mut Maker::new(1, 1), &mut Ledger::new(), 3).await, None);
    });
    first.stop();
    println!("directories and ports: 7 refused, each with what to do");
}

/// Wrapping words that run a broker as nobody; `None` where this user cannot become nobody.
fn as_nobody(what: &str) -> Option<Vec<String>> {
    if !is_root() {
        skipped(&format!("{what}: only root can become somebody else"));
        return None;
    }
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    or_skip(what, run(&[&words[..], &["true"]].concat()))?;
    Some(words.iter().map(|word| (*word).to_owned()).collect())
}

/// A directory that belongs to nobody.
fn nobodys_directory() -> Directory {
    let directory = Directory::new();
    std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).expect("root may");
    directory
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_directory_that_cannot_be_written() {
    let Some(nobody) = as_nobody("an unwritable directory") else { return };
    let directory = Directory::new();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    let serve = Serve::new(&directory.path().join("data")).through(&words(&nobody));
    refuses("not permitted", serve, &["cannot write to", "writable", "--data"]);
    let Some(mount) = or_skip("a read-only file system", Mount::virtual_one("tmpfs", "ro")) else { return };
    refuses("read-only", Serve::new(&mount.path.join("data")), &["read-write", "--data"]);
    println!("unwritable directories: 2 refused");
}

#[test]
fn little_locked_memory() {
    let Some(nobody) = as_nobody("little locked memory") else { return };
    let limited = |kib: u64| {
        let limit = format!("--memlock={}:{}", kib << 10, kib << 10);
        let mut words = nobody.clone();
        words.extend(["prlimit".to_owned(), limit]);
        words
    };
    or_skip("little locked memory", run(&["prlimit", "--version"]));
    let directory = nobodys_directory();
    let serve = Serve::new(&directory.path().join("data")).through(&words(&limited(64)));
    refuses("64 KiB", serve, &["locked memory", "ulimit -l"]);

    // Enough to start with, not enough for everything: it works and says what it costs.
    let serve = Serve::new(&directory.path().join("data")).through(&words(&limited(1024)));
    let broker = serve.start();
    let (mut maker, mut ledger) = (Maker::new(1, 1), Ledger::new());
    block_on(async {
        make_topic(broker.address).await;
        assert_eq!(produce(broker.address, &mut maker, &mut ledger, 20).await, None);
        compare(broker.address, &ledger).await;
    });
    let told = broker.stop();
    assert!(told.contains("warning (locked_memory)") && told.contains("ulimit -l"), "{told}");
    println!("little locked memory: too little is refused, less is said");
}

#[test]
fn no_io_uring() {
    let directory = Directory::new();
    let serve = Serve::new(&directory.path().join("data")).prepared(refuse_io_uring);
    refuses("no io_uring", serve, &["io_uring", "seccomp", "fix:"]);
    assert!(!directory.path().join("data").exists(), "it made a directory that it cannot use");
    println!("no io_uring: refused, with what to do");
}
