//! Files that give privileges to whoever executes them: set-user-ID, set-group-ID, capabilities. What the guest makes is
//! as real to the host as what a process there makes, so it may be kept to some mounts ([`crate::Mount::privileges`]).
//!
//! What is there already stays, and may be renamed, linked and taken away. It is not asked whether a file has the bit that
//! is to be set: a write between the question and the answer clears it, and the answer would put it back onto what was
//! written.

use crate::errno::{Errno, Result};
use crate::identity::Route;
use crate::server::Server;

/// What means more than permissions in the mode of anything but a directory. (A directory hands its group down by
/// set-group-ID, which gives nobody anything.)
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

impl Server {
    /// Fails with EPERM, as for a process that lacks the capability, if no file of the mount may give privileges.
    pub(crate) fn check_privileges(&self, mount: Route) -> Result<()> {
        if mount.traits.privileges {
            Ok(())
        } else {
            Err(Errno(libc::EPERM))
        }
    }

    /// As [`Server::check_privileges`], if an object of this kind (`S_IFMT`) gives some with this mode.
    pub(crate) fn check_mode(&self, mount: Route, kind: u32, mode: u32) -> Result<()> {
        if kind == libc::S_IFDIR || mode & SET_ID == 0 {
            return Ok(());
        }
        self.check_privileges(mount)
    }
}
