//! `process.apparmorProfile`: what the guest is given.

use super::*;

/// There is one profile.
pub(super) fn policy(profile: &str) -> Result<Vec<u8>, String> {
    match profile {
        "docker-default" => Ok(b"policy".to_vec()),
        _ => Err(format!("no profile {profile:?} is loaded")),
    }
}

#[test]
fn a_profile_brings_its_policy() {
    let with = |profile: &str| with("process.apparmorProfile", &format!("{profile:?}"));
    let plan = planned(&with("docker-default")).ok().unwrap();
    assert_eq!((plan.apparmor, plan.policy), (true, b"policy".to_vec()));
    for none in ["", "unconfined"] {
        let plan = planned(&with(none)).ok().unwrap();
        assert_eq!((plan.apparmor, plan.policy), (true, Vec::new()), "{none:?}");
    }
    // Where AppArmor is not active.
    let off = |profile: &str| {
        let facts = Facts {
            policies: None,
            ..facts()
        };
        decided_on(&with(profile), &facts).plan
    };
    let error = off("docker-default").err().unwrap().to_string();
    let start = "process.apparmorProfile: apparmor: config provided but apparmor not supported";
    assert!(error.starts_with(start), "{error}");
    assert!(!off("unconfined").ok().unwrap().apparmor);
}
