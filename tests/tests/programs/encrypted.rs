//! Encrypted networks: by which device they go, and that nothing of them is let in or out in
//! clear. BLUE is encrypted here; RED is not.

use std::net::Ipv4Addr;

use netagent_common::{
    Counter, ESP_IN_UDP_PORT, GATEWAY_MAC, Peer, Scheduler, Service, VXLAN_PORT,
};
use netagent_tests::packet::{Packet, checksum, ethernet};
use netagent_tests::prog::{Action, ENCRYPTED_PORT, Gso, Node};
use netagent_tests::world::{A, B, BLUE, C, E, ELSEWHERE, F, HERE, RED, STRANGER, THERE, VIP};

use crate::{FLOW, ROUTER, UPLINK, inner, mesh, of_every_protocol};

/// A node whose vxlan device carries BLUE encrypted.
fn node() -> Node {
    let mut node = Node::new();
    let device = node.links().vxlan;
    node.encrypt(BLUE, device);
    node
}

/// Of one backend.
fn service() -> Service {
    Service::new(Scheduler::Turn, 1, 0, 3600)
}

/// A UDP packet on the underlay.
fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Packet {
    ethernet(ROUTER, UPLINK).ipv4(from, to).udp_without_checksum(FLOW, port)
}

/// VXLAN of a packet from C to A.
fn vxlan(from: Ipv4Addr, port: u16) -> Packet {
    udp(from, HERE, port).vxlan(BLUE).ethernet(C.mac, A.mac).ipv4(C.ip, A.ip).udp(1, 2)
}

#[test]
fn what_is_to_be_encrypted_goes_by_its_device() {
    let mut node = node();
    let frame = ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).udp(1, 2).payload_of(77).build();
    node.from_endpoint(A, &frame).redirected(Counter::Encrypted, &frame);
    // On this node it meets no wire.
    let near = ethernet(A.mac, B.mac).ipv4(A.ip, B.ip).udp(1, 2).build();
    node.from_endpoint(A, &near).redirected(Counter::DeliveredLocally, &near);
    let other = ethernet(E.mac, F.mac).ipv4(E.ip, F.ip).udp(1, 2).build();
    assert_eq!(node.from_endpoint(E, &other).counter(), Counter::Encapsulated);
}

#[test]
fn so_does_what_is_for_a_service() {
    let mut node = node();
    node.serve(service(), &[C]);
    let frame = ethernet(A.mac, VIP.mac).ipv4(A.ip, VIP.ip).tcp(1, 80).flags(2).build();
    let run = node.from_endpoint(A, &frame);
    assert_eq!((run.action, run.counter()), (Action::Redirect, Counter::Encrypted), "{run}");
}

/// A published port of this node, whose service is on an encrypted network: both ways between
/// the nodes are encrypted, and what IPVS has chosen is, too.
#[test]
fn so_does_what_came_in_by_a_published_port() {
    let mut node = mesh::node(&[C]);
    let device = node.links().vxlan;
    node.encrypt(BLUE, device);
    for call in of_every_protocol(&mesh::call(), 1000, 8080) {
        let run = node.from_uplink(&call.build());
        assert_eq!((run.action, run.counter()), (Action::Redirect, Counter::Encrypted), "{run}");
    }
    // As this node's own program.
    let own = ethernet(mesh::NO_MAC, mesh::NO_MAC).ipv4(mesh::LOCALHOST, mesh::LOCALHOST);
    let run = node.from_host(&own.tcp(1000, 8080).flags(2).build());
    assert_eq!((run.action, run.counter()), (Action::Redirect, Counter::Encrypted), "{run}");
    let frame = ethernet(C.mac, GATEWAY_MAC).ipv4(VIP.ip, mesh::CLIENT).udp(80, 1000).build();
    assert_eq!(node.from_overlay(THERE, BLUE, &frame).counter(), Counter::LeftMesh);
    node.encrypt(BLUE, 0);
    for call in of_every_protocol(&mesh::call(), 1001, 8080) {
        node.from_uplink(&call.build()).dropped(Counter::DropCleartextOut);
    }
}

