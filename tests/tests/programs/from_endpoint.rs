//! What a workload sends.

use netagent_common::{Counter, Endpoint, GATEWAY_MAC, VXLAN_PORT};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::{Gso, Node, Run};
use netagent_tests::world::{A, B, BLUE, C, D, E, F, G, HERE, Host, MTU, THERE};
use std::net::Ipv4Addr;

const BROADCAST: Mac = [0xff; 6];
const OUTSIDE: &str = "203.0.113.1";
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// IPv4 from A to another endpoint.
fn to(host: Host) -> Packet {
    ethernet(A.mac, host.mac).ipv4(A.ip, host.ip)
}

/// IPv4 from A to beyond its gateway.
fn beyond(address: &str) -> Packet {
    ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, address)
}

fn who_has(target: Ipv4Addr) -> Packet {
    ethernet(A.mac, BROADCAST).arp_request((A.mac, A.ip), target)
}

/// The packet that `host` on this node sent, as it leaves the node. The Ethernet header
/// is what the workload wrote: the kernel puts the next hop's in its place. The source
/// port hangs on a secret of the kernel, so it is taken from the packet.
#[track_caller]
fn carried(sent: &Packet, from: Host, to: (Host, Ipv4Addr), ecn: u8, run: &Run) -> Vec<u8> {
    let sent = sent.build();
    let port = u16::from_be_bytes([run.output[34], run.output[35]]);
    assert!((32_768..60_999).contains(&port), "source port {port}:\n{run}");
    let (host, vtep) = to;
    ethernet(from.mac, [sent[0], sent[1], sent[2], sent[3], sent[4], sent[5]])
        .ipv4(HERE, vtep)
        .tos(ecn)
        .udp_without_checksum(port, VXLAN_PORT)
        .vxlan(from.vni)
        .ethernet(from.mac, host.mac)
        .ethertype(0x0800)
        .payload(&sent[14..])
        .build()
}

/// What A gets for a packet that is too big.
fn fragmentation_needed(sent: &Packet) -> Vec<u8> {
    let [high, low] = (MTU as u16).to_be_bytes();
    ethernet(GATEWAY_MAC, A.mac)
        .ipv4(A.gateway(), A.ip)
        .icmp(3, 4, [0, 0, high, low])
        .payload(&sent.build()[14..14 + 128])
        .build()
}

/// A packet to another endpoint of as many bytes, IPv4 header included.
fn sized(host: Host, bytes: usize) -> Packet {
    to(host).udp(1000, 2000).payload_of(bytes - 28)
}

#[test]
fn an_interface_that_is_no_port_sends_nothing() {
    let frame = to(B).udp(1, 2).build();
    Node::new().from_unknown_port(&frame).dropped(Counter::DropUnknownPort);
    Node::unconfigured().from_endpoint(A, &frame).dropped(Counter::DropUnknownPort);
}

#[test]
fn a_foreign_mac_sends_nothing() {
    let mut node = Node::new();
    let frame = ethernet(B.mac, C.mac).ipv4(A.ip, C.ip).udp(1, 2).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedMac);
    let frame = ethernet(B.mac, BROADCAST).arp_request((A.mac, A.ip), C.ip).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedMac);
}

#[test]
fn only_ipv4_and_arp_are_carried() {
    let mut node = Node::new();
    for ethertype in [0x86dd, 0x8100, 0x88a8, 0x8847, 0x0000, 0x05dc] {
        let frame = ethernet(A.mac, B.mac).ethertype(ethertype).payload_of(100).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropOtherProtocol);
    }
}

#[test]
fn arp_is_answered_for_gateway_and_endpoints() {
    let mut node = Node::new();
    for (ip, mac) in [(A.gateway(), GATEWAY_MAC), (B.ip, B.mac), (C.ip, C.mac)] {
        let answer = ethernet(mac, A.mac).arp_reply((mac, ip), (A.mac, A.ip)).build();
        node.from_endpoint(A, &who_has(ip).build()).redirected(Counter::ArpAnswered, &answer);
        // A neighbour that is asked again is asked directly, and with its MAC filled in.
        let again = ethernet(A.mac, mac).arp(1, (A.mac, A.ip), (mac, ip));
        node.from_endpoint(A, &again.build()).redirected(Counter::ArpAnswered, &answer);
    }
}

