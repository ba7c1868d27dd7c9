//! Runs the functions of the fuzz targets over their seeds, so that plain `cargo
//! test` covers them. An input that broke a target becomes a seed and stays here.

use std::fs;
use std::path::Path;

#[expect(unreachable_pub, reason = "a crate of its own for cargo-fuzz")]
#[path = "../../tests/fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds");
    for (target, run) in fuzz::TARGETS {
        let directory = seeds.join(target);
        let files = fs::read_dir(&directory)
            .unwrap_or_else(|e| panic!("{} has no seeds: {e}", directory.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            let data = fs::read(&path).unwrap();
            run(&data);
            // Broken off and altered input is input too.
            for cut in 0..data.len() {
                run(&data[..cut]);
                let mut altered = data.clone();
                altered[cut] ^= 0x15;
                run(&altered);
            }
            count += 1;
        }
        assert!(count > 0, "{} is empty", directory.display());
    }
}
