//! What requests mean to names: links, renames, symbolic links.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::client::*;

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
    client.setattr(file.nodeid, Set::size(2)).unwrap();
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
}

#[test]
fn a_change_of_a_symbolic_link_is_one_of_the_link() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let tree = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), tree.path().join("file")).unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let file = client.lookup(ROOT, "file").unwrap();
    assert_eq!(client.setattr(file.nodeid, Set::size(0)), Err(libc::ELOOP));
    assert_eq!(
        client.setattr(file.nodeid, Set::mode(0o777)),
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
    let xattr = body().u32(1).u32(0).u64(0).name("user.x").bytes(b"v");
    assert_eq!(
        client.call(SETXATTR, file.nodeid, xattr),
        Err(libc::EPERM),
        "as for any link"
    );
}

#[test]
fn a_name_is_looked_up_again_as_it_is_then() {
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    fs::write(at("file"), "text").unwrap();
    let first = client.lookup(ROOT, "file").unwrap();
    let open = server.counts();
    fs::write(at("file"), "longer text").unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o604)).unwrap();
    let again = client.lookup(ROOT, "file").unwrap();
    assert_eq!((again.nodeid, again.size), (first.nodeid, 11));
    assert_eq!(again.mode & 0o777, 0o604);
    assert_eq!(server.counts(), open);

    // Another name of the same file, and the same name of others.
    fs::hard_link(at("file"), at("link")).unwrap();
    fs::write(at("other"), "other").unwrap();
    let link = client.lookup(ROOT, "link").unwrap();
    assert_eq!((link.nodeid, link.nlink), (first.nodeid, 2));
    fs::rename(at("other"), at("link")).unwrap();
    let other = client.lookup(ROOT, "link").unwrap();
    assert_ne!(other.nodeid, first.nodeid);
    fs::remove_file(at("file")).unwrap();
    assert_eq!(client.lookup(ROOT, "file").map(drop), Err(libc::ENOENT));
    fs::create_dir(at("file")).unwrap();
    let dir = client.lookup(ROOT, "file").unwrap();
    assert!(![first.nodeid, other.nodeid].contains(&dir.nodeid));
    assert_eq!(dir.mode & libc::S_IFMT, libc::S_IFDIR);
    std::os::unix::fs::symlink("link", at("soft")).unwrap();
    for _ in 0..2 {
        let soft = client.lookup(ROOT, "soft").unwrap();
        assert_eq!(soft.mode & libc::S_IFMT, libc::S_IFLNK);
    }

    // Each time was counted.
    for (nodeid, times) in [(first.nodeid, 3), (other.nodeid, 1)] {
        client.forget(nodeid, times - 1);
        assert!(client.getattr(nodeid).is_ok());
        client.forget(nodeid, 1);
        assert_eq!(client.getattr(nodeid).map(drop), Err(libc::ESTALE));
    }
}
