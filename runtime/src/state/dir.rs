//! The directory of one container.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;

use super::error::Error;
use super::id::ContainerId;
use super::journal::{JOURNAL, read_journal};
use super::record::Record;
use super::status::Status;
use crate::config::CONFIG;
use crate::control::Address;
use crate::error::Doing;

const RECORD: &str = "state.json";

/// Maximum size in bytes of a state.json that is read: the annotations of a configuration and little else.
const RECORD_MAX: u64 = 8 << 20;

/// The exclusive lock of a container, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// The directory of one container. It may vanish at any time unless its lock is held.
#[derive(Debug)]
pub(crate) struct StateDir {
    id: String,
    path: PathBuf,
    file: File,
}

impl StateDir {
    /// Makes the directory: from now on the id is taken.
    pub(crate) fn create(root: &Path, id: &ContainerId) -> Result<StateDir, Error> {
        let path = root.join(id.as_str());
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let made = match builder.create(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().mode(0o700).recursive(true).create(root);
                // Sticky, so that cleaners of $XDG_RUNTIME_DIR leave it alone (XDG Base Directory Specification).
                made.and_then(|()| fs::set_permissions(root, Permissions::from_mode(0o1700)))
                    .doing_to("create", root)?;
                builder.create(&path)
            }
            made => made,
        };
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists),
            made => {
                made.doing_to("create", &path)?;
                StateDir::open(root, id).inspect_err(|_| {
                    // The error that led here is the one to report.
                    let _ = fs::remove_dir(&path);
                })
            }
        }
    }

    /// Opens the directory of a container that exists.
    pub(crate) fn open(root: &Path, id: &ContainerId) -> Result<StateDir, Error> {
        let path = root.join(id.as_str());
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(&path)
        {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NotFound),
            file => {
                let file = file.doing_to("open", &path)?;
                Ok(StateDir {
                    id: id.as_str().to_owned(),
                    path,
                    file,
                })
            }
        }
    }

    /// Every directory below `root` whose name is an id, by name.
    pub(crate) fn all(root: &Path) -> Result<Vec<StateDir>, Error> {
        StateDir::named(root, |name| name.parse().ok())
    }

    /// Every directory below `root` that is a pod's.
    pub(crate) fn pods(root: &Path) -> Result<Vec<StateDir>, Error> {
        StateDir::named(root, ContainerId::of_pod_named)
    }

    fn named(
        root: &Path,
        id: impl Fn(&str) -> Option<ContainerId>,
    ) -> Result<Vec<StateDir>, Error> {
        let entries = match fs::read_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing_to("read", root)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.doing_to("read", root)?;
            let Some(id) = entry.file_name().to_str().and_then(&id) else {
                continue;
            };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match StateDir::open(root, &id) {
                // Deleted meanwhile.
                Err(Error::NotFound) => {}
                dir => found.push(dir?),
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The directory that it is in.
    pub(crate) fn root(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the container has been deleted meanwhile.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        match self.flock(FlockArg::LockExclusive)? {
            Some(lock) => Ok(lock),
            None => Err(Error::NotFound),
        }
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, Error> {
        self.flock(FlockArg::LockExclusiveNonblock)
    }

    fn flock(&self, how: FlockArg) -> Result<Option<Lock>, Error> {
        // Of the directory itself, in an open file of its own: a file in it could be made anew while the directory is
        // being removed.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut file = match openat(&self.file, ".", flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Err(Error::NotFound),
            file => File::from(file.doing_to("open", &self.path)?),
        };
        let lock = loop {
            match Flock::lock(file, how) {
                Ok(lock) => break lock,
                Err((again, Errno::EINTR)) => file = again,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, e)) => return Ok(Err(e).doing_to("lock", &self.path)?),
            }
        };
        // Who held the lock before may have deleted the container.
        if lock.metadata().doing_to("read", &self.path)?.nlink() == 0 {
            return Err(Error::NotFound);
        }
        Ok(Some(Lock { _file: lock }))
    }

    /// Stores the record, whole or not at all.
    pub(crate) fn write_record(&self, record: &Record) -> Result<(), Error> {
        let path = self.path.join(RECORD);
        Ok(write_atomically(&path, &record.to_json()).doing_to("write", path)?)
    }

    /// Stores the configuration that is in force.
    pub(crate) fn write_config(&self, json: &[u8]) -> Result<(), Error> {
        let path = self.path.join(CONFIG);
        Ok(write_atomically(&path, json).doing_to("write", path)?)
    }

    /// The record; `None` when create has not come that far.
    pub(crate) fn record(&self) -> Result<Option<Record>, Error> {
        let path = self.path.join(RECORD);
        let mut json = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|file| file.take(RECORD_MAX).read_to_end(&mut json)),
        }
        .and_then(|_| Record::from_json(&json))
        .map(Some)
        .map_err(|source| Error::Damaged {
            id: self.id.clone(),
            path,
            source,
        })
    }

    /// The status, from the record and what there is of its process.
    pub(crate) fn status(&self, record: Option<&Record>) -> Result<Status, Error> {
        let alive = record
            .and_then(|record| record.process)
            .map(|process| process.is_alive());
        // Only a process that runs has something to tell: the others' status is known.
        let journal = if alive == Some(true) {
            let journal = read_journal(&self.path);
            journal.doing_to("read", self.path.join(JOURNAL))?
        } else {
            Vec::new()
        };
        Ok(Status::observed(alive, journal.last()))
    }

    /// Where requests about the container go.
    pub(crate) fn address(&self, record: Option<&Record>) -> Address {
        match record.and_then(|record| record.member.as_ref()) {
            None => Address::of_first(&self.path),
            Some(seat) => Address {
                directory: self.path.with_file_name(&seat.sandbox),
                container: seat.number,
                machine: Some(seat.machine.pid),
            },
        }
    }

    /// Removes the directory; what is already gone is fine.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        // An empty one takes no descriptor.
        let removed = fs::remove_dir(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => Ok(result.doing_to("remove", &self.path)?),
        }
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes a file so that readers see the old content or the new, by way of a hidden file next to it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let hidden = path.with_file_name(hidden);
    let result = create_new(&hidden)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&hidden, path));
    if result.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    result
}

