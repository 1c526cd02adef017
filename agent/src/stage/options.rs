//! Mount options as runc reads them: flags, attributes, propagation, and the rest for the file
//! system.

use nix::mount::MsFlags;

use crate::sys::MountAttributes;

/// What the options of one mount ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// A bind mount, and with the mounts below it.
    pub(crate) bind: bool,
    pub(crate) recursive: bool,
    /// A change of what is mounted there already.
    pub(crate) remount: bool,
    /// Of the mount itself.
    pub(crate) attributes: MountAttributes,
    /// Of the mount and all below it.
    pub(crate) recursive_attributes: MountAttributes,
    /// MS_* propagation types in order, each with whether it is recursive.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Flags of the superblock, for mount(2).
    pub(crate) superblock: u64,
    /// Fill a new tmpfs with what it hides.
    pub(crate) copy_up: bool,
    /// What the file system itself has to understand, comma-separated.
    pub(crate) data: String,
}

/// A change of attributes: what is cleared, then what is set.
type Change = (u64, u64);

const fn set(bits: u64) -> Change {
    (0, bits)
}

const fn clear(bits: u64) -> Change {
    (bits, 0)
}

/// The access time attributes are one field (mount_setattr(2)): clearing it whole is part of
/// setting it.
const fn access_time(value: u64) -> Change {
    (libc::MOUNT_ATTR__ATIME, value)
}

/// The attributes by their plain names; a leading `r` makes them recursive.
const ATTRIBUTES: &[(&str, Change)] = &[
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
];

/// The superblock flags of mount(2), set and cleared.
const SUPERBLOCK: &[(&str, Change)] = &[
    ("acl", set(MsFlags::MS_POSIXACL.bits())),
    ("noacl", clear(MsFlags::MS_POSIXACL.bits())),
    ("sync", set(MsFlags::MS_SYNCHRONOUS.bits())),
    ("async", clear(MsFlags::MS_SYNCHRONOUS.bits())),
    ("dirsync", set(MsFlags::MS_DIRSYNC.bits())),
    ("mand", set(MsFlags::MS_MANDLOCK.bits())),
    ("nomand", clear(MsFlags::MS_MANDLOCK.bits())),
    ("iversion", set(MsFlags::MS_I_VERSION.bits())),
    ("noiversion", clear(MsFlags::MS_I_VERSION.bits())),
    ("lazytime", set(MsFlags::MS_LAZYTIME.bits())),
    ("nolazytime", clear(MsFlags::MS_LAZYTIME.bits())),
    ("silent", set(MsFlags::MS_SILENT.bits())),
    ("loud", clear(MsFlags::MS_SILENT.bits())),
];

/// The propagation types; a leading `r` makes them recursive.
const PROPAGATION: &[(&str, u64)] = &[
    ("private", MsFlags::MS_PRIVATE.bits()),
    ("shared", MsFlags::MS_SHARED.bits()),
    ("slave", MsFlags::MS_SLAVE.bits()),
    ("unbindable", MsFlags::MS_UNBINDABLE.bits()),
];

type Bits = u64;

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
}

fn apply(attributes: &mut MountAttributes, (clear, set): Change) {
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !set | clear;
}

/// The propagation type of a name like `rslave`, and whether it is recursive.
pub(crate) fn propagation(name: &str) -> Option<(Bits, bool)> {
    if let Some(bits) = find(PROPAGATION, name) {
        return Some((bits, false));
    }
    find(PROPAGATION, name.strip_prefix('r')?).map(|bits| (bits, true))
}

impl MountOptions {
    /// Reads the options of a mount. What is unknown is for the file system.
    pub(crate) fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> MountOptions {
        let mut parsed = MountOptions::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        match option {
            "" | "defaults" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            // The host has mapped the ids.
            "idmap" | "ridmap" => {}
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            _ => self.add_from_tables(option),
        }
    }

