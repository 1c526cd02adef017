//! `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).

use std::collections::HashSet;

use nix::libc;
use specification::MountOption;

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its id, and that of the mount it is in.
    pub(crate) id: u64,
    pub(crate) parent: u64,
    /// Where it is mounted.
    pub(crate) target: String,
    /// `MOUNT_ATTR_*` that are in force. A file system that is read-only makes its mounts so.
    pub(crate) attributes: u64,
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
    // The device, and the root within the file system.
    let target = fields.nth(2)?;
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
        target: unescape(target),
        attributes: attributes(options) | read_only,
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

/// The ids of the mounts that nobody else can take away: they are in mounts that follow no others.
pub(super) fn lasting(mounts: &[Mount]) -> HashSet<u64> {
    let following = mounts.iter().filter(|mount| mount.follows);
    let following: HashSet<u64> = following.map(|mount| mount.id).collect();
    let lasting = mounts
        .iter()
        .filter(|mount| !following.contains(&mount.parent));
    lasting.map(|mount| mount.id).collect()
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
                target: "/mnt/0/a b\\c".into(),
                attributes: 0,
                id_mapped: false,
                follows: false
            }
        );
        assert_eq!(mounts[0].attributes, libc::MOUNT_ATTR_NOATIME);
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

    #[test]
    fn what_is_in_a_following_mount_does_not_last() {
        // That a mount in one that goes goes with it is the kernel's affair: it refuses while there is one.
        assert_eq!(lasting(&parse(TEXT)), HashSet::from([36, 38, 39]));
    }
}
