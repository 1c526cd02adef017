//! Mounts below the exported tree, in a mount namespace of the test's own thread.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::client::*;

/// Puts this thread into a mount namespace of its own, where nothing propagates.
fn enter_mount_namespace() {
    // SAFETY: no memory is passed; only this thread is affected.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    mount(&["--make-rprivate", "/"]);
}

fn mount(arguments: &[&str]) {
    // A child starts in the namespace of the thread that makes it.
    assert!(
        Command::new("mount")
            .args(arguments)
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn submounts_are_announced_and_procfs_is_not_entered() {
    let tree = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        tree.path()
            .join(name)
            .into_os_string()
            .into_string()
            .unwrap()
    };
    let root = tree.path().to_owned();
    let tree = &tree;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            for name in ["tmp", "proc", "fds", "same"] {
                fs::create_dir(tree.path().join(name)).unwrap();
            }
            fs::write(path("ns"), "").unwrap();
            fs::write(path("file"), "").unwrap();
            mount(&["-t", "tmpfs", "none", &path("tmp")]);
            mount(&["-t", "proc", "none", &path("proc")]);
            mount(&[
                "--bind",
                &format!("/proc/{}/fd", std::process::id()),
                &path("fds"),
            ]);
            mount(&[
                "--bind",
                &format!("/proc/{}/ns/uts", std::process::id()),
                &path("ns"),
            ]);
            mount(&["--bind", &path("file"), &path("file")]);
            check(&root);
        });
    });
    // The mounts are gone with the thread's namespace.
    assert_eq!(fs::read_dir(tree.path().join("tmp")).unwrap().count(), 0);
}

fn check(root: &Path) {
    let server = server(root, 4);
    let client = Client::new(&server);
    let submount = 1;
    let tmp = client.lookup(ROOT, "tmp").unwrap();
    assert_eq!(tmp.flags, submount, "FUSE_ATTR_SUBMOUNT");
    assert_eq!(client.lookup(ROOT, "same").unwrap().flags, 0);
    let (file, fh) = client
        .create(tmp.nodeid, "file", libc::O_RDWR, 0o644)
        .unwrap();
    assert_eq!(file.flags, 0);
    client.write(file.nodeid, fh, 0, b"data").unwrap();
    for name in ["proc", "fds", "ns"] {
        assert_eq!(client.lookup(ROOT, name), Err(libc::EACCES), "{name}");
    }
    let dir = client.opendir(ROOT).unwrap();
    for (name, _, nodeid) in client.readdir(ROOT, dir, 0, 4096, true).unwrap() {
        let plain = name == b"same";
        assert_eq!(nodeid != 0, plain, "mounts are looked up by themselves");
    }
    for at in 0..16 {
        client.mkdir(ROOT, format!("filler{at}"), 0o755).unwrap();
    }
    assert_eq!(
        client.getattr(file.nodeid).unwrap().ino,
        file.ino,
        "evicted on another mount"
    );
    assert_eq!(
        client.rename((tmp.nodeid, "file"), (ROOT, "x"), 0),
        Err(libc::EXDEV)
    );
    assert_eq!(client.link(file.nodeid, ROOT, "x"), Err(libc::EXDEV));
    assert_eq!(
        client.call(RMDIR, ROOT, body().name("tmp")),
        Err(libc::EBUSY)
    );
}
