//! AppArmor of this host: the compiled policy of a profile, as the kernel was given it.
//!
//! ```text
//! /sys/kernel/security/apparmor/policy/profiles/NAME.NUMBER/name      the profile's name
//!                                                          /raw_data  the policy that it came in
//! ```
//! `NAME` is the name without what does not suit a file (Linux, security/apparmor/apparmorfs.c, mangle_name). The policy
//! may hold further profiles: those that were loaded at once.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use protocol::POLICY_MAX;

use crate::error::{Doing, SystemError};

/// Says whether AppArmor is active: `Y`.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";

/// The profiles that are loaded, each a directory.
const PROFILES: &str = "/sys/kernel/security/apparmor/policy/profiles";

/// Why there is no policy for a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The words are runc's, whose process asks the kernel.
    #[error(
        "unable to apply apparmor profile: apparmor failed to apply profile: \
         write /proc/self/attr/apparmor/exec: no such file or directory (no profile {0:?} is loaded)"
    )]
    Missing(String),
    #[error("the policy of profile {0:?} has more than {POLICY_MAX} bytes")]
    TooLarge(String),
    #[error("{doing}: the policy of the profile cannot be had")]
    System {
        doing: Cow<'static, str>,
        source: io::Error,
    },
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
}

/// Whether it is active.
pub(crate) fn is_enabled() -> bool {
    fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"))
}

/// The compiled policy that has a profile.
///
/// # Errors
/// There is no such profile, or the kernel does not give its policy away.
pub(crate) fn policy(profile: &str) -> Result<Vec<u8>, Error> {
    policy_below(Path::new(PROFILES), profile)
}

/// What keeps policies from being had on a host where it is active.
pub(crate) fn check() -> Result<(), SystemError> {
    let profiles = fs::read_dir(PROFILES).doing_to("open", PROFILES)?;
    // Where there is none, none can be asked for.
    let first = profiles.flatten().next();
    let raw_data = first.map(|directory| directory.path().join("raw_data"));
    raw_data.map_or(Ok(()), |path| {
        File::open(&path).map(drop).doing_to("open", path)
    })
}

fn policy_below(profiles: &Path, profile: &str) -> Result<Vec<u8>, Error> {
    let directory = find(profiles, profile)?;
    let directory = directory.ok_or_else(|| Error::Missing(profile.to_owned()))?;
    let path = directory.join("raw_data");
    let mut policy = Vec::new();
    let file = File::open(&path).doing_to("open", &path)?;
    let mut file = file.take(POLICY_MAX as u64 + 1);
    file.read_to_end(&mut policy).doing_to("read", &path)?;
    if policy.len() > POLICY_MAX {
        return Err(Error::TooLarge(profile.to_owned()));
    }
    Ok(policy)
}

/// The directory of the profile with this name.
fn find(profiles: &Path, name: &str) -> Result<Option<PathBuf>, SystemError> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(profiles).doing_to("open", profiles)? {
        directories.push(entry.doing_to("read", profiles)?.file_name());
    }
    // Those that look like it first: of a host's many profiles hardly any other is opened.
    let alike = |directory: &std::ffi::OsString| {
        let rest = directory.as_encoded_bytes().strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.starts_with(b"."))
    };
    directories.sort_by_key(|directory| !alike(directory));
    let is_it = |directory: &PathBuf| {
        // One that goes meanwhile is not it.
        let text = fs::read(directory.join("name")).unwrap_or_default();
        text.strip_suffix(b"\n") == Some(name.as_bytes())
    };
    let directories = directories.into_iter().map(|name| profiles.join(name));
    Ok(directories.into_iter().find(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree of a kernel with these profiles: directory, name, policy.
    fn tree(profiles: &[(&str, &str, &[u8])]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let raw = tree.path().join("raw_data");
        let profiles_dir = tree.path().join("profiles");
        fs::create_dir_all(&profiles_dir).unwrap();
        for (number, (directory, name, policy)) in profiles.iter().enumerate() {
            let data = raw.join(number.to_string());
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("raw_data"), policy).unwrap();
            let directory = profiles_dir.join(directory);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("name"), format!("{name}\n")).unwrap();
            let link = format!("../../raw_data/{number}/raw_data");
            std::os::unix::fs::symlink(link, directory.join("raw_data")).unwrap();
        }
        tree
    }

    fn of(tree: &tempfile::TempDir, profile: &str) -> Result<Vec<u8>, String> {
        policy_below(&tree.path().join("profiles"), profile).map_err(|e| crate::error::one_line(&e))
    }

    #[test]
    fn a_policy_is_found_by_the_profiles_name() {
        let tree = tree(&[
            ("docker-default.3", "docker-default", b"\x04one"),
            ("docker-default.7.1", "docker-default.7", b"\x04two"),
            ("usr.bin.man.4", "/usr/bin/man", b"\x04three"),
            ("a_b.5", "a b", b"\x04four"),
        ]);
        for (profile, policy) in [
            ("docker-default", "\x04one"),
            ("docker-default.7", "\x04two"),
            ("/usr/bin/man", "\x04three"),
            ("a b", "\x04four"),
        ] {
            assert_eq!(
                of(&tree, profile).as_deref(),
                Ok(policy.as_bytes()),
                "{profile}"
            );
        }
        for missing in [
            "docker",
            "docker-default.3",
            "a_b",
            "",
            "//x",
            "usr.bin.man",
            "../raw_data",
        ] {
            let error = of(&tree, missing).unwrap_err();
            assert!(
                error.contains("apparmor failed to apply profile"),
                "{error}"
            );
            assert!(error.contains(&format!("{missing:?} is loaded")), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let long = vec![0; POLICY_MAX + 1];
        let tree = tree(&[
            ("l.1", "long", &long),
            ("g.2", "good", &long[1..]),
            ("n.3", "none", b""),
        ]);
        assert!(
            of(&tree, "long")
                .unwrap_err()
                .contains("more than 262144 bytes")
        );
        assert_eq!(of(&tree, "good").unwrap().len(), POLICY_MAX);
        fs::remove_file(tree.path().join("profiles/n.3/raw_data")).unwrap();
        let error = of(&tree, "none").unwrap_err();
        assert!(
            error.contains("raw_data") && error.ends_with("(os error 2)"),
            "{error}"
        );
        fs::remove_dir_all(tree.path().join("profiles")).unwrap();
        assert!(of(&tree, "good").unwrap_err().starts_with("open "));
    }
}
