//! `netagent service` as an administrator types it, without a packet sent.

use std::collections::BTreeSet;

use netagent_tests::lab::{Workload, eventually, inspect, list, must, refusal, three};
use serde_json::json;
use xtask::node::{Datapath, Node, Shell as _};

/// Standard output and standard error of a `netagent` that must succeed.
fn said(node: &Node, line: &str) -> (String, String) {
    let output = node.netagent(&words(line)).expect("netagent");
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    (must(Ok(output)), warned)
}

fn netagent(node: &Node, line: &str) -> String {
    said(node, line).0
}

fn refused(node: &Node, line: &str) -> String {
    refusal(node.netagent(&words(line)))
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The line of `service ls` for a service, without its identifier.
fn line_of(node: &Node, service: &str) -> Vec<String> {
    let table = netagent(node, "service ls");
    let mut lines = table.lines();
    assert_eq!(words(lines.next().expect("a header")), words("ID NAME MODE TASKS VIP PORTS"));
    let line = lines.map(words).find(|line| line[1] == service).expect("the service");
    line[1..].iter().map(|cell| (*cell).to_owned()).collect()
}

#[test]
fn create_change_and_remove() {
    let cluster = three([Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel]);
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    netagent(n1, "network create --subnet 10.9.0.0/24 front");
    netagent(n1, "network create --subnet 10.9.1.0/24 back");
    let (id, warned) = said(
        n1,
        "service create --name web --network front --network back --alias www -p 8080:80 \
         --publish published=8443,target=443,addr=192.168.50.11,allow=192.168.50.0/24 \
         --scheduler wlc --affinity clientip:10m --idle-timeout 2h --label tier=front",
    );
    assert_eq!(warned.trim(), format!("netagent: warning: {SILENT}"), "n3 has no published ports");
    let web = inspect(n1, "service", "web");
    assert_eq!(web["id"], id.trim());
    assert_eq!(web["aliases"], json!(["www"]));
    assert_eq!((&web["scheduler"], &web["affinity"]), (&json!("wlc"), &json!(600)));
    assert_eq!((&web["idle_timeout"], &web["labels"]["tier"]), (&json!(7200), &json!("front")));
    assert_eq!(web["ports"][1]["allow"], json!(["192.168.50.0/24"]));
    assert_eq!(web["tasks"], json!([]));
    let vips: Vec<_> =
        [0, 1].map(|n| web["networks"][n]["vip"].as_str().expect("a VIP").to_owned()).to_vec();
    assert!(vips[0].starts_with("10.9.0.") && vips[1].starts_with("10.9.1."), "{vips:?}");
    assert_eq!(
        line_of(n1, "web"),
        ["web", "vip", "0/0", &vips.join(","), "*:8080->80/tcp,", "192.168.50.11:8443->443/tcp"]
    );
    eventually("a worker lists it, too", || list(n2, "service").len() == 1);

    let (_, warned) = said(n1, "service create --name psql --network back --vip 10.9.1.99");
    assert_eq!(warned, "", "nothing is published");
    assert_eq!(line_of(n1, "psql"), ["psql", "vip", "0/0", "10.9.1.99"]);
    netagent(n1, "service create --name auto --network back -p 53/udp");
    let port = inspect(n1, "service", "auto")["ports"][0]["published"].as_u64().expect("a port");
    assert!((30000..=32767).contains(&port), "{port}");
    assert_eq!(netagent(n1, "service ls -q").lines().count(), 3);
    assert_eq!(netagent(n1, "service ls -q --no-trunc -f name=we").trim(), id.trim());
    for filter in ["network=front", "label=tier=front", "name=web"] {
        let shown = netagent(n1, &format!("service ls --format json --filter {filter}"));
        assert_eq!(shown.lines().count(), 1, "{filter}: {shown}");
    }

    for (line, reason) in [
        ("create --name web --network back", "service web exists"),
        ("create --name api --network nowhere", "nowhere"),
        ("create --name api --network back -p 8080:81", "published by service web"),
        ("create --name api --network back -p 192.168.50.12:8080:81", "service web"),
        ("create --name api --network back -p 2377:80", "cluster's own"),
        ("create --name www --network front", "service web"),
        ("create --name api --network back --vip 10.9.1.99", "psql"),
        ("create --name api --network back --vip 10.8.0.9", "10.8.0.9"),
        ("create --name api --network back --endpoint-mode dnsrr -p 81:81", "mode=host"),
        ("update --endpoint-mode dnsrr web", "mode=host"),
        ("update --publish-add 8080:80 psql", "published by service web"),
        ("update --publish-rm 81 web", "81/tcp"),
        ("update --scheduler rr nobody", "nobody"),
        ("scale web=3", "netagent run --service web"),
        ("ps nobody", "nobody"),
    ] {
        let text = refused(n1, &format!("service {line}"));
        assert!(text.contains(reason), "{line}: {text}");
    }
    assert_eq!(netagent(n1, "service ls -q").lines().count(), 3, "nothing of what was refused");
    let text = refused(n2, "run --network front --name web -- true");
    assert!(text.contains("service web"), "a name means one thing: {text}");
    let text = refused(n1, "network rm front");
    assert!(text.contains("web"), "{text}");
    let services = must(n1.netagent(&["network", "inspect", "-v", "front"]));
    let services: serde_json::Value = serde_json::from_str(&services).expect("JSON");
    assert_eq!(services[0]["services"][0]["name"], "web");

    // On the network, and off it; a kernel node has no use for virtual addresses.
    let clients = [(n2, "front"), (n3, "back"), (n2, "back")]
        .map(|(node, network)| Workload::start(node, &["--network", network]));
    assert_eq!(clients[0].resolves(&["web"]), vips[0]);
    assert_eq!(clients[0].resolves(&["www.front"]), vips[0]);
    assert_eq!(clients[0].resolves(&["_443._tcp.web", "SRV"]), "0 0 443 web.front.");
    assert_eq!(clients[0].resolves(&["psql"]), "", "not on its network");
    assert_eq!(clients[1].resolves(&["web"]), "", "no backend");
    assert_eq!(clients[2].resolves(&["-x", "10.9.1.99"]), "psql.back.");

    let (name, warned) = said(
        n1,
        "service update --publish-rm 443 --publish-add 8081:80 --scheduler mh --affinity none \
         --idle-timeout 1h --prefer local --label-add a=b --label-rm tier web",
    );
    assert_eq!((name.trim(), warned.lines().count()), ("web", 1));
    let changed = inspect(n1, "service", "web");
    assert_eq!((&changed["scheduler"], &changed["affinity"]), (&json!("mh"), &json!(null)));
    assert_eq!((&changed["idle_timeout"], &changed["prefer"]), (&json!(3600), &json!("local")));
    assert_eq!(changed["labels"], json!({"a": "b"}));
    assert_eq!(changed["networks"], web["networks"], "addresses stay");
    assert_eq!(
        line_of(n1, "web")[4..].join(" "),
        "*:8080->80/tcp, *:8081->80/tcp",
        "the rest stays"
    );
    netagent(n1, "service update --alias-rm www --alias-add w web");
    eventually("it has another alias", || clients[0].resolves(&["w"]) == vips[0]);
    assert_eq!(clients[0].resolves(&["www"]), "");
    netagent(n1, "service update --publish-rm 80 --endpoint-mode dnsrr web");
    assert_eq!(line_of(n1, "web"), ["web", "dnsrr", "0/0"], "no port, no address");

    let text = refused(n1, "service rm web nobody psql");
    assert!(text.contains("nobody") && !text.contains("web"), "{text}");
    let left: Vec<_> = list(n1, "service").iter().map(|s| s["name"].clone()).collect();
    assert_eq!(left, [json!("auto")]);
    eventually("its name is gone", || clients[2].resolves(&["psql"]).is_empty());
    netagent(n1, "service create --name again --network front -p 8080:80");
}

/// What `service ps` shows of a service: name, node, addresses, weight, state.
fn tasks(node: &Node, service: &str) -> Vec<[String; 5]> {
    let table = netagent(node, &format!("service ps {service}"));
    let mut lines = table.lines();
    let header = words(lines.next().expect("a header"));
    assert_eq!(header[2..], ["NAME", "SERVICE", "NODE", "ADDRESS", "WEIGHT", "STATE", "AGE"]);
    let cells = |line| {
        let cells = words(line);
        assert_eq!((cells[2], cells.len()), (service, 8), "{line}");
        [1, 3, 4, 5, 6].map(|n| cells[n].to_owned())
    };
    lines.map(cells).collect()
}

#[test]
fn tasks_come_drain_and_go() {
    let cluster = three([Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel]);
    let (n1, n2, n3) = (cluster.node(1), cluster.node(2), cluster.node(3));
    netagent(n1, "network create --subnet 10.9.0.0/24 front");
    netagent(n1, "network create --subnet 10.9.1.0/24 back");
    netagent(n1, "service create --name web --network front --network back -p 8080:80");
    let client = Workload::start(n2, &["--network", "front"]);
    let backends = || {
        let found = client.resolves(&["tasks.web"]);
        words(&found).into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };

    let a = Workload::start(n1, &["--service", "web", "--name", "a"]);
    let b = Workload::start(
        n2,
        &["--service", "web", "--name", "b", "--network", "front", "--weight", "3"],
    );
    let both = format!("{},{}", a.addresses[0], a.addresses[1]);
    let shown = |task: &str, node: &str, addresses: &str, weight: &str, state: &str| {
        [task, node, addresses, weight, state].map(str::to_owned)
    };
    let first = shown("a", "n1", &both, "1", "healthy");
    for node in [n1, n2] {
        eventually("both tasks are shown", || tasks(node, "web").len() == 2);
        assert_eq!(tasks(node, "web"), [first.clone(), shown("b", "n2", &b.ip(), "3", "healthy")]);
    }
    assert_eq!(line_of(n1, "web")[2], "2/2");
    assert_eq!(netagent(n1, "endpoint ls -q -f service=web").lines().count(), 3);
    assert_eq!(inspect(n1, "service", "web")["tasks"].as_array().map(Vec::len), Some(3));
    assert_eq!(backends(), [a.ip(), b.ip()].into());
    let b_host = format!("{}.tasks.web.front.", b.ip().replace('.', "-"));
    let located = client.resolves(&["_80._tcp.tasks.web", "SRV"]);
    assert!(located.contains(&format!("0 3 80 {b_host}")), "{located}");

    let plain = Workload::start(n3, &["--network", "front"]);
    let named = plain.resolves(&["web"]);
    let named: BTreeSet<_> = words(&named).into_iter().map(str::to_owned).collect();
    assert_eq!(named, backends(), "a kernel node names the backends");
    assert!(plain.pings(&b.ip(), 56), "and reaches them");

    // Known everywhere, and followed by names, when the command returns.
    netagent(n2, "endpoint update --drain b");
    assert_eq!(tasks(n1, "web")[1], shown("b", "n2", &b.ip(), "3", "draining"));
    assert_eq!(line_of(n1, "web")[2], "1/2");
    assert_eq!(netagent(n1, "service ps -q -f state=draining web").lines().count(), 1);
    eventually("who drains is not named", || backends() == [a.ip()].into());
    assert_eq!(client.resolves(&["b"]), b.ip(), "under its own name it is");
    netagent(n2, "endpoint update --no-drain --weight 0 b");
    assert_eq!(tasks(n1, "web")[1], shown("b", "n2", &b.ip(), "0", "healthy"));
    assert_eq!(line_of(n1, "web")[2], "1/2");
    netagent(n2, "endpoint update --weight 2 b");
    eventually("it is named again", || backends().len() == 2);

    // One that is not healthy yet.
    let file = tempfile::tempdir().expect("a directory");
    let check = format!("test -e {}/ready", file.path().display());
    let c = Workload::start(
        n2,
        &["--service", "web", "--name", "c", "--network", "front", "--health-cmd", &check],
    );
    eventually("it is not healthy", || tasks(n1, "web").len() == 3);
    assert_ne!(tasks(n1, "web")[2][4], "healthy");
    assert!(!backends().contains(&c.ip()));
    std::fs::write(file.path().join("ready"), "").expect("writing");
    eventually("it becomes healthy", || tasks(n1, "web")[2][4] == "healthy");
    eventually("and is named", || backends().contains(&c.ip()));
    c.kill();
    eventually("it is gone", || tasks(n1, "web").len() == 2 && backends().len() == 2);

    let text = refused(n3, "run --service web -- true");
    assert!(text.contains("n3") && text.contains("datapath"), "{text}");
    let text = refused(n1, "service rm web");
    assert!(text.contains("--force") && text.contains('b'), "{text}");
    netagent(n1, "service rm --force web");
    assert_eq!(list(n1, "service"), [json!(null); 0]);
    eventually("its name is gone", || client.resolves(&["web"]).is_empty());
    assert!(client.pings(&b.ip(), 56), "what served goes on");
    assert_eq!(netagent(n1, "endpoint ls -q -f service=web"), "");
}

const SILENT: &str = "published ports do not answer on n3: --datapath kernel carries networks and \
                      names only";

/// What bash makes of a TAB after a line.
#[test]
fn the_shell_completes_it() {
    let cluster = three([Datapath::Ebpf; 3]);
    let complete = |line: &str| {
        let words = words(line);
        let script = format!(
            "source <(netagent completion bash); COMP_WORDS=({} ''); COMP_CWORD={}; \
             _netagent netagent '' {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len(),
            words[words.len() - 1],
        );
        let shown = must(cluster.node(1).exec(&["bash", "-c", &script]));
        shown.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let has = |line: &str, wanted: &str| {
        let shown = complete(line);
        for word in words(wanted) {
            assert!(shown.contains(word), "{word} after {line}: {shown:?}");
        }
    };
    has("netagent service", "create ls ps inspect update rm");
    has("netagent service create --scheduler", "rr wrr lc wlc sh mh");
    has("netagent service create --prefer", "any local");
    has("netagent service update", "--publish-add --publish-rm --affinity");
}
