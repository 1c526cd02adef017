//! `create`: all or nothing. Each step that makes something is undone when a later one fails.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::explain;
use crate::cli;
use crate::clock::{self, Precision};
use crate::config::Config;
use crate::host::cgroup::systemd::{self, Scope};
use crate::host::cgroup::{self, Cgroup, Layout};
use crate::host::hooks::{Hooks, Kind};
use crate::host::network::Moved;
use crate::host::notify::Manager;
use crate::host::preserved::Asked;
use crate::host::resctrl;
use crate::host::terminal::{self, DescriptorSocket};
use crate::machine::{self, Launch};
use crate::plan::Plan;
use crate::report::Report;
use crate::state::ContainerId;
use crate::state::Identity;
use crate::state::{Groups, Lock, Record, StateDir, write_atomically};
use crate::verbs::error::{Error, FileContext, SystemContext};

/// What the global flags say.
pub(crate) struct Context<'a> {
    pub(crate) root: &'a Path,
    pub(crate) report: &'a Report,
    pub(crate) systemd_cgroup: bool,
    /// The container is to have no cgroup on this host.
    pub(crate) no_cgroup: bool,
    pub(crate) rootless: bool,
    pub(crate) timeline: Option<&'a Path>,
    /// CLOCK_MONOTONIC at the start of the program.
    pub(crate) begun: Duration,
}

/// A container that has been created, still locked.
pub(super) struct Created {
    pub(super) dir: StateDir,
    pub(super) record: Record,
    pub(super) machine: Identity,
    pub(super) lock: Lock,
    /// The master of its terminal, for a verb that stays.
    pub(super) master: Option<OwnedFd>,
    /// Who is to be told when it is ready.
    pub(super) manager: Option<Manager>,
}

/// What runc says of the descriptor that it sends to `--pidfd-socket` for a container.
const PIDFD_TEXT: &[u8] = b"standard";

/// Creates a container.
pub(crate) fn create(context: &Context<'_>, args: &cli::Create) -> Result<(), Error> {
    created(context, args, true)
        .map(drop)
        .map_err(|e| Error::Failed("create", Box::new(e)))
}

/// Creates a container and keeps its lock. `detached`: the verb does not wait for the container's end.
pub(super) fn created(
    context: &Context<'_>,
    args: &cli::Create,
    detached: bool,
) -> Result<Created, Error> {
    let id: ContainerId = args.id.parse()?;
    check_flags(context)?;
    let bundle = fs::canonicalize(&args.bundle).file("chdir", &args.bundle)?;
    let config = Config::load(&bundle)?;
    let mut plan = explain::decide(context, &config, &bundle)?.plan?;
    let debug = |text: String| context.report.debug(&text);
    debug(format!("configuration of {} loaded", bundle.display()));
    for warning in &config.warnings {
        context.report.warn(warning);
    }
    for ignored in &plan.warnings {
        context.report.note(ignored);
    }
    let rootfs = plan.rootfs().to_owned();
    let asked = Asked::with_environment(args.preserve_fds);
    let preserved = asked.take()?;
    let manager = Manager::of_environment();
    plan.overlay.env = asked.environment();
    if manager.is_some() {
        plan.overlay.notify = true;
        plan.overlay.env.push(Manager::environment());
    }
    let scope = if context.systemd_cgroup {
        let annotations = config.spec.annotations().iter().flatten();
        let scope = Scope::parse(plan.cgroups_path.as_deref(), id.as_str(), annotations);
        Some(scope.map_err(cgroup::Error::from)?)
    } else {
        None
    };
    let timeline = context
        .timeline
        .map(|path| File::create(path).file("create", path))
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

    let mut attempt = Attempt {
        dir: Some(StateDir::create(context.root, &id)?),
        cgroup: None,
        resctrl: None,
        pid_file: None,
        lock: None,
    };
    // The machine process closes its copy of the lock at once.
    attempt.lock = Some(attempt.dir()?.lock()?);
    attempt.dir()?.write_config(config.text.as_bytes())?;
    let bundle_text = bundle.to_string_lossy().into_owned();
    let mut record = Record::new(id.as_str(), bundle, rootfs);
    record.oci_version = config.spec.version().clone();
    record.annotations = config
        .spec
        .annotations()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    record.created = clock::now(Precision::Nanoseconds);
    record.owner = geteuid().as_raw();
    record.notify = plan.overlay.notify;
    (record.memory, record.vcpus) = (plan.memory, plan.vcpus);
    record.network = plan.network.clone();
    record.net_devices = plan
        .net_devices
        .iter()
        .map(|device| device.inside.clone())
        .collect();
    let root = cgroup_root(context, &plan)?;
    record.scope = scope.as_ref().map(|scope| scope.name().to_owned());
    record.cgroup = match (&root, &scope) {
        (Some(root), Some(scope)) => Some(scope.directory(root)),
        (Some(root), None) => {
            let (own, path) = (cgroup::own()?, plan.cgroups_path.as_deref());
            Some(cgroup::locate(root, &own, path, id.as_str())?)
        }
        (None, Some(_)) => return Err(cgroup::Error::from(systemd::Error::NoHierarchy).into()),
        (None, None) => None,
    };
    let rdt = plan.intel_rdt.as_ref();
    record.resctrl = rdt.map(|rdt| Groups::of(Path::new(resctrl::ROOT), id.as_str(), rdt));
    // From here on a create that is killed leaves enough for delete to find everything.
    attempt.dir()?.write_record(&record)?;
    if let (Some(groups), Some(rdt)) = (&record.resctrl, rdt) {
        groups.make(rdt)?;
        attempt.resctrl = Some(groups.clone());
    }
    let mut placeholder = None;
    if let (Some(root), Some(path)) = (&root, &record.cgroup) {
        attempt.cgroup = Some(match &scope {
            Some(scope) => {
                let (cgroup, process) = Cgroup::of_scope(root, scope, &plan.limits)?;
                placeholder = Some(process);
                cgroup
            }
            None => Cgroup::create(root, path.clone(), &plan.limits)?,
        });
        debug(format!("cgroup {} made", path.display()));
    }

    let cgroup = attempt.cgroup.as_ref().map(Cgroup::open).transpose()?;
    let launch = Launch {
        id: id.as_str(),
        config: &config.text,
        bundle: &bundle_text,
        overlay: plan.overlay,
        memory: plan.memory,
        vcpus: plan.vcpus,
        shares: plan.shares,
        disks: plan.disks,
        network: plan.network,
        memory_policy: plan.memory_policy,
        oom_score_adj: plan.oom_score_adj,
        state_dir: attempt.dir()?.as_fd(),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        timeline,
        terminal: slave,
        preserved,
        report: context.report,
        begun: context.begun,
    };
    let hooks = Hooks::of(&config.spec, &record);
    let groups = record.resctrl.clone();
    let mut moved = None;
    let mut ready = |pid| {
        debug(format!("machine process {pid} is in its namespaces"));
        if !plan.net_devices.is_empty() {
            moved = Some(Moved::to(pid, &plan.net_devices)?);
        }
        if let Some(groups) = &groups {
            groups.add(pid)?;
        }
        hooks.run(Kind::Prestart, pid)?;
        hooks.run(Kind::CreateRuntime, pid)?;
        Ok(hooks.run(Kind::CreateContainer, pid)?)
    };
    let spawned = match machine::spawn(launch, &mut ready) {
        Ok(spawned) => spawned,
        Err(e) => {
            drop(moved);
            attempt.undo();
            // They undo what the hooks before them have done, of which there may be some.
            hooks.run_poststop(context.report);
            return Err(e.into());
        }
    };
    drop(placeholder);
    let machine = Identity::of(spawned.pid()).ok_or(machine::Error::NotRunning)?;
    debug(format!("container prepared in machine {}", machine.pid));
    record.machine = Some(machine);
    attempt.dir()?.write_record(&record)?;
    debug("container on record".to_owned());
    if let Some(path) = &args.pid_file {
        write_atomically(path, machine.pid.to_string().as_bytes()).file("write", path)?;
        attempt.pid_file = Some(path.clone());
    }
    if let Some(socket) = pidfd_socket {
        let pidfd = machine.open().system("open the machine process")?;
        socket.send(pidfd.ok_or(machine::Error::NotRunning)?, PIDFD_TEXT)?;
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
        master,
        manager,
    })
}