#[test]
fn so_does_the_answer_of_a_backend_here() {
    let mut node = node();
    node.serve(service(), &[B]);
    for (client, mac) in [(mesh::CLIENT, GATEWAY_MAC), (C.ip, C.mac)] {
        let call = ethernet(mac, B.mac).ipv4(client, VIP.ip).udp(1000, 80).build();
        assert_eq!(
            node.from_overlay(THERE, BLUE, &call).counter(),
            Counter::DeliveredFromVxlan,
            "{client}"
        );
        let answer = ethernet(B.mac, mac).ipv4(B.ip, client).udp(80, 1000).build();
        let run = node.from_endpoint(B, &answer);
        assert_eq!((run.action, run.counter()), (Action::Redirect, Counter::Encrypted), "{run}");
    }
}

#[test]
fn so_does_what_ipvs_has_scheduled() {
    let mut node = node();
    node.serve(service(), &[C]);
    node.schedule(6, 80);
    let frame = ethernet([2; 6], C.mac).ipv4(A.ip, VIP.ip).tcp(1000, 80).flags(2).build();
    let run = node.from_lb(&frame);
    assert_eq!((run.action, run.counter()), (Action::Redirect, Counter::Encrypted), "{run}");
}

#[test]
fn without_a_device_nothing_leaves() {
    let mut node = node();
    node.encrypt(BLUE, 0);
    let frame = ethernet(A.mac, C.mac).ipv4(A.ip, C.ip).udp(1, 2).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropCleartextOut);
    node.serve(service(), &[C]);
    let frame = ethernet(A.mac, VIP.mac).ipv4(A.ip, VIP.ip).tcp(1, 80).flags(2).build();
    node.from_endpoint(A, &frame).dropped(Counter::DropCleartextOut);
}

#[test]
fn nothing_comes_in_clear() {
    let mut node = node();
    for (packet, reason) in [
        (vxlan(THERE, VXLAN_PORT), Counter::DropCleartextIn),
        (vxlan(THERE, ENCRYPTED_PORT), Counter::DropCleartextIn),
        (udp(THERE, HERE, ENCRYPTED_PORT).payload_of(100), Counter::DropCleartextIn),
        (vxlan(STRANGER, VXLAN_PORT), Counter::DropNotMember),
        (vxlan(STRANGER, ENCRYPTED_PORT), Counter::DropNotMember),
    ] {
        node.from_uplink(&packet.build()).dropped(reason);
    }
    // The others are as they were.
    let frame = inner(F, E).udp(1, 2).build();
    assert_eq!(node.from_uplink(&frame).counter(), Counter::Decapsulated);
    let esp = ethernet(ROUTER, UPLINK).ipv4(THERE, HERE).protocol(50).payload_of(100).build();
    node.from_uplink(&esp).passed(Counter::PassedAtUplink);
}

#[test]
fn nor_by_the_device_of_others() {
    let mut node = node();
    let frame = ethernet(C.mac, A.mac).ipv4(C.ip, A.ip).udp(1, 2).build();
    node.from_overlay(THERE, BLUE, &frame).redirected(Counter::DeliveredFromVxlan, &frame);
    let uplink = node.links().uplink;
    node.encrypt(BLUE, uplink);
    node.from_overlay(THERE, BLUE, &frame).dropped(Counter::DropCleartextIn);
    let plain = ethernet(F.mac, E.mac).ipv4(F.ip, E.ip).udp(1, 2).build();
    node.from_overlay(THERE, RED, &plain).redirected(Counter::DeliveredFromVxlan, &plain);
}

/// What begins with an index and a sequence number, and is as long as told.
fn esp(len: usize) -> Vec<u8> {
    (0..len).map(|byte| (byte % 251) as u8 + 1).collect()
}

/// The same packet without the UDP header, whatever port the NAT chose for its sender.
#[test]
fn esp_is_taken_out_of_udp() {
    let mut node = node();
    node.object().set_peer(THERE, Peer::new(true));
    let ip = |from| ethernet(ROUTER, UPLINK).ipv4(from, HERE).id(0xbeef).tos(0x2e).fragment(0x4000);
    for (source, len) in [(ESP_IN_UDP_PORT, 100), (61_001, 101), (1, 8), (FLOW, 1472)] {
        let frame =
            ip(THERE).udp_without_checksum(source, ESP_IN_UDP_PORT).payload(esp(len)).build();
        let run = node.from_uplink(&frame);
        assert_eq!((run.action, run.counter()), (Action::Pass, Counter::TakenOutOfUdp), "{run}");
        let expected = ip(THERE).protocol(50).payload(esp(len)).build();
        assert_eq!(run.output, expected, "{len} bytes from port {source}: {run}");
    }
    // A header that was damaged on the way is so still, for the stack to see.
    let mut frame = ip(THERE).udp(1, ESP_IN_UDP_PORT).payload(esp(100)).build();
    frame[14 + 10] ^= 0x40;
    let run = node.from_uplink(&frame);
    assert_eq!(run.counter(), Counter::TakenOutOfUdp);
    assert_ne!(checksum(&[&run.output[14..34]]), 0, "{run}");
}

