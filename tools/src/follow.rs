//! Follow a move to its end, through lost connections and interrupts.

use std::time::Duration;

use proto::control::{ApiErrorCode, MoveStatus};
use tokio::time::Instant;

use crate::client::{Client, ClientError, MoveEvents};
use crate::exit::{Exit, Failure};
use crate::interrupts::{Choice, Interrupt, Interrupts, ask};
use crate::progress::View;

/// Pause between two attempts to reach dshost again.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// What Ctrl-C does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Ask on the terminal.
    Ask,
    /// Cancel the move.
    Cancel,
    /// Stop watching; the move goes on.
    Leave,
}

/// How following ended.
#[derive(Debug)]
pub enum End {
    /// The move is over: its final state.
    Finished(Box<MoveStatus>),
    /// The move runs on and is followed no more.
    Left(Box<MoveStatus>),
    /// What became of the move is not known.
    Unknown(Failure),
}

/// Follows one move.
pub struct Follower<'a> {
    /// Its dshost.
    pub client: &'a Client,
    /// Where it is shown.
    pub view: &'a mut dyn View,
    /// Signals.
    pub interrupts: &'a mut Interrupts,
    /// What Ctrl-C does.
    pub on_interrupt: OnInterrupt,
    /// How long dshost may be away before following is given up.
    pub patience: Duration,
}

impl Follower<'_> {
    /// Follow the move from the state `last` on.
    pub async fn run(&mut self, mut last: MoveStatus) -> End {
        self.view.show(&last);
        let mut events = None;
        while !last.phase.is_final() {
            let step = tokio::select! {
                // A state that is there already comes first: it may be the final one.
                biased;
                status = next(self.client, &mut events, &last) => Ok(status),
                interrupt = self.interrupts.next() => Err(interrupt),
            };
            match step {
                Ok(Ok(Some(status))) => {
                    self.view.show(&status);
                    last = status;
                }
                Ok(result) => {
                    events = None;
                    match self.find_again(result, &last).await {
                        Ok(status) => last = status,
                        Err(end) => return end,
                    }
                }
                Err(interrupt) => match self.interrupted(interrupt, &mut events, &mut last).await {
                    Ok(()) => {}
                    Err(end) => return end,
                },
            }
        }
        self.view.end();
        End::Finished(Box::new(last))
    }

    /// After a lost connection: wait for dshost and ask it for the move.
    async fn find_again(
        &mut self,
        lost: Result<Option<MoveStatus>, ClientError>,
        last: &MoveStatus,
    ) -> Result<MoveStatus, End> {
        match lost {
            Err(ClientError::Api(error)) if error.code == ApiErrorCode::NotFound => {
                return Err(self.unknown(last, "dshost was restarted and does not run the move any more"));
            }
            Err(error) if !error.is_absence() => return Err(self.unknown(last, &error.to_string())),
            _ => {}
        }
        let deadline = Instant::now() + self.patience;
        let mut told = false;
        loop {
            // First the pause: a stream that ends at once each time must not become a busy loop.
            tokio::select! {
                () = tokio::time::sleep(RETRY_EVERY) => {}
                _ = self.interrupts.next() => {
                    return Err(self.unknown(last, "dshost does not answer and cannot be asked to cancel"));
                }
            }
            match self.client.get_move(last.id).await {
                Ok(status) => {
                    if told {
                        self.view.note("dshost answers again");
                    }
                    self.view.show(&status);
                    return Ok(status);
                }
                Err(ClientError::Api(error)) if error.code == ApiErrorCode::NotFound => {
                    return Err(self.unknown(last, "dshost was restarted and does not run the move any more"));
                }
                Err(error) if error.is_absence() && Instant::now() < deadline => {
                    if !told {
                        self.view.note(&format!(
                            "dshost does not answer; trying for {}",
                            humantime::format_duration(self.patience)
                        ));
                        told = true;
                    }
                }
                Err(error) => return Err(self.unknown(last, &error.to_string())),
            }
        }
    }

    /// Ask what to do, and do it. The move may end meanwhile.
    async fn interrupted(
        &mut self,
        interrupt: Interrupt,
        events: &mut Option<MoveEvents>,
        last: &mut MoveStatus,
    ) -> Result<(), End> {
        let choice = match (interrupt, self.on_interrupt) {
            (_, OnInterrupt::Leave) => Choice::Leave,
            (Interrupt::Term, _) | (_, OnInterrupt::Cancel) => Choice::Cancel,
            (Interrupt::Int, OnInterrupt::Ask) => match self.ask(events, last).await {
                Some(choice) => choice,
                None => return Ok(()),
            },
        };
        match choice {
            Choice::GoOn => Ok(()),
            Choice::Leave => {
                self.view.end();
                Err(End::Left(Box::new(last.clone())))
            }
            Choice::Cancel => {
                self.view.note("cancelling…");
                self.cancel(last).await
            }
        }
    }

    /// The answer at the terminal; `None` when the move or the connection ended first.
    async fn ask(&mut self, events: &mut Option<MoveEvents>, last: &mut MoveStatus) -> Option<Choice> {
        self.view.hide(true);
        let mut answer = ask();
        let choice = loop {
            tokio::select! {
                choice = &mut answer => break Some(choice.unwrap_or(Choice::Leave)),
                // Who presses it twice wants out.
                _ = self.interrupts.next() => break Some(Choice::Cancel),
                status = next(self.client, events, last) => match status {
                    Ok(Some(status)) => {
                        *last = status;
                        if last.phase.is_final() {
                            eprintln!();
                            break None;
                        }
                    }
                    _ => {
                        *events = None;
                        break None;
                    }
                },
            }
        };
        self.view.hide(false);
        choice
    }

    async fn cancel(&mut self, last: &mut MoveStatus) -> Result<(), End> {
        let asked = tokio::select! {
            asked = self.client.ask_move(last.id, "cancel") => asked,
            _ = self.interrupts.next() => {
                return Err(self.unknown(last, "gave up waiting for dshost to cancel"));
            }
        };
        match asked {
            Ok(status) => *last = status,
            // Committed or over: it only goes forward now, so wait for the end.
            Err(ClientError::Api(error)) if error.code == ApiErrorCode::Conflict => {
                self.view.note(&error.message)
            }
            // The main loop finds out whether dshost comes back; the cancel is asked for again then.
            Err(error) if error.is_absence() => {
                *last = self.find_again(Err(error), last).await?;
                if last.phase.is_final() {
                    return Ok(());
                }
                return Box::pin(self.cancel(last)).await;
            }
            Err(error) => return Err(self.unknown(last, &error.to_string())),
        }
        Ok(())
    }

    fn unknown(&mut self, last: &MoveStatus, why: &str) -> End {
        self.view.end();
        End::Unknown(outcome_unknown(why, &last.what, &last.from, &last.to))
    }
}

/// Nobody knows how the move ended; say how to find out.
pub fn outcome_unknown(why: &str, what: &str, from: &str, to: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("{why}; the outcome of the move is unknown"),
        format!(
            "once dshost runs, it finishes the move or undoes it: {what} is then at either {from} or {to}, never both \
             (`dsctl move list`, `ls`)"
        ),
    )
}

/// The next state, over a connection that is made when there is none.
async fn next(
    client: &Client,
    events: &mut Option<MoveEvents>,
    last: &MoveStatus,
) -> Result<Option<MoveStatus>, ClientError> {
    if events.is_none() {
        *events = Some(client.move_events(last.id).await?);
    }
    match events {
        Some(stream) => stream.next().await,
        None => Ok(None),
    }
}
