#![no_main]
openwit_fuzz::main!("captures");
