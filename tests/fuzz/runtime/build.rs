//! No guest boots here.

#[path = "../../../runtime/build/filters.rs"]
mod filters;

use std::path::Path;
use std::{env, fs, path::PathBuf};

fn main() {
    let file = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("placeholder");
    fs::write(&file, "placeholder\n").unwrap();
    for name in ["KERNEL", "INITRAMFS"] {
        println!("cargo::rustc-env=CHITON_{name}_FILE={}", file.display());
    }
    println!("cargo::rustc-env=CHITON_COMMIT=none");
    let table = Path::new("../../../runtime/system-calls.md");
    filters::write(table, &file.with_file_name("filters.rs")).unwrap();
    println!("cargo::rerun-if-changed={}", table.display());
    println!("cargo::rerun-if-changed=build.rs");
}
