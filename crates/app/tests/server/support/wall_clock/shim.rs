//! Shifts the time of day of one process: a library that is loaded before that of C (`LD_PRELOAD`). The shift, in seconds,
//! is the text in the file that `WALL_CLOCK_FILE` names, at each call.

use std::{env, ffi::c_void, fs};

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanos: i64,
}

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const i8) -> *mut c_void;
}

type ClockGettime = unsafe extern "C" fn(i32, *mut Timespec) -> i32;

const CLOCK_REALTIME: i32 = 0;

/// Stands for the library that would be used without this one.
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: i32, time: *mut Timespec) -> i32 {
    // SAFETY: the name ends with a zero byte, and the function has this type.
    let original: ClockGettime =
        unsafe { std::mem::transmute(dlsym(RTLD_NEXT, c"clock_gettime".as_ptr().cast())) };
    // SAFETY: the arguments are those of the caller.
    let result = unsafe { original(clock, time) };
    if clock == CLOCK_REALTIME && result == 0 {
        let text = env::var_os("WALL_CLOCK_FILE").and_then(|file| fs::read_to_string(file).ok());
        if let Some(shift) = text.and_then(|text| text.trim().parse::<i64>().ok()) {
            // SAFETY: the system has just written it.
            unsafe { (*time).seconds = (*time).seconds.saturating_add(shift) };
        }
    }
    result
}
