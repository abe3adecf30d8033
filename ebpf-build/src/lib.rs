//! Toolchain finder.
