//! Queues in memory that a driver fills with anything, while another of its processors changes them: descriptor tables,
//! rings and buffers of a device that a correct driver has brought up. That is the pool of threads of the file system
//! and of disks, the network's rx and tx, vsock, and the devices of the event loop.
//!
//! What must hold: no panic and no access outside of guest memory; a device that needs a reset does not touch its used
//! rings any more, and says why; neither does one that was reset; packets to the tap have the length of packets, and a
//! disk keeps its size, one that is read-only its content as well.

#![no_main]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chiton_fuzz::Input;
use chiton_fuzz::board::{
    BUFFERS, Bench, DISK, NEEDS_RESET, NET, NEXT, QUEUES, WRITE, descriptor, register,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::fuzz::{DEVICES, WINDOW};

const MEMORY: usize = 256 << 10;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let device = input.below(DEVICES.len());
    let mut bench = Bench::new(MEMORY, input.flag());
    // What a driver may leave to the host's kernel needs a real tap (bits 1, 7 and 8).
    let features = if device == NET { !0x182 } else { u64::MAX };
    let event_idx = if input.flag() { u64::MAX } else { !(1 << 29) };
    bench.bring_up(device, features & event_idx);
    let flips: Vec<(u64, u8)> = (0..input.byte() & 7)
        .map(|_| (place(&mut input), input.byte()))
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        if !flips.is_empty() {
            let memory = bench.memory.clone();
            let (flips, stop) = (&flips, &stop);
            scope.spawn(move || flip(&memory, flips, stop));
        }
        // Whatever fails, the other thread must end.
        let _end = End(&stop);
        drive(&mut bench, device, &mut input, flips.is_empty());
    });
    bench.stop();
});

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn flip(memory: &GuestMemoryMmap, flips: &[(u64, u8)], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (place, change) in flips {
            let at = GuestAddress(*place);
            if let Ok(byte) = memory.load::<u8>(at, Ordering::Relaxed) {
                let _ = memory.store(byte ^ change, at, Ordering::Relaxed);
            }
        }
        thread::yield_now();
    }
}

/// A place in a queue, at its beginning mostly, or in the buffers.
fn place(input: &mut Input<'_>) -> u64 {
    let part = input.pick(&[
        0,
        0x2000,
        0x2800,
        0x4000,
        0x6000,
        0x6800,
        0x8000,
        0xa000,
        BUFFERS - QUEUES,
    ]);
    QUEUES + part + u64::from(input.byte())
}

fn drive(bench: &mut Bench, device: usize, input: &mut Input<'_>, alone: bool) {
    let mut broken = None;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let queue = u64::from(input.byte() % 3);
        match input.byte() {
            0..=79 => {
                let index = u16::from(input.byte() & 15);
                let flags = u16::from(input.byte() & 7);
                bench.describe(queue, index, buffer(input), flags, next(input, index));
            }
            80..=99 => request(bench, device, queue, input),
            100..=139 => {
                let size = size(bench, device, queue);
                let head = input.byte();
                let head = if head < 250 {
                    u16::from(head & 15)
                } else {
                    input.word() as u16
                };
                bench.offer(queue, size, head);
            }
            140..=144 => bench.set_available(queue, input.number() as u16),
            145..=164 => {
                let at = place(input);
                bench.put(at, input.bytes(16));
                // An index may have been among that.
                broken = None;
            }
            165..=179 => {
                // An indirect table.
                let at = BUFFERS + u64::from(input.byte()) * 16;
                let flags = u16::from(input.byte() & 7);
                let (address, length) = buffer(input);
                bench.put(at, &descriptor(address, length, flags, next(input, 0)));
            }
            180..=189 => {
                let length = input.number() as usize & 0x1ffff;
                let _ = bench.peer.send(&vec![0; length]);
            }
            _ => {
                bench.set(device, register::QUEUE_NOTIFY, queue as u32);
                wait(bench, device);
            }
        }
        if alone {
            still(bench, device, &mut broken);
        }
    }
    if bench.check_status(device) & NEEDS_RESET != 0 {
        assert!(
            !bench.board.take_faults().is_empty(),
            "{} does not say why",
            DEVICES[device]
        );
    }
}

/// Fails if a device that needs a reset goes on with its queues.
fn still(bench: &Bench, device: usize, broken: &mut Option<[u16; 3]>) {
    if bench.check_status(device) & NEEDS_RESET == 0 {
        return;
    }
    let now = [0, 1, 2].map(|queue| bench.used_index(queue));
    if let Some(before) = broken {
        assert_eq!(*before, now, "a broken queue is used");
    }
    *broken = Some(now);
}

fn size(bench: &mut Bench, device: usize, queue: u64) -> u16 {
    bench.set(device, register::QUEUE_SEL, queue as u32);
    let size = bench.get(device, register::QUEUE_NUM_MAX);
    size.max(1) as u16
}

/// Lets the event loop, or the device's threads, work for a moment.
fn wait(bench: &mut Bench, device: usize) {
    let before = [0, 1, 2].map(|queue| bench.used_index(queue));
    bench.board.turn();
    for _ in 0..20 {
        let now = [0, 1, 2].map(|queue| bench.used_index(queue));
        if now != before || bench.get(device, register::STATUS) & NEEDS_RESET != 0 {
            return;
        }
        thread::yield_now();
    }
}

fn buffer(input: &mut Input<'_>) -> (u64, u32) {
    let length = match input.byte() {
        byte @ 0..=127 => u32::from(byte),
        byte @ 128..=191 => u32::from(byte & 0x3f) * 512,
        byte @ 192..=223 => u32::from(byte & 0x1f) * 16,
        _ => input.number32(),
    };
    let address = match input.byte() {
        byte @ 0..=159 => BUFFERS + u64::from(byte) * 16,
        byte @ 160..=199 => QUEUES + u64::from(byte & 0x3f) * 0x400,
        byte @ 200..=219 => MEMORY as u64 - u64::from(byte & 31),
        byte @ 220..=235 => WINDOW + u64::from(byte & 15) * 0x400,
        _ => input.number(),
    };
    (address, length)
}

fn next(input: &mut Input<'_>, index: u16) -> u16 {
    match input.byte() {
        0..=199 => index + 1,
        byte @ 200..=249 => u16::from(byte & 15),
        _ => input.word() as u16,
    }
}

/// A chain as a correct driver makes it: something to be read, something to be written.
fn request(bench: &mut Bench, device: usize, queue: u64, input: &mut Input<'_>) {
    let queue = if device == DISK { 0 } else { queue };
    let index = u16::from(input.byte() & 15);
    let mut header = [0; 64];
    let (kind, sector) = (input.pick(&[0, 1, 4, 8, 11]), input.number() & 0x1f);
    header[..4].copy_from_slice(&u32::to_le_bytes(kind));
    header[8..16].copy_from_slice(&sector.to_le_bytes());
    bench.put(BUFFERS + 0x4000, &header);
    let data = input.pick(&[0, 512, 1024, 0x2000, 100]);
    let data_flags = if kind == 1 { NEXT } else { NEXT | WRITE };
    bench.describe(queue, index, (BUFFERS + 0x4000, 16), NEXT, index + 1);
    bench.describe(
        queue,
        index + 1,
        (BUFFERS + 0x5000, data),
        data_flags,
        index + 2,
    );
    bench.describe(queue, index + 2, (BUFFERS + 0x4800, 1), WRITE, 0);
    let size = size(bench, device, queue);
    bench.offer(queue, size, index);
}
