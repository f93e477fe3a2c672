//! What a process has used: processor time, memory, context switches, as `/proc` tells.
//!
//! Read twice, before and after what is measured; the difference is the figure. A process that ended, or
//! that this user may not look at, gives nothing rather than zeros.

use std::path::PathBuf;

/// Of one process, all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Usage {
    /// Processor time, seconds.
    pub cpu_s: f64,
    /// Resident memory now, bytes.
    pub resident_bytes: u64,
    /// The most that it ever was, bytes.
    pub resident_max_bytes: u64,
    /// Context switches: a thread waited for something.
    pub switches_voluntary: u64,
    /// Context switches: a thread was put aside.
    pub switches_involuntary: u64,
    /// System calls, where somebody counted them: `/proc` does not tell.
    pub system_calls: Option<u64>,
}

impl Usage {
    /// Of the process `pid`.
    pub fn of(pid: u32) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        let status = std::fs::read_to_string(process.join("status")).ok()?;
        let mut usage = Self {
            cpu_s: cpu_ticks(&stat)? as f64 / rustix::param::clock_ticks_per_second() as f64,
            resident_bytes: field(&status, "VmRSS:")? * 1024,
            resident_max_bytes: field(&status, "VmHWM:")? * 1024,
            ..Self::default()
        };
        for thread in std::fs::read_dir(process.join("task")).ok()?.flatten() {
            // A thread may have ended meanwhile.
            let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
            usage.switches_voluntary += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            usage.switches_involuntary += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Some(usage)
    }

    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            switches_voluntary: self.switches_voluntary.saturating_sub(before.switches_voluntary),
            switches_involuntary: self.switches_involuntary.saturating_sub(before.switches_involuntary),
            ..*self
        }
    }
}

/// User and system time. The process's name, in brackets, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_name_of_the_process() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 100 1000 20";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
        let status = "Name:\tx\nVmRSS:\t   2048 kB\nvoluntary_ctxt_switches:\t5\n";
        assert_eq!(field(status, "VmRSS:"), Some(2048));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(5));
        assert_eq!(field(status, "VmHWM:"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let before = Usage::of(std::process::id()).expect("it lives");
        let mut sum = 0u64;
        while Usage::of(std::process::id()).expect("it lives").since(&before).cpu_s < 0.02 {
            (0..100_000u64).for_each(|n| sum = std::hint::black_box(sum + n));
        }
        let now = Usage::of(std::process::id()).expect("it lives");
        assert!(now.resident_bytes > 0 && now.resident_max_bytes >= now.resident_bytes);
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
