//! The container's init, from its birth in the new namespaces to its program.

use std::fs;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{
    Gid, Uid, chdir, chroot, fchdir, pivot_root, setgroups, sethostname, setresgid, setresuid,
    setsid,
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::cgroup::Speed;
use super::configuration::Configuration;
use super::devices::{self, Node};
use super::hooks;
use super::mounts::{self, Sources};
use super::process::{self, Program};
use super::sysctl::{self, Moment};
use super::tree::{Kind, Tree};
use super::wire::Wire;
use crate::error::{During, Error, Result};
use crate::sys;
use crate::task::Create;

/// Sets the container up, waits for the start, and executes its program. Returns what failed.
pub(super) fn run(
    configuration: &Configuration,
    create: &Create,
    made: (Sources, Speed),
    devices: &[Node],
    wire: &Wire,
) -> Error {
    match prepare(configuration, create, made, devices, wire) {
        Ok(program) => program.execute(),
        Err(error) => error,
    }
}

fn prepare(
    configuration: &Configuration,
    create: &Create,
    made: (Sources, Speed),
    devices: &[Node],
    wire: &Wire,
) -> Result<Program> {
    let (sources, speed) = made;
    let spec = &configuration.spec;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Error::Config("process is missing".into()))?;
    enter(configuration)?;
    process::join_keyring(&configuration.setup.id)?;
    name(spec)?;
    sysctl::set(spec, Moment::InNamespaces)?;
    let tree = mounts::mount_all(spec, sources, &create.directory)?;
    devices::create(spec, &tree, devices)?;
    let terminal = if process.terminal() == Some(true) {
        let terminal = devices::open_terminal(&tree, process)?;
        devices::mount_console(&tree, &terminal)?;
        Some(terminal)
    } else {
        None
    };
    tree.create(process.cwd(), Kind::Directory)?;
    mounts::protect(spec, &tree)?;
    mounts::seal(spec, &tree)?;
    process::limit(spec, process, &configuration.setup.overlay.limits)?;
    change_root(&tree, configuration.has(LinuxNamespaceType::Mount))?;
    drop(tree);
    mounts::propagate_root(spec)?;
    let seccomp = configuration.setup.overlay.seccomp.as_ref();
    let extra = create.extra.len();
    // What is left is little, and no descriptor is open any more afterwards.
    speed.set()?;
    let (program, seccomp) = process::assume(process, terminal, seccomp, extra, wire)?;
    process::settle(seccomp)?;
    hooks::run(spec, &configuration.setup, program.environment())?;
    Ok(program)
}

/// Completes the namespaces that init was born into.
fn enter(configuration: &Configuration) -> Result<()> {
    if configuration.has(LinuxNamespaceType::User) {
        become_root()?;
    }
    setsid().during(|| "create a session")?;
    if configuration.makes(LinuxNamespaceType::Cgroup) {
        // After init is in its cgroup, which thereby becomes the namespace's root.
        unshare(CloneFlags::CLONE_NEWCGROUP).during(|| "create a cgroup namespace")?;
    }
    if configuration.makes(LinuxNamespaceType::Network) {
        sys::loopback_up().during(|| "bring the loopback interface up")?;
    }
    Ok(())
}

/// Becomes root of the user namespace.
pub(super) fn become_root() -> Result<()> {
    setgroups(&[]).during(|| "drop groups in the user namespace")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).during(|| "become group 0 of the user namespace")?;
    setresuid(uid, uid, uid).during(|| "become root of the user namespace")
}

fn name(spec: &Spec) -> Result<()> {
    if let Some(name) = spec.hostname().as_ref().filter(|name| !name.is_empty()) {
        sethostname(name).during(|| format!("set hostname to {name}"))?;
    }
    if let Some(name) = spec.domainname().as_ref().filter(|name| !name.is_empty()) {
        fs::write("/proc/sys/kernel/domainname", name)
            .during(|| format!("set domainname to {name}"))?;
    }
    Ok(())
}

/// Makes the container's root `/`.
fn change_root(tree: &Tree, own_mounts: bool) -> Result<()> {
    let old = open(
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .during(|| "open the guest's root")?;
    fchdir(tree.root()).during(|| "enter the container's root")?;
    if own_mounts {
        // pivot_root(2), NOTES: both in one place, the old root on top, to be taken off.
        pivot_root(".", ".").during(|| "make the container's root the root")?;
        fchdir(&old).during(|| "enter the guest's root")?;
        umount2(".", MntFlags::MNT_DETACH).during(|| "leave the guest's root")?;
    } else {
        chroot(".").during(|| "make the container's root the root")?;
    }
    chdir("/").during(|| "enter the root")
}
