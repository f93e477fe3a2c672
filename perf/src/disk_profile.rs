//! A disk's profile: what was measured of it, in a file of the data directory, and what a broker chooses by it.
//!
//! Made by `ringlog doctor --disk`, or in short by the first `ringlog serve`; read by every later start. JSON.
//! [`choose`] is a pure function of the figures; its rules are stated at their constants and tested as a table.
//! Invariants: a file is replaced as a whole or not at all; a profile of another disk is told from this one's by
//! [`DiskIdentity::differences`]; a choice is within the broker's limits whatever the file says; a rule whose
//! figures are missing keeps the broker's safe default.
//! Absent on purpose: a choice about durability. Every choice here is durable, they differ in time alone.

use logic::limits::{
    BLOCK_BYTES, DSYNC_WRITES_DEFAULT, DSYNC_WRITES_MAX, MIB, ROUND_BYTES_MAX, ROUND_BYTES_MIN,
    ROUNDS_IN_FLIGHT_DEFAULT, ROUNDS_IN_FLIGHT_MAX, WRITE_BYTES_MAX, WRITE_BYTES_MIN,
};
use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The version of the file that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The file in a data directory.
pub const FILE_NAME: &str = "disk-profile.json";
/// The largest file that is read, bytes: a profile has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Durable writes must be faster than a shared flush by this much before they are preferred: a flush costs the
/// device and the processor less, and the other shards wait less for it.
const DSYNC_GAIN_MIN: f64 = 0.05;
/// A further round in flight, or a smaller write, must bring this much more.
const DEPTH_GAIN_MIN: f64 = 0.10;
/// How long the device may be busy with one full round, milliseconds: what arrives meanwhile waits for it.
const ROUND_MS_MAX: f64 = 20.0;

/// What makes the writes of a round durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableBy {
    /// Each by itself (RWF_DSYNC).
    Dsync,
    /// One fdatasync after all of them have completed.
    Flush,
}

/// A round: so many writes of so many bytes, made durable like this, so many rounds in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// What makes it durable.
    pub durable_by: DurableBy,
    /// Bytes of one write.
    pub write_bytes: usize,
    /// Writes of a round.
    pub writes: usize,
    /// Rounds in flight.
    pub rounds: usize,
}

/// What was measured of a shape.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DiskFigure {
    /// What was done.
    #[serde(flatten)]
    pub shape: Shape,
    /// The time of a round from its submission until it is durable that one in ten stays below, microseconds: what
    /// the disk takes when nobody else needs it, or the processor. The rules go by it.
    pub p10_us: f64,
    /// The median, microseconds.
    pub p50_us: f64,
    /// The time that one round in a hundred exceeds, microseconds.
    pub p99_us: f64,
    /// Durable bandwidth, 10^6 bytes per second.
    pub mb_s: f64,
    /// Rounds measured.
    pub measured: u64,
}

impl DiskFigure {
    /// The bandwidth that follows from [`DiskFigure::p10_us`], 10^6 bytes per second: a neighbour who takes the
    /// processor away halves what was measured at depth 1, and nothing of it at depth 4.
    fn undisturbed_mb_s(&self) -> f64 {
        let Shape { write_bytes, writes, rounds, .. } = self.shape;
        write_bytes as f64 * writes as f64 * rounds as f64 / self.p10_us
    }
}

/// Which disk, as far as the system tells; what it does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskIdentity {
    /// `major:minor` and the kernel's name, for people: both may change with a restart.
    pub device: String,
    /// The device's size, bytes.
    pub device_bytes: Option<u64>,
    /// The type of the file system.
    pub file_system: String,
    /// Its identity, as statvfs tells (`f_fsid`), hexadecimal.
    pub file_system_id: Option<String>,
    /// Whether the device has a volatile cache: `write back` or `write through`.
    pub write_cache: Option<String>,
    /// Whether it can write through that.
    pub fua: Option<bool>,
}

impl DiskIdentity {
    /// Of the disk that `directory` is on: `device` is `major:minor`, `file_system` the type of the mount.
    pub fn of(directory: &Path, device: &str, file_system: &str) -> Self {
        let own = Path::new("/sys/dev/block").join(device);
        let text = |path: PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        // A partition has no queue of its own: its disk, the folder above, has.
        let queue =
            |name: &str| text(own.join("queue").join(name)).or_else(|| text(own.join("../queue").join(name)));
        let uevent = text(own.join("uevent")).unwrap_or_default();
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Self {
            device: name.map_or_else(|| device.to_owned(), |name| format!("{name} ({device})")),
            // In sectors of 512 bytes, whatever the device's own are.
            device_bytes: text(own.join("size"))
                .and_then(|sectors| sectors.parse::<u64>().ok()?.checked_mul(512)),
            file_system: file_system.to_owned(),
            file_system_id: file_system_id(directory),
            write_cache: queue("write_cache"),
            fua: queue("fua").map(|fua| fua == "1"),
        }
    }

