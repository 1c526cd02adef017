//! `create`: all or nothing. Each step that makes something is undone when a later one fails ([`Attempt`]).
//!
//! prepare (nothing is made) ──> record ──> confine (cgroup, resctrl) ──> launch (the machine, hooks) ──> commit
//!                                                                   └──> join (that of another, hooks) ──┘

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::ask;
use super::attempt::Attempt;
use super::context::Context;
use super::error::Error;
use super::facts;
use super::join::{Joined, join};
use super::pod;
use crate::cli;
use crate::clock::{self, Precision};
use crate::config::Config;
use crate::control::Preserved;
use crate::error::Doing;
use crate::host::cgroup::systemd::{self, Placeholder, Scope};
use crate::host::cgroup::{self, Cgroup, Layout};
use crate::host::hooks::{Hooks, Kind};
use crate::host::network::Moved;
use crate::host::notify::NotifySocket;
use crate::host::preserved::Inherited;
use crate::host::resctrl;
use crate::host::surroundings;
use crate::host::terminal::{self, DescriptorSocket};
use crate::ids::Ids;
use crate::machine::{self, Admitted, Launch, Spawned};
use crate::plan::{self, Plan};
use crate::state::{
    ContainerId, Groups, Identity, Lock, Pinned, Pins, Record, StateDir, index, write_atomically,
};

/// A container that has been created, still locked.
pub(super) struct Created {
    pub(super) dir: StateDir,
    pub(super) record: Record,
    pub(super) process: Identity,
    pub(super) lock: Lock,
    /// The master of its terminal, for a verb that stays.
    pub(super) master: Option<OwnedFd>,
    /// Who is to be told when it is ready.
    pub(super) notify: Option<NotifySocket>,
}

/// What runc says of the descriptor that it sends to `--pidfd-socket` for a container.
const PIDFD_TEXT: &[u8] = b"standard";

/// Creates a container.
pub(crate) fn create(context: &Context<'_>, args: &cli::Create) -> Result<(), Error> {
    create_locked(context, args, true)
        .map(drop)
        .map_err(|e| Error::Failed("create", Box::new(e)))
}

/// Creates a container and keeps its lock. `detached`: the verb does not wait for the container's end.
pub(super) fn create_locked(
    context: &Context<'_>,
    args: &cli::Create,
    detached: bool,
) -> Result<Created, Error> {
    let (prepared, caller) = prepare(context, args, detached)?;
    let mut attempt = Attempt::begin(context.root, &prepared.id, context.report)?;
    attempt
        .dir()?
        .write_config(prepared.config.text.as_bytes())?;
    let root = cgroup_root(context, &prepared.plan)?;
    let mut record = record(&prepared, root.as_deref())?;
    let admitted = admit(context, &mut attempt, &prepared, &mut record)?;
    // From here on a create that is killed leaves enough for delete to find everything.
    attempt.dir()?.write_record(&record)?;
    let placeholder = confine(context, &mut attempt, &prepared, &record, root.as_deref())?;
    let launched = match admitted {
        None => launch(context, &mut attempt, prepared, &record)?,
        Some(admitted) => {
            let (dir, cgroup) = (attempt.dir()?, attempt.cgroup.as_ref());
            if let Some(mut timeline) = prepared.timeline.as_ref() {
                // Nothing boots. The container runs whether or not the caller's file takes that.
                let _ = timeline.write_all(b"[]\n");
            }
            let joined = join(context, dir, cgroup, (prepared, admitted), &record)?;
            Launched {
                process: Process::Stub(joined),
                moved: None,
            }
        }
    };
    drop(placeholder);
    let pid_file = args.pid_file.as_deref();
    commit(context, pid_file, attempt, launched, record, caller)
}

/// Creates the container of a pod's own, number 0 of the machine that is made for the pod, in a directory that is
/// locked.
pub(super) fn create_pod(
    context: &Context<'_>,
    mut attempt: Attempt<'_>,
    prepared: Prepared,
    pins: Pins,
) -> Result<Created, Error> {
    let root = cgroup_root(context, &prepared.plan)?;
    let mut record = record(&prepared, root.as_deref())?;
    record.pins = Some(pins);
    attempt.dir()?.write_record(&record)?;
    let placeholder = confine(context, &mut attempt, &prepared, &record, root.as_deref())?;
    let launched = launch(context, &mut attempt, prepared, &record)?;
    drop(placeholder);
    commit(context, None, attempt, launched, record, Caller::default())
}

