//! Messages of a guest's agent to the event loop of the machine process: answers to requests that there are and to
//! others, ends of processes, nonsense, and bytes that are no messages; while clients ask for things, streams end, and
//! the guest may end. There is no machine behind it, and no guest but the fuzzer.
//!
//! What must hold: no panic and no end of the loop by an error; it comes to rest; a container goes through its phases
//! forwards, and runs only when somebody has started it; requests have ids in order and are bounded; clients get whole
//! replies; log and journal stay short and hold nothing that steers a terminal; an end is recorded once; and no
//! descriptor is left.

#![no_main]

use std::io::Write;

use chiton_fuzz::Input;
use chiton_fuzz::process::{Bench, CONTROLS, frame};
use chiton_fuzz::tree::descriptors;
use libfuzzer_sys::fuzz_target;
use protocol::{Exit, Failure, FailureKind, Message, Reply};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let before = descriptors();
    let mut bench = Bench::new(input.byte() < 200);
    for _ in 0..64 {
        if input.is_empty() || bench.over.is_some() {
            break;
        }
        step(&mut bench, &mut input);
    }
    bench.finish();
    assert_eq!(descriptors(), before, "descriptors are left");
});

fn step(bench: &mut Bench, input: &mut Input<'_>) {
    match input.byte() {
        0..=119 => {
            let message = message(bench, input);
            // What is not read in time is lost, here as in any guest.
            let _ = bench.process.say(&message);
        }
        120..=129 => {
            let length = usize::from(input.byte());
            let bytes = String::from_utf8_lossy(input.bytes(length)).into_owned();
            let bytes = if input.flag() {
                frame(&bytes)
            } else {
                bytes.into_bytes()
            };
            let _ = (&bench.process.guest).write_all(&bytes);
        }
        130..=179 => {
            let (container, control) = (u64::from(input.byte() > 240), input.pick(&CONTROLS));
            if let Some(client) = bench.connect() {
                client.ask(container, control, &[]);
            }
        }
        180..=189 if !bench.clients.is_empty() => {
            let which = input.below(bench.clients.len());
            bench.clients.remove(which);
        }
        190..=199 if !bench.clients.is_empty() => {
            let which = input.below(bench.clients.len());
            let steer = input.pick(&[r#"{"Kill":9}"#, r#"{"Resize":{"rows":1,"columns":2}}"#]);
            bench.clients[which].send(&frame(steer), &[]);
        }
        200..=209 => {
            let port = input.pick(&[5000, 5000, 5001, 0, u32::MAX]);
            bench.process.close_stream(port);
        }
        210..=212 => {
            let length = usize::from(input.byte());
            let words =
                String::from_utf8_lossy(input.bytes(length)).repeat(usize::from(input.byte()));
            // As they are when they come out of the ring.
            let words = words
                .chars()
                .filter(|c| *c == '\n' || !c.is_control())
                .take(8 << 10);
            bench.process.end(words.collect());
        }
        _ => bench.turn(),
    }
}

fn message(bench: &mut Bench, input: &mut Input<'_>) -> Message {
    let container = u64::from(input.byte() > 240);
    let exit = if input.flag() {
        Exit::Code(input.byte())
    } else {
        Exit::Signal(input.number32() as i32)
    };
    match input.byte() {
        0..=129 => {
            let id = match input.byte() {
                0..=219 if !bench.open.is_empty() => {
                    let which = input.below(bench.open.len());
                    bench.open.remove(which).id
                }
                _ => input.number(),
            };
            Message::Response {
                id,
                result: result(input),
            }
        }
        130..=179 => Message::Exited {
            container,
            process: u64::from(input.byte() & 3),
            exit,
        },
        180..=199 => Message::OutOfMemory(container),
        200..=219 => Message::Ready(container),
        _ => Message::Hello {
            version: if input.byte() < 200 {
                protocol::VERSION
            } else {
                input.number32()
            },
            agent_started: input.number(),
            sent: input.number(),
        },
    }
}

fn result(input: &mut Input<'_>) -> Result<Reply, Failure> {
    let words = |input: &mut Input<'_>| {
        let length = usize::from(input.byte() & 31);
        String::from_utf8_lossy(input.bytes(length)).repeat(1 + usize::from(input.byte()))
    };
    Ok(match input.byte() {
        0..=79 => Reply::Done,
        80..=119 => Reply::Started {
            executed: input.number(),
            sent: input.number(),
        },
        120..=159 => Reply::Executed { pid: 7 },
        160..=169 => Reply::Created {
            pid: -1,
            started: input.number(),
            prepared: input.number(),
        },
        170..=184 => Reply::Statistics(vec![(words(input), words(input))]),
        185..=199 => Reply::Processes {
            now: input.number(),
            processes: Vec::new(),
        },
        _ => {
            let kinds = [
                FailureKind::NotFound,
                FailureKind::PermissionDenied,
                FailureKind::NotRunning,
                FailureKind::Config,
                FailureKind::Other,
            ];
            return Err(Failure::message(input.pick(&kinds), words(input)));
        }
    })
}
