//! What clients send to control.sock: bytes that are requests, parts of some, and others; descriptors of every kind,
//! too many of them, and where none belong; clients that go away at any moment. The guest answers some requests.
//!
//! What must hold: what holds for the `life` target, above all that no descriptor is left once all is over, and that
//! clients get whole replies.

#![no_main]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use chiton_fuzz::Input;
use chiton_fuzz::process::{Bench, CONTROLS, frame};
use chiton_fuzz::tree::descriptors;
use libfuzzer_sys::fuzz_target;
use protocol::{Exit, Message, Reply, RequestBody};

/// Descriptors of every kind that a caller may have. They stay open.
static KINDS: LazyLock<Vec<OwnedFd>> = LazyLock::new(|| {
    let open = |path: &str, flags| {
        File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .unwrap()
            .into()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, other) = UnixStream::pair().unwrap();
    vec![
        open("/dev/null", 0),
        open("/dev/zero", 0),
        open("/", libc::O_DIRECTORY),
        open("/dev/null", libc::O_PATH),
        open("/proc/self/status", 0),
        tempfile::tempfile().unwrap().into(),
        reader.into(),
        writer.into(),
        socket.into(),
        other.into(),
    ]
});

fuzz_target!(|data: &[u8]| {
    let kinds = &*KINDS;
    let mut input = Input::new(data);
    let before = descriptors();
    let mut bench = Bench::new(true);
    for _ in 0..64 {
        if input.is_empty() || bench.over.is_some() {
            break;
        }
        step(&mut bench, kinds, &mut input);
    }
    bench.finish();
    assert_eq!(descriptors(), before, "descriptors are left");
});

fn step(bench: &mut Bench, kinds: &[OwnedFd], input: &mut Input<'_>) {
    let action = input.byte();
    if action < 20 || bench.clients.is_empty() {
        let _ = bench.connect();
    }
    let which = input.below(bench.clients.len().max(1));
    let Some(client) = bench.clients.get(which) else {
        return;
    };
    let count = match input.byte() {
        0..=99 => 0,
        byte @ 100..=239 => usize::from(byte & 3),
        byte => usize::from(byte & 15) * 4,
    };
    let passed: Vec<BorrowedFd<'_>> = (0..count)
        .map(|_| kinds[input.below(kinds.len())].as_fd())
        .collect();
    match action {
        0..=99 => {
            let control = control(input);
            client.ask(u64::from(input.byte() > 240), &control, &passed);
        }
        100..=129 => {
            // In two parts.
            let bytes = frame(&format!(
                r#"{{"container":0,"control":{}}}"#,
                control(input)
            ));
            let (first, second) = bytes.split_at(usize::from(input.byte()).min(bytes.len()));
            client.send(first, &passed);
            if input.flag() {
                bench.turn();
            }
            if let Some(client) = bench.clients.get(which) {
                client.send(second, &passed[..passed.len().min(1)]);
            }
        }
        130..=149 => {
            let length = usize::from(input.byte());
            client.send(input.bytes(length), &passed);
        }
        150..=164 => {
            let steer = input.pick(&[
                r#"{"Kill":9}"#,
                r#"{"Kill":-1}"#,
                r#"{"Resize":{"rows":0,"columns":65535}}"#,
                "{}",
            ]);
            client.send(&frame(steer), &passed);
        }
        165..=184 => drop(bench.clients.remove(which)),
        185..=219 => answer(bench, input),
        _ => bench.turn(),
    }
}

/// A request, of which a byte may be another.
fn control(input: &mut Input<'_>) -> String {
    let control = input.pick(&CONTROLS);
    if input.byte() < 200 {
        return control.to_owned();
    }
    let mut bytes = control.as_bytes().to_vec();
    let at = usize::from(input.byte()) % bytes.len();
    match input.byte() {
        0..=99 => bytes[at] = input.byte(),
        100..=149 => drop(bytes.remove(at)),
        _ => bytes.extend_from_within(at..),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The guest does what it is asked, or tells the end of a process.
fn answer(bench: &mut Bench, input: &mut Input<'_>) {
    bench.turn();
    if bench.open.is_empty() {
        let process = u64::from(input.byte() & 3);
        let exit = Exit::Code(input.byte());
        // The container's own end is the end of all: not as often.
        if process != 0 || input.byte() > 200 {
            let _ = bench.process.say(&Message::Exited {
                container: 0,
                process,
                exit,
            });
        }
        return;
    }
    let which = input.below(bench.open.len());
    let request = bench.open.remove(which);
    let result = match request.body {
        RequestBody::Start(_) => Reply::Started {
            executed: 1,
            sent: 1,
        },
        RequestBody::Exec(_) => Reply::Executed { pid: 9 },
        RequestBody::Statistics => Reply::Statistics(Vec::new()),
        _ => Reply::Done,
    };
    let _ = bench.process.say(&Message::Response {
        id: request.id,
        result: Ok(result),
    });
}
