//! Key managers on the network against real servers, started here on loopback with throw-away credentials, and against
//! one that misbehaves.
//!
//! Needs `scripts/install-tools key-servers`, hence the feature `key-server-tests`.
#![allow(unreachable_pub, missing_docs, reason = "a test binary has no outside")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where its expectations do")]

mod barbican;
mod doctor;
mod hostile;
mod http;
mod kmip;
mod libvirt;
mod pki;
mod server;
mod vault;

/// A missing server would be noticed in every test; here it is named.
#[test]
fn the_servers_are_installed() {
    server::program("kmip", "pykmip-server");
    server::program("openbao", "bao");
    server::program("openstack", "keystone-manage");
    let answer = std::process::Command::new("libvirtd").arg("--version").output();
    assert!(
        answer.is_ok_and(|answer| answer.status.success()),
        "libvirtd: run `scripts/install-tools key-servers`"
    );
}
