//! Connections: found in the pool, or dialled, through a proxy or not, with TLS or without.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError, RootCertStore};

use super::problem::RegistryProblem as Problem;
use super::proxy::{Proxies, Proxy};
use super::tls::{TlsSettings, Verify, system_authorities};
use super::url::Origin;

/// A connection that was idle for longer is not used again: the server may be closing it.
const IDLE: Duration = Duration::from_secs(20);

/// What is sent with a request.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes in memory, or none.
    Whole(Option<Bytes>),
    /// Bytes that somebody reads meanwhile.
    Stream { receiver: mpsc::Receiver<io::Result<Bytes>>, left: u64, sent: Arc<AtomicU64> },
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream { receiver, left, sent } => Poll::Ready(match ready!(receiver.poll_recv(context)) {
                Some(Ok(bytes)) => {
                    *left = left.saturating_sub(bytes.len() as u64);
                    sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Some(Ok(Frame::data(bytes)))
                }
                Some(Err(error)) => Some(Err(error)),
                None if *left > 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
                None => None,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Stream { left, .. } => *left,
        })
    }
}

/// Where a connection goes and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) origin: Origin,
    pub(super) tls: TlsSettings,
}

/// Which addresses a name may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Any: a person named the host.
    Any,
    /// Only such as the whole world can reach: a registry out there named the host, and shall not make us ask in here.
    Public,
}

/// An answer, of which the body is still to be read. Read to its end, its connection goes back to the pool.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: hyper::http::response::Parts,
    body: Incoming,
    sender: Option<SendRequest<Body>>,
    target: Target,
    connections: Arc<Connections>,
}

impl Answer {
    /// The next bytes of the body; `None` at its end.
    pub(super) async fn frame(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let next = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match next {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(source)) => {
                    return Err(Problem::Broken { address: self.target.origin.address(), source: source.into() });
                }
                None => {
                    if let Some(sender) = self.sender.take() {
                        self.connections.put(&self.target, sender);
                    }
                    return Ok(None);
                }
            }
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }
}

/// All connections of a client.
pub(super) struct Connections {
    pub(super) proxies: Proxies,
    connect_timeout: Duration,
    idle_timeout: Duration,
    authorities: (Option<std::path::PathBuf>, Option<std::path::PathBuf>),
    system: Mutex<Option<RootCertStore>>,
    clients: Mutex<HashMap<TlsSettings, Arc<ClientConfig>>>,
    pool: Mutex<HashMap<Target, Vec<Idle>>>,
    /// Hosts that were found at an address that not everybody can reach.
    private: Mutex<HashMap<String, bool>>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

/// A connection that waits for its next request, since then.
type Idle = (SendRequest<Body>, Instant);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connections {
    pub(super) fn new(
        proxies: Proxies,
        connect_timeout: Duration,
        idle_timeout: Duration,
        authorities: (Option<std::path::PathBuf>, Option<std::path::PathBuf>),
    ) -> Self {
        Self {
            proxies,
            connect_timeout,
            idle_timeout,
            authorities,
            system: Mutex::default(),
            clients: Mutex::default(),
            pool: Mutex::default(),
            private: Mutex::default(),
        }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        target: &Target,
        reach: Reach,
        request: impl Fn() -> Request<Body>,
        streamed: Option<Request<Body>>,
    ) -> Result<Answer, Problem> {
        if let Some(request) = streamed {
            // Its body can be sent once only: no connection that may be closing.
            let sender = self.dial(target, reach).await?;
            return self.send(target, sender, request).await;
        }
        while let Some(mut sender) = self.take(target) {
            if sender.ready().await.is_err() {
                continue;
            }
            match self.send(target, sender, request()).await {
                // Closed by the server while it was idle: not its answer to this request.
                Err(Problem::Broken { .. }) => {}
                other => return other,
            }
        }
        let sender = self.dial(target, reach).await?;
        self.send(target, sender, request()).await
    }

    async fn send(
        self: &Arc<Self>,
        target: &Target,
        mut sender: SendRequest<Body>,
        request: Request<Body>,
    ) -> Result<Answer, Problem> {
        let sent = match request.body() {
            Body::Stream { sent, .. } => Some(Arc::clone(sent)),
            Body::Whole(_) => None,
        };
        let address = target.origin.address();
        let answer = sender.send_request(request);
        tokio::pin!(answer);
        let (mut before, mut still) = (0, 0);
        let response: Response<Incoming> = loop {
            match timeout(self.idle_timeout, &mut answer).await {
                Ok(Ok(response)) => break response,
                Ok(Err(source)) => return Err(Problem::Broken { address, source: source.into() }),
                Err(_) => {
                    // While an upload goes on there is no answer, and who has got it may need a while to put it away.
                    let now = sent.as_ref().map_or(0, |sent| sent.load(Ordering::Relaxed));
                    still = if now > before { 0 } else { still + 1 };
                    before = now;
                    let patience = if sent.is_some() { 10 } else { 1 };
                    if still >= patience {
                        return Err(Problem::Stalled { address, waited: self.idle_timeout * patience });
                    }
                }
            }
        };
        let (head, body) = response.into_parts();
        Ok(Answer { head, body, sender: Some(sender), target: target.clone(), connections: Arc::clone(self) })
    }

    fn take(&self, target: &Target) -> Option<SendRequest<Body>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.get_mut(target)?;
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < IDLE && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, target: &Target, sender: SendRequest<Body>) {
        const KEPT: usize = 8;
        if sender.is_closed() {
            return;
        }
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.entry(target.clone()).or_default();
        if idle.len() < KEPT {
            idle.push((sender, Instant::now()));
        }
    }

