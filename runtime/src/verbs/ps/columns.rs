//! The columns of ps(1) by their names for `-o`, with its headers, widths and ways to write things.

use std::time::Duration;

use super::super::state::name_in;
use super::process::Process;
use crate::sys;

/// `USER_HZ` of x86_64 Linux: clock ticks in a second (proc(5)).
const TICKS: u64 = 100;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What columns depend on besides the process.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The guest's CLOCK_BOOTTIME.
    pub(super) now: Duration,
    /// The time of day at that moment, since 1970-01-01T00:00:00Z.
    pub(super) time: Duration,
    /// Memory of this host in bytes.
    pub(super) memory: u64,
    /// passwd(5).
    pub(super) users: String,
    /// group(5).
    pub(super) groups: String,
}

impl View {
    /// How long a process has been there.
    fn age(&self, process: &Process) -> Duration {
        self.now.saturating_sub(ticks(process.started))
    }

    /// When it started, in seconds since 1970.
    fn started(&self, process: &Process) -> u64 {
        self.time.saturating_sub(self.age(process)).as_secs()
    }
}

/// Where the text of a column is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Cut where the column ends, unless it is the last.
    Left,
    /// The same, with `+` as sign that something is missing.
    Name,
    /// Never cut.
    Right,
}

/// A column.
pub(super) struct Column {
    names: &'static [&'static str],
    pub(super) header: &'static str,
    pub(super) width: usize,
    pub(super) align: Align,
    pub(super) text: fn(&Process, &View) -> String,
}

use Align::{Left, Name, Right};

type Text = fn(&Process, &View) -> String;

const fn column(
    names: &'static [&'static str],
    header: &'static str,
    width: usize,
    align: Align,
    text: Text,
) -> Column {
    Column {
        names,
        header,
        width,
        align,
        text,
    }
}

#[rustfmt::skip]
const COLUMNS: &[Column] = &[
    column(&["pid", "tgid"], "PID", 5, Right, |p, _| p.pid.to_string()),
    column(&["ppid"], "PPID", 5, Right, |p, _| p.parent.to_string()),
    column(&["pgid", "pgrp"], "PGID", 5, Right, |p, _| p.group.to_string()),
    column(&["sid", "sess", "session"], "SID", 5, Right, |p, _| p.session.to_string()),
    column(&["user"], "USER", 8, Name, user),
    column(&["euser"], "EUSER", 8, Name, user),
    column(&["uid"], "UID", 5, Right, |p, _| p.uid.to_string()),
    column(&["euid"], "EUID", 5, Right, |p, _| p.uid.to_string()),
    column(&["group"], "GROUP", 8, Name, group),
    column(&["egroup"], "EGROUP", 8, Name, group),
    column(&["gid"], "GID", 5, Right, |p, _| p.gid.to_string()),
    column(&["egid"], "EGID", 5, Right, |p, _| p.gid.to_string()),
    column(&["comm", "ucomm"], "COMMAND", 15, Left, |p, _| name(p)),
    column(&["ucmd"], "CMD", 15, Left, |p, _| name(p)),
    column(&["args", "command"], "COMMAND", 27, Left, |p, _| arguments(p)),
    column(&["cmd"], "CMD", 27, Left, |p, _| arguments(p)),
    column(&["stat"], "STAT", 4, Left, |p, _| state(p)),
    column(&["s", "state"], "S", 1, Left, |p, _| p.state.to_string()),
    column(&["f", "flag", "flags"], "F", 1, Right, |p, _| format!("{:x}", p.flags >> 6 & 7)),
    column(&["time", "cputime"], "TIME", 8, Right, |p, _| days(ticks(p.ticks))),
    column(&["bsdtime"], "TIME", 6, Right, |p, _| minutes(ticks(p.ticks))),
    column(&["etime"], "ELAPSED", 11, Right, |p, v| elapsed(v.age(p))),
    column(&["etimes"], "ELAPSED", 7, Right, |p, v| v.age(p).as_secs().to_string()),
    column(&["start"], "STARTED", 8, Right, start),
    column(&["lstart"], "STARTED", 24, Right, |p, v| Date::of(v.started(p)).long()),
    column(&["start_time"], "START", 5, Right, start_time),
    column(&["stime"], "STIME", 5, Right, start_time),
    column(&["tty", "tt"], "TT", 8, Left, |p, _| terminal(p.terminal)),
    column(&["tname"], "TTY", 8, Left, |p, _| terminal(p.terminal)),
    column(&["c"], "C", 2, Right, |p, v| (cpu(p, v) / 10).min(99).to_string()),
    column(&["pcpu", "%cpu"], "%CPU", 4, Right, |p, v| tenths(cpu(p, v))),
    column(&["pmem", "%mem"], "%MEM", 4, Right, |p, v| tenths(memory(p, v))),
    column(&["rss", "rssize", "rsz"], "RSS", 5, Right, |p, _| p.resident.to_string()),
    column(&["vsz", "vsize"], "VSZ", 6, Right, |p, _| (p.virtual_size / 1024).to_string()),
    column(&["sz"], "SZ", 5, Right, |p, _| (p.virtual_size / PAGE).to_string()),
    column(&["ni", "nice"], "NI", 3, Right, |p, _| p.nice.to_string()),
    column(&["pri"], "PRI", 3, Right, |p, _| 39_i32.saturating_sub(p.priority).to_string()),
    column(&["opri"], "PRI", 3, Right, |p, _| 60_i32.saturating_add(p.priority).to_string()),
    column(&["psr"], "PSR", 3, Right, |p, _| p.cpu.to_string()),
    column(&["nlwp", "thcount"], "NLWP", 4, Right, |p, _| p.threads.to_string()),
    column(&["wchan"], "WCHAN", 6, Left, |_, _| "-".to_owned()),
    column(&["addr_1"], "ADDR", 1, Left, |_, _| "-".to_owned()),
];