    fn add_from_tables(&mut self, option: &str) {
        if let Some(change) = find(ATTRIBUTES, option) {
            apply(&mut self.attributes, change);
        } else if let Some((clear, set)) = find(SUPERBLOCK, option) {
            self.superblock = self.superblock & !clear | set;
        } else if let Some(propagation) = propagation(option) {
            self.propagation.push(propagation);
        } else if let Some(change) = option.strip_prefix('r').and_then(|o| find(ATTRIBUTES, o)) {
            apply(&mut self.recursive_attributes, change);
        } else {
            if !self.data.is_empty() {
                self.data.push(',');
            }
            self.data.push_str(option);
        }
    }

    /// The flags of mount(2) for a new file system.
    pub(crate) fn mount_flags(&self) -> MsFlags {
        const SAME: &[(u64, MsFlags)] = &[
            (libc::MOUNT_ATTR_RDONLY, MsFlags::MS_RDONLY),
            (libc::MOUNT_ATTR_NOSUID, MsFlags::MS_NOSUID),
            (libc::MOUNT_ATTR_NODEV, MsFlags::MS_NODEV),
            (libc::MOUNT_ATTR_NOEXEC, MsFlags::MS_NOEXEC),
            (libc::MOUNT_ATTR_NODIRATIME, MsFlags::MS_NODIRATIME),
            (libc::MOUNT_ATTR_NOATIME, MsFlags::MS_NOATIME),
            (libc::MOUNT_ATTR_STRICTATIME, MsFlags::MS_STRICTATIME),
        ];
        let mut flags = MsFlags::from_bits_retain(self.superblock);
        for (attribute, flag) in SAME {
            flags.set(*flag, self.attributes.set & attribute != 0);
        }
        if self.attributes.set & libc::MOUNT_ATTR_NOSYMFOLLOW != 0 {
            // MS_NOSYMFOLLOW of linux/mount.h.
            flags |= MsFlags::from_bits_retain(0x100);
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> MountOptions {
        MountOptions::parse(options.split(','))
    }

    #[test]
    fn the_usual_mounts_of_a_container() {
        let tmpfs = parse("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(tmpfs.data, "mode=755,size=65536k");
        assert_eq!(
            tmpfs.mount_flags(),
            MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME
        );
        let pts = parse("nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5");
        assert_eq!(pts.data, "newinstance,ptmxmode=0666,mode=0620,gid=5");
        let sys = parse("nosuid,noexec,nodev,ro,relatime");
        let flags =
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
        assert_eq!(sys.mount_flags(), flags);
        assert!(!sys.bind && sys.data.is_empty());
    }

    #[test]
    fn binds() {
        let plain = parse("bind");
        assert!(plain.bind && !plain.recursive);
        let all = parse("rbind,rprivate,ro,noatime");
        assert!(all.bind && all.recursive);
        assert_eq!(all.propagation, [(MsFlags::MS_PRIVATE.bits(), true)]);
        let expected = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME;
        assert_eq!(all.attributes.set, expected);
        assert_eq!(all.attributes.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(all.recursive_attributes, MountAttributes::default());
    }

    #[test]
    fn recursive_attributes_are_not_taken_for_plain_ones() {
        let parsed = parse("rbind,rro,rnosuid,rnoatime");
        assert_eq!(parsed.attributes, MountAttributes::default());
        let expected = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOATIME;
        assert_eq!(parsed.recursive_attributes.set, expected);
        assert!(parse("relatime").recursive_attributes == MountAttributes::default());
        assert_eq!(
            parse("rrelatime").recursive_attributes.clear,
            libc::MOUNT_ATTR__ATIME
        );
    }

    #[test]
    fn the_last_of_opposites_wins() {
        assert_eq!(parse("ro,rw").attributes.set, 0);
        assert_eq!(parse("ro,rw").attributes.clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parse("rw,ro").attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parse("rw,ro").attributes.clear, 0);
        let times = parse("noatime,strictatime").attributes;
        assert_eq!(times.set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(parse("sync,async").superblock, 0);
    }

    #[test]
    fn unknown_options_are_data_in_order() {
        assert_eq!(
            parse("defaults,lowerdir=/a,ro,upperdir=/b").data,
            "lowerdir=/a,upperdir=/b"
        );
        assert_eq!(parse("rubbish").data, "rubbish");
    }
}
