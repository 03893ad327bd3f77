#![no_main]
openwit_fuzz::main!("plain_json");
