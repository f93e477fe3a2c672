//! A made-up host, and every check over it: once where it complains, and once, as it was made, where it
//! does not.

use crate::catalogue::catalogue;
use crate::doctor::{Disk, Host, Measured, Subject, judge};
use crate::finding::Severity::{self, Note, Ok, Warning};
use crate::sources::Sources;
use crate::wake_up::ClockState;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Trees of `/sys` and `/proc` in a temporary directory, and the broker that they are judged for.
pub(crate) struct MadeUp {
    directory: tempfile::TempDir,
    pub(crate) sources: Sources,
    pub(crate) subject: Subject,
    pub(crate) measured: Measured,
}

/// Eight threads of four cores, a solid-state disk with a partition, a card with two queues.
const GOOD: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.3-amd64\n"),
    ("proc/sys/kernel/perf_event_paranoid", "1\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
    ("proc/sys/vm/swappiness", "60\n"),
    // 800 MB in pages of 4 KiB.
    ("proc/vmstat", "nr_free_pages 1\nnr_dirty_threshold 390624\nnr_dirty_background_threshold 195312\n"),
    ("proc/sys/vm/dirty_background_bytes", "0\n"),
    ("proc/sys/vm/dirty_background_ratio", "10\n"),
    ("proc/sys/vm/dirty_bytes", "0\n"),
    ("proc/sys/vm/dirty_ratio", "20\n"),
    ("proc/sys/vm/zone_reclaim_mode", "0\n"),
    ("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n"),
    ("proc/loadavg", "0.20 0.18 0.12 1/80 11206\n"),
    ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
    ("proc/stat", "cpu  1000 0 1000 90000 100 0 0 1 0 0\ncpu0 1 0 0 0 0 0 0 0 0 0\n"),
    ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu tsc constant_tsc\n"),
    ("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n"),
    (
        "proc/self/mountinfo",
        "27 1 259:1 / / rw,relatime,lazytime - ext4 /dev/nvme0n1p1 rw\n\
         28 27 0:21 / /sys rw - sysfs sysfs rw\n\
         29 28 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
         30 28 0:23 / /sys/fs/cgroup/v1/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
         31 28 0:24 / /sys/fs/cgroup/v1/memory rw - cgroup cgroup rw,memory\n\
         32 28 0:25 / /sys/fs/cgroup/v1/pids rw - cgroup cgroup rw,pids\n\
         33 28 0:26 / /sys/fs/cgroup/v1/blkio rw - cgroup cgroup rw,blkio\n",
    ),
    ("proc/self/cgroup", "4:blkio:/box\n3:pids:/box\n2:memory:/box\n1:cpu,cpuacct:/box\n0::/pod/box\n"),
    ("proc/irq/50/effective_affinity_list", "4\n"),
    ("proc/irq/51/effective_affinity_list", "\n"),
    ("proc/irq/51/smp_affinity_list", "5\n"),
    ("sys/fs/cgroup/pod/box/cpu.max", "max 100000\n"),
    ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
    ("sys/fs/cgroup/pod/box/memory.high", "max\n"),
    ("sys/fs/cgroup/pod/box/pids.max", "max\n"),
    ("sys/fs/cgroup/pod/box/io.max", "259:0 rbps=max wbps=max riops=max wiops=max\n8:0 rbps=1 wbps=1\n"),
    ("sys/fs/cgroup/v1/cpu/box/cpu.cfs_quota_us", "-1\n"),
    ("sys/fs/cgroup/v1/cpu/box/cpu.cfs_period_us", "100000\n"),
    ("sys/fs/cgroup/v1/memory/box/memory.limit_in_bytes", "9223372036854771712\n"),
    ("sys/fs/cgroup/v1/pids/box/pids.max", "max\n"),
    ("sys/fs/cgroup/v1/blkio/box/blkio.throttle.write_bps_device", ""),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm\n"),
    ("sys/devices/system/cpu/online", "0-7\n"),
    ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,4\n"),
    ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,5\n"),
    ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2,6\n"),
    ("sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3,7\n"),
    ("sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "0,4\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "133\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "1\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C6\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_driver", "acpi-cpufreq\n"),
    (
        "sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors",
        "performance schedutil powersave\n",
    ),
    ("sys/devices/system/cpu/cpufreq/policy0/affected_cpus", "0 1 2 3\n"),
    // Cores without shards may save power.
    ("sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "powersave\n"),
    ("sys/devices/system/cpu/cpufreq/policy4/affected_cpus", "4 5 6 7\n"),
    ("sys/devices/system/node/node0/cpulist", "0-7\n"),
    ("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "[none] mq-deadline kyber bfq\n"),
    ("sys/devices/pci/nvme0/nvme0n1/queue/rotational", "0\n"),
    ("sys/devices/pci/nvme0/nvme0n1/queue/write_cache", "write back\n"),
    ("sys/devices/pci/nvme0/nvme0n1/dev", "259:0\n"),
    ("sys/devices/pci/nvme0/nvme0n1/nvme0n1p1/dev", "259:1\n"),
    ("sys/devices/pci/net0/msi_irqs/50", "msix\n"),
    ("sys/devices/pci/net0/msi_irqs/51", "msix\n"),
    ("sys/devices/pci/net0/net/eth0/queues/rx-0/rps_cpus", "f0\n"),
    ("sys/devices/pci/net0/net/eth0/queues/rx-1/rps_cpus", "00\n"),
    ("sys/devices/pci/net0/net/eth0/queues/tx-0/xps_cpus", "0f\n"),
    ("sys/devices/pci/net0/net/eth0/queues/tx-1/xps_cpus", "f0\n"),
    ("sys/devices/virtual/net/lo/queues/rx-0/rps_cpus", "ff\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer [madvise] never\n"),
];

const DISK: &str = "sys/devices/pci/nvme0/nvme0n1";
const QUEUES: &str = "sys/devices/pci/net0/net/eth0/queues";

impl MadeUp {
    /// A host without complaints for four shards on cores 0 to 3.
    pub(crate) fn good() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sources = Sources { sys: directory.path().join("sys"), proc: directory.path().join("proc") };
        let subject = Subject {
            data: "/no/such/directory".into(),
            listen: "127.0.0.1:9644".parse().unwrap(),
            listen_is_default: true,
            shards: 4,
            cores: Some(vec![0, 1, 2, 3]),
            usable_cores: (0..8).collect(),
        };
        let clock = Some(ClockState { synchronised: true, error_us_max: 1000 });
        let measured = Measured { wake_up: Some(Duration::from_micros(4)), clock, page_bytes: 4096 };
        let made = Self { directory, sources, subject, measured };
        for (path, text) in GOOD {
            made.put(path, text);
        }
        made.link("sys/dev/block/259:1", &format!("{DISK}/nvme0n1p1"));
        made.link("sys/class/net/eth0", "sys/devices/pci/net0/net/eth0");
        made.link("sys/class/net/lo", "sys/devices/virtual/net/lo");
        made.link("sys/devices/pci/net0/net/eth0/device", "sys/devices/pci/net0");
        made
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap().trim().to_owned()
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(self.path(target), path).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }

    fn mount(&self, line: &str) {
        let old = self.read("proc/self/mountinfo");
        let rest = old.split_once('\n').unwrap().1;
        self.put("proc/self/mountinfo", &format!("{line}\n{rest}\n"));
    }

    pub(crate) fn host(&self) -> Host<'_> {
        Host::new(&self.sources, &self.subject, self.measured)
    }
}

#[test]
fn a_good_host_has_no_complaints() {
    let made = MadeUp::good();
    let found = judge(&made.host());
    let judged = catalogue().filter(|check| check.judge.is_some()).count();
    assert_eq!(found.len(), judged);
    let complaints: Vec<_> = found.iter().filter(|finding| finding.severity > Ok).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(found.iter().all(|it| !it.found.is_empty() && it.cost.is_empty() && it.fix.is_empty()));
    // As a tree, not by chance: the files were found.
    let silent: Vec<_> = found.iter().filter(|it| it.found.contains("does not say")).collect();
    assert!(silent.is_empty(), "{silent:#?}");
    assert_eq!(
        made.host().disks,
        [Disk { name: "nvme0n1".into(), path: made.path(DISK).canonicalize().unwrap() }]
    );
}

#[test]
fn an_empty_tree_has_no_complaints_either() {
    let empty = tempfile::tempdir().unwrap();
    let mut made = MadeUp::good();
    made.sources = Sources { sys: empty.path().join("sys"), proc: empty.path().join("proc") };
    made.measured = Measured::default();
    let found = judge(&made.host());
    assert!(found.iter().all(|finding| finding.severity == Ok), "{found:#?}");
}

type Row = (&'static str, Severity, &'static str, fn(&mut MadeUp));

/// Name, severity, part of the texts, and what is changed on the good host: nothing else may complain.
const ROWS: &[Row] = &[
    ("kernel", Warning, "kernel 5.15.0", |host| host.put("proc/sys/kernel/osrelease", "5.15.0-91-generic\n")),
    ("kernel", Warning, "kernel 6.0.1", |host| host.put("proc/sys/kernel/osrelease", "6.0.1\n")),
    ("clock_source", Warning, "echo tsc", |host| {
        host.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    }),
    ("clock_source", Warning, "tsc=reliable", |host| {
        host.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "acpi_pm\n");
        host.put("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet acpi_pm\n");
    }),
    ("time_sync", Warning, "STA_UNSYNC", |host| {
        host.measured.clock = Some(ClockState { synchronised: false, error_us_max: 16_000_000 });
    }),
    ("virtualisation", Note, "takes 4 us", |host| {
        host.put("proc/cpuinfo", "flags\t\t: fpu tsc hypervisor\n");
    }),
    ("virtualisation", Note, "(xen)", |host| host.put("sys/hypervisor/type", "xen\n")),
    ("stolen_time", Warning, "4.8 %", |host| {
        host.put("proc/stat", "cpu  1000 0 1000 90000 100 0 0 100 0 0\n")
    }),
    ("wake_up", Note, "12.5 us", |host| host.measured.wake_up = Some(Duration::from_nanos(12_500))),
    ("wake_up", Warning, "--poll-us", |host| host.measured.wake_up = Some(Duration::from_micros(80))),
    ("wake_up", Note, "busy host (load 7.5)", |host| {
        host.measured.wake_up = Some(Duration::from_micros(80));
        host.put("proc/loadavg", "7.50 0.18 0.12 1/80 11206\n");
    }),
    ("perf_events", Note, "user space only", |host| host.put("proc/sys/kernel/perf_event_paranoid", "2\n")),
    ("perf_events", Note, "no profiles", |host| host.put("proc/sys/kernel/perf_event_paranoid", "4\n")),
    ("memory", Warning, "4 shards may use 5120 MiB", |host| {
        host.put("proc/meminfo", "MemTotal:        4194304 kB\n");
    }),
    ("huge_pages", Warning, "defrag: madvise", |host| {
        host.put("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    }),
    ("swap", Warning, "/dev/sda2", |host| {
        host.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
    }),
    (
        "dirty_pages",
        Note,
        "1525 MiB may wait before the kernel begins to write (vm.dirty_background_ratio = 20)",
        |host| {
            host.put("proc/vmstat", "nr_dirty_background_threshold 390624\n");
            host.put("proc/sys/vm/dirty_background_ratio", "20\n");
        },
    ),
    (
        "dirty_pages",
        Note,
        "3051 MiB may wait before the kernel begins to write (vm.dirty_background_bytes = 3200000000)",
        |host| {
            host.put("proc/vmstat", "nr_dirty_background_threshold 781250\n");
            host.put("proc/sys/vm/dirty_background_bytes", "3200000000\n");
            host.put("proc/sys/vm/dirty_background_ratio", "0\n");
        },
    ),
    ("governor", Warning, "cores 0 1 2 3 follow schedutil", |host| {
        host.put("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "schedutil\n");
    }),
    ("governor", Warning, "powersave (acpi-cpufreq)", |host| {
        host.put("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n");
    }),
    ("governor", Note, "preference balance_performance", |host| {
        host.put("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n");
        host.put("sys/devices/system/cpu/cpufreq/policy0/scaling_driver", "intel_pstate\n");
        host.put(
            "sys/devices/system/cpu/cpufreq/policy0/energy_performance_preference",
            "balance_performance\n",
        );
    }),
    ("idle_states", Note, "C6, which takes 133 us", |host| {
        host.put("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n");
    }),
    ("smt", Note, "--cores 0,2,3", |host| {
        host.put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n");
        host.put("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n");
    }),
    ("numa", Note, "shards on nodes 0-1", |host| {
        host.put("sys/devices/system/node/node0/cpulist", "0-1,4-5\n");
        host.put("sys/devices/system/node/node1/cpulist", "2-3,6-7\n");
        host.put("proc/sys/kernel/numa_balancing", "0\n");
    }),
    ("numa", Note, "cores of node 1 are 4-7", |host| {
        host.put("sys/devices/system/node/node0/cpulist", "0-3\n");
        host.put("sys/devices/system/node/node1/cpulist", "4-7\n");
        host.put("proc/sys/kernel/numa_balancing", "0\n");
        host.put("sys/devices/pci/nvme0/nvme0n1/device/device/numa_node", "1\n");
        host.put("sys/devices/pci/nvme0/nvme0n1/device/numa_node", "-1\n");
    }),
    ("numa_balancing", Warning, "kernel.numa_balancing", |host| {
        host.put("sys/devices/system/node/node0/cpulist", "0-3\n");
        host.put("sys/devices/system/node/node1/cpulist", "4-7\n");
    }),
    ("network_file_system", Warning, "nfs4", |host| {
        host.mount("27 1 0:51 / / rw,relatime - nfs4 server:/x rw")
    }),
    ("network_file_system", Warning, "fuse.sshfs", |host| {
        host.mount("27 1 0:51 / / rw,relatime - fuse.sshfs me@there rw");
    }),
    ("container_layer", Warning, "overlay", |host| {
        host.mount("27 1 0:51 / / rw,relatime - overlay overlay rw")
    }),
    ("barriers", Warning, "barrier=0", |host| {
        host.mount("27 1 259:1 / / rw,relatime,lazytime - ext4 /dev/nvme0n1p1 rw,barrier=0");
    }),
    ("barriers", Note, "writes through", |host| {
        host.mount("27 1 259:1 / / rw,relatime - xfs /dev/nvme0n1p1 rw,nobarrier");
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/write_cache", "write through\n");
    }),
    ("journal_mode", Warning, "data=ordered", |host| {
        host.mount("27 1 259:1 / / rw,relatime,lazytime - ext4 /dev/nvme0n1p1 rw,data=journal");
    }),
    ("access_times", Note, "strictatime", |host| {
        host.mount("27 1 259:1 / / rw,lazytime - ext4 /dev/nvme0n1p1 rw")
    }),
    ("change_times", Note, "mount -o remount,lazytime /,", |host| {
        host.mount("27 1 259:1 / / rw,relatime - ext4 /dev/nvme0n1p1 rw");
    }),
    ("disk_interrupts", Note, "nvme0n1 interrupts core 2 only", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/device/msi_irqs/60", "msix\n");
        host.put("sys/devices/pci/nvme0/nvme0n1/device/msi_irqs/61", "msix\n");
        host.put("proc/irq/60/effective_affinity_list", "2\n");
        host.put("proc/irq/61/effective_affinity_list", "2\n");
    }),
    ("scheduler", Warning, "echo none > /sys/block/nvme0n1/queue/scheduler", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "none mq-deadline [bfq]\n");
    }),
    ("scheduler", Note, "mq-deadline", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "none [mq-deadline] bfq\n");
    }),
    // A mapped device is as its disks are.
    ("scheduler", Note, "nvme0n1 has the scheduler kyber", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "none [kyber]\n");
        host.put("sys/devices/virtual/dm-0/queue/rotational", "0\n");
        host.link("sys/devices/virtual/dm-0/slaves/nvme0n1p1", "sys/devices/pci/nvme0/nvme0n1/nvme0n1p1");
        host.link("sys/dev/block/253:0", "sys/devices/virtual/dm-0");
        host.mount("27 1 253:0 / / rw,relatime,lazytime - ext4 /dev/mapper/root rw");
    }),
    ("rotational", Warning, "nvme0n1 rotates", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/rotational", "1\n");
    }),
    ("rotational", Note, "perf ceilings", |host| {
        host.put("sys/devices/pci/nvme0/nvme0n1/queue/rotational", "1\n");
        host.put("sys/devices/pci/nvme0/nvme0n1/device/vendor", "QEMU    \n");
    }),
    ("rotational", Note, "loop0 says that it rotates", |host| {
        host.put("sys/devices/virtual/block/loop0/queue/rotational", "1\n");
        host.link("sys/dev/block/7:0", "sys/devices/virtual/block/loop0");
        host.mount("27 1 7:0 / / rw,relatime,lazytime - ext4 /dev/loop0 rw");
    }),
    ("backlog", Warning, "= 128", |host| host.put("proc/sys/net/core/somaxconn", "128\n")),
    ("syn_backlog", Note, "= 512", |host| host.put("proc/sys/net/ipv4/tcp_max_syn_backlog", "512\n")),
    ("local_ports", Warning, "ip_local_reserved_ports=9000-9645", |host| {
        host.put("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n");
        host.put("proc/sys/net/ipv4/ip_local_reserved_ports", "9000-9643,9645\n");
    }),
    ("local_ports", Note, "1000 ports", |host| {
        host.put("proc/sys/net/ipv4/ip_local_port_range", "50000\t50999\n");
    }),
    ("irq_affinity", Warning, "all of them interrupt core 4", |host| {
        host.put("proc/irq/51/smp_affinity_list", "4\n");
    }),
    ("irq_affinity", Note, "echo 4-7 >", |host| host.put("proc/irq/50/effective_affinity_list", "2\n")),
    ("packet_steering", Note, "cores of shards: 0", |host| {
        host.put("sys/devices/pci/net0/net/eth0/queues/rx-1/rps_cpus", "f1\n");
    }),
    ("packet_steering", Note, "none belongs to a core", |host| {
        host.put("sys/devices/pci/net0/net/eth0/queues/tx-0/xps_cpus", "00\n");
        host.put("sys/devices/pci/net0/net/eth0/queues/tx-1/xps_cpus", "00\n");
    }),
    ("container_cpu", Warning, "2.50 cores for 4 shards", |host| {
        host.put("sys/fs/cgroup/pod/cpu.max", "250000 100000\n");
    }),
    ("container_cpu", Warning, "1.00 cores", |host| {
        host.put("sys/fs/cgroup/v1/cpu/box/cpu.cfs_quota_us", "100000\n");
    }),
    ("container_memory", Warning, "a limit of 1024 MiB", |host| {
        host.put("sys/fs/cgroup/pod/box/memory.max", "1073741824\n");
    }),
    ("container_memory", Warning, "a limit of 2048 MiB", |host| {
        host.put("sys/fs/cgroup/pod/memory.high", "2147483648\n");
    }),
    ("container_memory", Warning, "a limit of 512 MiB", |host| {
        host.put("sys/fs/cgroup/v1/memory/box/memory.limit_in_bytes", "536870912\n");
    }),
    ("container_cores", Note, "cores 0-3 of 0-7", |host| host.subject.usable_cores = vec![0, 1, 2, 3]),
    ("container_io", Warning, "259:0 wbps=1048576", |host| {
        host.put("sys/fs/cgroup/pod/io.max", "259:0 rbps=max wbps=1048576 riops=max wiops=max\n");
    }),
    ("container_io", Warning, "259:0 write_bps=1000", |host| {
        host.put("sys/fs/cgroup/v1/blkio/box/blkio.throttle.write_bps_device", "8:0 5\n259:0 1000\n");
    }),
    ("container_pids", Warning, "a limit of 20 threads, the broker may have 48", |host| {
        host.put("sys/fs/cgroup/pod/box/pids.max", "20\n");
    }),
    ("container_pids", Warning, "a limit of 40 threads", |host| {
        host.put("sys/fs/cgroup/v1/pids/pids.max", "40\n");
    }),
];

