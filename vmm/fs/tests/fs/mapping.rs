//! Files that are mapped into the window (SETUPMAPPING, REMOVEMAPPING), in a mount namespace of the test's own thread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmm_fs::{Config, Mount, Mounts, Server};

use crate::client::*;
use crate::mounts::{enter_mount_namespace, mount};
use crate::sys;

const MIB: u64 = 1 << 20;
const STEP: u64 = 2 * MIB;
/// `FUSE_ATTR_DAX`.
const DAX: u32 = 2;
/// `FUSE_SETUPMAPPING_FLAG_*`.
const WRITE_FLAG: u64 = 1;
const READ_FLAG: u64 = 2;

/// Calls `check` with a tree of which `ro` is read-only, and what is there can be written under `rw`.
fn with_tree(check: impl FnOnce(&Path) + Send) {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            let [rw, ro] = ["rw", "ro"].map(|name| {
                let path = root.join(name);
                fs::create_dir(&path).unwrap();
                path.into_os_string().into_string().unwrap()
            });
            mount(&["--bind", &rw, &ro]);
            mount(&["-o", "remount,bind,ro", &ro]);
            check(&root);
        });
    });
}

/// A server of the tree that maps files of the mounts `ro` and, where there is one, `seen`.
fn server_of_tree(root: &Path) -> Server {
    let mounts = ["ro", "seen"].map(|name| root.join(name));
    let mounts = mounts.iter().filter(|path| path.exists());
    let mapped = Mount {
        read_only: true,
        maps: true,
        ..LASTING
    };
    let known = mounts.map(|path| (sys::mount_id(path), mapped)).collect();
    let others = LASTING;
    server_with(root, 8, Mounts { known, others })
}

/// A file of so many MiB, the first bytes of each of which are its number.
fn numbered(path: &Path, mib: u64) -> File {
    let file = File::create(path).unwrap();
    file.set_len(mib * MIB).unwrap();
    for number in 0..mib {
        file.write_all_at(&number.to_le_bytes(), number * MIB)
            .unwrap();
    }
    file
}

fn map(client: &Client<'_>, nodeid: u64, from: u64, flags: u64, to: u64) -> Answer {
    map_length(client, nodeid, (from, STEP), flags, to)
}

fn map_length(
    client: &Client<'_>,
    nodeid: u64,
    (from, length): (u64, u64),
    flags: u64,
    to: u64,
) -> Answer {
    let fields = body().u64(u64::MAX).u64(from).u64(length);
    client.call(SETUPMAPPING, nodeid, fields.u64(flags).u64(to))
}

fn unmap(client: &Client<'_>, count: u32, each: &[(u64, u64)]) -> Answer {
    let one = |fields: Body, &(at, length): &(u64, u64)| fields.u64(at).u64(length);
    let fields = each.iter().fold(body().u32(count), one);
    client.call(REMOVEMAPPING, ROOT, fields)
}

/// The number at an offset of the window; nothing where it cannot be read.
fn shown(server: &Server, offset: u64) -> Option<u64> {
    let (start, length) = server.window().unwrap();
    assert!(start.is_multiple_of(2 << 20));
    assert!(offset + 8 <= length as u64);
    let mut number = [0_u8; 8];
    let address = start + usize::try_from(offset).unwrap();
    let there = sys::read_own(address, &mut number);
    there.then_some(u64::from_le_bytes(number))
}

