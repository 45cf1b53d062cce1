//! UNSAFE. SIGPROF: one handler for the whole process, which notes the interrupted stack in the table of the
//! session that is running. The handler allocates nothing, takes no lock and leaves errno as it was.
//!
//! ```text
//!   Session::start   TABLE = table                        handler   RUNNING += 1
//!   ...                                                             t = TABLE; if t: record(t)
//!   drop             TABLE = null; wait for RUNNING == 0            RUNNING -= 1
//! ```
//! All of these are sequentially consistent: a handler that saw the table has counted itself in before, so
//! `drop` waits for it; one that counts itself in after `drop` saw 0 finds null.
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

/// While it lives, SIGPROF is recorded in its table. There is one at a time.
pub(super) struct Session {
    table: Arc<Table>,
    _turn: MutexGuard<'static, ()>,
}

impl Session {
    /// # Errors
    /// [`ProfileError::Busy`] while another one lives, [`ProfileError::Signal`] when the kernel refuses the
    /// handler.
    pub(super) fn start(trigger: Trigger, text: Range<usize>) -> Result<Session, ProfileError> {
        let turn = ONE_AT_A_TIME.try_lock().map_err(|_| ProfileError::Busy)?;
        install().map_err(ProfileError::Signal)?;
        let table = Arc::new(Table::new(trigger, text));
        TABLE.store(Arc::as_ptr(&table).cast_mut(), Ordering::SeqCst);
        Ok(Session { table, _turn: turn })
    }

    /// How many samples came by now.
    pub(super) fn recorded(&self) -> u64 {
        self.table.recorded()
    }

    /// Ends the recording. Another session may start from here on.
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

/// Installs the handler once. It stays for the life of the process: a signal that is still on its way would
/// otherwise end it.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED.get_or_init(set_handler).map_err(io::Error::from_raw_os_error)
}

fn set_handler() -> Result<(), i32> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
    // SAFETY: `sigaction` is a plain C struct of integers and an optional pointer; zero is valid for each.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` is valid and outlives the call; the old action is not asked for. `on_signal` has the
    // signature that SA_SIGINFO asks for and does only what a handler may.
    let result = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// The beginning of `siginfo_t` as the kernel fills it for a POSIX timer (`SI_TIMER`) on 64-bit Linux.
#[repr(C)]
struct TimerSignal {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    timer: libc::c_int,
    /// Expirations since the last signal that had none of their own (`si_overrun`).
    missed: libc::c_int,
}

extern "C" fn on_signal(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let table = TABLE.load(Ordering::SeqCst);
    // SAFETY: null, or set by `Session::start` from an Arc that its session holds until `drop` has seen RUNNING at
    // 0 after taking the pointer back; we counted ourselves in before we read it. Only shared access is made.
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
        (Trigger::Question, libc::SI_TKILL) => 1,
        _ => return, // late, or not ours
    };
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, which lives while the handler runs.
    let registers = unsafe { context.as_ref() }.map_or_else(Registers::default, stack::interrupted);
    let mut frames = [0_usize; STACK_FRAMES_MAX];
    let found = stack::walk(&registers, &table.text, &mut frames);
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    table.record(thread, count, frames.get(..found).unwrap_or_default());
}

/// Asks a thread of this process for its stack. False when there is no such thread any more.
pub(super) fn ask(thread: i32) -> bool {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: passes three integers; the handler is installed while a session lives, which is when this is called.
    // The thread group in it makes sure that no other process is hit when the thread's number was given anew.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGPROF) == 0 }
}
