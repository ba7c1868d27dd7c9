//! Command lines that must parse, and ones that must not.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{Method, Uri};
use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("netagent").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_swarm_users_type() {
    for line in [
        "cluster init",
        "cluster init --advertise-addr 192.168.50.11 --data-path-port 7789",
        "cluster init --default-addr-pool 10.20.0.0/16 --default-addr-pool-mask-length 26",
        "cluster join --token TOKEN 192.168.50.11:2377",
        "cluster join --token TOKEN --advertise-addr 192.168.50.12 manager.example",
        "cluster join --token TOKEN --advertise-addr 203.0.113.8 --local-addr 10.0.0.12 m",
        "cluster join-token worker",
        "cluster join-token -q manager",
        "cluster join-token --rotate worker",
        "cluster leave",
        "cluster leave --force",
        "cluster info --format json",
        "node ls",
        "node ls -q --filter role=worker",
        "node ls -f name=n1 -f name=n2 --no-trunc",
        "node inspect n1 n2",
        "node rm --force n3",
        "network create mydrupal",
        "network create --driver overlay --attachable mydrupal",
        "network create -d overlay --subnet 10.9.0.0/24 --gateway 10.9.0.9 --ip-range 10.9.0.128/25 \
         --aux-address r=10.9.0.130 --aux-address s=10.9.0.131 --internal --label a=b --label c \
         -o mtu=1400 --opt com.docker.network.driver.mtu=1400 backend",
        "network ls",
        "network ls --format json --no-trunc -f driver=overlay -f label=tier=db",
        "network list -q",
        "network inspect -v mydrupal",
        "network inspect a b c",
        "network rm a b",
        "network prune -f",
        "network connect --ip 10.9.0.140 --alias db --alias sql backend psql",
        "network disconnect backend psql",
        "service create --name web --network mydrupal",
        "service create --name web --network mydrupal -p 8080:80 -p 80 -p 53:53/udp \
         --publish published=8443,target=443,protocol=tcp,mode=ingress,addr=192.168.50.11 \
         --publish published=90,target=90,mode=host,allow=10.0.0.0/8;192.0.2.1",
        "service create --name web --network a --network b --alias www --alias front \
         --endpoint-mode vip --scheduler wlc --affinity clientip:10m --idle-timeout 2h \
         --prefer local --label tier=front",
        "service create --name psql --network mydrupal --vip 10.0.0.99",
        "service create --name dns --network mydrupal --endpoint-mode dnsrr",
        "service ls",
        "service ls -q -f name=web -f network=mydrupal -f mode=vip -f label=tier",
        "service list --format json --no-trunc",
        "service ps web api -f state=healthy -f node=n1 --no-trunc",
        "service inspect web psql",
        "service update --publish-add 8081:80 --publish-rm 80 --publish-rm 53/udp web",
        "service update --scheduler mh --affinity none --idle-timeout 1h30m --prefer any web",
        "service update --endpoint-mode dnsrr --label-add a=b --label-rm c web",
        "service scale web=3",
        "service rm web psql",
        "service rm --force web",
        "endpoint ls -f network=mydrupal -f node=n1 -f service=web",
        "endpoint inspect psql",
        "endpoint update --weight 0 --drain web-1 web-2",
        "endpoint update --no-drain web-1",
        "endpoint rm psql",
        "run --network mydrupal -- ping psql",
        "run --network mydrupal psql --network x",
        "run --network a --network b,alias=x,ip=10.0.1.9 --name psql --alias db --user postgres \
         --hostname h -- postgres -D /srv/db",
        "run --network a --network-alias db --ip 10.0.0.9 --netns /run/netns/blue",
        "run --network mydrupal -- ping -c 3 psql",
        "run --network front --network back,alias=db,ip=10.0.1.50 --name a sh -c ls",
        "run --network mydrupal --netns /run/netns/blue",
        "metrics --nonzero",
        "verify",
        "completion zsh",
        "man /tmp",
        "-H unix:///tmp/a.sock network ls",
        "network ls -H unix:///tmp/a.sock",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_is_refused_before_anything_is_asked() {
    for (line, complaint) in [
        ("", "Usage"),
        ("network create", "<NAME>"),
        ("network create -bad-", "unexpected argument"),
        ("network create sp/ace", "is not a name"),
        ("network create --subnet 10.0.0.0/33 a", "--subnet"),
        ("network create --gateway fd00::1 a", "--gateway"),
        ("network create --aux-address 10.0.0.9 a", "NAME=ADDRESS"),
        ("network create --label =x a", "no key"),
        ("network ls --filter scope=swarm", "the keys are driver, id, label, name"),
        ("network ls -q --format json", "cannot be used with"),
        ("network connect mydrupal", "<WORKLOAD>"),
        ("network rm", "<NETWORK>"),
        ("endpoint update web-1", "--weight"),
        ("endpoint update --drain --no-drain web-1", "cannot be used with"),
        ("endpoint update --weight 65536 web-1", "65535"),
        ("service create --network mydrupal", "--name"),
        ("service create --name web", "--network"),
        ("service create --name web --network a -p http", "is not a port"),
        ("service create --name web --network a --affinity cookie", "affinity is clientip"),
        ("service create --name web --network a --idle-timeout 900", "a number with a unit"),
        ("service create --name web --network a --scheduler random", "[possible values: rr, wrr"),
        ("service update web", "--publish-add"),
        ("service update --publish-rm 8080:80 web", "is not a port"),
        ("service ls -f image=x", "the keys are id, label, mode, name, network"),
        ("service ps", "<SERVICE>"),
        ("run -- ls", "--network"),
        ("run --network mydrupal", "COMMAND"),
        ("run --network a", "COMMAND"),
        ("run -- true", "--network"),
        ("run --network a,b -- true", "alias=NAME"),
        ("run --network a --netns /run/netns/x --user root", "COMMAND"),
        ("cluster init --data-path-port 80", "1024"),
        ("cluster join 192.168.50.11", "--token"),
        ("cluster join-token boss", "worker"),
        ("node ls --format yaml", "table"),
        ("-H tcp://192.168.50.11:2377 node ls", "unix://"),
        ("-H unix://relative/path node ls", "absolute path"),
    ] {
        let error = parse(line).map(|_| ()).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(complaint), "{line}: {error}");
    }
}

#[test]
fn the_default_host_is_the_agents_default_socket() {
    // NETAGENT_HOST of whoever runs the tests must not matter.
    let command = Cli::command();
    let host = command.get_arguments().find(|a| a.get_id() == "host").unwrap();
    assert_eq!(host.get_default_values(), ["unix:///run/netagent/netagent.sock"]);
    let host: Host = "unix:///run/x.sock".parse().unwrap();
    assert_eq!(host.0, PathBuf::from("/run/x.sock"));
    assert_eq!(host.to_string(), "unix:///run/x.sock");
}

#[test]
fn every_command_explains_itself() {
    fn walk(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command.get_arguments() {
            let id = argument.get_id();
            assert!(argument.get_help().is_some(), "{path}: {id} has no help");
        }
        if command.has_subcommands() {
            command.get_subcommands().for_each(|sub| walk(sub, &path));
        } else {
            let examples = command.get_after_long_help().map(ToString::to_string);
            assert!(
                examples.is_some_and(|text| text.contains("Examples:")),
                "{path} has no examples"
            );
        }
    }
    walk(&Cli::command(), "");
}

#[test]
fn names_in_paths_cannot_change_the_path() {
    assert_eq!(path(&["networks", "my-net_1"]), "/v1/networks/my-net_1");
    assert_eq!(path(&["networks", "a/b?c#d e%"]), "/v1/networks/a%2Fb%3Fc%23d%20e%25");
    assert_eq!(path(&["networks", "é", "connect"]), "/v1/networks/%C3%A9/connect");
}

#[tokio::test]
async fn each_goes_on_past_failures_and_names_them_all() {
    let names = ["a", "bad", "b", "worse"].map(str::to_owned);
    let (done, result) = each(&names, async |name| {
        anyhow::ensure!(name.len() == 1, "{name} is too long");
        Ok(name.to_owned())
    })
    .await;
    assert_eq!(done, ["a", "b"]);
    assert_eq!(result.unwrap_err().to_string(), "bad is too long\nworse is too long");
}

#[test]
fn without_an_agent_the_socket_and_the_remedy_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host(dir.path().join("netagent.sock"));
    let result =
        ask(&host, async |agent| network::run(network_verb("network rm a b"), agent).await);
    let text = explain(&result.unwrap_err());
    assert!(text.contains(&host.0.display().to_string()), "{text}");
    assert!(text.contains("systemctl start netagent") || text.contains("sudo"), "{text}");
    assert_eq!(text.matches("cannot reach").count(), 1, "said once for both names: {text}");
}