/// A container that can be had, and all that it is made from.
pub(super) struct Prepared {
    pub(super) id: ContainerId,
    /// Absolute path.
    pub(super) bundle: PathBuf,
    pub(super) config: Config,
    pub(super) plan: Plan,
    /// For a cgroup that systemd makes.
    pub(super) scope: Option<Scope>,
    pub(super) timeline: Option<File>,
    /// The slave of its terminal.
    pub(super) slave: Option<OwnedFd>,
    pub(super) preserved: Vec<Preserved>,
    /// Somebody is to be told when the container is ready.
    pub(super) notify: bool,
    /// What is pinned for the pod that it is.
    pub(super) pinned: Option<Pinned>,
}

/// What is left for the caller.
#[derive(Default)]
struct Caller {
    pidfd_socket: Option<DescriptorSocket>,
    /// The master of its terminal, for a verb that stays.
    master: Option<OwnedFd>,
    notify: Option<NotifySocket>,
}

/// Decides, and opens what the caller has named. Nothing is made but the timeline's file.
fn prepare(
    context: &Context<'_>,
    args: &cli::Create,
    detached: bool,
) -> Result<(Prepared, Caller), Error> {
    let id: ContainerId = args.id.parse()?;
    check_flags(context)?;
    let bundle = fs::canonicalize(&args.bundle).doing_to("chdir", &args.bundle)?;
    let config = Config::load(&bundle)?;
    let mut plan = facts::decide(context, &config, &bundle)?.plan?;
    let loaded = format!("configuration of {} loaded", bundle.display());
    context.report.debug(&loaded);
    for warning in &config.warnings {
        context.report.warn(warning);
    }
    for ignored in &plan.warnings {
        context.report.note(ignored);
    }
    let inherited = Inherited::with_environment(args.preserve_fds);
    let preserved = inherited.take()?;
    let notify = NotifySocket::of_environment();
    plan.overlay.env = inherited.environment();
    if notify.is_some() {
        plan.overlay.env.push(NotifySocket::environment());
    }
    plan.overlay.limits = surroundings::limits().doing("read the resource limits")?;
    plan.overlay.parameters = surroundings::parameters().doing("read the kernel's parameters")?;
    let scope = scope(context, &plan, &id, &config)?;
    let timeline = context
        .timeline
        .map(|path| File::create(path).doing_to("create", path))
        .transpose()?;
    let pidfd_socket = args.pidfd_socket.as_deref();
    let pidfd_socket = pidfd_socket.map(DescriptorSocket::connect).transpose()?;
    let terminal = config.spec.process().as_ref().map(|process| {
        let console_socket = args.console_socket.as_deref();
        terminal::prepare(process, detached, console_socket)
    });
    let (slave, master) = match terminal.transpose()?.flatten() {
        Some(terminal) => (Some(terminal.slave), terminal.master),
        None => (None, None),
    };
    let prepared = Prepared {
        id,
        bundle,
        config,
        plan,
        scope,
        timeline,
        slave,
        preserved,
        notify: notify.is_some(),
        pinned: None,
    };
    let caller = Caller {
        pidfd_socket,
        master,
        notify,
    };
    Ok((prepared, caller))
}

/// The scope that systemd makes the cgroup as, if it does; with the properties that a configuration names.
pub(super) fn scope(
    context: &Context<'_>,
    plan: &Plan,
    id: &ContainerId,
    config: &Config,
) -> Result<Option<Scope>, Error> {
    if !context.systemd_cgroup {
        return Ok(None);
    }
    let annotations = config.spec.annotations().iter().flatten();
    let scope = Scope::parse(plan.cgroups_path.as_deref(), id.as_str(), annotations);
    Ok(Some(scope.map_err(cgroup::Error::from)?))
}

/// What the later verbs need, but for the machine. `root` is that of the cgroup v2 hierarchy.
fn record(prepared: &Prepared, root: Option<&Path>) -> Result<Record, Error> {
    let (spec, plan) = (&prepared.config.spec, &prepared.plan);
    let id = prepared.id.as_str();
    let rootfs = plan.rootfs().to_owned();
    let mut record = Record::new(id, prepared.bundle.clone(), rootfs);
    record.oci_version = spec.version().clone();
    let annotations = spec.annotations().clone().unwrap_or_default();
    record.annotations = annotations.into_iter().collect();
    record.created = clock::now(Precision::Nanoseconds);
    record.owner = geteuid().as_raw();
    record.notify = prepared.notify;
    record.labels = plan.labels.clone();
    (record.memory, record.vcpus) = (plan.memory, plan.vcpus);
    record.network = plan.network.clone();
    let devices = plan.net_devices.iter();
    record.net_devices = devices.map(|device| device.inside.clone()).collect();
    let scope = prepared.scope.as_ref();
    record.scope = scope.map(|scope| scope.name().to_owned());
    record.cgroup = match (root, scope) {
        (Some(root), Some(scope)) => Some(scope.directory(root)),
        (Some(root), None) => {
            let (own, path) = (cgroup::own()?, plan.cgroups_path.as_deref());
            Some(cgroup::locate(root, &own, path, id)?)
        }
        (None, Some(_)) => return Err(cgroup::Error::from(systemd::Error::NoHierarchy).into()),
        (None, None) => None,
    };
    let rdt = plan.intel_rdt.as_ref();
    record.resctrl = rdt.map(|rdt| Groups::of(Path::new(resctrl::ROOT), id, rdt));
    Ok(record)
}

