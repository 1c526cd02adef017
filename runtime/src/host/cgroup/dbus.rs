//! As much of D-Bus as it takes to ask systemd for a unit: method calls, their replies, and signals, on a Unix socket.
//!
//! Formats are those of the D-Bus Specification 0.43: "Message Protocol", "Type System", "Authentication Protocol".
//!
//! No crate does it for less: for five calls `zbus` would be thirty more crates and an executor, where a process that
//! has threads cannot be cloned ([`clone_process`]); `rustbus` would be fifteen, with majors of nix, syn, thiserror and
//! bitflags that everything else has left behind. Here what is read and the time of the whole exchange are bounded.
//!
//! [`clone_process`]: crate::sys::clone_process

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

/// How long a connection may last, with all that is waited for on it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of bytes of a message that is read. Those of systemd about units have some hundred.
const MESSAGE_MAX: usize = 1 << 20;

/// Maximum number of bytes of a line of the authentication.
const LINE_MAX: usize = 1 << 10;

/// The fixed part of a header: byte order, type, flags, version, length of the body, serial, length of the fields.
const FIXED: usize = 16;

/// Message types.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Header fields.
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// What goes wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("D-Bus")]
    Io(#[source] io::Error),
    #[error("D-Bus: no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("D-Bus: invalid message: {0}")]
    Invalid(&'static str),
    #[error("D-Bus: authentication is refused: {0:?}")]
    Auth(String),
    /// The other side's answer to a call.
    #[error("{text}")]
    Reply {
        /// For instance `org.freedesktop.systemd1.UnitExists`.
        name: String,
        text: String,
    },
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout,
            _ => Error::Io(e),
        }
    }
}

/// A value of a type that is known from the value alone: what a variant holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Text(String),
    Bytes(Vec<u8>),
    Numbers(Vec<u32>),
    Texts(Vec<String>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Numbers(_) => "au",
            Value::Texts(_) => "as",
        }
    }
}

/// Marshals values, little-endian. Its start is aligned for every type.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    /// A string or an object path.
    pub(super) fn string(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// A signature of less than 256 types.
    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// An array, its elements aligned to `alignment` and written by `elements`.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let length = length(self.bytes.len() - start);
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `a(sv)`: names and values.
    pub(super) fn properties(&mut self, properties: &[(String, Value)]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.string(name);
                writer.variant(value);
            }
        });
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        let long = |writer: &mut Writer, bytes: [u8; 8]| {
            writer.align(8);
            writer.bytes.extend(bytes);
        };
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::I32(value) => self.u32(value.cast_unsigned()),
            Value::U32(value) => self.u32(*value),
            Value::I64(value) => long(self, value.to_le_bytes()),
            Value::U64(value) => long(self, value.to_le_bytes()),
            Value::Text(text) => self.string(text),
            Value::Bytes(bytes) => self.array(1, |writer| writer.bytes.extend(bytes)),
            Value::Numbers(all) => self.array(4, |writer| all.iter().for_each(|n| writer.u32(*n))),
            Value::Texts(all) => {
                self.array(4, |writer| all.iter().for_each(|text| writer.string(text)));
            }
        }
    }
}

/// Longer messages than a length can say are refused when they are sent.
fn length(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// Reads marshalled values; their start is aligned for every type.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(count);
        taken.ok_or(Error::Invalid("it is short"))
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.align(4);
        let bytes = self.take(4)?.try_into();
        bytes
            .map(u32::from_le_bytes)
            .map_err(|_| Error::Invalid("it is short"))
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Error> {
        let length = self.u32()?;
        self.text(length as usize)
    }

    fn signature(&mut self) -> Result<&'a str, Error> {
        let length = self.u8()?;
        self.text(length.into())
    }

    /// A text and the zero after it.
    fn text(&mut self, length: usize) -> Result<&'a str, Error> {
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| Error::Invalid("a text is not UTF-8"))
    }
}

