//! Processes of this host, told apart from later ones with the same pid by their start time and the boot.

use std::fs;
use std::io;
use std::num::ParseIntError;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Names the kernel's current boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A boot of this host, as the kernel names it: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Boot(u128);

impl TryFrom<String> for Boot {
    type Error = ParseIntError;

    fn try_from(text: String) -> Result<Boot, ParseIntError> {
        u128::from_str_radix(&text.replace('-', ""), 16).map(Boot)
    }
}

impl From<Boot> for String {
    fn from(boot: Boot) -> String {
        format!("{:032x}", boot.0)
    }
}

/// A process: its pid, when it started, and in which boot. No two processes have all three in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// Process id in the pid namespace of the verbs.
    pub(crate) pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat` (proc(5)).
    pub(crate) start_time: u64,
    pub(crate) boot: Boot,
}

impl Identity {
    /// The process that has this pid now; `None` if there is none or it has ended.
    pub(crate) fn of(pid: i32) -> Option<Identity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_time = start_time(&stat)?;
        let boot = fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        Some(Identity {
            pid,
            start_time,
            boot: boot.try_into().ok()?,
        })
    }

    /// Whether it runs. A zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        Identity::of(self.pid) == Some(*self)
    }

    /// A descriptor of the process; `None` if it has ended.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at after it has been opened: what the descriptor refers to cannot change any more.
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// The start time in a line of `/proc/<pid>/stat`; `None` for a process that has ended.
fn start_time(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses, and it may hold anything, parentheses included.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    // The state is the main thread's. Where that alone has ended, the others still run.
    let ended = matches!(state, "Z" | "X" | "x") && threads <= 1;
    (!ended).then_some(start_time)
}

/// Whether the process of `pidfd` ends before `timeout` has passed.
pub(crate) fn ends_within(pidfd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result? != 0),
        }
    }
}

/// Sends SIGKILL; one that has already ended is fine.
pub(crate) fn kill(pidfd: impl AsFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn reads_stat() {
        let rest = |threads| format!("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 4242 20");
        assert_eq!(start_time(&format!("7 (a) b) S {}", rest(1))), Some(4242));
        for threads in [0, 1] {
            assert_eq!(start_time(&format!("7 (a) Z {}", rest(threads))), None);
        }
        assert_eq!(start_time(&format!("7 (a) Z {}", rest(2))), Some(4242));
        assert_eq!(start_time("7 (a) S 1 2"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn a_boot_is_read_as_it_was_written() {
        let text = "0123abcd-89ab-4def-8123-456789abcdef".to_owned();
        let boot = Boot::try_from(text).unwrap();
        assert_eq!(String::from(boot), "0123abcd89ab4def8123456789abcdef");
        assert_eq!(Boot::try_from(String::from(boot)).unwrap(), boot);
        Boot::try_from("boot".to_owned()).unwrap_err();
    }

    #[test]
    fn a_process_lives_until_it_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(identity.is_alive());
        let later = Identity {
            start_time: identity.start_time + 1,
            ..identity
        };
        assert!(!later.is_alive());
        assert!(later.open().unwrap().is_none());
        let other_boot = Identity {
            boot: "0".to_owned().try_into().unwrap(),
            ..identity
        };
        assert!(!other_boot.is_alive());
        let pidfd = identity.open().unwrap().unwrap();
        assert!(!ends_within(&pidfd, Duration::ZERO).unwrap());
        kill(&pidfd).unwrap();
        assert!(ends_within(&pidfd, Duration::from_secs(10)).unwrap());
        assert!(!identity.is_alive());
        child.wait().unwrap();
        kill(&pidfd).unwrap();
        assert!(identity.open().unwrap().is_none());
    }
}
