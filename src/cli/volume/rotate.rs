//! Another key for a LUKS volume, in steps each of which is found done when it is: the key manager makes a new version
//! if it is to, a slot is added for it and tried, the old key's slots are removed, and the old key is destroyed if it
//! is to be. Old or new key opens the volume at every moment.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use subtle::ConstantTimeEq;

use super::super::confirm::ConfirmArgs;
use super::super::output::{self, printable};
use super::super::tool_error::ToolError;
use super::VolumeArgs;
use super::kdf::KdfArgs;
use crate::format::luks::{HeaderEditor, LuksError, Replacement};
use crate::keys::{KeyAdmin, KeyError, KeyId, KeyManagers, KeyMetadata, KeyReference, KeyState, Secret};

/// The options of `sealblk key rotate --volume`.
#[derive(Debug, Args)]
pub(in super::super) struct VolumeRotation {
    /// Give this LUKS volume another key, also while it is served: file or block device
    #[arg(long, value_name = "PATH", requires = "key", conflicts_with = "key_manager")]
    volume: Option<PathBuf>,
    /// File or device with the header, if that is not on the volume itself
    #[arg(long, value_name = "FILE", requires = "volume")]
    header: Option<PathBuf>,
    /// The key to give up
    #[arg(long, value_name = "REFERENCE", requires = "volume")]
    key: Option<String>,
    /// The key to put in its place [default: a new version of --key, made by its key manager]
    #[arg(long, value_name = "REFERENCE", requires = "volume")]
    new_key: Option<String>,
    /// At last destroy what --key names in its key manager; of a key without a version, every one before the new one
    #[arg(long, requires = "volume")]
    destroy_old: bool,
    #[command(flatten)]
    kdf: KdfArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Rotated<'a> {
    volume: &'a Path,
    /// The key that opens the volume now.
    key: KeyReference,
    /// Its slot.
    slot: u32,
    /// Whether that slot was made by this command.
    added: bool,
    /// Slots that are gone.
    removed: Vec<u32>,
    /// Keys that this command destroyed.
    destroyed: Vec<KeyReference>,
    /// SHA-256 of the header as it is now.
    header_digest: &'a str,
}

/// A key at hand.
struct Fetched {
    reference: KeyReference,
    secret: Secret,
}

/// What a volume is to be opened with, instead of what.
struct Change {
    /// `None` when it is gone already.
    old: Option<Fetched>,
    new: Fetched,
}

/// The key to give up, and what to ask about it.
struct OldKey<'a> {
    managers: &'a KeyManagers,
    reference: KeyReference,
}

impl VolumeRotation {
    pub(in super::super) fn run(&self, managers: &KeyManagers, json: bool) -> Result<(), ToolError> {
        let volume = self.volume.clone().expect("the group of arguments demands it");
        let key = self.key.as_deref().expect("--volume demands it");
        let old = OldKey { managers, reference: parsed("--key", key)? };
        let new = self.new_key.as_deref().map(|key| parsed("--new-key", key)).transpose()?;
        if new.as_ref().is_some_and(|new| old.may_be(new)) {
            return Err(ToolError::OneKey);
        }
        // Asked for first: whether its manager can do it is known without touching anything.
        let admin = match self.destroy_old || new.is_none() {
            true => Some(managers.admin(old.reference.manager())?),
            false => None,
        };
        let target = VolumeArgs { volume, header: self.header.clone(), json };
        let device = target.open_beside_others(true)?;
        if self.destroy_old {
            self.confirm.confirm(&old.consequence(&target.volume, new.is_none()))?;
        }
        let given = match &new {
            Some(new) => Some(old.change_to(new, admin.as_deref())?),
            None => None,
        };
        let mut editor = device.edit()?;
        let change = match (given, &admin) {
            (Some(change), _) => change,
            (None, Some(admin)) => old.change_to_next(admin.as_ref(), &editor)?,
            (None, None) => unreachable!("without a new key its manager is asked for one"),
        };
        let Replacement { slot, added, removed } = self.replace(&mut editor, &change)?;
        let destroyed = match admin.filter(|_| self.destroy_old) {
            Some(admin) => old.destroy(&change.new.reference, admin.as_ref())?,
            None => Vec::new(),
        };
        let header_digest = &editor.description().header_digest;
        let key = change.new.reference;
        let rotated = Rotated { volume: &target.volume, key, slot, added, removed, destroyed, header_digest };
        output::print(json, &rotated, Rotated::text)
    }

    fn replace(&self, editor: &mut HeaderEditor, change: &Change) -> Result<Replacement, ToolError> {
        let new = &change.new.secret;
        let Some(Fetched { secret: old, .. }) = &change.old else {
            // Nobody can tell any more which slots were its.
            let slot = editor.slots_opened_by(new)?.first().copied().ok_or(LuksError::WrongKey(""))?;
            return Ok(Replacement { slot, added: false, removed: Vec::new() });
        };
        if bool::from(old.expose().ct_eq(new.expose())) {
            return Err(ToolError::EqualKeys);
        }
        let kdf = self.kdf.resolve(new, editor.description().version)?;
        Ok(editor.replace_key(old, new, kdf)?)
    }
}

