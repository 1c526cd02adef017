//! `exec` against a machine process that this test plays: what a caller sees of the stub and of terminals.
//!
//! Needs root, as the runtime does.

// All of this is a test.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getsid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcgetwinsize, tcsetwinsize};
use serde_json::{Value, json};
use tempfile::TempDir;

mod words;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container named `c` that runs, as far as the verbs can see.
struct Machine {
    dir: TempDir,
    listener: UnixListener,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("c");
        fs::create_dir(&state).unwrap();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let start = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let record = json!({
            "version": 1, "id": "c", "ociVersion": "1.0.2", "bundle": "/b", "rootfs": "/b/rootfs",
            "created": "2026-01-01T00:00:00.000000000Z", "owner": 0, "cgroup": null,
            "machine": {"pid": std::process::id(), "startTime": start.unwrap().parse::<u64>().unwrap(),
                "boot": boot.trim()},
        });
        let config = json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
        });
        fs::write(state.join("state.json"), record.to_string()).unwrap();
        fs::write(state.join("config.json"), config.to_string()).unwrap();
        fs::write(state.join("journal"), "\"started\"\n").unwrap();
        let listener = UnixListener::bind(state.join("control.sock")).unwrap();
        Machine { dir, listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.arg("--root").arg(self.dir.path()).arg("exec");
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn exec(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// The next exec's request and what came along with it.
    fn asked(&self) -> (Client, Value, Vec<OwnedFd>) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut length = [0; 4];
        let mut bytes = [IoSliceMut::new(&mut length)];
        recvmsg(&stream, &mut bytes, &mut ancillary, RecvFlags::WAITALL).unwrap();
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        (&stream).read_exact(&mut body).unwrap();
        let request: Value = serde_json::from_slice(&body).unwrap();
        (
            Client(stream),
            request["control"]["Exec"].clone(),
            descriptors,
        )
    }

    /// Executes `args` as asked and returns when the program "runs".
    fn runs(&self) -> (Client, Vec<OwnedFd>) {
        let (client, _, descriptors) = self.asked();
        client.say(&json!("Executed"));
        (client, descriptors)
    }
}

/// The machine process's end of an exec's connection.
struct Client(UnixStream);

impl Client {
    fn say(&self, reply: &Value) {
        protocol::write(&mut &self.0, reply).unwrap();
    }

