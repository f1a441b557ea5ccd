//! Ctrl-C and SIGTERM, and the question that Ctrl-C asks on a terminal.

use std::io::{BufRead, IsTerminal, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Ctrl-C.
    Int,
    /// Somebody wants this process to end.
    Term,
}

/// Signals from when it was made; one that comes while nobody waits is kept.
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// From now on SIGINT and SIGTERM come here and no longer end the process.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Interrupts { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// The next one. May be dropped and called again.
    pub async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt::Int,
            _ = self.term.recv() => Interrupt::Term,
        }
    }
}

/// What is wanted of a running move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// End it and undo what it did.
    Cancel,
    /// It goes on, this tool ends.
    Leave,
    /// Both go on.
    GoOn,
}

/// The question.
pub const QUESTION: &str = "cancel the move (c), leave it running (l), or go on (g)? ";

/// Whether somebody is there who can be asked.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Ask on the terminal. The thread that reads is left behind when the receiver is dropped; the
/// tools end soon after that.
pub fn ask() -> oneshot::Receiver<Choice> {
    let (answer, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            eprint!("{QUESTION}");
            let _ = std::io::stderr().flush();
            let mut line = String::new();
            let choice = match input.read_line(&mut line) {
                // The terminal is gone: nobody can say any more that the move shall end.
                Ok(0) | Err(_) => Some(Choice::Leave),
                Ok(_) => choice(&line),
            };
            if let Some(choice) = choice {
                let _ = answer.send(choice);
                return;
            }
        }
    });
    receiver
}

fn choice(line: &str) -> Option<Choice> {
    match line.trim().to_lowercase().as_str() {
        "c" | "cancel" => Some(Choice::Cancel),
        "l" | "leave" => Some(Choice::Leave),
        "g" | "go" | "go on" => Some(Choice::GoOn),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_the_question() {
        assert_eq!(choice("c\n"), Some(Choice::Cancel));
        assert_eq!(choice(" L \n"), Some(Choice::Leave));
        assert_eq!(choice("go on\n"), Some(Choice::GoOn));
        assert_eq!(choice("\n"), None);
        assert_eq!(choice("yes\n"), None);
    }
}
