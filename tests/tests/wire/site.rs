//! Nodes as the datapath needs them, made by hand: programs attached, maps filled, no
//! agent. Takes down what it made.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType};
use netagent_common::{
    Config, Count, Counter, Endpoint, GATEWAY_MAC, Network, Peer, Port, Published, Scheduler,
    Service, Slot, SlotKey, VXLAN_PORT, programs,
};
use netagent_tests::object::{Object, moved};
use netagent_tests::world::{A, B, BLUE, C, HERE, Host, MTU, THERE, VIP};
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use xtask::command::CommandExt;
use xtask::node::{Datapath, Shell};
use xtask::playground::{CLIENT, Playground, Topology};

/// A host on the wire whose tunnel is a vxlan device and nothing more.
pub(crate) const PLAIN: Host =
    Host { vni: BLUE, ip: Ipv4Addr::new(10, 0, 9, 6), mac: [0x02, 0x42, 0x0a, 0, 9, 6] };

/// Longest that a test waits for a packet that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// It would ask for routers and groups now and then: packets that no test sends.
const NO_IPV6: [&str; 3] = ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"];

/// The two nodes and their workloads.
pub(crate) struct Site {
    // Before the playground: it holds the namespaces that these are in.
    pub(crate) a: Workload,
    pub(crate) b: Workload,
    pub(crate) c: Workload,
    pub(crate) here: Node,
    pub(crate) there: Node,
    pub(crate) playground: Playground,
}

impl Site {
    pub(crate) fn new(name: &str) -> Self {
        let topology = Topology::test(name, &[Datapath::Ebpf; 2]);
        let playground = Playground::hosts(&topology).unwrap();
        for place in ["n1", "n2", "client", "wire"] {
            playground.shell(place).unwrap().read(&NO_IPV6).unwrap();
        }
        let mut here = Node::new(playground.node(1), HERE, THERE);
        let mut there = Node::new(playground.node(2), THERE, HERE);
        let workload = |node: &mut Node, host: Host, link: &str| {
            let workload = Workload::new(&topology.prefix, host);
            node.attach(&workload, link);
            workload
        };
        let a = workload(&mut here, A, "na-a");
        let b = workload(&mut here, B, "na-b");
        let c = workload(&mut there, C, "na-c");
        for host in [A, B] {
            there.set_remote(host, HERE);
        }
        here.set_remote(C, THERE);
        for node in [&mut here, &mut there] {
            node.object.set_peer(CLIENT, Peer::default());
            node.set_remote(PLAIN, CLIENT);
        }
        Self { a, b, c, here, there, playground }
    }

    /// Makes a service at [`VIP`] with these backends.
    pub(crate) fn serve(&mut self, backends: &[Host]) {
        for node in [&mut self.here, &mut self.there] {
            node.object.set_endpoint(BLUE, VIP.ip, Endpoint::vip(VIP.mac));
            let slots = backends.len() as u32;
            let service = Service::new(Scheduler::Turn, slots, 0, 3600);
            node.object.set_service(BLUE, VIP.ip, service);
            for (slot, host) in (0..).zip(backends) {
                let key = SlotKey::new(BLUE, VIP.ip.octets(), 0, slot);
                node.object.set_slot(key, Slot { ip: host.ip.octets(), weight: 1 });
                node.set_backend(*host);
            }
        }
    }

    /// Publishes port 8080 of n1, there on 127.0.0.1 too, as port 80 of the service.
    pub(crate) fn publish(&mut self) {
        let n1 = self.playground.node(1);
        for key in ["route_localnet", "accept_local"] {
            n1.read(&["sysctl", "-qw", &format!("net.ipv4.conf.lo.{key}=1")]).unwrap();
        }
        n1.read(&["ip", "link", "set", "lo", "up"]).unwrap();
        let object = &mut self.here.object;
        inside(&self.here.netns, || attach(object, programs::FROM_HOST, "lo"));
        for ip in [HERE, Ipv4Addr::LOCALHOST] {
            for protocol in [6, 17] {
                let published = Published::new(BLUE, VIP.ip, 80, 0, MTU as u32);
                object.publish(ip, protocol, 8080, published);
            }
        }
    }

    /// Makes the client a VTEP as `ip` makes them, with an endpoint of its own.
    pub(crate) fn plain_vtep(&self, options: &[&str]) -> &xtask::node::Host {
        let client = self.playground.client();
        let run = |words: &str| {
            client.read(&words.split(' ').collect::<Vec<_>>()).unwrap();
        };
        run(&format!(
            "ip link add vx address {} mtu {MTU} type vxlan id {BLUE} dstport {VXLAN_PORT} \
             local {CLIENT} nolearning {}",
            mac(PLAIN.mac),
            options.join(" ")
        ));
        run(&format!("ip address add {}/24 dev vx", PLAIN.ip));
        run("ip link set vx up");
        // What it does not know goes to both nodes, as head-end replication has it.
        for vtep in [HERE, THERE] {
            run(&format!("bridge fdb append 00:00:00:00:00:00 dev vx dst {vtep}"));
        }
        for (host, vtep) in [(A, HERE), (B, HERE), (C, THERE)] {
            run(&format!("bridge fdb add {} dev vx dst {vtep}", mac(host.mac)));
        }
        client
    }

