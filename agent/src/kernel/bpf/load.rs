//! Loading: maps and programs come into being and are pinned.

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{ProgramError, SchedClassifier};
use aya::util::KernelVersion;
use aya_obj::Object;
use netagent_common::{maps as map_names, programs};

use super::carry;
use super::maps::Maps;
use super::mount;
use super::pins::{Pins, map_info, remove, whole_programs};

/// First kernel whose verifier and helpers the programs are known to get along with.
const OLDEST: KernelVersion = KernelVersion::new(6, 1, 0);

/// How often the verifier is asked again.
const ATTEMPTS: u32 = 5;

/// Makes sure that maps and programs are there, without touching those that are.
pub(super) fn load(pins: &Pins, object: &[u8], max_flows: Option<u32>) -> Result<Maps> {
    ensure!(
        !object.is_empty(),
        "this netagent was built without its eBPF programs: build it with `cargo xtask build`, \
         or start the agent with --datapath kernel"
    );
    let running = KernelVersion::current().context("reading the kernel's version")?;
    ensure!(
        running >= OLDEST,
        "the eBPF datapath needs Linux 6.1 or newer: start the agent with --datapath kernel"
    );
    mount::ensure(&pins.root)?;
    let whole = whole_programs(pins)?;
    if !whole.iter().any(|program| program.digest == pins.digest) {
        check_maps(pins, object)?;
        let flows = match max_flows {
            Some(flows) => flows,
            None => flows_for(memory()?),
        };
        let new = map_info(pins, map_names::FLOWS)?.is_none();
        load_programs(pins, object, flows)?;
        if new {
            carry::all(pins)?;
        }
    }
    Maps::open(pins)?.context("a map is missing although the programs were just loaded")
}

/// Refuses pinned maps that are not what the object's programs expect. aya takes any. The
/// table of flows may have any size: to make it anew would break the flows.
fn check_maps(pins: &Pins, object: &[u8]) -> Result<()> {
    let object = Object::parse(object).context("the eBPF object cannot be read")?;
    for name in map_names::ALL {
        let wanted = object.maps.get(name);
        let wanted = wanted.with_context(|| format!("the eBPF object has no map {name}"))?;
        let Some(found) = map_info(pins, name)? else { continue };
        let shape = |kind, key, value, entries| {
            format!("type {kind}, key of {key} bytes, value of {value} bytes, {entries} entries")
        };
        let kind = found.map_type().context("unknown type of map")? as u32;
        let size =
            if name == map_names::FLOWS { found.max_entries() } else { wanted.max_entries() };
        let wanted = shape(wanted.map_type(), wanted.key_size(), wanted.value_size(), size);
        let found = shape(kind, found.key_size(), found.value_size(), found.max_entries());
        if wanted != found {
            bail!(
                "the map pinned at {} is of another netagent ({found}; this one needs {wanted}): \
                 run `netagent agent --teardown`, then start the agent again",
                pins.map(name).display()
            );
        }
    }
    Ok(())
}

/// Entries of the table of flows on a host with `memory` bytes: about a thousandth of it
/// at most, as an entry takes some 130 bytes and is allocated in advance.
fn flows_for(memory: u64) -> u32 {
    u32::try_from(memory >> 18).unwrap_or(u32::MAX).clamp(1 << 14, 1 << 20)
}

/// The host's memory in bytes.
fn memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    let kibibytes: u64 =
        kibibytes.context("/proc/meminfo does not say how much memory there is")?;
    Ok(kibibytes << 10)
}

fn load_programs(pins: &Pins, object: &[u8], flows: u32) -> Result<()> {
    let directory = pins.programs(&pins.digest);
    // One that is not whole; what is attached from it stays attached.
    remove(&directory)?;
    for directory in [&pins.version().join("maps"), &pins.links(), &directory] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let mut loader = aya::EbpfLoader::new();
    for name in map_names::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.map_max_entries(map_names::FLOWS, flows);
    let mut loaded = loader.load(object).context("loading the eBPF object")?;
    for name in programs::ALL {
        let program = loaded.program_mut(name);
        let program = program.with_context(|| format!("the eBPF object has no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into()?;
        verify(program).with_context(|| {
            format!("the kernel refuses the program {name} (--datapath kernel does without)")
        })?;
        let path = directory.join(name);
        program.pin(&path).with_context(|| format!("pinning {}", path.display()))?;
    }
    Ok(())
}

/// Loads a program. The verifier gives up when a signal waits for the thread; it is asked
/// again then, as libbpf does.
fn verify(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 0..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    program.load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_flows_is_as_large_as_the_memory_allows() {
        assert_eq!(flows_for(1 << 30), 1 << 14);
        assert_eq!(flows_for(16 << 30), 1 << 16);
        assert_eq!(flows_for(4 << 40), 1 << 20);
        assert!(memory().unwrap() > 1 << 20);
    }

    #[test]
    fn an_agent_without_programs_says_so() {
        let pins = Pins { root: "/nonexistent".into(), digest: String::new() };
        let error = load(&pins, &[], None).err().unwrap().to_string();
        assert!(error.contains("--datapath kernel"), "{error}");
        assert!(!pins.root.exists());
    }
}
