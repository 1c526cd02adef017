//! Block devices of the host that the guest has as virtio-blk.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use protocol::Device;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::error::JailError as Error;
use crate::error::Doing;

/// A block device of the host.
#[derive(Debug, Clone)]
pub(crate) struct BlockDevice {
    /// Its number.
    pub(crate) device: Device,
    /// The serial number under which the guest finds it.
    pub(crate) serial: String,
    /// Whether nobody may write to it.
    pub(crate) read_only: bool,
}

impl BlockDevice {
    /// What the agent is told of it.
    pub(crate) fn for_the_guest(&self) -> protocol::Disk {
        protocol::Disk {
            device: self.device,
            serial: self.serial.clone(),
        }
    }

    fn open(&self, nodes: &OwnedFd) -> io::Result<vmm::virtio::Disk> {
        let Device { major, minor } = self.device;
        let (name, mode) = (self.serial.as_str(), Mode::from_bits_truncate(0o600));
        let number = makedev(major.into(), minor.into());
        mknodat(nodes, name, SFlag::S_IFBLK, mode, number)?;
        let access = if self.read_only {
            OFlag::O_RDONLY
        } else {
            OFlag::O_RDWR
        };
        let file = openat(nodes, name, access | OFlag::O_CLOEXEC, Mode::empty())?;
        vmm::virtio::Disk::new(file, self.read_only, &self.serial)
    }
}

/// Opens the devices: by their numbers, whatever the host's `/dev` holds.
pub(super) fn open(disks: &[BlockDevice]) -> Result<Vec<Arc<vmm::virtio::Disk>>, Error> {
    if disks.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = nodes().doing("mount a file system for device nodes")?;
    let open = |disk: &BlockDevice| {
        let Device { major, minor } = disk.device;
        let doing = || format!("open the block device {major}:{minor}");
        Ok(Arc::new(disk.open(&nodes).doing_with(doing)?))
    };
    disks.iter().map(open).collect()
}

/// A file system that is mounted nowhere, and on which devices work.
fn nodes() -> io::Result<OwnedFd> {
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}
