//! Names: LOOKUP, MKDIR, MKNOD, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType};

use crate::attributes::PERMISSIONS;
use crate::buffers::{NAME_MAX, Reader, Reply, TARGET_MAX, check_name, only_string, split_string};
use crate::errno::{Errno, Result};
use crate::identity::Stat;
use crate::inodes::{Node, open_path};
use crate::protocol::{ATTR_SUBMOUNT, EntryOut, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn};
use crate::server::{Call, Server};
use crate::{sys, worker};

/// Room for two names, each with its NUL.
pub(crate) const TWO_NAMES: usize = 2 * (NAME_MAX + 1);

impl Server {
    /// Finds the entry `name` of `dir` again, if it is what is open of that name, and counts the lookup.
    fn find_again(&self, call: Call, dir: &Node, name: &CStr) -> Result<Option<EntryOut>> {
        let (place, route) = ((dir.id, name), dir.mount.below());
        let Some(opened) = self.inodes.open_at(place, route.id) else {
            return Ok(None);
        };
        let stat = Stat::at(dir.as_fd(), name)?;
        let facts = match stat.mount() == route.id {
            true => stat.facts(&route),
            false => None,
        };
        let mut attr = stat.attr();
        attr.flags |= self.no_acl(call, &stat, opened.as_fd())?;
        let confirmed = facts.and_then(|facts| self.inodes.confirm(place, &facts, &opened));
        Ok(confirmed.map(|nodeid| self.entry_out(nodeid, attr)))
    }

    /// Finds the entry `name` of `dir` and counts the lookup.
    pub(crate) fn find(&self, call: Call, dir: &Node, name: &CStr) -> Result<EntryOut> {
        if let Some(entry) = self.find_again(call, dir, name)? {
            return Ok(entry);
        }
        let fd = open_path(dir.as_fd(), name)?;
        let (stat, facts, route) = self.inodes.examine(fd.as_fd(), &dir.mount)?;
        let mut attr = stat.attr();
        if route.is_root {
            let is_shared = route.traits.class.is_some();
            if facts.kind == libc::S_IFDIR || (facts.kind == libc::S_IFREG && is_shared) {
                attr.flags |= ATTR_SUBMOUNT;
            }
            if is_shared && attr.flags & ATTR_SUBMOUNT != 0 {
                // It is no device: the field is free to tell which submounts are to be one file system. One of the
                // host's may have several devices (btrfs), within each of which alone an inode number means one file.
                attr.rdev = stat.device();
            }
        }
        attr.flags |= self.no_acl(call, &stat, fd.as_fd())?;
        let nodeid = self.inodes.admit(Some((dir.id, name)), fd, facts, route)?;
        Ok(self.entry_out(nodeid, attr))
    }

    pub(crate) fn lookup(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let mut buffer = [0; TWO_NAMES];
        let name = check_name(only_string(reader.rest(&mut buffer)?)?)?;
        reply.need::<EntryOut>()?;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        match self.find(call, &dir, name) {
            Ok(entry) => reply.body(&entry),
            // An entry without a nodeid: the guest may remember that there is none.
            Err(Errno(libc::ENOENT)) => reply.body(&self.entry_out(0, Default::default())),
            Err(errno) => Err(errno),
        }
    }

    /// Makes an entry with `make`, in the name of the caller, and finds it.
    fn make(
        &self,
        call: Call,
        name: &CStr,
        keep_set_gid: bool,
        reply: &Reply<'_, '_>,
        make: impl FnOnce(&Node) -> Result<()>,
    ) -> Result<usize> {
        check_name(name)?;
        reply.need::<EntryOut>()?;
        self.inodes.check_room(false)?;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        let caller = worker::assume(call.uid, call.gid, keep_set_gid)?;
        make(&dir)?;
        drop(caller);
        reply.body(&self.find(call, &dir, name)?)
    }

    pub(crate) fn mkdir(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let MkdirIn { mode, umask } = reader.read()?;
        let mut buffer = [0; TWO_NAMES];
        let name = only_string(reader.rest(&mut buffer)?)?;
        self.make(call, name, false, reply, |dir| {
            worker::mask(umask)?;
            sys::mkdirat(dir.as_fd(), name, mode & PERMISSIONS)
        })
    }