/// A method call.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// The types of the body.
    pub(super) signature: &'a str,
    pub(super) body: Writer,
}

impl Call<'_> {
    fn marshal(&self, serial: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.bytes.extend([b'l', METHOD_CALL, 0, 1]);
        writer.u32(length(self.body.bytes.len()));
        writer.u32(serial);
        writer.array(8, |writer| {
            for (field, signature, text) in [
                (FIELD_PATH, "o", self.path),
                (FIELD_INTERFACE, "s", self.interface),
                (FIELD_MEMBER, "s", self.member),
                (FIELD_DESTINATION, "s", self.destination),
            ] {
                writer.align(8);
                writer.bytes.push(field);
                writer.signature(signature);
                writer.string(text);
            }
            if !self.signature.is_empty() {
                writer.align(8);
                writer.bytes.push(FIELD_SIGNATURE);
                writer.signature("g");
                writer.signature(self.signature);
            }
        });
        writer.align(8);
        writer.bytes.extend(&self.body.bytes);
        writer.bytes
    }
}

/// A message that has been received.
#[derive(Debug, Default)]
pub(super) struct Message {
    kind: u8,
    member: String,
    error: String,
    reply_to: Option<u32>,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// The body, which must have the types of `signature`.
    pub(super) fn body(&self, signature: &str) -> Result<Reader<'_>, Error> {
        if self.signature != signature {
            return Err(Error::Invalid("its body has other types"));
        }
        Ok(Reader {
            bytes: &self.body,
            at: 0,
        })
    }

    fn parse(bytes: &[u8], body: usize) -> Result<Message, Error> {
        let mut message = Message {
            kind: bytes[1],
            body: bytes[bytes.len() - body..].to_vec(),
            ..Message::default()
        };
        let mut reader = Reader {
            bytes: &bytes[..bytes.len() - body],
            at: FIXED - 4,
        };
        let end = FIXED + reader.u32()? as usize;
        while reader.at < end {
            reader.align(8);
            let field = reader.u8()?;
            let text = match reader.signature()? {
                "u" => {
                    let number = reader.u32()?;
                    if field == FIELD_REPLY_SERIAL {
                        message.reply_to = Some(number);
                    }
                    continue;
                }
                "s" | "o" => reader.string()?,
                "g" => reader.signature()?,
                _ => return Err(Error::Invalid("a header field has an unknown type")),
            };
            match field {
                FIELD_MEMBER => message.member = text.to_owned(),
                FIELD_ERROR_NAME => message.error = text.to_owned(),
                FIELD_SIGNATURE => message.signature = text.to_owned(),
                _ => {}
            }
        }
        Ok(message)
    }

    /// The answer to a call.
    fn reply(self) -> Result<Message, Error> {
        match self.kind {
            METHOD_RETURN => Ok(self),
            _ => Err(Error::Reply {
                text: match self.body("s").and_then(|mut body| body.string()) {
                    Ok(text) => text.to_owned(),
                    Err(_) => self.error.clone(),
                },
                name: self.error,
            }),
        }
    }
}

