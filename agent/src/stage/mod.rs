//! The process that sets a container up: a fresh, single-threaded re-execution of the agent.
//!
//! ```text
//! agent (PID 1) ──spawn──> stage ──clone3(CLONE_PARENT)──> init ──execve──> the program
//!   │                        │ cgroup, device filter,        │ mounts, devices, privileges
//!   │                        │ mount sources, id maps        │
//!   │<── Child(pid) ─────────┤                               │
//!   │                        └── go ────────────────────────>│
//!   │                          (exits)                       │
//!   │<── Prepared [terminal] ────────────────────────────────┤
//!   ├─── one byte: start ───────────────────────────────────>│
//!   │<── end of stream: executed; or Failed ─────────────────┤
//! ```
//! A process that is executed in the container comes to be in the same way, except that the stage
//! and the process join what is there ([`exec`]), and that the agent sends the byte at once. A task
//! that makes no process is done by the stage itself, which reports the answer and ends; the name
//! server ([`names`]) stays and reports nothing.
//!
//! Invariants: init is a child of PID 1 from its birth, so its exit status is exact; its pid is
//! told before it may run, so it cannot end unknown; the wire is close-on-exec, so its end with
//! nothing said is the success of execve.

mod cgroup;
mod copy_up;
mod device_filter;
mod devices;
mod exec;
mod extra;
mod hooks;
mod init;
mod mounts;
mod options;
mod process;
mod seccomp;
mod sysctl;
mod tree;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{IoSlice, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process, Spec};
use protocol::{Create, Exec, Failure, Reply, Stdio};
use serde::{Deserialize, Serialize};
use specification::namespace;

pub(crate) use cgroup::{
    ROOT as CGROUP_ROOT, delegate, directory as cgroup_directory, update as cgroup_update,
};
pub(crate) use mounts::{NOTIFY, NOTIFY_SOCKET, SHARE, STAGING};

use self::devices::Disks;
use crate::boot::since_boot;
use crate::cgroup::{Processes, Update};
use crate::error::{self, During, Error, Result};
use crate::names;
use crate::sys;

/// What the agent asks of a stage process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// To set the container up.
    Create(Box<Create>),
    /// To execute one more process in it.
    Exec(Box<Join>),
    /// To change its limits.
    Update(Update),
    /// To list its processes.
    Processes(Processes),
    /// To be its name server.
    Names,
}

/// A process and the container that it joins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    /// How the container was created.
    pub(crate) create: Create,
    /// The process.
    pub(crate) exec: Exec,
    /// The container's init, in the guest's root pid namespace.
    pub(crate) init: i32,
}

/// What the stage and init tell the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process exists, with this pid.
    Child(i32),
    /// It waits for its release. With a terminal its master comes along as SCM_RIGHTS.
    Prepared,
    /// What could not be done.
    Failed(Failure),
    /// The answer to a task that makes no process.
    Answered(std::result::Result<Reply, Failure>),
}

/// The stream to the agent.
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// Sends a report, with a descriptor if there is one.
    fn send(&self, report: &Report, descriptor: Option<&OwnedFd>) -> Result<()> {
        let frame = protocol::encode(report).map_err(|e| Error::Stream("agent", e))?;
        let raw: Vec<RawFd> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() {
            &[][..]
        } else {
            &control[..]
        };
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let control = if rest.len() == frame.len() {
                control
            } else {
                &[]
            };
            let slices = [IoSlice::new(rest)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            let sent = sendmsg::<()>(self.0.as_raw_fd(), &slices, control, flags, None)
                .during(|| "report to the agent")?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Waits for the agent's word. An error when it is gone instead.
    fn wait(&self) -> Result<()> {
        wait_for_byte(&self.0, "the agent")
    }

    /// Tells the agent and the kernel log.
    fn fail(&self, error: &Error) {
        let failure = error.failure();
        error::log(&failure.to_string());
        if let Err(error) = self.send(&Report::Failed(failure), None) {
            error::log(&error.failure().to_string());
        }
    }
}

fn wait_for_byte(fd: &OwnedFd, who: &'static str) -> Result<()> {
    match nix::unistd::read(fd, &mut [0]).during(|| format!("wait for {who}"))? {
        0 => Err(Error::Closed(who)),
        _ => Ok(()),
    }
}

/// The stage process: `arguments` are the numbers of the request's memfd, of the wire, and of the
/// pipes among the descriptors beside the standard streams.
pub(crate) fn main(arguments: &[String]) -> ! {
    let mut wire = match adopt(arguments.get(1)) {
        Ok(wire) => Wire(wire),
        Err(error) => {
            error::log(&error.failure().to_string());
            sys::exit(1);
        }
    };
    if let Err(error) = run(arguments, &mut wire) {
        wire.fail(&error);
        sys::exit(1);
    }
    sys::exit(0)
}

#[allow(unsafe_code, reason = "only here are the descriptors known")]
fn adopt(number: Option<&String>) -> Result<OwnedFd> {
    let number: Option<RawFd> = number.and_then(|number| number.parse().ok());
    let number = number.filter(|number| *number > 2);
    let number = number.ok_or_else(|| Error::Config("stage: bad descriptor number".into()))?;
    // SAFETY: the agent passes distinct inherited descriptors for this process alone to own,
    // and each is adopted once, first thing.
    let fd = unsafe { sys::adopt(number) }.during(|| "adopt a descriptor")?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).during(|| "set close-on-exec")?;
    Ok(fd)
}

