//! UNSAFE. The SIGPROF handler. One handler for the whole process records the stack of the interrupted thread in the
//! table of the running session. The handler does not allocate, takes no lock and preserves errno.
//!
//! ```text
//!   Session::start   TABLE = table                        handler   RUNNING += 1
//!   ...                                                             t = TABLE; if t: record(t)
//!   drop             TABLE = null; wait for RUNNING == 0            RUNNING -= 1
//! ```
//! All of these operations are sequentially consistent, and a handler increments RUNNING before it reads TABLE. If the
//! handler finds the table, `drop` sees RUNNING above 0 and waits for the handler. If the handler increments RUNNING
//! after `drop` has seen 0, it finds null in TABLE and records nothing.
#![expect(unsafe_code, reason = "installs a signal handler, which reads what the kernel hands it")]

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::ProfileError;
use super::stack::{self, Registers};
use super::table::{Table, Trigger};
use crate::base::limits::STACK_FRAMES_MAX;

static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A recording session. While it exists, the handler records every SIGPROF in its table. Only one session can exist at
/// a time.
pub(super) struct Session {
    /// Stacks that the handler has recorded so far.
    pub(super) table: Arc<Table>,
    _turn: MutexGuard<'static, ()>,
}

impl Session {
    /// Installs the handler if necessary, and starts a session with an empty table.
    ///
    /// # Errors
    /// Returns [`ProfileError::Busy`] if another session exists, and [`ProfileError::Signal`] if the kernel refuses the
    /// handler.
    pub(super) fn start(trigger: Trigger, text: Range<usize>) -> Result<Session, ProfileError> {
        let turn = ONE_AT_A_TIME.try_lock().map_err(|_| ProfileError::Busy)?;
        install().map_err(ProfileError::Signal)?;
        let table = Arc::new(Table::new(trigger, text));
        TABLE.store(Arc::as_ptr(&table).cast_mut(), Ordering::SeqCst);
        Ok(Session { table, _turn: turn })
    }

    /// Ends the session and returns its table. Another session may start afterwards.
    pub(super) fn stop(self) -> Arc<Table> {
        Arc::clone(&self.table)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        TABLE.store(ptr::null_mut(), Ordering::SeqCst);
        while RUNNING.load(Ordering::SeqCst) != 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Installs the handler at the first call. The handler stays installed, because a SIGPROF that arrives late without a
/// handler would terminate the process.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED.get_or_init(set_handler).map_err(io::Error::from_raw_os_error)
}

fn set_handler() -> Result<(), i32> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
    // SAFETY: `sigaction` is a plain C struct of integers and an optional pointer. Zero is valid for each of them.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` is valid and outlives the call; the old action is not requested. `on_signal` has the
    // signature that SA_SIGINFO requires and does only what is async-signal-safe.
    let result = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// The first fields of `siginfo_t`, as the kernel fills them for a POSIX timer (`SI_TIMER`) on 64-bit Linux.
#[repr(C)]
struct TimerSignal {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    timer: libc::c_int,
    /// Timer expirations since the last signal for which the kernel sent no separate signal (`si_overrun`).
    missed: libc::c_int,
}

extern "C" fn on_signal(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let table = TABLE.load(Ordering::SeqCst);
    // SAFETY: the pointer is null or was set by `Session::start` from an Arc. The session holds this Arc until `drop`
    // has cleared TABLE and then seen RUNNING at 0. This handler incremented RUNNING before it read TABLE, so the Arc
    // is alive. The table is only accessed through a shared reference.
    if let Some(table) = unsafe { table.as_ref() } {
        stack::keeping_errno(|| record(table, info.cast(), context.cast()));
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
}

fn record(table: &Table, info: *const TimerSignal, context: *const libc::ucontext_t) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t of 128 bytes that lives while the handler runs; the
    // fields read are plain integers within its first 24 bytes.
    let Some(info) = (unsafe { info.as_ref() }) else { return };
    let count = match (table.trigger, info.code) {
        (Trigger::Timer, libc::SI_TIMER) => 1 + u64::try_from(info.missed).unwrap_or(0),
        (Trigger::Request, libc::SI_TKILL) => 1,
        _ => return, // a late signal, or a signal that this process did not send
    };
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, which lives while the handler runs.
    let registers = unsafe { context.as_ref() }.map_or_else(Registers::default, stack::interrupted);
    let mut frames = heapless::Vec::<usize, STACK_FRAMES_MAX>::new();
    stack::walk(&registers, &table.text, &mut frames);
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    table.record(thread, count, &frames);
}

/// Sends SIGPROF to a thread of this process, so that the handler records its stack. Returns false if the thread no
/// longer exists.
pub(super) fn request_stack(thread: i32) -> bool {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the call passes only integers. The handler is installed, because this function is called only during a
    // session. `process` restricts the signal to this process, in case another process has reused the thread id.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGPROF) == 0 }
}
