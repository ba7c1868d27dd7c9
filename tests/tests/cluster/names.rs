//! What `dig` says inside a workload.

use netagent_tests::lab::{Workload, eventually, must, three};
use xtask::node::Datapath;

#[test]
fn names_aliases_reverse_and_the_rest_of_the_world() {
    let cluster = three([Datapath::Ebpf, Datapath::Kernel, Datapath::Ebpf]);
    for name in ["mydrupal", "other"] {
        must(cluster.node(1).netagent(&["network", "create", name]));
    }
    let psql = Workload::start(
        cluster.node(1),
        &["--network", "mydrupal", "--name", "psql", "--alias", "db"],
    );
    let secret = Workload::start(cluster.node(2), &["--network", "other", "--name", "secret"]);
    let client = Workload::start(cluster.node(3), &["--network", "mydrupal", "--name", "client"]);
    let dig = |args: &str| {
        let mut line = vec!["dig", "+time=2", "+tries=2"];
        line.extend(args.split(' '));
        client.run(&line)
    };
    for name in ["psql", "PSQL", "psql.mydrupal", "db", "db.mydrupal"] {
        assert_eq!(dig(&format!("+short {name}")).trim(), psql.ip(), "{name}");
        assert_eq!(dig(&format!("+tcp +short {name}")).trim(), psql.ip(), "{name} over TCP");
    }
    let answer = dig("+noall +answer psql");
    let ttl: u32 = answer.split_whitespace().nth(1).expect("a TTL").parse().expect("a number");
    assert!(ttl <= 5, "{answer}");
    let empty = dig("psql AAAA");
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0"), "{empty}");
    assert_eq!(dig(&format!("+short -x {}", psql.ip())).trim(), "psql.mydrupal.");
    assert!(dig("nobody.mydrupal").contains("status: NXDOMAIN"));
    for hidden in ["secret", "secret.other"] {
        assert_eq!(client.resolves(&[hidden]), "", "{hidden}");
    }
    assert_eq!(client.resolves(&["-x", &secret.ip()]), "");

    // With the manager away the answers stay, and a name that comes back is seen.
    cluster.node(1).kill_agent().expect("kill");
    assert_eq!(dig("+short psql").trim(), psql.ip());
    cluster.node(1).start_agent().expect("start");
    psql.kill();
    eventually("a name that is gone is not answered", || client.resolves(&["psql"]).is_empty());
}