fn network_verb(line: &str) -> network::Verb {
    match parse(line).unwrap().command {
        Command::Network(verb) => verb,
        other => panic!("{other:?}"),
    }
}

/// An agent that answers with what a test says, and notes what it was asked.
struct FakeAgent {
    host: Host,
    asked: Arc<Mutex<Vec<String>>>,
    _directory: tempfile::TempDir,
}

impl FakeAgent {
    /// Replies are JSON by `METHOD PATH`; anything else is not found.
    fn start(replies: &'static [(&'static str, &'static str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("netagent.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = asked.clone();
        let answer = move |method: Method, uri: Uri, body: String| async move {
            let what = format!("{method} {uri}");
            let body = if body == "null" { "" } else { &body };
            note.lock().unwrap().push(format!("{what} {body}").trim_end().to_owned());
            match replies.iter().find(|(request, _)| *request == what) {
                Some((_, reply)) => (StatusCode::OK, (*reply).to_owned()),
                None => (StatusCode::NOT_FOUND, r#"{"message":"no such thing"}"#.to_owned()),
            }
        };
        // It ends with the test's process.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                axum::serve(listener, Router::new().fallback(answer)).await
            })
        });
        Self { host: Host(socket), asked, _directory: directory }
    }

    /// Runs a command line; what it asked, and whether it succeeded.
    fn run(&self, line: &str) -> (Vec<String>, anyhow::Result<()>) {
        let Cli { command, .. } = parse(line).unwrap();
        let result = dispatch(Cli { host: self.host.clone(), command }).map(|_| ());
        (std::mem::take(&mut *self.asked.lock().unwrap()), result)
    }
}

