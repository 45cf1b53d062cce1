//! UNSAFE: the handler of SIGBUS, SIGSEGV and SIGABRT. It keeps the mapped ranges of a camera's segment readable, and ends the
//! process with a message after any other fault.
//!
//! If a segment shrinks under its mapping, an access faults with SIGBUS. The handler replaces the mapping by zero pages
//! and marks it as lost.
//!
//! The library `may` installs a handler for both signals when it makes its first coroutine. That handler writes a
//! backtrace, which allocates and locks, so a fault can deadlock the process. Our handler must therefore be the last
//! one: [`install`] checks it, and is called again after `may` has started and with every new mapping.
#![expect(unsafe_code, reason = "a signal handler, and a mapping that it replaces; no safe API has them")]

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use super::shared_map::SharedMap;
use crate::base::limits::{FAULT_MESSAGE_S, MAPPED_RANGES_MAX};
use crate::base::logging;

/// A mapped range that the handler covers. `start` is 0 if the entry is free, and 1 while it is being filled in.
#[derive(Debug)]
pub(super) struct Guard {
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
    /// Makes the handler cover the range of `map`. Returns `None` if all entries are in use.
    pub(super) fn claim(map: &SharedMap, protection: i32) -> Option<&'static Guard> {
        let guard = GUARDS
            .iter()
            .find(|guard| guard.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok())?;
        guard.lost.store(false, Ordering::SeqCst);
        guard.protection.store(protection, Ordering::Relaxed);
        guard.bytes.store(map.raw.len(), Ordering::Relaxed);
        guard.start.store(map.raw.as_mut_ptr().expose_provenance(), Ordering::Release);
        Some(guard)
    }

    /// Frees the entry. This must be called before the range is unmapped.
    pub(super) fn release(&self) {
        self.bytes.store(0, Ordering::SeqCst);
        self.start.store(0, Ordering::Release);
    }

    /// Returns true if the segment shrank.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Marks the range as lost.
    pub(super) fn set_lost(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// Replaces the whole range by zero pages. Returns false if the kernel refuses. This runs in a signal handler, so
    /// it uses only atomics and one system call.
    fn replace(&self, start: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let protection = self.protection.load(Ordering::Relaxed);
        // This must come before the pages change: a reader that finds one of the new zeros must also see `lost`.
        self.set_lost();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of this process that is still in place. A thread has just faulted in it, and
        // it is unmapped only after its guard is released and its last borrower is gone. The new mapping covers the
        // same range with the same protection, so every pointer into the range stays valid.
        let result = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
        result != libc::MAP_FAILED
    }
}

/// Installs the handler of SIGBUS, SIGSEGV and SIGABRT. Has no effect if it is already installed.
pub fn install() {
    for signal in [libc::SIGBUS, libc::SIGSEGV, libc::SIGABRT] {
        // SAFETY: all-zero bytes are a valid `sigaction`. They mean the default handler, an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the pointer is to a valid value, and the handler is async-signal-safe (see `on_fault`).
        let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        debug_assert_eq!(result, 0, "the signal can be handled");
    }
}

/// Handles SIGBUS, SIGSEGV and SIGABRT. If the fault is in one of our mappings, replaces the mapping by zero pages. Otherwise
/// ends the process. This function is async-signal-safe, because it uses only atomics and system calls.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer that lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: for a fault, the kernel sets `si_addr`. For a signal from a process these bytes hold its id, which
    // is printed as a number.
    let address = unsafe { info.si_addr() }.addr();
    let is_from_kernel = info.si_code > 0 && signal != libc::SIGABRT;
    if is_from_kernel && signal == libc::SIGBUS {
        for guard in &GUARDS {
            let start = guard.start.load(Ordering::Acquire);
            let inside = address.wrapping_sub(start) < guard.bytes.load(Ordering::Relaxed);
            if start > 1 && inside && guard.replace(start) {
                return;
            }
        }
    }
    end_process(signal, is_from_kernel.then_some(address));
}

/// Writes a message to stderr and lets the default action of `signal` end the process. `address` is the address of the
/// access, or `None` if another process has sent the signal.
fn end_process(signal: libc::c_int, address: Option<usize>) {
    // SAFETY: sets a timer and has no memory effects. If stderr blocks although `poll` reports room, the default action
    // of SIGALRM ends the process.
    unsafe { libc::alarm(FAULT_MESSAGE_S) };
    let mut message = Message::new();
    message.push(b"\nERROR streaming-server ends: ");
    message.push(match signal {
        libc::SIGBUS => &b"SIGBUS"[..],
        libc::SIGABRT => &b"SIGABRT"[..],
        _ => &b"SIGSEGV"[..],
    });
    match address {
        Some(address) => {
            message.push(b", memory access at address 0x");
            message.push_hex(address);
        }
        None => message.push(b", sent by this or another process"),
    }
    message.push(b", thread ");
    message.push_thread_name();
    message.push(b"\n");
    message.write();
    // SAFETY: all-zero bytes are a valid `sigaction`. They mean the default action, which ends the process.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a valid action.
    unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
    // The signal is blocked while the handler runs. It is delivered after the return, with the default action. Without
    // this call, a signal that a process has sent would be lost.
    // SAFETY: sends a signal and has no memory effects.
    unsafe { libc::raise(signal) };
}

/// A line of text that is built without allocation. Text beyond the size is cut off.
struct Message {
    text: [u8; 160],
    bytes: usize,
}

impl Message {
    fn new() -> Message {
        Message { text: [0; 160], bytes: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.text.get_mut(self.bytes) {
                *place = *byte;
                self.bytes += 1;
            }
        }
    }

    fn push_hex(&mut self, number: usize) {
        for shift in (0..usize::BITS).step_by(4).rev() {
            let digit = u32::try_from((number >> shift) & 0xF).unwrap_or(0);
            let digit = char::from_digit(digit, 16).map_or(b'?', |digit| digit as u8);
            self.push(&[digit]);
        }
    }

    fn push_thread_name(&mut self) {
        let mut name = [0_u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes, with a zero at the end, to the buffer of 16 bytes.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let bytes = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        self.push(name.get(..bytes).unwrap_or_default());
    }

    /// Writes the text to stderr if that is possible without blocking.
    fn write(&self) {
        let mut stderr = libc::pollfd { fd: logging::stderr_descriptor(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: the pointer is to one valid `pollfd`.
        let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) };
        if ready == 1 && stderr.revents & libc::POLLOUT != 0 {
            // SAFETY: the buffer has at least `bytes` bytes, because `push` counts only stored ones.
            unsafe { libc::write(stderr.fd, self.text.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_cut_off_at_its_size_and_prints_numbers_in_hexadecimal() {
        let mut message = Message::new();
        message.push_hex(0xDEAD_0B0E);
        assert!(message.text.starts_with(b"00000000dead0b0e") || usize::BITS == 32);
        for _ in 0..100 {
            message.push(b"0123456789");
        }
        assert_eq!(message.bytes, message.text.len());
    }
}
