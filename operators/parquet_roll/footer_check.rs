//! A look at the bytes of a footer before a reader of Parquet sees them: they must have the form of the format, and cost no more than in
//! proportion to their length.
//!
//! The reader believes what a damaged or hostile footer says of itself:
//! ```text
//! it takes memory for as many children as an element of the schema says it has     2^31 of them in five bytes
//! it goes down as deep as the schema is nested                                     until the stack is full
//! it copies the names of all groups above a column into the column's path          a name of 30 kB above 4,000 columns
//! it goes by the numbers of fields, not by their types, and passes over what it    2^31 booleans, in lists of such lists, are
//! does not use; elements of a list of booleans it does not even look for           seconds to hours of work for some bytes
//! ```
//! So a field that the format knows must have the format's type, down to the last structure; a list has no more elements than bytes are left;
//! no list has booleans; and the schema must be a tree whose paths are in proportion to the footer. Fields that the format does not know yet
//! may be there, and are passed over within the same bounds.

use Kind::{Any, Binary, Bool, Double, I8, I16, I32, I64, List, Struct};

/// What a value must be.
enum Kind {
    /// Of a field that the format does not have: passed over.
    Any,
    Bool,
    I8,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List(&'static Kind),
    /// A struct or a union: the kinds of its fields from number 1 on.
    Struct(&'static [Kind]),
    /// The list of `SchemaElement`s.
    Schema,
}

// Types in Thrift's compact protocol.
const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const SHORT: u8 = 4;
const INT: u8 = 5;
const LONG: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

// The structures of `parquet.thrift` that are in a footer. Enumerations are of type i32.
static FILE: [Kind; 9] = [
    I32,
    Kind::Schema,
    I64,
    List(&Struct(&ROW_GROUP)),
    List(&Struct(&KEY_VALUE)),
    Binary,
    List(&Struct(&ORDER)),
    Struct(&CIPHER),
    Binary,
];
static ELEMENT: [Kind; 10] = [I32, I32, I32, Binary, I32, I32, I32, I32, I32, Struct(&LOGICAL)];
static LOGICAL: [Kind; 19] = [
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[I32, I32]),
    EMPTY,
    Struct(&[Bool, Struct(&TIME_UNIT)]),
    Struct(&[Bool, Struct(&TIME_UNIT)]),
    Any,
    Struct(&[I8, Bool]),
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[I8]),
    Struct(&[Binary]),
    Struct(&[Binary, I32]),
    EMPTY,
];
static TIME_UNIT: [Kind; 3] = [EMPTY, EMPTY, EMPTY];
static ROW_GROUP: [Kind; 7] = [List(&Struct(&CHUNK)), I64, I64, List(&Struct(&[I32, Bool, Bool])), I64, I64, I16];
static CHUNK: [Kind; 9] =
    [Binary, I64, Struct(&COLUMN), I64, I32, I64, I32, Struct(&[EMPTY, Struct(&[List(&Binary), Binary])]), Binary];
static COLUMN: [Kind; 17] = [
    I32,
    List(&I32),
    List(&Binary),
    I32,
    I64,
    I64,
    I64,
    List(&Struct(&KEY_VALUE)),
    I64,
    I64,
    I64,
    Struct(&[Binary, Binary, I64, I64, Binary, Binary, Bool, Bool, I64]),
    List(&Struct(&[I32, I32, I32])),
    I64,
    I32,
    Struct(&[I64, List(&I64), List(&I64)]),
    Struct(&[Struct(&[Double, Double, Double, Double, Double, Double, Double, Double]), List(&I32)]),
];
static KEY_VALUE: [Kind; 2] = [Binary, Binary];
static ORDER: [Kind; 3] = [EMPTY, EMPTY, EMPTY];
static CIPHER: [Kind; 2] = [Struct(&[Binary, Binary, Bool]), Struct(&[Binary, Binary, Bool])];
const EMPTY: Kind = Struct(&[]);

/// Levels of structs and lists in what is passed over. The reader's own bound is 64; the format has six.
const DEPTH_MAX: u32 = 32;
/// Levels of a schema: each is some hundred bytes of the reader's stack. Rows here have less than ten.
const SCHEMA_DEPTH_MAX: usize = 64;
/// Bytes of all columns' paths for each byte of the footer. Where there are row groups each path is in the footer as it is, so it is one;
/// more in a file without rows, by as much as groups have longer names than their columns.
const PATH_BYTES_PER_BYTE: u64 = 64;

/// True if the Thrift bytes of a footer have the form of the format, and can be read with time and memory in proportion to their length.
pub fn is_sound(thrift: &[u8]) -> bool {
    let path_bytes_max = (thrift.len() as u64).saturating_mul(PATH_BYTES_PER_BYTE);
    Cursor { rest: thrift, path_bytes_max }.fields(&FILE).is_some()
}

/// A group of the schema whose children come next.
struct OpenGroup {
    children_left: u64,
    path_bytes: u64,
}

