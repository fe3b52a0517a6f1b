//! `clouds.yaml` and `secure.yaml`, as OpenStack's tools read them, from fewer places: never from the current folder.
//!
//! A file may hold passwords: then nobody but its owner may be able to read it. While it is read it is in memory that is
//! wiped; the parser's tree borrows from there, except for quoted text with escapes, which it keeps a copy of.

use std::env;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use zeroize::Zeroizing;

use super::profile::{SECRETS, Settings, TEXTS};
use crate::keys::owned_file::{self, Others};
use crate::keys::{KeyError, ManagerName, Secret};

/// Longest file.
const FILE_BYTES_MAX: usize = 256 << 10;

/// Adds what the entry `cloud` says. Without a `file` the user's own is taken, else that of the host; `secure.yaml` beside it
/// adds to it.
pub(super) fn read(
    manager: &ManagerName,
    file: Option<&Path>,
    cloud: &str,
    settings: &mut Settings,
) -> Result<(), KeyError> {
    let found = match file {
        Some(path) => text(manager, path)?.map(|found| (path.to_owned(), found)),
        None => first_of(manager, &usual_paths())?,
    };
    let (path, found) = found.ok_or_else(|| {
        let problem = match file {
            Some(path) => format!("there is no file {}", path.display()),
            None => "there is no clouds.yaml in ~/.config/openstack or /etc/openstack".to_owned(),
        };
        KeyError::not_allowed(manager.clone(), problem, "name one as `clouds-file` of its profile")
    })?;
    let mut entries = vec![File { manager, path: &path, text: found }];
    let secure = path.with_file_name("secure.yaml");
    if let Some(text) = text(manager, &secure)? {
        // What is secret goes before.
        entries.insert(0, File { manager, path: &secure, text });
    }
    let mut is_there = false;
    for file in &entries {
        is_there |= file.add(cloud, settings)?;
    }
    match is_there {
        true => Ok(()),
        false => Err(KeyError::not_allowed(
            manager.clone(),
            format!("there is no cloud of the name it gives in {}", path.display()),
            "correct `cloud` in its profile",
        )),
    }
}

struct File<'a> {
    manager: &'a ManagerName,
    path: &'a Path,
    text: Text,
}

struct Text {
    yaml: Zeroizing<String>,
    /// What speaks against keeping a secret in it.
    exposure: Option<owned_file::Refusal>,
}

impl File<'_> {
    /// Whether there is such a cloud.
    fn add(&self, cloud: &str, settings: &mut Settings) -> Result<bool, KeyError> {
        let documents = Yaml::load_from_str(&self.text.yaml).map_err(|error| {
            // The parser's message may repeat what it read.
            let line = error.marker().line();
            self.refused(format!("line {line} is no YAML"), "correct it there")
        })?;
        let cloud = documents.first().and_then(|root| member(member(root, "clouds")?, cloud));
        let Some(cloud) = cloud else { return Ok(false) };
        let value =
            |name| member(cloud, "auth").and_then(|auth| member(auth, name)).or_else(|| member(cloud, name));
        for name in TEXTS {
            settings.add_text(name, value(name).and_then(plain_text));
        }
        for name in SECRETS {
            if let Some(value) = value(name) {
                settings.add_secret(name, self.secret(name, value)?);
            }
        }
        Ok(true)
    }

    fn secret(&self, name: &str, value: &Yaml<'_>) -> Result<Secret, KeyError> {
        if let Some(exposure) = &self.text.exposure {
            return Err(self.refused(format!("it holds {name}, and {}", exposure.problem), &exposure.remedy));
        }
        let Yaml::Value(Scalar::String(text)) = value else {
            return Err(self.refused(format!("{name} is no text"), "put it between quotes"));
        };
        Secret::read_from(text.as_bytes()).map_err(|error| KeyError::of_secret(self.manager.clone(), error))
    }

    fn refused(&self, problem: impl std::fmt::Display, remedy: &str) -> KeyError {
        KeyError::not_allowed(self.manager.clone(), format!("{}: {problem}", self.path.display()), remedy)
    }
}

/// What the mapping `node` says of `name`.
fn member<'a, 'y>(node: &'a Yaml<'y>, name: &str) -> Option<&'a Yaml<'y>> {
    node.as_mapping()?.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn plain_text(value: &Yaml<'_>) -> Option<String> {
    match value {
        Yaml::Value(Scalar::String(text)) => Some(text.clone().into_owned()),
        Yaml::Value(Scalar::Integer(number)) => Some(number.to_string()),
        Yaml::Value(Scalar::Boolean(value)) => Some(value.to_string()),
        _ => None,
    }
}

fn usual_paths() -> Vec<PathBuf> {
    let own = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".config")));
    let folders = own.into_iter().chain([PathBuf::from("/etc")]);
    folders.map(|folder| folder.join("openstack/clouds.yaml")).collect()
}

fn first_of(manager: &ManagerName, paths: &[PathBuf]) -> Result<Option<(PathBuf, Text)>, KeyError> {
    for path in paths {
        if let Some(text) = text(manager, path)? {
            return Ok(Some((path.clone(), text)));
        }
    }
    Ok(None)
}

/// The file at `path`, if there is one.
fn text(manager: &ManagerName, path: &Path) -> Result<Option<Text>, KeyError> {
    let refused = |problem: String, remedy: &str| {
        KeyError::not_allowed(manager.clone(), format!("{}: {problem}", path.display()), remedy)
    };
    let file = match owned_file::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| refused(error.to_string(), "let this user read it"))?,
    };
    let metadata =
        file.metadata().map_err(|error| refused(error.to_string(), "look at where it is stored"))?;
    owned_file::check(&metadata, path, Others::MayRead)
        .map_err(|refusal| refused(refusal.problem, &refusal.remedy))?;
    let mut yaml = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX + 1));
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_string(&mut yaml)
        .map_err(|error| refused(error.to_string(), "write it in UTF-8"))?;
    if yaml.len() > FILE_BYTES_MAX {
        return Err(refused(format!("it is longer than {FILE_BYTES_MAX} bytes"), "shorten it"));
    }
    Ok(Some(Text { yaml, exposure: owned_file::check(&metadata, path, Others::MayNothing).err() }))
}