#[test]
fn padding_of_an_arp_request_comes_back() {
    let answer = ethernet(C.mac, A.mac).arp_reply((C.mac, C.ip), (A.mac, A.ip));
    Node::new()
        .from_endpoint(A, &who_has(C.ip).payload_of(18).build())
        .redirected(Counter::ArpAnswered, &answer.payload_of(18).build());
}

#[test]
fn arp_for_an_address_without_endpoint_is_not_answered() {
    let mut node = Node::new();
    for ip in [Ipv4Addr::new(10, 0, 9, 77), E.ip, E.gateway(), Ipv4Addr::new(8, 8, 8, 8)] {
        node.from_endpoint(A, &who_has(ip).build()).dropped(Counter::DropUnknownDestination);
    }
}

#[test]
fn arp_that_asks_for_nothing_is_dropped() {
    let mut node = Node::new();
    let nobody = Ipv4Addr::UNSPECIFIED;
    let probe = ethernet(A.mac, BROADCAST).arp_request((A.mac, nobody), A.ip);
    let announcement = who_has(A.ip);
    let reply = ethernet(A.mac, C.mac).arp_reply((A.mac, A.ip), (C.mac, C.ip));
    let reverse = ethernet(A.mac, BROADCAST).arp(3, (A.mac, A.ip), (A.mac, nobody));
    for frame in [probe, announcement, reply, reverse] {
        node.from_endpoint(A, &frame.build()).dropped(Counter::DropArp);
    }
}

#[test]
fn arp_in_the_name_of_another_is_dropped() {
    let mut node = Node::new();
    let frame = ethernet(A.mac, BROADCAST).arp_request((B.mac, A.ip), C.ip).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedMac);
    let frame = ethernet(A.mac, BROADCAST).arp_request((A.mac, B.ip), C.ip).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedAddress);
    let frame = ethernet(A.mac, BROADCAST).arp_reply((A.mac, B.ip), (C.mac, C.ip)).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedAddress);
}

#[test]
fn arp_of_another_kind_is_malformed() {
    let mut node = Node::new();
    // Hardware type, protocol type, length of a MAC, length of an address.
    for at in [15, 16, 18, 19] {
        let mut frame = who_has(C.ip).build();
        frame[at] ^= 1;
        node.from_endpoint(A, &frame).dropped(Counter::DropMalformed);
    }
}

#[test]
fn an_ipv4_header_that_contradicts_itself_is_malformed() {
    let mut node = Node::new();
    let valid = to(C).udp(1, 2).payload_of(20).build();
    let edits: [&[(usize, u8)]; 6] = [
        &[(14, 0x65)],       // version 6
        &[(14, 0x44)],       // 16 bytes of header
        &[(14, 0x4f)],       // more header than packet
        &[(17, 49)],         // longer than the frame, by one byte
        &[(17, 19)],         // shorter than its header
        &[(16, 0), (17, 0)], // no length, and no GSO packet
    ];
    for edit in edits {
        let mut frame = valid.clone();
        for (at, value) in edit {
            frame[*at] = *value;
        }
        node.from_endpoint(A, &frame).dropped(Counter::DropMalformed);
    }
}

#[test]
fn a_foreign_address_sends_nothing() {
    let mut node = Node::new();
    for source in [B.ip, C.ip, E.ip, A.gateway(), HERE, Ipv4Addr::UNSPECIFIED] {
        let frame = ethernet(A.mac, C.mac).ipv4(source, C.ip).udp(1, 2).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropSpoofedAddress);
    }
}

#[test]
fn addresses_that_are_no_ones_go_nowhere() {
    let mut node = Node::new();
    for address in ["0.0.0.0", "0.1.2.3", "127.0.0.1"] {
        let frame = beyond(address).udp(1, 2).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropMalformed);
    }
    for address in ["224.0.0.1", "239.1.2.3", "255.255.255.255"] {
        let frame = ethernet(A.mac, BROADCAST).ipv4(A.ip, address).udp(1, 2).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropMulticast);
    }
}