#[test]
fn large_files_of_read_only_mounts_are_mapped() {
    with_tree(|root| {
        numbered(&root.join("rw/large"), 5);
        numbered(&root.join("rw/small"), 3);
        let server = server_of_tree(root);
        let client = Client::new(&server);
        let [rw, ro] = ["rw", "ro"].map(|name| client.lookup(ROOT, name).unwrap().nodeid);
        let large = client.lookup(ro, "large").unwrap();
        let small = client.lookup(ro, "small").unwrap();
        let writable = client.lookup(rw, "large").unwrap();
        assert_eq!(large.flags & DAX, DAX);
        assert_eq!(client.getattr(large.nodeid).unwrap().flags & DAX, DAX);
        assert_eq!((small.flags | writable.flags) & DAX, 0);

        let last = server.window().unwrap().1 as u64 - STEP;
        for (from, to) in [(0, last), (STEP, STEP), (2 * STEP, 0)] {
            assert_eq!(shown(&server, to), None);
            map(&client, large.nodeid, from, READ_FLAG, to).unwrap();
            assert_eq!(shown(&server, to), Some(from / MIB));
        }
        assert_eq!(shown(&server, last + MIB), Some(1));
        assert_eq!(shown(&server, MIB), None, "beyond the file's end");
        // Over another mapping; then without any.
        map(&client, large.nodeid, STEP, READ_FLAG, last).unwrap();
        assert_eq!(shown(&server, last), Some(2));
        unmap(&client, 2, &[(last, STEP), (0, STEP)]).unwrap();
        assert_eq!((shown(&server, last), shown(&server, 0)), (None, None));
        assert_eq!(shown(&server, STEP), Some(2));
        unmap(&client, 1, &[(last, STEP)]).unwrap();
        // What is mapped stays when the guest has forgotten the file, until another guest comes.
        client.forget(large.nodeid, 1);
        assert_eq!(shown(&server, STEP), Some(2));
        Client::new(&server);
        assert_eq!(shown(&server, STEP), None);
    });
}

#[test]
fn nothing_else_is_mapped() {
    with_tree(|root| {
        numbered(&root.join("rw/large"), 4);
        let server = server_of_tree(root);
        let client = Client::new(&server);
        let [rw, ro] = ["rw", "ro"].map(|name| client.lookup(ROOT, name).unwrap().nodeid);
        let file = client.lookup(ro, "large").unwrap().nodeid;
        let writable = client.lookup(rw, "large").unwrap().nodeid;
        let window = server.window().unwrap().1 as u64;
        let read = READ_FLAG;
        for (nodeid, from, length, flags, to, error) in [
            (file, 0, STEP, read, 4096, libc::EINVAL),
            (file, 0, STEP, read, MIB, libc::EINVAL),
            (file, 0, STEP, read, window, libc::EINVAL),
            (file, 0, STEP, read, u64::MAX - STEP + 1, libc::EINVAL),
            (file, 0, 0, read, 0, libc::EINVAL),
            (file, 0, MIB, read, 0, libc::EINVAL),
            (file, 0, 2 * STEP, read, 0, libc::EINVAL),
            (file, 0, u64::MAX, read, 0, libc::EINVAL),
            (file, MIB, STEP, read, 0, libc::EINVAL),
            (file, 1 << 63, STEP, read, 0, libc::EINVAL),
            (file, (1 << 63) - STEP, STEP, read, 0, libc::EOVERFLOW),
            (file, 0, STEP, 0, 0, libc::EACCES),
            (file, 0, STEP, WRITE_FLAG, 0, libc::EACCES),
            (file, 0, STEP, WRITE_FLAG | read, 0, libc::EACCES),
            (file, 0, STEP, u64::MAX, 0, libc::EACCES),
            (writable, 0, STEP, WRITE_FLAG, 0, libc::EACCES),
            (ro, 0, STEP, read, 0, libc::EISDIR),
            (file + 1000, 0, STEP, read, 0, libc::ESTALE),
        ] {
            let answer = map_length(&client, nodeid, (from, length), flags, to);
            assert_eq!(answer, Err(error), "{nodeid} {from} {length} {flags} {to}");
        }
        assert_eq!(shown(&server, 0), None);
        map(&client, file, 0, read, 0).unwrap();
        let many = vec![(STEP, STEP); 257];
        for (count, each) in [
            (257, &many[..]),
            (u32::MAX, &many[..]),
            (2, &[(STEP, STEP)]),
            (1, &[(4096, STEP)]),
            (1, &[(0, MIB)]),
            (1, &[(0, 2 * STEP)]),
            (1, &[(window, STEP)]),
        ] {
            assert_eq!(unmap(&client, count, each), Err(libc::EINVAL), "{count}");
        }
        assert_eq!(shown(&server, 0), Some(0));
    });
}

