//! The maps: who writes, who reads. Most are written by the agent alone, whole
//! entries at a time, and only read here. `COUNTERS`, `FLOWS`, `AFFINITY`, `LOAD` and
//! `PROBED` are written here. All are pinned, so they outlive the agent.
//!
//! A reference into a hash map stays readable until the program ends (RCU), but an
//! entry that is deleted meanwhile may already carry another's bytes. A packet in
//! that instant may meet the new state or the old: so it would a moment earlier.
//!
//! Sizes are upper limits. Hash maps are not preallocated: what stands in memory is
//! the bucket array (16 bytes for each possible entry) and the entries there are.
//! LRU maps are preallocated: a full one gives up what was not used for longest.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use netagent_common::{
    ALLOWED_LIST_BITS, Affinity, AffinityKey, AllowedKey, Config, Count, Counter, Endpoint,
    EndpointKey, Flow, FlowKey, Load, Network, Peer, Port, Probed, Published, PublishedKey,
    SUBNET_KEY_BITS, Service, Slot, SlotKey, SubnetKey, VirtualKey,
};

use crate::entry::Call;
use crate::flow::Entry;

const GROW: usize = BPF_F_NO_PREALLOC as usize;

/// This node.
#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

/// Who may speak at which interface.
#[btf_map]
static PORTS: HashMap<u32, Port, 65_536, GROW> = HashMap::new();

/// Where the endpoints of this node's networks are, by network and address.
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, 262_144, GROW> = HashMap::new();

/// The networks that have an endpoint on this node, by VNI.
#[btf_map]
static NETWORKS: HashMap<u32, Network, 65_536, GROW> = HashMap::new();

/// The other member nodes, by VTEP. Of VXLAN asked only to name a refusal: the agent writes no
/// endpoint of a node that is no member.
#[btf_map]
static PEERS: HashMap<[u8; 4], Peer, 16_384, GROW> = HashMap::new();

/// The encrypted networks, by VNI, and the vxlan device that carries each; 0 if none can.
#[btf_map]
static ENCRYPTED: HashMap<u32, u32, 65_536, GROW> = HashMap::new();

/// Every subnet of every network of the cluster, to its VNI.
#[btf_map]
static SUBNETS: LpmTrie<SubnetKey, u32, 65_536> = LpmTrie::new();

/// How new flows are balanced, by network and virtual address.
#[btf_map]
static SERVICES: HashMap<EndpointKey, Service, 16_384, GROW> = HashMap::new();

/// The backends of every service, in slots.
#[btf_map]
static RING: HashMap<SlotKey, Slot, 262_144, GROW> = HashMap::new();

/// Ports of this node that lead to services.
#[btf_map]
static PUBLISHED: HashMap<PublishedKey, Published, 65_536, GROW> = HashMap::new();

/// Who may use published ports, list by list.
#[btf_map]
static ALLOWED: LpmTrie<AllowedKey, u32, 65_536> = LpmTrie::new();

/// Ports that IPVS schedules.
#[btf_map]
static VIRTUAL: HashMap<VirtualKey, u32, 65_536, GROW> = HashMap::new();

/// What each flow of a service needs to be remembered. The agent sets its size.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, 16_384> = LruHashMap::new();

/// Which backend a client last got, of services with affinity.
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, 65_536> = LruHashMap::new();

/// What each backend has to do, and whose turn it is.
#[btf_map]
static LOAD: LruHashMap<EndpointKey, Load, 32_768> = LruHashMap::new();

/// Probes that came in, for the agent to look at now and then. While none does, it is full.
#[btf_map]
static PROBED: RingBuf<Probed, 65_536> = RingBuf::new();

/// What became of every packet, by `Counter`. Written here, read by the agent.
#[btf_map]
static COUNTERS: PerCpuArray<Count, { Counter::ALL.len() }> = PerCpuArray::new();

/// When this CPU last told of a stranger, in nanoseconds since boot. Not pinned.
#[btf_map]
static LAST_REPORT: PerCpuArray<u64, 1> = PerCpuArray::new();

/// What is known of the packet that this CPU takes into the mesh. Not pinned.
#[btf_map]
static CALL: PerCpuArray<Call, 1> = PerCpuArray::new();

/// This node, or none before the agent has said which it is.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.uplink != 0)
}

/// Who may speak at interface `ifindex`.
#[inline(always)]
pub(crate) fn port(ifindex: u32) -> Option<&'static Port> {
    // SAFETY: read-only, see the module's words on references.
    unsafe { PORTS.get(ifindex) }
}

/// Where address `ip` of network `vni` is.
#[inline(always)]
pub(crate) fn endpoint(vni: u32, ip: [u8; 4]) -> Option<&'static Endpoint> {
    // SAFETY: as in `port`.
    unsafe { ENDPOINTS.get(EndpointKey::from_wire(vni, ip)) }
}

/// The vxlan device that carries network `vni`, if that is an encrypted one.
#[inline(always)]
pub(crate) fn encrypted(vni: u32) -> Option<u32> {
    // SAFETY: as in `port`.
    unsafe { ENCRYPTED.get(vni) }.copied()
}

