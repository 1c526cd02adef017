//! What requests mean to the files.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

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
    assert_eq!(u32_at(&answer, 20), 1 << 20, "max_write");
    let answer = client.call(INIT, 0, body().u32(8).u32(0).u64(0)).unwrap();
    assert_eq!(
        u32_at(&answer, 0),
        7,
        "another major version is asked to come again"
    );
    assert_eq!(client.call(INIT, 0, init_body(35)), Err(libc::EPROTO));
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

    // Half of the 1024 handles that there can be.
    let mut kept = 0;
    for number in 0..600 {
        let name = format!("{number}");
        fs::write(tree.path().join(&name), "").unwrap();
        let file = client.lookup(ROOT, &name).unwrap().nodeid;
        kept += usize::from(client.open_kept(file, libc::O_RDONLY).unwrap().1);
    }
    assert_eq!(kept, 512);
}

#[test]
fn files_are_made_written_and_read() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let dir = client.mkdir(ROOT, "dir", 0o750).unwrap();
    let (file, fh) = client
        .create(dir.nodeid, "file", libc::O_RDWR, 0o100_640)
        .unwrap();
    assert_eq!(client.write(file.nodeid, fh, 0, b"hello").unwrap(), 5);
    // Beyond 4 GiB, which leaves a hole.
    let far = 5 << 30;
    assert_eq!(client.write(file.nodeid, fh, far, b"far").unwrap(), 3);
    assert_eq!(client.read(file.nodeid, fh, 0, 4096).unwrap().len(), 4096);
    assert_eq!(client.read(file.nodeid, fh, far, 100).unwrap(), b"far");
    assert_eq!(client.read(file.nodeid, fh, far + 3, 100).unwrap(), b"");
    let hole = client
        .call(LSEEK, file.nodeid, body().u64(fh).u64(0).u32(4).u32(0))
        .unwrap();
    assert!((5..far).contains(&u64_at(&hole, 0)), "SEEK_HOLE");
    assert_eq!(client.getattr(file.nodeid).unwrap().size, far + 3);
    assert_eq!(
        client.call(FSYNC, file.nodeid, body().u64(fh).u64(1)),
        Ok(vec![])
    );
    assert_eq!(
        client.call(FLUSH, file.nodeid, body().u64(fh).u64(0).u64(0)),
        Ok(vec![])
    );
    client.release(file.nodeid, fh).unwrap();
    assert_eq!(
        client.read(file.nodeid, fh, 0, 1),
        Err(libc::EBADF),
        "after RELEASE"
    );
    let found = fs::metadata(tree.path().join("dir/file")).unwrap();
    assert_eq!((found.mode(), found.len()), (0o100_640, far + 3));
    assert!(found.blocks() < 100, "sparse");
    assert_eq!(client.lookup(dir.nodeid, "none"), Err(libc::ENOENT));
    assert_eq!(client.call(STATFS, ROOT, body()).unwrap().len(), 80);
    let statx = client
        .call(STATX, file.nodeid, body().u64(0).u64(0).u64(0))
        .unwrap();
    assert_eq!(
        (statx.len(), u64_at(&statx, 32 + 40)),
        (288, far + 3),
        "size"
    );
    assert_eq!(client.call(SYNCFS, ROOT, body().u64(0)), Ok(vec![]));
}

#[test]
fn large_reads_and_writes_span_many_buffers() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let mut client = Client::new(&server);
    client.room = 1 << 20;
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let data: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let size = u32::try_from(data.len()).unwrap();
    let fields = body()
        .u64(fh)
        .u64(7)
        .u32(size)
        .u32(0)
        .u64(0)
        .u64(0)
        .bytes(&data);
    let mut bytes = request(WRITE, file.nodeid, (0, 0), &fields.0);
    // More buffers than one system call takes.
    let cuts: Vec<usize> = (1..900).map(|cut| cut * 1111).collect();
    let reply = serve_raw(&server, &mut bytes, &cuts, 24);
    assert_eq!(u32_at(&reply, 16), size);
    assert_eq!(client.read(file.nodeid, fh, 7, size).unwrap(), data);
    assert_eq!(fs::read(tree.path().join("file")).unwrap()[7..], data);
}

