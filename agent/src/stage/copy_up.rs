//! Copies a directory into the tmpfs that hides it (mount option `tmpcopyup`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown, fchown, lchown, symlink};
use std::path::Path;

use super::tree::proc_path;

/// Copies what the directory `from` holds into the directory `to`: directories, files and symbolic
/// links, with owners and modes.
///
/// `from` is an O_PATH descriptor of the directory below the mount.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    directory(&proc_path(from.as_fd()), &proc_path(to.as_fd()))
}

fn directory(from: &Path, to: &Path) -> io::Result<()> {
    // Entries of one directory at a time, none followed: a link is copied as a link.
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        let (uid, gid) = (Some(metadata.uid()), Some(metadata.gid()));
        if metadata.is_dir() {
            fs::create_dir(&target)?;
            directory(&source, &target)?;
            chown(&target, uid, gid)?;
            fs::set_permissions(&target, metadata.permissions())?;
        } else if metadata.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, uid, gid)?;
        } else if metadata.is_file() {
            let mut copy = File::create_new(&target)?;
            io::copy(&mut File::open(&source)?, &mut copy)?;
            fchown(&copy, uid, gid)?;
            copy.set_permissions(metadata.permissions())?;
        } else {
            let text = format!("{} is neither file, directory nor link", source.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}
