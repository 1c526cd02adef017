//! `update`: the host's limits first, then the guest's. When the guest's cannot be changed the host's are put back. A
//! lower limit of memory comes last: the machine has given memory back when the guest has answered.

mod flags;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use super::ask::{done, open};
use super::error::Error;
use crate::cli;
use crate::config::{Config, keys};
use crate::control::{Control, control};
use crate::error::Doing;
use crate::host::cgroup::Cgroup;
use crate::host::resctrl;
use crate::plan::{self, MachineSize};
use crate::report::Report;
use crate::state::Verb;

/// Largest file of resources in bytes: as JSON in JSON it still fits into a request.
const RESOURCES_MAX: u64 = 256 << 10;

/// Changes the limits of a container.
pub(crate) fn update(root: &Path, args: &cli::Update, report: &Report) -> Result<(), Error> {
    let dir = open(root, &args.id)?;
    let request = request(args)?;
    // One update at a time, so that what is put back is what was.
    let _lock = dir.lock()?;
    let record = dir.record()?;
    dir.status(record.as_ref())?
        .allows(Verb::Update, dir.id())?;
    let record = record.ok_or(Error::NotRunning)?;
    let address = dir.address(Some(&record));
    let config = Config::load(dir.path())?;
    let machine = MachineSize {
        memory: record.memory,
        vcpus: record.vcpus,
        host: super::facts::memory()?,
    };
    let update = plan::update(&config.value, &request, machine)?;
    for warning in &update.warnings {
        report.warn(warning);
    }
    if update.guest.is_empty() {
        return Ok(());
    }

    let scope = record.scope;
    let cgroup = record
        .cgroup
        .map(|path| Cgroup::existing(path).of_unit(scope));
    let mut limits = update.limits;
    let lower = cgroup
        .as_ref()
        .and_then(|cgroup| cgroup.take_lower(&mut limits));
    let former = match &cgroup {
        Some(cgroup) => cgroup.update(&limits)?,
        // It has been told at create.
        None => Vec::new(),
    };
    let guest = Value::Object(update.guest).to_string();
    let result = control(&address, &Control::Update(guest));
    let result = result.map_err(Error::from).and_then(done);
    if result.is_err()
        && let Some(cgroup) = &cgroup
        && let Err(e) = cgroup.restore(&former)
    {
        report.warn(&format!("a limit of the host is not what it was: {e}"));
    }
    result?;
    dir.write_config(update.config.to_string().as_bytes())?;
    if let (Some(cgroup), Some(lower)) = (&cgroup, lower)
        && let Err(e) = cgroup.update(&[cgroup.bearable(lower)])
    {
        report.warn(&format!(
            "the host's limit of memory stays what it was: {e}"
        ));
    }
    Ok(())
}

/// What is asked for, as a `linux.resources` object.
fn request(args: &cli::Update) -> Result<Value, Error> {
    for (flag, schema, missing) in [
        (
            "--l3-cache-schema",
            &args.l3_cache_schema,
            "Intel RDT/CAT: l3 cache schema is not enabled",
        ),
        (
            "--mem-bw-schema",
            &args.mem_bw_schema,
            "Intel RDT/MBA: memory bandwidth schema is not enabled",
        ),
    ] {
        if schema.as_ref().is_some_and(|schema| !schema.is_empty()) {
            return Err(match resctrl::is_mounted() {
                true => Error::Unsupported(flag),
                false => Error::Invalid(missing.to_owned()),
            });
        }
    }
    match args.resources.as_deref() {
        Some(path) if path == Path::new("-") => read("standard input", io::stdin().lock()),
        Some(path) if !path.as_os_str().is_empty() => {
            let name = path.display().to_string();
            read(&name, File::open(path).doing_to("open", path)?)
        }
        _ => flags::resources(args),
    }
}

/// The first JSON value, as runc reads it: what follows is not looked at.
fn read(from: &str, source: impl Read) -> Result<Value, Error> {
    let mut values = serde_json::Deserializer::from_reader(source.take(RESOURCES_MAX)).into_iter();
    let value = values.next().unwrap_or(Ok(Value::Null));
    let mut value = value.map_err(|source| Error::Resources {
        from: from.to_owned(),
        source,
    })?;
    keys::correct(&mut value).map_err(|e| Error::Invalid(format!("{from}: {e}")))?;
    Ok(value)
}
