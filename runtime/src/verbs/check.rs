//! `check`: one line for each thing that this host lacks.

mod probe;

use std::{fs, io};

use nix::unistd::geteuid;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::one_line;
use crate::host::cgroup::{self, Layout};
use crate::host::{apparmor, network, selinux};
use crate::sys::landlock_version;

/// Oldest kernel whose interfaces suffice: clone3 into a cgroup (5.7), mount_setattr (5.12), cgroup.kill (5.14).
const KERNEL_MIN: (u32, u32) = (5, 14);

/// What is missing, one line each.
pub(crate) fn check() -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |problem: Option<String>| missing.extend(problem);
    note(
        (!geteuid().is_root())
            .then(|| "not root: rootless containers are not supported yet".into()),
    );
    note(kernel());
    note(cgroups());
    note(user_namespaces());
    note(mount_api());
    note(landlock(landlock_version()));
    missing.extend(probe::kvm());
    missing.extend(networks());
    missing.extend(localhost());
    missing.extend(apparmor());
    missing.extend(selinux::check());
    missing
}

fn kernel() -> Option<String> {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let old = parse_release(&release).is_none_or(|version| version < KERNEL_MIN);
    let (major, minor) = KERNEL_MIN;
    old.then(|| format!("kernel {release}: {major}.{minor} or later is needed"))
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn cgroups() -> Option<String> {
    match cgroup::hierarchy() {
        Some((_, Layout::Unified)) => None,
        Some((path, Layout::Hybrid)) => Some(format!(
            "cgroup v2 has no controllers here (it is mounted on {} in addition to cgroup v1): machines are not limited on the host",
            path.display()
        )),
        None => Some("cgroup v2 is not mounted: containers get no cgroup on the host".into()),
    }
}

fn user_namespaces() -> Option<String> {
    let path = "/proc/sys/user/max_user_namespaces";
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == "0" => {
            Some(format!("user namespaces are disabled ({path} is 0)"))
        }
        Ok(_) => None,
        Err(e) => Some(format!("no user namespaces: {path}: {e}")),
    }
}

fn mount_api() -> Option<String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, c"/", flags)
        .err()
        .map(|e| format!("the mount API by descriptors does not work: open_tree: {e}"))
}

/// What Landlock does not confine here. The versions are those of Documentation/userspace-api/landlock.rst of Linux.
fn landlock(version: io::Result<i64>) -> Option<String> {
    let lacking = match version {
        Err(e) => {
            return Some(format!(
                "no Landlock: the files of a machine process are confined by its mount namespace alone: {e}"
            ));
        }
        Ok(..4) => "connections, signals and abstract sockets",
        Ok(4 | 5) => "signals and abstract sockets",
        Ok(6..) => return None,
    };
    Some(format!(
        "this kernel's Landlock does not confine {lacking} of a machine process: Linux 6.12 or later does"
    ))
}

fn networks() -> Option<String> {
    if !geteuid().is_root() {
        return None;
    }
    let error = network::check().err()?;
    Some(format!(
        "containers have no networks here: {:#}",
        anyhow::Error::from(error)
    ))
}

fn localhost() -> Option<String> {
    if !geteuid().is_root() {
        return None;
    }
    let error = network::check_localhost().err()?;
    Some(format!(
        "kubectl port-forward and others who connect to localhost in a container's network namespace find nobody: {:#}",
        anyhow::Error::from(error)
    ))
}

fn apparmor() -> Option<String> {
    if !geteuid().is_root() || !apparmor::is_enabled() {
        return None;
    }
    let error = apparmor::check().err()?;
    Some(format!(
        "AppArmor is active, but containers with a profile cannot be had: {}",
        one_line(&error)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landlock_is_named_as_far_as_it_lacks() {
        let of = |version| landlock(Ok(version));
        assert!(of(1).is_some_and(|line| line.contains("connections, signals")));
        assert!(of(5).is_some_and(|line| line.contains("confine signals and")));
        assert_eq!((of(6), of(9)), (None, None));
        let none = landlock(Err(io::ErrorKind::Unsupported.into()));
        assert!(none.is_some_and(|line| line.starts_with("no Landlock")));
    }

    #[test]
    fn releases() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.14", Some((5, 14))),
            ("6.18+", Some((6, 18))),
            ("x", None),
            ("6", None),
        ] {
            assert_eq!(parse_release(release), expected, "{release}");
        }
        assert!((5, 9) < KERNEL_MIN && (6, 0) > KERNEL_MIN);
    }
}
