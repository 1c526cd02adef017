//! The startContainer hooks (runtime-spec, config.md, POSIX-platform Hooks): run by init in the
//! container, as the container's user, between the start and the program.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{getpid, pipe2};
use oci_spec::runtime::{Hook, Spec};
use protocol::Setup;
use serde_json::json;
use specification::HookKind;

use crate::error::{During, Result};
use crate::sys;

/// The hooks that run here.
const KIND: HookKind = HookKind::StartContainer;

/// What is kept of a hook's output, from its end, in bytes.
const TAIL: usize = 4 << 10;

/// Runs the hooks one after the other. The first that fails is the last. `env` is the program's
/// environment, for those without one of their own, as with runc.
pub(super) fn run(spec: &Spec, setup: &Setup, env: &[CString]) -> Result<()> {
    for (index, hook) in KIND.of(spec).iter().enumerate() {
        run_one(hook, &state(spec, setup), env)
            .during(|| format!("error running {KIND} hook #{index}"))?;
    }
    Ok(())
}

/// The state as the container sees it (runtime-spec, runtime.md, State).
fn state(spec: &Spec, setup: &Setup) -> String {
    let mut state = json!({
        "ociVersion": spec.version(),
        "id": setup.id,
        "status": KIND.status(),
        "pid": getpid().as_raw(),
        "bundle": setup.bundle,
    });
    if let Some(annotations) = spec.annotations().as_ref().filter(|a| !a.is_empty()) {
        state["annotations"] = json!(annotations);
    }
    state.to_string()
}

