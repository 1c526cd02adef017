//! Several threads at once, as the queues of the device are.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::*;

/// Tells the other threads to end, also where a check has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn many_threads_work_on_one_tree() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 4);
    let client = Client::new(&server);
    let shared = client.mkdir(ROOT, "shared", 0o755).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u32)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    vmm_fs::enter_worker_thread().unwrap();
                    let ids = (number * 100, number);
                    let client = Client {
                        server,
                        ids,
                        room: 8192,
                    };
                    work(&client, shared.nodeid, number);
                })
            })
            .collect();
        // Meanwhile the directory they work in moves, with all its inodes evicted now and then.
        scope.spawn(|| {
            vmm_fs::enter_worker_thread().unwrap();
            let client = Client {
                server: &server,
                ids: (0, 0),
                room: 8192,
            };
            let (mut from, mut to) = ("shared", "moved");
            while !done.load(Ordering::Relaxed) {
                client.rename((ROOT, from), (ROOT, to), 0).unwrap();
                (from, to) = (to, from);
            }
        });
        let _ends = Ends(&done);
        for worker in workers {
            worker.join().unwrap();
        }
    });
    let (cached, pinned, inodes) = server.counts();
    assert!(cached <= 4 && pinned == 0, "{cached} {pinned}");
    assert_eq!(inodes, 2, "the root and the directory");
}

fn work(client: &Client<'_>, dir: u64, number: u32) {
    for round in 0..150 {
        let name = format!("{number}-{round}");
        let (file, fh) = client.create(dir, &name, libc::O_RDWR, 0o600).unwrap();
        assert_eq!((file.uid, file.gid), client.ids);
        let data = [u8::try_from(round).unwrap(); 100];
        client.write(file.nodeid, fh, 0, &data).unwrap();
        let (_, given) = client.list(dir, 2048, true);
        for (nodeid, count) in given {
            client.forget(nodeid, count);
        }
        let renamed = format!("renamed-{name}");
        client.rename((dir, &name), (dir, &renamed), 0).unwrap();
        let seen = client.lookup(dir, &renamed).unwrap();
        assert_eq!(seen.nodeid, file.nodeid);
        assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
        assert_eq!(client.read(file.nodeid, fh, 0, 200).unwrap(), data);
        client.unlink(dir, &renamed).unwrap();
        assert_eq!(client.getattr(file.nodeid).unwrap().nlink, 0);
        client.release(file.nodeid, fh).unwrap();
        client.forget(file.nodeid, 2);
    }
}

#[test]
fn a_host_that_swaps_files_for_links_gains_nothing() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "secret").unwrap();
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let path = tree.path().join("victim");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&path);
                let _ = file.and_then(|mut file| file.write_all(b"public"));
                let _ = fs::remove_file(&path);
                let _ = std::os::unix::fs::symlink(outside.path().join("victim"), &path);
                let _ = fs::remove_file(&path);
            }
        });
        let _ends = Ends(&done);
        for _ in 0..800 {
            let Ok(found) = client.lookup(ROOT, "victim") else {
                continue;
            };
            if let Ok(fh) = client.open(found.nodeid, libc::O_RDWR) {
                assert_ne!(client.read(found.nodeid, fh, 0, 99).unwrap(), b"secret");
                client.release(found.nodeid, fh).unwrap();
            }
            let created = client.create(ROOT, "victim", libc::O_RDWR, 0o644);
            if let Ok((file, fh)) = created {
                client.write(file.nodeid, fh, 0, b"mine").unwrap();
                client.release(file.nodeid, fh).unwrap();
                client.forget(file.nodeid, 1);
            }
            client.forget(found.nodeid, 1);
        }
    });
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"secret");
}
