//! A server that misbehaves, and one that is not the right one: each is answered with one clear line, in time, and
//! nothing of any key shows.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use sealblk::keys::conformance::watch::{self, KEY};
use sealblk::keys::{FixedKey, KeyError, KeyId, KeyKind, KeyManagers, KeySpec, Secret};

use crate::pki::{Pki, Wish};

pub type Stream = StreamOwned<ServerConnection, TcpStream>;

/// What a server does with a connection over which it was asked for something.
pub type Misdeed = Box<dyn FnOnce(&mut Stream) + Send>;

/// A server for one connection, known by `server.pem` of an authority.
pub struct Hostile {
    pub address: String,
    served: Option<JoinHandle<()>>,
}

impl Hostile {
    /// TLS as `config` has it; `misdeed` answers the first request.
    pub fn start(config: ServerConfig, misdeed: Misdeed) -> Self {
        Self::start_bare(move |socket| {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
            let mut header = [0; 8];
            // Whoever does not trust this server asks it nothing.
            if stream.read_exact(&mut header).is_ok() {
                let length = u32::from_be_bytes(header[4..].try_into().unwrap());
                stream.read_exact(&mut vec![0; length as usize]).unwrap();
                misdeed(&mut stream);
            }
        })
    }

    pub fn start_bare(serve: impl FnOnce(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        Self { address, served: Some(served) }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // Whoever was not asked still waits.
        drop(TcpStream::connect(&self.address));
        let ended = self.served.take().expect("dropped once").join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn identity(pki: &Pki, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(pki.path(&format!("{name}.pem"))).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(pki.path(&format!("{name}.key"))).unwrap())
}

/// A server known by `NAME.pem` that takes the clients of `clients`, but for those that it has revoked.
pub fn server(pki: &Pki, name: &str, clients: Option<&Pki>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let (chain, key) = identity(pki, name);
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(clients.path("ca.pem")).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let revoked = CertificateRevocationListDer::from_pem_file(clients.path("revoked.pem"));
            let verifier = match revoked {
                Ok(revoked) => verifier.with_crls([revoked]),
                Err(_) => verifier,
            };
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    builder.with_single_cert(chain, key).unwrap()
}

/// An authority with a server and a client.
pub fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("server", &Wish::server());
    pki.issue("client", &Wish::client());
    pki
}

/// The key configuration file of a client of `servers`; `more` goes into its table `tls`.
pub fn client(pki: &Pki, servers: &[&str], more: &str) -> std::path::PathBuf {
    let folder = pki.folder().display();
    let config = format!(
        "[kmip.default]\nservers = {servers:?}\ntimeout-seconds = 5\n\
         [kmip.default.tls]\nca = '{folder}/ca.pem'\n{more}\n"
    );
    pki.write("keys.toml", &config.replace('@', &folder.to_string()), 0o600);
    pki.path("keys.toml")
}

pub const IDENTITY: &str = "client-certificate = '@/client.pem'\nclient-key = '@/client.key'";

fn fetch(config: &Path) -> Result<Secret, KeyError> {
    let managers = KeyManagers::new(Some(config), FixedKey::Refuse).unwrap();
    managers.source(&"kmip:7".parse().unwrap()).unwrap().fetch()
}

/// Asserts that an error says `parts`, in one line, and nothing of the key.
#[track_caller]
fn says(error: &KeyError, parts: &[&str]) {
    watch::assert_hidden_in_error(error);
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[track_caller]
fn refused(error: &KeyError, parts: &[&str]) {
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    says(error, parts);
}

#[track_caller]
fn unreachable(error: &KeyError, parts: &[&str]) {
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
    says(error, parts);
}

#[test]
fn a_server_that_nobody_vouches_for_is_asked_nothing() {
    let (ours, theirs) = (pki(), pki());
    let asked = || Box::new(|_: &mut Stream| -> () { panic!("it was asked") }) as Misdeed;
    let run = |config: ServerConfig, more: &str| {
        let hostile = Hostile::start(config, asked());
        fetch(&client(&ours, &[&hostile.address], more)).unwrap_err()
    };
    refused(&run(server(&theirs, "server", None), IDENTITY), &["not from a CA that", "`ca`"]);
    ours.issue("expired", &Wish { years: 2020..2021, ..Wish::server() });
    let expired = run(server(&ours, "expired", None), IDENTITY);
    refused(&expired, &["has expired: it was valid until 2021-01-01", "the clock here says 20"]);
    ours.issue("early", &Wish { years: 3000..3001, ..Wish::server() });
    let early = run(server(&ours, "early", None), IDENTITY);
    refused(&early, &["is not valid yet: it will be from 3000-01-01", "the clock here says 20"]);
    ours.issue("another", &Wish { names: vec!["kmip2.example".to_owned()], ..Wish::server() });
    refused(&run(server(&ours, "another", None), IDENTITY), &["for another name", "`server-name`"]);
    let misnamed = format!("{IDENTITY}\nserver-name = 'kmip3.example'");
    refused(&run(server(&ours, "another", None), &misnamed), &["for another name"]);
    // A client's certificate is none of a server.
    refused(&run(server(&ours, "client", None), IDENTITY), &["certificate"]);
}

#[test]
fn a_name_in_the_profile_is_the_one_that_counts() {
    let ours = pki();
    ours.issue("another", &Wish { names: vec!["kmip2.example".to_owned()], ..Wish::server() });
    let hostile =
        Hostile::start(server(&ours, "another", None), Box::new(|stream| answer(stream, &get("7"))));
    let named = format!("{IDENTITY}\nserver-name = 'kmip2.example'");
    assert!(fetch(&client(&ours, &[&hostile.address], &named)).unwrap().expose() == KEY);
}

#[test]
fn a_client_that_the_server_does_not_want_is_told_so() {
    let ours = pki();
    let run = |config: ServerConfig, more: &str| {
        let hostile = Hostile::start_bare(move |socket| {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
            assert!(stream.read(&mut [0]).is_err(), "the client was let in");
            // A socket that is closed over unread bytes takes back what was said last.
            let _ = stream.sock.shutdown(std::net::Shutdown::Write);
            let _ = stream.sock.read_to_end(&mut Vec::new());
        });
        fetch(&client(&ours, &[&hostile.address], more)).unwrap_err()
    };
    let theirs = pki();
    refused(&run(server(&ours, "server", Some(&theirs)), IDENTITY), &["refuses our certificate"]);
    refused(&run(server(&ours, "server", Some(&ours)), ""), &["asks who we are", "`client-certificate`"]);
    ours.revoke("client");
    refused(&run(server(&ours, "server", Some(&ours)), IDENTITY), &["refuses our certificate", "Revoked"]);
}

#[test]
fn what_does_not_speak_tls_is_told_apart() {
    let ours = pki();
    let hostile = Hostile::start_bare(|mut socket| {
        let _ = socket.read(&mut [0; 512]);
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    refused(&fetch(&client(&ours, &[&hostile.address], IDENTITY)).unwrap_err(), &["does not speak TLS"]);
}

/// Waits until the client has gone, and longer than any client should.
fn wait_for_goodbye(stream: &mut Stream) {
    let _ = stream.read(&mut [0; 64]);
}

#[test]
fn no_wait_is_without_end() {
    let ours = pki();
    let silent = Hostile::start_bare(|mut socket| {
        let mut everything = Vec::new();
        let _ = socket.read_to_end(&mut everything);
    });
    unreachable(
        &fetch(&client(&ours, &[&silent.address], IDENTITY)).unwrap_err(),
        &["the TLS handshake with 127.0.0.1", "took too long"],
    );
    let mute = Hostile::start(server(&ours, "server", None), Box::new(wait_for_goodbye));
    unreachable(
        &fetch(&client(&ours, &[&mute.address], IDENTITY)).unwrap_err(),
        &["the answer of 127.0.0.1", "took too long"],
    );
    // Every byte comes in time, and there is no end to them.
    let slow = Hostile::start(
        server(&ours, "server", None),
        Box::new(|stream| {
            let _ = stream.write_all(&[0x42, 0, 0x7b, 1, 0, 0x0f, 0, 0]);
            while stream.write_all(&[0]).and_then(|()| stream.flush()).is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }),
    );
    unreachable(
        &fetch(&client(&ours, &[&slow.address], IDENTITY)).unwrap_err(),
        &["the answer of 127.0.0.1", "took too long"],
    );
}

/// One item of a message.
fn item(tag: u32, kind: u8, value: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = tag.to_be_bytes();
    let mut bytes = vec![a, b, c, kind];
    bytes.extend((value.len() as u32).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn structure(tag: u32, items: &[Vec<u8>]) -> Vec<u8> {
    item(tag, 1, &items.concat())
}

fn enumeration(tag: u32, value: u32) -> Vec<u8> {
    item(tag, 5, &value.to_be_bytes())
}

/// A whole answer that says yes to `operation`.
fn success(operation: u32, payload: &[Vec<u8>]) -> Vec<u8> {
    let batch_item = structure(
        0x42_000f,
        &[enumeration(0x42_005c, operation), enumeration(0x42_007f, 0), structure(0x42_007c, payload)],
    );
    structure(0x42_007b, &[structure(0x42_007a, &[]), batch_item])
}

fn symmetric_key(block: &[Vec<u8>]) -> Vec<u8> {
    structure(0x42_008f, &[structure(0x42_0040, block)])
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let value = structure(0x42_0045, &[item(0x42_0043, 8, bytes)]);
    symmetric_key(&[enumeration(0x42_0042, 1), value])
}

fn identifier(text: &str) -> Vec<u8> {
    item(0x42_0094, 7, text.as_bytes())
}

/// What a server says that has the key which it is asked for.
fn get(asked: &str) -> Vec<u8> {
    success(0x0a, &[enumeration(0x42_0057, 2), identifier(asked), raw(KEY)])
}

fn answer(stream: &mut Stream, bytes: &[u8]) {
    // Whoever has read enough goes away.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// What is said when a server answers with `bytes`.
fn answered(pki: &Pki, bytes: Vec<u8>) -> Result<Secret, KeyError> {
    let hostile = Hostile::start(server(pki, "server", None), Box::new(move |stream| answer(stream, &bytes)));
    fetch(&client(pki, &[&hostile.address], IDENTITY))
}

#[test]
fn answers_that_cannot_be_are_malformed() {
    let ours = pki();
    // The same harness, with an answer in order.
    assert!(answered(&ours, get("7")).unwrap().expose() == KEY);

    let mut oversized = get("7");
    oversized[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut torn = get("7");
    torn[60] ^= 0xff;
    let wrapped = symmetric_key(&[
        enumeration(0x42_0042, 1),
        structure(0x42_0045, &[item(0x42_0043, 8, KEY)]),
        structure(0x42_0046, &[]),
    ]);
    let about_seven = |object: Vec<u8>| success(0x0a, &[identifier("7"), object]);
    for (bytes, problem) in [
        (oversized, "longer than any"),
        (KEY.repeat(4), "does not begin like an answer"),
        (torn, "cannot be used"),
        (item(0x42_007b, 1, KEY), "cannot be used"),
        (structure(0x42_0078, &[]), "it is no answer"),
        (structure(0x42_007b, &[]), "it is empty"),
        (success(0x08, &[identifier("7"), raw(KEY)]), "answers something else"),
        (get("8"), "about another object"),
        (success(0x0a, &[raw(KEY)]), "about another object"),
        (about_seven(wrapped), "wrapped"),
        (about_seven(symmetric_key(&[enumeration(0x42_0042, 5)])), "format for something else"),
        (about_seven(symmetric_key(&[enumeration(0x42_0042, 1)])), "key bytes are missing"),
        (about_seven(structure(0x42_0013, &[])), "neither a symmetric key"),
        (about_seven(raw(&[7; 8193])), "longer than 8192"),
        (about_seven(raw(&[])), "empty"),
    ] {
        let error = answered(&ours, bytes).expect_err(problem);
        assert!(matches!(error, KeyError::Malformed { .. }), "{problem}: {error}");
        says(&error, &["key kmip:7", problem]);
    }
}

/// What a server writes into a refusal may be anything that it knows.
#[test]
fn the_text_of_a_refusal_is_not_shown() {
    let ours = pki();
    let refusal = structure(
        0x42_000f,
        &[
            enumeration(0x42_005c, 0x0a),
            enumeration(0x42_007f, 1),
            enumeration(0x42_007e, 0x03),
            item(0x42_007d, 7, KEY),
        ],
    );
    let error = answered(&ours, structure(0x42_007b, &[refusal])).unwrap_err();
    refused(&error, &["authentication not successful"]);
}

#[test]
fn a_server_that_goes_away_in_mid_call_is_unreachable() {
    let ours = pki();
    let whole = get("7");
    for sent_bytes in [0, 4, 8, 100, whole.len() - 1] {
        let error = answered(&ours, whole[..sent_bytes].to_vec()).unwrap_err();
        unreachable(&error, &["the answer of 127.0.0.1", "the server closed the connection"]);
    }
    // Without a word of goodbye.
    let gone = Hostile::start(
        server(&ours, "server", None),
        Box::new(|stream| stream.sock.shutdown(std::net::Shutdown::Both).unwrap()),
    );
    unreachable(
        &fetch(&client(&ours, &[&gone.address], IDENTITY)).unwrap_err(),
        &["the answer of 127.0.0.1"],
    );
}

/// What has no effect is asked of the next server; what may have had one is not.
#[test]
fn the_next_server_is_asked_what_can_be_asked_twice() {
    let ours = pki();
    let gone = || Hostile::start(server(&ours, "server", None), Box::new(|stream| answer(stream, &[])));
    let (first, second) =
        (gone(), Hostile::start(server(&ours, "server", None), Box::new(|stream| answer(stream, &get("7")))));
    let config = client(&ours, &[&first.address, &second.address], IDENTITY);
    assert!(fetch(&config).unwrap().expose() == KEY);

    let (first, second) = (
        gone(),
        Hostile::start(server(&ours, "server", None), Box::new(|_| -> () { panic!("it was asked as well") })),
    );
    let config = client(&ours, &[&first.address, &second.address], IDENTITY);
    let admin = crate::kmip::admin_of(&config, "kmip");
    let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits: 512, volume: None };
    let error = admin.store(&spec, &Secret::read_from(&KEY[..]).unwrap()).unwrap_err();
    unreachable(&error, &["the server closed the connection"]);

    // A server that says no has answered for all.
    let refusal = structure(
        0x42_000f,
        &[enumeration(0x42_005c, 0x0a), enumeration(0x42_007f, 1), enumeration(0x42_007e, 0x01)],
    );
    let no = structure(0x42_007b, &[refusal]);
    let (first, second) = (
        Hostile::start(server(&ours, "server", None), Box::new(move |stream| answer(stream, &no))),
        Hostile::start(server(&ours, "server", None), Box::new(|_| -> () { panic!("it was asked as well") })),
    );
    let config = client(&ours, &[&first.address, &second.address], IDENTITY);
    let error = crate::kmip::admin_of(&config, "kmip").fetch(&KeyId::new("7")).unwrap_err();
    assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
}
