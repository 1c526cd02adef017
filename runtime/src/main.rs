//! The chiton binary: OCI verbs, state, and the process that is a container's machine.
//!
//! | folder | what is in it | imports |
//! |---|---|---|
//! | `verbs` | one file for each verb | all that follow |
//! | `audit` | whether a machine is in its jail, from outside | `host`, `machine` |
//! | `plan` | decides what is done about a configuration, and touches nothing | `host`, `machine`, `state` |
//! | `host` | what is done on this host | `control`, `state` |
//! | `machine` | the jailed process that is a machine, and its start | `control`, `state` |
//! | `control` | what verbs and stubs say to a machine process | |
//! | `state` | what is on record of a container | |

mod audit;
mod cli;
mod clock;
mod config;
mod control;
mod error;
mod filter;
#[cfg(fuzzing)]
#[path = "../../tests/fuzz/runtime/doors.rs"]
pub mod fuzz;
mod guest;
mod host;
mod ids;
mod machine;
mod plan;
mod report;
mod state;
mod sys;
mod verbs;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use cli::{Cli, LogFormat, Rootless, Stop, Verb};
use config::SPEC_VERSION;
use report::Report;
use verbs::Context;

fn main() -> ExitCode {
    let begun = machine::now();
    // A caller that ignores it leaves that to its children (execve(2)), and whose children end unheard cannot wait for
    // them (waitpid(2)).
    sys::default_action(Signal::SIGCHLD);
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Stop::Help(text)) => {
            return print(&text).map_or(ExitCode::FAILURE, ExitCode::from);
        }
        Err(Stop::Usage { text, code, global }) => {
            match global.map(|cli| report(&cli)) {
                Some(Ok(report)) => report.error(&text),
                _ => Report::without_log(LogFormat::Text).error(&text),
            }
            return ExitCode::from(code);
        }
    };
    let report = match report(&cli) {
        Ok(report) => report,
        Err(e) => {
            let text = format!("open {}: {e}", cli.log.unwrap_or_default().display());
            Report::without_log(cli.log_format).error(&text);
            return ExitCode::FAILURE;
        }
    };
    match dispatch(&cli, &report, begun) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            report.error(&format!("{e:#}"));
            ExitCode::from(e.downcast_ref().map_or(1, verbs::Error::exit_code))
        }
    }
}

fn report(cli: &Cli) -> std::io::Result<Report> {
    Report::new(cli.log.as_deref(), cli.log_format, cli.debug)
}

/// Does what the command line says; the exit code.
fn dispatch(cli: &Cli, report: &Report, begun: Duration) -> anyhow::Result<u8> {
    if cli.version {
        let commit = env!("CHITON_COMMIT");
        let version = env!("CARGO_PKG_VERSION");
        return print(&format!(
            "chiton version {version}\ncommit: {commit}\nspec: {SPEC_VERSION}\n"
        ));
    }
    let Some(verb) = &cli.verb else { return Ok(0) };
    let root = cli.root.clone().unwrap_or_else(state::default_root);
    let root = root.as_path();
    if root.as_os_str().is_empty() || root == Path::new("/") {
        return Err(verbs::Error::Root(root.to_owned()).into());
    }
    let context = Context {
        root,
        report,
        systemd_cgroup: match cli.cgroup_manager.as_str() {
            "disabled" => false,
            manager => cli.systemd_cgroup || manager == "systemd",
        },
        no_cgroup: cli.cgroup_manager == "disabled",
        rootless: cli.rootless == Rootless::True,
        timeline: cli.timeline.as_deref(),
        begun,
    };
    match verb {
        Verb::Create(args) => verbs::create(&context, args)?,
        Verb::Start(args) => verbs::start(&context, &args.id)?,
        Verb::Run(args) => return Ok(verbs::run(&context, args)?),
        Verb::State(args) => return print(&(verbs::state(root, &args.id)? + "\n")),
        Verb::Kill(args) => verbs::kill(root, args)?,
        Verb::Delete(args) => verbs::delete(root, args, report)?,
        Verb::List(args) => return print(&verbs::list(root, cli.root.is_none(), args, report)?),
        Verb::Exec(args) => return Ok(verbs::exec(&context, args)?),
        Verb::Pause(args) => verbs::pause(root, &args.id)?,
        Verb::Resume(args) => verbs::resume(root, &args.id)?,
        Verb::Ps(args) => return print(&verbs::ps(root, args)?),
        Verb::Update(args) => verbs::update(root, args, report)?,
        Verb::Events(args) => verbs::events(root, args, report)?,
        Verb::Explain(args) => {
            let (text, refused) = verbs::explain(&context, args)?;
            print(&text)?;
            return Ok(u8::from(refused));
        }
        Verb::Features => return print(&verbs::features()),
        Verb::Checkpoint(args) => verbs::checkpoint(root, args)?,
        Verb::Restore(args) => verbs::restore(args)?,
        Verb::Spec(args) => verbs::spec(args)?,
        Verb::Audit(args) => {
            let (text, failed) = verbs::audit(root, args)?;
            print(&text)?;
            return Ok(u8::from(failed));
        }
        Verb::Check => {
            let missing = verbs::check();
            let text = missing
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>();
            print(if text.is_empty() { "ok\n" } else { &text })?;
            return Ok(u8::from(!missing.is_empty()));
        }
    }
    Ok(0)
}

fn print(text: &str) -> anyhow::Result<u8> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("write to standard output")?;
    Ok(0)
}
