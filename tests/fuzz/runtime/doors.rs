//! Doors into the runtime for the fuzz targets. Only there when cargo-fuzz compiles; each shows as little as its target
//! needs, and judges nothing.

use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

pub use crate::host::network::fuzz as network;
pub use crate::machine::fuzz as machine;
pub use crate::verbs::fuzz as verbs;

use crate::config::Config;
use crate::host::selinux::Use;
use crate::plan::{Decision, Facts, FileKind, Owner, decide};

/// What a configuration comes to: a description of all that is decided, the text that the guest reads, and the options
/// of each mount as the host takes them.
pub struct Planned {
    pub description: String,
    pub text: String,
    pub refused: bool,
    pub memory: u64,
    pub vcpus: u8,
    pub seccomp: bool,
}

/// Decides about a configuration on a host of this file's own making. Nothing if it cannot be read.
#[must_use]
pub fn plan(text: &str, systemd: bool) -> Option<Planned> {
    let config = Config::parse(text.to_owned(), "config.json".into()).ok()?;
    let facts = Facts {
        bundle: Path::new("/b"),
        memory: 1 << 34,
        room: 1 << 34,
        kind: &kind,
        real: &|_, path| path.to_owned(),
        systemd,
        resctrl: true,
        policies: Some(&policy),
        selinux: Some(&label),
        labels: &|_| None,
        namespace: &namespace,
        annotations: &|_| Default::default(),
    };
    let Decision { ledger, plan } = decide(&config.spec, &config.value, &facts);
    let mut description = format!("{:?}", ledger.entries());
    let mut planned = Planned {
        description: String::new(),
        text: config.text,
        refused: plan.is_err(),
        memory: 0,
        vcpus: 0,
        seccomp: false,
    };
    match plan {
        Ok(plan) => {
            planned.memory = plan.memory;
            planned.vcpus = plan.vcpus;
            planned.seccomp = plan.overlay.seccomp.is_some();
            description += &format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                plan.shares,
                plan.overlay,
                plan.disks,
                plan.limits,
                plan.labels,
                plan.network,
                plan.warnings
            );
        }
        Err(refused) => description += &refused.to_string(),
    }
    planned.description = description;
    Some(planned)
}

/// Paths are what their names say.
fn kind(path: &Path) -> Result<FileKind, String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(match name.unwrap_or_default() {
        "missing" => return Err("no such file".into()),
        "file" | "resolv.conf" | "hosts" | "hostname" => FileKind::File,
        "socket" => FileKind::Socket,
        "fifo" => FileKind::Fifo,
        "sda" => FileKind::Block,
        _ => FileKind::Directory,
    })
}

/// There are the profiles that begin with `docker`.
fn policy(profile: &str) -> Result<Vec<u8>, String> {
    match profile.starts_with("docker") {
        true => Ok(profile.into()),
        false => Err("no such profile".into()),
    }
}

/// There are the labels that begin with `system_u`.
fn label(_: Use, label: &str) -> Result<String, String> {
    match label.starts_with("system_u") {
        true => Ok(label.into()),
        false => Err("no such label".into()),
    }
}

fn namespace(path: &Path, _: LinuxNamespaceType) -> Result<Owner, String> {
    if path.ends_with("missing") {
        Err("no such file".into())
    } else {
        Ok(Owner::Host)
    }
}
