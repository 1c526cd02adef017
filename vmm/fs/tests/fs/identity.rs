//! One file by several mounts of one class, in a mount namespace of the test's own thread.

use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm_fs::{Mount, Mounts, Parting, Server};

use crate::client::*;
use crate::mounts::{enter_mount_namespace, mount};
use crate::sys;

const CLASS: Option<NonZeroU64> = NonZeroU64::new(0x801);

/// Where, what of `source`, and whether it can be written.
type Bind = (&'static str, &'static str, bool);

/// Calls `check` with a tree, in `tree` below the directory that it is given, of these parts of `source` beside it.
fn with_mounts(binds: &[Bind], check: impl FnOnce(&Path) + Send) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_mount_namespace();
            fs::create_dir_all(path.join("source/sub")).unwrap();
            fs::create_dir(path.join("tree")).unwrap();
            let tree = path.join("tree").into_os_string().into_string().unwrap();
            mount(&["-t", "tmpfs", "none", &tree]);
            for (place, part, writable) in binds {
                let place = format!("{tree}/{place}");
                let part = path.join("source").join(part);
                if *part == *path.join("source/file") {
                    fs::write(&part, "text").unwrap();
                    fs::write(&place, "").unwrap();
                } else {
                    fs::create_dir(&place).unwrap();
                }
                mount(&["--bind", part.to_str().unwrap(), &place]);
                if !writable {
                    mount(&["-o", "remount,bind,ro", &place]);
                }
            }
            check(path);
        });
    });
}

/// What the mounts are, all of them of the class.
fn table(path: &Path, binds: &[Bind]) -> Mounts {
    let tree = path.join("tree");
    let known = binds.iter().map(|(place, _, writable)| {
        let traits = Mount {
            class: CLASS,
            read_only: !writable,
            ..LASTING
        };
        (sys::mount_id(&tree.join(place)), traits)
    });
    let root = (sys::mount_id(&tree), LASTING);
    Mounts {
        known: known.chain([root]).collect(),
        ..Mounts::default()
    }
}

fn server(path: &Path, binds: &[Bind], open_fd_limit: usize) -> Server {
    server_with(&path.join("tree"), open_fd_limit, table(path, binds))
}

/// Opens for writing, and writes by it.
fn writes(client: &Client<'_>, nodeid: u64) -> Result<(), i32> {
    let fh = client.open(nodeid, libc::O_RDWR)?;
    client.write(nodeid, fh, 0, b"x").unwrap();
    client.release(nodeid, fh).map(drop)
}

/// `fuse_attr.rdev`: which submounts are one file system of the guest.
fn rdev(client: &Client<'_>, dir: u64, name: &str) -> u32 {
    let answer = client.call(LOOKUP, dir, body().name(name)).unwrap();
    u32_at(&answer, 40 + 76)
}

