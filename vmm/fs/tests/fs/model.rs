//! Random operations through the server, and the same ones done directly on a second directory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::client::*;

/// A xorshift generator: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// One directory of the model: a chain of names below the root.
type Names = Vec<&'static str>;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

struct Model<'a> {
    client: Client<'a>,
    mirror: PathBuf,
    random: Random,
}

impl Model<'_> {
    /// A random directory path, existing or not, at most three deep.
    fn path(&mut self) -> (Names, &'static str) {
        let depth = self.random.below(4);
        let mut name = || NAMES[usize::try_from(self.random.below(5)).unwrap()];
        let dir = (0..depth).map(|_| name()).collect();
        (dir, name())
    }

    /// Walks to a directory as a guest does; the nodeid, with every lookup given back but the last.
    fn walk(&self, names: &[&str]) -> Result<u64, i32> {
        let mut at = ROOT;
        for name in names {
            let next = self.client.lookup(at, name);
            let next = next.and_then(|found| {
                if found.mode & libc::S_IFMT == libc::S_IFDIR {
                    return Ok(found.nodeid);
                }
                self.client.forget(found.nodeid, 1);
                Err(libc::ENOTDIR)
            });
            if at != ROOT {
                self.client.forget(at, 1);
            }
            at = next?;
        }
        Ok(at)
    }

    fn on_host(&self, (dir, name): &(Names, &'static str)) -> PathBuf {
        dir.iter()
            .fold(self.mirror.clone(), |path, part| path.join(part))
            .join(name)
    }

    /// Does `act` in the directory of `path` through the server.
    fn within<T>(
        &self,
        path: &(Names, &'static str),
        act: impl FnOnce(&Client<'_>, u64, &str) -> Result<T, i32>,
    ) -> Result<T, i32> {
        let dir = self.walk(&path.0)?;
        let outcome = act(&self.client, dir, path.1);
        if dir != ROOT {
            self.client.forget(dir, 1);
        }
        outcome
    }

    fn step(&mut self) {
        let path = self.path();
        let host = self.on_host(&path);
        let kind = self.random.below(9);
        let (ours, theirs) = match kind {
            0 => (
                self.within(&path, |client, dir, name| {
                    client
                        .mkdir(dir, name, 0o755)
                        .map(|made| client.forget(made.nodeid, 1))
                }),
                DirBuilder::new().mode(0o755).create(&host),
            ),
            1 | 2 => self.write(&path, &host),
            3 => (
                self.within(&path, |client, dir, name| {
                    client.unlink(dir, name).map(drop)
                }),
                fs::remove_file(&host),
            ),
            4 => (
                self.within(&path, |client, dir, name| {
                    client.call(RMDIR, dir, body().name(name)).map(drop)
                }),
                fs::remove_dir(&host),
            ),
            5 | 6 => self.rename(&path, &host),
            7 => self.link(&path, &host),
            _ => self.chmod(&path, &host),
        };
        let theirs = theirs.map_err(|error| error.raw_os_error().unwrap());
        assert_eq!(ours, theirs, "operation {kind} on {path:?}");
    }

    fn write(
        &mut self,
        path: &(Names, &'static str),
        host: &Path,
    ) -> (Result<(), i32>, io::Result<()>) {
        let offset = self.random.below(10_000);
        let data =
            vec![u8::try_from(offset % 256).unwrap(); 1 + usize::try_from(offset % 300).unwrap()];
        let ours = self.within(path, |client, dir, name| {
            let (file, fh) = client.create(dir, name, libc::O_WRONLY, 0o644)?;
            client.write(file.nodeid, fh, offset, &data).unwrap();
            client.release(file.nodeid, fh).unwrap();
            client.forget(file.nodeid, 1);
            Ok(())
        });
        let theirs = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(host);
        (
            ours,
            theirs.and_then(|file| file.write_all_at(&data, offset)),
        )
    }

    fn rename(
        &mut self,
        path: &(Names, &'static str),
        host: &Path,
    ) -> (Result<(), i32>, io::Result<()>) {
        let to = self.path();
        let ours = self.walk(&path.0).and_then(|from| {
            let outcome = self.within(&to, |client, dir, name| {
                client.rename((from, path.1), (dir, name), 0).map(drop)
            });
            if from != ROOT {
                self.client.forget(from, 1);
            }
            outcome
        });
        (ours, fs::rename(host, self.on_host(&to)))
    }

    fn link(
        &mut self,
        path: &(Names, &'static str),
        host: &Path,
    ) -> (Result<(), i32>, io::Result<()>) {
        let to = self.path();
        let ours = self
            .within(path, |client, dir, name| client.lookup(dir, name))
            .and_then(|old| {
                let outcome = self.within(&to, |client, dir, name| {
                    client
                        .link(old.nodeid, dir, name)
                        .map(|new| client.forget(new.nodeid, 1))
                });
                self.client.forget(old.nodeid, 1);
                outcome
            });
        (ours, fs::hard_link(host, self.on_host(&to)))
    }

    fn chmod(
        &mut self,
        path: &(Names, &'static str),
        host: &Path,
    ) -> (Result<(), i32>, io::Result<()>) {
        let mode = 0o700 | u32::try_from(self.random.below(0o100)).unwrap();
        let ours = self.within(path, |client, dir, name| {
            let found = client.lookup(dir, name)?;
            client
                .setattr(
                    found.nodeid,
                    Set {
                        valid: 1,
                        mode,
                        ..Set::default()
                    },
                )
                .unwrap();
            client.forget(found.nodeid, 1);
            Ok(())
        });
        (
            ours,
            fs::set_permissions(host, fs::Permissions::from_mode(mode)),
        )
    }
}

/// All that is below a directory: path, mode, links, contents.
fn picture(root: &Path, below: &Path, into: &mut Vec<(PathBuf, u32, u64, u64)>) {
    let mut entries: Vec<_> = fs::read_dir(below)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let found = fs::symlink_metadata(&path).unwrap();
        let mut contents = DefaultHasher::new();
        if found.is_file() {
            fs::read(&path).unwrap().hash(&mut contents);
        }
        let name = path.strip_prefix(root).unwrap().to_owned();
        into.push((name, found.mode(), found.nlink(), contents.finish()));
        if found.is_dir() {
            picture(root, &path, into);
        }
    }
}

#[test]
fn random_operations_do_what_the_host_does() {
    let (tree, mirror) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = server(tree.path(), 3);
    let random = Random(0x9e37_79b9_7f4a_7c15);
    let mut model = Model {
        client: Client::new(&server),
        mirror: mirror.path().to_owned(),
        random,
    };
    for round in 0..20 {
        for _ in 0..150 {
            model.step();
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        picture(tree.path(), tree.path(), &mut ours);
        picture(mirror.path(), mirror.path(), &mut theirs);
        assert_eq!(ours, theirs, "after round {round}");
        let (cached, pinned, inodes) = server.counts();
        assert_eq!(
            (cached, pinned, inodes),
            (0, 0, 1),
            "every lookup was given back"
        );
    }
}