/// The column of this name.
pub(super) fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.names.contains(&name))
}

fn ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS))
}

fn user(process: &Process, view: &View) -> String {
    named(&view.users, process.uid)
}

fn group(process: &Process, view: &View) -> String {
    named(&view.groups, process.gid)
}

fn named(names: &str, id: u32) -> String {
    let number = id.to_string();
    name_in(names, &number).unwrap_or(&number).to_owned()
}

fn name(process: &Process) -> String {
    process.name.clone()
}

fn arguments(process: &Process) -> String {
    let name = &process.name;
    match (process.state, process.command.as_str()) {
        ('Z', _) => format!("[{name}] <defunct>"),
        (_, "") => format!("[{name}]"),
        (_, command) => command.to_owned(),
    }
}

/// The state with what BSD adds to it.
fn state(process: &Process) -> String {
    let more = [
        (process.nice < 0, '<'),
        (process.nice > 0, 'N'),
        (process.locked, 'L'),
        (process.session == process.pid, 's'),
        (process.threads > 1, 'l'),
        (process.foreground == process.group, '+'),
    ];
    let more = more.iter().filter(|(set, _)| *set).map(|(_, c)| *c);
    std::iter::once(process.state).chain(more).collect()
}

/// The terminal of a device number, as `new_encode_dev` of linux/kdev_t.h makes them
/// (Documentation/admin-guide/devices.txt).
fn terminal(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    match (major, minor) {
        (136..=143, _) => format!("pts/{}", minor + ((major - 136) << 8)),
        (4, 0..=63) => format!("tty{minor}"),
        (4, _) => format!("ttyS{}", minor - 64),
        (5, 1) => "console".to_owned(),
        (229, _) => format!("hvc{minor}"),
        _ => "?".to_owned(),
    }
}

/// Thousandths of one CPU over the life of the process.
fn cpu(process: &Process, view: &View) -> u64 {
    let used = process.ticks.saturating_mul(1000 / TICKS);
    let age = view.age(process).as_secs();
    used.checked_div(age).unwrap_or_default()
}

/// Thousandths of this host's memory, which is where the guest's is.
fn memory(process: &Process, view: &View) -> u64 {
    let used = process.resident.saturating_mul(1000);
    let share = used.checked_div(view.memory / 1024);
    share.unwrap_or_default().min(999)
}

/// Per cent of thousandths; without the fraction where it would not fit.
fn tenths(thousandths: u64) -> String {
    match thousandths {
        0..=999 => format!("{}.{}", thousandths / 10, thousandths % 10),
        _ => (thousandths / 10).to_string(),
    }
}

