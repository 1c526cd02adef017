//! `linux.sysctl`: parameters of the guest's kernel.
//!
//! Those of a namespace are set from inside of it. All others belong to the guest as a whole, and
//! so to every container of the machine; they are set by the stage, as a user namespace has no
//! right to.

use std::fs;
use std::path::Path;

use oci_spec::runtime::Spec;
use specification::sysctl;

use crate::error::{During, Error, Result};

/// When a parameter is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before the container's namespaces are there.
    Before,
    /// In the container's namespaces, through the guest's own /proc: its files show the namespaces of who opens them.
    InNamespaces,
}

/// Sets the parameters whose moment it is.
pub(super) fn set(spec: &Spec, moment: Moment) -> Result<()> {
    let linux = spec.linux().as_ref();
    let settings = linux.and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in settings.into_iter().flatten() {
        let path = sysctl::path(name)
            .ok_or_else(|| Error::Config(format!("linux.sysctl: bad name {name:?}")))?;
        if self::moment(&path) == moment {
            fs::write(Path::new("/proc/sys").join(path), value)
                .during(|| format!("set linux.sysctl {name} to {value:?}"))?;
        }
    }
    Ok(())
}

fn moment(path: &str) -> Moment {
    match sysctl::namespace(path) {
        Some(_) => Moment::InNamespaces,
        None => Moment::Before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_no_namespace_comes_first() {
        for (name, expected) in [
            ("vm/overcommit_memory", Moment::Before),
            ("kernel/pid_max", Moment::Before),
            ("fs/nr_open", Moment::Before),
            ("fs/mqueue/msg_max", Moment::InNamespaces),
            ("kernel/shm_rmid_forced", Moment::InNamespaces),
            ("net/core/somaxconn", Moment::InNamespaces),
        ] {
            assert_eq!(moment(name), expected, "{name}");
        }
    }
}
