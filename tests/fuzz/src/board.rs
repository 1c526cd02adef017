//! A board of devices, and a driver that brings them up and writes whatever it is told into their queues.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm::fuzz::{Board, DEVICES};
use vmm::virtio::{Disk, FileServer, RequestServer};

/// Registers of virtio-mmio (virtio 1.2, section 4.2.2).
pub mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_AVAIL: u64 = 0x90;
    pub const QUEUE_USED: u64 = 0xa0;
    /// The first that is the device's own.
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the status.
pub const DRIVER_OK: u32 = 4;
pub const NEEDS_RESET: u32 = 0x40;
pub const FAILED: u32 = 0x80;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Numbers of devices on the board.
pub const VSOCK: usize = 1;
pub const NET: usize = 4;
pub const DISK: usize = 5;

/// Where the queues are, and what is behind them.
pub const QUEUES: u64 = 0x1000;
pub const BUFFERS: u64 = 0x1_0000;
const QUEUE_SPACE: u64 = 0x4000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x2800;

/// Longest packet that a tap gets, with its header: what virtio 1.2, section 5.1.6.3.1 allows, and VLAN tags.
const PACKET_MAX: usize = 12 + 65562;

const SECTORS: usize = 16;

/// Answers with the request itself.
struct Echo;

static WINDOW: [u8; 0x2000] = [0x77; 0x2000];

impl RequestServer for Echo {
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        let mut bytes = Vec::new();
        for slice in request {
            // Each buffer may be as long as memory.
            let mut part = vec![0; slice.len().min(1 << 16)];
            slice.copy_to(&mut part);
            bytes.extend(part);
        }
        let mut rest = &bytes[..];
        for slice in reply {
            let (part, behind) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = behind;
        }
        bytes.len() - rest.len()
    }
}

impl FileServer for Echo {
    fn window(&self) -> Option<(usize, usize)> {
        Some((WINDOW.as_ptr().expose_provenance(), WINDOW.len()))
    }

    fn mend(&self, _: &mut u64) -> bool {
        false
    }
}

/// What is behind the two block devices: one that may be written, one that may not, although its descriptor could be.
static DISKS: LazyLock<[(File, Arc<Disk>); 2]> = LazyLock::new(|| {
    [false, true].map(|read_only| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content()).unwrap();
        let copy = file.try_clone().unwrap();
        let disk = Disk::new(copy.into(), read_only, "fuzz").unwrap();
        (file, Arc::new(disk))
    })
});

fn content() -> Vec<u8> {
    (0..SECTORS * 512).map(|at| (at / 512) as u8).collect()
}

/// The board and all that is outside of it.
pub struct Bench {
    pub board: Board,
    pub memory: Arc<GuestMemoryMmap>,
    /// The other end of what stands for the tap.
    pub peer: UnixDatagram,
}

impl Bench {
    /// # Panics
    /// The host has no descriptors left.
    #[must_use]
    pub fn new(memory: usize, read_only: bool) -> Bench {
        let (tap, peer) = UnixDatagram::pair().unwrap();
        for socket in [&tap, &peer] {
            socket.set_nonblocking(true).unwrap();
        }
        let (_, disk) = &DISKS[usize::from(read_only)];
        let tap = OwnedFd::from(tap);
        let board = Board::new(
            memory,
            Arc::new(Echo),
            disk.clone(),
            [2, 0, 0, 0, 0, 1],
            tap,
        );
        let board = board.unwrap();
        Bench {
            memory: board.memory().clone(),
            board,
            peer,
        }
    }

