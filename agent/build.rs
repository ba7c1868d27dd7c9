//! Takes the compiled eBPF programs into the agent: the object that
//! `NETAGENT_EBPF_OBJECT` names, or the one that `cargo xtask build` made. Where that
//! has made none an empty file stands in for it, so that the agent builds, is checked and
//! tested without the BPF tools; such an agent has the `kernel` datapath only.

use std::path::PathBuf;
use std::{env, fs, io};

/// Where `cargo xtask build` puts the object, from the root of the checkout.
const BUILT: &str = "target/bpf/bpfel-unknown-none/release/netagent";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=NETAGENT_EBPF_OBJECT");
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let manifest = variable("CARGO_MANIFEST_DIR").ok_or(io::ErrorKind::NotFound)?;
    let copy = variable("OUT_DIR").ok_or(io::ErrorKind::NotFound)?.join("netagent.bpf.o");
    let named = variable("NETAGENT_EBPF_OBJECT");
    if let Some(object) = named.as_ref().filter(|object| !object.exists()) {
        println!("cargo::error=NETAGENT_EBPF_OBJECT names {}, which is missing", object.display());
        return Ok(());
    }
    let object = named.unwrap_or_else(|| manifest.join("..").join(BUILT));
    if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, copy)?;
        return Ok(());
    }
    fs::write(copy, [])?;
    // Cargo takes a watched file that is missing for changed, always; so watch for it
    // in its directory. Where that cannot be made nobody will build the object either.
    if let Some(directory) = object.parent()
        && fs::create_dir_all(directory).is_ok()
    {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    Ok(())
}
