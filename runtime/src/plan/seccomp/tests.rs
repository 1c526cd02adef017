//! Profiles are judged by what their programs answer.

use nix::libc;
use serde_json::{Value, json};

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

fn compiled(profile: &Value) -> Result<Seccomp, String> {
    let profile = serde_json::from_value(profile.clone()).map_err(|e| e.to_string())?;
    compile(&profile).map_err(|e| e.to_string())
}

/// What the kernel's interpreter makes of a system call (Documentation/networking/filter.rst); only what libseccomp
/// uses.
#[allow(
    clippy::cast_possible_truncation,
    reason = "parts of numbers are meant"
)]
fn answer(program: &[u64], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number, arch, 0, 0].to_vec();
    for argument in arguments {
        data.extend([argument as u32, (argument >> 32) as u32]);
    }
    let (mut at, mut a) = (0, 0);
    loop {
        let i = program[at];
        let (code, jt, jf) = (i as u16, (i >> 16) as u8, (i >> 24) as u8);
        let k = (i >> 32) as u32;
        at += 1;
        let mut branch = |holds| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => a = data[k as usize / 4],
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => branch(a == k),
            0x25 => branch(a > k),
            0x35 => branch(a >= k),
            0x45 => branch(a & k != 0),
            0x06 => return k,
            _ => panic!("instruction {i:#x}"),
        }
    }
}

fn call(name: &str) -> u32 {
    let number = i32::from(ScmpSyscall::from_name(name).unwrap());
    u32::try_from(number).unwrap()
}

/// A profile that answers EPERM unless `rules` say otherwise, and what it answers to `name` with these first arguments.
fn asked(rules: Value, name: &str, arguments: [u64; 2]) -> u32 {
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let program = compiled(&profile).unwrap().program;
    let [first, second] = arguments;
    answer(&program, X86_64, call(name), [first, second, 0, 0, 0, 0])
}

#[test]
fn operators_compare_as_they_say() {
    const BIG: u64 = 0x1_0000_0005;
    for (operator, allowed, denied) in [
        ("SCMP_CMP_NE", [4, BIG], [5, 5]),
        ("SCMP_CMP_LT", [0, 4], [5, BIG]),
        ("SCMP_CMP_LE", [0, 5], [6, BIG]),
        ("SCMP_CMP_EQ", [5, 5], [4, BIG]),
        ("SCMP_CMP_GE", [5, BIG], [4, 0]),
        ("SCMP_CMP_GT", [6, BIG], [5, 0]),
    ] {
        let rules = json!([{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 5, "op": operator}]}, {"names": ["bpf"], "action": "SCMP_ACT_ALLOW"}]);
        for (values, expected) in [(allowed, ALLOW), (denied, EPERM)] {
            for value in values {
                let found = asked(rules.clone(), "personality", [value, 0]);
                assert_eq!(found, expected, "{operator} {value}");
            }
        }
    }
    let masked = json!([{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0x2_0000, "op": "SCMP_CMP_MASKED_EQ"}]}]);
    assert_eq!(asked(masked.clone(), "clone", [0x2_0011, 0]), ALLOW);
    assert_eq!(asked(masked, "clone", [0x1002_0011, 0]), EPERM);
}

#[test]
fn conditions_on_different_arguments_all_hold_and_on_one_any() {
    let rule = |second: u64| {
        let argument =
            |index, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
        json!([{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [argument(0, 1), argument(second, 2)]}])
    };
    assert_eq!(asked(rule(1), "socket", [1, 2]), ALLOW);
    assert_eq!(asked(rule(1), "socket", [1, 3]), EPERM);
    assert_eq!(asked(rule(0), "socket", [2, 0]), ALLOW);
    assert_eq!(asked(rule(0), "socket", [3, 0]), EPERM);
}

