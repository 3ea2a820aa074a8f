//! `sched_setattr(2)`, under the names by which libcontainer calls it: it stands in for the crate `nc` of crates.io.
//!
//! What it is not: the rest of `nc`, which has all system calls of all machines in its own assembly, and lacks s390x.
//! Cargo.toml of the workspace says `[patch.crates-io]`; what libcontainer does not call is not here, so that a release of it
//! that calls more does not compile.
//!
//! Layout and errors: linux/sched/types.h and sched_setattr(2).

use std::io;

/// An error number of the kernel, as errno(3) has it: positive.
pub type Errno = i32;

/// How a thread is scheduled: `struct sched_attr` in its second version (`SCHED_ATTR_SIZE_VER1`, Linux 5.3).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct sched_attr_t {
    /// Of this structure, in bytes; tells the kernel which version it is.
    pub size: u32,
    /// `SCHED_OTHER` and so on.
    pub sched_policy: u32,
    /// `SCHED_FLAG_RESET_ON_FORK` and so on.
    pub sched_flags: u64,
    /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub sched_nice: i32,
    /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
    pub sched_priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub sched_runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub sched_deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub sched_period: u64,
    /// Utilization, 0 to 1024; read if the flags say so.
    pub sched_util_min: u32,
    /// Utilization, 0 to 1024; read if the flags say so.
    pub sched_util_max: u32,
}

/// What the kernel reads of it.
const SIZE: usize = size_of::<sched_attr_t>();
/// `SCHED_ATTR_SIZE_VER1`.
const _: () = assert!(SIZE == 56);

/// Sets policy and parameters of the thread `pid` of this process's PID namespace; 0 is the calling thread.
///
/// # Errors
///
/// The kernel's error number. `EINVAL` without asking it if `size` is not that of the structure: the kernel would read so many bytes,
/// whatever lies behind.
pub fn sched_setattr(pid: libc::pid_t, attr: &sched_attr_t, flags: u32) -> Result<(), Errno> {
    if usize::try_from(attr.size) != Ok(SIZE) {
        return Err(libc::EINVAL);
    }
    // The kernel writes its own size there when it refuses a newer structure than it knows: not into what was lent for reading.
    let mut attr = *attr;
    // SAFETY: the kernel reads and writes within `size` bytes at the address, which are those of the copy (checked above); it has no
    // padding and outlives the call.
    #[expect(unsafe_code, reason = "libc has no function for it")]
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw mut attr, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    fn attr(policy: i32) -> sched_attr_t {
        sched_attr_t { size: 56, sched_policy: policy.try_into().unwrap(), ..Default::default() }
    }

    /// On a thread of its own: what it sets ends with it.
    fn set(attr: sched_attr_t, flags: u32) -> Result<(), Errno> {
        std::thread::spawn(move || sched_setattr(0, &attr, flags)).join().unwrap()
    }

    /// As `pahole` shows it of a kernel's `struct sched_attr`.
    #[test]
    fn fields_are_where_the_kernel_has_them() {
        let offsets = [
            offset_of!(sched_attr_t, size),
            offset_of!(sched_attr_t, sched_policy),
            offset_of!(sched_attr_t, sched_flags),
            offset_of!(sched_attr_t, sched_nice),
            offset_of!(sched_attr_t, sched_priority),
            offset_of!(sched_attr_t, sched_runtime),
            offset_of!(sched_attr_t, sched_deadline),
            offset_of!(sched_attr_t, sched_period),
            offset_of!(sched_attr_t, sched_util_min),
            offset_of!(sched_attr_t, sched_util_max),
        ];
        assert_eq!(offsets, [0, 4, 8, 16, 20, 24, 32, 40, 48, 52]);
    }

    /// Read back by another call than the one that set it.
    #[test]
    fn policy_and_nice_value_are_those_of_the_calling_thread_afterwards() {
        std::thread::spawn(|| {
            assert_eq!(sched_setattr(0, &sched_attr_t { sched_nice: 3, ..attr(libc::SCHED_BATCH) }, 0), Ok(()));
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            let stat = std::fs::read_to_string(std::path::Path::new("/proc").join(thread).join("stat")).unwrap();
            // After the name, which may have anything in it, from field 3; nice is field 19, policy 41 (proc_pid_stat(5)).
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            assert_eq!((fields[19 - 3], fields[41 - 3]), ("3", "3"), "{stat}");
        })
        .join()
        .unwrap();
        assert_eq!(set(attr(libc::SCHED_OTHER), 0), Ok(()));
    }

    #[test]
    fn what_the_kernel_refuses_comes_with_its_number() {
        assert_eq!(set(attr(99), 0), Err(libc::EINVAL), "a policy that is none");
        assert_eq!(set(attr(libc::SCHED_OTHER), 1), Err(libc::EINVAL), "a flag that is none");
        assert_eq!(set(sched_attr_t { sched_priority: 1, ..attr(libc::SCHED_OTHER) }, 0), Err(libc::EINVAL), "a priority without realtime");
        let other = std::thread::spawn(|| sched_setattr(libc::pid_t::MAX, &attr(libc::SCHED_OTHER), 0)).join().unwrap();
        assert_eq!(other, Err(libc::ESRCH), "no such thread");
    }

    /// The kernel would take 48 (its first version) and more than 56 (if zeroes follow): it has to be asked for neither.
    #[test]
    fn another_size_is_refused_before_the_kernel_reads_it() {
        for size in [0, 48, 57, 64, u32::MAX] {
            assert_eq!(set(sched_attr_t { size, ..attr(libc::SCHED_OTHER) }, 0), Err(libc::EINVAL), "{size}");
        }
    }
}
