use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::*;

fn place(cgroups_path: &str) -> Result<(String, String), String> {
    let scope = Scope::parse(Some(Path::new(cgroups_path)), "c", std::iter::empty())
        .map_err(|e| e.to_string())?;
    let directory = scope.directory(Path::new("/r"));
    Ok((scope.slice, directory.to_string_lossy().into_owned()))
}

#[test]
fn scopes_are_named_as_by_runc() {
    for (cgroups_path, slice, directory) in [
        ("", "system.slice", "/r/system.slice/chiton-c.scope"),
        (":p:n", "system.slice", "/r/system.slice/p-n.scope"),
        ("a.slice::n", "a.slice", "/r/a.slice/-n.scope"),
        (
            "a-b_c-d.slice:p:n",
            "a-b_c-d.slice",
            "/r/a.slice/a-b_c.slice/a-b_c-d.slice/p-n.scope",
        ),
        ("-.slice:p:n", "-.slice", "/r/p-n.scope"),
    ] {
        let expected = (slice.to_owned(), directory.to_owned());
        assert_eq!(place(cgroups_path), Ok(expected), "{cgroups_path}");
    }
    assert_eq!(
        Scope::parse(None, "c", std::iter::empty()).unwrap(),
        Scope::parse(
            Some(Path::new("system.slice:chiton:c")),
            "d",
            std::iter::empty()
        )
        .unwrap()
    );
}

#[test]
fn what_names_no_scope_is_refused() {
    let long = "n".repeat(NAME_MAX);
    for (cgroups_path, error) in [
        (
            "/a/b",
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\" instead",
        ),
        (
            "a:b",
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"a:b\" instead",
        ),
        (
            "a.slice:b:c:d",
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"a.slice:b:c:d\" instead",
        ),
        ("a:p:n", "invalid slice name: a"),
        ("a--b.slice:p:n", "invalid slice name: a--b.slice"),
        ("-a.slice:p:n", "invalid slice name: -a.slice"),
        (".slice:p:n", "invalid slice name: .slice"),
        ("a/../../b.slice:p:n", "invalid slice name: a/../../b.slice"),
        (":p:../../n", "invalid unit name: p-../../n.scope"),
        (
            &format!(":p:{long}"),
            &format!("invalid unit name: p-{long}.scope"),
        ),
        (
            "a.slice:p:b.slice",
            "linux.cgroupsPath names the slice b.slice: a container needs a scope",
        ),
    ] {
        assert_eq!(place(cgroups_path).unwrap_err(), error, "{cgroups_path}");
    }
}

#[test]
fn limits_are_properties() {
    let of = |file, value: &str| {
        let limit = Limit::asked(file, value, "linux.x");
        limit_properties(&limit).map_err(|e| e.to_string())
    };
    for (file, value, expected) in [
        ("memory.max", "4096", vec![("MemoryMax", Value::U64(4096))]),
        ("pids.max", "4096", vec![("TasksMax", Value::U64(4096))]),
        (
            "memory.swap.max",
            "0",
            vec![("MemorySwapMax", Value::U64(0))],
        ),
        (
            "memory.swap.max",
            "max",
            vec![("MemorySwapMax", Value::U64(u64::MAX))],
        ),
        ("cpu.weight", "39", vec![("CPUWeight", Value::U64(39))]),
        (
            "cpu.max",
            "12345 100000",
            vec![
                ("CPUQuotaPerSecUSec", Value::U64(130_000)),
                ("CPUQuotaPeriodUSec", Value::U64(100_000)),
            ],
        ),
        (
            "cpu.max",
            "max 50000",
            vec![
                ("CPUQuotaPerSecUSec", Value::U64(u64::MAX)),
                ("CPUQuotaPeriodUSec", Value::U64(50_000)),
            ],
        ),
        (
            "cpuset.cpus",
            "0-2,9",
            vec![("AllowedCPUs", Value::Bytes(vec![0b111, 0b10]))],
        ),
        (
            "cpuset.mems",
            "0",
            vec![("AllowedMemoryNodes", Value::Bytes(vec![1]))],
        ),
        (
            "cpuset.cpus",
            "",
            vec![("AllowedCPUs", Value::Bytes(vec![]))],
        ),
    ] {
        let expected = expected
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        assert_eq!(of(file, value), Ok(expected.collect()), "{file} {value}");
    }
    for (file, value) in [
        ("memory.max", "x"),
        ("cpu.max", "1"),
        ("cpu.max", "1 0"),
        ("cpuset.cpus", "a"),
        ("cpuset.mems", "3-1"),
        ("cpuset.mems", "0-65536"),
    ] {
        assert_eq!(
            of(file, value).unwrap_err(),
            "linux.x has a value that no property of a systemd unit can express"
        );
    }
    assert_eq!(of("io.max", "8:0 rbps=1"), Ok(Vec::new()));
    assert_eq!(
        of("memory.oom.group", "1").unwrap_err(),
        "systemd units have no property for linux.x"
    );
}

/// The other end of a connection, which answers as a script says. It knows no D-Bus: what it gets it looks through for
/// texts, and what it sends is made of bytes here.
struct Peer {
    stream: UnixStream,
}

