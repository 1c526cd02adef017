//! From the arguments of exec to the `process` object that the guest is given; the rules are runc's (exec.go,
//! newInitConfig).

use std::num::IntErrorKind;
use std::path::{Component, Path};

use oci_spec::runtime::Process;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli;
use crate::config;
use crate::host::surroundings;
use crate::plan::{self, Room};
use crate::verbs::error::Error;

/// The process to execute.
#[derive(Debug)]
pub(super) struct Wanted {
    /// As JSON, for the guest.
    pub(super) json: String,
    /// The compiled AppArmor policy that the guest must be given for it; empty if it need not.
    pub(super) policy: Vec<u8>,
    /// The SELinux label of what stands for it on the host.
    pub(super) label: Option<String>,
    /// As it is understood.
    pub(super) process: Process,
    /// What the caller should know.
    pub(super) warnings: Vec<String>,
}

/// Makes the process from the content of `--process` if there is one, else from the flags; `own` is the container's own
/// process. What went wrong with the JSON is said of `path`. `room` is what the container and the host have, and `limits`
/// are the resource limits for what the process does not name.
pub(super) fn wanted(
    args: &cli::Exec,
    file: Option<Value>,
    own: &Value,
    path: &Path,
    room: &Room<'_>,
    limits: Option<&[(u64, u64)]>,
) -> Result<Wanted, Error> {
    let mut process = match file {
        Some(process) => process,
        None => from_flags(args, own.clone())?,
    };
    inherit(&mut process, own);
    check(&process)?;
    let mut config = json!({ "process": process });
    let mut warnings = Vec::from_iter(config::take_unknown_capabilities(&mut config));
    let given = config.clone();
    config::translate(&mut config);
    let process =
        Process::deserialize(&config["process"]).map_err(|source| config::Error::Json {
            path: path.to_owned(),
            source,
        })?;
    if let Some(limits) = limits {
        surroundings::complete(&mut config["process"], limits);
    }
    let json = config["process"].to_string();
    let needs = plan::check_exec(&given, &process, room)?;
    warnings.extend(needs.warnings);
    Ok(Wanted {
        json,
        policy: needs.policy,
        label: needs.label,
        process,
        warnings,
    })
}

/// The container's own process with what the flags say in place.
fn from_flags(args: &cli::Exec, mut process: Value) -> Result<Value, Error> {
    let Some(properties) = process.as_object_mut() else {
        return Err(invalid("process property must not be empty"));
    };
    if args.command.is_empty() {
        return Err(invalid("process args cannot be empty"));
    }
    properties.insert("args".into(), json!(args.command));
    properties.insert("terminal".into(), json!(args.tty));
    for (name, text) in [
        ("cwd", &args.cwd),
        ("apparmorProfile", &args.apparmor),
        ("selinuxLabel", &args.process_label),
    ] {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            properties.insert(name.into(), json!(text));
        }
    }
    if args.no_new_privs {
        properties.insert("noNewPrivileges".into(), json!(true));
    }
    for set in ["bounding", "effective", "permitted"] {
        for capability in &args.cap {
            append(&mut process["capabilities"][set], json!(capability));
        }
    }
    for entry in &args.env {
        append(&mut process["env"], json!(entry));
    }
    if let Some(user) = args.user.as_ref().filter(|user| !user.is_empty()) {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user.as_str(), None),
        };
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(id(gid, "gid")?);
        }
        process["user"]["uid"] = json!(id(uid, "uid")?);
    }
    for gid in &args.additional_gids {
        if *gid < 0 {
            let text = format!("additional-gids must be a positive number {gid}");
            return Err(invalid(text));
        }
        append(&mut process["user"]["additionalGids"], json!(gid));
    }
    Ok(process)
}

/// Appends to an array, which is made if there is none.
fn append(array: &mut Value, element: Value) {
    match array {
        Value::Array(elements) => elements.push(element),
        // Anything else is of the wrong type, and was when the container was created.
        _ => *array = json!([element]),
    }
}

