//! Servers that are none, or broken ones: the run is refused at its start, in words, within its time.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use etcd_lb_load::{Plan, run};

/// What a run says of a server that does this with each connection.
fn said_of(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    let mut plan = Plan::new(vec![url.parse().unwrap()]);
    plan.timeout = Duration::from_millis(500);
    plan.connections = 3;
    let start = Instant::now();
    let error = format!("{:#}", run(&plan).unwrap_err());
    assert!(start.elapsed() < Duration::from_secs(5), "{error}");
    println!("{error}");
    let said = error.strip_prefix(&format!("cannot use {url}: ")).unwrap_or_else(|| panic!("{error}"));
    said.trim_end_matches("; is it a TLS port? then write https://").to_owned()
}

/// Answers whatever comes first with these octets, and leaves the connection open.
fn answer(octets: &'static [u8]) -> impl Fn(TcpStream) + Send + 'static {
    move |mut stream| {
        thread::spawn(move || {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(octets);
            // Until the other end has had enough.
            while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
        });
    }
}

#[test]
fn a_server_that_closes() {
    let said = said_of(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
    });
    assert!(said.ends_with("(closed)") || said.ends_with("(reset)"), "{said}");
}

#[test]
fn a_server_that_says_nothing() {
    assert_eq!(said_of(answer(b"")), "no connection and answer within 500ms (timeout)");
}

#[test]
fn a_server_of_http_1() {
    let said = said_of(answer(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"));
    assert!(said.starts_with("HTTP/2: ") && said.ends_with("(protocol)"), "{said}");
}

#[test]
fn a_server_of_noise() {
    let said = said_of(answer(&[0xa5; 100_000]));
    assert!(said.ends_with("(protocol)"), "{said}");
}

/// SETTINGS, and then an answer of HTTP that is none of gRPC: status 404, as of a web server.
#[test]
fn a_server_of_http_2_without_grpc() {
    // A HEADERS frame for stream 1 that ends it, with `:status: 404` from HPACK's static table (RFC 7541, appendix A).
    let said = said_of(answer(b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x8d"));
    assert!(said.contains("404") && said.contains("(grpc_"), "{said}");
}

#[test]
fn nobody_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plan = Plan::new(vec![format!("http://127.0.0.1:{port}").parse().unwrap()]);
    let error = run(&plan).unwrap_err().to_string();
    assert!(error.ends_with("(refused)"), "{error}");
}
