//! Framing: a length as u32 little-endian, then that many bytes, which are JSON unless another frame
//! has announced that they are not.
//!
//! ```text
//!          push           take
//!  bytes --------> buffer ------> message
//!                    |
//!                    +-- length > cap, or bad JSON --> broken: every later call fails
//! ```
//! Invariants: the length is compared with the cap before anything is allocated for it; a broken
//! decoder never yields a message again, since the position in the stream is not to be trusted.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame body in bytes. A `config.json` of a large pod is below 1 MiB.
pub const MAX_FRAME: usize = 4 << 20;

/// Bytes of the length that precedes the body.
const HEADER: usize = size_of::<u32>();

/// Errors of the codec.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A length above the cap, received or about to be sent. Lengths are in bytes.
    #[error("frame of {length} bytes, {cap} are allowed")]
    TooLong {
        /// Length of the frame's body.
        length: usize,
        /// What is allowed.
        cap: usize,
    },
    /// The body is not the JSON of the expected message.
    #[error("frame is not a valid message")]
    Json(#[source] serde_json::Error),
    /// The stream ended inside of a frame.
    #[error("stream ended inside of a frame")]
    Truncated,
    /// The decoder has failed before.
    #[error("stream is out of step after an earlier error")]
    Broken,
    /// From the reader.
    #[error("cannot read a frame")]
    Read(#[source] io::Error),
    /// From the writer.
    #[error("cannot write a frame")]
    Write(#[source] io::Error),
}

/// The bytes of one frame.
///
/// # Errors
/// [`Error::TooLong`] when the message does not fit, [`Error::Json`] when it has no JSON form.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(Error::Json)?;
    let header = header(frame.len() - HEADER)?;
    frame[..HEADER].copy_from_slice(&header);
    Ok(frame)
}

/// Appends a frame of bytes as they are.
///
/// # Errors
/// [`Error::TooLong`].
pub fn append_bytes(frames: &mut Vec<u8>, body: &[u8]) -> Result<(), Error> {
    frames.extend_from_slice(&header(body.len())?);
    frames.extend_from_slice(body);
    Ok(())
}

/// The length of a body that is to be sent, checked.
fn header(length: usize) -> Result<[u8; HEADER], Error> {
    match u32::try_from(length) {
        Ok(header) if length <= MAX_FRAME => Ok(header.to_le_bytes()),
        _ => Err(Error::TooLong {
            length,
            cap: MAX_FRAME,
        }),
    }
}

/// The message of the frame that `bytes` begin with, and what follows the frame.
///
/// # Errors
/// [`Error::TooLong`], [`Error::Json`] and [`Error::Truncated`].
pub fn split<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), Error> {
    let (body, rest) = split_bytes(bytes)?;
    let message = serde_json::from_slice(body).map_err(Error::Json)?;
    Ok((message, rest))
}

/// The body of the frame that `bytes` begin with as it is, and what follows the frame.
///
/// # Errors
/// [`Error::TooLong`] and [`Error::Truncated`].
pub fn split_bytes(bytes: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (header, rest) = bytes.split_first_chunk().ok_or(Error::Truncated)?;
    let length = body_length(*header, MAX_FRAME)?;
    rest.split_at_checked(length).ok_or(Error::Truncated)
}

/// Turns a byte stream into messages, without doing I/O itself.
///
/// Takes what it is given; a caller that drains it with [`Decoder::take`] after each
/// [`Decoder::push`] of a bounded piece bounds its memory to a frame and a piece.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where in `buffer` the next frame begins.
    position: usize,
    cap: usize,
    broken: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

impl Decoder {
    /// Accepts frames of up to [`MAX_FRAME`].
    pub fn new() -> Decoder {
        Decoder::with_cap(MAX_FRAME)
    }

