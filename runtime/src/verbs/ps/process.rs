//! A process in the words of the guest's `/proc` (proc(5)), which may be anything: read strictly, and printed without
//! control characters.

use std::str::{FromStr, SplitAsciiWhitespace};

use super::error::PsError;

/// `TASK_COMM_LEN` of linux/sched.h without its NUL, with room for the longer names of kernel threads.
const NAME_MAX: usize = 64;

/// Maximum number of characters of a command line that are shown: as much as the agent sends.
const COMMAND_MAX: usize = 4 << 10;

/// What is shown of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) name: String,
    pub(super) state: char,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Device number of the controlling terminal; 0 without one.
    pub(super) terminal: u32,
    /// Process group in the foreground of the terminal.
    pub(super) foreground: i32,
    /// `PF_*` of linux/sched.h.
    pub(super) flags: u32,
    /// CPU time in clock ticks.
    pub(super) ticks: u64,
    pub(super) priority: i32,
    pub(super) nice: i32,
    pub(super) threads: u32,
    /// Clock ticks since the guest's boot.
    pub(super) started: u64,
    /// Bytes.
    pub(super) virtual_size: u64,
    /// KiB.
    pub(super) resident: u64,
    pub(super) cpu: u32,
    /// Effective ids.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether pages are locked into memory.
    pub(super) locked: bool,
    /// The arguments with blanks between; empty for a zombie.
    pub(super) command: String,
}

impl Process {
    /// Reads the files of a process.
    pub(super) fn parse(said: &protocol::Process) -> Result<Process, PsError> {
        let invalid = |file| PsError::Guest {
            pid: said.pid,
            file,
        };
        let mut process = from_stat(&said.stat)
            .filter(|process| process.pid == said.pid && process.pid > 0)
            .ok_or_else(|| invalid("stat"))?;
        // Real, effective, saved, of the file system.
        let id = |name| field(&said.status, name)?.nth(1)?.parse().ok();
        process.uid = id("Uid:").ok_or_else(|| invalid("status"))?;
        process.gid = id("Gid:").ok_or_else(|| invalid("status"))?;
        // A zombie has no memory and no such lines.
        let size = |name| {
            field(&said.status, name).map_or(Some(0), |mut words| words.next()?.parse::<u64>().ok())
        };
        process.locked = size("VmLck:").ok_or_else(|| invalid("status"))? > 0;
        process.resident = size("VmRSS:").ok_or_else(|| invalid("status"))?;
        let arguments = said.command_line.trim_end_matches('\0').replace('\0', " ");
        process.command = printable(&arguments, COMMAND_MAX);
        Ok(process)
    }
}

/// `/proc/<pid>/stat`. What is in other files is left empty.
fn from_stat(stat: &str) -> Option<Process> {
    // The name is in parentheses, and it may hold anything, parentheses included.
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    // From the third field on.
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.parse().ok()?;
    let parent = next(&mut fields)?;
    let group = next(&mut fields)?;
    let session = next(&mut fields)?;
    let terminal: i32 = next(&mut fields)?;
    let foreground = next(&mut fields)?;
    let flags = next(&mut fields)?;
    // Page faults.
    let mut fields = fields.skip(4);
    let ticks = next::<u64>(&mut fields)?.saturating_add(next(&mut fields)?);
    // Of its children.
    let mut fields = fields.skip(2);
    let priority = next(&mut fields)?;
    let nice = next(&mut fields)?;
    let threads = next(&mut fields)?;
    let mut fields = fields.skip(1);
    let started = next(&mut fields)?;
    let virtual_size = next(&mut fields)?;
    // The resident size, which is exact in the other file only; addresses, signals.
    let cpu = next(&mut fields.skip(15))?;
    Some(Process {
        pid: pid.parse().ok()?,
        name: printable(name, NAME_MAX),
        state: Some(state).filter(char::is_ascii_alphabetic)?,
        parent,
        group,
        session,
        terminal: terminal.cast_unsigned(),
        foreground,
        flags,
        ticks,
        priority,
        nice,
        threads,
        started,
        virtual_size,
        resident: 0,
        cpu,
        uid: 0,
        gid: 0,
        locked: false,
        command: String::new(),
    })
}