/// The container to be made. The host has refused what cannot be had, before there was a machine.
struct Plan {
    create: Create,
    spec: Spec,
}

impl Plan {
    fn new(create: Create) -> Result<Plan> {
        let mut spec: Spec = serde_json::from_str(&create.config).map_err(Error::Parse)?;
        if let (Some(process), false) = (spec.process_mut(), create.overlay.env.is_empty()) {
            let env = process.env().iter().flatten().chain(&create.overlay.env);
            process.set_env(Some(env.cloned().collect()));
        }
        Ok(Plan { create, spec })
    }

    /// The new namespaces that are asked for.
    fn namespaces(&self) -> impl Iterator<Item = LinuxNamespaceType> + '_ {
        let linux = self.spec.linux().as_ref();
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten()
            .map(|n| n.typ())
    }

    fn has(&self, namespace: LinuxNamespaceType) -> bool {
        self.namespaces().any(|known| known == namespace)
    }

    /// The flags of clone3: all but the time namespace, which comes first, and the cgroup
    /// namespace, which comes when init is in its cgroup.
    fn clone_flags(&self) -> i32 {
        let later = [LinuxNamespaceType::Cgroup, LinuxNamespaceType::Time];
        let at_once = self.namespaces().filter(|kind| !later.contains(kind));
        at_once.fold(0, |flags, kind| flags | namespace::flag(kind))
    }
}

/// The descriptors that a process may have unless it is configured, which PID 1 has more of:
/// INR_OPEN_CUR and INR_OPEN_MAX of linux/fs.h.
const FILES: (u64, u64) = (1024, 4096);

fn run(arguments: &[String], wire: &mut Wire) -> Result<()> {
    sys::set_rlimit(libc::RLIMIT_NOFILE, FILES.0, FILES.1).during(|| "set RLIMIT_NOFILE")?;
    let mut text = Vec::new();
    let mut file = File::from(adopt(arguments.first())?);
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .during(|| "read the request")?;
    drop(file);
    let task = serde_json::from_slice(&text).map_err(Error::Parse)?;
    let extra = match &task {
        Task::Create(create) => &create.extra[..],
        Task::Exec(join) => &join.exec.extra,
        Task::Update(_) | Task::Processes(_) | Task::Names => &[],
    };
    extra::place(extra, arguments.get(2..).unwrap_or_default(), wire)?;
    match task {
        Task::Create(create) => set_up(*create, wire),
        Task::Exec(join) => exec::set_up(*join, wire),
        Task::Update(update) => answer(wire, update.apply().map(|()| Reply::Done)),
        Task::Processes(processes) => answer(
            wire,
            processes.read().map(|processes| Reply::Processes {
                now: since_boot(),
                processes,
            }),
        ),
        Task::Names => names::serve([adopt(arguments.get(2))?, adopt(arguments.get(3))?]),
    }
}

fn answer(wire: &Wire, result: Result<Reply>) -> Result<()> {
    let result = result.map_err(|error| error.failure());
    wire.send(&Report::Answered(result), None)
}

