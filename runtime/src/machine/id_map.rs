//! Maps of ids, and the user namespaces that are made of them: that of a machine process, and those by which mounts are
//! ID-mapped (mount_setattr(2)).
//!
//! A machine process has one of two maps, so that files keep their owners:
//!
//! | map | an id inside | a share shows file id `u` as | an id of the host |
//! |---|---|---|---|
//! | shifted | is one of the host's upper half, which are nobody's | `2^31 + u`, which is `u` inside | means nothing |
//! | identity | is the same on the host | `u`, which is `u` inside | means itself: capabilities count for its files |
//!
//! The process's own id is in both: it is not of the upper half, so the shifted map has a line for it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use protocol::IdMaps;

use crate::sys::{self, Cloned};

/// How much greater an id is outside of a shifted namespace. From here on nobody has ids (systemd's UIDS-GIDS.md), since
/// not all software can.
const SHIFT: u32 = 1 << 31;

/// How many ids are shifted, from 0 on: the greatest number is no id.
const SHIFTED: u32 = u32::MAX - SHIFT;

/// The process's own id inside of a shifted namespace.
pub(super) const OWN: u32 = SHIFT;

/// Who a machine process is.
pub(super) struct Users {
    /// Its user namespace.
    pub(super) namespace: OwnedFd,
    /// The id of its own, inside.
    pub(super) own: u32,
}

/// What each id inside of a user namespace is outside. Of a mount: what each id of its files is shown as.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) uids: Vec<IdRange>,
    pub(crate) gids: Vec<IdRange>,
    /// Of a mount: whether the mounts below are mapped too.
    pub(crate) recursive: bool,
}

/// `count` ids from `file` on, as files have them, are seen as those from `seen` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) file: u32,
    pub(crate) seen: u32,
    pub(crate) count: u32,
}

impl IdMap {
    /// The identity.
    pub(crate) fn identity() -> IdMap {
        IdMap::of_both(vec![IdRange {
            file: 0,
            seen: 0,
            count: u32::MAX,
        }])
    }

    /// The shifted map of a process with this id of its own; `None` for an id of the upper half.
    pub(crate) fn shifted(own: u32) -> Option<IdMap> {
        let all = IdRange {
            file: 0,
            seen: SHIFT,
            count: SHIFTED,
        };
        let own = IdRange {
            file: OWN,
            seen: own,
            count: 1,
        };
        (own.seen < SHIFT).then(|| IdMap::of_both(vec![all, own]))
    }

    fn of_both(ranges: Vec<IdRange>) -> IdMap {
        IdMap {
            uids: ranges.clone(),
            gids: ranges,
            recursive: true,
        }
    }

    /// The map of a mount for a process whose ids are shifted, as this one is for others; `None` where it shows ids that
    /// cannot be shifted.
    pub(super) fn seen_shifted(&self) -> Option<IdMap> {
        let shifted = |range: &IdRange| {
            let end = range.seen.checked_add(range.count)?;
            (end <= SHIFTED).then(|| IdRange {
                seen: range.seen + SHIFT,
                ..*range
            })
        };
        let all = |ranges: &[IdRange]| ranges.iter().map(shifted).collect::<Option<Vec<_>>>();
        Some(IdMap {
            uids: all(&self.uids)?,
            gids: all(&self.gids)?,
            recursive: self.recursive,
        })
    }
}

/// The lines of `/proc/PID/uid_map` (user_namespaces(7)).
fn lines(ranges: &[IdRange]) -> String {
    let lines = ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.file, range.seen, range.count));
    lines.collect()
}

/// The ranges of these lines; `None` for what no kernel writes.
pub(crate) fn parse(lines: &str) -> Option<Vec<IdRange>> {
    let range = |line: &str| {
        let mut numbers = line
            .split_ascii_whitespace()
            .map(|number| number.parse().ok());
        Some(IdRange {
            file: numbers.next()??,
            seen: numbers.next()??,
            count: numbers.next()??,
        })
    };
    lines.lines().map(range).collect()
}

/// The maps of a user namespace of this host.
///
/// # Errors
/// Those of getting there, or of reading them.
pub(crate) fn maps_of(namespace: &File) -> io::Result<IdMaps> {
    let pid = match sys::clone_process(None)? {
        Cloned::Child => {
            let errno = setns(namespace, CloneFlags::CLONE_NEWUSER).err();
            let errno = errno.map_or(0, |errno| u8::try_from(errno as i32).unwrap_or(u8::MAX));
            sys::exit_now(errno)
        }
        Cloned::Parent(pid) => pid,
    };
    // Until it is waited for, it stands for the namespace in /proc.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let ended = waitid(Id::Pid(Pid::from_raw(pid)), flags);
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let maps = match ended {
        Ok(WaitStatus::Exited(_, 0)) => read("uid_map").and_then(|uids| {
            let gids = read("gid_map")?;
            Ok(IdMaps { uids, gids })
        }),
        Ok(WaitStatus::Exited(_, errno)) => Err(io::Error::from_raw_os_error(errno)),
        Ok(_) => Err(Errno::EINTR.into()),
        Err(e) => Err(e.into()),
    };
    waitpid(Pid::from_raw(pid), None)?;
    maps
}

