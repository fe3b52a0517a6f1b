//! A throw-away authority, and the certificates that it issues into a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use tempfile::TempDir;

/// An authority with its folder: `ca.pem`, and `NAME.pem` with `NAME.key` for each certificate.
pub struct Pki {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// The serial number of the certificate of `name`.
fn serial_of(name: &str) -> SerialNumber {
    // Below 20 bytes, and not negative.
    SerialNumber::from([&[1], name.as_bytes()].concat())
}

const ALWAYS: std::ops::Range<i32> = 2020..4000;

/// What a certificate is to be.
pub struct Wish {
    pub purpose: Option<ExtendedKeyUsagePurpose>,
    /// Names and addresses that it is for.
    pub names: Vec<String>,
    /// The years in which it is valid, but for the last.
    pub years: std::ops::Range<i32>,
}

impl Wish {
    /// For a server on loopback.
    pub fn server() -> Self {
        Self {
            purpose: Some(ExtendedKeyUsagePurpose::ServerAuth),
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            years: ALWAYS,
        }
    }

    pub fn client() -> Self {
        Self { purpose: Some(ExtendedKeyUsagePurpose::ClientAuth), names: Vec::new(), years: ALWAYS }
    }
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "throw-away authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self { folder: tempfile::tempdir().unwrap(), ca };
        fs::set_permissions(pki.folder(), fs::Permissions::from_mode(0o700)).unwrap();
        pki.write("ca.pem", &pki.ca.pem(), 0o644);
        pki
    }

    /// Issues a certificate to `name`.
    pub fn issue(&self, name: &str, wish: &Wish) {
        let mut params = CertificateParams::new(wish.names.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = wish.purpose.iter().cloned().collect();
        params.use_authority_key_identifier_extension = true;
        params.not_before = rcgen::date_time_ymd(wish.years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(wish.years.end, 1, 1);
        params.serial_number = Some(serial_of(name));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem(), 0o644);
        self.write(&format!("{name}.key"), &key.serialize_pem(), 0o600);
    }

    /// Lists the certificate of `name` as revoked, in `revoked.pem`.
    pub fn revoke(&self, name: &str) {
        let long_ago = rcgen::date_time_ymd(2024, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: long_ago,
            next_update: rcgen::date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial_of(name),
                revocation_time: long_ago,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write("revoked.pem", &list.signed_by(&self.ca).unwrap().pem().unwrap(), 0o644);
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}
