//! The system call filter. The host has compiled it; here it is loaded.

use oci_spec::runtime::Process;
use protocol::Seccomp;

use crate::error::{During, Error, Result};
use crate::sys::{self, FilterInstruction};

/// BPF_MAXINSNS of linux/bpf_common.h: instructions in a program.
const MAX_INSTRUCTIONS: usize = 4096;

/// SECCOMP_FILTER_FLAG_* of linux/seccomp.h that change nothing but the filter itself: TSYNC, LOG,
/// SPEC_ALLOW, TSYNC_ESRCH. NEW_LISTENER and WAIT_KILLABLE_RECV need somebody who listens.
const FLAGS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 4;

/// Loads the filter for the calling process and all that it executes. There is no way back.
///
/// # Errors
/// The program or its flags are not acceptable, or the process has neither no_new_privs nor
/// CAP_SYS_ADMIN.
pub(super) fn load(filter: &Seccomp) -> Result<()> {
    let program = program(filter)?;
    sys::set_seccomp_filter(filter.flags, &program).during(|| "load the filter of linux.seccomp")
}

/// When a process loads its filter, as runc: before it gives up the privileges that this takes, or
/// as late as possible if with no_new_privs it takes none.
pub(super) fn moment<'a>(
    process: &Process,
    filter: Option<&'a Seccomp>,
) -> (Option<&'a Seccomp>, Option<&'a Seccomp>) {
    if process.no_new_privileges() == Some(true) {
        (None, filter)
    } else {
        (filter, None)
    }
}

fn program(filter: &Seccomp) -> Result<Vec<FilterInstruction>> {
    let bad = |what: String| Err(Error::Config(format!("linux.seccomp: {what}")));
    let unknown = filter.flags & !FLAGS;
    if unknown != 0 {
        return bad(format!(
            "flags {unknown:#x} of the filter are not supported"
        ));
    }
    let count = filter.program.len();
    if !(1..=MAX_INSTRUCTIONS).contains(&count) {
        return bad(format!(
            "the filter has {count} instructions, not 1 to {MAX_INSTRUCTIONS}"
        ));
    }
    let instructions = filter.program.iter().copied();
    Ok(instructions.map(FilterInstruction::from_bits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::unistd::getsid;

    /// SECCOMP_RET_ALLOW of linux/seccomp.h.
    const ALLOW: u32 = 0x7fff_0000;

    /// Of asm/unistd_64.h.
    const GETSID: u32 = 124;

    /// BPF_RET | BPF_K with this value (linux/bpf_common.h).
    fn returns(value: u32) -> u64 {
        0x06 | u64::from(value) << 32
    }

    fn filter(flags: u64, program: &[u64]) -> Seccomp {
        Seccomp {
            flags,
            program: program.to_vec(),
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_by_name() {
        let text = |flags, instructions: &[u64]| {
            let filter = filter(flags, instructions);
            program(&filter).unwrap_err().to_string()
        };
        assert!(text(0, &[]).contains("0 instructions"));
        assert!(text(0, &[returns(ALLOW); 4097]).contains("4097 instructions"));
        assert!(text(1 << 3, &[returns(ALLOW)]).contains("flags 0x8"));
        assert!(text(1 << 40, &[returns(ALLOW)]).contains("flags 0x10000000000"));
        let longest = filter(7, &[returns(ALLOW); 4096]);
        assert_eq!(program(&longest).unwrap().len(), 4096);
    }

    #[test]
    fn a_loaded_filter_filters() {
        let program = [
            0x20,                                        // load the number of the call
            0x15 | 1 << 24 | u64::from(GETSID) << 32,    // if it is getsid, go on; else skip one
            returns(0x0005_0000 | Errno::ENOANO as u32), // SECCOMP_RET_ERRNO
            returns(ALLOW),
        ];
        // Filters and no_new_privs are a thread's own.
        let filtered = std::thread::spawn(move || {
            assert!(getsid(None).is_ok());
            nix::sys::prctl::set_no_new_privs().unwrap();
            load(&filter(2, &program)).unwrap();
            getsid(None)
        });
        assert_eq!(filtered.join().unwrap(), Err(Errno::ENOANO));
        assert!(getsid(None).is_ok());
    }
}
