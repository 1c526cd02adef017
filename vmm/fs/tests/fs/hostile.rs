//! Requests that no honest guest sends: each ends in an error of its own, or in silence.

use std::fs;
use std::path::Path;

use vm_memory::VolatileSlice;

use crate::client::*;

/// A body of 64-bit numbers.
fn numbers(numbers: &[u64]) -> Body {
    numbers
        .iter()
        .fold(body(), |body, number| body.u64(*number))
}

/// What each request looks like when it is right, with nodeids and handles that exist.
fn requests(client: &Client<'_>) -> Vec<(u32, u64, Body)> {
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let link = body().name("link").name("target");
    let link = entry(&client.call(SYMLINK, ROOT, link).unwrap());
    let dir = client.opendir(ROOT).unwrap();
    let io = |fh: u64| body().u64(fh).u64(0).u32(64).u32(0).u64(0).u64(0);
    let creation = || body().u32(libc::O_RDWR.cast_unsigned()).u32(0o644).u64(0);
    let copy = [fh, 0, file.nodeid, fh, 0, 1, 0];
    vec![
        (LOOKUP, ROOT, body().name("file")),
        (FORGET, file.nodeid, body().u64(1)),
        (GETATTR, ROOT, body().u64(0).u64(0)),
        (SETATTR, file.nodeid, body().u32(8).bytes(&[0; 84])),
        (READLINK, link.nodeid, body()),
        (SYMLINK, ROOT, body().name("made-link").name("target")),
        (
            MKNOD,
            ROOT,
            body().u32(0o600).u32(0).u64(0).name("made-node"),
        ),
        (MKDIR, ROOT, body().u32(0o700).u32(0).name("made-dir")),
        (UNLINK, ROOT, body().name("made-node")),
        (RMDIR, ROOT, body().name("made-dir")),
        (12, ROOT, body().u64(ROOT).name("file").name("renamed")),
        (LINK, ROOT, body().u64(file.nodeid).name("made-hard-link")),
        (OPEN, file.nodeid, body().u64(0)),
        (READ, file.nodeid, io(fh)),
        (WRITE, file.nodeid, io(fh).bytes(&[1; 64])),
        (STATFS, ROOT, body()),
        (RELEASE, file.nodeid, body().u64(0).u64(0).u64(0)),
        (FSYNC, file.nodeid, body().u64(fh).u64(0)),
        (
            SETXATTR,
            file.nodeid,
            body().u32(1).u32(0).u64(0).name("user.x").bytes(b"v"),
        ),
        (GETXATTR, file.nodeid, body().u64(0).name("user.x")),
        (LISTXATTR, file.nodeid, body().u64(0)),
        (REMOVEXATTR, file.nodeid, body().name("user.x")),
        (FLUSH, file.nodeid, body().u64(fh).u64(0).u64(0)),
        (OPENDIR, ROOT, body().u64(0)),
        (READDIR, ROOT, io(dir)),
        (RELEASEDIR, ROOT, body().u64(0).u64(0).u64(0)),
        (30, ROOT, body().u64(dir).u64(0)),
        (CREATE, ROOT, creation().name("made-file")),
        (INTERRUPT, 0, body().u64(3)),
        (39, ROOT, body().bytes(&[0; 32])),
        (
            BATCH_FORGET,
            0,
            body().u32(1).u32(0).u64(file.nodeid).u64(1),
        ),
        (FALLOCATE, file.nodeid, body().u64(fh).u64(0).u64(8).u64(0)),
        (READDIRPLUS, ROOT, io(dir)),
        (
            RENAME2,
            ROOT,
            body().u64(ROOT).u64(0).name("renamed").name("again"),
        ),
        (LSEEK, file.nodeid, body().u64(fh).u64(0).u32(3).u32(0)),
        (COPY_FILE_RANGE, file.nodeid, numbers(&copy)),
        (SETUPMAPPING, file.nodeid, numbers(&[fh, 0, 2 << 20, 2, 0])),
        (REMOVEMAPPING, ROOT, body().u32(1).u64(0).u64(2 << 20)),
        (SYNCFS, ROOT, body().u64(0)),
        (TMPFILE, ROOT, creation().name("/")),
        (STATX, ROOT, body().bytes(&[0; 24])),
        (
            IOCTL,
            file.nodeid,
            body().u64(fh).u32(0).u32(0x4008_6602).u64(0).u32(4).u64(0),
        ),
        (INIT, 0, init_body(41)),
        (DESTROY, 0, body()),
    ]
}

