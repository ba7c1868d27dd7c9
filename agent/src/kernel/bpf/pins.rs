//! Where everything is pinned, and what is there.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, MapInfo};
use aya::programs::ProgramInfo;
use netagent_common::{ABI_VERSION, maps as map_names, programs};

use crate::plan::Hook;

/// The pins of one agent.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    /// `BPF_DIR`.
    pub(super) root: PathBuf,
    /// Of the object that this agent carries.
    pub(super) digest: String,
}

impl Pins {
    pub(super) fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// Directories of all versions.
    pub(super) fn versions(&self) -> Result<Vec<PathBuf>> {
        let is_version = |name: &String| {
            name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let names = names_in(&self.root)?;
        Ok(names.iter().filter(|name| is_version(name)).map(|name| self.root.join(name)).collect())
    }

    /// Directories of all versions but this one.
    pub(super) fn others(&self) -> Result<Vec<PathBuf>> {
        let mut versions = self.versions()?;
        versions.retain(|version| *version != self.version());
        Ok(versions)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    pub(super) fn programs(&self, digest: &str) -> PathBuf {
        self.version().join(format!("progs-{digest}"))
    }

    pub(super) fn program(&self, hook: Hook) -> PathBuf {
        self.programs(&self.digest).join(program_name(hook))
    }

    /// Digests of the objects whose programs are pinned.
    pub(super) fn digests(&self) -> Result<Vec<String>> {
        let names = names_in(&self.version())?;
        Ok(names.iter().filter_map(|n| n.strip_prefix("progs-")).map(str::to_owned).collect())
    }
}

pub(super) fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::FromEndpoint => programs::FROM_ENDPOINT,
        Hook::FromOverlay => programs::FROM_OVERLAY,
        Hook::FromUplink => programs::FROM_UPLINK,
        Hook::FromHost => programs::FROM_HOST,
        Hook::FromLb => programs::FROM_LB,
        Hook::ToUplink => programs::TO_UPLINK,
    }
}

/// Names in a directory; none if it is not there.
pub(super) fn names_in(directory: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error).with_context(reading),
    };
    let names: std::io::Result<Vec<_>> = entries.map(|e| Ok(e?.file_name())).collect();
    Ok(names.with_context(reading)?.into_iter().filter_map(|n| n.into_string().ok()).collect())
}

/// Removes a pin or a directory of pins; it being gone is success.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A pinned program.
pub(super) struct Pinned {
    pub(super) id: u32,
    pub(super) digest: String,
    pub(super) name: String,
}

/// The pinned programs of objects that are pinned as a whole, with the maps that are
/// pinned. What was loaded with a map whose pin was removed since is not among them:
/// what the agent writes does not reach it.
pub(super) fn whole_programs(pins: &Pins) -> Result<Vec<Pinned>> {
    let mut map_ids = BTreeSet::new();
    for name in map_names::ALL {
        let Some(info) = map_info(pins, name)? else { return Ok(vec![]) };
        map_ids.insert(info.id());
    }
    let mut whole = Vec::new();
    for digest in pins.digests()? {
        let mut found = Vec::new();
        for name in names_in(&pins.programs(&digest))? {
            let path = pins.programs(&digest).join(&name);
            let context = || format!("reading {}", path.display());
            let info = ProgramInfo::from_pin(&path).with_context(context)?;
            let mut others = info.map_ids().with_context(context)?.unwrap_or_default();
            others.retain(|id| !map_ids.contains(id));
            let mut stale = false;
            for id in others {
                // The compiler's constants are in maps too, which have no pins.
                let map = MapInfo::from_id(id).with_context(context)?;
                stale |= map.name_as_str().is_some_and(|name| map_names::ALL.contains(&name));
            }
            if !stale {
                found.push(Pinned { id: info.id(), digest: digest.clone(), name });
            }
        }
        if programs::ALL.iter().all(|name| found.iter().any(|p| p.name == *name)) {
            whole.append(&mut found);
        }
    }
    Ok(whole)
}

pub(super) fn map_info(pins: &Pins, name: &str) -> Result<Option<MapInfo>> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(None);
    }
    let info = MapInfo::from_pin(&path);
    info.map(Some).with_context(|| format!("reading {}", path.display()))
}

/// The map pinned under this name.
pub(super) fn open_map(pins: &Pins, name: &str) -> Result<Map> {
    let path = pins.map(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .with_context(|| format!("opening {}", path.display()))
}
