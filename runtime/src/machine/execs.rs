//! The processes that are executed in a container in addition to its init.
//!
//! ```text
//!  begin ──> Asked ──executed──> Runs ──exited──> Ended ──the last output stream closes──> told and forgotten
//!              └──failed──> forgotten
//! ```
//! Invariants: a process that the host has not asked for does not exist, whatever the guest says; each is executed and
//! exits once; numbers are never used twice; there are at most [`EXECS_MAX`].

use std::collections::HashMap;

use protocol::{ContainerId, Exit, INIT, ProcessId};
use vmm::vsock::Port;

use crate::control::Direction;

/// Maximum number of processes of a container at once, init not counted.
pub(super) const EXECS_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Runs,
    Ended(Exit),
}

#[derive(Debug)]
struct Exec {
    /// Who is told of it; nobody when the client has gone.
    client: Option<u64>,
    /// The output streams that are not delivered to their end.
    output: Vec<Port>,
    /// All streams that end with the process.
    ports: Vec<Port>,
    /// Those that others may go on with when the process has ended.
    sockets: Vec<Port>,
    state: State,
}

/// A process of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) container: ContainerId,
    pub(super) process: ProcessId,
}

/// A process that has left the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finished {
    /// Who is to be told; nobody when the client has gone.
    pub(super) client: Option<u64>,
    /// How it ended, if it ran.
    pub(super) exit: Option<Exit>,
    /// Its streams, for the guest may have left some open.
    pub(super) ports: Vec<Port>,
}

/// The table of processes.
#[derive(Debug)]
pub(super) struct Execs {
    table: HashMap<ProcessId, Exec>,
    last: ProcessId,
}

/// What follows from the guest's answer that a process runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Executed {
    /// The client is to be told.
    Tell(u64),
    /// The client has gone: the process must go, too.
    Kill,
}

impl Execs {
    /// No processes.
    pub(super) fn new() -> Execs {
        Execs {
            table: HashMap::new(),
            last: INIT,
        }
    }

    /// A number for a process without streams; `None` when there are too many.
    pub(super) fn begin(&mut self, client: u64) -> Option<ProcessId> {
        if self.table.len() >= EXECS_MAX {
            return None;
        }
        let exec = Exec {
            client: Some(client),
            output: Vec::new(),
            ports: Vec::new(),
            sockets: Vec::new(),
            state: State::Asked,
        };
        self.last += 1;
        self.table.insert(self.last, exec);
        Some(self.last)
    }

    /// A stream has been offered to the guest for the process.
    pub(super) fn offered(&mut self, process: ProcessId, direction: Direction, port: Port) {
        let Some(exec) = self.table.get_mut(&process) else {
            return;
        };
        match direction {
            Direction::In => exec.ports.push(port),
            Direction::Out => {
                exec.ports.push(port);
                exec.output.push(port);
            }
            Direction::Both => exec.sockets.push(port),
        }
    }

    /// The guest could not execute it, or was never asked to.
    pub(super) fn failed(&mut self, process: ProcessId) -> Option<Finished> {
        self.take(process, None)
    }

    fn take(&mut self, process: ProcessId, exit: Option<Exit>) -> Option<Finished> {
        let mut exec = self.table.remove(&process)?;
        if exit.is_none() {
            exec.ports.append(&mut exec.sockets);
        }
        Some(Finished {
            client: exec.client,
            exit,
            ports: exec.ports,
        })
    }

    /// The guest has executed it.
    pub(super) fn executed(&mut self, process: ProcessId) -> Option<Executed> {
        let exec = self.table.get_mut(&process)?;
        if exec.state != State::Asked {
            return None;
        }
        exec.state = State::Runs;
        Some(exec.client.map_or(Executed::Kill, Executed::Tell))
    }

    /// The guest says that it has ended; what is over by that, if it is.
    pub(super) fn exited(&mut self, process: ProcessId, exit: Exit) -> Option<Finished> {
        let exec = self.table.get_mut(&process)?;
        if exec.state != State::Runs {
            return None;
        }
        exec.state = State::Ended(exit);
        self.settle(process)
    }

    /// A stream has ended; what is over by that, if it is.
    pub(super) fn stream_closed(&mut self, port: Port) -> Option<Finished> {
        let (&process, exec) = self
            .table
            .iter_mut()
            .find(|(_, exec)| exec.output.contains(&port))?;
        exec.output.retain(|open| *open != port);
        self.settle(process)
    }

