//! A container in the machine of another one, seen from the verbs: how it comes and how it goes.
//!
//! ```text
//!  verb                                          machine process
//!   admit ──────────Admit─────────────────────────> gives it a number, N
//!   share: in the machine's mount namespace a tmpfs on /N, and on that the shares
//!   the stub, which has the connection, too; hooks
//!   create ─────────Create, descriptors───────────> asks the agent
//!          <────────Created─────────────────────────
//!   seal; state.json, pid file; the stub is committed
//!   ...
//!   leave ──────────Remove────────────────────────> has the agent end it and unmount what the guest has of N
//!          <────────Done────────────────────────────
//!   unmounts /N
//! ```
//! Nothing of the exported tree is writable meanwhile: mount points are made by way of mounts that the machine process
//! does not have.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, fchdir, unlinkat};
use protocol::{ContainerId, FIRST, Overlay};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::error::Error;
use super::id_map::{self, IdMap};
use super::inside::inside;
use super::share::{self, SAFE, Share, tree_of};
use super::{jail, mountinfo};
use crate::control::{
    self, Address, Connection, Control, ControlReply, CreateRequest, PATIENCE, control_within,
};
use crate::error::Doing;
use crate::state::{Identity, Seat, process};
use crate::sys::{self, MountChange};

/// How long the guest may take to set a container up; hooks are part of it.
const CREATE_PATIENCE: Duration = Duration::from_secs(600);

/// How long the guest may take to end a container, before the host takes its files away.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

/// A container that the machine has given a number.
pub(crate) struct Admitted {
    pub(crate) seat: Seat,
    connection: Connection,
}

/// Asks a machine, which is that of the container `sandbox`, whose state directory is given, for one more container.
///
/// # Errors
/// The machine has ended, or has too many.
pub(crate) fn admit(directory: &Path, sandbox: &str, machine: Identity) -> Result<Admitted, Error> {
    let mut connection = Connection::open(&Address {
        directory: directory.to_owned(),
        container: FIRST,
        machine: Some(machine.pid),
    })?;
    connection.ask(&Control::Admit)?;
    let number = match connection.answer_within(PATIENCE)? {
        ControlReply::Admitted(number) => number,
        reply => return Err(refused(reply)),
    };
    connection.about(number);
    Ok(Admitted {
        seat: Seat {
            sandbox: sandbox.to_owned(),
            machine,
            number,
        },
        connection,
    })
}

fn refused(reply: ControlReply) -> Error {
    match reply {
        ControlReply::Failed(text) => Error::Refused(text),
        _ => control::Error::NotRunning.into(),
    }
}

