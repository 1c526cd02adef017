//! Pods whose namespaces a client has pinned on this host before there is any container, as CRI-O does: bind mounts of
//! namespace files, which each configuration of the pod names. The containers that name the same ipc and uts namespace
//! are in one machine, which is the pod's.
//!
//! The machine has a container of its own, number 0, that is there for the namespaces which stand for the pinned ones
//! in the guest: those live as long as the machine, whoever of the pod comes first and whoever ends.
//!
//! Both the ipc and the uts namespace make a pod, and not one for the network: that is pinned for containers with a
//! machine each, too, by containerd, Podman and `ip netns`, while nobody else pins the other two.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};
use protocol::{FIRST, HOLDER, IdMaps};
use serde_json::{Value, json};

use super::annotations;
use super::namespaces::{Member, Named, Owner};
use crate::config::SPEC_VERSION;
use crate::state::{Identity, Pinned, Pins};

/// A namespace that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    /// Its number.
    pub(crate) inode: u64,
    /// The machine of the pod that has its name from this one, and all that is pinned for it.
    pub(crate) pod: Option<(Identity, Pins)>,
    /// Of a user namespace: its maps, which are all that it means in a guest.
    pub(crate) maps: Option<IdMaps>,
}

/// What makes the pod's own container.
pub(crate) struct Holder<'a> {
    /// The configuration of the container that the pod's machine is made for.
    pub(crate) spec: &'a Spec,
    pub(crate) pinned: &'a Pinned,
    /// Whether systemd makes the cgroup.
    pub(crate) systemd: bool,
    /// The names that the pinned namespace has.
    pub(crate) names: (&'a str, &'a str),
    /// The kernel parameters that have been set in the pinned namespaces, as `linux.sysctl` has them.
    pub(crate) parameters: &'a BTreeMap<String, String>,
}

/// The pod that a container belongs to by the pinned ones of these namespaces. `None` if they make none.
///
/// # Errors
/// A property, and what is wrong with it.
pub(super) fn member(named: &[Named<'_>]) -> Result<Option<Member>, (String, String)> {
    let of = |kind: Kind| {
        named.iter().find_map(|named| match &named.owner {
            Ok(Owner::Pinned(pin)) if named.kind == kind => Some((named, pin)),
            _ => None,
        })
    };
    let (Some((uts, pin)), Some((ipc, ipc_pin))) = (of(Kind::Uts), of(Kind::Ipc)) else {
        return Ok(None);
    };
    let (net, user) = (of(Kind::Network), of(Kind::User));
    let pins = Pins {
        uts: pin.inode,
        ipc: ipc_pin.inode,
        net: net.map(|(_, pin)| pin.inode),
        user: user.map(|(_, pin)| pin.inode),
    };
    let machine = match &pin.pod {
        Some((_, others)) if *others != pins => {
            let problem = format!(
                "the uts namespace {} is that of a pod with other pinned namespaces than this configuration names, and \
                 a container lives in one machine",
                uts.path.display()
            );
            return Err((uts.property.clone(), problem));
        }
        pod => pod.as_ref().map(|(machine, _)| *machine),
    };
    let mut member = Member {
        sandbox: pins.pod().as_str().to_owned(),
        machine,
        joins: Vec::new(),
        pinned: Some(Pinned {
            pins,
            uts: uts.path.to_owned(),
            ipc: ipc.path.to_owned(),
            net: net.map(|(named, _)| named.path.to_owned()),
            user: user.map(|(named, _)| named.path.to_owned()),
        }),
    };
    let joined = [Kind::Uts, Kind::Ipc, Kind::Network, Kind::User];
    for kind in joined.into_iter().filter(|kind| of(*kind).is_some()) {
        member.join(FIRST, kind);
    }
    Ok(Some(member))
}

impl Holder<'_> {
    /// Its configuration. What is said of the machine is what the container says that it is made for; its network is the
    /// pinned one, or an empty one, and the ids of its user namespace are those of the pinned one.
    pub(crate) fn configuration(&self) -> Value {
        let Holder { spec, pinned, .. } = self;
        let mut namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"]
            .map(|kind| json!({"type": kind}))
            .into();
        namespaces.push(match &pinned.net {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        });
        if let Some(path) = &pinned.user {
            namespaces.push(json!({"type": "user", "path": path}));
        }
        let own = spec.annotations().iter().flatten();
        let annotations: BTreeMap<_, _> = own
            .filter(|(name, _)| annotations::is_of_machine(name))
            .collect();
        let mut config = json!({
            "ociVersion": SPEC_VERSION,
            "process": {"args": HOLDER, "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true},
            "root": {"path": super::ROOTFS, "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=64k"]},
            ],
            "hostname": self.names.0,
            "annotations": annotations,
            "linux": {
                "cgroupsPath": self.cgroups_path(),
                "namespaces": namespaces,
                "sysctl": self.parameters,
            },
        });
        // What confines the machine on the host is what its first container names for itself.
        let process = spec.process().as_ref();
        if let Some(label) = process.and_then(|process| process.selinux_label().as_ref()) {
            config["process"]["selinuxLabel"] = label.as_str().into();
        }
        let linux = spec.linux().as_ref();
        if let Some(label) = linux.and_then(|linux| linux.mount_label().as_ref()) {
            config["linux"]["mountLabel"] = label.as_str().into();
        }
        if !self.names.1.is_empty() {
            config["domainname"] = self.names.1.into();
        }
        if let Some(score) = spec.process().as_ref().and_then(Process::oom_score_adj) {
            config["process"]["oomScoreAdj"] = score.into();
        }
        config
    }

    /// Where its cgroup is: next to the container's, so that what bounds the pod bounds the machine.
    fn cgroups_path(&self) -> String {
        let linux = self.spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let path = path.unwrap_or_else(|| Path::new(""));
        let uts = self.pinned.pins.uts;
        if self.systemd {
            let text = path.to_string_lossy();
            let slice = text.split_once(':').map_or("", |(slice, _)| slice);
            return format!("{slice}:chiton:pod-{uts}");
        }
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        let path = parent.join(format!("chiton-pod-{uts}"));
        path.to_string_lossy().into_owned()
    }
}
