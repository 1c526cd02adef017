//! `linux.seccomp` as a BPF program for the guest's kernel.
//!
//! libseccomp translates the rules; what is asked of it, and in which order, is what runc asks, so that a profile means
//! the same here. The guest is of the host's architecture. Its kernel, not the host's, is what the filter is for:
//! nothing depends on the latter.

mod stub;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    ScmpVersion,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use protocol::Seccomp;

/// `SECCOMP_FILTER_FLAG_LOG` of linux/seccomp.h.
const FLAG_LOG: u64 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW` of linux/seccomp.h.
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// The level of seccomp_api_set(3) at which libseccomp knows the actions LOG and KILL_PROCESS. It asks the running
/// kernel otherwise.
const API_LEVEL: u32 = 3;

/// Most system calls for which libseccomp compares one by one, as with runc. Without any rule, version 2.5 makes no
/// valid tree.
const LIST_MAX: usize = 32;

/// `BPF_MAXINSNS` of linux/bpf_common.h: the kernel takes no longer program.
const PROGRAM_MAX: usize = 4096;

/// A system call has arguments 0 to 5.
const ARGUMENTS: usize = 6;

/// `EPERM`, for an action of a rule that names no error.
const EPERM: u32 = nix::libc::EPERM.cast_unsigned();

/// Why a profile cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What libseccomp or the specification does not allow.
    #[error("{property}: {problem}")]
    Invalid { property: String, problem: String },
    #[error("{0}")]
    Library(#[from] libseccomp::error::SeccompError),
    #[error("read the compiled filter: {0}")]
    Read(#[from] io::Error),
    #[error("the filter has {0} instructions, and the kernel takes at most {PROGRAM_MAX}")]
    TooLong(usize),
}

/// The version of the linked libseccomp, for instance `2.5.4`.
pub(crate) fn version() -> String {
    ScmpVersion::current()
        .map(|version| version.to_string())
        .unwrap_or_default()
}

/// Whether a profile may name an architecture: the linked libseccomp must know it and be able to filter it in addition
/// to this one.
pub(crate) fn combines(arch: Arch) -> bool {
    ScmpFilterContext::new(ScmpAction::Allow)
        .and_then(|mut filter| filter.add_arch(architecture(arch)).map(drop))
        .is_ok()
}

/// What a profile asks for and no guest does, a process outside that decides about system calls: properties and
/// problems.
pub(crate) fn unsupported(profile: &LinuxSeccomp) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut note = |property: String, what: &str| {
        found.push((property, format!("{what} is not supported yet")));
    };
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        note("linux.seccomp.defaultAction".into(), "SCMP_ACT_NOTIFY");
    }
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        if rule.action() == LinuxSeccompAction::ScmpActNotify {
            let property = format!("linux.seccomp.syscalls[{index}].action");
            note(property, "SCMP_ACT_NOTIFY");
        }
    }
    let set = |text: &str| !text.is_empty();
    if profile
        .listener_path()
        .as_ref()
        .and_then(|path| path.to_str())
        .is_some_and(set)
    {
        note("linux.seccomp.listenerPath".into(), "a listener");
    }
    if profile.listener_metadata().as_deref().is_some_and(set) {
        note("linux.seccomp.listenerMetadata".into(), "a listener");
    }
    let waits = |flag: &_| *flag == LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv;
    if profile.flags().iter().flatten().any(waits) {
        // The kernel takes it with a listener only (kernel/seccomp.c, seccomp_set_mode_filter).
        let flag = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
        note("linux.seccomp.flags".into(), flag);
    }
    found
}

/// Compiles a profile that asks for nothing [`unsupported`].
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Seccomp, Error> {
    let calls = profile
        .syscalls()
        .iter()
        .flatten()
        .map(|rule| rule.names().len());
    let mut program = filter(profile, calls.sum::<usize>() > LIST_MAX)?;
    let mut limits = Vec::new();
    if !permits(profile.default_action()) {
        limits = stub::limits(profile);
    }
    program.splice(0..0, stub::stub(&limits));
    if program.len() > PROGRAM_MAX {
        return Err(Error::TooLong(program.len()));
    }
    Ok(Seccomp {
        flags: flags(profile),
        program,
    })
}

/// What is not said means that speculation is left to the program, as with runc.
fn flags(profile: &LinuxSeccomp) -> u64 {
    let Some(flags) = profile.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                // The process has one thread when the filter is loaded.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

/// Whether an unknown system call reaches the kernel, or a tracer, which answers ENOSYS itself.
fn permits(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
    matches!(action, ScmpActAllow | ScmpActLog | ScmpActTrace)
}

/// libseccomp's translation, with system calls found in a binary tree or one by one.
fn filter(profile: &LinuxSeccomp, tree: bool) -> Result<Vec<u64>, Error> {
    libseccomp::set_api(API_LEVEL)?;
    let default = action(
        profile.default_action(),
        profile.default_errno_ret(),
        || "linux.seccomp.default".to_owned(),
    )?;
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch))?;
    }
    if tree {
        filter.set_ctl_optimize(2)?;
    }
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        add(
            &mut filter,
            rule,
            default,
            &format!("linux.seccomp.syscalls[{index}]"),
        )?;
    }
    let mut file =
        File::from(memfd_create("seccomp", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, _) = bytes.as_chunks();
    Ok(instructions
        .iter()
        .map(|instruction| u64::from_le_bytes(*instruction))
        .collect())
}

/// Adds a rule for each of the names. One that libseccomp does not know, or that does what happens anyway, makes none.
fn add(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    property: &str,
) -> Result<(), Error> {
    let action = action(rule.action(), rule.errno_ret(), || format!("{property}."))?;
    let arguments = rule.args().as_deref().unwrap_or_default();
    let mut conditions = Vec::new();
    let mut seen = [0; ARGUMENTS];
    for (index, argument) in arguments.iter().enumerate() {
        let of = seen
            .get_mut(argument.index())
            .ok_or_else(|| Error::Invalid {
                property: format!("{property}.args[{index}].index"),
                problem: format!(
                    "{} is not between 0 and {}",
                    argument.index(),
                    ARGUMENTS - 1
                ),
            })?;
        *of += 1;
        conditions.push(condition(argument));
    }
    // All conditions of a rule must hold, but any of them suffices when two are on one argument, as with runc.
    let any = seen.iter().any(|count| *count > 1);
    for name in rule.names() {
        if name.is_empty() {
            let (property, problem) = (format!("{property}.names"), "must not be empty".into());
            return Err(Error::Invalid { property, problem });
        }
        if action == default {
            continue;
        }
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let each = if any { 1 } else { conditions.len().max(1) };
        let mut groups = conditions.chunks(each);
        // Once without any condition.
        let mut group = groups.next().unwrap_or_default();
        loop {
            filter
                .add_rule_conditional(action, call, group)
                .map_err(|e| Error::Invalid {
                    property: property.to_owned(),
                    problem: format!("{name}: {e}"),
                })?;
            match groups.next() {
                Some(next) => group = next,
                None => break,
            }
        }
    }
    Ok(())
}

/// `property` is what the names of an action's properties begin with.
fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    property: impl Fn() -> String,
) -> Result<ScmpAction, Error> {
    let number = || {
        let errno = errno.unwrap_or(EPERM);
        u16::try_from(errno).map_err(|_| Error::Invalid {
            property: format!("{}errnoRet", property()),
            problem: format!("{errno} is more than 65535"),
        })
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number()?.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number()?),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            let (property, problem) = (property(), "SCMP_ACT_NOTIFY is not supported yet".into());
            return Err(Error::Invalid { property, problem });
        }
    })
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, other) = (argument.value(), argument.value_two().unwrap_or_default());
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), other),
    };
    // An argument's index is below ARGUMENTS.
    let index = u32::try_from(argument.index()).unwrap_or_default();
    ScmpArgCompare::new(index, operator, value)
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}
