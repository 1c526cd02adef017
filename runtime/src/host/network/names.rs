//! Whether the container's network namespace has a name server of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use protocol::NAMES_ADDRESS;

/// Where C libraries look for name servers (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Maximum number of bytes of it that are looked at.
const RESOLV_CONF_MAX: u64 = 64 << 10;

/// The table of sockets (proc(5)).
const TABLE: &str = "/proc/thread-self/net/tcp";

/// The state of a socket that listens (TCP_LISTEN of net/tcp_states.h), as in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Whether a container is to ask the name server: engines say so in the file that they mount over its resolv.conf.
/// Looking for a listener takes the kernel through a table as large as the host's memory asks for, which is no good on
/// every start.
pub(crate) fn are_asked(spec: &Spec) -> bool {
    let mounts = spec.mounts().iter().flatten();
    mounts
        .filter(|mount| mount.destination() == Path::new(RESOLV_CONF))
        .filter_map(|mount| mount.source().as_deref())
        .any(names_it)
}

fn names_it(file: &Path) -> bool {
    let mut text = String::new();
    let read =
        File::open(file).and_then(|file| file.take(RESOLV_CONF_MAX).read_to_string(&mut text));
    let server = NAMES_ADDRESS.ip().to_string();
    read.is_ok()
        && text.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some("nameserver") && words.next() == Some(&server)
        })
}

/// Who listens in a network namespace.
pub(super) struct Listeners(File);

impl Listeners {
    /// Those in the namespace that the calling thread is in.
    pub(super) fn open() -> io::Result<Listeners> {
        File::open(TABLE).map(Listeners)
    }

    /// Whether there is one at the name server's address now, on whatever port: Docker leads there what is sent to port
    /// 53.
    pub(super) fn at_name_server(&self) -> io::Result<bool> {
        let mut table = Vec::new();
        let mut piece = [0; 16 << 10];
        loop {
            match self.0.read_at(&mut piece, table.len() as u64)? {
                0 => return Ok(listens(&String::from_utf8_lossy(&table))),
                length => table.extend_from_slice(&piece[..length]),
            }
        }
    }
}

fn listens(table: &str) -> bool {
    // In hexadecimal, as the bytes lie in memory.
    let address = u32::from_ne_bytes(NAMES_ADDRESS.ip().octets());
    let address = format!("{address:08X}:");
    table.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words
            .next()
            .is_some_and(|local| local.starts_with(&address));
        local && words.nth(1) == Some(LISTEN)
    })
}

impl AsFd for Listeners {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n";

    #[test]
    fn only_a_listener_at_that_address_counts() {
        for (line, expected) in [
            (
                "0: 0B00007F:B0C7 00000000:0000 0A 00000000:00000000 00:00000000",
                true,
            ),
            (
                "0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000",
                false,
            ),
            (
                "0: 00000000:0035 00000000:0000 0A 00000000:00000000 00:00000000",
                false,
            ),
            (
                "0: 0B00007F:B0C7 0100007F:9C40 01 00000000:00000000 00:00000000",
                false,
            ),
            ("0: 0B00007F:B0C7", false),
            ("", false),
        ] {
            assert_eq!(listens(&format!("{HEAD}{line}\n")), expected, "{line}");
        }
        assert!(!listens(""));
    }

    #[test]
    fn the_file_that_is_mounted_names_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let spec = |destination: &str| {
            serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": destination, "type": "bind", "source": file}]}))
            .unwrap()
        };
        assert!(!are_asked(&spec(RESOLV_CONF)), "there is no file");
        for (text, expected) in [
            ("search x\nnameserver 127.0.0.11\noptions ndots:0\n", true),
            ("nameserver\t127.0.0.11", true),
            ("# nameserver 127.0.0.11\nnameserver 127.0.0.111\n", false),
            ("", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(are_asked(&spec(RESOLV_CONF)), expected, "{text}");
            assert!(!are_asked(&spec("/etc/hosts")));
        }
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = std::net::TcpListener::bind((*NAMES_ADDRESS.ip(), 0)).unwrap();
        let listeners = Listeners::open().unwrap();
        assert!(listeners.at_name_server().unwrap());
        drop(listener);
        assert!(!listeners.at_name_server().unwrap(), "it looks again");
    }
}
