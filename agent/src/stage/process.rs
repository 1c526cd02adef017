//! What makes a process the container's: identity, limits, privileges, and its program.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fstat, stat, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, fchown, setgroups, setresgid, setresuid};
use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxPersonalityDomain, PosixRlimitType, Process, Scheduler,
    Spec,
};
use protocol::Seccomp;
use specification::{
    CpuList, IO_PRIORITIES, NO_ID, capability_number, scheduler_flags, scheduler_policy,
};

use super::devices::Terminal;
use super::tree::c_path;
use super::wire::Wire;
use super::{apparmor, descriptors, seccomp};
use crate::error::{During, Error, Result};
use crate::sys::{self, CapabilitySets, SchedulerAttributes};
use crate::task::Report;

/// The default umask, as runc's.
const UMASK: u32 = 0o022;

/// The greatest `fs.nr_open` (Linux, fs/file.c, sysctl_nr_open_max, for 64 bits).
const NR_OPEN_MAX: &str = "2147483584";

fn mask(set: Option<&Capabilities>) -> Result<u64> {
    let mut mask = 0;
    for capability in set.into_iter().flatten() {
        let number = capability_number(*capability);
        let unknown = || Error::Config(format!("unknown capability {capability}"));
        mask |= 1 << number.ok_or_else(unknown)?;
    }
    Ok(mask)
}

/// Applies the AppArmor profile, rlimits, scheduling and personality: what needs privileges
/// and the guest's own /proc.
///
/// `inherited` are the resource limits where the process names none, as `Overlay::limits`.
pub(crate) fn limit(spec: &Spec, process: &Process, inherited: &[(u64, u64)]) -> Result<()> {
    // Before no_new_privs, the loss of capabilities and the filter, as runc.
    apparmor::enter(process)?;
    for limit in limits(process, inherited) {
        limit.set()?;
    }
    if let Some(scheduler) = process.scheduler() {
        sys::set_scheduler(attributes(scheduler)?).during(|| "set process.scheduler")?;
    }
    if let Some(priority) = process.io_priority() {
        // IOPRIO_CLASS_* of linux/ioprio.h.
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = Some(priority.priority()).filter(|level| IO_PRIORITIES.contains(level));
        let level = level.and_then(|level| u16::try_from(level).ok());
        let level = level
            .ok_or_else(|| Error::Config("process.ioPriority.priority is not 0 to 7".into()))?;
        sys::set_io_priority(class, level).during(|| "set process.ioPriority")?;
    }
    if let Some(wanted) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.personality().as_ref())
    {
        // PER_LINUX and PER_LINUX32 of linux/personality.h.
        let persona = match wanted.domain() {
            LinuxPersonalityDomain::PerLinux => 0x0,
            LinuxPersonalityDomain::PerLinux32 => 0x8,
        };
        sys::set_personality(persona).during(|| "set linux.personality")?;
    }
    Ok(())
}

/// Joins the session keyring that all processes of the container have, under runc's name for it. The caller is root of the
/// container's user namespace, in which the name is looked up.
pub(super) fn join_keyring(id: &str) -> Result<()> {
    /// All for who possesses it; for its owner to view, read and link it, as a new one has it, and to find it, which
    /// whoever joins it must (KEY_* of linux/key.h).
    const PERMISSIONS: u32 = 0x3f00_0000 | 0x0001_0000 | 0x0002_0000 | 0x0010_0000 | 0x0008_0000;
    let name = format!("_ses.{id}");
    CString::new(name)
        .map_err(io::Error::from)
        .and_then(|name| sys::join_session_keyring(&name, PERMISSIONS))
        .during(|| "join the container's session keyring")
}

