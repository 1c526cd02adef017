//! `linux.sysctl`: parameters of the guest's kernel.
//!
//! Those of a namespace are set from inside of it. All others belong to the guest as a whole, which serves this container alone; they are
//! set by the stage, as a user namespace has no right to.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::{During, Error, Result};

/// When a parameter is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before the container's namespaces are there.
    Before,
    /// In the container's namespaces, through the guest's own /proc: its files show the namespaces of who opens them.
    InNamespaces,
}

/// What of /proc/sys belongs to a namespace.
const NAMESPACED: [&str; 8] = [
    "net/",
    "user/",
    "fs/mqueue/",
    "kernel/msg",
    "kernel/sem",
    "kernel/shm",
    "kernel/domainname",
    "kernel/hostname",
];

/// Sets the parameters whose moment it is.
pub(super) fn set(spec: &Spec, moment: Moment) -> Result<()> {
    let linux = spec.linux().as_ref();
    let settings = linux.and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in settings.into_iter().flatten() {
        let relative = file(name)?;
        if self::moment(&relative) == moment {
            fs::write(Path::new("/proc/sys").join(relative), value)
                .during(|| format!("set linux.sysctl {name} to {value:?}"))?;
        }
    }
    Ok(())
}

fn moment(file: &Path) -> Moment {
    let text = file.to_str().unwrap_or_default();
    if NAMESPACED.iter().any(|prefix| text.starts_with(prefix)) {
        Moment::InNamespaces
    } else {
        Moment::Before
    }
}

/// The file of a parameter below /proc/sys. The first of `.` and `/` in a name separates, the other one stands for a dot inside of a part
/// (sysctl(8)).
fn file(name: &str) -> Result<PathBuf> {
    let dots_separate = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let relative: String = if dots_separate {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let relative = PathBuf::from(relative);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    if name.is_empty() || !relative.components().all(plain) {
        return Err(Error::Config(format!("linux.sysctl: bad name {name:?}")));
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_files_below_proc_sys() {
        for (name, expected) in [
            ("kernel.sem", "kernel/sem"),
            (
                "net/ipv4/conf/eno2.100/rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
            (
                "net.ipv4.conf.eno2/100.rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
            ),
        ] {
            assert_eq!(file(name).unwrap(), Path::new(expected));
        }
        for bad in ["", "/etc/passwd", "../x", "..", "a/../b", "."] {
            assert!(file(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_belongs_to_no_namespace_comes_first() {
        for (name, expected) in [
            ("vm.overcommit_memory", Moment::Before),
            ("kernel.pid_max", Moment::Before),
            ("fs.nr_open", Moment::Before),
            ("fs.mqueue.msg_max", Moment::InNamespaces),
            ("kernel.shm_rmid_forced", Moment::InNamespaces),
            ("net.core.somaxconn", Moment::InNamespaces),
        ] {
            assert_eq!(moment(&file(name).unwrap()), expected, "{name}");
        }
    }
}
