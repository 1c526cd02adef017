//! seccomp(2) and the handler of SIGSYS.

#![allow(unsafe_code)]

use std::io;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// `SYS_SECCOMP` of asm-generic/siginfo.h: the kernel has raised SIGSYS for a filter.
const SYS_SECCOMP: i32 = 1;

/// The part of `siginfo_t` that SIGSYS fills in (asm-generic/siginfo.h, `_sigsys`).
#[repr(C)]
struct Info {
    signal: i32,
    error: i32,
    code: i32,
    address: *const libc::c_void,
    call: i32,
    architecture: u32,
}

/// Sets a filter for the calling thread and for threads that it makes later. The thread must have no_new_privs.
pub(super) fn set(program: &[u64]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len());
    let program = libc::sock_fprog {
        len: length.map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the kernel reads as many instructions of 8 bytes as the slice has, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has SIGSYS of a filter end the process with its last words. SIGSYS that somebody has sent does nothing.
pub(super) fn on_violation() -> io::Result<()> {
    let handler = SigHandler::SigAction(handle);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler neither allocates nor takes a lock, and it returns only when it has done nothing.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t, which is larger than this part of it; the members that follow `code`
    // are only looked at when the kernel has filled them in.
    let info = unsafe { &*info.cast::<Info>() };
    if info.code == SYS_SECCOMP {
        super::violated(usize::try_from(info.call).unwrap_or(usize::MAX));
    }
}