/// Has the machine of another container or of its pod admit this one, if it is to be a member of that.
fn admit(
    context: &Context<'_>,
    attempt: &mut Attempt<'_>,
    prepared: &Prepared,
    record: &mut Record,
) -> Result<Option<Admitted>, Error> {
    let Some(member) = &prepared.plan.member else {
        return Ok(None);
    };
    // The lock of a pod is held until its machine knows of this container.
    let (sandbox, first, _lock) = match &member.pinned {
        Some(pinned) => {
            record.pins = Some(pinned.pins);
            attempt.dir()?.write_record(record)?;
            attempt.joined = Some(pinned.pins);
            let (dir, pod, lock) = pod::enter(context, prepared, pinned)?;
            (dir, pod, Some(lock))
        }
        None => {
            let dir = ask::open(context.root, &member.sandbox)?;
            let first = dir.record()?.ok_or(Error::NotRunning)?;
            (dir, first, None)
        }
    };
    (record.memory, record.vcpus) = (first.memory, first.vcpus);
    let machine = first.process.ok_or(Error::NotRunning)?;
    if member.machine.is_some_and(|planned| planned != machine) {
        // With it the container whose namespaces are joined has ended.
        return Err(Error::NotRunning);
    }
    let admitted = machine::admit(sandbox.path(), &member.sandbox, machine)?;
    record.member = Some(admitted.seat.clone());
    Ok(Some(admitted))
}

/// Makes the groups of resctrl and the cgroup. A scope's cgroup exists while there is a process in it: until the
/// machine is, the placeholder.
fn confine(
    context: &Context<'_>,
    attempt: &mut Attempt<'_>,
    prepared: &Prepared,
    record: &Record,
    root: Option<&Path>,
) -> Result<Option<Placeholder>, Error> {
    let plan = &prepared.plan;
    if let (Some(groups), Some(rdt)) = (&record.resctrl, &plan.intel_rdt) {
        groups.make(rdt)?;
        attempt.resctrl = Some(groups.clone());
    }
    let (Some(root), Some(path)) = (root, &record.cgroup) else {
        return Ok(None);
    };
    let (cgroup, placeholder) = match &prepared.scope {
        Some(scope) => {
            let (cgroup, placeholder) = Cgroup::of_scope(root, scope, &plan.limits)?;
            (cgroup, Some(placeholder))
        }
        None => (Cgroup::create(root, path.clone(), &plan.limits)?, None),
    };
    attempt.cgroup = Some(cgroup);
    let made = format!("cgroup {} made", path.display());
    context.report.debug(&made);
    Ok(placeholder)
}

/// A container that is created, and the network devices that have moved to its machine.
struct Launched {
    process: Process,
    moved: Option<Moved>,
}

/// What stands for a container that is created, and ends with this value unless it is committed.
enum Process {
    Machine(Spawned),
    Stub(Joined),
}

impl Process {
    fn pid(&self) -> i32 {
        match self {
            Process::Machine(spawned) => spawned.pid(),
            Process::Stub(joined) => joined.pid(),
        }
    }

    fn commit(self) -> Result<(), Error> {
        match self {
            Process::Machine(spawned) => Ok(spawned.commit()?),
            Process::Stub(joined) => joined.commit(),
        }
    }
}

