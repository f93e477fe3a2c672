//! Lines of a file or of standard input, read by a thread of its own.
//!
//! Owner: one `ringlog produce`. Reading blocks, sending does not: the thread hands over what it has after
//! every read, so that a typed line leaves at once, through a queue of few chunks, so that a large file does
//! not fill memory. Invariants: a line is a slice of what was read, without its `\n` or `\r\n`; a last line
//! without an end counts; a line above [`LINE_BYTES_MAX`] ends the reading with an error.

use bytes::{Bytes, BytesMut};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tokio::sync::mpsc;

/// The largest batch that a topic can permit.
pub const LINE_BYTES_MAX: usize = 8 << 20;
const READ_BYTES: usize = 256 << 10;
const CHUNKS_MAX: usize = 4;

/// Why reading ended before the end.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The system could not read.
    #[error("cannot read on: {0}")]
    Io(#[from] io::Error),
    /// No line end for too long.
    #[error("a line of more than {LINE_BYTES_MAX} bytes; no topic takes such a record")]
    TooLong,
}

/// Some lines, in order.
pub type Chunk = Result<Vec<Bytes>, LinesError>;

/// Lines to come.
pub struct Lines {
    chunks: mpsc::Receiver<Chunk>,
    /// Of a file.
    pub total_bytes: Option<u64>,
}

impl Lines {
    /// The lines of a file.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let total_bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { total_bytes, ..Self::start(file) })
    }

    /// The lines of standard input.
    pub fn of_standard_input() -> Self {
        Self::start(io::stdin())
    }

    fn start(input: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        std::thread::spawn(move || {
            let done = read(input, |lines| sender.blocking_send(Ok(lines)).is_ok());
            if let Err(error) = done {
                // Nobody waits any more: nobody wants to know.
                let _ = sender.blocking_send(Err(error));
            }
        });
        Self { chunks, total_bytes: None }
    }

    /// The next lines; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Chunk> {
        self.chunks.recv().await
    }
}

/// Gives lines to `take` until the end, or until that says `false`.
fn read(mut input: impl Read, mut take: impl FnMut(Vec<Bytes>) -> bool) -> Result<(), LinesError> {
    let mut buffer = BytesMut::new();
    loop {
        let held = buffer.len();
        buffer.resize(held + READ_BYTES, 0);
        let count = match input.read(&mut buffer[held..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                buffer.truncate(held);
                continue;
            }
            other => other?,
        };
        buffer.truncate(held + count);
        let mut lines = Vec::new();
        // Where the next line end can be: what was held has none.
        let mut searched = held;
        while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(searched + at + 1).freeze();
            lines.push(without_end(line));
            searched = 0;
        }
        if count == 0 && !buffer.is_empty() {
            lines.push(buffer.split().freeze());
        }
        if buffer.len() > LINE_BYTES_MAX || lines.iter().any(|line| line.len() > LINE_BYTES_MAX) {
            return Err(LinesError::TooLong);
        }
        if !lines.is_empty() && !take(lines) || count == 0 {
            return Ok(());
        }
    }
}

fn without_end(line: Bytes) -> Bytes {
    let line = line.slice(..line.len() - 1);
    match line.last() {
        Some(b'\r') => line.slice(..line.len() - 1),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads at most `step` bytes at a time.
    struct Slowly<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.step.min(buffer.len());
            (&mut self.bytes).take(step as u64).read(buffer)
        }
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let rows: [(&str, &[&str]); 7] = [
            ("", &[]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("a\nb", &["a", "b"]),
            ("a\r\n\nb\n", &["a", "", "b"]),
            ("\n", &[""]),
            ("a\rb\n", &["a\rb"]),
        ];
        for (text, expect) in rows {
            for step in [1, 2, 3, 1000] {
                let mut got = Vec::new();
                read(Slowly { bytes: text.as_bytes(), step }, |lines| {
                    got.extend(lines);
                    true
                })
                .unwrap();
                assert_eq!(got, expect, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = io::repeat(b'x');
        let done = read(endless, |_| panic!("there is no line"));
        assert!(matches!(done, Err(LinesError::TooLong)));
    }
}