#[test]
fn each_complaint_has_its_cause() {
    let mut raised = BTreeSet::new();
    for (name, severity, part, change) in ROWS {
        let mut made = MadeUp::good();
        change(&mut made);
        let found: Vec<_> = judge(&made.host()).into_iter().filter(|finding| finding.severity > Ok).collect();
        let rows: Vec<_> = found.iter().map(|finding| (finding.name, finding.severity)).collect();
        assert_eq!(rows, [(*name, *severity)], "{part}: {found:#?}");
        let text = format!("{} | {} | {}", found[0].found, found[0].cost, found[0].fix);
        assert!(text.contains(part), "{part:?} is not in {text}");
        assert!(!found[0].cost.is_empty() && !found[0].fix.is_empty(), "{text}");
        raised.insert((*name, *severity));
    }
    let rows = catalogue().filter(|check| check.judge.is_some());
    let promised = rows.flat_map(|check| check.severities.iter().map(|severity| (check.name, *severity)));
    assert_eq!(raised, promised.collect(), "the catalogue and the rows differ");
}

/// What looks like a complaint and is none.
#[test]
fn what_is_no_complaint() {
    type Row = (&'static str, fn(&mut MadeUp));
    let rows: [Row; 17] = [
        ("clock_source", |host| {
            host.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "kvm-clock\n");
        }),
        ("wake_up", |host| host.measured.wake_up = None),
        ("perf_events", |host| {
            host.put("proc/sys/kernel/perf_event_paranoid", "4\n");
            host.put("proc/self/status", "CapEff:\t0000004000000000\n");
        }),
        ("swap", |host| host.put("proc/swaps", "Filename\n/dev/zram0 partition 1 0 5\n")),
        ("swap", |host| {
            host.put("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n");
            host.put("proc/sys/vm/swappiness", "1\n");
        }),
        ("governor", |host| host.remove("sys/devices/system/cpu/cpufreq")),
        ("smt", |host| host.subject.cores = None),
        ("numa_balancing", |host| host.put("proc/sys/vm/zone_reclaim_mode", "1\n")),
        // A disk with a head wants its requests in order, whatever else is said of it.
        ("scheduler", |host| {
            host.put("sys/devices/pci/nvme0/nvme0n1/queue/scheduler", "[mq-deadline] bfq\n");
        }),
        ("network_file_system", |host| host.mount("27 1 259:1 / / rw,relatime - fuseblk /dev/sda1 rw")),
        ("access_times", |host| host.mount("27 1 259:1 / / rw,noatime - xfs /dev/nvme0n1p1 rw")),
        ("change_times", |host| host.mount("27 1 259:1 / / rw,relatime - xfs /dev/nvme0n1p1 rw")),
        // One shard, and its core is the one.
        ("disk_interrupts", |host| {
            host.put("sys/devices/pci/nvme0/nvme0n1/device/msi_irqs/60", "msix\n");
            host.put("proc/irq/60/effective_affinity_list", "2\n");
            host.subject.cores = Some(vec![2]);
        }),
        ("local_ports", |host| {
            host.put("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n");
            host.put("proc/sys/net/ipv4/ip_local_reserved_ports", "9640-9650\n");
        }),
        ("irq_affinity", |host| host.remove("sys/devices/pci/net0/net/eth0/device")),
        ("container_cpu", |host| host.put("sys/fs/cgroup/pod/box/cpu.max", "400000 100000\n")),
        // The group's path is the host's; what is mounted here is its own.
        ("container_memory", |host| {
            host.put("proc/self/cgroup", "0::/docker/abc\n");
            host.put("sys/fs/cgroup/memory.max", "max\n");
        }),
    ];
    for (name, change) in rows {
        let mut made = MadeUp::good();
        change(&mut made);
        let found = judge(&made.host());
        let finding = found.iter().find(|finding| finding.name == name).unwrap();
        assert_eq!(finding.severity, Ok, "{finding:#?}");
    }
}

#[test]
fn interrupts_of_a_virtio_card_are_found_a_level_up() {
    let made = MadeUp::good();
    made.remove("sys/devices/pci/net0/net/eth0/device");
    made.put("sys/devices/pci/net0/virtio1/modalias", "virtio\n");
    made.link("sys/devices/pci/net0/net/eth0/device", "sys/devices/pci/net0/virtio1");
    made.put("proc/irq/50/effective_affinity_list", "1\n");
    let found = judge(&made.host());
    let finding = found.iter().find(|finding| finding.name == "irq_affinity").unwrap();
    assert_eq!(finding.severity, Note, "{finding:#?}");
    assert!(Path::new(&made.path(QUEUES)).is_dir());
}
