//! The guest's log ring: what its kernel logged, kept by ramoops in a part of RAM that the host reads when the guest is
//! dead.
//!
//! Layout of the ring (Linux fs/pstore/ram_core.c, `struct persistent_ram_buffer`): signature, start, size, each a
//! 32-bit word, then the bytes. With no record area the console zone is the first in the region (fs/pstore/ram.c,
//! `ramoops_probe`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{LOG_RING, LOG_RING_SIZE};

/// `PERSISTENT_RAM_SIG`, "DBGC".
const SIGNATURE: u32 = 0x4347_4244;

/// Bytes before the data.
const HEADER: usize = 12;

/// Maximum number of bytes of log that are kept: the end of it tells why the guest died.
const LIMIT: usize = 8 << 10;

/// Reads the tail of the guest's log. Empty when the guest has written none or has damaged the ring.
pub(crate) fn read(memory: &GuestMemoryMmap) -> String {
    // One copy: vCPUs may still run and change the ring while it is read.
    let mut bytes = vec![0; usize::try_from(LOG_RING_SIZE).unwrap_or_default()];
    match memory.read_slice(&mut bytes, GuestAddress(LOG_RING)) {
        Ok(()) => parse(&bytes),
        Err(_) => String::new(),
    }
}

/// Takes the log out of a copy of the ring.
pub(crate) fn parse(ring: &[u8]) -> String {
    let Some((header, data)) = ring.split_at_checked(HEADER) else {
        return String::new();
    };
    let word = |index: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&header[index * 4..index * 4 + 4]);
        u32::from_le_bytes(word)
    };
    let (Ok(start), Ok(size)) = (usize::try_from(word(1)), usize::try_from(word(2))) else {
        return String::new();
    };
    if word(0) != SIGNATURE || size > data.len() || start > size {
        return String::new();
    }
    // A full ring begins at its oldest byte; one that is not full has start == size and nothing behind it.
    let (newer, older) = data[..size].split_at(start);
    let text = [older, newer].concat();
    let tail = &text[text.len().saturating_sub(LIMIT)..];
    let cut = tail.len() < text.len();
    sanitize(tail, cut)
}

/// Text without control characters but newlines; without the first, partial line where the text was cut.
fn sanitize(bytes: &[u8], cut: bool) -> String {
    let whole = match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) if cut => &bytes[end + 1..],
        _ => bytes,
    };
    String::from_utf8_lossy(whole)
        .chars()
        .filter(|&c| c == '\n' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(signature: u32, start: u32, size: u32, data: &[u8]) -> Vec<u8> {
        let mut ring = [signature, start, size].map(u32::to_le_bytes).concat();
        ring.extend_from_slice(data);
        ring
    }

    #[test]
    fn a_ring_that_is_not_full_is_read_from_its_beginning() {
        assert_eq!(parse(&ring(SIGNATURE, 5, 5, b"one\ntgarbage")), "one\nt");
    }

    #[test]
    fn a_full_ring_is_read_from_its_oldest_byte() {
        assert_eq!(parse(&ring(SIGNATURE, 4, 8, b"new\nold\n")), "old\nnew\n");
    }

    #[test]
    fn garbage_gives_nothing() {
        assert_eq!(parse(&[]), "");
        assert_eq!(parse(&[1; 11]), "");
        assert_eq!(parse(&ring(SIGNATURE, 0, 0, b"")), "");
        assert_eq!(parse(&ring(SIGNATURE + 1, 1, 1, b"x")), "");
        assert_eq!(parse(&ring(SIGNATURE, 0, 9, b"12345678")), "");
        assert_eq!(parse(&ring(SIGNATURE, 5, 4, b"12345678")), "");
        assert_eq!(parse(&ring(SIGNATURE, u32::MAX, u32::MAX, b"12345678")), "");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let words = parse(&ring(
            SIGNATURE,
            15,
            15,
            b"a\x1b[2Jb\rc\0\x7f\xc2\x9b\xff\nd",
        ));
        assert_eq!(words, "a[2Jbc\u{fffd}\nd");
    }

    #[test]
    fn a_long_log_is_cut_at_a_line() {
        let line = b"0123456789abcde\n";
        let data = line.repeat(4096);
        let size = u32::try_from(data.len()).unwrap();
        let words = parse(&ring(SIGNATURE, size, size, &data));
        assert_eq!(words.len(), LIMIT - line.len());
        assert!(words.starts_with("0123") && words.ends_with("cde\n"));
        assert!(
            parse(&ring(SIGNATURE, size - 5, size, &vec![0xff; data.len()])).len() <= 3 * LIMIT
        );
    }
}
