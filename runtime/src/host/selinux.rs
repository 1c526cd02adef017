//! SELinux of this host: the labels that its policy knows, and how a process takes one.
//!
//! A machine process and a stub are not executed, so they change their label in the midst of their life, by
//! `/proc/thread-self/attr/current` (`process:dyntransition` of the policy). The kernel demands that such a process has
//! one thread.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::statfs::{SELINUX_MAGIC, statfs};

use crate::error::{Doing, SystemError};

/// Where selinuxfs is mounted.
const ROOT: &str = "/sys/fs/selinux";

/// The security modules that are active.
const MODULES: &str = "/sys/kernel/security/lsm";

/// The label of everything as long as no policy is loaded.
const NO_POLICY: &str = "kernel";

/// The first field after the type's is the level, which may hold colons.
const FIELDS: usize = 4;

/// What a label is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The process that stands for a container or an exec.
    Process,
    /// Files that are made for it.
    Files,
}

/// Why there is no such label.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is not a label that this host's policy knows")]
    Unknown(String, #[source] io::Error),
    #[error(transparent)]
    System(#[from] SystemError),
}

/// Whether it is enabled and has a policy.
pub(crate) fn is_enabled() -> bool {
    statfs(ROOT).is_ok_and(|found| found.filesystem_type() == SELINUX_MAGIC)
        && of_process("thread-self").is_ok_and(|label| label != NO_POLICY)
}

/// The label of a process, given by its name in `/proc`.
pub(crate) fn of_process(process: &str) -> io::Result<String> {
    let label = fs::read_to_string(format!("/proc/{process}/attr/current"))?;
    Ok(label.trim_end_matches(['\0', '\n']).to_owned())
}

/// A label as the kernel writes it. In that of a process the type for containers is replaced by the one for machines.
///
/// # Errors
/// The policy does not know it.
pub(crate) fn label(what: Use, text: &str) -> Result<String, Error> {
    match what {
        Use::Process => canonical(&for_machines(text, &contexts())),
        Use::Files => canonical(text),
    }
}

/// The level of a label, by which containers are kept apart; `None` where the policy has no levels.
pub(crate) fn level(label: &str) -> Option<&str> {
    label.splitn(FIELDS, ':').nth(FIELDS - 1)
}

/// What keeps labels from being applied as they should be, on a host that has it.
pub(crate) fn check() -> Option<String> {
    if !is_enabled() {
        let modules = fs::read_to_string(MODULES).unwrap_or_default();
        let active = modules.trim().split(',').any(|module| module == "selinux");
        return active.then(|| {
            format!("SELinux has no policy or is not mounted on {ROOT}: labels of containers are refused")
        });
    }
    let Some(machines) = value(&contexts(), "kvm_process") else {
        return Some(
            "SELinux has no type for machines (kvm_process of lxc_contexts): \
             machine processes get the one that is meant for containers"
                .to_owned(),
        );
    };
    let error = canonical(&machines).err()?;
    Some(format!(
        "SELinux labels cannot be applied: {}",
        crate::error::one_line(&error)
    ))
}

/// The way of this process to another label.
pub(crate) struct Transition<'a> {
    label: &'a str,
    attribute: File,
}

