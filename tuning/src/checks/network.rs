//! Sockets, ports, and on which cores the network's work is done.
//!
//! Rows of the catalogue; see the parent module.

use crate::doctor::Host;
use crate::finding::{Check, Severity, Verdict};
use crate::sources::{list, mask, names, text, to_list};
use std::path::PathBuf;

/// What the runtime asks for when it listens (glommio-ng 0.12).
const BACKLOG: i64 = 1024;
/// Fewer are soon used up by clients on this host that come and go.
const LOCAL_PORTS_MIN: usize = 16_384;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "backlog",
        complains: "net.core.somaxconn is below the 1024 that a shard asks for",
        severities: &[Severity::Warning],
        cost: "when many clients connect at once, as after a restart, some are not answered and try again a second later",
        fix: "sysctl net.core.somaxconn=4096",
        judge: Some(backlog),
    },
    Check {
        name: "syn_backlog",
        complains: "net.ipv4.tcp_max_syn_backlog is below 1024",
        severities: &[Severity::Note],
        cost: "when many clients connect at once the kernel answers with cookies, without window scaling if the client has \
               no timestamps, or not at all if cookies are off",
        fix: "sysctl net.ipv4.tcp_max_syn_backlog=4096",
        judge: Some(syn_backlog),
    },
    Check {
        name: "local_ports",
        complains: "the broker's port may be taken by an outgoing connection (warning), or there are fewer than 16,384 \
                    of those (note)",
        severities: &[Severity::Warning, Severity::Note],
        cost: "fewer ports: clients on this host that open and close connections run out of them for a minute at a time",
        fix: "sysctl net.ipv4.ip_local_port_range=\"32768 60999\"",
        judge: Some(local_ports),
    },
    Check {
        name: "irq_affinity",
        complains: "all queues of a network card interrupt one core (warning), or cores of shards (note)",
        severities: &[Severity::Warning, Severity::Note],
        cost: "interrupts and the work behind them stop the shard that has the core",
        fix: "leave a core to them, and give it to the card's interrupts in /proc/irq/N/smp_affinity_list (and stop \
              irqbalance)",
        judge: Some(irq_affinity),
    },
    Check {
        name: "packet_steering",
        complains: "packets are steered to cores of shards (RPS), or senders share queues though the card has several (XPS)",
        severities: &[Severity::Note],
        cost: "the work of the network is done on the shards' cores, or shards wait for each other's lock of a queue",
        fix: "write a mask without the shards' cores to /sys/class/net/CARD/queues/rx-N/rps_cpus; a core's mask to each \
              tx-N/xps_cpus",
        judge: Some(packet_steering),
    },
];

