//! What a container has of its host and of the caller where its configuration says nothing, because with runc it is a
//! process of the caller's on the host: resource limits and parameters of the kernel.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

/// The resource limits: the name in a configuration, in the order of RLIMIT_* of asm-generic/resource.h.
const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
];

/// The parameters of a kernel as a whole that programs need more of than there is by default, or that grow with the
/// machine's memory. Each is with what it is in any kernel unless somebody has set it: it need not be sent then.
const PARAMETERS: [(&str, &str); 12] = [
    ("vm/max_map_count", "65530"),
    ("vm/overcommit_memory", "0"),
    ("vm/overcommit_ratio", "50"),
    ("fs/aio-max-nr", "65536"),
    ("fs/file-max", ""),
    ("fs/nr_open", "1048576"),
    ("fs/inotify/max_user_instances", "128"),
    ("fs/inotify/max_user_watches", ""),
    ("fs/inotify/max_queued_events", "16384"),
    ("kernel/core_pattern", "core"),
    ("kernel/pid_max", "32768"),
    ("kernel/threads-max", ""),
];

/// The greatest length of a parameter: core_pattern has CORENAME_MAX_SIZE (linux/binfmts.h).
const PARAMETER_MAX: usize = 128;

/// The caller's resource limits: soft and hard, by number.
pub(crate) fn limits() -> io::Result<Vec<(u64, u64)>> {
    let limit = |(_, resource)| Ok(getrlimit(resource)?);
    RESOURCES.into_iter().map(limit).collect()
}

/// Completes the `rlimits` of a `process` object that is good otherwise.
pub(crate) fn complete(process: &mut Value, limits: &[(u64, u64)]) {
    let named = match process["rlimits"].take() {
        Value::Array(named) => named,
        _ => Vec::new(),
    };
    let unnamed = RESOURCES.iter().zip(limits).filter(|((name, _), _)| {
        let is = |limit: &Value| limit["type"].as_str() == Some(name);
        !named.iter().any(is)
    });
    let unnamed =
        unnamed.map(|((name, _), (soft, hard))| json!({"type": name, "soft": soft, "hard": hard}));
    let mut all: Vec<Value> = unnamed.collect();
    all.extend(named);
    process["rlimits"] = Value::Array(all);
}

/// The parameters of the host's kernel that the guest's are not to be less than: paths below `/proc/sys`, and values.
pub(crate) fn parameters() -> io::Result<Vec<(String, String)>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open("/proc/sys", flags, Mode::empty())?;
    let mut parameters = Vec::new();
    for (path, default) in PARAMETERS {
        if let Some(value) = read(&directory, path)?
            && worth_sending(&value, default)
        {
            parameters.push((path.to_owned(), value));
        }
    }
    Ok(parameters)
}

/// A parameter's value if the host's kernel has it.
fn read(directory: &OwnedFd, path: &str) -> io::Result<Option<String>> {
    let file = match openat(
        directory,
        path,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = [0; PARAMETER_MAX + 1];
    let length = File::from(file).read(&mut bytes)?;
    let text = std::str::from_utf8(&bytes[..length]).ok();
    Ok(text.map(|text| text.trim_end_matches('\n').to_owned()))
}

/// Not the default. A program or a socket that takes memory dumps (core(5)) is on the host, and the guest cannot give it
/// any.
fn worth_sending(value: &str, default: &str) -> bool {
    value != default && !value.is_empty() && !value.starts_with(['|', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resources_are_in_the_order_of_their_numbers() {
        for (number, (name, resource)) in RESOURCES.into_iter().enumerate() {
            assert_eq!(resource as usize, number, "{name}");
            assert_eq!(format!("{resource:?}"), name);
        }
    }

    #[test]
    fn what_a_process_names_stays() {
        let named = json!({"type": "RLIMIT_DATA", "soft": 7, "hard": 8});
        let limits: Vec<(u64, u64)> = (0..16).map(|number| (number, u64::MAX)).collect();
        for mut process in [json!({"rlimits": [named]}), json!({})] {
            let before = process["rlimits"].as_array().map_or(0, Vec::len);
            complete(&mut process, &limits);
            let all = process["rlimits"].as_array().unwrap();
            assert_eq!(all.len(), 16);
            let data: Vec<&Value> = all
                .iter()
                .filter(|limit| limit["type"] == "RLIMIT_DATA")
                .collect();
            let inherited = json!({"type": "RLIMIT_DATA", "soft": 2, "hard": u64::MAX});
            assert_eq!(data, [if before == 1 { &named } else { &inherited }]);
        }
    }

    #[test]
    fn what_is_sent() {
        for (value, default, sent) in [
            ("65530", "65530", false),
            ("262144", "65530", true),
            ("31000", "", true),
            ("/tmp/core.%p", "core", true),
            ("|/usr/lib/systemd/systemd-coredump %P", "core", false),
            ("@@/run/dumps", "core", false),
            ("", "core", false),
        ] {
            assert_eq!(worth_sending(value, default), sent, "{value:?}");
        }
    }

    #[test]
    fn this_hosts_parameters() {
        let parameters = parameters().unwrap();
        let threads = parameters
            .iter()
            .find(|(path, _)| path == "kernel/threads-max");
        assert!(threads.unwrap().1.parse::<u64>().unwrap() > 0);
    }
}
