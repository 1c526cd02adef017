//! The command line as runc understands it, that is as Go's `flag` package and urfave/cli do, rewritten for clap:
//! `-name` is `--name`, booleans take `=false`, and known flags may follow the operands of all verbs but `exec` and
//! `ps`, where what follows the container's id is somebody else's.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::vec;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, Parser};

use super::Cli;

/// The verbs whose flags end at the first operand.
const FLAGS_FIRST: [&str; 2] = ["exec", "ps"];

/// runc's exit code for a verb that it does not have.
const UNKNOWN_VERB: u8 = 3;

/// Why there is nothing to do.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help was asked for.
    Help(String),
    /// The command line is wrong.
    Usage {
        /// What is wrong with it, in one line.
        text: String,
        /// The program's exit code.
        code: u8,
        /// What was said before the verb, if that much is right: the log is to have the error, too.
        global: Option<Box<Cli>>,
    },
}

/// Understands a command line, the program's name included.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let mut cli = Cli::command();
    let mut args = args.into_iter().skip(1).collect::<Vec<_>>().into_iter();
    let mut whole = vec![OsString::from(cli.get_name())];
    let (flags, operands) = split(&cli, &mut args, true).map_err(|text| usage(text, None))?;
    whole.extend(flags);
    let global = Cli::try_parse_from(&whole);
    let mut operands = operands.into_iter();
    let global = match (global, operands.next()) {
        (Err(e), _) => return Err(stop(&e, None)),
        // As runc: help, unless there is something else to do.
        (Ok(global), None) if global.version => return Ok(global),
        (Ok(_), None) => return Err(Stop::Help(cli.render_help().to_string())),
        (Ok(global), Some(verb)) => (global, verb),
    };
    let (global, mut verb) = global;
    let global = Some(Box::new(global));
    if verb == "help" || verb == "h" {
        verb = operands.next().unwrap_or_default();
        operands = vec![OsString::from("--help")].into_iter();
        if verb.is_empty() {
            return Err(Stop::Help(cli.render_help().to_string()));
        }
    }
    let name = verb.to_string_lossy().into_owned();
    let Some(command) = cli.find_subcommand(&name) else {
        return Err(Stop::Usage {
            text: format!("No help topic for '{name}'"),
            code: UNKNOWN_VERB,
            global,
        });
    };
    let flags_first = FLAGS_FIRST.contains(&name.as_str());
    let parsed = split(command, &mut operands, flags_first).and_then(|(flags, operands)| {
        let help = flags.iter().any(|flag| flag == "--help");
        if !help {
            count(command, operands.len())?;
        }
        Ok((flags, operands))
    });
    let (flags, operands) = match parsed {
        Ok(parsed) => parsed,
        Err(text) => return Err(usage(text, global)),
    };
    whole.push(verb);
    whole.extend(flags);
    whole.push("--".into());
    whole.extend(operands);
    Cli::try_parse_from(whole).map_err(|e| stop(&e, global))
}

fn usage(text: String, global: Option<Box<Cli>>) -> Stop {
    Stop::Usage {
        text,
        code: 1,
        global,
    }
}

/// What clap says about values; in one line.
fn stop(error: &clap::Error, global: Option<Box<Cli>>) -> Stop {
    let text = error.to_string();
    if error.kind() == ErrorKind::DisplayHelp {
        return Stop::Help(text);
    }
    if let Some(text) = of_value(error) {
        return usage(text, global);
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines = text.lines().map(str::trim);
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    usage(lines.join(" "), global)
}

/// What is wrong with a flag's value: as Go says it of numbers and durations, else what is said of this flag's values.
fn of_value(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let said = error.source()?.to_string();
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) else {
        return None;
    };
    let problem = if said.contains(" is not in ") || said.starts_with("number too ") {
        "value out of range"
    } else if said.contains("invalid digit") || said.starts_with("invalid duration") {
        "parse error"
    } else {
        return Some(said);
    };
    let name = flag.split(' ').next()?.trim_start_matches('-');
    Some(format!(
        "invalid value {value:?} for flag -{name}: {problem}"
    ))
}