/// A connection to one peer or to a bus.
pub(super) struct Connection {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
    /// Those that came while something else was waited for.
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects and authenticates as the effective user.
    pub(super) fn open(path: &Path) -> Result<Connection, Error> {
        let mut connection = Connection {
            stream: UnixStream::connect(path)?,
            deadline: Instant::now() + TIMEOUT,
            serial: 0,
            signals: VecDeque::new(),
        };
        let uid = geteuid().to_string();
        let hex = protocol::to_hex(uid.bytes());
        // All at once, as sd-bus does: systemd forgets a call that reaches it together with BEGIN until something else
        // comes.
        connection.send(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = connection.line()?;
        if !answer.starts_with("OK ") {
            return Err(Error::Auth(answer));
        }
        Ok(connection)
    }

    /// Calls a method and waits for the answer.
    pub(super) fn call(&mut self, call: &Call<'_>) -> Result<Message, Error> {
        self.serial += 1;
        let serial = self.serial;
        let message = call.marshal(serial);
        if message.len() > MESSAGE_MAX {
            return Err(Error::Invalid("it is too long"));
        }
        self.send(&message)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                METHOD_RETURN | ERROR if message.reply_to == Some(serial) => {
                    return message.reply();
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// Waits for the next signal of that name.
    pub(super) fn signal(&mut self, member: &str) -> Result<Message, Error> {
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.receive()?,
            };
            if message.kind == SIGNAL && message.member == member {
                return Ok(message);
            }
        }
    }

    fn time_left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout);
        }
        Ok(left)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.set_write_timeout(Some(self.time_left()?))?;
        Ok(self.stream.write_all(bytes)?)
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(Some(self.time_left()?))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => bytes = &mut bytes[count..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// A line of the authentication, without its end. Nothing follows it until we speak.
    fn line(&mut self) -> Result<String, Error> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE_MAX {
                return Err(Error::Invalid("it is too long"));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.extend(byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn receive(&mut self) -> Result<Message, Error> {
        let mut bytes = vec![0; FIXED];
        self.read(&mut bytes)?;
        // The byte order of this host's processes.
        if bytes[0] != b'l' || bytes[3] != 1 {
            return Err(Error::Invalid("it has an unknown byte order or version"));
        }
        let mut reader = Reader {
            bytes: &bytes,
            at: 4,
        };
        let (body, _serial, fields) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (body, fields) = (body as usize, fields as usize);
        let total = (FIXED + fields).next_multiple_of(8) + body;
        if total > MESSAGE_MAX {
            return Err(Error::Invalid("it is too long"));
        }
        bytes.resize(total, 0);
        self.read(&mut bytes[FIXED..])?;
        Message::parse(&bytes, body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_marshalled_as_the_specification_says() {
        let mut body = Writer::default();
        body.string("a");
        body.properties(&[
            ("B".into(), Value::Bool(true)),
            ("T".into(), Value::U64(258)),
            ("P".into(), Value::Numbers(vec![7])),
        ]);
        let call = Call {
            destination: "d",
            path: "/",
            interface: "i",
            member: "m",
            signature: "sa(sv)",
            body,
        };
        let expected: &[u8] = &[
            &b"l\x01\x00\x01\x4c\x00\x00\x00\x05\x00\x00\x00\x4c\x00\x00\x00"[..],
            b"\x01\x01o\x00\x01\x00\x00\x00/\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x01\x00\x00\x00i\x00\x00\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00m\x00\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x01\x00\x00\x00d\x00\x00\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x06sa(sv)\x00\x00\x00\x00\x00",
            // The string, then the array's length and its elements, each aligned to 8.
            b"\x01\x00\x00\x00a\x00\x00\x00\x3c\x00\x00\x00\x00\x00\x00\x00",
            b"\x01\x00\x00\x00B\x00\x01b\x00\x00\x00\x00\x01\x00\x00\x00",
            b"\x01\x00\x00\x00T\x00\x01t\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x01\x00\x00\x00\x00\x00\x00",
            b"\x01\x00\x00\x00P\x00\x02au\x00\x00\x00\x04\x00\x00\x00\x07\x00\x00\x00",
        ]
        .concat();
        assert_eq!(call.marshal(5), expected);
    }

    #[test]
    fn damaged_messages_are_errors() {
        let whole = Call {
            destination: "d",
            path: "/",
            interface: "i",
            member: "m",
            signature: "",
            body: Writer::default(),
        }
        .marshal(1);
        assert_eq!(Message::parse(&whole, 0).unwrap().member, "m");
        for length in FIXED..whole.len() - 8 {
            Message::parse(&whole[..length], 0).unwrap_err();
        }
        let mut long = whole;
        long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        Message::parse(&long, 0).unwrap_err();
    }
}
