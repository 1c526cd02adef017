//! Mounts below the exported tree, in a mount namespace of the test's own thread.

use std::fs;
use std::path::Path;
use std::process::Command;

use vmm_fs::Mounts;

use crate::client::*;
use crate::sys;

/// Puts this thread into a mount namespace of its own, where nothing propagates.
pub(crate) fn enter_mount_namespace() {
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_FS).unwrap();
    mount(&["--make-rprivate", "/"]);
}

pub(crate) fn mount(arguments: &[&str]) {
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
            for name in ["tmp", "ram", "proc", "fds", "same"] {
                fs::create_dir(tree.path().join(name)).unwrap();
            }
            fs::write(path("ns"), "").unwrap();
            fs::write(path("file"), "").unwrap();
            mount(&["-t", "tmpfs", "none", &path("tmp")]);
            mount(&["-t", "ramfs", "none", &path("ram")]);
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
    // Without a time of birth; recognised by its file handle.
    let ram = client.lookup(ROOT, "ram").unwrap();
    let made = client.mkdir(ram.nodeid, "made", 0o755).unwrap();
    let replaced = client.mkdir(ram.nodeid, "replaced", 0o755).unwrap();
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
    assert_eq!(client.getattr(made.nodeid).unwrap().ino, made.ino);
    for at in 16..32 {
        client.mkdir(ROOT, format!("filler{at}"), 0o755).unwrap();
    }
    fs::remove_dir(root.join("ram/replaced")).unwrap();
    fs::create_dir(root.join("ram/replaced")).unwrap();
    assert_eq!(client.getattr(replaced.nodeid), Err(libc::ESTALE));
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

/// A container's root file system is an overlay: an object changes its file, and with it what it is
/// recognised by, when it is first written to.
#[test]
fn inodes_survive_being_copied_up() {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            let path = |name: &str| root.join(name).into_os_string().into_string().unwrap();
            for name in ["lower", "lower/dir", "upper", "work", "merged"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            fs::write(root.join("lower/dir/file"), "from below").unwrap();
            let layers = [
                ("lowerdir", "lower"),
                ("upperdir", "upper"),
                ("workdir", "work"),
            ];
            let options = layers
                .map(|(key, name)| format!("{key}={}", path(name)))
                .join(",");
            mount(&["-t", "overlay", "-o", &options, "none", &path("merged")]);
            check_copying_up(&root.join("merged"));
        });
    });
    assert_eq!(
        fs::read(tree.path().join("lower/dir/file")).unwrap(),
        b"from below"
    );
    assert_eq!(
        fs::read(tree.path().join("upper/dir/file")).unwrap(),
        b"From below"
    );
}

fn check_copying_up(merged: &Path) {
    let server = server(merged, 2);
    let client = Client::new(&server);
    let dir = client.lookup(ROOT, "dir").unwrap();
    let file = client.lookup(dir.nodeid, "file").unwrap();
    let push_out = |round: u32| {
        for at in 0..16 {
            client
                .mkdir(ROOT, format!("filler{round}-{at}"), 0o755)
                .unwrap();
        }
    };
    push_out(0);
    let fh = client.open(file.nodeid, libc::O_RDWR).unwrap();
    client.write(file.nodeid, fh, 0, b"F").unwrap();
    client.release(file.nodeid, fh).unwrap();
    push_out(1);
    assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
    assert_eq!(client.getattr(dir.nodeid).unwrap().ino, dir.ino);
    assert_eq!(client.lookup(ROOT, "dir").unwrap().nodeid, dir.nodeid);
    assert_eq!(
        client.lookup(dir.nodeid, "file").unwrap().nodeid,
        file.nodeid
    );
    client
        .create(dir.nodeid, "new", libc::O_WRONLY, 0o644)
        .unwrap();
    client
        .rename((dir.nodeid, "file"), (dir.nodeid, "moved"), 0)
        .unwrap();
    push_out(2);
    assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
    client
        .rename((dir.nodeid, "moved"), (dir.nodeid, "file"), 0)
        .unwrap();
}

/// The host can unmount what the guest knows and has not open.
#[test]
fn nothing_is_kept_open_on_mounts_that_may_go() {
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            let volume = root.join("volume");
            fs::create_dir(&volume).unwrap();
            let path = volume.to_str().unwrap().to_owned();
            let mounts = Mounts {
                known: [(sys::mount_id(&root), LASTING)].into(),
                ..Mounts::default()
            };
            let server = server_with(&root, 100, mounts);
            let client = Client::new(&server);
            assert_eq!(client.lookup(ROOT, "volume").unwrap().flags, 0);
            mount(&["-t", "tmpfs", "none", &path]);
            let dir = client.lookup(ROOT, "volume").unwrap();
            assert_eq!(dir.flags, 1, "FUSE_ATTR_SUBMOUNT");
            let (file, fh) = client
                .create(dir.nodeid, "file", libc::O_RDWR, 0o644)
                .unwrap();
            client.write(file.nodeid, fh, 0, b"data").unwrap();
            let below = client.mkdir(dir.nodeid, "below", 0o755).unwrap();
            // What is open keeps the mount, as with a local process.
            assert!(!unmount(&path));
            client.release(file.nodeid, fh).unwrap();
            let (fh, kept) = client.open_kept(file.nodeid, libc::O_RDONLY).unwrap();
            assert!(!kept);
            client.release(file.nodeid, fh).unwrap();
            assert_eq!(client.getattr(file.nodeid).unwrap().size, 4);
            assert_eq!(client.getattr(below.nodeid).unwrap().ino, below.ino);
            client
                .rename((dir.nodeid, "file"), (below.nodeid, "moved"), 0)
                .unwrap();
            assert_eq!(
                client.lookup(below.nodeid, "moved").unwrap().nodeid,
                file.nodeid
            );
            // An open file stays whole when its last name goes.
            let fh = client.open(file.nodeid, libc::O_RDWR).unwrap();
            client
                .call(UNLINK, below.nodeid, body().name("moved"))
                .unwrap();
            assert_eq!(client.getattr(file.nodeid).unwrap().nlink, 0);
            client.release(file.nodeid, fh).unwrap();
            client.forget(file.nodeid, 2);
            assert!(unmount(&path), "the host cannot unmount");
            assert_eq!(client.getattr(below.nodeid), Err(libc::ESTALE));
            assert_eq!(client.lookup(ROOT, "volume").unwrap().flags, 0);
        });
    });
}

