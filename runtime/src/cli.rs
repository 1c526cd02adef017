//! The command line: runc's, so that callers of runc need not know the difference.

mod argv;
mod criu;
mod resources;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use argv::{Stop, parse};
pub(crate) use criu::{Checkpoint, Restore};
pub(crate) use resources::Update;

use crate::clock;

/// The parts of the help, as runc's.
const HELP: &str = concat!(
    "NAME:\n   chiton - {about}\n\n\
     USAGE:\n   chiton [global options] command [command options] [arguments...]\n\n\
     VERSION:\n   ",
    env!("CARGO_PKG_VERSION"),
    "\n\n{all-args}"
);

/// Runs each container in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(
    name = "chiton",
    disable_version_flag = true,
    args_override_self = true,
    help_template = HELP,
    next_help_heading = "GLOBAL OPTIONS",
    subcommand_help_heading = "COMMANDS"
)]
pub(crate) struct Cli {
    /// Directory for the state of containers [default: /run/chiton, or chiton in $XDG_RUNTIME_DIR for others than root]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// File to which errors and warnings are appended
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", value_parser = log_format, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Also log each step
    #[arg(long)]
    pub(crate) debug: bool,
    /// Have systemd make the cgroup: linux.cgroupsPath is "slice:prefix:name"
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Refused by create and run if "true"
    #[arg(long, value_name = "MODE", value_parser = rootless, default_value = "auto")]
    pub(crate) rootless: Rootless,
    /// Accepted for compatibility
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// crun's name for --systemd-cgroup, and for no cgroup on this host
    #[arg(long, value_name = "NAME", hide = true, value_parser = ["cgroupfs", "systemd", "disabled"], default_value = "cgroupfs")]
    pub(crate) cgroup_manager: String,
    /// File to which the times of the start are written as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', long)]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The values of runc's `--rootless`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rootless {
    Auto,
    True,
    False,
}

/// How `list` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListFormat {
    Table,
    Json,
}

/// How `audit` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditFormat {
    Text,
    Json,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "" | "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("invalid log-format: {text}")),
    }
}

fn rootless(text: &str) -> Result<Rootless, String> {
    match text {
        "auto" => Ok(Rootless::Auto),
        "true" | "1" => Ok(Rootless::True),
        "false" | "0" => Ok(Rootless::False),
        _ => Err(format!("invalid value {text:?}: auto, true or false")),
    }
}

fn audit_format(text: &str) -> Result<AuditFormat, &'static str> {
    match text {
        "text" => Ok(AuditFormat::Text),
        "json" => Ok(AuditFormat::Json),
        _ => Err("invalid format option"),
    }
}

fn list_format(text: &str) -> Result<ListFormat, &'static str> {
    match text {
        "table" => Ok(ListFormat::Table),
        "json" => Ok(ListFormat::Json),
        _ => Err("invalid format option"),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a container without executing its program
    Create(Create),
    /// Execute the program of a created container
    Start(Id),
    /// Create and start a container
    Run(Run),
    /// Print the state of a container as JSON
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove a container that has stopped or was not started
    Delete(Delete),
    /// List the containers
    List(List),
    /// Execute another process in a container
    Exec(Exec),
    /// Suspend all processes of a container
    Pause(Id),
    /// Resume all processes of a container
    Resume(Id),
    /// Show the processes of a container
    Ps(Ps),
    /// Change the limits of a container
    Update(Update),
    /// Show statistics and out-of-memory events of a container
    Events(Events),
    /// Show what is done about each property of a configuration
    Explain(Explain),
    /// Print what this runtime supports as JSON
    Features,
    /// Refused: there is no checkpointing yet
    Checkpoint(Checkpoint),
    /// Refused: there is no checkpointing yet
    Restore(Restore),
    /// Write a config.json to start from
    Spec(Spec),
    /// Look from outside whether a container's processes on this host are in their jails
    ///
    /// Prints one line for each point: ok, FAIL, or note for what cannot be seen or decided. An exec that runs detached
    /// has lines of its own. None of the processes is asked anything; each thread is stopped for a moment. The exit
    /// code is 1 if there is a FAIL.
    Audit(Audit),
    /// Show what this host lacks
    Check,
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Directory that holds config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the machine process
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File to which the process id is written
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Accepted for compatibility: the guest decides how the root is entered
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Accepted for compatibility: keyrings of the guest are its own
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Pass on this many descriptors from number 3 on: pipes, connected stream sockets, terminals, /dev/null
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Do not wait for the container
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted for compatibility: the container's process is a child anyway
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Program and arguments, unless --process has them
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
    /// Unix socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Environment variable, NAME=VALUE
    #[arg(short, long, value_name = "ENTRY")]
    pub(crate) env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Additional group ids
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<i64>,
    /// File with an OCI process object as JSON
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File to which the process id is written
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Never let the process gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Capability to add
    #[arg(short, long, value_name = "CAPABILITY")]
    pub(crate) cap: Vec<String>,
    /// Pass on this many descriptors from number 3 on, as create does
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Cgroup below the container's own to start in
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Allow it in a paused container
    #[arg(long)]
    pub(crate) ignore_paused: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Options of ps(1)
    #[arg(
        value_name = "OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<String>,
    /// Format of the list
    #[arg(short, long, value_name = "FORMAT", value_parser = list_format, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Time between two statistics
    #[arg(long, value_name = "DURATION", value_parser = clock::duration, default_value = "5s")]
    pub(crate) interval: Duration,
    /// Print the statistics once
    #[arg(long)]
    pub(crate) stats: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// Send it to all processes of the container
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Kill the container if it runs; succeed if it does not exist
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Format of the list
    #[arg(short, long, value_name = "FORMAT", value_parser = list_format, default_value = "table")]
    pub(crate) format: ListFormat,
    /// Print the ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The configuration, or a directory that holds config.json [default: that of --bundle]
    #[arg(value_name = "CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Directory that holds config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// One line for each point, or JSON
    #[arg(short, long, value_name = "FORMAT", value_parser = audit_format, default_value = "text")]
    pub(crate) format: AuditFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Directory for config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Refused
    #[arg(long)]
    pub(crate) rootless: bool,
}
