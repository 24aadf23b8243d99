//! What answers in a proxy's place.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

/// An HTTP server that is no proxy of ours. Its thread ends with the test's process.
pub struct Stranger {
    /// Where it is asked.
    pub url: String,
}

impl Stranger {
    /// `answer` makes the status line's end and the body of a path.
    pub fn new(answer: impl Fn(&str) -> (&'static str, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                // To its end: what was not read would reset the connection.
                lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
                let (code, body) = answer(request.split(' ').nth(1).unwrap());
                write!(stream, "HTTP/1.0 {code}\r\n\r\n{body}").unwrap();
            }
        });
        Self { url }
    }
}
