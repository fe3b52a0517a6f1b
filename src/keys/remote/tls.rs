//! How a profile says whom to trust and who we are, and what TLS makes of it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use pem_rfc7468::Decoder;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::owned_file::{self, Others, Refusal};
use super::super::{AbsolutePath, KeyError, ManagerName, Secret};

/// Longest file of certificates: room for every public CA there is.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// The table `tls` of a profile.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TlsProfile {
    /// The certificates (PEM) of those whose word about the server is taken, and of nobody else.
    ca: Option<AbsolutePath>,
    /// Whether to take the word of everybody whom this system trusts.
    #[serde(default)]
    system_roots: bool,
    /// Our certificate (PEM), with those between it and the server's root, if the server asks who we are.
    client_certificate: Option<AbsolutePath>,
    /// Its private key (PEM: PKCS #8, SEC 1 or PKCS #1, not encrypted), in a file that nobody else can read.
    client_key: Option<AbsolutePath>,
    /// The name in the server's certificate, where it is not the one that is connected to.
    server_name: Option<String>,
}

/// A profile with its files read.
#[derive(Clone)]
pub struct TlsClient {
    /// TLS 1.2 and 1.3, with nothing remembered from one connection to the next.
    pub(in crate::keys) config: Arc<ClientConfig>,
    /// The name to look for in the server's certificate, if not its host's.
    pub(in crate::keys) server_name: Option<ServerName<'static>>,
}

impl TlsProfile {
    /// The same from settings elsewhere.
    ///
    /// # Errors
    /// When a path is not a whole one.
    #[cfg(feature = "barbican")]
    pub(in crate::keys) fn from_paths(
        ca: Option<&str>,
        client_certificate: Option<&str>,
        client_key: Option<&str>,
    ) -> Result<Self, &'static str> {
        let path =
            |text: Option<&str>| text.map(|text| std::path::PathBuf::from(text).try_into()).transpose();
        Ok(Self {
            ca: path(ca)?,
            client_certificate: path(client_certificate)?,
            client_key: path(client_key)?,
            ..Self::default()
        })
    }

    /// What is used, for people.
    #[cfg(feature = "kmip")]
    pub(in crate::keys) fn described(&self) -> String {
        let who = match &self.client_certificate {
            Some(path) => format!("we are who {} says", path.as_path().display()),
            None => "we show no certificate".to_owned(),
        };
        let ca = self.ca.as_ref().map(|path| format!("the CA in {}", path.as_path().display()));
        let system = self.system_roots.then(|| "those whom this system trusts".to_owned());
        let vouching: Vec<String> = ca.into_iter().chain(system).collect();
        format!("{who}; servers are vouched for by {}", vouching.join(" and "))
    }

    /// Reads the files. `manager` is for the errors.
    ///
    /// # Errors
    /// [`KeyError::NotAllowed`] for files that are not ours alone or hold something else, [`KeyError::Unreachable`] for
    /// those that cannot be read now.
    pub fn client(&self, manager: &ManagerName) -> Result<TlsClient, KeyError> {
        let reader = Files { manager };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(self.roots(&reader)?);
        let mut config = match self.identity(&reader)? {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let server_name = self.server_name.clone().map(ServerName::try_from).transpose().map_err(|_| {
            reader.refused("`server-name` is neither a host's name nor an address", "correct it")
        })?;
        Ok(TlsClient { config: Arc::new(config), server_name })
    }

    fn roots(&self, reader: &Files<'_>) -> Result<RootCertStore, KeyError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            for certificate in reader.certificates("ca", path.as_path())? {
                roots.add(certificate).map_err(|error| reader.unusable("ca", path.as_path(), &error))?;
            }
        }
        if self.system_roots {
            // Some system's store may hold a certificate that nobody can parse: the others count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            return Err(reader.refused(
                "nothing says whose word about the server is taken",
                "name the certificate of its CA as `ca`, or set `system-roots = true`, in the table `tls` of its \
                 profile",
            ));
        }
        Ok(roots)
    }

    fn identity(&self, reader: &Files<'_>) -> Result<Option<CertifiedKey>, KeyError> {
        let (certificate, key) = match (&self.client_certificate, &self.client_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate.as_path(), key.as_path()),
            _ => {
                return Err(reader.refused(
                    "`client-certificate` and `client-key` belong together",
                    "name both in the table `tls` of its profile, or neither",
                ));
            }
        };
        let chain = reader.certificates("client-certificate", certificate)?;
        let identity = CertifiedKey::new(chain, reader.private_key(key)?);
        identity.keys_match().map_err(|_| {
            reader.refused(
                format!("the key {} is not that of the certificate {}", key.display(), certificate.display()),
                "name those that belong together",
            )
        })?;
        Ok(Some(identity))
    }
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Reads the files of one profile, for one manager.
struct Files<'a> {
    manager: &'a ManagerName,
}

