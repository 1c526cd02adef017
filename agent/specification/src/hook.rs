//! Hooks (config.md, POSIX-platform Hooks).

use std::fmt::{self, Display, Formatter};

use oci_spec::runtime::{Hook, Spec};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// As [`HookKind::CreateRuntime`]; deprecated by the specification, and still used by callers.
    Prestart,
    /// While the container is created, in the caller's namespaces.
    CreateRuntime,
    /// While the container is created, in its namespaces.
    CreateContainer,
    /// Before the container's program is executed, in its namespaces.
    StartContainer,
    /// When the program runs, in the caller's namespaces.
    Poststart,
    /// When the container is deleted, in the caller's namespaces.
    Poststop,
}

/// The property's name.
impl Display for HookKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HookKind::Prestart => "prestart",
            HookKind::CreateRuntime => "createRuntime",
            HookKind::CreateContainer => "createContainer",
            HookKind::StartContainer => "startContainer",
            HookKind::Poststart => "poststart",
            HookKind::Poststop => "poststop",
        })
    }
}

impl HookKind {
    /// All of them, in the order of a container's life.
    pub const ALL: [HookKind; 6] = [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
        HookKind::StartContainer,
        HookKind::Poststart,
        HookKind::Poststop,
    ];

    /// The hooks of this kind.
    #[must_use]
    pub fn of(self, spec: &Spec) -> &[Hook] {
        let hooks = spec.hooks().as_ref().and_then(|hooks| {
            #[allow(deprecated)]
            let prestart = hooks.prestart();
            match self {
                HookKind::Prestart => prestart,
                HookKind::CreateRuntime => hooks.create_runtime(),
                HookKind::CreateContainer => hooks.create_container(),
                HookKind::StartContainer => hooks.start_container(),
                HookKind::Poststart => hooks.poststart(),
                HookKind::Poststop => hooks.poststop(),
            }
            .as_deref()
        });
        hooks.unwrap_or_default()
    }

    /// The container's status while hooks of this kind run (runtime.md, State).
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            HookKind::Prestart | HookKind::CreateRuntime | HookKind::CreateContainer => "creating",
            HookKind::StartContainer => "created",
            HookKind::Poststart => "running",
            HookKind::Poststop => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_found_by_the_name_of_their_kind() {
        for kind in HookKind::ALL {
            let json =
                format!(r#"{{"ociVersion":"1.0.2","hooks":{{"{kind}":[{{"path":"/x"}}]}}}}"#);
            let spec = serde_json::from_str(&json).unwrap();
            for other in HookKind::ALL {
                assert_eq!(other.of(&spec).len(), usize::from(other == kind), "{other}");
            }
        }
        let bare = serde_json::from_str(r#"{"ociVersion":"1.0.2"}"#).unwrap();
        assert!(HookKind::ALL.iter().all(|kind| kind.of(&bare).is_empty()));
    }
}