/// What has been made so far. Undone in reverse when it is dropped before it is kept; the machine, younger than all of it, has ended then.
struct Attempt {
    dir: Option<StateDir>,
    cgroup: Option<Cgroup>,
    resctrl: Option<Groups>,
    pid_file: Option<PathBuf>,
    /// Held until all is undone: the id is free when the lock is.
    lock: Option<Lock>,
}

impl Attempt {
    fn dir(&self) -> Result<&StateDir, Error> {
        self.dir.as_ref().ok_or(Error::NotFound)
    }

    fn keep(mut self) -> Result<(StateDir, Lock), Error> {
        self.pid_file = None;
        self.resctrl = None;
        self.cgroup = None;
        self.dir.take().zip(self.lock.take()).ok_or(Error::NotFound)
    }
}

impl Attempt {
    fn undo(&mut self) {
        // The error that led here is the one to report. What cannot be removed now is left to `delete --force`.
        if let Some(path) = self.pid_file.take() {
            let _ = fs::remove_file(path);
        }
        let groups = self.resctrl.take();
        let groups = groups.as_ref().map_or(Ok(()), Groups::remove);
        let cgroup = self.cgroup.take();
        let cgroup = cgroup.as_ref().map_or(Ok(()), Cgroup::remove);
        if let (Some(dir), Ok(()), Ok(())) = (self.dir.take(), cgroup, groups) {
            let _ = dir.remove();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.undo();
    }
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

/// The cgroup v2 hierarchy for the container, unless it is to have no cgroup. Where it has no controllers, the caller is told what that means.
fn cgroup_root(context: &Context<'_>, plan: &Plan) -> Result<Option<PathBuf>, Error> {
    let asked = plan.limits.iter().find_map(|limit| limit.property.as_ref());
    if context.no_cgroup {
        return match asked {
            Some(property) => Err(cgroup::Error::Disabled(property.to_string()).into()),
            None => Ok(None),
        };
    }
    match cgroup::hierarchy() {
        Some((root, Layout::Unified)) => Ok(Some(root)),
        Some((root, Layout::Hybrid)) => {
            if let Some(property) = asked {
                context.report.warn(&format!(
                    "{property} is applied in the guest only: cgroup v2 of this host has no controllers"
                ));
            }
            Ok(Some(root))
        }
        None => {
            context
                .report
                .warn("the container gets no cgroup on this host: cgroup v2 is not mounted");
            Ok(None)
        }
    }
}
