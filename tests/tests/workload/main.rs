//! The workloads of one node, with a real cluster of one manager, real namespaces and
//! processes, and a kernel of memory: what is recorded, answered, mounted and released.
//!
//! ```text
//!   this process: Cluster (manager) ── Workloads ── Reconciler ── a map
//!                                          │ DNS, mounts
//!                                  sleep in its namespaces
//! ```

mod bench;

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::process::{Command, Stdio};

use bench::{Agent, Named, Sleeper, attach, for_path, for_process, inside};
use netagent::api::types::{Connect, CreateWorkload};
use netagent::plan::Key;
use netagent_tests::lab::{eventually, must};
use nix::sched::{CloneFlags, setns};
#[test]
fn a_process_is_attached_until_it_ends() {
    let agent = Agent::new();
    let psql = Sleeper::start();
    let ready = agent.create(for_process(&psql, "psql", &["shop", "blog"])).expect("attached");
    assert!(ready.warnings.is_empty(), "{:?}", ready.warnings);
    let addresses: Vec<_> = ready
        .workload
        .attachments
        .iter()
        .map(|a| (a.interface.as_str(), a.endpoint.address.to_string()))
        .collect();
    let [("eth0", on_shop), ("eth1", on_blog)] = addresses.as_slice() else {
        panic!("{addresses:?}")
    };
    assert_eq!(agent.kernel.links(), 2, "the kernel is set up when it is told");

    let conf = must(psql.inside(&["cat", "/etc/resolv.conf"]));
    assert!(conf.starts_with("nameserver 127.0.0.11\n") && conf.ends_with("options ndots:0\n"));
    let hosts = must(psql.inside(&["cat", "/etc/hosts"]));
    assert!(hosts.contains(&format!("{on_shop}\tpsql\n")), "{hosts}");
    assert!(!fs::read_to_string("/etc/resolv.conf").expect("the host's").contains("ndots:0"));
    assert_eq!(psql.short("psql"), *on_shop, "the first network answers");
    assert_eq!(psql.short("psql.blog"), *on_blog);
    assert_eq!(psql.short("psql-on-blog"), *on_blog);

    drop(psql);
    agent.empty();
}

#[test]
fn what_fails_leaves_nothing() {
    let agent = Agent::new();
    let sleeper = Sleeper::start();
    let refusal = |request| agent.create(request).expect_err("refused").to_string();
    assert!(refusal(for_process(&sleeper, "a", &["shop", "nowhere"])).contains("nowhere"));
    agent.empty();

    agent.kernel.refuse(Some(""));
    assert!(refusal(for_process(&sleeper, "a", &["shop"])).contains("the kernel says no"));
    agent.empty();
    agent.kernel.refuse(None);

    let host_mounts = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn();
    let host_mounts = Sleeper(host_mounts.expect("unshare"));
    let comm = format!("/proc/{}/comm", host_mounts.pid());
    eventually("sleep runs", || fs::read_to_string(&comm).is_ok_and(|c| c == "sleep\n"));
    let said = refusal(for_process(&host_mounts, "a", &["shop"]));
    assert!(said.contains("the host's mount namespace"), "{said}");
    agent.empty();

    agent.create(for_process(&sleeper, "a", &["shop"])).expect("all is well again");
    let other = Sleeper::start();
    assert!(refusal(for_process(&other, "a", &["shop"])).contains("a workload a already"));
    assert!(refusal(for_process(&sleeper, "b", &["shop"])).contains("as workload a"));
    assert_eq!(agent.workloads.list().len(), 1);
    assert_eq!(agent.snapshot().endpoints.len(), 1);
}

#[test]
fn the_trouble_of_one_workload_is_not_anothers() {
    let agent = Agent::new();
    let (broken, fine) = (Sleeper::start(), Sleeper::start());
    let ready = agent.create(for_process(&broken, "broken", &["shop"])).expect("attached");
    // Its address is taken away, which the agent finds when it looks after a failure,
    // and the kernel does not give it back.
    let address = ready.workload.attachments[0].endpoint.address.to_string();
    let keep = |key: &Key, _: &mut _| !key.to_string().contains(&address);
    agent.kernel.state.lock().expect("no panic").retain(keep);
    agent.kernel.refuse(Some(""));
    agent.create(for_process(&fine, "fine", &["shop"])).expect_err("refused");
    agent.kernel.refuse(Some(&address));
    let mut outcome = agent.handle.outcome();
    let noticed = outcome.wait_for(|outcome| outcome.errors.iter().all(|e| e.contains(&address)));
    agent.runtime.block_on(noticed).expect("a loop");
    agent.create(for_process(&fine, "fine", &["shop"])).expect("attached");
    assert_eq!(agent.workloads.list().len(), 2);
}