/// Others may use that port, for IKE above all: of that nothing is touched.
#[test]
fn what_else_comes_to_that_port_is_left_alone() {
    let mut node = node();
    node.object().set_peer(THERE, Peer::new(true));
    let from = |from| udp(from, HERE, ESP_IN_UDP_PORT);
    let ike = [&[0; 4][..], &esp(96)].concat();
    let with_options = ethernet(ROUTER, UPLINK).ipv4(THERE, HERE).options(&[1; 8]);
    for packet in [
        from(STRANGER).payload(esp(100)),
        // A member between which and this node there is no NAT.
        from(ELSEWHERE).payload(esp(100)),
        from(THERE).payload(ike),
        // A keepalive (RFC 3948, 2.3), and what is too short to be either.
        from(THERE).payload([0xff]),
        from(THERE).payload(esp(3)),
        ethernet(ROUTER, UPLINK).ipv4(THERE, HERE).fragment(0x2000).udp(1, ESP_IN_UDP_PORT),
        with_options.udp(1, ESP_IN_UDP_PORT).payload(esp(100)),
        udp(THERE, STRANGER, ESP_IN_UDP_PORT).payload(esp(100)),
        ethernet(ROUTER, UPLINK).ipv4(THERE, HERE).tcp(1, ESP_IN_UDP_PORT).payload(esp(100)),
    ] {
        node.from_uplink(&packet.build()).passed(Counter::PassedAtUplink);
    }
    // The same keepalive as an Ethernet device sends it.
    let mut keepalive = from(THERE).payload([0xff]).build();
    keepalive.resize(60, 0);
    node.from_uplink(&keepalive).passed(Counter::PassedAtUplink);
    let frame = from(THERE).payload(esp(1000)).build();
    let gso = Gso { size: 500, segments: 2 };
    node.gso_from_uplink(&frame, gso).passed(Counter::PassedAtUplink);
    // Where nothing is encrypted, the port means nothing.
    let mut node = Node::new();
    node.object().set_peer(THERE, Peer::new(true));
    node.from_uplink(&frame).passed(Counter::PassedAtUplink);
}

#[test]
fn nothing_leaves_in_clear() {
    let mut node = node();
    let leaves = |packet: Packet| packet.vxlan(BLUE).payload_of(60).build();
    node.to_uplink(&leaves(udp(HERE, THERE, ENCRYPTED_PORT))).dropped(Counter::DropCleartextOut);
    let options = ethernet(UPLINK, ROUTER).ipv4(HERE, THERE).options(&[1; 8]);
    node.to_uplink(&options.udp(1, ENCRYPTED_PORT).build()).dropped(Counter::DropCleartextOut);
    for packet in [
        leaves(udp(HERE, THERE, VXLAN_PORT)),
        // To somebody who is no member it is nothing of ours.
        leaves(udp(HERE, STRANGER, ENCRYPTED_PORT)),
        ethernet(UPLINK, ROUTER).ipv4(HERE, THERE).protocol(50).payload_of(100).build(),
        udp(HERE, THERE, ESP_IN_UDP_PORT).payload(esp(100)).build(),
        ethernet(UPLINK, ROUTER).ipv4(HERE, THERE).tcp(1, ENCRYPTED_PORT).build(),
        ethernet(UPLINK, ROUTER).ethertype(0x86dd).payload_of(100).build(),
    ] {
        node.to_uplink(&packet).passed(Counter::PassedOut);
    }
}

#[test]
fn a_workload_cannot_send_for_that_port_itself() {
    let frame = ethernet(A.mac, GATEWAY_MAC).ipv4(A.ip, THERE).udp(1, ENCRYPTED_PORT).build();
    node().from_endpoint(A, &frame).dropped(Counter::DropForgedTunnel);
    let run = Node::new().from_endpoint(A, &frame);
    assert_eq!(run.counter(), Counter::PassedToHost, "where nothing is encrypted it is free");
}
