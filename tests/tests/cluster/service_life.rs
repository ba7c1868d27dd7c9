//! The life of a backend: checked, drained, stopped, killed.
//!
//! ```text
//!   n1: manager    n2: backends    n3: a client        service web on network net1
//! ```

use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use netagent_tests::lab::{Workload, confine, eventually, list, must, refusal, three, workloads};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use xtask::node::{Datapath, Node, Shell as _};
use xtask::playground::Playground;

fn cluster() -> Playground {
    let cluster = three([Datapath::Ebpf; 3]);
    // Until a test restarts an agent.
    confine(&cluster);
    must(cluster.node(1).netagent(&["network", "create", "net1"]));
    must(cluster.node(1).netagent(&["network", "create", "net2"]));
    must(cluster.node(1).netagent(&["service", "create", "--name", "web", "--network", "net1"]));
    cluster
}

/// What a node knows of the only task there is.
fn task(node: &Node) -> Value {
    match list(node, "endpoint").iter().find(|e| !e["task"].is_null()) {
        Some(endpoint) => endpoint["task"].clone(),
        None => Value::Null,
    }
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("a process");
}

/// A process that has not ended; one that only waits for its parent has.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").expect("a command").1.starts_with('Z'))
}

/// A server in a workload's namespaces, beside its command; killed when dropped.
struct Server(Child);

