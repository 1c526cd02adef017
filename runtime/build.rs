//! Finds what the binary embeds: the guest's kernel, its initramfs, and the name of the commit.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    embed("CHITON_KERNEL", "vmlinux");
    embed("CHITON_INITRAMFS", "initramfs");
    println!(
        "cargo::rustc-env=CHITON_COMMIT={}",
        commit().as_deref().unwrap_or("unknown")
    );
}

/// Hands the path of a guest file to `include_bytes!`; the variable `name` overrides the place where `make guest` puts it.
fn embed(name: &str, file: &str) {
    println!("cargo::rerun-if-env-changed={name}");
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let path = env::var_os(name).map_or_else(
        || manifest.join("../target/guest").join(file),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", path.display());
    match fs::canonicalize(&path) {
        Ok(path) => println!("cargo::rustc-env={name}_FILE={}", path.display()),
        Err(e) => {
            println!(
                "cargo::error=guest file {}: {e}; run `make guest` first",
                path.display()
            );
            exit(1);
        }
    }
}

/// The commit that is checked out, if this is a git checkout. Its log of HEAD changes with every commit and every checkout.
fn commit() -> Option<String> {
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