/// `[D-]HH:MM:SS`.
fn days(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let days = if days > 0 {
        format!("{days}-")
    } else {
        String::new()
    };
    format!(
        "{days}{:02}:{:02}:{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// `M:SS`.
fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// `[[D-]HH:]MM:SS`.
fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 3600 {
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    } else {
        days(time)
    }
}

/// The time, or from a day ago on the date.
fn start(process: &Process, view: &View) -> String {
    let date = Date::of(view.started(process));
    if view.age(process).as_secs() > 86400 {
        format!("{} {:02}", date.month(), date.0.tm_mday)
    } else {
        date.time()
    }
}

/// The time without seconds, the date if that is not today, or the year if that is not this one.
fn start_time(process: &Process, view: &View) -> String {
    let (today, date) = (
        Date::of(view.time.as_secs()),
        Date::of(view.started(process)),
    );
    if date.0.tm_year != today.0.tm_year {
        date.year().to_string()
    } else if date.0.tm_yday != today.0.tm_yday {
        format!("{}{:02}", date.month(), date.0.tm_mday)
    } else {
        date.time().chars().take(5).collect()
    }
}

/// A moment in this host's time zone.
struct Date(nix::libc::tm);

impl Date {
    fn of(seconds: u64) -> Date {
        Date(sys::local_time(seconds))
    }

    fn year(&self) -> i32 {
        self.0.tm_year.saturating_add(1900)
    }

    fn month(&self) -> &'static str {
        const NAMES: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let index = usize::try_from(self.0.tm_mon).unwrap_or(usize::MAX);
        NAMES.get(index).copied().unwrap_or("?")
    }

    fn day(&self) -> &'static str {
        const NAMES: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
        let index = usize::try_from(self.0.tm_wday).unwrap_or(usize::MAX);
        NAMES.get(index).copied().unwrap_or("?")
    }

    fn time(&self) -> String {
        let tm = &self.0;
        format!("{:02}:{:02}:{:02}", tm.tm_hour, tm.tm_min, tm.tm_sec)
    }

    /// As ctime(3) has it.
    fn long(&self) -> String {
        let (day, month, year) = (self.day(), self.month(), self.year());
        format!("{day} {month} {:2} {} {year}", self.0.tm_mday, self.time())
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::tests::said;
    use super::*;

    fn process() -> Process {
        Process::parse(&said(7, "sh", "")).unwrap()
    }

    #[test]
    fn times() {
        let of = Duration::from_secs;
        assert_eq!(days(of(59)), "00:00:59");
        assert_eq!(days(of(86400 * 12 + 3723)), "12-01:02:03");
        assert_eq!(minutes(of(6000)), "100:00");
        for (seconds, text) in [
            (9, "00:09"),
            (3599, "59:59"),
            (3600, "01:00:00"),
            (90000, "1-01:00:00"),
        ] {
            assert_eq!(elapsed(of(seconds)), text);
        }
    }

    #[test]
    fn starts_are_relative_to_now() {
        let mut process = process();
        // 2026-07-15T12:00:00Z; no time zone has another month then.
        let (time, day) = (1_784_116_800, 86400_u64);
        let mut view = View {
            time: Duration::from_secs(time),
            ..View::default()
        };
        let mut ago = |seconds: u64| {
            view.now = Duration::from_secs(seconds + 41);
            let age = elapsed(view.age(&process));
            (age, start(&process, &view), start_time(&process, &view))
        };
        let (age, started, short) = ago(0);
        assert_eq!(
            (age.as_str(), &started[..5], &started[5..]),
            ("00:00", short.as_str(), ":00")
        );
        let (age, started, short) = ago(3 * day);
        assert_eq!(age, "3-00:00:00");
        assert_eq!(
            (started.replace(' ', ""), &short[..3]),
            (short.clone(), "Jul")
        );
        assert_eq!(ago(365 * day).2, "2025");
        let long = Date::of(view.started(&process)).long();
        assert!(
            long.ends_with(" 2025") && long[4..].starts_with("Jul 1"),
            "{long}"
        );
        // A guest may say that its processes start in the future, or before the epoch.
        process.started = u64::MAX;
        assert_eq!(view.started(&process), time);
        view.now = Duration::MAX;
        process.started = 0;
        assert_eq!(view.started(&process), 0);
    }

    #[test]
    fn shares() {
        let mut process = process();
        let seconds = |now| View {
            now: Duration::from_secs(now),
            memory: 3 * (3368 << 10),
            ..View::default()
        };
        // 60.75 s of CPU time, started at 41 s.
        assert_eq!(tenths(cpu(&process, &seconds(141))), "60.7");
        assert_eq!(tenths(cpu(&process, &seconds(51))), "607");
        assert_eq!(tenths(cpu(&process, &seconds(41))), "0.0");
        assert_eq!(tenths(memory(&process, &seconds(0))), "33.3");
        assert_eq!(tenths(memory(&process, &View::default())), "0.0");
        (process.resident, process.ticks) = (u64::MAX, u64::MAX);
        assert_eq!(tenths(memory(&process, &seconds(0))), "99.9");
        cpu(&process, &seconds(42));
        for column in COLUMNS {
            (column.text)(&process, &View::default());
        }
    }

    #[test]
    fn states_and_names() {
        let mut process = process();
        assert_eq!(
            (state(&process).as_str(), arguments(&process).as_str()),
            ("Ss+", "[sh]")
        );
        process.state = 'Z';
        (
            process.nice,
            process.locked,
            process.threads,
            process.session,
        ) = (-1, true, 2, 1);
        assert_eq!(state(&process), "Z<Ll+");
        process.command = "sh -c".into();
        assert_eq!(arguments(&process), "[sh] <defunct>");
    }

    #[test]
    fn terminals_have_names() {
        for (device, name) in [
            (0, "?"),
            (0x8800, "pts/0"),
            (0x10_882c, "pts/300"),
            (0x8903, "pts/259"),
            (0x0401, "tty1"),
            (0x0440, "ttyS0"),
            (0x0501, "console"),
            (0xe500, "hvc0"),
            (u32::MAX, "?"),
        ] {
            assert_eq!(terminal(device), name, "{device:#x}");
        }
    }
}
