//! What is known of a container on this host: one directory below `--root` for each, 0700.
//!
//! | file | written | by |
//! |---|---|---|
//! | the directory itself | locked exclusively (flock(2)) | create, start, run, update, delete |
//! | `config.json` | atomically, the configuration that is in force | create, update |
//! | `state.json` | atomically, before and after the machine is started | create |
//! | `journal` | see [`Entry`] | the machine process |
//! | `control.sock` | see [`crate::control`] | the machine process |
//! | `log` | what goes wrong in the machine process, rate-limited | the machine process |
//!
//! Of a pod there is a directory likewise, whose name is no id ([`index`]), with `members/`: an empty file for each
//! container that belongs to it, written by create and delete under its lock.
//!
//! Making the directory is what makes an id unique. Readers take no lock: every file is whole or absent.

mod dir;
mod error;
mod id;
pub(crate) mod index;
mod journal;
pub(crate) mod process;
mod record;
mod status;
mod verb;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use dir::{Lock, StateDir, write_atomically};
pub(crate) use error::Error;
pub(crate) use id::ContainerId;
pub(crate) use journal::{Entry, JOURNAL, Journal, read_journal};
pub(crate) use process::Identity;
pub(crate) use record::{Groups, Labels, Network, Pinned, Pins, Record, Seat};
pub(crate) use status::Status;
pub(crate) use verb::Verb;

/// Where the state of containers is unless `--root` says otherwise.
const DEFAULT_ROOT: &str = "/run/chiton";

/// The default `--root`: for others than root, by runc's rule who that is, it is in $XDG_RUNTIME_DIR.
pub(crate) fn default_root() -> PathBuf {
    let mine = !nix::unistd::geteuid().is_root()
        || (in_user_namespace() && env::var_os("USER").is_some_and(|user| user != "root"));
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if mine && !dir.is_empty() => Path::new(&dir).join("chiton"),
        _ => DEFAULT_ROOT.into(),
    }
}

/// Whether ids are not the host's (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}
