//! Whether KVM is there, has what machines need, and runs the guest's kernel code on hardware.
//!
//! On some virtual machines /dev/kvm opens and every ioctl succeeds, but without hardware behind it: guest kernel code
//! (CPL 0) is emulated one instruction at a time, and no system boots. Only running such code tells.

use std::fs::OpenOptions;
use std::io;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm, VcpuExit};
use nix::time::{ClockId, clock_gettime};

use crate::sys;

/// The API version of every KVM since Linux 2.6.22 (Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

/// The extensions that machines use.
const CAPABILITIES: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// 16-bit code: `1: dec ecx; jnz 1b; hlt`.
const LOOP: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];
const INSTRUCTIONS_PER_ROUND: u64 = 2;

/// Rounds of the loop: about 0.2 s where it is emulated and 1 ms or less on hardware.
const ROUNDS: u64 = 200_000;

/// Instructions a second. Emulation reaches 1 to 3 million; hardware, nested or not, hundreds.
const SPEED_MIN: u64 = 20_000_000;

/// Size of the probe's memory: one page.
const MEMORY: usize = 4096;

/// What KVM lacks, one line each.
pub(super) fn kvm() -> Vec<String> {
    let file = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(file) => file,
        Err(e) => return vec![format!("no KVM: /dev/kvm: {e}")],
    };
    let kvm = sys::kvm(file);
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return vec![format!(
            "KVM API version {version} instead of {API_VERSION}"
        )];
    }
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| format!("KVM lacks {name}"))
        .collect();
    if !missing.is_empty() {
        return missing;
    }
    match speed(&kvm) {
        Ok(speed) if speed >= SPEED_MIN => Vec::new(),
        Ok(speed) => vec![format!(
            "KVM emulates guest kernel code ({:.1} million instructions a second): there is no hardware behind it and no guest boots",
            speed as f64 / 1e6
        )],
        Err(e) => vec![format!("KVM does not run guest code: {e}")],
    }
}

/// Instructions a second of guest code at CPL 0, in CPU time of this thread: other load on the host does not count.
fn speed(kvm: &Kvm) -> io::Result<u64> {
    let vm = kvm.create_vm()?;
    sys::give_memory(&vm, &LOOP, MEMORY)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    // Bit 1 of the flags is always set.
    (regs.rip, regs.rcx, regs.rflags) = (0, ROUNDS, 2);
    vcpu.set_regs(&regs)?;
    let before = cpu_time()?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(other) => return Err(io::Error::other(format!("unexpected exit {other:?}"))),
            Err(e) if e.errno() == nix::libc::EINTR => {}
            Err(e) => return Err(e.into()),
        }
    }
    let taken = cpu_time()?.saturating_sub(before).as_nanos().max(1);
    let instructions = u128::from(ROUNDS * INSTRUCTIONS_PER_ROUND);
    Ok(u64::try_from(instructions * 1_000_000_000 / taken).unwrap_or(u64::MAX))
}

fn cpu_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
