//! A process's life, with tests in place of the stage and the host.

use super::*;
use nix::sys::epoll::EpollFlags;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// The stage's end of a wire.
struct Stage(UnixStream);

impl Stage {
    fn say(&mut self, report: &Report) {
        self.0
            .write_all(&protocol::encode(report).unwrap())
            .unwrap();
    }
}

/// A process with one output, the stage's end of its wire, the host's and the process's end of its
/// output.
fn process() -> (Process, Stage, UnixStream, File) {
    let (wire, stage) = UnixStream::pair().unwrap();
    let (host, guest) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let stream = Stream::new(Direction::ToHost, guest.into(), Some(reader));
    let process = Process::new(wire.into(), vec![stream]);
    (process, Stage(stage), host, writer.into())
}

/// The same, executing its program.
fn running() -> (Process, UnixStream, File) {
    let (mut process, mut stage, host, output) = process();
    stage.say(&Report::Child(77));
    stage.say(&Report::Prepared);
    process.socket_ready(0, EpollFlags::EPOLLOUT);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Ready));
    process.release().unwrap();
    assert_eq!(process.turn().0, None, "the program is not executed yet");
    stage.0.read_exact(&mut [0]).unwrap();
    drop(stage);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Executed));
    assert_eq!(process.turn().0, None);
    (process, host, output)
}

#[test]
fn it_is_ready_when_it_is_prepared_and_its_streams_are_connected() {
    let (mut process, mut stage, _host, _output) = process();
    stage.say(&Report::Child(77));
    stage.say(&Report::Prepared);
    process.hear().unwrap();
    assert_eq!(process.pid(), Some(77));
    assert_eq!(process.turn().0, None);
    process.socket_ready(0, EpollFlags::EPOLLOUT);
    assert_eq!(process.turn().0, Some(Step::Ready));
    assert_eq!(process.turn().0, None, "told once");
    assert!(process.is_ready());
}

#[test]
fn a_set_up_that_fails_says_why() {
    let (mut process, mut stage, _host, _output) = process();
    let failure = Failure::message(FailureKind::NotFound, "no");
    stage.say(&Report::Failed(failure.clone()));
    drop(stage);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Failed(failure)));
    assert_eq!(process.turn().0, None);
    assert!(process.is_gone() && !process.lingers());
}

#[test]
fn a_set_up_that_dies_is_a_failure() {
    let (mut process, mut stage, _host, _output) = process();
    stage.say(&Report::Child(77));
    drop(stage);
    process.hear().unwrap();
    process.reaped(Exit::Signal(9));
    let Some(Step::Failed(failure)) = process.turn().0 else {
        panic!("no failure")
    };
    assert!(failure.to_string().ends_with("was killed by signal 9"));
}

#[test]
fn a_set_up_is_ended_by_the_end_of_its_wire() {
    let (mut process, mut stage, _host, _output) = process();
    assert!(process.kill(15).is_none(), "there is nobody to take it");
    process.kill(9).unwrap().unwrap();
    assert_eq!(stage.0.read(&mut [0]).unwrap(), 0);
    assert!(matches!(process.turn().0, Some(Step::Failed(_))));
    let (mut process, mut stage, _host, _output) = self::process();
    process.abandon();
    assert_eq!(stage.0.read(&mut [0]).unwrap(), 0);
    assert_eq!(process.turn().0, Some(Step::Failed(not_running())));
}

#[test]
fn a_program_that_cannot_be_executed_is_a_failure_and_its_end_follows() {
    let (mut process, mut stage, _host, output) = process();
    stage.say(&Report::Child(77));
    stage.say(&Report::Prepared);
    process.socket_ready(0, EpollFlags::EPOLLOUT);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Ready));
    process.release().unwrap();
    stage.0.read_exact(&mut [0]).unwrap();
    let failure = Failure::message(FailureKind::PermissionDenied, "no");
    stage.say(&Report::Failed(failure.clone()));
    drop((stage, output));
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Failed(failure)));
    assert_eq!(process.turn().0, None);
    process.reaped(Exit::Code(1));
    assert_eq!(process.turn().0, Some(Step::Exited(Exit::Code(1))));
}

#[test]
fn who_dies_before_it_reads_its_release_has_not_executed_its_program() {
    let (mut process, mut stage, _host, _output) = process();
    stage.say(&Report::Prepared);
    process.socket_ready(0, EpollFlags::EPOLLOUT);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Ready));
    process.release().unwrap();
    drop(stage);
    process.hear().unwrap();
    assert!(matches!(process.turn().0, Some(Step::Failed(_))));
}

#[test]
fn the_end_is_told_after_what_was_written() {
    let (mut process, mut host, mut output) = running();
    output.write_all(b"last words").unwrap();
    drop(output);
    process.reaped(Exit::Code(3));
    assert!(process.kill(15).is_none(), "its pid may be another's");
    assert_eq!(process.turn().0, Some(Step::Exited(Exit::Code(3))));
    assert!(process.is_gone() && !process.lingers());
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

#[test]
fn others_that_hold_its_output_are_not_waited_for_and_not_stopped() {
    let (mut process, mut host, mut output) = running();
    output.write_all(b"heard").unwrap();
    process.reaped(Exit::Code(0));
    assert_eq!(process.turn().0, Some(Step::Exited(Exit::Code(0))));
    assert!(process.lingers());
    for _ in 0..4 {
        output.write_all(&[b'x'; 60_000]).unwrap();
        process.end_ready(0, EpollFlags::EPOLLIN);
        assert_eq!(process.turn(), (None, false));
    }
    drop(output);
    process.end_ready(0, EpollFlags::EPOLLHUP);
    assert_eq!(process.turn(), (None, false));
    assert!(!process.lingers());
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "heard");
}

#[test]
fn a_terminal_hangs_up_when_its_input_ends_after_what_was_written() {
    let (wire, mut stage) = UnixStream::pair().unwrap();
    let pair = nix::pty::openpty(None, None).unwrap();
    let (input, theirs) = UnixStream::pair().unwrap();
    let (mut output, ours) = UnixStream::pair().unwrap();
    let mut streams = Vec::new();
    for (direction, socket) in [(Direction::ToContainer, theirs), (Direction::ToHost, ours)] {
        socket.set_nonblocking(true).unwrap();
        streams.push(Stream::new(direction, socket.into(), None));
    }
    let mut process = Process::new(wire.into(), streams);
    process.take_terminal(pair.master).unwrap();
    for index in 0..2 {
        process.socket_ready(index, EpollFlags::EPOLLOUT);
    }
    stage
        .write_all(&protocol::encode(&Report::Prepared).unwrap())
        .unwrap();
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Ready));
    process.release().unwrap();
    stage.read_exact(&mut [0]).unwrap();
    drop(stage);
    process.hear().unwrap();
    assert_eq!(process.turn().0, Some(Step::Executed));
    let size = TerminalSize {
        rows: 7,
        columns: 9,
    };
    process.resize(size).unwrap();
    let mut slave = File::from(pair.slave);
    slave.write_all(b"bye").unwrap();
    drop(input);
    assert_eq!(process.turn().0, None);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    let error = slave.write(b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "hung up");
    assert!(process.resize(size).is_err());
}