#[test]
fn the_gateway_answers_echo_requests() {
    let mut node = Node::new();
    let request = |options: &[u8]| {
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway()).id(7).tos(3).options(options)
    };
    let reply = |options: &[u8]| {
        ethernet(GATEWAY_MAC, A.mac).ipv4(A.gateway(), A.ip).id(7).tos(3).options(options)
    };
    for options in [&[][..], &[1, 1, 1, 0]] {
        for len in [0, 1, 56, 1400] {
            let frame = request(options).icmp(8, 0, [0x12, 0x34, 0, 9]).payload_of(len).build();
            let answer = reply(options).icmp(0, 0, [0x12, 0x34, 0, 9]).payload_of(len).build();
            node.from_endpoint(A, &frame).redirected(Counter::EchoAnswered, &answer);
        }
    }
}

#[test]
fn the_checksum_of_an_echo_reply_wraps_round() {
    let mut node = Node::new();
    let request = ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway());
    let reply = ethernet(GATEWAY_MAC, A.mac).ipv4(A.gateway(), A.ip);
    for word in 0..=0xffff_u16 {
        let [high, low] = word.to_be_bytes();
        if low % 16 == 0 {
            let frame = request.clone().icmp(8, 0, [high, low, 0, 0]).build();
            let answer = reply.clone().icmp(0, 0, [high, low, 0, 0]).build();
            node.from_endpoint(A, &frame).redirected(Counter::EchoAnswered, &answer);
        }
    }
}

#[test]
fn fragments_of_an_echo_request_come_back_as_those_of_its_reply() {
    let mut node = Node::new();
    let request =
        |fragment| ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway()).id(9).fragment(fragment);
    let reply =
        |fragment| ethernet(GATEWAY_MAC, A.mac).ipv4(A.gateway(), A.ip).id(9).fragment(fragment);
    let first = request(MORE_FRAGMENTS).icmp(8, 0, [1, 2, 3, 4]).payload_of(1000);
    let answer = reply(MORE_FRAGMENTS).icmp(0, 0, [1, 2, 3, 4]).payload_of(1000);
    node.from_endpoint(A, &first.build()).redirected(Counter::EchoAnswered, &answer.build());
    // It begins like an echo request, but nothing in it is a header.
    let later = request(126).protocol(1).payload([8, 0, 1, 2, 3, 4, 5, 6, 7]);
    let answer = reply(126).protocol(1).payload([8, 0, 1, 2, 3, 4, 5, 6, 7]);
    node.from_endpoint(A, &later.build()).redirected(Counter::EchoAnswered, &answer.build());
}

#[test]
fn the_gateway_is_nobody_else() {
    let mut node = Node::new();
    let start = || ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, A.gateway());
    for packet in [
        start().icmp(0, 0, [0; 4]),
        start().icmp(8, 1, [0; 4]),
        start().icmp(13, 0, [0; 4]),
        start().udp(1, 53),
        start().tcp(1, 22),
        start().protocol(50).payload_of(40),
    ] {
        node.from_endpoint(A, &packet.build()).dropped(Counter::DropUnknownDestination);
    }
}

#[test]
fn a_neighbour_on_this_node_is_reached() {
    let mut node = Node::new();
    let delivered = |packet: &Packet| {
        let mut bytes = packet.build();
        bytes[..6].copy_from_slice(&B.mac);
        bytes
    };
    for packet in [
        to(B).udp(1, 2).payload_of(100),
        to(B).tcp(1, 2).payload_of(100),
        to(B).options(&[1; 40]).icmp(8, 0, [0; 4]),
        to(B).fragment(100).payload_of(64),
        // It leaves no network, so this is no forged tunnel.
        to(B).udp(1, VXLAN_PORT).payload_of(50),
        // The way follows from the address alone.
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, B.ip).udp(1, 2),
        ethernet(A.mac, BROADCAST).ipv4(A.ip, B.ip).udp(1, 2),
        sized(B, MTU),
    ] {
        node.from_endpoint(A, &packet.build())
            .redirected(Counter::DeliveredLocally, &delivered(&packet));
    }
}

