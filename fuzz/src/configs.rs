//! Configuration files and dataset schemas: the one way in for bytes that people write.
//!
//! Whatever the text, there is a configuration or a list of problems. A configuration printed is the same configuration; a schema that
//! was accepted is one that `Normalizer` takes.

use std::sync::Arc;

use openwit_ingest::config::{Config, datasets};
use openwit_operators::batch::Signal;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{self, Normalizer};

use super::{Body, Meter, Stage};

// The table of all keys with their values is there whatever the text.
static CONFIG: Stage = Stage { name: "read a configuration", bytes: 4 << 20, bytes_per_byte: 256 };
static SCHEMA: Stage = Stage { name: "read a dataset schema", bytes: 512 << 10, bytes_per_byte: 256 };

/// A body for both, chosen by an input's first byte.
pub fn body() -> Box<dyn Body> {
    Box::new(Configs)
}

struct Configs;

impl Body for Configs {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some((&kind, bytes)) = input.split_first() else { return };
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match kind {
            0 => check_config(text, meter),
            1 => check_schema(text, meter),
            _ => {}
        }
    }
}

fn check_config(text: &str, meter: &mut Meter) {
    let parse = |text: &str| Config::parse("fuzz.yaml", text, &[], &|name| (name == "HOME").then(|| "/home".to_owned()));
    match meter.measure(&CONFIG, text.len(), || parse(text)) {
        Ok(loaded) => {
            let printed = loaded.config.to_yaml();
            // Secrets are not printed.
            if printed.contains("***") {
                return;
            }
            let again =
                parse(&printed).unwrap_or_else(|problems| panic!("a configuration that was printed is refused: {problems}"));
            assert_eq!(again.config.to_yaml(), printed, "a configuration that was printed is another one");
        }
        Err(problems) => assert!(!problems.to_string().is_empty(), "a refusal says why"),
    }
}

fn check_schema(text: &str, meter: &mut Meter) {
    let schema = match meter.measure(&SCHEMA, text.len(), || datasets::parse("fuzz.yaml", text)) {
        Ok(schema) => schema,
        Err(problems) => {
            assert!(!problems.to_string().is_empty(), "a refusal says why");
            return;
        }
    };
    assert_eq!(schema.canonical_text(), schema.clone().canonical_text());
    let config = normalize::Config {
        telemetry_type: Some(Signal::Logs),
        topics: IndexRules { default_index_position: Some(0), ..IndexRules::default() },
        datasets: Arc::new([schema]),
        ..normalize::Config::default()
    };
    let normalizer = Normalizer::new(config);
    assert!(normalizer.is_ok(), "a schema that was accepted is refused: {:?}", normalizer.err());
}
