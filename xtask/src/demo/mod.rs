//! `cargo xtask demo`: what netagent is for, with real programs. A PostgreSQL server on
//! one host is the service `psql`; a web application on two hosts, told nothing but that
//! name, is the service `web`; and every host of the cluster answers on its port, to a
//! client outside, while tcpdump watches the wire. Every step shows what a user would
//! type and says what it proved.

mod postgres;
mod wiki;
mod wire;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build::{self, Profile};
use crate::cluster::{Mix, PREFIX};
use crate::command::CommandExt;
use crate::node::{Node, Shell};
use crate::playground::{CLIENT, Playground, Topology};
use crate::setup::{self, Need};
use crate::wait::eventually;
use wiki::Wiki;
use wire::Capture;

const NETWORK: &str = "mydrupal";
/// Longest that something takes that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// The service that the database is.
const DATABASE: &str = "psql";
/// The service that the web application is.
const WEB: &str = "web";
/// How a client names the database: by its service alone.
const URL: &str = "postgresql://drupal:opensesame@psql/postgres";

const TITLE: &str = "Hello from the other host";

/// Shows it. With `check` everything is taken down afterwards; without, it stays up to
/// be played with. Whether every step succeeded.
///
/// # Errors
/// If something does not build, or cannot be taken down.
pub fn run(check: bool) -> Result<bool> {
    setup::ensure(Need::Hosts)?;
    build::all(Profile::Debug)?;
    let nodes = Mix::Ebpf.of(3);
    let topology =
        if check { Topology::test("demo", &nodes) } else { Topology::new(PREFIX, &nodes) };
    if let Some(old) = Playground::find(&topology.prefix)? {
        println!("A playground is up; it makes room for the demo.");
        old.down()?;
    }
    let playground = Playground::hosts(&topology)?;
    let result = show(&playground);
    if let Err(error) = &result {
        println!("   FAILED: {error:#}");
        for node in playground.nodes() {
            println!("\n--- log of {}\n{}", node.name(), node.log_end());
        }
    }
    if check {
        playground.down()?;
        println!("\n{}", if result.is_ok() { "The demo works." } else { "The demo FAILED." });
    } else {
        playground.leave_up()?;
        println!(
            "\nIt stays up. Try\n  \
             cargo xtask cluster exec client -- curl 'http://192.168.50.13/index.php?title=Main_Page'\n  \
             cargo xtask cluster exec n2 -- netagent run --network {NETWORK} -- psql {URL}\n  \
             cargo xtask cluster exec n2 -- netagent run --network {NETWORK} -- ping -c 3 {DATABASE}\n  \
             cargo xtask cluster exec n1 -- netagent service ps {WEB}\n  \
             cargo xtask cluster status\n\
             and take it down with `cargo xtask cluster down`."
        );
    }
    Ok(result.is_ok())
}

fn show(playground: &Playground) -> Result<()> {
    let [n1, n2, n3] = playground.nodes() else { bail!("the demo needs three nodes") };
    let scratch = n1.directory.join("demo");
    fs::create_dir_all(&scratch)?;

    step(1, "Three hosts, an agent on each, become one cluster");
    for node in playground.nodes() {
        node.start_agent()?;
    }
    typed(n1, &["netagent", "cluster", "init"])?;
    let token = n1.read(&["netagent", "cluster", "join-token", "-q", "worker"])?;
    let manager = format!("{}:2377", n1.address);
    for node in [n2, n3] {
        typed(node, &["netagent", "cluster", "join", "--token", token.trim(), &manager])?;
    }
    playground.wait_until_ready()?;
    typed(n1, &["netagent", "node", "ls"])?;
    proved("three nodes are members, and ready");

    step(2, "A network that spans them");
    typed(n1, &["netagent", "network", "create", "--driver", "overlay", NETWORK])?;
    let network = typed(n3, &["netagent", "network", "ls"])?;
    ensure!(network.contains(NETWORK), "n3 does not know the network");
    let network = inspect(n3)?;
    proved(&format!("n3 knows it: VXLAN network {}, subnet {}", network.vni, network.subnet));

    step(3, "tcpdump watches the wire between the hosts");
    let capture = Capture::start(playground, &scratch)?;
    proved("it listens on the bridge that joins the hosts");

    step(4, &format!("A PostgreSQL server on n1, as the service `{DATABASE}`"));
    typed(n1, &["netagent", "service", "create", "--name", DATABASE, "--network", NETWORK])?;
    let mut tasks = vec![postgres::serve(n1, &network, DATABASE, &scratch)?];
    proved("it is ready to accept connections, and has the network's interface");

    step(5, "Its clients on n3 find it by that name");
    read_back(n3, &network)?;

    step(6, &format!("A web application that knows that name, on n1 and n2, as `{WEB}`"));
    let publish = ["--publish", "published=80,target=80"];
    let create = ["netagent", "service", "create", "--name", WEB, "--network", NETWORK];
    typed(n1, &[&create[..], &publish].concat())?;
    let wiki = Wiki::install(n2, NETWORK, DATABASE, &scratch)?;
    let mut logs = vec![];
    for node in [n1, n2] {
        let (task, log) = wiki.serve(node, WEB, &scratch)?;
        tasks.push(task);
        logs.push(log);
    }
    eventually("two healthy tasks", PATIENCE, || {
        let list = n1.read(&["netagent", "service", "ls"])?;
        Ok(list.contains("2/2").then_some(()))
    })?;
    typed(n3, &["netagent", "service", "ls"])?;
    typed(n3, &["netagent", "service", "ps", WEB])?;
    proved("its tables are in the database, and its two web servers are healthy");

    step(7, "Every host answers on port 80, also n3, which runs no web server");
    for node in playground.nodes() {
        browse(playground, node)?;
    }
    let from_client = format!("{CLIENT} 200 /index.php");
    // A request is logged when it has been answered.
    let seen = eventually("three requests of the client itself", PATIENCE, || {
        let seen = logs.iter().map(fs::read_to_string).collect::<Result<String, _>>()?;
        let answered = seen.lines().filter(|line| **line == from_client).count();
        Ok((answered == 3).then_some(seen))
    })?;
    seen.lines().for_each(show_output);
    proved("the web servers' logs have the client's own address, three times");

    step(8, "What was on the wire");
    let file = capture.stop()?;
    wire::check(playground, &file, &network)?;
    // They run until the playground goes down.
    drop(tasks);
    Ok(())
}

