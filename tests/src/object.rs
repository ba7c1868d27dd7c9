//! The datapath's object file, loaded for one test: its maps filled by hand, its
//! programs run or attached. Pins nothing, so all is gone with the value.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netagent_common::{
    ALLOWED_LIST_BITS, AllowedKey, Config, Count, Counter, Endpoint, EndpointKey, Flow, FlowKey,
    Network, Peer, Port, Probed, Published, PublishedKey, Service, Slot, SlotKey, SubnetKey,
    VirtualKey, maps, programs,
};
use xtask::command::checkout;

/// Names another object file than the one that `cargo xtask build-ebpf` writes.
pub const OBJECT: &str = "NETAGENT_EBPF_OBJECT";

/// The object, verified by the kernel.
pub struct Object {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, Count>,
}

impl Object {
    /// Loads all programs.
    ///
    /// # Panics
    /// If the object is missing, or the kernel refuses it: root is needed.
    #[must_use]
    pub fn load() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests load eBPF programs: run them as root"
        );
        let mut ebpf = EbpfLoader::new()
            .load(&read())
            .unwrap_or_else(|error| panic!("cannot load {}: {error:?}", path().display()));
        for name in programs::ALL {
            verify(program(&mut ebpf, name))
                .unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:?}"));
        }
        let counters = ebpf.take_map(maps::COUNTERS).expect("the object has COUNTERS");
        let counters = PerCpuArray::try_from(counters).expect("COUNTERS is a per-CPU array");
        Self { ebpf, counters }
    }

    /// One of [`programs`].
    ///
    /// # Panics
    /// If there is no such program.
    pub fn program(&mut self, name: &str) -> &mut SchedClassifier {
        program(&mut self.ebpf, name)
    }

    /// A handle of one of [`programs`].
    ///
    /// # Panics
    /// If it cannot be duplicated.
    pub fn program_fd(&mut self, name: &str) -> ProgramFd {
        let fd = self.program(name).fd().expect("it is loaded");
        fd.try_clone().expect("descriptors can be duplicated")
    }

    /// Writes `CONFIG`.
    ///
    /// # Panics
    /// As all that write: if the map is not there or is of another layout.
    pub fn set_config(&mut self, config: Config) {
        let mut map: Array<_, Config> = self.map(maps::CONFIG);
        map.set(0, config, 0).expect("CONFIG takes its entry");
    }

    /// Writes an entry of `PORTS`.
    pub fn set_port(&mut self, ifindex: u32, port: Port) {
        let mut map: HashMap<_, u32, Port> = self.map(maps::PORTS);
        map.insert(ifindex, port, 0).expect("PORTS takes an entry");
    }

    /// Writes an entry of `ENDPOINTS`.
    pub fn set_endpoint(&mut self, vni: u32, ip: Ipv4Addr, endpoint: Endpoint) {
        let mut map: HashMap<_, EndpointKey, Endpoint> = self.map(maps::ENDPOINTS);
        map.insert(EndpointKey::new(vni, ip), endpoint, 0).expect("ENDPOINTS takes an entry");
    }

    /// Writes an entry of `NETWORKS`.
    pub fn set_network(&mut self, vni: u32, network: Network) {
        let mut map: HashMap<_, u32, Network> = self.map(maps::NETWORKS);
        map.insert(vni, network, 0).expect("NETWORKS takes an entry");
    }

    /// Writes an entry of `PEERS`.
    pub fn set_peer(&mut self, vtep: Ipv4Addr, peer: Peer) {
        let mut map: HashMap<_, [u8; 4], Peer> = self.map(maps::PEERS);
        map.insert(vtep.octets(), peer, 0).expect("PEERS takes an entry");
    }

    /// Writes an entry of `ENCRYPTED`.
    pub fn set_encrypted(&mut self, vni: u32, device: u32) {
        let mut map: HashMap<_, u32, u32> = self.map(maps::ENCRYPTED);
        map.insert(vni, device, 0).expect("ENCRYPTED takes an entry");
    }

    /// Writes an entry of `SUBNETS`.
    pub fn set_subnet(&mut self, ip: Ipv4Addr, bits: u32, vni: u32) {
        let mut map: LpmTrie<_, SubnetKey, u32> = self.map(maps::SUBNETS);
        let key = Key::new(bits, SubnetKey { ip: ip.octets() });
        map.insert(&key, vni, 0).expect("SUBNETS takes an entry");
    }

    /// Writes an entry of `SERVICES`.
    pub fn set_service(&mut self, vni: u32, vip: Ipv4Addr, service: Service) {
        let mut map: HashMap<_, EndpointKey, Service> = self.map(maps::SERVICES);
        map.insert(EndpointKey::new(vni, vip), service, 0).expect("SERVICES takes an entry");
    }

    /// Writes an entry of `RING`.
    pub fn set_slot(&mut self, key: SlotKey, slot: Slot) {
        let mut map: HashMap<_, SlotKey, Slot> = self.map(maps::RING);
        map.insert(key, slot, 0).expect("RING takes an entry");
    }

    /// Writes an entry of `VIRTUAL`; `port` is in host order.
    pub fn set_virtual(&mut self, vip: Ipv4Addr, protocol: u8, port: u16) {
        let mut map: HashMap<_, VirtualKey, u32> = self.map(maps::VIRTUAL);
        let key = VirtualKey::new(vip, protocol, port);
        map.insert(key, 1, 0).expect("VIRTUAL takes an entry");
    }

    /// Writes an entry of `PUBLISHED`; `port` is in host order.
    pub fn publish(&mut self, ip: Ipv4Addr, protocol: u8, port: u16, published: Published) {
        let mut map: HashMap<_, PublishedKey, Published> = self.map(maps::PUBLISHED);
        let key = PublishedKey::new(ip, protocol, port);
        map.insert(key, published, 0).expect("PUBLISHED takes an entry");
    }

    /// Writes an entry of `ALLOWED`: `bits` bits of `ip` are allowed by list `list`.
    pub fn allow(&mut self, list: u32, ip: Ipv4Addr, bits: u32) {
        let mut map: LpmTrie<_, AllowedKey, u32> = self.map(maps::ALLOWED);
        let key = Key::new(ALLOWED_LIST_BITS + bits, AllowedKey { list, ip: ip.octets() });
        map.insert(&key, 1, 0).expect("ALLOWED takes an entry");
    }

    /// All that the programs remember of flows.
    ///
    /// # Panics
    /// As those that write.
    pub fn flows(&mut self) -> Vec<(FlowKey, Flow)> {
        let map: HashMap<_, FlowKey, Flow> = self.map(maps::FLOWS);
        map.iter().map(|entry| entry.expect("FLOWS can be read")).collect()
    }

    /// Removes an entry of `FLOWS`.
    pub fn remove_flow(&mut self, key: FlowKey) {
        let mut map: HashMap<_, FlowKey, Flow> = self.map(maps::FLOWS);
        map.remove(&key).expect("FLOWS has the entry");
    }

    /// Writes an entry of `FLOWS`, as if a program had.
    pub fn set_flow(&mut self, key: FlowKey, flow: Flow) {
        let mut map: HashMap<_, FlowKey, Flow> = self.map(maps::FLOWS);
        map.insert(key, flow, 0).expect("FLOWS takes an entry");
    }

    /// Records of the probes that came in since the last look.
    ///
    /// # Panics
    /// As those that write.
    pub fn probed(&mut self) -> Vec<Probed> {
        let mut ring: RingBuf<_> = self.map(maps::PROBED);
        let mut records = Vec::new();
        while let Some(item) = ring.next() {
            assert_eq!(item.len(), size_of::<Probed>());
            // SAFETY: of that length, and every bit pattern is valid.
            records.push(unsafe { item.as_ptr().cast::<Probed>().read_unaligned() });
        }
        records
    }

    /// What every counter stands at, in the order of [`Counter::ALL`].
    ///
    /// # Panics
    /// If the map cannot be read.
    #[must_use]
    pub fn counters(&self) -> Vec<Count> {
        let sum = |counter: &Counter| {
            let cpus = self.counters.get(&(*counter as u32), 0).expect("every counter has a slot");
            cpus.iter().fold(Count::default(), |sum, cpu| Count {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            })
        };
        Counter::ALL.iter().map(sum).collect()
    }

    fn map<'a, M>(&'a mut self, name: &str) -> M
    where
        M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self.ebpf.map_mut(name).unwrap_or_else(|| panic!("the object has no {name}"));
        M::try_from(map).unwrap_or_else(|error| panic!("{name} is another kind of map: {error}"))
    }
}

/// The counters that moved from one reading to the next, and by how much.
#[must_use]
pub fn moved(before: &[Count], after: &[Count]) -> Vec<(Counter, Count)> {
    Counter::ALL
        .iter()
        .zip(before.iter().zip(after))
        .filter(|(_, (before, after))| before != after)
        .map(|(counter, (before, after))| {
            let packets = after.packets - before.packets;
            (*counter, Count { packets, bytes: after.bytes - before.bytes })
        })
        .collect()
}

/// The object file's bytes.
pub(crate) fn read() -> Vec<u8> {
    let path = path();
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("cannot read {}: {error}; run `cargo xtask build-ebpf`", path.display())
    })
}

pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    let program = ebpf.program_mut(name).unwrap_or_else(|| panic!("the object has no {name}"));
    program.try_into().unwrap_or_else(|error| panic!("{name} is no tc program: {error}"))
}

/// The verifier gives up when a signal waits for the thread; it is asked again then.
fn verify(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 0..5 {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    program.load()
}

fn path() -> PathBuf {
    std::env::var_os(OBJECT).map_or_else(
        || checkout().join("target/bpf/bpfel-unknown-none/release/netagent"),
        PathBuf::from,
    )
}
