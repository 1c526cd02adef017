//! The seccomp filters of each thread, as the kernel has them, against those that the runtime installs.
//!
//! A thread is stopped by ptrace(2) for as long as it takes to read its filters, one thread at a time. The stop is
//! between two of its instructions, or ends a system call that is then taken up again; a vCPU leaves the guest and
//! enters it again. What holds a thread in the kernel without end cannot hold this: it is waited for so long only.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Claim;
use super::process::{Host, Process, Thread};
use super::sys::{self, Instruction};
use crate::filter;

/// How long a thread may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two looks whether it has.
const LOOK: Duration = Duration::from_millis(1);

pub(super) fn machine(process: &Process, _: &Host) -> Vec<Claim> {
    check(process, filter::of)
}

pub(super) fn stub(process: &Process, _: &Host) -> Vec<Claim> {
    check(process, |_| filter::STUB)
}

pub(super) fn watcher(process: &Process, _: &Host) -> Vec<Claim> {
    check(process, |_| filter::WATCH)
}

/// Each thread's newest filter is the one that is embedded for it, by its name; those before it are the caller's own,
/// and can deny more only.
fn check(process: &Process, expected: fn(&str) -> &'static [u64]) -> Vec<Claim> {
    let problem = |thread: &Thread| {
        let why = match filters(thread.id) {
            Ok(None) => return None,
            // Kernels without CONFIG_CHECKPOINT_RESTORE.
            Ok(Some(filters)) if filters.is_empty() && thread.status.has_filter() => {
                "this host's kernel does not show it".to_owned()
            }
            Ok(Some(filters)) => compare(filters.last(), expected(&thread.name))?.to_owned(),
            Err(e) => e.to_string(),
        };
        Some(format!("{}: {why}", thread.name))
    };
    let problems: Vec<_> = process.threads.iter().filter_map(problem).collect();
    vec![Claim::of(&problems, "each thread's is the embedded one")]
}

/// What is wrong with a filter.
fn compare(found: Option<&Vec<Instruction>>, expected: &[u64]) -> Option<&'static str> {
    let Some(found) = found else {
        return Some("no filter");
    };
    let same = found.iter().map(as_number).eq(expected.iter().copied());
    (!same).then_some("another filter than the embedded one")
}

/// `struct sock_filter` (linux/filter.h) as one number.
fn as_number(instruction: &Instruction) -> u64 {
    u64::from(instruction.code)
        | u64::from(instruction.jt) << 16
        | u64::from(instruction.jf) << 24
        | u64::from(instruction.k) << 32
}

/// The filters of a thread, the newest last; `None` if it has ended.
fn filters(thread: i32) -> io::Result<Option<Vec<Vec<Instruction>>>> {
    let thread = Pid::from_raw(thread);
    match ptrace::seize(thread, ptrace::Options::empty()) {
        Err(Errno::ESRCH) => return Ok(None),
        seized => seized?,
    }
    let Some(signal) = stop(thread)? else {
        return Ok(None);
    };
    let mut filters = Vec::new();
    let result = loop {
        match sys::seccomp_filter(thread.as_raw(), filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => break Ok(()),
            // No filter at all.
            Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) && filters.is_empty() => {
                break Ok(());
            }
            Err(e) => break Err(e),
        }
    };
    // It goes on, with the signal that it was about to get.
    match ptrace::detach(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => return Err(e.into()),
    }
    result.map(|()| Some(filters))
}

/// Stops a thread: the signal that it was stopped for, if it was for one. `None` if it has ended.
///
/// A thread that does not stop in time is let go when this program ends.
fn stop(thread: Pid) -> io::Result<Option<Option<nix::sys::signal::Signal>>> {
    match ptrace::interrupt(thread) {
        Err(Errno::ESRCH) => return Ok(None),
        interrupted => interrupted?,
    }
    let end = Instant::now() + STOP_TIMEOUT;
    loop {
        match waitpid(thread, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(WaitStatus::Stopped(_, signal)) => return Ok(Some(Some(signal))),
            Ok(WaitStatus::PtraceEvent(..)) => return Ok(Some(None)),
            Ok(_) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if Instant::now() > end {
            return Err(io::Error::other("it did not stop"));
        }
        sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};

    use super::*;

    /// The length of a thread's name, in which that of a test is cut off (TASK_COMM_LEN of linux/sched.h, less a NUL).
    const NAME: usize = 15;

    /// A filter that denies `call`.
    fn filter(call: &str) -> ScmpFilterContext {
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
        let call = ScmpSyscall::from_name(call).unwrap();
        filter.add_rule(ScmpAction::Trap, call).unwrap();
        filter
    }

    fn program(call: &str) -> Vec<u64> {
        let mut file = tempfile::tempfile().unwrap();
        filter(call).export_bpf(&file).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let instruction = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        bytes.chunks_exact(8).map(instruction).collect()
    }

    #[test]
    #[ignore = "a process that the test below looks at"]
    fn subject() {
        filter("personality").load().unwrap();
        filter("acct").load().unwrap();
        std::io::stderr().write_all(b"!").unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        let _ = std::io::stderr().write_all(b"!");
    }

    #[test]
    fn the_filters_of_a_thread_are_read_and_it_goes_on() {
        let name = "audit::filters::tests::subject";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                name,
                "--ignored",
                "--nocapture",
                "--test-threads=2",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stderr.take().unwrap();
        said.read_exact(&mut [0]).unwrap();
        let process = Process::read(child.id().try_into().unwrap()).unwrap();
        let thread = |name: &str| {
            let mut threads = process.threads.iter();
            threads.find(|thread| thread.name == name).unwrap().id
        };
        assert_eq!(filters(thread("main")).unwrap().unwrap().len(), 0);
        let found = filters(thread(&name[..NAME])).unwrap().unwrap();
        let [first, second] = ["personality", "acct"].map(program);
        assert_eq!(found.len(), 2);
        assert_eq!(compare(Some(&found[0]), &first), None);
        assert_eq!(compare(found.last(), &second), None);
        assert!(compare(found.last(), &first).is_some());
        assert!(compare(found.last(), &second[1..]).is_some());
        assert!(compare(None, &first).is_some());
        // What it was interrupted in is taken up again.
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        said.read_exact(&mut [0]).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(filters(thread("main")).unwrap().is_none());
    }
}
