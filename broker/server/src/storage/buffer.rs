//! Block-aligned memory for O_DIRECT, and the pool that reuses it.
//!
//! Owned by one shard and never sent to another. A buffer goes back to its pool when its last owner
//! drops it: the group writer, the tail cache and replies on their way out may all hold the same one.
//! Fresh memory is paid for with page faults, more than the copy costs, so reuse is the point: idle memory is
//! bounded, and what makes room is the size that nobody has asked for the longest, not the buffer that
//! comes back. Else sizes of the past would fill the pool for good, and those of the present would go to
//! the system and come from it with every use. Absent on purpose: registered buffers, which measured no
//! difference.

use logic::limits::{BLOCK_BYTES, BUFFER_POOL_BYTES};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

/// A pool of one shard.
#[derive(Debug)]
pub struct BufferPool {
    classes: RefCell<Vec<Class>>,
    idle_bytes: Cell<usize>,
    live_bytes: Cell<usize>,
    takes: Cell<u64>,
    allocations: Cell<u64>,
}

/// Idle memory of one size.
#[derive(Debug, Default)]
struct Class {
    idle: Vec<Memory>,
    /// Which of the pool's takes was the last of this size.
    last_take: u64,
}

#[derive(Debug)]
struct Memory {
    pointer: NonNull<u8>,
    capacity: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.pointer.as_ptr(), layout(self.capacity)) }
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, BLOCK_BYTES).expect("capacities are far below isize::MAX")
}

/// Aligned, initialised memory whose length is a whole number of blocks.
#[derive(Debug)]
pub struct Buffer {
    memory: Option<Memory>,
    length: usize,
    pool: Weak<BufferPool>,
}

impl BufferPool {
    /// An empty pool.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            classes: RefCell::new(Vec::new()),
            idle_bytes: Cell::new(0),
            live_bytes: Cell::new(0),
            takes: Cell::new(0),
            allocations: Cell::new(0),
        })
    }

    /// A buffer of at least `bytes`, rounded up to whole blocks. Its contents are whatever its last use
    /// left in it.
    pub fn take(self: &Rc<Self>, bytes: usize) -> Buffer {
        let blocks = bytes.div_ceil(BLOCK_BYTES).max(1);
        let (class, class_blocks) = size_class(blocks);
        self.takes.set(self.takes.get() + 1);
        let reused = {
            let mut classes = self.classes.borrow_mut();
            if classes.len() <= class {
                classes.resize_with(class + 1, Class::default);
            }
            classes[class].last_take = self.takes.get();
            classes[class].idle.pop()
        };
        let memory = match reused {
            Some(memory) => {
                self.idle_bytes.set(self.idle_bytes.get() - memory.capacity);
                memory
            }
            None => {
                self.allocations.set(self.allocations.get() + 1);
                let capacity = class_blocks * BLOCK_BYTES;
                // SAFETY: the layout's size is not zero.
                let pointer = unsafe { alloc_zeroed(layout(capacity)) };
                let pointer = NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout(capacity)));
                Memory { pointer, capacity }
            }
        };
        self.live_bytes.set(self.live_bytes.get() + memory.capacity);
        Buffer { memory: Some(memory), length: blocks * BLOCK_BYTES, pool: Rc::downgrade(self) }
    }

    /// Bytes handed out and not yet returned.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes.get()
    }

    /// How often there was nothing to reuse.
    pub fn allocations(&self) -> u64 {
        self.allocations.get()
    }

    fn give_back(&self, memory: Memory) {
        self.live_bytes.set(self.live_bytes.get() - memory.capacity);
        let (class, _) = size_class(memory.capacity / BLOCK_BYTES);
        let mut classes = self.classes.borrow_mut();
        let mut idle_bytes = self.idle_bytes.get() + memory.capacity;
        classes[class].idle.push(memory);
        while idle_bytes > BUFFER_POOL_BYTES {
            let full = classes.iter_mut().filter(|class| !class.idle.is_empty());
            let Some(freed) = full.min_by_key(|class| class.last_take).and_then(|class| class.idle.pop())
            else {
                break;
            };
            idle_bytes -= freed.capacity;
        }
        self.idle_bytes.set(idle_bytes);
    }
}