fn run_one(hook: &Hook, state: &str, env: &[CString]) -> io::Result<()> {
    // A file, because a pipe that nobody reads could fill up.
    let mut input = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
    input.write_all(state.as_bytes())?;
    input.rewind()?;
    let (output, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    for entry in hook.env().iter().flatten() {
        let (name, value) = entry
            .split_once('=')
            .ok_or_else(|| io::Error::other(format!("env: {entry:?} has no value")))?;
        command.env(name, value);
    }
    if hook.env().is_none() {
        command.envs(env.iter().filter_map(|entry| pair(entry.as_bytes())));
    }
    command
        .process_group(0)
        .stdin(input)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    let mut child = command.spawn()?;
    drop(command);
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    let timeout = timeout.map(Duration::from_secs);
    let mut tail = Vec::new();
    match attend(&child, output, timeout, &mut tail) {
        Ok(true) => verdict(child.wait()?, &tail),
        other => {
            kill(&mut child)?;
            other?;
            let seconds = timeout.unwrap_or_default().as_secs_f64();
            let text = format!("hook ran past specified timeout of {seconds:.1}s");
            Err(io::Error::other(text + &said(&tail)))
        }
    }
}

/// Name and value of an entry of an environment.
fn pair(entry: &[u8]) -> Option<(&OsStr, &OsStr)> {
    let mut parts = entry.splitn(2, |byte| *byte == b'=');
    let (name, value) = (parts.next()?, parts.next()?);
    Some((OsStr::from_bytes(name), OsStr::from_bytes(value)))
}

/// Kills the hook and what it has started in its process group, and waits for it.
fn kill(child: &mut Child) -> io::Result<()> {
    // Not reaped yet, so the number is still its own.
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    sys::kill(-group, libc::SIGKILL)?;
    child.wait().map(drop)
}

/// Collects the output until the hook ends. False when the time is over before.
fn attend(
    child: &Child,
    output: OwnedFd,
    timeout: Option<Duration>,
    tail: &mut Vec<u8>,
) -> io::Result<bool> {
    let begun = Instant::now();
    let ended = sys::pidfd_open(i32::try_from(child.id()).map_err(io::Error::other)?)?;
    let mut output = Some(File::from(output));
    loop {
        let left = match timeout.map(|timeout| timeout.checked_sub(begun.elapsed())) {
            None => PollTimeout::NONE,
            Some(None) => return Ok(false),
            // Rounded up, so that the last turn does not spin.
            Some(Some(left)) => {
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut watched = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        watched.extend(
            output
                .as_ref()
                .map(|o| PollFd::new(o.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut watched, left) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        let over = watched[0].any() == Some(true);
        if let Some(pipe) = &mut output
            && !collect(pipe, tail)?
        {
            output = None;
        }
        if over {
            return Ok(true);
        }
    }
}

/// Reads once what has been written. False at the end of it.
fn collect(pipe: &mut File, tail: &mut Vec<u8>) -> io::Result<bool> {
    // As much as a pipe holds, so that at the hook's end one read is all.
    let mut piece = vec![0; 64 << 10];
    match pipe.read(&mut piece) {
        Ok(0) => Ok(false),
        Ok(count) => {
            tail.extend_from_slice(&piece[..count]);
            tail.drain(..tail.len().saturating_sub(TAIL));
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

fn verdict(status: ExitStatus, tail: &[u8]) -> io::Result<()> {
    let how = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    };
    Err(io::Error::other(how + &said(tail)))
}

fn said(tail: &[u8]) -> String {
    match String::from_utf8_lossy(tail).trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: &[&str]) -> Spec {
        let hook = |script: &&str| json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"], "timeout": 1});
        let hooks: Vec<_> = hooks.iter().map(hook).collect();
        let value = json!({"ociVersion": "1.0.2", "annotations": {"k": "v"},
            "hooks": {"startContainer": hooks, "poststop": [{"path": "/nosuch"}]}});
        serde_json::from_value(value).unwrap()
    }

    fn setup() -> Setup {
        Setup {
            id: "c".to_owned(),
            bundle: "/b".to_owned(),
            ..Setup::default()
        }
    }

    fn failure(hooks: &[&str]) -> String {
        let error = run(&spec(hooks), &setup(), &[]).unwrap_err();
        error.failure().to_string()
    }

    #[test]
    fn a_hook_has_the_state_and_its_own_environment_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let script = format!(
            "cat > {}; /usr/bin/env > {}",
            at("state").display(),
            at("env").display()
        );
        run(&spec(&[&script]), &setup(), &[c"B=c".into()]).unwrap();
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(at("state")).unwrap()).unwrap();
        let expected = json!({"ociVersion": "1.0.2", "id": "c", "status": "created",
            "pid": std::process::id(), "bundle": "/b", "annotations": {"k": "v"}});
        assert_eq!(state, expected);
        let env = std::fs::read_to_string(at("env")).unwrap();
        let mut names: Vec<_> = env.lines().filter(|line| !line.starts_with('_')).collect();
        // What the shell itself adds.
        names.retain(|line| !line.starts_with("PWD=") && !line.starts_with("SHLVL="));
        assert_eq!(names, ["A=b"]);
    }

    #[test]
    fn the_first_failure_is_told_and_is_the_last() {
        let text = failure(&["true", "echo no >&2; exit 3", "sleep 5"]);
        assert_eq!(
            text,
            "error running startContainer hook #1: exit status 3: no"
        );
        let text = failure(&["kill -9 $$"]);
        assert_eq!(
            text,
            "error running startContainer hook #0: killed by signal 9"
        );
        let text = failure(&["head -c 300000 /dev/zero | tr '\\0' x; echo end; exit 1"]);
        assert!(
            text.ends_with("xend") && text.len() < TAIL + 100,
            "{}",
            text.len()
        );
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
        let begun = Instant::now();
        let text = failure(&["sleep 60 & wait"]);
        assert!(
            text.ends_with("hook ran past specified timeout of 1.0s"),
            "{text}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_hook_without_an_environment_has_the_programs() {
        let mut spec = spec(&[]);
        let script = "test \"$A\" = b=c -a -z \"$HOME\"";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let hooks = serde_json::from_value(json!({"startContainer": [hook]}));
        spec.set_hooks(hooks.unwrap());
        run(&spec, &setup(), &[c"A=b=c".into()]).unwrap();
        assert!(run(&spec, &setup(), &[]).is_err());
    }

    #[test]
    fn a_hook_that_is_not_there_is_a_failure() {
        let mut spec = spec(&[]);
        let hooks = json!({"startContainer": [{"path": "/nosuch"}]});
        spec.set_hooks(serde_json::from_value(hooks).unwrap());
        let text = run(&spec, &setup(), &[]).unwrap_err().failure().to_string();
        assert!(
            text.starts_with("error running startContainer hook #0: No such file"),
            "{text}"
        );
    }
}
