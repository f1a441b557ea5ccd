//! Sparse bytes in memory: what a [`super::MemoryDisk`] keeps.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{DiskError, Extent};

/// Bytes that are allocated together.
pub(super) const BLOCK: u64 = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Blocks that may be allocated.
    pub(super) capacity: Option<usize>,
}

impl Store {
    pub(super) fn allocated(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// Zeroes where nothing is.
    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut data = vec![0; (range.end - range.start) as usize];
        for (block, inner) in pieces(range.clone()) {
            if let Some(bytes) = self.blocks.get(&block) {
                let at = (block * BLOCK + inner.start as u64 - range.start) as usize;
                data[at..at + inner.len()].copy_from_slice(&bytes[inner]);
            }
        }
        data
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], keeper: &str) -> Result<(), DiskError> {
        let end = offset + data.len() as u64;
        for (block, inner) in pieces(offset..end) {
            let at = (block * BLOCK + inner.start as u64 - offset) as usize;
            let len = inner.len();
            self.block(block, keeper)?[inner].copy_from_slice(&data[at..at + len]);
        }
        if !data.is_empty() {
            self.size = self.size.max(end);
        }
        Ok(())
    }

    /// Zeroes that stay allocated.
    pub(super) fn zero(&mut self, range: Range<u64>, keeper: &str) -> Result<(), DiskError> {
        for (block, inner) in pieces(range) {
            self.block(block, keeper)?[inner].fill(0);
        }
        Ok(())
    }

    pub(super) fn allocate(&mut self, range: Range<u64>, keeper: &str) -> Result<(), DiskError> {
        pieces(range).try_for_each(|(block, _)| self.block(block, keeper).map(drop))
    }

    pub(super) fn discard(&mut self, range: Range<u64>) {
        let touched = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let blocks: Vec<u64> = self.blocks.range(touched).map(|(block, _)| *block).collect();
        for block in blocks {
            let (start, end) = (block * BLOCK, (block + 1) * BLOCK);
            if range.start <= start && end <= range.end {
                self.blocks.remove(&block);
            } else if let Some(bytes) = self.blocks.get_mut(&block) {
                let inner = range.start.max(start) - start..range.end.min(end) - start;
                bytes[inner.start as usize..inner.end as usize].fill(0);
            }
        }
    }

    pub(super) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.discard(size..size.next_multiple_of(BLOCK).max(self.size.next_multiple_of(BLOCK)));
        }
        self.size = size;
    }

    pub(super) fn extents(&self, range: Range<u64>, at_most: usize) -> (Vec<Extent>, u64) {
        let range = range.start..range.end.min(self.size);
        let mut extents: Vec<Extent> = Vec::new();
        if range.is_empty() {
            return (extents, range.start);
        }
        for block in
            self.blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).map(|(block, _)| *block)
        {
            let start = (block * BLOCK).max(range.start);
            let end = ((block + 1) * BLOCK).min(range.end);
            if let Some(last) = extents.last_mut().filter(|last| last.offset + last.len == start) {
                last.len = end - last.offset;
            } else if extents.len() == at_most {
                return (extents, start);
            } else {
                extents.push(Extent { offset: start, len: end - start });
            }
        }
        (extents, range.end)
    }

    fn block(&mut self, block: u64, keeper: &str) -> Result<&mut Vec<u8>, DiskError> {
        let full = self.capacity.is_some_and(|capacity| self.blocks.len() >= capacity);
        if full && !self.blocks.contains_key(&block) {
            return Err(DiskError::NoSpace { keeper: keeper.to_owned() });
        }
        Ok(self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]))
    }
}

/// The blocks that `range` touches, each with the part of it that lies inside the range.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let block = at / BLOCK;
        let stop = range.end.min((block + 1) * BLOCK);
        let inner = (at - block * BLOCK) as usize..(stop - block * BLOCK) as usize;
        at = stop;
        Some((block, inner))
    })
}
