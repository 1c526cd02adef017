//! The session, and what the guest may keep of it.

use std::fs;

use crate::client::*;

#[test]
fn features_are_negotiated() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client {
        server: &server,
        ids: (0, 0),
        room: 4096,
    };
    assert_eq!(client.getattr(ROOT), Err(libc::EIO), "before INIT");
    let answer = client.call(INIT, 0, init_body(41)).unwrap();
    assert_eq!((u32_at(&answer, 0), u32_at(&answer, 4)), (7, 41));
    let flags = u32_at(&answer, 12);
    let (posix_locks, flock, writeback) = (1 << 1, 1 << 10, 1 << 16);
    assert_eq!(
        flags & (posix_locks | flock | writeback),
        0,
        "locks stay in the guest"
    );
    assert_ne!(flags & (1 << 28), 0, "HANDLE_KILLPRIV_V2");
    assert_ne!(flags & (1 << 30), 0, "INIT_EXT");
    assert_ne!(flags & (1 << 20), 0, "POSIX_ACL");
    assert_eq!(u32_at(&answer, 20), 1 << 20, "max_write");
    let answer = client.call(INIT, 0, body().u32(8).u32(0).u64(0)).unwrap();
    assert_eq!(
        u32_at(&answer, 0),
        7,
        "another major version is asked to come again"
    );
    assert_eq!(client.call(INIT, 0, init_body(35)), Err(libc::EPROTO));
    // Who lets access lists be enforced by nobody: DONT_MASK, POSIX_ACL or SETXATTR_EXT is not offered.
    for missing in [6, 20, 29] {
        let mut offer = init_body(41);
        offer.0[12 + missing / 8] &= !(1 << (missing % 8));
        assert_eq!(client.call(INIT, 0, offer), Err(libc::EPROTO), "{missing}");
    }
}

#[test]
fn a_handle_may_be_kept_until_the_inode_is_forgotten() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    fs::write(tree.path().join("file"), "data").unwrap();
    let file = client.lookup(ROOT, "file").unwrap().nodeid;
    let open = |flags| client.open_kept(file, flags).unwrap();
    for flags in [libc::O_RDWR, libc::O_TRUNC, libc::O_NOATIME, libc::O_SYNC] {
        let (fh, kept) = open(flags);
        assert!(!kept, "flags {flags:#o}");
        client.release(file, fh).unwrap();
    }
    fs::write(tree.path().join("file"), "data").unwrap();
    let (first, kept) = open(libc::O_RDONLY);
    assert!(kept);
    let (second, kept) = open(libc::O_RDONLY);
    assert!(!kept, "one of an inode");
    client.release(file, second).unwrap();
    assert_eq!(client.read(file, first, 0, 9).unwrap(), b"data");
    client.release(file, first).unwrap();
    let (third, kept) = open(libc::O_RDONLY);
    assert!(kept, "after the release of the first");

    // The guest looks it up twice, and takes that back in two steps.
    client.lookup(ROOT, "file").unwrap();
    client.forget(file, 1);
    assert_eq!(client.read(file, third, 0, 9).unwrap(), b"data");
    client.forget(file, 1);
    assert_eq!(client.read(file, third, 0, 9), Err(libc::EBADF));

    // A quarter of the 2048 handles that there can be.
    let mut kept = 0;
    for number in 0..600 {
        let name = format!("{number}");
        fs::write(tree.path().join(&name), "").unwrap();
        let file = client.lookup(ROOT, &name).unwrap().nodeid;
        kept += usize::from(client.open_kept(file, libc::O_RDONLY).unwrap().1);
    }
    assert_eq!(kept, 512);
}
