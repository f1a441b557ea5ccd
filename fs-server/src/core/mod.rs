//! The datastore's core: every rule of names, attributes, sessions and moves, without clock,
//! thread, socket or file. A request is planned on a [`tables::Txn`]; what comes out is a list of
//! changes, a reply and effects for the driver.

pub mod attrs;
pub mod incoming;
pub mod invariants;
pub mod listing;
pub mod locks;
pub mod moves;
pub mod names;
pub mod plan;
pub mod records;
pub mod rename;
pub mod tables;
pub mod trees;

#[cfg(test)]
mod model_test;
#[cfg(test)]
mod moves_test;
