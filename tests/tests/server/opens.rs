//! opens