    /// In what `now` is another disk than this one, in words; empty if nothing is known to differ. The device's
    /// number and name do not count.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut out = Vec::new();
        let mut compare = |what: &str, then: Option<String>, now: Option<String>| {
            if let (Some(then), Some(now)) = (then, now)
                && then != now
            {
                out.push(format!("{what} {then} then, {now} now"));
            }
        };
        let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let number = |bytes: Option<u64>| bytes.map(|bytes| format!("{bytes} B"));
        compare("file system", known(&self.file_system), known(&now.file_system));
        compare("its identity", self.file_system_id.clone(), now.file_system_id.clone());
        compare("size of the device", number(self.device_bytes), number(now.device_bytes));
        compare("write cache", self.write_cache.clone(), now.write_cache.clone());
        let fua = |fua: Option<bool>| fua.map(|fua| if fua { "yes" } else { "no" }.to_owned());
        compare("forced unit access", fua(self.fua), fua(now.fua));
        out
    }
}

fn file_system_id(directory: &Path) -> Option<String> {
    let path = CString::new(directory.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, for which zeros are valid.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, and both it and `answer` outlive the call.
    let done = unsafe { libc::statvfs(path.as_ptr(), &mut answer) } == 0;
    // Zero is what file systems without an identity say.
    (done && answer.f_fsid != 0).then(|| format!("{:016x}", answer.f_fsid))
}

/// Who measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeasuredBy {
    /// `ringlog doctor --disk`, in full.
    Doctor,
    /// The first start, in short.
    Serve,
}

