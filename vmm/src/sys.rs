//! The `unsafe` of this crate: mappings, memory slots, signals, kernel interfaces without a safe wrapper.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use kvm_bindings::{KVM_MEM_READONLY, KVMIO, kvm_signal_mask, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::rand::GetRandomFlags;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion, VolatileSlice,
};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::window::Window;

/// Alignment of guest memory in this process: a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Size of a page, bytes.
const PAGE_SIZE: usize = 4096;

/// Takes over an open `/dev/kvm`.
pub(crate) fn kvm(device: File) -> Kvm {
    // SAFETY: the descriptor is open and its ownership moves from `device` to the `Kvm`. That it is /dev/kvm is checked
    // by the first ioctl: on any other file it fails.
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
    // SAFETY: the range lies in the mapping made above (slack is less than the surplus), which nobody else uses. The
    // advice changes no content. Its failure (a kernel without transparent huge pages) leaves small pages, which work.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
    let mut regions = Vec::with_capacity(sizes.len());
    let mut offset = 0;
    for &size in sizes {
        let builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(protection)
            .with_mmap_flags(flags);
        // SAFETY: the sizes add up to no more than the mapping, so that the region lies within it, and it stays mapped
        // until the process ends.
        let builder = unsafe { builder.with_raw_mmap_pointer(start.wrapping_add(offset)) };
        regions.push(builder.build().map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })?);
        offset += size;
    }
    Ok(regions)
}

/// Gives the guest's address space to the virtual machine: one slot for each region of RAM, and behind those one for
/// the window. Nothing that the guest writes to the window gets anywhere: such a write is one to a device that does not
/// exist.
pub(crate) fn set_memory_slots(
    vm: &VmFd,
    ram: &GuestMemoryMmap,
    window: Option<&Window>,
) -> Result<(), kvm_ioctls::Error> {
    let regions = ram.iter().map(|region| kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    });
    let window = window.map(|window| kvm_userspace_memory_region {
        slot: 0,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: window.start,
        memory_size: window.length as u64,
        userspace_addr: window.address as u64,
    });
    for (slot, region) in (0..).zip(regions.chain(window)) {
        let region = kvm_userspace_memory_region { slot, ..region };
        // SAFETY: regions do not overlap (GuestMemoryMmap checks that) and stay mapped until the process ends
        // (`map_guest_memory`). What the guest writes there is reached by this process only through volatile accesses.
        // The window lies above them all and stays reserved until the process ends: the guest can read what is mapped
        // there, which are files that are its own to read, and change nothing.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}

/// Copies memory of this process that may not be there: where it is not, `to` is left as it is.
pub(crate) fn read_own(address: usize, to: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < to.len() {
        let left = &mut to[done..];
        let local = libc::iovec {
            iov_base: left.as_mut_ptr().cast(),
            iov_len: left.len(),
        };
        let from = libc::iovec {
            iov_base: ptr::without_provenance_mut(address + done),
            iov_len: left.len(),
        };
        // SAFETY: the kernel writes to `left` alone, no more than it holds. It reads by address, as another process
        // would, and fails where nothing is.
        let copied = retry(|| unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const from, 1, 0)
        });
        match copied {
            Ok(count @ 1..) => done += count,
            Err(error) if error.raw_os_error() != Some(libc::EFAULT) => return Err(error),
            // On with the next page.
            Ok(0) | Err(_) => done = (address + done + 1).next_multiple_of(PAGE_SIZE) - address,
        }
    }
    Ok(())
}

/// The suberror of a `KVM_EXIT_INTERNAL_ERROR`. Must be called directly after that exit.
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
    Ok(rustix::rand::getrandom(buffer, GetRandomFlags::empty())?)
}

/// Gives the whole pages of guest memory in the slice back to the host: they read as zeros from here on. Without effect
/// where the host's kernel refuses, as for locked memory.
pub(crate) fn discard(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let lead = start.align_offset(PAGE_SIZE);
    let size = guard.len().saturating_sub(lead) / PAGE_SIZE * PAGE_SIZE;
    if size > 0 {
        // SAFETY: the pages lie in the slice, which is mapped as long as it lives. They are guest memory: nothing in
        // this process relies on what is in them, as the guest may change that at any time.
        unsafe { libc::madvise(start.add(lead).cast(), size, libc::MADV_DONTNEED) };
    }
}

