//! What requests mean to the attributes of files, extended ones included.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::client::*;

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
    let mode = |mode| client.setattr(file.nodeid, Set::mode(mode)).unwrap();
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
fn sizes_are_set() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
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
            .setattr(file.nodeid, Set::size(6 << 32))
            .unwrap()
            .size,
        6 << 32
    );
    assert_eq!(
        client.setattr(file.nodeid, Set::size(u64::MAX)),
        Err(libc::EINVAL)
    );
    assert_eq!(client.setattr(ROOT, Set::size(0)), Err(libc::EISDIR));
}

#[test]
fn times_are_set() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let path = tree.path().join("file");
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
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
}

#[test]
fn no_id_is_not_an_owner() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
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
            body().u32(size).u32(flags).u64(0).name(name).bytes(value),
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
    for name in ["system.other", "security.selinux", "odd", "user.chiton.x"] {
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
fn trusted_attributes_have_other_names_on_the_host() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let set = |name: &str| {
        let fields = body().u32(1).u32(0).u64(0).name(name).bytes(b"v");
        client.call(SETXATTR, file.nodeid, fields)
    };
    let get = |name: &str| client.call(GETXATTR, file.nodeid, body().u32(9).u32(0).name(name));
    let list = || {
        client
            .call(LISTXATTR, file.nodeid, body().u64(4096))
            .unwrap()
    };
    let path = tree.path().join("file");
    let host = |name: &str| {
        let mut value = [0; 9];
        let length = rustix::fs::getxattr(&path, name, &mut value)?;
        rustix::io::Result::Ok(value[..length].to_vec())
    };
    assert_eq!(set("trusted.overlay.opaque"), Ok(vec![]));
    assert_eq!(get("trusted.overlay.opaque").unwrap(), b"v");
    assert_eq!(list(), b"trusted.overlay.opaque\0");
    assert_eq!(host("user.chiton.trusted.overlay.opaque").unwrap(), b"v");
    assert_eq!(
        host("trusted.overlay.opaque"),
        Err(rustix::io::Errno::NODATA)
    );
    // Nobody in the guest can name it otherwise, and what is really trusted is not seen.
    for name in [
        "user.chiton.trusted.overlay.opaque",
        "user.chiton.",
        "user.chiton.trusted.y",
    ] {
        assert_eq!(
            (set(name), get(name)),
            (Err(libc::EOPNOTSUPP), Err(libc::EOPNOTSUPP))
        );
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "user.chiton.other", b"v", flags).unwrap();
    assert_eq!(list(), b"trusted.overlay.opaque\0");
    assert_eq!(get("trusted.other"), Err(libc::ENODATA));
    let long = |length: usize| format!("trusted.{}", "x".repeat(length));
    assert_eq!(set(&long(255 - 8 - 12)), Ok(vec![]));
    assert_eq!(set(&long(255 - 8 - 11)), Err(libc::ERANGE));
    assert_eq!(set("trusted."), Err(libc::EINVAL));
    for name in ["trusted.overlay.opaque", &long(255 - 8 - 12)] {
        let removed = client.call(REMOVEXATTR, file.nodeid, body().name(name));
        assert_eq!(removed, Ok(vec![]));
    }
    assert_eq!(list(), b"");
}