impl Admitted {
    /// The connection, which is to be its stub's.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Gives the machine the files of the container, and tells the guest of them. `label`: see [`jail::tmpfs`].
    ///
    /// # Errors
    /// Those of the mounts, with some of them perhaps made: see [`leave`].
    pub(crate) fn share(
        &self,
        shares: &[Share],
        label: Option<&str>,
        overlay: &mut Overlay,
    ) -> Result<(), Error> {
        let pid = self.seat.machine.pid;
        let name = self.seat.number.to_string();
        let users = shifted(pid).doing("look at the machine's ids")?;
        let clones = share::clone_mounts_for(shares, users.as_ref())?;
        let holder = jail::tmpfs(c"64k", label).doing("make a tmpfs for the shares")?;
        for name in ["mnt", "mapped"] {
            make(&holder, name).doing_with(|| format!("create {name}"))?;
        }
        for (share, clone) in shares.iter().zip(&clones) {
            share.make_place(clone.as_ref(), &holder)?;
        }
        let read_only = MountChange {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        sys::mount_setattr(holder.as_fd(), &read_only, false).doing("make a tmpfs read-only")?;
        let root = tree_of(pid).doing("open the exported tree")?;
        let attach = || -> io::Result<()> {
            make(&writable(&root)?, &name)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(holder.as_fd(), c"", &root, name.as_str(), flags)?;
            fchdir(directory(&root, &name)?)?;
            for (share, clone) in shares.iter().zip(&clones) {
                share.mount(clone.as_ref()).map_err(|e| e.0.source)?;
            }
            Ok(())
        };
        inside(pid, attach).doing("share the container's files")?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"));
        let mounts = mountinfo::parse(&mounts.doing("read the mounts of the machine")?);
        let mounts = mountinfo::below(&mounts, &name);
        overlay.mounts = share::for_the_guest(shares, &mounts);
        // Only now, as the guest is to know what each mount forbids by itself.
        let secure = || {
            let safe = MountChange {
                set: SAFE,
                ..MountChange::default()
            };
            sys::mount_setattr(directory(&root, &name)?.as_fd(), &safe, true)
        };
        inside(pid, secure).doing("secure the container's files")?;
        place(overlay, self.seat.number);
        Ok(())
    }

    /// Has the guest set the container up.
    ///
    /// # Errors
    /// The guest's own words.
    pub(crate) fn create(
        &self,
        request: CreateRequest,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let request = Control::Create(Box::new(request));
        self.connection.ask_with(&request, descriptors)?;
        match self.connection.answer_within(CREATE_PATIENCE)? {
            ControlReply::Created => Ok(()),
            reply => Err(refused(reply)),
        }
    }

    /// Makes those shares read-only that are to be, once the guest has set the container up.
    ///
    /// # Errors
    /// Those of mount_setattr(2).
    pub(crate) fn seal(&self, shares: &[Share]) -> Result<(), Error> {
        for share in shares.iter().filter(|share| share.sealed) {
            let name = format!("{}/{}", self.seat.number, share.name);
            share::seal(self.seat.machine.pid, &name)
                .doing("make the root filesystem read-only")?;
        }
        Ok(())
    }
}

/// Ends a container of a machine and takes its files away from there. One that is not there is fine, and so is a machine
/// that has ended.
///
/// # Errors
/// Those of unmounting. A guest that does not answer keeps what it has open, and no more.
pub(crate) fn leave(address: &Address, seat: &Seat) -> Result<(), Error> {
    if !seat.machine.is_alive() {
        return Ok(());
    }
    // Whatever comes of it: the machine may end at any time, and the files are taken away in any case.
    let removed = control_within(address, &Control::Remove, REMOVE_PATIENCE);
    let is_free = matches!(removed, Ok(ControlReply::Done));
    match take_away(seat.machine.pid, &seat.number.to_string(), is_free) {
        // A process that ends has no root any more, some time before it has ended.
        Err(e) if is_at_its_end(&e, seat.machine)? => Ok(()),
        taken => Ok(taken.doing("take the container's files away from the machine")?),
    }
}

/// Whether files could not be taken away from a machine process because it ends, which is waited for.
fn is_at_its_end(e: &io::Error, machine: Identity) -> Result<bool, Error> {
    let limit = match e.kind() {
        io::ErrorKind::NotFound => REMOVE_PATIENCE,
        _ => Duration::ZERO,
    };
    let ended = || match machine.open()? {
        Some(pidfd) => process::ends_within(pidfd, limit),
        None => Ok(true),
    };
    Ok(ended().doing("wait for the machine process")?)
}

/// Unmounts the shares of a container. Unless all are free, one whose file system others have, too, stays for as long as
/// the machine lives: the file server may have opened files of theirs by way of it, and Landlock lets nobody open what is
/// in no tree.
fn take_away(pid: i32, name: &str, is_free: bool) -> io::Result<()> {
    let root = tree_of(pid)?;
    let some = match is_free {
        true => None,
        false => {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
            unmounted_alone(&mountinfo::parse(&mounts), name)
        }
    };
    inside(pid, || {
        fchdir(&root)?;
        let unmount =
            |path: &str| match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
                unmounted => unmounted,
            };
        if let Some(some) = &some {
            return Ok(some.iter().try_for_each(|path| unmount(path))?);
        }
        unmount(name)?;
        match unlinkat(&writable(&root)?, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => Ok(removed?),
        }
    })
}

