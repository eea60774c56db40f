//! A registry of our own that does whatever a test wants, on loopback.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use estiba_image::oci_spec::image::{Descriptor, MediaType};

use crate::fixture::Files;

/// A request that came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// What `Content-Length` says, if that is not the truth; `None` for a chunked body.
    pub(crate) length: Option<usize>,
    /// What happens after this many bytes of the body.
    pub(crate) then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// The connection is cut.
    Cut(usize),
    /// Nothing comes any more.
    Stall(usize),
    /// The body goes on for ever.
    Endless,
    /// A byte comes now and then.
    Drip(usize),
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), length: Some(body.len()), body, then: Then::Nothing }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.length = None;
        self
    }

    pub(crate) fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let (asked, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, over) = (Arc::clone(&asked), Arc::clone(&ends));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (handler, log, over) = (Arc::clone(&handler), Arc::clone(&log), Arc::clone(&over));
                std::thread::spawn(move || while serve(&stream, &*handler, &log, &over).is_some() {});
            }
        });
        Self { address, asked, ends }
    }

    /// A registry of the image under the repository `a` and the tag `1`, where `other` says nothing else.
    pub(crate) fn of(
        files: &Files,
        root: &Descriptor,
        other: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let (files, root) = (files.clone(), root.clone());
        Self::start(move |asked| other(asked).unwrap_or_else(|| honest(&files, &root, asked)))
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// How often something was asked for whose path has this in it.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
    }

    pub(crate) fn forget(&self) {
        self.asked.lock().expect("not poisoned").clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // So that the one that waits for a connection sees it.
        drop(TcpStream::connect(self.address));
    }
}

/// What a well-behaved registry answers.
pub(crate) fn honest(files: &Files, root: &Descriptor, asked: &Asked) -> Reply {
    let path = asked.path.split('?').next().expect("a path");
    let name = path.rsplit('/').next().expect("a name");
    if path == "/v2/" {
        return Reply::new(200, "{}");
    }
    let digest =
        if path.contains("/manifests/") && !name.contains(':') { root.digest().to_string() } else { name.to_owned() };
    let Some(content) = files.0.get(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))) else {
        return Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
    };
    let mut reply = Reply::new(200, content.clone());
    if path.contains("/manifests/") {
        let value: serde_json::Value = serde_json::from_slice(content).expect("JSON");
        let media_type = value["mediaType"].as_str().map_or(MediaType::ImageManifest.to_string(), str::to_owned);
        reply = reply.with("content-type", &media_type).with("docker-content-digest", &digest);
    } else if let Some((start, end)) =
        asked.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    {
        let start: usize = start.parse().expect("a number");
        let end = if end.is_empty() { content.len() - 1 } else { end.parse().expect("a number") };
        reply = Reply::new(206, &content[start..=end])
            .with("content-range", &format!("bytes {start}-{end}/{}", content.len()));
    }
    if asked.method == "HEAD" {
        reply.body = Vec::new();
    }
    reply
}

fn serve(mut stream: &TcpStream, handler: &Handler, log: &Mutex<Vec<Asked>>, over: &AtomicBool) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
        // What begins so is TLS.
        if head[0] == 0x16 {
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let mut asked = Asked {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: Vec::new(),
    };
    let length: usize = asked.header("content-length").parse().unwrap_or(0);
    asked.body.resize(length, 0);
    stream.read_exact(&mut asked.body).ok()?;
    log.lock().expect("not poisoned").push(asked.clone());
    let reply = handler(&asked);
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head = format!("{head}{name}: {value}\r\n");
    }
    match reply.length {
        Some(length) => head = format!("{head}content-length: {length}\r\n\r\n"),
        None => head.push_str("transfer-encoding: chunked\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).ok()?;
    let chunked = reply.length.is_none();
    let mut send = |bytes: &[u8]| -> Option<()> {
        if chunked {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).ok()?;
        }
        stream.write_all(bytes).ok()?;
        if chunked { stream.write_all(b"\r\n").ok() } else { Some(()) }
    };
    let shown = match reply.then {
        Then::Cut(count) | Then::Stall(count) | Then::Drip(count) => count.min(reply.body.len()),
        _ => reply.body.len(),
    };
    if shown > 0 {
        send(&reply.body[..shown])?;
    }
    match reply.then {
        Then::Nothing => {
            if chunked {
                stream.write_all(b"0\r\n\r\n").ok()?;
            }
            Some(())
        }
        Then::Cut(_) => None,
        Then::Stall(_) => {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            None
        }
        Then::Endless => {
            while !over.load(Ordering::Relaxed) {
                send(&vec![b' '; 65536])?;
            }
            None
        }
        Then::Drip(_) => {
            for byte in &reply.body[shown..] {
                std::thread::sleep(Duration::from_millis(50));
                if over.load(Ordering::Relaxed) {
                    return None;
                }
                send(&[*byte])?;
            }
            None
        }
    }
}
