//! The KVM objects of a machine: virtual machine, vCPUs, the wiring of a device.

use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::address_space::AddressSpace;
use crate::boot;
use crate::cpuid::Cpuid;
use crate::error::Error;
use crate::layout::{FIRST_GSI, NOTIFICATIONS, TSS};
use crate::report::Reporter;
use crate::virtio::{Line, Transport, VirtioDevice};

/// Makes an empty virtual machine without performance counters.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::KvmVersion(version));
    }
    let vm = loop {
        match kvm.create_vm() {
            // A signal can interrupt it (Linux virt/kvm/kvm_main.c: the MMU notifier's registration).
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(Error::kvm("KVM_CREATE_VM"))?,
        }
    };
    let mut no_pmu = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    no_pmu.args[0] = KVM_PMU_CAP_DISABLE.into();
    match vm.enable_cap(&no_pmu) {
        // A kernel before 5.18, or one that gives guests no counters anyway.
        Err(error) if error.errno() == libc::EINVAL => {}
        other => other.map_err(Error::kvm("KVM_ENABLE_CAP"))?,
    }
    Ok(vm)
}

/// Makes the interrupt controllers and the vCPUs. Memory slots must be set.
pub(crate) fn create_vcpus(vm: &VmFd, cpuid: &Cpuid, count: u8) -> Result<Vec<VcpuFd>, Error> {
    if !cpuid.is_amd() {
        let tss = usize::try_from(TSS).unwrap_or_default();
        vm.set_tss_address(tss)
            .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    }
    vm.create_irq_chip()
        .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
    let msrs = boot::msrs().map_err(|_| Error::Table)?;
    let states = cpuid.states();
    let create = |id: u8| {
        let vcpu = vm
            .create_vcpu(id.into())
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid.of_vcpu(id).map_err(|_| Error::Table)?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        enable_states(&vcpu, states).map_err(Error::kvm("KVM_SET_XCRS"))?;
        let set = vcpu.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
        if set != msrs.as_slice().len() {
            let source = kvm_ioctls::Error::new(libc::EINVAL);
            return Err(Error::Kvm {
                call: "KVM_SET_MSRS",
                source,
            });
        }
        Ok(vcpu)
    };
    (0..count).map(create).collect()
}

/// Gives a vCPU the XCR0 that its guest's kernel will set anyway.
///
/// By it KVM computes the sizes of states that CPUID tells. A processor that lets guests set XCR0 without an exit
/// (QEMU 7.2's) leaves KVM with the value of a reset; then the guest's kernel finds wrong sizes and turns XSAVE off,
/// while CPUID still names AVX, and programs that go by that die of SIGILL.
fn enable_states(vcpu: &VcpuFd, states: u64) -> Result<(), kvm_ioctls::Error> {
    if states == 0 {
        return Ok(());
    }
    let mut registers = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    registers.xcrs[0] = kvm_xcr {
        value: states,
        ..Default::default()
    };
    vcpu.set_xcrs(&registers)
}

/// The port that the guest notifies a slot's device by.
pub(crate) fn notification(slot: u8) -> u16 {
    NOTIFICATIONS + u16::from(slot)
}

/// The interrupt of a slot.
struct Gsi {
    vm: Arc<VmFd>,
    number: u32,
}

impl Line for Gsi {
    /// The interrupt is there when this returns, and no worker of the kernel is woken for it, as by an irqfd of a pin.
    ///
    /// The line stays up until it is raised again. So an edge that this one merges with is one that another thread
    /// makes after it has begun, and with it after what the driver is to find.
    fn raise(&self) {
        for level in [false, true] {
            // Fails for a machine without interrupt controllers, and for a pin that these do not have.
            let _ = self.vm.set_irq_line(self.number, level);
        }
    }
}

/// Wires a device to a slot of the bus: the slot's interrupt, and an ioeventfd for each queue's notification, but for
/// those that vCPUs' threads serve.
pub(crate) fn attach(
    vm: &Arc<VmFd>,
    slot: u8,
    device: Box<dyn VirtioDevice>,
    space: &AddressSpace,
    reporter: Reporter,
) -> Result<Transport, Error> {
    let line = Gsi {
        vm: Arc::clone(vm),
        number: FIRST_GSI + u32::from(slot),
    };
    let notify = IoEventAddress::Pio(notification(slot).into());
    let mut kicks = Vec::new();
    for (queue, _) in (0_u32..).zip(device.queue_max_sizes()) {
        let kick = event()?;
        if !device.is_served_by_vcpus(queue) {
            vm.register_ioevent(&kick, &notify, queue)
                .map_err(Error::kvm("KVM_IOEVENTFD"))?;
        }
        kicks.push(kick);
    }
    Ok(Transport::new(
        device,
        space.clone(),
        Arc::new(line),
        kicks,
        reporter,
    ))
}

/// A new eventfd that never blocks.
pub(crate) fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::system("eventfd"))
}
