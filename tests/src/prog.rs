//! Runs a program of the datapath on one packet (BPF_PROG_TEST_RUN) and compares all
//! that it did: action, bytes, and which counters moved. What a redirect leads to is
//! not visible here; the tests on the wire show that.

use std::fmt::Write as _;
use std::process::Command;

use aya::TestRunOptions;
use aya::programs::TestRun;
use netagent_common::{Config, Count, Counter, Service, VXLAN_PORT, programs};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use xtask::command::CommandExt;

use crate::object::{Object, moved};
use crate::trampoline::Trampoline;
use crate::world::{self, A, B, E, G, Host, Links};

/// The longest frame that TEST_RUN takes: a page, less what the kernel needs around it.
pub const LONGEST: usize = 3400;

/// VXLAN UDP port of encrypted networks.
pub const ENCRYPTED_PORT: u16 = VXLAN_PORT + 1;

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Room for that and what is put in front of it.
const ROOM: usize = 4096;

/// Whether TEST_RUN takes the frame: not without its network header.
#[must_use]
pub fn is_runnable(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        None => return false,
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        Some(_) => 14,
    };
    (shortest..=LONGEST).contains(&frame.len())
}

/// What a program had done to the packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on (`TC_ACT_UNSPEC`).
    Pass,
    /// Dropped.
    Drop,
    /// Redirected.
    Redirect,
    /// None of these.
    Other(u32),
}

/// GSO as the context gives it; TEST_RUN knows no kind of GSO.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gso {
    /// Payload bytes of a segment.
    pub size: u32,
    /// Segments.
    pub segments: u32,
}

/// This node of the [`world`], with its programs.
pub struct Node {
    object: Object,
    trampoline: Trampoline,
    links: Links,
    config: Config,
}

impl Node {
    /// In a network namespace of the calling thread's own.
    ///
    /// # Panics
    /// If something cannot be set up.
    #[must_use]
    pub fn new() -> Self {
        let mut node = Self::unconfigured();
        world::fill(&mut node.object, &node.links);
        node
    }

    /// Before the agent has written any map.
    ///
    /// # Panics
    /// As [`Node::new`].
    #[must_use]
    pub fn unconfigured() -> Self {
        let mut object = Object::load();
        unshare(CloneFlags::CLONE_NEWNET).expect("root may have a network namespace of its own");
        let veth = |left: &str, right: &str| {
            let words = ["link", "add", "name", left, "type", "veth", "peer", "name", right];
            Command::new("ip").args(words).read().expect("a veth can be made");
            [left, right].map(|name| if_nametoindex(name).expect("it was just made"))
        };
        let ([a, b], [e, g]) = (veth("a", "b"), veth("e", "g"));
        let [uplink, vxlan] = veth("uplink", "vxlan");
        let [lb, _] = veth("lb", "lb0");
        let trampoline = Trampoline::new(&object.program_fd(programs::FROM_OVERLAY));
        let config = Config::new(uplink, vxlan, world::HERE, VXLAN_PORT);
        let links = Links { uplink, vxlan, lb, ports: [a, b, e, g] };
        Self { object, trampoline, links, config }
    }

    /// Its maps.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Makes a service at [`world::VIP`], see there.
    ///
    /// # Panics
    /// If a map takes no entry.
    pub fn serve(&mut self, service: Service, backends: &[Host]) {
        world::serve(&mut self.object, &self.links, service, backends);
    }

    /// Makes an endpoint a backend of it, or none, see [`world::set_backend`].
    ///
    /// # Panics
    /// If a map takes no entry.
    pub fn set_backend(&mut self, host: Host, eligible: Option<bool>) {
        world::set_backend(&mut self.object, &self.links, host, eligible);
    }

    /// Has IPVS schedule `port` of the service.
    ///
    /// # Panics
    /// If a map takes no entry.
    pub fn schedule(&mut self, protocol: u8, port: u16) {
        self.config = self.config.with_scheduler(self.links.lb);
        self.object.set_config(self.config);
        self.object.set_virtual(world::VIP.ip, protocol, port);
    }