/// Lets the process run on these of the guest's CPUs only. Those that the guest does not have are an error.
pub(super) fn run_on(list: &str) -> io::Result<()> {
    let list = CpuList::parse(list).filter(|list| (list.last() as usize) < CpuSet::count());
    let list = list.ok_or(io::ErrorKind::InvalidInput)?;
    let mut set = CpuSet::new();
    for cpu in list.numbers() {
        set.set(cpu as usize)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The resources in the order of their numbers, which is that of `Overlay::limits`.
const RESOURCES: [PosixRlimitType; 16] = [
    PosixRlimitType::RlimitCpu,
    PosixRlimitType::RlimitFsize,
    PosixRlimitType::RlimitData,
    PosixRlimitType::RlimitStack,
    PosixRlimitType::RlimitCore,
    PosixRlimitType::RlimitRss,
    PosixRlimitType::RlimitNproc,
    PosixRlimitType::RlimitNofile,
    PosixRlimitType::RlimitMemlock,
    PosixRlimitType::RlimitAs,
    PosixRlimitType::RlimitLocks,
    PosixRlimitType::RlimitSigpending,
    PosixRlimitType::RlimitMsgqueue,
    PosixRlimitType::RlimitNice,
    PosixRlimitType::RlimitRtprio,
    PosixRlimitType::RlimitRttime,
];

/// A resource limit; no limit is `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    kind: PosixRlimitType,
    soft: u64,
    hard: u64,
}

impl Limit {
    /// Sets it for this process.
    fn set(self) -> Result<()> {
        let Limit { kind, soft, hard } = self;
        let set = || sys::set_rlimit(resource(kind), soft, hard);
        let result = match set() {
            // More files than the kernel allows any process: it is the guest's own kernel, so it can allow more.
            Err(error)
                if kind == PosixRlimitType::RlimitNofile
                    && error.kind() == io::ErrorKind::PermissionDenied =>
            {
                fs::write("/proc/sys/fs/nr_open", NR_OPEN_MAX).and_then(|()| set())
            }
            result => result,
        };
        result.during(|| format!("set process.rlimits {kind}"))
    }
}

/// The limits of a process: those that it names, and those that it inherits (`Overlay::limits`) besides.
fn limits(process: &Process, inherited: &[(u64, u64)]) -> Vec<Limit> {
    let named = process.rlimits().iter().flatten().map(|limit| Limit {
        kind: limit.typ(),
        soft: limit.soft(),
        hard: limit.hard(),
    });
    let named: Vec<Limit> = named.collect();
    let inherited = RESOURCES.into_iter().zip(inherited);
    let inherited = inherited.map(|(kind, (soft, hard))| Limit {
        kind,
        soft: *soft,
        hard: *hard,
    });
    let unnamed = |limit: &Limit| named.iter().all(|other| other.kind != limit.kind);
    let mut limits: Vec<Limit> = inherited.filter(unnamed).collect();
    limits.extend(named);
    limits
}

/// Gives the caller the process's OOM score, which is born with it: whoever has become root of a user namespace may not
/// write to its own files in /proc any more, and has no right to lower the score either (Linux, fs/proc/base.c,
/// task_dump_owner and __set_oom_adj).
pub(super) fn set_oom_score(process: &Process) -> Result<()> {
    match process.oom_score_adj() {
        Some(score) => fs::write("/proc/self/oom_score_adj", score.to_string())
            .during(|| format!("set process.oomScoreAdj to {score}")),
        None => Ok(()),
    }
}

/// Lets a process that is born into a user namespace take its limits: there it has no right to raise a hard one
/// (setrlimit(2)), so it is born with room enough. Some soft ones of the creator bound the whole user namespace
/// (Linux, kernel/user_namespace.c, create_user_ns).
pub(super) fn make_room(process: &Process, inherited: &[(u64, u64)]) -> Result<()> {
    for limit in limits(process, inherited) {
        let kind = limit.kind;
        let (soft, hard) = sys::rlimit(resource(kind)).during(|| format!("read {kind}"))?;
        if soft < limit.soft || hard < limit.hard {
            Limit {
                kind,
                soft: soft.max(limit.soft),
                hard: hard.max(limit.hard),
            }
            .set()?;
        }
    }
    Ok(())
}

/// RLIMIT_* of asm-generic/resource.h.
fn resource(name: PosixRlimitType) -> u32 {
    match name {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn attributes(scheduler: &Scheduler) -> Result<SchedulerAttributes> {
    let priority = u32::try_from(scheduler.priority().unwrap_or(0))
        .map_err(|_| Error::Config("process.scheduler.priority is negative".into()))?;
    Ok(SchedulerAttributes {
        policy: scheduler_policy(scheduler),
        flags: scheduler_flags(scheduler),
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedulerAttributes::default()
    })
}

/// Becomes what the process is to be, short of executing its program: waits for the agent's word.
/// `/` is already the container's root, and `extra` is the number of descriptors in addition to the standard
/// streams. Returns the filter that is still to be loaded, too.
pub(super) fn assume<'a>(
    process: &Process,
    terminal: Option<Terminal>,
    filter: Option<&'a Seccomp>,
    extra: usize,
    wire: &Wire,
) -> Result<(Program, Option<&'a Seccomp>)> {
    match &terminal {
        Some(terminal) => take_terminal(terminal, process)?,
        None => own_null()?,
    }
    // Before a filter that may not know the system calls for it. What is opened from here on is close-on-exec.
    sys::reset_signals().during(|| "reset the signals")?;
    sys::close_on_exec_from_3().during(|| "close the descriptors")?;
    descriptors::pass_on(extra)?;
    let (early, late) = seccomp::moment(process, filter);
    early.map_or(Ok(()), seccomp::load)?;
    become_user(process)?;
    let program = Program::find(process)?;
    wire.send(&Report::Prepared, terminal.as_ref().map(|t| &t.master))?;
    drop(terminal);
    wire.wait()?;
    Ok((program, late))
}

/// The last step of a process before its program: loads the filter that [`assume`] has left.
pub(super) fn settle(filter: Option<&Seccomp>) -> Result<()> {
    filter.map_or(Ok(()), seccomp::load)
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

/// Becomes the container's user, with its capabilities, in its working directory. `/` is already
/// the container's root.
pub(crate) fn become_user(process: &Process) -> Result<()> {
    let capabilities = process.capabilities().as_ref();
    let set = |of: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>| {
        mask(capabilities.and_then(|sets| of(sets).as_ref()))
    };
    let bounding = set(|sets| sets.bounding())?;
    let ambient = set(|sets| sets.ambient())?;
    let sets = CapabilitySets {
        effective: set(|sets| sets.effective())?,
        permitted: set(|sets| sets.permitted())?,
        inheritable: set(|sets| sets.inheritable())?,
    };
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().during(|| "set process.noNewPrivileges")?;
    }
    for capability in 0..64 {
        if bounding & (1 << capability) == 0
            && !sys::drop_bounding(capability).during(|| "drop a bounding capability")?
        {
            break;
        }
    }
    let cwd = process.cwd();
    // Before and, when that is not allowed, after the change of the user, as runc: a directory may
    // be open to either of them only.
    let entered = chdir(cwd);
    prctl::set_keepcaps(true).during(|| "keep capabilities")?;
    set_user(process)?;
    if entered.is_err() {
        // The text is runc's.
        chdir(cwd).during(|| format!("chdir to cwd ({cwd:?}) set in config.json failed"))?;
    }
    stay_inside(cwd)?;
    prctl::set_keepcaps(false).during(|| "stop keeping capabilities")?;
    sys::set_capabilities(sets).during(|| "set process.capabilities")?;
    sys::clear_ambient().during(|| "clear the ambient capabilities")?;
    for capability in (0..64).filter(|capability| ambient & (1 << capability) != 0) {
        // As runc: one that is not both permitted and inheritable is left out.
        if sets.permitted & sets.inheritable & (1 << capability) != 0 {
            sys::raise_ambient(capability).during(|| "raise an ambient capability")?;
        }
    }
    Ok(())
}

/// Refuses a working directory that is not below `/`: a path through `/proc` can lead to what this
/// process still has open of the guest's own files.
fn stay_inside(cwd: &Path) -> Result<()> {
    // getcwd(3): an error unless the path the kernel gives is absolute.
    match std::env::current_dir() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Config(format!(
            "process.cwd {} is outside of the container's root",
            cwd.display()
        ))),
        result => result.map(drop).during(|| "look at process.cwd"),
    }
}

