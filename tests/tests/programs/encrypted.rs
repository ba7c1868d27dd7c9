//! Encrypted networks: by which device they go, and that nothing of them is let in or out in
//! clear. BLUE is encrypted here; RED is not.

use std::net::Ipv4Addr;

use netagent_common::{Counter, GATEWAY_MAC, Scheduler, Service, VXLAN_PORT};
use netagent_tests::packet::{Packet, ethernet};
use netagent_tests::prog::{Action, ENCRYPTED_PORT, Node};
use netagent_tests::world::{A, B, BLUE, C, E, F, HERE, RED, STRANGER, THERE, VIP};

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