    /// Sets offloads (`tx off gso on ...`) of every interface on the way.
    pub(crate) fn set_offloads(&self, features: &str) {
        let set = |place: &dyn Shell, link: &str| {
            let words = ["ethtool", "-K", link].into_iter().chain(features.split(' '));
            place.read(&words.collect::<Vec<_>>()).unwrap();
        };
        for workload in [&self.a, &self.b, &self.c] {
            set(workload, "eth0");
        }
        for node in self.playground.nodes() {
            set(node, "eth0");
            set(self.playground.wire(), node.name());
        }
        for (number, links) in [(1, &["na-a", "na-b"][..]), (2, &["na-c"])] {
            for link in links {
                set(self.playground.node(number), link);
            }
        }
    }

    /// What the nodes' counters show has happened since `before`.
    pub(crate) fn since(&self, before: &[Vec<Count>; 2]) -> [Vec<(Counter, Count)>; 2] {
        let [here, there] = self.counters();
        [moved(&before[0], &here), moved(&before[1], &there)]
    }

    pub(crate) fn counters(&self) -> [Vec<Count>; 2] {
        [self.here.object.counters(), self.there.object.counters()]
    }
}

/// A node: its programs and maps.
pub(crate) struct Node {
    pub(crate) object: Object,
    netns: PathBuf,
    address: Ipv4Addr,
}

impl Node {
    fn new(node: &xtask::node::Node, address: Ipv4Addr, peer: Ipv4Addr) -> Self {
        let netns = node.host.netns_path();
        let vxlan = format!(
            "ip link add na-vxlan mtu {MTU} type vxlan external dstport {VXLAN_PORT} nolearning"
        );
        node.read(&vxlan.split(' ').collect::<Vec<_>>()).unwrap();
        node.read(&["ip", "link", "set", "na-vxlan", "up"]).unwrap();
        let mut object = Object::load();
        inside(&netns, || {
            let index = |name| if_nametoindex(name).unwrap();
            let (uplink, vxlan) = (index("eth0"), index("na-vxlan"));
            let config = Config::new(uplink, vxlan, address, VXLAN_PORT);
            // One of them knows its neighbours, the other asks the kernel's routes.
            let bits = if address == HERE { 24 } else { 32 };
            object.set_config(config.with_neighbours(bits));
            for (name, link) in
                [(programs::FROM_UPLINK, "eth0"), (programs::FROM_OVERLAY, "na-vxlan")]
            {
                attach(&mut object, name, link);
            }
        });
        object.set_peer(peer, Peer::default());
        let gateway = A.gateway().octets();
        object.set_network(BLUE, Network { gateway, mtu: MTU as u32 });
        object.set_subnet(A.gateway(), 24, BLUE);
        Self { object, netns, address }
    }

    /// Gives a workload its interface and makes it known here.
    fn attach(&mut self, workload: &Workload, link: &str) {
        let Host { vni, ip, mac: its_mac } = workload.host;
        let add = format!(
            "ip link add {link} mtu {MTU} address {} type veth peer name eth0 mtu {MTU} \
             address {} netns {}",
            mac(GATEWAY_MAC),
            mac(its_mac),
            workload.name
        );
        nsenter(&self.netns, &add.split(' ').collect::<Vec<_>>()).read().unwrap();
        nsenter(&self.netns, &["ip", "link", "set", link, "up"]).read().unwrap();
        workload.configure();
        let address = self.address;
        inside(&self.netns, || {
            let ifindex = if_nametoindex(link).unwrap();
            self.object.set_port(ifindex, workload.host.port(false));
            self.object.set_endpoint(vni, ip, Endpoint::local(its_mac, ifindex, address));
            attach(&mut self.object, programs::FROM_ENDPOINT, link);
        });
    }

    /// Makes an endpoint a backend of the service at [`VIP`].
    fn set_backend(&mut self, host: Host) {
        let (address, link) = match host.ip {
            ip if ip == A.ip => (HERE, "na-a"),
            ip if ip == B.ip => (HERE, "na-b"),
            _ => (THERE, "na-c"),
        };
        let endpoint = if address == self.address {
            let ifindex = inside(&self.netns, || if_nametoindex(link).unwrap());
            let port = Port { flags: Port::BACKEND, ..host.port(false) };
            self.object.set_port(ifindex, port);
            Endpoint::local(host.mac, ifindex, address)
        } else {
            Endpoint::remote(host.mac, address)
        };
        self.object.set_endpoint(BLUE, host.ip, endpoint.serving(VIP.ip, true));
    }

