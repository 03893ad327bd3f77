//! Payloads that a producer compressed itself, beyond what Kafka does with whole batches.
//!
//! ```text
//! gzip     1f 8b ..                    one member or several
//! zstd     28 b5 2f fd ..              one frame or several; windows as large as the bound on what comes out, 8 MiB at least
//! snappy   ff 06 00 00 s N a P p Y ..  the framed format
//!          anything else               one raw block: it cannot start as the above, which would copy from before its own start
//! ```
//! What comes out is bounded while it comes out: neither a bomb nor a false length takes more memory, or more time, than the bound.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;
use zstd::zstd_safe::{DCtx, DParameter};

use crate::batch::Reason;

use super::failure::{Checked, Failure};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const SNAPPY_STREAM: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// Bytes that one byte of a snappy block can become: a copy of 64 bytes takes three. A block that claims more is false, and no memory
/// is taken for it.
const SNAPPY_GROWTH_MAX: usize = 22;

/// The least bound on zstd's window, as its logarithm: 8 MiB, which RFC 8878 asks every reader to take.
const WINDOW_LOG_MIN: u32 = 23;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip,
    Zstd,
    Snappy,
}

impl Codec {
    /// The codec that a header names, in any case.
    pub fn named(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("gzip") || is("x-gzip") => Some(Codec::Gzip),
            () if is("zstd") => Some(Codec::Zstd),
            () if is("snappy") => Some(Codec::Snappy),
            () => None,
        }
    }

    /// The codec that a payload shows by its first bytes. No format starts like these: as protobuf, gzip's are of no wire type, and
    /// zstd's are a number in field 5, where OTLP's outermost messages have none.
    #[inline]
    pub fn shown(payload: &[u8]) -> Option<Self> {
        match payload {
            [0x1f, ..] if payload.starts_with(&GZIP_MAGIC) => Some(Codec::Gzip),
            [0x28, ..] if payload.starts_with(&ZSTD_MAGIC) => Some(Codec::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
            Codec::Snappy => "snappy",
        }
    }
}

/// Decompresses payloads. Keeps zstd's context, which is costly to make, from the first such payload on.
pub(super) struct Unpacker {
    zstd: Option<DCtx<'static>>,
    bytes_max: usize,
}

impl Unpacker {
    /// What comes out has at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Unpacker { zstd: None, bytes_max }
    }

    /// Replaces `out` by what `payload` holds. After a failure `out` holds anything, but not more than the bound.
    pub fn unpack(&mut self, codec: Codec, payload: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        out.clear();
        match codec {
            Codec::Gzip => self.drain(codec, MultiGzDecoder::new(payload), out),
            Codec::Snappy if payload.starts_with(SNAPPY_STREAM) => self.drain(codec, snap::read::FrameDecoder::new(payload), out),
            Codec::Snappy => self.snappy_block(payload, out),
            Codec::Zstd => {
                let mut context = self.zstd.take().unwrap_or_else(|| zstd_context(self.bytes_max));
                let unpacked = self.drain(codec, zstd::stream::read::Decoder::with_context(payload, &mut context), out);
                self.zstd = Some(context);
                unpacked
            }
        }
    }

    fn drain(&self, codec: Codec, reader: impl Read, out: &mut Vec<u8>) -> Checked<()> {
        // One byte more tells too much from just enough.
        let read = reader.take(self.bytes_max as u64 + 1).read_to_end(out);
        if out.len() > self.bytes_max {
            out.truncate(self.bytes_max);
            return Err(self.too_large(codec));
        }
        read.map(drop).map_err(|error| broken(codec, error))
    }

    fn snappy_block(&self, block: &[u8], out: &mut Vec<u8>) -> Checked<()> {
        let len = snap::raw::decompress_len(block).map_err(|error| broken(Codec::Snappy, error))?;
        if len > self.bytes_max {
            return Err(self.too_large(Codec::Snappy));
        }
        if len / SNAPPY_GROWTH_MAX > block.len() {
            return Err(broken(Codec::Snappy, format_args!("{} bytes cannot become the {len} they claim", block.len())));
        }
        out.resize(len, 0);
        snap::raw::Decoder::new().decompress(block, out).map(drop).map_err(|error| broken(Codec::Snappy, error))
    }

    #[cold]
    fn too_large(&self, codec: Codec) -> Box<Failure> {
        let (codec, limit) = (codec.name(), self.bytes_max);
        Failure::new(Reason::TooLarge, format_args!("{codec}: decompressed it is over the limit of {limit} bytes"))
    }
}

/// A context that takes windows as large as what may come out: a frame cannot make it hold more.
fn zstd_context(bytes_max: usize) -> DCtx<'static> {
    let mut context = DCtx::create();
    let window_log = bytes_max.next_power_of_two().trailing_zeros().clamp(WINDOW_LOG_MIN, 31);
    context.set_parameter(DParameter::WindowLogMax(window_log)).expect("zstd takes window logs of 23 to 31");
    context
}

#[cold]
fn broken(codec: Codec, error: impl std::fmt::Display) -> Box<Failure> {
    let error = error.to_string();
    // zstd has no kind for it.
    let reason = if error.contains("too much memory") { Reason::TooLarge } else { Reason::Malformed };
    Failure::new(reason, format_args!("{}: {error}", codec.name()))
}
