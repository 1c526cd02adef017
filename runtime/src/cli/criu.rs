//! The flags of `checkpoint` and `restore`: all of runc's, so that what is refused is the verb and not a flag.

use std::path::PathBuf;

use clap::Args;

/// What both verbs have.
#[derive(Debug, Args)]
pub(crate) struct Criu {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Directory of the image
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Directory of the work files
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    #[arg(long)]
    tcp_established: bool,
    #[arg(long)]
    ext_unix_sk: bool,
    #[arg(long)]
    shell_job: bool,
    #[arg(long)]
    file_locks: bool,
    #[arg(long)]
    lazy_pages: bool,
    #[arg(long)]
    auto_dedup: bool,
    #[arg(long)]
    link_remap: bool,
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<String>,
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    pub(crate) criu: Criu,
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    #[arg(long)]
    leave_running: bool,
    #[arg(long)]
    tcp_skip_in_flight: bool,
    #[arg(long, value_name = "FD")]
    status_fd: Option<i32>,
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    #[arg(long)]
    pre_dump: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) criu: Criu,
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    #[arg(short, long)]
    detach: bool,
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[arg(long)]
    no_subreaper: bool,
    #[arg(long)]
    no_pivot: bool,
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
}