    /// Whether the host was found at an address that not everybody can reach.
    pub(super) fn is_private(&self, origin: &Origin) -> bool {
        let private = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        private.get(&origin.host).copied().unwrap_or(false)
    }

    async fn dial(&self, target: &Target, reach: Reach) -> Result<SendRequest<Body>, Problem> {
        let origin = &target.origin;
        let stalled = |address| Problem::Stalled { address, waited: self.connect_timeout };
        let connecting = async {
            let stream: Box<dyn Stream> = match self.proxies.find(origin) {
                None => Box::new(self.tcp(origin, reach).await?),
                Some(proxy) => self.through(proxy, origin).await?,
            };
            let stream = if origin.https { self.encrypt(stream, origin, &target.tls).await? } else { stream };
            let broken = |source: hyper::Error| Problem::Broken { address: origin.address(), source: source.into() };
            let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(broken)?;
            // Ends with the sender, or with the server.
            tokio::spawn(async move { drop(connection.await) });
            Ok(sender)
        };
        timeout(self.connect_timeout, connecting).await.unwrap_or_else(|_| Err(stalled(origin.address())))
    }

    async fn tcp(&self, origin: &Origin, reach: Reach) -> Result<TcpStream, Problem> {
        let unreachable = |source| Problem::Unreachable { address: origin.address(), source };
        // A name that cannot be resolved is mistyped, or there is no network: not worth another try.
        let unknown = |error| unreachable(io::Error::new(io::ErrorKind::NotFound, error));
        let looked = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await;
        let found: Vec<SocketAddr> = looked.map_err(unknown)?.collect();
        let is_private = found.iter().any(|address| !is_public(address.ip()));
        if reach == Reach::Public && is_private {
            let reason = "a registry out there names an address in here";
            return Err(unreachable(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        self.private.lock().unwrap_or_else(PoisonError::into_inner).insert(origin.host.clone(), is_private);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in &found {
            // Of several addresses none may take all the time.
            let share = self.connect_timeout / u32::try_from(found.len()).unwrap_or(1);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small: they shall not wait for more.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(unreachable(last))
    }

    async fn through(&self, proxy: &Proxy, origin: &Origin) -> Result<Box<dyn Stream>, Problem> {
        let stream: Box<dyn Stream> = Box::new(self.tcp(&proxy.origin, Reach::Any).await?);
        let mut stream = if proxy.origin.https {
            self.encrypt(stream, &proxy.origin, &TlsSettings::default()).await?
        } else {
            stream
        };
        if !origin.https {
            return Ok(stream);
        }
        let broken = |source: io::Error| Problem::Broken { address: proxy.origin.address(), source: source.into() };
        let address = origin.address();
        let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n");
        if let Some(authorization) = &proxy.authorization {
            request = format!("{request}Proxy-Authorization: {authorization}\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut head = Vec::new();
        // One byte after the other: what follows the head is for TLS.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 8 << 10 {
                return Err(Problem::answer(&proxy.origin.address(), "its answer to CONNECT has no end"));
            }
            head.push(stream.read_u8().await.map_err(broken)?);
        }
        let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        if line.split(' ').nth(1).is_some_and(|status| status.len() == 3 && status.starts_with('2')) {
            return Ok(stream);
        }
        let proxy = proxy.origin.address();
        Err(Problem::Proxy { proxy, address, status: super::problem::spoken(&line) })
    }

    async fn encrypt(
        &self,
        stream: Box<dyn Stream>,
        origin: &Origin,
        settings: &TlsSettings,
    ) -> Result<Box<dyn Stream>, Problem> {
        let address = origin.address();
        let name = ServerName::try_from(origin.host.clone())
            .map_err(|error| Problem::Tls { address: address.clone(), source: error.into() })?;
        let connector = TlsConnector::from(self.client(settings)?);
        let connected = connector.connect(name, stream).await;
        connected.map(|stream| Box::new(stream) as Box<dyn Stream>).map_err(|source| {
            let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
            match tls {
                Some(TlsError::InvalidMessage(_)) => Problem::PlainHttp { address },
                // A plain server may also just hang up.
                None if source.kind() == io::ErrorKind::UnexpectedEof => Problem::PlainHttp { address },
                None => Problem::Broken { address, source: source.into() },
                Some(_) => Problem::Tls { address, source: source.into() },
            }
        })
    }

    fn client(&self, settings: &TlsSettings) -> Result<Arc<ClientConfig>, Problem> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(settings) {
            return Ok(Arc::clone(client));
        }
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if system.is_none() && settings.verify == Verify::Yes {
            *system = Some(system_authorities(self.authorities.0.as_deref(), self.authorities.1.as_deref())?);
        }
        let client = settings.client(system.as_ref().unwrap_or(&RootCertStore::empty()))?;
        clients.insert(settings.clone(), Arc::clone(&client));
        Ok(client)
    }
}

/// Whether the whole world can reach the address.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            !(address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || (a == 100 && b & 0xc0 == 64))
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_here_are_not_public() {
        for (address, public) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("10.0.0.1", false),
            ("172.16.0.1", false),
            ("192.168.0.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("::ffff:127.0.0.1", false),
            ("fd00::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_public(address.parse().expect("an address")), public, "{address}");
        }
    }
}
