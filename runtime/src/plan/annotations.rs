//! Chiton's own annotations. The size of the machine is that of [`super::size`]; the others say what the machine shares
//! with the rest of the host, and what stands for that which it cannot share. And those of callers.

use std::collections::{BTreeMap, HashMap};

use super::ledger::Ledger;
use crate::machine::{CORE_SCHEDULING, Isolation};

/// How the names of all of them begin.
const PREFIX: &str = "dev.chiton.";

pub(super) const MEMORY: &str = "dev.chiton.memory";
pub(super) const VCPUS: &str = "dev.chiton.vcpus";
const PRIVILEGES: &str = "dev.chiton.volumes.privileges";
const DAX: &str = "dev.chiton.dax";

pub(super) const HOST_NAMESPACES: &str = "dev.chiton.host-namespaces";

/// Those that there are.
pub(crate) const ANNOTATIONS: [&str; 6] = [
    MEMORY,
    VCPUS,
    PRIVILEGES,
    DAX,
    CORE_SCHEDULING,
    HOST_NAMESPACES,
];

/// What the annotations say, beside the machine's size.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) isolation: Isolation,
    /// Where the configuration asks for a namespace of the host, the guest's stands for it.
    pub(super) guests_namespaces: bool,
}

/// What is in force where nothing is said: what a container gets of runc on this host.
const DEFAULT: Said = Said {
    isolation: Isolation {
        volume_privileges: true,
        dax: true,
        core_scheduling: false,
    },
    guests_namespaces: false,
};

/// Who has made the configuration, as Podman and CRI-O say it.
const MANAGER: &str = "io.container.manager";

/// Whether the caller is one that enters the mount namespace of a container's pid to find its files: Podman.
pub(super) fn enters(annotations: &HashMap<String, String>) -> bool {
    annotations
        .get(MANAGER)
        .is_some_and(|name| name == "libpod")
}

/// What the annotations say; one of Chiton's that there is not, or that has another value, is refused.
pub(super) fn said(annotations: &HashMap<String, String>, ledger: &mut Ledger) -> Said {
    let mut own: Vec<_> = annotations
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    own.sort();
    let mut said = DEFAULT;
    let isolation = &mut said.isolation;
    for (name, text) in own {
        let property = format!("annotations[{name}]");
        let (switch, on, off) = match name.as_str() {
            MEMORY | VCPUS => continue,
            PRIVILEGES => (&mut isolation.volume_privileges, "keep", "deny"),
            DAX => (&mut isolation.dax, "on", "off"),
            CORE_SCHEDULING => (&mut isolation.core_scheduling, "on", "off"),
            HOST_NAMESPACES => (&mut said.guests_namespaces, "guest", "refuse"),
            _ => {
                let known = ANNOTATIONS.join(", ");
                let problem = format!("is not an annotation of Chiton's (those are {known})");
                ledger.refuse(property, problem);
                continue;
            }
        };
        match text.as_str() {
            text if text == on => *switch = true,
            text if text == off => *switch = false,
            _ => ledger.refuse(property, format!("{text:?} is neither {on} nor {off}")),
        }
    }
    said
}

/// The annotations that say what the machine is.
const OF_MACHINE: [&str; 5] = [MEMORY, VCPUS, PRIVILEGES, DAX, CORE_SCHEDULING];

/// Whether it is an annotation that says what the machine is.
pub(super) fn is_of_machine(name: &str) -> bool {
    OF_MACHINE.contains(&name)
}

/// Refuses what a member of the machine of `sandbox`, whose annotations are `of_machine`, says otherwise of that.
pub(super) fn check_member(
    annotations: &HashMap<String, String>,
    of_machine: &BTreeMap<String, String>,
    sandbox: &str,
    ledger: &mut Ledger,
) {
    for name in OF_MACHINE {
        let said = annotations.get(name);
        if said.is_some() && said != of_machine.get(name) {
            let problem =
                format!("is not what container {sandbox} says, which the machine was made for");
            ledger.refuse(format!("annotations[{name}]"), problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Said, String> {
        let pairs = annotations.iter();
        let annotations = pairs
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let mut ledger = Ledger::default();
        let said = said(&annotations, &mut ledger);
        match ledger.refused() {
            None => Ok(said),
            Some(refused) => Err(refused.to_string()),
        }
    }

    #[test]
    fn what_is_asked_for_is_said() {
        assert_eq!(of(&[(MEMORY, "1"), ("x.dev.chiton.y", "z")]), Ok(DEFAULT));
        let all = [
            (PRIVILEGES, "deny"),
            (DAX, "off"),
            (CORE_SCHEDULING, "on"),
            (HOST_NAMESPACES, "guest"),
        ];
        let other = Said {
            isolation: Isolation {
                volume_privileges: false,
                dax: false,
                core_scheduling: true,
            },
            guests_namespaces: true,
        };
        assert_eq!(of(&all), Ok(other));
        let defaults = [
            (PRIVILEGES, "keep"),
            (DAX, "on"),
            (CORE_SCHEDULING, "off"),
            (HOST_NAMESPACES, "refuse"),
        ];
        assert_eq!(of(&defaults), Ok(DEFAULT));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for name in [PRIVILEGES, DAX, CORE_SCHEDULING, HOST_NAMESPACES] {
            for text in ["", "true", "ON", "keep ", "1"] {
                let error = of(&[(name, text)]).unwrap_err();
                let expected = format!("annotations[{name}]: {text:?} is neither");
                assert!(error.starts_with(&expected), "{error}");
            }
        }
        let error = of(&[("dev.chiton.Dax", "on")]).unwrap_err();
        assert!(error.contains("annotations[dev.chiton.Dax]"), "{error}");
        assert!(error.contains(CORE_SCHEDULING), "{error}");
    }
}
