//! Tells the crate with what it is compiled: instruction counts are comparable only where that is the same.

use std::process::Command;

fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let compiler = Command::new(variable("RUSTC")).arg("--version").output();
    let compiler = compiler.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo:rustc-env=PERF_COMPILER={}", compiler.unwrap_or_default());
    for name in ["OPT_LEVEL", "PROFILE", "TARGET"] {
        println!("cargo:rustc-env=PERF_{name}={}", variable(name));
    }
    println!("cargo:rerun-if-changed=build.rs");
}
