//! Chiton's own annotations. The size of the machine is that of [`super::size`]; the others say what the machine shares
//! with the rest of the host.

use std::collections::HashMap;

use super::ledger::Ledger;
use crate::machine::{CORE_SCHEDULING, Isolation};

/// How the names of all of them begin.
const PREFIX: &str = "dev.chiton.";

pub(super) const MEMORY: &str = "dev.chiton.memory";
pub(super) const VCPUS: &str = "dev.chiton.vcpus";
const PRIVILEGES: &str = "dev.chiton.volumes.privileges";
const DAX: &str = "dev.chiton.dax";

/// Those that there are.
pub(crate) const ANNOTATIONS: [&str; 5] = [MEMORY, VCPUS, PRIVILEGES, DAX, CORE_SCHEDULING];

/// What is in force where nothing is said: what a container gets of runc on this host.
const DEFAULT: Isolation = Isolation {
    volume_privileges: true,
    dax: true,
    core_scheduling: false,
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
    let mut isolation = DEFAULT;
    for (name, text) in own {
        let property = format!("annotations[{name}]");
        let (switch, on, off) = match name.as_str() {
            MEMORY | VCPUS => continue,
            PRIVILEGES => (&mut isolation.volume_privileges, "keep", "deny"),
            DAX => (&mut isolation.dax, "on", "off"),
            CORE_SCHEDULING => (&mut isolation.core_scheduling, "on", "off"),
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
    isolation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Isolation, String> {
        let pairs = annotations.iter();
        let annotations = pairs
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let mut ledger = Ledger::default();
        let isolation = isolation(&annotations, &mut ledger);
        match ledger.refused() {
            None => Ok(isolation),
            Some(refused) => Err(refused.to_string()),
        }
    }

    #[test]
    fn isolation_is_what_is_asked_for() {
        assert_eq!(of(&[(MEMORY, "1"), ("x.dev.chiton.y", "z")]), Ok(DEFAULT));
        let all = [(PRIVILEGES, "deny"), (DAX, "off"), (CORE_SCHEDULING, "on")];
        let least = Isolation {
            volume_privileges: false,
            dax: false,
            core_scheduling: true,
        };
        assert_eq!(of(&all), Ok(least));
        let said = [(PRIVILEGES, "keep"), (DAX, "on"), (CORE_SCHEDULING, "off")];
        assert_eq!(of(&said), Ok(DEFAULT));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for name in [PRIVILEGES, DAX, CORE_SCHEDULING] {
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
