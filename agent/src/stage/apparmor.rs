//! The AppArmor profile of a process. The host's compiled policy is loaded into the guest's kernel; from its
//! execve on the process is in the profile.

use std::fs::{self, File};
use std::io::{self, Write};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::Process;
use specification::apparmor_profile;

use crate::error::{During, Result};
use crate::sys;

/// What loads profiles, and replaces those of the same name (Linux, security/apparmor/apparmorfs.c).
const REPLACE: &str = "apparmor/.replace";

/// What names the profile of the next execve (apparmorfs(7), aa_change_onexec(3)).
const ON_EXEC: &str = "/proc/self/attr/apparmor/exec";

/// Loads the policy that has the profile of `process`; an empty one has been loaded before. No
/// container sees the file system that this is done by: it is mounted nowhere.
///
/// # Errors
/// The kernel cannot load it, for instance because it was compiled for a newer one.
pub(super) fn load(process: &Process, policy: &[u8]) -> Result<()> {
    if policy.is_empty() {
        return Ok(());
    }
    let profile = apparmor_profile(process).unwrap_or_default();
    let replace = || -> io::Result<()> {
        let root = sys::detached(c"securityfs")?;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&root, REPLACE, flags, Mode::empty())?);
        // The kernel takes a policy whole, by one write.
        match file.write(policy)? {
            written if written == policy.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    };
    let what = || format!("load the AppArmor profile {profile:?} of process.apparmorProfile");
    replace().during(what)
}

/// Has the process in its profile from its execve on. The guest's own `/proc` must be there.
pub(super) fn enter(process: &Process) -> Result<()> {
    let Some(profile) = apparmor_profile(process) else {
        return Ok(());
    };
    // runc's words.
    fs::write(ON_EXEC, format!("exec {profile}"))
        .during(|| format!("apparmor failed to apply profile: write {ON_EXEC}"))
}