/// Every opcode, cut at every length, with the true length and a wrong one in its header.
#[test]
fn truncated_requests_are_survived() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let known = requests(&client);
    for (opcode, nodeid, body) in &known {
        let whole = request(*opcode, *nodeid, (0, 0), &body.0);
        for length in 0..whole.len() {
            if length >= 40 && matches!(*opcode, DESTROY | INIT) {
                continue;
            }
            let mut cut = whole[..length].to_vec();
            let reply = serve_raw(&server, &mut cut, &[], 4096);
            match length {
                0..40 => assert!(reply.is_empty(), "no header, no answer"),
                _ if matches!(*opcode, FORGET | BATCH_FORGET | INTERRUPT) => {
                    assert!(reply.is_empty())
                }
                _ => assert_eq!(u32_at(&reply, 4).cast_signed(), -libc::EIO, "{opcode}"),
            }
            if length >= 40 {
                // The same with a header that says so.
                cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
                let reply = serve_raw(&server, &mut cut, &[20], 4096);
                // GETXATTR and INTERRUPT aside, what lacks bytes is an error.
                if ![STATFS, READLINK, FORGET, BATCH_FORGET, INTERRUPT].contains(opcode) {
                    let error = u32_at(&reply, 4).cast_signed();
                    let fixed = matches!(*opcode, TMPFILE) && length >= 56;
                    assert!(error < 0 || fixed, "opcode {opcode} with {length} bytes");
                }
            }
        }
    }
    assert!(client.getattr(ROOT).is_ok());
}

/// Every opcode with room for an answer of every size up to the largest: what does not fit is an
/// error or silence, and nothing has been made.
#[test]
fn small_replies_are_respected() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    for (opcode, nodeid, body) in requests(&client) {
        if matches!(opcode, DESTROY | INIT) {
            continue;
        }
        for room in 0..304 {
            let mut bytes = request(opcode, nodeid, (0, 0), &body.0);
            let reply = serve_raw(&server, &mut bytes, &[], room);
            if room < 16 || matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
                assert!(reply.is_empty());
            } else {
                assert!(reply.len() >= 16);
                assert_eq!(u32_at(&reply, 0) as usize, reply.len());
            }
            if room < 16 + 128 && [CREATE, MKDIR, MKNOD, SYMLINK, LINK].contains(&opcode) {
                let made = fs::read_dir(tree.path()).unwrap().any(|entry| {
                    let name = entry.unwrap().file_name();
                    let name = name.to_str().unwrap();
                    let expected = [
                        (CREATE, "made-file"),
                        (MKDIR, "made-dir"),
                        (MKNOD, "made-node"),
                        (SYMLINK, "made-link"),
                        (LINK, "made-hard-link"),
                    ];
                    expected.contains(&(opcode, name))
                });
                assert!(!made, "opcode {opcode}: carried out without an answer");
            }
        }
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    for length in [0, 39, 41, u32::MAX] {
        let mut bytes = request(STATFS, ROOT, (0, 0), &[]);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let reply = serve_raw(&server, &mut bytes, &[], 256);
        assert_eq!(u32_at(&reply, 4).cast_signed(), -libc::EIO);
    }
    for size in [0, 3, 5, u32::MAX] {
        let fields = body()
            .u64(fh)
            .u64(0)
            .u32(size)
            .u32(0)
            .u64(0)
            .u64(0)
            .bytes(b"four");
        assert_eq!(client.call(WRITE, file.nodeid, fields), Err(libc::EINVAL));
        let xattr = body().u32(size).u32(0).u64(0).name("user.x");
        let xattr = xattr.bytes(b"four");
        let expected = if size == u32::MAX {
            libc::E2BIG
        } else {
            libc::EINVAL
        };
        assert_eq!(client.call(SETXATTR, file.nodeid, xattr), Err(expected));
    }
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(client.read(file.nodeid, fh, offset, 1), Err(libc::EINVAL));
        assert_eq!(
            client.write(file.nodeid, fh, offset, b"x"),
            Err(libc::EINVAL)
        );
    }
    let edge = u64::MAX >> 1;
    assert!(client.write(file.nodeid, fh, edge, b"xy").is_err());
    client.write(file.nodeid, fh, 0, b"data").unwrap();
    assert_eq!(client.read(file.nodeid, fh, 0, u32::MAX).unwrap(), b"data");
    // An extension that was never negotiated.
    let mut bytes = request(STATFS, ROOT, (0, 0), &[0; 8]);
    bytes[36] = 1;
    let reply = serve_raw(&server, &mut bytes, &[], 256);
    assert_eq!(u32_at(&reply, 4).cast_signed(), -libc::EINVAL);
    // Buffers of no length at all.
    let mut empty: [u8; 0] = [];
    assert_eq!(server.serve(&[], &[]), 0);
    assert_eq!(server.serve(&[VolatileSlice::from(&mut empty[..])], &[]), 0);
}

