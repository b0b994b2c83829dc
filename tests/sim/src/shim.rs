//! The C library's functions that tell a process of the world, taken over.
//!
//! The definitions here win over those of the C library because they are part of the program. Outside of a simulation, and on
//! every thread that is not one, each is a plain system call. Inside, clocks and random numbers come from the [`World`], what
//! is done to files below its directory is recorded so that a crash can undo what was never synced, and a runtime that waits
//! for events gives control back to the scheduler instead.

#![expect(unsafe_code, reason = "these are C functions by nature; each is a few lines around one system call")]

use std::{
    ffi::CStr,
    os::{
        fd::RawFd,
        raw::{c_char, c_int, c_long, c_uint, c_void},
    },
    path::PathBuf,
};

use libc::{clockid_t, iovec, mode_t, off_t, size_t, ssize_t, timespec};

use crate::world::World;

/// Makes sure that the linker takes these functions: somebody must mention them.
pub(crate) fn installed() -> usize {
    let functions: [*const (); 20] = [
        clock_gettime as *const (),
        getrandom as *const (),
        getentropy as *const (),
        epoll_wait as *const (),
        open64 as *const (),
        open as *const (),
        close as *const (),
        write as *const (),
        writev as *const (),
        pwrite64 as *const (),
        ftruncate64 as *const (),
        fsync as *const (),
        fdatasync as *const (),
        syncfs as *const (),
        rename as *const (),
        unlink as *const (),
        mkdir as *const (),
        rmdir as *const (),
        nanosleep as *const (),
        syscall as *const (),
    ];
    functions.iter().filter(|function| !function.is_null()).count()
}

/// Has the kernel put everything at fixed addresses from the next start of the program on; whether it has already.
pub(crate) fn fix_addresses() -> bool {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: it only asks for, and sets, flags of this process.
    let now = unsafe { libc::personality(ASK) };
    if now < 0 || now & libc::ADDR_NO_RANDOMIZE != 0 {
        return true;
    }
    // SAFETY: as above.
    unsafe { libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) < 0 }
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: the location of errno of this thread is always valid.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn path_of(path: *const c_char) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    // SAFETY: callers of these functions pass C strings.
    let text = unsafe { CStr::from_ptr(path) };
    PathBuf::from(std::ffi::OsStr::from_bytes(text.to_bytes()))
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: clockid_t, out: *mut timespec) -> c_int {
    let now = World::with(|world| match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => world.wall_ns(),
        _ => world.monotonic_ns(),
    });
    match now {
        Some(ns) => {
            let time = timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: (ns % 1_000_000_000) as c_long,
            };
            // SAFETY: the caller gives room for a timespec.
            unsafe { out.write(time) };
            0
        }
        // SAFETY: the system call has the signature of this function.
        None => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) as c_int },
    }
}

#[unsafe(no_mangle)]
extern "C" fn nanosleep(request: *const timespec, remaining: *mut timespec) -> c_int {
    // A thread of the simulation that sleeps would stop everything; nothing there may wait for real time.
    if World::with(|_| ()).is_some() {
        return 0;
    }
    // SAFETY: the system call has the signature of this function.
    unsafe { libc::syscall(libc::SYS_nanosleep, request, remaining) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    let filled = World::with(|world| {
        // SAFETY: the caller gives room for `length` bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        world.entropy(bytes);
    });
    match filled {
        Some(()) => length as ssize_t,
        // SAFETY: the system call has the signature of this function.
        None => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as ssize_t },
    }
}

#[unsafe(no_mangle)]
extern "C" fn getentropy(buffer: *mut c_void, length: size_t) -> c_int {
    if getrandom(buffer, length, 0) == length as ssize_t { 0 } else { -1 }
}

#[unsafe(no_mangle)]
extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, max: c_int, timeout: c_int) -> c_int {
    if World::with(|world| world.runtime_waits(timeout)).unwrap_or(false) {
        return 0;
    }
    let no_mask: *const c_void = std::ptr::null();
    // SAFETY: the system call has the signature of this function, with a signal mask that is left out.
    unsafe { libc::syscall(libc::SYS_epoll_pwait, epoll, events, max, timeout, no_mask, 8usize) as c_int }
}

