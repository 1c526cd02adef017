//! The machine process from its first instruction to the guest's: into the jail, the VM built on the way; and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocol::{CONTROL_PORTS, Create, Extra, NAMES_ADDRESS, Setup, Stdio};
use vmm::vsock::Key;
use vmm::{MAX_NET_SLOTS, Machine, MachineConfig, Thread};

use super::agent::Agent;
use super::clients::Clients;
use super::clock::Clock;
use super::container::{self, Container};
use super::forwards::Forwards;
use super::launch::{Devices, Launch};
use super::life::{Life, Parts};
use super::log::Log;
use super::shortage::Limit;
use super::sync::{FromMachine, SyncSocket, ToMachine, give_up};
use super::timeline::{Timeline, now};
use super::tree::Exported;
use super::{cores, disk, jail, pins, streams};
use crate::error::{Doing, SystemError, one_line};
use crate::host::network::{self, localhost::Localhost};
use crate::host::selinux::{self, Transition};
use crate::state::{Journal, Network};
use crate::{control, filter, guest, sys};

/// How long the guest's kernel may keep the attributes and names of the exported tree.
const FS_TIMEOUT: Duration = Duration::from_secs(1);

// What the agent and the devices must agree upon, without a crate that both could have it from.
const _: () = assert!(protocol::BALLOON_DEVICE == vmm::BALLOON);
const _: () = assert!(same(protocol::SHARE_TAG, vmm::SHARE_TAG));

/// Whether two texts are equal; `==` is not for constants yet.
const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    a.len() == b.len() && at == a.len()
}