#[test]
fn appending_follows_the_flags_of_the_write() {
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().join("log");
    fs::write(&path, "one ").unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let file = client.lookup(ROOT, "log").unwrap();
    let fh = client
        .open(file.nodeid, libc::O_WRONLY | libc::O_APPEND)
        .unwrap();
    fs::write(&path, "one two ").unwrap();
    client
        .write_flags(file.nodeid, fh, 4, b"three", libc::O_APPEND)
        .unwrap();
    assert_eq!(
        fs::read(&path).unwrap(),
        b"one two three",
        "the host has appended meanwhile"
    );
    client.write_flags(file.nodeid, fh, 0, b"ONE", 0).unwrap();
    assert_eq!(
        fs::read(&path).unwrap(),
        b"ONE two three",
        "O_APPEND taken away by fcntl"
    );
}

#[test]
fn what_is_made_belongs_to_the_caller() {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_owned();
    let server = server(tree.path(), 64);
    let mut client = Client::new(&server);
    let shared = client.mkdir(ROOT, "shared", 0o755).unwrap();
    client
        .setattr(
            shared.nodeid,
            Set {
                valid: 1 | 4,
                mode: 0o2755,
                gid: 55,
                ..Set::default()
            },
        )
        .unwrap();
    client.ids = (1000, 1001);
    for dir in [ROOT, shared.nodeid] {
        let group = if dir == ROOT { 1001 } else { 55 };
        let (file, _) = client
            .create(dir, "file", libc::O_WRONLY, 0o102_775)
            .unwrap();
        assert_eq!((file.uid, file.gid), (1000, group));
        assert_eq!(
            file.mode, 0o102_775,
            "the guest kernel has allowed the set-group-ID bit"
        );
        let made = client.mkdir(dir, "made", 0o700).unwrap();
        assert_eq!((made.uid, made.gid), (1000, group));
        assert_eq!(made.mode & 0o2000 != 0, dir != ROOT, "inherited");
        let target = body().name("link").name("/etc/passwd");
        let link = entry(&client.call(SYMLINK, dir, target).unwrap());
        assert_eq!((link.uid, link.gid), (1000, group));
        let fifo = body().u32(libc::S_IFIFO | 0o600).u32(0).u64(0).name("fifo");
        let fifo = entry(&client.call(MKNOD, dir, fifo).unwrap());
        assert_eq!(
            (fifo.uid, fifo.gid, fifo.mode),
            (1000, group, libc::S_IFIFO | 0o600)
        );
        assert_eq!(client.open(fifo.nodeid, libc::O_RDONLY), Err(libc::EACCES));
    }
    let device = body()
        .u32(libc::S_IFCHR | 0o600)
        .u32(0x103)
        .u64(0)
        .name("null");
    assert_eq!(client.call(MKNOD, ROOT, device), Err(libc::EPERM));
    let whiteout = body().u32(libc::S_IFCHR).u32(0).u64(0).name("whiteout");
    assert_eq!(
        entry(&client.call(MKNOD, ROOT, whiteout).unwrap()).mode,
        libc::S_IFCHR
    );
    client.ids = (u32::MAX, 0);
    assert_eq!(client.mkdir(ROOT, "nobody", 0o755), Err(libc::EINVAL));
    client.ids = (0, 0);
    let made = client.mkdir(ROOT, "roots", 0o755).unwrap();
    assert_eq!(
        (made.uid, made.gid),
        (0, 0),
        "the credentials are given back"
    );
    // A directory that only another user may write to.
    fs::create_dir(root.join("closed")).unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    client.ids = (1000, 1001);
    let closed = client.lookup(ROOT, "closed").unwrap();
    client
        .create(closed.nodeid, "file", libc::O_WRONLY, 0o600)
        .unwrap();
}

#[test]
fn set_id_bits_are_cleared_as_killpriv_v2_asks() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o755).unwrap();
    let mode = |mode| {
        client
            .setattr(
                file.nodeid,
                Set {
                    valid: 1,
                    mode,
                    ..Set::default()
                },
            )
            .unwrap()
    };
    let permissions = || client.getattr(file.nodeid).unwrap().mode & 0o7777;
    assert_eq!(mode(0o6755).mode & 0o7777, 0o6755);
    client.write(file.nodeid, fh, 0, b"x").unwrap();
    assert_eq!(permissions(), 0o755, "write");
    mode(0o6755);
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 8 | 2048,
                size: 0,
                ..Set::default()
            },
        )
        .unwrap();
    assert_eq!(permissions(), 0o755, "truncate");
    mode(0o6755);
    client
        .open(file.nodeid, libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    assert_eq!(permissions(), 0o755, "open with O_TRUNC");
    mode(0o6755);
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 2 | 2048,
                uid: 7,
                ..Set::default()
            },
        )
        .unwrap();
    assert_eq!(permissions(), 0o755, "chown");
    mode(0o2744);
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 4 | 2048,
                gid: 8,
                ..Set::default()
            },
        )
        .unwrap();
    assert_eq!(
        permissions(),
        0o2744,
        "set-group-ID without group execution stays"
    );
    mode(0o2755);
    assert_eq!(permissions(), 0o2755, "in a group this server is not in");
    let found = fs::metadata(tree.path().join("file")).unwrap();
    assert_eq!((found.uid(), found.gid()), (7, 8));
}