#[test]
fn an_internal_network_reaches_itself() {
    let mut node = Node::new();
    let frame = ethernet(G.mac, GATEWAY_MAC).ipv4(G.ip, G.gateway()).icmp(8, 0, [0; 4]).build();
    let answer = ethernet(GATEWAY_MAC, G.mac).ipv4(G.gateway(), G.ip).icmp(0, 0, [0; 4]).build();
    node.from_endpoint(G, &frame).redirected(Counter::EchoAnswered, &answer);
}

#[test]
fn an_endpoint_of_another_node_is_reached_through_the_tunnel() {
    let mut node = Node::new();
    for packet in [
        to(C).udp(1, 2).payload_of(100),
        to(C).tcp(1, 2).payload_of(100),
        to(C).options(&[1; 40]).icmp(8, 0, [0; 4]),
        to(C).fragment(MORE_FRAGMENTS).udp(1, 2).payload_of(64),
        to(C).fragment(100).payload_of(64),
        to(C).udp(1, VXLAN_PORT).payload_of(50),
        ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, C.ip).udp(1, 2),
        sized(C, MTU),
        // 20 bytes is a whole packet.
        to(C).protocol(99),
    ] {
        let run = node.from_endpoint(A, &packet.build());
        run.redirected(Counter::Encapsulated, &carried(&packet, A, (C, THERE), 0, &run));
    }
}

#[test]
fn each_network_has_its_own_vni_and_each_endpoint_its_own_vtep() {
    let mut node = Node::new();
    let packet = to(D).udp(1, 2);
    let run = node.from_endpoint(A, &packet.build());
    let vtep = netagent_tests::world::ELSEWHERE;
    run.redirected(Counter::Encapsulated, &carried(&packet, A, (D, vtep), 0, &run));
    let packet = ethernet(E.mac, F.mac).ipv4(E.ip, F.ip).udp(1, 2);
    let run = node.from_endpoint(E, &packet.build());
    run.redirected(Counter::Encapsulated, &carried(&packet, E, (F, THERE), 0, &run));
}

#[test]
fn the_tunnel_carries_congestion_bits_but_not_the_class_of_service() {
    let mut node = Node::new();
    for tos in 0..=255 {
        let packet = to(C).tos(tos).udp(1, 2);
        let run = node.from_endpoint(A, &packet.build());
        let expected = carried(&packet, A, (C, THERE), tos & 3, &run);
        run.redirected(Counter::Encapsulated, &expected);
    }
}

#[test]
fn the_tunnel_header_is_right_for_every_address_of_the_underlay() {
    let mut node = Node::new();
    let packet = to(C).udp(1, 2);
    // Of the sums of all words that the header can have, these are folded in another way.
    let bits = (0..=32).map(|bit| (1_u64 << bit).wrapping_sub(1) as u32);
    let carries = (0..=0xffff).filter(|low| {
        let header = ethernet(A.mac, C.mac).ipv4(HERE, Ipv4Addr::from(*low)).udp(1, 2).vxlan(1);
        let header = header.ethernet(A.mac, C.mac).payload_of(28).build();
        let words = header[14..34].chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
        let sum: u32 = words.enumerate().filter(|(i, _)| *i != 5).map(|(_, w)| u32::from(w)).sum();
        (sum & 0xffff) + (sum >> 16) > 0xffff
    });
    let mut seen = 0;
    for vtep in bits.chain(carries).map(Ipv4Addr::from) {
        node.object().set_endpoint(BLUE, C.ip, Endpoint::remote(C.mac, vtep));
        let run = node.from_endpoint(A, &packet.build());
        run.redirected(Counter::Encapsulated, &carried(&packet, A, (C, vtep), 0, &run));
        seen += 1;
    }
    assert!(seen > 33, "no address makes a second carry");
}

#[test]
fn the_source_port_of_the_tunnel_is_the_flows() {
    let mut node = Node::new();
    let mut port = |source, len| {
        let run = node.from_endpoint(A, &to(C).udp(source, 2).payload_of(len).build());
        assert_eq!(run.counter(), Counter::Encapsulated);
        [run.output[34], run.output[35]]
    };
    let ports: Vec<_> = (1..=100).map(|source| port(source, 10)).collect();
    assert_eq!(ports, (1..=100).map(|source| port(source, 700)).collect::<Vec<_>>());
    let different: std::collections::BTreeSet<_> = ports.iter().collect();
    assert!(different.len() > 80, "100 flows share {} ports", different.len());
}

