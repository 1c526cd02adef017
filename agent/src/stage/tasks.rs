//! What a stage does itself, without making a process: changing limits, listing processes, unmounting shares.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};
use protocol::{ContainerId, Process, Reply, Setup};

use super::cgroup;
use super::wire::Wire;
use crate::answer::{MAX_ANSWER, bounded, fitting, json_length};
use crate::clock::since_boot;
use crate::error::{During, Error, Result};
use crate::hierarchy;
use crate::paths;
use crate::task::{Report, Update};

/// Maximum length of `/proc/<pid>/stat`, `status` and `cmdline` that is reported, in bytes.
const MAX_PROC: [u64; 3] = [4 << 10, 8 << 10, 4 << 10];

/// Changes the limits that are named, all or none.
pub(super) fn update(update: &Update, setup: &Setup, wire: &Wire) -> Result<()> {
    answer(wire, apply(update, setup).map(|()| Reply::Done))
}

/// Lists the processes of a cgroup and of those below it.
pub(super) fn processes(cgroup: &Path, wire: &Wire) -> Result<()> {
    let reply = list(cgroup).map(|processes| Reply::Processes {
        now: since_boot(),
        processes,
    });
    answer(wire, reply)
}

/// Unmounts what the guest has mounted of a container's shares.
pub(super) fn unmount(container: ContainerId, wire: &Wire) -> Result<()> {
    answer(
        wire,
        unmount_below(&paths::share(container)).map(|()| Reply::Done),
    )
}

fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").during(|| "read the mounts")?;
    // Those on top and those below come later than what they are on. The shares' names need no escapes, and what is
    // below a share goes with it.
    let targets = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4));
    for target in targets.filter(|target| Path::new(target).starts_with(directory)) {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EINVAL | Errno::ENOENT) => {}
            result => result.during(|| format!("unmount {target}"))?,
        }
    }
    Ok(())
}

fn answer(wire: &Wire, result: Result<Reply>) -> Result<()> {
    let result = result.map_err(|error| error.failure());
    wire.send(&Report::Answered(result), None)
}

fn apply(update: &Update, setup: &Setup) -> Result<()> {
    let resources: LinuxResources = serde_json::from_slice(&update.resources)
        .map_err(|error| Error::Config(format!("linux.resources: {error}")))?;
    let rules = resources.devices().as_ref();
    let rules = rules.filter(|rules| !rules.is_empty());
    if rules.is_some() && rules != devices(&setup.config)?.as_ref() {
        let text = "cannot be updated: linux.resources.devices (differs from the container's)";
        return Err(Error::Config(text.into()));
    }
    if cgroup::update(resources, &update.cgroup)? {
        cgroup::limit_kernel(&update.cgroup)?;
    }
    Ok(())
}

/// The device rules of a configuration.
fn devices(config: &[u8]) -> Result<Option<Vec<LinuxDeviceCgroup>>> {
    let spec: Spec = serde_json::from_slice(config).map_err(Error::Parse)?;
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    Ok(resources.and_then(|resources| resources.devices().clone()))
}

/// The processes by pid, as many as an answer holds.
fn list(cgroup: &Path) -> Result<Vec<Process>> {
    let mut pids = Vec::new();
    hierarchy::processes(cgroup, &mut pids)
        .during(|| format!("list the processes of {}", cgroup.display()))?;
    pids.sort_unstable();
    pids.dedup();
    let read = |pid| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        // One that is gone has no files any more.
        Some(Process {
            pid,
            stat: bounded(&proc.join("stat"), MAX_PROC[0])?,
            status: bounded(&proc.join("status"), MAX_PROC[1])?,
            command_line: bounded(&proc.join("cmdline"), MAX_PROC[2])?,
        })
    };
    let processes = pids.into_iter().filter_map(read);
    Ok(fitting(processes, MAX_ANSWER, |process| {
        let texts = [&process.stat, &process.status, &process.command_line];
        // The names of the fields and the pid.
        64 + texts.iter().map(|text| json_length(text)).sum::<usize>()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_below_and_shown() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        fs::write(dir.path().join("cgroup.procs"), "0\n").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(
            dir.path().join("sub/cgroup.procs"),
            format!("{own}\n4194305\n"),
        )
        .unwrap();
        let processes = list(dir.path()).unwrap();
        assert_eq!(
            processes.len(),
            1,
            "beyond the kernel's greatest pid is nobody"
        );
        let process = &processes[0];
        assert!(process.stat.starts_with(&format!("{own} (")));
        assert!(process.status.starts_with("Name:"));
        assert!(!process.command_line.is_empty());
    }

    #[test]
    fn what_an_update_cannot_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let update = |config: &str, resources: &str| {
            let update = Update {
                cgroup: dir.path().to_owned(),
                resources: resources.into(),
            };
            let setup = Setup {
                config: config.into(),
                ..Setup::default()
            };
            apply(&update, &setup)
        };
        let text = |config, json| update(config, json).unwrap_err().to_string();
        let bare = r#"{"ociVersion":"1.0.2"}"#;
        let devices = r#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
        assert!(text(bare, devices).contains("linux.resources.devices"));
        let same = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{devices}}}}}"#);
        assert!(update(&same, devices).is_ok(), "the same rules");
        assert!(text(&same, "[").contains("linux.resources"));
        assert!(update(&same, r#"{"devices":[]}"#).is_ok());
    }
}
