//! Results on standard output: aligned tables for people, one JSON object per line for programs.
//!
//! Owner: a command makes one [`Output`] and writes all its results through it. Invariants: buffered, and
//! flushed when the command says so and at its end; a reader that hung up becomes
//! [`Failure::ReaderGone`], never a panic. Absent on purpose: colours, and messages that are no results
//! (those go to standard error).

use crate::failure::Failure;
use std::io::{self, BufWriter, Write};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    #[value(alias = "table")]
    Text,
    /// One object per line.
    Json,
}

/// `--format`, for every command that has results.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct FormatArguments {
    /// Text for people, or one JSON object per line for programs
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub format: Format,
}

/// Standard output.
pub struct Output {
    writer: BufWriter<Box<dyn Write>>,
    /// What the user chose.
    pub format: Format,
}

impl Output {
    /// Standard output in `format`.
    pub fn new(format: Format) -> Self {
        Self { writer: BufWriter::with_capacity(64 << 10, Box::new(io::stdout())), format }
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One line for people.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.writer, "{text}").map_err(|error| failure(&error))
    }

    /// Bytes as they are, and the end of a line.
    pub fn bytes(&mut self, pieces: &[&[u8]]) -> Result<(), Failure> {
        let written = pieces.iter().try_for_each(|piece| self.writer.write_all(piece));
        written.and_then(|()| self.writer.write_all(b"\n")).map_err(|error| failure(&error))
    }

    /// One line for programs.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.writer, value).map_err(io::Error::from);
        written.and_then(|()| self.writer.write_all(b"\n")).map_err(|error| failure(&error))
    }

    /// A table for people.
    pub fn table(&mut self, table: &Table) -> Result<(), Failure> {
        write!(self.writer, "{table}").map_err(|error| failure(&error))
    }

    /// Hands everything to the reader.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|error| failure(&error))
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::operation(format!("cannot write to standard output: {error}")),
    }
}

/// Rows under a heading, every column as wide as its widest cell; numbers to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// `columns`: headings; one that starts with `>` is for numbers, to the right.
    pub fn new(columns: &[&str]) -> Self {
        let right = columns.iter().map(|name| name.starts_with('>')).collect();
        let heading = columns.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        Self { rows: vec![heading], right }
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.right.len());
        self.rows.push(cells.into());
    }

    /// The same for a number of columns that is not known before.
    pub fn row_of(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.right.len());
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if *right { (padding.as_str(), "") } else { ("", padding.as_str()) };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds with the unit that reads best.
pub fn duration_us(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Milliseconds with the two units that matter.
pub fn duration_ms(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Bytes with the unit that reads best, by 1000.
pub fn bytes(count: u64) -> String {
    let value = count as f64;
    match value {
        value if value < 1e3 => format!("{count} B"),
        value if value < 1e6 => format!("{:.1} kB", value / 1e3),
        value if value < 1e9 => format!("{:.1} MB", value / 1e6),
        value => format!("{:.2} GB", value / 1e9),
    }
}

/// `1 record`, `2 records`.
pub fn counted(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {noun}{s}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["NAME", ">BYTES", "NOTE"]);
        table.row(["a".into(), "1".into(), "x".into()]);
        table.row(["longer é".into(), "12345".into(), String::new()]);
        let expect = "NAME      BYTES  NOTE\na             1  x\nlonger é  12345\n";
        assert_eq!(table.to_string(), expect);
    }

    #[test]
    fn numbers_for_people() {
        let rows: [(String, &str); 18] = [
            (grouped(0), "0"),
            (grouped(999), "999"),
            (grouped(1000), "1,000"),
            (grouped(1_234_567), "1,234,567"),
            (counted(1, "record"), "1 record"),
            (counted(2000, "record"), "2,000 records"),
            (duration_us(12.4), "12 us"),
            (duration_us(1500.0), "1.50 ms"),
            (duration_us(2_500_000.0), "2.50 s"),
            (duration_ms(0), "0 ms"),
            (duration_ms(999), "999 ms"),
            (duration_ms(1_250), "1.2 s"),
            (duration_ms(61_000), "1 min 1 s"),
            (duration_ms(7_260_000), "2 h 1 min"),
            (duration_ms(604_800_000), "7 d 0 h"),
            (bytes(999), "999 B"),
            (bytes(1_500_000), "1.5 MB"),
            (bytes(2_000_000_000), "2.00 GB"),
        ];
        for (got, expect) in rows {
            assert_eq!(got, expect);
        }
    }

    #[test]
    fn a_reader_that_hung_up_is_no_failure() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut output = Output { writer: BufWriter::with_capacity(1, Box::new(Gone)), format: Format::Text };
        assert!(matches!(output.line("hello"), Err(Failure::ReaderGone)));
        assert!(matches!(output.json(&1), Err(Failure::ReaderGone)));
    }
}