#[test]
fn bad_names_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "").unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let long = vec![b'n'; 256];
    let names: [(&[u8], i32); 7] = [
        (b"", libc::EINVAL),
        (b".", libc::EINVAL),
        (b"..", libc::EINVAL),
        (b"/", libc::EINVAL),
        (b"../x", libc::EINVAL),
        (b"a/b", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
    ];
    let file = client.lookup(ROOT, "file").unwrap();
    for (name, error) in names {
        let shown = String::from_utf8_lossy(name);
        assert_eq!(client.lookup(ROOT, name), Err(error), "LOOKUP {shown}");
        assert_eq!(client.mkdir(ROOT, name, 0o755), Err(error), "MKDIR {shown}");
        assert_eq!(
            client.create(ROOT, name, libc::O_RDWR, 0o644),
            Err(error),
            "CREATE {shown}"
        );
        assert_eq!(client.unlink(ROOT, name), Err(error), "UNLINK {shown}");
        assert_eq!(
            client.call(RMDIR, ROOT, body().name(name)),
            Err(error),
            "RMDIR {shown}"
        );
        assert_eq!(
            client.link(file.nodeid, ROOT, name),
            Err(error),
            "LINK {shown}"
        );
        assert_eq!(
            client.rename((ROOT, name), (ROOT, "x"), 0),
            Err(error),
            "RENAME {shown}"
        );
        assert_eq!(
            client.rename((ROOT, "file"), (ROOT, name), 0),
            Err(error),
            "RENAME {shown}"
        );
        let node = body().u32(0o600).u32(0).u64(0).name(name);
        assert_eq!(client.call(MKNOD, ROOT, node), Err(error), "MKNOD {shown}");
        let link = body().name(name).name("target");
        assert_eq!(
            client.call(SYMLINK, ROOT, link),
            Err(error),
            "SYMLINK {shown}"
        );
    }
    let endless = body().bytes(&vec![b'n'; 1 << 20]);
    assert_eq!(client.call(LOOKUP, ROOT, endless), Err(libc::ENAMETOOLONG));
    assert_eq!(
        client.call(LOOKUP, ROOT, body().bytes(b"file")),
        Err(libc::EINVAL),
        "no NUL"
    );
    assert_eq!(
        client.call(LOOKUP, ROOT, body().name("file").name("x")),
        Err(libc::EINVAL)
    );
    let target = body().name("link").bytes(&[b't'; 4096]).bytes(&[0]);
    assert!(client.call(SYMLINK, ROOT, target).is_err());
    assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 1);
}

