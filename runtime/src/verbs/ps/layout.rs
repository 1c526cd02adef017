//! Which columns are shown, and how they become lines: the options of ps(1) that choose a format.

use super::columns::{self, Align, Column, View};
use super::error::{PsError, WIDTH_MAX};
use super::process::Process;

/// Formats that have a name, in the words of `-o`.
const SIMPLE: &str = "pid,tname,time,ucmd";
const BSD: &str = "pid,tname,stat,bsdtime,args";
const BSD_USER: &str = "user,pid,%cpu,%mem,vsz,rss,tname,stat,start_time,bsdtime,args";
const FULL: &str = "user=UID,pid,ppid,c,stime,tname,time,cmd";
const EXTRA_FULL: &str = "user=UID,pid,ppid,c,sz,rss,psr,stime,tname,time,cmd";
const LONG: &str = "f,s,uid,pid,ppid,c,opri,ni,addr_1,sz,wchan,tname,time,ucmd";
const LONG_FULL: &str = "f,s,user=UID,pid,ppid,c,opri,ni,addr_1,sz,wchan,stime,tname,time,cmd";
const LONG_EXTRA_FULL: &str =
    "f,s,user=UID,pid,ppid,c,opri,ni,addr_1,sz,wchan,rss,psr,stime,tname,time,cmd";

/// A column as it is shown.
struct Cell {
    column: &'static Column,
    header: String,
    width: usize,
}

/// The columns from left to right.
pub(super) struct Layout {
    cells: Vec<Cell>,
    has_header: bool,
}

/// What the options ask for.
#[derive(Default)]
struct Asked {
    full: bool,
    extra: bool,
    long: bool,
    bsd: bool,
    user: bool,
    no_header: bool,
    cells: Vec<Cell>,
}

impl Layout {
    /// Reads options. What selects processes changes nothing: those of the container are shown.
    pub(super) fn parse(options: &[String]) -> Result<Layout, PsError> {
        let mut asked = Asked {
            full: options.is_empty(),
            ..Asked::default()
        };
        let mut options = options.iter().map(String::as_str);
        while let Some(option) = options.next() {
            if let Some(name) = option.strip_prefix("--") {
                match name.split_once('=') {
                    _ if name == "no-headers" => asked.no_header = true,
                    Some(("format", list)) => asked.add(list)?,
                    _ if name == "format" => {
                        asked.add(options.next().ok_or(PsError::NoFormat("--format"))?)?;
                    }
                    _ => return Err(PsError::Option(option.to_owned())),
                }
            } else {
                asked.letters(option, &mut options)?;
            }
        }
        asked.layout()
    }

    /// The processes as a table.
    pub(super) fn table(&self, processes: &[Process], view: &View) -> String {
        let mut table = String::new();
        if self.has_header {
            self.line(&mut table, |cell| (cell.header.clone(), true));
        }
        for process in processes {
            self.line(&mut table, |cell| {
                ((cell.column.text)(process, view), false)
            });
        }
        table
    }

    /// Adds a line. A text that is too wide moves those after it, until narrow ones have made up for it. `whole`: never
    /// cut.
    fn line(&self, table: &mut String, text: impl Fn(&Cell) -> (String, bool)) {
        // Where the column begins, and where the line ends so far.
        let (mut begin, mut end) = (0, 0);
        for (index, cell) in self.cells.iter().enumerate() {
            let (mut text, whole) = text(cell);
            let is_last = index + 1 == self.cells.len();
            if !whole && !is_last {
                text = cut(text, cell);
            }
            let length = text.chars().count();
            let mut pad = begin - end.min(begin);
            if index > 0 {
                pad = pad.max(1);
            }
            if cell.column.align == Align::Right {
                let room = (begin + cell.width).saturating_sub(length);
                pad = pad.max(room.saturating_sub(end));
            }
            table.extend(std::iter::repeat_n(' ', pad));
            table.push_str(&text);
            end += pad + length;
            begin += cell.width + 1;
        }
        table.push('\n');
    }
}

/// What of a text is in its column.
fn cut(text: String, cell: &Cell) -> String {
    let keep = match cell.column.align {
        Align::Right => return text,
        _ if text.chars().count() <= cell.width => return text,
        Align::Left => return text.chars().take(cell.width).collect(),
        Align::Name => cell.width.saturating_sub(1),
    };
    text.chars().take(keep).chain(['+']).collect()
}

