//! A look at the schema in a footer before a reader of Parquet sees it.
//!
//! The schema is a list of elements, a tree in depth-first order, each with the number of its children. The reader takes memory for as
//! many children as an element says it has: for 2^31 of them, if five bytes of a damaged or hostile footer say so. No element can have
//! more children than the list has elements.
//!
//! The reader also goes by the numbers of fields and not by their types, and passes over the elements of an unknown list of booleans without a look
//! at the bytes: 2^31 of them take seconds, and lists of such lists for ever. So fields of a known number must have their type, and no
//! footer has a list of booleans. (That of the structs below row groups is not looked at.)
//!
//! ```text
//! FileMetaData, Thrift's compact protocol      SchemaElement
//!   2  list<SchemaElement>  schema               5  i32  num_children
//! ```

const STOP: u8 = 0;
const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;
const I64: u8 = 6;
const BINARY: u8 = 8;
/// Types of the fields of `FileMetaData`, from number 1 on.
const FILE_FIELDS: [u8; 9] = [I32, LIST, I64, LIST, LIST, BINARY, LIST, STRUCT, BINARY];
/// Types of the fields of `SchemaElement`, from number 1 on.
const ELEMENT_FIELDS: [u8; 10] = [I32, I32, I32, BINARY, I32, I32, I32, I32, I32, STRUCT];
/// Levels of structs and lists in what is passed over: a footer has six.
const DEPTH_MAX: u32 = 32;

/// True if the schema in the Thrift bytes of a footer can be read with memory in proportion to their length. Says nothing else of them.
pub fn is_bounded(thrift: &[u8]) -> bool {
    Cursor { rest: thrift }.file().unwrap_or(false)
}

/// Reads as far as it has to; `None` where the bytes end too early or are nested too deep.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next field of a struct, as number and type; type `STOP` at its end.
    fn field(&mut self, before: i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        let (step, kind) = (head >> 4, head & 0x0f);
        match (kind, step) {
            (STOP, _) => Some((before, STOP)),
            (kind, 0) => Some((zigzag(self.varint()?), kind)),
            (kind, step) => Some((before + i64::from(step), kind)),
        }
    }

    /// The number of a list's elements, and their type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let size = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((size, head & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        if depth == 0 {
            return None;
        }
        match kind {
            // A boolean's value is its type.
            1 | 2 => Some(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let bytes = self.varint()?;
                self.pass(bytes)
            }
            LIST | 10 => {
                let (size, kind) = self.list()?;
                if matches!(kind, 1 | 2) {
                    return None;
                }
                (0..size).try_for_each(|_| self.skip(kind, depth - 1))
            }
            STRUCT => {
                let mut number = 0;
                loop {
                    let (next, kind) = self.field(number)?;
                    if kind == STOP {
                        return Some(());
                    }
                    self.skip(kind, depth - 1)?;
                    number = next;
                }
            }
            // Maps are in no footer.
            _ => None,
        }
    }

    fn file(&mut self) -> Option<bool> {
        let mut number = 0;
        loop {
            let (next, kind) = self.field(number)?;
            match (next, kind) {
                (_, STOP) => return Some(true),
                (number, kind) if !has_type(&FILE_FIELDS, number, kind) => return Some(false),
                (2, LIST) => {
                    let (size, kind) = self.list()?;
                    if kind != STRUCT {
                        return Some(false);
                    }
                    for _ in 0..size {
                        if !self.element(size)? {
                            return Some(false);
                        }
                    }
                }
                (_, kind) => self.skip(kind, DEPTH_MAX)?,
            }
            number = next;
        }
    }

    /// One element of a schema of `size`.
    fn element(&mut self, size: u64) -> Option<bool> {
        let mut number = 0;
        loop {
            let (next, kind) = self.field(number)?;
            match (next, kind) {
                (_, STOP) => return Some(true),
                (number, kind) if !has_type(&ELEMENT_FIELDS, number, kind) => return Some(false),
                (5, I32) => {
                    let children = zigzag(self.varint()?);
                    if u64::try_from(children).map_or(true, |children| children > size) {
                        return Some(false);
                    }
                }
                (_, kind) => self.skip(kind, DEPTH_MAX)?,
            }
            number = next;
        }
    }
}

/// True for a field whose number is not known, too.
fn has_type(types: &[u8], number: i64, kind: u8) -> bool {
    let known = usize::try_from(number).ok().and_then(|number| types.get(number.checked_sub(1)?));
    known.is_none_or(|known| *known == kind)
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with a root that says it has `children`, of which there is one.
    fn footer(children: &[u8]) -> Vec<u8> {
        let root = [&[0x48, 1, b'r', 0x15][..], children, &[0]].concat();
        let leaf = [0x15, 2, 0x25, 0, 0x18, 1, b'a', 0];
        [&[0x15, 2, 0x19, 0x2c][..], &root, &leaf, &[0x16, 0, 0x19, 0x0c, 0]].concat()
    }

    #[test]
    fn schemas_with_more_children_than_elements_are_refused_before_they_are_read() {
        let one = footer(&[2]);
        assert!(is_bounded(&one));
        assert!(parquet::file::metadata::ParquetMetaDataReader::decode_metadata(&one).is_ok());
        // Three, 2^30, and fewer than none.
        for children in [&[6][..], &[0x80, 0x80, 0x80, 0x80, 0x08], &[1]] {
            assert!(!is_bounded(&footer(children)), "{children:?}");
        }
        // One that says nothing of its schema, or is cut, is no concern, or refused.
        assert!(is_bounded(&[0]));
        assert!((1..one.len()).all(|len| !is_bounded(&one[..len])));
    }
}
