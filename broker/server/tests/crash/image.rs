//! What a crash leaves on the device.
//!
//! Immutable once made; blocks are shared with the disk that it was taken from and with other images, so
//! an image costs what differs. `written` tells which blocks have extents that are committed as written:
//! only in those may a flush of another file make a plain write durable.

use logic::ids::TopicPartition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub const BLOCK: usize = 4096;
pub const SECTOR: usize = 512;

pub type Block = Rc<[u8; BLOCK]>;

thread_local! {
    static ZEROS: Block = Rc::new([0; BLOCK]);
}

/// The block of zeros, shared.
pub fn zeros() -> Block {
    ZEROS.with(Rc::clone)
}

/// The bytes of a file; blocks that are missing at its end are zeros.
#[derive(Clone, Default)]
pub struct Content {
    pub blocks: Vec<Block>,
    pub length: u64,
}

impl Content {
    pub fn block(&self, at: usize) -> Block {
        self.blocks.get(at).cloned().unwrap_or_else(zeros)
    }

    pub fn set(&mut self, at: usize, block: Block) {
        if self.blocks.len() <= at {
            self.blocks.resize_with(at + 1, zeros);
        }
        self.blocks[at] = block;
    }

    /// Cuts the file, or makes it longer with zeros.
    pub fn set_length(&mut self, bytes: u64) {
        self.blocks.truncate((bytes as usize).div_ceil(BLOCK));
        let rest = bytes as usize % BLOCK;
        if rest > 0
            && let Some(last) = self.blocks.get_mut(bytes as usize / BLOCK)
        {
            Rc::make_mut(last)[rest..].fill(0);
        }
        self.length = bytes;
    }

    pub fn read(&self, position: u64, out: &mut [u8]) -> usize {
        let end = self.length.min(position + out.len() as u64);
        let mut at = position;
        while at < end {
            let inner = at as usize % BLOCK;
            let take = (BLOCK - inner).min((end - at) as usize);
            let place = (at - position) as usize;
            let block = self.blocks.get(at as usize / BLOCK);
            match block {
                Some(block) => out[place..place + take].copy_from_slice(&block[inner..inner + take]),
                None => out[place..place + take].fill(0),
            }
            at += take as u64;
        }
        end.saturating_sub(position) as usize
    }
}

/// A file of an image. `id` stays the same from life to life.
pub struct ImageFile {
    pub id: u64,
    pub content: Rc<Content>,
    pub written: Rc<Vec<bool>>,
}

#[derive(Clone)]
pub enum Entry {
    File(Rc<ImageFile>),
    Directory,
}

/// A group that was submitted and not acknowledged when the crash came.
#[derive(Clone, Debug)]
pub struct GroupNote {
    pub partition: TopicPartition,
    pub base: u64,
    pub end: u64,
    pub file: u64,
    pub position: u64,
    pub header: [u8; 128],
    /// From the life before, or before another store took the log over: a recovery has perhaps cut it already and was
    /// interrupted.
    pub inherited: bool,
}

/// Everything on the device.
#[derive(Clone)]
pub struct Image {
    pub directories: BTreeMap<PathBuf, BTreeMap<String, Entry>>,
    pub unacknowledged: Vec<GroupNote>,
    /// Numbers for files made from now on.
    pub next_file: u64,
    /// Virtual milliseconds since 1970.
    pub now_ms: i64,
}

impl Image {
    /// A data directory without data.
    pub fn fresh(root: &Path) -> Self {
        let content = Content { blocks: vec![zeros()], length: BLOCK as u64 };
        let flush = ImageFile { id: 1, content: Rc::new(content), written: Rc::new(vec![true]) };
        let mut names = BTreeMap::new();
        names.insert("flush".to_owned(), Entry::File(Rc::new(flush)));
        names.insert("topics".to_owned(), Entry::Directory);
        let mut directories = BTreeMap::new();
        directories.insert(root.to_owned(), names);
        directories.insert(root.join("topics"), BTreeMap::new());
        Self { directories, unacknowledged: Vec::new(), next_file: 2, now_ms: 1_700_000_000_000 }
    }

