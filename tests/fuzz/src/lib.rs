//! What the targets share: how they take decisions from the bytes that the fuzzer gives them.

pub mod board;
pub mod guest;
pub mod process;
pub mod tree;

/// The fuzzer's bytes as decisions. When they are used up every decision is the first one.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// One of so many.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// So many bytes, or what is left of them.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// The rest.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Eight bytes as they are.
    pub fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(8);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    /// A number in the ways that numbers go wrong in: small, one less or more than a power of two, near the end, any.
    pub fn number(&mut self) -> u64 {
        let byte = self.byte();
        let power = 1_u64 << (byte & 0x3f);
        match byte >> 6 {
            0 => u64::from(byte),
            1 => power,
            2 => power.wrapping_sub(1),
            _ if byte & 0x3f < 0x20 => u64::MAX - u64::from(byte & 0x1f),
            _ => self.word(),
        }
    }

    pub fn number32(&mut self) -> u32 {
        // Where it matters the upper half is a number of its own.
        self.number() as u32
    }
}
