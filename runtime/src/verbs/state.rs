//! `state`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ask::open;
use super::error::Error;
use crate::state::{self, StateDir, Status};

/// The state as the specification has it (runtime.md, State), and runc's additions to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    oci_version: String,
    pub(super) id: String,
    /// 0 once the container has stopped.
    pub(super) pid: i32,
    pub(super) status: Status,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

/// Prints the state of a container.
pub(crate) fn state(root: &Path, id: &str) -> Result<String, Error> {
    let state = of(&open(root, id)?)?;
    Ok(serde_json::to_string_pretty(&state).unwrap_or_default())
}

/// The state of a container.
///
/// # Errors
/// [`state::Error::NotFound`] before create has recorded anything.
pub(super) fn of(dir: &StateDir) -> Result<State, Error> {
    let record = dir.record()?.ok_or(state::Error::NotFound)?;
    let status = dir.status(Some(&record))?;
    let pid = record
        .process
        .filter(|_| status != Status::Stopped)
        .map_or(0, |process| process.pid);
    Ok(State {
        oci_version: record.oci_version,
        id: record.id,
        pid,
        status,
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: record.annotations,
        owner: owner(record.owner),
    })
}

/// The name of a user, or its number.
fn owner(uid: u32) -> String {
    let number = uid.to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&users, &number).unwrap_or(&number).to_owned()
}

/// The name of the user or group with this number (passwd(5), group(5)).
pub(super) fn name_in<'a>(users: &'a str, number: &str) -> Option<&'a str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(number)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names() {
        let users = "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/:/bin/sh\nbroken\n";
        assert_eq!(name_in(users, "0"), Some("root"));
        assert_eq!(name_in(users, "1000"), Some("me"));
        assert_eq!(name_in(users, "7"), None);
    }
}
