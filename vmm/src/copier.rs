//! Reads what descriptor chains name of the window, by a system call that fails where nothing is.

use std::io;

use vm_memory::VolatileSlice;

use crate::sys;
use crate::window::Window;

/// Maximum number of bytes of the window that one chain of descriptors names: more than any request of Linux is long.
const MOST: usize = 4 << 20;

/// A part of the window that a chain names.
pub(crate) struct Part {
    /// How many buffers in RAM come before it.
    before: usize,
    place: usize,
    length: usize,
}

/// Copies out what chains name of the window, one chain at a time.
pub(crate) struct Copier {
    window: Option<Window>,
    bytes: Vec<u8>,
}

impl Copier {
    /// `window`: none where there is none, or where nothing may be read from it.
    pub(crate) fn new(window: Option<Window>) -> Copier {
        Copier {
            window,
            bytes: Vec::new(),
        }
    }

    /// What a descriptor names of the window, with `before` buffers in RAM before it; nothing where it names something
    /// else.
    pub(crate) fn part(&self, before: usize, address: u64, length: usize) -> Option<Part> {
        let place = self.window?.place(address, length)?;
        Some(Part {
            before,
            place,
            length,
        })
    }

    /// Puts copies of all parts of a chain, in order, among its buffers in RAM. What is gone is zeros.
    pub(crate) fn insert<'a>(
        &'a mut self,
        parts: &[Part],
        buffers: &mut Vec<VolatileSlice<'a>>,
    ) -> io::Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let sum = |sum: usize, part: &Part| sum.saturating_add(part.length);
        let total = parts.iter().fold(0, sum);
        if total > MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.bytes = vec![0; total];
        let mut rest = &mut self.bytes[..];
        for (inserted, part) in parts.iter().enumerate() {
            let (bytes, tail) = rest.split_at_mut(part.length);
            sys::read_own(part.place, bytes)?;
            buffers.insert(part.before + inserted, VolatileSlice::from(bytes));
            rest = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(buffers: &[VolatileSlice<'_>]) -> Vec<u8> {
        let mut all = Vec::new();
        for buffer in buffers {
            let mut bytes = vec![0; buffer.len()];
            buffer.copy_to(&mut bytes);
            all.extend(bytes);
        }
        all
    }

    #[test]
    fn what_lies_in_the_window_is_copied_in_its_place() {
        let held = *b"0123456789";
        let window = Window {
            start: 0x1000,
            address: held.as_ptr().expose_provenance(),
            length: held.len(),
        };
        let mut copier = Copier::new(Some(window));
        for (address, length) in [
            (0xfff, 1),
            (0xfff, 4),
            (0x1001, 10),
            (0x100a, 1),
            (0x1000, usize::MAX),
            (u64::MAX, 1),
        ] {
            assert!(copier.part(0, address, length).is_none(), "{address:#x}");
        }
        let mut ram = *b"abcd";
        let (first, second) = ram.split_at_mut(2);
        let parts = [
            copier.part(0, 0x1009, 1).unwrap(),
            copier.part(1, 0x1000, 3).unwrap(),
            copier.part(2, 0x100a, 0).unwrap(),
        ];
        let mut buffers = vec![VolatileSlice::from(first), VolatileSlice::from(second)];
        copier.insert(&parts, &mut buffers).unwrap();
        assert_eq!(bytes(&buffers), b"9ab012cd");
        assert!(Copier::new(None).part(0, 0x1000, 1).is_none());
    }

    #[test]
    fn what_is_gone_is_zeros_and_the_sum_is_bounded() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[7; 3 * 4096]).unwrap();
        let mapping = crate::sys::tests::map(&file, 8 << 20);
        let window = Window {
            start: 0,
            address: mapping,
            length: 8 << 20,
        };
        file.set_len(4096).unwrap();
        let mut copier = Copier::new(Some(window));
        let part = copier.part(0, 4090, 4096 + 10).unwrap();
        let mut buffers = Vec::new();
        copier.insert(&[part], &mut buffers).unwrap();
        let mut expected = vec![7; 6];
        expected.extend([0; 4100]);
        assert_eq!(bytes(&buffers), expected);
        let part = || copier.part(0, 0, MOST / 2 + 1).unwrap();
        let parts = [part(), part()];
        assert!(copier.insert(&parts, &mut Vec::new()).is_err());
    }
}