/// What an element of the schema says that matters here.
#[derive(Default)]
struct Element {
    name_bytes: u64,
    children: u64,
}

/// Reads values; `None` for what is not sound, or ends too early.
struct Cursor<'a> {
    rest: &'a [u8],
    /// Bytes that paths of columns may still have.
    path_bytes_max: u64,
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

    /// Passes over a binary, whose length it returns.
    fn binary(&mut self) -> Option<u64> {
        let bytes = self.varint()?;
        self.pass(bytes)?;
        Some(bytes)
    }

    /// The next field of a struct, as number and type; `None` inside at its end. Numbers are of 16 bits: the reader cuts off the rest.
    fn field(&mut self, before: i16) -> Option<Option<(i16, u8)>> {
        let head = self.byte()?;
        let (step, wire) = (head >> 4, head & 0x0f);
        let number = match (wire, step) {
            (STOP, _) => return Some(None),
            (_, 0) => i16::try_from(zigzag(self.varint()?)).ok()?,
            (_, step) => before.checked_add(i16::from(step))?,
        };
        Some(Some((number, wire)))
    }

    /// The number of a list's elements, and their type. Each has a byte at least; booleans, which the reader passes over as if they had none,
    /// are in no list of a footer.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let size = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        let wire = head & 0x0f;
        let is_sound = size <= self.rest.len() as u64 && !matches!(wire, TRUE | FALSE);
        is_sound.then_some((size, wire))
    }

    /// The fields of a struct.
    fn fields(&mut self, kinds: &[Kind]) -> Option<()> {
        let mut before = 0;
        while let Some((number, wire)) = self.field(before)? {
            self.value(kind_of(kinds, number), wire)?;
            before = number;
        }
        Some(())
    }

    /// A value of type `wire`, which must be of `kind`. Goes as deep as the format does.
    fn value(&mut self, kind: &Kind, wire: u8) -> Option<()> {
        match (kind, wire) {
            (Any, wire) => self.skip(wire, DEPTH_MAX),
            (Bool, TRUE | FALSE) | (I8, BYTE) | (I16, SHORT) | (I32, INT) | (I64, LONG) | (Double, DOUBLE) | (Binary, BINARY) => {
                self.skip(wire, 1)
            }
            (List(kind), LIST) => {
                let (size, wire) = self.list()?;
                (0..size).try_for_each(|_| self.value(kind, wire))
            }
            (Struct(kinds), STRUCT) => self.fields(kinds),
            (Kind::Schema, LIST) => self.schema(),
            _ => None,
        }
    }

    /// A value of which nothing is known but its type.
    fn skip(&mut self, wire: u8, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match wire {
            // A boolean's value is its type.
            TRUE | FALSE => Some(()),
            BYTE => self.pass(1),
            SHORT | INT | LONG => self.varint().map(drop),
            DOUBLE => self.pass(8),
            BINARY => self.binary().map(drop),
            LIST | SET => {
                let (size, wire) = self.list()?;
                (0..size).try_for_each(|_| self.skip(wire, depth))
            }
            STRUCT => {
                while let Some((_, wire)) = self.field(0)? {
                    self.skip(wire, depth)?;
                }
                Some(())
            }
            // Maps and UUIDs are in no footer.
            _ => None,
        }
    }

    /// The schema: elements of a tree, depth first, each with the number of its children.
    fn schema(&mut self) -> Option<()> {
        let (size, wire) = self.list()?;
        let mut open: Vec<OpenGroup> = Vec::new();
        for index in 0..size {
            let Element { name_bytes, children } = if wire == STRUCT { self.element()? } else { return None };
            // The root's name is in no path; what comes behind a whole tree has no parent.
            let path_bytes = match open.last_mut() {
                Some(parent) => {
                    parent.children_left -= 1;
                    parent.path_bytes + name_bytes
                }
                None if index == 0 => 0,
                None => return None,
            };
            if children > 0 {
                open.push(OpenGroup { children_left: children, path_bytes });
            } else {
                self.path_bytes_max = self.path_bytes_max.checked_sub(path_bytes)?;
            }
            while open.pop_if(|group| group.children_left == 0).is_some() {}
            if open.len() > SCHEMA_DEPTH_MAX {
                return None;
            }
        }
        open.is_empty().then_some(())
    }

    fn element(&mut self) -> Option<Element> {
        let (mut element, mut before) = (Element::default(), 0);
        while let Some((number, wire)) = self.field(before)? {
            match (number, wire) {
                (4, BINARY) => element.name_bytes = self.binary()?,
                (5, INT) => element.children = u64::try_from(zigzag(self.varint()?)).ok()?,
                (number, wire) => self.value(kind_of(&ELEMENT, number), wire)?,
            }
            before = number;
        }
        Some(element)
    }
}

fn kind_of(kinds: &[Kind], number: i16) -> &Kind {
    let position = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    position.and_then(|position| kinds.get(position)).unwrap_or(&Any)
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests;