#[test]
fn what_is_too_big_is_answered() {
    let mut node = Node::new();
    for host in [B, C] {
        // Some of these may be fragmented; they are answered too.
        for fragment in [DONT_FRAGMENT, 0, MORE_FRAGMENTS] {
            let packet = to(host).fragment(fragment).udp(1000, 2000).payload_of(MTU - 28 + 1);
            node.from_endpoint(A, &packet.build())
                .redirected(Counter::FragNeeded, &fragmentation_needed(&packet));
        }
        let options = to(host).options(&[1; 40]).tcp(1, 2).payload_of(MTU);
        node.from_endpoint(A, &options.build())
            .redirected(Counter::FragNeeded, &fragmentation_needed(&options));
    }
}

#[test]
fn bytes_behind_the_packet_count_as_its_own() {
    let mut node = Node::new();
    let mut frame = to(C).udp(1, 2).payload_of(MTU - 28);
    let mut bytes = frame.build();
    bytes.push(0);
    frame = ethernet(A.mac, C.mac).ethertype(0x0800).payload(&bytes[14..]);
    node.from_endpoint(A, &bytes).redirected(Counter::FragNeeded, &fragmentation_needed(&frame));
}

#[test]
fn a_later_fragment_that_is_too_big_is_not_answered() {
    let packet = to(C).fragment(MORE_FRAGMENTS | 10).payload_of(MTU);
    Node::new().from_endpoint(A, &packet.build()).dropped(Counter::DropTooBig);
}

#[test]
fn each_segment_of_a_gso_packet_has_to_fit() {
    let mut node = Node::new();
    let tcp = to(B).tcp(1, 2).payload_of(3000);
    let udp = to(B).udp(1, 2).payload_of(3000);
    for (packet, header) in [(tcp, 40), (udp, 28)] {
        let frame = packet.build();
        let gso = |size: usize| Gso { size: size as u32, segments: 3 };
        node.gso_from_endpoint(A, &frame, gso(MTU - header))
            .redirected(Counter::DeliveredLocally, &frame);
        node.gso_from_endpoint(A, &frame, gso(MTU - header + 1))
            .redirected(Counter::FragNeeded, &fragmentation_needed(&packet));
    }
}

#[test]
fn a_gso_packet_may_be_too_long_for_its_length_field() {
    let mut node = Node::new();
    let mut frame = to(B).tcp(1, 2).payload_of(3000).build();
    frame[16..18].fill(0);
    let gso = Gso { size: 1000, segments: 4 };
    node.gso_from_endpoint(A, &frame, gso).redirected(Counter::DeliveredLocally, &frame);
    // But not for its header.
    frame[14] = 0x4f;
    frame[23] = 99;
    frame.truncate(14 + 59);
    node.gso_from_endpoint(A, &frame, gso).dropped(Counter::DropMalformed);
}

/// TEST_RUN's GSO packets are of no kind, so the kernel does not let a program put them
/// into a tunnel. That stands for all that it refuses.
#[test]
fn what_cannot_be_pushed_here_is_left_to_the_vxlan_device() {
    let packet = ethernet(A.mac, BROADCAST).ipv4(A.ip, C.ip).tcp(1, 2).payload_of(3000);
    let mut expected = packet.build();
    expected[..6].copy_from_slice(&C.mac);
    Node::new()
        .gso_from_endpoint(A, &packet.build(), Gso { size: 1000, segments: 4 })
        .redirected(Counter::PassedToVxlan, &expected);
}

#[test]
fn the_outside_is_the_hosts_business() {
    let mut node = Node::new();
    for packet in [
        beyond(OUTSIDE).udp(1, 53).payload_of(30),
        beyond(OUTSIDE).tcp(1, VXLAN_PORT).payload_of(30),
        beyond(OUTSIDE).icmp(8, 0, [0; 4]),
        beyond(OUTSIDE).udp(VXLAN_PORT, 1),
        beyond("192.168.50.12").tcp(1, 22),
        beyond("169.254.169.254").tcp(1, 80),
        // The host knows the way's MTU better.
        beyond(OUTSIDE).udp(1, 53).payload_of(2000),
    ] {
        node.from_endpoint(A, &packet.build()).passed(Counter::PassedToHost);
    }
}