/// Starts the machine, and runs the hooks while it waits. On an error all of the attempt is undone, and the hooks for
/// that have run.
fn launch(
    context: &Context<'_>,
    attempt: &mut Attempt<'_>,
    prepared: Prepared,
    record: &Record,
) -> Result<Launched, Error> {
    let Prepared { config, plan, .. } = prepared;
    let cgroup = attempt.cgroup.as_ref().map(Cgroup::open).transpose()?;
    let launch = Launch {
        id: prepared.id.as_str(),
        config: &config.text,
        bundle: &prepared.bundle.to_string_lossy(),
        overlay: plan.overlay,
        apparmor: plan.apparmor,
        policy: plan.policy,
        labels: plan.labels,
        guest_cgroup: plan::guest_cgroup(plan.cgroups_path.as_deref(), prepared.id.as_str()),
        own_pids: plan.own_pids,
        notify: prepared.notify,
        memory: plan.memory,
        vcpus: plan.vcpus,
        isolation: plan.isolation,
        shares: plan.shares,
        view: plan.view,
        disks: plan.disks,
        network: plan.network,
        pinned: prepared.pinned.as_ref(),
        memory_policy: plan.memory_policy,
        oom_score_adj: plan.oom_score_adj,
        ids: Ids::of_host()?,
        state_dir: attempt.dir()?.as_fd(),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        timeline: prepared.timeline,
        terminal: prepared.slave,
        preserved: prepared.preserved,
        report: context.report,
        begun: context.begun,
    };
    let hooks = Hooks::of(&config.spec, record);
    let mut moved = None;
    let mut ready = |pid| {
        let entered = format!("machine process {pid} is in its namespaces");
        context.report.debug(&entered);
        if !plan.net_devices.is_empty() {
            moved = Some(Moved::to(pid, &plan.net_devices)?);
        }
        if let Some(groups) = &record.resctrl {
            groups.add(pid)?;
        }
        hooks.run(Kind::Prestart, pid)?;
        hooks.run(Kind::CreateRuntime, pid)?;
        Ok(hooks.run(Kind::CreateContainer, pid)?)
    };
    match machine::spawn(launch, &mut ready) {
        Ok(spawned) => Ok(Launched {
            process: Process::Machine(spawned),
            moved,
        }),
        Err(e) => {
            drop(moved);
            attempt.undo();
            // They undo what the hooks before them have done, of which there may be some.
            hooks.run_poststop(context.report);
            Err(e.into())
        }
    }
}

/// Puts the process on record, tells the caller of it, and lets it live.
fn commit(
    context: &Context<'_>,
    pid_file: Option<&Path>,
    mut attempt: Attempt<'_>,
    launched: Launched,
    mut record: Record,
    caller: Caller,
) -> Result<Created, Error> {
    // On an error they are dropped in reverse: the process ends, then the devices move back.
    let Launched { moved, process } = launched;
    let identity = Identity::of(process.pid()).ok_or(Error::NotRunning)?;
    let prepared = format!("container prepared, process {}", identity.pid);
    context.report.debug(&prepared);
    record.process = Some(identity);
    attempt.dir()?.write_record(&record)?;
    index::note(context.root, identity.pid, &record.id).doing("note the container's process")?;
    attempt.noted = Some(identity.pid);
    context.report.debug("container on record");
    if let Some(path) = pid_file {
        write_atomically(path, identity.pid.to_string().as_bytes()).doing_to("write", path)?;
        attempt.pid_file = Some(path.to_owned());
    }
    if let Some(socket) = caller.pidfd_socket {
        let pidfd = identity.open().doing("open the container's process")?;
        socket.send(pidfd.ok_or(Error::NotRunning)?, PIDFD_TEXT)?;
    }
    process.commit()?;
    if let Some(moved) = moved {
        moved.keep();
    }
    let (dir, lock) = attempt.keep()?;
    Ok(Created {
        dir,
        record,
        process: identity,
        lock,
        master: caller.master,
        notify: caller.notify,
    })
}

/// Refuses what flags and environment ask for and is not there.
fn check_flags(context: &Context<'_>) -> Result<(), Error> {
    if context.rootless {
        return Err(Error::Unsupported("--rootless"));
    }
    if !geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if context.systemd_cgroup {
        systemd::check_running().map_err(cgroup::Error::from)?;
    }
    Ok(())
}

/// The cgroup v2 hierarchy for the container, unless it is to have no cgroup. Where it has no controllers, the guest
/// alone limits the container: the caller is told, and what the guest cannot limit is refused.
fn cgroup_root(context: &Context<'_>, plan: &Plan) -> Result<Option<PathBuf>, Error> {
    let asked = plan
        .limits
        .iter()
        .filter_map(|limit| Some((limit, limit.property.as_ref()?)));
    let mut asked = asked.peekable();
    if context.no_cgroup {
        return match asked.peek() {
            Some((_, property)) => Err(cgroup::Error::Disabled(property.to_string()).into()),
            None => Ok(None),
        };
    }
    let (root, why) = match cgroup::hierarchy() {
        Some((root, Layout::Unified)) => return Ok(Some(root)),
        Some((root, Layout::Hybrid)) => (Some(root), "cgroup v2 of this host has no controllers"),
        None => (None, "cgroup v2 is not mounted on this host"),
    };
    for (limit, property) in asked {
        if !limit.is_the_guests_too() {
            return Err(cgroup::Error::Nowhere(property.to_string(), why).into());
        }
        let told = format!("{property} is applied in the guest only: {why}");
        context.report.warn(&told);
    }
    if root.is_none() {
        context
            .report
            .warn(&format!("the container gets no cgroup: {why}"));
    }
    Ok(root)
}
