//! `state.json`: what create leaves for the later verbs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::MAX_NET_SLOTS;

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
    /// The machine process; `None` while create is at work.
    pub(crate) machine: Option<Identity>,
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
            machine: None,
        }
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
        record.machine = Some(Identity {
            pid: 7,
            start_time: 9,
            boot: "1f".to_owned().try_into().unwrap(),
        });
        record.cgroup = Some("/sys/fs/cgroup/a".into());
        (record.memory, record.vcpus) = (64 << 20, 2);
        record.network = Network::Path("/run/netns/a".into());
        record.scope = Some("a.scope".into());
        record.annotations.insert("k".into(), "v".into());
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
