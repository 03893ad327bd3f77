#![no_main]
openwit_fuzz::main!("dead_letters");