fn id(text: &str, what: &str) -> Result<u32, Error> {
    // As Go says it (strconv.Atoi); what does not fit into an id is no less wrong.
    let problem = match text.parse::<i64>().map_err(|e| *e.kind()) {
        Ok(id) => match u32::try_from(id) {
            Ok(id) => return Ok(id),
            Err(_) => "value out of range",
        },
        Err(IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => "value out of range",
        Err(_) => "invalid syntax",
    };
    Err(invalid(format!(
        "bad {what}: strconv.Atoi: parsing {text:?}: {problem}"
    )))
}

/// What a process does not say is as for the container's own.
fn inherit(process: &mut Value, own: &Value) {
    let Some(properties) = process.as_object_mut() else {
        return;
    };
    let says_nothing = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(elements)) => elements.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    for name in [
        "capabilities",
        "rlimits",
        "ioPriority",
        "scheduler",
        "oomScoreAdj",
        "execCPUAffinity",
        "apparmorProfile",
        "selinuxLabel",
    ] {
        if says_nothing(properties.get(name))
            && let Some(value) = own.get(name)
        {
            properties.insert(name.into(), value.clone());
        }
    }
    properties.entry("user").or_insert_with(|| json!({}));
}

/// What runc demands of a process.
fn check(process: &Value) -> Result<(), Error> {
    if !process.is_object() {
        return Err(invalid("process property must not be empty"));
    }
    // A property of the wrong type is told of when all of it is parsed.
    match process.get("cwd") {
        None | Some(Value::Null) => return Err(invalid("Cwd property must not be empty")),
        Some(Value::String(cwd)) if cwd.is_empty() => {
            return Err(invalid("Cwd property must not be empty"));
        }
        Some(Value::String(cwd)) if !cwd.starts_with('/') => {
            return Err(invalid("Cwd must be an absolute path"));
        }
        Some(_) => {}
    }
    match process.get("args") {
        None | Some(Value::Null) => Err(invalid("args must not be empty")),
        Some(Value::Array(args)) if args.is_empty() => Err(invalid("args must not be empty")),
        Some(_) => Ok(()),
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::Invalid(text.into())
}

/// The cgroup below the container's own that `--cgroup` names, relative; empty if none is named. Controllers are cgroup
/// v1's: the guest has version 2, where a process is in one cgroup for all.
pub(super) fn sub_cgroup(args: &[String]) -> Result<String, Error> {
    let Some(first) = args.first() else {
        return Ok(String::new());
    };
    for arg in args {
        match arg.split(':').count() {
            1 if args.len() == 1 => {}
            1 => {
                return Err(invalid(format!(
                    "invalid --cgroup argument: {arg} (missing <controller>: prefix)"
                )));
            }
            2 => {}
            _ => return Err(invalid(format!("invalid --cgroup argument: {arg}"))),
        }
    }
    let named = args
        .iter()
        .filter_map(|arg| Some((arg, arg.split_once(':')?.0)));
    let mut controllers = Vec::new();
    for (arg, names) in named {
        for controller in names.split(',') {
            let problem = if controller.is_empty() {
                format!("invalid --cgroup argument: {arg} (empty <controller> prefix)")
            } else if controllers.contains(&controller) {
                format!(
                    "invalid --cgroup argument(s): controller {controller} specified multiple times"
                )
            } else {
                controllers.push(controller);
                continue;
            };
            return Err(invalid(problem));
        }
    }
    let no_process = |problem: String| {
        let text = format!("unable to create new parent process: {problem}");
        Err(invalid(text))
    };
    if let Some(controller) = controllers.first() {
        return no_process(format!("unknown controller {controller} in SubCgroupPaths"));
    }
    let mut below = Vec::new();
    for component in Path::new(first).components() {
        match component {
            Component::Normal(name) => below.push(name.to_string_lossy()),
            Component::ParentDir => {
                return no_process(format!("{first} is not a sub cgroup path"));
            }
            _ => {}
        }
    }
    Ok(below.join("/"))
}

#[cfg(test)]
mod tests;
