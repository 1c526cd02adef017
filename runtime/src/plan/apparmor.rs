//! `process.apparmorProfile`: the policy that the guest's kernel is given.

use oci_spec::runtime::Process;
use specification::apparmor_profile;

use super::ledger::Ledger;

const PROPERTY: &str = "process.apparmorProfile";

/// Gives the compiled policy of a profile of this host, or says why that cannot be had.
pub(crate) type Policies<'a> = dyn Fn(&str) -> Result<Vec<u8>, String> + 'a;

/// The compiled policy that the process needs; empty if it needs none, or if the guest has the profile `loaded` alone
/// and that is it. `policies` is `None` on a host where AppArmor is not active.
pub(super) fn policy(
    process: &Process,
    loaded: Option<&str>,
    policies: Option<&Policies<'_>>,
    ledger: &mut Ledger,
) -> Vec<u8> {
    let Some(profile) = apparmor_profile(process) else {
        return Vec::new();
    };
    let found = if profile.starts_with(':') {
        Err(format!(
            "{profile:?}: namespaces of policies are not supported"
        ))
    } else if profile.contains("//") {
        Err(format!(
            "{profile:?}: stacks of profiles and profiles inside of others are not supported"
        ))
    } else if loaded == Some(profile) {
        return Vec::new();
    } else {
        // runc's words.
        let off = || {
            "apparmor: config provided but apparmor not supported: it is not active on this host"
                .to_owned()
        };
        policies.map_or_else(|| Err(off()), |policies| policies(profile))
    };
    found.unwrap_or_else(|problem| {
        ledger.refuse(PROPERTY, problem);
        Vec::new()
    })
}