    /// What is asked for next; `None` at the end of the connection.
    fn hears(&self) -> Option<Value> {
        protocol::read(&mut &self.0).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn failed(output: &Output, words: &str) {
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    let stderr = words::plain(&text(&output.stderr));
    assert_eq!(stderr.trim(), format!("exec failed: {words}"));
}

/// The stub of a detached exec: a child of this process once the verb has ended.
fn stub(mut verb: Child, pid_file: &Path) -> Pid {
    assert!(verb.wait().unwrap().success());
    Pid::from_raw(fs::read_to_string(pid_file).unwrap().parse().unwrap())
}

fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
}

#[test]
fn a_foreground_exec_ends_as_its_process() {
    let machine = Machine::new();
    for (exit, code) in [
        (json!({"Code": 0}), 0),
        (json!({"Code": 7}), 7),
        (json!({"Signal": 15}), 143),
    ] {
        let verb = machine.exec(&["--pid-file", "pid", "c", "id", "-u"]);
        let (client, request, descriptors) = machine.asked();
        let process: Value = serde_json::from_str(request["process"].as_str().unwrap()).unwrap();
        assert_eq!(process["args"], json!(["id", "-u"]));
        assert_eq!(descriptors.len(), 3);
        drop(descriptors);
        client.say(&json!("Executed"));
        client.say(&json!({ "Exited": exit }));
        let pid = verb.id();
        let output = verb.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let pid_file = fs::read_to_string(machine.path("pid")).unwrap();
        assert_eq!(pid_file, pid.to_string());
    }
}

#[test]
fn what_cannot_be_executed_is_255_and_leaves_no_pid_file() {
    let machine = Machine::new();
    for detach in [&[][..], &["-d"]] {
        let flags = [detach, &["--pid-file", "pid", "c", "x"]].concat();
        let verb = machine.exec(&flags);
        let (client, ..) = machine.asked();
        let words = "unable to start container process: exec: \"x\": not found";
        client.say(&json!({ "Failed": words }));
        failed(&verb.wait_with_output().unwrap(), words);
        let verb = machine.exec(&flags);
        drop(machine.asked());
        failed(&verb.wait_with_output().unwrap(), "container not running");
        assert!(!machine.path("pid").exists());
    }
    let verb = machine.exec(&["--pid-file", "none/pid", "c", "x"]);
    let (client, _) = machine.runs();
    failed(
        &verb.wait_with_output().unwrap(),
        "write none/pid: no such file or directory",
    );
    assert_eq!(client.hears(), None);
}

/// More than 1 MiB of environment travels; what does not fit into a request is an error that says so.
#[test]
fn a_process_may_have_much_to_say_up_to_a_limit_that_is_named() {
    let machine = Machine::new();
    let process = |length: usize| {
        let variables = vec!["V=".to_owned() + &"x".repeat(100 << 10); length];
        let process =
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"], "env": variables});
        let own = machine.path("c/config.json");
        let config = json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process});
        fs::write(own, config.to_string()).unwrap();
    };
    process(15);
    let verb = machine.exec(&["c", "x"]);
    let (client, request, _) = machine.asked();
    assert!(request["process"].as_str().unwrap().len() > 1500 << 10);
    client.say(&json!({"Failed": "enough"}));
    failed(&verb.wait_with_output().unwrap(), "enough");

    // Escaped once more, quotes are more than they were.
    let quotes = "Q=".to_owned() + &"\"".repeat(100 << 10);
    let mut command = machine.command(&[]);
    for _ in 0..12 {
        command.args(["--env", &quotes]);
    }
    let output = command.args(["c", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let said = text(&output.stderr);
    assert!(said.contains("4194304 are allowed"), "{said}");
}

#[test]
fn the_steps_of_exec_are_logged_on_demand() {
    let machine = Machine::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
    command.arg("--root").arg(machine.dir.path());
    command.args(["--debug", "--log"]).arg(machine.path("log"));
    command.args(["exec", "c", "x"]).stdin(Stdio::null());
    let mut verb = command.spawn().unwrap();
    let (client, _) = machine.runs();
    client.say(&json!({"Exited": {"Code": 0}}));
    assert!(verb.wait().unwrap().success());
    let log = fs::read_to_string(machine.path("log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines.iter().all(|line| line.contains("level=debug")),
        "{log}"
    );
}

#[test]
fn signals_to_the_verb_are_the_processes() {
    let machine = Machine::new();
    let verb = machine.exec(&["--pid-file", "pid", "c", "x"]);
    let (client, _) = machine.runs();
    while !machine.path("pid").exists() {
        std::thread::yield_now();
    }
    let pid = Pid::from_raw(verb.id().cast_signed());
    for signal in [Signal::SIGWINCH, Signal::SIGURG, Signal::SIGTERM] {
        kill(pid, signal).unwrap();
    }
    assert_eq!(client.hears(), Some(json!({"Kill": 15})));
    // The container ends.
    drop(client);
    let output = verb.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137));
}

#[test]
fn a_verb_that_dies_early_takes_the_process_along() {
    let machine = Machine::new();
    for detach in [&["c", "x"][..], &["-d", "c", "x"]] {
        let mut verb = machine.exec(detach);
        let (client, ..) = machine.asked();
        verb.kill().unwrap();
        assert_eq!(client.hears(), None);
        verb.wait().unwrap();
    }
}

#[test]
fn a_stub_has_nothing_of_its_caller() {
    adopt_orphans();
    let machine = Machine::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = machine.command(&["-d", "--pid-file", "pid", "c", "x"]);
    command
        .stdout(writer.try_clone().unwrap())
        .stderr(writer.try_clone().unwrap());
    drop(writer);
    let verb = command.spawn().unwrap();
    drop(command);
    let (client, descriptors) = machine.runs();
    let pid = stub(verb, &machine.path("pid"));
    // The machine process holds the only copies of the caller's pipe.
    drop(descriptors);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(getsid(Some(pid)).unwrap(), pid);
    let proc = PathBuf::from(format!("/proc/{pid}"));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{status}");
    }
    let open = |n: u32| fs::read_link(proc.join("fd").join(n.to_string()));
    for n in 0..3 {
        assert_eq!(open(n).unwrap(), Path::new("/dev/null"));
    }

    for signal in [Signal::SIGUSR1, Signal::SIGHUP, Signal::SIGWINCH] {
        kill(pid, signal).unwrap();
        let number = signal as i32;
        assert_eq!(client.hears(), Some(json!({ "Kill": number })));
    }
    // It attends. Beside those above: the connection and the signals.
    assert_eq!(fs::read_dir(proc.join("fd")).unwrap().count(), 5);
    client.say(&json!({"Exited": {"Signal": 10}}));
    let end = waitpid(pid, None).unwrap();
    assert_eq!(end, WaitStatus::Signaled(pid, Signal::SIGUSR1, false));
}

