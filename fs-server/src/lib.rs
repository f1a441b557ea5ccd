//! The datastore: names, file data, sessions and move records of one directory, served over TCP.

pub mod config;
mod connection;
pub mod core;
mod datastore;
mod executor;
pub mod halt;
mod replies;
mod requests;
mod ring;
mod server;
mod sessions;
mod store;

pub use server::{ServeError, run};
