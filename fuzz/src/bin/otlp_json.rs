#![no_main]
openwit_fuzz::main!("otlp_json");
