//! Questions to the kernel, one function each: io_uring, direct files, the device's cache, limits.
//!
//! Stateless. What parses text takes text, so that recorded files test it; what makes a system call is a
//! few lines around it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Whether io_uring can be used, and who forbids it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum IoUring {
    /// It works, but for these operations (none of them missing: an empty list).
    Available {
        /// Names of the operations that the broker needs and the kernel does not have.
        missing: Vec<&'static str>,
    },
    /// The kernel has no such system call.
    Absent,
    /// The setting `kernel.io_uring_disabled` forbids it to this process.
    DisabledBySysctl {
        /// 1: permitted to one group and to administrators; 2: to nobody.
        value: u8,
    },
    /// A system-call filter forbids it, as the default of container runtimes does.
    Filtered,
    /// Something else, as an errno.
    Failed {
        /// What `io_uring_setup` returned.
        errno: i32,
    },
}

/// What a device does with a write before it is on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum WriteCache {
    /// Completed writes may be in a volatile cache: a flush makes them durable.
    WriteBack,
    /// Completed writes are on the medium, or in a cache that keeps them: a flush costs nothing.
    WriteThrough,
}

/// What the runtime's executors and the broker's own rings submit.
const OPERATIONS: [(&str, u8); 23] = {
    use io_uring::opcode::*;
    [
        ("ACCEPT", Accept::CODE),
        ("ASYNC_CANCEL", AsyncCancel::CODE),
        ("CLOSE", Close::CODE),
        ("CONNECT", Connect::CODE),
        ("FALLOCATE", Fallocate::CODE),
        ("FSYNC", Fsync::CODE),
        ("LINK_TIMEOUT", LinkTimeout::CODE),
        ("NOP", Nop::CODE),
        ("OPENAT", OpenAt::CODE),
        ("POLL_ADD", PollAdd::CODE),
        ("POLL_REMOVE", PollRemove::CODE),
        ("READ", Read::CODE),
        ("READ_FIXED", ReadFixed::CODE),
        ("RECV", Recv::CODE),
        ("RECVMSG", RecvMsg::CODE),
        ("SEND", Send::CODE),
        ("SENDMSG", SendMsg::CODE),
        ("STATX", Statx::CODE),
        ("TIMEOUT", Timeout::CODE),
        ("TIMEOUT_REMOVE", TimeoutRemove::CODE),
        ("WRITE", io_uring::opcode::Write::CODE),
        ("WRITE_FIXED", WriteFixed::CODE),
        ("WRITEV", Writev::CODE),
    ]
};

/// Makes a small ring and asks it for its operations.
pub(crate) fn io_uring() -> IoUring {
    let ring = match io_uring::IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => {
            let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            return refusal(error.raw_os_error().unwrap_or(0), sysctl.as_deref(), &status);
        }
    };
    let mut probe = io_uring::Probe::new();
    match ring.submitter().register_probe(&mut probe) {
        Ok(()) => {
            let missing = OPERATIONS.iter().filter(|(_, code)| !probe.is_supported(*code));
            IoUring::Available { missing: missing.map(|(name, _)| *name).collect() }
        }
        // The probe is of Linux 5.6; a kernel without it also lacks most of the list.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::Available { missing: OPERATIONS.map(|(name, _)| name).to_vec() }
        }
        Err(error) => IoUring::Failed { errno: error.raw_os_error().unwrap_or(0) },
    }
}

/// Tells apart who refused `io_uring_setup` with `errno`.
fn refusal(errno: i32, sysctl: Option<&str>, status: &str) -> IoUring {
    // 2 is SECCOMP_MODE_FILTER. Some filters answer EPERM, others ENOSYS.
    let filtered = field(status, "Seccomp") == Some("2");
    match (errno, sysctl.and_then(|text| text.trim().parse().ok())) {
        (libc::EPERM, Some(value @ 1..)) => IoUring::DisabledBySysctl { value },
        (libc::EPERM, _) => IoUring::Filtered,
        // The setting exists since Linux 6.6 wherever io_uring does: ENOSYS is then a filter's answer.
        (libc::ENOSYS, sysctl) if filtered && sysctl.is_some() => IoUring::Filtered,
        (libc::ENOSYS, _) => IoUring::Absent,
        _ => IoUring::Failed { errno },
    }
}

/// The value of `Name:<tab>value` in `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let values = status.lines().filter_map(|line| line.split_once(':'));
    values.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next()
}

/// Whether a process with this `/proc/self/status` may lock memory beyond its limit.
pub(crate) fn locks_without_limit(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    has_capability(status, CAP_IPC_LOCK)
}

/// Whether a process with this `/proc/self/status` has the capability of this number.
pub(crate) fn has_capability(status: &str, number: u32) -> bool {
    field(status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|set| set & (1 << number) != 0)
}

/// One block of a file opened with `O_DIRECT`, at the alignment that the broker uses for all of them.
#[repr(C, align(4096))]
struct Block([u8; 4096]);

/// Bytes of the alignment that the broker writes at.
pub(crate) const BLOCK_BYTES: u32 = 4096;
/// A file of one block that every data directory has (`broker/server/src/data_directory.rs`).
const FLUSH_FILE: &str = "flush";

/// How files in a directory can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectIo {
    /// Whether a block was written and read with `O_DIRECT`.
    pub(crate) works: bool,
    /// The alignment of addresses and offsets, where the kernel tells it, bytes.
    pub(crate) alignment: Option<u32>,
}

/// Writes, syncs and reads one block of a temporary file in `directory`, which is then removed. On a full
/// disk it only reads a block of a file that the directory of a broker has, so that one can start there.
/// An error means that the directory cannot be written to at all.
pub(crate) fn direct_io(directory: &Path) -> io::Result<DirectIo> {
    match direct_write(directory) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            direct_read(&directory.join(FLUSH_FILE)).ok_or(error)
        }
        other => other,
    }
}

