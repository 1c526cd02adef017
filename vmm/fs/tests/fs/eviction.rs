//! Inodes whose descriptors have been given up.

use std::fs;

use crate::client::*;

/// Makes so many directories that all inodes not in use are evicted.
fn push_out(client: &Client<'_>, dir: u64) {
    for at in 0..32 {
        let name = format!("filler{at}");
        if client.lookup(dir, &name).is_err() {
            client.mkdir(dir, &name, 0o755).unwrap();
        }
    }
}

#[test]
fn descriptors_stay_within_the_limit() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 4);
    let client = Client::new(&server);
    let ids: Vec<_> = (0..500)
        .map(|at| client.mkdir(ROOT, format!("d{at}"), 0o755).unwrap())
        .collect();
    let (cached, pinned, inodes) = server.counts();
    assert!(cached <= 4, "{cached} descriptors");
    assert_eq!((pinned, inodes), (0, 501));
    for made in &ids {
        assert_eq!(client.getattr(made.nodeid).unwrap().ino, made.ino);
        assert!(server.counts().0 <= 4);
    }
    for made in &ids {
        client.forget(made.nodeid, 1);
    }
    assert_eq!(server.counts(), (0, 0, 1));
}

#[test]
fn a_deep_path_is_opened_again_from_the_top() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let mut dir = ROOT;
    for _ in 0..1500 {
        dir = client.mkdir(dir, "d", 0o755).unwrap().nodeid;
    }
    let (deepest, _) = client.create(dir, "file", libc::O_WRONLY, 0o644).unwrap();
    push_out(&client, ROOT);
    assert_eq!(client.getattr(deepest.nodeid).unwrap().ino, deepest.ino);
    assert!(server.counts().0 <= 2);
}

#[test]
fn renamed_inodes_are_found_again() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let a = client.mkdir(ROOT, "a", 0o755).unwrap();
    let b = client.mkdir(ROOT, "b", 0o755).unwrap();
    let (file, _) = client
        .create(a.nodeid, "file", libc::O_WRONLY, 0o644)
        .unwrap();
    push_out(&client, ROOT);
    client.rename((ROOT, "a"), (b.nodeid, "c"), 0).unwrap();
    push_out(&client, ROOT);
    assert_eq!(
        client.getattr(file.nodeid).unwrap().ino,
        file.ino,
        "its directory was moved"
    );
    push_out(&client, ROOT);
    client
        .rename((a.nodeid, "file"), (ROOT, "file"), 0)
        .unwrap();
    push_out(&client, ROOT);
    assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
    client
        .rename((ROOT, "file"), (ROOT, "b"), libc::RENAME_EXCHANGE)
        .unwrap();
    push_out(&client, ROOT);
    for before in [file, a, b] {
        assert_eq!(client.getattr(before.nodeid).unwrap().ino, before.ino);
    }
    assert_eq!(client.lookup(ROOT, "b").unwrap().nodeid, file.nodeid);
}

#[test]
fn unlinked_and_replaced_inodes_stay_until_forgotten() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let (gone, _) = client.create(ROOT, "gone", libc::O_WRONLY, 0o644).unwrap();
    let (replaced, _) = client
        .create(ROOT, "replaced", libc::O_WRONLY, 0o644)
        .unwrap();
    let (new, _) = client.create(ROOT, "new", libc::O_WRONLY, 0o644).unwrap();
    push_out(&client, ROOT);
    client.unlink(ROOT, "gone").unwrap();
    client.rename((ROOT, "new"), (ROOT, "replaced"), 0).unwrap();
    push_out(&client, ROOT);
    assert_eq!(server.counts().1, 2, "pinned");
    for before in [gone, replaced] {
        let now = client.getattr(before.nodeid).unwrap();
        assert_eq!((now.ino, now.nlink), (before.ino, 0));
        let fh = client.open(before.nodeid, libc::O_RDWR).unwrap();
        assert_eq!(client.write(before.nodeid, fh, 0, b"still here"), Ok(10));
    }
    assert_eq!(client.getattr(new.nodeid).unwrap().ino, new.ino);
    client.forget(gone.nodeid, 1);
    client.forget(replaced.nodeid, 1);
    assert_eq!(server.counts().1, 0);
}

