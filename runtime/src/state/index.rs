//! Finds containers by their processes, however many there are: `<root>/pid:<pid>` is a symbolic link whose text is the
//! id. The colon keeps it from being an id itself.
//!
//! And pods by the uts namespace that is pinned for them: `<root>/ns:<inode>` is the pod's state directory.
//!
//! Invariant: an entry is a hint. What it says is true only if the record's process lives and is the one of this
//! number, or is in the namespace of this number, which nobody else gets then.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::dir::StateDir;
use super::id::ContainerId;
use super::record::Record;

fn link(root: &Path, pid: i32) -> PathBuf {
    root.join(format!("pid:{pid}"))
}

/// Makes the container `id` one that is found by a process of its.
///
/// # Errors
/// The link cannot be made.
pub(crate) fn note(root: &Path, pid: i32, id: &str) -> io::Result<()> {
    let link = link(root, pid);
    match symlink(id, &link) {
        // Of an earlier process with this number.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&link)?;
            symlink(id, &link)
        }
        made => made,
    }
}

/// Takes that back, unless the number has become that of another container's process.
pub(crate) fn forget(root: &Path, pid: i32, id: &str) {
    let link = link(root, pid);
    if fs::read_link(&link).is_ok_and(|text| text == Path::new(id)) {
        let _ = fs::remove_file(link);
    }
}

/// The container whose process lives and has this number, with its record.
pub(crate) fn find(root: &Path, pid: i32) -> Option<(StateDir, Record)> {
    let text = fs::read_link(link(root, pid)).ok()?;
    let id = ContainerId::of_sandbox(text.to_str()?).ok()?;
    let dir = StateDir::open(root, &id).ok()?;
    let record = dir.record().ok()??;
    let process = record.process.filter(|process| process.pid == pid)?;
    process.is_alive().then_some((dir, record))
}

/// The record of the pod for which this uts namespace is pinned and whose machine lives.
pub(crate) fn find_pod(root: &Path, uts: u64) -> Option<Record> {
    let dir = StateDir::open(root, &ContainerId::of_pod(uts)).ok()?;
    let record = dir.record().ok()??;
    record.lives().then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Identity;

    #[test]
    fn a_container_is_found_by_the_process_on_its_record() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        let dir = StateDir::create(root, &"a".parse().unwrap()).unwrap();
        let mut record = Record::new("a", "/b".into(), "/b/rootfs".into());
        let found = || find(root, own.pid).map(|(dir, _)| dir.id().to_owned());
        note(root, own.pid, "before").unwrap();
        note(root, own.pid, "a").unwrap();
        assert_eq!(found(), None, "there is no record");
        dir.write_record(&record).unwrap();
        assert_eq!(found(), None, "without a process");
        record.process = Some(Identity {
            start_time: own.start_time + 1,
            ..own
        });
        dir.write_record(&record).unwrap();
        assert_eq!(found(), None, "another process had the number");
        record.process = Some(own);
        dir.write_record(&record).unwrap();
        assert_eq!(found().as_deref(), Some("a"));
        assert_eq!(StateDir::all(root).unwrap().len(), 1);
        forget(root, own.pid, "b");
        assert_eq!(found().as_deref(), Some("a"), "it is another's");
        forget(root, own.pid, "a");
        assert_eq!(found(), None);
    }

    #[test]
    fn a_pod_is_found_by_its_namespace_while_its_machine_lives() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let dir = StateDir::create(root, &ContainerId::of_pod(5)).unwrap();
        let mut record = Record::new(dir.id(), "/b".into(), "/b/rootfs".into());
        dir.write_record(&record).unwrap();
        assert_eq!(find_pod(root, 5), None);
        record.process = Identity::of(std::process::id().cast_signed());
        dir.write_record(&record).unwrap();
        assert_eq!(find_pod(root, 5).as_ref(), Some(&record));
        assert_eq!(find_pod(root, 6), None);
        assert!(StateDir::all(root).unwrap().is_empty(), "no container");
        assert_eq!(StateDir::pods(root).unwrap()[0].id(), "ns:5");
    }
}
