//! `explain`: what becomes of each property of a configuration.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use protocol::to_hex;
use serde_json::{Value, json};

use super::context::Context;
use super::error::Error;
use super::facts;
use crate::cli;
use crate::config::{CONFIG, Config};
use crate::error::Doing;
use crate::plan::{Decision, Entry, Ledger, Plan};

/// The decision as text, and whether there is anything that `create` would refuse.
pub(crate) fn explain(context: &Context<'_>, args: &cli::Explain) -> Result<(String, bool), Error> {
    let path = args.config.as_ref().unwrap_or(&args.bundle);
    let path = fs::canonicalize(path).doing_to("open", path)?;
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
    let Decision { ledger, plan } = facts::decide(context, &config, bundle)?;
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
