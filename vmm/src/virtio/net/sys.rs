//! The system calls on a tap (linux/if_tun.h).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// What a system call says.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The flags the tap was made with (`TUNGETIFF`).
pub(super) fn tap_flags(tap: &OwnedFd) -> io::Result<libc::c_short> {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq; on another kind of file it fails or, being defined for taps alone, writes no
    // more.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF has set this member; any bytes in it are a valid value.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// Makes reads and writes return instead of waiting.
pub(super) fn set_nonblocking(tap: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(tap)?;
    Ok(fcntl_setfl(tap, flags | OFlags::NONBLOCK)?)
}

/// Sets the length of the header in front of each packet, bytes.
pub(super) fn set_header_size(tap: &OwnedFd, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    Ok(())
}

/// Sets what the kernel may leave undone in packets it gives (`TUN_F_*`).
pub(super) fn set_offloads(tap: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: TUNSETOFFLOAD takes an integer and touches no memory.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })?;
    Ok(())
}

/// What tests need to have a tap.
#[cfg(test)]
pub(super) mod test {
    use std::fs::File;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixDatagram;

    use super::check;

    /// Puts the calling thread into a network namespace of its own.
    pub(in super::super) fn enter_new_network_namespace() {
        // SAFETY: it takes a flag and concerns the calling thread alone.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).unwrap();
    }

    /// A request that names an interface.
    fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
        // SAFETY: ifreq is plain data for which all zeros is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
        request
    }

    /// Makes a tap with `flags`.
    pub(in super::super) fn make_tap(name: &str, flags: libc::c_int) -> OwnedFd {
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        let tun = OwnedFd::from(tun.unwrap());
        let mut request = request(name, flags);
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).unwrap();
        tun
    }

    /// Sets an interface up.
    pub(in super::super) fn set_up(name: &str) {
        let socket = UnixDatagram::unbound().unwrap();
        let request = request(name, libc::IFF_UP);
        let call = libc::SIOCSIFFLAGS;
        // SAFETY: SIOCSIFFLAGS reads one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw const request) }).unwrap();
    }
}
