//! Where PID 1 and the stages find each other's things.

use std::path::{Path, PathBuf};

use protocol::ContainerId;

/// Where the share is mounted.
pub(crate) const SHARE: &str = "/run/share";

/// Where each container has a directory of its own.
pub(crate) const CONTAINERS: &str = "/run/containers";

/// Where a container finds the directory with its socket for notifications, as with runc.
pub(crate) const NOTIFY: &str = "/run/notify";

/// The name of the socket there.
pub(crate) const NOTIFY_SOCKET: &str = "notify.sock";

/// The directory of one container, by its number.
pub(crate) fn of_container(container: ContainerId) -> PathBuf {
    Path::new(CONTAINERS).join(container.to_string())
}

/// Where in there the container's root is mounted until it becomes `/`.
pub(crate) fn root(container: ContainerId) -> PathBuf {
    of_container(container).join("root")
}

/// The directory of the socket for notifications in there, if the container has one.
pub(crate) fn notify(container: ContainerId) -> PathBuf {
    of_container(container).join("notify")
}

/// The directory of the device nodes in there, if the configuration has any.
pub(crate) fn devices(container: ContainerId) -> PathBuf {
    of_container(container).join("dev")
}