/// Makes a file that was not there. The directory may be others' as well, so what has the name is taken away and never
/// followed or written to: what a writer that was killed has left, or a link that leads elsewhere.
fn create_new(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Identity;

    #[test]
    fn a_link_in_the_hidden_files_place_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let [target, victim, hidden] = ["pid", "victim", ".pid"].map(|name| dir.path().join(name));
        fs::write(&victim, "precious").unwrap();
        for _ in 0..2 {
            std::os::unix::fs::symlink(&victim, &hidden).unwrap();
            write_atomically(&target, b"7").unwrap();
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
            assert_eq!(fs::read(&target).unwrap(), b"7");
            assert!(fs::symlink_metadata(&target).unwrap().is_file());
            assert!(!hidden.exists());
        }
        fs::write(&hidden, "of one that was killed").unwrap();
        write_atomically(&target, b"8").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"8");
    }

    fn make(root: &Path, id: &str) -> StateDir {
        StateDir::create(root, &id.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("deep/root");
        let id = "a".parse().unwrap();
        assert!(matches!(StateDir::open(&root, &id), Err(Error::NotFound)));
        let dir = StateDir::create(&root, &id).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o1700);
        assert!(matches!(StateDir::create(&root, &id), Err(Error::Exists)));
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(matches!(StateDir::open(&root, &id), Err(Error::NotFound)));
    }

    #[test]
    fn the_lock_is_exclusive_and_ends_with_the_container() {
        let root = tempfile::tempdir().unwrap();
        let dir = make(root.path(), "a");
        let lock = dir.lock().unwrap();
        let other = StateDir::open(root.path(), &"a".parse().unwrap()).unwrap();
        assert!(other.try_lock().unwrap().is_none());
        let waiting = std::thread::spawn(move || other.lock().map(drop));
        dir.remove().unwrap();
        drop(lock);
        assert!(matches!(waiting.join().unwrap(), Err(Error::NotFound)));
    }

    #[test]
    fn the_status_follows_the_record_and_the_journal() {
        let root = tempfile::tempdir().unwrap();
        let dir = make(root.path(), "a");
        let status = || dir.status(dir.record().unwrap().as_ref()).unwrap();
        assert_eq!(status(), Status::Creating);
        let mut record = Record::new("a", "/b".into(), "/r".into());
        dir.write_record(&record).unwrap();
        assert_eq!(status(), Status::Creating);
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        record.process = Some(me);
        dir.write_record(&record).unwrap();
        assert_eq!(status(), Status::Created);
        fs::write(dir.path().join(JOURNAL), "\"started\"\n").unwrap();
        assert_eq!(status(), Status::Running);
        fs::write(dir.path().join(JOURNAL), "\"started\"\n\"paused\"\n").unwrap();
        assert_eq!(status(), Status::Paused);
        record.process = Some(Identity {
            start_time: me.start_time + 1,
            ..me
        });
        dir.write_record(&record).unwrap();
        assert_eq!(status(), Status::Stopped);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = make(root.path(), "a");
        fs::write(dir.path().join(RECORD), "{").unwrap();
        assert!(
            dir.record()
                .unwrap_err()
                .to_string()
                .contains("a/state.json")
        );
    }

    #[test]
    fn all_skips_what_is_no_container() {
        let root = tempfile::tempdir().unwrap();
        assert!(StateDir::all(&root.path().join("none")).unwrap().is_empty());
        make(root.path(), "b");
        make(root.path(), "a");
        fs::write(root.path().join("file"), "").unwrap();
        fs::create_dir(root.path().join("no id")).unwrap();
        let ids: Vec<_> = StateDir::all(root.path())
            .unwrap()
            .into_iter()
            .map(|d| d.id)
            .collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("pid");
        fs::create_dir(&target).unwrap();
        write_atomically(&target, b"1").unwrap_err();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
