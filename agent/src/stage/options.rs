//! The options of a mount put together: flags, attributes, propagation, and the rest for the file
//! system.

use nix::mount::MsFlags;
use specification::MountOption;
use specification::mount::{Change, Reach};

/// What the options of one mount ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// A bind mount, and with the mounts below it.
    pub(crate) bind: bool,
    pub(crate) recursive: bool,
    /// A change of what is mounted there already.
    pub(crate) remount: bool,
    /// MOUNT_ATTR_* of the mount itself.
    pub(crate) attributes: Change,
    /// Of the mount and all below it.
    pub(crate) recursive_attributes: Change,
    /// MS_* propagation types in order, each with whether it is recursive.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Flags of the superblock, for mount(2).
    pub(crate) superblock: Change,
    /// Fill a new tmpfs with what it hides.
    pub(crate) copy_up: bool,
    /// What the file system itself has to understand, comma-separated.
    pub(crate) data: String,
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

    fn add(&mut self, name: &str) {
        match MountOption::of(name) {
            Some(MountOption::Nothing) => {}
            Some(MountOption::Bind(reach)) => {
                self.bind = true;
                self.recursive |= reach == Reach::Tree;
            }
            // The host has mapped the ids.
            Some(MountOption::IdMap(_)) => {}
            Some(MountOption::Remount) => self.remount = true,
            Some(MountOption::CopyUp) => self.copy_up = true,
            Some(MountOption::Attributes(change, Reach::Mount)) => self.attributes.apply(change),
            Some(MountOption::Attributes(change, Reach::Tree)) => {
                self.recursive_attributes.apply(change);
            }
            Some(MountOption::Superblock(change)) => self.superblock.apply(change),
            Some(MountOption::Propagation(kind, reach)) => {
                self.propagation.push((kind, reach == Reach::Tree));
            }
            None => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                self.data.push_str(name);
            }
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
        let mut flags = MsFlags::from_bits_retain(self.superblock.set);
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
        assert_eq!(all.recursive_attributes, Change::default());
    }

    #[test]
    fn recursive_attributes_are_not_taken_for_plain_ones() {
        let parsed = parse("rbind,rro,rnosuid,rnoatime");
        assert_eq!(parsed.attributes, Change::default());
        let expected = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOATIME;
        assert_eq!(parsed.recursive_attributes.set, expected);
        assert!(parse("relatime").recursive_attributes == Change::default());
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
        assert_eq!(parse("sync,async").superblock.set, 0);
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
