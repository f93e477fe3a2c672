//! Counting with callgrind: this very program runs once more under valgrind, goes over every path, and
//! callgrind says what each pass cost.
//!
//! ```text
//! measure ─► valgrind --tool=callgrind … <this program> COUNTED ─► counted(): prepare, warm up, one pass
//!         ◄─ one dump per pass, in the order of the passes ◄──────────┘
//! ```
//!
//! Entering [`budget_counted_pass`] sets the count to zero, leaving it writes a dump: that is the pass; no
//! client requests (and no headers of valgrind) are needed. The two options name the function by different
//! patterns, because valgrind 3.19 keeps only the last option of a pattern. Invariant: as many dumps as passes,
//! or an error: a count is never given to another path. Absent on purpose: caches and branches; their
//! simulation says little about real processors.

use super::paths::PATHS;
use super::{Count, SHAPES, Toolchain};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// The argument by which a program is asked to be the one under valgrind: it calls [`counted`].
pub const COUNTED: &str = "--counted-under-valgrind";
const ENTERED: &str = "*budget_counted_pass*";
const LEFT: &str = "*counted_pass*";
/// Passes before the one that counts: memory is taken, first segments are opened.
const WARM_UP_PASSES: usize = 3;

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// valgrind is not there.
    #[error("valgrind is not installed: apt-get install valgrind (or dnf, pacman)")]
    NoValgrind,
    /// valgrind, or the program under it, failed.
    #[error("counting failed: {0}")]
    Failed(String),
    /// A scratch directory, or a process.
    #[error("counting failed: {0}")]
    Io(#[from] io::Error),
}

/// What is counted. Never inlined, and called through a pointer: callgrind knows it by its name.
#[inline(never)]
fn budget_counted_pass(pass: &mut dyn FnMut()) {
    pass();
    // Something after the call, or it would be a jump and never be left.
    std::hint::black_box(());
}

/// Goes over every path for every shape: what the program does under valgrind. Prints what the processor
/// and the C library are, as seen from there.
pub fn counted() {
    println!("{}\n{}", cpu(), libc_version());
    for path in &PATHS {
        for shape in SHAPES {
            let mut pass = path.prepare(shape);
            (0..WARM_UP_PASSES).for_each(|_| pass());
            budget_counted_pass(&mut *pass);
        }
    }
}

fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&str, bool); 0] = [];
    features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn libc_version() -> String {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the function takes nothing and returns a static string that ends with a zero.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc {}", version.to_string_lossy())
    }
    #[cfg(not(target_env = "gnu"))]
    "another C library".to_owned()
}

/// Counts every path for every shape with `program`, which calls [`counted`] when its argument is
/// [`COUNTED`].
///
/// # Errors
/// valgrind is missing, it or the program failed, or the dumps are not those of the passes.
pub fn measure(program: &Path) -> Result<(Toolchain, Vec<Count>), CountError> {
    let valgrind = version()?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--combine-dumps=yes", "--dump-instr=no"])
        .arg(format!("--zero-before={ENTERED}"))
        .arg(format!("--dump-after={LEFT}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(COUNTED)
        .stdin(Stdio::null())
        .output()?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last = messages.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        return Err(CountError::Failed(format!("valgrind ended with {}: {last}", output.status)));
    }
    let seen = String::from_utf8_lossy(&output.stdout);
    let mut seen = seen.lines().map(str::to_owned);
    let toolchain = Toolchain {
        compiler: env!("PERF_COMPILER").to_owned(),
        target: env!("PERF_TARGET").to_owned(),
        profile: format!("{} (opt-level {})", env!("PERF_PROFILE"), env!("PERF_OPT_LEVEL")),
        valgrind,
        cpu: seen.next().unwrap_or_default(),
        libc: seen.next().unwrap_or_default(),
    };
    let dumps = passes(&std::fs::read_to_string(&out)?)?;
    let cases: Vec<_> = PATHS.iter().flat_map(|path| SHAPES.map(|shape| (path.name, shape))).collect();
    if dumps.len() != cases.len() {
        let message = format!("{} passes were counted, {} were made", dumps.len(), cases.len());
        return Err(CountError::Failed(message));
    }
    let counts = cases.into_iter().zip(dumps);
    let counts =
        counts.map(|((path, shape), instructions)| Count { path: path.to_owned(), shape, instructions });
    Ok((toolchain, counts.collect()))
}

fn version() -> Result<String, CountError> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CountError::NoValgrind),
        Err(error) => Err(error.into()),
    }
}

/// The totals of the dumps that leaving the function wrote, in order. The format: callgrind's manual,
/// "Callgrind Format Specification": a `desc: Trigger:` line in a part's header, `totals:` at its end.
fn passes(text: &str) -> Result<Vec<u64>, CountError> {
    let mut counts = Vec::new();
    let mut of_a_pass = false;
    for line in text.lines() {
        if let Some(trigger) = line.strip_prefix("desc: Trigger: ") {
            of_a_pass = trigger.starts_with("--dump-after");
        } else if let Some(total) = line.strip_prefix("totals: ").filter(|_| of_a_pass) {
            let total = total.trim().parse();
            counts.push(total.map_err(|_| CountError::Failed(format!("callgrind wrote '{line}'")))?);
            of_a_pass = false;
        }
    }
    match counts.contains(&0) {
        true => Err(CountError::Failed("a pass without instructions was counted".into())),
        false => Ok(counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_passes_are_found_in_order() {
        let part = |trigger: &str, total: &str| {
            format!(
                "part: 1\ndesc: Timerange: Basic block 0 - 1\ndesc: Trigger: {trigger}\nfn=(1)\n3 4\ntotals: {total}\n"
            )
        };
        let leave = "--dump-after=perf::budget_counted_pass";
        let rows: [(String, Result<Vec<u64>, &str>); 5] = [
            (String::new(), Ok(vec![])),
            (part(leave, "12") + &part(leave, "7") + &part("Program termination", "0"), Ok(vec![12, 7])),
            (part("--dump-before=x", "5") + &part(leave, "6"), Ok(vec![6])),
            (part(leave, "many"), Err("callgrind wrote 'totals: many'")),
            (part(leave, "0"), Err("without instructions")),
        ];
        for (text, expect) in rows {
            match (passes(&text), expect) {
                (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{text}"),
                (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{error}"),
                (got, expect) => panic!("{text}: {got:?}, expected {expect:?}"),
            }
        }
    }
}
