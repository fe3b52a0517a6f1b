//! HTTP inside TLS, which the stub of the key managers' tests does not speak.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use tempfile::TempDir;

use super::super::remote::TlsProfile;
use super::*;

/// A server that answers each request with `body`, for as long as the process lives; its certificate names `localhost`
/// and is in `ca.pem` of the folder.
fn serve(body: Vec<u8>) -> (TempDir, u16) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = Stream::new(&mut tls, &mut socket);
            let mut request = Vec::new();
            let mut part = [0; 1000];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(read_bytes @ 1..) => request.extend_from_slice(&part[..read_bytes]),
                    // Whoever does not trust us says so, and goes.
                    _ => break,
                }
            }
            let head =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    (folder, port)
}

/// The client of a profile that is `tls`, in which `@` stands for the folder.
fn client(folder: &TempDir, tls: &str) -> HttpClient {
    let profile: TlsProfile = toml::from_str(&tls.replace('@', folder.path().to_str().unwrap())).unwrap();
    HttpClient::new(Some(profile.client(&"nested".parse().unwrap()).unwrap()), Duration::from_secs(60))
}

fn get(client: &HttpClient, url: &str) -> Result<Answer, HttpError> {
    client.send(&Request { method: Method::Get, url, headers: &[], token: None, body: None })
}

#[test]
fn a_secret_arrives_whole() {
    let body: Vec<u8> = (0..8192_u32).map(|at| (at * 7 % 251) as u8).collect();
    let (folder, port) = serve(body.clone());
    let client = client(&folder, "ca = '@/ca.pem'");
    for _ in 0..2 {
        let answer = get(&client, &format!("https://localhost:{port}/v1")).unwrap();
        assert!(answer.into_secret().unwrap().expose() == body);
    }
    let text = get(&client, &format!("https://localhost:{port}/v1")).unwrap().into_text(8192).unwrap();
    assert!(*text == body);
    let answer = get(&client, &format!("https://localhost:{port}/v1")).unwrap();
    assert!(matches!(answer.into_text(8191), Err(HttpError::TooLong(8191))));
}

#[test]
fn whoever_is_not_the_server_gets_nothing() {
    let (folder, port) = serve(b"{}".to_vec());
    let (stranger, _) = serve(Vec::new());
    let named = format!("https://localhost:{port}");
    let by_address = format!("https://127.0.0.1:{port}");
    let trusting = client(&folder, "ca = '@/ca.pem'");
    for (client, url, said) in [
        (&client(&stranger, "ca = '@/ca.pem'"), &named, "certificate"),
        (&trusting, &by_address, "server-name"),
        (&HttpClient::new(None, Duration::from_secs(60)), &named, "whom to trust"),
    ] {
        let error = get(client, url).err().expect("it should not be trusted");
        let error = error.about("nested".parse::<super::super::ManagerName>().unwrap(), "the server");
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
        assert!(error.to_string().contains(said), "no `{said}` in: {error}");
    }
    let renamed = client(&folder, "ca = '@/ca.pem'\nserver-name = 'localhost'");
    assert_eq!(get(&renamed, &by_address).unwrap().status(), 200);
}