/// One client writes, the next reads what it wrote.
fn read_back(node: &Node, network: &Network) -> Result<()> {
    let ask = |sql: &str| {
        let words = ["netagent", "run", "--network", NETWORK, "--", "psql", "-X", URL, "-c", sql];
        typed(node, &words)
    };
    ask(&format!("create table node (title text); insert into node values ('{TITLE}')"))?;
    let seen =
        ask("select title, inet_client_addr() as client, inet_server_addr() as server from node")?;
    // Header, rule, row.
    let row = seen.lines().nth(2).unwrap_or_default();
    let [title, client, address] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
        bail!("no row of three columns was read back");
    };
    ensure!(title == TITLE, "read back {title:?}, wrote {TITLE:?}");
    for address in [client, address] {
        ensure!(network.contains(address)?, "{address} is not of {}", network.subnet);
    }
    proved(&format!("what one wrote, the next reads; {address} sees {client}, untranslated"));
    Ok(())
}

/// The client outside asks one node for the wiki's first page.
fn browse(playground: &Playground, node: &Node) -> Result<()> {
    let url = format!("http://{}/index.php?title=Main_Page", node.address);
    let words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", &url];
    show_line("client", &words);
    let page = playground.client().read(&words)?;
    let title = page.lines().find(|line| line.contains("<title>")).unwrap_or_default().trim();
    show_output(title);
    ensure!(title.contains(NETWORK), "this is not the wiki's page");
    proved(&format!("{} answers with the page", node.name()));
    Ok(())
}

/// The network, as a node knows it.
struct Network {
    vni: u64,
    subnet: String,
}

impl Network {
    fn contains(&self, address: &str) -> Result<bool> {
        let (base, length) = self.subnet.split_once('/').context("a subnet has a length")?;
        let (base, length): (Ipv4Addr, u32) = (base.parse()?, length.parse()?);
        let address: Ipv4Addr = address.parse()?;
        Ok((base.to_bits() ^ address.to_bits()).leading_zeros() >= length)
    }
}

fn inspect(node: &Node) -> Result<Network> {
    let text = typed(node, &["netagent", "network", "inspect", NETWORK])?;
    let value: Value = serde_json::from_str(&text)?;
    let network = &value[0];
    let vni = network["vni"].as_u64().context("`network inspect` tells no vni")?;
    let subnet = network["subnet"].as_str().context("`network inspect` tells no subnet")?;
    Ok(Network { vni, subnet: subnet.to_owned() })
}

/// Starts a command on a host as one would type it, and waits until its log says `words`.
fn start(node: &Node, command: &[&str], at: &Path, log: &Path, words: &str) -> Result<Child> {
    show_line(node.name(), command);
    let mut child = node.command(command);
    child
        .stdin(Stdio::null())
        .stdout(File::create(log)?)
        .stderr(File::options().append(true).open(log)?)
        .current_dir(at);
    let child = child.spawn().with_context(|| format!("cannot start {}", command[0]))?;
    follow(child, log, words)
}

/// Waits until a program's log says that it has come so far.
fn follow(mut child: Child, log: &Path, words: &str) -> Result<Child> {
    let said = || {
        let text = fs::read_to_string(log).unwrap_or_default();
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}): {}", text.trim());
        }
        Ok(text.contains(words).then_some(()))
    };
    eventually(&format!("{words:?} in {}", log.display()), PATIENCE, said)?;
    Ok(child)
}

/// Shows a command as one would type it on that host, runs it, and shows what it prints.
fn typed(node: &Node, words: &[&str]) -> Result<String> {
    show_line(node.name(), words);
    let output = node.read(words)?;
    output.lines().for_each(show_output);
    Ok(output)
}

fn show_line(host: &str, words: &[&str]) {
    println!("   {host}$ {}", Command::new(words[0]).args(&words[1..]).line());
}

fn show_output(line: &str) {
    println!("   | {line}");
}

fn step(number: u32, title: &str) {
    println!("\n{number}. {title}");
}

fn proved(what: &str) {
    println!("   ok: {what}");
}
