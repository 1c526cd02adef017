//! A process that is executed in a container that runs.
//!
//! The stage enters the pid namespace and clones the process into its cgroup. The process takes its
//! limits while it has the guest's own privileges and /proc, and joins the other namespaces then.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, stat};
use nix::unistd::{chdir, chroot, fchdir, setsid};
use oci_spec::runtime::{ExecCPUAffinity, LinuxNamespaceType as Kind, Process, Spec};
use protocol::Setup;
use specification::namespace;

use super::birth::{Born, clone};
use super::configuration::Configuration;
use super::ids::{give_stdio, take_maps};
use super::tree::Tree;
use super::wire::Wire;
use super::{apparmor, devices, init, process};
use crate::error::{During, Error, Result};
use crate::hierarchy;
use crate::sys;
use crate::task::Join;

/// What leads into the container.
struct Door {
    /// A pidfd of its init.
    init: OwnedFd,
    /// Its root directory.
    root: OwnedFd,
    /// The namespaces to join, as CLONE_NEW* bits.
    namespaces: i32,
}

/// The stage process: makes the process and lets it go.
pub(super) fn set_up(join: &Join, setup: Setup, wire: &Wire) -> Result<()> {
    let Join { cgroup, init, exec } = join;
    let init = *init;
    let mut configuration = Configuration::new(setup)?;
    if configuration.has(Kind::User) {
        take_maps(&mut configuration.spec, init)?;
    }
    let configuration = configuration;
    let process: Process = serde_json::from_slice(&exec.config)
        .map_err(|e| Error::Config(format!("process is not valid: {e}")))?;
    if !process.cwd().is_absolute() {
        return Err(Error::Config("process.cwd is not an absolute path".into()));
    }
    apparmor::load(&process, &exec.policy)?;
    let pidfd = sys::pidfd_open(init).during(|| "open the container's init")?;
    let directory = hierarchy::below(cgroup, &exec.cgroup)?;
    let cgroup = open_cgroup(&directory)?;
    let door = Door {
        root: open(
            format!("/proc/{init}/root").as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .during(|| "open the container's root")?,
        namespaces: different(init)?,
        init: pidfd,
    };
    give_stdio(&configuration.spec, &process, exec.stdio)?;
    let affinity = affinity(&configuration.spec, &process);
    if let Some(cpus) = affinity.and_then(|affinity| affinity.initial().as_deref()) {
        process::run_on(cpus).during(|| "set process.execCPUAffinity.initial")?;
    }
    if differs(Kind::Pid, init)? {
        setns(&door.init, CloneFlags::CLONE_NEWPID).during(|| "join the pid namespace")?;
    }
    let extra = exec.extra.len();
    let born = |cgroup: &OwnedFd| {
        clone(0, cgroup.as_fd(), wire, || {
            run(&configuration, &process, extra, &door, wire)
        })
    };
    match born(&cgroup) {
        // The container has put its init into a cgroup of its own and passes controllers on: there
        // are no processes in between (cgroup-v2.rst). The process then starts where the init is, as with runc.
        Err(Error::Os { source, .. })
            if source.kind() == io::ErrorKind::ResourceBusy && exec.cgroup.is_empty() =>
        {
            born(&open_cgroup(&cgroup_of(init)?)?)
        }
        result => result,
    }
    .and_then(Born::go)
}

/// The process's own, or else the one that the container has for all of them, as runc.
fn affinity<'a>(spec: &'a Spec, process: &'a Process) -> Option<&'a ExecCPUAffinity> {
    let own = process.exec_cpu_affinity().as_ref();
    own.or_else(|| spec.process().as_ref()?.exec_cpu_affinity().as_ref())
}

fn open_cgroup(directory: &Path) -> Result<OwnedFd> {
    File::open(directory)
        .during(|| {
            format!(
                "error adding the process to cgroups: open {}",
                directory.display()
            )
        })
        .map(OwnedFd::from)
}

/// The cgroup that a process is in (cgroups(7)).
fn cgroup_of(pid: i32) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).during(|| format!("read {file}"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or_else(|| Error::Config("the container's init has no cgroup".into()))?;
    Ok(Path::new(hierarchy::ROOT).join(path))
}

fn differs(kind: Kind, init: i32) -> Result<bool> {
    let identity = |pid: &str| {
        let path = format!("/proc/{pid}/ns/{}", namespace::file(kind));
        stat(path.as_str())
            .during(|| format!("look at {path}"))
            .map(|stat| (stat.st_dev, stat.st_ino))
    };
    Ok(identity("self")? != identity(&init.to_string())?)
}

/// The namespaces of the init that are not the guest's own, and that a process enters itself: all
/// but that of pids, which is for children only (setns(2)).
fn different(init: i32) -> Result<i32> {
    let mut flags = 0;
    for kind in namespace::ALL {
        if kind != Kind::Pid && differs(kind, init)? {
            flags |= namespace::flag(kind);
        }
    }
    Ok(flags)
}

/// The process. Returns what failed.
fn run(
    configuration: &Configuration,
    process: &Process,
    extra: usize,
    door: &Door,
    wire: &Wire,
) -> Error {
    match prepare(configuration, process, extra, door, wire) {
        Ok(program) => program.execute(),
        Err(error) => error,
    }
}

fn prepare(
    configuration: &Configuration,
    process: &Process,
    extra: usize,
    door: &Door,
    wire: &Wire,
) -> Result<process::Program> {
    setsid().during(|| "create a session")?;
    // In its cgroup by now.
    let affinity = affinity(&configuration.spec, process);
    if let Some(cpus) = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()) {
        process::run_on(cpus).during(|| "set process.execCPUAffinity.final")?;
    }
    process::set_oom_score(process)?;
    // The host has completed its limits.
    process::limit(&configuration.spec, process, &[])?;
    enter(door)?;
    process::join_keyring(&configuration.setup.id)?;
    let terminal = if process.terminal() == Some(true) {
        let root = open(
            "/",
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .during(|| "open the root")?;
        Some(devices::open_terminal(&Tree::new(root), process)?)
    } else {
        None
    };
    let seccomp = configuration.setup.overlay.seccomp.as_ref();
    let (program, seccomp) = process::assume(process, terminal, seccomp, extra, wire)?;
    process::settle(seccomp)?;
    Ok(program)
}

fn enter(door: &Door) -> Result<()> {
    if door.namespaces != 0 {
        // All at once: the kernel takes the user namespace first, for its rights in the others.
        setns(&door.init, CloneFlags::from_bits_retain(door.namespaces))
            .during(|| "join the container's namespaces")?;
    }
    if door.namespaces & libc::CLONE_NEWUSER != 0 {
        init::become_root()?;
    }
    if door.namespaces & libc::CLONE_NEWNS == 0 {
        fchdir(&door.root).during(|| "enter the container's root")?;
        chroot(".").during(|| "make the container's root the root")?;
    }
    chdir("/").during(|| "enter the root")
}