fn unmount(path: &str) -> bool {
    Command::new("umount").arg(path).status().unwrap().success()
}

/// sysfs says of each file that it has a page, and of some that they have none. Reads say what is there.
#[test]
fn files_without_sizes_are_read_each_time() {
    const DIRECT_IO: u32 = 1 << 0;
    const NO_MMAP: u32 = 1 << 30;
    const KEPT: u32 = 1 << 31 | 1 << 1;
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().to_owned();
    let scope = move || {
        enter_mount_namespace();
        let below = path.join("sys");
        fs::create_dir(&below).unwrap();
        fs::write(path.join("plain"), "text").unwrap();
        mount(&["--bind", "/sys/kernel", &below.to_string_lossy()]);
        let server = server(&path, 64);
        let client = Client::new(&server);
        let flags = |nodeid: u64| {
            let fields = body().u32(0).u32(0);
            let answer = client.call(OPEN, nodeid, fields).unwrap();
            (u64_at(&answer, 0), u32_at(&answer, 8))
        };
        let sys = client.lookup(ROOT, "sys").unwrap().nodeid;
        let file = client.lookup(sys, "notes").unwrap();
        let (fh, told) = flags(file.nodeid);
        assert_eq!(told & (DIRECT_IO | NO_MMAP | KEPT), DIRECT_IO | NO_MMAP);
        let content = fs::read("/sys/kernel/notes").unwrap();
        let read = client.read(file.nodeid, fh, 0, 1 << 15).unwrap();
        assert_eq!(read, content);
        let plain = client.lookup(ROOT, "plain").unwrap().nodeid;
        assert_eq!(flags(plain).1 & (DIRECT_IO | NO_MMAP | KEPT), KEPT);
        // What is mounted there later is looked at anew, whatever its number.
        mount(&["-t", "tmpfs", "none", &below.to_string_lossy()]);
        fs::write(below.join("file"), "text").unwrap();
        let sys = client.lookup(ROOT, "sys").unwrap().nodeid;
        let file = client.lookup(sys, "file").unwrap().nodeid;
        assert_eq!(flags(file).1 & (DIRECT_IO | NO_MMAP | KEPT), KEPT);
    };
    std::thread::scope(|threads| threads.spawn(scope).join().unwrap());
}

#[test]
fn a_close_is_told_where_it_may_mean_something() {
    const NOFLUSH: u32 = 1 << 5;
    const NO_FLUSH: u32 = 1 << 29;
    const LISTS: u32 = 1 << 3 | 1 << 1;
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().to_owned();
    let scope = move || {
        enter_mount_namespace();
        for name in ["tmpfs", "overlay", "sys"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        let at = |name: &str| path.join(name).to_str().unwrap().to_owned();
        mount(&["-t", "tmpfs", "none", &at("tmpfs")]);
        for name in ["lower", "upper", "work"] {
            fs::create_dir(path.join("tmpfs").join(name)).unwrap();
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| at("tmpfs/") + name);
        let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(&["-t", "overlay", "none", "-o", &layers, &at("overlay")]);
        mount(&["--bind", "/sys/kernel", &at("sys")]);
        let server = server(&path, 64);
        let client = Client::new(&server);
        let told = |opcode: u32, nodeid: u64, flags: i32| {
            let fields = body().u32(flags.cast_unsigned()).u32(0);
            u32_at(&client.call(opcode, nodeid, fields).unwrap(), 8)
        };
        let written = libc::O_WRONLY | libc::O_CREAT;
        // What an overlay's upper layer does is not known.
        for (name, expected) in [("tmpfs", NO_FLUSH), ("overlay", 0)] {
            let dir = client.lookup(ROOT, name).unwrap().nodeid;
            let fields = body().u32(written.cast_unsigned()).u32(0o644).u64(0);
            let made = client.call(CREATE, dir, fields.name("file")).unwrap();
            let flushes = NOFLUSH | NO_FLUSH;
            assert_eq!(u32_at(&made, 128 + 8) & flushes, expected, "{name}");
            let file = entry(&made).nodeid;
            assert_eq!(told(OPEN, file, libc::O_RDWR) & flushes, expected, "{name}");
            assert_eq!(told(OPEN, file, libc::O_RDONLY) & flushes, NOFLUSH);
            assert_eq!(told(OPENDIR, dir, 0), LISTS, "{name}");
        }
        // Lists that are made as they are read.
        let sys = client.lookup(ROOT, "sys").unwrap().nodeid;
        assert_eq!(told(OPENDIR, sys, 0), 0);
    };
    std::thread::scope(|threads| threads.spawn(scope).join().unwrap());
}
