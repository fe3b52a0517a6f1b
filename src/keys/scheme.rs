//! The kinds of key manager: one row each.

use std::fmt;

#[cfg(feature = "barbican")]
use super::barbican;
#[cfg(feature = "kmip")]
use super::kmip;
#[cfg(feature = "libvirt")]
use super::libvirt;
use super::registry::Opening;
#[cfg(feature = "vault")]
use super::vault;
use super::{
    KeyAdmin, KeyConfigError, KeyManager, command, credential, fd, file, fixed_key, keyring, keystore,
};

/// Every kind of key manager, in the order in which messages list them. A new one needs its line here, and a table
/// of [`KeyConfig`](super::KeyConfig) if it takes profiles.
const SCHEMES: &[&Scheme] = &[
    &file::SCHEME,
    &fd::SCHEME,
    &command::SCHEME,
    &credential::SCHEME,
    &keyring::SCHEME,
    &keystore::SCHEME,
    #[cfg(feature = "kmip")]
    &kmip::SCHEME,
    #[cfg(feature = "libvirt")]
    &libvirt::SCHEME,
    #[cfg(feature = "barbican")]
    &barbican::SCHEME,
    #[cfg(feature = "vault")]
    &vault::SCHEME,
    &fixed_key::SCHEME,
    #[cfg(test)]
    &NESTED,
];

/// One kind of key manager: what stands before the colon of a reference, and what opens it.
pub(super) struct Scheme {
    /// The word in a reference.
    pub(super) name: &'static str,
    /// How a reference is written.
    pub(super) usage: &'static str,
    /// Whether a reference may say `@PROFILE`, a table of the key configuration file.
    pub(super) takes_profile: bool,
    /// Whether a reference may say `#VERSION`.
    pub(super) takes_version: bool,
    /// Makes the manager, as [`KeyManager`] demands without touching more than the configuration.
    pub(super) open: fn(&Opening<'_>) -> Result<Box<dyn KeyManager>, KeyConfigError>,
    /// The same for the tools, if there is anything that they can do.
    pub(super) administer: Option<Administer>,
}

/// Makes a manager for the tools.
pub(super) type Administer = fn(&Opening<'_>) -> Result<Box<dyn KeyAdmin>, KeyConfigError>;

impl Scheme {
    pub(super) fn from_name(name: &str) -> Option<&'static Self> {
        SCHEMES.iter().copied().find(|known| known.name == name)
    }
}

impl PartialEq for Scheme {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Scheme {}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How references are written, for messages.
pub(super) fn usages() -> String {
    listed(SCHEMES.iter().copied())
}

/// How managers are written that the tools can do something with.
pub(super) fn administered() -> String {
    listed(SCHEMES.iter().copied().filter(|scheme| scheme.administer.is_some()))
}

fn listed(schemes: impl Iterator<Item = &'static Scheme>) -> String {
    schemes.map(|scheme| scheme.usage).collect::<Vec<_>>().join(", ")
}

/// Keys with profiles and versions, each encrypted with itself.
#[cfg(test)]
pub(super) const NESTED: Scheme = Scheme {
    name: "nested",
    usage: "nested[@PROFILE]:NAME[#VERSION]",
    takes_profile: true,
    takes_version: true,
    open: |opening| {
        let itself = opening.name().key(&super::KeyId::new("x"));
        opening.source(&itself).map(|source| source.manager)
    },
    administer: None,
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_of_their_own_and_stand_in_the_usage() {
        let names: BTreeSet<&str> = SCHEMES.iter().map(|scheme| scheme.name).collect();
        assert_eq!(names.len(), SCHEMES.len());
        for scheme in SCHEMES {
            assert!(scheme.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{scheme:?}");
            assert!(scheme.usage.starts_with(scheme.name), "{scheme:?}");
            assert_eq!(scheme.usage.contains("[@PROFILE]"), scheme.takes_profile, "{scheme:?}");
            assert_eq!(scheme.usage.contains("[#VERSION]"), scheme.takes_version, "{scheme:?}");
        }
    }
}