    /// The files with a name, and where.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, &Rc<ImageFile>)> {
        self.directories.iter().flat_map(|(directory, names)| {
            names.iter().filter_map(|(name, entry)| match entry {
                Entry::File(file) => Some((directory.join(name), file)),
                Entry::Directory => None,
            })
        })
    }

    /// Whether the image holds the header of this group where it was written.
    pub fn holds(&self, note: &GroupNote) -> bool {
        self.files().filter(|(_, file)| file.id == note.file).any(|(path, file)| {
            let mut header = [0; 128];
            let in_topics = path.extension().is_some_and(|extension| extension == "log");
            in_topics && file.content.read(note.position, &mut header) == 128 && header == note.header
        })
    }

    /// The bytes of a file, by its path.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let (_, file) = self.files().find(|(found, _)| found == path)?;
        let mut bytes = vec![0; file.content.length as usize];
        file.content.read(0, &mut bytes);
        Some(bytes)
    }

    /// Makes a file, durably, in place of what has its name; `None` takes it away.
    pub fn put(&mut self, path: &Path, bytes: Option<&[u8]>) {
        let (directory, name) = (path.parent().expect("a directory"), path.file_name().expect("a name"));
        let name = name.to_string_lossy().into_owned();
        let names = self.directories.entry(directory.to_owned()).or_default();
        let Some(bytes) = bytes else { return drop(names.remove(&name)) };
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let blocks: Vec<Block> = padded
            .chunks_exact(BLOCK)
            .map(|block| Rc::new(block.try_into().expect("a whole block")))
            .collect();
        let written = Rc::new(vec![true; blocks.len()]);
        let content = Rc::new(Content { blocks, length: bytes.len() as u64 });
        names.insert(name, Entry::File(Rc::new(ImageFile { id: self.next_file, content, written })));
        self.next_file += 1;
        if let (Some(above), Some(own)) = (directory.parent(), directory.file_name()) {
            let own = own.to_string_lossy().into_owned();
            self.directories.entry(above.to_owned()).or_default().entry(own).or_insert(Entry::Directory);
        }
    }

    /// Blocks of a file that are zeros, by its path, are such that were never written from now on; how many there are.
    pub fn unwrite_zeros(&mut self, path: &Path) -> usize {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return 0 };
        let names = self.directories.get_mut(directory);
        let Some(entry) = names.and_then(|names| names.get_mut(name.to_string_lossy().as_ref())) else {
            return 0;
        };
        let Entry::File(file) = entry.clone() else { return 0 };
        let (content, mut written) = (file.content.clone(), (*file.written).clone());
        let is_zeros = |at: &usize| content.block(*at).iter().all(|byte| *byte == 0);
        let zeros: Vec<usize> = (0..written.len()).filter(is_zeros).collect();
        zeros.iter().for_each(|at| written[*at] = false);
        *entry = Entry::File(Rc::new(ImageFile { id: file.id, content, written: Rc::new(written) }));
        zeros.len()
    }

    /// Flips bits of a file, by its path.
    pub fn flip(&mut self, path: &Path, bits: &[(u64, u8)]) {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
        let names = self.directories.get_mut(directory);
        let entry = names.and_then(|names| names.get_mut(name.to_string_lossy().as_ref()));
        if let Some(entry @ Entry::File(_)) = entry {
            let Entry::File(file) = entry.clone() else { return };
            let mut content = (*file.content).clone();
            for (position, bit) in bits {
                let at = *position as usize / BLOCK;
                let mut block = content.block(at);
                Rc::make_mut(&mut block)[*position as usize % BLOCK] ^= 1 << bit;
                content.set(at, block);
            }
            let written = file.written.clone();
            *entry = Entry::File(Rc::new(ImageFile { id: file.id, content: Rc::new(content), written }));
        }
    }
}