    #[must_use]
    pub fn get(&self, device: usize, register: u64) -> u32 {
        let mut data = [0xee; 4];
        self.board.read(device, register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&mut self, device: usize, register: u64, value: u32) {
        self.board.write(device, register, &value.to_le_bytes());
    }

    fn set_address(&mut self, device: usize, register: u64, address: u64) {
        self.set(device, register, address as u32);
        self.set(device, register + 4, (address >> 32) as u32);
    }

    /// What a correct driver does; takes of the offered features those in `wanted`. Returns the status then.
    pub fn bring_up(&mut self, device: usize, wanted: u64) -> u32 {
        self.set(device, register::STATUS, 0);
        self.set(device, register::STATUS, 1);
        self.set(device, register::STATUS, 3);
        for half in 0..2 {
            self.set(device, register::DEVICE_FEATURES_SEL, half);
            let offered = self.get(device, register::DEVICE_FEATURES);
            // VERSION_1 is bit 32.
            let taken = offered & ((wanted | 1 << 32) >> (32 * half)) as u32;
            self.set(device, register::DRIVER_FEATURES_SEL, half);
            self.set(device, register::DRIVER_FEATURES, taken);
        }
        self.set(device, register::STATUS, 11);
        for queue in 0.. {
            self.set(device, register::QUEUE_SEL, queue);
            let size = self.get(device, register::QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            let base = QUEUES + u64::from(queue) * QUEUE_SPACE;
            self.set(device, register::QUEUE_NUM, size);
            self.set_address(device, register::QUEUE_DESC, base);
            self.set_address(device, register::QUEUE_AVAIL, base + AVAIL);
            self.set_address(device, register::QUEUE_USED, base + USED);
            self.set(device, register::QUEUE_READY, 1);
        }
        self.set(device, register::STATUS, 15);
        self.get(device, register::STATUS)
    }

    /// Fails if the status is none that the state machine of virtio-mmio has.
    ///
    /// # Panics
    /// That is what it is there for.
    pub fn check_status(&self, device: usize) -> u32 {
        let status = self.get(device, register::STATUS);
        let steps = status & !(NEEDS_RESET | FAILED);
        assert!(
            [0, 1, 3, 11, 15].contains(&steps),
            "{} has status {status:#x}",
            DEVICES[device]
        );
        assert!(
            status & NEEDS_RESET == 0 || steps & DRIVER_OK != 0,
            "{} needs a reset before it runs: {status:#x}",
            DEVICES[device]
        );
        status
    }

    /// Bytes into guest memory, as far as there is some.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// A descriptor of a queue's table.
    pub fn describe(
        &self,
        queue: u64,
        index: u16,
        (address, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        self.put(
            QUEUES + queue * QUEUE_SPACE + u64::from(index) * 16,
            &descriptor(address, length, flags, next),
        );
    }

    /// Makes a chain available in a queue of this size.
    ///
    /// # Panics
    /// Guest memory has no queues.
    pub fn offer(&self, queue: u64, size: u16, head: u16) {
        let ring = QUEUES + queue * QUEUE_SPACE + AVAIL;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        self.put(ring + 4 + u64::from(index % size) * 2, &head.to_le_bytes());
        self.set_available(queue, index.wrapping_add(1));
    }

    /// # Panics
    /// Guest memory has no queues.
    pub fn set_available(&self, queue: u64, index: u16) {
        let at = GuestAddress(QUEUES + queue * QUEUE_SPACE + AVAIL + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    /// # Panics
    /// Guest memory has no queues.
    #[must_use]
    pub fn used_index(&self, queue: u64) -> u16 {
        let at = GuestAddress(QUEUES + queue * QUEUE_SPACE + USED + 2);
        self.memory.load(at, Ordering::Acquire).unwrap()
    }

    /// An element of the used ring: head and length.
    ///
    /// # Panics
    /// Guest memory has no queues.
    #[must_use]
    pub fn used(&self, queue: u64, size: u16, index: u16) -> (u32, u32) {
        let at = QUEUES + queue * QUEUE_SPACE + USED + 4 + u64::from(index % size) * 8;
        let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        (read(at), read(at + 4))
    }

    /// Resets all devices, which ends their threads; then nothing that they are told may make them touch memory.
    ///
    /// # Panics
    /// That is what it is there for.
    pub fn stop(&mut self) {
        for device in 0..DEVICES.len() {
            self.set(device, register::STATUS, 0);
            assert_eq!(self.get(device, register::STATUS), 0);
            assert_eq!(self.get(device, register::INTERRUPT_STATUS), 0);
        }
        let pattern = vec![0x5a_u8; (BUFFERS - QUEUES) as usize];
        self.put(QUEUES, &pattern);
        for device in 0..DEVICES.len() {
            for queue in 0..3 {
                self.set(device, register::QUEUE_NOTIFY, queue);
            }
        }
        self.board.turn();
        let mut found = vec![0; pattern.len()];
        self.memory
            .read_slice(&mut found, GuestAddress(QUEUES))
            .unwrap();
        assert!(
            found == pattern,
            "a device that was reset has touched its queues"
        );
        for device in 0..DEVICES.len() {
            // One that had looked at these queues would have found them broken.
            assert_eq!(self.get(device, register::STATUS), 0, "after the reset");
        }
        self.outside();
    }

    /// Fails if what is outside of the board is not as it must be.
    fn outside(&self) {
        let mut packet = vec![0; 2 * PACKET_MAX];
        while let Ok(length) = self.peer.recv(&mut packet) {
            assert!(length <= PACKET_MAX, "a packet of {length} bytes");
        }
        for (read_only, (file, _)) in DISKS.iter().enumerate() {
            let mut found = vec![0; SECTORS * 512 + 1];
            let length = file.read_at(&mut found, 0).unwrap();
            assert_eq!(length, SECTORS * 512, "the disk has another size");
            assert!(
                read_only == 0 || found[..length] == content(),
                "a read-only disk is written"
            );
        }
    }
}

/// The bytes of a descriptor.
#[must_use]
pub fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
