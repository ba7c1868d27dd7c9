//! Programs at hooks: TCX links, each pinned under its interface's index and its hook.
//! For kernels without there is `clsact`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError};
use nix::net::if_::if_nametoindex;

use crate::plan::{Hook, Key, State, Value};

use super::carry;
use super::pins::{Pinned, Pins, names_in, program_name, remove};

/// What an observed program is called that is none of the pinned ones.
const UNKNOWN: &str = "unknown";

/// How often, and after which time, a program is attached again that is there yet.
const LINGERING: u32 = 50;
const LINGER: Duration = Duration::from_millis(20);

pub(super) fn pin(pins: &Pins, index: u32, hook: Hook) -> PathBuf {
    pins.links().join(format!("{index}-{hook}"))
}

fn parse(name: &str) -> Option<(u32, Hook)> {
    let (index, hook) = name.split_once('-')?;
    let hook = Hook::ALL.into_iter().find(|h| h.to_string() == hook)?;
    Some((index.parse().ok()?, hook))
}

/// Adds the hooks in use to `state` and removes pins of those that are not; returns the
/// digests of the objects in use. Must run in the host's namespace, whose links `names`
/// has by index.
pub(super) fn observe(
    pins: &Pins,
    names: &BTreeMap<u32, String>,
    programs: &[Pinned],
    state: &mut State,
) -> Result<BTreeSet<String>> {
    let mut used = BTreeSet::new();
    for (index, hook) in names_in(&pins.links())?.iter().filter_map(|name| parse(name)) {
        let path = pin(pins, index, hook);
        let context = || format!("reading {}", path.display());
        let link = PinnedLink::from_pin(&path).with_context(context)?;
        let id = FdLink::from(link).info().with_context(context)?.program_id();
        let link = names.get(&index);
        let attached = match link {
            Some(link) => attached(link, hook, id)?,
            None => false,
        };
        let Some(link) = link.filter(|_| attached) else {
            // The interface is gone, maybe another has its index: this one is dead.
            remove(&path)?;
            continue;
        };
        let digest = digest_of(programs, id, hook);
        used.insert(digest.clone());
        state.insert(Key::Hook(link.clone(), hook), Value::Program(digest));
    }
    Ok(used)
}

/// Digest of the object that the program with this id at a hook is from.
pub(super) fn digest_of(programs: &[Pinned], id: u32, hook: Hook) -> String {
    let program = programs.iter().find(|p| p.id == id && p.name == program_name(hook));
    program.map_or(UNKNOWN, |p| &p.digest).to_owned()
}

/// Whether this kernel has TCX. One that may not be asked has not.
pub(super) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

fn side(hook: Hook) -> TcAttachType {
    if hook.is_egress() { TcAttachType::Egress } else { TcAttachType::Ingress }
}

/// Whether the program with this id runs at the link's hook.
fn attached(link: &str, hook: Hook, id: u32) -> Result<bool> {
    match SchedClassifier::query_tcx(link, side(hook)) {
        Ok((_, programs)) => Ok(programs.iter().any(|program| program.id() == id)),
        // A workload that ended since the links were listed took its interface along.
        Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("asking for the programs on {link}")),
    }
}

/// Attaches this agent's program, in the place of another of ours if there is one: no
/// packet passes in between. Must run in the host's namespace.
pub(super) fn put(pins: &Pins, link: &str, hook: Hook) -> Result<()> {
    let index = if_nametoindex(link).with_context(|| format!("there is no link {link}"))?;
    let path = pin(pins, index, hook);
    let program = pins.program(hook);
    let mut program = SchedClassifier::from_pin(&program)
        .with_context(|| format!("opening {}", program.display()))?;
    let from = match path.exists() {
        true => None,
        false => adopt(pins, &path)?,
    };
    if path.exists() {
        let old = PinnedLink::from_pin(&path)?;
        let old: SchedClassifierLink = FdLink::from(old).try_into()?;
        match program.attach_to_link(old) {
            // The pin keeps the link.
            Ok(_) => return from.map_or(Ok(()), |version| leave(pins, &version)),
            // Its interface is gone, and this one has its index.
            Err(error) if errno(&error) == Some(nix::libc::ENOLINK) => remove(&path)?,
            Err(error) => return Err(error).context("replacing the program"),
        }
    }
    let mut tries = 0..LINGERING;
    let attached = loop {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(link, side(hook), options) {
            // By a link whose pin somebody removed, which the kernel is about to end.
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) && tries.next().is_some() => {
                std::thread::sleep(LINGER);
            }
            other => break other.context("attaching the program (TCX)")?,
        }
    };
    let attached: FdLink = program.take_link(attached)?.try_into()?;
    attached.pin(&path).with_context(|| format!("pinning {}", path.display()))?;
    Ok(())
}

/// Makes the link that an agent with other maps has at this hook ours, so that its program is
/// replaced in place; the directory of that agent's version, if there was one.
fn adopt(pins: &Pins, path: &Path) -> Result<Option<PathBuf>> {
    let name = path.file_name().context("a pin has a name")?;
    for version in pins.others()? {
        let theirs = version.join("links").join(name);
        if theirs.exists() {
            std::fs::rename(&theirs, path)
                .with_context(|| format!("moving {} to {}", theirs.display(), path.display()))?;
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// After its last link nothing runs of another version.
fn leave(pins: &Pins, version: &Path) -> Result<()> {
    match names_in(&version.join("links"))?.is_empty() {
        true => carry::last(pins, version),
        false => Ok(()),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::TcError(TcError::IoError(error)) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_on_an_interface_that_is_gone() {
        assert!(!attached("na-none", Hook::FromUplink, 1).unwrap());
    }

    #[test]
    fn a_pin_tells_its_interface_and_hook() {
        let pins = Pins { root: "/b".into(), digest: "d".into() };
        for hook in Hook::ALL {
            let path = pin(&pins, 12, hook);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(!name.contains('.'));
            assert_eq!(parse(name), Some((12, hook)));
        }
        for other in ["", "12", "12-", "x-from_uplink", "12-from_nowhere"] {
            assert_eq!(parse(other), None);
        }
    }
}