/// Why the machine process gives up before the guest runs.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot enter the jail")]
    Jail(#[from] jail::Error),
    #[error("cannot serve the container's files")]
    Fs(#[from] vmm_fs::Error),
    #[error("cannot build the virtual machine")]
    Machine(#[from] vmm::Error),
    #[error("cannot pass on the standard streams")]
    Streams(#[from] vmm::vsock::Error),
    #[error(transparent)]
    System(#[from] super::Error),
}

impl From<SystemError> for Error {
    fn from(e: SystemError) -> Error {
        super::Error::from(e).into()
    }
}

/// What stays of the host's directories when the machine process is in its jail: no descriptor of any of them.
struct Files {
    listener: UnixListener,
    journal: Journal,
    /// The bundle, as the root of a mount of its own.
    bundle: OwnedFd,
    log: Log,
    /// The limit of memory of the machine's cgroup.
    limit: Option<Limit>,
}

impl Files {
    fn open(launch: &Launch<'_>) -> Result<Files, Error> {
        // A pod outlives the log of the container that came first.
        let report = launch.pinned.is_none().then_some(launch.report);
        // What this process is to write to has the label for that. The socket is the verbs' alone.
        let label = launch.labels.files.as_deref();
        let journal = selinux::creating(label, || Journal::create(launch.state_dir));
        let log = selinux::creating(label, || Log::create(launch.state_dir, report));
        Ok(Files {
            listener: control::listen(launch.state_dir).doing("listen on control.sock")?,
            journal: journal.doing("create the journal")?,
            bundle: jail::confined(Path::new(launch.bundle))?,
            log: log.doing("create the log")?,
            limit: match launch.cgroup {
                Some(cgroup) => Limit::open(cgroup).doing("open memory.max")?,
                None => None,
            },
        })
    }
}

/// Everything the machine process does after it has been cloned.
pub(super) fn main(launch: Launch<'_>, devices: Devices, sync: SyncSocket) -> ! {
    let life = Files::open(&launch).and_then(|files| {
        close_the_callers_descriptors(&launch, &devices, &files, &sync)
            .doing("close inherited descriptors")?;
        let (parts, container) = prepare(launch, devices, files, &sync)?;
        let life = Life::new(parts, container, &sync)?;
        filter::set_of("main").doing("filter system calls")?;
        Ok(life)
    });
    match life {
        Ok(life) => sys::end_as(life.live(sync)),
        Err(e) => give_up(&sync, one_line(&e)),
    }
}

/// Keeps the standard streams, what the launch passes on and what has been opened for the jail.
#[allow(unsafe_code, reason = "only here are the descriptors known")]
fn close_the_callers_descriptors(
    launch: &Launch<'_>,
    devices: &Devices,
    files: &Files,
    sync: &SyncSocket,
) -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut keep = vec![
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        sync.as_fd(),
        devices.kvm.as_fd(),
        devices.null.as_fd(),
        files.listener.as_fd(),
        files.journal.as_fd(),
        files.bundle.as_fd(),
    ];
    keep.extend(files.log.descriptors());
    keep.extend(files.limit.iter().flat_map(Limit::descriptors));
    keep.extend(launch.timeline.as_ref().map(AsFd::as_fd));
    keep.extend(launch.terminal.as_ref().map(AsFd::as_fd));
    keep.extend(
        launch
            .preserved
            .iter()
            .map(|preserved| preserved.fd.as_fd()),
    );
    // SAFETY: this process is a copy that never returns into the verb's code, so the verb's values are neither used nor
    // dropped here; of the launch, the devices and the files only the descriptors kept are used: `launch.state_dir` is
    // not, from here on.
    unsafe { sys::close_all_but(&keep) }
}

/// Into the jail and up to the first KVM_RUN.
fn prepare(
    mut launch: Launch<'_>,
    devices: Devices,
    mut files: Files,
    sync: &SyncSocket,
) -> Result<(Parts, Container), Error> {
    let signals = leave_the_caller()?;
    take_properties(&launch)?;
    let terminal = launch.terminal.as_ref().map(OwnedFd::try_clone);
    let terminal = terminal.transpose().doing("duplicate the terminal")?;
    let own = launch.pinned.is_none();
    let streams = streams::of_launch(own, launch.terminal.take(), devices.null)?;
    let preserved = std::mem::take(&mut launch.preserved).into_iter();
    let preserved = preserved
        .map(|preserved| streams::extra(preserved.fd, preserved.direction, false))
        .collect::<Result<Vec<_>, _>>()?;

    let descriptors = jail::set_limits()?;
    let disks = disk::open(&launch.disks)?;
    network::enter(&launch.network)?;
    let pins = pins::watch(&launch)?;
    let localhost = localhost(&launch.network, &mut files.log);
    let transition = Transition::to(launch.labels.process.as_deref())?;
    let (mut tree, users) = jail::enter_tree(&launch, &files.bundle)?;
    launch.overlay.mounts = std::mem::take(&mut tree.mounts);
    jail::enter_user_namespace(users.namespace)?;
    take_label(transition, sync)?;
    sync.send(&FromMachine::Entered)
        .doing("tell of the namespaces")?;
    let set_up = now();

    let (server, exported) = file_server(&launch, tree, descriptors)?;
    let config = MachineConfig {
        kernel: guest::KERNEL,
        initramfs: guest::INITRAMFS,
        memory: launch.memory,
        vcpus: launch.vcpus,
        // Disks take some of the room.
        net_slots: launch
            .network
            .slots()
            .min(MAX_NET_SLOTS.saturating_sub(disks.len())),
        disks: &disks,
        apparmor: launch.apparmor,
    };
    let mut machine = Machine::new(devices.kvm.into(), config, server)?;
    let (agent, guest_end) = Agent::new().doing("create the control channel")?;
    let control = Key {
        guest_port: CONTROL_PORTS.guest,
        host_port: CONTROL_PORTS.host,
    };
    machine.vsock().expect(control, guest_end)?;
    let (stdio, extra) = streams::offer(streams, preserved, |_, stream| {
        streams::offer_one(machine.vsock(), stream)
    })?;

    await_verb(sync)?;
    jail::drop_privileges(users.own)?;
    jail::confine(&files.bundle, NAMES_ADDRESS)?;
    filter::announce(files.log.last_words().doing("duplicate the log")?)
        .doing("watch for what filters forbid")?;
    machine.start(Arc::new(enter))?;
    let parts = Parts {
        machine,
        exported,
        agent,
        signals,
        clock: Clock::new().doing("watch the clock")?,
        clients: Clients::new(files.listener).doing("watch control.sock")?,
        forwards: Forwards::new(localhost),
        pins,
        log: files.log,
        timeline: Timeline {
            begun: launch.begun,
            set_up,
            ..Timeline::default()
        },
        timeline_file: launch.timeline.take(),
    };
    let create = create(launch, terminal.as_ref(), stdio, extra)?;
    let its_files = container::Files {
        journal: files.journal,
        bundle: Some(files.bundle),
        terminal,
        limit: files.limit,
    };
    Ok((parts, Container::new(create, its_files)))
}

/// Takes the SELinux label, if there is one to take: what is left to do needs nothing that a policy would not allow a
/// machine anyway.
fn take_label(transition: Option<Transition<'_>>, sync: &SyncSocket) -> Result<(), SystemError> {
    let Some(transition) = transition else {
        return Ok(());
    };
    transition.take()?;
    sync.send(&FromMachine::Labelled)
        .doing("tell of the label")?;
    await_verb(sync)
}

/// Waits until the verb has done its part.
fn await_verb(sync: &SyncSocket) -> Result<(), SystemError> {
    let proceed: Option<ToMachine> = sync.receive().doing("wait for the verb")?;
    if proceed.is_none() {
        // It has gone, and with it the wish for a container.
        sys::exit_now(1);
    }
    Ok(())
}

/// What leads connections to localhost to the guest, in a namespace that others than this process's caller may enter.
/// On a kernel without BPF a machine has all but that.
fn localhost(network: &Network, log: &mut Log) -> Option<Localhost> {
    let Network::Path(_) = network else {
        return None;
    };
    let localhost = Localhost::new().inspect_err(|e| {
        log.write(&format!(
            "connections to localhost do not get to the guest: {}",
            one_line(e)
        ));
    });
    localhost.ok()
}

fn file_server(
    launch: &Launch<'_>,
    tree: jail::Tree,
    descriptors: usize,
) -> Result<(Arc<vmm_fs::Server>, Exported), Error> {
    let server = vmm_fs::Server::new(vmm_fs::Config {
        root: tree.root,
        proc_self_fd: tree.proc_self_fd,
        open_fd_limit: descriptors,
        held_fd_limit: descriptors,
        timeout: FS_TIMEOUT,
        mounts: tree.served,
        maps: launch.isolation.dax,
    })?;
    let server = Arc::new(server);
    let exported = Exported {
        server: Arc::clone(&server),
        mountinfo: tree.mountinfo,
        privileges: launch.isolation.volume_privileges,
    };
    Ok((server, exported))
}

/// What each thread does first.
fn enter(thread: Thread) -> io::Result<()> {
    if let Thread::Fs(_) | Thread::Vcpu(_) = thread {
        vmm_fs::enter_worker_thread().map_err(io::Error::other)?;
    }
    filter::set_of(&thread.to_string())
}

/// Gives this process what the configuration and the caller say of it.
fn take_properties(launch: &Launch<'_>) -> Result<(), SystemError> {
    if let Some(score) = launch.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).doing("set oom_score_adj")?;
    }
    // All that this process and its threads take from here on, guest RAM included.
    if let Some(policy) = &launch.memory_policy {
        sys::set_memory_policy(policy).doing("set linux.memoryPolicy")?;
    }
    if launch.isolation.core_scheduling {
        cores::share_with_nobody()?;
    }
    if let Some(terminal) = &launch.terminal {
        rustix::process::ioctl_tiocsctty(terminal).doing("take the terminal")?;
    }
    Ok(())
}

/// What the agent is told of the container.
fn create(
    launch: Launch<'_>,
    terminal: Option<&OwnedFd>,
    stdio: Stdio,
    extra: Vec<Extra>,
) -> Result<Create, SystemError> {
    let setup = Setup {
        id: launch.id.to_owned(),
        bundle: launch.bundle.to_owned(),
        overlay: launch.overlay,
        config: launch.config.as_bytes().to_vec(),
    };
    let setup = setup.encode().map_err(io::Error::other);
    Ok(Create {
        cgroup: launch.guest_cgroup,
        own_pids: launch.own_pids,
        joins: Vec::new(),
        terminal: terminal.is_some(),
        plain_newlines: terminal.is_some_and(streams::plain_newlines),
        notify: launch.notify,
        stdio,
        extra,
        setup: setup.doing("describe the container")?,
        policy: launch.policy,
    })
}

/// A session of its own, and every signal that can be caught as an event: the caller's terminal and its signals are not
/// the container's. SIGSYS is the filters'.
fn leave_the_caller() -> Result<SignalFd, SystemError> {
    nix::unistd::setsid().doing("start a session")?;
    let mut signals = SigSet::all();
    signals.remove(Signal::SIGCHLD);
    signals.remove(Signal::SIGPIPE);
    signals.remove(Signal::SIGSYS);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None).doing("block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .doing("create a signalfd")
}
