//! What the host is told of requests that cannot be served, with a test in place of the host.

use super::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocol::{Network, Stdio, TerminalSize};

use crate::pid1::control::Control;

/// PID 1, connected, and the host's end of the control stream.
fn agent() -> (Agent, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let mut agent = Agent::new(Booted {
        started: 0,
        control: Control::new(guest.into()),
        signals: SignalFd::with_flags(&SigSet::empty(), flags).unwrap(),
    })
    .unwrap();
    agent.turn().unwrap();
    let hello: Option<Message> = protocol::read(&mut &host).unwrap();
    assert!(matches!(hello, Some(Message::Hello { .. })));
    (agent, host)
}

/// The failure that a request is answered with.
fn failure(agent: &mut Agent, mut host: &UnixStream, request: &Request) -> Failure {
    host.write_all(&request.encode().unwrap()).unwrap();
    agent.turn().unwrap();
    match protocol::read(&mut host).unwrap() {
        Some(Message::Response {
            id,
            result: Err(failure),
        }) if id == request.id => failure,
        other => panic!("{request:?} is answered by {other:?}"),
    }
}

#[test]
fn a_container_that_is_not_there_does_not_run() {
    let (mut agent, host) = agent();
    let exec = Exec {
        process: 1,
        config: b"{}".to_vec(),
        policy: Vec::new(),
        terminal: false,
        plain_newlines: false,
        cgroup: String::new(),
        stdio: Stdio::default(),
        extra: Vec::new(),
    };
    let kill = RequestBody::Kill {
        process: INIT,
        signal: 9,
        all: true,
    };
    let resize = RequestBody::Resize {
        process: INIT,
        size: TerminalSize::default(),
    };
    let bodies = [
        RequestBody::Start(Network::default()),
        RequestBody::Exec(exec),
        kill,
        resize,
        RequestBody::Pause,
        RequestBody::Resume,
        RequestBody::Update {
            resources: b"{}".to_vec(),
        },
        RequestBody::Statistics,
        RequestBody::Processes,
    ];
    for (id, body) in (1..).zip(bodies) {
        let container = 5;
        let request = Request {
            id,
            container,
            body,
        };
        let failure = failure(&mut agent, &host, &request);
        assert_eq!(failure.kind, FailureKind::NotRunning, "{request:?}");
        assert_eq!(failure.to_string(), "container not running");
    }
}

#[test]
fn a_container_without_a_cgroup_of_its_own_is_refused() {
    let (mut agent, host) = agent();
    for (id, cgroup) in (1..).zip(["", "/", "a/../../b"]) {
        let create = Create {
            cgroup: cgroup.to_owned(),
            own_pids: true,
            joins: Vec::new(),
            terminal: false,
            plain_newlines: false,
            notify: false,
            stdio: Stdio::default(),
            extra: Vec::new(),
            setup: Vec::new(),
            policy: Vec::new(),
        };
        let request = Request {
            id,
            container: FIRST,
            body: RequestBody::Create(create),
        };
        let failure = failure(&mut agent, &host, &request);
        assert_eq!(failure.kind, FailureKind::Config, "{cgroup:?}");
    }
}
