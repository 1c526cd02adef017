//! A guest of the file server: what it names in a request it has from earlier answers, mostly.

use std::collections::BTreeMap;

use vm_memory::VolatileSlice;
use vmm_fs::Server;

use crate::Input;
use crate::tree::SECRET;

/// Largest answer, behind its header.
const ROOM: usize = 16 << 10;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const READDIRPLUS: u32 = 44;
const TMPFILE: u32 = 51;

/// Every request that is known, and a few that are not.
const OPCODES: [u32; 52] = [
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    20,
    21,
    22,
    23,
    24,
    25,
    26,
    27,
    28,
    29,
    30,
    35,
    36,
    38,
    41,
    42,
    43,
    44,
    45,
    46,
    47,
    48,
    49,
    50,
    51,
    52,
    0,
    7,
    31,
    34,
    39,
    40,
    53,
    4096,
    u32::MAX,
];

/// Names of the tree, names that may appear, and names that no server may take.
const NAMES: [&[u8]; 20] = [
    b"file",
    b"dir",
    b"deep",
    b"absolute",
    b"relative",
    b"up",
    b"fifo",
    b"large",
    b"a",
    b"b",
    b"c",
    b"",
    b".",
    b"..",
    b"../outside/secret",
    b"/etc/passwd",
    b"dir/deep",
    b"user.name",
    b"security.capability",
    b"trusted.overlay.opaque",
];

/// A guest: what it knows, and what it owes.
pub struct Guest<'a> {
    server: &'a Server,
    /// By nodeid, how many lookups it has not given back.
    nodes: BTreeMap<u64, u64>,
    /// Handles, each with its inode and whether it is a directory's.
    handles: Vec<(u64, u64, bool)>,
    /// The session that it has begun goes on: what it knows and owes is right.
    pub in_session: bool,
    unique: u64,
}

