//! The jail of the machine process: what it can reach once the guest runs.
//!
//! * Files: a read-only tmpfs that holds the shares, each a private clone of a mount of the host, in a mount namespace
//!   of its own that is pivoted into it. All of it vanishes with the process. Landlock, where the host has it, allows
//!   to open, make and change files there alone, whatever other descriptors there may be.
//! * Namespaces: the container's network namespace; a cgroup, an ipc and a uts namespace of its own, or of the latter
//!   two those that are pinned for the pod. The pid namespace stays the caller's: the first process of another one could
//!   not end by a signal, as this one must when the container did. Landlock confines its signals and abstract sockets.
//! * Descriptors: none of a directory of the host. `..` from such a one leads to the host's root, whatever the mount
//!   namespace; of the bundle and of /proc/self/fd there are clones that have no parent.
//! * Privileges: user and group ids that no other process has; a user namespace, so that the capabilities that a file
//!   server needs are worth nothing outside of it. Where all shares can be ID-mapped, no id of the host means anything
//!   in it, and else each means itself ([`id_map`](super::id_map)). No new privileges, not dumpable, resource limits,
//!   no keys.
//! * System calls: [`filter`](crate::filter).
//!
//! Every step must succeed, but for what Landlock the host does not have: a machine that is not in its jail does not
//! run.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchdir, pivot_root, setgroups, setresgid, setresuid};
use protocol::{HostMount, NAMES_MAX};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, remove_capability_from_bounding_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

pub(super) use super::error::JailError as Error;
use super::id_map::Users;
use super::launch::Launch;
use super::mountinfo;
use super::share::{self, SAFE};
use super::tree;
use crate::error::Doing;
use crate::state::{Pinned, Pins};
use crate::sys::{self, MountChange};

/// RLIMIT_NOFILE; less where the caller's own limit is lower and may not be raised.
const DESCRIPTOR_LIMIT: u64 = 65536;

/// The least RLIMIT_NOFILE that a machine is made with.
const DESCRIPTORS_LEAST: u64 = 1024;

/// One part in so many of the descriptors is for inodes that the guest knows, one for those of them that cannot be
/// opened again, and two for the files that it has open. Half are the machine's own: no guest can take these.
const FILE_SHARE: u64 = 8;

// What they are needed for: the VM, 32 vCPUs and the events of 12 devices; the guest's connections to the name server,
// of which each has a source and a sink; and execs, each a connection and three streams, for which a caller is to
// blame.
const _: () = {
    const SHARE: usize = (DESCRIPTORS_LEAST / FILE_SHARE) as usize;
    let (machine, names, execs) = (160, 2 * NAMES_MAX * 2, 23 * 4);
    let files = vmm_fs::descriptors(SHARE, SHARE);
    assert!((files + machine + names + execs) as u64 <= DESCRIPTORS_LEAST);
};

/// The descriptor table is grown to this size while the process has one thread: later growth waits for an RCU grace
/// period.
const DESCRIPTOR_TABLE: i32 = 2047;

/// What is asked of Landlock: signals and abstract sockets are confined from this version of its interface on.
const LANDLOCK: ABI = ABI::V6;

/// What the file server needs: to act on the guest's files as their owners would.
pub(crate) const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// What of the tree the file server works with.
pub(super) struct Tree {
    /// `/proc/self/mountinfo`, as the root of a mount of its own.
    pub(super) mountinfo: File,
    /// The root of the exported tree.
    pub(super) root: OwnedFd,
    /// `/proc/self/fd` as the root of a mount of its own: `..` does not leave it.
    pub(super) proc_self_fd: OwnedFd,
    /// What the guest must know of the mounts, outer before inner.
    pub(super) mounts: Vec<HostMount>,
    /// What the file server must know of them.
    pub(super) served: vmm_fs::Mounts,
}

/// A directory or file of the host as the root of a mount that is in no tree: what lies below it can be reached, `..`
/// stays where it is.
pub(super) fn confined(directory: &Path) -> Result<OwnedFd, Error> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let name = || format!("clone {}", directory.display());
    let root = open_tree(CWD, directory, clone).doing_with(name)?;
    let change = MountChange {
        set: SAFE,
        propagation: libc::MS_PRIVATE,
        ..MountChange::default()
    };
    sys::mount_setattr(root.as_fd(), &change, false).doing_with(name)?;
    Ok(root)
}

