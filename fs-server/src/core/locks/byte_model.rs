//! A model of the lock table that knows only single bytes and a list of waits.

use std::collections::{BTreeMap, BTreeSet};

use proto::FileId;

use super::*;

pub const BYTES: u64 = 64;
/// The model's last byte stands for all that follow.
pub fn range(first: u64, last: u64) -> Range {
    Range::new(first, if last == BYTES - 1 { u64::MAX } else { last })
}

pub fn bytes(range: Range) -> impl Iterator<Item = usize> {
    range.start as usize..=range.end.min(BYTES - 1) as usize
}

type Cells = Vec<Option<Mode>>;

#[derive(Clone, Default)]
pub struct Model {
    pub held: BTreeMap<(FileId, Owner), Cells>,
    pub waits: Vec<Wait>,
}

impl Model {
    pub fn set(&mut self, file: FileId, owner: Owner, range: Range, mode: Option<Mode>) {
        let cells = self.held.entry((file, owner)).or_insert_with(|| vec![None; BYTES as usize]);
        bytes(range).for_each(|byte| cells[byte] = mode);
        self.held.retain(|_, cells| cells.iter().any(Option::is_some));
    }

    pub fn holders_against(&self, ask: &Ask) -> BTreeSet<Owner> {
        let others = self.held.iter().filter(|((file, owner), cells)| {
            *file == ask.file
                && *owner != ask.owner
                && owner.kind.meets(ask.owner.kind)
                && bytes(ask.range).any(|byte| cells[byte].is_some_and(|mode| mode.conflicts(ask.mode)))
        });
        others.map(|((_, owner), _)| *owner).collect()
    }

    fn queued_against(&self, ask: &Ask, before: Ticket) -> BTreeSet<Owner> {
        let others = self.waits.iter().filter(|w| {
            let shared: BTreeSet<_> = bytes(w.ask.range).collect();
            w.ticket < before
                && w.ask.file == ask.file
                && w.ask.owner != ask.owner
                && w.ask.owner.kind.meets(ask.owner.kind)
                && w.ask.mode.conflicts(ask.mode)
                && bytes(ask.range).any(|byte| shared.contains(&byte))
        });
        others.map(|w| w.ask.owner).collect()
    }

    /// Who waits for whom, directly or not.
    fn waits_for(&self, posix_holders_only: bool) -> BTreeSet<(Owner, Owner)> {
        let mut pairs = BTreeSet::new();
        for wait in &self.waits {
            let me = wait.ask.owner;
            pairs.extend(self.holders_against(&wait.ask).into_iter().map(|other| (me, other)));
            if !posix_holders_only {
                pairs.extend(self.queued_against(&wait.ask, wait.ticket).into_iter().map(|o| (me, o)));
            }
        }
        if posix_holders_only {
            pairs.retain(|(a, b)| a.kind == Kind::Posix && b.kind == Kind::Posix);
        }
        loop {
            let next = pairs
                .iter()
                .flat_map(|(a, b)| pairs.iter().filter(move |(c, _)| b == c).map(move |(_, d)| (*a, *d)));
            let longer: Vec<_> = next.filter(|pair| !pairs.contains(pair)).collect();
            if longer.is_empty() {
                return pairs;
            }
            pairs.extend(longer);
        }
    }

    pub fn would_deadlock(&self, ask: &Ask) -> bool {
        let waits_for = self.waits_for(true);
        ask.owner.kind == Kind::Posix
            && self.holders_against(ask).iter().any(|other| waits_for.contains(&(*other, ask.owner)))
    }

    fn may_have(&self, wait: &Wait) -> bool {
        let ask = &wait.ask;
        if !self.holders_against(ask).is_empty() {
            return false;
        }
        let covered = self.held.get(&(ask.file, ask.owner)).is_some_and(|cells| {
            bytes(ask.range).all(|byte| cells[byte].is_some_and(|mode| mode >= ask.mode))
        });
        let queued = self.queued_against(ask, wait.ticket);
        covered || queued.is_empty() || {
            let waits_for = self.waits_for(false);
            queued.iter().any(|other| waits_for.contains(&(*other, ask.owner)))
        }
    }

    fn grant(&mut self, wait: &Wait) -> bool {
        let may = self.may_have(wait);
        self.waits.retain(|w| w.ticket != wait.ticket);
        self.set(wait.ask.file, wait.ask.owner, wait.ask.range, Some(wait.ask.mode));
        may
    }

    /// Each grant was right when it came, and none is missing.
    pub fn take_grants(&mut self, granted: &[Wait]) -> bool {
        granted.iter().all(|wait| self.grant(wait)) && !self.waits.iter().any(|wait| self.may_have(wait))
    }

    /// The fewest spans that say what an owner holds.
    pub fn spans(&self, file: FileId, owner: Owner) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let Some(cells) = self.held.get(&(file, owner)) else { return spans };
        for (byte, mode) in (0..BYTES).zip(cells) {
            let Some(mode) = *mode else { continue };
            match spans.last_mut() {
                Some(last) if last.mode == mode && last.range.end + 1 == byte => last.range.end = byte,
                _ => spans.push(Span { range: Range::new(byte, byte), mode }),
            }
        }
        spans.iter().map(|s| Span { range: range(s.range.start, s.range.end), mode: s.mode }).collect()
    }

    pub fn first_conflict(&self, ask: &Ask) -> Option<(u64, Owner, Span)> {
        let against = |owner: Owner| {
            self.spans(ask.file, owner)
                .into_iter()
                .filter(|s| s.range.overlaps(ask.range) && s.mode.conflicts(ask.mode))
                .map(move |s| (s.range.start, owner, s))
        };
        self.holders_against(ask).into_iter().flat_map(against).min_by_key(|(at, owner, _)| (*at, *owner))
    }
}
