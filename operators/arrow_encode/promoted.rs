//! The attributes that have a column of their own: one table for the schema, the encoder and the documentation.
//!
//! The list is short on purpose: a column without a value still costs four bytes a row in memory and on the wire. It holds the
//! stable OpenTelemetry semantic conventions that people filter and group by.
//!
//! A promoted attribute is moved, not copied: it leaves the map when its value has the column's type, and stays in the map otherwise.

use arrow::datatypes::DataType;

/// The type of a promoted column, which is the type a value must have to be moved there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string value; `Utf8`.
    Text,
    /// An integer value that fits into 32 bits; `Int32`.
    Int,
}

impl Kind {
    /// The column's Arrow type.
    pub fn data_type(self) -> DataType {
        match self {
            Kind::Text => DataType::Utf8,
            Kind::Int => DataType::Int32,
        }
    }
}

/// One attribute with a column of its own.
#[derive(Clone, Copy, Debug)]
pub struct Promoted {
    /// The attribute's key.
    pub key: &'static str,
    /// The column's name.
    pub column: &'static str,
    /// The column's type.
    pub kind: Kind,
}

const fn text(key: &'static str, column: &'static str) -> Promoted {
    Promoted { key, column, kind: Kind::Text }
}

const fn int(key: &'static str, column: &'static str) -> Promoted {
    Promoted { key, column, kind: Kind::Int }
}

/// Promoted from the resource, in every signal. All are texts: they are prepared once per resource as strings.
pub const RESOURCE: [Promoted; 9] = [
    text("service.name", "service_name"),
    text("service.namespace", "service_namespace"),
    text("service.version", "service_version"),
    text("service.instance.id", "service_instance_id"),
    text("deployment.environment.name", "deployment_environment_name"),
    text("host.name", "host_name"),
    text("k8s.cluster.name", "k8s_cluster_name"),
    text("k8s.namespace.name", "k8s_namespace_name"),
    text("k8s.pod.name", "k8s_pod_name"),
];

/// Promoted from the attributes of spans and log records.
pub const ROW: [Promoted; 26] = [
    text("http.request.method", "http_request_method"),
    int("http.response.status_code", "http_response_status_code"),
    text("http.route", "http_route"),
    text("url.full", "url_full"),
    text("url.path", "url_path"),
    text("url.scheme", "url_scheme"),
    text("server.address", "server_address"),
    int("server.port", "server_port"),
    text("client.address", "client_address"),
    text("user_agent.original", "user_agent_original"),
    text("db.system.name", "db_system_name"),
    text("db.namespace", "db_namespace"),
    text("db.operation.name", "db_operation_name"),
    text("db.collection.name", "db_collection_name"),
    text("db.query.text", "db_query_text"),
    text("rpc.system", "rpc_system"),
    text("rpc.service", "rpc_service"),
    text("rpc.method", "rpc_method"),
    text("messaging.system", "messaging_system"),
    text("messaging.destination.name", "messaging_destination_name"),
    text("messaging.operation.name", "messaging_operation_name"),
    text("messaging.operation.type", "messaging_operation_type"),
    text("error.type", "error_type"),
    text("exception.type", "exception_type"),
    text("exception.message", "exception_message"),
    text("exception.stacktrace", "exception_stacktrace"),
];

/// A number that tells most keys apart: of the length, the first, the middle and the last two bytes. Different keys may share it.
#[inline(always)]
pub const fn fingerprint(key: &[u8]) -> u32 {
    let length = key.len();
    if length < 2 {
        return length as u32;
    }
    let corners = u32::from_le_bytes([length as u8, key[0], key[length / 2], key[length - 1]]);
    corners ^ (key[length - 2] as u32).wrapping_mul(0x0001_0140)
}

/// Slots of a lookup table; about ten for each key, so that a key which is not promoted mostly meets an empty slot.
const SLOTS: usize = 256;

/// A slot that no key owns.
const EMPTY: u8 = u8::MAX;

/// A perfect hash over the keys of one table, built by the compiler: one multiplication, one load, one comparison.
struct Lookup {
    multiplier: u32,
    slots: [u8; SLOTS],
}

const fn slot(fingerprint: u32, multiplier: u32) -> usize {
    (fingerprint.wrapping_mul(multiplier) >> 24) as usize
}

/// Tries odd multipliers until every key has a slot of its own. Fails to compile if none below the bound does.
const fn lookup(table: &[Promoted]) -> Lookup {
    let mut multiplier = 0x9e37_79b1_u32;
    let mut attempt = 0;
    while attempt < 200 {
        let mut slots = [EMPTY; SLOTS];
        let mut index = 0;
        while index < table.len() {
            let slot = slot(fingerprint(table[index].key.as_bytes()), multiplier);
            if slots[slot] != EMPTY {
                break;
            }
            slots[slot] = index as u8;
            index += 1;
        }
        if index == table.len() {
            return Lookup { multiplier, slots };
        }
        multiplier = multiplier.wrapping_add(0x6a09_e668);
        attempt += 1;
    }
    panic!("no multiplier separates the promoted keys");
}

impl Lookup {
    #[inline(always)]
    fn find(&self, table: &[Promoted], key: &[u8], fingerprint: u32) -> Option<usize> {
        let index = usize::from(self.slots[slot(fingerprint, self.multiplier)]);
        let promoted = table.get(index)?;
        (promoted.key.as_bytes() == key).then_some(index)
    }
}

static RESOURCE_LOOKUP: Lookup = lookup(&RESOURCE);
static ROW_LOOKUP: Lookup = lookup(&ROW);

/// The position in `RESOURCE` of the attribute `key`, whose fingerprint is given.
#[inline]
pub fn find_resource(key: &[u8], fingerprint: u32) -> Option<usize> {
    RESOURCE_LOOKUP.find(&RESOURCE, key, fingerprint)
}

/// The position in `ROW` of the attribute `key`, whose fingerprint is given.
#[inline]
pub fn find_row(key: &[u8], fingerprint: u32) -> Option<usize> {
    ROW_LOOKUP.find(&ROW, key, fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promoted_key_is_found_and_near_misses_are_not() {
        let find = |key: &str| {
            (find_resource(key.as_bytes(), fingerprint(key.as_bytes())), find_row(key.as_bytes(), fingerprint(key.as_bytes())))
        };
        for (index, promoted) in RESOURCE.iter().enumerate() {
            assert_eq!(find(promoted.key), (Some(index), None));
            assert_eq!(promoted.kind, Kind::Text, "resource columns are prepared as strings");
        }
        for (index, promoted) in ROW.iter().enumerate() {
            assert_eq!(find(promoted.key), (None, Some(index)));
        }
        for key in ["", "s", "service.nome", "http.routes", "http.rout", "HTTP.route", "db.system"] {
            assert_eq!(find(key), (None, None), "{key}");
        }
    }
}