#[test]
fn sizes_and_times_are_set() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let path = tree.path().join("file");
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    client.write(file.nodeid, fh, 0, b"0123456789").unwrap();
    let by_handle = Set {
        valid: 8 | 64,
        fh,
        size: 4,
        ..Set::default()
    };
    assert_eq!(client.setattr(file.nodeid, by_handle).unwrap().size, 4);
    assert_eq!(
        client
            .setattr(
                file.nodeid,
                Set {
                    valid: 8,
                    size: 6 << 32,
                    ..Set::default()
                }
            )
            .unwrap()
            .size,
        6 << 32
    );
    assert_eq!(
        client.setattr(
            file.nodeid,
            Set {
                valid: 8,
                size: u64::MAX,
                ..Set::default()
            }
        ),
        Err(libc::EINVAL)
    );
    assert_eq!(
        client.setattr(
            ROOT,
            Set {
                valid: 8,
                ..Set::default()
            }
        ),
        Err(libc::EISDIR)
    );
    let times = Set {
        valid: 16 | 32,
        seconds: 5,
        nanoseconds: 6,
        ..Set::default()
    };
    client.setattr(file.nodeid, times).unwrap();
    let found = fs::metadata(&path).unwrap();
    assert_eq!(
        (found.atime(), found.mtime(), found.mtime_nsec()),
        (5, 5, 6)
    );
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 32 | 256,
                ..Set::default()
            },
        )
        .unwrap();
    let found = fs::metadata(&path).unwrap();
    assert!(found.mtime() > 1_000_000, "now");
    assert_eq!(found.atime(), 5, "left");
    for special in [libc::UTIME_NOW, libc::UTIME_OMIT] {
        let nanoseconds = u32::try_from(special).unwrap();
        let times = Set {
            valid: 16,
            nanoseconds,
            ..Set::default()
        };
        assert_eq!(client.setattr(file.nodeid, times), Err(libc::EINVAL));
    }
    for id in [2, 4] {
        let owner = Set {
            valid: id,
            uid: u32::MAX,
            gid: u32::MAX,
            ..Set::default()
        };
        assert_eq!(client.setattr(file.nodeid, owner), Err(libc::EINVAL));
    }
}

#[test]
fn links_and_renames_keep_the_inode() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let linked = client.link(file.nodeid, ROOT, "b").unwrap();
    assert_eq!((linked.nodeid, linked.nlink), (file.nodeid, 2));
    assert_eq!(
        client.lookup(ROOT, "b").unwrap().nodeid,
        file.nodeid,
        "hard link"
    );
    let dir = client.mkdir(ROOT, "dir", 0o755).unwrap();
    assert_eq!(client.link(dir.nodeid, ROOT, "c"), Err(libc::EPERM));
    assert_eq!(
        client.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_NOREPLACE),
        Err(libc::EEXIST)
    );
    client.rename((ROOT, "a"), (dir.nodeid, "z"), 0).unwrap();
    assert_eq!(client.lookup(dir.nodeid, "z").unwrap().nodeid, file.nodeid);
    assert_eq!(client.lookup(ROOT, "a"), Err(libc::ENOENT));
    client
        .rename((ROOT, "b"), (ROOT, "dir"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert_eq!(client.lookup(ROOT, "dir").unwrap().nodeid, file.nodeid);
    assert_eq!(client.lookup(ROOT, "b").unwrap().nodeid, dir.nodeid);
    client
        .rename((ROOT, "dir"), (ROOT, "moved"), libc::RENAME_WHITEOUT)
        .unwrap();
    assert_eq!(
        client.lookup(ROOT, "dir").unwrap().mode & libc::S_IFMT,
        libc::S_IFCHR
    );
    assert_eq!(
        client.rename((ROOT, "moved"), (ROOT, "x"), 8),
        Err(libc::EINVAL)
    );
    client.unlink(ROOT, "moved").unwrap();
    client.unlink(dir.nodeid, "z").unwrap();
    assert_eq!(
        client.write(file.nodeid, fh, 0, b"gone").unwrap(),
        4,
        "open and unlinked"
    );
    assert_eq!(client.getattr(file.nodeid).unwrap().nlink, 0);
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 8,
                size: 2,
                ..Set::default()
            },
        )
        .unwrap();
    assert_eq!(client.read(file.nodeid, fh, 0, 9).unwrap(), b"go");
    assert_eq!(client.call(RMDIR, ROOT, body().name("b")), Ok(vec![]));
}