    fn set_remote(&mut self, host: Host, vtep: Ipv4Addr) {
        self.object.set_endpoint(host.vni, host.ip, Endpoint::remote(host.mac, vtep));
    }
}

/// Attaches a program to a link of this thread's namespace, by TCX or as a filter.
fn attach(object: &mut Object, program: &str, link: &str) {
    if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_err() {
        qdisc_add_clsact(link).unwrap();
    }
    object.program(program).attach(link, TcAttachType::Ingress).unwrap();
}

/// A network namespace with one interface.
pub(crate) struct Workload {
    pub(crate) host: Host,
    name: String,
}

impl Workload {
    fn new(prefix: &str, host: Host) -> Self {
        let name = format!("{prefix}{}", host.ip);
        Command::new("ip").args(["netns", "add", &name]).read().unwrap();
        Self { host, name }
    }

    fn configure(&self) {
        let Host { ip, .. } = self.host;
        let gateway = self.host.gateway();
        self.read(&NO_IPV6).unwrap();
        let script = format!(
            "ip address add {ip}/24 dev eth0 && \
             ip link set lo up && ip link set eth0 up && ip route add default via {gateway}"
        );
        self.read(&["sh", "-c", &script]).unwrap();
    }

    pub(crate) fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Whether a ping of as many bytes, IPv4 header included, came back, and what `ping` said.
    pub(crate) fn ping(&self, to: Ipv4Addr, bytes: usize, options: &str) -> (bool, String) {
        let line = format!("ping -n -c 2 -i 0.2 -W 2 -s {} {options} {to}", bytes - 28);
        let output = self.exec(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Runs there; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns(), run)
    }

    /// Packets with a wrong checksum that its stack has seen, over all protocols.
    pub(crate) fn checksum_errors(&self) -> u64 {
        let names = ["IcmpInCsumErrors", "TcpInCsumErrors", "UdpInCsumErrors"];
        let text = self.read(&["nstat", "-asz"]).unwrap();
        let value = |line: &str| {
            let (name, rest) = line.split_once(' ')?;
            names.contains(&name).then(|| rest.split_whitespace().next()?.parse::<u64>().ok())?
        };
        text.lines().filter_map(value).sum()
    }

    /// A TCP connection to another workload: this end, and the other.
    pub(crate) fn connect(&self, to: &Self, address: Ipv4Addr) -> (TcpStream, TcpStream) {
        let listener = to.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let address = SocketAddrV4::new(address, port).into();
        let sender = self.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        let (receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        (sender, receiver)
    }

    /// Sends `len` bytes to another workload over TCP, which must get exactly these.
    pub(crate) fn transfers(&self, to: &Self, address: Ipv4Addr, len: usize) {
        let (mut sender, mut receiver) = self.connect(to, address);
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut received = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sender.write_all(&sent).unwrap();
                drop(sender);
            });
            receiver.read_to_end(&mut received).unwrap();
        });
        assert!(sent == received, "{} of {len} bytes came, or other ones", received.len());
    }

    /// A UDP socket there.
    pub(crate) fn socket(&self) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

impl Shell for Workload {
    fn command(&self, words: &[&str]) -> Command {
        nsenter(&self.netns(), words)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Err(error) = Command::new("ip").args(["netns", "delete", &self.name]).read() {
            eprintln!("error: {error:#}");
        }
    }
}

fn nsenter(netns: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).arg("--").args(words);
    command
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs on a thread of its own in a network namespace.
pub(crate) fn inside<T: Send>(netns: &Path, run: impl FnOnce() -> T + Send) -> T {
    let netns = std::fs::File::open(netns).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
            run()
        });
        thread.join().expect("what runs there does not panic")
    })
}

/// Puts a frame on `eth0` of the calling thread's namespace as it is.
pub(crate) fn send_raw(frame: &[u8]) {
    send_from(&packet_socket(), frame);
}

/// The same, and of a frame longer than a page only the Ethernet header lies in the
/// packet's own memory.
pub(crate) fn send_in_pages(frame: &[u8]) {
    let socket = packet_socket();
    let on = 1_i32;
    // SAFETY: the option's value is an int, and the socket is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "the socket takes no header");
    // `struct virtio_net_hdr`: no offloads, and nothing said about the headers' length.
    let header = [0; 10];
    send_from(&socket, &[&header, frame].concat());
}

fn packet_socket() -> OwnedFd {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn send_from(socket: &OwnedFd, bytes: &[u8]) {
    let link = getifaddrs()
        .unwrap()
        .filter(|interface| interface.interface_name == "eth0")
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .expect("there is an eth0");
    let sent = sendto(socket.as_raw_fd(), bytes, &link, MsgFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}
