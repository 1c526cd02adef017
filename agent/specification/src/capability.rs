//! Capabilities (config.md, Linux Process).

use oci_spec::runtime::Capability;

/// All capabilities by number (linux/capability.h).
pub const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The number of a capability; `None` if it is newer than [`CAPABILITIES`].
#[must_use]
pub fn capability_number(capability: Capability) -> Option<usize> {
    CAPABILITIES.iter().position(|known| *known == capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_number() {
        for (number, capability) in CAPABILITIES.into_iter().enumerate() {
            assert_eq!(capability_number(capability), Some(number), "{capability}");
        }
        // Of linux/capability.h, across the list.
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("CAP_SYS_ADMIN", 21),
            ("CAP_SETFCAP", 31),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            let capability = serde_json::from_str(&format!("{name:?}")).unwrap();
            assert_eq!(capability_number(capability), Some(number), "{name}");
        }
    }
}
