//! The flags of `update`.

use std::path::PathBuf;

use clap::Args;

/// Limits as text; [`crate::verbs::update`] knows their units.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// File with a linux.resources object as JSON (- for standard input); the other flags are then ignored
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Refused unless 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) blkio_weight: u16,
    /// Length of a period of the CPU quota in microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_period: Option<String>,
    /// CPU time in a period in microseconds; -1 means no limit
    #[arg(long, value_name = "N")]
    pub(crate) cpu_quota: Option<String>,
    /// Unused quota that may be saved up, in microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_burst: Option<String>,
    /// Weight against other containers, 2 to 262144
    #[arg(long, value_name = "N")]
    pub(crate) cpu_share: Option<String>,
    /// 1: run only when no other container wants to
    #[arg(long, value_name = "N")]
    pub(crate) cpu_idle: Option<String>,
    /// Refused
    #[arg(long, value_name = "N")]
    pub(crate) cpu_rt_period: Option<String>,
    /// Refused
    #[arg(long, value_name = "N")]
    pub(crate) cpu_rt_runtime: Option<String>,
    /// CPUs of this host to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes of this host to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory in bytes, or with k, m, g; -1 means no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Memory that is kept from reclaim as long as possible
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_reservation: Option<String>,
    /// Memory and swap together; -1 means no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_swap: Option<String>,
    #[arg(long, value_name = "SIZE", hide = true)]
    pub(crate) kernel_memory: Option<String>,
    #[arg(long, value_name = "SIZE", hide = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Maximum number of processes; -1 means no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) pids_limit: i64,
    /// Refused
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Refused
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
}
