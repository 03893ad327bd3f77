//! What the integration tests share: the binary as a process, what it left on disk, waiting with a deadline, seeded randomness.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod addresses;
pub mod binary;
pub mod captures;
pub mod disk;
pub mod lake;
pub mod proxy;
pub mod random;
pub mod wait;

/// Says, past the test runner's capturing, that a test did not run. `CI` decides whether that is allowed: see `services`.
pub fn skipped(what: &str, why: &str) {
    use std::io::Write;
    // Not `eprintln`: the runner shows that of failed tests only.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}: {why}");
}