#[test]
fn there_is_no_window_where_nothing_is_mapped() {
    let tree = tempfile::tempdir().unwrap();
    let server = server_of(Config {
        maps: false,
        ..config(tree.path(), 8)
    });
    let client = Client::new(&server);
    assert_eq!(server.window(), None);
    assert!(!server.mend(&mut 0));
    assert_eq!(map(&client, ROOT, 0, READ_FLAG, 0), Err(libc::ENOSYS));
    assert_eq!(unmap(&client, 0, &[]), Err(libc::ENOSYS));
}

/// A mapping would keep the mount in use.
#[test]
fn nothing_is_mapped_on_mounts_that_may_go() {
    with_tree(|root| {
        numbered(&root.join("rw/large"), 4);
        let server = server_with(root, 8, Mounts::default());
        let client = Client::new(&server);
        let ro = client.lookup(ROOT, "ro").unwrap().nodeid;
        let file = client.lookup(ro, "large").unwrap();
        assert_eq!(file.flags & DAX, 0);
        let answer = map(&client, file.nodeid, 0, READ_FLAG, 0);
        assert_eq!(answer, Err(libc::EACCES));
    });
}

#[test]
fn what_the_host_cuts_off_becomes_zeros() {
    with_tree(|root| {
        let host = numbered(&root.join("rw/large"), 4);
        let server = server_of_tree(root);
        let client = Client::new(&server);
        let ro = client.lookup(ROOT, "ro").unwrap().nodeid;
        let file = client.lookup(ro, "large").unwrap().nodeid;
        map(&client, file, STEP, READ_FLAG, 0).unwrap();
        let [mut first, mut second] = [0, 0];
        assert!(server.mend(&mut first), "something came to be there");
        assert!(!server.mend(&mut first), "all is there");
        host.set_len(3 * MIB).unwrap();
        assert_eq!(shown(&server, MIB), None);
        assert!(server.mend(&mut first));
        assert_eq!((shown(&server, 0), shown(&server, MIB)), (Some(2), Some(0)));
        // Another vCPU has met with the same.
        assert!(server.mend(&mut second));
        assert!(!server.mend(&mut first) && !server.mend(&mut second));
        // The guest learns of another size, and of what has come since.
        host.set_len(4 * MIB).unwrap();
        host.write_all_at(&7_u64.to_le_bytes(), 3 * MIB).unwrap();
        client.getattr(file).unwrap();
        assert_eq!(shown(&server, MIB), Some(7));
    });
}

/// With an overlay file system the host's first write makes another file.
#[test]
fn a_changed_file_is_mapped_anew() {
    with_tree(|root| {
        let path = |name: &str| root.join(name).into_os_string().into_string().unwrap();
        for name in ["lower", "upper", "work", "merged", "seen"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        numbered(&root.join("lower/large"), 4);
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower"),
            path("upper"),
            path("work")
        );
        mount(&["-t", "overlay", "-o", &layers, "none", &path("merged")]);
        mount(&["--bind", &path("merged"), &path("seen")]);
        mount(&["-o", "remount,bind,ro", &path("seen")]);
        let server = server_of_tree(root);
        let client = Client::new(&server);
        let seen = client.lookup(ROOT, "seen").unwrap().nodeid;
        let file = client.lookup(seen, "large").unwrap().nodeid;
        map(&client, file, STEP, READ_FLAG, STEP).unwrap();
        let host = File::options().write(true).open(path("merged/large"));
        let host = host.unwrap();
        host.write_all_at(&9_u64.to_le_bytes(), STEP).unwrap();
        assert_eq!(shown(&server, STEP), Some(2), "the lower layer's");
        client.getattr(file).unwrap();
        assert_eq!(shown(&server, STEP), Some(9));
    });
}