#[test]
fn networks_come_and_go() {
    let agent = Agent::new();
    let app = Sleeper::start();
    agent.create(for_process(&app, "app", &["shop"])).expect("attached");
    let peer = Sleeper::start();
    let peer = (agent.create(for_process(&peer, "peer", &["blog"])).expect("attached"), peer);
    let address = peer.0.workload.attachments[0].endpoint.address.to_string();
    assert_ne!(app.short("peer"), address);

    let request = || Connect {
        workload: "app".to_owned(),
        aliases: vec!["second".parse().expect("a name")],
        address: None,
    };
    let connect = || agent.runtime.block_on(agent.workloads.connect("blog".to_owned(), request()));
    let joined = connect().expect("connected");
    assert_eq!(joined.interface, "eth1");
    assert_eq!(app.short("peer"), address);
    assert_eq!(peer.1.short("second"), joined.endpoint.address.to_string());
    let hosts = must(app.inside(&["cat", "/etc/hosts"]));
    assert!(hosts.contains(&joined.endpoint.address.to_string()), "{hosts}");
    assert!(connect().expect_err("refused").to_string().contains("already"));

    let disconnect = |network| agent.runtime.block_on(agent.workloads.disconnect(network, "app"));
    disconnect("shop").expect("disconnected");
    assert!(disconnect("shop").expect_err("refused").to_string().contains("on no network shop"));
    assert_eq!(agent.snapshot().endpoints.len(), 2);
    let back = agent.runtime.block_on(agent.workloads.connect("shop".to_owned(), request()));
    assert_eq!(back.expect("connected").interface, "eth0", "the lowest that is free");

    agent.runtime.block_on(agent.workloads.remove("app")).expect("removed");
    assert!(agent.runtime.block_on(agent.workloads.remove("app")).is_err());
    drop(peer);
    agent.empty();
    let conf = must(app.inside(&["cat", "/etc/resolv.conf"]));
    assert!(!conf.contains("ndots:0"), "the process goes on, and sees the host's file: {conf}");
}

#[test]
fn a_namespace_is_held_by_its_file() {
    let agent = Agent::new();
    let named = Named::new();
    agent.create(for_path(&named, "vm")).expect("attached");
    named.delete();
    agent.empty();

    // Another one under a name that is known is another one.
    let named = Named::new();
    agent.create(for_path(&named, "vm")).expect("attached");
    named.delete();
    must(Ok(Command::new("ip").args(["netns", "add", &named.0]).output().expect("ip")));
    agent.empty();
}

#[test]
fn a_taken_port_is_a_warning() {
    let agent = Agent::new();
    let named = Named::new();
    let path = named.path();
    let take = move || {
        setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        must(Ok(Command::new("ip").args(["link", "set", "lo", "up"]).output()?));
        UdpSocket::bind("127.0.0.11:53")
    };
    let taken = std::thread::spawn(take).join().expect("no panic").expect("a socket");
    let ready = agent.create(for_path(&named, "vm")).expect("attached all the same");
    let [warning] = ready.warnings.as_slice() else { panic!("{:?}", ready.warnings) };
    assert!(warning.contains("port 53") && warning.contains("vm"), "{warning}");
    assert_eq!(agent.kernel.links(), 1);
    drop(taken);
}

#[test]
fn a_restart_keeps_what_runs_and_releases_what_ended() {
    let agent = Agent::new();
    let (stays, goes) = (Sleeper::start(), Sleeper::start());
    let ready = agent.create(for_process(&stays, "stays", &["shop"])).expect("attached");
    agent.create(for_process(&goes, "goes", &["shop"])).expect("attached");
    let address = ready.workload.attachments[0].endpoint.address.to_string();
    let before = agent.kernel.state.lock().expect("no panic").clone();

    let agent = agent.restart(|| drop(goes));
    assert_eq!(*agent.workloads.list(), [ready.workload]);
    eventually("the other's endpoint is collected", || agent.snapshot().endpoints.len() == 1);
    assert_eq!(stays.short("stays.shop"), address);
    assert_eq!(stays.short("goes.shop"), "");
    let after = agent.kernel.state.lock().expect("no panic").clone();
    assert!(after.iter().all(|(key, value)| before.get(key) == Some(value)), "nothing is new");
    drop(stays);
    agent.empty();
}