#[test]
fn actions_are_the_kernels() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, libc::SECCOMP_RET_KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", None, libc::SECCOMP_RET_KILL_THREAD),
        (
            "SCMP_ACT_KILL_PROCESS",
            None,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
        ("SCMP_ACT_TRAP", None, libc::SECCOMP_RET_TRAP),
        ("SCMP_ACT_ERRNO", None, EPERM),
        ("SCMP_ACT_ERRNO", Some(38), ENOSYS),
        ("SCMP_ACT_TRACE", None, libc::SECCOMP_RET_TRACE | 1),
        ("SCMP_ACT_TRACE", Some(7), libc::SECCOMP_RET_TRACE | 7),
        ("SCMP_ACT_LOG", None, libc::SECCOMP_RET_LOG),
    ] {
        let rule = json!([{"names": ["getcwd"], "action": action, "errnoRet": errno}]);
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule});
        let program = compiled(&profile).unwrap().program;
        let of = |name| answer(&program, X86_64, call(name), [0; 6]);
        assert_eq!((of("getcwd"), of("chdir")), (expected, ALLOW), "{action}");
        let profile = json!({"defaultAction": action, "defaultErrnoRet": errno});
        let program = compiled(&profile).unwrap().program;
        assert_eq!(
            answer(&program, X86_64, 0, [0; 6]),
            expected,
            "{action} by default"
        );
    }
}

#[test]
fn what_is_newer_than_the_profile_does_not_exist() {
    let archs = json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_AARCH64"
    ]);
    let rules =
        json!([{"names": ["read", "no_such_call", "renameat2"], "action": "SCMP_ACT_ALLOW"}]);
    let profile =
        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": archs, "syscalls": rules});
    let program = compiled(&profile).unwrap().program;
    const X32: u32 = 1 << 30;
    // renameat2 is 316, on i386 353 (asm/unistd_64.h, asm/unistd_32.h).
    for (arch, number, expected) in [
        (X86_64, 0, ALLOW),
        (X86_64, 1, EPERM),
        (X86_64, 316, ALLOW),
        (X86_64, 317, ENOSYS),
        (X86_64, X32, ALLOW),
        (X86_64, X32 + 1, EPERM),
        (X86_64, X32 + 317, ENOSYS),
        (I386, 3, ALLOW),
        (I386, 4, EPERM),
        (I386, 354, ENOSYS),
        (0xc000_00b7 + 1, 0, libc::SECCOMP_RET_KILL_THREAD),
    ] {
        assert_eq!(
            answer(&program, arch, number, [0; 6]),
            expected,
            "{arch:#x} {number:#x}"
        );
    }
    let native = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules});
    let program = compiled(&native).unwrap().program;
    assert_eq!(answer(&program, X86_64, 317, [0; 6]), ENOSYS);
    assert_eq!(
        answer(&program, X86_64, X32 + 317, [0; 6]),
        libc::SECCOMP_RET_KILL_THREAD
    );
    let permissive = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules});
    let program = compiled(&permissive).unwrap().program;
    assert_eq!(answer(&program, X86_64, 400, [0; 6]), libc::SECCOMP_RET_LOG);
}

#[test]
fn many_rules_make_a_tree_that_says_the_same() {
    let names: Vec<String> = (0..200)
        .filter_map(|number| ScmpSyscall::from(number).get_name().ok())
        .collect();
    let rules = json!([{"names": names, "action": "SCMP_ACT_ALLOW"}]);
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    let (list, tree) = (
        filter(&profile, false).unwrap(),
        filter(&profile, true).unwrap(),
    );
    assert_ne!(list, tree);
    for number in 0..500 {
        let of = |program: &[u64]| answer(program, X86_64, number, [0; 6]);
        assert_eq!(of(&list), of(&tree), "{number}");
    }
}

#[test]
fn flags_are_the_kernels() {
    for (flags, expected) in [
        (Value::Null, 4),
        (json!([]), 0),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), 0),
        (
            json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
            6,
        ),
    ] {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags});
        assert_eq!(compiled(&profile).unwrap().flags, expected, "{flags}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let argument = json!([{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]);
    for (profile, expected) in [
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "args": argument})),
            "linux.seccomp.syscalls[0].args[0].index: 6 is not between 0 and 5",
        ),
        (
            rule(json!({"names": [""], "action": "SCMP_ACT_KILL"})),
            "linux.seccomp.syscalls[0].names: must not be empty",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000})),
            "linux.seccomp.syscalls[0].errnoRet: 70000 is more than 65535",
        ),
    ] {
        assert_eq!(compiled(&profile).unwrap_err(), expected);
    }
    let unsupported = |profile| unsupported(&serde_json::from_value(profile).unwrap());
    let profile = json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/s",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]});
    assert_eq!(
        unsupported(profile),
        [
            ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY"),
            ("linux.seccomp.syscalls[0].action", "SCMP_ACT_NOTIFY"),
            ("linux.seccomp.listenerPath", "a listener"),
            (
                "linux.seccomp.flags",
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
            ),
        ]
        .map(|(property, what)| (property.to_owned(), format!("{what} is not supported yet")))
    );
}
