//! Users and groups across the border of a user namespace.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, fchown};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Process, Spec};
use protocol::{IdMaps, Stdio};

use crate::error::{During, Error, Result};
use crate::sys;

/// Makes the pipes the user's, so that it can open /dev/stdin and its like.
pub(super) fn give_stdio(spec: &Spec, process: &Process, stdio: Stdio) -> Result<()> {
    if process.terminal() == Some(true) {
        return Ok(());
    }
    let linux = spec.linux().as_ref();
    let id = process.user().uid();
    let uid = mapped(linux.and_then(|l| l.uid_mappings().as_ref()), id)
        .ok_or_else(|| Error::Config(format!("process.user: id {id} is not mapped")))?;
    for (number, stream) in (0..).zip([stdio.stdin, stdio.stdout, stdio.stderr]) {
        if stream.is_some() {
            // Only the user, as runc: the group stays.
            let fd = sys::standard(number);
            fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>)
                .during(|| "give stdio to the user")?;
        }
    }
    Ok(())
}

/// The id outside of the user namespace, if it has one there.
pub(super) fn mapped(mappings: Option<&Vec<LinuxIdMapping>>, id: u32) -> Option<u32> {
    let Some(mappings) = mappings.filter(|mappings| !mappings.is_empty()) else {
        return Some(id);
    };
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id())?;
        if offset < mapping.size() {
            mapping.host_id().checked_add(offset)
        } else {
            None
        }
    })
}

/// Gives the configuration the maps of the user namespace of a process, which the container joins.
pub(super) fn take_maps(spec: &mut Spec, pid: i32) -> Result<()> {
    let read = |file| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).during(|| format!("read {path}"))
    };
    let maps = IdMaps {
        uids: read("uid_map")?,
        gids: read("gid_map")?,
    };
    set_maps(spec, &maps);
    Ok(())
}

/// Gives the configuration these maps in place of its own.
pub(super) fn set_maps(spec: &mut Spec, maps: &IdMaps) {
    let parse = |text: &str| Some(text.lines().filter_map(mapping).collect());
    if let Some(linux) = spec.linux_mut() {
        linux.set_uid_mappings(parse(&maps.uids));
        linux.set_gid_mappings(parse(&maps.gids));
    }
}

/// A line of uid_map (user_namespaces(7)), read where the other side is the guest's own namespace or the host's.
fn mapping(line: &str) -> Option<LinuxIdMapping> {
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
    let mut number = || numbers.next()?.ok();
    let mapping = LinuxIdMappingBuilder::default().container_id(number()?);
    mapping.host_id(number()?).size(number()?).build().ok()
}

pub(super) fn write_maps(spec: &Spec, pid: i32) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (file, mappings) in [
        ("uid_map", linux.uid_mappings()),
        ("gid_map", linux.gid_mappings()),
    ] {
        let mut text = String::new();
        for map in mappings.iter().flatten() {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{} {} {}",
                map.container_id(),
                map.host_id(),
                map.size()
            );
        }
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        fs::write(&path, text).during(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
