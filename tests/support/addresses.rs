//! Addresses for processes that are told where to listen before they do.

use std::net::TcpListener;

/// `count` addresses of this machine that nobody listens at.
///
/// On loopback addresses that nothing else uses: on 127.0.0.1 a connection of anybody could take a port before it is listened at.
pub fn free(count: usize) -> Vec<String> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = format!("127.77.{high}.{low}:0");
    let bound: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind(&own).expect("Linux has all of 127.0.0.0/8")).collect();
    bound.iter().map(|listener| listener.local_addr().expect("it is bound").to_string()).collect()
}

/// A hostfile of them.
pub fn hostfile(count: usize) -> String {
    free(count).into_iter().map(|address| address + "\n").collect()
}
