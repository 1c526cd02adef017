//! Several containers at a time, with tests in place of their stages and of the kernel's cgroups.

use super::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use protocol::{Exit, FailureKind, INIT, Network, ProcessId, Reply};

use crate::pid1::place::Place;
use crate::pid1::process::Process;
use crate::pid1::spawn::SetupFile;
use crate::task::Report;

/// The machine: its containers and their directories.
struct Machine {
    containers: Containers,
    files: tempfile::TempDir,
}

/// The stage's end of a wire, and the process that it makes.
struct Stage {
    wire: UnixStream,
    container: ContainerId,
    name: ProcessId,
    pid: i32,
}

impl Machine {
    fn new() -> Machine {
        Machine {
            containers: Containers::default(),
            files: tempfile::tempdir().unwrap(),
        }
    }

    /// A container's cgroup.
    fn cgroup(&self, container: ContainerId) -> PathBuf {
        self.files.path().join(format!("cgroup{container}"))
    }

    fn write(&self, container: ContainerId, file: &str, text: &str) {
        fs::write(self.cgroup(container).join(file), text).unwrap();
    }

    fn read(&self, container: ContainerId, file: &str) -> String {
        fs::read_to_string(self.cgroup(container).join(file)).unwrap()
    }

    /// A container that is being set up, for request 1. Its init has a pid of its own.
    fn begin(&mut self, number: ContainerId) -> Stage {
        let cgroup = self.cgroup(number);
        self.containers.admit(number, &cgroup).unwrap();
        fs::create_dir(&cgroup).unwrap();
        for (file, text) in [
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("memory.events", "oom 0\noom_kill 0\n"),
            ("cgroup.procs", ""),
            ("cgroup.kill", ""),
            ("cgroup.freeze", "0"),
        ] {
            self.write(number, file, text);
        }
        let place = Place::create(self.files.path().join(number.to_string())).unwrap();
        let setup = SetupFile::new(b"").unwrap();
        let (process, wire) = process();
        let container = Container::new(1, setup, place, cgroup, process);
        self.containers.table.insert(number, container);
        self.stage(wire, number, INIT)
    }

    /// A process that is being set up in a container, for request 3.
    fn exec(&mut self, number: ContainerId, name: ProcessId) -> Stage {
        let container = self.containers.get_mut(number).unwrap();
        container.admit(name).unwrap();
        let (process, wire) = process();
        container.add(name, process, 3);
        self.stage(wire, number, name)
    }

    fn stage(&self, wire: UnixStream, container: ContainerId, name: ProcessId) -> Stage {
        // Beyond the greatest pid of the kernel (PID_MAX_LIMIT of linux/threads.h), for it may be killed.
        let pid = i32::try_from((5_000_000 + 1000 * container) + name).unwrap();
        Stage {
            wire,
            container,
            name,
            pid,
        }
    }

    fn hear(&mut self, stage: &Stage) {
        let container = self.containers.get_mut(stage.container).unwrap();
        container.process_mut(stage.name).unwrap().hear().unwrap();
    }

    /// What the host is told in one turn.
    fn told(&mut self) -> Vec<(ContainerId, Event)> {
        self.containers.turn().0
    }

    /// Has a process wait for its release.
    fn prepare(&mut self, stage: &mut Stage) {
        for report in [Report::Child(stage.pid), Report::Prepared] {
            let frame = protocol::encode(&report).unwrap();
            stage.wire.write_all(&frame).unwrap();
        }
        self.hear(stage);
    }

    /// Has a process that has been released execute its program.
    fn execute(&mut self, stage: &mut Stage) {
        stage.wire.read_exact(&mut [0]).unwrap();
        stage.wire.shutdown(std::net::Shutdown::Both).unwrap();
        self.hear(stage);
    }

    /// A container that runs.
    fn run(&mut self, number: ContainerId) -> Stage {
        let mut init = self.begin(number);
        self.prepare(&mut init);
        let created = self.told();
        assert!(
            matches!(created[..], [(of, Event::Answer(1, Ok(Reply::Created { pid, .. })))]
                if of == number && pid == init.pid),
            "{created:?}"
        );
        let container = self.containers.get_mut(number).unwrap();
        container.start(2, &Network::default()).unwrap();
        self.execute(&mut init);
        let started = self.told();
        assert!(
            matches!(started[..], [(of, Event::Answer(2, Ok(Reply::Started { .. })))] if of == number),
            "{started:?}"
        );
        init
    }

    fn exit(&mut self, stage: &Stage, code: u8) {
        self.containers.reaped(&Reaped::exited(stage.pid, code));
    }