/// Enters the namespaces that are pinned for a pod, of which that of the network has been entered.
fn enter_pinned(pinned: &Pinned) -> Result<(), Error> {
    // That of users owns these, and so stays with them.
    let Pins { uts, ipc, net, .. } = pinned.pins;
    for (path, number, flag) in [
        (&pinned.uts, uts, CloneFlags::CLONE_NEWUTS),
        (&pinned.ipc, ipc, CloneFlags::CLONE_NEWIPC),
    ] {
        let name = || format!("join the namespace {}", path.display());
        let namespace = File::open(path).doing_with(name)?;
        let found = namespace.metadata().doing_with(name)?.ino();
        is_pinned(found, number).doing_with(name)?;
        setns(namespace, flag).doing_with(name)?;
    }
    if let (Some(path), Some(number)) = (&pinned.net, net) {
        let name = || format!("join the namespace {}", path.display());
        let found = std::fs::metadata("/proc/self/ns/net").doing_with(name)?;
        is_pinned(found.ino(), number).doing_with(name)?;
    }
    Ok(())
}

fn is_pinned(found: u64, number: u64) -> io::Result<()> {
    match found == number {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "another one is pinned there, {found} instead of {number}"
        ))),
    }
}

/// Leaves the host's files for a tree of the shares alone. Who this process has to become to see the owners of their
/// files and of the bundle's as they are.
pub(super) fn enter_tree(launch: &Launch<'_>, bundle: &OwnedFd) -> Result<(Tree, Users), Error> {
    let shares = &launch.shares;
    let proc_self_fd = confined(Path::new("/proc/self/fd"))?;
    let mountinfo = confined(Path::new("/proc/self/mountinfo"))?;
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    match launch.pinned {
        Some(pinned) => enter_pinned(pinned)?,
        None => namespaces |= CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
    }
    unshare(namespaces).doing("create namespaces")?;
    // The containers of a pod that are to come may have files whose ids cannot be shifted.
    let shifts = launch.pinned.is_none();
    let (clones, users) = share::clone_mounts(shares, bundle, launch.ids.own(), shifts)?;
    // Nothing done here may travel back to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .doing("make the mounts private")?;

    let root = root_tmpfs(launch.labels.files.as_deref())?;
    fchdir(&root).doing("enter the exported tree")?;
    for name in ["mnt", "mapped"] {
        mkdirat(AT_FDCWD, name, Mode::from_bits_truncate(0o755))
            .doing_with(|| format!("create {name}"))?;
    }
    for (share, clone) in shares.iter().zip(&clones) {
        share.make_place(clone.as_ref(), &root)?;
        share.mount(clone.as_ref())?;
    }
    let read_only = MountChange {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountChange::default()
    };
    sys::mount_setattr(root.as_fd(), &read_only, false)
        .doing("make the exported tree's root read-only")?;

    // With both arguments the same directory the old root ends up mounted on top of the new one, from where it is
    // removed.
    pivot_root(".", ".").doing("pivot into the exported tree")?;
    umount2(".", MntFlags::MNT_DETACH).doing("leave the host's files")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty()).doing("open the exported tree")?;
    let mountinfo = open_mountinfo(&mountinfo, &proc_self_fd).doing("open the list of mounts")?;
    let mounts = mounts(&mountinfo).doing("read the mounts of the tree")?;
    // Only now, as the guest is to know what each mount forbids by itself.
    let safe = MountChange {
        set: SAFE,
        ..MountChange::default()
    };
    sys::mount_setattr(root.as_fd(), &safe, true).doing("secure the exported tree")?;
    let sealed = shares.iter().filter(|share| share.sealed);
    let sealed: Vec<_> = sealed.map(|share| share.name.as_str()).collect();
    let tree = Tree {
        root,
        proc_self_fd,
        mounts: share::for_the_guest(shares, &mounts),
        served: tree::served(&mounts, &sealed, launch.isolation.volume_privileges),
        mountinfo,
    };
    Ok((tree, users))
}

/// The root of the exported tree: a tmpfs that is mounted over the root directory.
fn root_tmpfs(label: Option<&str>) -> Result<OwnedFd, Error> {
    let name = "mount the exported tree's root";
    let root = tmpfs(c"256k", label).doing(name)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root.as_fd(), c"", CWD, c"/", flags).doing(name)?;
    Ok(root)
}

