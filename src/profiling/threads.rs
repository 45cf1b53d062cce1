//! The goroutine profile of Go, for threads: one sample per thread with its name, state and current stack. A signal
//! requests the stack of each thread; it interrupts interruptible system calls briefly (EINTR).

use std::fmt::Write;
use std::io;
use std::thread;
use std::time::Duration;

use super::ProfileError;
use super::pprof::{self, Description, Sample};
use super::signal::{self, Session};
use super::symbols::{self, Symbols};
use super::table::Trigger;
use super::tasks::{self, Task};
use crate::base::clock;
use crate::base::limits;

/// A thread and its stack, innermost frame first. The stack is empty if the thread did not answer.
struct ThreadStack {
    task: Task,
    frames: Vec<usize>,
}

/// Returns all threads: with `debug` 0 as a gzip-compressed profile.proto, with 1 as a table in text, from 2 on with
/// stacks. Threads that do not answer within 200 ms (in uninterruptible sleep) are listed without a stack. While a CPU
/// profile is being taken, all threads are listed without a stack and a note says so.
///
/// # Errors
/// [`ProfileError::Signal`] when the kernel refuses the handler, [`ProfileError::Encode`] when the result cannot
/// be written.
pub fn threads(debug: u8) -> Result<Vec<u8>, ProfileError> {
    let mut tasks: Vec<Task> = tasks::ids().into_iter().filter_map(tasks::task).collect();
    tasks.sort_by_key(|task| task.id);
    let stacks = match stacks_of(&tasks) {
        Ok(stacks) => Some(stacks),
        Err(ProfileError::Busy) => None,
        Err(error) => return Err(error),
    };
    let note = if stacks.is_none() { "no stacks: another profile is being taken" } else { "" };
    let mut stacks = stacks.unwrap_or_default();
    let with_stack = |task: Task| {
        let own = stacks.iter_mut().find(|(id, _)| *id == task.id);
        let frames = own.map(|(_, frames)| std::mem::take(frames)).unwrap_or_default();
        ThreadStack { task, frames }
    };
    let stacks_by_thread: Vec<ThreadStack> = tasks.into_iter().map(with_stack).collect();
    match debug {
        0 => encode(&stacks_by_thread, note).map_err(ProfileError::Encode),
        1 => Ok(text(&stacks_by_thread, note, false).into_bytes()),
        _ => Ok(text(&stacks_by_thread, note, true).into_bytes()),
    }
}

/// Requests the stack of every thread and waits for the answers. If a late signal makes a thread answer twice, the
/// first answer is used.
fn stacks_of(tasks: &[Task]) -> Result<Vec<(i32, Vec<usize>)>, ProfileError> {
    let session = Session::start(Trigger::Request, symbols::own_text())?;
    let requested =
        tasks.iter().take(limits::PROFILE_THREADS_MAX).filter(|task| signal::request_stack(task.id)).count();
    let until_ns = clock::monotonic_ns() + i64::try_from(limits::PROFILE_ANSWER_MAX.as_nanos()).unwrap_or(0);
    while session.recorded() < requested as u64 && clock::monotonic_ns() < until_ns {
        thread::sleep(Duration::from_millis(1));
    }
    let mut stacks = Vec::new();
    session.stop().for_each(&mut |seen| stacks.push((seen.thread, seen.frames.to_vec())));
    Ok(stacks)
}

fn encode(stacks_by_thread: &[ThreadStack], note: &str) -> io::Result<Vec<u8>> {
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
        for ThreadStack { task, frames } in stacks_by_thread {
            let (id, mut state) = (task.id.to_string(), [0; 4]);
            let state = task.state.encode_utf8(&mut state);
            let labels = [("thread", task.name.as_str()), ("tid", &id), ("state", state)];
            visit(&Sample { frames, values: &[1], labels: &labels });
        }
    })
}

fn text(stacks_by_thread: &[ThreadStack], note: &str, with_stacks: bool) -> String {
    let mut addresses: Vec<usize> =
        stacks_by_thread.iter().flat_map(|thread| thread.frames.iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let symbols = if with_stacks { symbols::resolve(&addresses) } else { Symbols::default() };
    let mut out = format!("{} threads\n", stacks_by_thread.len());
    if !note.is_empty() {
        let _ = writeln!(out, "{note}"); // writing to a String does not fail
    }
    for ThreadStack { task, frames } in stacks_by_thread {
        let wait = if task.wait_channel.is_empty() { "-" } else { &task.wait_channel };
        let _ = writeln!(
            out,
            "\nthread {} [{}] {:?} user {} ms, system {} ms, waits in {wait}",
            task.id, task.state, task.name, task.user_ms, task.system_ms
        );
        let names = frames.iter().map_while(|frame| Some((frame, name_of(*frame, &addresses, &symbols)?)));
        for (frame, name) in names {
            let _ = writeln!(out, "\t{frame:#x} {name}");
        }
    }
    out
}

fn name_of<'a>(frame: usize, addresses: &[usize], symbols: &'a Symbols) -> Option<&'a str> {
    let place = symbols.places.get(addresses.binary_search(&frame).ok()?)?.as_ref()?;
    symbols.functions.get(place.function).map(|function| function.name.as_str())
}
