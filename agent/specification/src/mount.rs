//! Mount options (config.md, Mounts) as runc reads them (libcontainer/specconv): flags, attributes, propagation. All
//! else is for the file system.

use oci_spec::runtime::Mount;

/// A change of flags.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The bits that are cleared first.
    pub clear: u64,
    /// The bits that are set then.
    pub set: u64,
}

impl Change {
    /// Adds a change that comes after this one.
    pub fn apply(&mut self, later: Change) {
        self.set = self.set & !later.clear | later.set;
        self.clear = self.clear & !later.set | later.clear;
    }

    /// What it does to these bits.
    #[must_use]
    pub fn within(self, bits: u64) -> Change {
        Change {
            clear: self.clear & bits,
            set: self.set & bits,
        }
    }
}

/// What an option is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The mount itself.
    Mount,
    /// The mount and all mounts below it: the name has a leading `r`.
    Tree,
}

/// An option of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOption {
    /// Says nothing.
    Nothing,
    /// A bind mount.
    Bind(Reach),
    /// The ids of the files are mapped.
    IdMap(Reach),
    /// A change of what is mounted there already.
    Remount,
    /// Fills a new tmpfs with what it hides.
    CopyUp,
    /// `MOUNT_ATTR_*` (mount_setattr(2)). Access times are one field, which is cleared whole to be set.
    Attributes(Change, Reach),
    /// `MS_*` of the superblock (mount(2)).
    Superblock(Change),
    /// A propagation type: `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE` or `MS_UNBINDABLE` (mount(2)).
    Propagation(u64, Reach),
}

const fn attribute(clear: u64, set: u64) -> MountOption {
    MountOption::Attributes(Change { clear, set }, Reach::Mount)
}

const fn set(attributes: u64) -> MountOption {
    attribute(0, attributes)
}

const fn clear(attributes: u64) -> MountOption {
    attribute(attributes, 0)
}

const fn access_time(value: u64) -> MountOption {
    attribute(libc::MOUNT_ATTR__ATIME, value)
}

const fn flag(set: u64) -> MountOption {
    MountOption::Superblock(Change { clear: 0, set })
}

const fn no_flag(clear: u64) -> MountOption {
    MountOption::Superblock(Change { clear, set: 0 })
}

const fn propagation(kind: u64) -> MountOption {
    MountOption::Propagation(kind, Reach::Mount)
}

