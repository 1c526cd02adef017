//! `exec`: another process in a container.

mod process;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use protocol::{Exit, to_hex};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::ask::open;
use super::context::Context;
use super::error::Error;
use super::facts;
use super::streams::Streams;
use crate::cli;
use crate::config::{self, CONFIG, Config, keys};
use crate::control::{self, Address, Connection, ControlReply, ExecRequest};
use crate::error::Doing;
use crate::host::cgroup::Cgroup;
use crate::host::preserved::Inherited;
use crate::host::relay::Relay;
use crate::host::signals;
use crate::host::stub::{self, InNetwork, Place};
use crate::host::surroundings;
use crate::host::terminal::{self, DescriptorSocket, Terminal};
use crate::ids::Ids;
use crate::plan::Room;
use crate::state::{self, Record, StateDir, Verb, write_atomically};
use process::{Wanted, sub_cgroup, wanted};

/// Largest file of `--process` in bytes: as JSON in JSON it fits into a request, unless most of it are quotes.
const PROCESS_MAX: u64 = protocol::MAX_FRAME as u64 / 2;

/// What runc says of the descriptor that it sends to `--pidfd-socket` for an exec.
const PIDFD_TEXT: &[u8] = b"setns";

/// Executes another process in a container; the exit code for the caller.
pub(crate) fn exec(context: &Context<'_>, args: &cli::Exec) -> Result<u8, Error> {
    exec_process(context, args).map_err(|e| Error::Exec(Box::new(e)))
}

fn exec_process(context: &Context<'_>, args: &cli::Exec) -> Result<u8, Error> {
    let dir = open(context.root, &args.id)?;
    let record = dir.record()?;
    let verb = if args.ignore_paused {
        Verb::ExecPaused
    } else {
        Verb::Exec
    };
    dir.status(record.as_ref())?.allows(verb, dir.id())?;
    let preserved = Inherited::preserved(args.preserve_fds).take()?;
    let Wanted {
        json,
        policy,
        label,
        process,
        warnings,
    } = load(&dir, args, record.as_ref())?;
    let oom_score_adj = process.oom_score_adj();
    for warning in &warnings {
        context.report.warn(warning);
    }
    context
        .report
        .debug(&format!("process for container {} loaded", args.id));
    let cgroup = sub_cgroup(&args.cgroup)?;
    let pidfd_socket = args.pidfd_socket.as_deref();
    let pidfd_socket = pidfd_socket.map(DescriptorSocket::connect).transpose()?;
    let terminal = terminal::prepare(&process, args.detach, args.console_socket.as_deref())?;

    let slave = terminal.as_ref().map(|terminal| terminal.slave.as_fd());
    let streams = Streams::of(slave, preserved)?;
    let address = dir.address(record.as_ref());
    let connection = request(&address, (json, policy), cgroup, streams)?;
    context
        .report
        .debug(&format!("process executed in container {}", args.id));
    let process = Executed {
        connection,
        terminal,
        pidfd_socket,
        pid_file: args.pid_file.as_deref(),
    };
    if !args.detach {
        return process.attend();
    }
    let record = record.ok_or(Error::NotRunning)?;
    let machine = record.process.ok_or(Error::NotRunning)?;
    let machine = machine.open().doing("open the container's process")?;
    let machine = machine.ok_or(Error::NotRunning)?;
    let cgroup = record
        .cgroup
        .map(|path| Cgroup::existing(path).open())
        .transpose()?;
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let place = Place {
        network: InNetwork::Of(machine.as_fd()),
        cgroup,
        oom_score_adj,
        ids: Ids::of_host()?,
        label: label.as_deref(),
        init: None,
    };
    process.detach(&place)
}