    /// What is told and cleared up when nobody is left in a container's cgroup.
    fn empty(&mut self, number: ContainerId) -> Vec<(ContainerId, Event)> {
        self.write(number, "cgroup.events", "populated 0\nfrozen 0\n");
        self.containers.sweep()
    }
}

/// A process without streams, and the stage's end of its wire.
fn process() -> (Process, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Process::new(ours.into(), Vec::new()), theirs)
}

#[test]
fn processes_of_two_containers_are_told_apart() {
    let mut machine = Machine::new();
    let (first, second) = (machine.run(0), machine.run(1));
    // The same name in both.
    let mut execs = [machine.exec(0, 1), machine.exec(1, 1)];
    for exec in &mut execs {
        machine.prepare(exec);
        assert_eq!(machine.told(), [], "it is released");
        machine.execute(exec);
        let pid = exec.pid;
        let executed = Event::Answer(3, Ok(Reply::Executed { pid }));
        assert_eq!(machine.told(), [(exec.container, executed)]);
    }
    machine.exit(&execs[1], 7);
    assert_eq!(machine.told(), [(1, Event::Exited(1, Exit::Code(7)))]);
    machine.exit(&first, 3);
    // Its own process is waited for, the other container's is not.
    assert_eq!(machine.told(), []);
    machine.exit(&execs[0], 4);
    let exits = [(1, Exit::Code(4)), (INIT, Exit::Code(3))];
    let exits = exits.map(|(name, exit)| (0, Event::Exited(name, exit)));
    assert_eq!(machine.told(), exits);
    machine.exit(&second, 5);
    assert_eq!(machine.told(), [(1, Event::Exited(INIT, Exit::Code(5)))]);
    // A child of nobody, such as a stage.
    machine.exit(&second, 6);
    assert_eq!(machine.told(), []);
}

#[test]
fn memory_runs_out_in_one_container() {
    let mut machine = Machine::new();
    let (_first, second) = (machine.run(0), machine.run(1));
    machine.write(1, "memory.events", "oom 1\noom_kill 1\n");
    for (_, container) in machine.containers.iter_mut() {
        container.look_at_memory();
    }
    assert_eq!(machine.containers.take_out_of_memory(), Some(1));
    assert_eq!(machine.containers.take_out_of_memory(), None);
    // What the host has not been told before the end is told with it.
    machine.write(1, "memory.events", "oom 2\noom_kill 2\n");
    machine.containers.get_mut(1).unwrap().look_at_memory();
    machine.exit(&second, 137);
    let end = Event::Exited(INIT, Exit::Code(137));
    assert_eq!(machine.told(), [(1, Event::OutOfMemory), (1, end)]);
    assert_eq!(machine.containers.take_out_of_memory(), None);
}

#[test]
fn a_number_names_one_container_for_ever() {
    let mut machine = Machine::new();
    let refused = |machine: &mut Machine, number, cgroup: &str| {
        let admitted = machine.containers.admit(number, Path::new(cgroup));
        admitted.unwrap_err().to_string()
    };
    let init = machine.run(1);
    machine.begin(4);
    // Who was given a number first need not be the first to use it.
    machine.begin(3);
    for number in [1, 3, 4, CONTAINERS_MAX, u64::MAX] {
        assert!(refused(&mut machine, number, "/x").contains("number"));
    }
    machine.exit(&init, 0);
    machine.told();
    machine.empty(1);
    assert!(machine.containers.get(1).is_none());
    assert!(refused(&mut machine, 1, "/x").contains("number"));
}

#[test]
fn containers_have_no_cgroup_in_common_and_are_bounded() {
    let mut machine = Machine::new();
    machine.begin(0);
    let own = machine.cgroup(0);
    for (number, cgroup) in [
        (1, own.clone()),
        (2, own.join("below")),
        (3, machine.files.path().into()),
    ] {
        let error = machine.containers.admit(number, &cgroup).unwrap_err();
        assert!(error.to_string().contains("cgroupsPath"), "{error}");
    }
    for number in 4..67 {
        machine.begin(number);
    }
    let cgroup = machine.cgroup(67);
    let error = machine.containers.admit(67, &cgroup).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    machine.containers.forget(66);
    machine.begin(68);
}

