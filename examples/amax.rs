//! Finds the largest magnitude of a matrix with the kernel `amax`, from Rust by include/block_scaled.h and bindgen, and
//! compares it with the host's. Needs a GPU and a pack:
//!
//!     bindgen include/block_scaled.h -o block_scaled.rs
//!     gcc -O2 -c -DBLOCK_SCALED_IMPLEMENTATION -x c include/block_scaled.h -o block_scaled.o
//!     BINDINGS=$PWD/block_scaled.rs rustc --edition 2021 examples/amax.rs -C link-arg=block_scaled.o -ldl -lm
//!     ./amax artifacts
//!
//! Memory and copies are the program's own affair; here they are the driver's, too.

#[allow(non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code)]
mod header {
    include!(env!("BINDINGS"));
}

use header::*;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::mem::{size_of_val, transmute_copy, zeroed};
use std::ptr::{null, null_mut};

const ROWS: usize = 1000;
const COLUMNS: usize = 512;
const SHARES: usize = 512;

extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// An error of the header as one of Rust.
fn check(code: bs_code, error: &bs_error) -> Result<(), String> {
    if code == bs_code_BS_OK {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned())
}

/// What of the driver the program calls itself, with the primary context of device 0 current.
struct Driver(*mut c_void);

impl Driver {
    fn open() -> Result<Driver, String> {
        let driver = Driver(unsafe { dlopen(c"libcuda.so.1".as_ptr(), 2) });
        if driver.0.is_null() {
            return Err("no CUDA driver".into());
        }
        let mut context = null_mut::<c_void>();
        unsafe {
            let retain: extern "C" fn(*mut *mut c_void, c_int) -> c_int = driver.function(c"cuDevicePrimaryCtxRetain")?;
            let set: extern "C" fn(*mut c_void) -> c_int = driver.function(c"cuCtxSetCurrent")?;
            succeed(retain(&mut context, 0))?;
            succeed(set(context))?;
        }
        Ok(driver)
    }

    /// A function of the driver; the caller says its type.
    unsafe fn function<F>(&self, name: &CStr) -> Result<F, String> {
        let found = dlsym(self.0, name.as_ptr());
        if found.is_null() {
            return Err(format!("the driver has no {name:?}"));
        }
        Ok(transmute_copy(&found))
    }

    fn upload(&self, values: &[f32]) -> Result<u64, String> {
        let mut address = 0;
        unsafe {
            let allocate: extern "C" fn(*mut u64, usize) -> c_int = self.function(c"cuMemAlloc_v2")?;
            let copy: extern "C" fn(u64, *const f32, usize) -> c_int = self.function(c"cuMemcpyHtoD_v2")?;
            succeed(allocate(&mut address, size_of_val(values)))?;
            succeed(copy(address, values.as_ptr(), size_of_val(values)))?;
        }
        Ok(address)
    }

    /// Waits for what is queued on the default stream.
    fn download(&self, values: &mut [f32], address: u64) -> Result<(), String> {
        let copy: extern "C" fn(*mut f32, u64, usize) -> c_int = unsafe { self.function(c"cuMemcpyDtoH_v2")? };
        succeed(copy(values.as_mut_ptr(), address, size_of_val(values)))
    }
}

fn succeed(status: c_int) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("the driver answers {status}")) }
}

/// Numbers of both signs, other ones in every run.
fn random(count: usize) -> Vec<f32> {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    let mut state = time.as_nanos() as u64 | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The largest magnitude by the kernel. The pack and the device are open.
fn largest(pack: *const bs_pack, device: *mut bs_device, x: &[f32]) -> Result<f32, String> {
    let mut error: bs_error = unsafe { zeroed() };
    let driver = Driver::open()?;
    let mut shares = vec![f32::NAN; SHARES];
    let (values, partial) = (driver.upload(x)?, driver.upload(&shares)?);
    let (shape, extent) = ([ROWS as i64, COLUMNS as i64], [SHARES as i64]);
    unsafe {
        let call = [
            bs_buffer(c"x".as_ptr(), bs_dtype_BS_F32, values, 2, shape.as_ptr()),
            bs_buffer(c"partial".as_ptr(), bs_dtype_BS_F32, partial, 1, extent.as_ptr()),
        ];
        let mut plan = null_mut();
        let made = bs_plan_make(pack, device, c"amax".as_ptr(), null(), call.as_ptr(), 2, null_mut(), &mut plan,
                                &mut error);
        check(made, &error)?;
        println!("{}", CStr::from_ptr((*bs_plan_info(plan)).variant).to_string_lossy());
        let launched = bs_plan_launch(plan, null_mut(), &mut error);
        bs_plan_close(plan);
        check(launched, &error)?;
    }
    driver.download(&mut shares, partial)?;
    Ok(shares.iter().fold(0.0, |most: f32, share| if *share <= most { most } else { *share })) // a NaN stays
}

fn run(directory: &str) -> Result<bool, String> {
    let (mut pack, mut device) = (null_mut(), null_mut());
    let mut error: bs_error = unsafe { zeroed() };
    let directory = CString::new(directory).map_err(|error| error.to_string())?;
    check(unsafe { bs_pack_open(directory.as_ptr(), &mut pack, &mut error) }, &error)?;
    let opened = check(unsafe { bs_device_open(0, &mut device, &mut error) }, &error);
    let x = random(ROWS * COLUMNS);
    let found = opened.and_then(|()| largest(pack, device, &x));
    unsafe {
        bs_device_close(device);
        bs_pack_close(pack);
    }
    let (found, expected) = (found?, x.iter().fold(0.0, |most: f32, value| most.max(value.abs())));
    println!("{found}, on the host {expected}");
    Ok(found == expected)
}

fn main() {
    let directory = std::env::args().nth(1).unwrap_or("artifacts".into());
    match run(&directory) {
        Ok(equal) => std::process::exit(if equal { 0 } else { 1 }),
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(1);
        }
    }
}
