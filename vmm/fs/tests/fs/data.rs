//! What requests mean to the content of files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::client::*;

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