fn set_user(process: &Process) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().copied();
    if [user.uid(), user.gid()]
        .into_iter()
        .chain(groups)
        .any(|id| id == NO_ID)
    {
        return Err(Error::Config(format!("process.user: {NO_ID} is not an id")));
    }
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    setgroups(&groups).during(|| "set process.user.additionalGids")?;
    setresgid(gid, gid, gid).during(|| format!("set process.user.gid {gid}"))?;
    setresuid(uid, uid, uid).during(|| format!("set process.user.uid {uid}"))?;
    umask(Mode::from_bits_retain(user.umask().unwrap_or(UMASK)));
    Ok(())
}

/// The program to execute.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program of the configuration, as the container's user in its root and directory.
    pub(crate) fn find(process: &Process) -> Result<Program> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args
            .first()
            .ok_or_else(|| Error::Config("process.args is empty".into()))?;
        let env = environment(process)?;
        let path = look_up(name, value(&env, "PATH").unwrap_or_default())?;
        Ok(Program {
            path,
            args: c_strings(args, "process.args")?,
            env: c_strings(&env, "process.env")?,
        })
    }

    /// Its environment.
    pub(super) fn environment(&self) -> &[CString] {
        &self.env
    }

    /// Executes it. Returns only when that fails.
    pub(crate) fn execute(&self) -> Error {
        let path = match c_path(&self.path) {
            Ok(path) => path,
            Err(error) => return error,
        };
        let source = sys::execve(&path, &self.args, &self.env);
        let text = format!("exec {}: {}", self.path.display(), plain(&source));
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(text),
            io::ErrorKind::PermissionDenied => Error::NotExecutable(text),
            _ => Error::Os {
                what: format!("exec {}", self.path.display()),
                source,
            },
        }
    }
}

