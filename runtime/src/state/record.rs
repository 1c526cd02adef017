//! `state.json`: what create leaves for the later verbs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::{ContainerId as Number, FIRST};
use serde::{Deserialize, Serialize};
use vmm::MAX_NET_SLOTS;

use super::id::ContainerId;
use super::process::Identity;

/// The version of the record that this program writes and the only one it reads.
const VERSION: u32 = 1;

/// Which network namespace the machine process lives in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Network {
    /// A new one that stays empty: the container shares the guest's.
    #[default]
    Guests,
    /// A new one.
    New,
    /// An existing one, by path.
    Path(PathBuf),
}

impl Network {
    /// How many network interfaces the machine has room for. Each costs a little at the machine's start.
    pub(crate) fn slots(&self) -> usize {
        match self {
            Network::Guests => 0,
            Network::New | Network::Path(_) => MAX_NET_SLOTS,
        }
    }
}

/// The groups of resctrl that a machine belongs to, as paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Groups {
    /// Of its class of service.
    pub(crate) class: PathBuf,
    /// Of its own monitoring.
    pub(crate) monitor: Option<PathBuf>,
    /// The class is the container's alone, and goes with it.
    pub(crate) own: bool,
}

/// Which container of which machine a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seat {
    /// The id of the container that the machine was made for, or the name of the pod. The machine's socket is in its
    /// state directory.
    pub(crate) sandbox: String,
    /// The machine process.
    pub(crate) machine: Identity,
    /// The container's number in the machine.
    pub(crate) number: Number,
}

impl Seat {
    /// Whether the machine is that of a pod of pinned namespaces.
    pub(crate) fn is_of_pod(&self) -> bool {
        ContainerId::of_pod_named(&self.sandbox).is_some()
    }
}

/// The namespaces that a client has pinned on this host for a pod, by their inode numbers. No two namespaces of a
/// kernel have one in common, whatever their types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pins {
    /// The pod has its name from this one.
    pub(crate) uts: u64,
    pub(crate) ipc: u64,
    /// Where the client has one for the network.
    #[serde(default)]
    pub(crate) net: Option<u64>,
    /// Where the others belong to one for users.
    #[serde(default)]
    pub(crate) user: Option<u64>,
}

impl Pins {
    /// The pod's name.
    pub(crate) fn pod(&self) -> ContainerId {
        ContainerId::of_pod(self.uts)
    }
}

/// The same as a configuration names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) pins: Pins,
    pub(crate) uts: PathBuf,
    pub(crate) ipc: PathBuf,
    pub(crate) net: Option<PathBuf>,
    pub(crate) user: Option<PathBuf>,
}

/// The SELinux labels of a container, as the kernel writes them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// Of the process that stands for it.
    pub(crate) process: Option<String>,
    /// Of the files that are made for it on the host.
    pub(crate) files: Option<String>,
}

/// What create knows of a container and the later verbs need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Raised by incompatible changes only; unknown fields are ignored.
    version: u32,
    pub(crate) id: String,
    /// `ociVersion` of the configuration.
    pub(crate) oci_version: String,
    /// Absolute path.
    pub(crate) bundle: PathBuf,
    /// Absolute path.
    pub(crate) rootfs: PathBuf,
    /// RFC 3339 with nanoseconds, in UTC.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// User id of the owner.
    pub(crate) owner: u32,
    /// The container's cgroup v2 directory.
    pub(crate) cgroup: Option<PathBuf>,
    /// Guest RAM in bytes, from the machine's boot to its end.
    #[serde(default)]
    pub(crate) memory: u64,
    /// Number of vCPUs, from the machine's boot to its end.
    #[serde(default)]
    pub(crate) vcpus: u8,
    /// The network namespace of the machine process.
    #[serde(default)]
    pub(crate) network: Network,
    /// The interfaces that the configuration has moved there, by their names there.
    #[serde(default)]
    pub(crate) net_devices: Vec<String>,
    /// The systemd unit that the cgroup belongs to, for instance `chiton-a.scope`.
    #[serde(default)]
    pub(crate) scope: Option<String>,
    /// The groups of resctrl that the machine belongs to.
    #[serde(default)]
    pub(crate) resctrl: Option<Groups>,
    /// The container has a socket to tell of its readiness.
    #[serde(default)]
    pub(crate) notify: bool,
    #[serde(default)]
    pub(crate) labels: Labels,
    /// The process that callers know as the container: the machine process or, in the machine of another container, the
    /// stub of its init. `None` while create is at work.
    #[serde(alias = "machine")]
    pub(crate) process: Option<Identity>,
    /// The place of a container that is in the machine of another one.
    #[serde(default)]
    pub(crate) member: Option<Seat>,
    /// The pinned namespaces that it has with others, whose pod it belongs to. Of a pod's own record: those of the pod.
    #[serde(default)]
    pub(crate) pins: Option<Pins>,
}

