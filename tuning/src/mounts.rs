//! `/proc/self/mountinfo`: which file system a path is on, and what may be concluded from it.
//!
//! Source of the format: proc_pid_mountinfo(5). Lines that do not parse are skipped: a mount that cannot
//! be read gives no permission to anything.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Mount {
    /// `major:minor` of the device, as `/sys/dev/block` names it; major 0 where there is no block device.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The type, such as `ext4`.
    pub filesystem: String,
    /// Options of the mount and of the file system, in the order of the file.
    pub options: Vec<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        // 36 35 98:0 /root /mount-point options optional-fields... - type source super-options
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(2);
        let device = head.next()?.to_owned();
        let mount_point = unescape(head.nth(1)?);
        let options = head.next()?;
        let mut tail = tail.split(' ');
        let filesystem = tail.next()?.to_owned();
        let super_options = tail.nth(1).unwrap_or("");
        let options = options.split(',').chain(super_options.split(',')).filter(|option| !option.is_empty());
        Some(Self { device, mount_point, filesystem, options: options.map(str::to_owned).collect() })
    }

    /// Whether `option` is set, by its whole name or with a value (`logdev` matches `logdev=/dev/sdb`).
    pub fn has(&self, option: &str) -> bool {
        self.options
            .iter()
            .any(|set| set == option || set.split_once('=').is_some_and(|(name, _)| name == option))
    }

    /// Whether nothing on it survives a restart of the host.
    pub fn is_volatile(&self) -> bool {
        matches!(self.filesystem.as_str(), "tmpfs" | "ramfs")
    }

    /// Whether the fdatasync of one file is known to make completed direct writes to *other* files of this
    /// mount durable, where these go into extents that are written and committed: it flushes the device's
    /// cache, which knows nothing of files.
    ///
    /// True only where the code was read: ext4 and XFS flush the device in every fdatasync, whatever is
    /// dirty, as long as barriers are on, and as long as data, log and flush file are on one device.
    pub fn one_flush_covers_all_files(&self) -> bool {
        let barriers = !self.has("nobarrier") && !self.options.iter().any(|option| option == "barrier=0");
        match self.filesystem.as_str() {
            // With data=journal a write to the file is a write to the journal, checkpointed later.
            "ext4" => barriers && !self.options.iter().any(|option| option == "data=journal"),
            "xfs" => barriers && !self.has("logdev") && !self.has("rtdev"),
            _ => false,
        }
    }
}

/// The mount that `path` (absolute, without symbolic links) is on, from the text of a mountinfo file.
pub(crate) fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    // The deepest wins; of mounts stacked on one point the last hides the others (max_by_key keeps it).
    mounts(mountinfo)
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

/// All mounts of a mountinfo file.
pub(crate) fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount> {
    mountinfo.lines().filter_map(Mount::parse)
}

/// Undoes `\040` and its like: three octal digits for blanks, newlines and backslashes.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded on machines of several kinds, put together.
    const RECORDED: &str = r"22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resuid=65534
28 27 0:25 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684084k
40 27 259:2 / /srv/xfs rw,noatime shared:7 - xfs /dev/nvme0n1p2 rw,attr2,inode64,logbufs=8,noquota
41 27 259:3 / /srv/xfslog rw - xfs /dev/nvme0n1p3 rw,logdev=/dev/sdb1,noquota
42 27 8:1 / /srv/nobarrier rw master:1 propagate_from:2 - ext4 /dev/sda1 rw,nobarrier
43 27 8:2 / /srv/barrier0 rw - ext4 /dev/sda2 rw,barrier=0
44 27 8:3 / /srv/journal rw - ext4 /dev/sda3 rw,data=journal
45 27 8:4 / /srv/ordered rw - ext4 /dev/sda4 rw,data=ordered
46 27 0:45 /sub /srv/btrfs rw - btrfs /dev/sda5 rw,ssd,subvol=/sub
47 27 0:50 / /srv/merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
48 27 0:51 / /srv/nfs rw - nfs4 server:/export rw,vers=4.2
49 27 8:5 / /srv/with\040blank rw - ext4 /dev/sda6 rw
50 27 8:6 / /srv/stacked rw - ext4 /dev/sda7 rw
51 27 0:52 / /srv/stacked rw - tmpfs tmpfs rw
this line is no mount
52 27 8:7 / /srv/broken";

    #[test]
    fn a_path_is_on_the_deepest_and_latest_mount() {
        let check = |path: &str, filesystem: &str, device: &str, one_flush: bool| {
            let mount = mount_of(RECORDED, Path::new(path)).unwrap();
            let got = (mount.filesystem.as_str(), mount.device.as_str(), mount.one_flush_covers_all_files());
            assert_eq!(got, (filesystem, device, one_flush), "{path}");
        };
        check("/var/lib/ringlog", "ext4", "254:0", true);
        check("/dev/shm/data", "tmpfs", "0:25", false);
        check("/srv/xfs/data", "xfs", "259:2", true);
        check("/srv/xfsy", "ext4", "254:0", true);
        check("/srv/xfslog", "xfs", "259:3", false);
        check("/srv/nobarrier/a", "ext4", "8:1", false);
        check("/srv/barrier0/a", "ext4", "8:2", false);
        check("/srv/journal/a", "ext4", "8:3", false);
        check("/srv/ordered/a", "ext4", "8:4", true);
        check("/srv/btrfs/a", "btrfs", "0:45", false);
        check("/srv/merged/a", "overlay", "0:50", false);
        check("/srv/nfs/a", "nfs4", "0:51", false);
        check("/srv/with blank/a", "ext4", "8:5", true);
        check("/srv/stacked/a", "tmpfs", "0:52", false);
        check("/srv/broken/a", "ext4", "254:0", true);
    }

    #[test]
    fn options_are_found_by_name() {
        let mount = mount_of(RECORDED, Path::new("/srv/xfslog")).unwrap();
        assert!(mount.has("logdev") && mount.has("rw") && !mount.has("log") && !mount.has("rtdev"));
        assert!(mount_of(RECORDED, Path::new("/dev/shm")).unwrap().is_volatile());
        assert_eq!(mount_of("", Path::new("/")), None);
    }
}
