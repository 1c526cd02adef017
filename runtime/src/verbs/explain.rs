//! `explain`: what becomes of each property of a configuration; and the decision about one, which `create` follows.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use protocol::to_hex;
use serde_json::{Value, json};
use specification::namespace;

use super::Context;
use crate::cli;
use crate::config::{CONFIG, Config};
use crate::host::resctrl;
use crate::plan::{self, Decision, Entry, Facts, FileKind, Ledger, Owner, Plan};
use crate::state::StateDir;
use crate::verbs::error::{Error, FileContext, SystemContext};

/// The decision as text, and whether there is anything that `create` would refuse.
pub(crate) fn explain(context: &Context<'_>, args: &cli::Explain) -> Result<(String, bool), Error> {
    let path = args.config.as_ref().unwrap_or(&args.bundle);
    let path = fs::canonicalize(path).file("open", path)?;
    let file = if path.is_dir() {
        path.join(CONFIG)
    } else {
        path
    };
    let bundle = file.parent().unwrap_or_else(|| Path::new("/"));
    let config = Config::load_file(file.clone())?;
    for warning in &config.warnings {
        context.report.warn(warning);
    }
    let Decision { ledger, plan } = decide(context, &config, bundle)?;
    let plan = plan.as_ref().ok();
    let text = if args.json {
        as_json(&ledger, plan)
    } else {
        as_text(&ledger, plan)
    };
    Ok((text, plan.is_none()))
}

/// One line for each property, and one for the machine.
fn as_text(ledger: &Ledger, plan: Option<&Plan>) -> String {
    let machine = plan.map(|plan| {
        let word = if plan.vcpus == 1 { "vCPU" } else { "vCPUs" };
        format!("{} MiB of memory, {} {word}", plan.memory >> 20, plan.vcpus)
    });
    let line = |entry: &Entry| {
        let (word, reason) = entry.words();
        let reason = reason.map(|reason| format!(": {reason}"));
        let text = format!("{word}{}", reason.unwrap_or_default());
        (entry.property.clone(), text)
    };
    let machine = machine.map(|machine| ("(the machine)".to_owned(), machine));
    let lines: Vec<_> = ledger.entries().iter().map(line).chain(machine).collect();
    let length = |(property, _): &(String, String)| property.chars().count();
    let width = lines.iter().map(length).max().unwrap_or(0) + 2;
    lines
        .iter()
        .fold(String::new(), |mut text, (property, line)| {
            // Writing to a string does not fail. A name may hold anything: it must not look like two lines.
            let property = property.escape_debug().to_string();
            let _ = writeln!(text, "{property:width$}{}", line.replace('\n', "\\n"));
            text
        })
}

fn as_json(ledger: &Ledger, plan: Option<&Plan>) -> String {
    let entry = |entry: &Entry| {
        let (word, reason) = entry.words();
        let mut value = json!({"property": entry.property, "applied": word});
        if let Some(reason) = reason {
            value["reason"] = Value::String(reason);
        }
        value
    };
    let properties: Vec<Value> = ledger.entries().iter().map(entry).collect();
    let machine = plan.map(|plan| json!({"memory": plan.memory, "vcpus": plan.vcpus}));
    let filter = plan.and_then(|plan| plan.overlay.seccomp.as_ref());
    let filter = filter.map(|filter| {
        // The `struct sock_filter`s (linux/filter.h) as they are in memory.
        let program = filter.program.iter().flat_map(|word| word.to_le_bytes());
        json!({"flags": filter.flags, "program": to_hex(program)})
    });
    let value = json!({"properties": properties, "machine": machine, "seccomp": filter});
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

/// Decides about the configuration of a bundle.
pub(super) fn decide(
    context: &Context<'_>,
    config: &Config,
    bundle: &Path,
) -> Result<Decision, Error> {
    let memory = nix::sys::sysinfo::sysinfo()
        .system("read the host's memory size")?
        .ram_total();
    let facts = Facts {
        bundle,
        memory,
        kind: &FileKind::of,
        systemd: context.systemd_cgroup,
        resctrl: resctrl::is_mounted(),
        namespace: &|path, kind| owner(context.root, path, kind),
    };
    Ok(plan::decide(&config.spec, &config.value, &facts))
}

/// Whose namespace a path leads to. A machine process shares some namespaces with this host; who names one of them by that process
/// nevertheless means the container.
fn owner(root: &Path, path: &Path, kind: Kind) -> Result<Owner, String> {
    let problem = |e: &dyn std::fmt::Display| format!("open {}: {e}", path.display());
    let found = fs::metadata(path).map_err(|e| problem(&e))?;
    if statfs(path).map_err(|e| problem(&e))?.filesystem_type() != NSFS_MAGIC {
        return Err(format!("{} is no namespace", path.display()));
    }
    if kind == Kind::Network {
        // It is joined, whosever it is.
        return Ok(Owner::Host);
    }
    let identity = |path: &Path| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    let of = |process: &str| PathBuf::from(format!("/proc/{process}/ns/{}", namespace::file(kind)));
    let found = Some((found.dev(), found.ino()));
    let hosts = identity(&of("self")) == found;
    for dir in StateDir::all(root).map_err(|e| e.to_string())? {
        let machine = dir
            .record()
            .ok()
            .flatten()
            .and_then(|record| record.machine);
        let Some(machine) = machine.filter(crate::state::Identity::is_alive) else {
            continue;
        };
        let own = of(&machine.pid.to_string());
        if path == own || !hosts && identity(&own) == found {
            return Ok(Owner::Container(dir.id().to_owned()));
        }
    }
    Ok(Owner::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_this_host_are_no_containers() {
        let state = tempfile::tempdir().unwrap();
        let owner = |path: &str, kind| super::owner(state.path(), Path::new(path), kind);
        for (name, kind) in [
            ("ipc", Kind::Ipc),
            ("net", Kind::Network),
            ("pid", Kind::Pid),
        ] {
            let path = format!("/proc/self/ns/{name}");
            assert_eq!(owner(&path, kind), Ok(Owner::Host), "{name}");
        }
        assert!(
            owner("/proc/self/status", Kind::Ipc)
                .unwrap_err()
                .contains("is no namespace")
        );
        assert!(
            owner("/no/such", Kind::Ipc)
                .unwrap_err()
                .contains("No such file")
        );
    }
}
