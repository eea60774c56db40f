//! The names of a network's containers, for its containers: a small DNS server (RFC 1035) that answers what it knows and
//! forwards the rest.
//!
//! Its sockets are inside each container's namespace, at an address that only the container itself reaches, so the host
//! has no address for it. What is forwarded leaves from the namespace of the thread that [serves](Server::serve).

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::endpoint::{Attachment, Endpoint};
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

mod message;

use message::{Question, Reply};

/// Where containers find the server: Docker's address, which images may have written down.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// How long one of the host's servers has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many questions of all containers may be on their way at once. Each is a socket.
const MOST_FORWARDED: usize = 256;

/// How many TCP connections of all containers are served at once. Each is a thread.
const MOST_CONNECTIONS: usize = 32;

/// How long a TCP client has for each of its steps.
const TCP_PATIENCE: Duration = Duration::from_secs(5);

/// The names of a network's containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    addresses: HashMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, String>,
}

impl Names {
    /// Those of everything that is attached to a network: each name and alias, the id, and its first 12 characters.
    #[must_use]
    pub fn of(endpoints: &[(Attachment, Endpoint)]) -> Self {
        let mut names = Self::default();
        for (attachment, endpoint) in endpoints {
            let id = &attachment.container;
            let short = id.get(..12).filter(|short| *short != id);
            for name in attachment.names.iter().map(String::as_str).chain([id.as_str()]).chain(short) {
                for address in &endpoint.addresses {
                    names.add(name, address.addr());
                }
            }
        }
        names
    }

    /// Adds an address of a name. The first name of an address is what the address is asked back as.
    pub fn add(&mut self, name: &str, address: IpAddr) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.names.entry(address).or_insert_with(|| name.clone());
        let addresses = self.addresses.entry(name).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.addresses.get(name).map(Vec::as_slice)
    }
}

/// Whether questions that a network has no answer to are asked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forward {
    /// To the server's upstream servers.
    #[default]
    Upstream,
    /// Nowhere: for internal networks, which could tell everything to the outside in questions (CVE-2024-29018).
    Nowhere,
}

/// The sockets of one container.
#[derive(Debug)]
struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
    zone: Arc<Zone>,
}

/// What is answered, and whether the rest is asked on.
#[derive(Debug)]
struct Zone {
    names: Mutex<Arc<Names>>,
    forward: Forward,
}

impl Zone {
    fn names(&self) -> Arc<Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server for any number of containers, in one thread (and one for each TCP connection).
#[derive(Debug)]
pub struct Server {
    upstream: Vec<SocketAddr>,
    listeners: Mutex<HashMap<String, Arc<Listener>>>,
    connections: Arc<AtomicUsize>,
    /// Tells the serving thread that there are other sockets: what is written to the first one wakes it.
    wake: (UnixStream, UnixStream),
}

/// A question that was forwarded.
struct Pending {
    socket: UdpSocket,
    query: Vec<u8>,
    listener: Arc<Listener>,
    client: SocketAddr,
    until: Instant,
    /// Which of the upstream servers is asked.
    server: usize,
}

impl Server {
    /// A server without containers, that forwards to these servers, one after the other.
    pub fn new(upstream: Vec<SocketAddr>) -> Result<Self> {
        let failed = |source| Error::Socket { operation: "open a DNS server's", source };
        let wake = UnixStream::pair().map_err(failed)?;
        wake.0.set_nonblocking(true).and_then(|()| wake.1.set_nonblocking(true)).map_err(failed)?;
        Ok(Self { upstream, listeners: Mutex::default(), connections: Arc::default(), wake })
    }

