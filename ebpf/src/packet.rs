//! The packet that a program was called with: the only module that touches its
//! bytes, with `words.rs`, and the kernel's helpers on it. It knows no network and
//! decides nothing.
//!
//! Headers are read as copies and written through [`Packet::store`]: to the verifier
//! a pointer dies when the packet changes, and none outlives a read. Nothing is
//! written through pointers: that would make the verifier put an un-cloning call
//! before every packet of a program, even of those that only pass
//! (`tc_cls_act_prologue`).

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS,
    bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET},
    bpf_redir_neigh, bpf_tunnel_key,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_diff, bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_redirect,
    bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_pull_data,
    bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use netagent_common::{Counter, Probe};

use crate::checksum::{Delta, fold};
use crate::headers::{Arp, ETHERNET, Ethernet, Icmp, Ipv4, Ipv4End, OVERHEAD, Outer, Tcp, Udp};
use crate::words;

/// Frames to this machine (`PACKET_HOST` of linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// `AF_INET` of linux/socket.h.
const AF_INET: u32 = 2;

/// Flags of a packet that has just got the tunnel's headers: GSO sizes are those of
/// the inner packet and stay; then what was put in front of it, so that the kernel
/// or the device can segment and checksum it.
const PUSHED: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64
    | (ETHERNET as u64 & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;

/// Flag of `bpf_skb_set_tunnel_key`: no outer checksum, as we push none either.
const ZERO_CHECKSUM: u64 = 1 << 1;
/// Flag of `bpf_skb_set_tunnel_key`: the outer header forbids fragmenting, as ours does.
const DONT_FRAGMENT: u64 = 1 << 2;

/// A header that may be read from and written to any byte of a packet.
///
/// # Safety
/// The type has an alignment of 4 at most, no padding, and is valid for every bit pattern.
pub(crate) unsafe trait Header: Copy {}

macro_rules! headers {
    ($($header:ty),+) => {$(
        const _: () = assert!(align_of::<$header>() <= 4);
        // SAFETY: made of byte arrays alone; the alignment is asserted above.
        unsafe impl Header for $header {}
    )+};
}
headers!(Arp, Ethernet, Icmp, Ipv4, Ipv4End, Outer, Probe, Tcp, u8, [u8; 2], [u8; 4], [u8; 136]);

/// The packet, from its Ethernet header on.
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self { skb: context.skb.skb }
    }

    /// From what [`Packet::context`] gave.
    #[inline(always)]
    pub(crate) fn of(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// What the kernel knows the packet by.
    #[inline(always)]
    pub(crate) fn context(&mut self) -> *mut __sk_buff {
        self.skb
    }

    /// Bytes, Ethernet header included.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: the kernel passes a valid context; the verifier checks the field.
        unsafe { (*self.skb).len }
    }

    /// The interface that the program runs at.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.skb).ifindex }
    }

    /// Ethertype, or none if the frame is of a VLAN of the interface: then the tag
    /// has been taken out of the bytes, and they look like any other frame's.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> Option<[u8; 2]> {
        // SAFETY: as in `len`.
        let (protocol, tagged) = unsafe { ((*self.skb).protocol, (*self.skb).vlan_present) };
        // The field is a big-endian u16 in a u32.
        (tagged == 0).then_some((protocol as u16).to_ne_bytes())
    }

    /// Payload bytes of each packet that this one stands for; 0 if it is just one.
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.skb).gso_size }
    }

    /// A number that is the same for all packets of a flow.
    #[inline(always)]
    pub(crate) fn flow_hash(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// Makes the first `bytes` readable in place.
    ///
    /// # Errors
    /// `DropMalformed` if there are not as many.
    #[inline(always)]
    pub(crate) fn linear(&mut self, bytes: u32) -> Result<(), Counter> {
        if self.start() + bytes as usize <= self.end() {
            return Ok(());
        }
        // SAFETY: as in `len`; no pointer into the packet lives across a `&mut self`.
        if unsafe { bpf_skb_pull_data(self.skb, bytes) } == 0 {
            Ok(())
        } else {
            Err(Counter::DropMalformed)
        }
    }

    /// The header at byte `at`, which [`Self::linear`] has brought within reach.
    ///
    /// # Errors
    /// `DropMalformed` if it is not there.
    #[inline(always)]
    pub(crate) fn at<H: Header>(&self, at: u32) -> Result<H, Counter> {
        let from = self.within(self.start() + at as usize)?;
        // SAFETY: that many bytes lie there.
        Ok(unsafe { words::read(from) })
    }

    /// The header at address `from`, all of which lies within the packet.
    ///
    /// # Errors
    /// `DropMalformed` if it does not.
    #[inline(always)]
    fn within<H: Header>(&self, from: usize) -> Result<*const H, Counter> {
        if from + size_of::<H>() > self.end() {
            return Err(Counter::DropMalformed);
        }
        Ok(from as *const H)
    }

    /// The IPv4 header at byte `at`, consistent with itself and with the packet.
    ///
    /// # Errors
    /// `DropMalformed` if it is not.
    #[inline(always)]
    pub(crate) fn ipv4(&self, at: u32) -> Result<Ipv4, Counter> {
        let ip = self.at::<Ipv4>(at)?;
        let tot_len = u32::from(u16::from_be_bytes(ip.tot_len));
        // BIG TCP: a GSO packet of more than 64 KiB has no length of its own.
        let unsized_gso = tot_len == 0 && self.gso_size() != 0;
        let room = self.len() - at;
        let valid = ip.version_ihl >> 4 == 4
            && ip.header_len() >= size_of::<Ipv4>() as u32
            && ip.header_len() <= room
            && (unsized_gso || (tot_len >= ip.header_len() && tot_len <= room));
        if valid { Ok(ip) } else { Err(Counter::DropMalformed) }
    }

    /// A copy of the header at byte `at`, wherever that is: for offsets that are only
    /// known at run time, and for what nobody has brought within reach.
    ///
    /// # Errors
    /// `DropMalformed` if it is not there.
    #[inline(always)]
    pub(crate) fn load<H: Header>(&self, at: u32) -> Result<H, Counter> {
        if let Ok(from) = self.within(words::behind(self.start(), at as usize)) {
            // SAFETY: as in `at`.
            return Ok(unsafe { words::read(from) });
        }
        let mut header = core::mem::MaybeUninit::<H>::uninit();
        // SAFETY: the helper writes that many bytes or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                at,
                header.as_mut_ptr().cast(),
                size_of::<H>() as u32,
            )
        };
        if failed != 0 {
            return Err(Counter::DropMalformed);
        }
        // SAFETY: the helper succeeded; every bit pattern is valid.
        Ok(unsafe { header.assume_init() })
    }

    /// Writes a header at byte `at`; leaves checksums of others alone.
    ///
    /// # Errors
    /// `DropRefused` if the packet is shorter or cannot be written.
    #[inline(always)]
    pub(crate) fn store<H: Header>(&mut self, at: u32, header: &H) -> Result<(), Counter> {
        // SAFETY: the helper reads that many bytes of `header`.
        done(unsafe {
            bpf_skb_store_bytes(
                self.skb.cast(),
                at,
                core::ptr::from_ref(header).cast(),
                size_of::<H>() as u32,
                0,
            )
        })
    }

    /// Puts the tunnel's 50 bytes of room between the Ethernet header and the IPv4
    /// packet. They must be filled, see [`Outer`].
    ///
    /// # Errors
    /// `DropRefused` if the kernel cannot: the packet is itself a tunnel's and not yet
    /// segmented, or of a kind of GSO that cannot be put into a tunnel here, or memory is
    /// short. The packet is then unchanged.
    #[inline(always)]
    pub(crate) fn push_outer(&mut self) -> Result<(), Counter> {
        self.adjust_room(OVERHEAD as i32, BPF_ADJ_ROOM_MAC, PUSHED)
    }

    /// Removes the 50 bytes between the Ethernet header and the inner IPv4 packet.
    ///
    /// # Errors
    /// `DropRefused` if the kernel refuses.
    #[inline(always)]
    pub(crate) fn pop_outer(&mut self) -> Result<(), Counter> {
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        self.adjust_room(-(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, flags)
    }

    /// Removes the UDP header behind the IPv4 header, which has no options.
    ///
    /// # Errors
    /// `DropRefused` if the kernel refuses.
    #[inline(always)]
    pub(crate) fn pop_udp(&mut self) -> Result<(), Counter> {
        self.adjust_room(-(Udp::LEN as i32), BPF_ADJ_ROOM_NET, 0)
    }

    /// Puts `bytes` of room between the Ethernet header and the IPv4 packet.
    ///
    /// # Errors
    /// `DropRefused` if the kernel refuses.
    #[inline(always)]
    pub(crate) fn prepend(&mut self, bytes: u32) -> Result<(), Counter> {
        self.adjust_room(bytes as i32, BPF_ADJ_ROOM_MAC, 0)
    }

    #[inline(always)]
    fn adjust_room(&mut self, bytes: i32, mode: u32, flags: u64) -> Result<(), Counter> {
        // SAFETY: as in `linear`.
        done(unsafe { bpf_skb_adjust_room(self.skb, bytes, mode, flags) })
    }

    /// Cuts the packet to `len` bytes; it is no GSO packet afterwards.
    ///
    /// # Errors
    /// `DropRefused` if it is shorter, or ends before a checksum that the kernel has
    /// still to write.
    #[inline(always)]
    pub(crate) fn cut(&mut self, len: u32) -> Result<(), Counter> {
        // SAFETY: as in `linear`.
        done(unsafe { bpf_skb_change_tail(self.skb, len, 0) })
    }

    /// The internet checksum of `N` bytes (a multiple of 4, at most 512) at byte `at`.
    ///
    /// # Errors
    /// `DropMalformed` if they are not there.
    #[inline(always)]
    pub(crate) fn checksum<const N: usize>(&self, at: u32) -> Result<[u8; 2], Counter>
    where
        [u8; N]: Header,
    {
        let bytes = self.within::<[u8; N]>(self.start() + at as usize)?.cast_mut().cast();
        // SAFETY: the helper reads N bytes of the packet, in reach as `at` says.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, N as u32, 0) };
        Ok((!fold(sum as u32)).to_ne_bytes())
    }

    /// Corrects the layer 4 checksum at byte `at` for a change of what it covers. `flags`
    /// are the helper's: whether the change is one of the addresses, and whether the value 0
    /// means that there is no checksum.
    ///
    /// # Errors
    /// `DropRefused` if it is not there or cannot be written.
    #[inline(always)]
    pub(crate) fn replace_l4_checksum(
        &mut self,
        at: u32,
        change: Delta,
        flags: u64,
    ) -> Result<(), Counter> {
        // SAFETY: as in `linear`.
        done(unsafe { bpf_l4_csum_replace(self.skb, at, 0, u64::from(change.to_bits()), flags) })
    }

    /// VTEP and network that the kernel's vxlan device took the packet from.
    ///
    /// # Errors
    /// `DropMalformed` if it came otherwise, or over IPv6.
    #[inline(always)]
    pub(crate) fn tunnel(&self) -> Result<([u8; 4], u32), Counter> {
        // SAFETY: an all-zero key is valid.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the helper writes at most the size given.
        let failed = unsafe {
            bpf_skb_get_tunnel_key(self.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0)
        };
        if failed != 0 {
            return Err(Counter::DropMalformed);
        }
        // SAFETY: flags 0 asks for IPv4. The helper speaks host order.
        Ok((unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes(), key.tunnel_id))
    }

    /// Tells the kernel's vxlan device where to send the packet.
    ///
    /// # Errors
    /// `DropRefused` if memory is short.
    #[inline(always)]
    pub(crate) fn set_tunnel(
        &mut self,
        from: [u8; 4],
        to: [u8; 4],
        vni: u32,
    ) -> Result<(), Counter> {
        // SAFETY: an all-zero key is valid.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = vni;
        key.tunnel_ttl = 64;
        // The helper speaks host order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(to);
        key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(from);
        // SAFETY: the helper reads the size given.
        done(unsafe {
            bpf_skb_set_tunnel_key(
                self.skb,
                &raw mut key,
                size_of::<bpf_tunnel_key>() as u32,
                ZERO_CHECKSUM | DONT_FRAGMENT,
            )
        })
    }

    /// Makes the packet one that has not been routed yet: what the host sends to itself comes
    /// with its route, by which it would go wherever it is put next (until 6.15 even into
    /// another namespace). No helper takes the route off, but a tunnel's key takes its place,
    /// and means something to the vxlan device alone.
    ///
    /// # Errors
    /// `DropRefused` if memory is short.
    #[inline(always)]
    pub(crate) fn forget_route(&mut self) -> Result<(), Counter> {
        self.set_tunnel([0; 4], [0; 4], 0)
    }

    /// Redirects to the other end of veth `ifindex`, into its namespace. The packet
    /// becomes one to that machine: its interface's stack drops others, and before
    /// 6.15 the helper leaves the mark that the first interface gave it.
    #[inline(always)]
    pub(crate) fn redirect_to_peer(&mut self, ifindex: u32) -> i32 {
        // SAFETY: as in `len`.
        if unsafe { (*self.skb).pkt_type } != PACKET_HOST {
            // SAFETY: as in `linear`. What fails here fails visibly: the stack behind
            // the veth counts packets to other hosts.
            unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
        }
        // SAFETY: no pointers are passed.
        (unsafe { bpf_redirect_peer(ifindex, 0) }) as i32
    }

    /// Redirects out of `ifindex`, to the next hop that the kernel's routes give for the
    /// IPv4 destination. The kernel writes the Ethernet header.
    #[inline(always)]
    pub(crate) fn redirect_by_route(&mut self, ifindex: u32) -> i32 {
        // SAFETY: no parameters are passed.
        (unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }) as i32
    }

    /// Redirects out of `ifindex` to its neighbour `ip`. The kernel looks up no route,
    /// which would be a sixth of what the tunnel costs; it writes the Ethernet header.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbour(&mut self, ifindex: u32, ip: [u8; 4]) -> i32 {
        // SAFETY: all-zero parameters are valid.
        let mut hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        hop.nh_family = AF_INET;
        hop.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(ip);
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the helper reads the size given.
        (unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size, 0) }) as i32
    }

    /// Sends a copy out of `ifindex`. It may be lost.
    #[inline(always)]
    pub(crate) fn copy_to(&mut self, ifindex: u32) {
        // SAFETY: as in `linear`.
        unsafe { bpf_clone_redirect(self.skb, ifindex, 0) };
    }

    /// Redirects into `ifindex`, as if it came in there from outside. It comes to that
    /// interface's own programs, too.
    #[inline(always)]
    pub(crate) fn redirect_into(&mut self, ifindex: u32) -> i32 {
        // SAFETY: no pointers are passed.
        (unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) }) as i32
    }

    /// Redirects out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(&mut self, ifindex: u32) -> i32 {
        // SAFETY: no pointers are passed.
        (unsafe { bpf_redirect(ifindex, 0) }) as i32
    }

    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: as in `len`.
        (unsafe { (*self.skb).data }) as usize
    }

    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: as in `len`.
        (unsafe { (*self.skb).data_end }) as usize
    }
}

#[inline(always)]
fn done(code: i64) -> Result<(), Counter> {
    if code == 0 { Ok(()) } else { Err(Counter::DropRefused) }
}