impl<'a> Transition<'a> {
    /// The way to a label, if there is one to take. It is opened as long as `/proc` can be reached.
    ///
    /// # Errors
    /// Those of open(2).
    pub(crate) fn to(label: Option<&'a str>) -> Result<Option<Transition<'a>>, SystemError> {
        let Some(label) = label else {
            return Ok(None);
        };
        let attribute = attribute("current").doing_with(|| set(label))?;
        Ok(Some(Transition { label, attribute }))
    }

    /// Takes the label. This process must have one thread.
    ///
    /// # Errors
    /// The policy does not allow it.
    pub(crate) fn take(self) -> Result<(), SystemError> {
        let written = self.attribute.write_all_at(self.label.as_bytes(), 0);
        written.doing_with(|| set(self.label))
    }
}

fn set(label: &str) -> String {
    format!("set process label {label:?}")
}

/// Makes files with this label, or with the one that the policy gives them.
///
/// # Errors
/// The policy does not allow it, or those of `make`.
pub(crate) fn creating<T>(
    label: Option<&str>,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let Some(label) = label else {
        return make();
    };
    // The kernel takes a label at the start of the file only.
    let attribute = attribute("fscreate")?;
    attribute.write_all_at(label.as_bytes(), 0)?;
    let made = make();
    // A newline stands for none.
    attribute.write_all_at(b"\n", 0)?;
    made
}

fn attribute(name: &str) -> io::Result<File> {
    let path = format!("/proc/thread-self/attr/{name}");
    OpenOptions::new().write(true).open(path)
}

/// The label as the kernel writes it, which orders the categories.
fn canonical(label: &str) -> Result<String, Error> {
    let path = format!("{ROOT}/context");
    let mut file = OpenOptions::new();
    let file = file.read(true).write(true).open(&path);
    let mut file = file.doing_to("open", &path)?;
    let unknown = |e| Error::Unknown(label.to_owned(), e);
    file.write_all(label.as_bytes()).map_err(unknown)?;
    let mut text = String::new();
    file.read_to_string(&mut text).doing_to("read", &path)?;
    Ok(text.trim_end_matches('\0').to_owned())
}

/// What the policy calls things of containers: lines of `name = "label"`. Empty if it says nothing of them.
fn contexts() -> String {
    let of_policy = || -> io::Result<String> {
        let config = fs::read_to_string("/etc/selinux/config")?;
        let name = value(&config, "SELINUXTYPE").unwrap_or_default();
        let path = PathBuf::from("/etc/selinux").join(name);
        fs::read_to_string(path.join("contexts/lxc_contexts"))
    };
    // The order is that of go-selinux, by which engines make their labels.
    fs::read_to_string("/usr/share/containers/selinux/contexts")
        .or_else(|_| of_policy())
        .unwrap_or_default()
}

/// What a name stands for, without quotes.
fn value(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.starts_with(['#', ';']));
    let mut values = lines.filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    });
    values.next()
}

/// The label with the type for machines if it has one of those that containers have when nobody asks for another.
fn for_machines(label: &str, contexts: &str) -> String {
    let kind = |name| {
        let label = value(contexts, name)?;
        label.split(':').nth(2).map(str::to_owned)
    };
    let mut fields: Vec<_> = label.splitn(FIELDS, ':').map(str::to_owned).collect();
    if let (Some(own), Some(machines)) = (fields.get_mut(2), kind("kvm_process"))
        && ["process", "init_process"]
            .map(kind)
            .contains(&Some(own.clone()))
    {
        *own = machines;
    }
    fields.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        # kvm_process = \"system_u:system_r:other_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        init_process=\"system_u:system_r:container_init_t:s0\"\n\
        kvm_process = \"system_u:system_r:container_kvm_t:s0\"\n";

    #[test]
    fn machines_have_a_type_of_their_own() {
        for (given, gets) in [
            ("u:r:container_t:s0:c1,c2", "u:r:container_kvm_t:s0:c1,c2"),
            ("u:r:container_init_t:s0", "u:r:container_kvm_t:s0"),
            ("u:r:container_t", "u:r:container_kvm_t"),
            // Whoever asks for another one gets it.
            ("u:r:spc_t:s0:c1,c2", "u:r:spc_t:s0:c1,c2"),
            (
                "u:r:container_kvm_t:s0-s1:c3",
                "u:r:container_kvm_t:s0-s1:c3",
            ),
            ("container_t", "container_t"),
            ("u:container_t:x", "u:container_t:x"),
            ("", ""),
        ] {
            assert_eq!(for_machines(given, CONTEXTS), gets, "{given:?}");
        }
        let container = "u:r:container_t:s0:c1,c2";
        for none in [
            "",
            "process = \"u:r:container_t:s0\"\n",
            "kvm_process = \"u:r:k_t:s0\"\n",
        ] {
            assert_eq!(for_machines(container, none), container, "{none:?}");
        }
    }

    #[test]
    fn levels() {
        for (label, expected) in [
            ("u:r:t:s0", Some("s0")),
            ("u:r:t:s0:c1,c2", Some("s0:c1,c2")),
            ("u:r:t:s0-s0:c0.c1023", Some("s0-s0:c0.c1023")),
            ("u:r:t", None),
            ("", None),
        ] {
            assert_eq!(level(label), expected, "{label:?}");
        }
    }

    #[test]
    fn values() {
        let text = "# A=1\nA = x\n A=2\n;B=3\nB\nC=\"q\"\nSELINUXTYPE=targeted \n";
        for (name, expected) in [
            ("A", Some("x")),
            ("B", None),
            ("C", Some("q")),
            ("SELINUXTYPE", Some("targeted")),
            ("SELINUX", None),
        ] {
            assert_eq!(value(text, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn files_are_made_without_a_label_anywhere() {
        assert_eq!(creating(None, || Ok(7)).unwrap(), 7);
    }
}
