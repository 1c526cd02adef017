//! Finds what the binary embeds: the guest's kernel, its initramfs, the machine process's system call filters, and the
//! name of the commit.

mod filters;

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build");
    embed("CHITON_KERNEL", "vmlinux");
    embed("CHITON_INITRAMFS", "initramfs");
    let table = directory("CARGO_MANIFEST_DIR").join("system-calls.md");
    println!("cargo::rerun-if-changed={}", table.display());
    if let Err(e) = filters::write(&table, &directory("OUT_DIR").join("filters.rs")) {
        fail(&e);
    }
    println!(
        "cargo::rustc-env=CHITON_COMMIT={}",
        commit().as_deref().unwrap_or("unknown")
    );
}

/// Hands the path of a guest file to `include_bytes!`. The variable `name` overrides the place where `make guest` puts
/// it.
///
/// Without the file, all but a release build get a placeholder, so that `cargo check`, an editor and `cargo test` work
/// on a fresh clone. No guest boots from it.
fn embed(name: &str, file: &str) {
    println!("cargo::rerun-if-env-changed={name}");
    let overridden = env::var_os(name).map(PathBuf::from);
    let guest = directory("CARGO_MANIFEST_DIR").join("../target/guest");
    let path = overridden.clone().unwrap_or_else(|| guest.join(file));
    match fs::canonicalize(&path) {
        Ok(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            println!("cargo::rustc-env={name}_FILE={}", path.display());
        }
        Err(_) if overridden.is_none() && env::var("PROFILE").as_deref() != Ok("release") => {
            println!(
                "cargo::warning=no target/guest/{file}: this binary embeds a placeholder and starts no container; `make guest` makes the file"
            );
            // Cargo runs this script each time while a file that it watches is missing. So it watches the directory.
            let _ = fs::create_dir_all(&guest);
            println!("cargo::rerun-if-changed={}", guest.display());
            let placeholder = directory("OUT_DIR").join(file);
            if let Err(e) = fs::write(&placeholder, "placeholder\n") {
                fail(&format!("cannot write {}: {e}", placeholder.display()));
            }
            println!("cargo::rustc-env={name}_FILE={}", placeholder.display());
        }
        Err(e) => fail(&format!(
            "guest file {}: {e}; run `make guest` first",
            path.display()
        )),
    }
}

/// The directory that an environment variable names.
fn directory(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_default()
}

fn fail(text: &str) -> ! {
    println!("cargo::error={text}");
    exit(1);
}

/// The commit that is checked out, if this is a git checkout. Its log of HEAD changes with every commit and every
/// checkout.
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
