//! The shards' cores: frequency, sleep, siblings, memory nodes.
//!
//! Rows of the catalogue; see the parent module.

use crate::doctor::Host;
use crate::finding::{Check, Severity, Verdict};
use crate::sources::{list, names, number, text, to_list};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Sleep states that take longer to leave are worth knowing.
pub(crate) const IDLE_EXIT_US_MAX: i64 = 20;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "governor",
        complains: "the frequency of a shard's core follows its load",
        severities: &[Severity::Warning, Severity::Note],
        cost: "a core that was idle begins slowly: the first requests after a pause take up to several times as long, and \
               every measurement depends on what ran before",
        fix: "cpupower frequency-set -g performance",
        judge: Some(governor),
    },
    Check {
        name: "idle_states",
        complains: "a shard's core may sleep so deeply that it takes more than 20 us to wake",
        severities: &[Severity::Note],
        cost: "a request that meets a sleeping shard waits that long",
        fix: "ringlog serve --poll-us 50, or cpupower idle-set -D 20",
        judge: Some(idle_states),
    },
    Check {
        name: "smt",
        complains: "two shards run on hardware threads of one core",
        severities: &[Severity::Note],
        cost: "both together do perhaps 1.3 times the work of one, and each is slower whenever the other works: fine for \
               throughput, bad for even latencies",
        fix: "name one thread of each core: --cores LIST",
        judge: Some(smt),
    },
    Check {
        name: "numa",
        complains: "the shards are spread over several memory nodes, or the disk is at another node than they",
        severities: &[Severity::Note],
        cost: "requests that hop between shards and data on its way to the disk cross the link between the nodes",
        fix: "one broker per node, on cores of the node that the disk is at: --cores LIST",
        judge: Some(numa),
    },
    Check {
        name: "numa_balancing",
        complains: "several memory nodes, and the kernel moves memory between them by itself (kernel.numa_balancing, \
                    vm.zone_reclaim_mode)",
        severities: &[Severity::Warning],
        cost: "pages are unmapped to see who uses them: faults and shoot-downs for threads that are pinned anyway",
        fix: "sysctl kernel.numa_balancing=0 vm.zone_reclaim_mode=0",
        judge: Some(numa_balancing),
    },
];

/// Folders of the frequency policies that a shard's core belongs to.
pub(crate) fn policies(host: &Host) -> Vec<PathBuf> {
    let folder = host.sources.sys.join("devices/system/cpu/cpufreq");
    let policies = names(&folder, "policy").into_iter().map(|name| folder.join(name));
    let concerned = |policy: &PathBuf| {
        let cores = text(&policy.join("affected_cpus")).unwrap_or_default();
        cores.split(' ').filter_map(|core| core.parse().ok()).any(|core| host.shard_cores().contains(&core))
    };
    policies.filter(concerned).collect()
}

fn governor(host: &Host) -> Verdict {
    let policies = policies(host);
    if policies.is_empty() {
        return Verdict::fine(
            "this host does not let its frequencies be chosen (virtual machines rarely do)",
        );
    }
    let mut worst = Verdict::fine("performance");
    for policy in policies {
        let file = |name: &str| text(&policy.join(name)).unwrap_or_default();
        let (governor, driver) = (file("scaling_governor"), file("scaling_driver"));
        if governor == "performance" {
            continue;
        }
        let preference = file("energy_performance_preference");
        let found = format!("cores {} follow {governor} ({driver})", file("affected_cpus"));
        // There the hardware decides, and "powersave" is the name of its normal way.
        if matches!(driver.as_str(), "intel_pstate" | "amd-pstate-epp") && !preference.is_empty() {
            worst = Verdict::note(format!("{found}, preference {preference}"));
        } else {
            return Verdict::warning(found);
        }
    }
    worst
}

