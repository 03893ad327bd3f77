//! openwit-ingest: what the command line needs around the graphs.

// Contracts with the user.
pub mod cli;
pub mod config;
pub mod exit_code;
pub mod plan;

// Load, and a broker to send it to.
pub mod embedded_broker;
pub mod generate;

// What a run tells about itself.
pub mod admin;
pub mod progress;
pub mod status;
pub mod summary;

// The commands.
pub mod commands;
