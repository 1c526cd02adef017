//! What clients ask of the machine: answered at once, or passed on to the agent.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use protocol::{ContainerId, FIRST, INIT, RequestBody, from_hex};
use vmm::vsock::{self, Port};

use super::clients::ClientEvent;
use super::container::Phase;
use super::execs::{EXECS_MAX, Finished, Target};
use super::life::{Life, Waiting};
use super::streams;
use super::timeline::now;
use crate::control::{Control, ControlReply, ExecControl, ExecRequest, Request};
use crate::state;

impl Life {
    pub(super) fn client_events(&mut self) -> io::Result<()> {
        for event in self.parts.clients.handle_events() {
            match event {
                ClientEvent::Asked(client, request, descriptors) => {
                    self.control(client, request, descriptors)?;
                }
                ClientEvent::Steered(target, control) => self.steer(target, control)?,
                ClientEvent::Left(Target { container, process }) => {
                    let known = self.containers.get_mut(&container);
                    if known.is_some_and(|known| known.client_gone(process)) {
                        self.kill(container, process, libc::SIGKILL)?;
                    }
                }
                ClientEvent::GaveUp(client) => self.take_back(client)?,
            }
        }
        Ok(())
    }

    /// A pause that nobody waits for any more is none. A process that waits for the host, for instance for a file
    /// system that stands still, cannot be frozen: the others go on.
    fn take_back(&mut self, client: u64) -> io::Result<()> {
        let mut waiting = self.waiting.values();
        let its = |waiting: &Waiting| matches!(waiting, Waiting::Pause(its) if *its == client);
        let found = waiting.find(|(_, waiting)| its(waiting));
        let found = found.map(|(container, _)| *container);
        if let Some(container) = found {
            self.request(container, RequestBody::Resume, Waiting::Nobody)?;
        }
        Ok(())
    }

    fn steer(
        &mut self,
        Target { container, process }: Target,
        control: ExecControl,
    ) -> io::Result<()> {
        match control {
            ExecControl::Kill(signal) => self.kill(container, process, signal),
            ExecControl::Resize(size) => {
                let resize = RequestBody::Resize { process, size };
                self.request(container, resize, Waiting::Nobody).map(drop)
            }
        }
    }

    fn control(
        &mut self,
        client: u64,
        Request { container, control }: Request<Control>,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let (body, waiting) = match self.asked(client, container, control, descriptors) {
            Ok(Some(asked)) => asked,
            Ok(None) => return Ok(()),
            Err(reply) => {
                self.parts.clients.reply(client, &reply);
                return Ok(());
            }
        };
        // When the guest takes no more requests the client hears that the connection ended.
        if !self.request(container, body, waiting)? {
            match waiting {
                Waiting::Exec(process) => drop(self.forget(Target { container, process })),
                Waiting::Create => drop(self.discard(container)),
                _ => {}
            }
            self.parts.clients.close(client);
        }
        Ok(())
    }

