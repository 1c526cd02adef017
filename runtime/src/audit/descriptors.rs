//! The open descriptors of a process, against what it is declared to have.

use nix::sys::stat::{major, minor};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Claim;
use super::process::{Descriptor, Host, Process};

/// What has no file: the machine's events, and the machine itself; what leads connections to localhost to it; what
/// tells that a pod's namespaces are unpinned. The ring cannot be used without calls that no filter lets through.
const ANONYMOUS: [&str; 9] = [
    "anon_inode:bpf_link",
    "anon_inode:inotify",
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[io_uring]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
    "anon_inode:kvm-vm",
    "anon_inode:kvm-vcpu:",
];

/// Numbers of character devices: the first, and how many (Linux Documentation/admin-guide/devices.txt).
const CHARACTERS: [(u64, u64, u64); 7] = [
    // null, zero, full, random, urandom: what callers have for a standard stream.
    (1, 3, 1),
    (1, 5, 1),
    (1, 7, 3),
    // Terminals.
    (4, 0, 256),
    (5, 0, 3),
    // kvm, net/tun.
    (10, 232, 1),
    (10, 200, 1),
];

/// The majors of the slaves of pseudo-terminals.
const TERMINALS: std::ops::RangeInclusive<u64> = 136..=143;

/// The families of sockets: control connections, the caller's streams, the name server, connections to localhost.
const FAMILIES: [AddressFamily; 3] = [
    AddressFamily::UNIX,
    AddressFamily::INET,
    AddressFamily::INET6,
];

/// What a descriptor is to be.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Declared,
    /// A file of the host that has been opened by somebody else: the caller.
    Given,
    /// Why it must not be there.
    Undeclared(&'static str),
}

/// Those of a machine process.
pub(super) fn machine(process: &Process, host: &Host) -> Vec<Claim> {
    let mut given = Vec::new();
    let mut problems = Vec::new();
    for descriptor in &process.descriptors {
        match kind(descriptor, host, &|| family(process.pid, descriptor.number)) {
            Kind::Declared => {}
            Kind::Given => given.push(descriptor.target.as_str()),
            Kind::Undeclared(why) => problems.push(named(descriptor, why)),
        }
    }
    let number = process.descriptors.len();
    let mut claims = vec![Claim::of(
        &problems,
        format!("{number}, all of declared kinds"),
    )];
    if !given.is_empty() {
        given.sort_unstable();
        given.dedup();
        let files = given.join(", ");
        claims.push(Claim::note(format!(
            "files of the host that the caller has given: {files}"
        )));
    }
    claims
}

/// Those of a stub: /dev/null, signals, the connection to the machine process, a terminal; the limit of its own cgroup,
/// if it stands for a container.
pub(super) fn stub(process: &Process, host: &Host) -> Vec<Claim> {
    attendant(process, host, |_| false)
}

/// Those of a watcher: /dev/null, the connection to the machine process, what the kernel says of its network.
pub(super) fn watcher(process: &Process, host: &Host) -> Vec<Claim> {
    attendant(process, host, |descriptor| match descriptor.kind {
        libc::S_IFSOCK => family(process.pid, descriptor.number) == Some(AddressFamily::NETLINK),
        libc::S_IFREG => descriptor.target.ends_with("/net/tcp"),
        _ => false,
    })
}

/// Those of an attendant, and what it has `besides`.
fn attendant(process: &Process, host: &Host, besides: impl Fn(&Descriptor) -> bool) -> Vec<Claim> {
    let is_declared = |descriptor: &Descriptor| {
        let kind = kind(descriptor, host, &|| family(process.pid, descriptor.number));
        let is_file = matches!(
            descriptor.kind,
            libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK
        );
        let is_limit = descriptor.kind == libc::S_IFREG && host.is_limit(descriptor.file);
        let is_machines = ["kvm", "bpf", "io_uring"]
            .iter()
            .any(|word| descriptor.target.contains(word));
        is_limit || besides(descriptor) || kind == Kind::Declared && !is_file && !is_machines
    };
    let others = process
        .descriptors
        .iter()
        .filter(|found| !is_declared(found));
    let problems: Vec<_> = others.map(|found| named(found, "undeclared")).collect();
    let number = process.descriptors.len();
    vec![Claim::of(
        &problems,
        format!("{number}, all of declared kinds"),
    )]
}

fn named(descriptor: &Descriptor, why: &str) -> String {
    let (number, target) = (descriptor.number, descriptor.target.escape_debug());
    format!("{number} ({target}): {why}")
}

/// What a descriptor is; `family` asks for that of a socket.
fn kind(descriptor: &Descriptor, host: &Host, family: &dyn Fn() -> Option<AddressFamily>) -> Kind {
    let of_the_host = host.mounts.contains(&descriptor.mount);
    let is_path = descriptor.flags & u64::from(libc::O_PATH.unsigned_abs()) != 0;
    let declared = |is: bool, why| {
        if is {
            Kind::Declared
        } else {
            Kind::Undeclared(why)
        }
    };
    match descriptor.kind {
        _ if descriptor.target.starts_with("anon_inode:") => {
            declared(is_anonymous(&descriptor.target), "undeclared")
        }
        _ if descriptor.top.is_some_and(|top| host.is_root(top)) => {
            Kind::Undeclared("`..` leads to the host's root")
        }
        _ if is_path => declared(!of_the_host, "on a mount of the host"),
        libc::S_IFDIR => declared(!of_the_host, "on a mount of the host"),
        libc::S_IFREG if !of_the_host || host.is_own(descriptor.file) => Kind::Declared,
        libc::S_IFREG => Kind::Given,
        libc::S_IFIFO => Kind::Declared,
        libc::S_IFSOCK => declared(
            family().is_none_or(|family| FAMILIES.contains(&family)),
            "a socket of an undeclared family",
        ),
        libc::S_IFCHR => declared(is_known(descriptor.device), "an undeclared device"),
        libc::S_IFBLK => declared(
            host.subject.disks.contains(&descriptor.device),
            "not a block device of the container",
        ),
        _ => Kind::Undeclared("undeclared"),
    }
}

