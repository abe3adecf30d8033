//! Packet tests of the loaded program, the network namespace lab and the scenarios run in it.

pub mod frames;
