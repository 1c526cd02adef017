//! `spec`.

use std::fs::OpenOptions;
use std::io::{self, Write};

use super::error::Error;
use crate::cli;
use crate::config::CONFIG;
use crate::error::Doing;

/// A configuration to start from: runc's.
const TEMPLATE: &str = include_str!("spec.json");

/// Writes a config.json.
pub(crate) fn spec(args: &cli::Spec) -> Result<(), Error> {
    if args.rootless {
        return Err(Error::Unsupported("--rootless"));
    }
    let path = args.bundle.join(CONFIG);
    let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(Error::SpecExists),
        file => file,
    };
    let written = file.and_then(|mut file| file.write_all(TEMPLATE.as_bytes()));
    Ok(written.doing_to("write", path)?)
}
