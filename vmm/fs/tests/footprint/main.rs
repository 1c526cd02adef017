//! What a file that the guest knows takes of this process. Alone in its program, since all memory of it is counted.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unsafe_code,
    reason = "tests"
)]

#[path = "../fs/client.rs"]
mod client;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use client::{Client, ROOT, server};

/// The system's allocator, which counts the bytes that are in use, and were at most.
struct Counting {
    used: AtomicUsize,
    peak: AtomicUsize,
}

// SAFETY: All calls are the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = self.used.fetch_add(layout.size(), Relaxed) + layout.size();
        self.peak.fetch_max(used, Relaxed);
        // SAFETY: The caller answers for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Relaxed);
        // SAFETY: The pointer came from `alloc` above, and so from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting {
    used: AtomicUsize::new(0),
    peak: AtomicUsize::new(0),
};

/// Directories of files, as large trees have them, whose names have `length` bytes; how many bytes each takes. One file
/// more than a power of two has the tables just doubled, when the old ones are there as well: the most that a file ever
/// takes.
fn footprint(length: usize) -> u64 {
    const DIRECTORIES: usize = 64;
    const FILES: usize = (1 << 11) / 8 * 7 + 1;
    let tree = tempfile::tempdir_in("/dev/shm").unwrap();
    for directory in 0..DIRECTORIES {
        let directory = tree.path().join(format!("directory-{directory:04}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES {
            fs::write(directory.join(format!("{file:0length$}")), "").unwrap();
        }
    }
    let server = server(tree.path(), 16);
    let client = Client::new(&server);
    let before = HEAP.used.load(Relaxed);
    HEAP.peak.store(before, Relaxed);
    let mut known = 0;
    for directory in 0..DIRECTORIES {
        let found = client.lookup(ROOT, format!("directory-{directory:04}"));
        let (_, given) = client.list(found.unwrap().nodeid, 4096, true);
        known += given.len();
    }
    assert_eq!(known, DIRECTORIES * FILES);
    assert!(server.counts().2 > known);
    let each = (HEAP.peak.load(Relaxed) - before) / known;
    u64::try_from(each).unwrap()
}

#[test]
fn a_known_file_takes_no_more_than_is_reckoned() {
    for length in [39, 255] {
        let each = footprint(length);
        eprintln!("{each} bytes at most for each file with a name of {length} bytes");
        // What the guest's kernel spends on it: the names that it keeps apart are longer than 39 bytes.
        let apart = if length > 39 { 17 + length } else { 0 };
        let spent = 1024 + u64::try_from(apart).unwrap();
        assert!(
            each * 1024 <= vmm_fs::INODE_BYTES * spent,
            "{each}, {spent}"
        );
        assert!(each <= vmm_fs::LONGEST_INODE_BYTES, "{each}");
    }
}
