//! Where errors, warnings and steps go, in the formats of runc, because callers parse them: to the file of `--log`,
//! with errors in plain words on standard error as well; or, without a log, to standard error. There somebody at a
//! terminal gets plain words.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;
use serde::Serialize;

use crate::cli::LogFormat;
use crate::clock::{self, Precision};

/// One line of a JSON log.
#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

/// Where errors, warnings and steps go.
pub(crate) struct Report {
    log: Option<File>,
    format: LogFormat,
    debug: bool,
}

impl Report {
    /// Opens the log, if one is asked for.
    pub(crate) fn new(log: Option<&Path>, format: LogFormat, debug: bool) -> io::Result<Report> {
        let open = |path| {
            let mut options = OpenOptions::new();
            options
                .create(true)
                .append(true)
                .mode(0o644)
                .custom_flags(libc::O_SYNC)
                .open(path)
        };
        Ok(Report {
            log: log
                .filter(|log| !log.as_os_str().is_empty())
                .map(open)
                .transpose()?,
            format,
            debug,
        })
    }

    /// To standard error, when there can be no log.
    pub(crate) fn without_log(format: LogFormat) -> Report {
        Report {
            log: None,
            format,
            debug: false,
        }
    }

    /// The same for a process that goes on without the caller: a report to the log alone, if there is one.
    pub(crate) fn to_log_only(&self) -> io::Result<Option<Report>> {
        let Some(log) = &self.log else {
            return Ok(None);
        };
        Ok(Some(Report {
            log: Some(log.try_clone()?),
            format: self.format,
            debug: self.debug,
        }))
    }

    /// The log's descriptor.
    pub(crate) fn log(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(AsFd::as_fd)
    }

    /// What stands before and behind the text of an error without a time, in the log's format. For a text without
    /// characters that would have to be escaped.
    pub(crate) fn bare_line(&self) -> (&'static str, &'static str) {
        match self.format {
            LogFormat::Text => ("level=error msg=\"", "\"\n"),
            LogFormat::Json => ("{\"level\":\"error\",\"msg\":\"", "\"}\n"),
        }
    }

    /// The end of a verb that failed. A line break in the text would be taken for a second message.
    pub(crate) fn error(&self, text: &str) {
        let text = plain(text.trim_end()).replace('\n', "; ");
        self.write("error", &text);
        if self.log.is_some() || io::stderr().is_terminal() {
            eprintln!("{text}");
        }
    }

    /// Something that the caller should know and that is no error.
    pub(crate) fn warn(&self, text: &str) {
        self.write("warning", text);
        if self.log.is_none() && io::stderr().is_terminal() {
            eprintln!("warning: {text}");
        }
    }

    /// Something that the caller may want to know and that runc says nothing about: to the log or a terminal, but not
    /// into what may be the container's own standard error.
    pub(crate) fn note(&self, text: &str) {
        if self.log.is_some() || io::stderr().is_terminal() {
            self.warn(text);
        }
    }

    /// What is being done, if that is asked for.
    pub(crate) fn debug(&self, text: &str) {
        if self.debug {
            self.write("debug", text);
            if self.log.is_none() && io::stderr().is_terminal() {
                eprintln!("{text}");
            }
        }
    }

    /// A line of the log, or of standard error when there is no log and no terminal.
    fn write(&self, level: &str, msg: &str) {
        let line = format_line(self.format, level, msg, clock::now(Precision::Seconds));
        // There is nobody to be told of a failure but by the exit code.
        let _ = match self.log.as_ref() {
            Some(mut log) => log.write_all(line.as_bytes()),
            None if io::stderr().is_terminal() => Ok(()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// The text of an error with those of the system as Go has them, which some callers look for: without the number that
/// Rust puts behind them, and beginning with a small letter.
fn plain(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(NUMBER) {
        let Some((number, after)) = after.split_once(')') else {
            break;
        };
        if number.parse::<i32>().is_err() {
            plain += before;
            plain += NUMBER;
            rest = &rest[before.len() + NUMBER.len()..];
            continue;
        }
        let begin = before.rfind(": ").map_or(0, |colon| colon + 2);
        let (doing, error) = before.split_at(begin);
        plain += doing;
        let mut letters = error.chars();
        match (letters.next(), letters.next()) {
            (Some(first), Some(second)) if second.is_lowercase() => {
                plain.extend(first.to_lowercase());
                plain += &error[first.len_utf8()..];
            }
            _ => plain += error,
        }
        rest = after;
    }
    plain + rest
}

fn format_line(format: LogFormat, level: &str, msg: &str, time: String) -> String {
    match format {
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={msg:?}\n"),
        LogFormat::Json => {
            let line = Line { level, msg, time };
            serde_json::to_string(&line)
                .map(|line| line + "\n")
                .unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_runcs() {
        let line = |format| format_line(format, "error", "exec: \"x\"", "T".into());
        assert_eq!(
            line(LogFormat::Text),
            "time=\"T\" level=error msg=\"exec: \\\"x\\\"\"\n"
        );
        let json = "{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\"\",\"time\":\"T\"}\n";
        assert_eq!(line(LogFormat::Json), json);
    }

    #[test]
    fn errors_of_the_system_are_gos() {
        for (text, expected) in [
            (
                "open /x: No such file or directory (os error 2)",
                "open /x: no such file or directory",
            ),
            ("Not a directory (os error 20)", "not a directory"),
            (
                "a: Bad address (os error 14); b: Input/output error (os error 5) (twice)",
                "a: bad address; b: input/output error (twice)",
            ),
            ("x: RPC failed (os error 99)", "x: RPC failed"),
            (
                "open /x (os error y): Is (os error 21)",
                "open /x (os error y): is",
            ),
            ("open /X (os error ", "open /X (os error "),
            ("No number", "No number"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn the_log_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for text in ["one", "two\nlines"] {
            let report = Report::new(Some(&path), LogFormat::Json, text == "one").unwrap();
            report.debug("step");
            report.note("note");
            report.error(text);
        }
        let text = std::fs::read_to_string(path).unwrap();
        let levels: Vec<_> = text.lines().map(|line| &line[..17]).collect();
        assert_eq!(
            levels,
            [
                "{\"level\":\"debug\",",
                "{\"level\":\"warning",
                "{\"level\":\"error\",",
                "{\"level\":\"warning",
                "{\"level\":\"error\","
            ]
        );
        assert!(text.contains("two; lines"));
    }
}