/// The file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DiskProfile {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// When, seconds since 1970.
    pub measured_unix_s: u64,
    /// By whom.
    pub measured_by: MeasuredBy,
    /// The kernel's release at that time.
    pub kernel: String,
    /// Of which disk.
    pub disk: DiskIdentity,
    /// What was found.
    pub figures: Vec<DiskFigure>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum DiskProfileError {
    /// The file.
    #[error("cannot {what} {}: {error}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Its text.
    #[error("{} is damaged, or no disk profile: {why}", path.display())]
    Text {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Of another build.
    #[error("{} has format {found}, this build reads {FORMAT_VERSION}", path.display())]
    Version {
        /// Which one.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

impl DiskProfileError {
    /// Whether there simply is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

impl DiskProfile {
    /// Reads a profile.
    ///
    /// # Errors
    /// No such file, no profile, one of another format, or with figures that cannot be.
    pub fn load(path: &Path) -> Result<Self, DiskProfileError> {
        let unreadable = |error| DiskProfileError::File { what: "read", path: path.to_owned(), error };
        let wrong = |why: String| DiskProfileError::Text { path: path.to_owned(), why };
        if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(wrong("it is too long".to_owned()));
        }
        let text = std::fs::read(path).map_err(unreadable)?;
        // The version first: the rest may look different in another one.
        #[derive(serde::Deserialize)]
        struct Version {
            format_version: u32,
        }
        let parse = |error: serde_json::Error| wrong(error.to_string());
        let Version { format_version: found } = serde_json::from_slice(&text).map_err(parse)?;
        if found != FORMAT_VERSION {
            return Err(DiskProfileError::Version { path: path.to_owned(), found });
        }
        let profile: Self = serde_json::from_slice(&text).map_err(parse)?;
        let sane = |value: f64| value.is_finite() && value >= 0.0;
        match profile
            .figures
            .iter()
            .find(|it| ![it.p10_us, it.p50_us, it.p99_us, it.mb_s].into_iter().all(sane))
        {
            Some(figure) => Err(wrong(format!("a figure that cannot be: {figure:?}"))),
            None => Ok(profile),
        }
    }

    /// Writes the profile into a directory, which must exist; after a crash there is the old one or the new one.
    /// Where it is.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn save(&self, directory: &Path) -> Result<PathBuf, DiskProfileError> {
        let path = directory.join(FILE_NAME);
        let write = || -> io::Result<()> {
            // The name begins like the file's: a data directory knows what it may find.
            let mut file = tempfile::Builder::new().prefix("disk-profile.").tempfile_in(directory)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            std::fs::File::open(directory)?.sync_all()
        };
        let failed = |error| DiskProfileError::File { what: "write", path: path.clone(), error };
        write().map_err(failed).map(|()| path.clone())
    }
}

/// How a broker is to write, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DiskChoice {
    /// A round of at most so many writes makes each durable by itself; a larger one shares a flush.
    pub dsync_writes_max: usize,
    /// Flush rounds in flight per shard.
    pub rounds_in_flight: usize,
    /// Bytes of a round, unless it is one group.
    pub round_bytes_max: usize,
    /// Bytes of a single write.
    pub write_bytes_max: usize,
    /// For each of them the figures that decided, or that there were none.
    pub why: Vec<String>,
}

impl Default for DiskChoice {
    /// The broker's own, for a disk that nothing is known of.
    fn default() -> Self {
        Self {
            dsync_writes_max: DSYNC_WRITES_DEFAULT,
            rounds_in_flight: ROUNDS_IN_FLIGHT_DEFAULT,
            round_bytes_max: ROUND_BYTES_MAX,
            write_bytes_max: WRITE_BYTES_MAX,
            why: Vec::new(),
        }
    }
}

/// What the figures say. `one_flush_covers_all_files`: whether a shared flush may be used on this file system.
///
/// - Durable writes: up to the largest measured number of 4 KiB writes at which, and at all smaller ones, they
///   take at least [`DSYNC_GAIN_MIN`] less time than plain writes and one flush.
/// - Rounds in flight: the fewest from which on more bring less than [`DEPTH_GAIN_MIN`] more bandwidth, for 4 KiB
///   and for 1 MiB; the larger of the two.
/// - Bytes of a round: what the device writes in [`ROUND_MS_MAX`] at 1 MiB and so many rounds, whole MiB.
/// - Bytes of a write: the largest that is within [`DEPTH_GAIN_MIN`] of the fastest, for 4 MiB in one round.
///
/// Times are lower deciles, and bandwidths follow from them: medians and means depend on who else was there.
pub fn choose(figures: &[DiskFigure], one_flush_covers_all_files: bool) -> DiskChoice {
    let find = |durable_by, write_bytes, writes, rounds| {
        let shape = Shape { durable_by, write_bytes, writes, rounds };
        figures.iter().find(|it| it.shape == shape && it.measured > 0 && it.p10_us > 0.0)
    };
    let mut choice = DiskChoice::default();
    if one_flush_covers_all_files {
        durable_writes(figures, &find, &mut choice);
    } else {
        let text = "every write is durable by itself: one flush is not known to cover all files here";
        choice.why.push(text.to_owned());
    }
    rounds_in_flight(&find, &mut choice);
    if one_flush_covers_all_files {
        write_bytes(figures, &find, &mut choice);
    }
    choice
}

/// The figure of a shape, if it was measured.
trait Find<'a>: Fn(DurableBy, usize, usize, usize) -> Option<&'a DiskFigure> {}
impl<'a, F: Fn(DurableBy, usize, usize, usize) -> Option<&'a DiskFigure>> Find<'a> for F {}

fn durable_writes<'a>(figures: &[DiskFigure], find: &impl Find<'a>, choice: &mut DiskChoice) {
    let mut counts: Vec<usize> = figures.iter().map(|figure| figure.shape.writes).collect();
    counts.sort_unstable();
    counts.dedup();
    let pairs =
        counts.into_iter().filter(|count| (1..=DSYNC_WRITES_MAX).contains(count)).filter_map(|count| {
            let dsync = find(DurableBy::Dsync, BLOCK_BYTES, count, 1)?;
            Some((count, dsync.p10_us, find(DurableBy::Flush, BLOCK_BYTES, count, 1)?.p10_us))
        });
    let pairs: Vec<(usize, f64, f64)> = pairs.collect();
    if pairs.is_empty() {
        choice.why.push("durable writes and flushes were not compared: the default".to_owned());
        return;
    }
    let pays = |pair: &&(usize, f64, f64)| pair.1 <= pair.2 * (1.0 - DSYNC_GAIN_MIN);
    let paying = pairs.iter().take_while(pays).count();
    choice.dsync_writes_max = paying.checked_sub(1).map_or(0, |last| pairs[last].0);
    // The last one that pays and the first one that does not.
    let shown = &pairs[paying.saturating_sub(1)..(paying + 1).min(pairs.len())];
    let shown: Vec<String> = shown
        .iter()
        .map(|(count, dsync, flush)| {
            let s = if *count == 1 { "" } else { "s" };
            format!("{count} write{s} of 4 KiB {dsync:.0} us durable each, {flush:.0} us with one flush")
        })
        .collect();
    choice.why.push(shown.join("; "));
}

