//! Log lines on their way to an output that may block: a bounded queue, and the thread that writes them.

use std::{
    collections::VecDeque,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::{error, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes that wait for one output. What does not fit is dropped: logging never blocks.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// The time between reports of dropped lines while the output never catches up.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The queue of one output. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub(super) struct LineQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The name of the output in log lines.
    output: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of `lines`.
    bytes: usize,
    /// Lines that the output never got and that have not been reported.
    dropped: u64,
    /// Lines that the writer is done with.
    done: u64,
    /// True while the writer has a line that it took from `lines`.
    writing: bool,
}

impl LineQueue {
    /// Starts the thread that writes to `writer`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(output: &'static str, writer: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared { output, state: Mutex::default(), changed: Condvar::new() }));
        let writer = Writer { queue: queue.clone(), writer, cut_line: false, failing: false, reported: None };
        thread::Builder::new().name(format!("log to {output}")).spawn(|| writer.run())?;
        Ok(queue)
    }

    /// Returns what the output is called.
    pub(super) fn output(&self) -> &'static str {
        self.0.output
    }

    /// Waits until all lines are written: until `deadline` at most, and no longer than `stall` without one of
    /// them being written. How many lines are left then.
    pub(super) fn finish(&self, deadline: Instant, stall: Duration) -> usize {
        let mut state = self.lock();
        let mut done = state.done;
        let mut give_up = deadline.min(Instant::now() + stall);
        while state.writing || !state.lines.is_empty() {
            if state.done != done {
                done = state.done;
                give_up = deadline.min(Instant::now() + stall);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return state.lines.len() + usize::from(state.writing);
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        0
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > MAX_QUEUED_BYTES {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        self.0.changed.notify_all();
    }

    /// Returns the next line; waits for it.
    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        state.writing = false;
        self.0.changed.notify_all();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes = state.bytes.saturating_sub(line.len());
                state.writing = true;
                return line;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LineQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The state of a queue's thread.
struct Writer<W> {
    queue: LineQueue,
    writer: W,
    /// True if the output has the start of a line whose end it did not take.
    cut_line: bool,
    /// True if the last line could not be written.
    failing: bool,
    /// The time at which dropped lines were last reported.
    reported: Option<Instant>,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        loop {
            let line = self.queue.next();
            // A writer that panics must not end the log.
            let written = catch_unwind(AssertUnwindSafe(|| self.write(&line)));
            match written.unwrap_or_else(|_| Err(io::Error::other("writing to it panicked"))) {
                Ok(()) => self.failing = false,
                Err(error) => self.failed(&error),
            }
            self.queue.lock().done += 1;
            self.report();
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.cut_line {
            self.writer.write_all(b"\n")?;
            self.cut_line = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.writer.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => rest = &rest[taken..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.cut_line = rest.len() < line.len();
                    return Err(error);
                }
            }
        }
        self.writer.flush()
    }

    /// Reports the first failure in a row; other outputs show it.
    fn failed(&mut self, error: &io::Error) {
        self.queue.lock().dropped += 1;
        if !std::mem::replace(&mut self.failing, true) {
            let output = self.queue.output();
            error!(output, %error, "{output} takes no log lines: they are dropped until it does");
        }
    }

    /// Reports how many lines were dropped, once the output takes lines again and has caught up.
    fn report(&mut self) {
        let dropped = {
            let mut state = self.queue.lock();
            let late = self.reported.is_some_and(|reported| reported.elapsed() > REPORT_INTERVAL);
            // There is room for the report itself.
            if self.failing || state.dropped == 0 || (state.bytes > MAX_QUEUED_BYTES / 2 && !late) {
                return;
            }
            std::mem::take(&mut state.dropped)
        };
        self.reported = Some(Instant::now());
        let output = self.queue.output();
        let lines = if dropped == 1 { "log line was" } else { "log lines were" };
        warn!(output, dropped, "{dropped} {lines} dropped: {output} took no more");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    /// An output that takes one line each time it is told what to do with it.
    struct Scripted {
        script: Receiver<io::Result<usize>>,
        taken: Sender<String>,
    }

    impl Write for Scripted {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let most = self.script.recv().unwrap_or(Ok(usize::MAX))?;
            let taken = &line[..most.min(line.len())];
            self.taken.send(String::from_utf8_lossy(taken).into_owned()).map_err(io::Error::other)?;
            Ok(taken.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted() -> (LineQueue, Sender<io::Result<usize>>, Receiver<String>) {
        let (go, script) = mpsc::channel();
        let (taken, lines) = mpsc::channel();
        (LineQueue::start("the test", Scripted { script, taken }).unwrap(), go, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_output_that_stalls_gets_the_last_lines_all_the_same() {
        let (queue, go, lines) = scripted();
        for line in 0..100 {
            queue.push(format!("{line}\n").as_bytes());
        }
        let output = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(go);
        });
        assert_eq!(queue.finish(Instant::now() + LONG, LONG), 0);
        let lines: Vec<String> = lines.try_iter().collect();
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (100, Some("99\n")));
        output.join().unwrap();
    }

    #[test]
    fn a_full_queue_drops_at_once_and_counts() {
        let (queue, go, lines) = scripted();
        let line = vec![b'x'; 1 << 10];
        let pushed = 3 * MAX_QUEUED_BYTES / line.len();
        for _ in 0..pushed {
            queue.push(&line);
        }
        let state = queue.lock();
        let (waiting, dropped) = (state.lines.len(), state.dropped);
        drop(state);
        assert!(waiting * line.len() <= MAX_QUEUED_BYTES);
        // One may have been taken by the thread.
        assert!(pushed - waiting - usize::try_from(dropped).unwrap() <= 1, "{pushed} {waiting} {dropped}");
        assert!(queue.finish(Instant::now() + LONG, Duration::from_millis(10)) > 0, "it is given up");
        drop(go);
        assert_eq!(queue.finish(Instant::now() + LONG, LONG), 0);
        assert_eq!(lines.try_iter().count() + usize::try_from(dropped).unwrap(), pushed);
        assert_eq!(queue.lock().dropped, 0, "it was reported");
    }

    #[test]
    fn a_line_that_was_cut_does_not_spoil_the_next_one() {
        let (queue, go, lines) = scripted();
        for outcome in [Ok(2), Err(io::ErrorKind::StorageFull.into())] {
            go.send(outcome).unwrap();
        }
        drop(go);
        queue.push(b"first\n");
        queue.push(b"second\n");
        assert_eq!(queue.finish(Instant::now() + LONG, LONG), 0);
        assert_eq!(lines.try_iter().collect::<String>(), "fi\nsecond\n");
    }

    #[test]
    fn an_output_that_panics_goes_on() {
        struct Panics(Sender<String>);
        impl Write for Panics {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                assert_ne!(line, b"bad\n");
                self.0.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)?;
                Ok(line.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (taken, lines) = mpsc::channel();
        let queue = LineQueue::start("the test", Panics(taken)).unwrap();
        queue.push(b"bad\n");
        queue.push(b"good\n");
        assert_eq!(queue.finish(Instant::now() + LONG, LONG), 0);
        assert_eq!(lines.try_iter().collect::<String>(), "good\n");
    }
}