fn c_strings(strings: &[String], what: &str) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|s| CString::new(s.as_str()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Error::Config(format!("{what} contains a NUL")))
}

fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The environment: of several entries of one name the last counts, and HOME comes from the
/// container's user data base when it is missing or empty.
fn environment(process: &Process) -> Result<Vec<String>> {
    let passwd = || fs::read("/etc/passwd").unwrap_or_default();
    merge(
        process.env().as_deref().unwrap_or_default(),
        process.user().uid(),
        passwd,
    )
}

fn merge(env: &[String], uid: u32, passwd: impl FnOnce() -> Vec<u8>) -> Result<Vec<String>> {
    let mut merged: Vec<String> = Vec::with_capacity(env.len() + 1);
    let mut seen = HashSet::new();
    for entry in env.iter().rev() {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() || name.len() == entry.len() {
            return Err(Error::Config(format!(
                "process.env: {entry:?} is not NAME=VALUE"
            )));
        }
        if seen.insert(name) {
            merged.push(entry.clone());
        }
    }
    merged.reverse();
    if value(&merged, "HOME").is_none_or(str::is_empty) {
        merged.retain(|entry| !entry.starts_with("HOME="));
        merged.push(format!("HOME={}", home(uid, &passwd())));
    }
    Ok(merged)
}

/// The home directory of a user by the text of a passwd(5) file, `/` if it has none.
fn home(uid: u32, passwd: &[u8]) -> String {
    let entry = passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split(':');
        let id: u32 = fields.nth(2)?.parse().ok()?;
        (id == uid)
            .then(|| fields.nth(2).map(str::to_owned))
            .flatten()
    });
    entry
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

/// The text of an errno without Rust's number behind it, as C and Go print it in lower case.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

/// Finds an executable as Go's exec.LookPath does, with its messages: callers match on them.
fn look_up(name: &str, path: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err((error, text)) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NotFound(format!("exec: {name:?}: {text}")))
            }
            Err((_, text)) => Err(Error::NotExecutable(format!("exec: {name:?}: {text}"))),
        };
    }
    for directory in path.split(':').filter(|_| !path.is_empty()) {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        if !name.is_empty() && executable(&candidate).is_ok() {
            if candidate.is_absolute() {
                return Ok(candidate);
            }
            let text = "cannot run executable found relative to current directory";
            return Err(Error::NotFound(format!("exec: {name:?}: {text}")));
        }
    }
    Err(Error::NotFound(format!(
        "exec: {name:?}: executable file not found in $PATH"
    )))
}

/// Whether a file can be executed, else why not.
fn executable(path: &Path) -> std::result::Result<(), (io::Error, String)> {
    // Not of std, which takes statx(2) for allowed once it was; the filter may be loaded by now,
    // and older than that call.
    let mode = stat(path)
        .map_err(|errno| {
            let error = io::Error::from(errno);
            let text = format!("stat {}: {}", path.display(), plain(&error));
            (error, text)
        })?
        .st_mode;
    let refuse = |errno| {
        let error = io::Error::from_raw_os_error(errno);
        let text = plain(&error);
        (error, text)
    };
    if mode & libc::S_IFMT == libc::S_IFDIR {
        // Clients know a program that cannot be executed, exit code 126, by the text of the error
        // that execve(2) has for a directory.
        let (error, text) = refuse(libc::EACCES);
        return Err((error, format!("is a directory: {text}")));
    }
    let c_path =
        CString::new(OsStr::as_bytes(path.as_os_str())).map_err(|_| refuse(libc::EINVAL))?;
    match sys::may_execute(&c_path) {
        // A filter that does not know faccessat2(2). As Go: the file's mode must do; execve has the last word.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            if mode & 0o111 == 0 {
                return Err(refuse(libc::EACCES));
            }
            Ok(())
        }
        result => result.map_err(|error| {
            let text = plain(&error);
            (error, text)
        }),
    }
}
