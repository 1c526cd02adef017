//! The `unsafe` of this crate: mappings, memory slots, kernel interfaces without a safe wrapper.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::ptr;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::epoll::Epoll;

/// Alignment of guest memory in this process: a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Takes over an open `/dev/kvm`.
pub(crate) fn kvm(device: File) -> Kvm {
    // SAFETY: the descriptor is open and its ownership moves from `device` to the `Kvm`. That it is /dev/kvm is checked by the
    // first ioctl: on any other file it fails.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Maps `sizes.sum()` bytes of anonymous memory aligned to huge pages and cuts them into consecutive regions.
///
/// The mapping is never taken back: guest memory lives as long as the process.
pub(crate) fn map_guest_memory(sizes: &[usize]) -> io::Result<Vec<MmapRegion>> {
    let size: usize = sizes.iter().sum();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing object.
    let mapping =
        unsafe { libc::mmap(ptr::null_mut(), size + HUGE_PAGE, protection, flags, -1, 0) };
    if mapping == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let slack = mapping.align_offset(HUGE_PAGE);
    let start = mapping.cast::<u8>().wrapping_add(slack);
    // SAFETY: the range lies in the mapping made above (slack is less than the surplus), which nobody else uses. The advice changes
    // no content. Its failure (a kernel without transparent huge pages) leaves small pages, which work.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
    let mut regions = Vec::with_capacity(sizes.len());
    let mut offset = 0;
    for &size in sizes {
        let builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(protection)
            .with_mmap_flags(flags);
        // SAFETY: the sizes add up to no more than the mapping, so that the region lies within it, and it stays mapped until the
        // process ends.
        let builder = unsafe { builder.with_raw_mmap_pointer(start.wrapping_add(offset)) };
        regions.push(builder.build().map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })?);
        offset += size;
    }
    Ok(regions)
}

/// Gives guest memory to the virtual machine, one slot for each region.
pub(crate) fn set_memory_slots(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: regions do not overlap (GuestMemoryMmap checks that) and stay mapped until the process ends
        // (`map_guest_memory`). What the guest writes there is reached by this process only through volatile accesses.
        unsafe { vm.set_user_memory_region(slot)? };
    }
    Ok(())
}

/// The suberror of a `KVM_EXIT_INTERNAL_ERROR`. To be called directly after that exit.
pub(crate) fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: all members of the union are plain integers, so that any bytes in it are a valid value.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// The descriptor of an epoll instance.
pub(crate) fn epoll_fd(epoll: &Epoll) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `epoll` is, which the returned lifetime borrows.
    unsafe { BorrowedFd::borrow_raw(epoll.as_raw_fd()) }
}

/// CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec to be written. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Fills the buffer with random bytes of the kernel and returns how many there are (fewer when a signal came).
pub(crate) fn random(buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length.
    let read = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
