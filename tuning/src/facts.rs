//! What the broker needs to know about its host, as plain data.
//!
//! Gathered once at start-up by whoever starts the broker, then read by every shard. Nothing here is a
//! judgement: that is `finding`'s.

use crate::mounts::{Mount, mount_of};
use crate::probe::{self, BLOCK_BYTES, IoUring, WriteCache};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The host as this process sees it, with the file system of one data directory.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HostFacts {
    /// The kernel's release, such as `6.18.44`.
    pub kernel: String,
    /// Cores that this process may run on.
    pub cores: usize,
    /// Whether io_uring can be used.
    pub io_uring: IoUring,
    /// The soft limit of locked memory, bytes; `u64::MAX` is none.
    pub locked_memory_bytes_max: u64,
    /// Whether the process may lock more than that (`CAP_IPC_LOCK`).
    pub locks_without_limit: bool,
    /// The soft limit of open files.
    pub open_files_max: u64,
    /// What an unprivileged process may raise that limit to.
    pub open_files_hard_max: u64,
    /// The directory that was probed: the data directory, or its nearest parent that exists.
    pub probed: PathBuf,
    /// Whether files there can be written and read with `O_DIRECT` in aligned blocks of 4 KiB.
    pub o_direct: bool,
    /// The alignment that `O_DIRECT` needs, bytes: what the kernel says, else 4096.
    pub dio_alignment: u32,
    /// Whether the kernel says so.
    pub dio_alignment_told: bool,
    /// The file system's type, such as `ext4`; empty when it was not found.
    pub filesystem: String,
    /// Options of the mount and the file system.
    pub mount_options: Vec<String>,
    /// `major:minor` of the device.
    pub device: String,
    /// Whether nothing there survives a restart of the host: no acknowledgement may say `device`.
    pub volatile: bool,
    /// Whether one fdatasync makes completed direct writes to all files of the data directory durable
    /// (ext4 or XFS with barriers, everything on one device); else each file needs its own.
    pub one_flush_covers_all_files: bool,
    /// What the device does with a completed write; unknown where there is no block device.
    pub write_cache: Option<WriteCache>,
    /// Whether the device can write through its cache, which makes a durable write one command.
    pub fua: Option<bool>,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

/// Asks the kernel about this process and the file system of `data_directory` (or of the nearest parent
/// that exists). Fails when that directory cannot be written to, with the kernel's reason.
pub fn host_facts(data_directory: &Path) -> io::Result<HostFacts> {
    let probed = nearest_existing(data_directory)?;
    let direct = probe::direct_io(&probed)?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mount_of(&mountinfo, &probed).unwrap_or(Mount {
        device: String::new(),
        mount_point: PathBuf::new(),
        filesystem: String::new(),
        options: Vec::new(),
    });
    let (write_cache, fua) = probe::device_cache(Path::new("/sys/dev/block"), &mount.device);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let (locked_memory_bytes_max, _) = probe::limit(libc::RLIMIT_MEMLOCK)?;
    let (open_files_max, open_files_hard_max) = probe::limit(libc::RLIMIT_NOFILE)?;
    let dio_alignment = direct.alignment.unwrap_or(BLOCK_BYTES);
    Ok(HostFacts {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        io_uring: probe::io_uring(),
        locked_memory_bytes_max,
        locks_without_limit: probe::locks_without_limit(&status),
        open_files_max,
        open_files_hard_max,
        o_direct: direct.works && dio_alignment <= BLOCK_BYTES,
        dio_alignment,
        dio_alignment_told: direct.alignment.is_some(),
        volatile: mount.is_volatile(),
        one_flush_covers_all_files: mount.one_flush_covers_all_files() && is_on_one_device(&probed)?,
        filesystem: mount.filesystem,
        mount_options: mount.options,
        device: mount.device,
        write_cache,
        fua,
        free_bytes: probe::free_bytes(&probed)?,
        probed,
    })
}

/// `path` without symbolic links, or its nearest parent that exists.
pub(crate) fn nearest_existing(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for candidate in absolute.ancestors() {
        match candidate.canonicalize() {
            Ok(found) if found.is_dir() => return Ok(found),
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether the folders directly in `directory` are on its device: someone may have mounted another disk on
/// `topics/`, which the flush file of the data directory does not reach.
fn is_on_one_device(directory: &Path) -> io::Result<bool> {
    let device = directory.metadata()?.dev();
    for entry in std::fs::read_dir(directory)? {
        // `metadata` follows a symbolic link, as opening a file below it does. What cannot be looked at
        // cannot be opened by the broker either.
        match std::fs::metadata(entry?.path()) {
            Ok(metadata) if metadata.dev() != device => return Ok(false),
            _ => {}
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside_this_test() -> PathBuf {
        std::env::current_exe().unwrap().parent().unwrap().to_owned()
    }

    #[test]
    fn facts_of_this_host_agree_with_each_other() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        let facts = host_facts(directory.path()).unwrap();
        assert!(facts.cores >= 1 && !facts.kernel.is_empty() && !facts.filesystem.is_empty());
        assert!(facts.dio_alignment.is_power_of_two());
        assert!(!(facts.volatile && facts.one_flush_covers_all_files));
        assert!(facts.open_files_max <= facts.open_files_hard_max);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the probe left a file");
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_judged_by_its_parent() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        let facts = host_facts(&directory.path().join("not/yet")).unwrap();
        assert_eq!(facts.probed, directory.path().canonicalize().unwrap());
        assert!(!directory.path().join("not").exists());
    }

    #[test]
    fn a_file_is_no_data_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = host_facts(file.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn a_folder_on_another_device_takes_the_permission_away() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        assert!(is_on_one_device(directory.path()).unwrap());
        // /proc is another file system on every Linux.
        std::os::unix::fs::symlink("/proc", directory.path().join("topics")).unwrap();
        assert!(!is_on_one_device(directory.path()).unwrap());
        assert!(!host_facts(directory.path()).unwrap().one_flush_covers_all_files);
    }
}