#[test]
fn a_stub_and_its_process_live_and_die_together() {
    adopt_orphans();
    let machine = Machine::new();
    let verb = machine.exec(&["-d", "--pid-file", "pid", "c", "x"]);
    let (client, _) = machine.runs();
    let pid = stub(verb, &machine.path("pid"));
    client.say(&json!({"Exited": {"Code": 3}}));
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 3));

    let verb = machine.exec(&["-d", "--pid-file", "pid", "c", "x"]);
    let (client, _) = machine.runs();
    let pid = stub(verb, &machine.path("pid"));
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(client.hears(), None);
    waitpid(pid, None).unwrap();

    // One whose container ends.
    let verb = machine.exec(&["-d", "--pid-file", "pid", "c", "x"]);
    let (client, _) = machine.runs();
    let pid = stub(verb, &machine.path("pid"));
    drop(client);
    let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
    assert_eq!(waitpid(pid, None).unwrap(), killed);
}

#[test]
fn streams_are_passed_as_what_they_are() {
    let machine = Machine::new();
    let mut command = machine.command(&["c", "x"]);
    let file = File::create(machine.path("out")).unwrap();
    let read_only = File::open(machine.path("out")).unwrap();
    command.stdin(Stdio::piped()).stdout(file).stderr(read_only);
    let mut verb = command.spawn().unwrap();
    let (client, request, descriptors) = machine.asked();
    let streams = json!([{"Passed": {"own": true}}, {"Passed": {"own": false}}, "None"]);
    assert_eq!(request["passed"]["streams"], streams);
    verb.stdin.take().unwrap().write_all(b"in").unwrap();
    let mut input = File::from(descriptors.into_iter().next().unwrap());
    assert_eq!(taken(&mut input, 2), b"in");
    drop(client);
    assert_eq!(verb.wait().unwrap().code(), Some(255));
}

/// A terminal of a caller.
struct Callers {
    master: File,
    slave: File,
}

impl Callers {
    fn new(rows: u16, columns: u16) -> Callers {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let terminal = Callers {
            master: master.into(),
            slave: slave.into(),
        };
        resize(&terminal.master, rows, columns);
        terminal
    }

    fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// It makes CR LF of the container's LF: there is nobody else to do it.
    fn is_raw(&self) -> bool {
        let output = tcgetattr(&self.slave).unwrap().output_modes;
        assert!(output.contains(OutputModes::OPOST | OutputModes::ONLCR));
        has_raw_input(&self.slave)
    }

    /// Reads until `end` has come.
    fn shows(&mut self, end: &str) -> String {
        let mut shown = Vec::new();
        while !text(&shown).ends_with(end) {
            let mut byte = [0];
            self.master.read_exact(&mut byte).unwrap();
            shown.extend(byte);
        }
        text(&shown)
    }
}