impl OldKey<'_> {
    /// Whether nothing tells that `new` is another key, or another version.
    fn may_be(&self, new: &KeyReference) -> bool {
        let versions = [&self.reference, new].map(|key| key.id().version());
        let differ = versions[0].is_some() && versions[1].is_some() && versions[0] != versions[1];
        self.reference.may_share_key_with(new) && !differ
    }

    /// What destroying it means.
    fn consequence(&self, volume: &Path, has_next: bool) -> String {
        let (name, volume) =
            (printable(&self.reference.to_string()), printable(&volume.display().to_string()));
        let what = match (self.reference.id().version(), has_next) {
            (Some(_), _) => format!("version {name}"),
            (None, true) => format!("every version of {name} before the new one"),
            (None, false) => format!("key {name}, with all its versions,"),
        };
        format!(
            "once {volume} opens with the new key, {what} will be destroyed, and with it whatever else only it opens"
        )
    }

    fn change_to(&self, new: &KeyReference, admin: Option<&dyn KeyAdmin>) -> Result<Change, ToolError> {
        let new = self.fetched(new.clone())?;
        Ok(Change { old: self.fetched_unless_gone(self.reference.clone(), admin)?, new })
    }

    /// Finds the newest version that the volume is to be opened with, or has one made. If an earlier rotation was cut
    /// off, that is the one that it made: told by which versions open the volume.
    fn change_to_next(&self, admin: &dyn KeyAdmin, editor: &HeaderEditor) -> Result<Change, ToolError> {
        let key = KeyId::new(self.reference.id().name());
        let newest = admin.metadata(&key)?.version;
        let before = match self.reference.id().version() {
            Some(version) if version == newest => None,
            Some(_) => {
                let old = self.fetched_unless_gone(self.reference.clone(), Some(admin))?;
                return Ok(Change { old, new: self.fetched(self.version(newest))? });
            }
            None => self.version_before(newest, admin, editor)?,
        };
        let newest = self.fetched(self.version(newest))?;
        if before.is_some() {
            return Ok(Change { old: before, new: newest });
        }
        if editor.slots_opened_by(&newest.secret)?.is_empty() {
            return Err(LuksError::WrongKey("").into());
        }
        let next = self.version(admin.rotate(&key)?.version);
        Ok(Change { old: Some(newest), new: self.fetched(next)? })
    }

    /// The newest version before `newest` that opens the volume.
    fn version_before(
        &self,
        newest: u32,
        admin: &dyn KeyAdmin,
        editor: &HeaderEditor,
    ) -> Result<Option<Fetched>, ToolError> {
        for version in self.versions_before(newest, admin)? {
            let Some(fetched) = self.fetched_unless_gone(version, Some(admin))? else { continue };
            if !editor.slots_opened_by(&fetched.secret)?.is_empty() {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
    }

    /// The versions before `newest` that are not destroyed, the newest of them first.
    fn versions_before(&self, newest: u32, admin: &dyn KeyAdmin) -> Result<Vec<KeyReference>, ToolError> {
        let mut versions = Vec::new();
        for version in (1..newest).rev().map(|version| self.version(version)) {
            if admin.metadata(version.id())?.state != KeyState::Destroyed {
                versions.push(version);
            }
        }
        Ok(versions)
    }

    /// Destroys what was given up, now that `new` opens the volume.
    fn destroy(&self, new: &KeyReference, admin: &dyn KeyAdmin) -> Result<Vec<KeyReference>, ToolError> {
        let given_up = match (self.reference.id().version(), new.id().version()) {
            (None, Some(new_version)) if self.reference.may_share_key_with(new) => {
                self.versions_before(new_version, admin)?
            }
            _ => vec![self.reference.clone()],
        };
        for key in &given_up {
            admin.destroy(key.id())?;
        }
        Ok(given_up)
    }

    fn version(&self, version: u32) -> KeyReference {
        self.reference.with_version(version)
    }

    fn fetched(&self, reference: KeyReference) -> Result<Fetched, ToolError> {
        let secret = self.managers.source(&reference)?.fetch()?;
        Ok(Fetched { reference, secret })
    }

    /// The same, or `None` if its manager says that it was destroyed: by a run before this one, say.
    fn fetched_unless_gone(
        &self,
        reference: KeyReference,
        admin: Option<&dyn KeyAdmin>,
    ) -> Result<Option<Fetched>, ToolError> {
        let is_gone = |metadata: KeyMetadata| metadata.state == KeyState::Destroyed;
        match self.managers.source(&reference)?.fetch() {
            Ok(secret) => Ok(Some(Fetched { reference, secret })),
            Err(KeyError::NotFound { .. })
                if admin.is_some_and(|admin| admin.metadata(reference.id()).is_ok_and(is_gone)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Rotated<'_> {
    fn text(&self) -> String {
        let mut said = vec![format!("{} opens slot {}", printable(&self.key.to_string()), self.slot)];
        said.extend(self.removed.iter().map(|slot| format!("slot {slot} is removed")));
        said.extend(self.destroyed.iter().map(|key| format!("destroyed {}", printable(&key.to_string()))));
        format!("{}\nheader digest {}", said.join("\n"), self.header_digest)
    }
}

fn parsed(option: &'static str, text: &str) -> Result<KeyReference, ToolError> {
    text.parse().map_err(|problem| ToolError::Reference { option, problem })
}
