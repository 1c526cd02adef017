//! What an event of epoll is about, as the 64 bits that epoll keeps for it.
//!
//! ```text
//!  63 62 61        46 45                    6 5    0
//! | kind |  container |        process       | part |     kinds 0 and 1: of a process, of a container
//! | kind |                number                    |     kinds 2 and 3: an errand, the machine's
//! ```

use protocol::{CONTAINERS_MAX, ContainerId, EXTRA_MAX, PROCESSES_MAX, ProcessId};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The control stream.
    Control,
    /// A child has ended.
    Signals,
    /// There is time for what the start did not need.
    Settled,
    /// An errand, by its number.
    Errand(u64),
    /// Whether a container's cgroup is frozen, or populated.
    Freezing(ContainerId),
    /// Whether memory has run out in a container's cgroup.
    Memory(ContainerId),
    /// A container's socket for notifications.
    Notify(ContainerId),
    /// A part of a process.
    Process(ContainerId, ProcessId, Part),
}

/// A part of a process; streams by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The wire to the stage.
    Wire,
    /// The socket of a stream.
    Socket(usize),
    /// The process's end of a stream.
    End(usize),
}

const PART_BITS: u32 = 6;
const PROCESS_BITS: u32 = 40;
const CONTAINER_BITS: u32 = 16;
const NUMBER_BITS: u32 = PART_BITS + PROCESS_BITS + CONTAINER_BITS;

/// Parts of a process: its wire, and two ends of each of its streams.
const PARTS: usize = 1 + 2 * (3 + EXTRA_MAX);

const _: () = assert!(PARTS <= 1 << PART_BITS);
const _: () = assert!(PROCESSES_MAX <= 1 << PROCESS_BITS);
const _: () = assert!(CONTAINERS_MAX <= 1 << CONTAINER_BITS);
const _: () = assert!(NUMBER_BITS + 2 == u64::BITS);

const OF_PROCESS: u64 = 0;
const OF_CONTAINER: u64 = 1;
const ERRAND: u64 = 2;
const MACHINE: u64 = 3;

const FREEZING: u64 = 0;
const MEMORY: u64 = 1;
const NOTIFY: u64 = 2;

const CONTROL: u64 = 0;
const SIGNALS: u64 = 1;
const SETTLED: u64 = 2;

impl Token {
    /// The bits. Numbers must be within the bounds of the protocol.
    pub(crate) fn encode(self) -> u64 {
        let of = |kind: u64, number: u64| kind << NUMBER_BITS | number;
        let named = |kind, container: ContainerId, process: ProcessId, part: u64| {
            let number = container << PROCESS_BITS | process;
            of(kind, number << PART_BITS | part)
        };
        match self {
            Token::Control => of(MACHINE, CONTROL),
            Token::Signals => of(MACHINE, SIGNALS),
            Token::Settled => of(MACHINE, SETTLED),
            Token::Errand(number) => of(ERRAND, number),
            Token::Freezing(container) => named(OF_CONTAINER, container, 0, FREEZING),
            Token::Memory(container) => named(OF_CONTAINER, container, 0, MEMORY),
            Token::Notify(container) => named(OF_CONTAINER, container, 0, NOTIFY),
            Token::Process(container, process, part) => {
                named(OF_PROCESS, container, process, part.encode())
            }
        }
    }

    /// What [`Token::encode`] has made bits of; None for other bits.
    pub(crate) fn decode(bits: u64) -> Option<Token> {
        let low = |bits: u64, count: u32| bits & ((1 << count) - 1);
        let number = low(bits, NUMBER_BITS);
        let part = low(number, PART_BITS);
        let process = low(number >> PART_BITS, PROCESS_BITS);
        let container = number >> (PART_BITS + PROCESS_BITS);
        Some(match (bits >> NUMBER_BITS, part) {
            (OF_PROCESS, part) => Token::Process(container, process, Part::decode(part)?),
            (OF_CONTAINER, FREEZING) => Token::Freezing(container),
            (OF_CONTAINER, MEMORY) => Token::Memory(container),
            (OF_CONTAINER, NOTIFY) => Token::Notify(container),
            (ERRAND, _) => Token::Errand(number),
            (MACHINE, CONTROL) => Token::Control,
            (MACHINE, SIGNALS) => Token::Signals,
            (MACHINE, SETTLED) => Token::Settled,
            _ => return None,
        })
    }
}

impl Part {
    fn encode(self) -> u64 {
        let of = |index: usize| u64::try_from(index).unwrap_or(u64::MAX >> 2);
        match self {
            Part::Wire => 0,
            Part::Socket(index) => 1 + 2 * of(index),
            Part::End(index) => 2 + 2 * of(index),
        }
    }

    fn decode(bits: u64) -> Option<Part> {
        let Some(number) = bits.checked_sub(1) else {
            return Some(Part::Wire);
        };
        let index = usize::try_from(number / 2).ok()?;
        Some(match number % 2 {
            0 => Part::Socket(index),
            _ => Part::End(index),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_told_from_every_other() {
        let mut tokens = vec![Token::Control, Token::Signals, Token::Settled];
        for number in [0, 1, 2, 1 << 61] {
            tokens.push(Token::Errand(number));
        }
        for container in [0, 1, CONTAINERS_MAX - 1] {
            tokens.extend([
                Token::Freezing(container),
                Token::Memory(container),
                Token::Notify(container),
            ]);
            for process in [0, 1, PROCESSES_MAX - 1] {
                let last = 3 + EXTRA_MAX - 1;
                let parts = [0, 1, last].map(|index| [Part::Socket(index), Part::End(index)]);
                for part in parts.into_iter().flatten().chain([Part::Wire]) {
                    tokens.push(Token::Process(container, process, part));
                }
            }
        }
        let mut bits: Vec<u64> = tokens.iter().map(|token| token.encode()).collect();
        for (token, bits) in tokens.iter().zip(&bits) {
            assert_eq!(Token::decode(*bits), Some(*token));
        }
        bits.sort_unstable();
        bits.dedup();
        assert_eq!(bits.len(), tokens.len());
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
