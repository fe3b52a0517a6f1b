//! A server on loopback that says what it is told to say, well-behaved or not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a request is answered with.
pub(in super::super) enum Reply {
    /// A whole answer: status, header lines, body.
    Answer(u16, Vec<String>, Vec<u8>),
    /// These bytes, and then the connection is closed.
    Cut(Vec<u8>),
    /// These bytes, and then nothing any more.
    Silence(Vec<u8>),
    /// These bytes, and then a byte now and then, for ever.
    Dribble(Vec<u8>),
}

/// A request as it came.
#[derive(Clone)]
pub(in super::super) struct Received {
    /// Method and path.
    pub(in super::super) line: String,
    pub(in super::super) head: String,
    pub(in super::super) body: String,
}

/// A running server, which ends with the process.
pub(in super::super) struct Stub {
    pub(in super::super) url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Reply {
    /// JSON.
    pub(in super::super) fn json(status: u16, body: impl Into<String>) -> Self {
        Self::Answer(status, vec!["Content-Type: application/json".to_owned()], body.into().into_bytes())
    }

    pub(in super::super) fn status(status: u16) -> Self {
        Self::json(status, "{}")
    }
}

impl Received {
    pub(in super::super) fn header(&self, wanted: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    }
}

impl Stub {
    /// Answers by `answer`, which gets the URL of the server too.
    pub(in super::super) fn new(answer: impl Fn(&Received, &str) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let (own_url, seen) = (url.clone(), Arc::clone(&received));
        thread::spawn(move || {
            let mut silent = Vec::new();
            for connection in listener.incoming() {
                let connection = connection.unwrap();
                let Some(request) = receive(&connection) else { continue };
                let reply = answer(&request, &own_url);
                seen.lock().unwrap().push(request);
                silent.extend(send(connection, reply));
            }
        });
        Self { url, received }
    }

    /// Every request up to now.
    pub(in super::super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// How many requests began with `line`.
    pub(in super::super) fn count(&self, line: &str) -> usize {
        self.received().iter().filter(|request| request.line.starts_with(line)).count()
    }
}

fn receive(connection: &TcpStream) -> Option<Received> {
    let mut reader = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let (line, head) = head.split_once("\r\n")?;
    let line = line.trim_end_matches(" HTTP/1.1").to_owned();
    let mut request = Received { line, head: head.to_owned(), body: String::new() };
    let body_bytes = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; body_bytes];
    reader.read_exact(&mut body).ok()?;
    request.body = String::from_utf8(body).unwrap();
    Some(request)
}

/// Sends a reply. A connection that is to stay open without another word is handed back.
fn send(mut connection: TcpStream, reply: Reply) -> Option<TcpStream> {
    // Whoever asked may be gone.
    match reply {
        Reply::Answer(status, headers, body) => {
            let mut head =
                format!("HTTP/1.1 {status} Any\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
            for header in headers {
                head += &format!("{header}\r\n");
            }
            let _ = connection.write_all(&[format!("{head}\r\n").as_bytes(), &body].concat());
            None
        }
        Reply::Cut(bytes) => {
            let _ = connection.write_all(&bytes);
            None
        }
        Reply::Silence(bytes) => {
            let _ = connection.write_all(&bytes);
            Some(connection)
        }
        Reply::Dribble(bytes) => {
            let _ = connection.write_all(&bytes);
            thread::spawn(move || {
                while connection.write_all(b"x").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            None
        }
    }
}
