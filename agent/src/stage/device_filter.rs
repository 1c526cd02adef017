//! The device rules of a cgroup as an eBPF program.
//!
//! For each kind of access the last rule that covers the device and the access decides; what no
//! rule covers is denied. The defaults that every container gets are appended, as runc does.

use oci_spec::runtime::LinuxDeviceCgroup;
use specification::DeviceRule;
use specification::device::{ALL, BLOCK, CHARACTER, MKNOD};

use super::devices::Disks;
use crate::error::{Error, Result};
use crate::sys::Instruction;

const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

/// What runc allows every container: nodes may be made, and the harmless devices used
/// (libcontainer/specconv, AllowedDevices).
const DEFAULTS: &[DeviceRule] = &[
    allow(CHARACTER, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHARACTER, Some(1), Some(3), ALL),
    allow(CHARACTER, Some(1), Some(5), ALL),
    allow(CHARACTER, Some(1), Some(7), ALL),
    allow(CHARACTER, Some(1), Some(8), ALL),
    allow(CHARACTER, Some(1), Some(9), ALL),
    allow(CHARACTER, Some(5), Some(0), ALL),
    allow(CHARACTER, Some(5), Some(2), ALL),
    allow(CHARACTER, Some(136), None, ALL),
];

/// The program that applies `rules` and the defaults after them. Block devices have other numbers
/// here than on the host, which the rules have: each rule that names numbers becomes one for each
/// of `disks` that it covers.
pub(crate) fn compile(rules: &[LinuxDeviceCgroup], disks: &Disks) -> Result<Vec<Instruction>> {
    let mut all = Vec::new();
    for rule in rules {
        let rule = DeviceRule::read(rule)
            .map_err(|problem| Error::Config(format!("linux.resources.devices: {problem}")))?;
        if rule.kind != Some(BLOCK) || (rule.major, rule.minor) == (None, None) {
            all.push(rule);
            continue;
        }
        let is = |wanted: Option<i32>, number: u32| {
            wanted.is_none_or(|wanted| u32::try_from(wanted) == Ok(number))
        };
        for (host, here) in disks.iter() {
            if is(rule.major, host.major) && is(rule.minor, host.minor) {
                let number = |number: u32| i32::try_from(number).ok();
                all.push(DeviceRule {
                    major: number(here.major),
                    minor: number(here.minor),
                    ..rule
                });
            }
        }
    }
    all.extend_from_slice(DEFAULTS);
    Ok(assemble(&all))
}

/// Instruction codes of linux/bpf_common.h and linux/bpf.h, put together.
mod code {
    /// BPF_LDX | BPF_MEM | BPF_W.
    pub(super) const LOAD: u8 = 0x61;
    /// BPF_ALU | BPF_AND | BPF_K, BPF_ALU | BPF_RSH | BPF_K, BPF_ALU | BPF_MOV | BPF_X.
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const MOVE: u8 = 0xbc;
    /// BPF_ALU64 | BPF_MOV | BPF_K.
    pub(super) const SET: u8 = 0xb7;
    /// BPF_JMP | BPF_JA; BPF_JNE, BPF_JSET, each with BPF_K; BPF_EXIT.
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_NOT_EQUAL: u8 = 0x55;
    pub(super) const JUMP_SET: u8 = 0x45;
    pub(super) const EXIT: u8 = 0x95;
}

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The kinds of access that no rule has decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

/// Ends the program with a verdict; two instructions.
fn verdict(program: &mut Vec<Instruction>, allow: bool) {
    program.push(op(code::SET, RESULT, 0, 0, i32::from(allow)));
    program.push(op(code::EXIT, 0, 0, 0, 0));
}

fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx of linux/bpf.h: access << 16 | type, major, minor.
    let mut program = vec![
        op(code::LOAD, OPEN, CONTEXT, 0, 0),
        op(code::MOVE, KIND, OPEN, 0, 0),
        op(code::AND, KIND, 0, 0, 0xffff),
        op(code::SHIFT_RIGHT, OPEN, 0, 0, 16),
        op(code::LOAD, MAJOR, CONTEXT, 4, 0),
        op(code::LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.kind.is_none() {
            // It decides all that is still open.
            verdict(&mut program, rule.allow);
            return program;
        }
        let tests = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let mut left = tests.iter().filter(|(_, value)| value.is_some()).count();
        for (register, value) in tests {
            if let Some(value) = value {
                left -= 1;
                // Over the remaining tests and the four instructions of the decision.
                let over = i16::try_from(left).unwrap_or(0) + 4;
                program.push(op(code::JUMP_NOT_EQUAL, register, 0, over, value));
            }
        }
        if rule.allow {
            program.push(op(code::AND, OPEN, 0, 0, !rule.access));
            program.push(op(code::JUMP_NOT_EQUAL, OPEN, 0, 2, 0));
        } else {
            program.push(op(code::JUMP_SET, OPEN, 0, 1, rule.access));
            program.push(op(code::JUMP, 0, 0, 2, 0));
        }
        verdict(&mut program, rule.allow);
    }
    verdict(&mut program, false);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Device;
    use specification::device::{READ, WRITE};

    /// Runs a program on one access: the few instructions that it can consist of.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let i = program[at];
            at += 1;
            let to = usize::from(i.registers & 0xf);
            let from = usize::from(i.registers >> 4);
            let low = |value: i64| value & 0xffff_ffff;
            let jump = match i.code {
                code::LOAD => {
                    registers[to] = i64::from(context[usize::try_from(i.offset).unwrap() / 4]);
                    false
                }
                code::AND => {
                    registers[to] = low(registers[to] & i64::from(i.immediate));
                    false
                }
                code::SHIFT_RIGHT => {
                    registers[to] = low(registers[to]) >> i.immediate;
                    false
                }
                code::MOVE => {
                    registers[to] = low(registers[from]);
                    false
                }
                code::SET => {
                    registers[to] = i64::from(i.immediate);
                    false
                }
                code::JUMP => true,
                code::JUMP_NOT_EQUAL => registers[to] != i64::from(i.immediate),
                code::JUMP_SET => registers[to] & i64::from(i.immediate) != 0,
                code::EXIT => return registers[usize::from(RESULT)] != 0,
                other => panic!("instruction {other:#x}"),
            };
            if jump {
                at += usize::try_from(i.offset).unwrap();
            }
        }
    }

    /// The disks of the host that the tests' rules are about, with numbers as of virtio-blk.
    fn disks() -> Disks {
        let device = |major, minor| Device { major, minor };
        Disks::of(&[
            (device(8, 0), device(254, 0)),
            (device(8, 1), device(254, 16)),
        ])
    }

    fn program(json: &str) -> Vec<Instruction> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        compile(&rules, &disks()).unwrap()
    }

    const DENY_ALL: &str = r#"{"allow":false,"access":"rwm"}"#;

    #[test]
    fn defaults_hold_without_any_rule_and_after_deny_all() {
        for json in ["[]".to_owned(), format!("[{DENY_ALL}]")] {
            let program = program(&json);
            for (major, minor) in [
                (1, 3),
                (1, 5),
                (1, 7),
                (1, 8),
                (1, 9),
                (5, 0),
                (5, 2),
                (136, 7),
            ] {
                assert!(
                    run(&program, CHARACTER, READ | WRITE, major, minor),
                    "{major}:{minor}"
                );
            }
            assert!(run(&program, CHARACTER, MKNOD, 10, 200));
            assert!(run(&program, BLOCK, MKNOD, 8, 0));
            assert!(!run(&program, CHARACTER, READ, 1, 1), "/dev/mem");
            assert!(!run(&program, CHARACTER, MKNOD | READ, 1, 1));
            assert!(!run(&program, CHARACTER, WRITE, 10, 200));
            assert!(
                !run(&program, BLOCK, READ, 1, 3),
                "a block device of the same numbers"
            );
        }
    }

    #[test]
    fn rules_apply_in_order_and_per_access() {
        let json = format!(
            r#"[{DENY_ALL},{{"allow":true,"type":"c","major":10,"minor":229,"access":"r"}},
                {{"allow":true,"type":"c","major":10,"minor":229,"access":"w"}},
                {{"allow":true,"type":"b","major":8,"access":"rw"}},
                {{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}}]"#
        );
        let program = program(&json);
        assert!(
            run(&program, CHARACTER, READ | WRITE, 10, 229),
            "two rules together"
        );
        assert!(!run(&program, CHARACTER, READ, 10, 228));
        assert!(run(&program, BLOCK, READ | WRITE, 254, 0));
        assert!(run(&program, BLOCK, READ, 254, 16));
        assert!(!run(&program, BLOCK, WRITE, 254, 16));
        assert!(!run(&program, BLOCK, READ | WRITE, 254, 16));
        assert!(!run(&program, BLOCK, READ, 254, 32));
        assert!(!run(&program, BLOCK, READ, 8, 0), "a number of the host");
    }

    #[test]
    fn a_rule_for_all_is_total() {
        let all = program(r#"[{"allow":true,"access":"rwm"}]"#);
        assert!(run(&all, BLOCK, ALL, 8, 0) && run(&all, CHARACTER, ALL, 1, 1));
        let none =
            program(r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"a","access":"rwm"}]"#);
        assert!(!run(&none, BLOCK, READ, 8, 0));
        let wildcard =
            program(r#"[{"allow":true,"type":"c","major":-1,"minor":-1,"access":"rw"}]"#);
        assert!(run(&wildcard, CHARACTER, READ | WRITE, 1, 1));
        assert!(!run(&wildcard, BLOCK, READ, 1, 1));
    }

    #[test]
    fn bad_rules_are_refused() {
        for json in [
            r#"[{"allow":true,"type":"c","access":"x"}]"#,
            r#"[{"allow":true,"type":"p","access":"r"}]"#,
            r#"[{"allow":true,"type":"c","major":-2,"access":"r"}]"#,
            r#"[{"allow":true,"type":"c","major":4294967296,"access":"r"}]"#,
        ] {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
            assert!(
                matches!(compile(&rules, &disks()), Err(Error::Config(_))),
                "{json}"
            );
        }
    }

    #[test]
    fn the_first_instructions_are_those_of_the_header() {
        let program = program("[]");
        assert_eq!(
            program[0],
            Instruction {
                code: 0x61,
                registers: 0x13,
                offset: 0,
                immediate: 0
            }
        );
        let exit = Instruction {
            code: 0x95,
            registers: 0,
            offset: 0,
            immediate: 0,
        };
        assert_eq!(program.last(), Some(&exit));
    }
}
