//! The commands that run a graph or look at what one left.

pub mod audit;
pub mod check;
pub mod dead_letter;
pub mod demo;
pub mod graph;
pub mod janitor;
pub mod migrate;
pub mod replay;
pub mod run;
pub mod test;
pub mod token;
pub mod wal;
pub mod whereis;

use std::fmt::Display;

use crate::cli::ConfigArgs;
use crate::config::{Config, Loaded};
use crate::exit_code;

/// Why a command did not end with `exit_code::DONE`.
#[derive(Debug)]
pub struct Failure {
    /// What to tell.
    pub message: String,
    /// What to exit with.
    pub exit_code: u8,
}

impl Failure {
    /// Something failed.
    pub fn fault(message: impl Display) -> Self {
        Failure { message: message.to_string(), exit_code: exit_code::FAULT }
    }

    /// Arguments or configuration are wrong.
    pub fn usage(message: impl Display) -> Self {
        Failure { message: message.to_string(), exit_code: exit_code::USAGE }
    }

    /// Data is missing, doubled or not the same.
    pub fn difference(message: impl Display) -> Self {
        Failure { message: message.to_string(), exit_code: exit_code::DIFFERENCE }
    }
}

/// What a command returns.
pub type Ended = Result<(), Failure>;

/// Loads the configuration a command was given; warnings go to stderr.
pub fn load(args: &ConfigArgs) -> Result<Config, Failure> {
    let loaded = load_with_warnings(args)?;
    if !loaded.warnings.is_empty() {
        eprintln!("{}", loaded.warnings);
    }
    Ok(loaded.config)
}

/// Loads the configuration a command was given.
pub fn load_with_warnings(args: &ConfigArgs) -> Result<Loaded, Failure> {
    let overrides: Vec<String> = args.set.iter().map(|set| format!("{}={}", set.key, set.value)).collect();
    Config::load(&args.config, &overrides).map_err(Failure::usage)
}
