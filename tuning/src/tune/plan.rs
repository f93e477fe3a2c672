//! What a profile changes on a host: for each finding that is raised, the files and values that mend it.
//!
//! Owner: one call of [`plan`], which only reads. Absent on purpose: steps whose effect is a matter of
//! security (io_uring forbidden by the administrator) or of a reason that cannot be seen from here (a clock
//! that the kernel distrusts): those stay advice.

use super::record::Setting;
use crate::checks::{cpu, disk, network};
use crate::doctor::{Host, Measured, Subject, judge};
use crate::finding::{Finding, Severity};
use crate::preflight::{files_wanted, locked_memory_wanted};
use crate::sources::{Sources, chosen, text, to_mask};
use std::path::PathBuf;

/// What the host is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A broker that serves others: even latencies, whatever power it takes.
    Production,
    /// A desk: only what costs nobody anything, and counters for tools.
    Development,
    /// A measurement: as production, and nothing on the shards' cores but shards.
    Benchmark,
}

impl Profile {
    /// In one word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Profile::Production => "production",
            Profile::Development => "development",
            Profile::Benchmark => "benchmark",
        }
    }
}

/// One value to write.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// The finding that it mends.
    pub finding: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What it says now.
    pub old: String,
    /// What it is to say.
    pub new: String,
    /// What brings the old state back.
    pub restore: Setting,
}

/// Something to do by hand.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Advice {
    /// What it is about.
    pub about: String,
    /// Lines to do or to copy.
    pub lines: Vec<String>,
}

/// What a profile means on a host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// In the order in which they are applied.
    pub steps: Vec<Step>,
    /// What is left to do by hand.
    pub advice: Vec<Advice>,
}

/// Mends one finding.
struct Mend {
    finding: &'static str,
    /// For people.
    how: &'static str,
    profiles: &'static [Profile],
    steps: fn(&Host) -> Vec<Step>,
}

const ALL: &[Profile] = &[Profile::Production, Profile::Development, Profile::Benchmark];
const SERVING: &[Profile] = &[Profile::Production, Profile::Benchmark];
const MEASURING: &[Profile] = &[Profile::Development, Profile::Benchmark];

const MENDS: [Mend; 12] = [
    Mend { finding: "backlog", how: "`net.core.somaxconn` 4096", profiles: ALL, steps: backlog },
    Mend {
        finding: "syn_backlog",
        how: "`net.ipv4.tcp_max_syn_backlog` 4096",
        profiles: SERVING,
        steps: syn_backlog,
    },
    Mend {
        finding: "local_ports",
        how: "the broker's port into `net.ipv4.ip_local_reserved_ports`",
        profiles: ALL,
        steps: reserved_port,
    },
    Mend { finding: "huge_pages", how: "`madvise`", profiles: ALL, steps: huge_pages },
    Mend { finding: "swap", how: "`vm.swappiness` 1", profiles: SERVING, steps: swap },
    Mend {
        finding: "dirty_pages",
        how: "`vm.dirty_background_bytes` 256 MiB, `vm.dirty_bytes` 1 GiB",
        profiles: SERVING,
        steps: dirty_pages,
    },
    Mend {
        finding: "numa_balancing",
        how: "`kernel.numa_balancing` 0, `vm.zone_reclaim_mode` 0",
        profiles: SERVING,
        steps: numa_balancing,
    },
    Mend {
        finding: "governor",
        how: "`performance` for the shards' cores",
        profiles: SERVING,
        steps: governor,
    },
    Mend {
        finding: "scheduler",
        how: "`none` for the data directory's disks",
        profiles: SERVING,
        steps: scheduler,
    },
    Mend {
        finding: "packet_steering",
        how: "RPS off the shards' cores",
        profiles: &[Profile::Benchmark],
        steps: packet_steering,
    },
    Mend {
        finding: "idle_states",
        how: "states that take more than 20 us to leave off, on the shards' cores",
        profiles: &[Profile::Benchmark],
        steps: idle_states,
    },
    Mend {
        finding: PERF_EVENTS,
        how: "`kernel.perf_event_paranoid` 1",
        profiles: MEASURING,
        steps: perf_events,
    },
];

/// Mended without its finding: root, who runs this, may count anyway, and others are meant.
const PERF_EVENTS: &str = "perf_events";

/// What the profiles mend, as the table of `docs/TUNING.md`.
pub fn markdown() -> String {
    let mut table = String::from("| Mends | How |");
    ALL.iter().for_each(|profile| table.push_str(&format!(" {} |", profile.word())));
    table.push_str("\n|---|---|---|---|---|\n");
    for Mend { finding, how, profiles, .. } in &MENDS {
        let cell = |profile| if profiles.contains(profile) { " yes |" } else { " |" };
        let cells: String = ALL.iter().map(cell).collect();
        table.push_str(&format!("| `{finding}` | {how} |{cells}\n"));
    }
    table
}

/// What `profile` changes for `subject` on the host that `sources` are of. Reads only.
pub fn plan(profile: Profile, sources: &Sources, subject: &Subject) -> Plan {
    plan_with(profile, sources, subject, Measured::quickly())
}

