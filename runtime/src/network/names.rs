//! Whether the container's network namespace has a name server of its own.

use std::fs;
use std::io;

use protocol::NAMES_ADDRESS;

/// The state of a socket that listens (TCP_LISTEN of net/tcp_states.h), as in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Whether somebody listens at the name server's address, on whatever port, in the network namespace of the calling thread: Docker
/// leads there what is sent to port 53.
pub(super) fn listening() -> io::Result<bool> {
    Ok(listens(&fs::read_to_string("/proc/thread-self/net/tcp")?))
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
    fn a_listener_is_seen() {
        let listener = std::net::TcpListener::bind((*NAMES_ADDRESS.ip(), 0)).unwrap();
        assert!(listening().unwrap());
        drop(listener);
    }
}
