//! The end of a pod's machine that nobody is told to end: a client that stops a pod ends its containers and unpins its
//! namespaces, and deletes the containers later or much later. On the host the namespaces would go by then, and so does
//! the machine.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::{io, mem};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::seteuid;
use protocol::{Exit, FIRST};

use super::error::Error;
use super::jail;
use super::launch::Launch;
use super::life::Life;
use crate::error::Doing;

/// The pinned namespaces of a machine.
pub(super) enum Pins {
    /// It has none: it is not a pod's.
    None,
    /// What becomes readable when they are unpinned.
    Watched(Inotify),
    /// They are not pinned any more.
    Gone,
}

/// Watches what is pinned for the pod that the machine is made for, if it is.
pub(super) fn watch(launch: &Launch<'_>) -> Result<Pins, Error> {
    let Some(pinned) = launch.pinned else {
        return Ok(Pins::None);
    };
    let name = || format!("watch {}", pinned.uts.display());
    let place = pinned.uts.parent().zip(pinned.uts.file_name());
    let no_place = || io::Error::from(io::ErrorKind::InvalidInput);
    let (directory, file) = place.ok_or_else(no_place).doing_with(name)?;
    // In a clone of the directory's mount there is the file that the namespace is mounted on, which goes with the pin.
    let clone = jail::confined(directory)?;
    let below = Path::new("/proc/self/fd").join(clone.as_raw_fd().to_string());
    // Who makes them is counted, and root may have few.
    seteuid(launch.ids.own().into()).doing_with(name)?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC);
    seteuid(0.into()).doing_with(name)?;
    let watch = watch.doing_with(name)?;
    let flags = AddWatchFlags::IN_DELETE_SELF;
    watch.add_watch(&below.join(file), flags).doing_with(name)?;
    Ok(Pins::Watched(watch))
}

impl Life {
    /// The namespaces of the pod have been unpinned.
    pub(super) fn unpinned(&mut self) -> io::Result<()> {
        if let Pins::Watched(watch) = mem::replace(&mut self.parts.pins, Pins::Gone) {
            self.epoll.delete(watch)?;
        }
        Ok(())
    }

    /// Ends the pod's own container, and so the machine, when it is of no use any more; whether it is not.
    pub(super) fn end_pod(&mut self) -> bool {
        let is_over = matches!(self.parts.pins, Pins::Gone) && self.containers.len() == 1;
        if is_over {
            self.drain(FIRST, Exit::Code(0), None);
        }
        is_over
    }
}
