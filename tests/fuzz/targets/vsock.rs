//! Packets of a guest to the vsock device, and what the host's ends of its streams do meanwhile: they write, read, stop
//! reading, shut down, close; streams are expected and abandoned; the device is reset and drained.
//!
//! What must hold: no panic; every packet of the host's is well formed; what the guest sends in a connection arrives at
//! the host's end in order, without a gap, and nothing else does; the same the other way round; an honest guest is never
//! sent more than its buffer holds; there are no more streams than the host has expected.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use chiton_fuzz::Input;
use chiton_fuzz::board::{BUFFERS, Bench, NEEDS_RESET, NEXT, VSOCK, WRITE, register};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::vsock::{HostStream, Key, Sink, Source};

const MEMORY: usize = 1 << 20;
const HEADER: usize = 44;

const RX: u64 = 0;
const TX: u64 = 1;
const RX_SIZE: u16 = 64;
const TX_SIZE: u16 = 128;

/// Packets that are sent before the device is let to work.
const BURST: u16 = 8;
const TX_SLOT: u64 = 0x1_1000;
const TX_BUFFERS: u64 = 0x4_0000;
const RX_BUFFER: u64 = 0xa00;

const HOST: u64 = 2;
const GUEST: u64 = 3;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// A port that the host serves to anybody.
const SERVED: u32 = 53;

/// A pair of ports and what both sides know of the stream between them.
#[derive(Default)]
struct Line {
    peer: Option<UnixStream>,
    /// Expected and not connected yet.
    expected: bool,
    /// Bytes that the guest has sent in this connection, and of these those that the peer has read.
    sent: u64,
    read: u64,
    /// Bytes that the peer has written, and of these those that the guest has got.
    written: u64,
    got: u64,
    /// The guest's word on its buffer: how large it is and what it has taken out of it.
    told: (u32, u32),
    liar: bool,
    /// Packets of this line may have come twice.
    blind: bool,
}

struct Guest {
    bench: Bench,
    lines: [Line; 3],
    queued: u16,
    next_used: u16,
    next_rx: u16,
    /// An available index has been set to anything: chains of before may come again.
    blind: bool,
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut guest = Guest {
        bench: Bench::new(MEMORY, true),
        lines: Default::default(),
        queued: 0,
        next_used: 0,
        next_rx: 0,
        blind: false,
    };
    let served = || {
        let (ours, theirs) = UnixStream::pair().ok()?;
        drop(theirs);
        stream(ours)
    };
    guest.bench.board.vsock().accept(SERVED, 2, served);
    guest.bring_up();
    for _ in 0..96 {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
    guest.turn();
    let open = guest.bench.board.vsock().open_streams();
    assert!(open <= guest.lines.len(), "{open} streams are open");
    guest.bench.board.drain();
    for line in &mut guest.lines {
        line.read();
    }
    guest.bench.stop();
});

/// Both directions of a socket.
fn stream(socket: UnixStream) -> Option<HostStream> {
    let source = Source::new(socket.try_clone().ok()?.into()).ok()?;
    let sink = Sink::new(socket.into()).ok()?;
    Some(HostStream {
        source: Some(source),
        sink: Some(sink),
    })
}

/// The byte at a place of a stream: another one at each displacement that happens.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 16) as u8
}

fn key(slot: usize) -> Key {
    Key {
        guest_port: 50_000 + slot as u32,
        host_port: 1024 + slot as u32,
    }
}

impl Line {
    /// The peer reads all there is.
    fn read(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = peer.read(&mut bytes) {
            if self.blind {
                continue;
            }
            for byte in &bytes[..count] {
                assert!(self.read < self.sent, "more than the guest has sent");
                assert_eq!(*byte, pattern(self.read), "at {}", self.read);
                self.read += 1;
            }
        }
    }

    fn write(&mut self, count: usize) {
        let Some(peer) = &mut self.peer else { return };
        let bytes: Vec<u8> = (self.written..).take(count).map(pattern).collect();
        self.written += peer.write(&bytes).unwrap_or(0) as u64;
    }
}

