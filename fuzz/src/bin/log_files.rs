#![no_main]
openwit_fuzz::main!("log_files");
