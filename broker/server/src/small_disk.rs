//! Disks that fill up: file systems in memory, of a test's own. Where they cannot be made, that is said in a line that starts with
//! SKIPPED.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A file system in memory, of so many mebibytes and a thousand files.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where it cannot be made, which is said.
    pub fn mount(mebibytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let size = format!("size={mebibytes}m,nr_inodes=1000");
        let mut mount = std::process::Command::new("mount");
        match mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output() {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                crate::skipped::skipped(&format!("a full disk: {other:?}"));
                None
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// What takes the room.
    pub fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    /// Takes every file that is left; where they are.
    pub fn take_all_files(&self) -> PathBuf {
        let directory = self.0.path().join("files");
        std::fs::create_dir(&directory).expect("there is room");
        let mut names = 0..;
        while std::fs::File::create(directory.join(names.next().unwrap_or(0).to_string())).is_ok() {}
        directory
    }

    /// Takes every byte that is left.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file =
            std::fs::File::options().create(true).append(true).open(self.ballast()).expect("a file");
        for bytes in [1 << 20, 1 << 12] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
    }

    /// Gives some of what [`SmallDisk::fill`] took back.
    pub fn leave(&self, bytes: u64) {
        let file = std::fs::File::options().write(true).open(self.ballast()).expect("it is there");
        let length = file.metadata().expect("it is there").len();
        file.set_len(length - bytes).expect("it gets shorter");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the files of what ends with the test may be open for a moment.
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.path().display());
    }
}