impl Guest {
    fn bring_up(&mut self) {
        // Nothing that the device writes from here on belongs to queues of before.
        self.bench
            .put(0x1000, &vec![0; (BUFFERS - 0x1000) as usize]);
        self.bench.bring_up(VSOCK, u64::MAX);
        (self.queued, self.next_used, self.next_rx) = (0, 0, 0);
        self.blind = false;
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let slot = input.below(self.lines.len());
        match input.byte() {
            0..=29 => self.expect(slot),
            30..=129 => self.packet(slot, input),
            130..=149 => {
                let count = usize::from(input.byte()) * 64;
                self.lines[slot].write(count);
            }
            150..=164 => self.lines[slot].read(),
            165..=174 => {
                let how = input.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                if let Some(peer) = &self.lines[slot].peer {
                    let _ = peer.shutdown(how);
                }
            }
            175..=179 => self.lines[slot].peer = None,
            180..=204 => self.give(input.byte() & 15, input),
            205..=239 => self.turn(),
            240..=246 => {
                self.turn();
                self.bench.board.vsock().abandon(key(slot).host_port);
                // What comes from now on is of nobody.
                self.lines[slot].expected = false;
            }
            247..=252 => {
                self.turn();
                self.bench.set(VSOCK, register::STATUS, 0);
                self.bring_up();
            }
            _ => {
                let queue = u64::from(input.byte() & 1);
                self.bench.set_available(queue, input.number() as u16);
                self.blind = true;
                for line in &mut self.lines {
                    line.blind = true;
                }
            }
        }
    }

    /// The host expects a stream between the ports of a slot, if it can.
    fn expect(&mut self, slot: usize) {
        // What is under way belongs to the stream of before.
        self.turn();
        let Ok((ours, peer)) = UnixStream::pair() else {
            return;
        };
        let _ = peer.set_nonblocking(true);
        let Some(host) = stream(ours) else { return };
        if self.bench.board.vsock().expect(key(slot), host).is_ok() {
            self.lines[slot] = Line {
                peer: Some(peer),
                expected: true,
                blind: self.blind,
                ..Line::default()
            };
        }
    }