#[test]
fn unknown_inodes_and_handles_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let (other, _) = client.create(ROOT, "other", libc::O_RDWR, 0o644).unwrap();
    let dir = client.opendir(ROOT).unwrap();
    for nodeid in [0, 99, u64::MAX] {
        assert_eq!(client.getattr(nodeid), Err(libc::ESTALE));
        assert_eq!(client.lookup(nodeid, "x"), Err(libc::ESTALE));
        assert_eq!(client.open(nodeid, 0), Err(libc::ESTALE));
        assert_eq!(
            client.rename((ROOT, "file"), (nodeid, "x"), 0),
            Err(libc::ESTALE)
        );
        assert_eq!(client.link(nodeid, ROOT, "x"), Err(libc::ESTALE));
        client.forget(nodeid, u64::MAX);
    }
    for fh in [0, 99, u64::MAX] {
        assert_eq!(client.read(file.nodeid, fh, 0, 1), Err(libc::EBADF));
        assert_eq!(client.readdir(ROOT, fh, 0, 4096, true), Err(libc::EBADF));
        assert_eq!(client.release(file.nodeid, fh), Err(libc::EBADF));
    }
    assert_eq!(
        client.read(other.nodeid, fh, 0, 1),
        Err(libc::EBADF),
        "another's handle"
    );
    assert_eq!(client.read(ROOT, dir, 0, 1), Err(libc::EISDIR));
    assert_eq!(
        client.readdir(file.nodeid, fh, 0, 4096, false),
        Err(libc::ENOTDIR)
    );
    assert_eq!(client.lookup(file.nodeid, "x"), Err(libc::ENOTDIR));
    assert_eq!(client.open(ROOT, 0), Err(libc::EISDIR));
    assert_eq!(client.open(file.nodeid, 3), Err(libc::EINVAL));
    assert_eq!(
        client.call(READLINK, file.nodeid, body()),
        Err(libc::EINVAL)
    );
    for opcode in [0, 7, 19, 31, 34, 37, 40, 53, 4096, u32::MAX] {
        assert_eq!(
            client.call(opcode, ROOT, body()),
            Err(libc::ENOSYS),
            "opcode {opcode}"
        );
    }
}

#[test]
fn forgetting_too_much_is_harmless() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let dir = client.mkdir(ROOT, "dir", 0o755).unwrap();
    let (file, fh) = client
        .create(dir.nodeid, "file", libc::O_RDWR, 0o644)
        .unwrap();
    client.forget(ROOT, u64::MAX);
    client.forget(dir.nodeid, u64::MAX);
    assert_eq!(client.getattr(dir.nodeid), Err(libc::ESTALE));
    assert!(
        client.getattr(file.nodeid).is_ok(),
        "its parent is kept for its sake"
    );
    assert_eq!(server.counts().2, 3);
    client.forget(file.nodeid, 0);
    client.forget(file.nodeid, 2);
    client.forget(file.nodeid, 1);
    assert_eq!(server.counts(), (0, 0, 1), "the root is all that is left");
    assert_eq!(
        client.write(file.nodeid, fh, 0, b"x"),
        Ok(1),
        "what is open stays so"
    );
    let again = client.lookup(ROOT, "dir").unwrap();
    assert_ne!(again.nodeid, dir.nodeid, "numbers are not used twice");
    // More promised than sent, and more than is known.
    for count in [0, 1, 2, u32::MAX] {
        let fields = body().u32(count).u32(0).u64(again.nodeid).u64(1);
        let mut bytes = request(BATCH_FORGET, 0, (0, 0), &fields.0);
        assert!(serve_raw(&server, &mut bytes, &[], 64).is_empty());
    }
    assert_eq!(server.counts().2, 1);
}