fn backlog(host: &Host) -> Verdict {
    let Some(limit) = host.sources.sysctl_number("net.core.somaxconn") else {
        return Verdict::fine("the kernel does not say");
    };
    let found = format!("net.core.somaxconn = {limit}");
    if limit < BACKLOG { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn syn_backlog(host: &Host) -> Verdict {
    let Some(limit) = host.sources.sysctl_number("net.ipv4.tcp_max_syn_backlog") else {
        return Verdict::fine("the kernel does not say");
    };
    let found = format!("net.ipv4.tcp_max_syn_backlog = {limit}");
    if limit < BACKLOG { Verdict::note(found) } else { Verdict::fine(found) }
}

/// The first and the last port for outgoing connections; `None` if the kernel does not say.
fn local_port_range(host: &Host) -> Option<(usize, usize)> {
    let range = host.sources.sysctl("net.ipv4.ip_local_port_range")?;
    let ends: Vec<usize> = range.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    if let [first, last] = ends[..] { Some((first, last)) } else { None }
}

/// The broker's port with all that are reserved already, as the kernel writes them; `None` if no outgoing
/// connection can take it.
pub(crate) fn unreserved_port(host: &Host) -> Option<String> {
    let port = usize::from(host.subject.listen.port());
    let (first, last) = local_port_range(host)?;
    let mut reserved = list(&host.sources.sysctl("net.ipv4.ip_local_reserved_ports").unwrap_or_default());
    if port == 0 || !(first..=last).contains(&port) || reserved.contains(&port) {
        return None;
    }
    reserved.push(port);
    Some(to_list(&reserved))
}

fn local_ports(host: &Host) -> Verdict {
    let Some((first, last)) = local_port_range(host) else { return Verdict::fine("the kernel does not say") };
    if let Some(reserved) = unreserved_port(host) {
        let port = host.subject.listen.port();
        return Verdict::warning(format!(
            "port {port} is within net.ipv4.ip_local_port_range, {first} to {last}"
        ))
        .cost("while the broker is down an outgoing connection may take its port, and it cannot start again")
        .fix(format!("sysctl net.ipv4.ip_local_reserved_ports={reserved}, or listen on a port outside"));
    }
    let count = (last + 1).saturating_sub(first);
    let found = format!("{count} ports for outgoing connections, {first} to {last}");
    if count < LOCAL_PORTS_MIN { Verdict::note(found) } else { Verdict::fine(found) }
}

/// Folders of the interfaces that have a device behind them.
fn cards(host: &Host) -> Vec<(String, PathBuf)> {
    let folder = host.sources.sys.join("class/net");
    let cards = names(&folder, "").into_iter().map(|name| (name.clone(), folder.join(name)));
    cards.filter(|(_, path)| path.join("device").exists()).collect()
}

fn irq_affinity(host: &Host) -> Verdict {
    let mut noted = None;
    for (name, path) in cards(host) {
        let per_interrupt = host.interrupted_cores(&path);
        let mut cores: Vec<usize> = per_interrupt.iter().flatten().copied().collect();
        cores.sort_unstable();
        cores.dedup();
        let queues = names(&path.join("queues"), "rx-").len();
        if queues > 1 && per_interrupt.len() > 1 && cores.len() == 1 && host.online_cores().len() > 1 {
            let found = format!("{name} has {queues} queues, and all of them interrupt core {}", cores[0]);
            return Verdict::warning(found).cost("that core is the limit of what this host can receive");
        }
        cores.retain(|core| host.shard_cores().contains(core));
        if !cores.is_empty() && noted.is_none() {
            let found = format!("{name} interrupts cores of shards: {}", to_list(&cores));
            let spare = host.spare_cores();
            noted = Some(match (spare.is_empty(), host.shard_cores().len()) {
                (false, _) => Verdict::note(found).fix(format!(
                    "echo {} > /proc/irq/N/smp_affinity_list for each N in /sys/class/net/{name}/device/msi_irqs \
                     (virtio: …/device/../msi_irqs), and stop irqbalance",
                    to_list(&spare)
                )),
                (true, 1) => Verdict::note(found).fix("there is one core: nothing"),
                (true, count) => Verdict::note(found)
                    .fix(format!("if the network is the limit, leave a core to it: --shards {}", count - 1)),
            });
        }
    }
    noted.unwrap_or_else(|| Verdict::fine("no card is known to interrupt a shard's core"))
}

/// A queue whose packets are steered to cores of shards (RPS).
pub(crate) struct Steered {
    /// The interface and its queue, for people.
    queue: String,
    /// The file with the mask.
    pub(crate) mask: PathBuf,
    /// The cores of shards in it.
    shards: Vec<usize>,
    /// The other cores in it.
    pub(crate) others: Vec<usize>,
}

/// Every such queue.
pub(crate) fn steered(host: &Host) -> Vec<Steered> {
    let mut found = Vec::new();
    for (card, path) in cards(host) {
        let queues = path.join("queues");
        for queue in names(&queues, "rx-") {
            let path = queues.join(&queue).join("rps_cpus");
            let cores = mask(&text(&path).unwrap_or_default()).into_iter();
            let (shards, others): (Vec<_>, _) = cores.partition(|core| host.shard_cores().contains(core));
            if !shards.is_empty() {
                found.push(Steered { queue: format!("{card} {queue}"), mask: path, shards, others });
            }
        }
    }
    found
}

fn packet_steering(host: &Host) -> Verdict {
    if let Some(Steered { queue, shards, .. }) = steered(host).first() {
        return Verdict::note(format!("{queue} steers packets to cores of shards: {}", to_list(shards)));
    }
    for (name, path) in cards(host) {
        let queues = path.join("queues");
        let senders = names(&queues, "tx-");
        let masks: Vec<String> =
            senders.iter().filter_map(|queue| text(&queues.join(queue).join("xps_cpus"))).collect();
        if masks.len() > 1 && masks.iter().all(|text| mask(text).is_empty()) {
            return Verdict::note(format!(
                "{name} has {} queues for sending, and none belongs to a core",
                masks.len()
            ));
        }
    }
    Verdict::fine("no card steers packets to a shard's core")
}
