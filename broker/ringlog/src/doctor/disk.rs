//! `ringlog doctor --disk DIR`: what the disk is good at, and how a broker is to write to it.
//!
//! Measures about 15 seconds on nameless files in the directory, prints figures and choices, and keeps them in
//! the directory for `ringlog serve`, if it is a data directory or is to become one. Exit status: 0 measured; 2
//! it could not be. Absent on purpose: a judgement of the disk; figures of several disks are compared by people.

use crate::disk_profile::{in_words, measure, not_measurable, not_ours};
use crate::failure::Failure;
use crate::output::{Format, Output, Table, duration_us, grouped};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use perf::disk_profile::{DiskFigure, DiskIdentity, DurableBy, MeasuredBy, choose};
use serde_json::json;
use std::path::Path;

/// Runs it.
pub fn run(directory: &Path, format: Format) -> Result<(), Failure> {
    let mut output = Output::new(format);
    let cannot = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot measure the disk of {}: {why}", directory.display()))
    };
    std::fs::create_dir_all(directory).map_err(|error| cannot(&error))?;
    let facts = tuning::host_facts(directory).map_err(|error| cannot(&error))?;
    if let Some(why) = not_measurable(&facts) {
        return Err(cannot(&why));
    }
    let foreign = not_ours(directory);
    if let Some(why) = foreign.as_ref().filter(|why| why.contains("running broker")) {
        return Err(cannot(&format!(
            "{why}: its load and these figures would spoil each other; stop it first"
        )));
    }
    let here = DiskIdentity::of(directory, &facts.device, &facts.filesystem);
    let progress = Progress::new();
    let profile = measure(directory, here, &facts, MeasuredBy::Doctor, &mut |figure, share| {
        progress.show(&name(figure), share);
    });
    progress.bar.finish_and_clear();
    let profile = profile.map_err(|failure| cannot(&failure.message().unwrap_or("unknown")))?;
    let one_flush = facts.one_flush_covers_all_files;
    let choice = choose(&profile.figures, one_flush);
    let saved = match &foreign {
        None => Some(profile.save(directory).map_err(|error| Failure::operation(error.to_string()))?),
        Some(_) => None,
    };
    if output.is_json() {
        for figure in &profile.figures {
            output.json(figure)?;
        }
        output.json(&json!({
            "disk": profile.disk, "kernel": profile.kernel, "one_flush_covers_all_files": one_flush,
            "choice": choice, "saved": saved,
        }))?;
        return output.flush();
    }
    let disk = &profile.disk;
    let cache = disk.write_cache.as_deref().map_or(String::new(), |cache| format!(", {cache} cache"));
    let fua = if disk.fua == Some(true) { ", with FUA" } else { "" };
    output.line(&format!("{}, {}{cache}{fua}, Linux {}", disk.device, disk.file_system, profile.kernel))?;
    output.line("")?;
    output.table(&table(&profile.figures))?;
    output.line("")?;
    output.line(&format!("choice: {}", in_words(&choice, one_flush)))?;
    for why in &choice.why {
        output.line(&format!("  because {why}"))?;
    }
    match (saved, foreign) {
        (Some(path), _) => output.line(&format!("kept for ringlog serve: {}", path.display()))?,
        (None, why) => output
            .line(&format!("not kept: {}; measure the data directory itself", why.unwrap_or_default()))?,
    }
    output.flush()
}

/// What was done, in words.
fn name(figure: &DiskFigure) -> String {
    let shape = &figure.shape;
    let size = match shape.write_bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let how = match shape.durable_by {
        DurableBy::Dsync => "dsync",
        DurableBy::Flush => "one fdatasync",
    };
    format!("{} x {size}, {how}, {} in flight", shape.writes, shape.rounds)
}

fn table(figures: &[DiskFigure]) -> Table {
    let mut table = Table::new(&["ROUND", ">P10", ">P50", ">P99", ">MB/S", ">ROUNDS/S"]);
    let mut sorted: Vec<&DiskFigure> = figures.iter().collect();
    sorted.sort_by_key(|figure| {
        let shape = figure.shape;
        (shape.write_bytes, shape.writes, shape.rounds, shape.durable_by == DurableBy::Flush)
    });
    for figure in sorted {
        let bytes = (figure.shape.write_bytes * figure.shape.writes) as f64;
        table.row([
            name(figure),
            duration_us(figure.p10_us),
            duration_us(figure.p50_us),
            duration_us(figure.p99_us),
            format!("{:.1}", figure.mb_s),
            grouped((figure.mb_s * 1e6 / bytes) as u64),
        ]);
    }
    table
}

/// On standard error, where that is a terminal.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {percent} %  {msg}");
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
        let bar = bar.with_style(style.expect("a constant template is valid"));
        bar.tick();
        Self { bar }
    }

    fn show(&self, message: &str, share: f64) {
        self.bar.set_message(message.to_owned());
        self.bar.set_position((share * 1000.0) as u64);
    }
}
