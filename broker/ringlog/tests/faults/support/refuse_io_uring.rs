//! A process without io_uring, as in a container whose profile forbids it.
//!
//! The filter belongs to that process alone. Also part of the tests of `doctor`, which name this file.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes `command` run without io_uring.
pub fn refuse_io_uring(command: &mut Command) {
    let filter = filter();
    let refuse = move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other);
    // SAFETY: between fork and exec only system calls are made; the filter was compiled before.
    unsafe { command.pre_exec(refuse) };
}

fn filter() -> seccompiler::BpfProgram {
    use seccompiler::{SeccompAction, SeccompFilter};
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let filter = SeccompFilter::new(
        calls.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().expect("an architecture that is known"),
    );
    filter.expect("a sound filter").try_into().expect("a sound filter")
}
