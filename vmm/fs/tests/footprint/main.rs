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

/// Directories of files, as large trees have them. One file more than a power of two has the tables just doubled, when
/// the old ones are there as well: the most that a file ever takes.
#[test]
fn a_known_file_takes_no_more_than_is_reckoned() {
    const DIRECTORIES: usize = 64;
    const FILES: usize = (1 << 17) / DIRECTORIES;
    let tree = tempfile::tempdir_in("/dev/shm").unwrap();
    for directory in 0..DIRECTORIES {
        let directory = tree.path().join(format!("directory-{directory:04}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES {
            fs::write(directory.join(format!("some-file-{file:08}.json")), "").unwrap();
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
    eprintln!("{each} bytes at most for each of {known} files");
    assert!(
        u64::try_from(each).unwrap() <= vmm_fs::INODE_BYTES,
        "{each}"
    );
}