fn direct_write(directory: &Path) -> io::Result<DirectIo> {
    let mut file = tempfile::Builder::new().prefix(".ringlog-probe-").tempfile_in(directory)?;
    file.write_all(&[0; 4096])?;
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path());
    let Ok(direct) = direct else { return Ok(DirectIo { works: false, alignment: None }) };
    let alignment = dio_alignment(&direct);
    let written = Block([0x5a; 4096]);
    let mut read = Block([0; 4096]);
    let works = direct
        .write_all_at(&written.0, 0)
        .and_then(|()| direct.sync_data())
        .and_then(|()| direct.read_exact_at(&mut read.0, 0))
        .is_ok_and(|()| read.0 == written.0);
    Ok(DirectIo { works, alignment })
}

/// `None` without such a file of at least one block.
fn direct_read(path: &Path) -> Option<DirectIo> {
    let mut read = Block([0; 4096]);
    File::open(path).and_then(|file| file.read_exact_at(&mut read.0, 0)).ok()?;
    let Ok(direct) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) else {
        return Some(DirectIo { works: false, alignment: None });
    };
    let works = direct.read_exact_at(&mut read.0, 0).is_ok();
    Some(DirectIo { works, alignment: dio_alignment(&direct) })
}

/// The larger of both alignments that statx(2) gives for `O_DIRECT`; none before Linux 6.1, and on file
/// systems that do not say.
fn dio_alignment(file: &File) -> Option<u32> {
    // SAFETY: statx is plain data, for which zeros are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is a NUL-terminated literal, `answer` outlives the call.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut answer)
    };
    let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    let alignment = answer.stx_dio_mem_align.max(answer.stx_dio_offset_align);
    (told && alignment > 0).then_some(alignment)
}

/// The cache and FUA of the block device `major:minor`, from `sys_block` (`/sys/dev/block`).
pub(crate) fn device_cache(sys_block: &Path, device: &str) -> (Option<WriteCache>, Option<bool>) {
    let own = sys_block.join(device);
    // A partition has no queue of its own: its disk, the folder above, has.
    let queue = [own.join("queue"), own.join("../queue")].into_iter().find(|queue| queue.is_dir());
    let Some(queue) = queue else { return (None, None) };
    let text = |name| std::fs::read_to_string(queue.join(name)).ok();
    let cache = match text("write_cache").as_deref().map(str::trim) {
        Some("write back") => Some(WriteCache::WriteBack),
        Some("write through") => Some(WriteCache::WriteThrough),
        _ => None,
    };
    (cache, text("fua").map(|fua| fua.trim() == "1"))
}

/// Bytes that an unprivileged process may still write on the file system of `directory`.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data, for which zeros are valid.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, and both it and `answer` outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer.f_bavail * answer.f_frsize)
}

/// The soft and the hard limit of `resource`; `u64::MAX` is no limit.
pub(crate) fn limit(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut answer = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `answer` is valid for writes during the call.
    if unsafe { libc::getrlimit(resource, &mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((answer.rlim_cur, answer.rlim_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_refused() {
        const FILTER: &str = "Name:\tringlog\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        const PLAIN: &str = "Name:\tringlog\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        let rows = [
            (libc::EPERM, Some("2\n"), PLAIN, IoUring::DisabledBySysctl { value: 2 }),
            (libc::EPERM, Some("1\n"), FILTER, IoUring::DisabledBySysctl { value: 1 }),
            (libc::EPERM, Some("0\n"), FILTER, IoUring::Filtered),
            (libc::EPERM, None, FILTER, IoUring::Filtered),
            (libc::ENOSYS, None, PLAIN, IoUring::Absent),
            (libc::ENOSYS, None, FILTER, IoUring::Absent),
            (libc::ENOSYS, Some("0\n"), FILTER, IoUring::Filtered),
            (libc::ENOMEM, Some("0\n"), PLAIN, IoUring::Failed { errno: libc::ENOMEM }),
        ];
        for (errno, sysctl, status, expect) in rows {
            assert_eq!(refusal(errno, sysctl, status), expect, "{errno} {sysctl:?}");
        }
    }

    #[test]
    fn the_right_to_lock_memory_is_a_bit() {
        let rows = [
            ("CapEff:\t000001ffffffffff\n", true),
            ("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n", false),
            ("CapEff:\t0000000000004000\n", true),
            ("CapEff:\t00000000a80425fb\n", false),
            ("CapEff:\tnot hex\n", false),
            ("", false),
        ];
        for (status, expect) in rows {
            assert_eq!(locks_without_limit(status), expect, "{status}");
        }
    }

    #[test]
    fn a_partition_has_the_cache_of_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("sda");
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        std::fs::create_dir_all(disk.join("sda1")).unwrap();
        std::os::unix::fs::symlink(&disk, sys.path().join("8:0")).unwrap();
        std::os::unix::fs::symlink(disk.join("sda1"), sys.path().join("8:1")).unwrap();
        let check = |cache: &str, fua: &str, expect| {
            std::fs::write(disk.join("queue/write_cache"), cache).unwrap();
            std::fs::write(disk.join("queue/fua"), fua).unwrap();
            assert_eq!(device_cache(sys.path(), "8:0"), expect);
            assert_eq!(device_cache(sys.path(), "8:1"), expect);
        };
        check("write back\n", "0\n", (Some(WriteCache::WriteBack), Some(false)));
        check("write through\n", "1\n", (Some(WriteCache::WriteThrough), Some(true)));
        check("something new\n", "1\n", (None, Some(true)));
        assert_eq!(device_cache(sys.path(), "0:25"), (None, None));
    }
}
