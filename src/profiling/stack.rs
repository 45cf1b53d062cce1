//! UNSAFE. Walks a stack by frame pointers. The walk can run in a signal handler, because it does not allocate and
//! takes no lock. It reads memory only through the kernel, so that a wrong pointer ends the walk and does not crash the
//! process.
//!
//! ```text
//!   fp ─► [ caller's fp ][ return address ]        higher addresses: callers
//! ```
//! Our code and Rust's standard library keep frame pointers; C libraries and assembly do not. If the innermost function
//! has no frame pointer, the walk searches the words above the stack pointer. It continues from the first word that is
//! the address after a call instruction of our own code.
#![expect(unsafe_code, reason = "reads registers and, through the kernel, the memory of this process")]

use std::ops::Range;

use crate::base::limits::{STACK_FRAME_BYTES_MAX, STACK_SEARCH_WORDS_MAX};

const WORD_BYTES: usize = size_of::<usize>();
const WINDOW_BYTES: usize = 512;
const PAGE_BYTES: usize = 4_096;

/// Registers from which a walk starts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) program_counter: usize,
    pub(super) stack_pointer: usize,
    pub(super) frame_pointer: usize,
    /// Return address of a leaf function on AArch64; 0 on other architectures.
    pub(super) link: usize,
}

/// Returns the registers of an interrupted thread.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a register holds an address")]
pub(super) fn interrupted(context: &libc::ucontext_t) -> Registers {
    let general = |index: libc::c_int| {
        let value = usize::try_from(index).ok().and_then(|index| context.uc_mcontext.gregs.get(index));
        value.map_or(0, |value| *value as usize)
    };
    Registers {
        program_counter: general(libc::REG_RIP),
        stack_pointer: general(libc::REG_RSP),
        frame_pointer: general(libc::REG_RBP),
        link: 0,
    }
}

/// Returns the registers of an interrupted thread.
#[cfg(target_arch = "aarch64")]
#[expect(clippy::cast_possible_truncation, reason = "a register holds an address")]
pub(super) fn interrupted(context: &libc::ucontext_t) -> Registers {
    let machine = &context.uc_mcontext;
    Registers {
        program_counter: machine.pc as usize,
        stack_pointer: machine.sp as usize,
        frame_pointer: machine.regs.get(29).map_or(0, |value| *value as usize),
        link: machine.regs.get(30).map_or(0, |value| *value as usize),
    }
}

/// Returns registers that are all 0, because this architecture is not supported. Its stacks are shown as unknown.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn interrupted(_context: &libc::ucontext_t) -> Registers {
    Registers::default()
}

/// Returns the frame pointer of the calling function; 0 on unsupported architectures.
#[inline(always)]
fn own_frame_pointer() -> usize {
    let frame_pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction only copies one register into another. It touches no memory, no flags and no stack.
    unsafe {
        std::arch::asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction only copies one register into another. It touches no memory, no flags and no stack.
    unsafe {
        std::arch::asm!("mov {}, x29", out(reg) frame_pointer, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        frame_pointer = 0;
    }
    frame_pointer
}

/// Runs `body` and then restores errno, as signal handlers and allocators must. This function is async-signal-safe.
pub(super) fn keeping_errno<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: the function has no preconditions. It returns the address of the calling thread's errno, which is valid
    // until the thread ends.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: `errno` is valid until this thread ends. Only this thread accesses it, and no reference to it is kept.
    let before = unsafe { errno.read() };
    let result = body();
    // SAFETY: `errno` is still valid, and only this thread accesses it.
    unsafe { errno.write(before) };
    result
}

/// Copies up to `into.len()` bytes from `address` of this process into `into`. Returns the number of bytes copied. The
/// function is async-signal-safe but changes errno.
fn read_memory(address: usize, into: &mut [u8]) -> usize {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: into.len() };
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: `local` covers exactly `into`, which is mutably borrowed during the call, and the call writes nowhere
    // else. The kernel only looks `remote` up in the page tables and returns EFAULT for unmapped memory.
    let read = unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).unwrap_or(0)
}

/// A cache of one part of the stack, so that a walk needs few system calls.
struct Window {
    start: usize,
    bytes: [u8; WINDOW_BYTES],
    valid_bytes: usize,
}

impl Window {
    const fn new() -> Self {
        Window { start: 0, bytes: [0; WINDOW_BYTES], valid_bytes: 0 }
    }