#[test]
fn what_is_asked_of_the_agent() {
    const NETWORK: &str = r#"{"id":"abcdefghijklmnop","name":"a","driver":"overlay","vni":4096,
        "subnet":"10.9.0.0/24","gateway":"10.9.0.1","ip_range":null,"aux_addresses":{},
        "internal":false,"mtu":null,"labels":{},"created":"2026-11-20T10:00:00Z"}"#;
    const SERVICE: &str = r#"{"id":"abcdefghijklmnop","name":"web","aliases":[],"networks":[],
        "endpoint_mode":"vip","ports":[],"scheduler":"wrr","affinity":null,"idle_timeout":1,
        "prefer":"any","labels":{},"created":"2026-11-20T10:00:00Z"}"#;
    const TOKEN: &str = r#"{"role":"worker","token":"T","manager":"192.168.50.11:2377"}"#;
    const MEMBERSHIP: &str = r#"{"cluster":"c","node":"abcdefghijklmnop","role":"worker"}"#;
    let agent = FakeAgent::start(&[
        ("POST /v1/networks", NETWORK),
        ("DELETE /v1/networks/a", ""),
        ("DELETE /v1/networks/b", ""),
        ("POST /v1/networks/prune", r#"{"networks":["a"]}"#),
        ("POST /v1/networks/a/connect", ""),
        ("POST /v1/networks/a/disconnect", ""),
        ("POST /v1/services", SERVICE),
        ("PATCH /v1/services/web", SERVICE),
        ("DELETE /v1/services/web", ""),
        ("DELETE /v1/services/web?force=true", ""),
        ("GET /v1/nodes", "[]"),
        ("DELETE /v1/nodes/n3", ""),
        ("DELETE /v1/nodes/n3?force=true", ""),
        ("GET /v1/cluster/join-token/worker", TOKEN),
        ("POST /v1/cluster/join-token/worker", TOKEN),
        ("POST /v1/cluster/init", MEMBERSHIP),
        ("POST /v1/cluster/join", MEMBERSHIP),
        ("POST /v1/cluster/leave", ""),
    ]);
    for (line, asked) in [
        (
            "network create --subnet 10.9.0.0/24 --aux-address r=10.9.0.9 --label x -o mtu=1400 a",
            &["POST /v1/networks {\"name\":\"a\",\"driver\":\"overlay\",\
               \"subnet\":\"10.9.0.0/24\",\"gateway\":null,\"ip_range\":null,\
               \"aux_addresses\":{\"r\":\"10.9.0.9\"},\"internal\":false,\
               \"labels\":{\"x\":\"\"},\"options\":{\"mtu\":\"1400\"}}"][..],
        ),
        ("network rm a b", &["DELETE /v1/networks/a", "DELETE /v1/networks/b"]),
        ("network prune -f", &["POST /v1/networks/prune"]),
        (
            "network connect --ip 10.9.0.140 --alias db a web",
            &["POST /v1/networks/a/connect {\"workload\":\"web\",\"aliases\":[\"db\"],\
               \"address\":\"10.9.0.140\"}"],
        ),
        (
            "network disconnect a web",
            &["POST /v1/networks/a/disconnect {\"workload\":\"web\",\"aliases\":[],\
               \"address\":null}"],
        ),
        (
            "service create --name web --network a --network b --alias www --vip 10.9.0.99 \
             -p 8080:80 --affinity clientip --idle-timeout 2h --label x",
            &["POST /v1/services {\"name\":\"web\",\"aliases\":[\"www\"],\
               \"networks\":[\"a\",\"b\"],\"endpoint_mode\":\"vip\",\"vip\":\"10.9.0.99\",\
               \"ports\":[{\"published\":8080,\"target\":80,\"protocol\":\"tcp\",\
               \"mode\":\"ingress\",\"address\":null,\"allow\":[]}],\"scheduler\":\"wrr\",\
               \"affinity\":300,\"idle_timeout\":7200,\"prefer\":\"any\",\"labels\":{\"x\":\"\"}}"],
        ),
        (
            "service update --publish-add 8081:80 --publish-rm 53/udp --affinity none web",
            &[
                "PATCH /v1/services/web {\"endpoint_mode\":null,\"vip\":null,\
                 \"alias_add\":[],\"alias_rm\":[],\"publish_add\":[{\
                 \"published\":8081,\"target\":80,\"protocol\":\"tcp\",\"mode\":\"ingress\",\
                 \"address\":null,\"allow\":[]}],\"publish_rm\":[{\"target\":53,\
                 \"protocol\":\"udp\"}],\"scheduler\":null,\"affinity\":0,\
                 \"idle_timeout\":null,\"prefer\":null,\"label_add\":{},\"label_rm\":[]}",
                "GET /v1/nodes",
            ],
        ),
        ("service rm web", &["DELETE /v1/services/web"]),
        ("service rm -f web", &["DELETE /v1/services/web?force=true"]),
        ("node rm n3", &["DELETE /v1/nodes/n3"]),
        ("node rm -f n3", &["DELETE /v1/nodes/n3?force=true"]),
        (
            "cluster init --advertise-addr 203.0.113.7 --local-addr 10.0.0.11",
            &[
                "POST /v1/cluster/init {\"advertise\":\"203.0.113.7\",\"local\":\"10.0.0.11\",\
               \"pool\":null,\"pool_prefix\":null,\"data_path_port\":null}",
                "GET /v1/cluster/join-token/worker",
            ],
        ),
        (
            "cluster join --token T m",
            &["POST /v1/cluster/join {\"token\":\"T\",\"manager\":\"m\",\"advertise\":null,\
             \"local\":null}"],
        ),
        ("cluster join-token worker", &["GET /v1/cluster/join-token/worker"]),
        ("cluster join-token --rotate worker", &["POST /v1/cluster/join-token/worker"]),
        ("cluster leave --force", &["POST /v1/cluster/leave {\"force\":true}"]),
    ] {
        let (was_asked, result) = agent.run(line);
        assert_eq!(was_asked, asked, "{line}");
        result.expect(line);
    }
}