fn set_up(create: Create, wire: &Wire) -> Result<()> {
    let plan = Plan::new(create)?;
    let process = plan.spec.process().as_ref();
    let process = process.ok_or_else(|| Error::Config("process is missing".into()))?;
    let directory = cgroup::directory(&plan.spec, &plan.create.id)?;
    let disks = Disks::find(&plan.create.overlay)?;
    let cgroup = cgroup::create(&plan.spec, &directory, &disks)?;
    let devices = devices::configured(&plan.spec, &disks)?;
    let sources = mounts::Sources::take(&plan.spec, &plan.create.overlay)?;
    give_stdio(&plan.spec, process, plan.create.stdio)?;
    sysctl::set(&plan.spec, sysctl::Moment::Before)?;
    if plan.has(LinuxNamespaceType::Time) {
        new_time(&plan.spec)?;
    }
    let born = clone(plan.clone_flags(), cgroup.as_fd(), wire, || {
        init::run(&plan, sources, &devices, wire)
    })?;
    if plan.has(LinuxNamespaceType::User) {
        write_maps(&plan.spec, born.pid)?;
    }
    born.go()
}

/// A process that waits for the stage.
struct Born {
    pid: i32,
    go: OwnedFd,
}

impl Born {
    fn go(self) -> Result<()> {
        nix::unistd::write(&self.go, &[0])
            .during(|| "release the process")
            .map(drop)
    }
}

/// Clones the process into its cgroup and tells the agent of it. The process runs `run`, which
/// returns only to fail, when the stage lets it go.
fn clone(
    namespaces: i32,
    cgroup: BorrowedFd<'_>,
    wire: &Wire,
    run: impl FnOnce() -> Error,
) -> Result<Born> {
    let (reader, go) = pipe2(OFlag::O_CLOEXEC).during(|| "create a pipe")?;
    let pid =
        sys::clone_sibling(namespaces, Some(cgroup)).during(|| "clone the container's process")?;
    if pid == 0 {
        drop(go);
        // A stage that fails has said so itself.
        if wait_for_byte(&reader, "the stage").is_err() {
            sys::exit(1);
        }
        drop(reader);
        wire.fail(&run());
        sys::exit(1);
    }
    wire.send(&Report::Child(pid), None)?;
    Ok(Born { pid, go })
}

/// Makes the pipes the user's, so that it can open /dev/stdin and its like.
fn give_stdio(spec: &Spec, process: &Process, stdio: Stdio) -> Result<()> {
    if process.terminal() == Some(true) {
        return Ok(());
    }
    let linux = spec.linux().as_ref();
    let id = process.user().uid();
    let uid = mapped(linux.and_then(|l| l.uid_mappings().as_ref()), id)
        .ok_or_else(|| Error::Config(format!("process.user: id {id} is not mapped")))?;
    for (number, stream) in (0..).zip([stdio.stdin, stdio.stdout, stdio.stderr]) {
        if stream.is_some() {
            // Only the user, as runc: the group stays.
            let fd = sys::standard(number);
            fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>)
                .during(|| "give stdio to the user")?;
        }
    }
    Ok(())
}

/// The id outside of the user namespace, if it has one there.
fn mapped(mappings: Option<&Vec<LinuxIdMapping>>, id: u32) -> Option<u32> {
    let Some(mappings) = mappings.filter(|mappings| !mappings.is_empty()) else {
        return Some(id);
    };
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id())?;
        if offset < mapping.size() {
            mapping.host_id().checked_add(offset)
        } else {
            None
        }
    })
}

fn write_maps(spec: &Spec, pid: i32) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (file, mappings) in [
        ("uid_map", linux.uid_mappings()),
        ("gid_map", linux.gid_mappings()),
    ] {
        let mut text = String::new();
        for map in mappings.iter().flatten() {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{} {} {}",
                map.container_id(),
                map.host_id(),
                map.size()
            );
        }
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        fs::write(&path, text).during(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Creates the time namespace that init will be born into, with its offsets (time_namespaces(7)).
fn new_time(spec: &Spec) -> Result<()> {
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))
        .during(|| "create a time namespace")?;
    let offsets = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.time_offsets().as_ref());
    let mut text = String::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let _ = writeln!(text, "{clock} {secs} {nanosecs}");
    }
    if text.is_empty() {
        return Ok(());
    }
    fs::write("/proc/self/timens_offsets", text).during(|| "set linux.timeOffsets")
}