#[test]
fn a_temporary_file_can_be_given_a_name() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 4);
    let client = Client::new(&server);
    let fields = body()
        .u32((libc::O_RDWR | libc::O_TMPFILE).cast_unsigned())
        .u32(0o600)
        .u64(0);
    let answer = client.call(TMPFILE, ROOT, fields.name("/")).unwrap();
    let (file, fh) = (entry(&answer), u64_at(&answer, 128));
    assert_eq!(file.nlink, 0);
    assert_eq!(server.counts().1, 1, "pinned: it has no name");
    client.write(file.nodeid, fh, 0, b"data").unwrap();
    client.link(file.nodeid, ROOT, "named").unwrap();
    assert_eq!(server.counts().1, 0);
    assert_eq!(fs::read(tree.path().join("named")).unwrap(), b"data");
}

#[test]
fn names_hold_every_byte_but_two() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        client.mkdir(ROOT, [byte, b'x'], 0o755).unwrap();
    }
    let (names, _) = client.list(ROOT, 4096, true);
    let mut seen: Vec<_> = names
        .into_iter()
        .filter(|name| name.ends_with(b"x"))
        .collect();
    let mut host: Vec<_> = fs::read_dir(tree.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    seen.sort();
    host.sort();
    assert_eq!(seen.len(), 254);
    assert_eq!(seen, host);
    let longest = vec![b'n'; 255];
    client.mkdir(ROOT, &longest, 0o755).unwrap();
    assert!(client.lookup(ROOT, &longest).is_ok());
}

#[test]
fn symbolic_links_are_read_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let tree = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), tree.path().join("out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), tree.path().join("file")).unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let out = client.lookup(ROOT, "out").unwrap();
    assert_eq!(out.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(client.lookup(out.nodeid, "secret"), Err(libc::ENOTDIR));
    assert_eq!(
        client.create(out.nodeid, "new", libc::O_WRONLY, 0o644),
        Err(libc::ENOTDIR)
    );
    assert_eq!(client.opendir(out.nodeid), Err(libc::ENOTDIR));
    let target = client.call(READLINK, out.nodeid, body()).unwrap();
    assert_eq!(target, outside.path().as_os_str().as_bytes());
    let file = client.lookup(ROOT, "file").unwrap();
    assert_eq!(client.open(file.nodeid, libc::O_RDONLY), Err(libc::ELOOP));
    assert_eq!(
        client.create(ROOT, "file", libc::O_RDWR, 0o644),
        Err(libc::ELOOP)
    );
    assert_eq!(
        client.setattr(
            file.nodeid,
            Set {
                valid: 8,
                ..Set::default()
            }
        ),
        Err(libc::ELOOP)
    );
    assert_eq!(
        client.setattr(
            file.nodeid,
            Set {
                valid: 1,
                mode: 0o777,
                ..Set::default()
            }
        ),
        Err(libc::EOPNOTSUPP)
    );
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 2,
                uid: 9,
                ..Set::default()
            },
        )
        .unwrap();
    client
        .setattr(
            file.nodeid,
            Set {
                valid: 16 | 32,
                seconds: 9,
                ..Set::default()
            },
        )
        .unwrap();
    let linked = client.link(file.nodeid, ROOT, "again").unwrap();
    assert_eq!(
        linked.mode & libc::S_IFMT,
        libc::S_IFLNK,
        "the link, not what it leads to"
    );
    let secret = fs::metadata(outside.path().join("secret")).unwrap();
    assert_eq!((secret.uid(), secret.nlink()), (0, 1));
    assert_ne!(secret.mtime(), 9);
    assert_eq!(
        fs::symlink_metadata(tree.path().join("file"))
            .unwrap()
            .uid(),
        9
    );
    let xattr = body().u32(1).u32(0).name("user.x").bytes(b"v");
    assert_eq!(
        client.call(SETXATTR, file.nodeid, xattr),
        Err(libc::EPERM),
        "as for any link"
    );
}

