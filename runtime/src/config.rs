//! Loads `config.json`.

pub(crate) mod keys;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Spec};
use serde::Deserialize;
use serde_json::Value;

/// The file's name in a bundle.
pub(crate) const CONFIG: &str = "config.json";

/// Largest configuration in bytes. It travels to the guest in one frame together with the overlay.
const SIZE_MAX: usize = protocol::MAX_FRAME / 2 - (64 << 10);

/// The version of the OCI runtime specification.
pub(crate) const SPEC_VERSION: &str = "1.3.0";

/// The specification versions accepted: 1.0 to 1.3.
const MINOR_MAX: u64 = 3;

/// What is wrong with a configuration as a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is larger than {SIZE_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is not UTF-8 text", .0.display())]
    NoText(PathBuf),
    /// serde_json's message ends with line and column.
    #[error("{}", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}", path.display())]
    Twice { path: PathBuf, source: keys::Twice },
    #[error("{}: ociVersion {version:?} is not supported (1.0 to 1.{MINOR_MAX} are)", path.display())]
    Version { path: PathBuf, version: String },
}

/// A configuration, as it was written and as it is understood.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file's content.
    pub(crate) text: String,
    /// All of it, unknown properties included.
    pub(crate) value: Value,
    /// What the specification knows of it.
    pub(crate) spec: Spec,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// Loads the configuration of a bundle.
    pub(crate) fn load(bundle: &Path) -> Result<Config, Error> {
        Config::load_file(bundle.join(CONFIG))
    }

    /// Loads a configuration.
    pub(crate) fn load_file(path: PathBuf) -> Result<Config, Error> {
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(SIZE_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|source| Error::Open {
                path: path.clone(),
                source,
            })?;
        if bytes.len() > SIZE_MAX {
            return Err(Error::TooLarge(path));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Config::parse(text, path),
            Err(_) => Err(Error::NoText(path)),
        }
    }

    /// Reads the text of a file.
    pub(crate) fn parse(mut text: String, path: PathBuf) -> Result<Config, Error> {
        let json = |source| Error::Json {
            path: path.clone(),
            source,
        };
        let mut value: Value = serde_json::from_str(&text).map_err(json)?;
        let mut warnings = Vec::new();
        let given = value.clone();
        keys::correct(&mut value).map_err(|source| Error::Twice {
            path: path.clone(),
            source,
        })?;
        warnings.extend(take_unknown_capabilities(&mut value));
        let mut known = value.clone();
        translate(&mut known);
        let spec: Spec = if known == given {
            serde_json::from_str(&text).map_err(json)?
        } else {
            // The guest is given what is left, as it is no more lenient with names than this.
            text = known.to_string();
            Spec::deserialize(&known).map_err(json)?
        };
        if !is_supported(spec.version()) {
            return Err(Error::Version {
                path,
                version: spec.version().clone(),
            });
        }
        Ok(Config {
            text,
            value,
            spec,
            warnings,
        })
    }
}

/// Reads a configuration that is no file.
#[cfg(test)]
pub(crate) fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text.to_owned(), PathBuf::from(CONFIG))
}

/// Whether a version (major.minor.patch, semver.org) of the specification is supported.
fn is_supported(version: &str) -> bool {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(str::parse::<u64>);
    matches!(
        (
            numbers.next(),
            numbers.next(),
            numbers.next(),
            numbers.next()
        ),
        (Some(Ok(1)), Some(Ok(0..=MINOR_MAX)), Some(Ok(_)), None)
    )
}

/// Puts a configuration into the words of the oci-spec crate (0.10), where they are not those of the specification.
pub(crate) fn translate(config: &mut Value) {
    // It has no hwConfig, and demands a kernel. The guest has no part in any of it.
    if let Some(properties) = config.as_object_mut() {
        properties.remove("vm");
    }
    let process = config.get_mut("process");
    let Some(process) = process.and_then(Value::as_object_mut) else {
        return;
    };
    let scheduler = process.get_mut("scheduler");
    let flags = scheduler.and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    // It takes the empty list for no list; the specification takes it for none at all.
    let affinity = process.get_mut("execCPUAffinity");
    if let Some(affinity) = affinity.and_then(Value::as_object_mut) {
        affinity.retain(|_, list| list != "");
    }
}

