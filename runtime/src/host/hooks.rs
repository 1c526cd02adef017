//! Hooks that run on the host (config.md, POSIX-platform Hooks): programs of the caller's, told the container's state.
//!
//! | kind | when | where |
//! |---|---|---|
//! | prestart, createRuntime | the machine process is in its namespaces, the guest has not run | the caller's namespaces |
//! | createContainer | then | the machine process's network namespace, and the host's files, where `root.path` means something |
//! | poststart | the program runs | the caller's namespaces |
//! | poststop | nothing of the container is left | the caller's namespaces |
//!
//! The first that fails is the last. Only after the container is gone the others still run, and failures are warnings.
//! startContainer is the guest's.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Spec};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::json;
pub(crate) use specification::HookKind as Kind;

use crate::report::Report;
use crate::state::Record;

/// Maximum number of bytes of a failed hook's last output that are reported.
const TAIL: usize = 4 << 10;

/// Why hooks could not do their work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("error running {kind} hook #{index}: {}: {problem}", path.display())]
    Hook {
        kind: Kind,
        index: usize,
        path: PathBuf,
        problem: Problem,
    },
    #[error("enter the container's network namespace: {0}")]
    Network(io::Error),
}

/// What is wrong with a hook.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("{}, output: {output}", ending(.status))]
    Status { status: ExitStatus, output: String },
    #[error("hook ran past specified timeout of {:.1}s", .0.as_secs_f64())]
    Timeout(Duration),
}