    /// Returns the word at `address`, or `None` if the address is not aligned or nothing is mapped there.
    fn word(&mut self, address: usize) -> Option<usize> {
        if !address.is_multiple_of(WORD_BYTES) {
            return None;
        }
        if !(self.start..self.start + self.valid_bytes).contains(&address) {
            // A read never crosses a page boundary, so that an unmapped next page does not make it fail.
            let page_left = PAGE_BYTES - address % PAGE_BYTES;
            let piece = self.bytes.get_mut(..WINDOW_BYTES.min(page_left))?;
            self.valid_bytes = read_memory(address, piece) / WORD_BYTES * WORD_BYTES;
            self.start = address;
        }
        let offset = address.checked_sub(self.start)?;
        let bytes = self.bytes.get(..self.valid_bytes)?.get(offset..offset + WORD_BYTES)?;
        Some(usize::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// Code addresses of the frames found so far, innermost frame first. The capacity is fixed.
type Frames = heapless::VecView<usize>;

/// Adds a return address minus 1, which lies inside the call instruction. The return address itself may already belong
/// to the next function. Returns false if `frames` is full.
fn push_return(frames: &mut Frames, address: usize) -> bool {
    frames.push(address.wrapping_sub(1)).is_ok()
}

/// Walks the stack from `registers` and adds its code addresses to `frames`, innermost first. `frames` must be empty;
/// `text` is the address range of our own code. The function is async-signal-safe but changes errno.
pub(super) fn walk(registers: &Registers, text: &Range<usize>, frames: &mut Frames) {
    let mut window = Window::new();
    let _ = frames.push(registers.program_counter);
    let mut frame_pointer = registers.frame_pointer;
    let has_frame = is_above(frame_pointer, registers.stack_pointer);
    if !has_frame || !text.contains(&registers.program_counter) {
        if text.contains(&registers.link) {
            push_return(frames, registers.link);
        } else {
            let until = if has_frame { frame_pointer } else { usize::MAX };
            if let Some(at) = find_return(&mut window, registers.stack_pointer, until, text) {
                push_return(frames, window.word(at).unwrap_or(0));
                if !has_frame {
                    frame_pointer = window.word(at - WORD_BYTES).unwrap_or(0);
                }
            }
        }
    }
    if is_above(frame_pointer, registers.stack_pointer) {
        follow(&mut window, frame_pointer, frames);
    }
}

/// Adds the calling function and all its callers to `frames`, innermost first. Changes errno.
#[inline(never)]
pub(super) fn walk_from_here(frames: &mut Frames) {
    follow(&mut Window::new(), own_frame_pointer(), frames);
}

fn follow(window: &mut Window, mut frame_pointer: usize, frames: &mut Frames) {
    while let Some(caller) = window.word(frame_pointer) {
        let Some(return_address) = window.word(frame_pointer.wrapping_add(WORD_BYTES)) else { return };
        if return_address < PAGE_BYTES
            || !push_return(frames, return_address)
            || !is_above(caller, frame_pointer)
        {
            return;
        }
        frame_pointer = caller;
    }
}

fn is_above(frame_pointer: usize, lower: usize) -> bool {
    frame_pointer.is_multiple_of(WORD_BYTES)
        && frame_pointer.checked_sub(lower).is_some_and(|bytes| (1..=STACK_FRAME_BYTES_MAX).contains(&bytes))
}

/// Searches the stack from `from` to `until` for a return address into `text`. Returns the address of the first word
/// that holds one, or `None` if there is none within `STACK_SEARCH_WORDS_MAX` words.
fn find_return(window: &mut Window, from: usize, until: usize, text: &Range<usize>) -> Option<usize> {
    let words = (0..STACK_SEARCH_WORDS_MAX).map(|index| from.wrapping_add(index * WORD_BYTES));
    for at in words.take_while(|at| *at < until) {
        let word = window.word(at)?;
        if text.contains(&word) && follows_call(word) {
            return Some(at);
        }
    }
    None
}

/// Returns true if the instruction before `address` is a call, as it is for every return address.
fn follows_call(address: usize) -> bool {
    let mut code = [0_u8; 8];
    read_memory(address.wrapping_sub(code.len()), &mut code) == code.len() && ends_with_call(&code)
}

#[cfg(target_arch = "x86_64")]
fn ends_with_call(code: &[u8; 8]) -> bool {
    // In the ModRM byte of a call (`FF /2`), bits 6-7 are the mode, and bits 3-5 are 2. Bits 0-2 select the register or
    // the form of the memory operand.
    let is_call = |modrm: u8| modrm & 0x38 == 0x10;
    let [_, b1, b2, b3, b4, b5, b6, b7] = *code;
    b3 == 0xe8 // call rel32
        || (b2 == 0xff && b3 == 0x15) // call [rip + disp32], through the GOT
        || (b6 == 0xff && is_call(b7)) // call register
        || (b5 == 0xff && is_call(b6) && b6 >> 6 == 1) // call [register + disp8]
        || (b4 == 0xff && is_call(b5) && b5 & 7 == 4 && b5 >> 6 == 1) // the same with an index
        || (b2 == 0xff && is_call(b3) && b3 >> 6 == 2) // call [register + disp32]
        || (b1 == 0xff && is_call(b2) && b2 & 7 == 4 && b2 >> 6 == 2) // the same with an index
}

#[cfg(target_arch = "aarch64")]
fn ends_with_call(code: &[u8; 8]) -> bool {
    let [.., b4, b5, b6, b7] = *code;
    let instruction = u32::from_le_bytes([b4, b5, b6, b7]);
    instruction & 0xfc00_0000 == 0x9400_0000 // bl
        || instruction & 0xffff_fc1f == 0xd63f_0000 // blr
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ends_with_call(_code: &[u8; 8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "a test: a panic is the report")]
    use super::*;

    #[inline(never)]
    fn deep(levels: usize, frames: &mut Frames) -> usize {
        if levels == 0 {
            walk_from_here(frames);
        } else {
            std::hint::black_box(deep(levels - 1, frames));
        }
        frames.len()
    }

    #[test]
    fn walk_finds_every_caller_and_stops_at_the_bound() {
        assert_eq!(deep(20, &mut heapless::Vec::<usize, 5>::new()), 5);
        let (mut many, mut more) = (heapless::Vec::<usize, 200>::new(), heapless::Vec::<usize, 200>::new());
        let shallow = deep(1, &mut many);
        assert_eq!(deep(21, &mut more), shallow + 20);
        assert!(many.iter().all(|address| *address > PAGE_BYTES));
    }

    #[test]
    fn wrong_pointer_ends_the_walk_but_not_the_process() {
        let text = 0..usize::MAX;
        for wrong in [0, 8, 4096, 0xdead_bee8, usize::MAX - 7, usize::MAX, 0x7fff_ffff_f000] {
            let lower = wrong.saturating_sub(64);
            let registers =
                Registers { program_counter: 4242, stack_pointer: lower, frame_pointer: wrong, link: 0 };
            let mut out = heapless::Vec::<usize, 8>::new();
            walk(&registers, &(1..2), &mut out);
            assert_eq!(out.first(), Some(&4242), "{wrong:x}");
            walk(&registers, &text, &mut heapless::Vec::<usize, 8>::new());
        }
    }

    #[test]
    fn cyclic_frame_chain_ends_the_walk() {
        let mut stack = [0_usize; 16];
        let at = stack.as_ptr().addr();
        stack[2] = at + 4 * WORD_BYTES;
        stack[3] = 0x1001;
        stack[4] = at + 2 * WORD_BYTES; // downwards
        stack[5] = 0x2001;
        let registers =
            Registers { program_counter: 7, stack_pointer: at, frame_pointer: at + 2 * WORD_BYTES, link: 0 };
        let mut out = heapless::Vec::<usize, 8>::new();
        let stack = std::hint::black_box(&stack);
        walk(&registers, &(0..100), &mut out);
        assert_eq!(out, [7, 0x1000, 0x2000], "{stack:?}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn call_instructions_are_recognised() {
        assert!(ends_with_call(&[0, 0, 0, 0xe8, 1, 2, 3, 4]));
        assert!(ends_with_call(&[0, 0, 0xff, 0x15, 1, 2, 3, 4]));
        assert!(ends_with_call(&[0, 0, 0, 0, 0, 0, 0xff, 0xd0]));
        assert!(ends_with_call(&[0, 0, 0, 0, 0, 0xff, 0x50, 0x18]));
        assert!(!ends_with_call(&[0x90; 8]));
        assert!(!ends_with_call(&[0; 8]));
    }
}