fn next<'a, T: FromStr>(fields: &mut impl Iterator<Item = &'a str>) -> Option<T> {
    fields.next()?.parse().ok()
}

/// The words behind `name` in a file of names and words.
fn field<'a>(text: &'a str, name: &str) -> Option<SplitAsciiWhitespace<'a>> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace())
}

/// At most `most` characters, with `?` for those that steer a terminal, as ps(1) has it.
fn printable(text: &str, most: usize) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(most).map(visible).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A shell in a terminal, as the kernel shows it.
    pub(in super::super) fn said(pid: i32, name: &str, command_line: &str) -> protocol::Process {
        protocol::Process {
            pid,
            stat: format!(
                "{pid} ({name}) S 1 {pid} {pid} 34816 {pid} 4194560 208 0 0 0 6050 25 1 2 20 0 1 0 4100 4751360 \
                 842 18446744073709551615 1 1 0 0 0 0 65536 4 0 1 0 0 17 3 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
            ),
            status: format!(
                "Name:\t{name}\nUid:\t0\t33\t0\t0\nGid:\t0\t5\t0\t0\nVmLck:\t       0 kB\nVmRSS:\t    3368 kB\n"
            ),
            command_line: command_line.to_owned(),
        }
    }

    #[test]
    fn fields_are_found() {
        let process = Process::parse(&said(70, "a) S (b", "sh\0-c\0x\0\0")).unwrap();
        let found = (
            process.pid,
            process.parent,
            process.session,
            process.foreground,
        );
        assert_eq!(found, (70, 1, 70, 70));
        assert_eq!((process.name.as_str(), process.state), ("a) S (b", 'S'));
        assert_eq!((process.terminal, process.flags), (34816, 4_194_560));
        assert_eq!((process.ticks, process.started), (6075, 4100));
        assert_eq!(
            (process.priority, process.nice, process.threads),
            (20, 0, 1)
        );
        assert_eq!(
            (process.virtual_size, process.resident, process.cpu),
            (4_751_360, 3368, 3)
        );
        assert_eq!((process.uid, process.gid, process.locked), (33, 5, false));
        assert_eq!(process.command, "sh -c x");
    }

    #[test]
    fn what_no_kernel_writes_is_refused() {
        let good = said(7, "x", "");
        Process::parse(&good).unwrap();
        let stats = [
            "",
            "7",
            "7 (x",
            "7 (x) ",
            "7 (x) S 1 2",
            "7 (x) SS 1",
            "8 (x) S",
        ]
        .map(str::to_owned);
        let changed = [
            ("4100", "-1"),
            ("S", "\u{1b}"),
            ("7 (", "8 ("),
            (" 4751360 ", " 99999999999999999999 "),
        ];
        let changed = changed.map(|(from, to)| good.stat.replacen(from, to, 1));
        for stat in stats.into_iter().chain(changed) {
            let process = protocol::Process {
                stat: stat.clone(),
                ..good.clone()
            };
            let error = Process::parse(&process).unwrap_err().to_string();
            assert_eq!(error, "the guest gives an invalid /proc/7/stat", "{stat:?}");
        }
        for status in [
            "",
            "Uid:\t0\n",
            "Uid:\t0\t-1\nGid:\t0\t0\n",
            "Uid:\t0\t1\nGid:\t0\t0\nVmLck:\tx\n",
        ] {
            let process = protocol::Process {
                status: status.to_owned(),
                ..good.clone()
            };
            let error = Process::parse(&process).unwrap_err().to_string();
            assert_eq!(
                error, "the guest gives an invalid /proc/7/status",
                "{status:?}"
            );
        }
        for pid in [0, -7] {
            Process::parse(&said(pid, "x", "")).unwrap_err();
        }
    }

    #[test]
    fn nothing_steers_the_terminal_or_is_endless() {
        let process =
            Process::parse(&said(7, "a\u{1b}]0;b\u{7}", "a\nb\0\u{1b}[2J\u{9b}c")).unwrap();
        assert_eq!(process.name, "a?]0;b?");
        assert_eq!(process.command, "a?b ?[2J?c");
        let process = Process::parse(&said(7, &"n".repeat(1000), &"c".repeat(100_000))).unwrap();
        assert_eq!(
            (process.name.len(), process.command.len()),
            (NAME_MAX, COMMAND_MAX)
        );
    }
}
