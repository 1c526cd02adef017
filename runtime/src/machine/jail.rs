//! The jail of the machine process: what it can reach once the guest runs.
//!
//! * Files: a read-only tmpfs that holds the shares, each a private clone of a mount of the host, in a mount namespace
//!   of its own that is pivoted into it. All of it vanishes with the process. Landlock, where the host has it, allows
//!   to open, make and change files there alone, whatever other descriptors there may be.
//! * Namespaces: the container's network namespace; an ipc, a uts and a cgroup namespace of its own. The pid namespace
//!   stays the caller's: the first process of another one could not end by a signal, as this one must when the
//!   container did. Landlock confines its signals and abstract sockets.
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

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
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
use nix::sys::stat::{Mode, fstat, mkdirat, stat};
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
use super::mountinfo;
use super::share::{self, SAFE, Share};
use crate::error::Doing;
use crate::state::Network;
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
    /// The root of the exported tree.
    pub(super) root: OwnedFd,
    /// `/proc/self/fd` as the root of a mount of its own: `..` does not leave it.
    pub(super) proc_self_fd: OwnedFd,
    /// What the guest must know of the mounts, outer before inner.
    pub(super) mounts: Vec<HostMount>,
    /// The ids of the mounts that the host cannot take away; `None` for all.
    pub(super) lasting: Option<HashSet<u64>>,
}

/// Enters the container's network namespace.
pub(super) fn enter_network(network: &Network) -> Result<(), Error> {
    match network {
        Network::Guests | Network::New => {
            Ok(unshare(CloneFlags::CLONE_NEWNET).doing("create a network namespace")?)
        }
        Network::Path(path) => {
            let name = || format!("join the network namespace {}", path.display());
            let ns =
                open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).doing_with(name)?;
            let own = stat("/proc/self/ns/net").doing_with(name)?;
            let there = fstat(&ns).doing_with(name)?;
            if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) {
                // Its interfaces would become the guest's.
                let text = "it is this host's own network namespace, which a container cannot have";
                return Ok(Err(io::Error::other(text)).doing_with(name)?);
            }
            Ok(setns(ns, CloneFlags::CLONE_NEWNET).doing_with(name)?)
        }
    }
}

/// A directory of the host as the root of a mount that is in no tree: what lies below it can be reached, `..` stays
/// where it is.
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

/// Leaves the host's files for a tree of the shares alone. Who this process, whose own id is `own`, has to become to see
/// the owners of their files and of the bundle's as they are.
pub(super) fn enter_tree(
    shares: &[Share],
    bundle: &OwnedFd,
    own: u32,
) -> Result<(Tree, Users), Error> {
    let proc_self_fd = confined(Path::new("/proc/self/fd"))?;

    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let process = open("/proc/self", flags, Mode::empty()).doing("open /proc/self")?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).doing("create namespaces")?;
    let (clones, users) = share::clone_mounts(shares, bundle, own)?;
    // Nothing done here may travel back to the host.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .doing("make the mounts private")?;

    let root = root_tmpfs()?;
    fchdir(&root).doing("enter the exported tree")?;
    mkdirat(AT_FDCWD, "mnt", Mode::from_bits_truncate(0o755)).doing("create mnt")?;
    for (share, clone) in shares.iter().zip(&clones) {
        share.attach(clone.as_ref())?;
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
    let root = open("/", flags, Mode::empty()).doing("open the exported tree")?;
    let mounts = look_at_mounts(&process).doing("read the mounts of the tree")?;
    // Only now, as the guest is to know what each mount forbids by itself.
    let safe = MountChange {
        set: SAFE,
        ..MountChange::default()
    };
    sys::mount_setattr(root.as_fd(), &safe, true).doing("secure the exported tree")?;
    let tree = Tree {
        root,
        proc_self_fd,
        mounts: share::for_the_guest(shares, &mounts),
        lasting: shares
            .iter()
            .any(|share| share.follows)
            .then(|| mountinfo::lasting(&mounts)),
    };
    Ok((tree, users))
}

/// The root of the exported tree: a tmpfs that is mounted over the root directory.
fn root_tmpfs() -> Result<OwnedFd, Error> {
    let name = "mount the exported tree's root";
    let root = tmpfs(c"256k").doing(name)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root.as_fd(), c"", CWD, c"/", flags).doing(name)?;
    Ok(root)
}

/// A detached tmpfs that is to hold mount points only; `size` in bytes.
pub(super) fn tmpfs(size: &CStr) -> io::Result<OwnedFd> {
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), c"size", size)?;
    fsconfig_set_string(fs.as_fd(), c"mode", c"0755")?;
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

/// The mounts of the tree.
fn look_at_mounts(process: &OwnedFd) -> io::Result<Vec<mountinfo::Mount>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = String::new();
    File::from(openat(process, "mountinfo", flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(mountinfo::parse(&text))
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