#[test]
fn the_outside_is_behind_the_gateway_and_nobody_else() {
    let mut node = Node::new();
    for mac in [B.mac, C.mac, BROADCAST] {
        let frame = ethernet(A.mac, mac).ipv4(A.ip, OUTSIDE).udp(1, 53).build();
        node.from_endpoint(A, &frame).dropped(Counter::DropUnknownDestination);
    }
}

#[test]
fn no_packet_leaves_its_network_by_way_of_the_host() {
    let mut node = Node::new();
    let send =
        |node: &mut Node, address: &str| node.from_endpoint(A, &beyond(address).udp(1, 2).build());
    send(&mut node, "10.0.9.77").dropped(Counter::DropUnknownDestination);
    send(&mut node, "10.0.9.255").dropped(Counter::DropUnknownDestination);
    send(&mut node, "10.0.10.2").dropped(Counter::DropOtherNetwork);
    send(&mut node, "10.0.10.1").dropped(Counter::DropOtherNetwork);
    send(&mut node, "10.0.11.2").dropped(Counter::DropOtherNetwork);
    send(&mut node, "10.0.12.2").passed(Counter::PassedToHost);
}

#[test]
fn the_longest_subnet_wins() {
    let mut node = Node::new();
    node.object().set_subnet(Ipv4Addr::new(10, 0, 0, 0), 8, 77);
    node.from_endpoint(A, &beyond("10.0.9.77").udp(1, 2).build())
        .dropped(Counter::DropUnknownDestination);
    node.from_endpoint(A, &beyond("10.200.0.1").udp(1, 2).build())
        .dropped(Counter::DropOtherNetwork);
}

#[test]
fn nothing_leaves_an_internal_network() {
    let mut node = Node::new();
    let start = |address: &str| ethernet(G.mac, GATEWAY_MAC).ipv4(G.ip, address).udp(1, 2);
    node.from_endpoint(G, &start(OUTSIDE).build()).dropped(Counter::DropInternal);
    node.from_endpoint(G, &start("192.168.50.11").build()).dropped(Counter::DropInternal);
    node.from_endpoint(G, &start("10.0.9.2").build()).dropped(Counter::DropOtherNetwork);
}

#[test]
fn no_workload_speaks_vxlan_to_the_underlay() {
    let mut node = Node::new();
    for packet in [
        beyond("192.168.50.12").udp(1, VXLAN_PORT).vxlan(BLUE).payload_of(60),
        beyond("192.168.50.11").udp(1, VXLAN_PORT),
        beyond(OUTSIDE).options(&[1; 8]).udp(1, VXLAN_PORT).payload_of(60),
        beyond(OUTSIDE).fragment(MORE_FRAGMENTS).udp(1, VXLAN_PORT),
    ] {
        node.from_endpoint(A, &packet.build()).dropped(Counter::DropForgedTunnel);
    }
    // Without the first fragment it is nothing, whatever it begins with.
    let later = beyond(OUTSIDE).fragment(1).protocol(17).payload([0, 1, 0x12, 0xb5, 0, 0, 0, 0]);
    node.from_endpoint(A, &later.build()).passed(Counter::PassedToHost);
    // Too short to have ports.
    let short = beyond(OUTSIDE).protocol(17).payload([0, 1, 0x12]);
    node.from_endpoint(A, &short.build()).dropped(Counter::DropMalformed);
}

#[test]
fn a_node_that_does_not_know_itself_sends_nothing_into_the_tunnel() {
    let mut node = Node::new();
    node.object().set_config(netagent_common::Config::default());
    node.from_endpoint(A, &to(C).udp(1, 2).build()).dropped(Counter::DropRefused);
    node.from_endpoint(A, &beyond(OUTSIDE).udp(1, 2).build()).dropped(Counter::DropRefused);
    node.from_endpoint(A, &beyond(OUTSIDE).tcp(1, 2).build()).passed(Counter::PassedToHost);
}