    /// Has network `vni` encrypted, and carried by `device`.
    ///
    /// # Panics
    /// If a map takes no entry.
    pub fn encrypt(&mut self, vni: u32, device: u32) {
        self.config = self.config.with_encrypted(ENCRYPTED_PORT);
        self.object.set_config(self.config);
        self.object.set_encrypted(vni, device);
    }

    /// Its interfaces.
    #[must_use]
    pub fn links(&self) -> Links {
        self.links
    }

    /// `frame` leaves by the uplink.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn to_uplink(&mut self, frame: &[u8]) -> Run {
        let context = Context { ifindex: self.links.uplink, ..Context::default() };
        self.run(programs::TO_UPLINK, frame, context)
    }

    /// An endpoint of this node sends `frame`.
    ///
    /// # Panics
    /// If `host` is not one of A, B, E and G, or the program cannot be run.
    pub fn from_endpoint(&mut self, host: Host, frame: &[u8]) -> Run {
        self.gso_from_endpoint(host, frame, Gso::default())
    }

    /// An endpoint of this node sends `frame`, which stands for several.
    ///
    /// # Panics
    /// As [`Node::from_endpoint`].
    pub fn gso_from_endpoint(&mut self, host: Host, frame: &[u8], gso: Gso) -> Run {
        let number = [A, B, E, G].iter().position(|local| local.ip == host.ip);
        let ifindex = self.links.ports[number.expect("the sender is on this node")];
        self.run(programs::FROM_ENDPOINT, frame, Context { ifindex, gso, ..Context::default() })
    }

    /// `frame` comes in at an interface that is not in `PORTS`.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_unknown_port(&mut self, frame: &[u8]) -> Run {
        let context = Context { ifindex: self.links.uplink, ..Context::default() };
        self.run(programs::FROM_ENDPOINT, frame, context)
    }

    /// `frame` comes in at the uplink.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_uplink(&mut self, frame: &[u8]) -> Run {
        self.gso_from_uplink(frame, Gso::default())
    }

    /// `frame`, which stands for several, comes in at the uplink.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn gso_from_uplink(&mut self, frame: &[u8], gso: Gso) -> Run {
        let context = Context { ifindex: self.links.uplink, gso, ..Context::default() };
        self.run(programs::FROM_UPLINK, frame, context)
    }

    /// A client of the host's own sends `frame`.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_host(&mut self, frame: &[u8]) -> Run {
        let context = Context { ifindex: LOOPBACK, ..Context::default() };
        self.run(programs::FROM_HOST, frame, context)
    }

    /// IPVS sends `frame` out of its namespace.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_lb(&mut self, frame: &[u8]) -> Run {
        let context = Context { ifindex: self.links.lb, ..Context::default() };
        self.run(programs::FROM_LB, frame, context)
    }

    /// The vxlan device took `frame` out of a packet of `vtep` for network `vni`.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_overlay(&mut self, vtep: std::net::Ipv4Addr, vni: u32, frame: &[u8]) -> Run {
        let tunnel = [vni, u32::from(vtep)];
        let context = Context { ifindex: self.links.vxlan, tunnel, ..Context::default() };
        let before = self.object.counters();
        let (action, output) = self.trampoline.run(frame, &context.bytes(), ROOM);
        self.result(action, frame, output, &before)
    }

    /// `frame` comes in at the vxlan device without a word about its tunnel.
    ///
    /// # Panics
    /// If the program cannot be run.
    pub fn from_overlay_untunnelled(&mut self, frame: &[u8]) -> Run {
        let context = Context { ifindex: self.links.vxlan, ..Context::default() };
        self.run(programs::FROM_OVERLAY, frame, context)
    }

    fn run(&mut self, program: &str, frame: &[u8], context: Context) -> Run {
        let before = self.object.counters();
        let mut output = vec![0; ROOM];
        let result = self
            .object
            .program(program)
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut output),
                ctx_in: Some(&context.bytes()),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("cannot run {program}: {error:?}"));
        output.truncate(result.data_size_out as usize);
        self.result(result.return_value, frame, output, &before)
    }

    fn result(&self, action: u32, input: &[u8], output: Vec<u8>, before: &[Count]) -> Run {
        let action = match action.cast_signed() {
            -1 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            _ => Action::Other(action),
        };
        let moved = moved(before, &self.object.counters());
        Run { action, input: input.to_vec(), output, moved }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields of `struct __sk_buff` (linux/bpf.h) that a run is given.
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    ifindex: u32,
    /// In `cb`, for the trampoline.
    tunnel: [u32; 2],
    gso: Gso,
}

