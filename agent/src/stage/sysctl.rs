//! Parameters of the guest's kernel: those that are to be no less than the host's, and `linux.sysctl`.
//!
//! Those of a namespace are set from inside of it. All others belong to the guest as a whole, and
//! so to every container of the machine; they are set by the stage, as a user namespace has no
//! right to.

use std::fs;
use std::io;
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

/// Sets the parameters that are less than these, which are the host's (`Overlay::parameters`). What this kernel does not
/// have or does not take stays as it is: nobody has asked for it by name.
pub(super) fn inherit(parameters: &[(String, String)]) -> Result<()> {
    for (path, value) in parameters {
        let file = Path::new("/proc/sys").join(path);
        let set = || match fs::read_to_string(&file) {
            Ok(own) if is_less(&own, value) => fs::write(&file, value),
            result => result.map(drop),
        };
        match set() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                ) => {}
            result => result.during(|| format!("set {path} to {value:?}, as on the host"))?,
        }
    }
    Ok(())
}

/// A parameter's own value is a lesser number than the other one, or another word.
fn is_less(own: &str, other: &str) -> bool {
    let (own, other) = (own.trim(), other.trim());
    match (own.parse::<u64>(), other.parse::<u64>()) {
        (Ok(own), Ok(other)) => own < other,
        _ => own != other,
    }
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
    fn what_is_less_than_the_hosts() {
        for (own, other, expected) in [
            ("65530\n", "262144", true),
            ("262144\n", "65530", false),
            ("7\n", "7", false),
            ("9\n", "10", true),
            ("1\n", "9223372036854775807", true),
            ("core\n", "/tmp/core.%p", true),
            ("core\n", "core", false),
            ("core\n", "0", true),
        ] {
            assert_eq!(is_less(own, other), expected, "{own:?} {other:?}");
        }
    }

    #[test]
    fn a_parameter_that_the_kernel_does_not_have_is_left_out() {
        let parameters = [("vm/no_such_parameter".to_owned(), "1".to_owned())];
        inherit(&parameters).unwrap();
    }

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