fn resize(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

fn has_raw_input(terminal: impl AsFd) -> bool {
    let line = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    !tcgetattr(terminal).unwrap().local_modes.intersects(line)
}

/// A pseudo-terminal that carries bytes, and tells the machine that LF is to be left alone.
fn is_raw(terminal: impl AsFd) -> bool {
    let output = tcgetattr(&terminal).unwrap().output_modes;
    has_raw_input(terminal) && !output.intersects(OutputModes::OPOST | OutputModes::ONLCR)
}

/// The next bytes of what does not block.
fn taken(file: &mut File, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let mut byte = [0];
        match file.read(&mut byte) {
            Ok(count) => bytes.extend(&byte[..count]),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    bytes
}

fn size(rows: u16, columns: u16) -> Option<Value> {
    Some(json!({"Resize": {"rows": rows, "columns": columns}}))
}

#[test]
fn a_terminal_is_lent_and_given_back() {
    let machine = Machine::new();
    let mut callers = Callers::new(30, 90);
    let mut command = machine.command(&["-t", "c", "x"]);
    command
        .stdin(callers.stdio())
        .stdout(callers.stdio())
        .stderr(callers.stdio());
    let mut verb = command.spawn().unwrap();
    let (client, request, mut descriptors) = machine.asked();
    assert_eq!(
        request["passed"]["streams"],
        json!([{"Passed": {"own": true}}, "None", "None"])
    );
    assert!(!callers.is_raw());
    let mut slave = File::from(descriptors.pop().unwrap());
    assert!(descriptors.is_empty() && is_raw(&slave));
    client.say(&json!("Executed"));
    assert_eq!(client.hears(), size(30, 90));
    assert!(callers.is_raw());
    assert_eq!(tcgetwinsize(&slave).unwrap().ws_col, 90);

    resize(&callers.master, 40, 100);
    kill(Pid::from_raw(verb.id().cast_signed()), Signal::SIGWINCH).unwrap();
    assert_eq!(client.hears(), size(40, 100));
    // Nothing is done about control characters on this side.
    callers.master.write_all(b"\x03\x04\r\n").unwrap();
    assert_eq!(taken(&mut slave, 4), b"\x03\x04\r\n");

    slave.write_all(b"the last words\n").unwrap();
    client.say(&json!({"Exited": {"Code": 5}}));
    drop(slave);
    assert_eq!(callers.shows("words\r\n"), "the last words\r\n");
    assert_eq!(verb.wait().unwrap().code(), Some(5));
    assert!(!callers.is_raw());
}

#[test]
fn a_terminal_is_given_back_when_the_machine_dies_and_never_taken_from_what_fails() {
    let machine = Machine::new();
    let mut callers = Callers::new(30, 90);
    for dies in [true, false] {
        let mut command = machine.command(&["-t", "c", "x"]);
        command
            .stdin(callers.stdio())
            .stdout(callers.stdio())
            .stderr(callers.stdio());
        let mut verb = command.spawn().unwrap();
        let (client, ..) = machine.asked();
        if dies {
            client.say(&json!("Executed"));
            assert_eq!(client.hears(), size(30, 90));
            drop(client);
            assert_eq!(verb.wait().unwrap().code(), Some(137));
        } else {
            client.say(&json!({"Failed": "no"}));
            assert_eq!(verb.wait().unwrap().code(), Some(255));
            assert_eq!(callers.shows("\r\n"), "exec failed: no\r\n");
        }
        assert!(!callers.is_raw());
    }
}

#[test]
fn a_terminal_needs_no_caller_with_a_terminal() {
    let machine = Machine::new();
    let mut verb = {
        let mut command = machine.command(&["-t", "c", "x"]);
        command.stdin(Stdio::piped()).spawn().unwrap()
    };
    let (client, mut descriptors) = machine.runs();
    let mut slave = File::from(descriptors.pop().unwrap());
    verb.stdin.take().unwrap().write_all(b"hello").unwrap();
    assert_eq!(taken(&mut slave, 5), b"hello");
    slave.write_all(b"bye").unwrap();
    drop(slave);
    client.say(&json!({"Exited": {"Code": 0}}));
    let output = verb.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "bye");
}

#[test]
fn a_detached_terminal_is_given_away_and_hangs_up() {
    adopt_orphans();
    let machine = Machine::new();
    let (console, pidfds) = (machine.path("console"), machine.path("pidfd"));
    let (console, pidfds) = (
        UnixListener::bind(console).unwrap(),
        UnixListener::bind(pidfds).unwrap(),
    );
    let sockets = ["--console-socket", "console", "--pidfd-socket", "pidfd"];
    let flags = [
        &["-d", "-t", "--pid-file", "pid"],
        &sockets[..],
        &["c", "x"],
    ]
    .concat();
    let verb = machine.exec(&flags);
    let (client, descriptors) = machine.runs();
    let (name, master) = received(&console);
    assert!(name.starts_with("/dev/pts/"), "{name}");
    let pid = stub(verb, &machine.path("pid"));
    let (name, pidfd) = received(&pidfds);
    assert_eq!(name, "setns");
    let info = format!(
        "/proc/self/fdinfo/{}",
        std::os::fd::AsRawFd::as_raw_fd(&pidfd)
    );
    assert!(
        fs::read_to_string(info)
            .unwrap()
            .contains(&format!("Pid:\t{pid}\n"))
    );
    resize(&master, 11, 22);
    assert_eq!(client.hears(), size(11, 22));
    drop(master);
    let mut heard = client.hears();
    // The stub tells the size as it begins, too.
    while heard == size(11, 22) {
        heard = client.hears();
    }
    assert_eq!(heard, Some(json!({"Kill": Signal::SIGHUP as i32})));
    drop(descriptors);
    client.say(&json!({"Exited": {"Signal": 1}}));
    let end = waitpid(pid, None).unwrap();
    assert_eq!(end, WaitStatus::Signaled(pid, Signal::SIGHUP, false));
}

/// What comes to a socket that a caller listens on.
fn received(listener: &UnixListener) -> (String, OwnedFd) {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut bytes = [IoSliceMut::new(&mut name)];
    let message = recvmsg(&stream, &mut bytes, &mut ancillary, RecvFlags::empty()).unwrap();
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (text(&name[..message.bytes]), fd.unwrap())
}
