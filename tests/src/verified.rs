//! What the verifier has to say of each program: how many instructions it looked at, over
//! all paths, and how much stack the deepest chain of calls takes. The table of it, a row a
//! kernel and program, is kept in the checkout.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use aya::programs::{ProgramError, SchedClassifier};
use aya::{EbpfLoader, VerifierLogLevel};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use netagent_common::programs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::object;

/// Where the table is, in the checkout.
pub const TABLE: &str = "ebpf/verified.md";

/// Most that a chain of calls may have on the stack, in bytes.
pub const STACK: u32 = 512;

/// What each function's part of the stack is rounded up to. Newer kernels round to 16; what
/// fits by this rule fits everywhere.
const GRAIN: u32 = 32;

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Line of kernels, such as `6.18`: others look at more or less.
    pub kernel: String,
    /// One of [`programs::ALL`].
    pub program: String,
    /// Instructions that the verifier looked at.
    pub instructions: u32,
    /// Bytes of stack of the deepest chain of calls.
    pub stack: u32,
}

impl Row {
    /// The row that a line of the table is.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let cells: Vec<_> = line.trim().strip_prefix('|')?.split('|').map(str::trim).collect();
        let [kernel, program, instructions, stack, ""] = cells[..] else { return None };
        Some(Self {
            kernel: kernel.to_owned(),
            program: program.trim_matches('`').to_owned(),
            instructions: instructions.parse().ok()?,
            stack: stack.parse().ok()?,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, program, instructions, stack } = self;
        write!(f, "| {kernel} | `{program}` | {instructions} | {stack} |")
    }
}

/// The line of the kernel that runs.
///
/// # Panics
/// If the kernel does not say its version.
#[must_use]
pub fn kernel() -> String {
    let name = nix::sys::utsname::uname().expect("the kernel says its name");
    let release = name.release().to_string_lossy().into_owned();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Asks the verifier. Only for a process that does nothing else: it can open no file
/// meanwhile.
///
/// # Panics
/// If the object is missing, or the kernel refuses it: root is needed.
#[must_use]
pub fn ask() -> Vec<Row> {
    let bytes = object::read();
    let parsed = linked(&bytes);
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let mut ebpf = loader.load(&bytes).expect("the maps can be made");
    let rows = programs::ALL.iter().map(|name| {
        let log = log(object::program(&mut ebpf, name));
        let (instructions, frames) =
            counts(&log).unwrap_or_else(|| panic!("the verifier counts nothing of {name}: {log}"));
        let program = parsed.programs.get(*name).expect("a program that was loaded is there");
        let calls = calls(&parsed.functions[&program.function_key()].instructions);
        assert_eq!(calls.len(), frames.len(), "functions of {name} and what the verifier tells");
        let frames: Vec<_> = frames.iter().map(|f| f.max(&1).next_multiple_of(GRAIN)).collect();
        let stack = deepest(0, &calls, &frames);
        Row { kernel: kernel(), program: (*name).to_owned(), instructions, stack }
    });
    rows.collect()
}

/// What the verifier says of a program that it accepts. aya shows that only of one that is
/// refused: so this one is, when the verifier is done with it, for want of a descriptor.
fn log(program: &mut SchedClassifier) -> String {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("less is always allowed");
    let refused = program.load();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as much as before is allowed");
    match refused {
        Err(ProgramError::LoadError { io_error, verifier_log })
            if io_error.raw_os_error() == Some(nix::errno::Errno::EMFILE as i32) =>
        {
            verifier_log.to_string()
        }
        Err(error) => panic!("the kernel refuses a program: {error:?}"),
        Ok(()) => panic!("a program was loaded without a descriptor"),
    }
}

/// The instructions looked at, and the stack of each function in the order in which they
/// follow one another.
fn counts(log: &str) -> Option<(u32, Vec<u32>)> {
    let after = |words: &str| log.lines().find_map(|line| line.strip_prefix(words));
    let instructions = after("processed ")?.split(' ').next()?.parse().ok()?;
    let frames = after("stack depth ")?.split(' ').next()?.split('+');
    Some((instructions, frames.map(str::parse).collect::<Result<_, _>>().ok()?))
}

/// The object with the functions that each program calls behind it.
fn linked(bytes: &[u8]) -> Object {
    let mut object = Object::parse(bytes).expect("what the compiler wrote can be read");
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("what a program calls is in its object");
    object
}

/// Which functions each function calls, by their place in the program.
fn calls(instructions: &[bpf_insn]) -> Vec<BTreeSet<usize>> {
    const CALL: u8 = 0x85;
    const WITHIN: u8 = 1;
    let calls: Vec<_> = (0_i64..)
        .zip(instructions)
        .filter(|(_, insn)| insn.code == CALL && insn.src_reg() == WITHIN)
        .map(|(at, insn)| (at, at + 1 + i64::from(insn.imm)))
        .collect();
    let starts: BTreeSet<_> = calls.iter().map(|(_, to)| *to).chain([0]).collect();
    let numbers: BTreeMap<_, _> = starts.into_iter().zip(0..).collect();
    let mut functions = vec![BTreeSet::new(); numbers.len()];
    for (at, to) in calls {
        let (_, caller) = numbers.range(..=at).next_back().expect("the first begins at 0");
        functions[*caller].insert(numbers[&to]);
    }
    functions
}

/// Stack of the deepest chain that begins with `function`.
fn deepest(function: usize, calls: &[BTreeSet<usize>], frames: &[u32]) -> u32 {
    let below = calls[function].iter().map(|callee| deepest(*callee, calls, frames));
    frames[function] + below.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_written_as_it_is_read() {
        let line = "| 6.18 | `netagent_from_lb` | 24538 | 352 |";
        let row = Row::parse(line).expect("a row");
        assert_eq!(
            (row.program.as_str(), row.instructions, row.stack),
            ("netagent_from_lb", 24538, 352)
        );
        assert_eq!(row.to_string(), line);
        assert_eq!(Row::parse("| kernel | program | instructions | stack |"), None);
        assert_eq!(Row::parse("|---|---|--:|--:|"), None);
    }

    #[test]
    fn the_verifier_is_understood() {
        let log = "verification time 912 usec\nstack depth 96+0+32\n\
                   processed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 9\n";
        assert_eq!(counts(log), Some((1234, vec![96, 0, 32])));
        assert_eq!(counts("processed 12 insns"), None);
    }

    #[test]
    fn the_deepest_chain_is_not_the_longest() {
        let calls = [BTreeSet::from([1, 3]), BTreeSet::from([2]), BTreeSet::new(), BTreeSet::new()];
        assert_eq!(deepest(0, &calls, &[64, 32, 32, 160]), 224);
    }
}
