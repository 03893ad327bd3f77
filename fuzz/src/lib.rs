//! The bodies of the fuzz targets: one per decoder, each with its oracles (docs/fuzzing.md).
//!
//! `src/bin/` runs them under libFuzzer, which looks for inputs; `tests/fuzzing.rs` of the main package runs the inputs that were found,
//! with nothing but `cargo test`. What no input may do is said in one place for all of them, `judge`: not panic, not take more memory
//! than its length allows, not take a hundred times as long as a normal message of its length.

mod captures;
mod configs;
mod dead_letters;
mod judge;
mod log_files;
mod memory;
mod messages;
mod notes;
mod normal;

pub use judge::{Judge, Meter, Stage};
pub use memory::Counting;

/// A decoder, ready to be given inputs. What an input does may not depend on those before it.
pub trait Body {
    /// Decodes `input`, measured by `meter`, and panics where what came of it breaks a promise.
    fn run(&mut self, input: &[u8], meter: &mut Meter);
}

/// A fuzz target.
pub struct Target {
    /// Its name: of its binary, and of the folders of its inputs.
    pub name: &'static str,
    /// What it decodes, for the report.
    pub what: &'static str,
    /// Longest input that is tried: long enough for all structures and their repetition, short enough to be tried often.
    pub len_max: usize,
    /// Makes the body.
    pub open: fn() -> Box<dyn Body>,
    /// Inputs as they are meant to be, of several lengths: what others are compared with, and what fuzzing starts from.
    pub normal: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "otlp_proto",
        what: "OTLP protobuf of each signal, and the encoding as Arrow of what is accepted",
        len_max: 8 << 10,
        open: || messages::body(messages::protobuf),
        normal: normal::protobuf,
    },
    Target {
        name: "otlp_json",
        what: "OTLP JSON of each signal",
        len_max: 8 << 10,
        open: || messages::body(messages::otlp_json),
        normal: normal::otlp_json,
    },
    Target {
        name: "plain_json",
        what: "plain JSON, NDJSON and arrays of it, raw lines, and telling formats apart",
        len_max: 8 << 10,
        open: || messages::body(messages::plain_json),
        normal: normal::plain_json,
    },
    Target {
        name: "envelope",
        what: "headers, CloudEvents, compression and dataset schemas around all formats",
        len_max: 4 << 10,
        open: || messages::body(messages::envelope),
        normal: normal::envelopes,
    },
    Target {
        name: "log_files",
        what: "segments, key files and long-term copies of the write-ahead log",
        len_max: 16 << 10,
        open: log_files::body,
        normal: normal::log_files,
    },
    Target {
        name: "dead_letters",
        what: "lines and Kafka messages of the dead letter, and marks of what was sent back",
        len_max: 8 << 10,
        open: dead_letters::body,
        normal: normal::dead_letters,
    },
    Target {
        name: "captures",
        what: "files of captures, ended or not",
        len_max: 16 << 10,
        open: captures::body,
        normal: captures::normal,
    },
    Target {
        name: "notes",
        what: "metadata of Flight parts, their coverage, acknowledgements, Parquet footers and their notes",
        len_max: 8 << 10,
        open: notes::body,
        normal: normal::notes,
    },
    Target {
        name: "configs",
        what: "configuration files and dataset schemas",
        len_max: 48 << 10,
        open: configs::body,
        normal: normal::configs,
    },
];

/// The target called `name`.
///
/// # Panics
/// If there is none.
pub fn target(name: &str) -> &'static Target {
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("no target is called {name}"))
}

/// Asked by `FUZZ_SEEDS` for a folder, a target's program writes its normal inputs there, prints the length of its longest input and ends.
///
/// # Panics
/// If the folder cannot be written to.
pub fn prepare(name: &str) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS").map(std::path::PathBuf::from) else { return };
    let target = target(name);
    std::fs::create_dir_all(&folder).expect("the folder can be created");
    for (number, input) in (target.normal)().iter().enumerate() {
        std::fs::write(folder.join(format!("normal-{number:02}")), input).expect("the folder can be written to");
    }
    println!("{}", target.len_max);
    std::process::exit(0);
}

/// The program of a target: libFuzzer's main function, and a judge.
#[macro_export]
macro_rules! main {
    ($name:literal) => {
        #[global_allocator]
        static ALLOCATOR: $crate::Counting = $crate::Counting;

        thread_local! {
            static JUDGE: std::cell::RefCell<$crate::Judge> =
                std::cell::RefCell::new($crate::Judge::new($crate::target($name), true));
        }

        libfuzzer_sys::fuzz_target!(
            init: $crate::prepare($name),
            |input: &[u8]| JUDGE.with_borrow_mut(|judge| judge.judge(input))
        );
    };
}