    /// Accepts frames of up to `cap` bytes, at most [`MAX_FRAME`].
    pub fn with_cap(cap: usize) -> Decoder {
        Decoder {
            buffer: Vec::new(),
            position: 0,
            cap: cap.min(MAX_FRAME),
            broken: false,
        }
    }

    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        if self.position == self.buffer.len() {
            self.buffer.clear();
            self.position = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether no part of a frame is waiting for its rest.
    pub fn is_empty(&self) -> bool {
        self.position == self.buffer.len()
    }

    /// The next message, or None when more bytes are needed.
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Json`], after which the decoder is [`Error::Broken`].
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        self.next(|body| serde_json::from_slice(body).map_err(Error::Json))
    }

    /// The body of the next frame as it is, or None when more bytes are needed.
    ///
    /// # Errors
    /// [`Error::TooLong`], after which the decoder is [`Error::Broken`].
    pub fn take_bytes(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.next(|body| Ok(body.to_vec()))
    }

    fn next<T>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        let result = self.parse(read);
        if result.is_err() {
            self.broken = true;
            self.buffer = Vec::new();
            self.position = 0;
        }
        result
    }

    fn parse<T>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let pending = &self.buffer[self.position..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else {
            self.compact();
            return Ok(None);
        };
        let length = body_length(*header, self.cap)?;
        let Some(body) = rest.get(..length) else {
            self.compact();
            return Ok(None);
        };
        let message = read(body)?;
        self.position += HEADER + length;
        Ok(Some(message))
    }

    /// Gives up what has been consumed, once per incomplete frame.
    fn compact(&mut self) {
        if self.position > 0 {
            self.buffer.drain(..self.position);
            self.position = 0;
        }
    }
}

/// Checks a received length.
fn body_length(header: [u8; HEADER], cap: usize) -> Result<usize, Error> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > cap {
        Err(Error::TooLong { length, cap })
    } else {
        Ok(length)
    }
}

/// Writes one message to a blocking stream.
///
/// # Errors
/// Those of [`encode`] and [`Error::Write`].
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), Error> {
    stream.write_all(&encode(message)?).map_err(Error::Write)
}

/// Reads one message from a blocking stream; None when the stream ends between two frames.
///
/// # Errors
/// [`Error::TooLong`], [`Error::Json`], [`Error::Truncated`] and [`Error::Read`].
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, Error> {
    read_with_cap(stream, MAX_FRAME)
}

/// The same for frames of up to `cap` bytes.
///
/// # Errors
/// As [`read`].
pub fn read_with_cap<T: DeserializeOwned>(
    stream: &mut impl Read,
    cap: usize,
) -> Result<Option<T>, Error> {
    let mut header = [0; HEADER];
    match read_up_to(stream, &mut header)? {
        0 => return Ok(None),
        HEADER => {}
        _ => return Err(Error::Truncated),
    }
    let length = body_length(header, cap.min(MAX_FRAME))?;
    let mut body = vec![0; length];
    if read_up_to(stream, &mut body)? != length {
        return Err(Error::Truncated);
    }
    serde_json::from_slice(&body).map(Some).map_err(Error::Json)
}

/// Fills `buffer` unless the stream ends before; returns how much of it.
fn read_up_to(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Read(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exit, Message, Reply, Request, RequestBody};

    fn messages() -> Vec<Message> {
        vec![
            Message::Hello {
                version: 1,
                agent_started: u64::MAX,
                sent: 0,
            },
            Message::Response {
                id: 1,
                result: Ok(Reply::Done),
            },
            Message::Exited {
                container: 0,
                process: crate::INIT,
                exit: Exit::Signal(9),
            },
        ]
    }

    #[test]
    fn a_frame_is_read_up_to_a_cap() {
        let frame = encode(&"text").unwrap();
        let length = frame.len() - HEADER;
        let read = |cap| read_with_cap::<String>(&mut frame.as_slice(), cap);
        assert_eq!(read(length).unwrap().unwrap(), "text");
        assert!(matches!(read(length - 1), Err(Error::TooLong { .. })));
    }

    #[test]
    fn any_split_of_the_stream_gives_the_same_messages() {
        let stream: Vec<u8> = messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        for piece in 1..=stream.len() {
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.push(bytes);
                while let Some(message) = decoder.take::<Message>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, messages(), "pieces of {piece}");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn a_length_above_the_cap_is_refused_before_its_body_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes());
        assert!(matches!(
            decoder.take::<Message>(),
            Err(Error::TooLong { .. })
        ));
        assert!(matches!(decoder.take::<Message>(), Err(Error::Broken)));
        decoder.push(&encode(&messages()[0]).unwrap());
        assert!(matches!(decoder.take::<Message>(), Err(Error::Broken)));
        assert_eq!(decoder.buffer.capacity(), 0);

        let mut decoder = Decoder::new();
        decoder.push(&u32::try_from(MAX_FRAME).unwrap().to_le_bytes());
        assert!(
            decoder.take::<Message>().unwrap().is_none(),
            "the cap itself is allowed"
        );
        assert!(
            decoder.buffer.capacity() < 64,
            "nothing is allocated for a body to come"
        );
    }

    #[test]
    fn a_smaller_cap_holds() {
        let mut decoder = Decoder::with_cap(10);
        decoder.push(&encode(&messages()[0]).unwrap());
        assert!(matches!(
            decoder.take::<Message>(),
            Err(Error::TooLong { cap: 10, .. })
        ));
    }

    #[test]
    fn bad_json_breaks_the_decoder() {
        for body in ["", "{", "null", r#"{"Exited":{"Code":256}}"#, "\u{0}"] {
            let mut decoder = Decoder::new();
            decoder.push(&u32::try_from(body.len()).unwrap().to_le_bytes());
            decoder.push(body.as_bytes());
            assert!(
                matches!(decoder.take::<Message>(), Err(Error::Json(_))),
                "{body}"
            );
            assert!(
                matches!(decoder.take::<Message>(), Err(Error::Broken)),
                "{body}"
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let body = format!("{{\"x\":{}", "[".repeat(MAX_FRAME - 16));
        let mut decoder = Decoder::new();
        decoder.push(&u32::try_from(body.len()).unwrap().to_le_bytes());
        decoder.push(body.as_bytes());
        assert!(matches!(decoder.take::<Request>(), Err(Error::Json(_))));
    }

    #[test]
    fn encoding_refuses_what_the_other_side_would_refuse() {
        assert!(matches!(
            encode(&"x".repeat(MAX_FRAME - 1)),
            Err(Error::TooLong { .. })
        ));
        assert_eq!(
            encode(&"x".repeat(MAX_FRAME - 2)).unwrap().len(),
            HEADER + MAX_FRAME
        );
    }

    #[test]
    fn blocking_streams_round_trip() {
        let mut bytes = Vec::new();
        let request = Request {
            container: 0,
            id: 3,
            body: RequestBody::Start(crate::Network::default()),
        };
        write(&mut bytes, &request).unwrap();
        write(&mut bytes, &request).unwrap();
        let mut stream = bytes.as_slice();
        assert_eq!(read::<Request>(&mut stream).unwrap(), Some(request.clone()));
        assert_eq!(read::<Request>(&mut stream).unwrap(), Some(request));
        assert_eq!(read::<Request>(&mut stream).unwrap(), None);
        for end in 1..bytes.len() / 2 {
            assert!(matches!(
                read::<Request>(&mut &bytes[..end]),
                Err(Error::Truncated)
            ));
        }
    }

    /// xorshift64 (Marsaglia, "Xorshift RNGs", 2003): reproducible noise.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
        }
    }

    #[test]
    fn random_bytes_never_panic_nor_hoard() {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for _ in 0..20_000 {
            let mut decoder = Decoder::with_cap(256);
            for _ in 0..8 {
                let mut piece = [0_u8; 64];
                piece.fill_with(|| noise.next().to_le_bytes()[0]);
                if noise.below(2) == 0 {
                    piece[1..HEADER].fill(0);
                }
                decoder.push(&piece[..noise.below(piece.len())]);
                while let Ok(Some(_)) = decoder.take::<Message>() {}
                assert!(decoder.buffer.len() <= HEADER + 256 + 64);
            }
        }
    }

    #[test]
    fn damaged_messages_never_panic() {
        let mut noise = Noise(42);
        let whole: Vec<u8> = messages().iter().flat_map(|m| encode(m).unwrap()).collect();
        let mut refused = 0;
        for _ in 0..50_000 {
            let mut bytes = whole.clone();
            for _ in 0..=noise.below(3) {
                let at = noise.below(bytes.len());
                bytes[at] = noise.next().to_le_bytes()[0];
            }
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            loop {
                match decoder.take::<Message>() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
        assert!(refused > 10_000, "damage goes unnoticed: {refused}");
    }
}
