//! Access lists (POSIX ACLs), on a file system that has them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::client::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// Of our own: the object has no access list.
const NO_ACL: u32 = 1 << 31;
/// `linux/posix_acl.h`.
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// A list of (tag, permissions, id).
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(tag, permissions, id)| {
        let bytes = [tag.to_le_bytes(), permissions.to_le_bytes()].concat();
        [bytes, id.to_le_bytes().to_vec()].concat()
    });
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

/// One that names the user 1234.
fn naming(owner: u16, named: u16, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    list(&[
        (USER_OBJ, owner, none),
        (USER, named, 1234),
        (GROUP_OBJ, 0, none),
        (MASK, mask, none),
        (OTHER, 0, none),
    ])
}

fn set(client: &Client<'_>, nodeid: u64, name: &str, value: &[u8], flags: u32) -> Answer {
    let size = u32::try_from(value.len()).unwrap();
    let fields = body().u32(size).u32(0).u32(flags).u32(0);
    client.call(SETXATTR, nodeid, fields.name(name).bytes(value))
}

fn get(client: &Client<'_>, nodeid: u64, name: &str) -> Answer {
    client.call(GETXATTR, nodeid, body().u32(4096).u32(0).name(name))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A directory of a file system that has lists.
fn tree() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

#[test]
fn lists_are_kept_by_the_host() {
    let tree = tree();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let path = tree.path().join("file");
    assert_eq!(get(&client, file.nodeid, ACCESS), Err(libc::ENODATA));
    let given = naming(6, 4, 4);
    set(&client, file.nodeid, ACCESS, &given, 0).unwrap();
    assert_eq!(get(&client, file.nodeid, ACCESS).unwrap(), given);
    assert_eq!(mode(&path), 0o640, "the mask");
    let listed = client
        .call(LISTXATTR, file.nodeid, body().u64(4096))
        .unwrap();
    assert_eq!(listed, format!("{ACCESS}\0").as_bytes());
    // A change of the mode is one of the mask.
    client.setattr(file.nodeid, Set::mode(0o660)).unwrap();
    assert_eq!(get(&client, file.nodeid, ACCESS).unwrap(), naming(6, 4, 6));
    let removed = client.call(REMOVEXATTR, file.nodeid, body().name(ACCESS));
    assert_eq!(removed, Ok(vec![]));
    assert_eq!(get(&client, file.nodeid, ACCESS), Err(libc::ENODATA));
    assert_eq!(
        set(&client, file.nodeid, ACCESS, b"odd", 0),
        Err(libc::EINVAL)
    );
    // What a mode can say leaves no list.
    let plain = [
        (USER_OBJ, 7, u32::MAX),
        (GROUP_OBJ, 1, u32::MAX),
        (OTHER, 4, u32::MAX),
    ];
    set(&client, file.nodeid, ACCESS, &list(&plain), 0).unwrap();
    assert_eq!(
        (mode(&path), get(&client, file.nodeid, ACCESS)),
        (0o714, Err(libc::ENODATA))
    );
}

#[test]
fn a_file_system_without_lists_has_none() {
    let server = server(Path::new("/sys/kernel"), 64);
    let client = Client::new(&server);
    let file = client.lookup(ROOT, "notes").unwrap();
    assert_eq!(get(&client, file.nodeid, ACCESS), Err(libc::ENODATA));
    let set = set(&client, file.nodeid, ACCESS, &naming(6, 4, 4), 0);
    assert_eq!(set, Err(libc::EOPNOTSUPP));
}

#[test]
fn a_default_list_decides_instead_of_the_umask() {
    let tree = tree();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let make = |dir: u64, umask: u32| {
        let fields = body()
            .u32(0o101)
            .u32(0o100_666)
            .u32(umask)
            .u32(0)
            .name("file");
        client.call(CREATE, dir, fields).unwrap();
        let fields = body().u32(0o666 | libc::S_IFREG).u32(0).u32(umask).u32(0);
        client.call(MKNOD, dir, fields.name("node")).unwrap();
        let fields = body().u32(0o777).u32(umask).name("dir");
        client.call(MKDIR, dir, fields).unwrap();
        let fields = body().u32(2).u32(0o100_666).u32(umask).u32(0).name("");
        entry(&client.call(TMPFILE, dir, fields).unwrap()).mode & 0o7777
    };
    let modes =
        |name: &str| ["file", "node", "dir"].map(|made| mode(&tree.path().join(name).join(made)));
    let plain = client.mkdir(ROOT, "plain", 0o755).unwrap().nodeid;
    for (name, umask) in [("a", 0o022), ("b", 0o077), ("c", 0), ("d", 0o7027)] {
        let dir = client.mkdir(plain, name, 0o755).unwrap().nodeid;
        let file = 0o666 & !umask;
        assert_eq!(make(dir, umask), file);
        assert_eq!(
            modes(&format!("plain/{name}")),
            [file, file, 0o777 & !umask]
        );
    }
    let lists = client.mkdir(ROOT, "lists", 0o755).unwrap().nodeid;
    set(&client, lists, DEFAULT, &naming(7, 6, 6), 0).unwrap();
    assert_eq!(make(lists, 0o077), 0o660);
    assert_eq!(modes("lists"), [0o660, 0o660, 0o760]);
    let made = client.lookup(lists, "file").unwrap();
    assert_eq!(get(&client, made.nodeid, ACCESS).unwrap(), naming(6, 6, 6));
    let made = client.lookup(lists, "dir").unwrap();
    assert_eq!(get(&client, made.nodeid, DEFAULT).unwrap(), naming(7, 6, 6));
}

#[test]
fn a_list_clears_the_set_group_id_bit_unless_the_caller_may_keep_it() {
    let tree = tree();
    let server = server(tree.path(), 64);
    let mut client = Client::new(&server);
    let path = tree.path().join("file");
    for group in [0, 50] {
        for (caller, flags, kept) in [(0, 0, true), (1000, 0, true), (1000, 1, false)] {
            fs::write(&path, "").unwrap();
            std::os::unix::fs::chown(&path, Some(1000), Some(group)).unwrap();
            client.ids = (caller, caller);
            let file = client.lookup(ROOT, "file").unwrap();
            client.setattr(file.nodeid, Set::mode(0o2755)).unwrap();
            set(&client, file.nodeid, ACCESS, &naming(7, 7, 7), flags).unwrap();
            let expected = if kept { 0o2770 } else { 0o770 };
            assert_eq!(mode(&path), expected, "{group} {caller} {flags}");
            fs::remove_file(&path).unwrap();
        }
    }
}

/// Only to those who would ask, and never of what has a list.
#[test]
fn the_guest_is_told_of_what_has_no_list() {
    let tree = tree();
    let server = server(tree.path(), 64);
    let mut client = Client::new(&server);
    for (name, mode) in [("with", 0o640), ("without", 0o640), ("private", 0o600)] {
        client.create(ROOT, name, libc::O_RDWR, mode).unwrap();
    }
    let with = client.lookup(ROOT, "with").unwrap().nodeid;
    set(&client, with, ACCESS, &naming(6, 4, 4), 0).unwrap();
    for (user, told) in [(0, false), (1000, true)] {
        client.ids = (user, user);
        for (name, told) in [("with", false), ("without", told), ("private", false)] {
            let found = client.lookup(ROOT, name).unwrap();
            assert_eq!(found.flags & NO_ACL != 0, told, "{name} to {user}");
            let found = client.getattr(found.nodeid).unwrap();
            assert_eq!(found.flags & NO_ACL != 0, told, "{name} to {user}");
        }
    }
}
