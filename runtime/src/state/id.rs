//! Container ids.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

/// Longest id: it is the name of a directory (NAME_MAX, include/uapi/linux/limits.h).
const LENGTH_MAX: usize = 255;

/// The id of a container: letters, digits and `_+-.`, neither `.` nor `..`; so it is safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerId(String);

/// How the name of a pod's state directory begins; the colon keeps it from being the id of a container.
const POD: &str = "ns:";

impl ContainerId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the pod whose UTS namespace has this number. No caller can say it.
    pub(crate) fn of_pod(uts: u64) -> ContainerId {
        ContainerId(format!("{POD}{uts}"))
    }

    /// The pod whose directory has this name.
    pub(crate) fn of_pod_named(name: &str) -> Option<ContainerId> {
        let uts = name.strip_prefix(POD)?.parse();
        uts.ok().map(ContainerId::of_pod)
    }

    /// Whose machine it is, as a record names it: a container or a pod.
    pub(crate) fn of_sandbox(name: &str) -> Result<ContainerId, Error> {
        ContainerId::of_pod_named(name).map_or_else(|| name.parse(), Ok)
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<ContainerId, Error> {
        if text.is_empty() {
            return Err(Error::EmptyId);
        }
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_+-.".contains(&c);
        let valid =
            text.len() <= LENGTH_MAX && text.bytes().all(allowed) && text != "." && text != "..";
        if valid {
            Ok(ContainerId(text.to_owned()))
        } else {
            Err(Error::InvalidId)
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        let longest = "x".repeat(LENGTH_MAX);
        for good in ["a", "A-b_c.d+9", "...", "-", longest.as_str()] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        let too_long = "x".repeat(LENGTH_MAX + 1);
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "a\n",
            "a\0",
            too_long.as_str(),
        ] {
            bad.parse::<ContainerId>().unwrap_err();
        }
    }
}
