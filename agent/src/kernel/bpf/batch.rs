//! Reading a whole hash map, many entries by one system call. One by one, with the key of
//! each to find the next, an entry that goes meanwhile would send the reader back to the
//! beginning; and programs make and forget flows all the time.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_attr__bindgen_ty_3, bpf_cmd};
use nix::libc;

/// Entries per system call. It must hold those of the fullest bucket.
const BATCH: u32 = 4096;

/// All entries of a hash map, of any kind of hash map without per-CPU values. What comes or
/// goes meanwhile is among them or not.
pub(super) fn entries<K: Pod, V: Pod>(map: &MapData) -> Result<Vec<(K, V)>> {
    let info = map.info()?;
    anyhow::ensure!(
        info.key_size() as usize == size_of::<K>() && info.value_size() as usize == size_of::<V>(),
        "its entries have another size than this netagent knows"
    );
    let mut all = Vec::new();
    let mut keys = vec![MaybeUninit::<K>::uninit(); BATCH as usize];
    let mut values = vec![MaybeUninit::<V>::uninit(); BATCH as usize];
    let mut place = 0_u32;
    let mut started = false;
    loop {
        let mut batch = bpf_attr__bindgen_ty_3 {
            in_batch: if started { &raw const place as u64 } else { 0 },
            out_batch: &raw mut place as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let last = match look_up(&mut batch) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error).context("reading many entries at once"),
        };
        started = true;
        for (key, value) in keys.iter().zip(&values).take(batch.count as usize) {
            // SAFETY: the kernel has filled the first `count` of both, with keys and values
            // of these sizes; `Pod` is valid for any bytes.
            all.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        if last {
            return Ok(all);
        }
    }
}

/// `BPF_MAP_LOOKUP_BATCH`, see bpf(2).
fn look_up(batch: &mut bpf_attr__bindgen_ty_3) -> io::Result<()> {
    let mut attributes = bpf_attr { batch: *batch };
    // SAFETY: the pointers in it are to room for `count` keys and values, and for the place.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_int,
            &raw mut attributes,
            size_of::<bpf_attr__bindgen_ty_3>(),
        )
    };
    let error = (result != 0).then(io::Error::last_os_error);
    // SAFETY: what was written as `batch` is read as `batch`; the kernel sets the count.
    *batch = unsafe { attributes.batch };
    error.map_or(Ok(()), Err)
}
