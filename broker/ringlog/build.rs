//! Tells the program the commit that it is built from, so that its reports can name it.
//!
//! Runs `git` where this crate lies in its repository, else says `unknown`; it never fails a build. A `+` behind the
//! commit: sources were changed since. Runs again when a source or the commit changes, never otherwise.

use std::path::Path;
use std::process::Command;

/// What the binary is made of, relative to the repository.
const SOURCES: [&str; 8] =
    ["schema", "broker", "client", "bench", "perf", "tuning", "Cargo.toml", "Cargo.lock"];

fn main() {
    // Asked now, not when this was compiled: checkouts may share a directory of what was built.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("Cargo tells every build script");
    let root = Path::new(&package).join("../..");
    println!("cargo::rerun-if-changed=build.rs");
    // A package without its repository may lie inside another one, whose commit would be a lie.
    let commit = match root.join(".git").exists() && root.join("broker/ringlog/build.rs").exists() {
        true => commit(&root).unwrap_or_else(|| "unknown".to_owned()),
        false => "unknown".to_owned(),
    };
    println!("cargo::rustc-env=RINGLOG_COMMIT={commit}");
}

fn commit(root: &Path) -> Option<String> {
    let id = git(root, &["rev-parse", "--short=12", "HEAD"])?;
    let git_directory = root.join(git(root, &["rev-parse", "--git-dir"])?);
    let branch = git(root, &["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    let watched = [git_directory.join("HEAD"), git_directory.join(branch)];
    // A path that does not exist would run this at every build.
    let sources = SOURCES.iter().map(|source| root.join(source));
    for path in watched.into_iter().chain(sources).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let mut status = vec!["status", "--porcelain", "--untracked-files=no", "--"];
    status.extend(SOURCES);
    let changed = git(root, &status).is_some_and(|changes| !changes.is_empty());
    Some(format!("{id}{}", if changed { "+" } else { "" }))
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