    /// What the agent is to be asked for a client, if anything; an error is the client's answer.
    fn asked(
        &mut self,
        client: u64,
        id: ContainerId,
        control: Control,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<(RequestBody, Waiting)>, ControlReply> {
        match control {
            Control::Admit => return self.admit(client).map(|()| None),
            Control::Create(create) => {
                return self.create(client, id, *create, descriptors).map(Some);
            }
            Control::Remove => return self.remove(client, id).map(Some),
            _ => {}
        }
        let starting = self.waiting.values();
        let starting = starting
            .filter(|(container, _)| *container == id)
            .any(|(_, waiting)| matches!(waiting, Waiting::Start(_)));
        let Some(container) = self.containers.get(&id) else {
            return Err(ControlReply::NotRunning);
        };
        Ok(Some(match control {
            Control::Start(network) if container.phase == Phase::Created && !starting => {
                if id == FIRST {
                    self.parts.timeline.start = now();
                }
                match self.attach(id, network, descriptors) {
                    Ok(network) => (RequestBody::Start(network), Waiting::Start(client)),
                    Err(reply) => {
                        // A container with half a network is of no use. A guest that cannot be asked is at its end
                        // anyway.
                        let _ = self.kill(id, INIT, libc::SIGKILL);
                        return Err(reply);
                    }
                }
            }
            Control::Start(_) => {
                let started = state::Error::AlreadyRunning;
                return Err(ControlReply::Failed(started.to_string()));
            }
            Control::Admit | Control::Create(_) | Control::Remove => {
                return Err(ControlReply::NotRunning);
            }
            _ if !container.lives() => return Err(ControlReply::NotRunning),
            Control::Kill { signal, all } => {
                let kill = RequestBody::Kill {
                    process: INIT,
                    signal,
                    all,
                };
                (kill, Waiting::Client(client))
            }
            Control::Exec(exec) => self.exec(client, id, exec, descriptors)?,
            Control::Network(change) => {
                let change = self.change_network(id, change, descriptors)?;
                (RequestBody::Network(change), Waiting::Client(client))
            }
            Control::Pause if container.paused => return Err(ControlReply::Paused),
            Control::Pause => (RequestBody::Pause, Waiting::Pause(client)),
            Control::Resume if !container.paused => {
                return Err(ControlReply::Failed("container not paused".into()));
            }
            Control::Resume => (RequestBody::Resume, Waiting::Resume(client)),
            Control::Update(resources) => {
                let resources = resources.into_bytes();
                (RequestBody::Update { resources }, Waiting::Client(client))
            }
            Control::Statistics => (RequestBody::Statistics, Waiting::Client(client)),
            Control::Processes => (RequestBody::Processes, Waiting::Client(client)),
            Control::Events => {
                self.parts.clients.listen(client, id);
                return Ok(None);
            }
            Control::Ready if container.ready => return Err(ControlReply::Done),
            Control::Ready => {
                self.parts.clients.expect(client, id);
                return Ok(None);
            }
        }))
    }

    /// Gets a process its number and its streams.
    fn exec(
        &mut self,
        client: u64,
        id: ContainerId,
        exec: ExecRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(RequestBody, Waiting), ControlReply> {
        let Some(policy) = from_hex(&exec.policy) else {
            return Err(ControlReply::Failed("the policy has no bytes".into()));
        };
        let passed = streams::passed(&exec.passed, descriptors);
        let arrived = passed.map_err(ControlReply::Failed)?;
        let Some(container) = self.containers.get_mut(&id) else {
            return Err(ControlReply::NotRunning);
        };
        let Some(process) = container.execs.begin(client) else {
            let text = format!("{EXECS_MAX} processes are being executed already");
            return Err(ControlReply::Failed(text));
        };
        let offered = streams::offer(arrived.streams, arrived.extra, |direction, stream| {
            let ports = streams::offer_one(self.parts.machine.vsock(), stream)?;
            container.execs.offered(process, direction, ports.host);
            Ok(ports)
        });
        let target = Target {
            container: id,
            process,
        };
        let (stdio, extra) = offered.map_err(|e: vsock::Error| {
            self.forget(target);
            ControlReply::Failed(e.to_string())
        })?;
        self.parts.clients.steer(client, target);
        let body = protocol::Exec {
            process,
            config: exec.process.into_bytes(),
            policy,
            terminal: exec.passed.terminal,
            plain_newlines: arrived.plain_newlines,
            cgroup: exec.cgroup,
            stdio,
            extra,
        };
        Ok((RequestBody::Exec(body), Waiting::Exec(process)))
    }

    pub(super) fn exec_failed(&mut self, target: Target, reply: &ControlReply) {
        if let Some(client) = self.forget(target) {
            self.parts.clients.reply(client, reply);
        }
    }

    /// Forgets a process that does not run; its client.
    fn forget(&mut self, Target { container, process }: Target) -> Option<u64> {
        let container = self.containers.get_mut(&container)?;
        let finished = container.execs.failed(process)?;
        self.abandon(&finished.ports);
        finished.client
    }

    /// Closes streams that are of no use any more, whatever the guest does about them.
    pub(super) fn abandon(&mut self, ports: &[Port]) {
        for port in ports {
            self.parts.machine.vsock().abandon(*port);
        }
    }

    /// Tells the client of a process that has ended, its output delivered.
    pub(super) fn exec_finished(&mut self, finished: Option<Finished>) {
        let Some(finished) = finished else { return };
        self.abandon(&finished.ports);
        if let (Some(client), Some(exit)) = (finished.client, finished.exit) {
            self.parts
                .clients
                .reply(client, &ControlReply::Exited(exit));
        }
    }
}