impl Record {
    /// A record of a container that is being created.
    pub(crate) fn new(id: &str, bundle: PathBuf, rootfs: PathBuf) -> Record {
        Record {
            version: VERSION,
            id: id.to_owned(),
            oci_version: String::new(),
            bundle,
            rootfs,
            created: String::new(),
            annotations: BTreeMap::new(),
            owner: 0,
            cgroup: None,
            memory: 0,
            vcpus: 0,
            network: Network::default(),
            net_devices: Vec::new(),
            scope: None,
            resctrl: None,
            notify: false,
            labels: Labels::default(),
            process: None,
            member: None,
            pins: None,
        }
    }

    /// Whether its process lives.
    pub(crate) fn lives(&self) -> bool {
        self.process.is_some_and(|process| process.is_alive())
    }

    /// The pinned namespaces of the pod that it belongs to, if it does. The pod's own container is the pod.
    pub(crate) fn pod(&self) -> Option<&Pins> {
        let pins = self.pins.as_ref();
        pins.filter(|pins| pins.pod().as_str() != self.id)
    }

    /// Its place in a machine, its own or that of another one; `None` while there is none.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let own = |machine| Seat {
            sandbox: self.id.clone(),
            machine,
            number: FIRST,
        };
        self.member.clone().or_else(|| self.process.map(own))
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a record; the error names what is wrong with it.
    pub(crate) fn from_json(json: &[u8]) -> Result<Record, std::io::Error> {
        let record: Record = serde_json::from_slice(json)?;
        if record.version != VERSION {
            let text = format!("version {} instead of {VERSION}", record.version);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut record = Record::new("a", "/b".into(), "/b/rootfs".into());
        assert_eq!(Record::from_json(&record.to_json()).unwrap(), record);
        let process = Identity {
            pid: 7,
            start_time: 9,
            boot: "1f".to_owned().try_into().unwrap(),
        };
        record.process = Some(process);
        let own = record.seat().unwrap();
        assert_eq!((own.sandbox.as_str(), own.number), ("a", FIRST));
        record.member = Some(Seat {
            sandbox: "s".into(),
            machine: Identity { pid: 5, ..process },
            number: 3,
        });
        assert_eq!(record.seat(), record.member);
        record.cgroup = Some("/sys/fs/cgroup/a".into());
        (record.memory, record.vcpus) = (64 << 20, 2);
        record.network = Network::Path("/run/netns/a".into());
        record.scope = Some("a.scope".into());
        record.annotations.insert("k".into(), "v".into());
        record.labels.process = Some("u:r:t:s0".into());
        assert_eq!(Record::from_json(&record.to_json()).unwrap(), record);
    }

    #[test]
    fn other_versions_and_garbage_are_errors() {
        let record = Record {
            version: 2,
            ..Record::new("a", "/b".into(), "/r".into())
        };
        Record::from_json(&record.to_json()).unwrap_err();
        for garbage in ["", "{", "[]", "{\"version\":1}"] {
            Record::from_json(garbage.as_bytes()).unwrap_err();
        }
    }
}
