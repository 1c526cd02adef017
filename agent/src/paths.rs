//! Where PID 1 puts what the stages look for.

/// Where the share is mounted.
pub(crate) const SHARE: &str = "/run/share";

/// Where the container's root is mounted until it becomes `/`.
pub(crate) const STAGING: &str = "/run/root";

/// The directory of the socket for notifications. The container has it in the same place, as with
/// runc.
pub(crate) const NOTIFY: &str = "/run/notify";

/// The name of the socket there.
pub(crate) const NOTIFY_SOCKET: &str = "notify.sock";
