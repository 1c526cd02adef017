//! What can be told of a process by comparing: everything but its descriptors and its filters.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::process::{Host, Process, Status};
use super::{Claim, Subject, Verdict};
use crate::host::{cgroup, selinux, watcher};
use crate::machine::mountinfo::{self, Mount};
use crate::machine::{self, IdMap};
use crate::sys::landlock_version;

/// The namespaces that a machine process shares with nobody.
const MACHINE_NAMESPACES: [&str; 6] = ["mnt", "user", "net", "ipc", "uts", "cgroup"];

/// Those of a stub: it serves the callers, which know it by its pid.
const STUB_NAMESPACES: [&str; 1] = ["net"];

/// The limits that are 0, as `/proc/PID/limits` names them.
const MACHINE_LIMITS: [&str; 3] = [
    "Max core file size",
    "Max locked memory",
    "Max msgqueue size",
];
const STUB_LIMITS: [&str; 1] = ["Max core file size"];

/// The directories that a path begins at: none of the host's.
pub(super) fn root(process: &Process, host: &Host) -> Vec<Claim> {
    let leads_out = |name: &&str| {
        // The slash: what the link leads to, not the link.
        let found = process.metadata(&format!("{name}/"));
        found.map_or(true, |found| host.is_root((found.dev(), found.ino())))
    };
    let problems: Vec<_> = ["root", "cwd"]
        .iter()
        .filter(|name| leads_out(name))
        .map(|name| format!("{name} is the host's root or cannot be looked at"))
        .collect();
    vec![Claim::of(&problems, "a tree of its own")]
}

pub(super) fn machine_namespaces(process: &Process, _: &Host) -> Vec<Claim> {
    let mut claims = namespaces(process, &MACHINE_NAMESPACES);
    claims.push(Claim::note(
        "pid is the host's: who waits for the container and signals it does so by its pid there",
    ));
    claims
}

pub(super) fn stub_namespaces(process: &Process, _: &Host) -> Vec<Claim> {
    namespaces(process, &STUB_NAMESPACES)
}

fn namespaces(process: &Process, own: &[&str]) -> Vec<Claim> {
    let is_shared = |name: &&&str| {
        let link = format!("ns/{name}");
        let ours = fs::read_link(format!("/proc/self/{link}"));
        // What cannot be read is not known to be its own.
        !matches!((process.link(&link), ours), (Ok(its), Ok(ours)) if its != ours)
    };
    let shared: Vec<_> = own.iter().filter(is_shared).copied().collect();
    let problem = named("the caller's", &shared);
    vec![Claim::of(
        problem.as_slice(),
        format!("its own {}", own.join(", ")),
    )]
}

/// Something, and the names that it is said of, if there are any.
fn named(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
}

