//! Two networks as in the voting application: votes go through Redis on `frontend`, a
//! worker on both carries them to PostgreSQL on `backend`.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use netagent_tests::lab::{Workload, eventually, must, three};
use xtask::node::Datapath;
use xtask::setup::postgres_program;

#[test]
fn votes_are_counted_and_the_frontend_sees_no_database() {
    let cluster = three([Datapath::Ebpf; 3]);
    let n1 = cluster.node(1);
    for network in ["frontend", "backend"] {
        must(n1.netagent(&["network", "create", network]));
    }
    for (service, network) in [("redis", "frontend"), ("db", "backend")] {
        must(n1.netagent(&["service", "create", "--name", service, "--network", network]));
    }
    let redis = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let redis = [&["/usr/bin/redis-check-rdb"][..], &redis].concat();
    // Debian's tools hold the server too, by another name; it goes by what it is called.
    let script = r#"exec -a redis-server "$0" "$@""#;
    let redis = [&["bash", "-c", script][..], &redis].concat();
    let _redis = Workload::start_command(n1, &["--service", "redis"], &redis);

    let home = tempfile::tempdir().expect("a directory");
    let database = home.path().join("db");
    fs::create_dir(&database).expect("a directory");
    let user = nix::unistd::User::from_name("postgres").expect("users").expect("user postgres");
    chown(&database, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("its own");
    let open = nix::sys::stat::Mode::from_bits_truncate(0o755);
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        home.path(),
        open,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .expect("passable");
    let data = database.join("data").display().to_string();
    let mut init = Command::new("setpriv");
    init.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
        .arg(postgres_program("initdb").expect("initdb"))
        .args(["--pgdata", &data, "--auth", "trust", "--no-sync", "--username", "vote"])
        .current_dir(&database);
    must(init.output().map_err(Into::into));
    let append = "host all all 0.0.0.0/0 trust\n";
    let hba = database.join("data/pg_hba.conf");
    fs::write(&hba, fs::read_to_string(&hba).expect("a file") + append).expect("a file");
    let server = postgres_program("postgres").expect("postgres").display().to_string();
    let options = ["-c", "listen_addresses=*", "-c", "unix_socket_directories="];
    let postgres = Workload::start_command(
        cluster.node(2),
        &["--service", "db", "--user", "postgres"],
        &[&[&*server, "-D", &data][..], &options].concat(),
    );

    // The worker: from one to the other, by names alone.
    let url = "postgresql://vote@db/postgres";
    let table = format!("psql -qX {url} -c 'create table vote (choice text)'");
    let worker = format!(
        "until {table}; do sleep 0.2; done; while :; do \
           choice=$(redis-cli --raw -h redis blpop votes 1 | tail -n 1); \
           [ -z \"$choice\" ] || psql -qX {url} -c \"insert into vote values ('$choice')\"; \
         done"
    );
    let both = ["--network", "frontend", "--network", "backend", "--name", "worker"];
    let _worker = Workload::start_command(cluster.node(3), &both, &["bash", "-c", &worker]);
    let vote = Workload::start(cluster.node(3), &["--network", "frontend", "--name", "vote"]);
    for choice in ["cats", "dogs", "cats"] {
        eventually("Redis takes the vote", || {
            vote.exec(&["redis-cli", "-h", "redis", "rpush", "votes", choice]).status.success()
        });
    }
    let result = Workload::start(n1, &["--network", "backend", "--name", "result"]);
    let count = "select choice, count(*) from vote group by 1 order by 1";
    eventually("the votes are counted", || {
        let counted = result.exec(&["psql", "-qXAt", url, "-c", count]);
        String::from_utf8_lossy(&counted.stdout) == "cats|2\ndogs|1\n"
    });

    assert_eq!(vote.resolves(&["db"]), "", "the database has no name there");
    let db = netagent_tests::lab::inspect(n1, "service", "db");
    let vip = db["networks"][0]["vip"].as_str().expect("a VIP");
    let task = db["tasks"][0]["address"].as_str().expect("an address");
    for address in [vip, task] {
        assert!(!vote.pings(address, 56), "{address} answers on the frontend");
        let there = vote.exec(&["nc", "-z", "-w", "1", address, "5432"]);
        assert!(!there.status.success(), "{address} takes connections from the frontend");
    }
    // By itself it takes its shared memory along.
    postgres.stop();
}
