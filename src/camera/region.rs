//! UNSAFE: mapped ranges of a camera's segment, and the SIGBUS handler that keeps them readable.
//!
//! Why borrowing is sound enough: another process may write the mapped bytes while a `&[u8]` over them exists. Rust
//! does not define what happens then. The ring's protocol limits the damage:
//! - The camera writes a slot again only after it has written all other slots.
//! - Consumers only scan and copy the bytes, with bounds checks, so no value of a byte can do harm.
//! - `UnitView::is_intact` tells consumers to discard what they read too late.
//! - Everything that decisions depend on (index, metadata) is read with atomics and copied first.
//! - On a lease ring, a leased slot is not written at all.
//!
//! Why SIGBUS does not end the process: if a segment shrinks under its mapping, an access faults, even inside the
//! kernel's futex wait. The signal handler replaces the faulting mapping by zero pages and marks it as lost. Faults at
//! other addresses go to the handler that was installed before.
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
    /// Maps `range` of the segment in `file`, read-write if `is_writable`. `name`, the segment's name, is used for
    /// errors.
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

    /// Lends the whole range as `Bytes`. Slices and clones of the result keep the range mapped and allocate nothing.
    pub(super) fn bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(RegionOwner(Arc::clone(self)))
    }

    /// Returns true if the segment shrank. Reads may then return zeros from this process's own pages.
    pub(super) fn is_lost(&self) -> bool {
        self.guard.lost.load(Ordering::SeqCst)
    }

    /// Marks the range as lost.
    pub(super) fn set_lost(&self) {
        self.guard.lost.store(true, Ordering::SeqCst);
    }
}

/// Owner of `Bytes` that borrow from a region. The region stays mapped as long as this owner lives.
struct RegionOwner(Arc<Region>);

impl AsRef<[u8]> for RegionOwner {
    fn as_ref(&self) -> &[u8] {
        let map = &self.0.map.raw;
        // SAFETY: the range is mapped readable as long as `self` lives. `map.len()` was within the segment's size when
        // the range was mapped, and `on_fault` handles later faults with zero pages. Another process may write
        // these bytes; the head of this file explains why that is acceptable.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.guard.release(); // the guard must be free before `map`, which is dropped next, unmaps the range
    }
}

/// A mapped range that the fault handler covers. `start` is 0 if the entry is free, and 1 while it is being filled in.
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

    /// Replaces the whole range by zero pages. Returns false if the kernel refuses. This runs in a signal handler, so
    /// it uses only atomics and one system call.
    fn replace(&self, start: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let protection = self.protection.load(Ordering::Relaxed);
        // This must come before the pages change: a reader that finds one of the new zeros must also see `lost`.
        self.lost.store(true, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of this process that is still in place. A thread has just faulted in it, and
        // it is unmapped only after its guard is released and its last borrower is gone. The new mapping covers the
        // same range with the same protection, so every pointer into the range stays valid.
        let result = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
        result != libc::MAP_FAILED
    }
}

/// The SIGBUS action that was installed before [`on_fault`].
static FAULTS_BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs [`on_fault`] as the SIGBUS handler. Only the first call in a process has an effect.
fn install_fault_handler() {
    FAULTS_BEFORE.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`. They mean the default handler, an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let mut before = action;
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: both pointers are to valid values, and the handler is async-signal-safe (see `on_fault`).
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        debug_assert_eq!(result, 0, "SIGBUS can be handled");
        before
    });
}

/// Handles SIGBUS. If the fault is in one of our mappings, replaces the mapping by zero pages. Otherwise restores the
/// previous handler. This function is async-signal-safe, because it only uses atomics, mmap and sigaction.
extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer that lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS, the kernel sets `si_addr`.
    let address = unsafe { info.si_addr() }.addr();
    for guard in &GUARDS {
        let start = guard.start.load(Ordering::Acquire);
        let inside = address.wrapping_sub(start) < guard.bytes.load(Ordering::Relaxed);
        if start > 1 && inside && guard.replace(start) {
            return;
        }
    }
    // The address is in none of our mappings, so the previous action is restored. After the return, the access faults
    // again and triggers that action.
    // SAFETY: all-zero bytes are a valid `sigaction`. They mean the default action, which ends the process.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let before = FAULTS_BEFORE.get().unwrap_or(&default);
    // SAFETY: `before` is a valid action: either the default, or what `sigaction` has returned.
    unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
}