/// A detached tmpfs that is to hold mount points only; `size` in bytes. `label`: the SELinux label that all of it has.
pub(super) fn tmpfs(size: &CStr, label: Option<&str>) -> io::Result<OwnedFd> {
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), c"size", size)?;
    fsconfig_set_string(fs.as_fd(), c"mode", c"0755")?;
    if let Some(label) = label {
        fsconfig_set_string(fs.as_fd(), c"context", label)?;
    }
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// The list of the mounts of this process's tree, now and later: it is relative to the root directory at this moment.
fn open_mountinfo(mountinfo: &OwnedFd, proc_self_fd: &OwnedFd) -> io::Result<File> {
    let number = mountinfo.as_raw_fd().to_string();
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(openat(proc_self_fd, number.as_str(), flags, Mode::empty())?.into())
}

/// The mounts that a list has.
pub(super) fn mounts(mountinfo: &File) -> io::Result<Vec<mountinfo::Mount>> {
    let mut text = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        match mountinfo.read_at(&mut piece, text.len() as u64)? {
            0 => return Ok(mountinfo::parse(&String::from_utf8_lossy(&text))),
            count => text.extend_from_slice(&piece[..count]),
        }
    }
}

/// Sets the resource limits; how many descriptors the file server may keep open of each sort.
pub(super) fn set_limits() -> Result<usize, Error> {
    let descriptors = limit_descriptors().doing("set RLIMIT_NOFILE")?;
    for resource in [
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
    ] {
        setrlimit(resource, 0, 0).doing_with(|| format!("set {resource:?}"))?;
    }
    if u64::from(DESCRIPTOR_TABLE.unsigned_abs()) < descriptors {
        let name = "grow the descriptor table";
        let highest =
            fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_TABLE)).doing(name)?;
        nix::unistd::close(highest).doing(name)?;
    }
    Ok(usize::try_from(descriptors / FILE_SHARE).unwrap_or(usize::MAX))
}

fn limit_descriptors() -> io::Result<u64> {
    match setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTOR_LIMIT, DESCRIPTOR_LIMIT) {
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            if hard < DESCRIPTORS_LEAST {
                let text = format!(
                    "it is {hard} and may not be raised, but a machine needs {DESCRIPTORS_LEAST}"
                );
                return Err(io::Error::other(text));
            }
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            Ok(hard)
        }
        result => Ok(result.map(|()| DESCRIPTOR_LIMIT)?),
    }
}

/// Enters a user namespace.
pub(super) fn enter_user_namespace(namespace: OwnedFd) -> Result<(), Error> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWUSER).doing("join the user namespace")?)
}

/// Becomes `id`, user and group, and gives up every privilege but those of the file server.
pub(super) fn drop_privileges(id: u32) -> Result<(), Error> {
    sys::new_session_keyring().doing("join a new session keyring")?;
    setgroups(&[]).doing("drop the supplementary groups")?;
    // The file server changes its file system ids request by request and keeps its capabilities: the guest's kernel has
    // checked permissions.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).doing("set the secure bits")?;
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(group, group, group).doing_with(|| format!("become group {id}"))?;
    setresuid(user, user, user).doing_with(|| format!("become user {id}"))?;
    for capability in CapabilitySet::all().difference(CAPABILITIES).iter() {
        match remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => {}
            result => result.doing("reduce the capability bounding set")?,
        }
    }
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).doing("drop capabilities")?;
    set_no_new_privs(true).doing("set no_new_privs")?;
    Ok(nix::sys::prctl::set_dumpable(false).doing("become undumpable")?)
}

/// The last step but for the filters, as far as the host's kernel has Landlock: confines files to the tree, with the
/// exception of the files that are made in `bundle`; connections to `names`; and signals and abstract sockets to this
/// process.
pub(super) fn confine(bundle: &OwnedFd, names: SocketAddrV4) -> Result<(), Error> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty()).doing("open the exported tree")?;
    let ruled = || -> Result<(), landlock::RulesetError> {
        // Nothing is executed, and no device is opened.
        let files = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute & !AccessFs::IoctlDev;
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rule(PathBeneath::new(&root, files))?
            .add_rule(PathBeneath::new(bundle, AccessFs::MakeReg))?
            .add_rule(NetPort::new(names.port(), AccessNet::ConnectTcp))?
            .restrict_self()
            .map(drop)
    };
    let ruled = ruled().map_err(io::Error::other);
    Ok(ruled.doing("confine this process by Landlock")?)
}
