//! The system call filters: each thread of a machine process, and each stub, is left with the calls that its work takes,
//! which `system-calls.md` lists.
//!
//! A call that is not among them is not carried out. The kernel raises SIGSYS in the thread instead, and that ends the
//! process, a machine with a line in its logs. Code that has taken a thread over cannot prevent it: the kernel does not heed that
//! SIGSYS is blocked, and no filter lets the handler be changed while the machine lives.

mod sys;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::sys::exit_now;

/// The filters, and the names of system calls by their numbers.
mod table {
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// Exit code of a machine that has broken its filter: that of one that was lost.
const BROKEN: u8 = 255;

/// Maximum length of a thread's name, in bytes (`TASK_COMM_LEN` of linux/sched.h, without the zero).
const NAME_MAX: usize = 15;

/// A file for the last words, and what stands before and behind them.
pub(crate) struct LastWords {
    pub(crate) file: OwnedFd,
    pub(crate) before: &'static str,
    pub(crate) behind: &'static str,
}

/// Where last words go.
static LAST_WORDS: OnceLock<Vec<LastWords>> = OnceLock::new();

thread_local! {
    /// The name of this thread. The handler must neither allocate nor make a system call for it.
    static NAME: Cell<[u8; NAME_MAX]> = const { Cell::new([0; NAME_MAX]) };
}

/// The filter of a stub.
pub(crate) const STUB: &[u64] = table::STUB;

/// The filter of a watcher.
pub(crate) const WATCH: &[u64] = table::WATCH;

/// The filter of a thread of a machine process, by the thread's name; that of the event loop for any other.
pub(crate) fn of(thread: &str) -> &'static [u64] {
    match thread.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "vcpu" | "fs" => table::GUEST,
        "blk" => table::BLK,
        _ => table::MAIN,
    }
}

/// Has violations end the process with a line in each of `places`, from now on.
///
/// # Errors
/// Those of sigaction(2).
pub(crate) fn announce(places: Vec<LastWords>) -> io::Result<()> {
    LAST_WORDS.get_or_init(|| places);
    sys::on_violation()
}

/// Sets the filter of the calling thread of a machine process, for good.
///
/// # Errors
/// Those of seccomp(2).
pub(crate) fn set_of(thread: &str) -> io::Result<()> {
    let mut name = [0; NAME_MAX];
    for (to, from) in name.iter_mut().zip(thread.bytes()) {
        *to = from;
    }
    NAME.set(name);
    set(of(thread))
}

/// Sets a filter for the calling thread, for good. It must have no_new_privs.
///
/// # Errors
/// Those of seccomp(2).
pub(crate) fn set(filter: &[u64]) -> io::Result<()> {
    sys::set(filter)
}

/// A thread has made a call that its filter does not allow. This is in a signal handler: the call may come from an
/// allocation, so there must be none here.
fn violated(call: usize) -> ! {
    let name = NAME.get();
    let known = table::NAMES.get(call).copied().flatten();
    let mut digits = [0; 20];
    let words: [&[u8]; 6] = [
        b"thread ",
        name.split(|byte| *byte == 0).next().unwrap_or_default(),
        b" has made a system call that it may not make: ",
        known.unwrap_or("number").as_bytes(),
        b" ",
        decimal(call, &mut digits),
    ];
    for place in LAST_WORDS.get().into_iter().flatten() {
        let words = [place.before.as_bytes()]
            .into_iter()
            .chain(words)
            .chain([place.behind.as_bytes()]);
        // One write, so that nothing gets between the words.
        let mut line = [0; 256];
        let mut length = 0;
        for word in words {
            let room = &mut line[length..];
            let count = word.len().min(room.len());
            room[..count].copy_from_slice(&word[..count]);
            length += count;
        }
        let _ = rustix::io::write(&place.file, &line[..length]);
    }
    exit_now(BROKEN)
}

/// The digits of a number.
fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b"0123456789"[number % 10];
        number /= 10;
        if number == 0 || first == 0 {
            return &digits[first..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_thread_has_a_filter_of_its_own() {
        let names = ["main", "vcpu12", "blk3"];
        let filters = names.map(of);
        for (index, filter) in filters.iter().enumerate() {
            assert!(filter.len() > 10 && filter.len() < 1000);
            assert!(!filters[..index].contains(filter));
        }
        assert_eq!(of("chiton"), of("main"));
        assert_eq!(of("fs0"), of("vcpu12"), "they take each other's place");
        assert_eq!(table::NAMES[0], Some("read"));
        assert_eq!(table::NAMES[41], Some("socket"));
    }

    #[test]
    fn decimals() {
        for number in [0, 7, 10, 435, usize::MAX] {
            let mut digits = [0; 20];
            assert_eq!(decimal(number, &mut digits), number.to_string().as_bytes());
        }
    }
}
