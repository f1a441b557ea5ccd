//! burial