impl Context {
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        put(40, self.ifindex);
        put(48, self.tunnel[0]);
        put(52, self.tunnel[1]);
        put(164, self.gso.segments);
        put(176, self.gso.size);
        bytes
    }
}

/// What became of a packet.
#[derive(Debug)]
pub struct Run {
    /// What the program returned.
    pub action: Action,
    /// The packet before.
    pub input: Vec<u8>,
    /// The packet after.
    pub output: Vec<u8>,
    /// The counters that moved.
    pub moved: Vec<(Counter, Count)>,
}

impl Run {
    /// Dropped for this reason and no other.
    ///
    /// # Panics
    /// If not, saying what happened instead.
    #[track_caller]
    pub fn dropped(&self, reason: Counter) {
        self.check(Action::Drop, reason, None);
    }

    /// Passed, and not a bit of it changed.
    ///
    /// # Panics
    /// As [`Run::dropped`].
    #[track_caller]
    pub fn passed(&self, counter: Counter) {
        self.check(Action::Pass, counter, Some(&self.input));
    }

    /// Redirected, and now exactly `expected`.
    ///
    /// # Panics
    /// As [`Run::dropped`].
    #[track_caller]
    pub fn redirected(&self, counter: Counter, expected: &[u8]) {
        self.check(Action::Redirect, counter, Some(expected));
    }

    /// The one counter that moved.
    ///
    /// # Panics
    /// If none or several did, or it did not count this packet once with all its bytes.
    #[track_caller]
    #[must_use]
    pub fn counter(&self) -> Counter {
        match self.moved[..] {
            [(counter, Count { packets: 1, bytes })] if bytes == self.input.len() as u64 => counter,
            _ => panic!("not one counter by one packet of {} bytes:\n{self}", self.input.len()),
        }
    }

    #[track_caller]
    fn check(&self, action: Action, counter: Counter, expected: Option<&[u8]>) {
        assert!(
            self.action == action && self.counter() == counter,
            "expected {action:?}, {counter:?}:\n{self}"
        );
        if let Some(expected) = expected
            && expected != self.output
        {
            panic!("{counter:?}, but other bytes:\n{}", difference(expected, &self.output));
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "action {:?}", self.action)?;
        for (counter, count) in &self.moved {
            writeln!(f, "moved  {counter:?} by {} packets, {} bytes", count.packets, count.bytes)?;
        }
        write!(f, "{}", difference(&self.input, &self.output))
    }
}

/// Both, 16 bytes a line, with a mark under what differs.
fn difference(expected: &[u8], actual: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x} ")).collect::<String>();
    let line = |bytes: &[u8], at: usize| {
        bytes.get(at..bytes.len().min(at + 16)).unwrap_or_default().to_vec()
    };
    let mut text =
        format!("expected or before: {} bytes, after: {}\n", expected.len(), actual.len());
    for at in (0..expected.len().max(actual.len())).step_by(16) {
        let (before, after) = (line(expected, at), line(actual, at));
        let _ = writeln!(text, "{at:5}  {}", hex(&before));
        if before != after {
            let marks: String = (0..16)
                .map(|i| if before.get(i) == after.get(i) { "   " } else { "^^ " })
                .collect();
            let _ = writeln!(text, "     > {}\n       {}", hex(&after), marks.trim_end());
        }
    }
    text
}