#[test]
fn what_is_done_to_all_of_a_container_does_not_reach_another() {
    let mut machine = Machine::new();
    let _inits = [machine.run(0), machine.run(1)];
    let first = machine.containers.get_mut(0).unwrap();
    first.kill(INIT, libc::SIGKILL, true).unwrap();
    first.freeze(9, true).unwrap();
    assert_eq!(machine.read(0, "cgroup.kill"), "1");
    assert_eq!(machine.read(1, "cgroup.kill"), "");
    assert_eq!(machine.read(1, "cgroup.freeze"), "0");
    assert_eq!(machine.told(), []);
    machine.write(0, "cgroup.events", "populated 1\nfrozen 1\n");
    for (_, container) in machine.containers.iter_mut() {
        container.settle();
    }
    assert_eq!(machine.told(), [(0, Event::Answer(9, Ok(Reply::Done)))]);
}

#[test]
fn one_that_has_ended_leaves_nothing_when_all_has_been_told() {
    let mut machine = Machine::new();
    let (first, init) = (machine.run(0), machine.run(1));
    let second = machine.containers.get_mut(1).unwrap();
    second.freeze(9, true).unwrap();
    assert_eq!(machine.containers.sweep(), [], "it lives");
    machine.exit(&init, 0);
    assert_eq!(machine.containers.sweep(), [], "its end has not been told");
    assert_eq!(machine.told().len(), 1);
    assert_eq!(machine.containers.sweep(), [], "somebody is in its cgroup");
    let place = machine.files.path().join("1");
    assert!(place.join("root").is_dir());
    let left = machine.empty(1);
    assert!(matches!(&left[..], [(1, Event::Answer(9, Err(failure)))]
        if failure.kind == FailureKind::NotRunning));
    assert!(!place.exists());
    assert!(machine.containers.get(1).is_none() && machine.containers.get(0).is_some());
    machine.exit(&first, 0);
    assert_eq!(machine.told().len(), 1);
    assert_eq!(machine.empty(0), [], "the machine ends with it");
    assert!(machine.containers.get(0).is_some());
}

#[test]
fn one_that_cannot_be_created_leaves_nothing() {
    let mut machine = Machine::new();
    let init = machine.begin(1);
    drop(init.wire);
    let container = machine.containers.get_mut(1).unwrap();
    container.process_mut(INIT).unwrap().hear().unwrap();
    assert!(matches!(
        machine.told()[..],
        [(1, Event::Answer(1, Err(_)))]
    ));
    machine.empty(1);
    assert!(machine.containers.table.is_empty());
    // The same when what is made for it cannot be used.
    let mut init = machine.begin(2);
    fs::remove_file(machine.cgroup(2).join("memory.events")).unwrap();
    machine.prepare(&mut init);
    assert!(matches!(
        machine.told()[..],
        [(2, Event::Answer(1, Err(_)))]
    ));
    assert_eq!(init.wire.read(&mut [0]).unwrap(), 0, "it does not go on");
    machine.exit(&init, 0);
    assert_eq!(machine.told(), [], "there has been no container to end");
    machine.empty(2);
    assert!(machine.containers.table.is_empty());
}

#[test]
fn namespaces_are_joined_of_containers_that_are_there() {
    let mut machine = Machine::new();
    let init = machine.run(0);
    machine.begin(1);
    let joined = |containers: &Containers, container, namespaces| {
        let joins = [Joined {
            container,
            namespaces,
        }];
        containers.joined(&joins).map_err(|e| e.to_string())
    };
    let (net, mounts) = (libc::CLONE_NEWNET, libc::CLONE_NEWNS);
    let expected = Ok(vec![(init.pid, net)]);
    assert_eq!(joined(&machine.containers, 0, net), expected);
    for (container, namespaces, text) in [
        (0, mounts, "cannot be joined"),
        (0, net | 1, "cannot be joined"),
        (1, net, "has ended"),
        (7, net, "has ended"),
    ] {
        let error = joined(&machine.containers, container, namespaces).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
    machine.exit(&init, 0);
    machine.told();
    assert!(joined(&machine.containers, 0, net).is_err(), "it has ended");
}

#[test]
fn one_that_is_removed_is_ended_and_reported_when_nothing_is_left() {
    let mut machine = Machine::new();
    let (_first, init) = (machine.run(0), machine.run(1));
    let second = machine.containers.get_mut(1).unwrap();
    second.remove(9).unwrap();
    assert!(second.remove(10).is_err(), "twice");
    assert_eq!(machine.read(1, "cgroup.kill"), "1");
    assert_eq!(machine.containers.take_removed(), []);
    machine.exit(&init, 137);
    assert_eq!(machine.told().len(), 1);
    assert_eq!(
        machine.containers.take_removed(),
        [],
        "somebody is in its cgroup"
    );
    machine.empty(1);
    assert_eq!(machine.containers.take_removed(), [(1, 9)]);
    assert_eq!(machine.containers.take_removed(), []);
}