/// The flags as clap reads them, and the operands.
fn split(
    command: &Command,
    args: &mut vec::IntoIter<OsString>,
    flags_first: bool,
) -> Result<(Vec<OsString>, Vec<OsString>), String> {
    let (mut flags, mut operands) = (Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        if arg == "--" {
            operands.extend(args);
            break;
        }
        let Some((name, value)) = flag(&arg) else {
            operands.push(arg);
            if flags_first {
                operands.extend(args);
                break;
            }
            continue;
        };
        let Some(known) = find(command, name) else {
            if operands.is_empty() {
                return Err(format!("flag provided but not defined: -{name}"));
            }
            operands.push(arg);
            continue;
        };
        let Some((long, takes_value)) = known else {
            flags.push("--help".into());
            continue;
        };
        let mut text = OsString::from(format!("--{long}"));
        if takes_value {
            let value = value.map(OsStr::to_owned).or_else(|| args.next());
            let value = value.ok_or_else(|| format!("flag needs an argument: -{name}"))?;
            text.push("=");
            text.push(value);
            flags.push(text);
        } else {
            flags.retain(|flag| *flag != text);
            if is_set(name, value)? {
                flags.push(text);
            }
        }
    }
    Ok((flags, operands))
}

/// The name and value of `-name`, `--name` or either with `=value`; `None` for an operand.
fn flag(arg: &OsStr) -> Option<(&str, Option<&OsStr>)> {
    let bytes = arg.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = std::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]).ok()?;
    let value = end.map(|end| OsStr::from_bytes(&bytes[end + 1..]));
    (!name.is_empty()).then_some((name, value))
}

/// The long name of a flag and whether it takes a value; `Some(None)` for the flag that asks for help.
fn find<'a>(command: &'a Command, name: &str) -> Option<Option<(&'a str, bool)>> {
    if matches!(name, "h" | "help") {
        return Some(None);
    }
    let is_short = |short: char| name.len() == short.len_utf8() && name.starts_with(short);
    let known = |arg: &&Arg| arg.get_long() == Some(name) || arg.get_short().is_some_and(is_short);
    let found = command.get_arguments().find(known)?;
    Some(Some((found.get_long()?, found.get_action().takes_values())))
}

/// The value of a boolean flag (Go, strconv.ParseBool).
fn is_set(name: &str, value: Option<&OsStr>) -> Result<bool, String> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
        Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
        Some(value) => {
            let value = OsString::from_vec(value.to_vec());
            Err(format!(
                "invalid boolean value {value:?} for -{name}: parse error"
            ))
        }
    }
}