/// Network `vni`, if it has an endpoint on this node.
#[inline(always)]
pub(crate) fn network(vni: u32) -> Option<&'static Network> {
    // SAFETY: as in `port`.
    unsafe { NETWORKS.get(vni) }
}

/// Whether `vtep` is a member of the cluster.
#[inline(always)]
pub(crate) fn is_member(vtep: [u8; 4]) -> bool {
    PEERS.get_ptr(vtep).is_some()
}

/// Whether `vtep` is a member from which ESP comes in UDP.
#[inline(always)]
pub(crate) fn sends_in_udp(vtep: [u8; 4]) -> bool {
    // SAFETY: as in `port`.
    unsafe { PEERS.get(vtep) }.is_some_and(Peer::is_in_udp)
}

/// The network whose subnet `ip` is in.
#[inline(always)]
pub(crate) fn network_of(ip: [u8; 4]) -> Option<u32> {
    SUBNETS.get(&Key::new(SUBNET_KEY_BITS, SubnetKey { ip })).copied()
}

/// How new flows to `vip` in network `vni` are balanced.
#[inline(always)]
pub(crate) fn service(vni: u32, vip: [u8; 4]) -> Option<&'static Service> {
    // SAFETY: as in `port`.
    unsafe { SERVICES.get(EndpointKey::from_wire(vni, vip)) }
}

/// A slot of a service's ring.
#[inline(always)]
pub(crate) fn slot(key: &SlotKey) -> Option<&'static Slot> {
    // SAFETY: as in `port`.
    unsafe { RING.get(key) }
}

/// Whether IPVS schedules this port.
#[inline(always)]
pub(crate) fn is_virtual(key: &VirtualKey) -> bool {
    VIRTUAL.get_ptr(key).is_some()
}

/// What is remembered under `key`.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<Entry> {
    FLOWS.get_ptr_mut(key).map(Entry::new)
}

/// Remembers `flow`, in place of what was remembered. If memory is short nothing is, and
/// the next packet is as new as this one.
#[inline(always)]
pub(crate) fn remember(key: &FlowKey, flow: &Flow) {
    try_remember(key, flow, u64::from(BPF_ANY));
}

/// Remembers `flow` as the flags of `bpf_map_update_elem` say; whether it did.
#[inline(always)]
pub(crate) fn try_remember(key: &FlowKey, flow: &Flow, flags: u64) -> bool {
    FLOWS.insert(key, flow, flags).is_ok()
}

/// Forgets what is remembered under `key`.
#[inline(always)]
pub(crate) fn forget(key: &FlowKey) {
    // That another CPU was faster is no failure.
    let _ = FLOWS.remove(key);
}

/// The backend that a client keeps.
#[inline(always)]
pub(crate) fn affinity(key: &AffinityKey) -> Option<&'static Affinity> {
    // SAFETY: as in `port`.
    unsafe { AFFINITY.get(key) }
}

/// Lets a client keep a backend. If memory is short it does not.
#[inline(always)]
pub(crate) fn keep_affinity(key: &AffinityKey, affinity: &Affinity) {
    let _ = AFFINITY.insert(key, affinity, u64::from(BPF_ANY));
}

/// What an address has to do.
#[inline(always)]
pub(crate) fn load(key: &EndpointKey) -> Option<*mut Load> {
    LOAD.get_ptr_mut(key)
}

/// Makes an entry for [`load`], unless another CPU was faster.
#[inline(always)]
pub(crate) fn new_load(key: &EndpointKey) {
    let _ = LOAD.insert(key, Load::default(), u64::from(BPF_NOEXIST));
}

/// Where port `port` of this node's address `ip` leads, if it is published.
#[inline(always)]
pub(crate) fn published(ip: [u8; 4], protocol: u8, port: [u8; 2]) -> Option<&'static Published> {
    // SAFETY: as in `port`.
    unsafe { PUBLISHED.get(PublishedKey::from_wire(ip, protocol, port)) }
}

/// Whether `ip` is a source that list `list` names; list 0 names all.
#[inline(always)]
pub(crate) fn is_allowed(list: u32, ip: [u8; 4]) -> bool {
    let bits = ALLOWED_LIST_BITS + SUBNET_KEY_BITS;
    list == 0 || ALLOWED.get(&Key::new(bits, AllowedKey { list, ip })).is_some()
}

/// Adds a packet of `bytes` to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter, bytes: u32) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own slot; tc programs of a CPU do not interrupt
        // each other.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}

/// Leaves a record of a probe to the agent; whether there was room for it.
#[inline(always)]
pub(crate) fn probed(record: &Probed) -> bool {
    PROBED.output(record, u64::from(BPF_RB_NO_WAKEUP)).is_ok()
}

/// This CPU's room for a packet on its way into the mesh.
#[inline(always)]
pub(crate) fn call() -> Option<&'static mut Call> {
    // SAFETY: this CPU's own slot, asked for once by each program; tc programs of a CPU do
    // not interrupt each other.
    CALL.get_ptr_mut(0).map(|call| unsafe { &mut *call })
}

/// This CPU's time of its last report.
#[inline(always)]
pub(crate) fn last_report() -> Option<*mut u64> {
    LAST_REPORT.get_ptr_mut(0)
}
