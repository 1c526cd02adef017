//! The part of `create` that is another one where the container is a member of the machine of another container: there is
//! a stub in place of a machine process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use protocol::to_hex;

use super::context::Context;
use super::create::Prepared;
use super::error::Error;
use super::streams::Streams;
use crate::control::{Address, CreateRequest};
use crate::error::{Doing, SystemError, one_line};
use crate::host::attendant::Attendant;
use crate::host::cgroup::Cgroup;
use crate::host::hooks::{Hooks, Kind};
use crate::host::selinux;
use crate::host::stub::{self, InNetwork, Init, Place};
use crate::ids::Ids;
use crate::machine::{self, Admitted};
use crate::plan;
use crate::state::{Journal, Network, Record, Seat, StateDir};

/// A container that is created in the machine of another one. It ends with this value unless it is committed.
pub(super) struct Joined {
    /// First, so that it goes first: what it stands for is ended by that.
    stub: Option<Attendant>,
    share: Shared,
}

/// What the machine has of the container. It is taken away with this value unless it is kept.
struct Shared {
    address: Address,
    seat: Seat,
    kept: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.kept {
            // The error that led here is the one to report, and with the machine all of it goes.
            let _ = machine::leave(&self.address, &self.seat);
        }
    }
}

impl Joined {
    /// The pid of the stub.
    pub(super) fn pid(&self) -> i32 {
        self.stub.as_ref().map_or(0, Attendant::pid)
    }

    /// From here on the container lives until its init ends.
    pub(super) fn commit(mut self) -> Result<(), Error> {
        if let Some(stub) = self.stub.take() {
            stub.commit().doing("commit the container's process")?;
        }
        self.share.kept = true;
        Ok(())
    }
}

/// Creates the container in the machine that has given it a number.
pub(super) fn join(
    context: &Context<'_>,
    dir: &StateDir,
    cgroup: Option<&Cgroup>,
    (prepared, admitted): (Prepared, Admitted),
    record: &Record,
) -> Result<Joined, Error> {
    let Prepared { config, plan, .. } = prepared;
    let share = Shared {
        address: dir.address(Some(record)),
        seat: admitted.seat.clone(),
        kept: false,
    };
    let mut overlay = plan.overlay;
    let label = plan.labels.files.as_deref();
    admitted.share(&plan.shares, label, &mut overlay)?;
    let streams = Streams::of(prepared.slave.as_ref().map(AsFd::as_fd), prepared.preserved)?;
    let journal = selinux::creating(label, || Journal::create(dir.as_fd()));
    let journal = journal.doing("create the journal")?;
    let machine = open(&admitted.seat)?;
    let network = match &plan.network {
        Network::Guests => InNetwork::Of(machine.as_fd()),
        network => InNetwork::Own(network),
    };
    let cgroup = cgroup.map(Cgroup::open).transpose()?;
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let limit = cgroup.map(limit).transpose()?.flatten();
    let place = Place {
        network,
        cgroup,
        oom_score_adj: plan.oom_score_adj,
        ids: Ids::of_host()?,
        label: plan.labels.process.as_deref(),
        init: Some(Init { limit }),
    };
    let stub = stub::make(admitted.connection(), prepared.slave.as_ref(), &place);
    let stub = stub.doing("start the container's process")?;
    let joined = Joined {
        stub: Some(stub),
        share,
    };
    let pid = joined.pid();
    let hooks = Hooks::of(&config.spec, record);
    let created = || -> Result<(), Error> {
        for kind in [Kind::Prestart, Kind::CreateRuntime, Kind::CreateContainer] {
            hooks.run(kind, pid)?;
        }
        let request = CreateRequest {
            id: record.id.clone(),
            bundle: prepared.bundle.to_string_lossy().into_owned(),
            config: config.text.clone(),
            overlay,
            policy: to_hex(plan.policy),
            cgroup: plan::guest_cgroup(plan.cgroups_path.as_deref(), &record.id),
            own_pids: plan.own_pids,
            joins: plan.member.map(|member| member.joins).unwrap_or_default(),
            notify: prepared.notify,
            sealed: plan.shares.first().is_some_and(|share| share.sealed),
            passed: streams.passed(),
        };
        let mut descriptors = streams.descriptors();
        descriptors.push(journal.as_fd());
        admitted.create(request, &descriptors)?;
        if let Some(score) = plan.oom_score_adj {
            raise_oom_score(admitted.seat.machine.pid, score).doing("set oom_score_adj")?;
        }
        admitted.seal(&plan.shares)?;
        if let Some(targets) = &plan.view
            && let Err(e) = machine::show(pid, &plan.shares, targets)
        {
            let told = format!(
                "the mount namespace of the container shows no files: {}",
                one_line(&e)
            );
            context.report.warn(&told);
        }
        Ok(())
    };
    match created() {
        Ok(()) => Ok(joined),
        Err(e) => {
            drop(joined);
            // They undo what the hooks before them have done, of which there may be some.
            hooks.run_poststop(context.report);
            Err(e)
        }
    }
}

/// The machine process.
fn open(seat: &Seat) -> Result<OwnedFd, Error> {
    let machine = seat.machine.open().doing("open the machine process")?;
    machine.ok_or(Error::NotRunning)
}

/// Makes a machine no less likely to be killed when the host's memory runs out than this member of it says: its memory is
/// the machine's.
fn raise_oom_score(machine: i32, score: i32) -> io::Result<()> {
    let path = format!("/proc/{machine}/oom_score_adj");
    let own = fs::read_to_string(&path)?;
    if own.trim().parse::<i32>().is_ok_and(|own| own < score) {
        fs::write(path, score.to_string())?;
    }
    Ok(())
}

/// The limit of memory of a cgroup, to be written to; `None` where there is none.
fn limit(cgroup: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SystemError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match openat(cgroup, "memory.max", flags, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        limit => limit.map(Some).doing("open memory.max"),
    }
}