impl Peer {
    /// A message with a body of that signature; `fields` are marshalled header fields, each padded to 8 bytes but the
    /// last.
    fn send(&mut self, kind: u8, fields: &[u8], signature: &str, body: &[u8]) {
        let mut all = fields.to_vec();
        all.resize(all.len().next_multiple_of(8), 0);
        all.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
        all.extend(signature.bytes());
        all.push(0);
        let mut message = vec![b'l', kind, 0, 1];
        for number in [body.len(), 1, all.len()] {
            message.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        message.extend(all);
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend(body);
        self.stream.write_all(&message).unwrap();
    }

    /// The next message as text; the serial it has.
    fn receive(&mut self) -> (String, u8) {
        let mut bytes = vec![0; 16];
        self.stream.read_exact(&mut bytes).unwrap();
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let rest = (16 + number(12)).next_multiple_of(8) - 16 + number(4);
        let serial = bytes[8];
        let mut rest = vec![0; rest];
        self.stream.read_exact(&mut rest).unwrap();
        (String::from_utf8_lossy(&rest).into_owned(), serial)
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        String::from_utf8(line).unwrap()
    }

    fn returns(&mut self, serial: u8, job: &str) {
        self.send(2, &reply_serial(serial), "o", &text(job));
    }

    fn fails(&mut self, serial: u8, name: &str) {
        let mut fields = reply_serial(serial);
        fields.extend([4, 1, b's', 0]);
        fields.extend(text(name));
        self.send(3, &fields, "s", &text("No."));
    }

    fn job_removed(&mut self, job: &str, result: &str) {
        let mut fields = vec![3, 1, b's', 0];
        fields.extend(text("JobRemoved"));
        let mut body = 7u32.to_le_bytes().to_vec();
        for part in [job, "x.scope", result] {
            body.resize(body.len().next_multiple_of(4), 0);
            body.extend(text(part));
        }
        self.send(4, &fields, "uoss", &body);
    }
}

fn reply_serial(serial: u8) -> Vec<u8> {
    vec![5, 1, b'u', 0, serial, 0, 0, 0]
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.push(0);
    bytes
}

/// Runs `client` against a peer that behaves as `script` says once the connection is authenticated.
fn with_peer<T>(
    script: impl FnOnce(&mut Peer) + Send + 'static,
    client: impl FnOnce(&Path) -> T,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("private");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let mut peer = Peer {
            stream: listener.accept().unwrap().0,
        };
        let line = peer.line();
        // The user id in decimal, each digit as the hexadecimal code of its character.
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|b| format!("{b:x}")).collect();
        assert_eq!(line, format!("\0AUTH EXTERNAL {hex}\r\n"));
        assert_eq!(peer.line(), "BEGIN\r\n");
        peer.stream.write_all(b"OK 0123\r\n").unwrap();
        script(&mut peer);
    });
    let result = client(&path);
    server.join().unwrap();
    result
}

fn direct(path: &Path) -> Systemd {
    Systemd {
        connection: Connection::open(path).unwrap(),
    }
}

#[test]
fn a_unit_is_started_when_its_job_is_done() {
    let scope = Scope::parse(Some(Path::new("a.slice:p:n")), "c", std::iter::empty()).unwrap();
    let limit = Limit::unasked("memory.max", "4096");
    let properties = scope.properties(42, &[limit]).unwrap();
    let script = |peer: &mut Peer| {
        let (call, serial) = peer.receive();
        for part in [
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
            "p-n.scope\0",
            "replace\0",
            "Slice\0\u{1}s\0",
            "a.slice\0",
            "PIDs\0\u{2}au\0",
            "Delegate\0\u{1}b\0",
            "DefaultDependencies\0",
            "MemoryAccounting\0",
            "CPUAccounting\0",
            "IOAccounting\0",
            "TasksAccounting\0",
            "MemoryMax\0\u{1}t\0",
        ] {
            assert!(call.contains(part), "{part:?} in {call:?}");
        }
        // The end of somebody else's job, and of ours before we are told which it is.
        peer.job_removed("/job/6", "failed");
        peer.job_removed("/job/7", "done");
        peer.returns(serial, "/job/7");
    };
    let result = with_peer(script, |path| direct(path).start("p-n.scope", &properties));
    assert_eq!(result.unwrap(), "done");
}

#[test]
fn a_job_that_fails_and_a_call_that_is_refused_are_told_apart() {
    let script = |peer: &mut Peer| {
        let (call, serial) = peer.receive();
        assert!(call.contains("StopUnit"), "{call:?}");
        peer.returns(serial, "/job/8");
        peer.job_removed("/job/8", "timeout");
        let (_, serial) = peer.receive();
        peer.fails(serial, UNIT_EXISTS);
    };
    with_peer(script, |path| {
        let mut systemd = direct(path);
        assert_eq!(systemd.stop("p-n.scope").unwrap(), "timeout");
        let refused = systemd.start("p-n.scope", &[]).unwrap_err();
        assert!(
            matches!(&refused, dbus::Error::Reply { name, text } if name == UNIT_EXISTS && text == "No.")
        );
    });
}

#[test]
fn on_a_bus_the_signals_are_asked_for() {
    let script = |peer: &mut Peer| {
        for method in ["Hello", "AddMatch", "Subscribe"] {
            let (call, serial) = peer.receive();
            assert!(call.contains(method), "{method} in {call:?}");
            peer.send(2, &reply_serial(serial), "", &[]);
        }
    };
    with_peer(script, |path| Systemd::on_bus(path).map(drop)).unwrap();
}

#[test]
fn a_peer_that_hangs_up_or_talks_nonsense_is_an_error() {
    with_peer(|_| {}, |path| direct(path).stop("x").unwrap_err());
    let nonsense = |peer: &mut Peer| {
        peer.receive();
        let huge = [&b"l\x02\x00\x01"[..], &[0xff; 12]].concat();
        peer.stream.write_all(&huge).unwrap();
    };
    let refused = with_peer(nonsense, |path| direct(path).stop("x").unwrap_err());
    assert!(matches!(refused, dbus::Error::Invalid(_)), "{refused}");
}
