//! Stacks of a sampled process, folded, counted, and drawn.
//!
//! Reads what `perf script` prints, keeps one line per distinct stack (`thread;caller;callee count`), and makes
//! from it a flame graph (SVG, with the search and zoom that its own script brings) and a list of the functions
//! in which samples ended. Folding and drawing are the crate `inferno`'s. Absent on purpose: reading
//! `perf.data` itself; its format belongs to `perf`.

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::flamegraph;
use std::collections::HashMap;
use std::io::{self, BufRead, Write};

/// Folded stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stacks {
    lines: Vec<String>,
}

/// A function, and the samples that ended in it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Hot {
    /// Its name; kernel functions end with `_[k]`.
    pub function: String,
    /// Of all samples.
    pub share: f64,
}

impl Stacks {
    /// Folds what `perf script` printed.
    ///
    /// # Errors
    /// The reader's, or text that is not of `perf script`.
    pub fn fold(script: impl BufRead) -> io::Result<Self> {
        let mut options = FoldOptions::default();
        options.annotate_kernel = true;
        let mut folded = Vec::new();
        Folder::from(options).collapse(script, &mut folded)?;
        let text = String::from_utf8_lossy(&folded);
        Ok(Self { lines: text.lines().map(str::to_owned).collect() })
    }

    /// Samples of all stacks together.
    pub fn samples(&self) -> u64 {
        self.counted().map(|(_, count)| count).sum()
    }

    /// The functions in which most samples ended, at most `most` of them.
    pub fn hottest(&self, most: usize) -> Vec<Hot> {
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for (stack, count) in self.counted() {
            *counts.entry(stack.rsplit(';').next().unwrap_or(stack)).or_default() += count;
        }
        let all = self.samples().max(1) as f64;
        let mut hot: Vec<(&str, u64)> = counts.into_iter().collect();
        // By name where they are equal: the same input gives the same list.
        hot.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let hot = hot.into_iter().take(most);
        hot.map(|(function, count)| Hot { function: function.to_owned(), share: count as f64 / all })
            .collect()
    }

    /// Draws them.
    ///
    /// # Errors
    /// The writer's; [`io::ErrorKind::InvalidInput`] without a sample.
    pub fn draw(&self, title: &str, subtitle: &str, out: impl Write) -> io::Result<()> {
        if self.lines.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no samples: the process did nothing"));
        }
        let mut options = flamegraph::Options::default();
        options.title = title.to_owned();
        options.subtitle = Some(subtitle.to_owned());
        options.colors = flamegraph::color::Palette::Multi(flamegraph::color::MultiPalette::Rust);
        options.deterministic = true;
        flamegraph::from_lines(&mut options, self.lines.iter().map(String::as_str), out)
    }

    fn counted(&self) -> impl Iterator<Item = (&str, u64)> {
        let split = self.lines.iter().filter_map(|line| line.rsplit_once(' '));
        split.filter_map(|(stack, count)| Some((stack, count.parse().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What perf 6.1 prints for one sample.
    fn sample(thread: &str, frames: &[(&str, &str)]) -> String {
        let mut text = format!("{thread} 100/101 [001] 12.345678: cpu-clock:pppH: \n");
        for (function, object) in frames {
            text.push_str(&format!("\t    55d0c0ffee00 {function}+0x1f ({object})\n"));
        }
        text + "\n"
    }

    fn script() -> String {
        let write =
            [("ksys_write", "[kernel.kallsyms]"), ("flush", "/bin/ringlog"), ("main", "/bin/ringlog")];
        let crc = [("crc32c", "/bin/ringlog"), ("main", "/bin/ringlog")];
        sample("shard-0", &write)
            + &sample("shard-0", &crc)
            + &sample("shard-0", &crc)
            + &sample("other", &crc)
    }

    #[test]
    fn stacks_are_folded_by_thread_and_counted() {
        let stacks = Stacks::fold(script().as_bytes()).unwrap();
        assert_eq!(
            stacks.lines,
            ["other;main;crc32c 1", "shard-0;main;crc32c 2", "shard-0;main;flush;ksys_write_[k] 1"]
        );
        assert_eq!(stacks.samples(), 4);
        let hot = |function: &str, share| Hot { function: function.to_owned(), share };
        assert_eq!(stacks.hottest(9), [hot("crc32c", 0.75), hot("ksys_write_[k]", 0.25)]);
        assert_eq!(stacks.hottest(1), [hot("crc32c", 0.75)]);
    }

    #[test]
    fn the_picture_has_the_functions_and_needs_samples() {
        let mut svg = Vec::new();
        Stacks::fold(script().as_bytes()).unwrap().draw("A title", "below it", &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        for part in ["<svg", "A title", "below it", "crc32c (2 samples, 50.00%)"] {
            assert!(svg.contains(part), "{part}");
        }
        let error = Stacks::default().draw("", "", Vec::new()).unwrap_err();
        assert!(error.to_string().contains("no samples"));
    }
}
