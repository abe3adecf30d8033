//! Map layouts and packet logic.
#![no_std]
