//! The loop of PID 1: one thread, one epoll instance, and nothing that blocks.

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use protocol::{
    BALLOON_DEVICE, ContainerId, Create, Exec, FIRST, Failure, FailureKind, INIT, Message,
    ProcessId, Reply, Request, RequestBody,
};

use super::boot::Booted;
use super::container::{Container, Event};
use super::containers::Containers;
use super::device;
use super::errand::Errands;
use super::network;
use super::process::{Process, not_running};
use super::token::{Part, Token};
use super::watcher::Watcher;
use crate::clock::{self, now};
use crate::error::{self, During, Result};
use crate::sys;
use crate::task::Task;

/// How long after the start of the machine's container there is time for what that did not need:
/// shorter containers skip it.
const SETTLING: TimeSpec = TimeSpec::from_duration(Duration::from_secs(1));

/// What a request comes to: the reply, None when that comes later, or why it is refused.
type Outcome = std::result::Result<Option<Reply>, Failure>;

/// PID 1 at work.
pub(crate) struct Agent {
    watcher: Watcher,
    booted: Booted,
    containers: Containers,
    errands: Errands,
    /// Until the machine's container has run for [`SETTLING`].
    settling: Option<TimerFd>,
    /// What is watched of the control stream.
    interest: EpollFlags,
}

impl Agent {
    /// Serves the host until it goes away or something breaks; both are the end of the guest.
    pub(crate) fn run(booted: Booted) -> Result<()> {
        let mut agent = Agent::new(booted)?;
        loop {
            agent.turn()?;
        }
    }

    fn new(booted: Booted) -> Result<Agent> {
        let watcher = Watcher::new()?;
        let interest = booted.control.interest();
        watcher.add(booted.control.fd(), interest, Token::Control)?;
        watcher.add(&booted.signals, EpollFlags::EPOLLIN, Token::Signals)?;
        Ok(Agent {
            watcher,
            booted,
            containers: Containers::default(),
            errands: Errands::default(),
            settling: None,
            interest,
        })
    }

    fn turn(&mut self) -> Result<()> {
        let more = self.pump()?;
        for (token, events) in self.watcher.wait(more)? {
            self.handle(token, events)?;
        }
        Ok(())
    }

    /// Moves what can be moved, then tells the host what has come of it. Returns whether there is
    /// more to move at once.
    fn pump(&mut self) -> Result<bool> {
        while self.booted.control.is_idle()
            && let Some(container) = self.containers.take_out_of_memory()
        {
            self.tell(container, Event::OutOfMemory)?;
        }
        let (events, more) = self.containers.turn();
        for (number, event) in events {
            if matches!(event, Event::Answer(_, Ok(Reply::Created { .. })))
                && let Some(cgroup) = self.containers.get(number).and_then(Container::cgroup)
            {
                self.watcher.cgroup(number, cgroup)?;
            }
            self.tell(number, event)?;
        }
        for (number, event) in self.containers.sweep() {
            self.tell(number, event)?;
        }
        for (number, request) in self.containers.take_removed() {
            if let Some(result) = self.remove(request, number).transpose() {
                self.tell(number, Event::Answer(request, result))?;
            }
        }
        let interest = self.booted.control.interest();
        if interest != self.interest {
            let control = self.booted.control.fd();
            self.watcher.modify(control, interest, Token::Control)?;
            self.interest = interest;
        }
        Ok(more)
    }

    fn tell(&mut self, container: ContainerId, event: Event) -> Result<()> {
        let message = match event {
            Event::Answer(id, result) => Message::Response { id, result },
            Event::Exited(process, exit) => Message::Exited {
                container,
                process,
                exit,
            },
            Event::OutOfMemory => Message::OutOfMemory(container),
            Event::Ready => Message::Ready(container),
        };
        self.booted.control.send(&message)
    }

