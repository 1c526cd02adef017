//! Kernel parameters (config-linux.md, Sysctl).

use oci_spec::runtime::LinuxNamespaceType as Kind;

/// The path of a parameter below `/proc/sys`; `None` if a name is none. The first of `.` and `/` in a name separates,
/// the other one stands for a dot inside of a part (sysctl(8)).
#[must_use]
pub fn path(name: &str) -> Option<String> {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let separator = name.find(['.', '/'])?;
    let path: String = if name.as_bytes()[separator] == b'.' {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let is_plain = |part| !matches!(part, "" | "." | "..");
    path.split('/').all(is_plain).then_some(path)
}

/// The type of namespace that has a parameter of its own, by the path that [`path`] gives. All others are the whole
/// kernel's.
#[must_use]
pub fn namespace(path: &str) -> Option<Kind> {
    const OF_NAMESPACES: [(&str, Kind); 8] = [
        ("fs/mqueue/", Kind::Ipc),
        ("kernel/msg", Kind::Ipc),
        ("kernel/sem", Kind::Ipc),
        ("kernel/shm", Kind::Ipc),
        ("kernel/domainname", Kind::Uts),
        ("kernel/hostname", Kind::Uts),
        ("net/", Kind::Network),
        ("user/", Kind::User),
    ];
    let is = |(start, _): &&(&str, Kind)| path.starts_with(start);
    OF_NAMESPACES.iter().find(is).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_below_proc_sys() {
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
            assert_eq!(path(name).as_deref(), Some(expected));
        }
        for bad in [
            "",
            "/",
            ".",
            "..",
            "kernel",
            "kernel.",
            "net..x",
            "/etc/passwd",
            "../x",
            "../../x",
            "a/../b",
            "a./.b",
            "a.//.b",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn parameters_belong_to_namespaces_or_to_the_kernel() {
        for (path, expected) in [
            ("vm/overcommit_memory", None),
            ("kernel/pid_max", None),
            ("kernel/seccomp/actions_logged", None),
            ("fs/nr_open", None),
            ("fs/mqueue/msg_max", Some(Kind::Ipc)),
            ("kernel/shm_rmid_forced", Some(Kind::Ipc)),
            ("kernel/sem_next_id", Some(Kind::Ipc)),
            ("kernel/domainname", Some(Kind::Uts)),
            ("net/core/somaxconn", Some(Kind::Network)),
            ("user/max_user_namespaces", Some(Kind::User)),
        ] {
            assert_eq!(namespace(path), expected, "{path}");
        }
    }
}