    pub(crate) fn mknod(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let MknodIn {
            mode, rdev, umask, ..
        } = reader.read()?;
        let mut buffer = [0; TWO_NAMES];
        let name = only_string(reader.rest(&mut buffer)?)?;
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            // An overlay file system's whiteout, which is not a device.
            libc::S_IFCHR if rdev == 0 => FileType::CharacterDevice,
            // Device nodes would be the host's devices for whoever opens them there.
            libc::S_IFCHR | libc::S_IFBLK => return Err(Errno(libc::EPERM)),
            _ => return Err(Errno(libc::EINVAL)),
        };
        self.make(call, name, mode & libc::S_ISGID != 0, reply, |dir| {
            self.check_mode(dir.mount, kind.as_raw_mode(), mode)?;
            worker::mask(umask)?;
            sys::mknodat(dir.as_fd(), name, kind, mode & PERMISSIONS)
        })
    }

    pub(crate) fn symlink(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let mut buffer = [0; NAME_MAX + TARGET_MAX + 2];
        let (name, target) = split_string(reader.rest(&mut buffer)?)?;
        let target = only_string(target)?;
        self.make(call, name, false, reply, |dir| {
            sys::symlinkat(target, dir.as_fd(), name)
        })
    }

    pub(crate) fn link(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        reply: &Reply<'_, '_>,
    ) -> Result<usize> {
        let LinkIn { oldnodeid } = reader.read()?;
        let mut buffer = [0; TWO_NAMES];
        let name = check_name(only_string(reader.rest(&mut buffer)?)?)?;
        reply.need::<EntryOut>()?;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        let node = self.inodes.get(oldnodeid)?;
        sys::link(self.proc(), node.as_fd(), dir.as_fd(), name)?;
        let stat = Stat::of(node.as_fd())?;
        self.inodes.link(node.id, (dir.id, name));
        reply.body(&self.entry_out(node.id, stat.attr()))
    }

    /// UNLINK, or RMDIR with `AT_REMOVEDIR`.
    pub(crate) fn unlink(
        &self,
        call: Call,
        reader: &mut Reader<'_, '_>,
        flags: AtFlags,
    ) -> Result<usize> {
        let mut buffer = [0; TWO_NAMES];
        let name = check_name(only_string(reader.rest(&mut buffer)?)?)?;
        let dir = self.inodes.get(call.nodeid)?.directory()?;
        let place = (dir.id, name);
        let held = self.inodes.hold(place, true)?;
        sys::unlinkat(dir.as_fd(), name, flags)?;
        self.inodes.unlinked(&held, place);
        Ok(0)
    }

    pub(crate) fn rename(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let RenameIn { newdir } = reader.read()?;
        self.rename_as(call, newdir, 0, reader)
    }

    pub(crate) fn rename2(&self, call: Call, reader: &mut Reader<'_, '_>) -> Result<usize> {
        let Rename2In { newdir, flags, .. } = reader.read()?;
        self.rename_as(call, newdir, flags, reader)
    }

    fn rename_as(
        &self,
        call: Call,
        newdir: u64,
        flags: u32,
        reader: &mut Reader<'_, '_>,
    ) -> Result<usize> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let mut buffer = [0; TWO_NAMES];
        let (old, new) = split_string(reader.rest(&mut buffer)?)?;
        let (old, new) = (check_name(old)?, check_name(only_string(new)?)?);
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let from_dir = self.inodes.get(call.nodeid)?.directory()?;
        let to_dir = self.inodes.get(newdir)?.directory()?;
        let (from, to) = ((from_dir.id, old), (to_dir.id, new));
        let source = self.inodes.hold(from, false)?;
        let target = self.inodes.hold(to, !exchange && from != to)?;
        {
            // A whiteout that is left behind belongs to the caller.
            let _caller = match flags & libc::RENAME_WHITEOUT {
                0 => None,
                _ => Some(worker::assume(call.uid, call.gid, false)?),
            };
            sys::rename((from_dir.as_fd(), old), (to_dir.as_fd(), new), flags)?;
        }
        if from != to {
            self.inodes
                .renamed((&source, from), (&target, to), exchange);
        }
        Ok(0)
    }
}
