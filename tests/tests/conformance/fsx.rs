//! `fsx` on a mount.