pub(super) fn machine_ids(process: &Process, host: &Host) -> Vec<Claim> {
    let mut claims = ids(process, host);
    let read = |name| process.text(name);
    claims.push(
        match (read("uid_map"), read("gid_map"), read("mountinfo")) {
            (Ok(uids), Ok(gids), Ok(mounts)) => {
                let main = process.main();
                id_maps([(&uids, main.uids[0]), (&gids, main.gids[0])], &mounts)
            }
            (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => {
                Claim::fail(format!("the id maps cannot be read: {e}"))
            }
        },
    );
    claims
}

/// Which of its two maps a machine process has, each map with the id of its own. Where its ids are shifted, a mount whose
/// ids are not would show it files of the host's users as they are there.
fn id_maps(maps: [(&str, u32); 2], mounts: &str) -> Claim {
    let are = |of: &dyn Fn(u32) -> Option<IdMap>| {
        let is = |(lines, own): (&str, u32)| {
            of(own).is_some_and(|map| machine::parse_ids(lines) == Some(map.uids))
        };
        maps.into_iter().all(is)
    };
    if are(&|_| Some(IdMap::identity())) {
        return Claim::note(
            "shares are not id-mapped: in its user namespace each id of the host means itself",
        );
    }
    if !are(&IdMap::shifted) {
        let [(uids, _), (gids, _)] = maps.map(|(lines, own)| (lines.trim().escape_debug(), own));
        return Claim::fail(format!("undeclared id maps: {uids}; {gids}"));
    }
    let parsed = mountinfo::parse(mounts);
    if parsed.len() != mounts.lines().count() {
        return Claim::fail("mountinfo has lines that are none");
    }
    let plain = not_id_mapped(&parsed);
    let problem = named("not id-mapped, in a namespace of shifted ids:", &plain);
    Claim::of(
        problem.as_slice(),
        "shares are id-mapped: in its user namespace no id of the host means anything but its own",
    )
}

/// Whether there are mount points alone: in the root directory, and in those of the further containers.
fn holds_mount_points(mount: &Mount) -> bool {
    let name = mount.target.strip_prefix('/').unwrap_or("x");
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where the mounts are whose ids are not mapped.
fn not_id_mapped(mounts: &[Mount]) -> Vec<&str> {
    let exported = mountinfo::exported(mounts).into_iter();
    let shares = exported.filter(|mount| !holds_mount_points(mount));
    shares
        .filter(|mount| !mount.id_mapped)
        .map(|mount| mount.target.as_str())
        .collect()
}

/// Root is nobody's to be. The ids of the file system are a guest's user's for the length of one request, so that they
/// count for the main thread only.
pub(super) fn ids(process: &Process, _: &Host) -> Vec<Claim> {
    let is_root = |status: &Status| {
        [status.uids, status.gids]
            .iter()
            .any(|[real, effective, saved, _]| [real, effective, saved].contains(&&0))
    };
    let main = process.main();
    let mut roots = process.those(is_root);
    if !is_root(&main) && (main.uids[3] == 0 || main.gids[3] == 0) {
        roots.push("main");
    }
    let problems = [named("root's uid or gid in", &roots), groups(process)];
    let problems: Vec<_> = problems.into_iter().flatten().collect();
    let text = format!("uid {}, gid {}", main.uids[0], main.gids[0]);
    vec![Claim::of(&problems, text)]
}

fn groups(process: &Process) -> Option<String> {
    let with = process.those(|status| !status.groups.is_empty());
    named("supplementary groups in", &with)
}

pub(super) fn machine_capabilities(process: &Process, _: &Host) -> Vec<Claim> {
    let most = machine::CAPABILITIES.bits();
    capabilities(process, most, most)
}

pub(super) fn stub_capabilities(process: &Process, _: &Host) -> Vec<Claim> {
    // Without new privileges the bounding set bounds nothing.
    capabilities(process, 0, u64::MAX)
}

pub(super) fn watcher_capabilities(process: &Process, _: &Host) -> Vec<Claim> {
    capabilities(process, watcher::CAPABILITIES.bits(), u64::MAX)
}

/// No thread has more than `most`.
fn capabilities(process: &Process, most: u64, bounding: u64) -> Vec<Claim> {
    type Set = (&'static str, fn(&Status) -> u64, u64);
    let sets: [Set; 5] = [
        ("permitted", |status| status.permitted, most),
        ("effective", |status| status.effective, most),
        ("bounding", |status| status.bounding, bounding),
        ("inheritable", |status| status.inheritable, 0),
        ("ambient", |status| status.ambient, 0),
    ];
    let problem = |(name, of, most): Set| {
        let threads = process.threads.iter();
        let more = threads.fold(0, |more, thread| more | of(&thread.status)) & !most;
        let those = process.those(|status| of(status) & more != 0);
        named(&format!("{name}: {more:#x} too many in"), &those)
    };
    let problems: Vec<_> = sets.into_iter().filter_map(problem).collect();
    let number = process.main().permitted.count_ones();
    let text = format!("{number}, of {} that may be", most.count_ones());
    vec![Claim::of(&problems, text)]
}

pub(super) fn no_new_privs(process: &Process, _: &Host) -> Vec<Claim> {
    let without = process.those(|status| !status.no_new_privs);
    let problem = named("not set in", &without);
    let text = format!("set in {}", process.how_many());
    vec![Claim::of(problem.as_slice(), text)]
}

pub(super) fn seccomp(process: &Process, _: &Host) -> Vec<Claim> {
    let without = process.those(|status| !status.has_filter());
    let problem = named("no filter in", &without);
    let text = format!("a filter in {}", process.how_many());
    let mut claims = vec![Claim::of(problem.as_slice(), text)];
    let workers: Vec<_> = process.workers.iter().map(String::as_str).collect();
    let workers = named(
        "threads of the kernel, which execute no code of it:",
        &workers,
    );
    claims.extend(workers.map(Claim::note));
    claims
}

/// The files of a process that is not dumpable are root's (proc(5)).
pub(super) fn dumpable(process: &Process, _: &Host) -> Vec<Claim> {
    let uid = process.main().uids[1];
    if uid == 0 {
        return vec![Claim::note("cannot be told of a process with root's uid")];
    }
    match process.metadata("maps") {
        Ok(found) if found.uid() != uid => vec![Claim::ok("not dumpable")],
        Ok(_) => vec![Claim::fail("it is dumpable")],
        Err(e) => vec![Claim::fail(format!("cannot be told: {e}"))],
    }
}

pub(super) fn machine_limits(process: &Process, _: &Host) -> Vec<Claim> {
    limits(process, &MACHINE_LIMITS)
}

pub(super) fn stub_limits(process: &Process, _: &Host) -> Vec<Claim> {
    limits(process, &STUB_LIMITS)
}

fn limits(process: &Process, zero: &[&str]) -> Vec<Claim> {
    let is_other = |name: &&&str| {
        let mut limits = process.limits.iter();
        !limits.any(|limit| limit.name == ***name && limit.soft == "0" && limit.hard == "0")
    };
    let others: Vec<_> = zero.iter().filter(is_other).copied().collect();
    let problem = named("not 0:", &others);
    let text = format!("0: {}", zero.join(", "));
    vec![Claim::of(problem.as_slice(), text)]
}

/// The process is in the container's cgroup, which has a limit of processes.
pub(super) fn machine_cgroup(process: &Process, host: &Host) -> Vec<Claim> {
    let own = host.subject.cgroup.as_slice();
    in_cgroup(process, own, |path| {
        match fs::read_to_string(path.join("pids.max")) {
            Ok(text) if text.trim() == "max" => Some("pids.max is not set".to_owned()),
            Ok(_) => None,
            Err(e) => Some(format!("pids.max: {e}")),
        }
    })
}

pub(super) fn stub_cgroup(process: &Process, host: &Host) -> Vec<Claim> {
    let Subject {
        cgroup, members, ..
    } = &host.subject;
    let all: Vec<PathBuf> = cgroup.iter().chain(members).cloned().collect();
    in_cgroup(process, &all, |_| None)
}

/// One that could not have its device in the container's is in the caller's.
pub(super) fn watcher_cgroup(process: &Process, host: &Host) -> Vec<Claim> {
    let claims = stub_cgroup(process, host).into_iter();
    let weighed = claims.map(|claim| match claim.verdict {
        Verdict::Fail => Claim::note("in the caller's, where it may have /dev/net/tun"),
        _ => claim,
    });
    weighed.collect()
}

/// The process is in one of these, of which nothing may be wrong.
fn in_cgroup(
    process: &Process,
    cgroups: &[PathBuf],
    wrong: impl Fn(&Path) -> Option<String>,
) -> Vec<Claim> {
    if cgroups.is_empty() {
        return vec![Claim::note("the container has none on this host")];
    }
    let its = cgroup::of(process.pid);
    let mut cgroups = cgroups.iter();
    let inside = cgroups.find(|path| its.as_ref().is_some_and(|its| its.starts_with(path)));
    vec![match inside {
        Some(path) => Claim::of(wrong(path).as_slice(), path.display().to_string()),
        None => Claim::fail("not in the container's"),
    }]
}

/// Landlock domains do not show in `/proc`.
pub(super) fn landlock(_: &Process, _: &Host) -> Vec<Claim> {
    vec![Claim::note(match landlock_version() {
        Ok(version) => format!(
            "whether the process has a domain cannot be seen from outside; this host offers version {version}"
        ),
        Err(e) => format!("this host does not offer it: {e}"),
    })]
}

pub(super) fn machine_label(process: &Process, host: &Host) -> Vec<Claim> {
    labelled(process, host, false)
}

pub(super) fn stub_label(process: &Process, host: &Host) -> Vec<Claim> {
    labelled(process, host, true)
}

/// There is nothing to say of it where there is no SELinux.
fn labelled(process: &Process, host: &Host, stub: bool) -> Vec<Claim> {
    let labels = host.subject.labels.iter();
    let own = || selinux::of_process(&process.pid.to_string());
    labels.map(|labels| label(own(), labels, stub)).collect()
}

/// A machine process has the first of these labels, and a stub one of them: its container's, or the machine's. What stands
/// for an exec may have another type, which is not on record, but no other level.
fn label(own: io::Result<String>, labels: &[Option<String>], stub: bool) -> Claim {
    let own = match own {
        Ok(own) => own,
        Err(e) => return Claim::fail(format!("the label cannot be read: {e}")),
    };
    let Some(Some(machine)) = labels.first() else {
        return Claim::note(format!("no label was asked for; it has {own}"));
    };
    if own == *machine || (stub && labels.contains(&Some(own.clone()))) {
        Claim::ok(own)
    } else if stub && selinux::level(&own) == selinux::level(machine) {
        Claim::note(format!(
            "{own}: a type that is not on record, and the machine's level"
        ))
    } else {
        Claim::fail(format!("{own} instead of {machine}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Verdict;

    const IDENTITY: &str = "         0          0 4294967295\n";
    const SHIFTED: &str = "         0 2147483648 2147483647\n2147483648 2013265927          1\n";
    const OWN: u32 = 2_013_265_927;
    const MOUNTS: &str = "50 49 0:40 / / ro,nosuid,nodev,noexec,relatime - tmpfs none rw\n\
        51 50 8:1 /r /rootfs rw,nosuid,nodev,noexec,relatime,idmapped - ext4 /dev/sda1 rw\n\
        52 50 8:1 /v /mnt/7 ro,idmapped master:3 - ext4 /dev/sda1 rw\n";

    fn verdict(uids: &str, gids: &str, mounts: &str) -> (Verdict, String) {
        let claim = id_maps([(uids, OWN), (gids, OWN)], mounts);
        (claim.verdict, claim.text)
    }

    #[test]
    fn a_process_has_the_label_that_it_was_given() {
        let of = |own: &str, labels: &[Option<&str>], stub| {
            let labels: Vec<_> = labels
                .iter()
                .map(|label| label.map(str::to_owned))
                .collect();
            label(Ok(own.to_owned()), &labels, stub).verdict
        };
        let (machine, member) = ("u:r:kvm_t:s0:c1,c2", "u:r:member_t:s0:c1,c2");
        let both = [Some(machine), Some(member)];
        assert_eq!(of(machine, &both, false), Verdict::Ok);
        assert_eq!(of(member, &both, false), Verdict::Fail);
        assert_eq!(of(member, &both, true), Verdict::Ok);
        assert_eq!(of("u:r:exec_t:s0:c1,c2", &both, true), Verdict::Note);
        assert_eq!(of("u:r:kvm_t:s0:c3,c4", &both, true), Verdict::Fail);
        assert_eq!(of("u:r:kvm_t:s0", &both, true), Verdict::Fail);
        assert_eq!(of("u:r:runtime_t:s0", &[None], true), Verdict::Note);
        let unread = label(Err(io::ErrorKind::NotFound.into()), &[], false);
        assert_eq!(unread.verdict, Verdict::Fail);
    }

    #[test]
    fn there_are_two_sorts_of_id_maps() {
        assert_eq!(verdict(SHIFTED, SHIFTED, MOUNTS).0, Verdict::Ok);
        let plain = MOUNTS.replace(",idmapped", "");
        assert_eq!(verdict(IDENTITY, IDENTITY, &plain).0, Verdict::Note);
        for (uids, gids) in [
            (SHIFTED, IDENTITY),
            (IDENTITY, SHIFTED),
            ("", ""),
            ("nonsense", SHIFTED),
            // Somebody else's id, or root's.
            (SHIFTED, &SHIFTED.replace("2013265927", "2013265928")),
            (&SHIFTED.replace("2013265927", "0"), SHIFTED),
            (&SHIFTED.replace("0 2147483648", "0 2147483647"), SHIFTED),
        ] {
            let (verdict, text) = verdict(uids, gids, MOUNTS);
            assert_eq!(verdict, Verdict::Fail, "{uids} {gids}");
            assert!(text.starts_with("undeclared id maps: "), "{text}");
        }
    }

    #[test]
    fn a_share_that_is_not_id_mapped_does_not_go_with_shifted_ids() {
        for (from, to, place) in [
            ("relatime,idmapped", "relatime", "/rootfs"),
            ("ro,idmapped", "ro", "/mnt/7"),
            // Of another field, and of another name.
            ("ro,idmapped master:3", "ro idmapped", "/mnt/7"),
            ("ro,idmapped", "ro,idmapped2", "/mnt/7"),
        ] {
            let text = format!("not id-mapped, in a namespace of shifted ids: {place}");
            let found = verdict(SHIFTED, SHIFTED, &MOUNTS.replace(from, to));
            assert_eq!(found, (Verdict::Fail, text));
        }
        // What covers the root is not the machine's.
        let view =
            "60 50 8:1 /r / rw - ext4 /dev/sda1 rw\n61 60 8:1 /v /mnt/9 rw - ext4 /dev/sda1 rw\n";
        let found = verdict(SHIFTED, SHIFTED, &format!("{MOUNTS}{view}"));
        assert_eq!(found.0, Verdict::Ok, "{}", found.1);
        let (verdict, text) = verdict(SHIFTED, SHIFTED, &format!("{MOUNTS}nonsense\n"));
        assert_eq!(verdict, Verdict::Fail);
        assert_eq!(text, "mountinfo has lines that are none");
    }
}