/// The device number of a file as the guest's kernel has it there.
fn device(path: &Path) -> u32 {
    let device = fs::metadata(path).unwrap().dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

fn push_out(client: &Client<'_>, dir: u64) {
    for at in 0..16 {
        let name = format!("filler{at}");
        if client.lookup(dir, &name).is_err() {
            client.mkdir(dir, &name, 0o755).unwrap();
        }
    }
}

#[test]
fn one_file_is_one_inode() {
    let binds = [("a", "", true), ("b", "", true), ("c", "sub", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/sub/file"), "text").unwrap();
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let [a, b, c] = ["a", "b", "c"].map(|name| client.lookup(ROOT, name).unwrap());
        assert_eq!((a.nodeid, a.flags, c.flags), (b.nodeid, 1, 1));
        assert_ne!(a.nodeid, c.nodeid);
        let below = client.lookup(a.nodeid, "sub").unwrap();
        assert_eq!((below.nodeid, below.flags), (c.nodeid, 0));
        let file = client.lookup(c.nodeid, "file").unwrap().nodeid;
        assert_eq!(client.lookup(below.nodeid, "file").unwrap().nodeid, file);
        // The guest puts mounts of one class into one superblock.
        let device = device(&path.join("source"));
        assert_eq!(rdev(&client, ROOT, "a"), device);
        assert_eq!(rdev(&client, ROOT, "c"), device);
        assert_eq!(rdev(&client, a.nodeid, "sub"), 0);
    });
}

/// A file that is bound is a submount too, so that the guest finds it in the superblock of its directory.
#[test]
fn a_file_is_the_same_as_in_its_directory() {
    let binds = [("ro", "file", false), ("dir", "", true)];
    with_mounts(&binds, |path| {
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let file = client.lookup(ROOT, "ro").unwrap();
        assert_eq!(file.flags, 1, "FUSE_ATTR_SUBMOUNT");
        assert_eq!(rdev(&client, ROOT, "ro"), device(&path.join("source")));
        assert_eq!(writes(&client, file.nodeid), Err(libc::EROFS));
        // What the guest has of the file system may be this alone.
        let synced = client.call(SYNCFS, file.nodeid, body().u64(0));
        assert_eq!(synced, Ok(vec![]));
        let dir = client.lookup(ROOT, "dir").unwrap().nodeid;
        let below = client.lookup(dir, "file").unwrap();
        assert_eq!((below.nodeid, below.flags), (file.nodeid, 0));
        assert_eq!(writes(&client, file.nodeid), Ok(()));
        client.link(file.nodeid, dir, "linked").unwrap();
        client.unlink(dir, "file").unwrap();
        client.unlink(dir, "linked").unwrap();
        assert_eq!(writes(&client, file.nodeid), Ok(()));
    });
}

#[test]
fn mounts_of_no_class_share_nothing() {
    let binds = [("a", "", true), ("b", "", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/file"), "text").unwrap();
        let server = server_with(
            &path.join("tree"),
            64,
            Mounts {
                others: LASTING,
                ..Mounts::default()
            },
        );
        let client = Client::new(&server);
        let [a, b] = ["a", "b"].map(|name| client.lookup(ROOT, name).unwrap().nodeid);
        let [one, other] = [a, b].map(|dir| client.lookup(dir, "file").unwrap().nodeid);
        assert!(a != b && one != other);
        assert_eq!(rdev(&client, ROOT, "a"), 0);
    });
}

/// Whichever is looked up first, and whatever is open by then.
#[test]
fn what_can_be_written_by_one_mount_can_be_written() {
    let binds = [("ro", "", false), ("rw", "sub", true)];
    for order in [["ro", "rw"], ["rw", "ro"]] {
        with_mounts(&binds, |path| {
            for name in ["file", "sub/file", "sub/deep/file"] {
                fs::create_dir_all(path.join("source").join(name).parent().unwrap()).unwrap();
                fs::write(path.join("source").join(name), "text").unwrap();
            }
            let server = server(path, &binds, 64);
            let client = Client::new(&server);
            let mut found = Vec::new();
            for name in order {
                let mut dir = client.lookup(ROOT, name).unwrap().nodeid;
                if name == "ro" {
                    let outside = client.lookup(dir, "file").unwrap().nodeid;
                    assert_eq!(writes(&client, outside), Err(libc::EROFS));
                    dir = client.lookup(dir, "sub").unwrap().nodeid;
                }
                let deep = client.lookup(dir, "deep").unwrap().nodeid;
                let files = [dir, deep].map(|dir| client.lookup(dir, "file").unwrap().nodeid);
                found.push([dir, deep, files[0], files[1]]);
            }
            assert_eq!(found[0], found[1], "{order:?}");
            let [dir, deep, file, inner] = found[0];
            for nodeid in [file, inner] {
                assert_eq!(writes(&client, nodeid), Ok(()), "{order:?}");
            }
            for dir in [dir, deep] {
                client.mkdir(dir, "made", 0o755).unwrap();
            }
            client.rename((dir, "file"), (deep, "moved"), 0).unwrap();
            client.link(inner, dir, "linked").unwrap();
        });
    }
}

/// What lies below is opened again as soon as its directory is found by the better way: the guest need not look again.
#[test]
fn descriptors_that_allow_less_are_replaced() {
    let binds = [("ro", "", false), ("rw", "", true)];
    with_mounts(&binds, |path| {
        fs::create_dir(path.join("source/sub/deep")).unwrap();
        fs::write(path.join("source/sub/deep/file"), "text").unwrap();
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let mut dir = client.lookup(ROOT, "ro").unwrap().nodeid;
        for name in ["sub", "deep"] {
            dir = client.lookup(dir, name).unwrap().nodeid;
        }
        let file = client.lookup(dir, "file").unwrap().nodeid;
        assert_eq!(writes(&client, file), Err(libc::EROFS));
        let read = client.open(file, libc::O_RDONLY).unwrap();
        client.lookup(ROOT, "rw").unwrap();
        assert_eq!(writes(&client, file), Ok(()));
        client.create(dir, "new", libc::O_WRONLY, 0o644).unwrap();
        client.release(file, read).unwrap();
        // And stay so when the other way is taken again.
        client.lookup(ROOT, "ro").unwrap();
        assert_eq!(client.lookup(dir, "file").unwrap().nodeid, file);
        assert_eq!(writes(&client, file), Ok(()));
    });
}

/// READDIRPLUS opens nothing: what is held with fewer rights is left to LOOKUP.
#[test]
fn a_listing_does_not_hide_the_better_way() {
    let binds = [("rw", "", true), ("ro", "sub", false)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/sub/file"), "text").unwrap();
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let ro = client.lookup(ROOT, "ro").unwrap().nodeid;
        let file = client.lookup(ro, "file").unwrap().nodeid;
        assert_eq!(writes(&client, file), Err(libc::EROFS));
        let rw = client.lookup(ROOT, "rw").unwrap().nodeid;
        let (_, given) = client.list(rw, 4096, true);
        assert!(!given.contains_key(&ro));
        assert_eq!(client.lookup(rw, "sub").unwrap().nodeid, ro);
        assert_eq!(writes(&client, file), Ok(()));
        let (_, given) = client.list(rw, 4096, true);
        assert!(given.contains_key(&ro));
    });
}