    /// Sends a packet, of which a field may be wrong.
    fn packet(&mut self, slot: usize, input: &mut Input<'_>) {
        let operation = match input.byte() {
            0..=59 => REQUEST,
            60..=159 => RW,
            160..=179 => SHUTDOWN,
            180..=209 => CREDIT_UPDATE,
            210..=219 => RST,
            byte => u16::from(byte & 15),
        };
        let payload = match operation {
            RW => usize::from(input.byte()) * input.pick(&[1, 16, 256]),
            _ => 0,
        };
        let payload = payload.min(0x1_0000);
        let mut said = payload as u32;
        let (mut source, mut target, mut kind) = (GUEST, HOST, 1_u16);
        let Key {
            guest_port,
            mut host_port,
        } = key(slot);
        let line = &mut self.lines[slot];
        let mut told = (256 << 10, line.got as u32);
        match input.byte() {
            0..=219 => {}
            220..=224 => source = input.number(),
            225..=229 => target = input.number(),
            230..=234 => kind = input.number() as u16,
            235..=239 => host_port = SERVED,
            240..=244 => said = said.saturating_sub(u32::from(input.byte())),
            245..=247 => said = input.number32(),
            _ => {
                told = (input.number32(), input.number32());
                line.liar = true;
            }
        }
        let flags = u32::from(input.byte() & 3);
        let heard = source == GUEST && target == HOST && kind == 1 && host_port != SERVED;
        if heard {
            line.told = told;
            if operation == REQUEST && said == 0 && line.expected {
                line.expected = false;
                (line.sent, line.read) = (0, 0);
            }
        }
        let at = TX_BUFFERS + u64::from(self.queued % BURST) * TX_SLOT;
        let begin = line.sent;
        if heard && operation == RW && !line.expected {
            line.sent += u64::from(said).min(payload as u64);
        }
        let mut bytes = Vec::with_capacity(HEADER + payload);
        bytes.extend(source.to_le_bytes());
        bytes.extend(target.to_le_bytes());
        for number in [guest_port, host_port, said] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(operation.to_le_bytes());
        for number in [flags, told.0, told.1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend((begin..).take(payload).map(pattern));
        self.bench.put(at, &bytes);
        let head = self.queued % BURST * 2;
        let cut = if flags == 3 {
            bytes.len() / 2
        } else {
            HEADER.min(bytes.len())
        } as u32;
        self.bench.describe(TX, head, (at, cut), NEXT, head + 1);
        let rest = (at + u64::from(cut), bytes.len() as u32 - cut);
        self.bench.describe(TX, head + 1, rest, 0, 0);
        self.bench.offer(TX, TX_SIZE, head);
        self.queued += 1;
        if self.queued % BURST == 0 {
            self.turn();
        }
        if operation == REQUEST {
            self.turn();
            // A broken device has connected it, or leaves that to the next one with these ports.
            let broken = self.bench.check_status(VSOCK) & NEEDS_RESET != 0;
            self.lines[slot].blind |= broken;
        }
    }

    /// Gives the device buffers for packets.
    fn give(&mut self, count: u8, input: &mut Input<'_>) {
        let length = input.pick(&[RX_BUFFER as u32, RX_BUFFER as u32, 45, 1500, 44, 0]);
        for _ in 0..count {
            let outstanding = self.next_rx.wrapping_sub(self.next_used);
            if outstanding >= RX_SIZE {
                return;
            }
            let index = self.next_rx % RX_SIZE;
            let at = BUFFERS + u64::from(index) * RX_BUFFER;
            self.bench.describe(RX, index, (at, length), WRITE, 0);
            self.bench.offer(RX, RX_SIZE, index);
            self.next_rx = self.next_rx.wrapping_add(1);
        }
    }

    /// Lets the device work, and reads what it has sent.
    fn turn(&mut self) {
        for queue in [RX, TX] {
            self.bench.set(VSOCK, register::QUEUE_NOTIFY, queue as u32);
        }
        for _ in 0..4 {
            self.bench.board.turn();
        }
        self.queued = self.queued.next_multiple_of(BURST);
        self.bench.check_status(VSOCK);
        while self.next_used != self.bench.used_index(RX) {
            let (head, written) = self.bench.used(RX, RX_SIZE, self.next_used);
            self.next_used = self.next_used.wrapping_add(1);
            let at = BUFFERS + u64::from(head) * RX_BUFFER;
            let mut bytes = vec![0; written as usize];
            // What is no head of ours was made available by the wrong index.
            if head < u32::from(RX_SIZE)
                && self
                    .bench
                    .memory
                    .read_slice(&mut bytes, GuestAddress(at))
                    .is_ok()
            {
                self.received(&bytes);
            }
        }
    }

    fn received(&mut self, packet: &[u8]) {
        if self.blind {
            return;
        }
        assert!(packet.len() >= HEADER, "a packet of {} bytes", packet.len());
        let number = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().unwrap());
        let (host_port, guest_port, length) = (number(16), number(20), number(24));
        let (kind, operation) = (number(28) as u16, (number(28) >> 16) as u16);
        if operation == RST {
            // It mirrors what it refuses.
            assert_eq!((length, packet.len()), (0, HEADER));
            return;
        }
        assert_eq!((number(0), number(8), kind), (HOST as u32, GUEST as u32, 1));
        assert!(
            (RESPONSE..=CREDIT_UPDATE).contains(&operation),
            "operation {operation}"
        );
        assert_eq!(packet.len(), HEADER + length as usize);
        assert_eq!(number(36), 256 << 10, "the host's buffer");
        assert!((operation == RW) == (length > 0));
        assert!(operation == SHUTDOWN || number(32) == 0, "flags");
        let of_ours = |slot: &usize| {
            key(*slot)
                == Key {
                    guest_port,
                    host_port,
                }
        };
        let Some(slot) = (0..self.lines.len()).find(of_ours) else {
            assert_eq!(host_port, SERVED, "a connection that nobody has expected");
            return;
        };
        let line = &mut self.lines[slot];
        if line.blind {
            return;
        }
        if operation == RESPONSE {
            line.got = 0;
        }
        for byte in &packet[HEADER..] {
            assert!(line.got < line.written, "more than the peer has written");
            assert_eq!(*byte, pattern(line.got), "at {}", line.got);
            line.got += 1;
        }
        if !line.liar && operation == RW {
            let (buffer, taken) = line.told;
            assert!(
                line.got - u64::from(taken) <= buffer.into(),
                "more than the guest's buffer holds"
            );
        }
    }
}
