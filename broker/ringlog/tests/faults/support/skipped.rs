//! What a test says that does not run, or not all of it, for want of a right or a tool: `.ci/run` counts these lines.

use std::io::Write;

/// Says so, past the harness, which keeps to itself what a test prints that passes.
pub fn skipped(what: &str) {
    // Not eprintln. In one piece, and on a line of its own whatever the harness has begun to say.
    let _ = std::io::stderr().write_all(format!("\nSKIPPED {what}\n").as_bytes());
}
