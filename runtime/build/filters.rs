//! The machine process's system call filters, made of the table `system-calls.md`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use libseccomp::{
    ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, set_api,
};

/// The kinds of threads, as in the table.
const THREADS: [&str; 5] = ["main", "guest", "blk", "stub", "watch"];

/// The level of seccomp_api_set(3) at which libseccomp knows the action KILL_PROCESS.
const API_LEVEL: u32 = 3;

/// One more than the number of the last system call that gets a name in a message.
const NAMED: i32 = 512;

/// The values that the table has names for.
const VALUES: [(&str, u64); 24] = [
    ("AF_INET", libc::AF_INET as u64),
    ("FIONBIO", libc::FIONBIO),
    ("FS_IOC_FIEMAP", 0xc020_660b),
    ("FS_IOC_FSGETXATTR", 0x801c_581f),
    ("FS_IOC_FSSETXATTR", 0x401c_5820),
    ("FS_IOC_GETFLAGS", 0x8008_6601),
    ("FS_IOC_SETFLAGS", 0x4008_6602),
    ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as u64),
    ("F_GETFL", libc::F_GETFL as u64),
    ("F_SETFL", libc::F_SETFL as u64),
    // linux/kvm.h
    ("KVM_IOEVENTFD", 0x4040_ae79),
    ("KVM_IRQ_LINE", 0x4008_ae61),
    ("KVM_KVMCLOCK_CTRL", 0xaead),
    ("KVM_RUN", 0xae80),
    ("MADV_DONTNEED", libc::MADV_DONTNEED as u64),
    ("MADV_POPULATE_READ", libc::MADV_POPULATE_READ as u64),
    ("MADV_POPULATE_WRITE", libc::MADV_POPULATE_WRITE as u64),
    ("PROT_EXEC", libc::PROT_EXEC as u64),
    ("TCGETS", libc::TCGETS),
    ("TIOCGWINSZ", libc::TIOCGWINSZ),
    ("TUNGETIFF", libc::TUNGETIFF),
    ("TUNSETIFF", libc::TUNSETIFF),
    ("TUNSETOFFLOAD", libc::TUNSETOFFLOAD),
    // linux/if_tun.h
    ("TUNSETVNETHDRSZ", 0x4004_54d8),
];

/// A row of the table.
struct Row {
    call: ScmpSyscall,
    threads: Vec<String>,
    conditions: Vec<ScmpArgCompare>,
}

/// Writes the filters as Rust constants, one for each kind of thread, and the names of system calls.
pub(crate) fn write(table: &Path, to: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(table).map_err(|e| format!("{}: {e}", table.display()))?;
    let rows = rows(&text)?;
    let mut code = String::new();
    for thread in THREADS {
        let program = filter(&rows, thread, &to.with_extension("bpf"))
            .map_err(|e| format!("filter of {thread}: {e}"))?;
        let name = thread.to_uppercase();
        let _ = writeln!(code, "pub(super) const {name}: &[u64] = &{program:?};");
    }
    let names = (0..NAMED).map(|number| ScmpSyscall::from(number).get_name().ok());
    let _ = writeln!(
        code,
        "pub(super) const NAMES: &[Option<&str>] = &{:?};",
        names.collect::<Vec<_>>()
    );
    std::fs::write(to, code).map_err(|e| format!("{}: {e}", to.display()))
}

fn rows(text: &str) -> Result<Vec<Row>, String> {
    let lines = text.lines().filter(|line| line.starts_with('|'));
    // Behind the heading and the line below it.
    let rows: Vec<Row> = lines.skip(2).map(row).collect::<Result<_, _>>()?;
    let seen: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| &row.threads)
        .map(String::as_str)
        .collect();
    match seen.len() == THREADS.len() {
        true => Ok(rows),
        false => Err(format!("the threads of the table are {seen:?}")),
    }
}

fn row(line: &str) -> Result<Row, String> {
    let at = |e: String| format!("system-calls.md: {line}: {e}");
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, call, threads, conditions, reason, _] = cells[..] else {
        return Err(at("not four cells".into()));
    };
    let threads: Vec<String> = threads.split(", ").map(str::to_owned).collect();
    if let Some(unknown) = threads
        .iter()
        .find(|name| !THREADS.contains(&name.as_str()))
    {
        return Err(at(format!("no thread {unknown}")));
    }
    if reason.is_empty() {
        return Err(at("no reason".into()));
    }
    let conditions = conditions.split(", ").filter(|text| !text.is_empty());
    Ok(Row {
        call: ScmpSyscall::from_name(call).map_err(|e| at(e.to_string()))?,
        threads,
        conditions: conditions
            .map(condition)
            .collect::<Result<_, _>>()
            .map_err(at)?,
    })
}

/// `1 = NAME` or `2 & NAME = 0`.
fn condition(text: &str) -> Result<ScmpArgCompare, String> {
    let value = |name: &str| {
        let found = VALUES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("no value for {name}"))
    };
    let words: Vec<&str> = text.split(' ').collect();
    let (argument, operator, against) = match words[..] {
        [argument, "=", name] => (argument, ScmpCompareOp::Equal, value(name)?),
        [argument, "&", name, "=", "0"] => (argument, ScmpCompareOp::MaskedEqual(value(name)?), 0),
        _ => return Err(format!("{text:?} is no condition")),
    };
    let argument = argument
        .parse()
        .map_err(|_| format!("no argument {argument}"))?;
    Ok(ScmpArgCompare::new(argument, operator, against))
}

/// What is not allowed raises SIGSYS in the thread: it ends the process with a word on what it was.
fn filter(
    rows: &[Row],
    thread: &str,
    scratch: &Path,
) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    // What libseccomp takes the kernel to know; it would ask the one of the machine that builds.
    set_api(API_LEVEL)?;
    let mut filter = ScmpFilterContext::new(ScmpAction::Trap)?;
    filter.set_act_badarch(ScmpAction::KillProcess)?;
    // The kernel runs a filter once for each system call when it is set: a tree is quick.
    filter.set_ctl_optimize(2)?;
    for row in rows {
        if row.threads.iter().any(|name| name == thread) {
            filter.add_rule_conditional(ScmpAction::Allow, row.call, &row.conditions)?;
        }
    }
    if std::env::var("PROFILE").as_deref() == Ok("debug") {
        // Before a descriptor is closed, the standard library asks whether it is open.
        let asks = ScmpArgCompare::new(1, ScmpCompareOp::Equal, libc::F_GETFD as u64);
        filter.add_rule_conditional(
            ScmpAction::Allow,
            ScmpSyscall::from_name("fcntl")?,
            &[asks],
        )?;
    }
    let mut options = File::options();
    let options = options.create(true).truncate(true).read(true).write(true);
    let mut file = options.open(scratch)?;
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "no whole instructions");
    Ok(instructions
        .iter()
        .map(|one| u64::from_le_bytes(*one))
        .collect())
}