#[test]
fn what_cannot_be_removed_does_not_keep_the_rest() {
    let agent = FakeAgent::start(&[("DELETE /v1/networks/b", "")]);
    let (asked, result) = agent.run("network rm a b");
    assert_eq!(asked, ["DELETE /v1/networks/a", "DELETE /v1/networks/b"]);
    assert_eq!(result.unwrap_err().to_string(), "no such thing");
}

#[test]
fn scaling_is_explained() {
    let agent = FakeAgent::start(&[]);
    let (asked, result) = agent.run("service scale web=3");
    assert_eq!(asked, [""; 0]);
    let text = result.unwrap_err().to_string();
    assert!(text.contains("`netagent run --service web`"), "{text}");
}

#[test]
fn endpoint_verbs_mean_a_workload_or_else_a_stale_endpoint() {
    const ENDPOINTS: &str = r#"[{"id":"abcdefghijklmnop","network":"nnnnnnnnnnnnnnnn",
        "node":"aaaaaaaaaaaaaaaa","workload":"wwwwwwwwwwwwwwww","name":"elsewhere","aliases":[],
        "address":"10.0.0.2","mac":"02:6e:0a:00:00:02","created":"2026-11-20T10:00:00Z"}]"#;
    const WORKLOAD: &str = r#"{"id":"wwwwwwwwwwwwwwww","name":"web","netns":"/proc/1/ns/net",
        "hold":{"kind":"process","pid":1,"start":0},"attachments":[]}"#;
    let agent = FakeAgent::start(&[
        ("DELETE /v1/workloads/web", ""),
        ("GET /v1/endpoints", ENDPOINTS),
        ("DELETE /v1/endpoints/abcdefghijklmnop", ""),
        ("PATCH /v1/workloads/web", WORKLOAD),
    ]);
    let (asked, result) = agent.run("endpoint rm web");
    assert_eq!(asked, ["DELETE /v1/workloads/web"]);
    result.unwrap();
    let (asked, result) = agent.run("endpoint rm abcdefghijkl");
    assert_eq!(
        asked,
        [
            "DELETE /v1/workloads/abcdefghijkl",
            "GET /v1/endpoints",
            "DELETE /v1/endpoints/abcdefghijklmnop"
        ]
    );
    result.unwrap();
    let (asked, result) = agent.run("endpoint update --weight 3 --drain web");
    assert_eq!(asked, ["PATCH /v1/workloads/web {\"weight\":3,\"draining\":true}"]);
    result.unwrap();
    let (asked, result) = agent.run("endpoint rm elsewhere");
    assert_eq!(asked, ["DELETE /v1/workloads/elsewhere", "GET /v1/endpoints"], "not by name");
    assert_eq!(result.unwrap_err().to_string(), "no such thing");
}
