//! A machine process with its directory, and its clients.

use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use protocol::{Exit, Request};
use runtime::fuzz::machine::{Asked, Process};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tempfile::TempDir;

/// Requests that the machine process keeps at most without the guest's answer.
const REQUESTS_MAX: usize = 1024;

/// Maximum length of the log, and of a journal with a machine's last words in it, bytes.
const LOG_MAX: u64 = 64 << 10;
const JOURNAL_MAX: u64 = 256 << 10;

/// What clients ask for.
pub const CONTROLS: [&str; 17] = [
    r#"{"Kill":{"signal":9,"all":false}}"#,
    r#"{"Kill":{"signal":15,"all":true}}"#,
    r#"{"Start":{"interfaces":[],"settings":[],"requests":[],"names":true}}"#,
    r#"{"Start":{"interfaces":[{"device":0,"mac":[2,0,0,0,0,1],"name":"eth0","index":2}],"settings":[],"requests":[]}}"#,
    r#"{"Network":{"gone":[],"undone":[],"new":{"interfaces":[{"device":0,"mac":[2,0,0,0,0,1],"name":"eth0","index":2}],"settings":[],"requests":[]},"notes":[]}}"#,
    r#"{"Network":{"gone":[2,3],"undone":[{"what":"x","message":"00"}],"new":{"interfaces":[],"settings":[],"requests":[],"names":true},"notes":["a note"]}}"#,
    r#"{"Network":{"gone":[2],"undone":[],"new":{"interfaces":[{"device":0,"mac":[2,0,0,0,0,2],"name":"eth0","index":2},{"device":0,"mac":[2,0,0,0,0,1],"name":"eth1","index":3}],"settings":[],"requests":[]},"notes":[]}}"#,
    r#"{"Exec":{"process":"{}","policy":"","cgroup":"","passed":{"terminal":false,"streams":["None","None","None"],"extra":[]}}}"#,
    r#"{"Exec":{"process":"{}","policy":"0001","cgroup":"x","passed":{"terminal":false,"streams":[{"Passed":{"own":true}},{"Passed":{"own":false}},{"Passed":{"own":true}}],"extra":[]}}}"#,
    r#"{"Exec":{"process":"{}","policy":"","cgroup":"","passed":{"terminal":true,"streams":[{"Passed":{"own":true}},"None","None"],"extra":[{"direction":"Both","own":false}]}}}"#,
    r#""Pause""#,
    r#""Resume""#,
    r#"{"Update":"{}"}"#,
    r#""Statistics""#,
    r#""Processes""#,
    r#""Events""#,
    r#""Ready""#,
];

/// A client's connection.
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

/// The process and all around it.
pub struct Bench {
    directory: TempDir,
    pub process: Process,
    pub clients: Vec<Client>,
    asked: Asked,
    /// What the agent has been asked, and has not answered.
    pub open: Vec<Request>,
    last_id: u64,
    phase: u8,
    /// Requests by which phases come about.
    started: bool,
    pub over: Option<Exit>,
}

impl Bench {
    /// # Panics
    /// The host has no descriptors left.
    #[must_use]
    pub fn new(committed: bool) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let process = Process::new(directory.path(), committed).unwrap();
        let mut bench = Bench {
            phase: process.phase(),
            process,
            directory,
            clients: Vec::new(),
            asked: Asked::default(),
            open: Vec::new(),
            last_id: 0,
            started: false,
            over: None,
        };
        bench.listen();
        // The honest guest has answered the first one.
        if committed {
            bench.open.clear();
        }
        bench
    }

    /// Lets the event loop come to rest, and looks at all that is visible then. Not to be called when it is over.
    ///
    /// # Panics
    /// Something does not hold.
    pub fn turn(&mut self) {
        self.over = self.process.turn().expect("the machine process goes on");
        self.listen();
        let phase = self.process.phase();
        assert!(phase >= self.phase, "from phase {} to {phase}", self.phase);
        // Created is for the create verb to hear of; only that one's guest gets so far.
        assert!(
            phase != 3 || self.started,
            "a container runs that nobody has started"
        );
        self.phase = phase;
        let (waiting, containers) = self.process.counts();
        assert!(
            waiting <= REQUESTS_MAX && containers == 1,
            "{waiting} {containers}"
        );
        for client in &mut self.clients {
            client.read();
        }
    }

    /// What the agent hears.
    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = (&self.process.guest).read(&mut bytes) {
            for request in self.asked.take(&bytes[..count]) {
                assert_eq!(request.id, self.last_id + 1, "ids are given in order");
                assert_eq!(request.container, protocol::FIRST);
                self.last_id = request.id;
                self.started |= matches!(request.body, protocol::RequestBody::Start(_));
                self.open.push(request);
            }
        }
    }

    /// A further client, if there is room in the listener's queue.
    pub fn connect(&mut self) -> Option<&mut Client> {
        let stream = UnixStream::connect(self.directory.path().join("control.sock")).ok()?;
        stream.set_nonblocking(true).ok()?;
        self.clients.push(Client {
            stream,
            received: Vec::new(),
        });
        self.clients.last_mut()
    }

    /// Looks at what is left.
    ///
    /// # Panics
    /// Something does not hold.
    pub fn finish(self) {
        let length = |name| {
            fs::metadata(self.directory.path().join(name))
                .unwrap()
                .len()
        };
        assert!(length("log") <= LOG_MAX, "a log of {} bytes", length("log"));
        assert!(
            length("journal") <= JOURNAL_MAX,
            "a journal of {} bytes",
            length("journal")
        );
        let journal = fs::read_to_string(self.directory.path().join("journal")).unwrap();
        let entries: Vec<Value> = journal
            .lines()
            .map(|line| serde_json::from_str(line).expect("the journal holds JSON"))
            .collect();
        let ends = entries.iter().filter(|entry| entry.get("exited").is_some());
        assert_eq!(ends.count(), usize::from(self.phase == 4), "{entries:?}");
        for name in ["log", "journal"] {
            let text = fs::read_to_string(self.directory.path().join(name)).unwrap();
            assert!(
                !text.chars().any(|c| c != '\n' && c.is_control()),
                "{name}: {text:?}"
            );
        }
    }
}

impl Client {
    /// Sends bytes and descriptors with the first of them; as much as there is room for.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags);
    }

    /// Sends a request about a container.
    pub fn ask(&self, container: u64, control: &str, descriptors: &[BorrowedFd<'_>]) {
        self.send(
            &frame(&format!(
                r#"{{"container":{container},"control":{control}}}"#
            )),
            descriptors,
        );
    }

    /// Reads what has come: whole frames of JSON.
    fn read(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut bytes) {
            self.received.extend(&bytes[..count]);
        }
        while let Some(length) = self
            .received
            .first_chunk()
            .map(|length| u32::from_le_bytes(*length))
        {
            let Some(frame) = self.received.get(4..4 + length as usize) else {
                return;
            };
            serde_json::from_slice::<Value>(frame).expect("a reply is JSON");
            self.received.drain(..4 + length as usize);
        }
    }
}

/// The frame of a text.
#[must_use]
pub fn frame(text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    [&length.to_le_bytes(), text.as_bytes()].concat()
}
