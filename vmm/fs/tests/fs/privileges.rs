//! Files that give privileges to whoever executes them, where only one mount may have such.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use vmm_fs::{Mount, Mounts, Server};

use crate::client::*;
use crate::mounts::{enter_mount_namespace, mount};
use crate::sys;

/// A VFS_CAP_REVISION_2 with CAP_NET_RAW permitted.
const CAPABILITY: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];

fn setxattr(client: &Client<'_>, nodeid: u64, name: &str, value: &[u8]) -> Answer {
    let size = u32::try_from(value.len()).unwrap();
    let fields = body().u32(size).u32(0).u64(0).name(name).bytes(value);
    client.call(SETXATTR, nodeid, fields)
}

/// In a tree of two mounts: `rootfs`, which may have them, and `volume`.
fn with_two_mounts(check: impl FnOnce(&Path) + Send) {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = tree.path();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            for name in ["rootfs", "volume"] {
                let path = root.join(name);
                fs::create_dir(&path).unwrap();
                let path = path.to_str().unwrap();
                mount(&["--bind", path, path]);
            }
            check(root);
        });
    });
}

/// A server of the tree.
fn privileged_rootfs(root: &Path) -> Server {
    let known = [(sys::mount_id(&root.join("rootfs")), LASTING)].into();
    let others = Mount {
        privileges: false,
        ..LASTING
    };
    server_with(root, 64, Mounts { known, others })
}

fn permissions(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn only_the_privileged_mount_gets_them() {
    with_two_mounts(|root| {
        let server = privileged_rootfs(root);
        let client = Client::new(&server);
        let capability = CAPABILITY.map(u32::to_le_bytes).concat();
        for (mount, may) in [("rootfs", true), ("volume", false)] {
            let result = |errno: i32| if may { Ok(()) } else { Err(errno) };
            let denied = result(libc::EPERM);
            let dir = client.lookup(ROOT, mount).unwrap().nodeid;
            let (file, fh) = client.create(dir, "file", libc::O_RDWR, 0o755).unwrap();
            for mode in [0o4755, 0o2755, 0o2644, 0o6711] {
                let found = client.setattr(file.nodeid, Set::mode(mode)).map(drop);
                assert_eq!(found, denied, "{mount}: chmod {mode:o}");
                let expected = if may { mode } else { 0o755 };
                assert_eq!(permissions(&root.join(mount).join("file")), expected);
                let name = format!("made-{mode:o}");
                let made = client.create(dir, &name, libc::O_WRONLY, mode).map(drop);
                assert_eq!(made, denied, "{mount}: creation with {mode:o}");
                assert_eq!(root.join(mount).join(name).exists(), may);
                let fields = body().u32(libc::O_RDWR.cast_unsigned()).u32(mode).u64(0);
                let unnamed = client.call(TMPFILE, dir, fields.name("x")).map(drop);
                assert_eq!(unnamed, denied, "{mount}: a file without a name");
                for kind in [libc::S_IFREG, libc::S_IFIFO] {
                    let fields = body().u32(kind | mode).u32(0).u64(0);
                    let node = client.call(MKNOD, dir, fields.name(format!("{kind}-{mode}")));
                    assert_eq!(node.map(drop), denied, "{mount}: mknod");
                }
            }
            let set = setxattr(&client, file.nodeid, "security.capability", &capability);
            assert_eq!(set.map(drop), denied, "{mount}: capabilities");
            // What gives no privileges.
            for mode in [0o777, 0o1755] {
                client.setattr(file.nodeid, Set::mode(mode)).unwrap();
            }
            client.write(file.nodeid, fh, 0, b"data").unwrap();
            setxattr(&client, file.nodeid, "user.x", b"v").unwrap();
            let shared = client.mkdir(dir, "shared", 0o755).unwrap();
            client.setattr(shared.nodeid, Set::mode(0o3775)).unwrap();
            let inner = client.mkdir(shared.nodeid, "inner", 0o755).unwrap();
            assert_eq!(inner.mode & 0o7777, 0o2755, "directories hand it down");
            let (file, _) = client
                .create(shared.nodeid, "file", libc::O_RDWR, 0o644)
                .unwrap();
            assert_eq!(file.mode & 0o7777, 0o644);
        }
    });
}

#[test]
fn what_the_host_has_made_stays_and_moves() {
    with_two_mounts(|root| {
        let path = root.join("volume/file");
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let server = privileged_rootfs(root);
        let client = Client::new(&server);
        let rootfs = client.lookup(ROOT, "rootfs").unwrap().nodeid;
        let volume = client.lookup(ROOT, "volume").unwrap().nodeid;
        let file = client.lookup(volume, "file").unwrap().nodeid;
        client.link(file, volume, "other").unwrap();
        client
            .rename((volume, "file"), (volume, "moved"), 0)
            .unwrap();
        assert_eq!(permissions(&root.join("volume/moved")), 0o4755);
        // It cannot be set again either: a write may have cleared it meanwhile.
        let again = client.setattr(file, Set::mode(0o4711));
        assert_eq!(again, Err(libc::EPERM));
        let (made, _) = client
            .create(rootfs, "made", libc::O_WRONLY, 0o4755)
            .unwrap();
        let there = client.rename((rootfs, "made"), (volume, "made"), 0);
        assert_eq!(there, Err(libc::EXDEV));
        assert_eq!(client.link(made.nodeid, volume, "made"), Err(libc::EXDEV));
        let fh = client.open(file, libc::O_WRONLY).unwrap();
        client.write(file, fh, 0, b"x").unwrap();
        assert_eq!(permissions(&root.join("volume/moved")), 0o755);
    });
}

#[test]
fn what_is_there_cannot_be_made_whatever_else_is_wrong() {
    with_two_mounts(|root| {
        fs::write(root.join("volume/file"), "there").unwrap();
        let server = privileged_rootfs(root);
        let client = Client::new(&server);
        let dir = client.lookup(ROOT, "volume").unwrap().nodeid;
        let flags = libc::O_WRONLY | libc::O_EXCL;
        for (name, expected) in [("file", libc::EEXIST), ("none", libc::EPERM)] {
            let made = client.create(dir, name, flags, 0o4755).map(drop);
            assert_eq!(made, Err(expected), "{name}");
        }
        assert_eq!(permissions(&root.join("volume/file")) & 0o7000, 0);
    });
}