fn ending(status: &ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// The hooks of a container.
pub(crate) struct Hooks {
    kinds: [(Kind, Vec<Hook>); Kind::ALL.len()],
    version: String,
    id: String,
    bundle: PathBuf,
    annotations: std::collections::BTreeMap<String, String>,
}

impl Hooks {
    /// Those of a container with this configuration.
    pub(crate) fn of(spec: &Spec, record: &Record) -> Hooks {
        Hooks {
            kinds: Kind::ALL.map(|kind| (kind, kind.of(spec).to_vec())),
            version: record.oci_version.clone(),
            id: record.id.clone(),
            bundle: record.bundle.clone(),
            annotations: record.annotations.clone(),
        }
    }

    /// Runs the hooks of one kind up to the first that fails; `pid` is the machine process's.
    pub(crate) fn run(&self, kind: Kind, pid: i32) -> Result<(), Error> {
        if self.hooks(kind).next().is_none() {
            return Ok(());
        }
        let all = || {
            let mut hooks = self.hooks(kind);
            hooks.try_for_each(|(index, hook)| self.run_one(kind, index, hook, pid))
        };
        if kind != Kind::CreateContainer {
            return all();
        }
        let network = File::open(format!("/proc/{pid}/ns/net")).map_err(Error::Network)?;
        // A namespace is entered by a thread, and what the thread clones is in it.
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&network, CloneFlags::CLONE_NEWNET).map_err(|e| Error::Network(e.into()))?;
                all()
            });
            entered
                .join()
                .unwrap_or_else(|_| Err(Error::Network(io::Error::other("thread panicked"))))
        })
    }

    /// Runs all hooks for the time after the container; a failure is a warning.
    pub(crate) fn run_poststop(&self, report: &Report) {
        for (index, hook) in self.hooks(Kind::Poststop) {
            if let Err(e) = self.run_one(Kind::Poststop, index, hook, 0) {
                report.warn(&e.to_string());
            }
        }
    }

    fn hooks(&self, kind: Kind) -> impl Iterator<Item = (usize, &Hook)> {
        let of_kind = self.kinds.iter().filter(move |(k, _)| *k == kind);
        of_kind.flat_map(|(_, hooks)| hooks.iter().enumerate())
    }

    fn run_one(&self, kind: Kind, index: usize, hook: &Hook, pid: i32) -> Result<(), Error> {
        let result = self.execute(hook, &self.state(kind, pid));
        result.map_err(|problem| Error::Hook {
            kind,
            index,
            path: hook.path().clone(),
            problem,
        })
    }

    /// The state as the specification has it (runtime.md, State).
    fn state(&self, kind: Kind, pid: i32) -> String {
        let mut state = json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": kind.status(),
            "bundle": self.bundle,
        });
        if pid != 0 {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = json!(self.annotations);
        }
        state.to_string()
    }

    fn execute(&self, hook: &Hook, state: &str) -> Result<(), Problem> {
        // A file, not a pipe: the hook need not read it.
        let mut stdin =
            File::from(memfd_create("state", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        stdin.write_all(state.as_bytes())?;
        stdin.rewind()?;
        let (output, theirs) = io::pipe()?;
        let mut command = Command::new(hook.path());
        match hook.args().as_deref() {
            Some([name, arguments @ ..]) => command.arg0(name).args(arguments),
            _ => &mut command,
        };
        // As with runc, a hook without an environment of its own has this verb's.
        if let Some(env) = hook.env() {
            let entries = env.iter().filter_map(|entry| entry.split_once('='));
            command.env_clear().envs(entries);
        }
        command
            .stdin(stdin)
            .stdout(theirs.try_clone()?)
            .stderr(theirs)
            // What it leaves running ends with it when its time is up.
            .process_group(0);
        if self.bundle.is_dir() {
            command.current_dir(&self.bundle);
        }
        let child = command.spawn();
        // Its copies of the pipe's end would keep the pipe open.
        drop(command);
        attend(child?, output, hook.timeout())
    }
}

/// Waits for a hook, no longer than `timeout` seconds.
fn attend(mut child: Child, output: io::PipeReader, timeout: Option<i64>) -> Result<(), Problem> {
    let timeout = timeout.and_then(|seconds| u64::try_from(seconds).ok());
    let timeout = timeout.map(Duration::from_secs);
    let mut output = Tail::new(output)?;
    match wait(&child, &mut output, timeout) {
        Ok(true) => {}
        waited => {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
            waited?;
            return Err(Problem::Timeout(timeout.unwrap_or_default()));
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    // What it has written is there, whoever holds the other end.
    output.read()?;
    Err(Problem::Status {
        status,
        output: output.text(),
    })
}

/// Whether the child has ended in time.
fn wait(child: &Child, output: &mut Tail, timeout: Option<Duration>) -> io::Result<bool> {
    let begun = Instant::now();
    // Not waited for yet: the pid is the child's.
    let pidfd = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty())?;
    let mut open = true;
    loop {
        let left = match timeout.map(|timeout| timeout.saturating_sub(begun.elapsed())) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Ok(false),
            // Rounded up; more than fits is waited for in parts.
            Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
        };
        let mut polled = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN),
        ];
        let watched = if open { 2 } else { 1 };
        match poll(&mut polled[..watched], left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let (ended, readable) = (polled[0].any(), polled[1].any());
        if open && readable == Some(true) {
            open = output.read()?;
        }
        if ended == Some(true) {
            return Ok(true);
        }
    }
}

/// The last bytes that come out of a pipe.
struct Tail {
    pipe: io::PipeReader,
    bytes: Vec<u8>,
}

