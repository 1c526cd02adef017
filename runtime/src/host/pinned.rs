//! What a client has set in the namespaces that it has pinned for a pod: the names of the host, and parameters of the
//! kernel. CRI-O sets those of `securityContext.sysctls` there, and says nothing of them to containers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use specification::sysctl;

use crate::state::Pinned;

/// Where parameters are.
const PARAMETERS: &str = "/proc/sys";

/// Maximum depth of directories below that.
const DEPTH_MAX: usize = 8;

/// What is set in the namespaces of a pod.
pub(crate) struct Found {
    pub(crate) hostname: String,
    /// Empty if it has none.
    pub(crate) domainname: String,
    /// The parameters that are not what they are in new namespaces: paths below `/proc/sys`, and values.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// Looks into the namespaces.
///
/// # Errors
/// Those of entering them, and of reading the parameters.
pub(crate) fn look(pinned: &Pinned) -> io::Result<Found> {
    // /proc/sys shows the namespaces of the thread that looks.
    let looked = thread::scope(|scope| scope.spawn(|| look_as_thread(pinned)).join());
    looked.unwrap_or_else(|_| Err(io::Error::other("it was not looked to the end")))
}

fn look_as_thread(pinned: &Pinned) -> io::Result<Found> {
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET)?;
    let mut new = BTreeMap::new();
    for directory in ["net", "kernel", "fs/mqueue"] {
        collect(Path::new(directory), DEPTH_MAX, &mut new)?;
    }
    setns(File::open(&pinned.uts)?, CloneFlags::CLONE_NEWUTS)?;
    setns(File::open(&pinned.ipc)?, CloneFlags::CLONE_NEWIPC)?;
    if let Some(net) = &pinned.net {
        setns(File::open(net)?, CloneFlags::CLONE_NEWNET)?;
    }
    let differs = |(path, value): (String, String)| {
        let own = value_of(&Path::new(PARAMETERS).join(&path))?;
        (own != value).then_some((path, own))
    };
    let name = |file: &str| fs::read_to_string(Path::new(PARAMETERS).join(file));
    let domainname = name("kernel/domainname")?.trim().to_owned();
    Ok(Found {
        hostname: name("kernel/hostname")?.trim().to_owned(),
        // What the kernel calls no name (UTS_DOMAINNAME of linux/uts.h).
        domainname: if domainname == "(none)" {
            String::new()
        } else {
            domainname
        },
        parameters: new.into_iter().filter_map(differs).collect(),
    })
}

/// The values of the parameters of ipc and network namespaces that are below this directory and can be set.
fn collect(
    directory: &Path,
    depth: usize,
    values: &mut BTreeMap<String, String>,
) -> io::Result<()> {
    let entries = match fs::read_dir(Path::new(PARAMETERS).join(directory)) {
        // The kernel has no such namespaces' parameters.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path: PathBuf = directory.join(entry.file_name());
        let Some(text) = path.to_str() else { continue };
        if entry.file_type()?.is_dir() {
            // The kernel's own directories are of no namespace, but for that of the network.
            if depth > 0 && directory.starts_with("net") {
                collect(&path, depth - 1, values)?;
            }
        } else if matches!(sysctl::namespace(text), Some(Kind::Ipc | Kind::Network))
            && let Some(value) = value_of(&entry.path())
        {
            values.insert(text.to_owned(), value);
        }
    }
    Ok(())
}

/// The value of a parameter that can be read and set.
fn value_of(file: &Path) -> Option<String> {
    let mode = fs::metadata(file).ok()?.permissions().mode();
    let value = (mode & 0o200 != 0).then(|| fs::read_to_string(file));
    Some(value?.ok()?.trim().to_owned())
}