impl Server {
    /// Serves the files of `directory` at port 8000 of `address`.
    fn start(workload: &Workload, address: &str, directory: &Path) -> Self {
        let directory = directory.to_str().expect("text");
        let line = ["python3", "-m", "http.server", "8000", "--bind", address];
        let mut command = workload.command(&[&line[..], &["--directory", directory]].concat());
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(quiet.spawn().expect("nsenter"));
        let url = format!("http://{address}:8000/");
        eventually("the server answers", || {
            workload.exec(&["curl", "--silent", "--output", "/dev/null", &url]).status.success()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is ours and has not been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_the_healthy_get_connections() {
    let cluster = cluster();
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let client = Workload::start(n3, &["--network", "net1"]);
    let tasks = || client.resolves(&["tasks.web"]);
    let health = |node| task(node)["health"].as_str().unwrap_or_default().to_owned();
    let files = tempfile::tempdir().expect("a directory");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(files.path(), open).expect("our directory");
    let up = files.path().join("up");
    // Where it runs, as whom, and with which environment. It comes first: its agent is confined.
    let script = format!(
        "test -e {} && test $(hostname) = inside && test $(id -un)$USER = nobodynobody && \
         grep -q 127.0.0.11 /etc/resolv.conf && test -d /sys && curl -s http://$(hostname -i):8000/",
        up.display()
    );
    for check in
        [["--health-cmd", &script], ["--health-tcp", "8000"], ["--health-http", ":8000/up"]]
    {
        let fixed = ["--service", "web", "--user", "nobody", "--name", "inside"];
        let quick = ["--health-interval", "200ms", "--health-retries", "2"];
        let backend = Workload::start(n2, &[&fixed[..], &check, &quick].concat());
        let never = || {
            assert_ne!(health(n1), "healthy", "{check:?}");
            assert_eq!(tasks(), "", "{check:?}: not before its first success");
        };
        never();
        std::fs::write(&up, "").expect("a file");
        let hidden = Server::start(&backend, "127.0.0.1", files.path());
        eventually(&format!("{check:?} has failed"), || health(n1) == "unhealthy");
        never();
        drop(hidden);
        let server = Server::start(&backend, &backend.ip(), files.path());
        for node in [n1, n2, n3] {
            eventually(&format!("{check:?} succeeds"), || health(node) == "healthy");
        }
        eventually("the healthy are named", || tasks() == backend.ip());
        std::fs::remove_file(&up).expect("the file");
        drop(server);
        eventually(&format!("{check:?} fails"), || health(n3) == "unhealthy");
        eventually("the ill are not", || tasks().is_empty());
        std::fs::write(&up, "").expect("a file");
        let server = Server::start(&backend, &backend.ip(), files.path());
        eventually(&format!("{check:?} heals"), || health(n3) == "healthy");

        // Checks go on after a restart of the agent.
        n2.kill_agent().expect("kill");
        n2.start_agent().expect("start");
        drop(server);
        eventually(&format!("{check:?} fails again"), || health(n3) == "unhealthy");
        std::fs::remove_file(&up).expect("the file");
        drop(backend);
        eventually("released", || task(n3).is_null());
    }
}

#[test]
fn what_cannot_be_checked_or_served_is_refused() {
    let cluster = cluster();
    let n2 = cluster.node(2);
    let refused = |options: &[&str]| {
        let line = [&["run", "--service", "web"], options, &["--", "true"]].concat();
        refusal(n2.netagent(&line))
    };
    for (options, reason) in [
        (&["--health-tcp", "80", "--health-cmd", "true"][..], "cannot be used with"),
        (&["--health-interval", "1s"], "--health-cmd"),
        (&["--health-tcp", "80", "--health-timeout", "0s"], "more than 0"),
        (&["--health-http", "80/up"], ":PORT/PATH"),
        (&["--network", "net2"], "net1"),
        (&["--ip", "10.0.0.9"], "--network"),
    ] {
        let said = refused(options);
        assert!(said.contains(reason), "{options:?}: {said}");
    }
    let said = refusal(n2.netagent(&["run", "--service", "nobody", "--", "true"]));
    assert!(said.contains("there is no service nobody"), "{said}");
    let said = refusal(n2.netagent(&["run", "--network", "net1", "--weight", "2", "--", "true"]));
    assert!(said.contains("--service"), "{said}");
    assert!(list(n2, "endpoint").is_empty());
    let plain = Workload::start(n2, &["--network", "net1", "--name", "plain"]);
    let said = refusal(n2.netagent(&["endpoint", "update", "--drain", "plain"]));
    assert!(said.contains("serves no service"), "{said}");
    drop(plain);
}

/// What `GET /v1/endpoints` of all nodes gives, one line each, for a script.
fn ask_all(cluster: &Playground) -> String {
    let ask = |node: &Node| {
        format!(
            "curl -s --unix-socket {} http://localhost/v1/endpoints; echo",
            node.socket().display()
        )
    };
    [1, 2, 3].map(|n| ask(cluster.node(n))).join("\n")
}

#[test]
fn drained_everywhere_before_the_signal() {
    let cluster = cluster();
    let (n2, n3) = (cluster.node(2), cluster.node(3));
    let told = tempfile::NamedTempFile::new().expect("a file");
    for (signal, name, status) in [(Signal::SIGTERM, "TERM", 3), (Signal::SIGINT, "INT", 4)] {
        let script = format!(
            "stop() {{ {{ {}; }} > {}; exit {status}; }}; trap stop {name}; echo ready; \
             while :; do sleep 0.1; done",
            ask_all(&cluster).replace('\n', ";"),
            told.path().display()
        );
        let backend = Workload::start_command(n2, &["--service", "web"], &["bash", "-c", &script]);
        assert_ne!(backend.pid(), backend.outer_pid());
        eventually("known to all", || task(n3)["draining"] == false);
        eventually("the trap is set", || {
            let children = format!("/proc/{0}/task/{0}/children", backend.pid());
            std::fs::read_to_string(children).is_ok_and(|children| !children.is_empty())
        });
        send(backend.outer_pid(), signal);
        assert_eq!(backend.wait().code(), Some(status), "the command's own status");
        let told = std::fs::read_to_string(told.path()).expect("the file");
        assert_eq!(told.lines().count(), 3);
        for line in told.lines() {
            assert!(line.contains("\"draining\":true"), "when the signal came: {told}");
        }
        eventually("gone", || task(n3).is_null());
    }
}

#[test]
fn weight_and_drain_by_hand() {
    let cluster = cluster();
    let (n2, n3) = (cluster.node(2), cluster.node(3));
    let client = Workload::start(n3, &["--network", "net1"]);
    let backend = Workload::start(n2, &["--service", "web", "--weight", "3", "--name", "one"]);
    let update = |option: &[&str]| {
        must(n2.netagent(&[&["endpoint", "update"], option, &["one"]].concat()));
        (task(n3)["weight"].clone(), task(n3)["draining"].clone(), client.resolves(&["tasks.web"]))
    };
    assert_eq!(update(&["--weight", "2"]), (2.into(), false.into(), backend.ip()));
    assert_eq!(update(&["--drain"]), (2.into(), true.into(), String::new()));
    assert_eq!(update(&["--no-drain", "--weight", "5"]), (5.into(), false.into(), backend.ip()));
    must(n2.netagent(&["network", "connect", "net2", "one"]));
    let endpoints = list(n2, "endpoint");
    let served = endpoints.iter().filter(|e| e["name"] == "one" && !e["task"].is_null());
    assert_eq!(served.count(), 1, "the service is not on net2");
}

#[test]
fn it_ends_as_its_command_does() {
    let cluster = cluster();
    let (n2, n3) = (cluster.node(2), cluster.node(3));
    let run = |script: &str| {
        n2.netagent(&["run", "--service", "web", "--", "bash", "-c", script]).expect("netagent")
    };
    assert_eq!(run("exit 7").status.code(), Some(7));
    assert_eq!(run("kill -KILL $$").status.signal(), Some(9));
    assert_eq!(run("kill -ALRM $$").status.signal(), Some(14));
    assert_eq!(must(Ok(run("cat; echo out"))), "out\n", "standard input and output");
    let missing = n2.netagent(&["run", "--service", "web", "--", "no-such-command"]);
    assert_eq!(missing.expect("netagent").status.code(), Some(127));

    // Any signal is passed on; the first to stop it would drain.
    let script = "trap 'exit 9' USR1; while :; do sleep 0.1; done";
    let backend = Workload::start_command(n2, &["--service", "web"], &["bash", "-c", script]);
    eventually("the trap is set", || {
        let children = format!("/proc/{0}/task/{0}/children", backend.pid());
        std::fs::read_to_string(children).is_ok_and(|children| !children.is_empty())
    });
    send(backend.outer_pid(), Signal::SIGUSR1);
    assert_eq!(backend.wait().code(), Some(9));

    // Without its parent nothing would drain it, so it does not outlive that; nor does a
    // crash leave anything behind.
    for (parent, user) in [(true, "root"), (true, "nobody"), (false, "root")] {
        let backend = Workload::start(n2, &["--service", "web", "--user", user]);
        eventually("known to all", || !task(n3).is_null());
        let command = backend.pid();
        send(if parent { backend.outer_pid() } else { command }, Signal::SIGKILL);
        eventually("the command has ended", || !runs(command));
        assert_eq!(backend.wait().signal(), Some(9));
        eventually("out of the service", || task(n3).is_null());
        eventually("released", || workloads(n2).is_empty());
    }
}

/// A terminal with a command in it.
struct Terminal(Child);

impl Terminal {
    fn start(node: &Node, command: &str) -> Self {
        // Not for ever, and by a shell that leaves Ctrl-C to the command, as not all do.
        let line = ["timeout", "60", "env", "SHELL=/bin/bash", "script", "-qefc", command];
        let mut terminal = node.command(&[&line[..], &["/dev/null"]].concat());
        Self(terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script"))
    }

    /// What a user types.
    fn enter(&mut self, text: &str) {
        let keyboard = self.0.stdin.as_mut().expect("piped");
        keyboard.write_all(text.as_bytes()).expect("a terminal");
    }

    /// Waits for a line that is `wanted`.
    fn shows(&mut self, wanted: &str) {
        let (mut line, screen) = (Vec::new(), self.0.stdout.as_mut().expect("piped"));
        loop {
            let mut byte = [0];
            screen.read_exact(&mut byte).unwrap_or_else(|_| panic!("{wanted} is never shown"));
            match byte[0] {
                b'\n' if line == wanted.as_bytes() => return,
                b'\n' => line.clear(),
                b'\r' => {}
                byte => line.push(byte),
            }
        }
    }

    fn wait(&mut self) -> Option<i32> {
        self.0.wait().expect("our child").code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is ours; usually it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn in_a_terminal() {
    let cluster = cluster();
    let n2 = cluster.node(2);
    let ask = ask_all(&cluster).lines().next().expect("three").to_owned();

    // Ctrl-C is for us: first it is drained. The shell waits without a child: one that dies of
    // Ctrl-C may end it before its trap runs.
    let script = format!(
        "exec 3<> <(:); trap '({ask}) | grep -q draining.:true || exit 9; exit 5' INT; \
         echo ready; while :; do read -rt 1 -u 3; done"
    );
    let run = "netagent run --service web -- bash -c";
    let mut terminal = Terminal::start(n2, &format!("{run} {script:?}"));
    terminal.shows("ready");
    eventually("known", || !task(n2).is_null());
    terminal.enter("\x03");
    assert_eq!(terminal.wait(), Some(5));

    // A command that reads the terminal gets it, and Ctrl-C.
    let mut terminal = Terminal::start(n2, &format!("{run} 'head -n 2 | tac'"));
    terminal.enter("first\nsecond\n");
    terminal.shows("second");
    terminal.shows("second");
    terminal.shows("first");
    assert_eq!(terminal.wait(), Some(0));

    // A shell can have it stopped, whoever has the terminal, and go on.
    for command in ["echo ready; head -n 1; echo next; head -n 1", "echo ready; sleep infinity"] {
        let job = format!("{run} \"{command}\"; echo stopped; fg; echo $?");
        let mut terminal = Terminal::start(n2, &format!("bash --norc -mc '{job}'"));
        terminal.shows("ready");
        eventually("known", || !task(n2).is_null());
        if command.contains("head") {
            terminal.enter("first\n");
            terminal.shows("next");
        }
        terminal.enter("\x1a");
        terminal.shows("stopped");
        let status = if command.contains("head") {
            terminal.enter("typed\n");
            terminal.shows("typed");
            terminal.shows("0");
            0
        } else {
            terminal.enter("\x03");
            // The shell sees that its job ended by the signal, and does so itself.
            130
        };
        assert_eq!(terminal.wait(), Some(status));
    }
}

/// Says who it is, then everything that is sent to it back.
const ECHO: &str = r"
import socket, socketserver, signal, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(socket.gethostname().encode() + b'\n')
        for line in self.rfile: self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    def handle_error(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(6))
Server(('', 7000), Handler).serve_forever()
";

/// Prints what it gets from the service, and sends it what it is given.
const CLIENT: &str = r"
import socket, sys
stream = socket.create_connection(('web', 7000), 5).makefile('rw')
for line in iter(sys.stdin.readline, ''):
    print(stream.readline(), end='', flush=True)
    stream.write(line); stream.flush()
print(stream.readline(), end='', flush=True)
";

/// A connection to the service.
struct Connection {
    client: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Connection {
    fn open(client: &Workload) -> Self {
        let mut command = client.command(&["python3", "-c", CLIENT]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = command.spawn().expect("python3");
        let (to, from) = (client.stdin.take(), client.stdout.take());
        let from = BufReader::new(from.expect("piped")).lines();
        Self { client, to: to.expect("piped"), from }
    }

    /// Sends a line, and gives the one that came before: the first names the backend.
    fn say(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").expect("it listens");
        self.from.next().expect("a line").expect("text")
    }

    fn close(self) {
        let Self { mut client, to, from } = self;
        drop(to);
        from.for_each(drop);
        assert!(client.wait().expect("our child").success());
    }
}

#[test]
fn connections_end_before_their_backend() {
    let cluster = cluster();
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let client = Workload::start(n3, &["--network", "net1"]);
    let serve = |node, name: &str, grace: &str| {
        let options = ["--service", "web", "--name", name, "--stop-grace", grace];
        let check = ["--health-tcp", "7000", "--health-interval", "200ms"];
        Workload::start_command(node, &[&options[..], &check].concat(), &["python3", "-c", ECHO])
    };
    let first = serve(n2, "first", "1h");
    eventually("the first is healthy", || client.resolves(&["tasks.web"]) == first.ip());
    let mut open = Connection::open(&client);
    assert_eq!(open.say("one"), "first");
    let second = serve(n1, "second", "0s");
    let both = || client.resolves(&["tasks.web"]).split(' ').count() == 2;
    eventually("the second is healthy", both);

    send(first.outer_pid(), Signal::SIGTERM);
    eventually("the first drains", || client.resolves(&["tasks.web"]) == second.ip());
    assert_eq!(open.say("two"), "one", "the connection goes on");
    for _ in 0..5 {
        let mut new = Connection::open(&client);
        assert_eq!(new.say("x"), "second", "new ones go elsewhere");
        new.close();
    }
    assert!(runs(first.pid()), "it has its connection still");
    assert_eq!(open.say("three"), "two");
    open.close();
    assert_eq!(first.wait().code(), Some(6), "now it was told");

    // Without grace nobody waits; a second signal is another way not to.
    let mut open = Connection::open(&client);
    assert_eq!(open.say("one"), "second");
    send(second.outer_pid(), Signal::SIGTERM);
    assert_eq!(second.wait().code(), Some(6));
    let third = serve(n2, "third", "1h");
    eventually("the third is healthy", || client.resolves(&["tasks.web"]) == third.ip());
    let mut held = Connection::open(&client);
    assert_eq!(held.say("one"), "third");
    send(third.outer_pid(), Signal::SIGTERM);
    eventually("the third drains", || client.resolves(&["tasks.web"]).is_empty());
    assert!(runs(third.pid()));
    send(third.outer_pid(), Signal::SIGTERM);
    assert_eq!(third.wait().code(), Some(6));
    for mut connection in [open, held] {
        connection.client.kill().expect("our child");
        connection.client.wait().expect("our child");
    }
}

#[test]
fn without_a_manager() {
    let cluster = cluster();
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let client = Workload::start(n2, &["--network", "net1"]);
    let files = tempfile::tempdir().expect("a directory");
    let start = || {
        let check = ["--health-tcp", "8000", "--health-interval", "200ms"];
        Workload::start(n2, &[&["--service", "web", "--name", "one"], &check[..]].concat())
    };
    let one = start();
    n1.kill_agent().expect("kill");
    let server = Server::start(&one, &one.ip(), files.path());
    let known = |node: &Node, health: &str, draining: bool| {
        let task = task(node);
        task["health"] == health && task["draining"] == draining
    };
    eventually("its node knows", || known(n2, "healthy", false));
    assert_eq!(client.resolves(&["tasks.web"]), one.ip());
    must(n2.netagent(&["endpoint", "update", "--drain", "one"]));
    assert_eq!(client.resolves(&["tasks.web"]), "");
    let address = one.ip();
    send(one.outer_pid(), Signal::SIGTERM);
    assert_eq!(one.wait().signal(), Some(15));
    eventually("released", || workloads(n2).len() == 1);
    drop(server);
    let one = start();
    assert_eq!(one.ip(), address, "the address of the one before");
    assert!(known(n2, "starting", false) || known(n2, "unhealthy", false), "{}", task(n2));
    let _server = Server::start(&one, &one.ip(), files.path());
    eventually("its node knows", || known(n2, "healthy", false));
    n1.start_agent().expect("start");
    eventually("everybody knows", || known(n3, "healthy", false));
}
