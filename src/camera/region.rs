//! UNSAFE: mapped ranges of a camera's segment, and the SIGBUS handler that keeps them readable.
//!
//! Why borrowing is sound enough: another process may write the mapped bytes while a `&[u8]` over them exists, and
//! Rust gives that no meaning. The protocol bounds it. A slot is written again only one whole ring later.
//! Consumers only scan and copy the bytes, with bounds checks, so no value of a byte can do harm.
//! `UnitView::is_intact` discards what was read too late. Everything that decisions depend on (index, metadata) is
//! read with atomics and copied first. On a lease ring a leased slot is not written at all.
//!
//! No SIGBUS ends the process: a segment that shrinks under its mapping faults when it is touched, even inside the
//! kernel's futex wait. The signal handler lays zero pages over the faulting mapping and marks it lost. Faults
//! elsewhere go to the handler that was installed before.
#![expect(unsafe_code, reason = "lends foreign memory and catches its faults")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fd::OwnedFd;

use super::segment::MappingError;
use super::shared_map::SharedMap;
use crate::base::limits::MAPPED_RANGES_MAX;

/// One mapped range and its entry in [`GUARDS`].
#[derive(Debug)]
pub(super) struct Region {
    pub(super) map: SharedMap,
    guard: &'static Guard,
}

impl Region {
    /// Maps `range` of the segment called `name`, read-write if `is_writable`.
    pub(super) fn new(
        name: &str,
        file: &OwnedFd,
        range: Range<usize>,
        is_writable: bool,
    ) -> Result<Region, MappingError> {
        install_fault_handler();
        let map = SharedMap::new(file, range, is_writable)
            .map_err(|error| MappingError::Map { name: name.to_owned(), error })?;
        let protection = if is_writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let guard = Guard::claim(&map, protection).ok_or_else(|| MappingError::Full(name.to_owned()))?;
        Ok(Region { map, guard })
    }

    /// Lends the whole range. Slices and clones of the result keep it mapped and allocate nothing.
    pub(super) fn bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(RegionOwner(Arc::clone(self)))
    }

    /// Returns true if the segment shrank: reads may return zeros of our own.
    pub(super) fn is_lost(&self) -> bool {
        self.guard.lost.load(Ordering::SeqCst)
    }

    /// Marks the range as lost.
    pub(super) fn set_lost(&self) {
        self.guard.lost.store(true, Ordering::SeqCst);
    }
}

/// Keeps a region mapped for `Bytes` that borrow from it.
struct RegionOwner(Arc<Region>);

impl AsRef<[u8]> for RegionOwner {
    fn as_ref(&self) -> &[u8] {
        let map = &self.0.map.raw;
        // SAFETY: the range is mapped readable for as long as `self` lives, `map.len()` is within the
        // segment's size at mapping time, and later faults are answered with zero pages (`on_fault`).
        // Another process may write these bytes: the head of this file explains why that is acceptable.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.guard.release(); // before the range is unmapped by `map`, which is dropped after this
    }
}

/// A mapped range that the fault handler covers. `start` is 0 for a free entry and 1 while it is filled in.
#[derive(Debug)]
struct Guard {
    start: AtomicUsize,
    bytes: AtomicUsize,
    protection: AtomicI32,
    lost: AtomicBool,
}

static GUARDS: [Guard; MAPPED_RANGES_MAX] = [const {
    Guard {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        protection: AtomicI32::new(0),
        lost: AtomicBool::new(false),
    }
}; MAPPED_RANGES_MAX];

impl Guard {
    fn claim(map: &SharedMap, protection: i32) -> Option<&'static Guard> {
        let guard = GUARDS
            .iter()
            .find(|guard| guard.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok())?;
        guard.lost.store(false, Ordering::SeqCst);
        guard.protection.store(protection, Ordering::Relaxed);
        guard.bytes.store(map.raw.len(), Ordering::Relaxed);
        guard.start.store(map.raw.as_mut_ptr().expose_provenance(), Ordering::Release);
        Some(guard)
    }

    fn release(&self) {
        self.bytes.store(0, Ordering::SeqCst);
        self.start.store(0, Ordering::Release);
    }

    /// Lays zero pages over the whole range. Runs in a signal handler: atomics and one system call only.
    fn replace(&self, start: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let protection = self.protection.load(Ordering::Relaxed);
        // Before the pages change: a reader of one of our zeros must also see that the mapping is lost.
        self.lost.store(true, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of ours that is still in place: a thread faulted in it just now,
        // and it is unmapped only after its guard is released and its last borrower gone. Replacing all
        // of it leaves every pointer into it valid with the same protection.
        let result = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
        result != libc::MAP_FAILED
    }
}

/// The SIGBUS action that was installed before ours.
static FAULTS_BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs [`on_fault`], once per process.
fn install_fault_handler() {
    FAULTS_BEFORE.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`: default handler, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let mut before = action;
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: both point to valid values, and the handler is async-signal-safe (see `on_fault`).
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        debug_assert_eq!(result, 0, "SIGBUS can be handled");
        before
    });
}

/// Handles SIGBUS: replaces a lost mapping, or restores the previous handler for a fault elsewhere.
/// Async-signal-safe: it only uses atomics, mmap and sigaction.
extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer that lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS carries `si_addr`.
    let address = unsafe { info.si_addr() }.addr();
    for guard in &GUARDS {
        let start = guard.start.load(Ordering::Acquire);
        let inside = address.wrapping_sub(start) < guard.bytes.load(Ordering::Relaxed);
        if start > 1 && inside && guard.replace(start) {
            return;
        }
    }
    // The address is in none of our mappings. Restore the previous action: the access faults again and triggers it.
    // SAFETY: all-zero bytes are a valid `sigaction`: the default, which ends the process.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let before = FAULTS_BEFORE.get().unwrap_or(&default);
    // SAFETY: `before` is a valid action, either the default or what `sigaction` gave us.
    unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
}
