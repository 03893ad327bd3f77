//! What is stored is read back from real S3 by what a PostgreSQL catalog lists, and a reader of another make finds in the result all that Kafka holds.

use serde_json::json;

use crate::setup::{Setup, service};
use crate::support::binary::openwit;

#[test]
fn what_is_in_s3_is_replayed_by_the_catalog_and_a_reader_of_another_make_finds_all_of_it() {
    for (signal, format) in [("traces", "otlp"), ("logs", "json"), ("metrics", "otlp")] {
        let Some(setup) = Setup::new("stored", signal) else { return };
        let needed = [
            "OPENWIT_TEST_POSTGRES",
            "OPENWIT_TEST_S3_ENDPOINT",
            "OPENWIT_TEST_S3_BUCKET",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ];
        let found: Vec<String> = needed.iter().filter_map(|variable| service("stored", variable)).collect();
        let [postgres, endpoint, bucket, ..] = &found[..] else { return };
        let (schema, prefix) = (setup.schema(), setup.group.clone());
        let setup = setup.with(&format!(
            "metastore: {{type: postgres, url: '{postgres}', schema: {schema}}}\n\
             storage: {{rotation: {{age_max_seconds: 3600}}, object_store: {{scheme: s3, bucket: {bucket}, endpoint: '{endpoint}', region: us-east-1, \
             prefix: {prefix}, access_key_id: '${{AWS_ACCESS_KEY_ID}}', secret_access_key: '${{AWS_SECRET_ACCESS_KEY}}'}}}}\n"
        ));
        setup.generate(format, 600, 71);
        let summary = setup.run_to_end().json();
        let (config, result) = (setup.config(), setup.path("result").display().to_string());
        let replay = |more: &[&str]| openwit(["replay", "--from", "parquet", "--config", &config, "--json"].iter().chain(more));
        let replayed = replay(&["--to", &result]).expect(0).json();
        assert_eq!(replayed["rows"], summary["rows"], "{replayed}");
        assert_eq!(replayed["damaged"], json!(0), "{replayed}");
        assert_eq!(replay(&["--expect", &result, "--workers", "3"]).expect(0).json()["equal"], json!(true));
        // All that Kafka holds, in the rows that were made of messages that were made of rows.
        setup.verify(format, Some(&format!("{result}/rows")));
    }
}
