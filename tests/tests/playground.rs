//! The playground itself: its wire carries, and nothing of it stays behind.
//!
//! ```text
//!        wire (gateway, outside)
//!      ┌──────┴──┬─────────┐
//!     n1        n2       client
//! ```

use std::process::{Command, Stdio};
use std::time::Duration;

use xtask::command::CommandExt;
use xtask::node::{Datapath, Shell};
use xtask::playground::{CLIENT, OUTSIDE, Playground, Topology};
use xtask::process::Process;
use xtask::wait::eventually;

const TWO: [Datapath; 2] = [Datapath::Ebpf, Datapath::Kernel];

fn namespaces(prefix: &str) -> Vec<String> {
    let all = Command::new("ip").args(["netns", "list"]).read().expect("ip lists namespaces");
    all.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn hosts_reach_each_other_and_the_outside() {
    let playground = Playground::hosts(&Topology::test("wire", &TWO)).unwrap();
    let second = playground.node(2).address.to_string();
    for to in [second, CLIENT.to_string(), OUTSIDE.to_string()] {
        playground.node(1).read(&["ping", "-c", "1", "-W", "2", &to]).unwrap();
    }
    let first = playground.node(1).address.to_string();
    playground.client().read(&["ping", "-c", "1", "-W", "2", &first]).unwrap();
}

#[test]
fn the_wire_has_the_mtu_asked_for() {
    let topology = Topology { mtu: 9000, ..Topology::test("mtu", &TWO) };
    let playground = Playground::hosts(&topology).unwrap();
    let to = playground.node(2).address.to_string();
    let ping = |size: &str| {
        let words = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", size, &to];
        playground.node(1).exec(&words).unwrap().status.success()
    };
    assert!(ping("8972"));
    assert!(!ping("8973"));
}

#[test]
fn going_down_ends_what_runs_there_and_leaves_nothing() {
    let topology = Topology::test("down", &TWO);
    let playground = Playground::hosts(&topology).unwrap();
    // One that has left its namespace and its parent, as a workload may.
    let script = "unshare --net sleep 600 >/dev/null 2>&1 & echo $!";
    let orphan = playground.node(1).read(&["sh", "-c", script]).unwrap();
    let orphan = Process::of(orphan.parse().unwrap()).unwrap();
    let mut child = playground.client().spawn(&["sleep", "600"]).unwrap();
    let process = Process::of(child.id().try_into().unwrap()).unwrap();
    assert_eq!(namespaces(&topology.prefix).len(), 4);
    let directory = playground.node(1).directory.parent().unwrap().to_owned();
    assert!(directory.exists());

    playground.down().unwrap();

    assert!(!orphan.is_alive());
    assert!(!process.is_alive());
    let _ = child.wait();
    assert_eq!(namespaces(&topology.prefix), Vec::<String>::new());
    assert!(!directory.exists());
}

#[test]
fn a_namespace_of_others_is_refused_and_kept() {
    let topology = Topology::test("others", &TWO);
    let other = format!("{}n2", topology.prefix);
    Command::new("ip").args(["netns", "add", &other]).read().unwrap();
    let error = Playground::hosts(&topology).map(drop).unwrap_err().to_string();
    let left = namespaces(&topology.prefix);
    Command::new("ip").args(["netns", "delete", &other]).read().unwrap();
    assert!(error.contains(&other), "{error}");
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_a_killed_process_left_is_swept_by_the_next() {
    const NAME: &str = "what_a_killed_process_left_is_swept_by_the_next";
    const IS_CHILD: &str = "NETAGENT_TEST_IS_CHILD";
    if std::env::var_os(IS_CHILD).is_some() {
        let _playground = Playground::hosts(&Topology::test("killed", &TWO)).unwrap();
        loop {
            std::thread::park();
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME]).env(IS_CHILD, "1").stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let prefix = format!("killed-{}-", child.id());
    let two = || Ok((namespaces(&prefix).len() >= 2).then_some(()));
    eventually("half of its hosts", Duration::from_secs(20), two).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(namespaces(&prefix).len() >= 2);

    let _next = Playground::hosts(&Topology::test("next", &TWO[..1])).unwrap();

    assert_eq!(namespaces(&prefix), Vec::<String>::new());
}