    fn handle(&mut self, token: Token, events: EpollFlags) -> Result<()> {
        match token {
            Token::Control => self.control_ready(events),
            Token::Signals => self.reap(),
            Token::Settled => {
                self.settled();
                Ok(())
            }
            Token::Errand(number) => self.errand_ready(number),
            // A container that has gone with this event on its way is of no interest.
            Token::Freezing(container) => {
                self.container_ready(container, |container| container.settle());
                Ok(())
            }
            Token::Memory(container) => {
                self.container_ready(container, Container::look_at_memory);
                Ok(())
            }
            Token::Notify(container) => {
                self.container_ready(container, Container::notified);
                Ok(())
            }
            Token::Process(container, process, part) => {
                self.process_ready(container, process, part, events)
            }
        }
    }

    fn container_ready(&mut self, number: ContainerId, note: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.get_mut(number) {
            note(container);
        }
    }

    fn control_ready(&mut self, events: EpollFlags) -> Result<()> {
        if self.booted.control.ready(events)? {
            let agent_started = self.booted.started;
            let hello = Message::Hello {
                version: protocol::VERSION,
                agent_started,
                sent: now(),
            };
            self.booted.control.send(&hello)?;
        }
        while let Some(request) = self.booted.control.request()? {
            let Request {
                id,
                container,
                body,
            } = request;
            if let Some(result) = self.serve(id, container, body).transpose() {
                self.booted
                    .control
                    .send(&Message::Response { id, result })?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, id: u64, number: ContainerId, body: RequestBody) -> Outcome {
        let body = match body {
            RequestBody::Create(create) => return self.create(id, number, &create),
            RequestBody::Remove => return self.remove(id, number),
            RequestBody::Time => return Ok(Some(Reply::Time(now()))),
            RequestBody::SetTime {
                realtime,
                monotonic,
                step,
            } => {
                let set = clock::set(realtime, monotonic, step);
                return set.map(|()| Some(Reply::Done)).map_err(|e| e.failure());
            }
            body => body,
        };
        let container = self.containers.get_mut(number).ok_or_else(not_running)?;
        match body {
            RequestBody::Start(network) => {
                container.start(id, &network)?;
                if number == FIRST {
                    self.settle_later();
                }
                Ok(None)
            }
            RequestBody::Network(change) => {
                let init = container.init().ok_or_else(not_running)?;
                let changed = network::change(&change, init);
                changed.map(|()| Some(Reply::Done)).map_err(|e| e.failure())
            }
            RequestBody::Exec(exec) => self.exec(id, number, exec),
            RequestBody::Kill {
                process,
                signal,
                all,
            } => {
                container.kill(process, signal, all)?;
                Ok(Some(Reply::Done))
            }
            RequestBody::Resize { process, size } => {
                container.resize(process, size)?;
                Ok(Some(Reply::Done))
            }
            RequestBody::Pause => container.freeze(id, true).map(|()| None),
            RequestBody::Resume => container.freeze(id, false).map(|()| None),
            RequestBody::Update { resources } => {
                let task = container.update(resources)?;
                // What a lower limit leaves free is given back before the answer.
                self.settled();
                self.errand(id, number, &task)
            }
            RequestBody::Processes => {
                let task = container.list()?;
                self.errand(id, number, &task)
            }
            RequestBody::Statistics => container.statistics().map(Some),
            RequestBody::Connect { address, ports } => {
                let init = container.init().ok_or_else(not_running)?;
                let begun = network::connect(init, address, ports);
                begun.map(|()| Some(Reply::Done)).map_err(|e| e.failure())
            }
            RequestBody::Create(_)
            | RequestBody::Remove
            | RequestBody::Time
            | RequestBody::SetTime { .. } => {
                let text = "the container is there already";
                Err(Failure::message(FailureKind::Other, text))
            }
        }
    }

    fn create(&mut self, id: u64, number: ContainerId, create: &Create) -> Outcome {
        let begun = self.containers.create(number, id, create);
        let container = begun.map_err(|error| error.failure())?;
        let watch = || {
            if let Some(init) = container.process(INIT) {
                self.watcher.process(number, INIT, init)?;
            }
            container.notify().map_or(Ok(()), |notify| {
                let token = Token::Notify(number);
                self.watcher.add(notify.fd(), EpollFlags::EPOLLIN, token)
            })
        };
        watch().map(|()| None).map_err(|error| {
            self.containers.forget(number);
            error.failure()
        })
    }

    fn exec(&mut self, id: u64, number: ContainerId, exec: Exec) -> Outcome {
        let container = self.containers.get_mut(number).ok_or_else(not_running)?;
        let name = exec.process;
        container.exec(id, exec)?;
        let process = container.process(name).ok_or_else(not_running)?;
        let watched = self.watcher.process(number, name, process);
        watched.map(|()| None).map_err(|error| {
            container.forget(name);
            error.failure()
        })
    }

    /// Ends a container, or does what its end has left to be done.
    fn remove(&mut self, id: u64, number: ContainerId) -> Outcome {
        match self.containers.get_mut(number) {
            _ if number == FIRST => {
                let text = "the first container ends with its machine";
                Err(Failure::message(FailureKind::Config, text))
            }
            Some(container) => container.remove(id).map(|()| None),
            None => self.errand(id, number, &Task::Unmount(number)),
        }
    }

    /// Sends for the answer.
    fn errand(&mut self, id: u64, number: ContainerId, task: &Task) -> Outcome {
        let setup = match task {
            Task::Update(_) => Some(self.containers.get(number).ok_or_else(not_running)?.setup()),
            _ => None,
        };
        let watch = |errand, wire: BorrowedFd<'_>| {
            self.watcher
                .add(wire, EpollFlags::EPOLLIN, Token::Errand(errand))
        };
        let begun = self.errands.begin(id, number, task, setup, watch);
        begun.map(|()| None).map_err(|error| error.failure())
    }

    fn errand_ready(&mut self, number: u64) -> Result<()> {
        match self.errands.hear(number) {
            Some((id, result)) => self.booted.control.send(&Message::Response { id, result }),
            None => Ok(()),
        }
    }

    /// Without a timer the memory stays with the guest: see [`Agent::settled`].
    fn settle_later(&mut self) {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
            .and_then(|timer| {
                timer.set(Expiration::OneShot(SETTLING), TimerSetTimeFlags::empty())?;
                Ok(timer)
            })
            .during(|| "set a timer");
        let watched = timer.and_then(|timer| {
            let timer_fd = timer.as_fd();
            self.watcher
                .add(timer_fd, EpollFlags::EPOLLIN, Token::Settled)?;
            Ok(timer)
        });
        match watched {
            Ok(timer) => self.settling = Some(timer),
            Err(error) => error::log(&error.failure().to_string()),
        }
    }

    /// From here on the guest gives memory back that it has no use for.
    fn settled(&mut self) {
        if self.settling.take().is_none() {
            return;
        }
        if let Err(error) = device::bind(BALLOON_DEVICE) {
            // A container whose memory stays with the guest is a whole one.
            error::log(&error.failure().to_string());
        }
    }

    fn reap(&mut self) -> Result<()> {
        // Standard signals do not queue: one read, then all children that there are.
        self.booted
            .signals
            .read_signal()
            .during(|| "read the signalfd")?;
        for (number, container) in self.containers.iter_mut() {
            // The kernel may be late to say why a process ended; the host wants to know before.
            container.look_at_memory();
            // A pid is told before its process may end, so hearing comes before reaping.
            for (name, process) in container.processes() {
                hear(&self.watcher, number, name, process)?;
            }
        }
        while let Some(child) = sys::reap().during(|| "wait for a child")? {
            self.containers.reaped(&child);
        }
        Ok(())
    }

    fn process_ready(
        &mut self,
        number: ContainerId,
        name: ProcessId,
        part: Part,
        events: EpollFlags,
    ) -> Result<()> {
        let container = self.containers.get_mut(number);
        let Some(process) = container.and_then(|container| container.process_mut(name)) else {
            return Ok(());
        };
        match part {
            Part::Wire => return hear(&self.watcher, number, name, process),
            Part::Socket(index) => process.socket_ready(index, events),
            Part::End(index) => process.end_ready(index, events),
        }
        Ok(())
    }
}

fn hear(
    watcher: &Watcher,
    container: ContainerId,
    name: ProcessId,
    process: &mut Process,
) -> Result<()> {
    if process.hear()? {
        watcher.ends(container, name, process)?;
    }
    Ok(())
}