/// All options by name. Those that [`MountOption::recursive`] knows are there with a leading `r` as well.
const OPTIONS: [(&str, MountOption); 40] = [
    ("defaults", MountOption::Nothing),
    ("bind", MountOption::Bind(Reach::Mount)),
    ("idmap", MountOption::IdMap(Reach::Mount)),
    ("remount", MountOption::Remount),
    ("tmpcopyup", MountOption::CopyUp),
    ("ro", set(libc::MOUNT_ATTR_RDONLY)),
    ("rw", clear(libc::MOUNT_ATTR_RDONLY)),
    ("nosuid", set(libc::MOUNT_ATTR_NOSUID)),
    ("suid", clear(libc::MOUNT_ATTR_NOSUID)),
    ("nodev", set(libc::MOUNT_ATTR_NODEV)),
    ("dev", clear(libc::MOUNT_ATTR_NODEV)),
    ("noexec", set(libc::MOUNT_ATTR_NOEXEC)),
    ("exec", clear(libc::MOUNT_ATTR_NOEXEC)),
    ("nodiratime", set(libc::MOUNT_ATTR_NODIRATIME)),
    ("diratime", clear(libc::MOUNT_ATTR_NODIRATIME)),
    ("relatime", access_time(libc::MOUNT_ATTR_RELATIME)),
    ("norelatime", access_time(libc::MOUNT_ATTR_RELATIME)),
    ("noatime", access_time(libc::MOUNT_ATTR_NOATIME)),
    ("atime", access_time(libc::MOUNT_ATTR_RELATIME)),
    ("strictatime", access_time(libc::MOUNT_ATTR_STRICTATIME)),
    ("nostrictatime", access_time(libc::MOUNT_ATTR_RELATIME)),
    ("nosymfollow", set(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("symfollow", clear(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("acl", flag(libc::MS_POSIXACL)),
    ("noacl", no_flag(libc::MS_POSIXACL)),
    ("sync", flag(libc::MS_SYNCHRONOUS)),
    ("async", no_flag(libc::MS_SYNCHRONOUS)),
    ("dirsync", flag(libc::MS_DIRSYNC)),
    ("mand", flag(libc::MS_MANDLOCK)),
    ("nomand", no_flag(libc::MS_MANDLOCK)),
    ("iversion", flag(libc::MS_I_VERSION)),
    ("noiversion", no_flag(libc::MS_I_VERSION)),
    ("lazytime", flag(libc::MS_LAZYTIME)),
    ("nolazytime", no_flag(libc::MS_LAZYTIME)),
    ("silent", flag(libc::MS_SILENT)),
    ("loud", no_flag(libc::MS_SILENT)),
    ("private", propagation(libc::MS_PRIVATE)),
    ("shared", propagation(libc::MS_SHARED)),
    ("slave", propagation(libc::MS_SLAVE)),
    ("unbindable", propagation(libc::MS_UNBINDABLE)),
];

fn find(name: &str) -> Option<MountOption> {
    let found = OPTIONS.iter().find(|(known, _)| *known == name);
    found.map(|(_, option)| *option)
}

impl MountOption {
    /// The option of this name. `None` is for the file system to understand.
    #[must_use]
    pub fn of(name: &str) -> Option<MountOption> {
        if name.is_empty() {
            return Some(MountOption::Nothing);
        }
        find(name).or_else(|| find(name.strip_prefix('r')?)?.recursive())
    }

    /// The names of all options, in no order.
    pub fn names() -> impl Iterator<Item = String> {
        let recursive = OPTIONS
            .iter()
            .filter(|(_, option)| option.recursive().is_some());
        let plain = OPTIONS.iter().map(|(name, _)| (*name).to_owned());
        plain.chain(recursive.map(|(name, _)| format!("r{name}")))
    }

    /// The same of all mounts below, too, if there is such an option.
    fn recursive(self) -> Option<MountOption> {
        match self {
            MountOption::Bind(_) => Some(MountOption::Bind(Reach::Tree)),
            MountOption::IdMap(_) => Some(MountOption::IdMap(Reach::Tree)),
            MountOption::Attributes(change, _) => {
                Some(MountOption::Attributes(change, Reach::Tree))
            }
            MountOption::Propagation(kind, _) => Some(MountOption::Propagation(kind, Reach::Tree)),
            MountOption::Nothing
            | MountOption::Remount
            | MountOption::CopyUp
            | MountOption::Superblock(_) => None,
        }
    }
}

/// The options of a mount, in their order.
pub fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// Whether a mount is a bind mount. As with runc its type or an option says so.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    let says_so = |option| matches!(MountOption::of(option), Some(MountOption::Bind(_)));
    mount.typ().as_deref() == Some("bind") || options(mount).any(says_so)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_is_an_option_of_its_own() {
        let names: Vec<String> = MountOption::names().collect();
        assert_eq!(names.len(), 64);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for name in names {
            assert!(MountOption::of(&name).is_some(), "{name}");
        }
        assert_eq!(MountOption::of(""), Some(MountOption::Nothing));
        for other in [
            "r",
            "rsync",
            "rdefaults",
            "rremount",
            "rrro",
            "size=1m",
            "RO",
        ] {
            assert_eq!(MountOption::of(other), None, "{other}");
        }
    }

    #[test]
    fn a_leading_r_is_recursive_unless_it_belongs_to_the_name() {
        let set = |set| Change { clear: 0, set };
        let read_only = |reach| MountOption::Attributes(set(libc::MOUNT_ATTR_RDONLY), reach);
        assert_eq!(MountOption::of("ro"), Some(read_only(Reach::Mount)));
        assert_eq!(MountOption::of("rro"), Some(read_only(Reach::Tree)));
        let change = Change {
            clear: libc::MOUNT_ATTR__ATIME,
            set: libc::MOUNT_ATTR_RELATIME,
        };
        for (name, reach) in [
            ("relatime", Reach::Mount),
            ("rrelatime", Reach::Tree),
            ("ratime", Reach::Tree),
        ] {
            let expected = MountOption::Attributes(change, reach);
            assert_eq!(MountOption::of(name), Some(expected), "{name}");
        }
        let expected = MountOption::Propagation(libc::MS_SLAVE, Reach::Tree);
        assert_eq!(MountOption::of("rslave"), Some(expected));
        let expected = MountOption::Bind(Reach::Tree);
        assert_eq!(MountOption::of("rbind"), Some(expected));
    }

    #[test]
    fn the_last_of_opposites_wins() {
        let mut change = Change { clear: 0, set: 1 };
        change.apply(Change { clear: 1, set: 0 });
        assert_eq!(change, Change { clear: 1, set: 0 });
        change.apply(Change { clear: 6, set: 1 });
        assert_eq!(change, Change { clear: 6, set: 1 });
        assert_eq!(change.within(3), Change { clear: 2, set: 1 });
    }

    #[test]
    fn type_or_option_make_a_bind_mount() {
        let is_bind = |json: &str| is_bind(&serde_json::from_str(json).unwrap());
        assert!(is_bind(r#"{"destination":"/","type":"bind"}"#));
        assert!(is_bind(
            r#"{"destination":"/","type":"none","options":["ro","rbind"]}"#
        ));
        assert!(!is_bind(
            r#"{"destination":"/","type":"tmpfs","options":["ro"]}"#
        ));
    }
}
