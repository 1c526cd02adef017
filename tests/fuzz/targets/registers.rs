//! Accesses of a vCPU to the registers of every device, in any order and of any width, some of them those of a correct
//! driver; between them memory is written and the event loop turns.
//!
//! What must hold: no panic; the status is always a state of the transport's; what is no register reads as zeros; a
//! device that needs a reset has told why; a reset one is as new and leaves memory alone; guest memory is not touched
//! before a driver has said DRIVER_OK.

#![no_main]

use chiton_fuzz::Input;
use chiton_fuzz::board::{Bench, DRIVER_OK, NEEDS_RESET, QUEUES, register};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::fuzz::DEVICES;

const MEMORY: usize = 256 << 10;

/// Device types (virtio 1.2, section 5).
const TYPES: [u32; 6] = [26, 19, 4, 5, 1, 2];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut bench = Bench::new(MEMORY, input.flag());
    let mut expected = vec![0; MEMORY];
    let mut ran = false;
    for _ in 0..96 {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let device = input.below(DEVICES.len());
        match choice {
            0..=99 => {
                let register = u64::from(input.byte() & 0x3f) * 4;
                let value = value(&mut input);
                bench.set(device, register, value);
                if register == register::STATUS && value == 0 {
                    is_new(&bench, device);
                }
            }
            100..=129 => access(&mut bench, device, &mut input),
            130..=199 => {
                bench.bring_up(device, input.number() | 1 << 29);
            }
            200..=219 => {
                let at = u64::from(input.number32()) % (MEMORY as u64 - 16);
                let bytes = input.bytes(16);
                bench.put(at, bytes);
                expected[at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            220..=239 => bench.set(device, register::QUEUE_NOTIFY, u32::from(input.byte() & 3)),
            240..=253 => drop(bench.board.turn()),
            _ => drop(bench.board.drain()),
        }
        ran |= bench.check_status(device) & DRIVER_OK != 0;
    }
    if !ran {
        let mut found = vec![0; MEMORY];
        bench
            .memory
            .read_slice(&mut found, GuestAddress(0))
            .unwrap();
        assert!(
            found == expected,
            "memory is touched before any device runs"
        );
    }
    let stopped: Vec<_> = (0..DEVICES.len())
        .filter(|device| bench.check_status(*device) & NEEDS_RESET != 0)
        .collect();
    let faults = bench.board.take_faults();
    for device in stopped {
        let told = |name: &str| name.starts_with(DEVICES[device]);
        assert!(
            faults.iter().any(|(name, _)| told(name)),
            "{} does not say why",
            DEVICES[device]
        );
    }
    bench.stop();
});

/// Something that a register may be set to with consequences.
fn value(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        byte @ 0..=127 => u32::from(byte & 15),
        byte @ 128..=191 => QUEUES as u32 + u32::from(byte & 0x3f) * 0x400,
        _ => input.number32(),
    }
}

fn access(bench: &mut Bench, device: usize, input: &mut Input<'_>) {
    let width = input.pick(&[1, 2, 3, 4, 8]);
    let offset = input.number() & 0xfff;
    if input.flag() {
        let mut bytes = input.bytes(width).to_vec();
        bytes.resize(width, 0);
        bench.board.write(device, offset, &bytes);
        return;
    }
    let mut bytes = vec![0xee; width];
    bench.board.read(device, offset, &mut bytes);
    if offset < register::CONFIG && (width != 4 || offset % 4 != 0) {
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "{offset:#x} is no register"
        );
    }
    assert_eq!(bench.get(device, register::MAGIC), 0x7472_6976);
    assert_eq!(bench.get(device, register::VERSION), 2);
    assert_eq!(bench.get(device, register::DEVICE_ID), TYPES[device]);
}

/// Fails unless the device has forgotten what the driver has written.
fn is_new(bench: &Bench, device: usize) {
    for register in [
        register::STATUS,
        register::INTERRUPT_STATUS,
        register::QUEUE_READY,
    ] {
        assert_eq!(
            bench.get(device, register),
            0,
            "{register:#x} after a reset"
        );
    }
}