#[test]
fn the_files_stay_mounted_when_the_host_replaces_its_own() {
    let agent = Agent::new();
    // A host with an /etc of its own, and in it a program in further namespaces.
    let script = "
        set -e
        etc=$(mktemp -d) && mount -t tmpfs etc $etc && cp /etc/passwd $etc
        echo nameserver 192.0.2.1 > $etc/resolv.conf && echo 192.0.2.1 host > $etc/hosts
        mount --bind $etc /etc && umount $etc && rmdir $etc
        unshare --net --mount --propagation unchanged sleep infinity &
        trap \"kill $!\" EXIT; echo $!
        while read server; do
            echo nameserver $server > /etc/new && mv /etc/new /etc/resolv.conf && echo replaced
        done";
    let mut host = Command::new("unshare")
        .args(["--mount", "bash", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut go = host.stdin.take().expect("piped");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(host.stdout.take().expect("piped")));
    let mut line = || lines.next().expect("a line").expect("text");
    let pid: i32 = line().parse().expect("a pid");
    let comm = format!("/proc/{pid}/comm");
    eventually("sleep runs", || fs::read_to_string(&comm).is_ok_and(|c| c == "sleep\n"));
    let request = CreateWorkload {
        name: None,
        pid: Some(pid),
        netns: None,
        mount: true,
        networks: vec![attach("shop", "alias")],
        serve: None,
        health_check: None,
    };
    let ready = agent.create(request).expect("attached");
    let seen = |pid| must(inside(pid, &["cat", "/etc/resolv.conf"]));
    assert!(seen(pid).contains("127.0.0.11"));

    let host_pid = host.id().cast_signed();
    for n in 2..12 {
        writeln!(go, "192.0.2.{n}").expect("a pipe");
        assert_eq!(line(), "replaced");
        eventually("mounted again", || seen(pid).contains("127.0.0.11"));
        assert_eq!(seen(host_pid), format!("nameserver 192.0.2.{n}\n"), "the host's is its own");
    }
    agent.runtime.block_on(agent.workloads.remove(ready.workload.name.as_str())).expect("removed");
    drop(go);
    host.wait().expect("waiting");
    agent.empty();
}

#[test]
fn a_process_with_another_root_sees_the_files_there() {
    let agent = Agent::new();
    // A root on a file system of its own with an /etc of its own, in which a link leads on.
    let script = "
        set -e
        root=$1 && mount -t tmpfs root $root && cd $root
        mkdir -p proc etc run usr && mount --rbind /usr usr
        for link in bin lib lib64 sbin; do ln -s usr/$link $link; done
        echo nameserver 192.0.2.1 > run/resolv.conf && ln -s /run/resolv.conf etc/resolv.conf
        echo 192.0.2.1 inner > etc/hosts
        exec chroot $root sleep infinity";
    let root = tempfile::tempdir().expect("a directory");
    let process = Command::new("unshare")
        .args(["--net", "--mount", "bash", "-c", script, "-"])
        .arg(root.path())
        .spawn();
    let process = Sleeper(process.expect("unshare"));
    let comm = format!("/proc/{}/comm", process.pid());
    eventually("sleep runs", || fs::read_to_string(&comm).is_ok_and(|c| c == "sleep\n"));
    let at_root = |file: &str| must(process.inside(&["cat", file]));
    let seen = |file: &str| {
        let root = format!("--root=/proc/{}/root", process.pid());
        must(process.inside(&[&root, "--", "cat", file]))
    };
    let above = at_root("/etc/resolv.conf");
    agent.create(for_process(&process, "inner", &["shop"])).expect("attached");
    assert!(seen("/etc/resolv.conf").contains("127.0.0.11"), "{}", seen("/etc/resolv.conf"));
    assert!(seen("/etc/hosts").contains("\tinner\n"), "{}", seen("/etc/hosts"));
    assert_eq!(at_root("/etc/resolv.conf"), above, "what lies above is not its own");

    agent.runtime.block_on(agent.workloads.remove("inner")).expect("removed");
    assert_eq!(seen("/etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert_eq!(seen("/etc/hosts"), "192.0.2.1 inner\n");
    agent.empty();
}
