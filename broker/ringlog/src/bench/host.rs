//! What a report says of the host: kernel, processor, file system, disk, and the commit of this program.
//!
//! Asked once, at the end of a run. Invariant: what is not known is empty, never guessed.

use ::bench::report::HostReport;
use std::path::{Path, PathBuf};
use tuning::HostFacts;

/// The host, and of the broker's data what `facts` know; none if the broker is elsewhere.
pub fn report(facts: Option<&HostFacts>) -> HostReport {
    let ::perf::Host { kernel, cpu, cores } = ::perf::Host::this();
    let disk = facts.map(|facts| disk(Path::new("/sys/dev/block"), &facts.device)).unwrap_or_default();
    HostReport {
        kernel,
        cpu,
        cores,
        filesystem: facts.map(|facts| facts.filesystem.clone()).unwrap_or_default(),
        write_cache: facts
            .and_then(|facts| facts.write_cache)
            .map(|cache| format!("{cache:?}"))
            .unwrap_or_default(),
        disk: disk.name,
        rotational: disk.rotational,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: env!("RINGLOG_COMMIT").to_owned(),
    }
}

#[derive(Debug, Default, PartialEq)]
struct Disk {
    name: String,
    rotational: Option<bool>,
}

/// The device `major:minor`; of a partition the disk that it is on.
fn disk(sys_block: &Path, device: &str) -> Disk {
    let Ok(path) = sys_block.join(device).canonicalize() else { return Disk::default() };
    let is_disk = |path: &PathBuf| path.join("queue").is_dir();
    let Some(disk) =
        Some(path.clone()).filter(is_disk).or_else(|| path.parent().map(PathBuf::from).filter(is_disk))
    else {
        return Disk::default();
    };
    let text = |file: &str| {
        let text = std::fs::read_to_string(disk.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Disk {
        name: match text("device/model") {
            Some(model) => format!("{name} ({model})"),
            None => name,
        },
        rotational: text("queue/rotational").map(|turns| turns == "1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_described_also_by_its_partition() {
        let sys = tempfile::tempdir().expect("a directory");
        let file = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        file("259:0/queue/rotational", "0\n");
        file("259:0/device/model", "Fast Disk 1T  \n");
        file("259:0/259:1/partition", "1\n");
        file("254:0/queue/rotational", "1\n");
        file("0:7/stat", "");
        let disk_of = |device: &str| disk(sys.path(), device);
        let known = |name: &str, rotational| Disk { name: name.to_owned(), rotational: Some(rotational) };
        // The kernel links partitions beside their disks; here the path alone tells.
        let rows = [
            ("259:0", known("259:0 (Fast Disk 1T)", false)),
            ("259:0/259:1", known("259:0 (Fast Disk 1T)", false)),
            ("254:0", known("254:0", true)),
            ("0:7", Disk::default()),
            ("9:9", Disk::default()),
        ];
        for (device, expect) in rows {
            assert_eq!(disk_of(device), expect, "{device}");
        }
    }
}