fn is_anonymous(target: &str) -> bool {
    ANONYMOUS.iter().any(|declared| {
        // A vCPU's has its number.
        target == *declared || declared.ends_with(':') && target.starts_with(declared)
    })
}

fn is_known(device: u64) -> bool {
    let (major, minor) = (major(device), minor(device));
    TERMINALS.contains(&major)
        || CHARACTERS
            .iter()
            .any(|(its, first, many)| major == *its && (*first..first + many).contains(&minor))
}

/// The family of a socket of another process; `None` if it has been closed meanwhile.
fn family(pid: i32, number: u32) -> Option<AddressFamily> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let number = i32::try_from(number).ok()?;
    let socket = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok()?;
    socket_domain(&socket).ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::audit::Subject;

    const HOST_MOUNT: u64 = 20;
    const ROOT: (u64, u64) = (1, 2);
    const JOURNAL: (u64, u64) = (3, 4);

    fn host() -> Host {
        let subject = Subject {
            machine: 1,
            attendants: Vec::new(),
            cgroup: None,
            states: vec!["/".into()],
            members: Vec::new(),
            disks: vec![libc::makedev(7, 1)],
            labels: None,
        };
        Host::made_of(subject, vec![HOST_MOUNT], vec![ROOT], vec![JOURNAL])
    }

    fn file(target: &str, kind: u32, mount: u64) -> Descriptor {
        Descriptor {
            number: 5,
            target: target.into(),
            kind,
            device: 0,
            file: (9, 9),
            flags: 0,
            mount,
            top: None,
        }
    }

    fn is_declared(descriptor: &Descriptor) -> bool {
        kind(descriptor, &host(), &|| Some(AddressFamily::UNIX)) == Kind::Declared
    }

    #[test]
    fn directories_are_of_the_machines_own_mounts() {
        let directory = |mount, top| Descriptor {
            top: Some(top),
            ..file("/share", libc::S_IFDIR, mount)
        };
        assert!(is_declared(&directory(99, (5, 5))));
        assert!(!is_declared(&directory(HOST_MOUNT, (5, 5))));
        assert!(!is_declared(&directory(99, ROOT)));
    }

    #[test]
    fn files_of_the_host_are_the_callers_or_the_machines_own() {
        let host_file = file("/output", libc::S_IFREG, HOST_MOUNT);
        let is = |found: &Descriptor| kind(found, &host(), &|| None);
        assert_eq!(is(&host_file), Kind::Given);
        let own = Descriptor {
            file: JOURNAL,
            ..file("/journal", libc::S_IFREG, HOST_MOUNT)
        };
        assert!(is_declared(&own));
        assert!(is_declared(&file("/share/x", libc::S_IFREG, 99)));
        // What has been opened to be opened again is nobody's stream.
        let path = Descriptor {
            flags: u64::from(libc::O_PATH.unsigned_abs()),
            ..file("/output", libc::S_IFREG, HOST_MOUNT)
        };
        assert!(matches!(is(&path), Kind::Undeclared(_)));
    }

    #[test]
    fn devices_are_declared_by_number() {
        let device = |kind, major, minor| Descriptor {
            device: libc::makedev(major, minor),
            ..file("/dev/x", kind, HOST_MOUNT)
        };
        for (major, minor, expected) in [
            (1, 3, true),
            (1, 1, false),
            (1, 9, true),
            (1, 10, false),
            (10, 232, true),
            (10, 231, false),
            (136, 5, true),
            (143, 0, true),
            (144, 0, false),
        ] {
            let found = is_declared(&device(libc::S_IFCHR, major, minor));
            assert_eq!(found, expected, "{major}:{minor}");
        }
        assert!(is_declared(&device(libc::S_IFBLK, 7, 1)));
        assert!(!is_declared(&device(libc::S_IFBLK, 7, 2)));
    }

    #[test]
    fn the_rest() {
        for (target, expected) in [
            ("anon_inode:[eventfd]", true),
            ("anon_inode:kvm-vcpu:0", true),
            ("anon_inode:kvm-vm", true),
            ("anon_inode:kvm-vm-stats", false),
            ("anon_inode:bpf_link", true),
            ("anon_inode:bpf-prog", false),
            ("anon_inode:bpf-map", false),
            ("anon_inode:[userfaultfd]", false),
            ("anon_inode:[io_uring]", true),
        ] {
            assert_eq!(is_declared(&file(target, 0, 15)), expected, "{target}");
        }
        let socket = file("socket:[7]", libc::S_IFSOCK, 8);
        assert!(is_declared(&socket));
        let netlink = kind(&socket, &host(), &|| Some(AddressFamily::NETLINK));
        assert!(matches!(netlink, Kind::Undeclared(_)));
        assert!(is_declared(&file("pipe:[7]", libc::S_IFIFO, 8)));
        assert!(!is_declared(&file("/link", libc::S_IFLNK, HOST_MOUNT)));
    }

    #[test]
    fn a_socket_of_this_process() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = std::process::id().try_into().unwrap();
        let number = socket.as_raw_fd().unsigned_abs();
        assert_eq!(family(own, number), Some(AddressFamily::UNIX));
        assert_eq!(family(own, 1 << 20), None);
    }
}
