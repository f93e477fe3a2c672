//! A short slice of processor time for the shards, so that the kernel's own work on their cores is not kept waiting.
//!
//! A durable write ends in a worker thread of the kernel, on the core that the disk interrupts. A shard that is busy on that
//! core keeps it waiting until its slice is over, 2.8 ms on two cores: the shard itself then waits for the end of its own write.
//! With the shortest slice there is the worker runs after 0.1 ms at most. Nothing else is to run on the shard's core, so
//! it gives nothing away. Measured: docs/PERFORMANCE.md, "Whose turn it is".

use std::io;
use std::mem::size_of;

/// The shortest that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// Shortens the slice of the calling thread. Its nice value stays, and so does a policy that has no slices. Kernels before
/// 6.12 have one length for everybody, and leave it.
///
/// # Errors
/// What the kernel says: a filter of system calls may not allow it.
pub fn shorten() -> io::Result<()> {
    let mut attributes = attributes()?;
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&(attributes.sched_policy as i32)) {
        return Ok(());
    }
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads as many bytes of the structure as it says that it has.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: numbers only, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes to a structure of that size.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn check(returned: libc::c_long) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_slice_leaves_the_nice_value() {
        let thread = std::thread::spawn(|| {
            // SAFETY: takes numbers only; 0 is this thread.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) }, 0);
            let before = attributes().unwrap();
            shorten().unwrap();
            let after = attributes().unwrap();
            // Zero: a kernel without slices of their own.
            let expected = if before.sched_runtime == 0 { 0 } else { SLICE_NS };
            assert_eq!((after.sched_nice, after.sched_runtime), (3, expected));
            assert_ne!(before.sched_runtime, SLICE_NS);
        });
        thread.join().unwrap();
    }
}