/// Files that switch off the sleep states of the shards' cores that take too long to leave, with the state's
/// name and what it takes, us; only states that are on.
pub(crate) fn deep_states(host: &Host) -> Vec<(PathBuf, String, i64)> {
    let mut deep = Vec::new();
    for core in host.shard_cores() {
        let folder = host.sources.sys.join(format!("devices/system/cpu/cpu{core}/cpuidle"));
        for state in names(&folder, "state").into_iter().map(|name| folder.join(name)) {
            let latency = number(&state.join("latency")).unwrap_or(0);
            if latency > IDLE_EXIT_US_MAX && number(&state.join("disable")) == Some(0) {
                deep.push((state.join("disable"), text(&state.join("name")).unwrap_or_default(), latency));
            }
        }
    }
    deep
}

fn idle_states(host: &Host) -> Verdict {
    match deep_states(host).into_iter().max_by_key(|(.., latency)| *latency) {
        None => Verdict::fine("no state takes more than 20 us to leave, as far as the kernel knows"),
        Some((_, name, latency)) => {
            Verdict::note(format!("a core may sleep as deeply as {name}, which takes {latency} us to leave"))
        }
    }
}

fn smt(host: &Host) -> Verdict {
    if host.subject.cores.is_none() {
        return Verdict::fine("the shards are not pinned");
    }
    let mut by_core: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (core, siblings) in host.of_shard_cores("topology/thread_siblings_list") {
        by_core.entry(list(&siblings)).or_default().push(core);
    }
    let Some(shared) = by_core.values().find(|threads| threads.len() > 1) else {
        return Verdict::fine("each shard has a core of its own");
    };
    let free: Vec<usize> = by_core.values().map(|threads| threads[0]).collect();
    let others = by_core.values().filter(|threads| threads.len() > 1).count() - 1;
    let others = if others > 0 { format!(" (and on {others} more cores)") } else { String::new() };
    Verdict::note(format!("two shards on one core, threads {}{others}", to_list(shared)))
        .fix(format!("one thread of each core, for even latencies: --cores {}", expanded(&free)))
}

/// As the option wants them.
fn expanded(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn numa(host: &Host) -> Verdict {
    let nodes = host.nodes();
    if nodes.len() < 2 {
        return Verdict::fine("one memory node");
    }
    let cores_of = |node: &usize| {
        let cores = host.sources.sys(&format!("devices/system/node/node{node}/cpulist")).unwrap_or_default();
        list(&cores)
    };
    let used = |node: &&usize| cores_of(node).iter().any(|core| host.shard_cores().contains(core));
    let used: Vec<usize> = nodes.iter().filter(used).copied().collect();
    // A device that does not know says -1.
    let node_of = |path: PathBuf| usize::try_from(number(&path.join("device/numa_node"))?).ok();
    let disk = host.disks.iter().find_map(|disk| {
        // An NVMe name space's device is the controller, and the node is the bus's.
        let node = node_of(disk.path.clone()).or_else(|| node_of(disk.path.join("device")))?;
        Some((&disk.name, node))
    });
    match disk {
        Some((name, node)) if !used.contains(&node) || used.len() > 1 => {
            let cores = to_list(&cores_of(&node));
            Verdict::note(format!("shards on nodes {}, {name} at node {node}", to_list(&used)))
                .fix(format!("one broker per node; cores of node {node} are {cores}: --cores LIST"))
        }
        None if used.len() > 1 => Verdict::note(format!("shards on nodes {}", to_list(&used))),
        _ => Verdict::fine(format!("all shards on node {}", to_list(&used))),
    }
}

fn numa_balancing(host: &Host) -> Verdict {
    if host.nodes().len() < 2 {
        return Verdict::fine("one memory node");
    }
    let set = |name: &&str| host.sources.sysctl_number(name).is_some_and(|value| value != 0);
    let set: Vec<&str> =
        ["kernel.numa_balancing", "vm.zone_reclaim_mode"].iter().filter(|name| set(name)).copied().collect();
    match set.is_empty() {
        true => Verdict::fine("the kernel leaves memory where it is"),
        false => Verdict::warning(format!("not 0: {}", set.join(", "))),
    }
}
