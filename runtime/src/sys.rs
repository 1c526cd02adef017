//! The unsafe parts of the verbs.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use nix::libc;

/// Sends any signal, real-time ones included; the process may have ended.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of this process.
    let _ = unsafe { libc::kill(pid, signal) };
}

/// Takes a descriptor that has just come by SCM_RIGHTS.
#[cfg(test)]
pub(crate) fn received(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has made the descriptor for the receiver, who gives it away here and only once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes a descriptor that the caller of the program has left open in it, once. From now on no program that is executed gets it.
///
/// # Errors
/// EBADF when there is none.
pub(crate) fn adopt_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // All that this program opens is close-on-exec, and all that it inherits is not.
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 || number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and, as it was inherited, nothing in this program owns it; being close-on-exec now, it cannot be
    // taken again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a tap of an open `/dev/net/tun`, in the network namespace it was opened in (linux/if_tun.h): for Ethernet frames with a
/// `virtio_net_hdr` in front. It is there until the last descriptor of it is closed.
pub(crate) fn make_tap(device: OwnedFd, name: &str) -> io::Result<OwnedFd> {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// A moment, in seconds since 1970-01-01T00:00:00Z, in this host's time zone; all zero if its year cannot be told.
pub(crate) fn local_time(seconds: u64) -> libc::tm {
    let seconds = libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX);
    // SAFETY: a tm is numbers and a pointer that may be null, so all zero is one.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that outlive the call; the time zone's name that it points the result to lives as long as the program.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut local) };
    local
}

/// KVM by its open device.
pub(crate) fn kvm(device: File) -> Kvm {
    // SAFETY: the descriptor is open and owned by nobody else from here on.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Gives a virtual machine zeroed memory of `length` bytes, a multiple of the page size, from guest address 0 on, that starts with `code`.
///
/// The memory stays mapped until the program ends, so that the machine cannot outlive it.
pub(crate) fn give_memory(vm: &VmFd, code: &[u8], length: usize) -> io::Result<()> {
    if code.len() > length {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice; no existing memory is affected.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is writable, new and of `length` bytes, which is compared with the length of `code` above.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), start.cast::<u8>(), code.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: length as u64,
        userspace_addr: start as u64,
    };
    // SAFETY: the region is exactly the mapping made above, which is never unmapped and which nothing else refers to.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}