/// The class of a size in blocks, and the class's size: four classes per doubling, so that at most a
/// fifth is wasted.
fn size_class(blocks: usize) -> (usize, usize) {
    if blocks <= 4 {
        return (blocks, blocks);
    }
    let octave = (blocks - 1).ilog2();
    let step = 1usize << (octave - 2);
    let steps = (blocks - (1 << octave)).div_ceil(step);
    (octave as usize * 4 + steps, (1 << octave) + steps * step)
}

impl Buffer {
    /// Makes the buffer shorter, to a whole number of blocks.
    pub fn truncate(&mut self, bytes: usize) {
        self.length = bytes.next_multiple_of(BLOCK_BYTES).min(self.length);
    }

    /// Bytes that the memory could hold.
    pub fn capacity(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.capacity)
    }

    /// Makes the buffer as long as its memory is.
    pub fn expand(&mut self) {
        self.length = self.capacity();
    }

    /// Start of the memory, for the kernel.
    pub fn as_mut_pointer(&mut self) -> *mut u8 {
        self.memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.pointer.as_ptr())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = self.memory.as_ref().expect("a buffer has memory until it is dropped");
        // SAFETY: the memory is initialised (zeroed at allocation), `length` is within its capacity, and
        // shared access is guarded by the borrow of the buffer.
        unsafe { std::slice::from_raw_parts(memory.pointer.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_ref().expect("a buffer has memory until it is dropped");
        // SAFETY: as in `deref`, and the borrow of the buffer is exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.pointer.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.upgrade()) {
            pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn memory_is_aligned_and_reused() {
        let pool = BufferPool::new();
        for bytes in [1, 4096, 4097, 100_000, 1_000_189, 5 << 20] {
            let mut buffer = pool.take(bytes);
            assert!(buffer.len() >= bytes && buffer.len() % BLOCK_BYTES == 0);
            assert!(buffer.capacity() <= (bytes + BLOCK_BYTES) * 5 / 4);
            let pointer = buffer.as_mut_pointer();
            assert_eq!(pointer as usize % BLOCK_BYTES, 0);
            buffer[0] = 9;
            drop(buffer);
            assert_eq!(pool.take(bytes).as_mut_pointer(), pointer, "{bytes} bytes are not reused");
        }
        assert_eq!(pool.live_bytes(), 0);
    }

    #[test]
    fn a_steady_state_allocates_nothing() {
        const KIB: usize = 1 << 10;
        // What filled the pool before, then the sizes in use and how many bytes of them are kept for a while,
        // as the tail cache does.
        let rows: [(usize, &[usize], usize); 5] = [
            (4 * KIB, &[4 * KIB], 1 << 20),
            (1 << 20, &[4 * KIB], 1 << 20),
            (1 << 20, &[4 * KIB, 12 * KIB, 8 * KIB], 8 << 20),
            (4 * KIB, &[1 << 20, 4 * KIB], 8 << 20),
            (64 * KIB, &[5 << 20], 20 << 20),
        ];
        for (before, sizes, kept_bytes) in rows {
            let pool = BufferPool::new();
            let old: Vec<Buffer> = (0..=BUFFER_POOL_BYTES / before).map(|_| pool.take(before)).collect();
            drop(old);
            let mut kept = VecDeque::new();
            let mut run = |uses: usize| {
                for size in sizes.iter().cycle().take(uses) {
                    kept.push_back(pool.take(*size));
                    while pool.live_bytes() > kept_bytes {
                        kept.pop_front();
                    }
                    assert!(pool.idle_bytes.get() <= BUFFER_POOL_BYTES, "{sizes:?} after {before}");
                }
            };
            run(6000);
            let warm = pool.allocations();
            run(6000);
            assert_eq!(pool.allocations(), warm, "{sizes:?} bytes after {before}");
            kept.clear();
            assert_eq!(pool.live_bytes(), 0);
            let idle: usize =
                pool.classes.borrow().iter().flat_map(|class| &class.idle).map(|m| m.capacity).sum();
            assert_eq!(idle, pool.idle_bytes.get(), "{sizes:?} bytes after {before}");
        }
    }

    #[test]
    fn classes_rise_and_cover() {
        let mut last = 0;
        for blocks in 1..5000 {
            let (class, size) = size_class(blocks);
            assert!(size >= blocks && class >= last, "{blocks} blocks: class {class} of {size}");
            assert_eq!(size_class(size).0, class, "{blocks} blocks");
            last = class;
        }
    }
}