impl<'a> Guest<'a> {
    /// A guest that has sent INIT.
    ///
    /// # Panics
    /// The server refuses it.
    #[must_use]
    pub fn new(server: &'a Server) -> Guest<'a> {
        let mut guest = Guest::joining(server);
        let mut body = [7_u32, 41, 1 << 20, u32::MAX >> 1, u32::MAX]
            .map(u32::to_le_bytes)
            .concat();
        body.resize(64, 0);
        assert_eq!(
            guest.send(INIT, 0, (0, 0), &body, ROOM, &[]).map(|_| ()),
            Some(())
        );
        guest
    }

    /// One more of a session that somebody else has begun.
    #[must_use]
    pub fn joining(server: &'a Server) -> Guest<'a> {
        Guest {
            server,
            nodes: BTreeMap::new(),
            handles: Vec::new(),
            in_session: true,
            unique: 0,
        }
    }

    fn node(&self, input: &mut Input<'_>) -> u64 {
        let byte = input.byte();
        match byte {
            0..=63 => 1,
            64..=239 if !self.nodes.is_empty() => {
                let known = usize::from(byte) % self.nodes.len();
                self.nodes.keys().nth(known).copied().unwrap_or(1)
            }
            _ => input.number(),
        }
    }

    fn handle(&self, input: &mut Input<'_>) -> Option<(u64, u64, bool)> {
        let byte = input.byte();
        let known = (byte < 240 && !self.handles.is_empty()).then(|| usize::from(byte));
        known.map(|byte| self.handles[byte % self.handles.len()])
    }

    /// One request of the fuzzer's. INIT and DESTROY come only where `sessions`.
    ///
    /// # Panics
    /// The answer is not one.
    pub fn request(&mut self, input: &mut Input<'_>, sessions: bool) {
        let opcode = input.pick(&OPCODES);
        if !sessions && [INIT, DESTROY].contains(&opcode) {
            return;
        }
        let of_handle = match opcode {
            READ | 16 | RELEASE | 20 | 25 | 28 | RELEASEDIR | 30 | 43 | READDIRPLUS | 46 | 47 => {
                self.handle(input)
            }
            SETATTR | 3 | 52 if input.flag() => self.handle(input),
            _ => None,
        };
        let (nodeid, fh) = match of_handle {
            Some((nodeid, fh, _)) => (nodeid, fh),
            None => (self.node(input), input.number()),
        };
        let body = self.body(opcode, nodeid, fh, input);
        let ids = input.pick(&[(0, 0), (0, 0), (1000, 100), (u32::MAX, 0), (0, u32::MAX)]);
        let shape = input.byte();
        let room = match shape >> 6 {
            3 => usize::from(input.byte()),
            _ => ROOM,
        };
        let cuts = [usize::from(shape & 0x3f), 40];
        let lookups = (opcode == FORGET).then(|| number_at(&body, 0));
        let answer = self.send(
            opcode,
            nodeid,
            ids,
            &body,
            room,
            &cuts[..usize::from(shape >> 5 & 1) + 1],
        );
        self.learn(opcode, nodeid, lookups, &body, fh, answer);
    }

    /// What a request of this kind looks like, more or less.
    fn body(&self, opcode: u32, nodeid: u64, fh: u64, input: &mut Input<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        let name = |input: &mut Input<'_>, body: &mut Vec<u8>| {
            let choice = input.byte();
            if choice < 250 {
                body.extend(NAMES[usize::from(choice) % NAMES.len()]);
            } else {
                let length = usize::from(input.byte()) * 17;
                body.resize(body.len() + length, b'n');
            }
            body.push(0);
        };
        let small = |input: &mut Input<'_>| input.pick(&[0_u64, 1, 3, 64, 4096, 5 << 20, u64::MAX]);
        let mode = |input: &mut Input<'_>| {
            let kind = input.pick(&[
                0,
                0,
                libc::S_IFREG,
                libc::S_IFIFO,
                libc::S_IFCHR,
                libc::S_IFDIR,
            ]);
            (kind | u32::from(input.byte()) << 4 | 0o600).to_le_bytes()
        };
        let flags = |input: &mut Input<'_>| {
            let access = input.pick(&[
                libc::O_RDONLY,
                libc::O_WRONLY,
                libc::O_RDWR,
                libc::O_ACCMODE,
            ]);
            let more = [
                0,
                libc::O_TRUNC,
                libc::O_APPEND,
                libc::O_CREAT,
                libc::O_EXCL,
                libc::O_DIRECT,
            ]
            .into_iter()
            .chain([
                libc::O_PATH,
                libc::O_DIRECTORY,
                libc::O_NOFOLLOW,
                libc::O_TMPFILE,
                -1,
            ]);
            let more: Vec<_> = more.collect();
            (access | input.pick(&more)).to_le_bytes()
        };
        match opcode {
            LOOKUP | 10 | 11 | 24 => name(input, &mut body),
            FORGET => body.extend(input.pick(&[1_u64, 1, 2, 0, u64::MAX]).to_le_bytes()),
            3 => {
                body.extend(u64::from(input.flag()).to_le_bytes());
                body.extend(fh.to_le_bytes());
            }
            SETATTR => {
                body.extend(u64::from(input.word() as u16).to_le_bytes());
                body.extend(fh.to_le_bytes());
                body.extend(small(input).to_le_bytes());
                body.extend([0; 8]);
                for _ in 0..3 {
                    body.extend(input.number().to_le_bytes());
                }
                for _ in 0..3 {
                    body.extend(input.number32().to_le_bytes());
                }
                body.extend(mode(input));
                body.extend([0; 4]);
                for _ in 0..2 {
                    body.extend(input.pick(&[0_u32, 1000, u32::MAX]).to_le_bytes());
                }
                body.extend([0; 4]);
            }
            6 => {
                name(input, &mut body);
                name(input, &mut body);
            }
            8 => {
                body.extend(mode(input));
                body.extend(input.number32().to_le_bytes());
                body.extend([0; 8]);
                name(input, &mut body);
            }
            9 => {
                body.extend(mode(input));
                body.extend([0; 4]);
                name(input, &mut body);
            }
            12 | 45 => {
                body.extend(self.node(input).to_le_bytes());
                if opcode == 45 {
                    body.extend(u64::from(input.byte() & 7).to_le_bytes());
                }
                name(input, &mut body);
                name(input, &mut body);
            }
            13 => {
                body.extend(self.node(input).to_le_bytes());
                name(input, &mut body);
            }
            OPEN | OPENDIR => {
                body.extend(flags(input));
                body.extend(u32::from(input.byte() & 1).to_le_bytes());
            }
            CREATE | TMPFILE => {
                body.extend(flags(input));
                body.extend(mode(input));
                body.extend(u64::from(input.byte() & 1).wrapping_shl(32).to_le_bytes());
                if opcode == CREATE || input.flag() {
                    name(input, &mut body);
                }
            }
            READ | 28 | READDIRPLUS => {
                body.extend(fh.to_le_bytes());
                body.extend(small(input).to_le_bytes());
                body.extend(
                    input
                        .pick(&[64_u32, 4096, 1 << 20, 0, u32::MAX])
                        .to_le_bytes(),
                );
                body.extend([0; 20]);
            }
            16 => {
                let data = usize::from(input.byte());
                let said = if input.flag() {
                    input.number32()
                } else {
                    data as u32
                };
                body.extend(fh.to_le_bytes());
                body.extend(small(input).to_le_bytes());
                body.extend(said.to_le_bytes());
                body.extend(u32::from(input.byte() & 7).to_le_bytes());
                body.extend([0; 16]);
                body.resize(body.len() + data, b'w');
            }
            RELEASE | RELEASEDIR | 20 | 25 | 30 => {
                body.extend(fh.to_le_bytes());
                body.extend([0; 16]);
                if matches!(opcode, 20 | 30) {
                    body.truncate(16);
                }
            }
            21 => {
                let value = usize::from(input.byte() & 0x3f);
                body.extend((value as u32).to_le_bytes());
                body.extend(u32::from(input.byte() & 3).to_le_bytes());
                body.extend(u64::from(input.byte() & 3).to_le_bytes());
                name(input, &mut body);
                body.resize(body.len() + value, b'v');
            }
            22 | 23 => {
                body.extend(input.pick(&[0_u32, 8, 4096, u32::MAX]).to_le_bytes());
                body.extend([0; 4]);
                if opcode == 22 {
                    name(input, &mut body);
                }
            }
            39 => {
                let (cmd, given, taken) = input.pick(&[
                    (0x8008_6601_u32, 0_u32, 4_u32),
                    (0x4008_6602, 4, 0),
                    (0x801c_581f, 0, 28),
                    (0x401c_5820, 28, 0),
                    (0xc020_660b, 3616, 3616),
                    (0x5401, 0, 44),
                ]);
                body.extend(fh.to_le_bytes());
                body.extend([0; 4]);
                body.extend(cmd.to_le_bytes());
                body.extend([0; 8]);
                body.extend(given.to_le_bytes());
                body.extend(taken.to_le_bytes());
                let end = body.len() + given as usize;
                body.extend(input.bytes(given.min(32) as usize));
                body.resize(end, 0);
            }
            42 => {
                let count = input.byte() & 7;
                let said = if input.flag() {
                    input.number32()
                } else {
                    count.into()
                };
                body.extend(said.to_le_bytes());
                body.extend([0; 4]);
                for _ in 0..count {
                    // Of inodes that are not known: what is given back of others is counted one at a time.
                    body.extend(input.word().saturating_add(1 << 32).to_le_bytes());
                    body.extend(input.number().to_le_bytes());
                }
            }
            43 => {
                body.extend(fh.to_le_bytes());
                body.extend(small(input).to_le_bytes());
                body.extend(input.pick(&[1_u64, 4096, 1 << 20, u64::MAX]).to_le_bytes());
                body.extend(u64::from(input.byte()).to_le_bytes());
            }
            46 => {
                body.extend(fh.to_le_bytes());
                body.extend(small(input).to_le_bytes());
                body.extend(u64::from(input.byte() % 6).to_le_bytes());
            }
            47 => {
                let other = self.handle(input).unwrap_or((nodeid, fh, false));
                for number in [
                    fh,
                    small(input),
                    other.0,
                    other.1,
                    small(input),
                    small(input),
                    0,
                ] {
                    body.extend(number.to_le_bytes());
                }
            }
            48 => {
                let step = 2 << 20;
                let of_steps = input.byte();
                let numbers = [fh, step * u64::from(of_steps & 3), step, input.number() & 3];
                for number in numbers {
                    body.extend(number.to_le_bytes());
                }
                body.extend((step * u64::from(of_steps >> 2)).to_le_bytes());
            }
            49 => {
                let count = u32::from(input.byte() & 3);
                body.extend(count.to_le_bytes());
                for _ in 0..count {
                    body.extend((u64::from(input.byte()) << 21).to_le_bytes());
                    body.extend((2_u64 << 20).to_le_bytes());
                }
            }
            50 => body.extend([0; 8]),
            52 => {
                body.extend(u64::from(input.flag()).to_le_bytes());
                body.extend(fh.to_le_bytes());
                body.extend(input.word().to_le_bytes());
            }
            INIT => {
                for _ in 0..5 {
                    body.extend(input.pick(&[7_u32, 41, 36, 8, u32::MAX]).to_le_bytes());
                }
                body.resize(64, 0);
            }
            _ => {
                let length = usize::from(input.byte());
                body.extend(input.bytes(length));
            }
        }
        // And sometimes it is cut, or too long, or not that at all.
        match input.byte() {
            0..=239 => {}
            240..=244 => body.truncate(usize::from(input.byte())),
            245..=249 => body.extend(input.bytes(9)),
            _ => {
                let at = usize::from(input.byte()) % body.len().max(1);
                if let Some(byte) = body.get_mut(at) {
                    *byte = input.byte();
                }
            }
        }
        body
    }

    /// Sends a request and returns the body of its answer, if it has one and that is none of an error.
    fn send(
        &mut self,
        opcode: u32,
        nodeid: u64,
        (uid, gid): (u32, u32),
        body: &[u8],
        room: usize,
        cuts: &[usize],
    ) -> Option<Vec<u8>> {
        self.unique += 1;
        let mut request = Vec::with_capacity(40 + body.len());
        request.extend(u32::try_from(40 + body.len()).unwrap().to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(nodeid.to_le_bytes());
        request.extend(uid.to_le_bytes());
        request.extend(gid.to_le_bytes());
        request.extend(1_u64.to_le_bytes());
        request.extend(body);
        let mut slices = Vec::new();
        let mut rest = &mut request[..];
        for cut in cuts {
            let (piece, behind) = rest.split_at_mut((*cut).min(rest.len()));
            slices.push(VolatileSlice::from(piece));
            rest = behind;
        }
        slices.push(VolatileSlice::from(rest));
        let mut reply = vec![0xa5_u8; 16 + room];
        let (first, second) = reply.split_at_mut(16);
        let written = self.server.serve(
            &slices,
            &[VolatileSlice::from(first), VolatileSlice::from(second)],
        );
        assert!(
            written <= reply.len(),
            "the answer is longer than its buffer"
        );
        assert!(
            reply[written..].iter().all(|byte| *byte == 0xa5),
            "written beyond the answer"
        );
        reply.truncate(written);
        assert!(
            !reply.windows(SECRET.len()).any(|part| part == SECRET),
            "the secret is read"
        );
        if written == 0 {
            assert!([2, 36, 41, 42].contains(&opcode), "no answer to {opcode}");
            return None;
        }
        assert_eq!(number_at(&reply, 0) as u32 as usize, written);
        assert_eq!(number_at(&reply, 8), self.unique);
        let error = (number_at(&reply, 0) >> 32) as i32;
        assert!((-4095..=0).contains(&error), "{error} is no error");
        assert!(error == 0 || written == 16, "an error with a body");
        (error == 0).then(|| reply.split_off(16))
    }

    /// Takes what an answer tells.
    fn learn(
        &mut self,
        opcode: u32,
        nodeid: u64,
        lookups: Option<u64>,
        body: &[u8],
        fh: u64,
        answer: Option<Vec<u8>>,
    ) {
        if let Some(count) = lookups.filter(|_| body.len() == 8)
            && let Some(known) = self.nodes.get_mut(&nodeid)
        {
            *known = known.saturating_sub(count);
            if *known == 0 {
                self.nodes.remove(&nodeid);
                // The server may have closed what it kept of it.
            }
        }
        let Some(answer) = answer else { return };
        match opcode {
            LOOKUP | 6 | 8 | 9 | 13 | CREATE | TMPFILE => {
                let found = number_at(&answer, 0);
                if found > 1 {
                    *self.nodes.entry(found).or_default() += 1;
                }
                if [CREATE, TMPFILE].contains(&opcode) {
                    self.handles.push((found, number_at(&answer, 128), false));
                }
            }
            OPEN | OPENDIR => {
                self.handles
                    .push((nodeid, number_at(&answer, 0), opcode == OPENDIR));
            }
            RELEASE | RELEASEDIR => self.handles.retain(|(_, known, _)| *known != fh),
            READDIRPLUS => self.learn_entries(&answer),
            DESTROY | INIT => {
                // Or not, where the version was refused: nobody counts on from here.
                self.in_session = false;
            }
            _ => {}
        }
    }

    fn learn_entries(&mut self, answer: &[u8]) {
        let mut at = 0;
        while at + 152 <= answer.len() {
            let found = number_at(answer, at);
            if found > 1 {
                *self.nodes.entry(found).or_default() += 1;
            }
            let length = number_at(answer, at + 144) as u32 as usize;
            assert!(at + 152 + length <= answer.len(), "an entry is cut off");
            at += (152 + length).next_multiple_of(8);
        }
    }

    /// Gives everything back.
    pub fn give_back(&mut self) {
        for (nodeid, fh, directory) in std::mem::take(&mut self.handles) {
            let mut body = fh.to_le_bytes().to_vec();
            body.extend([0; 16]);
            let opcode = if directory { RELEASEDIR } else { RELEASE };
            // The server has closed one that it kept, when its inode was forgotten.
            let _ = self.send(opcode, nodeid, (0, 0), &body, ROOM, &[]);
        }
        for (nodeid, count) in std::mem::take(&mut self.nodes) {
            let _ = self.send(FORGET, nodeid, (0, 0), &count.to_le_bytes(), ROOM, &[]);
        }
    }

    /// Ends the session.
    pub fn destroy(&mut self) {
        let _ = self.send(DESTROY, 0, (0, 0), &[], ROOM, &[]);
    }

    /// How many inodes this guest may name, the root not counted.
    #[must_use]
    pub fn known(&self) -> usize {
        self.nodes.len()
    }
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(found) = bytes.get(at..) {
        let count = found.len().min(8);
        number[..count].copy_from_slice(&found[..count]);
    }
    u64::from_le_bytes(number)
}
