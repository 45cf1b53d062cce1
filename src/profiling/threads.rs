//! Go's goroutine profile, but for threads: one sample per thread with its name, state and current stack. A signal
//! requests the stack of each thread. The signal briefly interrupts interruptible system calls (EINTR).

use std::collections::HashMap;
use std::fmt::Write;
use std::thread;
use std::time::Duration;

use super::ProfileError;
use super::pprof::{self, Description, Sample};
use super::signal::{self, Session};
use super::stack;
use super::symbols::{self, Symbols};
use super::table::Trigger;
use super::tasks::{self, Task};
use crate::base::clock;
use crate::base::limits;

/// Stacks by thread id, innermost frame first. Threads that did not answer have no entry.
type Stacks = HashMap<i32, Vec<usize>>;

/// Returns the list of all threads. If `debug` is 0, the list is a gzip-compressed profile.proto; if 1, text without
/// stacks; if 2 or more, text with stacks. Threads that do not answer within 200 ms (in uninterruptible sleep) are
/// listed without a stack. While a CPU profile is being taken, all threads are listed without a stack, and a note says
/// so.
///
/// # Errors
/// Returns [`ProfileError::Signal`] if the kernel refuses the handler.
pub fn threads(debug: u8) -> Result<Vec<u8>, ProfileError> {
    let mut tasks: Vec<Task> = tasks::ids().into_iter().filter_map(tasks::task).collect();
    tasks.sort_unstable_by_key(|task| task.id);
    let (stacks, note) = match stacks_of(&tasks) {
        Ok(stacks) => (stacks, ""),
        Err(ProfileError::Busy) => (Stacks::new(), "no stacks: another profile is being taken"),
        Err(error) => return Err(error),
    };
    match debug {
        0 => Ok(encode(&tasks, &stacks, note)),
        _ => Ok(text(&tasks, &stacks, note, debug > 1).into_bytes()),
    }
}

/// Requests the stack of every thread and waits for the answers. If a late signal makes a thread answer twice, the
/// first answer is used.
fn stacks_of(tasks: &[Task]) -> Result<Stacks, ProfileError> {
    let session = Session::start(Trigger::Request, symbols::own_text())?;
    let requested =
        tasks.iter().take(limits::PROFILE_THREADS_MAX).filter(|task| signal::request_stack(task.id)).count();
    let until_ns = clock::monotonic_ns() + i64::try_from(limits::PROFILE_ANSWER_MAX.as_nanos()).unwrap_or(0);
    while session.table.recorded() < requested as u64 && clock::monotonic_ns() < until_ns {
        thread::sleep(Duration::from_millis(1));
    }
    let mut stacks = Stacks::new();
    for seen in session.stop().stacks() {
        stacks.entry(seen.thread).or_insert(seen.frames);
    }
    Ok(stacks)
}

/// Returns the names of the functions on the stack of the calling thread, innermost first. The walk follows frame
/// pointers, so it needs no unwind tables.
#[must_use]
pub fn own_stack() -> Vec<String> {
    let mut frames = heapless::Vec::<usize, { limits::STACK_FRAMES_MAX }>::new();
    stack::walk_from_here(&mut frames);
    let symbols = symbols::resolve(frames.to_vec());
    frames.iter().map_while(|frame| symbols.name_of(*frame)).collect()
}

fn encode(tasks: &[Task], stacks: &Stacks, note: &str) -> Vec<u8> {
    let mut comments = vec!["one sample per thread; this program has no goroutines".to_owned()];
    if !note.is_empty() {
        comments.push(note.to_owned());
    }
    let description = Description {
        sample_types: vec![("goroutine", "count")],
        default_type: "goroutine",
        period_type: ("goroutine", "count"),
        period: 1,
        comments,
        ..Description::default()
    };
    pprof::encode(&description, &|visit| {
        for task in tasks {
            let frames = stacks.get(&task.id).map(Vec::as_slice).unwrap_or_default();
            let (id, mut state) = (task.id.to_string(), [0; 4]);
            let state = task.state.encode_utf8(&mut state);
            let labels = [("thread", task.name.as_str()), ("tid", &id), ("state", state)];
            visit(&Sample { frames, values: &[1], labels: &labels });
        }
    })
}

fn text(tasks: &[Task], stacks: &Stacks, note: &str, with_stacks: bool) -> String {
    let addresses = stacks.values().flatten().copied().collect();
    let symbols = if with_stacks { symbols::resolve(addresses) } else { Symbols::default() };
    let mut out = format!("{} threads\n", tasks.len());
    if !note.is_empty() {
        let _ = writeln!(out, "{note}"); // writing to a String does not fail
    }
    for task in tasks {
        let wait = if task.wait_channel.is_empty() { "-" } else { &task.wait_channel };
        let _ = writeln!(
            out,
            "\nthread {} [{}] {:?} user {} ms, system {} ms, waits in {wait}",
            task.id, task.state, task.name, task.user_ms, task.system_ms
        );
        let frames = stacks.get(&task.id).into_iter().flatten();
        for (frame, name) in frames.map_while(|frame| Some((frame, symbols.name_of(*frame)?))) {
            let _ = writeln!(out, "\t{frame:#x} {name}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[inline(never)]
    fn function_that_asks_for_its_stack() -> Vec<String> {
        std::hint::black_box(super::own_stack())
    }

    #[test]
    fn own_stack_names_the_callers_innermost_first() {
        let stack = function_that_asks_for_its_stack();
        let position = |name: &str| {
            stack
                .iter()
                .position(|function| function.contains(name))
                .unwrap_or_else(|| panic!("{name}: {stack:#?}"))
        };
        let (inner, outer) =
            (position("function_that_asks_for_its_stack"), position("own_stack_names_the_callers"));
        assert!(inner < outer, "{stack:#?}");
    }
}