impl Files<'_> {
    /// The certificates of a file, at least one.
    fn certificates(&self, what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyError> {
        let mut pem = Vec::new();
        self.open(what, path, Others::MayRead)?
            .take(CERTIFICATES_BYTES_MAX + 1)
            .read_to_end(&mut pem)
            .map_err(|error| self.unreadable(what, path, error))?;
        if pem.len() as u64 > CERTIFICATES_BYTES_MAX {
            return Err(self.unusable(what, path, &"it is longer than 4 MiB"));
        }
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| self.unusable(what, path, &error))?;
        if certificates.is_empty() {
            return Err(self.unusable(what, path, &"there is no certificate in it"));
        }
        Ok(certificates)
    }

    /// The private key of a file. Its bytes are wiped here; what signs with it keeps its own copy, as long as the
    /// [`TlsClient`] lives.
    fn private_key(&self, path: &Path) -> Result<Arc<dyn SigningKey>, KeyError> {
        const WHAT: &str = "client-key";
        let file = self.open(WHAT, path, Others::MayNothing)?;
        let pem = Secret::read_from(file).map_err(|error| match error {
            super::super::SecretError::Read(error) => self.unreadable(WHAT, path, error),
            error => self.unusable(WHAT, path, &error),
        })?;
        let Some((label, text)) = private_key_of(pem.expose()) else {
            return Err(self.unusable(WHAT, path, &"there is no private key (PEM) in it"));
        };
        let not_pem = |_| self.unusable(WHAT, path, &"what it holds is not PEM");
        let mut decoder = Decoder::new_detect_wrap(text).map_err(not_pem)?;
        let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
        decoder.decode(&mut der).map_err(not_pem)?;
        let key = match label {
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(der.as_slice().into()),
            "EC PRIVATE KEY" => PrivateKeyDer::Sec1(der.as_slice().into()),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(der.as_slice().into()),
            _ => {
                return Err(self.unusable(
                    WHAT,
                    path,
                    &"it is encrypted; keep it in clear in a file that only its user can read",
                ));
            }
        };
        rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|_| self.unusable(WHAT, path, &"it is no RSA, ECDSA or Ed25519 key that can be used"))
    }

    fn open(&self, what: &str, path: &Path, others: Others) -> Result<std::fs::File, KeyError> {
        let unreadable = |error| self.unreadable(what, path, error);
        let file = owned_file::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        owned_file::check(&metadata, path, others).map_err(|Refusal { problem, remedy }| {
            self.refused(format!("`{what}` {}: {problem}", path.display()), remedy)
        })?;
        Ok(file)
    }

    fn unreadable(&self, what: &str, path: &Path, error: std::io::Error) -> KeyError {
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        let problem = format!("`{what}` {} cannot be read", path.display());
        match error.kind() {
            NotFound | NotADirectory | PermissionDenied => {
                self.refused(format!("{problem} ({error})"), "correct its profile, or put the file there")
            }
            _ => KeyError::unreachable_because(self.manager.clone(), problem, error),
        }
    }

    fn unusable(&self, what: &str, path: &Path, problem: &dyn std::fmt::Display) -> KeyError {
        self.refused(format!("`{what}` {}: {problem}", path.display()), "name another file in its profile")
    }

    fn refused(&self, problem: impl Into<String>, remedy: impl Into<String>) -> KeyError {
        KeyError::not_allowed(self.manager.clone(), problem, remedy)
    }
}

/// The label and the whole block of the first private key in `pem`, which other blocks may stand before.
fn private_key_of(pem: &[u8]) -> Option<(&str, &[u8])> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const LABELS: [&str; 4] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"];
    let starts = (0..pem.len()).filter(|start| pem[*start..].starts_with(BEGIN));
    starts.into_iter().find_map(|start| {
        let block = &pem[start..];
        let label = LABELS.into_iter().find(|label| {
            let rest = &block[BEGIN.len()..];
            rest.starts_with(label.as_bytes()) && rest[label.len()..].starts_with(b"-----")
        })?;
        let end = format!("-----END {label}-----");
        let end = block.windows(end.len()).position(|window| window == end.as_bytes())? + end.len();
        Some((label, &block[..end]))
    })
}

#[cfg(test)]
mod tests;