#[test]
fn a_session_starts_afresh() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(client.call(DESTROY, 0, body()), Ok(vec![]));
    assert_eq!(client.getattr(ROOT), Err(libc::EIO), "INIT is due");
    assert_eq!(server.counts(), (0, 0, 1));
    let client = Client::new(&server);
    assert_eq!(client.getattr(file.nodeid), Err(libc::ESTALE));
    assert_eq!(client.read(file.nodeid, fh, 0, 1), Err(libc::EBADF));
    let file = client.lookup(ROOT, "file").unwrap();
    let client = Client::new(&server);
    assert_eq!(
        client.getattr(file.nodeid),
        Err(libc::ESTALE),
        "INIT without DESTROY"
    );
    assert!(client.getattr(ROOT).is_ok());
}

#[test]
fn open_files_are_bounded() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    let client = Client::new(&server);
    let (file, _) = client.create(ROOT, "file", libc::O_RDWR, 0o644).unwrap();
    let opened = (0..5000)
        .take_while(|_| client.open(file.nodeid, libc::O_RDONLY).is_ok())
        .count();
    assert_eq!(opened, 2047);
    assert_eq!(client.open(file.nodeid, libc::O_RDONLY), Err(libc::ENFILE));
    assert_eq!(client.opendir(ROOT), Err(libc::ENFILE));
    assert_eq!(
        client.create(ROOT, "new", libc::O_RDWR, 0o644),
        Err(libc::ENFILE)
    );
    assert!(!tree.path().join("new").exists());
}

#[test]
fn only_prepared_threads_serve() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 8);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = request(INIT, 0, (0, 0), &init_body(41).0);
            let reply = serve_raw(&server, &mut bytes, &[], 256);
            assert_eq!(u32_at(&reply, 4).cast_signed(), -libc::EIO);
        });
    });
}

/// As many descriptors as are reckoned, and no more, whatever the guest opens, unlinks and looks up.
#[test]
fn descriptors_are_bounded() {
    let (open, held) = (4, 20);
    let tree = tempfile::tempdir().unwrap();
    let server = server_of(vmm_fs::Config {
        held_fd_limit: held,
        ..config(tree.path(), open)
    });
    let client = Client::new(&server);
    let own = format!("{}/", tree.path().display());
    // Other tests of this process have others open.
    let in_use = || {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        let ours = targets.filter(|target| target.to_string_lossy().starts_with(&own));
        ours.count()
    };
    let mut refused = 0;
    for at in 0..4 * held {
        let name = format!("file{at}");
        match client.create(ROOT, &name, libc::O_RDWR, 0o644) {
            // Open, and without a name as long as there may be more such.
            Ok(_) => drop(client.unlink(ROOT, &name)),
            Err(errno) => {
                assert_eq!(errno, libc::ENFILE);
                refused += 1;
            }
        }
        client.mkdir(ROOT, format!("directory{at}"), 0o755).unwrap();
    }
    assert_eq!(refused, 2 * held);
    let most = vmm_fs::descriptors(open, held);
    let found = in_use();
    assert!((2 * held..=most).contains(&found), "{found} of {most}");
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("file");
    fs::write(&file, "").unwrap();
    let new = |root: &Path, proc: &Path| {
        vmm_fs::Server::new(vmm_fs::Config {
            root: path_fd(root),
            proc_self_fd: path_fd(proc),
            open_fd_limit: 8,
            held_fd_limit: 1024,
            timeout: std::time::Duration::ZERO,
            mounts: vmm_fs::Mounts::default(),
            maps: true,
        })
    };
    let fds = Path::new("/proc/self/fd");
    assert!(matches!(
        new(&file, fds),
        Err(vmm_fs::Error::RootNotDirectory)
    ));
    assert!(matches!(
        new(Path::new("/proc"), fds),
        Err(vmm_fs::Error::Root(_))
    ));
    assert!(matches!(
        new(tree.path(), tree.path()),
        Err(vmm_fs::Error::ProcSelfFd(_))
    ));
    assert!(new(tree.path(), fds).is_ok());
}
