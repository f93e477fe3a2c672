//! A child that is held by SIGSTOP, for certain.

/// Holds a child until it gets SIGCONT: when this returns, none of its threads does anything. The one that the signal is given to
/// may wait for its turn on a busy machine, and the others go on until then.
pub fn stop(child: u32) {
    // SAFETY: all zeros is a valid value of what is written to; the child is ours, and is not reaped here.
    let stopped = unsafe {
        let mut said: libc::siginfo_t = std::mem::zeroed();
        libc::kill(child as libc::pid_t, libc::SIGSTOP) == 0
            && libc::waitid(libc::P_PID, child, &mut said, libc::WSTOPPED | libc::WNOWAIT) == 0
    };
    assert!(stopped, "process {child} does not stop: {}", std::io::Error::last_os_error());
}
