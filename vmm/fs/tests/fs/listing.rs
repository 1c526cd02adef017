//! Directories: every entry once, whatever the buffers, and what is counted as looked up.

use std::collections::HashSet;
use std::fs;

use crate::client::*;

fn sorted(mut names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    names.sort();
    names
}

#[test]
fn long_directories_are_listed_whole() {
    for place in ["/var/tmp", "/dev/shm"] {
        let tree = tempfile::tempdir_in(place).unwrap();
        let mut expected: Vec<_> = (0..3000)
            .map(|at| format!("{at:0>width$}", width = at % 200 + 4))
            .collect();
        expected.sort();
        expected.dedup();
        for name in &expected {
            fs::write(tree.path().join(name), "").unwrap();
        }
        expected.extend([".".to_owned(), "..".to_owned()]);
        let expected = sorted(expected.into_iter().map(String::into_bytes).collect());
        let server = server(tree.path(), 16);
        let client = Client::new(&server);
        for (size, plus) in [
            (360, true),
            (4096, true),
            (232, false),
            (4096, false),
            (60000, true),
        ] {
            let (names, given) = client.list(ROOT, size, plus);
            assert_eq!(sorted(names), expected, "{size} {plus} in {place}");
            assert_eq!(given.len(), if plus { expected.len() - 2 } else { 0 });
            for (nodeid, count) in given {
                client.forget(nodeid, count);
            }
            assert_eq!(server.counts().2, 1, "what was counted is what was given");
        }
    }
}

#[test]
fn entries_are_given_when_they_fit_exactly() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("12345678"), "").unwrap();
    let server = server(tree.path(), 16);
    let client = Client::new(&server);
    let fh = client.opendir(ROOT).unwrap();
    let whole = client.readdir(ROOT, fh, 0, 4096, true).unwrap();
    assert_eq!(whole.len(), 3);
    let exact = 3 * (128 + 32);
    assert_eq!(client.readdir(ROOT, fh, 0, exact, true).unwrap().len(), 3);
    assert_eq!(
        client.readdir(ROOT, fh, 0, exact - 1, true).unwrap().len(),
        2
    );
    assert_eq!(client.readdir(ROOT, fh, 0, 159, true), Err(libc::EINVAL));
    let mut lookups = 0;
    for (_, offset, _) in &whole {
        let rest = client.readdir(ROOT, fh, *offset, 4096, true).unwrap();
        let from = whole.iter().position(|entry| entry.1 == *offset).unwrap() + 1;
        let names = |list: &[(Vec<u8>, u64, u64)]| -> Vec<_> {
            list.iter().map(|entry| entry.0.clone()).collect()
        };
        assert_eq!(
            names(&rest),
            names(&whole[from..]),
            "any position can be returned to"
        );
        lookups += rest.iter().filter(|entry| entry.2 != 0).count();
    }
    assert!(lookups > 0);
    assert_eq!(
        client.readdir(ROOT, fh, u64::MAX, 4096, false).err(),
        Some(libc::EINVAL)
    );
}

#[test]
fn entries_survive_changes_while_listing() {
    let tree = tempfile::tempdir_in("/var/tmp").unwrap();
    let kept: HashSet<_> = (0..1000)
        .map(|at| format!("kept{at}").into_bytes())
        .collect();
    for at in 0..1000 {
        fs::write(tree.path().join(format!("kept{at}")), "").unwrap();
        fs::write(tree.path().join(format!("gone{at}")), "").unwrap();
    }
    let server = server(tree.path(), 16);
    let client = Client::new(&server);
    let fh = client.opendir(ROOT).unwrap();
    let (mut seen, mut offset, mut round) = (Vec::new(), 0, 0);
    loop {
        let found = client.readdir(ROOT, fh, offset, 4096, true).unwrap();
        let Some(last) = found.last() else { break };
        offset = last.1;
        seen.extend(
            found
                .into_iter()
                .map(|entry| entry.0)
                .filter(|name| name.starts_with(b"kept")),
        );
        for at in round * 20..(round + 1) * 20 {
            let _ = client.unlink(ROOT, format!("gone{at}"));
            client.mkdir(ROOT, format!("made{at}"), 0o755).unwrap();
        }
        round += 1;
    }
    assert_eq!(seen.len(), 1000, "none twice");
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), kept, "none lost");
    // From the start again, as it is now.
    fs::write(tree.path().join("late"), "").unwrap();
    let (names, _) = client.list(ROOT, 4096, false);
    assert!(names.contains(&b"late".to_vec()));
    assert!(!names.contains(&b"gone0".to_vec()));
}