/// Removes the names that are no capabilities from `process`, as the specification demands: they may be a later
/// kernel's. Returns the warning to give.
pub(crate) fn take_unknown_capabilities(config: &mut Value) -> Option<String> {
    let mut taken: Vec<String> = Vec::new();
    let sets = config
        .pointer_mut("/process/capabilities")
        .and_then(Value::as_object_mut);
    for names in sets
        .into_iter()
        .flatten()
        .filter_map(|(_, set)| set.as_array_mut())
    {
        names.retain(|name| {
            let unknown = name
                .as_str()
                .filter(|_| Capability::deserialize(name).is_err());
            if let Some(name) = unknown
                && !taken.iter().any(|taken| taken == name)
            {
                taken.push(name.to_owned());
            }
            unknown.is_none()
        });
    }
    (!taken.is_empty()).then(|| {
        // runc's words.
        format!(
            "ignoring unknown or unavailable capabilities: [{}]",
            taken.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text.into(), "/b/config.json".into()).map_err(|e| {
            let source = std::error::Error::source(&e).map(|s| format!(": {s}"));
            format!("{e}{}", source.unwrap_or_default())
        })
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.2.1+dev", "1.3.9"] {
            assert!(is_supported(good), "{good}");
        }
        for bad in [
            "", "1", "1.0", "0.9.0", "2.0.0", "1.4.0", "1.x.0", "1.0.0.0", "-1.0.0",
        ] {
            assert!(!is_supported(bad), "{bad}");
        }
    }

    #[test]
    fn errors_say_where() {
        let broken = "{\n  \"ociVersion\": \"1.0.0\",\n  \"process\": }";
        assert_eq!(
            parse(broken).unwrap_err(),
            "/b/config.json: expected value at line 3 column 14"
        );
        let namespace =
            "{\"ociVersion\":\"1.0.0\",\n\"linux\":{\"namespaces\":[{\"type\":\"galaxy\"}]}}";
        let error = parse(namespace).unwrap_err();
        assert!(
            error.contains("`galaxy`") && error.contains("line 2 column"),
            "{error}"
        );
        let limit = r#"{"ociVersion":"1.0.0","process":{"user":{},"cwd":"/","rlimits":[{"type":"RLIMIT_LUCK"}]}}"#;
        let error = parse(limit).unwrap_err();
        assert!(error.contains("`RLIMIT_LUCK`"), "{error}");
        let flags = r#"{"ociVersion":"1.0.0","process":{"user":{},"cwd":"/","scheduler":{"policy":"SCHED_OTHER",
            "flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN"]},"execCPUAffinity":{"initial":"","final":"0"}},
            "vm":{"hwConfig":{"vcpus":2}}}"#;
        let config = parse(flags).unwrap();
        assert!(config.value["vm"].is_object() && config.spec.vm().is_none());
        assert!(
            parse("{}")
                .unwrap_err()
                .contains("ociVersion \"\" is not supported")
        );
    }

    #[test]
    fn unknown_capabilities_are_a_warning() {
        let config = parse(
            r#"{"ociVersion":"1.0.0","process":{"user":{"uid":0,"gid":0},"cwd":"/",
            "capabilities":{"bounding":["CAP_KILL","CAP_WARP"],"effective":["CAP_WARP"]}}}"#,
        )
        .unwrap();
        let warning = "ignoring unknown or unavailable capabilities: [CAP_WARP]";
        assert_eq!(config.warnings, [warning]);
        let sets = config
            .spec
            .process()
            .as_ref()
            .unwrap()
            .capabilities()
            .clone()
            .unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn files_must_be_there_small_and_text() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(matches!(
            Config::load(bundle.path()),
            Err(Error::Open { .. })
        ));
        let path = bundle.path().join("config.json");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(Config::load(bundle.path()), Err(Error::NoText(_))));
        std::fs::write(&path, vec![b' '; SIZE_MAX + 1]).unwrap();
        assert!(matches!(
            Config::load(bundle.path()),
            Err(Error::TooLarge(_))
        ));
    }
}