#[test]
fn hard_links_are_found_under_the_name_that_is_left() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let dir = client.mkdir(ROOT, "dir", 0o755).unwrap();
    let (file, _) = client.create(ROOT, "one", libc::O_WRONLY, 0o644).unwrap();
    client.link(file.nodeid, dir.nodeid, "two").unwrap();
    push_out(&client, ROOT);
    client.unlink(ROOT, "one").unwrap();
    push_out(&client, ROOT);
    assert_eq!(
        client.getattr(file.nodeid).unwrap().nlink,
        1,
        "the recorded name is gone"
    );
    assert_eq!(
        client.lookup(dir.nodeid, "two").unwrap().nodeid,
        file.nodeid
    );
    assert_eq!(server.counts().1, 0, "named again");
    push_out(&client, ROOT);
    // The directory is forgotten, but its name for the file is the one recorded.
    client.forget(dir.nodeid, 1);
    push_out(&client, ROOT);
    assert_eq!(client.getattr(file.nodeid).unwrap().ino, file.ino);
}

#[test]
fn changes_on_the_host_are_noticed() {
    let tree = tempfile::tempdir().unwrap();
    let path = |name: &str| tree.path().join(name);
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    for name in ["removed", "replaced", "kept"] {
        fs::write(path(name), name).unwrap();
    }
    fs::create_dir(path("swapped")).unwrap();
    fs::write(path("swapped/inner"), "").unwrap();
    let [removed, replaced, kept, swapped] =
        ["removed", "replaced", "kept", "swapped"].map(|name| client.lookup(ROOT, name).unwrap());
    let inner = client.lookup(swapped.nodeid, "inner").unwrap();
    push_out(&client, ROOT);
    fs::remove_file(path("removed")).unwrap();
    // The new file may well get the inode number of the old one.
    fs::remove_file(path("replaced")).unwrap();
    fs::write(path("replaced"), "another").unwrap();
    fs::rename(path("swapped"), path("away")).unwrap();
    std::os::unix::fs::symlink("away", path("swapped")).unwrap();
    assert_eq!(client.getattr(removed.nodeid), Err(libc::ESTALE));
    assert_eq!(client.getattr(replaced.nodeid), Err(libc::ESTALE));
    assert_eq!(
        client.getattr(inner.nodeid),
        Err(libc::ESTALE),
        "no way through a symbolic link"
    );
    assert_eq!(client.getattr(kept.nodeid).unwrap().ino, kept.ino);
    let fresh = client.lookup(ROOT, "replaced").unwrap();
    assert_ne!(fresh.nodeid, replaced.nodeid);
    assert_eq!(fresh.size, 7);
    let away = client.lookup(ROOT, "away").unwrap();
    assert_eq!(
        away.nodeid, swapped.nodeid,
        "the same directory, found where it is now"
    );
    assert_eq!(client.getattr(inner.nodeid).unwrap().ino, inner.ino);
}

#[test]
fn inodes_without_a_name_are_bounded() {
    let tree = tempfile::tempdir().unwrap();
    let server = server(tree.path(), 2);
    let client = Client::new(&server);
    let mut made = Vec::new();
    let refused = loop {
        let name = format!("f{}", made.len());
        let (file, fh) = client.create(ROOT, &name, libc::O_WRONLY, 0o644).unwrap();
        client.release(file.nodeid, fh).unwrap();
        made.push(file);
        match client.unlink(ROOT, &name) {
            Ok(_) => assert!(made.len() < 3000),
            Err(errno) => break (errno, name),
        }
    };
    assert_eq!((refused.0, made.len()), (libc::ENFILE, 1025));
    client.forget(made[0].nodeid, 1);
    client.unlink(ROOT, &refused.1).unwrap();
}
