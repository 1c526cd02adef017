//! The container's configuration as a stage reads it.

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::Setup;
use specification::namespace;

use super::ids;
use crate::error::{Error, Result};

/// The container to be made. The host has refused what cannot be had, before there was a machine.
pub(super) struct Configuration {
    pub(super) setup: Setup,
    pub(super) spec: Spec,
    /// The namespaces that are joined, as `CLONE_NEW*` bits: the container gets none of its own of these kinds.
    joined: i32,
}

impl Configuration {
    pub(super) fn new(setup: Setup) -> Result<Configuration> {
        let mut spec: Spec = serde_json::from_slice(&setup.config).map_err(Error::Parse)?;
        if let (Some(process), false) = (spec.process_mut(), setup.overlay.env.is_empty()) {
            let env = process.env().iter().flatten().chain(&setup.overlay.env);
            process.set_env(Some(env.cloned().collect()));
        }
        if let Some(maps) = &setup.overlay.id_maps {
            ids::set_maps(&mut spec, maps);
        }
        Ok(Configuration {
            setup,
            spec,
            joined: 0,
        })
    }

    /// The same container, which joins these namespaces (`CLONE_NEW*` bits).
    pub(super) fn joining(mut self, namespaces: i32) -> Configuration {
        self.joined = namespaces;
        self
    }

    /// The namespaces that are asked for.
    fn namespaces(&self) -> impl Iterator<Item = LinuxNamespaceType> + '_ {
        let linux = self.spec.linux().as_ref();
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten()
            .map(|n| n.typ())
    }

    /// Whether it has such a namespace, one of its own or one that it joins.
    pub(super) fn has(&self, namespace: LinuxNamespaceType) -> bool {
        self.namespaces().any(|known| known == namespace)
    }

    /// Whether it gets such a namespace of its own.
    pub(super) fn makes(&self, namespace: LinuxNamespaceType) -> bool {
        self.has(namespace) && self.joined & namespace::flag(namespace) == 0
    }

    /// The flags of clone3: all but the time namespace, which comes first, and the cgroup
    /// namespace, which comes when init is in its cgroup.
    pub(super) fn clone_flags(&self) -> i32 {
        let later = [LinuxNamespaceType::Cgroup, LinuxNamespaceType::Time];
        let at_once = self.namespaces().filter(|kind| !later.contains(kind));
        let flags = at_once.fold(0, |flags, kind| flags | namespace::flag(kind));
        flags & !self.joined
    }
}