/// Memory a system call may read for as long as `'a`.
pub(crate) struct Outgoing<'a>(Vec<libc::iovec>, PhantomData<&'a [u8]>);

impl<'a> Outgoing<'a> {
    /// The first `limit` bytes of slices of guest memory.
    pub(crate) fn from_guest(slices: &'a [VolatileSlice<'_>], limit: usize) -> Outgoing<'a> {
        Outgoing(guest_iovecs(slices, limit), PhantomData)
    }

    /// The first `limit` bytes of two pieces of host memory.
    pub(crate) fn from_host(pieces: (&'a [u8], &'a [u8]), limit: usize) -> Outgoing<'a> {
        let first = &pieces.0[..pieces.0.len().min(limit)];
        let second = &pieces.1[..pieces.1.len().min(limit - first.len())];
        let iovecs = [first, second].map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        });
        Outgoing(iovecs.into(), PhantomData)
    }

    /// The vectors.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.0
    }
}

/// Memory a system call may write for as long as `'a`.
pub(crate) struct Incoming<'a>(Vec<libc::iovec>, PhantomData<&'a mut [u8]>);

impl<'a> Incoming<'a> {
    /// The first `limit` bytes of slices of guest memory.
    pub(crate) fn from_guest(slices: &'a [VolatileSlice<'_>], limit: usize) -> Incoming<'a> {
        Incoming(guest_iovecs(slices, limit), PhantomData)
    }

    /// The same, and behind it host memory.
    pub(crate) fn from_guest_and_host(
        slices: &'a [VolatileSlice<'_>],
        limit: usize,
        rest: &'a mut [u8],
    ) -> Incoming<'a> {
        let mut iovecs = guest_iovecs(slices, limit);
        iovecs.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        Incoming(iovecs, PhantomData)
    }

    /// The vectors.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.0
    }
}

/// Vectors over the first `limit` bytes of `slices`.
fn guest_iovecs(slices: &[VolatileSlice<'_>], limit: usize) -> Vec<libc::iovec> {
    let mut iovecs = Vec::with_capacity(slices.len() + 1);
    let mut left = limit;
    for slice in slices {
        let iov_len = slice.len().min(left);
        if iov_len == 0 {
            break;
        }
        left -= iov_len;
        // The guard only pins lazily mapped (Xen) memory; ours is mapped for as long as the slice lives.
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        iovecs.push(libc::iovec { iov_base, iov_len });
    }
    iovecs
}

/// The length of a vector for system calls that want a C int; no device gives more than 1024 pieces, so nothing is cut.
fn int_len(iovecs: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX)
}

/// Makes a call until no signal interrupts it.
pub(crate) fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let result = call();
        if let Ok(count) = usize::try_from(result) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// writev(2).
pub(crate) fn write(fd: BorrowedFd<'_>, from: &Outgoing<'_>) -> io::Result<usize> {
    // SAFETY: `Outgoing` is only made from slices that stay mapped for its lifetime; the kernel reads no more than they
    // hold. That the guest may change guest memory meanwhile is no matter to the kernel.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), from.0.as_ptr(), int_len(&from.0)) })
}

/// readv(2).
pub(crate) fn read(fd: BorrowedFd<'_>, to: &Incoming<'_>) -> io::Result<usize> {
    // SAFETY: `Incoming` is only made from volatile slices of guest memory that stay mapped for its lifetime and to
    // which no Rust reference exists, and from a buffer that it borrows alone; the kernel writes no more than they
    // hold.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), to.0.as_ptr(), int_len(&to.0)) })
}

/// An offset for system calls; one that no file reaches is an error.
fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// pwritev(2).
pub(crate) fn write_at(
    fd: BorrowedFd<'_>,
    from: &Outgoing<'_>,
    position: u64,
) -> io::Result<usize> {
    let (iovecs, at) = (&from.0, offset(position)?);
    // SAFETY: as for `write`.
    retry(|| unsafe { libc::pwritev(fd.as_raw_fd(), iovecs.as_ptr(), int_len(iovecs), at) })
}