    /// The client has gone; whether the process is to be killed.
    pub(super) fn client_gone(&mut self, process: ProcessId) -> bool {
        let Some(exec) = self.table.get_mut(&process) else {
            return false;
        };
        exec.client = None;
        exec.state == State::Runs
    }

    fn settle(&mut self, process: ProcessId) -> Option<Finished> {
        let exec = self.table.get(&process)?;
        match exec.state {
            State::Ended(exit) if exec.output.is_empty() => self.take(process, Some(exit)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard streams.
    const ALL: [Direction; 3] = [Direction::In, Direction::Out, Direction::Out];
    const OK: Exit = Exit::Code(0);

    fn over(client: Option<u64>, ports: &[Port]) -> Option<Finished> {
        Some(Finished {
            client,
            exit: Some(OK),
            ports: ports.to_vec(),
        })
    }

    /// A process with streams on these ports.
    fn begin(execs: &mut Execs, client: u64, streams: &[Direction], first: Port) -> ProcessId {
        let process = execs.begin(client).unwrap();
        for (direction, port) in streams.iter().zip(first..) {
            execs.offered(process, *direction, port);
        }
        process
    }

    #[test]
    fn an_exec_is_over_when_it_has_exited_and_its_output_is_delivered() {
        let mut execs = Execs::new();
        let process = begin(&mut execs, 7, &ALL, 1044);
        assert_eq!(process, 1);
        assert_eq!(execs.executed(process), Some(Executed::Tell(7)));
        assert_eq!(execs.stream_closed(1045), None);
        assert_eq!(execs.exited(process, OK), None);
        assert_eq!(execs.stream_closed(1044), None);
        assert_eq!(
            execs.stream_closed(1046),
            over(Some(7), &[1044, 1045, 1046])
        );
        assert_eq!(execs.begin(8), Some(2));
    }

    #[test]
    fn pipes_end_with_the_process_and_sockets_when_they_want() {
        let mut execs = Execs::new();
        let beside = [Direction::In, Direction::Both, Direction::Out];
        let process = begin(&mut execs, 7, &beside, 1047);
        execs.executed(process);
        assert_eq!(execs.exited(process, OK), None);
        assert_eq!(execs.stream_closed(1049), over(Some(7), &[1047, 1049]));
        // One that does not run has no use for any of them.
        let process = begin(&mut execs, 8, &beside, 1053);
        assert_eq!(execs.failed(process).unwrap().ports, [1053, 1055, 1054]);
    }

    #[test]
    fn what_the_guest_invents_changes_nothing() {
        let mut execs = Execs::new();
        for process in [INIT, 1, u64::MAX] {
            assert_eq!(execs.exited(process, OK), None);
            assert_eq!(execs.executed(process), None);
        }
        let process = execs.begin(7).unwrap();
        assert_eq!(execs.exited(process, OK), None, "before it was executed");
        assert_eq!(execs.executed(process), Some(Executed::Tell(7)));
        assert_eq!(execs.executed(process), None, "twice");
        assert_eq!(execs.exited(process, OK), over(Some(7), &[]));
        assert_eq!(execs.exited(process, OK), None, "twice");
        assert!(execs.table.is_empty());
    }

    #[test]
    fn a_process_whose_client_has_gone_is_killed_and_forgotten() {
        let mut execs = Execs::new();
        let early = begin(&mut execs, 1, &ALL, 1044);
        assert!(!execs.client_gone(early));
        assert_eq!(execs.executed(early), Some(Executed::Kill));
        assert_eq!(execs.exited(early, OK), None, "its output is not delivered");
        execs.stream_closed(1045);
        assert_eq!(execs.stream_closed(1046), over(None, &[1044, 1045, 1046]));
        let late = execs.begin(2).unwrap();
        execs.executed(late);
        assert!(execs.client_gone(late));
        assert_eq!(execs.exited(late, OK), over(None, &[]));
        assert!(!execs.client_gone(late));
        assert!(execs.table.is_empty());
    }

    #[test]
    fn a_guest_that_never_answers_fills_a_table_of_fixed_size() {
        let mut execs = Execs::new();
        for client in 0..256 {
            begin(&mut execs, client, &ALL, 3 * u32::try_from(client).unwrap());
        }
        assert_eq!(execs.begin(256), None);
        assert_eq!(execs.failed(17).unwrap().client, Some(16));
        assert_eq!(execs.begin(256), Some(257));
    }
}
