//! Whether a machine is in its jail, seen from outside: what the kernel says of its processes, compared with what is
//! declared here. Nothing is asked of the processes themselves, which may be somebody else's by now.
//!
//! ```text
//!  Host (the caller's view) ──┐
//!                             ├─> check ──> claims ──> findings
//!  Process (/proc/PID) ───────┘
//! ```
//! A check is a function of these two. What cannot be seen or decided is said in a note and counts for nothing.

mod checks;
mod descriptors;
mod filters;
mod process;
mod sys;

use std::path::PathBuf;

use serde::Serialize;

use crate::host::watcher;
use process::Process;
pub(crate) use process::{Error, Host};

/// What a check says of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It is as declared.
    Ok,
    /// It is not.
    Fail,
    /// Worth knowing, and neither.
    Note,
}

/// A verdict and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    verdict: Verdict,
    text: String,
}

impl Claim {
    fn ok(text: impl Into<String>) -> Claim {
        Claim {
            verdict: Verdict::Ok,
            text: text.into(),
        }
    }

    fn fail(text: impl Into<String>) -> Claim {
        Claim {
            verdict: Verdict::Fail,
            text: text.into(),
        }
    }

    fn note(text: impl Into<String>) -> Claim {
        Claim {
            verdict: Verdict::Note,
            text: text.into(),
        }
    }

    /// A failure that names every problem, or else what is right.
    fn of(problems: &[String], right: impl Into<String>) -> Claim {
        if problems.is_empty() {
            Claim::ok(right)
        } else {
            Claim::fail(problems.join("; "))
        }
    }
}

/// Looks at one point of a process.
type Check = fn(&Process, &Host) -> Vec<Claim>;

/// What holds of a machine process.
const MACHINE: [(&str, Check); 13] = [
    ("descriptors", descriptors::machine),
    ("root", checks::root),
    ("namespaces", checks::machine_namespaces),
    ("ids", checks::machine_ids),
    ("capabilities", checks::machine_capabilities),
    ("no_new_privs", checks::no_new_privs),
    ("seccomp", checks::seccomp),
    ("filters", filters::machine),
    ("dumpable", checks::dumpable),
    ("limits", checks::machine_limits),
    ("cgroup", checks::machine_cgroup),
    ("landlock", checks::landlock),
    ("selinux", checks::machine_label),
];

/// What holds of the process that stands for an exec or for a further container.
const STUB: [(&str, Check); 11] = [
    ("descriptors", descriptors::stub),
    ("root", checks::root),
    ("namespaces", checks::stub_namespaces),
    ("ids", checks::ids),
    ("capabilities", checks::stub_capabilities),
    ("no_new_privs", checks::no_new_privs),
    ("seccomp", checks::seccomp),
    ("filters", filters::stub),
    ("limits", checks::stub_limits),
    ("cgroup", checks::stub_cgroup),
    ("selinux", checks::stub_label),
];

/// What holds of the process that has a machine follow its network.
const WATCHER: [(&str, Check); 11] = [
    ("descriptors", descriptors::watcher),
    ("root", checks::root),
    ("namespaces", checks::stub_namespaces),
    ("ids", checks::ids),
    ("capabilities", checks::watcher_capabilities),
    ("no_new_privs", checks::no_new_privs),
    ("seccomp", checks::seccomp),
    ("filters", filters::watcher),
    ("limits", checks::stub_limits),
    ("cgroup", checks::watcher_cgroup),
    ("selinux", checks::stub_label),
];

/// What was found at one point.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    /// The process, if it is a stub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stub: Option<i32>,
    /// The process, if it is a watcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watcher: Option<i32>,
    pub(crate) point: &'static str,
    pub(crate) text: String,
}

/// What is to be looked at.
pub(crate) struct Subject {
    /// The machine process.
    pub(crate) machine: i32,
    /// The stubs and watchers of its containers.
    pub(crate) attendants: Vec<i32>,
    /// Its cgroup v2 directory.
    pub(crate) cgroup: Option<PathBuf>,
    /// Those of the further containers of the machine.
    pub(crate) members: Vec<PathBuf>,
    /// The state directories of all its containers.
    pub(crate) states: Vec<PathBuf>,
    /// The numbers of the block devices that the machine was given.
    pub(crate) disks: Vec<u64>,
    /// The SELinux labels that its containers were given, first that of the machine process; `None` where there is no
    /// SELinux.
    pub(crate) labels: Option<Vec<Option<String>>>,
}

/// Looks at all of it.
///
/// # Errors
/// When the machine process cannot be looked at, for instance because it has ended. An attendant that has ended meanwhile
/// is left out.
pub(crate) fn audit(subject: Subject) -> Result<Vec<Finding>, Error> {
    let (machine, attendants) = (subject.machine, subject.attendants.clone());
    let host = Host::read(subject)?;
    let machine = Process::read(machine)?;
    let mut findings = findings(&machine, &host, (None, None), &MACHINE);
    for pid in attendants {
        let process = match Process::read(pid) {
            Err(Error::Ended(_)) => continue,
            process => process?,
        };
        // A stub cannot take the name, for which it has no call; and the filter of a watcher is another one.
        findings.extend(match process.main().name == watcher::NAME {
            true => self::findings(&process, &host, (None, Some(pid)), &WATCHER),
            false => self::findings(&process, &host, (Some(pid), None), &STUB),
        });
    }
    Ok(findings)
}

fn findings(
    process: &Process,
    host: &Host,
    (stub, watcher): (Option<i32>, Option<i32>),
    checks: &[(&'static str, Check)],
) -> Vec<Finding> {
    let claims = checks.iter().flat_map(|(point, check)| {
        let claims = check(process, host).into_iter();
        claims.map(|claim| (*point, claim))
    });
    claims
        .map(|(point, Claim { verdict, text })| Finding {
            verdict,
            stub,
            watcher,
            point,
            text,
        })
        .collect()
}