pub(super) fn plan_with(profile: Profile, sources: &Sources, subject: &Subject, measured: Measured) -> Plan {
    let host = Host::new(sources, subject, measured);
    let complaints: Vec<Finding> =
        judge(&host).into_iter().filter(|finding| finding.severity > Severity::Ok).collect();
    let mut steps = Vec::new();
    let mut mended = Vec::new();
    for mend in MENDS.iter().filter(|mend| mend.profiles.contains(&profile)) {
        let raised = complaints.iter().any(|finding| finding.name == mend.finding);
        if raised || mend.finding == PERF_EVENTS {
            let own = (mend.steps)(&host);
            if !own.is_empty() {
                mended.push(mend.finding);
            }
            steps.extend(own);
        }
    }
    let mut advice = lasting(sources, &steps);
    advice.push(limits(subject));
    advice.extend(
        complaints
            .into_iter()
            .filter(|finding| finding.severity >= Severity::Warning && !mended.contains(&finding.name))
            .map(|finding| Advice {
                about: format!("{}: {}", finding.name, finding.found),
                lines: vec![finding.fix],
            }),
    );
    Plan { steps, advice }
}

/// The step from what `path` says to `new`; none where it says that already, or is not there.
fn step(finding: &'static str, path: PathBuf, new: impl Into<String>) -> Option<Step> {
    let (old, new) = (chosen(&text(&path)?).to_owned(), new.into());
    let restore = Setting { path: path.clone(), value: old.clone() };
    (old != new).then_some(Step { finding, path, old, new, restore })
}

fn sysctls(host: &Host, finding: &'static str, wanted: &[(&str, &str)]) -> Vec<Step> {
    wanted.iter().filter_map(|(name, new)| step(finding, host.sources.sysctl_path(name), *new)).collect()
}

fn backlog(host: &Host) -> Vec<Step> {
    sysctls(host, "backlog", &[("net.core.somaxconn", "4096")])
}

fn syn_backlog(host: &Host) -> Vec<Step> {
    sysctls(host, "syn_backlog", &[("net.ipv4.tcp_max_syn_backlog", "4096")])
}

fn swap(host: &Host) -> Vec<Step> {
    sysctls(host, "swap", &[("vm.swappiness", "1")])
}

fn numa_balancing(host: &Host) -> Vec<Step> {
    sysctls(host, "numa_balancing", &[("kernel.numa_balancing", "0"), ("vm.zone_reclaim_mode", "0")])
}

fn perf_events(host: &Host) -> Vec<Step> {
    match host.sources.sysctl_number("kernel.perf_event_paranoid") {
        Some(2..) => sysctls(host, PERF_EVENTS, &[("kernel.perf_event_paranoid", "1")]),
        _ => Vec::new(),
    }
}

fn reserved_port(host: &Host) -> Vec<Step> {
    // The finding may also be about too few ports, which is the administrator's choice.
    let Some(reserved) = network::unreserved_port(host) else { return Vec::new() };
    sysctls(host, "local_ports", &[("net.ipv4.ip_local_reserved_ports", &reserved)])
}

fn huge_pages(host: &Host) -> Vec<Step> {
    let path = host.sources.sys.join("kernel/mm/transparent_hugepage/enabled");
    step("huge_pages", path, "madvise").into_iter().collect()
}

/// Bytes and ratio are one setting under two names: writing one zeroes the other, and a zero cannot be
/// written back.
fn dirty_pages(host: &Host) -> Vec<Step> {
    let pairs = [
        ("vm.dirty_background_bytes", "vm.dirty_background_ratio", "268435456"),
        ("vm.dirty_bytes", "vm.dirty_ratio", "1073741824"),
    ];
    let one = |(amount, ratio, new): (&str, &str, &str)| {
        let mut step = step("dirty_pages", host.sources.sysctl_path(amount), new)?;
        if step.old == "0" {
            step.restore =
                Setting { path: host.sources.sysctl_path(ratio), value: host.sources.sysctl(ratio)? };
        }
        Some(step)
    };
    pairs.into_iter().filter_map(one).collect()
}

fn governor(host: &Host) -> Vec<Step> {
    let policies = cpu::policies(host).into_iter().filter(|policy| {
        let offered = text(&policy.join("scaling_available_governors")).unwrap_or_default();
        offered.split(' ').any(|name| name == "performance")
    });
    policies.filter_map(|policy| step("governor", policy.join("scaling_governor"), "performance")).collect()
}

fn scheduler(host: &Host) -> Vec<Step> {
    let needless = host.disks.iter().filter(|disk| disk::needless_scheduler(disk).is_some());
    needless.filter_map(|disk| step("scheduler", disk.path.join("queue/scheduler"), "none")).collect()
}

fn packet_steering(host: &Host) -> Vec<Step> {
    let steered = network::steered(host).into_iter();
    steered.filter_map(|queue| step("packet_steering", queue.mask, to_mask(&queue.others))).collect()
}

fn idle_states(host: &Host) -> Vec<Step> {
    cpu::deep_states(host).into_iter().filter_map(|(disable, ..)| step("idle_states", disable, "1")).collect()
}

/// The sysctls of `steps` as a file that lasts.
fn lasting(sources: &Sources, steps: &[Step]) -> Vec<Advice> {
    let root = sources.proc.join("sys");
    let line = |step: &Step| {
        let name = step.path.strip_prefix(&root).ok()?.to_string_lossy().replace('/', ".");
        Some(format!("{name} = {}", step.new))
    };
    let lines: Vec<String> = steps.iter().filter_map(line).collect();
    let about = "to keep these over a restart of the host: /etc/sysctl.d/60-ringlog.conf".to_owned();
    if lines.is_empty() { Vec::new() } else { vec![Advice { about, lines }] }
}

/// Limits belong to whoever starts the broker.
fn limits(subject: &Subject) -> Advice {
    let shards = subject.shards as u64;
    Advice {
        about: "limits, if systemd starts the broker: /etc/systemd/system/ringlog.service.d/limits.conf"
            .into(),
        lines: vec![
            "[Service]".into(),
            format!("LimitMEMLOCK={}", locked_memory_wanted(shards)),
            format!("LimitNOFILE={}", files_wanted(shards)),
        ],
    }
}
