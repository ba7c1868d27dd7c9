//! A way to run `from_overlay` on a packet that seems to come from the vxlan device: a
//! program of a few instructions that writes the tunnel's key, which TEST_RUN cannot,
//! and jumps.
//!
//! It speaks bpf(2) itself, for aya loads programs from ELF files alone.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use aya::programs::ProgramFd;
use nix::libc;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Returned where the jump failed; no program of ours returns it.
const LOST: i32 = 99;

/// The program and the table that it jumps by.
#[derive(Debug)]
pub(crate) struct Trampoline {
    program: OwnedFd,
    _table: OwnedFd,
}

impl Trampoline {
    /// One that jumps to `target`.
    pub(crate) fn new(target: &ProgramFd) -> Self {
        let table = create_table().expect("a program array can be made");
        let target = target.as_fd().as_raw_fd();
        put(&table, target).expect("the table takes a tc program");
        let program = load(&code(table.as_raw_fd())).expect("the kernel takes the trampoline");
        Self { program, _table: table }
    }

    /// Runs on `frame`; `cb[0]` and `cb[1]` of `context`, a `struct __sk_buff`, are VNI and
    /// VTEP. What was returned, and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8], context: &[u8], room: usize) -> (u32, Vec<u8>) {
        let mut output = vec![0_u8; room];
        let mut attr = TestRun {
            prog_fd: self.program.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_size_out: room as u32,
            data_in: frame.as_ptr() as u64,
            data_out: output.as_mut_ptr() as u64,
            repeat: 1,
            ctx_size_in: context.len() as u32,
            ctx_in: context.as_ptr() as u64,
            ..TestRun::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attr).expect("the trampoline can be run");
        assert_ne!(attr.retval, LOST as u32, "the trampoline lost its packet");
        output.truncate(attr.data_size_out as usize);
        (attr.retval, output)
    }
}

/// One instruction (linux/bpf.h, `struct bpf_insn`).
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_le_bytes([code, src << 4 | dst, o0, o1, i0, i1, i2, i3])
}

fn code(table: RawFd) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x63;
    const STORE_ZEROS: u8 = 0x7a;
    const LOAD_CONSTANT: u8 = 0x18;
    const MOVE: u8 = 0xbf;
    const MOVE_CONSTANT: u8 = 0xb7;
    const ADD_CONSTANT: u8 = 0x07;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const SET_TUNNEL_KEY: i32 = 21;
    const TAIL_CALL: i32 = 12;
    /// `cb` of `struct __sk_buff`.
    const CB: i16 = 48;
    /// The key on the stack, 44 bytes: `tunnel_id` comes first.
    const KEY: i16 = -48;
    /// In the key: `local_ipv4`. The key of a packet to be sent; read as one that was
    /// received, its source is the other side.
    const LOCAL: i16 = 28;

    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    code.extend((0..6).map(|i| instruction(STORE_ZEROS, 10, 0, KEY + 8 * i, 0)));
    code.extend([
        instruction(LOAD_WORD, 2, 6, CB, 0),
        instruction(STORE_WORD, 10, 2, KEY, 0),
        instruction(LOAD_WORD, 2, 6, CB + 4, 0),
        instruction(STORE_WORD, 10, 2, KEY + LOCAL, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_CONSTANT, 2, 0, 0, i32::from(KEY)),
        instruction(MOVE_CONSTANT, 3, 0, 0, 44),
        instruction(MOVE_CONSTANT, 4, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SET_TUNNEL_KEY),
        instruction(MOVE, 1, 6, 0, 0),
        // Source 1: the constant is a map's descriptor.
        instruction(LOAD_CONSTANT, 2, 1, 0, table),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE_CONSTANT, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),
        instruction(MOVE_CONSTANT, 0, 0, 0, LOST),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    code
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

fn create_table() -> Result<OwnedFd> {
    let map_type = BPF_MAP_TYPE_PROG_ARRAY;
    let mut attr = MapCreate { map_type, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: success of this command is a new descriptor.
    bpf(BPF_MAP_CREATE, &mut attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn put(table: &OwnedFd, program: RawFd) -> Result<RawFd> {
    let key = 0_u32;
    let mut attr = MapUpdate {
        map_fd: table.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: (&raw const program) as u64,
        ..MapUpdate::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr)
}

fn load(code: &[u64]) -> Result<OwnedFd> {
    let mut attr = Load {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: success of this command is a new descriptor.
    bpf(BPF_PROG_LOAD, &mut attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2); the kernel takes the fields after the end of `attr` for 0.
fn bpf<T>(command: i64, attr: &mut T) -> Result<RawFd> {
    // SAFETY: attr is the command's structure, whose pointers are valid for the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as RawFd) }
}
