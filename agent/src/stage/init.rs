//! The container's init, from its birth in the new namespaces to its program.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, fstat, stat};
use nix::unistd::{
    Gid, Uid, chdir, chroot, fchdir, fchown, pivot_root, setgroups, sethostname, setresgid,
    setresuid, setsid,
};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::devices::{self, Terminal};
use super::hooks;
use super::mounts::{self, Sources};
use super::process::{self, Program};
use super::seccomp;
use super::tree::{Kind, Tree};
use super::{Plan, Report, Wire};
use crate::error::{During, Error, Result};
use crate::sys;

/// Sets the container up, waits for the start, and executes its program. Returns what failed.
pub(super) fn run(plan: &Plan, sources: Sources, wire: &Wire) -> Error {
    match prepare(plan, sources, wire) {
        Ok(program) => program.execute(),
        Err(error) => error,
    }
}

fn prepare(plan: &Plan, sources: Sources, wire: &Wire) -> Result<Program> {
    let spec = &plan.spec;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Error::Config("process is missing".into()))?;
    enter(plan)?;
    name(spec)?;
    sysctl(spec)?;
    let tree = mounts::mount_all(spec, sources)?;
    devices::create(spec, &tree)?;
    let wants_terminal = process.terminal() == Some(true);
    let terminal = wants_terminal
        .then(|| devices::terminal(spec, &tree))
        .transpose()?;
    tree.create(process.cwd(), Kind::Directory)?;
    mounts::protect(spec, &tree)?;
    mounts::seal(spec, &tree)?;
    process::limit(spec, process)?;
    change_root(&tree, plan.has(LinuxNamespaceType::Mount))?;
    match &terminal {
        Some(terminal) => take_terminal(terminal, process)?,
        None => own_null()?,
    }
    let seccomp = plan.create.overlay.seccomp.as_ref();
    let (early, late) = seccomp::moment(process, seccomp);
    early.map_or(Ok(()), seccomp::load)?;
    process::become_user(process)?;
    let program = Program::find(process)?;
    wire.send(
        &Report::Prepared,
        terminal.as_ref().map(|terminal| &terminal.master),
    )?;
    drop((terminal, tree));
    wire.wait()?;
    sys::reset_signals().during(|| "reset the signals")?;
    sys::close_on_exec_from_3().during(|| "close the descriptors")?;
    late.map_or(Ok(()), seccomp::load)?;
    hooks::run(spec, &plan.create)?;
    Ok(program)
}

/// Completes the namespaces that init was born into.
fn enter(plan: &Plan) -> Result<()> {
    if plan.has(LinuxNamespaceType::User) {
        setgroups(&[]).during(|| "drop groups in the user namespace")?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(gid, gid, gid).during(|| "become group 0 of the user namespace")?;
        setresuid(uid, uid, uid).during(|| "become root of the user namespace")?;
    }
    setsid().during(|| "create a session")?;
    if plan.has(LinuxNamespaceType::Cgroup) {
        // After init is in its cgroup, which thereby becomes the namespace's root.
        unshare(CloneFlags::CLONE_NEWCGROUP).during(|| "create a cgroup namespace")?;
    }
    if plan.has(LinuxNamespaceType::Network) {
        sys::loopback_up().during(|| "bring the loopback interface up")?;
    }
    Ok(())
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

/// Through the guest's own /proc: these files show the namespaces of who opens them.
fn sysctl(spec: &Spec) -> Result<()> {
    let settings = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in settings.into_iter().flatten() {
        // sysctl(8): dots separate, and a slash stands for a dot inside of a name, or the other
        // way round if a slash comes first.
        let slashes_separate =
            name.find('/') < name.find('.') && name.contains('/') || !name.contains('.');
        let relative: String = if slashes_separate {
            name.clone()
        } else {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swap).collect()
        };
        let relative = Path::new(&relative);
        if relative
            .components()
            .any(|c| !matches!(c, Component::Normal(_)))
        {
            return Err(Error::Config(format!("linux.sysctl: bad name {name:?}")));
        }
        fs::write(Path::new("/proc/sys").join(relative), value)
            .during(|| format!("set linux.sysctl {name} to {value:?}"))?;
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

fn take_terminal(terminal: &Terminal, process: &Process) -> Result<()> {
    let what = || "take the terminal";
    let uid = Uid::from_raw(process.user().uid());
    fchown(&terminal.slave, Some(uid), None).during(what)?;
    for number in 0..=2 {
        sys::replace_stdio(&terminal.slave, number).during(what)?;
    }
    sys::set_controlling_terminal(&terminal.slave).during(what)
}

/// Replaces the guest's /dev/null by the container's, as runc does: the container may have made
/// changes to it that it expects to see.
fn own_null() -> Result<()> {
    // Of the container; without one there is nothing to replace by.
    let Ok(null) = stat("/dev/null") else {
        return Ok(());
    };
    for number in 0..=2 {
        let what = || "open /dev/null of the container";
        if fstat(sys::standard(number)).during(what)?.st_rdev == null.st_rdev {
            let own: OwnedFd =
                open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).during(what)?;
            sys::replace_stdio(own.as_fd(), number).during(what)?;
        }
    }
    Ok(())
}
