//! The further containers of a machine, seen from its process: how they come, by a client that stands for their init from
//! then on, and how they go.
//!
//! ```text
//!  Admit ──a number──> Create ──> Preparing ──Created──> as any container ──over──> the client is told, it is forgotten
//!                                    └──failed──> the client is told, it is forgotten
//! ```
//! Invariants: a number is given once; there are at most [`CONTAINERS_MAX`] at a time; a container whose client has gone
//! is killed, and its output is still delivered.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use protocol::{ContainerId, Create, FIRST, Failure, INIT, Reply, RequestBody, Setup, from_hex};
use vmm::vsock;

use super::container::{self, Container, Phase};
use super::execs::Target;
use super::life::{Life, Waiting};
use super::replies::{answer, failed, start_failure};
use super::streams;
use crate::control::{ControlReply, CreateRequest};
use crate::state::Journal;

/// Maximum number of containers of a machine at a time, as the agent has it.
const CONTAINERS_MAX: usize = 64;

impl Life {
    /// Gives a client the number of a container that it may ask for.
    pub(super) fn admit(&mut self, client: u64) -> Result<(), ControlReply> {
        let first = self.containers.get(&FIRST);
        if !first.is_some_and(Container::lives) {
            return Err(ControlReply::NotRunning);
        }
        if self.containers.len() >= CONTAINERS_MAX || self.last + 1 >= protocol::CONTAINERS_MAX {
            let text = format!("the machine has {CONTAINERS_MAX} containers, or has had too many");
            return Err(ControlReply::Failed(text));
        }
        // What is known of mounts that have been taken away must not be said of those that are about to come.
        let looked = self.parts.exported.look(None);
        looked.map_err(|e| ControlReply::Failed(format!("cannot read the mounts: {e}")))?;
        self.last += 1;
        self.parts.clients.admit(client, self.last);
        Ok(())
    }

    /// Takes a container into the table; what the agent is to be asked.
    pub(super) fn create(
        &mut self,
        client: u64,
        id: ContainerId,
        request: CreateRequest,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(RequestBody, Waiting), ControlReply> {
        let refuse = |text: &str| ControlReply::Failed(text.to_owned());
        let sealed = request.sealed.then(|| format!("{id}/rootfs"));
        let looked = self.parts.exported.look(sealed.as_deref());
        looked.map_err(|e| refuse(&format!("cannot read the mounts: {e}")))?;
        let journal = descriptors.pop();
        let journal = journal.ok_or_else(|| refuse("there is no journal"))?;
        let policy = from_hex(&request.policy).ok_or_else(|| refuse("the policy has no bytes"))?;
        let passed = streams::passed(&request.passed, descriptors);
        let arrived = passed.map_err(ControlReply::Failed)?;
        let setup = Setup {
            id: request.id,
            bundle: request.bundle,
            overlay: request.overlay,
            config: request.config.into_bytes(),
        };
        let setup = setup.encode().map_err(|e| refuse(&e.to_string()))?;
        let mut offered = Vec::new();
        let vsock = self.parts.machine.vsock();
        let ends = streams::offer(arrived.streams, arrived.extra, |_, stream| {
            let ports = streams::offer_one(vsock, stream)?;
            offered.push(ports.host);
            Ok(ports)
        });
        let (stdio, extra) = ends.map_err(|e: vsock::Error| {
            self.abandon(&offered);
            refuse(&e.to_string())
        })?;
        let create = Create {
            cgroup: request.cgroup,
            own_pids: request.own_pids,
            joins: request.joins,
            terminal: request.passed.terminal,
            plain_newlines: arrived.plain_newlines,
            notify: request.notify,
            stdio,
            extra,
            setup,
            policy,
        };
        let files = container::Files {
            journal: Journal::made(journal),
            bundle: None,
            // Its stub tells of the size.
            terminal: None,
            limit: None,
        };
        let mut container = Container::new(create.clone(), files);
        container.create = None;
        container.phase = Phase::Preparing;
        container.client = Some(client);
        self.containers.insert(id, container);
        let init = Target {
            container: id,
            process: INIT,
        };
        self.parts.clients.steer(client, init);
        Ok((RequestBody::Create(create), Waiting::Create))
    }

    /// The agent has set a container up, or could not.
    pub(super) fn created(
        &mut self,
        id: ContainerId,
        result: Result<Reply, Failure>,
    ) -> io::Result<()> {
        let failure = match result {
            Ok(_) => {
                let container = self.containers.get_mut(&id);
                let Some(container) = container.filter(|c| c.phase == Phase::Preparing) else {
                    return Ok(());
                };
                container.phase = Phase::Created;
                return match container.client {
                    Some(client) => {
                        self.parts.clients.tell(client, &ControlReply::Created);
                        Ok(())
                    }
                    None => self.kill(id, INIT, libc::SIGKILL),
                };
            }
            Err(failure) => failure,
        };
        if let Some(client) = self.discard(id) {
            let reply = ControlReply::Failed(start_failure(&failure));
            self.parts.clients.reply(client, &reply);
        }
        Ok(())
    }

    /// Forgets a container; its client.
    pub(super) fn discard(&mut self, id: ContainerId) -> Option<u64> {
        let mut container = self.containers.remove(&id)?;
        self.abandon(&container.give_streams_up());
        container.client
    }

    /// Has the agent end a container, of whose output nothing more is wanted.
    pub(super) fn remove(
        &mut self,
        client: u64,
        id: ContainerId,
    ) -> Result<(RequestBody, Waiting), ControlReply> {
        if id == FIRST {
            let text = "the first container ends with its machine";
            return Err(ControlReply::Failed(text.to_owned()));
        }
        if let Some(container) = self.containers.get_mut(&id) {
            container.dying = true;
            let streams = container.give_streams_up();
            self.abandon(&streams);
        }
        Ok((RequestBody::Remove, Waiting::Remove(client)))
    }

    /// The agent says that nothing is left of a container.
    pub(super) fn removed(&mut self, id: ContainerId, client: u64, result: Result<Reply, Failure>) {
        let mut reply = match result {
            Ok(reply) => answer(reply),
            Err(failure) => failed(&failure),
        };
        if reply == ControlReply::Done {
            self.discard(id);
            // What is not known to be free is in use.
            if self.parts.exported.part(id).unwrap_or(true) {
                reply = ControlReply::Busy;
            }
        }
        self.parts.clients.reply(client, &reply);
    }
}
