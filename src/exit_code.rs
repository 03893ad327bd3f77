//! Exit codes of the process: a contract with scripts and service managers.

/// All that was asked for is done.
pub const DONE: u8 = 0;
/// Something failed that the message names: a broker, a disk, a store, an operator.
pub const FAULT: u8 = 1;
/// Arguments or configuration are wrong; nothing was started. clap ends with this code too.
pub const USAGE: u8 = 2;
/// An audit, a replay or a test case found a difference: data is missing, doubled, or not the same or as expected.
pub const DIFFERENCE: u8 = 3;