/// The process that the arguments ask for.
fn load(dir: &StateDir, args: &cli::Exec, record: Option<&Record>) -> Result<Wanted, Error> {
    let config = Config::load(dir.path())?;
    let own = &config.value["process"];
    let room = Room {
        vcpus: record.map_or(0, |record| record.vcpus),
        profile: own["apparmorProfile"].as_str(),
        policies: facts::policies(),
        label: record.and_then(|record| record.labels.process.as_deref()),
        selinux: facts::selinux(),
    };
    let limits = surroundings::limits().doing("read the resource limits")?;
    let limits = Some(&limits[..]);
    let Some(path) = &args.process else {
        let path = dir.path().join(CONFIG);
        return wanted(args, None, own, &path, &room, limits);
    };
    let mut text = String::new();
    let file = File::open(path).doing_to("open", path)?;
    file.take(PROCESS_MAX + 1)
        .read_to_string(&mut text)
        .doing_to("read", path)?;
    if text.len() as u64 > PROCESS_MAX {
        return Err(Error::Invalid(format!(
            "{} is larger than {PROCESS_MAX} bytes",
            path.display()
        )));
    }
    let mut file: Value = serde_json::from_str(&text).map_err(|source| config::Error::Json {
        path: path.clone(),
        source,
    })?;
    keys::correct(&mut file).map_err(|source| config::Error::Twice {
        path: path.clone(),
        source,
    })?;
    wanted(args, Some(file), own, path, &room, limits)
}

/// Has the process executed; from now on the connection stands for it, and the streams are the machine's alone.
fn request(
    address: &Address,
    (process, policy): (String, Vec<u8>),
    cgroup: String,
    streams: Streams,
) -> Result<Connection, Error> {
    let request = ExecRequest {
        process,
        policy: to_hex(policy),
        cgroup,
        passed: streams.passed(),
    };
    let descriptors = streams.descriptors();
    let (connection, answer) = control::exec(address, request, &descriptors)?;
    match answer {
        ControlReply::Executed => Ok(connection),
        ControlReply::Paused => Err(state::Error::ExecPaused.into()),
        ControlReply::Failed(text) => Err(Error::Reply(text)),
        _ => Err(Error::NotRunning),
    }
}

/// A process that runs. It is killed when this goes.
struct Executed<'a> {
    connection: Connection,
    terminal: Option<Terminal>,
    pidfd_socket: Option<DescriptorSocket>,
    pid_file: Option<&'a Path>,
}

impl Executed<'_> {
    /// Waits for the process; its exit code, or 128 and the number of the signal that ended it.
    fn attend(self) -> Result<u8, Error> {
        let signals = signals::take(self.terminal.is_some()).doing("take the signals")?;
        let pid_file = publish(
            std::process::id().cast_signed(),
            self.pidfd_socket,
            self.pid_file,
        )?;
        // The slave is the machine process's alone: the terminal hangs up when the process ends.
        let master = self.terminal.and_then(|terminal| terminal.master);
        let relay = master.map(Relay::start).transpose();
        let relay = relay.doing("lend the terminal")?;
        let resize = || relay.as_ref().and_then(Relay::resize);
        let resized = relay.is_some().then_some(&resize as &dyn Fn() -> _);
        let ended = stub::attend(&self.connection, &signals, resized, signals::is_passed_on);
        let exit = ended.doing("wait for the process")?.exit;
        if let Some(relay) = relay {
            relay.finish();
        }
        pid_file.keep();
        Ok(match exit {
            Exit::Code(code) => code,
            Exit::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
        })
    }

    /// Leaves the process to a stub.
    fn detach(self, place: &Place<'_>) -> Result<u8, Error> {
        let slave = self.terminal.map(|terminal| terminal.slave);
        let slave = slave.as_ref();
        let stub = stub::make(&self.connection, slave, place);
        let stub = stub.doing("start the process that stands for it")?;
        let pid_file = publish(stub.pid(), self.pidfd_socket, self.pid_file)?;
        stub.commit()
            .doing("commit the process that stands for it")?;
        pid_file.keep();
        Ok(0)
    }
}

/// A pid file that goes when its process has come to nothing.
struct PidFile<'a>(Option<&'a Path>);

impl PidFile<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Tells the caller which process stands for the one executed.
fn publish<'a>(
    pid: i32,
    socket: Option<DescriptorSocket>,
    pid_file: Option<&'a Path>,
) -> Result<PidFile<'a>, Error> {
    if let Some(socket) = socket {
        let pid = Pid::from_raw(pid).ok_or(Error::NotRunning)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).doing("open the process")?;
        socket.send(pidfd, PIDFD_TEXT)?;
    }
    if let Some(path) = pid_file {
        write_atomically(path, pid.to_string().as_bytes()).doing_to("write", path)?;
    }
    Ok(PidFile(pid_file))
}