/// What of a container's mounts goes where others of them stay, inner before outer; `None` if all of them go.
fn unmounted_alone(mounts: &[mountinfo::Mount], name: &str) -> Option<Vec<String>> {
    let prefix = format!("{name}/");
    let path = |mount: &mountinfo::Mount| mount.target.trim_start_matches('/').to_owned();
    let exported = mountinfo::exported(mounts).into_iter();
    let (own, others): (Vec<_>, Vec<_>) =
        exported.partition(|mount| path(mount).starts_with(&prefix));
    let devices: HashSet<_> = others.iter().map(|mount| mount.device).collect();
    let own = own.into_iter();
    let (stay, go): (Vec<_>, Vec<_>) = own.partition(|mount| devices.contains(&mount.device));
    let go = go.into_iter().rev().map(path);
    (!stay.is_empty()).then(|| go.collect())
}

/// The user namespace of a machine whose ids are shifted.
fn shifted(pid: i32) -> io::Result<Option<OwnedFd>> {
    let map = id_map::parse(&fs::read_to_string(format!("/proc/{pid}/uid_map"))?);
    if map == Some(IdMap::identity().uids) {
        return Ok(None);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(Some(open(
        &*format!("/proc/{pid}/ns/user"),
        flags,
        Mode::empty(),
    )?))
}

/// A mount of a directory of its own, by which the directory can be written to although it is read-only elsewhere.
fn writable(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(directory, c"", flags)?;
    let change = MountChange {
        clear: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..MountChange::default()
    };
    sys::mount_setattr(clone.as_fd(), &change, false)?;
    Ok(clone)
}

fn make(directory: &OwnedFd, name: &str) -> nix::Result<()> {
    mkdirat(directory, name, Mode::from_bits_truncate(0o755))
}

fn directory(root: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(root, name, flags, Mode::empty())
}

/// Moves all that the guest is told to find in the tree below the container's own directory there.
fn place(overlay: &mut Overlay, number: ContainerId) {
    let below = |path: &mut String| *path = format!("{number}/{path}");
    below(&mut overlay.rootfs);
    overlay.binds.iter_mut().for_each(|(_, path)| below(path));
    overlay
        .mounts
        .iter_mut()
        .for_each(|mount| below(&mut mount.path));
}

#[cfg(test)]
mod tests {
    use protocol::HostMount;

    use super::*;

    #[test]
    fn what_others_have_too_stays_mounted() {
        let text = "\
50 49 0:40 / / ro - tmpfs none rw
51 50 0:41 / /rootfs rw - overlay overlay rw
52 50 8:1 /v /mnt/0 rw - ext4 /dev/sda1 rw
60 50 0:50 / /3 ro - tmpfs none rw
61 60 0:51 / /3/rootfs rw - overlay overlay rw
62 61 0:52 / /3/rootfs/below rw - tmpfs none rw
63 60 8:1 /v /3/mnt/0 rw - ext4 /dev/sda1 rw
70 50 0:53 / /4 ro - tmpfs none rw
71 70 0:54 / /4/rootfs rw - overlay overlay rw
";
        let mounts = mountinfo::parse(text);
        let go = ["3/rootfs/below", "3/rootfs"].map(str::to_owned);
        assert_eq!(unmounted_alone(&mounts, "3"), Some(go.to_vec()));
        assert_eq!(unmounted_alone(&mounts, "4"), None);
        assert_eq!(unmounted_alone(&mounts, "5"), None);
    }

    #[test]
    fn a_member_has_its_files_in_a_directory_of_its_own() {
        let mut overlay = Overlay {
            rootfs: "rootfs".into(),
            binds: vec![(3, "mnt/0".into())],
            mounts: vec![HostMount {
                path: "mnt/0/x".into(),
                attributes: 0,
            }],
            ..Overlay::default()
        };
        place(&mut overlay, 7);
        assert_eq!(overlay.rootfs, "7/rootfs");
        assert_eq!(overlay.binds, [(3, "7/mnt/0".to_owned())]);
        assert_eq!(overlay.mounts[0].path, "7/mnt/0/x");
    }
}
