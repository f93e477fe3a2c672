//! Hosts of their own: network namespaces on one bridge, whose links can be cut, both ways or one way.
//!
//! Owner: one test; everything is removed with it, whatever the test did, and what a test that was killed has left by the
//! next process that makes a network. `hosts.sh` beside this file makes and removes them, for a person too. Host 0 is this
//! process, at the bridge. A cut is silent: nobody is told, packets are lost, as with a cable or a switch. Needs `ip` of
//! iproute2, and the right to make namespaces: without the right a run says so and passes, without the tool it fails. Absent
//! on purpose: loss and delay, which a kernel may not offer; see [`super::slow_link`].

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static NETWORKS: AtomicU32 = AtomicU32::new(0);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/hosts.sh");
/// What the script ends with where a right is missing.
const NO_RIGHTS: i32 = 77;

/// A bridge and the hosts on it.
pub struct Network {
    /// Of everything that this network has.
    name: String,
    prefix: [u8; 3],
}

/// Why something was not done.
#[derive(Debug)]
enum NotDone {
    /// This process may not.
    NoRights(String),
    /// A tool is missing, or the kernel did not want it.
    Failed(String),
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Runs `hosts.sh`; what it makes belongs to process `owner`.
fn script(owner: u32, prepare: impl FnOnce(&mut Command)) -> Result<(), NotDone> {
    let mut command = Command::new("/bin/sh");
    command.arg(SCRIPT).env("RINGLOG_HOSTS_OWNER", owner.to_string());
    prepare(&mut command);
    let output = command.output().map_err(|error| NotDone::Failed(format!("/bin/sh: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(NO_RIGHTS) => Err(NotDone::NoRights(said)),
        _ => Err(NotDone::Failed(said)),
    }
}

fn sweep() -> Result<(), NotDone> {
    script(std::process::id(), |command| {
        command.arg("sweep");
    })
}

impl Network {
    /// A network with hosts 1 to `hosts` beside this process, which is there as long as process `owner` is.
    fn new(owner: u32, hosts: u8) -> Result<Self, NotDone> {
        static SWEPT: Once = Once::new();
        // What cannot be removed is in nobody's way, or the next step says so.
        SWEPT.call_once(|| drop(sweep()));
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(16).wrapping_add(number) % (64 * 256);
        let prefix = [10, 64 + (place / 256) as u8, (place % 256) as u8];
        let network = Self { name: format!("rl{place:x}"), prefix };
        let [a, b, c] = prefix;
        script(owner, |command| {
            command.args(["up", &network.name, &hosts.to_string(), &format!("{a}.{b}.{c}")]);
        })?;
        Ok(network)
    }

    fn space(&self, host: u8) -> String {
        format!("{}s{host}", self.name)
    }

    fn link(&self, host: u8) -> String {
        format!("{}l{host}", self.name)
    }

    /// The address of a host; 0 = this process.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, 1 + host)
    }

    /// An address of this process that stands for a host: whoever listens there may pass on what is meant for it.
    pub fn front(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, 101 + host)
    }

    /// The words that run what follows them on a host.
    pub fn enter(&self, host: u8) -> [String; 4] {
        ["ip".into(), "netns".into(), "exec".into(), self.space(host)]
    }

    /// From now on nothing gets to a host or from it.
    pub fn isolate(&self, host: u8) {
        ip(&format!("link set {} down", self.link(host))).expect("the link is there");
    }

    /// A host is back.
    pub fn join(&self, host: u8) {
        ip(&format!("link set {} up", self.link(host))).expect("the link is there");
    }

    /// From now on nothing gets from one host to another; the other way it does.
    pub fn cut(&self, from: u8, to: u8) {
        self.route("add", from, to);
    }

    /// It does again.
    pub fn mend(&self, from: u8, to: u8) {
        self.route("del", from, to);
    }

    fn route(&self, what: &str, from: u8, to: u8) {
        let within = if from == 0 { String::new() } else { format!("-n {} ", self.space(from)) };
        ip(&format!("{within}route {what} blackhole {}/32", self.address(to)))
            .expect("routes can be changed");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made cannot be removed.
        let _ = script(std::process::id(), |command| {
            command.args(["down", &self.name]);
        });
    }
}

/// A network, or a line that says which right is missing for one.
///
/// # Panics
/// It cannot be made for another reason: what tests need is installed, and is found out if not.
pub fn network(hosts: u8) -> Option<Network> {
    match Network::new(std::process::id(), hosts) {
        Ok(network) => Some(network),
        Err(NotDone::Failed(why)) => panic!("no network can be made: {why}"),
        Err(NotDone::NoRights(why)) => {
            crate::skipped::skipped(&format!("networks may not be made here: {why}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Stdio};

    /// Whether host `from` gets an answer from host `to`.
    fn reaches(network: &Network, from: u8, to: u8) -> bool {
        let script = format!(
            "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(1)\n\
             s.bind(('{}',0))\ns.sendto(b'x',('{}',7007))\ns.recv(1)",
            network.address(from),
            network.address(to)
        );
        let mut words: Vec<String> = if from == 0 { Vec::new() } else { network.enter(from).into() };
        words.extend(["python3".into(), "-c".into(), script]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("python is there").success()
    }

    /// Answers every datagram, on a host, until killed.
    fn echo(network: &Network, host: u8) -> Child {
        let script = format!(
            "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('{}',7007))\n\
             print('ready',flush=True)\nwhile True:\n d,a=s.recvfrom(9)\n try: s.sendto(d,a)\n except OSError: pass",
            network.address(host)
        );
        let words = network.enter(host);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["python3", "-c", &script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python is there");
        wait_for_line(&mut child);
        child
    }

    /// It has said something, and so runs where it is meant to.
    fn wait_for_line(child: &mut Child) {
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        output.read_line(&mut line).expect("it says ready");
        assert_eq!(line, "ready\n");
    }

    #[test]
    fn only_a_missing_right_is_no_failure() {
        let rows = [
            ("RTNETLINK answers: Operation not permitted", true),
            ("mkdir /run/netns failed: Permission denied", true),
            ("Error: Unknown device type.", false),
        ];
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
        // Another `ip` comes first: it knows no link, and makes none.
        let path = format!("{}:{}", place.path().display(), std::env::var("PATH").expect("there is one"));
        let up = |path: &str| {
            script(0, |command| {
                command.args(["up", "rl-none", "1"]).env("PATH", path);
            })
            .expect_err("no ip")
        };
        let fake = place.path().join("ip");
        for (said, no_rights) in rows {
            std::fs::write(&fake, format!("#!/bin/sh\necho '{said}' >&2\nexit 2\n"))
                .expect("it can be written to");
            std::fs::set_permissions(&fake, Permissions::from_mode(0o755)).expect("it is ours");
            let why = up(&path);
            assert_eq!(matches!(why, NotDone::NoRights(_)), no_rights, "{why:?}");
            assert!(
                matches!(&why, NotDone::NoRights(why) | NotDone::Failed(why) if why.ends_with(said)),
                "{why:?}"
            );
        }
        // And none at all: sh finds what it needs by itself.
        std::fs::remove_file(&fake).expect("it is there");
        let why = up(&place.path().display().to_string());
        assert!(matches!(&why, NotDone::Failed(why) if why.contains("install iproute2")), "{why:?}");
    }

    #[test]
    fn what_a_killed_test_has_left_is_swept_away() {
        let Some(kept) = network(1) else { return };
        let mut maker = Command::new("sleep").arg("1000").spawn().expect("it is everywhere");
        let left = Network::new(maker.id(), 2).expect("one could be made");
        let words = left.enter(2);
        let mut runs = Command::new(&words[0]);
        runs.args(&words[1..]).args(["sh", "-c", "echo ready && exec sleep 1000"]).stdout(Stdio::piped());
        let mut runs = runs.spawn().expect("it runs");
        wait_for_line(&mut runs);
        let is_there =
            |network: &Network, host: u8| ip(&format!("-n {} link show eth0", network.space(host))).is_ok();
        assert!(is_there(&left, 1) && is_there(&left, 2) && is_there(&kept, 1));
        maker.kill().and_then(|()| maker.wait()).expect("it is our child");
        sweep().expect("nothing is in its way");
        assert!(
            !is_there(&left, 1) && !is_there(&left, 2) && ip(&format!("link show {}", left.name)).is_err()
        );
        assert!(!runs.wait().expect("it is our child").success(), "what ran there is killed");
        assert!(is_there(&kept, 1) && ip(&format!("link show {}", kept.name)).is_ok());
    }

    #[test]
    fn links_are_cut_both_ways_or_one_way() {
        let Some(network) = network(2) else { return };
        let mut echoes = [echo(&network, 1), echo(&network, 2)];
        let all = || [reaches(&network, 0, 1), reaches(&network, 1, 2), reaches(&network, 2, 1)];
        assert_eq!(all(), [true; 3]);
        network.isolate(1);
        assert_eq!(all(), [false; 3]);
        network.join(1);
        // Of a question and its answer either may be lost.
        network.cut(1, 2);
        assert_eq!(all(), [true, false, false]);
        network.mend(1, 2);
        network.cut(0, 1);
        assert_eq!(all(), [false, true, true]);
        network.mend(0, 1);
        assert_eq!(all(), [true; 3]);
        for echo in &mut echoes {
            echo.kill().expect("it runs");
            echo.wait().expect("it is our child");
        }
    }
}
