//! Kernel, clocks, the hypervisor, and what tools may see.
//!
//! Rows of the catalogue; see the parent module.

use crate::doctor::Host;
use crate::finding::{Check, Severity, Verdict};
use std::time::Duration;

/// Above it sleeping shows in every latency.
pub(crate) const WAKE_UP_NOTED: Duration = Duration::from_micros(10);
/// Above it sleeping costs as much as a fast device's write.
pub(crate) const WAKE_UP_SLOW: Duration = Duration::from_micros(50);
/// Of the time that the cores were not idle.
const STOLEN_SHARE_MAX: f64 = 0.01;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "kernel",
        complains: "the kernel is older than 6.1",
        severities: &[Severity::Warning],
        cost: "older kernels do more work per io_uring request, do not tell the alignment of O_DIRECT, and are not \
               tested with this broker",
        fix: "run a kernel from 6.1 on",
        judge: Some(kernel),
    },
    Check {
        name: "clock_source",
        complains: "reading the clock is a system call: neither TSC nor a hypervisor's page",
        severities: &[Severity::Warning],
        cost: "each look at the clock takes about a microsecond instead of some tens of nanoseconds, several times \
               per request",
        fix: "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, if the kernel offers it",
        judge: Some(clock_source),
    },
    Check {
        name: "time_sync",
        complains: "the kernel's clock is not synchronised (adjtimex: STA_UNSYNC)",
        severities: &[Severity::Warning],
        cost: "timestamps of records and retention by time follow a clock that drifts, and that may jump when somebody \
               sets it",
        fix: "run chrony or systemd-timesyncd",
        judge: Some(time_sync),
    },
    Check {
        name: "virtualisation",
        complains: "the host is a virtual machine",
        severities: &[Severity::Note],
        cost: "the hypervisor may stop a core at any time, devices are shared with others, and what they say of their \
               caches is not what is true of the disk below",
        fix: "reserve cores and disk bandwidth where that can be bought; believe only what was measured: \
              ringlog perf ceilings DIR",
        judge: Some(virtualisation),
    },
    Check {
        name: "stolen_time",
        complains: "the hypervisor ran others for more than 1 % of the busy time since the start",
        severities: &[Severity::Warning],
        cost: "a shard stands still while its core is taken away, and so do all requests of its partitions",
        fix: "take a type of machine with cores of its own, or fewer neighbours",
        judge: Some(stolen_time),
    },
    Check {
        name: "wake_up",
        complains: "a thread that sleeps runs 10 us (note) or, on an idle host, 50 us (warning) after it was woken, measured now",
        severities: &[Severity::Warning, Severity::Note],
        cost: "each hop between shards, each completion and each request that meets a sleeping shard waits that long",
        fix: "ringlog serve --poll-us 50: a shard looks for work that long before it sleeps, for a core that is busy",
        judge: Some(wake_up),
    },
    Check {
        name: "perf_events",
        complains: "kernel.perf_event_paranoid forbids this user to count in the kernel (above 1)",
        severities: &[Severity::Note],
        cost: "profiles and counters show user space only, or nothing; the broker itself does not need them",
        fix: "sysctl kernel.perf_event_paranoid=1 while you measure, or give the tool CAP_PERFMON",
        judge: Some(perf_events),
    },
];

fn kernel(host: &Host) -> Verdict {
    let release = host.sources.proc("sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version == (0, 0) {
        return Verdict::fine("the kernel does not say what it is");
    }
    let found = format!("kernel {release}");
    if version < (6, 1) { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn clock_source(host: &Host) -> Verdict {
    const FAST: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];
    const FOLDER: &str = "devices/system/clocksource/clocksource0";
    let Some(current) = host.sources.sys(&format!("{FOLDER}/current_clocksource")) else {
        return Verdict::fine("the kernel does not say");
    };
    if FAST.contains(&current.as_str()) {
        return Verdict::fine(current);
    }
    let offered = host.sources.sys(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    let found = format!("the clock is {current}; the kernel offers {offered}");
    match offered.split(' ').any(|name| name == "tsc") {
        true => Verdict::warning(found),
        false => {
            Verdict::warning(found).fix("boot with tsc=reliable if the cores' TSCs agree; else another host")
        }
    }
}

fn time_sync(host: &Host) -> Verdict {
    match host.measured.clock {
        None => Verdict::fine("the kernel does not say"),
        Some(clock) if clock.synchronised => {
            Verdict::fine(format!("synchronised, error at most {} us", clock.error_us_max))
        }
        Some(_) => Verdict::warning("the kernel knows of nobody who keeps its clock (adjtimex: STA_UNSYNC)"),
    }
}

fn virtualisation(host: &Host) -> Verdict {
    let cpu = host.sources.proc("cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let kind = host.sources.sys("hypervisor/type");
    if kind.is_none() && !flags.split(' ').any(|flag| flag == "hypervisor") {
        return Verdict::fine("no hypervisor is known");
    }
    let kind = kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
    let cost = host.measured.wake_up.map_or_else(String::new, |wake_up| {
        format!("; waking a thread on another core takes {} us", wake_up.as_micros())
    });
    Verdict::note(format!("a virtual machine{kind}{cost}"))
}

fn stolen_time(host: &Host) -> Verdict {
    let stat = host.sources.proc("stat").unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal guest guest_nice
    let line = stat.lines().find(|line| line.starts_with("cpu ")).unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    let Some(stolen) = ticks.get(7) else { return Verdict::fine("the kernel does not say") };
    let busy = ticks[..8].iter().sum::<f64>() - ticks[3] - ticks[4];
    let share = if busy > 0.0 { stolen / busy } else { 0.0 };
    let found = format!("{:.1} % of the busy time since the start was stolen", 100.0 * share);
    if share > STOLEN_SHARE_MAX { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn wake_up(host: &Host) -> Verdict {
    let Some(wake_up) = host.measured.wake_up else {
        return Verdict::fine("not measured: there is one core");
    };
    let micros = wake_up.as_nanos() as f64 / 1e3;
    let found = format!("{micros:.1} us from waking a thread on another core until it runs");
    // 0.20 0.18 0.12 1/80 11206
    let load = host.sources.proc("loadavg").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    match load.filter(|load| *load > host.subject.usable_cores.len() as f64 / 2.0) {
        // The neighbours are part of the figure.
        Some(load) if wake_up >= WAKE_UP_NOTED => {
            Verdict::note(format!("{found}, on a busy host (load {load}): look again when it is idle"))
        }
        _ if wake_up >= WAKE_UP_SLOW => Verdict::warning(found),
        _ if wake_up >= WAKE_UP_NOTED => Verdict::note(found),
        _ => Verdict::fine(found),
    }
}

fn perf_events(host: &Host) -> Verdict {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    let Some(paranoid) = host.sources.sysctl_number("kernel.perf_event_paranoid") else {
        return Verdict::fine("the kernel has no performance counters");
    };
    let found = format!("kernel.perf_event_paranoid = {paranoid}");
    if host.has_capability(CAP_PERFMON) || host.has_capability(CAP_SYS_ADMIN) {
        return Verdict::fine(format!("{found}; this user may count everything"));
    }
    match paranoid {
        ..=1 => Verdict::fine(found),
        2 => Verdict::note(found)
            .cost("profiles and counters show user space only; the broker itself does not need them"),
        _ => Verdict::note(found)
            .cost("no profiles and no counters for this user; the broker itself does not need them"),
    }
}
