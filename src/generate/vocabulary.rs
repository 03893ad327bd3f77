//! The words the telemetry is made of, and the small OTLP values made of them.
//!
//! Names of attributes follow OpenTelemetry's semantic conventions, lengths and repetition those of a mid-sized web shop: about 344 bytes
//! a span, 7 attributes on a span and 7 on its resource.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::random::Random;
use super::stamp::ADDRESS_CHARS;

/// Names of services.
pub const SERVICES: [&str; 12] = [
    "checkout",
    "cart",
    "frontend",
    "payment",
    "shipping",
    "inventory",
    "user-profile",
    "recommendation",
    "ad-service",
    "currency",
    "email",
    "fraud-detection",
];
/// HTTP routes, low in cardinality as they should be.
pub const ROUTES: [&str; 10] = [
    "/api/v1/orders",
    "/api/v1/orders/{id}",
    "/api/v1/cart/{id}",
    "/api/v2/products",
    "/api/v2/products/{sku}",
    "/healthz",
    "/api/v1/payments/charge",
    "/api/v1/users/{id}",
    "/api/v1/shipping/quote",
    "/internal/convert",
];
/// HTTP methods; reading is commoner than writing.
pub const METHODS: [&str; 7] = ["GET", "GET", "GET", "POST", "PUT", "DELETE", "PATCH"];
/// User agents.
pub const USER_AGENTS: [&str; 5] = [
    "Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0",
    "okhttp/4.12.0",
    "python-requests/2.32",
    "Go-http-client/2.0",
    "Zähler-App/3.1 (日本語)",
];
/// What a log line says, before its order number.
pub const SENTENCES: [&str; 8] = [
    "payment authorised for order",
    "cart updated before order",
    "upstream answered slowly, retrying order",
    "cache miss, loading products of order",
    "shipping quote requested for order",
    "session renewed while placing order",
    "card declined by issuer for order",
    "write to \"orders\" table conflicted, path C:\\spool, order",
];
/// Severities as (OTLP number, text); most lines are informational.
pub const SEVERITIES: [(i32, &str); 8] =
    [(9, "INFO"), (9, "INFO"), (9, "INFO"), (9, "INFO"), (5, "DEBUG"), (5, "DEBUG"), (13, "WARN"), (17, "ERROR")];
/// The response codes of requests that went well.
pub const CODES_FINE: [i64; 8] = [200, 200, 200, 200, 201, 204, 304, 404];

/// A string value.
pub fn text(value: impl Into<String>) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(value.into())) }
}

/// An integer value.
pub fn integer(value: i64) -> AnyValue {
    AnyValue { value: Some(Value::IntValue(value)) }
}

/// An attribute.
pub fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// A resource with the seven attributes that a collector in Kubernetes adds.
pub fn resource(random: &mut Random) -> Resource {
    let service = random.pick(&SERVICES);
    let host = random.below(200);
    let attributes = vec![
        attribute("service.name", text(service)),
        attribute("service.version", text(format!("1.{}.2", random.below(30)))),
        attribute("service.instance.id", text(format!("{service}-{:08x}", random.bits() as u32))),
        attribute("host.name", text(format!("ip-10-0-{host}-17"))),
        attribute("deployment.environment", text("prod")),
        attribute("k8s.pod.name", text(format!("{service}-{:07x}-x{}", random.below(1 << 28), random.below(10)))),
        attribute("tenant", text(format!("tenant-{}", random.below(8)))),
    ];
    Resource { attributes, ..Resource::default() }
}

/// The library that wrote the telemetry.
pub fn scope(name: &str) -> InstrumentationScope {
    InstrumentationScope { name: name.to_owned(), version: "2.4.0".to_owned(), ..InstrumentationScope::default() }
}

/// Overwrites the integer of an attribute.
pub fn set_integer(attribute: &mut KeyValue, number: i64) {
    attribute.value = Some(integer(number));
}

/// Overwrites the string of an attribute with an address, without allocating.
pub fn set_address(attribute: &mut KeyValue, address: [u8; ADDRESS_CHARS]) {
    if let Some(AnyValue { value: Some(Value::StringValue(text)) }) = &mut attribute.value {
        text.clear();
        text.extend(address.map(char::from));
    }
}
