//! Where PID 1 and the stages find each other's things.

use std::path::{Path, PathBuf};

use protocol::ContainerId;

/// Where the share is mounted.
pub(crate) const SHARE: &str = "/run/share";

/// Where the shares of a container are that is not the machine's first, whose are at the top.
pub(crate) fn share(container: ContainerId) -> PathBuf {
    Path::new(SHARE).join(container.to_string())
}

/// Where each container has a directory of its own, with its number for a name.
pub(crate) const CONTAINERS: &str = "/run/containers";

/// Where a container finds the directory with its socket for notifications, as with runc.
pub(crate) const NOTIFY: &str = "/run/notify";

/// The name of the socket there.
pub(crate) const NOTIFY_SOCKET: &str = "notify.sock";

/// Where in a container's directory its root is mounted until it becomes `/`.
pub(crate) fn root(directory: &Path) -> PathBuf {
    directory.join("root")
}

/// The directory in there of the socket for notifications, if the container has one.
pub(crate) fn notify(directory: &Path) -> PathBuf {
    directory.join("notify")
}

/// The directory in there of the device nodes, if the configuration has any.
pub(crate) fn devices(directory: &Path) -> PathBuf {
    directory.join("dev")
}
