//! `process.selinuxLabel` and `linux.mountLabel`: what the host's SELinux is told. The guest has none.

use oci_spec::runtime::{Process, Spec};

use super::ledger::Ledger;
use super::{Facts, Member};
use crate::host::selinux::{Use, level};
use crate::state::Labels;

const PROCESS: &str = "process.selinuxLabel";
const MOUNT: &str = "linux.mountLabel";

/// runc's words.
const OFF: &str = "selinux label is specified in config, but selinux is disabled or not supported";

/// Gives a label as this host's kernel writes it, that of a process with the type for machines, or says why it cannot be
/// had.
pub(crate) type Policy<'a> = dyn Fn(Use, &str) -> Result<String, String> + 'a;

/// The labels of a container, which may be a member of the machine of another one. A pod whose machine does not exist
/// yet gets one with the labels of this container, its first.
pub(super) fn labels(
    spec: &Spec,
    member: Option<&Member>,
    facts: &Facts<'_>,
    ledger: &mut Ledger,
) -> Labels {
    let process = spec.process().as_ref();
    let process = process.and_then(|process| process.selinux_label().as_deref());
    let files = spec.linux().as_ref();
    let files = files.and_then(|linux| linux.mount_label().as_deref());
    let own = Labels {
        process: known(PROCESS, Use::Process, process, facts.selinux, ledger),
        files: known(MOUNT, Use::Files, files, facts.selinux, ledger),
    };
    let Some(machine) = member.and_then(|member| (facts.labels)(&member.sandbox)) else {
        return own;
    };
    Labels {
        process: within(PROCESS, own.process, machine.process.as_deref(), ledger),
        files: within(MOUNT, own.files, machine.files.as_deref(), ledger),
    }
}

/// The label of what stands for one more process of the container that has the label `container`.
pub(super) fn of_exec(
    process: &Process,
    container: Option<&str>,
    policy: Option<&Policy<'_>>,
    ledger: &mut Ledger,
) -> Option<String> {
    let asked = process.selinux_label().as_deref();
    let own = known(PROCESS, Use::Process, asked, policy, ledger);
    within(PROCESS, own, container, ledger)
}

fn known(
    property: &str,
    what: Use,
    asked: Option<&str>,
    policy: Option<&Policy<'_>>,
    ledger: &mut Ledger,
) -> Option<String> {
    let asked = asked.filter(|label| !label.is_empty())?;
    let found = policy.map_or_else(|| Err(OFF.to_owned()), |policy| policy(what, asked));
    let refuse = |problem| ledger.refuse(property, problem);
    found.map_err(refuse).ok()
}

/// What one more process or container has in a machine that has the label `machine`: without one of its own it has that.
/// What confines its files and all else on the host is the machine, so that another level would be a separation that does
/// not exist.
fn within(
    property: &str,
    own: Option<String>,
    machine: Option<&str>,
    ledger: &mut Ledger,
) -> Option<String> {
    let Some(own) = own else {
        return machine.map(str::to_owned);
    };
    match machine {
        Some(machine) if level(&own) == level(machine) => {}
        Some(machine) => ledger.refuse(
            property,
            format!("{own:?}: the machine has another SELinux level: {machine:?}"),
        ),
        None => ledger.refuse(property, format!("{own:?}: the machine has no label")),
    }
    Some(own)
}