/// Checks the number of operands.
fn count(command: &Command, given: usize) -> Result<(), String> {
    let needed = command
        .get_positionals()
        .filter(|arg| arg.is_required_set());
    let needed = needed.count();
    let any = |arg: &Arg| matches!(arg.get_action(), ArgAction::Append);
    let most = if command.get_positionals().any(any) {
        usize::MAX
    } else {
        command.get_positionals().count()
    };
    let demand = if given >= needed && given <= most {
        return Ok(());
    } else if needed == most {
        format!("exactly {needed}")
    } else if given < needed {
        format!("a minimum of {needed}")
    } else {
        format!("a maximum of {most}")
    };
    let name = command.get_name();
    Err(format!("chiton: \"{name}\" requires {demand} argument(s)"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::{LogFormat, Verb};

    fn parsed(line: &str) -> Result<Cli, Stop> {
        parse(format!("chiton {line}").split(' ').map(OsString::from))
    }

    #[test]
    fn flags_are_gos() {
        for line in [
            "--root /r --log-format json --debug create --bundle /b --no-pivot c",
            "-root /r -log-format=json -debug=true create -bundle=/b -no-pivot c",
            "--root=/x --root=/r -debug=false -debug --log-format=json create c --bundle /b --no-pivot=1",
            "--root=/r -debug=T --log-format json --criu /c --cgroup-manager=cgroupfs create -b /b c --no-pivot",
        ] {
            let cli = parsed(line).unwrap();
            assert_eq!(cli.root.as_deref(), Some(Path::new("/r")), "{line}");
            assert!(cli.debug && cli.log_format == LogFormat::Json, "{line}");
            let Some(Verb::Create(create)) = cli.verb else {
                panic!("{line}")
            };
            assert_eq!((create.id.as_str(), create.no_pivot), ("c", true), "{line}");
            assert_eq!(create.bundle, Path::new("/b"), "{line}");
        }
        assert!(!parsed("--debug=true --debug=false list").unwrap().debug);
    }

    #[test]
    fn what_follows_the_id_of_exec_and_ps_is_no_flag() {
        let Some(Verb::Exec(exec)) = parsed("exec -t --env A=-b c ls -d -- --tty").unwrap().verb
        else {
            panic!()
        };
        assert_eq!(exec.command, ["ls", "-d", "--", "--tty"]);
        assert!(exec.tty && !exec.detach);
        assert_eq!(
            (exec.id.as_str(), &exec.env[..]),
            ("c", &["A=-b".to_owned()][..])
        );
        let Some(Verb::Ps(ps)) = parsed("ps c -o pid").unwrap().verb else {
            panic!()
        };
        assert_eq!(ps.options, ["-o", "pid"]);
        let Some(Verb::Kill(kill)) = parsed("kill c -9 --all").unwrap().verb else {
            panic!()
        };
        assert_eq!((kill.signal.as_str(), kill.all), ("-9", true));
    }

    #[test]
    fn wrong_command_lines_are_refused_in_runcs_words() {
        for (line, code, expected) in [
            ("frob", 3, "No help topic for 'frob'"),
            ("--frob list", 1, "flag provided but not defined: -frob"),
            ("state --frob x", 1, "flag provided but not defined: -frob"),
            ("--root", 1, "flag needs an argument: -root"),
            (
                "--debug=maybe list",
                1,
                "invalid boolean value \"maybe\" for -debug: parse error",
            ),
            (
                "exec",
                1,
                "chiton: \"exec\" requires a minimum of 1 argument(s)",
            ),
            (
                "state",
                1,
                "chiton: \"state\" requires exactly 1 argument(s)",
            ),
            (
                "state a -b",
                1,
                "chiton: \"state\" requires exactly 1 argument(s)",
            ),
            (
                "kill a b c",
                1,
                "chiton: \"kill\" requires a maximum of 2 argument(s)",
            ),
            (
                "list a",
                1,
                "chiton: \"list\" requires exactly 0 argument(s)",
            ),
            (
                "features a",
                1,
                "chiton: \"features\" requires exactly 0 argument(s)",
            ),
            ("list --format xml", 1, "invalid format option"),
            ("--log-format xml list", 1, "invalid log-format: xml"),
            (
                "update --pids-limit x c",
                1,
                "invalid value \"x\" for flag -pids-limit: parse error",
            ),
            (
                "update --blkio-weight 99999 c",
                1,
                "invalid value \"99999\" for flag -blkio-weight: value out of range",
            ),
            (
                "events --interval x c",
                1,
                "invalid value \"x\" for flag -interval: parse error",
            ),
        ] {
            match parsed(line) {
                Err(Stop::Usage {
                    text, code: found, ..
                }) => {
                    assert_eq!(found, code, "{line}");
                    assert_eq!(text, expected, "{line}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_verb_has_help() {
        let cli = Cli::command();
        for verb in cli.get_subcommands().map(Command::get_name) {
            for line in [
                format!("{verb} --help"),
                format!("{verb} -h"),
                format!("help {verb}"),
            ] {
                assert!(matches!(parsed(&line), Err(Stop::Help(text)) if text.contains("Usage:")));
            }
        }
        for line in ["--help", "help", "h", "-h"] {
            assert!(matches!(parsed(line), Err(Stop::Help(_))), "{line}");
        }
        assert!(matches!(parse(["chiton".into()]), Err(Stop::Help(_))));
    }

    #[test]
    fn the_log_is_known_when_the_verb_is_wrong() {
        let Err(Stop::Usage { global, .. }) = parsed("--log /l state") else {
            panic!()
        };
        assert_eq!(global.unwrap().log.as_deref(), Some(Path::new("/l")));
    }

    #[test]
    fn flags_of_other_runcs_are_accepted() {
        for line in [
            "update --resources - c",
            "update --blkio-weight 10 --cpu-period 1 --cpu-quota -1 --cpu-burst 1 --cpu-share 1 --cpu-idle 1 \
             --cpu-rt-period 1 --cpu-rt-runtime 1 --cpuset-cpus 0 --cpuset-mems 0 --memory 1G --memory-reservation 1 \
             --memory-swap -1 --kernel-memory 1 --kernel-memory-tcp 1 --pids-limit 1 --l3-cache-schema a \
             --mem-bw-schema b c",
            "checkpoint --image-path i --work-path w --parent-path p --leave-running --tcp-established \
             --tcp-skip-in-flight --link-remap --ext-unix-sk --shell-job --lazy-pages --status-fd 3 --page-server a:1 \
             --file-locks --pre-dump --manage-cgroups-mode soft --empty-ns network --auto-dedup c",
            "restore --bundle b --console-socket s --image-path i --work-path w --detach --pid-file p --no-subreaper \
             --no-pivot --tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode soft \
             --empty-ns network --auto-dedup --lazy-pages --lsm-profile a:b --lsm-mount-context c c",
            "events --interval 1m30s --stats c",
            "--systemd-cgroup --rootless=auto list -q",
        ] {
            if let Err(e) = parsed(line) {
                panic!("{line}: {e:?}");
            }
        }
    }
}
