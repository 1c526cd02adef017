//! What the guest's kernel asks for by IOCTL, on a file system that has it all.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::client::*;

/// `linux/fs.h`, `linux/fiemap.h`, `asm-generic/ioctls.h`.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;
const FIEMAP: u32 = 0xc020_660b;
const TCGETS: u32 = 0x5401;
const IMMUTABLE: u32 = 0x10;
const NODUMP: u32 = 0x40;
const CASEFOLD: u32 = 0x4000_0000;

/// The data of the answer, or the errno.
fn ioctl(
    client: &Client<'_>,
    (nodeid, fh): (u64, u64),
    cmd: u32,
    given: &[u8],
    taken: u32,
) -> Answer {
    let size = u32::try_from(given.len()).unwrap();
    let fields = body().u64(fh).u32(0).u32(cmd).u64(0).u32(size).u32(taken);
    let answer = client.call(IOCTL, nodeid, fields.bytes(given))?;
    assert_eq!(answer[..16], [0; 16]);
    Ok(answer[16..].to_vec())
}

/// The flags as the host's lsattr prints them.
fn lsattr(path: &Path) -> String {
    let output = Command::new("lsattr").arg("-d").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().replace('-', "")
}

fn chattr(change: &str, path: &Path) {
    assert!(
        Command::new("chattr")
            .arg(change)
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn flags_are_the_hosts() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let directory = client.mkdir(ROOT, "dir", 0o700).unwrap().nodeid;
    let opened = client.opendir(directory).unwrap();
    for (of, name) in [((file.nodeid, fh), "file"), ((directory, opened), "dir")] {
        let path = tree.path().join(name);
        let get = || u32_at(&ioctl(&client, of, GETFLAGS, &[], 4).unwrap(), 0);
        let set = |flags: u32| ioctl(&client, of, SETFLAGS, &flags.to_le_bytes(), 0);
        let plain = get();
        assert_eq!(plain & NODUMP, 0);
        set(plain | NODUMP).unwrap();
        assert_eq!(get(), plain | NODUMP);
        assert!(lsattr(&path).contains('d'), "{}", lsattr(&path));
        assert_eq!(set(plain | CASEFOLD), Err(libc::EOPNOTSUPP));
        // As the process of a machine, this one has no capability for it.
        assert_eq!(set(plain | IMMUTABLE), Err(libc::EPERM));
        let attributes = ioctl(&client, of, FSGETXATTR, &[], 28).unwrap();
        assert_eq!(u32_at(&attributes, 0) & 0x80, 0x80, "NODUMP");
        let mut changed = attributes.clone();
        changed[0] &= !0x80;
        ioctl(&client, of, FSSETXATTR, &changed, 0).unwrap();
        assert_eq!(get(), plain);
        for (byte, bits, errno) in [
            (0, 0x8, libc::EPERM),
            (1, 0x02, libc::EOPNOTSUPP),
            (12, 1, libc::EINVAL),
        ] {
            let mut changed = attributes.clone();
            changed[byte] ^= bits;
            assert_eq!(
                ioctl(&client, of, FSSETXATTR, &changed, 0),
                Err(errno),
                "{byte}"
            );
        }
        assert_eq!(get(), plain);
    }
}

#[test]
fn nothing_else_is_carried_out() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let (file, fh) = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let of = (file.nodeid, fh);
    for (cmd, given, taken) in [
        (TCGETS, 0, 0),
        (GETFLAGS, 0, 8),
        (GETFLAGS, 4, 4),
        (SETFLAGS, 8, 0),
        (FSGETXATTR, 28, 28),
        (FIEMAP, 32, 32),
        (FIEMAP, 32 + 56, 32 + 56),
    ] {
        let answer = ioctl(&client, of, cmd, &vec![0; given], taken);
        assert_eq!(answer, Err(libc::ENOSYS), "{cmd:#x}");
    }
    for of in [(file.nodeid, fh + 1), (ROOT, fh)] {
        assert_eq!(ioctl(&client, of, GETFLAGS, &[], 4), Err(libc::EBADF));
    }
    assert_eq!(
        ioctl(&client, of, GETFLAGS, &[], u32::MAX),
        Err(libc::EINVAL)
    );
    let fields = body().u64(fh).u32(0).u32(SETFLAGS).u64(0).u32(4).u32(0);
    assert_eq!(
        client.call(IOCTL, file.nodeid, fields),
        Err(libc::EINVAL),
        "cut off"
    );
}

#[test]
fn extents_are_where_data_is() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = tree.path().join("file");
    let data = File::create(&path).unwrap();
    data.write_all_at(&[7; 4096], 0).unwrap();
    data.write_all_at(&[7; 4096], 1 << 20).unwrap();
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let file = client.lookup(ROOT, "file").unwrap().nodeid;
    let of = (file, client.open(file, libc::O_RDONLY).unwrap());
    let asked = |start: u64, flags: u32| {
        let head = body()
            .u64(start)
            .u64(u64::MAX)
            .u32(flags)
            .u32(99)
            .u32(1 << 30)
            .u32(0);
        let mut bytes = head.0;
        bytes.resize(32 + 64 * 56, 0);
        ioctl(&client, of, FIEMAP, &bytes, 32 + 64 * 56)
    };
    let logical = |answer: &[u8]| {
        let extent = |number: u32| u64_at(answer, 32 + number as usize * 56);
        (0..u32_at(answer, 20)).map(extent).collect::<Vec<_>>()
    };
    assert_eq!(logical(&asked(0, 1).unwrap()), [0, 1 << 20]);
    assert_eq!(logical(&asked(4096, 1).unwrap()), [1 << 20]);
    assert_eq!(asked(0, 2), Err(libc::EINVAL), "another flag");
}

#[test]
fn what_can_only_be_appended_to_is() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = tree.path().join("log");
    fs::write(&path, "one").unwrap();
    chattr("+a", &path);
    let server = server(tree.path(), 64);
    let client = Client::new(&server);
    let file = client.lookup(ROOT, "log").unwrap().nodeid;
    let refused = client.open(file, libc::O_WRONLY);
    let opened = client.open(file, libc::O_WRONLY | libc::O_APPEND);
    let written = opened.map(|fh| client.write_flags(file, fh, 0, b"two", libc::O_APPEND));
    let content = fs::read(&path);
    chattr("-a", &path);
    assert_eq!((refused, written), (Err(libc::EPERM), Ok(Ok(3))));
    assert_eq!(content.unwrap(), b"onetwo");
}