/// Names are changed between the directory and what is mounted of it: the host's kernel refuses that across mounts.
#[test]
fn names_below_are_on_one_mount() {
    let binds = [("part", "sub", true), ("whole", "", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/sub/file"), "text").unwrap();
        fs::write(path.join("source/other"), "text").unwrap();
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let part = client.lookup(ROOT, "part").unwrap().nodeid;
        let file = client.lookup(part, "file").unwrap().nodeid;
        let whole = client.lookup(ROOT, "whole").unwrap().nodeid;
        let other = client.lookup(whole, "other").unwrap().nodeid;
        assert_eq!(client.lookup(whole, "sub").unwrap().nodeid, part);
        client.rename((part, "file"), (whole, "up"), 0).unwrap();
        client.rename((whole, "other"), (part, "down"), 0).unwrap();
        client.link(file, part, "linked").unwrap();
        client.link(other, whole, "linked").unwrap();
        // Looking at the share again changes nothing.
        client.lookup(ROOT, "part").unwrap();
        client.rename((part, "down"), (whole, "back"), 0).unwrap();
        assert!(path.join("source/back").exists() && path.join("source/up").exists());
    });
}

/// The root of a share has a name below another one, which is the host's to change.
#[test]
fn roots_of_shares_do_not_become_stale() {
    let binds = [("part", "sub", true), ("whole", "", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/sub/file"), "text").unwrap();
        let server = server(path, &binds, 2);
        let client = Client::new(&server);
        let part = client.lookup(ROOT, "part").unwrap().nodeid;
        let file = client.lookup(part, "file").unwrap();
        let whole = client.lookup(ROOT, "whole").unwrap().nodeid;
        assert_eq!(client.lookup(whole, "sub").unwrap().nodeid, part);
        push_out(&client, whole);
        fs::rename(path.join("source/sub"), path.join("source/away")).unwrap();
        push_out(&client, whole);
        assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
        assert_eq!(client.lookup(part, "file").unwrap().nodeid, file.nodeid);
        assert_eq!(client.lookup(whole, "away").unwrap().nodeid, part);
        // Once the guest has forgotten it, it is closed.
        assert!(server.counts().0 <= 4, "{:?}", server.counts());
        client.forget(file.nodeid, 2);
        client.forget(part, 3);
        client.forget(whole, 1);
        for at in 0..16 {
            let filler = client.lookup(whole, format!("filler{at}"));
            assert_eq!(filler.map(drop), Err(libc::ESTALE));
        }
    });
}

/// A container goes, and with it its share; another one has the same directory.
#[test]
fn a_mount_that_is_taken_away_takes_no_file_along() {
    let binds = [("one", "", true), ("other", "", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/file"), "text").unwrap();
        let server = server(path, &binds, 2);
        let client = Client::new(&server);
        let dir = client.lookup(ROOT, "one").unwrap().nodeid;
        assert_eq!(client.lookup(ROOT, "other").unwrap().nodeid, dir);
        let file = client.lookup(dir, "file").unwrap();
        let one = path.join("tree/one").into_os_string();
        assert!(
            Command::new("umount")
                .arg("-l")
                .arg(one)
                .status()
                .unwrap()
                .success()
        );
        fs::remove_dir(path.join("tree/one")).unwrap();
        server.set_mounts(table(path, &binds[1..]));
        client.forget(dir, 1);
        assert_eq!(client.lookup(ROOT, "one").map(drop), Err(libc::ENOENT));
        push_out(&client, dir);
        assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
        assert_eq!(client.lookup(ROOT, "other").unwrap().nodeid, dir);
        assert_eq!(client.lookup(dir, "file").unwrap().nodeid, file.nodeid);
        assert_eq!(writes(&client, file.nodeid), Ok(()));
    });
}