    /// Opens the sockets for a container in its namespace, at port 53 of `address`.
    pub fn add(
        &self,
        container: &str,
        sandbox: &Sandbox,
        address: IpAddr,
        names: Arc<Names>,
        forward: Forward,
    ) -> Result<()> {
        let sockets = sandbox.run(|| -> io::Result<_> {
            let (udp, tcp) = (UdpSocket::bind((address, 53))?, TcpListener::bind((address, 53))?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        let (udp, tcp) = sockets.map_err(|source| Error::Socket { operation: "bind a DNS server's", source })?;
        let listener = Arc::new(Listener { udp, tcp, zone: Arc::new(Zone { names: Mutex::new(names), forward }) });
        self.lock().insert(container.to_owned(), listener);
        self.wake();
        Ok(())
    }

    /// Gives a container other names, from its next question on; one that has no sockets is fine.
    pub fn rename(&self, container: &str, names: Arc<Names>) {
        if let Some(listener) = self.lock().get(container) {
            *listener.zone.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        }
    }

    /// Closes the sockets of a container; one that has none is fine.
    pub fn remove(&self, container: &str) {
        self.lock().remove(container);
        self.wake();
    }

    fn wake(&self) {
        // With its buffer full it is awake, or about to be.
        let _ = (&self.wake.0).write(&[0]);
    }

    /// Serves until `stop` can be read from, or is closed at its other end.
    ///
    /// # Errors
    ///
    /// If waiting for the sockets fails. What is wrong with one question, container or upstream server is theirs alone.
    pub fn serve(&self, stop: BorrowedFd<'_>) -> Result<()> {
        let mut pending: Vec<Pending> = Vec::new();
        loop {
            let listeners: Vec<Arc<Listener>> = self.lock().values().cloned().collect();
            let mut fds =
                vec![PollFd::new(stop, PollFlags::POLLIN), PollFd::new(self.wake.1.as_fd(), PollFlags::POLLIN)];
            for listener in &listeners {
                fds.push(PollFd::new(listener.udp.as_fd(), PollFlags::POLLIN));
                fds.push(PollFd::new(listener.tcp.as_fd(), PollFlags::POLLIN));
            }
            fds.extend(pending.iter().map(|pending| PollFd::new(pending.socket.as_fd(), PollFlags::POLLIN)));
            let wait = pending.iter().map(|pending| pending.until).min();
            let wait =
                wait.map_or(1000, |until| until.saturating_duration_since(Instant::now()).as_millis().min(1000) as u16);
            match poll(&mut fds, PollTimeout::from(wait + 1)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(Error::Socket { operation: "wait for a DNS server's", source: errno.into() }),
                Ok(_) => {}
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(fds);
            if ready[0] {
                return Ok(());
            }
            if ready[1] {
                let _ = (&self.wake.1).read(&mut [0; 256]);
            }
            let (of_listeners, of_pending) = ready[2..].split_at(2 * listeners.len());
            let mut left = Vec::new();
            for (pending, ready) in pending.into_iter().zip(of_pending) {
                left.extend(self.go_on(pending, *ready));
            }
            pending = left;
            for (listener, ready) in listeners.iter().zip(of_listeners.chunks(2)) {
                if ready[0] {
                    self.take_datagrams(listener, &mut pending);
                }
                if ready[1] {
                    self.take_connections(listener);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what waits at a container's socket, some of it at once: another container has its turn then.
    fn take_datagrams(&self, listener: &Arc<Listener>, pending: &mut Vec<Pending>) {
        let mut buffer = [0; message::LONGEST_DATAGRAM];
        for _ in 0..16 {
            let Ok((length, client)) = listener.udp.recv_from(&mut buffer) else { return };
            let query = &buffer[..length];
            let reply = match decide(query, &listener.zone, message::LONGEST_PLAIN_ANSWER) {
                Decision::Drop => continue,
                Decision::Answer(reply) => reply,
                Decision::Forward if pending.len() < MOST_FORWARDED => {
                    match self.forward(query, listener, client, 0) {
                        Some(asked) => pending.push(asked),
                        None => drop(listener.udp.send_to(&Reply::failure(query), client)),
                    }
                    continue;
                }
                Decision::Forward => Reply::failure(query),
            };
            let _ = listener.udp.send_to(&reply, client);
        }
    }

    /// Asks the first upstream server from number `server` on that can be asked. A new socket has a port that nobody can
    /// guess.
    fn forward(&self, query: &[u8], listener: &Arc<Listener>, client: SocketAddr, server: usize) -> Option<Pending> {
        for (server, upstream) in self.upstream.iter().enumerate().skip(server) {
            let any = if upstream.is_ipv4() {
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let asked = UdpSocket::bind(any).and_then(|socket| {
                socket.set_nonblocking(true)?;
                socket.connect(upstream)?;
                socket.send(query)?;
                Ok(socket)
            });
            if let Ok(socket) = asked {
                let (query, listener) = (query.to_vec(), listener.clone());
                return Some(Pending { socket, query, listener, client, until: Instant::now() + PATIENCE, server });
            }
        }
        None
    }

    /// Hands over an answer that has come, or asks the next server when it is late or there was an error.
    fn go_on(&self, pending: Pending, ready: bool) -> Option<Pending> {
        let mut buffer = [0; message::LONGEST_DATAGRAM];
        let late = Instant::now() >= pending.until;
        if ready {
            match pending.socket.recv(&mut buffer) {
                Ok(length) if message::answers(&buffer[..length], &pending.query) => {
                    let _ = pending.listener.udp.send_to(&buffer[..length], pending.client);
                    return None;
                }
                // Somebody else's answer is no answer.
                Ok(_) if !late => return Some(pending),
                Err(error) if error.kind() == ErrorKind::WouldBlock && !late => return Some(pending),
                _ => {}
            }
        } else if !late {
            return Some(pending);
        }
        let Pending { query, listener, client, server, .. } = pending;
        let next = self.forward(&query, &listener, client, server + 1);
        if next.is_none() {
            let _ = listener.udp.send_to(&Reply::failure(&query), client);
        }
        next
    }

    fn take_connections(&self, listener: &Arc<Listener>) {
        while let Ok((stream, _)) = listener.tcp.accept() {
            if self.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            // Not the sockets: they are closed when their container is removed, whatever its clients do.
            let (zone, upstream) = (listener.zone.clone(), self.upstream.clone());
            let connection = Connection(self.connections.clone());
            let serve = move || {
                let _connection = connection;
                let _ = converse(stream, &zone, &upstream);
            };
            // Without a thread the connection is closed, and the client tries again.
            let _ = std::thread::Builder::new().name("estiba-dns".to_owned()).stack_size(256 * 1024).spawn(serve);
        }
    }
}

/// One of the connections that are served.
struct Connection(Arc<AtomicUsize>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is done with a question.
enum Decision {
    Drop,
    Answer(Vec<u8>),
    Forward,
}

fn decide(query: &[u8], zone: &Zone, room: usize) -> Decision {
    let question = match Question::parse(query) {
        Ok(question) => question,
        // An answer or a fragment: to answer that could go on for ever.
        Err(message::Refusal::Silence) => return Decision::Drop,
        Err(message::Refusal::Code(code)) => return Decision::Answer(Reply::code(query, code)),
    };
    let names = zone.names();
    if let Some(addresses) = names.addresses(&question.name).filter(|_| question.is_internet()) {
        // A name that is known is never asked outside, even if it has no address of that kind.
        return Decision::Answer(Reply::addresses(query, &question, addresses, room));
    }
    if let Some(name) = question.reverse().and_then(|address| names.names.get(&address)) {
        return Decision::Answer(Reply::pointer(query, &question, name));
    }
    match zone.forward {
        Forward::Upstream => Decision::Forward,
        Forward::Nowhere => Decision::Answer(Reply::code(query, message::NAME_ERROR)),
    }
}

/// Serves a TCP client (RFC 7766): any number of questions, each with its length before it.
fn converse(mut client: TcpStream, zone: &Zone, upstream: &[SocketAddr]) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(TCP_PATIENCE))?;
    client.set_write_timeout(Some(TCP_PATIENCE))?;
    // So that no client has a thread for ever.
    let until = Instant::now() + 12 * TCP_PATIENCE;
    while Instant::now() < until {
        let query = read_message(&mut client)?;
        let reply = match decide(&query, zone, usize::from(u16::MAX)) {
            Decision::Drop => return Ok(()),
            Decision::Answer(reply) => reply,
            Decision::Forward => upstream
                .iter()
                .find_map(|server| ask_by_tcp(*server, &query).ok())
                .unwrap_or_else(|| Reply::failure(&query)),
        };
        write_message(&mut client, &reply)?;
    }
    Ok(())
}

fn ask_by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_message(&mut stream, query)?;
    let answer = read_message(&mut stream)?;
    if message::answers(&answer, query) { Ok(answer) } else { Err(ErrorKind::InvalidData.into()) }
}

fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}
