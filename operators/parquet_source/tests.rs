//! Proves that rows become messages that become the same rows, that files are accounted for whatever order they have, and that what is not whole
//! is refused by name. It cannot prove what storage nodes write: `tests/cli/parquet.rs` reads that.

mod files;
mod rows;
mod schemas;
