//! `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).

use std::collections::HashSet;

use nix::libc;
use specification::MountOption;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its id, and that of the mount it is in.
    pub(crate) id: u64,
    pub(crate) parent: u64,
    /// Its file system, as a device number (major, minor).
    pub(crate) device: (u32, u32),
    /// Where in the file system it begins.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) target: String,
    /// `MOUNT_ATTR_*` that are in force. A file system that is read-only makes its mounts so.
    pub(crate) attributes: u64,
    /// How it keeps access times: bits of `MOUNT_ATTR__ATIME` and `MOUNT_ATTR_NODIRATIME`.
    pub(crate) access_times: u64,
    /// Whether it shows other ids than its files have.
    pub(crate) id_mapped: bool,
    /// Whether mounts made or taken away elsewhere appear and disappear below it.
    pub(crate) follows: bool,
}

/// The mounts, parents before children; what is no line of this format is left out.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let root = fields.next()?;
    let target = fields.next()?;
    let options = fields.next()?;
    let is_link = |field: &&str| field.starts_with("master:") || field.starts_with("shared:");
    let optional: Vec<_> = fields.by_ref().take_while(|field| *field != "-").collect();
    // The file system's type, its source, its options.
    let of_all = fields.nth(2).unwrap_or_default();
    let read_only = match of_all.split(',').any(|option| option == "ro") {
        true => libc::MOUNT_ATTR_RDONLY,
        false => 0,
    };
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(root),
        target: unescape(target),
        attributes: attributes(options) | read_only,
        access_times: access_times(options),
        id_mapped: options.split(',').any(|option| option == "idmapped"),
        follows: optional.iter().any(is_link),
    })
}

/// What options of a mount set.
fn attributes(options: &str) -> u64 {
    let set = |option| match MountOption::of(option) {
        Some(MountOption::Attributes(change, _)) => change.set,
        _ => 0,
    };
    options.split(',').map(set).fold(0, std::ops::BitOr::bitor)
}

/// How access times are kept by options, of which none is for all of them to be kept.
fn access_times(options: &str) -> u64 {
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    let files = match (has("noatime"), has("relatime")) {
        (true, _) => libc::MOUNT_ATTR_NOATIME,
        (false, true) => libc::MOUNT_ATTR_RELATIME,
        (false, false) => libc::MOUNT_ATTR_STRICTATIME,
    };
    match has("nodiratime") {
        true => files | libc::MOUNT_ATTR_NODIRATIME,
        false => files,
    }
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(text: &str) -> String {
    let mut pieces = text.split('\\');
    let mut plain = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let code = piece.get(..3).map(|octal| u8::from_str_radix(octal, 8));
        match code {
            Some(Ok(byte)) => {
                plain.push(byte);
                plain.extend_from_slice(&piece.as_bytes()[3..]);
            }
            _ => {
                plain.push(b'\\');
                plain.extend_from_slice(piece.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Those of the exported tree that are mounted in a directory of its root, with targets as if that were the root.
pub(super) fn below(mounts: &[Mount], directory: &str) -> Vec<Mount> {
    let prefix = format!("/{directory}");
    let inside = exported(mounts).into_iter().filter_map(|mount| {
        let target = mount.target.strip_prefix(&prefix)?;
        target.starts_with('/').then(|| Mount {
            target: target.to_owned(),
            ..mount.clone()
        })
    });
    inside.collect()
}

/// Those of the exported tree of a machine process, whose namespace they are of. What is mounted on its root directory is
/// for others who enter the namespace ([`view`](super::view)), and beyond the reach of a process whose root is below.
pub(crate) fn exported(mounts: &[Mount]) -> Vec<&Mount> {
    let roots = mounts.iter().filter(|mount| mount.target == "/");
    let roots: HashSet<u64> = roots.map(|mount| mount.id).collect();
    let covers = |mount: &Mount| mount.target == "/" && roots.contains(&mount.parent);
    let mut beyond = HashSet::new();
    // A mount may be listed before the one that it has been moved to.
    loop {
        let is_beyond = |mount: &&Mount| covers(mount) || beyond.contains(&mount.parent);
        let found = mounts.iter().filter(is_beyond);
        let found: HashSet<u64> = found.map(|mount| mount.id).collect();
        if found == beyond {
            break;
        }
        beyond = found;
    }
    let exported = mounts.iter().filter(|mount| !beyond.contains(&mount.id));
    exported.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
36 25 98:0 /mnt1 /mnt/0 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 36 0:5 / /mnt/0/a\\040b\\134c rw - tmpfs none rw
38 37 0:6 / /mnt/0/a\\040b\\134c/in rw - tmpfs none rw
nonsense
39 25 0:7 / /rootfs ro - overlay overlay rw
";

    #[test]
    fn lines_are_parsed() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[0].target, "/mnt/0");
        assert!(mounts[0].follows && !mounts[1].follows);
        assert_eq!(
            mounts[1],
            Mount {
                id: 37,
                parent: 36,
                device: (0, 5),
                root: "/".into(),
                target: "/mnt/0/a b\\c".into(),
                attributes: 0,
                access_times: libc::MOUNT_ATTR_STRICTATIME,
                id_mapped: false,
                follows: false
            }
        );
        assert_eq!(mounts[0].attributes, libc::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn access_times_are_kept_in_four_ways() {
        for (options, expected) in [
            ("rw,relatime", libc::MOUNT_ATTR_RELATIME),
            ("ro,noatime", libc::MOUNT_ATTR_NOATIME),
            ("rw", libc::MOUNT_ATTR_STRICTATIME),
            ("rw,nodiratime,relatime", libc::MOUNT_ATTR_NODIRATIME),
        ] {
            assert_eq!(access_times(options), expected, "{options}");
        }
    }

    #[test]
    fn what_is_forbidden_by_a_mount_or_its_file_system() {
        let of = |options: &str, of_all: &str| {
            let line =
                format!("36 25 98:0 /r /m {options} shared:7 master:1 - ext4 /dev/a {of_all}");
            super::line(&line).unwrap().attributes
        };
        let (no_programs, no_devices) = (libc::MOUNT_ATTR_NOEXEC, libc::MOUNT_ATTR_NODEV);
        assert_eq!(of("rw,relatime", "rw,errors=continue"), 0);
        assert_eq!(
            of("rw,nodev,noexec,relatime", "rw"),
            no_devices | no_programs
        );
        assert_eq!(
            of("ro,nosuid,idmapped", "rw"),
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
        assert_eq!(of("rw", "ro,norecovery"), libc::MOUNT_ATTR_RDONLY);
    }
}