/// Has the server give up the mount `place` of those that there were; whether something needs it still.
fn part(server: &Server, path: &Path, (place, left): (&str, &[Bind]), elsewhere: &[&str]) -> bool {
    let parting = Parting {
        mount: sys::mount_id(&path.join("tree").join(place)),
        elsewhere: elsewhere.iter().map(PathBuf::from).collect(),
    };
    server.set_mounts(table(path, left));
    server.part_with(&[parting])
}

/// As umount(8): it fails where something is open by way of the mount.
fn unmounts(path: &Path, place: &str) -> bool {
    let place = path.join("tree").join(place);
    let status = Command::new("umount").arg(place).status();
    status.unwrap().success()
}

#[test]
fn nothing_is_kept_of_a_mount_that_goes() {
    let binds = [("one", "", true), ("other", "", true), ("in", "sub", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/file"), "text").unwrap();
        fs::write(path.join("source/sub/below"), "text").unwrap();
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let [dir, other, sub] =
            ["one", "other", "in"].map(|name| client.lookup(ROOT, name).unwrap().nodeid);
        assert_eq!(dir, other);
        assert_eq!(client.lookup(dir, "sub").unwrap().nodeid, sub);
        let file = client.lookup(dir, "file").unwrap().nodeid;
        let below = client.lookup(sub, "below").unwrap().nodeid;
        assert!(!unmounts(path, "one"), "nothing was open by it");
        assert!(!part(
            &server,
            path,
            ("one", &binds[1..]),
            &["none/other", "other"]
        ));
        assert!(unmounts(path, "one"));
        assert!(!part(&server, path, ("in", &binds[1..2]), &["other/sub"]));
        assert!(unmounts(path, "in"));
        for file in [file, below] {
            assert_eq!(writes(&client, file), Ok(()));
        }
        assert_eq!(client.lookup(dir, "sub").unwrap().nodeid, sub);
        client.mkdir(sub, "new", 0o755).unwrap();
        // The last of them: nothing is found any more.
        assert!(!part(&server, path, ("other", &[]), &[]));
        assert!(unmounts(path, "other"));
        assert_eq!(client.getattr(file).map(drop), Err(libc::ESTALE));
        assert_eq!(client.getattr(dir).map(drop), Err(libc::ESTALE));
    });
}

#[test]
fn a_mount_by_which_an_unlinked_file_is_open_is_needed() {
    let binds = [("one", "", true), ("other", "", true)];
    with_mounts(&binds, |path| {
        let server = server(path, &binds, 64);
        let client = Client::new(&server);
        let dir = client.lookup(ROOT, "one").unwrap().nodeid;
        let (file, fh) = client.create(dir, "file", libc::O_RDWR, 0o600).unwrap();
        assert_eq!(client.lookup(ROOT, "other").unwrap().nodeid, dir);
        client.unlink(dir, "file").unwrap();
        assert!(part(&server, path, ("one", &binds[1..]), &["other"]));
        assert_eq!(client.getattr(file.nodeid).unwrap().nlink, 0);
        client.release(file.nodeid, fh).unwrap();
        client.forget(file.nodeid, 1);
        assert!(!part(&server, path, ("one", &binds[1..]), &["other"]));
        assert!(unmounts(path, "one"));
    });
}

#[test]
fn mounts_become_known_while_the_server_runs() {
    let binds = [("first", "", true), ("added", "", true)];
    with_mounts(&binds, |path| {
        fs::write(path.join("source/file"), "text").unwrap();
        let server = server(path, &binds[..1], 64);
        let client = Client::new(&server);
        let first = client.lookup(ROOT, "first").unwrap().nodeid;
        let file = client.lookup(first, "file").unwrap().nodeid;
        // Not known yet: it shares nothing, may have no file that gives privileges, and is not kept in use.
        let early = client.lookup(ROOT, "added").unwrap().nodeid;
        let there = client.lookup(early, "file").unwrap().nodeid;
        assert!(early != first && there != file);
        assert_eq!(
            client.setattr(there, Set::mode(0o4755)).map(drop),
            Err(libc::EPERM)
        );
        let before = server.counts().0;
        server.set_mounts(table(path, &binds));
        assert_eq!(client.lookup(ROOT, "added").unwrap().nodeid, first);
        assert_eq!(server.counts().0, before);
        client.setattr(file, Set::mode(0o4755)).unwrap();
        let mode = fs::metadata(path.join("source/file")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o4755);
    });
}