/// A user namespace with this map, in which no process lives.
pub(super) fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let pid = sys::ended_in_user_namespace()?;
    let made = mapped(pid, map);
    waitpid(Pid::from_raw(pid), None)?;
    made
}

/// The user namespace of a process, once it has this map.
fn mapped(pid: i32, map: &IdMap) -> io::Result<OwnedFd> {
    for (file, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
        fs::write(format!("/proc/{pid}/{file}"), lines(ranges))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(open(path.as_str(), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ids;

    #[test]
    fn no_id_of_the_lower_half_but_its_own_is_in_a_shifted_map() {
        let own = 0x7812_3456;
        let map = IdMap::shifted(own).unwrap();
        assert_eq!(map.uids, map.gids);
        assert_eq!(
            lines(&map.uids),
            "0 2147483648 2147483647\n2147483648 2014458966 1\n"
        );
        // As the kernel wants them: no range goes beyond the greatest id, none overlaps another, on either side.
        for side in [|range: &IdRange| range.file, |range: &IdRange| range.seen] {
            let [a, b] = &map.uids[..] else {
                panic!("{map:?}")
            };
            let end = |range| u64::from(side(range)) + u64::from(range.count);
            assert!(end(a) <= u64::from(u32::MAX) && end(b) <= u64::from(u32::MAX));
            assert!(end(a) <= side(b).into() || end(b) <= side(a).into());
        }
        assert!(
            map.uids
                .iter()
                .all(|range| range.seen >= SHIFT || range.seen == own)
        );
    }

    #[test]
    fn ids_of_the_upper_half_have_no_shifted_map() {
        assert!(IdMap::shifted(SHIFT - 1).is_some());
        assert_eq!(IdMap::shifted(SHIFT), None);
        assert_eq!(IdMap::shifted(u32::MAX - 1), None);
        // Those that nobody has changed have one.
        assert!(
            Ids::default()
                .all()
                .all(|own| IdMap::shifted(own).is_some())
        );
    }

    #[test]
    fn a_map_of_a_mount_is_shifted_where_all_of_it_can_be() {
        let map = |seen, count| IdMap {
            uids: vec![IdRange {
                file: 5,
                seen,
                count,
            }],
            gids: vec![],
            recursive: false,
        };
        assert_eq!(map(7, 3).seen_shifted(), Some(map(SHIFT + 7, 3)));
        assert_eq!(map(0, SHIFTED).seen_shifted(), Some(map(SHIFT, SHIFTED)));
        assert_eq!(map(1, SHIFTED).seen_shifted(), None);
        assert_eq!(map(SHIFT, 1).seen_shifted(), None);
        assert_eq!(map(u32::MAX, 2).seen_shifted(), None);
        let of_groups = IdMap {
            gids: map(SHIFT, 1).uids,
            ..map(7, 3)
        };
        assert_eq!(of_groups.seen_shifted(), None);
    }

    #[test]
    fn a_user_namespace_has_the_map() {
        let map = IdMap::shifted(7).unwrap();
        let users = user_namespace(&map).unwrap();
        // Seen by a process that is in it.
        let number = std::os::fd::AsRawFd::as_raw_fd(&users);
        let file = format!("/proc/{}/fd/{number}", std::process::id());
        let seen = std::process::Command::new("nsenter")
            .arg(format!("--user={file}"))
            .args([
                "--preserve-credentials",
                "cat",
                "/proc/self/uid_map",
                "/proc/self/gid_map",
            ])
            .output()
            .unwrap();
        let seen = String::from_utf8(seen.stdout).unwrap();
        let both = [map.uids, map.gids].concat();
        assert_eq!(parse(&seen), Some(both));
        let wrong = IdMap {
            gids: vec![],
            ..IdMap::of_both(vec![IdRange {
                file: 0,
                seen: u32::MAX,
                count: 2,
            }])
        };
        assert!(user_namespace(&wrong).is_err());
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let map = IdMap::shifted(7).unwrap();
        assert_eq!(parse(&lines(&map.uids)), Some(map.uids));
        // As the kernel shows them.
        let identity = IdMap::identity().uids;
        assert_eq!(parse("         0          0 4294967295\n"), Some(identity));
        assert_eq!(parse(""), Some(vec![]));
        for wrong in ["0 0\n", "0 0 x\n", "\n", "0 0 4294967296\n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
