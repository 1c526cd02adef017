//! `audit`: whether a container's processes on this host are in their jails.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;

use super::ask::open;
use super::error::Error;
use crate::audit::{self, Finding, Subject, Verdict};
use crate::cli::{self, AuditFormat};
use crate::config::Config;
use crate::host::cgroup::Cgroup;
use crate::host::{selinux, watcher};
use crate::state::{ContainerId, Record, StateDir, Status};

/// What is found, as text, and whether any of it is a failure.
pub(crate) fn audit(root: &Path, args: &cli::Audit) -> Result<(String, bool), Error> {
    let dir = open(root, &args.id)?;
    let record = dir.record()?.ok_or(Error::NotRunning)?;
    if dir.status(Some(&record))? == Status::Stopped {
        return Err(Error::NotRunning);
    }
    // All containers of a machine are looked at with any of them.
    let seat = record.seat().ok_or(Error::NotRunning)?;
    let machine = seat.machine;
    let first = StateDir::open(root, &ContainerId::of_sandbox(&seat.sandbox)?)?;
    let (cgroup, label) = match first.record()? {
        Some(record) => (record.cgroup, record.labels.process),
        None => (None, None),
    };
    let mut subject = Subject {
        machine: machine.pid,
        attendants: Vec::new(),
        cgroup,
        members: Vec::new(),
        states: vec![first.path().to_owned()],
        disks: disks(&first)?,
        labels: selinux::is_enabled().then(|| vec![label]),
    };
    for dir in StateDir::all(root)? {
        let record = dir.record().ok().flatten();
        let is_of =
            |record: &Record| record.member.as_ref().map(|seat| seat.machine) == Some(machine);
        if let Some(record) = record.filter(is_of) {
            subject.members.extend(record.cgroup);
            subject
                .labels
                .iter_mut()
                .for_each(|labels| labels.push(record.labels.process.clone()));
            subject.states.push(dir.path().to_owned());
        }
    }
    for cgroup in subject.cgroup.iter().chain(&subject.members) {
        // That of one that is being deleted may be gone.
        let processes = Cgroup::existing(cgroup.clone())
            .processes()
            .unwrap_or_default();
        let others = processes.into_iter().filter(|pid| *pid != machine.pid);
        subject.attendants.extend(others);
    }
    subject.attendants.extend(watchers(&subject));
    let found = audit::audit(subject);
    // What was looked at may have been another process.
    if !machine.is_alive() {
        return Err(Error::NotRunning);
    }
    let findings = found?;
    let failed = findings.iter().any(|found| found.verdict == Verdict::Fail);
    let text = match args.format {
        AuditFormat::Text => as_text(&findings),
        AuditFormat::Json => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
    };
    Ok((text, failed))
}

/// The watchers of networks that the machine's processes are in, but for those in its cgroups: they may be in the cgroups
/// of their callers.
fn watchers(subject: &Subject) -> Vec<i32> {
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own: Vec<_> = subject
        .attendants
        .iter()
        .chain([&subject.machine])
        .filter_map(|pid| network(*pid))
        .collect();
    let is_watcher = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim_end() == watcher::NAME)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !subject.attendants.contains(pid) && is_watcher(pid))
        .filter(|pid| network(*pid).is_some_and(|its| own.contains(&its)))
        .collect()
}

/// The numbers of the block devices that the configuration gives the container.
fn disks(dir: &StateDir) -> Result<Vec<u64>, Error> {
    let config = Config::load(dir.path())?;
    let linux = config.spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref());
    let blocks = devices.into_iter().flatten();
    let blocks = blocks.filter(|device| device.typ() == LinuxDeviceType::B);
    let number = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    Ok(blocks
        .map(|device| nix::sys::stat::makedev(number(device.major()), number(device.minor())))
        .collect())
}

/// One line for each finding.
fn as_text(findings: &[Finding]) -> String {
    findings.iter().fold(String::new(), |mut text, found| {
        let word = match found.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Fail => "FAIL",
            Verdict::Note => "note",
        };
        let stub = found.stub.map(|pid| format!("stub {pid}: "));
        let watcher = found.watcher.map(|pid| format!("watcher {pid}: "));
        let who = stub.or(watcher).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word} {who}{}: {}", found.point, found.text);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let finding = |verdict, stub, text: &str| Finding {
            verdict,
            stub,
            watcher: None,
            point: "ids",
            text: text.into(),
        };
        let findings = [
            finding(Verdict::Ok, None, "uid 7, gid 7"),
            finding(Verdict::Fail, None, "root's uid or gid in main"),
            finding(Verdict::Note, Some(9), "root's uid, without capabilities"),
        ];
        let text = "ok   ids: uid 7, gid 7\n\
                    FAIL ids: root's uid or gid in main\n\
                    note stub 9: ids: root's uid, without capabilities\n";
        assert_eq!(as_text(&findings), text);
        let json = serde_json::to_value(&findings[1..]).unwrap();
        let expected = serde_json::json!([
            {"verdict": "fail", "point": "ids", "text": "root's uid or gid in main"},
            {"verdict": "note", "stub": 9, "point": "ids", "text": "root's uid, without capabilities"},
        ]);
        assert_eq!(json, expected);
    }
}
