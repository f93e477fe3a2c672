//! Hosts of their own: network namespaces on one bridge, whose links can be cut, both ways or one way.
//!
//! Owner: one test; everything is removed with it, whatever the test did. Host 0 is this process, at the bridge. A cut is
//! silent: nobody is told, packets are lost, as with a cable or a switch. Needs `ip` of iproute2, and the right to make
//! namespaces: without the right a run says so and passes, without the tool it fails. Absent on purpose:
//! loss and delay, which a kernel may not offer; see [`super::slow_link`].

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// A bridge and the hosts on it.
pub struct Network {
    /// Of everything that this network has.
    name: String,
    prefix: [u8; 3],
    hosts: u8,
}

/// Why something was not done.
#[derive(Debug)]
enum NotDone {
    /// This process may not.
    NoRights(String),
    /// A tool is missing, or the kernel did not want it.
    Failed(String),
}

fn ip(arguments: &str) -> Result<(), NotDone> {
    let words = arguments.split_whitespace();
    let output = Command::new("ip").args(words).output();
    let output = output.map_err(|error| NotDone::Failed(format!("ip: {error}; install iproute2")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NotDone::of(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

impl NotDone {
    /// What `ip` has said.
    fn of(said: String) -> Self {
        // The words for EPERM and EACCES, which it does not translate.
        let no_rights = ["Operation not permitted", "Permission denied"];
        match no_rights.iter().any(|words| said.contains(words)) {
            true => Self::NoRights(said),
            false => Self::Failed(said),
        }
    }
}

impl Network {
    /// A network with hosts 1 to `hosts` beside this process.
    fn new(hosts: u8) -> Result<Self, NotDone> {
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(16).wrapping_add(number) % (64 * 256);
        let prefix = [10, 64 + (place / 256) as u8, (place % 256) as u8];
        // Names of interfaces have at most 15 letters.
        let network = Self { name: format!("rl{place:x}"), prefix, hosts };
        network.make()?;
        Ok(network)
    }

    fn make(&self) -> Result<(), NotDone> {
        let name = &self.name;
        ip(&format!("link add {name} type bridge"))?;
        ip(&format!("addr add {}/24 dev {name}", self.address(0)))?;
        ip(&format!("link set {name} up"))?;
        for host in 1..=self.hosts {
            let (space, link) = (self.space(host), self.link(host));
            ip(&format!("addr add {}/24 dev {name}", self.front(host)))?;
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {link} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {link} master {name}"))?;
            ip(&format!("link set {link} up"))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", self.address(host)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(())
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
        for host in 1..=self.hosts {
            let _ = ip(&format!("route del blackhole {}/32", self.address(host)));
            let _ = ip(&format!("link del {}", self.link(host)));
            let _ = ip(&format!("netns del {}", self.space(host)));
        }
        let _ = ip(&format!("link del {}", self.name));
    }
}

/// A network, or a line that says which right is missing for one.
///
/// # Panics
/// It cannot be made for another reason: what tests need is installed, and is found out if not.
pub fn network(hosts: u8) -> Option<Network> {
    match Network::new(hosts) {
        Ok(network) => Some(network),
        Err(NotDone::Failed(why)) => panic!("no network can be made: {why}"),
        Err(NotDone::NoRights(why)) => {
            use std::io::Write;
            // Not println: the harness would keep it to itself, because the test passes.
            let _ = writeln!(std::io::stderr(), "NOT run, networks may not be made here: {why}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

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
    fn echo(network: &Network, host: u8) -> std::process::Child {
        let script = format!(
            "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('{}',7007))\n\
             print('ready',flush=True)\nwhile True:\n d,a=s.recvfrom(9)\n try: s.sendto(d,a)\n except OSError: pass",
            network.address(host)
        );
        let words = network.enter(host);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["python3", "-c", &script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python is there");
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
        std::io::BufRead::read_line(&mut output, &mut line).expect("it says ready");
        child
    }

    #[test]
    fn only_a_missing_right_is_no_failure() {
        let rows = [
            ("ip link add rl0 type bridge: RTNETLINK answers: Operation not permitted", true),
            ("ip netns add rl0s1: mkdir /run/netns failed: Permission denied", true),
            ("ip link add rl0 type bridge: Error: Unknown device type.", false),
            ("ip: No such file or directory (os error 2); install iproute2", false),
        ];
        for (said, no_rights) in rows {
            assert_eq!(matches!(NotDone::of(said.to_owned()), NotDone::NoRights(_)), no_rights, "{said}");
        }
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
