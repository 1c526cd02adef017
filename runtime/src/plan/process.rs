//! What a process must be: the specification's and runc's rules, so that the guest is not asked for what it cannot do.

use std::collections::HashSet;

use oci_spec::runtime::{ExecCPUAffinity, PosixRlimit, Process, User};
use specification::{CpuList, IO_PRIORITIES, NO_ID, scheduler_problems};

use super::ledger::Ledger;

/// `oom_score_adj` (proc(5)).
const OOM_SCORES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Refuses what a process cannot be. `vcpus` is the number that its machine has.
pub(super) fn check(process: &Process, vcpus: u8, ledger: &mut Ledger) {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        ledger.refuse("process.args", "must not be empty");
    }
    if !process.cwd().is_absolute() {
        ledger.refuse("process.cwd", "must be an absolute path");
    }
    let texts = |texts: &Option<Vec<String>>| texts.iter().flatten().any(|t| t.contains('\0'));
    for (property, broken) in [
        ("process.args", texts(process.args())),
        ("process.env", texts(process.env())),
        (
            "process.cwd",
            process.cwd().as_os_str().as_encoded_bytes().contains(&0),
        ),
    ] {
        if broken {
            ledger.refuse(property, "contains a NUL");
        }
    }
    for (index, entry) in process.env().iter().flatten().enumerate() {
        if entry.find('=').is_none_or(|at| at == 0) {
            let property = format!("process.env[{index}]");
            ledger.refuse(property, format!("{entry:?} is not NAME=VALUE"));
        }
    }
    user(process.user(), ledger);
    rlimits(process.rlimits().as_deref().unwrap_or_default(), ledger);
    if let Some(score) = process.oom_score_adj()
        && !OOM_SCORES.contains(&score)
    {
        ledger.refuse(
            "process.oomScoreAdj",
            format!("{score} is not between -1000 and 1000"),
        );
    }
    if let Some(size) = process.console_size()
        && (size.height() > u64::from(u16::MAX) || size.width() > u64::from(u16::MAX))
    {
        ledger.refuse("process.consoleSize", "must be less than 65536 by 65536");
    }
    if let Some(scheduler) = process.scheduler() {
        for (part, problem) in scheduler_problems(scheduler) {
            ledger.refuse(format!("process.scheduler.{part}"), problem);
        }
    }
    if let Some(priority) = process.io_priority()
        && !IO_PRIORITIES.contains(&priority.priority())
    {
        let problem = format!("{} is not between 0 and 7", priority.priority());
        ledger.refuse("process.ioPriority.priority", problem);
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        self::affinity(affinity, vcpus, ledger);
    }
}

fn user(user: &User, ledger: &mut Ledger) {
    let groups = user.additional_gids().iter().flatten();
    for (property, id) in [("uid", user.uid()), ("gid", user.gid())]
        .into_iter()
        .chain(groups.map(|id| ("additionalGids", *id)))
    {
        if id == NO_ID {
            ledger.refuse(
                format!("process.user.{property}"),
                format!("{id} cannot be an id: it means no id"),
            );
        }
    }
}

fn rlimits(rlimits: &[PosixRlimit], ledger: &mut Ledger) {
    let mut seen = HashSet::new();
    for (index, limit) in rlimits.iter().enumerate() {
        let property = format!("process.rlimits[{index}]");
        let name = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            let problem = format!(
                "{name}: soft limit {} exceeds hard limit {}",
                limit.soft(),
                limit.hard()
            );
            ledger.refuse(property.as_str(), problem);
        }
        if !seen.insert(name.clone()) {
            ledger.refuse(property, format!("{name} appears twice"));
        }
    }
}

/// The lists number the machine's vCPUs, which are all the CPUs that the guest knows.
fn affinity(affinity: &ExecCPUAffinity, vcpus: u8, ledger: &mut Ledger) {
    for (part, list) in [
        ("initial", affinity.initial()),
        ("final", affinity.cpu_affinity_final()),
    ] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
            continue;
        };
        let problem = match CpuList::parse(list) {
            None => format!("{list:?} is not a list of CPUs"),
            Some(list) if list.last() >= u32::from(vcpus) => {
                format!(
                    "names vCPU {}, but the machine has vCPUs 0 to {}",
                    list.last(),
                    vcpus.saturating_sub(1)
                )
            }
            Some(_) => continue,
        };
        ledger.refuse(format!("process.execCPUAffinity.{part}"), problem);
    }
}