impl Asked {
    /// Reads an argument of one-letter options: ones of UNIX with a dash, or of BSD without.
    fn letters<'a>(
        &mut self,
        argument: &'a str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), PsError> {
        let (dash, letters) = match argument.strip_prefix('-') {
            Some(letters) => ("-", letters),
            None => ("", argument),
        };
        if letters.is_empty() {
            return Err(PsError::Option(argument.to_owned()));
        }
        for (index, letter) in letters.char_indices() {
            match (dash, letter) {
                ("-", 'e' | 'A') => {}
                // Lines are as long as they need to be.
                (_, 'w') => {}
                ("-", 'f') => self.full = true,
                ("-", 'F') => (self.full, self.extra) = (true, true),
                ("-", 'l') => self.long = true,
                ("", 'a' | 'x') => self.bsd = true,
                ("", 'u') => (self.bsd, self.user) = (true, true),
                (_, 'o') => {
                    let list = match &letters[index + 1..] {
                        "" => rest.next().ok_or(PsError::NoFormat("-o"))?,
                        list => list,
                    };
                    return self.add(list);
                }
                _ => return Err(PsError::Option(format!("{dash}{letter}"))),
            }
        }
        Ok(())
    }

    /// Adds the columns of a list: names between commas or blanks, each with `:width` or `=header` if it has others
    /// than its own.
    fn add(&mut self, list: &str) -> Result<(), PsError> {
        for item in list.split([',', ' ', '\t', '\n']) {
            if item.is_empty() {
                return Err(PsError::List(list.to_owned()));
            }
            let (name, header) = match item.split_once('=') {
                Some((name, header)) => (name, Some(header)),
                None => (item, None),
            };
            let (name, width) = match name.split_once(':') {
                Some((name, width)) => (name, Some(width)),
                None => (name, None),
            };
            let column = columns::find(name).ok_or_else(|| PsError::Column(name.to_owned()))?;
            let width = match (width, header) {
                (Some(text), _) => (text.parse().ok())
                    .filter(|width| (1..=WIDTH_MAX).contains(width))
                    .ok_or_else(|| PsError::Width(text.to_owned()))?,
                (None, Some(header)) => column.width.max(header.chars().count()),
                (None, None) => column.width,
            };
            let header = header.unwrap_or(column.header).to_owned();
            self.cells.push(Cell {
                column,
                header,
                width,
            });
        }
        Ok(())
    }

    fn layout(mut self) -> Result<Layout, PsError> {
        let unix = self.full || self.long;
        let listed = !self.cells.is_empty();
        if (listed && (unix || self.user)) || (unix && self.user) {
            return Err(PsError::Conflict);
        }
        if !listed {
            self.add(match (self.long, self.full, self.extra) {
                (true, _, true) => LONG_EXTRA_FULL,
                (true, true, false) => LONG_FULL,
                (true, false, false) => LONG,
                (false, _, true) => EXTRA_FULL,
                (false, true, false) => FULL,
                (false, false, false) if self.user => BSD_USER,
                (false, false, false) if self.bsd => BSD,
                (false, false, false) => SIMPLE,
            })?;
        }
        let has_header = !self.no_header && self.cells.iter().any(|cell| !cell.header.is_empty());
        Ok(Layout {
            cells: self.cells,
            has_header,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, SystemTime};

    use super::super::process::tests::said;
    use super::*;

    fn layout(options: &str) -> Result<Layout, String> {
        let options: Vec<_> = options.split_terminator(' ').map(str::to_owned).collect();
        Layout::parse(&options).map_err(|e| e.to_string())
    }

    fn shown(options: &str) -> String {
        let processes = [
            said(1, "sh", "sh\0"),
            said(123_456, "a-longer-name", "a-longer-name\0of some kind\0x\0"),
        ];
        let processes = processes.map(|said| Process::parse(&said).unwrap());
        let view = View {
            now: Duration::from_secs(6116),
            memory: 3368 << 12,
            users: "web-server:x:33:33::/:/bin/sh\n".into(),
            ..View::default()
        };
        layout(options).unwrap().table(&processes, &view)
    }

    /// ps(1) of procps 4.0.2 has written the like.
    #[test]
    fn lines_are_those_of_ps() {
        let with = |options: &str| {
            let text = shown(options);
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            with("-o pid,user,ppid,tty,time,c,args"),
            [
                "  PID USER      PPID TT           TIME  C COMMAND",
                "    1 web-ser+     1 pts/0    00:01:00  1 sh",
                "123456 web-ser+    1 pts/0    00:01:00  1 a-longer-name of some kind x",
            ]
        );
        assert_eq!(
            with("-o args,comm:3,gid,pid:9,user:12"),
            [
                "COMMAND                     COMMAND GID     PID USER",
                "sh                          sh      5         1 web-server",
                "a-longer-name of some kind  a-l     5    123456 web-server",
            ]
        );
        assert_eq!(
            with("-o pid= -o comm="),
            ["    1 sh", "123456 a-longer-name"]
        );
        assert_eq!(
            with("-o stat=,pid=NUMBER --no-headers"),
            ["Ss+       1", "Ss+  123456"]
        );
        let header = |options| shown(options).lines().next().unwrap().to_owned();
        for (options, expected) in [
            ("", "UID        PID  PPID  C STIME TTY          TIME CMD"),
            (
                "-eF",
                "UID        PID  PPID  C    SZ   RSS PSR STIME TTY          TIME CMD",
            ),
            ("-A", "  PID TTY          TIME CMD"),
            ("ax", "  PID TTY      STAT   TIME COMMAND"),
            (
                "auxww",
                "USER       PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND",
            ),
            (
                "-el",
                "F S   UID   PID  PPID  C PRI  NI ADDR SZ WCHAN  TTY          TIME CMD",
            ),
            (
                "-e -f -l",
                "F S UID        PID  PPID  C PRI  NI ADDR SZ WCHAN  STIME TTY          TIME CMD",
            ),
            (
                "-Fl",
                "F S UID        PID  PPID  C PRI  NI ADDR SZ WCHAN    RSS PSR STIME TTY          TIME CMD",
            ),
            ("a o pid,comm=NAME", "  PID NAME"),
            ("--format pid --format=s", "  PID S"),
        ] {
            assert_eq!(header(options), expected, "{options}");
        }
        let long = shown("-l");
        assert!(
            long.lines().nth(1).unwrap().starts_with(
                "4 S    33     1     1  1  80   0 -  1160 -      pts/0    00:01:00 sh"
            )
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (options, text) in [
            ("-ej", "ps option \"-j\" is not supported"),
            ("-aux", "ps option \"-a\" is not supported"),
            ("auxf", "ps option \"f\" is not supported"),
            ("--forest", "ps option \"--forest\" is not supported"),
            ("-", "ps option \"-\" is not supported"),
            ("--", "ps option \"--\" is not supported"),
            ("123", "ps option \"1\" is not supported"),
            ("-e -o", "ps: format specification must follow -o"),
            ("--format", "ps: format specification must follow --format"),
            ("-o pid,,comm", "ps: improper format list \"pid,,comm\""),
            (
                "-o pid,label",
                "ps: unknown user-defined format specifier \"label\"",
            ),
            ("-o pid:", "ps: column width \"\" is not between 1 and 4096"),
            (
                "-o pid:0",
                "ps: column width \"0\" is not between 1 and 4096",
            ),
            (
                "-o pid:4097",
                "ps: column width \"4097\" is not between 1 and 4096",
            ),
            ("-f -o pid", "ps: conflicting format options"),
            ("u -opid", "ps: conflicting format options"),
            ("u -f", "ps: conflicting format options"),
        ] {
            assert_eq!(layout(options).err().as_deref(), Some(text), "{options}");
        }
        let empty = Layout::parse(&[String::new()]).err().unwrap();
        assert_eq!(empty.to_string(), "ps option \"\" is not supported");
    }

    /// A process that does nothing, and ends with the test.
    struct Idle(Child);

    impl Drop for Idle {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Needs procps.
    #[test]
    fn ps_says_the_same_of_the_same_process() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=12345", "--regid=4294967290", "--clear-groups"]);
        command.args(["sleep", "1000"]).stdin(Stdio::null());
        let child = Idle(command.spawn().unwrap());
        let pid = i32::try_from(child.0.id()).unwrap();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        // The kernel shows the name when the program is executed, and the wait when it sleeps.
        let begun = SystemTime::now();
        while !read("stat").contains("(sleep) S ") {
            assert!(begun.elapsed().unwrap() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        let said = protocol::Process {
            pid,
            stat: read("stat"),
            status: read("status"),
            command_line: read("cmdline"),
        };
        let word = |text: &str, at| text.split_whitespace().nth(at).map(str::to_owned).unwrap();
        let uptime = word(&fs::read_to_string("/proc/uptime").unwrap(), 0);
        let now = Duration::from_secs_f64(uptime.parse().unwrap());
        // ps counts from the whole second in which the host was booted.
        let kernel = fs::read_to_string("/proc/stat").unwrap();
        let boot = word(kernel.split("btime").nth(1).unwrap(), 0);
        let view = View {
            now,
            time: now + Duration::from_secs(boot.parse().unwrap()),
            memory: nix::sys::sysinfo::sysinfo().unwrap().ram_total(),
            users: fs::read_to_string("/etc/passwd").unwrap(),
            groups: fs::read_to_string("/etc/group").unwrap(),
        };
        let process = [Process::parse(&said).unwrap()];
        // The width of pids and what a process waits in are the host's own.
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let pid = pid.to_string();
        for options in [
            "-f",
            "-F",
            "u",
            "-o pid,ppid,pgid,sid,user,uid,euser,group,euid,comm,cmd,args,command,stat,state,s,time,tty,tt",
            "-o pcpu,%cpu,pmem,%mem,rss,vsz,ni,nice,pri,opri,psr,nlwp,c,sz,f,bsdtime,tname,ucmd,user:3,comm:2,comm",
            "-o lstart,stime,start_time,lstart:40,start=BEGUN",
            "-o user= -o pid=",
        ] {
            let arguments = options.split(' ');
            let output = Command::new("ps")
                .args(arguments)
                .args(["-p", &pid])
                .output()
                .unwrap();
            let expected = String::from_utf8(output.stdout).unwrap();
            let found = layout(options).unwrap().table(&process, &view);
            assert_eq!(words(&found), words(&expected), "{options}");
        }
    }
}
