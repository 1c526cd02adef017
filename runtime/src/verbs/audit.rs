//! `audit`: whether a container's processes on this host are in their jails.

use std::fmt::Write;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;

use super::ask::open;
use super::error::Error;
use crate::audit::{self, Finding, Subject, Verdict};
use crate::cli::{self, AuditFormat};
use crate::config::Config;
use crate::host::cgroup::Cgroup;
use crate::state::{Identity, StateDir, Status};

/// What is found, as text, and whether any of it is a failure.
pub(crate) fn audit(root: &Path, args: &cli::Audit) -> Result<(String, bool), Error> {
    let dir = open(root, &args.id)?;
    let record = dir.record()?.ok_or(Error::NotRunning)?;
    let machine = record.machine.filter(Identity::is_alive);
    let machine = machine.ok_or(Error::NotRunning)?;
    if dir.status(Some(&record))? == Status::Stopped {
        return Err(Error::NotRunning);
    }
    let processes = match &record.cgroup {
        Some(path) => Cgroup::existing(path.clone()).processes()?,
        None => Vec::new(),
    };
    let found = audit::audit(Subject {
        machine: machine.pid,
        execs: processes
            .into_iter()
            .filter(|pid| *pid != machine.pid)
            .collect(),
        cgroup: record.cgroup,
        state: dir.path().to_owned(),
        disks: disks(&dir)?,
    });
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
        let exec = found.exec.map(|pid| format!("exec {pid}: "));
        let exec = exec.unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word} {exec}{}: {}", found.point, found.text);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let finding = |verdict, exec, text: &str| Finding {
            verdict,
            exec,
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
                    note exec 9: ids: root's uid, without capabilities\n";
        assert_eq!(as_text(&findings), text);
        let json = serde_json::to_value(&findings[1..]).unwrap();
        let expected = serde_json::json!([
            {"verdict": "fail", "point": "ids", "text": "root's uid or gid in main"},
            {"verdict": "note", "exec": 9, "point": "ids", "text": "root's uid, without capabilities"},
        ]);
        assert_eq!(json, expected);
    }
}
