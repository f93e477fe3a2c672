//! Instruction budgets: what the hot paths of `schema` and `logic` cost, in instructions, against a record.
//!
//! Instructions, because they are the same number on a busy virtual machine as on a quiet server: a change of
//! 5 % is visible where a timer sees noise. [`paths`] is what is counted, [`callgrind`] counts it,
//! [`baseline`] is the record in the repository (`perf/budgets/`, one file per build profile) and the
//! comparison. The example `budgets` of this crate is the command; the benches time the same paths.
//!
//! Absent on purpose: paths that make system calls (`sampling` counts those), and a comparison between
//! different compilers.

pub mod baseline;
pub mod callgrind;
pub mod paths;

/// A batch: how many records of how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Records in the batch.
    pub records: u32,
    /// Bytes of each record's value.
    pub record_bytes: usize,
}

/// Every batch that is counted and timed.
pub const SHAPES: [Shape; 6] = [
    Shape { records: 1, record_bytes: 100 },
    Shape { records: 100, record_bytes: 100 },
    Shape { records: 1000, record_bytes: 100 },
    Shape { records: 1, record_bytes: 1000 },
    Shape { records: 100, record_bytes: 1000 },
    Shape { records: 1000, record_bytes: 1000 },
];

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{} x {} B", self.records, self.record_bytes))
    }
}

/// One count.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// The name of the path.
    pub path: String,
    /// The batch.
    #[serde(flatten)]
    pub shape: Shape,
    /// Instructions of one pass over the path.
    pub instructions: u64,
}

/// What must be the same for counts to be compared.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Toolchain {
    /// The compiler and its version.
    pub compiler: String,
    /// The target.
    pub target: String,
    /// Cargo's profile (`debug`, `release`) and its optimisation level.
    pub profile: String,
    /// The version of valgrind.
    pub valgrind: String,
    /// The C library's version: its memory copies are part of the paths.
    pub libc: String,
    /// What the processor that valgrind shows can do, as far as code asks for it.
    pub cpu: String,
}

impl Toolchain {
    /// In what they differ, in words: `here` instead of `self`. Empty = nothing.
    pub fn differences(&self, here: &Toolchain) -> Vec<String> {
        let pairs = [
            (&self.compiler, &here.compiler),
            (&self.target, &here.target),
            (&self.profile, &here.profile),
            (&self.valgrind, &here.valgrind),
            (&self.libc, &here.libc),
            (&self.cpu, &here.cpu),
        ];
        let differ = pairs.into_iter().filter(|(recorded, here)| recorded != here);
        differ.map(|(recorded, here)| format!("{here} instead of {recorded}")).collect()
    }
}

/// The counts as a table for people: a line per path, a column per batch; and one per record for the largest.
pub fn table(counts: &[Count]) -> String {
    let mut out = format!("{:30}", "INSTRUCTIONS");
    SHAPES.iter().for_each(|shape| out.push_str(&format!(" {:>14}", shape.to_string())));
    out.push_str("     PER RECORD\n");
    for path in &paths::PATHS {
        let of = |shape: &Shape| counts.iter().find(|it| it.path == path.name && it.shape == *shape);
        let mut line = format!("{:30}", path.name);
        for shape in &SHAPES {
            let cell = of(shape).map_or("-".to_owned(), |it| it.instructions.to_string());
            line.push_str(&format!(" {cell:>14}"));
        }
        let largest = SHAPES.last().and_then(of);
        let per_record = largest.map(|it| it.instructions as f64 / f64::from(it.shape.records));
        line.push_str(&format!(" {:>14}\n", per_record.map_or("-".to_owned(), |it| format!("{it:.1}"))));
        out.push_str(&line);
    }
    out
}
