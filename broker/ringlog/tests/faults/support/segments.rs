//! Segments as they lie on disk, and what rots in them.

use schema::segment::{BLOCK_BYTES, Footer, GROUP_HEADER_BYTES, GroupHeader, SegmentHeader};
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One group on disk.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where in its file.
    pub position: u64,
    /// What it says of itself.
    pub header: GroupHeader,
}

/// One segment on disk.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Its groups, up to the first one whose header is damaged.
    pub groups: Vec<Group>,
    /// Where its footer stands, if it has one.
    pub footer: Option<u64>,
}

/// What is hit.
#[derive(Clone, Copy, Debug)]
pub enum Hit {
    /// A bit of the header of the group in the middle.
    GroupHeader,
    /// A bit of its batches.
    Payload,
    /// A bit of those of the last one.
    LastPayload,
    /// A bit of the header of the first one.
    FirstGroupHeader,
    /// A bit of the index footer.
    Footer,
    /// A bit of the segment's header.
    SegmentHeader,
    /// Whole blocks gone: zeros.
    ZeroedGroup,
}

/// The segments of a partition's directory that hold something, oldest first.
pub fn read_segments(directory: &Path) -> Vec<Segment> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the partition's directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths.into_iter().filter_map(read_segment).collect()
}

/// `None` for one that was placed ahead and holds nothing.
fn read_segment(path: PathBuf) -> Option<Segment> {
    let bytes = std::fs::read(&path).expect("a segment");
    let segment = SegmentHeader::decode(&bytes).expect("its header");
    let mut groups = Vec::new();
    let mut position = BLOCK_BYTES;
    while let Some(block) = bytes.get(position..position + BLOCK_BYTES)
        && let Ok(header) = GroupHeader::decode(block)
        && header.nonce == segment.nonce
    {
        groups.push(Group { position: position as u64, header });
        position += header.disk_bytes() as usize;
    }
    let footer = bytes.get(position..).and_then(|rest| Footer::peek_bytes(segment.nonce, rest));
    (!groups.is_empty()).then_some(Segment { path, groups, footer: footer.map(|_| position as u64) })
}

/// Damages one segment; the offsets that are lost by it.
pub fn strike(segment: &Segment, hit: Hit) -> Range<u64> {
    let with_records: Vec<&Group> = segment.groups.iter().filter(|g| g.header.batch_count > 0).collect();
    let middle = with_records[with_records.len() / 2];
    let (first, last) = (with_records[0], with_records[with_records.len() - 1]);
    let payload = |group: &Group| {
        group.position + GROUP_HEADER_BYTES as u64 + u64::from(group.header.payload_bytes) / 2
    };
    let lost = |group: &Group| group.header.base_offset..group.header.end_offset;
    let (at, bytes, lost) = match hit {
        Hit::GroupHeader => (middle.position + 50, 1, lost(middle)),
        Hit::FirstGroupHeader => (first.position + 3, 1, lost(first)),
        Hit::Payload => (payload(middle), 1, lost(middle)),
        Hit::LastPayload => (payload(last), 1, lost(last)),
        Hit::Footer => (segment.footer.expect("it is closed") + 20, 1, 0..0),
        Hit::SegmentHeader => (30, 1, 0..0),
        Hit::ZeroedGroup => (middle.position, middle.header.disk_bytes() as usize, lost(middle)),
    };
    let file = OpenOptions::new().read(true).write(true).open(&segment.path).expect("the segment");
    let mut damage = vec![0; bytes];
    if bytes == 1 {
        file.read_exact_at(&mut damage, at).expect("it is that long");
        damage[0] ^= 0x10;
    }
    file.write_all_at(&damage, at).expect("it is writable");
    file.sync_all().expect("the disk");
    lost
}
