//! What a profile says about TLS, read from files that are in order and from files that are not.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

/// A folder with a certificate, its key, and another key.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["kmip1".to_owned()]).unwrap().self_signed(&key).unwrap();
    write(&folder, "certificate.pem", &certificate.pem(), 0o644);
    write(&folder, "key.pem", &key.serialize_pem(), 0o600);
    write(&folder, "another.pem", &KeyPair::generate().unwrap().serialize_pem(), 0o600);
    folder
}

fn write(folder: &TempDir, name: &str, text: &str, mode: u32) {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The client of a profile in which `@` stands for the folder.
fn client(folder: &TempDir, profile: &str) -> Result<TlsClient, KeyError> {
    let profile = profile.replace('@', folder.path().to_str().unwrap());
    let profile: TlsProfile = toml::from_str(&profile).unwrap();
    profile.client(&"nested".parse().unwrap())
}

#[track_caller]
fn refused(folder: &TempDir, profile: &str, parts: &[&str]) {
    let error = client(folder, profile).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "no `{part}` in: {error}");
    }
}

const WHOLE: &str =
    "ca = '@/certificate.pem'\nclient-certificate = '@/certificate.pem'\nclient-key = '@/key.pem'";

#[test]
fn a_profile_in_order_is_read() {
    let folder = folder();
    let client = client(&folder, &format!("{WHOLE}\nserver-name = 'kmip.example'")).unwrap();
    assert_eq!(client.server_name, Some(ServerName::try_from("kmip.example").unwrap()));
    assert!(client.config.client_auth_cert_resolver.has_certs());
    assert!(!format!("{client:?}").contains("resolver"));
}

#[test]
fn nobody_is_trusted_unless_a_profile_says_whom() {
    let folder = folder();
    refused(&folder, "", &["`ca`", "system-roots"]);
    refused(&folder, "system-roots = false", &["`ca`"]);
}

#[test]
fn private_keys_are_taken_in_each_form() {
    let folder = folder();
    let ec = openssl::ec::EcKey::generate(
        &openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap(),
    )
    .unwrap();
    let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for pem in [ec.private_key_to_pem().unwrap(), rsa.private_key_to_pem().unwrap()] {
        let pem = String::from_utf8(pem).unwrap();
        write(&folder, "key.pem", &format!("{parameters}{pem}"), 0o600);
        // It is read, and found to be the key of something else.
        refused(&folder, WHOLE, &["is not that of the certificate"]);
    }
}

#[test]
fn files_that_are_not_in_order_are_named() {
    let folder = folder();
    write(&folder, "exposed.pem", "", 0o640);
    write(&folder, "writable.pem", "", 0o666);
    write(&folder, "empty.pem", "", 0o600);
    write(
        &folder,
        "encrypted.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        0o600,
    );
    write(&folder, "torn.pem", "-----BEGIN PRIVATE KEY-----\nAA?A\n-----END PRIVATE KEY-----\n", 0o600);
    write(&folder, "endless.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n", 0o600);
    write(&folder, "noise.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600);
    let with_key = |name: &str| WHOLE.replace("key.pem", name);
    refused(&folder, &with_key("exposed.pem"), &["`client-key`", "exposed.pem", "chmod 600"]);
    refused(&folder, &with_key("missing.pem"), &["`client-key`", "missing.pem", "No such file"]);
    refused(&folder, &with_key("another.pem"), &["another.pem is not that of the certificate"]);
    refused(&folder, &with_key("empty.pem"), &["`client-key`", "empty.pem", "empty"]);
    refused(&folder, &with_key("encrypted.pem"), &["encrypted.pem", "it is encrypted"]);
    refused(&folder, &with_key("torn.pem"), &["torn.pem", "not PEM"]);
    refused(&folder, &with_key("endless.pem"), &["endless.pem", "no private key"]);
    refused(&folder, &with_key("noise.pem"), &["noise.pem", "no RSA, ECDSA or Ed25519 key"]);
    for name in ["ca", "client-certificate"] {
        let with = |file: &str| {
            let line = format!("{name} = '@/certificate.pem'");
            WHOLE.replace(&line, &format!("{name} = '@/{file}'"))
        };
        refused(&folder, &with("writable.pem"), &[name, "writable.pem", "chmod go-w"]);
        refused(&folder, &with("empty.pem"), &[name, "empty.pem", "no certificate"]);
        refused(&folder, &with("missing.pem"), &[name, "missing.pem"]);
    }
    refused(&folder, "ca = '@/certificate.pem'\nclient-key = '@/key.pem'", &["belong together"]);
    refused(&folder, "ca = '@/certificate.pem'\nserver-name = 'a b'", &["`server-name`"]);
}
