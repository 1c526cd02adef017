//! What comes before libseccomp's filter: ENOSYS for system calls that the profile's author cannot have known.
//!
//! A profile lists what is allowed, and denies the rest with an error such as EPERM. A C library that tries a new
//! system call and falls back to an older one when it is missing does so upon ENOSYS only. So each number above the
//! largest that the profile mentions is answered by ENOSYS, as runc does:
//! ```text
//!     arch = AUDIT_ARCH_X86_64 -> 1; arch = AUDIT_ARCH_I386 -> 2; else the filter
//! 2:  number > limit of i386 -> 3; else the filter
//! 1:  number & X32 ? number > limit of x32 -> 3 : number > limit of x86_64 -> 3; else the filter
//! 3:  return ENOSYS
//! ```
//! A profile may name other architectures too; no process of the guest is of one.

use libseccomp::{ScmpArch, ScmpSyscall};
use nix::libc;
use oci_spec::runtime::LinuxSeccomp;

use super::architecture;

/// `AUDIT_ARCH_*` of linux/audit.h: what `seccomp_data.arch` can be in an x86_64 guest. x32 is told by a bit of the
/// number.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// `__X32_SYSCALL_BIT` of asm/unistd.h.
const X32: u32 = 1 << 30;

/// Offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Opcodes of linux/bpf_common.h.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// `SECCOMP_RET_ERRNO` with ENOSYS.
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// An architecture of the guest, and the largest number of a system call that the profile mentions for it.
pub(super) type Limit = (ScmpArch, u32);

/// The limits of the profile's architectures and the native one.
pub(super) fn limits(profile: &LinuxSeccomp) -> Vec<Limit> {
    let listed = profile.architectures().iter().flatten();
    let listed: Vec<_> = listed.map(|arch| architecture(*arch)).collect();
    let names = || {
        let rules = profile.syscalls().iter().flatten();
        rules.flat_map(|rule| rule.names())
    };
    let number = |name: &str, arch| {
        let call = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
        // A negative one stands for a name that this architecture has no number for.
        u32::try_from(i32::from(call)).ok()
    };
    let native = ScmpArch::X8664;
    let of_guest = [native, ScmpArch::X32, ScmpArch::X86];
    let mentioned = |arch: &ScmpArch| *arch == native || listed.contains(arch);
    let limit = |arch| {
        let largest = names().filter_map(|name| number(name, arch)).max();
        Some((arch, largest.filter(|number| *number > 0)?))
    };
    of_guest
        .into_iter()
        .filter(mentioned)
        .filter_map(limit)
        .collect()
}

/// The instructions. Each falls or jumps to the end unless it answers.
pub(super) fn stub(limits: &[Limit]) -> Vec<u64> {
    let of = |arch| {
        limits
            .iter()
            .find(|limit| limit.0 == arch)
            .map(|limit| limit.1)
    };
    let sections = [
        (
            AUDIT_ARCH_I386,
            of(ScmpArch::X86).map(|limit| vec![above(limit)]),
        ),
        (
            AUDIT_ARCH_X86_64,
            x86_64(of(ScmpArch::X8664), of(ScmpArch::X32)),
        ),
    ];
    let sections: Vec<_> = sections
        .into_iter()
        .filter_map(|(arch, tests)| Some((arch, tests?)))
        .collect();
    if sections.is_empty() {
        return Vec::new();
    }
    // Built from the end: jumps are forward, and their length is what is there already.
    let mut tail = vec![
        instruction(JUMP, 0, 0, 1),
        instruction(RETURN, 0, 0, ENOSYS),
    ];
    let mut starts = Vec::new();
    for (arch, tests) in sections.into_iter().rev() {
        tail.insert(0, instruction(JUMP, 0, 0, length(&tail).into()));
        for test in tests.into_iter().rev() {
            tail.insert(0, test(length(&tail) - 1));
        }
        tail.insert(0, instruction(LOAD, 0, 0, NUMBER));
        starts.push((arch, length(&tail)));
    }
    tail.insert(0, instruction(JUMP, 0, 0, length(&tail).into()));
    for (arch, start) in starts.into_iter().rev() {
        let skip = length(&tail) - start;
        tail.insert(0, instruction(IF_EQUAL, skip, 0, arch));
    }
    tail.insert(0, instruction(LOAD, 0, 0, ARCH));
    tail
}

/// An instruction, given how many come between it and the last one, which answers ENOSYS.
type Test = Box<dyn Fn(u8) -> u64>;

fn x86_64(native: Option<u32>, x32: Option<u32>) -> Option<Vec<Test>> {
    match (native, x32) {
        (None, None) => None,
        (Some(native), None) => Some(vec![
            Box::new(|_| instruction(IF_SET, 1, 0, X32)),
            above(native),
        ]),
        (None, Some(x32)) => Some(vec![
            Box::new(|_| instruction(IF_SET, 0, 1, X32)),
            above(x32),
        ]),
        (Some(native), Some(x32)) => Some(vec![
            Box::new(|_| instruction(IF_SET, 1, 0, X32)),
            Box::new(move |to_answer| instruction(IF_GREATER, to_answer, 1, native)),
            above(x32),
        ]),
    }
}

fn above(limit: u32) -> Test {
    Box::new(move |to_answer| instruction(IF_GREATER, to_answer, 0, limit))
}

/// The stub has at most 14 instructions.
fn length(program: &[u64]) -> u8 {
    u8::try_from(program.len()).unwrap_or(u8::MAX)
}

/// `struct sock_filter` of linux/filter.h as a little-endian number.
fn instruction(code: u32, if_true: u8, if_false: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(k) << 32
}