fn open_at(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let open = || {
        // SAFETY: the system call takes these arguments.
        unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags | libc::O_LARGEFILE, mode) as c_int }
    };
    let opened = World::on_files(|world| {
        let path = path_of(path);
        if !world.disks().covers(&path) {
            return open();
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes && world.is_dying() {
            return fail(libc::EIO);
        }
        if let Some(errno) = world.disk_fault(&path, writes && flags & libc::O_CREAT != 0) {
            return fail(errno);
        }
        let is_new = flags & libc::O_CREAT != 0 && !path.exists();
        let cut = flags & libc::O_TRUNC != 0 && writes;
        if cut && !is_new {
            world.disks().before_truncate(&path, 0);
        }
        let fd = open();
        if fd >= 0 {
            world.disks().opened(fd, &path, is_new);
        }
        fd
    });
    opened.unwrap_or_else(open)
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: RawFd) -> c_int {
    World::on_files(|world| world.disks().closed(fd));
    // SAFETY: the system call has the signature of this function.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}

/// What to do with a write of `length` bytes at `offset` (`None`: at the file's position).
enum Verdict {
    Go,
    Fail(c_int),
}

fn before_write(fd: RawFd, offset: Option<u64>, length: u64) -> Verdict {
    let verdict = World::on_files(|world| {
        let Some(path) = world.disks().path_of(fd) else { return Verdict::Go };
        if world.is_dying() {
            return Verdict::Fail(libc::EIO);
        }
        if let Some(errno) = world.disk_fault(&path, true) {
            return Verdict::Fail(errno);
        }
        world.disks().before_write(fd, offset, length);
        Verdict::Go
    });
    verdict.unwrap_or(Verdict::Go)
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: RawFd, buffer: *const c_void, length: size_t) -> ssize_t {
    match before_write(fd, None, length as u64) {
        // SAFETY: the system call has the signature of this function.
        Verdict::Go => unsafe { libc::syscall(libc::SYS_write, fd, buffer, length) as ssize_t },
        Verdict::Fail(errno) => fail(errno) as ssize_t,
    }
}

#[unsafe(no_mangle)]
extern "C" fn writev(fd: RawFd, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller gives `count` parts.
    let length = unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0)) };
    let length: u64 = length.iter().map(|part| part.iov_len as u64).sum();
    match before_write(fd, None, length) {
        // SAFETY: the system call has the signature of this function.
        Verdict::Go => unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) as ssize_t },
        Verdict::Fail(errno) => fail(errno) as ssize_t,
    }
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: RawFd, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    match before_write(fd, u64::try_from(offset).ok(), length as u64) {
        // SAFETY: the system call has the signature of this function.
        Verdict::Go => unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, length, offset) as ssize_t },
        Verdict::Fail(errno) => fail(errno) as ssize_t,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(fd: RawFd, length: off_t) -> c_int {
    let refused = World::on_files(|world| {
        let Some(path) = world.disks().path_of(fd) else { return false };
        if world.is_dying() {
            return true;
        }
        world.disks().before_truncate(&path, u64::try_from(length).unwrap_or(0));
        false
    });
    if refused == Some(true) {
        return fail(libc::EIO);
    }
    // SAFETY: the system call has the signature of this function.
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) as c_int }
}

fn sync(fd: RawFd) -> c_int {
    let synced = World::on_files(|world| {
        let path = world.disks().path_of(fd)?;
        if world.is_dying() {
            return Some(fail(libc::EIO));
        }
        if let Some(errno) = world.disk_fault(&path, false) {
            return Some(fail(errno));
        }
        if !world.ignores_sync(&path) {
            world.disks().synced(fd);
        }
        Some(0)
    });
    match synced.flatten() {
        Some(result) => result,
        // SAFETY: the system call has the signature of this function.
        None => unsafe { libc::syscall(libc::SYS_fsync, fd) as c_int },
    }
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: RawFd) -> c_int {
    sync(fd)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: RawFd) -> c_int {
    sync(fd)
}

#[unsafe(no_mangle)]
extern "C" fn syncfs(fd: RawFd) -> c_int {
    let synced = World::on_files(|world| {
        let path = world.disks().path_of(fd)?;
        world.disks().synced_all(&path);
        Some(())
    });
    match synced.flatten() {
        Some(()) => 0,
        // SAFETY: the system call has the signature of this function.
        None => unsafe { libc::syscall(libc::SYS_syncfs, fd) as c_int },
    }
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let renamed = World::on_files(|world| {
        let (from, to) = (path_of(from), path_of(to));
        if !world.disks().covers(&from) {
            return None;
        }
        if world.is_dying() {
            return Some(fail(libc::EIO));
        }
        if let Some(errno) = world.disk_fault(&from, false) {
            return Some(fail(errno));
        }
        Some(world.disks().rename(&from, &to).map_or_else(fail, |()| 0))
    });
    match renamed.flatten() {
        Some(result) => result,
        // SAFETY: the system call takes these arguments.
        None => unsafe {
            libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0 as c_uint) as c_int
        },
    }
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    let removed = World::on_files(|world| {
        let path = path_of(path);
        if !world.disks().covers(&path) {
            return None;
        }
        if world.is_dying() {
            return Some(fail(libc::EIO));
        }
        Some(world.disks().unlink(&path).map_or_else(fail, |()| 0))
    });
    match removed.flatten() {
        Some(result) => result,
        // SAFETY: the system call takes these arguments.
        None => unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int },
    }
}

#[unsafe(no_mangle)]
extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the system call takes these arguments.
    let make = || unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int };
    let made = World::on_files(|world| {
        let path = path_of(path);
        if !world.disks().covers(&path) {
            return make();
        }
        if world.is_dying() {
            return fail(libc::EIO);
        }
        let result = make();
        if result == 0 {
            world.disks().made(&path);
        }
        result
    });
    made.unwrap_or_else(make)
}

#[unsafe(no_mangle)]
extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the system call takes these arguments.
    unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, libc::AT_REMOVEDIR) as c_int }
}

/// The C library's own way to make system calls that it has no function for. Some libraries get random numbers this way.
#[unsafe(no_mangle)]
extern "C" fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    if number == libc::SYS_getrandom && World::with(|_| ()).is_some() {
        return getrandom(a as *mut c_void, b as size_t, c as c_uint) as c_long;
    }
    // SAFETY: this is what the caller asks for; arguments that it did not give are ignored by the kernel.
    let result = unsafe { kernel(number, [a, b, c, d, e, f]) };
    if (-4095..0).contains(&result) {
        return c_long::from(fail(-result as c_int));
    }
    result
}

#[cfg(target_arch = "x86_64")]
unsafe fn kernel(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the calling convention of Linux on x86-64; the caller vouches for the call itself.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn kernel(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the calling convention of Linux on AArch64; the caller vouches for the call itself.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}
