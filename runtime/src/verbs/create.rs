//! `create`: all or nothing. Each step that makes something is undone when a later one fails ([`Attempt`]).
//!
//! prepare (nothing is made) ──> record ──> confine (cgroup, resctrl) ──> launch (the machine, hooks) ──> commit

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::attempt::Attempt;
use super::context::Context;
use super::error::Error;
use super::facts;
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
use crate::machine::{self, Launch, Spawned};
use crate::plan::{self, Plan};
use crate::state::{ContainerId, Groups, Identity, Lock, Record, StateDir, write_atomically};

/// A container that has been created, still locked.
pub(super) struct Created {
    pub(super) dir: StateDir,
    pub(super) record: Record,
    pub(super) machine: Identity,
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
    let mut attempt = Attempt::begin(context.root, &prepared.id)?;
    attempt
        .dir()?
        .write_config(prepared.config.text.as_bytes())?;
    let root = cgroup_root(context, &prepared.plan)?;
    let record = record(&prepared, root.as_deref())?;
    // From here on a create that is killed leaves enough for delete to find everything.
    attempt.dir()?.write_record(&record)?;
    let placeholder = confine(context, &mut attempt, &prepared, &record, root.as_deref())?;
    let launched = launch(context, &mut attempt, prepared, &record)?;
    drop(placeholder);
    commit(context, args, attempt, launched, record, caller)
}

/// A container that can be had, and all that its machine is made from.
struct Prepared {
    id: ContainerId,
    /// Absolute path.
    bundle: PathBuf,
    config: Config,
    plan: Plan,
    /// For a cgroup that systemd makes.
    scope: Option<Scope>,
    timeline: Option<File>,
    /// The slave of its terminal.
    slave: Option<OwnedFd>,
    preserved: Vec<Preserved>,
    /// Somebody is to be told when the container is ready.
    notify: bool,
}

/// What is left for the caller.
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
    let scope = if context.systemd_cgroup {
        let annotations = config.spec.annotations().iter().flatten();
        let scope = Scope::parse(plan.cgroups_path.as_deref(), id.as_str(), annotations);
        Some(scope.map_err(cgroup::Error::from)?)
    } else {
        None
    };
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
    };
    let caller = Caller {
        pidfd_socket,
        master,
        notify,
    };
    Ok((prepared, caller))
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

/// Makes the groups of resctrl and the cgroup. A scope's cgroup exists while there is a process in it: until the
/// machine is, the placeholder.
fn confine(
    context: &Context<'_>,
    attempt: &mut Attempt,
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

/// A machine whose container is created, and the network devices that have moved to it.
struct Launched {
    spawned: Spawned,
    moved: Option<Moved>,
}

/// Starts the machine, and runs the hooks while it waits. On an error all of the attempt is undone, and the hooks for
/// that have run.
fn launch(
    context: &Context<'_>,
    attempt: &mut Attempt,
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
        Ok(spawned) => Ok(Launched { spawned, moved }),
        Err(e) => {
            drop(moved);
            attempt.undo();
            // They undo what the hooks before them have done, of which there may be some.
            hooks.run_poststop(context.report);
            Err(e.into())
        }
    }
}

/// Puts the machine on record, tells the caller of it, and lets it live.
fn commit(
    context: &Context<'_>,
    args: &cli::Create,
    mut attempt: Attempt,
    launched: Launched,
    mut record: Record,
    caller: Caller,
) -> Result<Created, Error> {
    // On an error they are dropped in reverse: the machine ends, then the devices move back.
    let Launched { moved, spawned } = launched;
    let machine = Identity::of(spawned.pid()).ok_or(Error::NotRunning)?;
    let prepared = format!("container prepared in machine {}", machine.pid);
    context.report.debug(&prepared);
    record.machine = Some(machine);
    attempt.dir()?.write_record(&record)?;
    context.report.debug("container on record");
    if let Some(path) = &args.pid_file {
        write_atomically(path, machine.pid.to_string().as_bytes()).doing_to("write", path)?;
        attempt.pid_file = Some(path.clone());
    }
    if let Some(socket) = caller.pidfd_socket {
        let pidfd = machine.open().doing("open the machine process")?;
        socket.send(pidfd.ok_or(Error::NotRunning)?, PIDFD_TEXT)?;
    }
    spawned.commit()?;
    if let Some(moved) = moved {
        moved.keep();
    }
    let (dir, lock) = attempt.keep()?;
    Ok(Created {
        dir,
        record,
        machine,
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