fn rounds_in_flight<'a>(find: &impl Find<'a>, choice: &mut DiskChoice) {
    let bandwidths = |bytes| -> Vec<(usize, f64)> {
        let depths = 1..=ROUNDS_IN_FLIGHT_MAX;
        depths
            .filter_map(|depth| Some((depth, find(DurableBy::Dsync, bytes, 1, depth)?.undisturbed_mb_s())))
            .collect()
    };
    let (small, large) = (bandwidths(BLOCK_BYTES), bandwidths(MIB));
    // From a single depth nothing follows.
    let fewest = |found: &[(usize, f64)]| {
        let best = found.iter().map(|(_, mb_s)| *mb_s).fold(0.0, f64::max);
        let enough = found.iter().find(|(_, mb_s)| mb_s * (1.0 + DEPTH_GAIN_MIN) >= best);
        enough.map(|(depth, _)| *depth).filter(|_| found.len() > 1)
    };
    match fewest(&small).max(fewest(&large)) {
        None => choice.why.push("rounds in flight were not compared: the default".to_owned()),
        Some(depth) => {
            choice.rounds_in_flight = depth;
            let row = |name: &str, found: &[(usize, f64)]| {
                let cells: Vec<String> =
                    found.iter().map(|(depth, mb_s)| format!("{mb_s:.0} with {depth}")).collect();
                (found.len() > 1).then(|| format!("{name} {}", cells.join(", ")))
            };
            let rows: Vec<String> =
                [row("1 MiB", &large), row("4 KiB", &small)].into_iter().flatten().collect();
            choice.why.push(format!("MB/s by rounds in flight: {}", rows.join("; ")));
        }
    }
    // The depth may lie between measured ones, and the fastest below it is what it reaches at least.
    let reached = large.iter().filter(|(depth, _)| *depth <= choice.rounds_in_flight);
    let reached = reached.map(|(_, mb_s)| *mb_s).fold(0.0, f64::max);
    if reached > 0.0 {
        let bytes = reached * 1e6 * ROUND_MS_MAX / 1e3;
        choice.round_bytes_max = (bytes as usize).clamp(ROUND_BYTES_MIN, ROUND_BYTES_MAX) / MIB * MIB;
        let mib = choice.round_bytes_max / MIB;
        choice.why.push(match choice.round_bytes_max {
            ROUND_BYTES_MAX => format!("rounds of up to {mib} MiB take less than {ROUND_MS_MAX:.0} ms"),
            _ => format!("rounds of {mib} MiB take about {ROUND_MS_MAX:.0} ms"),
        });
    }
}

fn write_bytes<'a>(figures: &[DiskFigure], find: &impl Find<'a>, choice: &mut DiskChoice) {
    let mut found: Vec<(usize, f64)> = figures
        .iter()
        .map(|figure| figure.shape)
        .filter(|it| it.durable_by == DurableBy::Flush && it.rounds == 1)
        .filter(|it| it.write_bytes.checked_mul(it.writes) == Some(4 * MIB))
        .filter(|it| (WRITE_BYTES_MIN..=WRITE_BYTES_MAX).contains(&it.write_bytes))
        .filter(|it| it.write_bytes.is_multiple_of(BLOCK_BYTES))
        .filter_map(|it| {
            Some((it.write_bytes, find(it.durable_by, it.write_bytes, it.writes, 1)?.undisturbed_mb_s()))
        })
        .collect();
    found.sort_unstable_by_key(|(bytes, _)| *bytes);
    found.dedup_by_key(|(bytes, _)| *bytes);
    if found.len() < 2 {
        return;
    }
    let best = found.iter().map(|(_, mb_s)| *mb_s).fold(0.0, f64::max);
    let enough = found.iter().rfind(|(_, mb_s)| mb_s * (1.0 + DEPTH_GAIN_MIN) >= best);
    choice.write_bytes_max = enough.map_or(WRITE_BYTES_MAX, |(bytes, _)| *bytes);
    let cells: Vec<String> =
        found.iter().map(|(bytes, mb_s)| format!("{mb_s:.0} by {} KiB", bytes / 1024)).collect();
    choice.why.push(format!("MB/s of 4 MiB in one round: {}", cells.join(", ")));
}

#[cfg(test)]
#[path = "disk_profile_tests.rs"]
mod tests;