#[test]
fn extended_attributes_are_served_by_name_space() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let set = |name: &str, value: &[u8], flags: u32| {
        let size = u32::try_from(value.len()).unwrap();
        client.call(
            SETXATTR,
            file.nodeid,
            body().u32(size).u32(flags).name(name).bytes(value),
        )
    };
    let get = |name: &str, size: u32| {
        client.call(GETXATTR, file.nodeid, body().u32(size).u32(0).name(name))
    };
    assert_eq!(set("user.one", b"value", 0), Ok(vec![]));
    assert_eq!(set("user.one", b"value", 1), Err(libc::EEXIST));
    assert_eq!(set("user.two", b"", 2), Err(libc::ENODATA));
    assert_eq!(set("user.two", b"", 0), Ok(vec![]));
    assert_eq!(get("user.one", 5).unwrap(), b"value");
    assert_eq!(u32_at(&get("user.one", 0).unwrap(), 0), 5);
    assert_eq!(get("user.one", 4), Err(libc::ERANGE));
    assert_eq!(get("user.none", 9), Err(libc::ENODATA));
    assert_eq!(set("trusted.x", b"v", 0), Err(libc::EPERM));
    for name in ["system.posix_acl_access", "security.selinux", "odd"] {
        assert_eq!(set(name, b"v", 0), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(get(name, 0), Err(libc::EOPNOTSUPP), "{name}");
    }
    // A VFS_CAP_REVISION_2 with CAP_NET_RAW permitted.
    let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0]
        .map(u32::to_le_bytes)
        .concat();
    assert_eq!(set("security.capability", &capability, 0), Ok(vec![]));
    let list = client
        .call(LISTXATTR, file.nodeid, body().u64(4096))
        .unwrap();
    let mut names: Vec<_> = list.split(|byte| *byte == 0).collect();
    names.sort();
    assert_eq!(
        names,
        [&b""[..], b"security.capability", b"user.one", b"user.two"]
    );
    assert_eq!(
        client.call(LISTXATTR, file.nodeid, body().u64(9)),
        Err(libc::ERANGE)
    );
    let fh = client.open(file.nodeid, libc::O_WRONLY).unwrap();
    client.write(file.nodeid, fh, 0, b"x").unwrap();
    assert_eq!(
        get("security.capability", 64),
        Err(libc::ENODATA),
        "a write clears it"
    );
    assert_eq!(
        client.call(REMOVEXATTR, file.nodeid, body().name("user.one")),
        Ok(vec![])
    );
    assert_eq!(get("user.one", 9), Err(libc::ENODATA));
}

#[test]
fn ranges_are_allocated_and_copied() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (from, from_fh) = client.create(ROOT, "from", libc::O_RDWR, 0o644).unwrap();
    let (to, to_fh) = client.create(ROOT, "to", libc::O_RDWR, 0o644).unwrap();
    client.write(from.nodeid, from_fh, 0, &[7; 8192]).unwrap();
    let copy = body()
        .u64(from_fh)
        .u64(4096)
        .u64(to.nodeid)
        .u64(to_fh)
        .u64(10)
        .u64(4096)
        .u64(0);
    assert_eq!(
        u32_at(&client.call(COPY_FILE_RANGE, from.nodeid, copy).unwrap(), 0),
        4096
    );
    assert_eq!(
        client.read(to.nodeid, to_fh, 0, 8192).unwrap()[9..12],
        [0, 7, 7]
    );
    let allocate = |mode: i32, start: u64, length: u64| {
        let fields = body()
            .u64(to_fh)
            .u64(start)
            .u64(length)
            .u32(mode.cast_unsigned())
            .u32(0);
        client.call(FALLOCATE, to.nodeid, fields)
    };
    assert_eq!(allocate(0, 0, 1 << 16), Ok(vec![]));
    assert_eq!(client.getattr(to.nodeid).unwrap().size, 1 << 16);
    assert_eq!(
        allocate(libc::FALLOC_FL_PUNCH_HOLE | 1, 0, 4096),
        Ok(vec![])
    );
    assert_eq!(client.read(to.nodeid, to_fh, 10, 2).unwrap(), [0, 0]);
    assert_eq!(allocate(0x4000, 0, 1), Err(libc::EOPNOTSUPP));
    assert_eq!(allocate(0, u64::MAX, 1), Err(libc::EINVAL));
    let host = fs::File::open(tree.path().join("to")).unwrap();
    let mut byte = [9];
    host.read_exact_at(&mut byte, 4100).unwrap();
    assert_eq!(byte, [7]);
}
