//! Who waits for a backend that died without a word is told so, whichever way he came.
//!
//! ```text
//!   n1: a workload that calls, a process of the host    n2, n3: a backend each
//!   client: outside
//! ```

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use netagent_tests::lab::{Workload, confine, eventually, must, three};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::node::{Datapath, Shell as _};

/// Says its host's name to whoever connects, and no more.
const SERVER: &str = "
import socket
listener = socket.create_server(('', 80))
clients = []
while True:
    client, _ = listener.accept()
    client.sendall(socket.gethostname().encode())
    clients.append(client)
";

/// Connects eight times, then waits on all of them for something to happen.
const CLIENT: &str = "
import os, socket, sys, threading
def wait(client, name):
    client.settimeout(None)
    try:
        what = 'data' if client.recv(1) else 'closed'
    except ConnectionResetError:
        what = 'reset'
    os.write(1, f'{name} {what}\\n'.encode())
clients = [socket.create_connection(sys.argv[1].split(':'), 10) for _ in range(8)]
names = [client.recv(64).decode() for client in clients]
print(*names, flush=True)
for client, name in zip(clients, names):
    threading.Thread(target=wait, args=(client, name)).start()
";

/// A client that runs; killed when dropped.
struct Client {
    child: Child,
    said: tempfile::NamedTempFile,
}

impl Client {
    fn start(mut command: Command) -> Self {
        let said = tempfile::NamedTempFile::new().expect("a file");
        let out = said.reopen().expect("the file");
        let child = command.stdin(Stdio::null()).stdout(out).spawn().expect("spawning");
        let client = Self { child, said };
        eventually("all connections are open", || client.lines().len() == 1);
        client
    }

    fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        self.said.reopen().expect("the file").read_to_string(&mut text).expect("text");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It is ours and has not been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn clients_of_a_backend_that_died_in_silence_are_reset_and_no_others() {
    let cluster = three([Datapath::Ebpf; 3]);
    confine(&cluster);
    let n1 = cluster.node(1);
    must(n1.netagent(&["network", "create", "net1"]));
    let create = ["service", "create", "--name", "web", "--network", "net1", "-p", "8080:80"];
    must(n1.netagent(&create));
    let serve = |node, name| {
        let args = ["--service", "web", "--name", name];
        let backend = Workload::start_command(node, &args, &["python3", "-c", SERVER]);
        eventually("it listens", || backend.run(&["ss", "-Hltn"]).contains(":80 "));
        backend
    };
    let (stays, dies) = (serve(cluster.node(2), "stays"), serve(cluster.node(3), "dies"));
    let caller = Workload::start(n1, &["--network", "net1"]);
    let vip = caller.resolves(&["web"]);
    let call = |to| ["python3", "-c", CLIENT, to];
    let (service, published) = (format!("{vip}:80"), format!("{}:8080", n1.address));
    let clients = [
        ("inside", Client::start(caller.command(&call(&service)))),
        ("outside", Client::start(cluster.client().command(&call(&published)))),
        ("the host", Client::start(n1.command(&call("127.0.0.1:8080")))),
    ];
    for (who, client) in &clients {
        let names = client.lines().remove(0);
        assert_eq!(names.matches("dies").count(), 4, "{who}: {names}");
        assert_eq!(names.matches("stays").count(), 4, "{who}: {names}");
    }
    // No FIN and no RST of its own comes out.
    dies.run(&[
        "nft",
        "add table ip t; add chain ip t o { type filter hook output priority 0; policy drop; }",
    ]);
    kill(Pid::from_raw(dies.pid().cast_signed()), Signal::SIGKILL).expect("a process");
    for (who, client) in &clients {
        eventually(&format!("{who} is told"), || client.lines().len() == 5);
        assert_eq!(client.lines()[1..], ["dies reset"; 4], "{who}");
    }
    // Who is with the other backend waits for it to end, and is told by itself.
    kill(Pid::from_raw(stays.pid().cast_signed()), Signal::SIGKILL).expect("a process");
    for (who, client) in &clients {
        eventually(&format!("{who} hears the end"), || client.lines().len() == 9);
        assert_eq!(client.lines()[5..], ["stays closed"; 4], "{who}");
    }
}
