//! The headers of a consumed message, by librdkafka's own interface.
//!
//! The client crate's header reader panics on a header name that is not UTF-8, so one hostile message would end the process, and end
//! it again after every restart. Names are bytes here.

use std::ffi::CStr;
use std::ptr;

use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;

/// The headers of `message` as (name, value), in order; empty where there are none.
pub fn of<'m>(message: &'m BorrowedMessage<'_>) -> impl Iterator<Item = (&'m [u8], Option<&'m [u8]>)> {
    let mut native: *mut sys::rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: `message.ptr()` is valid while `message` is borrowed; the call writes `native` only when it succeeds. The headers are
    // owned by the message, so the slices below live as long as the borrow 'm of it.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &mut native) };
    let found = found == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !native.is_null();
    let mut index = 0;
    std::iter::from_fn(move || {
        if !found {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `native` is valid as argued above; an index past the end is answered by an error, and nothing is written then.
        let result = unsafe { sys::rd_kafka_header_get_all(native, index, &mut name, &mut value, &mut size) };
        if result != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        index += 1;
        // SAFETY: on success `name` is a NUL-terminated string and `value`, unless null, points to `size` bytes, all owned by the message.
        let (name, value) = unsafe {
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
            (CStr::from_ptr(name).to_bytes(), value)
        };
        Some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    /// Longer than a mock broker takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);
    const HOSTILE: [&CStr; 3] = [c"\xff\xfe", c"na\xc3me", c""];

    /// Sends a message whose headers have names that the client crate's own type cannot hold.
    fn send_hostile(producer: &BaseProducer) {
        use sys::rd_kafka_vtype_t::{RD_KAFKA_VTYPE_END as END, RD_KAFKA_VTYPE_HEADER as HEADER, RD_KAFKA_VTYPE_TOPIC as TOPIC};
        let [first, second, third] = HOSTILE.map(CStr::as_ptr);
        let (value, len) = (c"value".as_ptr(), 5isize);
        // SAFETY: the client is alive; each tag is followed by what librdkafka reads for it, up to the end tag; it copies all of it.
        let sent = unsafe {
            let client = producer.client().native_ptr();
            sys::rd_kafka_producev(
                client,
                TOPIC,
                c"hostile".as_ptr(),
                HEADER,
                first,
                value,
                len,
                HEADER,
                second,
                value,
                len,
                HEADER,
                third,
                value,
                len,
                END,
            )
        };
        assert_eq!(sent, sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    #[test]
    fn header_names_that_are_not_utf8_are_read_as_the_bytes_they_are() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("hostile", 1, 1).unwrap();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g").set("auto.offset.reset", "earliest");
        let producer: BaseProducer = client.create().unwrap();
        send_hostile(&producer);
        let plain = OwnedHeaders::new().insert(Header { key: "plain", value: None::<&[u8]> });
        producer
            .send(BaseRecord::<[u8], [u8]>::to("hostile").payload(b"payload").headers(plain))
            .map_err(|(error, _)| error)
            .unwrap();
        producer.flush(PATIENCE).unwrap();
        let consumer: BaseConsumer = client.create().unwrap();
        consumer.subscribe(&["hostile"]).unwrap();
        let next = || {
            let since = std::time::Instant::now();
            // A rebalance ends a poll without a message.
            let mut polls = std::iter::repeat_with(|| consumer.poll(PATIENCE)).take_while(|_| since.elapsed() < PATIENCE);
            let message = polls.find_map(|polled| polled).expect("the broker hands it out").unwrap();
            of(&message).map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect::<Vec<_>>()
        };
        assert_eq!(next(), HOSTILE.map(|name| (name.to_bytes().to_vec(), Some(b"value".to_vec()))));
        assert_eq!(next(), [(b"plain".to_vec(), None)]);
    }
}
