//! Types of namespaces (config-linux.md, Namespaces).

use oci_spec::runtime::LinuxNamespaceType as Kind;

/// All of them, in the order of their names.
pub const ALL: [Kind; 8] = [
    Kind::Cgroup,
    Kind::Ipc,
    Kind::Mount,
    Kind::Network,
    Kind::Pid,
    Kind::Time,
    Kind::User,
    Kind::Uts,
];

/// The name in the configuration.
#[must_use]
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Cgroup => "cgroup",
        Kind::Ipc => "ipc",
        Kind::Mount => "mount",
        Kind::Network => "network",
        Kind::Pid => "pid",
        Kind::Time => "time",
        Kind::User => "user",
        Kind::Uts => "uts",
    }
}

/// The name of the file in `/proc/<pid>/ns` (namespaces(7)).
#[must_use]
pub fn file(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "mnt",
        Kind::Network => "net",
        kind => name(kind),
    }
}

/// The flag of clone(2) and setns(2).
#[must_use]
pub fn flag(kind: Kind) -> i32 {
    match kind {
        Kind::Cgroup => libc::CLONE_NEWCGROUP,
        Kind::Ipc => libc::CLONE_NEWIPC,
        Kind::Mount => libc::CLONE_NEWNS,
        Kind::Network => libc::CLONE_NEWNET,
        Kind::Pid => libc::CLONE_NEWPID,
        Kind::Time => libc::CLONE_NEWTIME,
        Kind::User => libc::CLONE_NEWUSER,
        Kind::Uts => libc::CLONE_NEWUTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification_and_the_kernel() {
        assert!(ALL.map(name).is_sorted());
        for kind in ALL {
            let parsed: Kind = serde_json::from_str(&format!("{:?}", name(kind))).unwrap();
            assert_eq!(parsed, kind);
            let path = format!("/proc/self/ns/{}", file(kind));
            assert!(std::fs::exists(&path).unwrap(), "{path}");
        }
        let all = ALL.into_iter().map(flag).fold(0, |all, flag| all | flag);
        assert_eq!(all.count_ones(), 8);
    }
}
