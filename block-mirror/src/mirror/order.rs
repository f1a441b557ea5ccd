//! Who waits for whom: everything that works on a range of bytes, in the order of its arrival.
//!
//! One rule gives fairness and freedom from deadlock: an entry waits only for *earlier* entries
//! that overlap it and conflict with it. So a copy that wants a busy region gets its turn, and so
//! does a guest request that wants a region which is often copied. What conflicts is decided here
//! ([`Order::blocked`]); what an entry does when its turn has come is decided elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

use super::messages::{GuestId, Mutation};

/// An entry's place in the order.
pub(super) type Ticket = u64;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) span: Range<u64>,
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    Guest(GuestWork),
    /// Region-aligned. Its regions' bits are cleared when it begins to run; what makes its result
    /// worthless sets them again.
    Copy(CopyWork),
    /// The destination gets the source's size; the span is all that lies behind it.
    SetSize {
        running: bool,
        size: u64,
        /// Its success proves nothing.
        doubtful: bool,
    },
}

#[derive(Debug)]
pub(super) struct GuestWork {
    pub(super) guest: GuestId,
    pub(super) mutation: Mutation,
    pub(super) stage: Stage,
    /// When it arrived; once its source part is done, when that was.
    pub(super) since: u64,
    /// It has waited too long for the destination and goes to the source alone.
    pub(super) source_only: bool,
    /// Source only: its range must be marked dirty when it ends. Resize: its success at the
    /// destination proves nothing.
    pub(super) redirty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// In flight to the source only; its range was marked dirty before it was issued.
    SourceOnly,
    /// In flight to both; each part is known to have succeeded or failed, or is outstanding.
    Both {
        source: Option<bool>,
        destination: Option<bool>,
    },
    /// A resize in flight to the source.
    ResizingSource,
    /// A resize done at the source, in flight to the destination.
    ResizingDestination,
    /// Answered, its range is dirty; the destination's part is still outstanding and may land at
    /// any time.
    Straggler,
    /// The mirror is over, or the guest's part of it: nothing depends on it but its answer.
    Plain,
}

#[derive(Debug)]
pub(super) struct CopyWork {
    pub(super) running: bool,
    /// End of what it reads from the source.
    pub(super) read_end: u64,
}

/// What somebody wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Change the destination's range, in step with the source: waits for everything.
    Both,
    /// Copy while guest writes don't wait for copies.
    CopyBeside,
    /// Write to the source alone.
    Source,
    /// Resize the source alone.
    SourceSize,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    entries: BTreeMap<Ticket, Entry>,
    next: Ticket,
}

impl Order {
    pub(super) fn push(&mut self, span: Range<u64>, work: Work) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.entries.insert(ticket, Entry { span, work });
        ticket
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Entry {
        self.entries.remove(&ticket).expect("an entry leaves once, when its last op ended")
    }

    pub(super) fn get(&self, ticket: Ticket) -> &Entry {
        &self.entries[&ticket]
    }

    pub(super) fn guest_mut(&mut self, ticket: Ticket) -> &mut GuestWork {
        match self.entries.get_mut(&ticket).map(|entry| &mut entry.work) {
            Some(Work::Guest(work)) => work,
            other => panic!("ticket {ticket} is not a guest's: {other:?}"),
        }
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> &mut Entry {
        self.entries.get_mut(&ticket).expect("the caller's entry has not left")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &Entry)> {
        self.entries.iter().map(|(ticket, entry)| (*ticket, entry))
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.values_mut()
    }

    pub(super) fn guests_mut(&mut self) -> impl Iterator<Item = (Ticket, &Range<u64>, &mut GuestWork)> {
        self.entries.iter_mut().filter_map(|(ticket, entry)| match &mut entry.work {
            Work::Guest(work) => Some((*ticket, &entry.span, work)),
            _ => None,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn copies(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry.work, Work::Copy(_))).count()
    }

    pub(super) fn waiting(&self) -> Vec<Ticket> {
        self.entries.iter().filter(|(_, entry)| entry.waits()).map(|(ticket, _)| *ticket).collect()
    }

    pub(super) fn any_guest(&self, stage: Stage) -> bool {
        self.entries.values().any(|entry| matches!(&entry.work, Work::Guest(work) if work.stage == stage))
    }

    /// Whether what comes at `ticket` must wait for an earlier entry. `strict` is the rule while
    /// guest writes go to both disks: then even source-only writes take their turn.
    pub(super) fn blocked(&self, ticket: Ticket, span: &Range<u64>, want: Want, strict: bool) -> bool {
        self.entries
            .range(..ticket)
            .any(|(_, earlier)| overlap(&earlier.span, span) && earlier.conflicts(want, strict))
    }

    /// The first part of `span` that a copy can be made of. Empty when there is none; it starts
    /// then where the search may go on.
    pub(super) fn free_for_copy(&self, mut span: Range<u64>, granularity: u64, strict: bool) -> Range<u64> {
        loop {
            let before = span.clone();
            for entry in self.entries.values().filter(|entry| overlap(&entry.span, &before)) {
                // Under the strict rule a copy waits for guests, but not behind another copy.
                let in_the_way =
                    if strict { entry.is_copier() } else { entry.conflicts(Want::CopyBeside, strict) };
                if !in_the_way || !overlap(&entry.span, &span) {
                    continue;
                }
                let start = entry.span.start / granularity * granularity;
                if start <= span.start {
                    span.start = entry.span.end.checked_next_multiple_of(granularity).unwrap_or(u64::MAX);
                } else {
                    span.end = start;
                }
            }
            if span == before || span.is_empty() {
                return span;
            }
        }
    }
}

impl Entry {
    pub(super) fn waits(&self) -> bool {
        match &self.work {
            Work::Guest(work) => work.stage == Stage::Waiting,
            Work::Copy(work) => !work.running,
            Work::SetSize { running, .. } => !running,
        }
    }

    /// Something of it may land at the destination now.
    pub(super) fn writes_destination(&self) -> bool {
        match &self.work {
            Work::Guest(work) => {
                matches!(work.stage, Stage::Both { .. } | Stage::ResizingDestination | Stage::Straggler)
            }
            Work::Copy(work) => work.running,
            Work::SetSize { running, .. } => *running,
        }
    }

    fn is_copier(&self) -> bool {
        !matches!(self.work, Work::Guest(_))
    }

    fn conflicts(&self, want: Want, strict: bool) -> bool {
        let Work::Guest(work) = &self.work else {
            return match want {
                Want::Both | Want::CopyBeside => true,
                Want::Source | Want::SourceSize => false,
            };
        };
        match work.stage {
            Stage::Plain => false,
            Stage::Waiting | Stage::Both { .. } | Stage::ResizingSource | Stage::ResizingDestination => true,
            Stage::SourceOnly => match want {
                Want::Both | Want::SourceSize => true,
                Want::CopyBeside | Want::Source => strict,
            },
            Stage::Straggler => matches!(want, Want::Both | Want::CopyBeside),
        }
    }
}

pub(super) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end && !a.is_empty() && !b.is_empty()
}
