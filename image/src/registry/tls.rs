//! Whom a TLS connection trusts, and as whom it shows itself.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};

use super::problem::RegistryProblem as Problem;

/// The largest file with certificates that is read: ten times that of a whole system.
const MAX_FILE: u64 = 4 << 20;

/// Where distributions keep the certificate authorities that they trust.
const SYSTEM_FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-bundle.crt",
];

/// Whether a server's certificate is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Verify {
    #[default]
    Yes,
    /// The registry was declared insecure.
    No,
}

/// What is particular to the TLS connections of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct TlsSettings {
    pub(super) verify: Verify,
    /// Files with certificate authorities, beside the system's.
    pub(super) authorities: Vec<PathBuf>,
    /// Files with a client's certificate and its key.
    pub(super) clients: Vec<(PathBuf, PathBuf)>,
}

impl TlsSettings {
    /// Adds what lies in folders such as `/etc/docker/certs.d` for this host, as docker-certs.d(5) has it: `*.crt` are
    /// authorities, a `*.cert` with the `*.key` of the same name is a client's certificate.
    pub(super) fn add_folders(&mut self, folders: &[PathBuf], host: &str) -> Result<(), Problem> {
        // The host was parsed: it has no slash, and is more than dots.
        let Some(folder) = folders.iter().map(|folder| folder.join(host)).find(|folder| folder.is_dir()) else {
            return Ok(());
        };
        let fail = |reason: String| Problem::Certificate { path: folder.display().to_string(), reason };
        let entries = std::fs::read_dir(&folder).map_err(|error| fail(error.to_string()))?;
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(|error| fail(error.to_string()))?;
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.authorities.push(path),
                Some("cert") => {
                    let key = path.with_extension("key");
                    if !key.exists() {
                        return Err(fail(format!("{} is a client's certificate without a .key", path.display())));
                    }
                    self.clients.push((path, key));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a client of it. `system` are the authorities that every registry is trusted by.
    pub(super) fn client(&self, system: &RootCertStore) -> Result<Arc<ClientConfig>, Problem> {
        let provider = Arc::new(ring::default_provider());
        let fail = |reason: String| Problem::Certificate { path: "the TLS settings".to_owned(), reason };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(error.to_string()))?;
        let builder = match self.verify {
            Verify::No => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&provider))))
            }
            Verify::Yes => {
                let mut roots = system.clone();
                for path in &self.authorities {
                    add_file(&mut roots, path)?;
                }
                if roots.is_empty() {
                    let reason = "no certificate authority is known: install the package ca-certificates";
                    return Err(Problem::Certificate { path: SYSTEM_FILES[0].to_owned(), reason: reason.to_owned() });
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(|error| fail(error.to_string()))?;
                builder.with_webpki_verifier(verifier)
            }
        };
        let mut keys = Vec::new();
        for (certificate, key) in &self.clients {
            keys.push(Arc::new(certified(certificate, key, &provider)?));
        }
        let config = if keys.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_resolver(Arc::new(FirstFit(keys)))
        };
        Ok(Arc::new(config))
    }
}

/// Reads the authorities of the system: `SSL_CERT_FILE`, or else the distribution's file; `SSL_CERT_DIR` beside.
pub(super) fn system_authorities(file: Option<&Path>, folder: Option<&Path>) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => add_file(&mut roots, path)?,
        None => {
            if let Some(path) = SYSTEM_FILES.iter().map(Path::new).find(|path| path.is_file()) {
                add_file(&mut roots, path)?;
            }
        }
    }
    if let Some(folder) = folder {
        let fail = |error: std::io::Error| Problem::Certificate {
            path: folder.display().to_string(),
            reason: error.to_string(),
        };
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_file() {
                // Such a folder has other files, too.
                let _ = add_file(&mut roots, &path);
            }
        }
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let fail = |reason: String| Problem::Certificate { path: path.display().to_string(), reason };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| fail(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), Problem> {
    let bytes = read(path)?;
    // One that cannot be parsed is not trusted, and no reason to trust none of the others.
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes).flatten().collect();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        let reason = "it has no certificate authority in PEM format".to_owned();
        return Err(Problem::Certificate { path: path.display().to_string(), reason });
    }
    Ok(())
}

fn certified(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Problem> {
    let fail = |path: &Path, reason: String| Problem::Certificate { path: path.display().to_string(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?).flatten().collect();
    if chain.is_empty() {
        return Err(fail(certificate, "it has no certificate in PEM format".to_owned()));
    }
    let parsed = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| fail(key, error.to_string()))?;
    CertifiedKey::from_der(chain, parsed, provider).map_err(|error| fail(key, error.to_string()))
}

/// Shows the first certificate whose key the server can check.
#[derive(Debug)]
struct FirstFit(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for FirstFit {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any certificate: only for registries that were declared insecure.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
