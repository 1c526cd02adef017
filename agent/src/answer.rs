//! Answers of texts that others write, which are bounded by a frame.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use protocol::MAX_FRAME;

/// Maximum length of an answer's variable part in its frame, in bytes of JSON.
pub(crate) const MAX_ANSWER: usize = MAX_FRAME - (4 << 10);

/// The first `most` bytes of a file; None if it cannot be read.
pub(crate) fn bounded(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The elements from the front that take at most `room` together, with 8 bytes between two.
pub(crate) fn fitting<T>(
    elements: impl Iterator<Item = T>,
    mut room: usize,
    length: impl Fn(&T) -> usize,
) -> Vec<T> {
    elements
        .map_while(|element| {
            room = room.checked_sub(length(&element) + 8)?;
            Some(element)
        })
        .collect()
}

/// The bytes that a string takes in JSON (RFC 8259, section 7), at most.
pub(crate) fn json_length(text: &str) -> usize {
    let of = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(of).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Process, Reply};

    #[test]
    fn what_does_not_fit_is_cut_from_the_end() {
        let text = "\0\n\"é".to_owned();
        assert_eq!(
            json_length(&text),
            serde_json::to_string(&text).unwrap().len()
        );
        let three = ["aa", "bb", "cc"];
        assert_eq!(fitting(three.into_iter(), 22, |t| t.len()), ["aa", "bb"]);
        let process = Process {
            pid: i32::MAX,
            stat: "\u{1}".repeat(4 << 10),
            status: String::new(),
            command_line: "\0".repeat(4 << 10),
        };
        let many = fitting(std::iter::repeat_n(process, 100_000), MAX_ANSWER, |p| {
            64 + json_length(&p.stat) + json_length(&p.status) + json_length(&p.command_line)
        });
        let result = Ok(Reply::Processes {
            now: u64::MAX,
            processes: many,
        });
        let message = protocol::Message::Response {
            id: u64::MAX,
            result,
        };
        assert!(protocol::encode(&message).is_ok());
    }
}
