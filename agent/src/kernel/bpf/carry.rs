//! What an agent with other maps remembers: flows and affinities go over into the maps of this
//! one, or an upgrade that changes a layout would break the connections of services. All else
//! in the maps the plan says again.

use std::path::Path;

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use netagent_common::{ABI_VERSION, Affinity, AffinityKey, Flow, FlowKey, maps as names};
use nix::errno::Errno;
use tracing::{info, warn};

use super::batch;
use super::maps::of;
use super::pins::{Pins, open_map, remove};

/// First version of the ABI whose flows and affinities are laid out as today's. Where one of
/// them changes, what it was until then gets a type of its own here, and is converted.
const SAME_SINCE: u32 = 4;
/// `BPF_NOEXIST`: what the programs have written meanwhile is newer.
const IF_NEW: u64 = 1;

/// Takes over what the agents of all other versions remember.
pub(super) fn all(pins: &Pins) -> Result<()> {
    pins.others()?.iter().for_each(|version| take(pins, version));
    Ok(())
}

/// Takes over what is remembered under another version's directory, and removes that: nothing
/// runs from it any more.
pub(super) fn last(pins: &Pins, version: &Path) -> Result<()> {
    take(pins, version);
    remove(version)
}

/// What cannot be read now could not be read later either.
fn take(pins: &Pins, version: &Path) {
    if let Err(error) = from(pins, version) {
        warn!("connections to services begin anew: {error:#}");
    }
}

fn from(pins: &Pins, version: &Path) -> Result<()> {
    let number =
        version.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse().ok());
    match number {
        Some(SAME_SINCE..=ABI_VERSION) => {
            let maps = version.join("maps");
            let flows = entries(pins, names::FLOWS, &maps, |key: FlowKey, flow: Flow| (key, flow))?;
            let same = |key: AffinityKey, affinity: Affinity| (key, affinity);
            let affinities = entries(pins, names::AFFINITY, &maps, same)?;
            info!(flows, affinities, from = %version.display(), "took over what was remembered");
        }
        _ => warn!(
            "what is remembered under {} is laid out in a way that this netagent does not know: \
             connections to services begin anew",
            version.display()
        ),
    }
    Ok(())
}

/// Copies the entries of a map into ours of the same name, where there are none yet; how many.
pub(super) fn entries<K0: Pod, V0: Pod, K: Pod, V: Pod>(
    pins: &Pins,
    name: &str,
    maps: &Path,
    convert: impl Fn(K0, V0) -> (K, V),
) -> Result<usize> {
    let path = maps.join(name);
    if !path.exists() {
        return Ok(0);
    }
    let old = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let all = batch::entries::<K0, V0>(&old);
    let all = all.with_context(|| format!("reading {}", path.display()))?;
    let mut map: HashMap<MapData, K, V> = of(name, Map::try_into(open_map(pins, name)?))?;
    let mut taken = 0;
    for (key, value) in all {
        let (key, value) = convert(key, value);
        match map.insert(key, value, IF_NEW) {
            Ok(()) => taken += 1,
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            Err(error) => return Err(error).with_context(|| format!("writing map {name}")),
        }
    }
    Ok(taken)
}
