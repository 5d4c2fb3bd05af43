//! Short turns at the processor, for threads that others wait for.
//!
//! The rule: a slice is asked for, never needed. It changes when a thread runs, not how much it may
//! run in all, takes no privilege, and where the kernel does not know it everything goes on as
//! before.
//!
//! Linux gives a thread the processor for 3 ms at a time (`base_slice_ns`), and lets one that wakes
//! up wait until the running one's time is over. Since 6.12 a thread may ask for another length; one
//! that wakes up with a shorter slice comes before a running one with a longer, as long as it has not
//! had more than its share (`Documentation/scheduler/sched-eevdf.rst`, `sched_setattr(2)`).

use std::{io, time::Duration};

/// The shortest slice that Linux gives.
pub const SHORTEST: Duration = Duration::from_micros(100);

/// Asks for slices of this length, for the thread that calls. Threads that it starts inherit it.
///
/// Linux takes it between 0.1 and 100 ms, and before 6.12 takes no notice of it. A thread whose
/// policy is not the usual one (real time, idle) and other systems stay as they are.
///
/// # Errors
/// The kernel's, for example where a sandbox forbids the call. Nothing has changed then.
#[cfg(target_os = "linux")]
pub fn ask(slice: Duration) -> io::Result<()> {
    let mut attributes = linux::attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    linux::set_attributes(&mut attributes)
}

/// Other systems are left as they are.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn ask(_: Duration) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "neither the standard library, rustix nor nix wraps these calls")]
mod linux {
    use std::io;

    /// The scheduler's settings of the calling thread (`sched_getattr(2)`).
    pub(super) fn attributes() -> io::Result<libc::sched_attr> {
        let mut attributes = libc::sched_attr {
            size: SIZE,
            sched_policy: 0,
            sched_flags: 0,
            sched_nice: 0,
            sched_priority: 0,
            sched_runtime: 0,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the kernel writes at most `SIZE` bytes, which is what `attributes` has; any bytes
        // are integers. Thread 0 is the calling one.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
        checked(result).map(|()| attributes)
    }

    /// Sets them (`sched_setattr(2)`).
    pub(super) fn set_attributes(attributes: &mut libc::sched_attr) -> io::Result<()> {
        attributes.size = SIZE;
        // SAFETY: the kernel reads `size` bytes, which is what `attributes` has, and writes at most
        // that field. Thread 0 is the calling one.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut *attributes, 0) };
        checked(result)
    }

    #[allow(clippy::cast_possible_truncation, reason = "48 bytes")]
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

    fn checked(result: libc::c_long) -> io::Result<()> {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// In a thread of its own, which is as it was started.
    fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().expect("the thread does not panic")
    }

    #[test]
    fn a_slice_is_the_calling_threads_and_nothing_else_changes() {
        let before = in_thread(|| linux::attributes().expect("readable"));
        let (asked, inherited) = in_thread(|| {
            ask(SHORTEST).expect("nothing is needed for it");
            let inherited = in_thread(|| linux::attributes().expect("readable"));
            (linux::attributes().expect("readable"), inherited)
        });
        let others = in_thread(|| linux::attributes().expect("readable"));
        let all_but_slice =
            |a: &libc::sched_attr| (a.sched_policy, a.sched_flags, a.sched_nice, a.sched_priority);
        assert_eq!(all_but_slice(&asked), all_but_slice(&before));
        assert_eq!(others.sched_runtime, before.sched_runtime);
        // Kernels before 6.12 say 0 for every thread.
        if before.sched_runtime != 0 {
            assert_eq!(asked.sched_runtime, 100_000);
            assert_eq!(inherited.sched_runtime, 100_000);
        }
    }

    #[test]
    fn the_kernel_holds_it_within_its_bounds() {
        let slices = in_thread(|| {
            [Duration::from_nanos(1), Duration::from_secs(60), Duration::MAX].map(|slice| {
                ask(slice).expect("bounded, not refused");
                linux::attributes().expect("readable").sched_runtime
            })
        });
        assert!(slices == [0; 3] || slices == [100_000, 100_000_000, 100_000_000], "{slices:?}");
    }
}
