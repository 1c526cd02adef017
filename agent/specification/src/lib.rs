//! What host and guest both know of the OCI runtime specification (1.3) and of the kernel's numbers for it: what the
//! plan accepts and `features` lists on the host is what the stage applies in the guest. No I/O.

#![forbid(unsafe_code)]

mod capability;
mod cgroup;
mod cpus;
pub mod device;
mod hook;
pub mod mount;
pub mod namespace;
mod process;
pub mod sysctl;

pub use capability::{CAPABILITIES, capability_number};
pub use cgroup::{
    CPU_PERIOD, GUEST_OVERHEAD, Place, SWAP_MAX, cpu_weight, swap_max, usable_kbytes,
};
pub use cpus::CpuList;
pub use device::DeviceRule;
pub use hook::HookKind;
pub use mount::MountOption;
pub use process::{
    IO_PRIORITIES, NO_ID, UNCONFINED, apparmor_profile, scheduler_flags, scheduler_policy,
    scheduler_problems,
};
