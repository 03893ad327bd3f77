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