/// preadv(2).
pub(crate) fn read_at(fd: BorrowedFd<'_>, to: &Incoming<'_>, position: u64) -> io::Result<usize> {
    let (iovecs, at) = (&to.0, offset(position)?);
    // SAFETY: as for `read`.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), iovecs.as_ptr(), int_len(iovecs), at) })
}

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// `kvm_signal_mask` (linux/kvm.h) with a signal set of the kernel's size.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    /// A bit for each signal, that of signal 1 being the lowest.
    signals: u64,
}

/// The signal that gets a thread out of `KVM_RUN`. Real-time signals queue, so each that is sent can be taken.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The set of the kick alone.
fn kick_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, made valid by sigemptyset; both calls write to it only and cannot fail for this
    // signal.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, kick_signal());
        set
    }
}

/// Has `KVM_RUN` return EINTR for a kick and for no other signal, whatever the thread blocks.
pub(crate) fn let_kick_through(vcpu: &VcpuFd) -> io::Result<()> {
    let mask = SignalMask {
        len: 8,
        signals: !(1 << (kick_signal() - 1)),
    };
    // SAFETY: the kernel reads the structure and, by its `len`, the 8 bytes behind it, which are the set.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls `f` with the kick blocked in this thread, and so in the threads it makes.
pub(crate) fn with_kick_blocked<T>(f: impl FnOnce() -> T) -> T {
    let mut before = kick_set();
    // SAFETY: both sets are valid; these calls cannot fail with them.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &kick_set(), &raw mut before) };
    let result = f();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    result
}

/// A leaf of the host's CPUID: EAX, EBX, ECX and EDX.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    let found = std::arch::x86_64::__cpuid(leaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// A thread that may be kicked.
#[derive(Clone, Copy)]
pub(crate) struct ThreadId(libc::pthread_t);

/// The calling thread. It must not end before the last kick is sent to it.
pub(crate) fn this_thread() -> ThreadId {
    // SAFETY: it has no precondition.
    ThreadId(unsafe { libc::pthread_self() })
}

/// Sends a thread a kick.
pub(crate) fn kick(thread: ThreadId) -> io::Result<()> {
    // SAFETY: the thread has not ended: those that run vCPUs live as long as the process.
    match unsafe { libc::pthread_kill(thread.0, kick_signal()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Takes a kick that this thread has been sent; one that is sent to the process comes after those.
pub(crate) fn take_kick() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid set and timeout; nothing is asked about the signal. It fails if there is none.
    unsafe { libc::sigtimedwait(&kick_set(), ptr::null_mut(), &raw const now) };
}

/// Size of `struct io_uring_params` (linux/io_uring.h), and where its flags are, in words of 4 bytes.
const URING_PARAMS: usize = 30;
const URING_FLAGS: usize = 2;

/// The ring takes no requests (`IORING_SETUP_R_DISABLED`).
const URING_DISABLED: u32 = 1 << 6;

/// `IORING_REGISTER_FILES`
const URING_FILES: libc::c_uint = 2;

/// Has a worker of the kernel release these descriptors' files when this process has ended. The process itself, and
/// whoever waits for it, would have to wait for that: a virtual machine takes tens of milliseconds, an RCU barrier
/// among them.
///
/// The files are registered with an io_uring that is never enabled. The kernel takes a ring apart by a worker, once it
/// is closed, which is after all of `files`: it closes the descriptors of a process that ends in their order.
pub(crate) fn release_later(files: &[RawFd]) -> io::Result<OwnedFd> {
    let mut params = [0_u32; URING_PARAMS];
    params[URING_FLAGS] = URING_DISABLED;
    // SAFETY: the kernel reads and writes the structure of this size, and returns a new descriptor or an error.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    let ring = RawFd::try_from(ring).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    let mut ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let last = files.iter().copied().max().unwrap_or_default();
    if ring.as_raw_fd() < last {
        ring = rustix::io::fcntl_dupfd_cloexec(&ring, last)?;
    }
    let count = libc::c_uint::try_from(files.len()).map_err(io::Error::other)?;
    let (number, files) = (ring.as_raw_fd(), files.as_ptr());
    // SAFETY: the kernel reads `count` numbers.
    match unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            number,
            URING_FILES,
            files,
            count,
        )
    } {
        0 => Ok(ring),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Maps a file to be read, for good.
    pub(crate) fn map(file: &File, length: usize) -> usize {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let mapping =
            unsafe { libc::mmap(ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        mapping.expose_provenance()
    }
}