impl Tail {
    fn new(pipe: io::PipeReader) -> io::Result<Tail> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let bytes = Vec::new();
        Ok(Tail { pipe, bytes })
    }

    /// Reads what is there, a bounded number of times; whether there can be more.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; TAIL];
        // A pipe holds 64 KiB unless its owner says otherwise (pipe(7)).
        for _ in 0..(64 << 10) / TAIL {
            match self.pipe.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.bytes.extend_from_slice(&chunk[..length]);
                    let surplus = self.bytes.len().saturating_sub(TAIL);
                    self.bytes.drain(..surplus);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// Hooks of one kind, each a shell script, in the bundle `dir`.
    fn hooks(dir: &tempfile::TempDir, kind: Kind, scripts: &[&str]) -> Hooks {
        let hooks: Vec<_> = scripts
            .iter()
            .map(|script| json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"], "timeout": 1}))
            .collect();
        let kind = kind.to_string();
        let spec = json!({"ociVersion": "1.0.2", "hooks": {kind: hooks}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let mut record = Record::new("c1", dir.path().to_owned(), PathBuf::new());
        record.oci_version = "1.0.2".into();
        Hooks::of(&spec, &record)
    }

    #[test]
    fn a_hook_is_told_the_state_and_has_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let script = "/bin/cat >state; echo $A >env; set | /bin/grep -c ^HOME= >>env; true";
        let all = hooks(&dir, Kind::CreateRuntime, &[script]);
        all.run(Kind::CreateRuntime, 42).unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
        let expected = json!({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 42,
            "bundle": dir.path()});
        assert_eq!(state, expected);
        assert_eq!(read("env"), "b\n0\n");
        assert!(!all.state(Kind::Poststop, 0).contains("pid"));
    }

    #[test]
    fn a_hook_without_an_environment_has_the_verbs() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = hooks(&dir, Kind::Prestart, &["/usr/bin/env >env"]);
        let hook = &mut all.kinds[0].1[0];
        hook.set_env(None);
        all.run(Kind::Prestart, 1).unwrap();
        let env = std::fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(env.contains("CARGO_MANIFEST_DIR="), "{env}");
    }

    #[test]
    fn the_first_that_fails_is_named_and_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = ["true", "echo why >&2; exit 3", "echo >later"];
        let all = hooks(&dir, Kind::Prestart, &scripts);
        assert_eq!(
            all.run(Kind::Prestart, 1).unwrap_err().to_string(),
            "error running prestart hook #1: /bin/sh: exit status 3, output: why"
        );
        assert!(!dir.path().join("later").exists());
    }

    #[test]
    fn after_the_container_all_run() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let report = Report::new(Some(&log), crate::cli::LogFormat::Text, false).unwrap();
        hooks(&dir, Kind::Poststop, &["exit 1", "echo >later"]).run_poststop(&report);
        assert!(dir.path().join("later").exists());
        let text = std::fs::read_to_string(log).unwrap();
        assert!(text.contains("poststop hook #0"), "{text}");
    }

    #[test]
    fn a_hook_is_killed_with_its_children_when_its_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let script = "/bin/sleep 1000 & echo $! >child; wait";
        let all = hooks(&dir, Kind::Poststart, &[script]);
        let error = all.run(Kind::Poststart, 1).unwrap_err().to_string();
        assert!(error.ends_with("past specified timeout of 1.0s"), "{error}");
        let child = std::fs::read_to_string(dir.path().join("child")).unwrap();
        let child = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
        // The signal takes a moment; whoever inherits the child may have reaped it by then.
        if let Ok(pidfd) = pidfd_open(child, PidfdFlags::empty()) {
            let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut polled, PollTimeout::from(10_000_u16)), Ok(1));
        }
    }

    #[test]
    fn much_output_and_what_is_left_running_block_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let script = "/bin/sleep 5 & /usr/bin/head -c 300000 /dev/zero; echo end; exit 1";
        let begun = Instant::now();
        let error = hooks(&dir, Kind::Prestart, &[script]).run(Kind::Prestart, 1);
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("end") && error.len() < 2 * TAIL);
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn create_container_hooks_are_in_the_network_namespace_of_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let mut other = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare, as root");
        let mut line = [0];
        other
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        let pid = i32::try_from(other.id()).unwrap();
        let script = "/bin/readlink /proc/self/ns/net >ns";
        hooks(&dir, Kind::CreateContainer, &[script])
            .run(Kind::CreateContainer, pid)
            .unwrap();
        let found = std::fs::read_to_string(dir.path().join("ns")).unwrap();
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        let expected = of(&pid.to_string());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(PathBuf::from(found.trim()), expected);
        assert_ne!(expected, of("self"));
    }
}
