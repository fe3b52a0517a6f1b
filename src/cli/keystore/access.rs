//! `sealblk keystore grant`, `revoke` and `access`: who may do what with a key.

use std::collections::BTreeSet;

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::KeystoreArgs;
use super::user::{self, Named};
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::keys::KeyReference;
use crate::keys::keystore::{Principal, Right};

/// The options of `sealblk keystore grant`.
#[derive(Debug, Args)]
pub(super) struct GrantCommand {
    /// ID of a key, or the reference to it
    key: String,
    /// Who gets the rights: uid:N, or the name of a user of this machine
    #[arg(long, value_name = "PRINCIPAL")]
    to: String,
    /// fetch, rotate, destroy or grant; may be repeated
    #[arg(long = "right", value_name = "RIGHT", required = true, value_delimiter = ',')]
    rights: Vec<Right>,
    #[command(flatten)]
    keystore: KeystoreArgs,
}

/// The options of `sealblk keystore revoke`.
#[derive(Debug, Args)]
pub(super) struct RevokeCommand {
    /// ID of a key, or the reference to it
    key: String,
    /// Who loses the rights: uid:N, or the name of a user of this machine
    #[arg(long, value_name = "PRINCIPAL")]
    from: String,
    /// fetch, rotate, destroy or grant; may be repeated
    #[arg(long = "right", value_name = "RIGHT", required = true, value_delimiter = ',')]
    rights: Vec<Right>,
    #[command(flatten)]
    keystore: KeystoreArgs,
}

/// The options of `sealblk keystore access`.
#[derive(Debug, Args)]
pub(super) struct AccessCommand {
    /// ID of a key, or the reference to it
    key: String,
    #[command(flatten)]
    keystore: KeystoreArgs,
}

/// What `grant --json` prints.
#[derive(Debug, Serialize)]
struct Granted {
    reference: KeyReference,
    principal: String,
    granted: Vec<&'static str>,
    /// All that the principal has now.
    rights: Vec<&'static str>,
}

/// What `revoke --json` prints.
#[derive(Debug, Serialize)]
struct Revoked {
    reference: KeyReference,
    principal: String,
    revoked: Vec<&'static str>,
    /// What the principal has left.
    rights: Vec<&'static str>,
}

/// What `access --json` prints.
#[derive(Debug, Serialize)]
struct Access {
    reference: KeyReference,
    access: Vec<Holder>,
}

/// One who may do something with the key.
#[derive(Debug, Serialize)]
struct Holder {
    #[serde(serialize_with = "written")]
    principal: Principal,
    rights: Vec<&'static str>,
}

impl GrantCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let reference = self.keystore.reference(&self.key)?;
        let named = Named::parse("--to", &self.to)?;
        let rights = BTreeSet::from_iter(self.rights.iter().copied());
        let manager = self.keystore.open()?;
        let key = reference.id();
        let held = manager.with_key(key, |keystore| keystore.grant(key, &named.principal, &rights))?;
        let principal = named.principal.to_string();
        let granted = Granted { reference, principal, granted: names(&rights), rights: names(&held) };
        output::print(self.keystore.json, &granted, |granted| {
            outcome(&named, &granted.reference, &granted.rights)
        })
    }
}

impl RevokeCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let reference = self.keystore.reference(&self.key)?;
        let named = Named::parse("--from", &self.from)?;
        let rights = BTreeSet::from_iter(self.rights.iter().copied());
        let manager = self.keystore.open()?;
        let key = reference.id();
        let held = manager.with_key(key, |keystore| keystore.revoke(key, &named.principal, &rights))?;
        let principal = named.principal.to_string();
        let revoked = Revoked { reference, principal, revoked: names(&rights), rights: names(&held) };
        output::print(self.keystore.json, &revoked, |revoked| {
            outcome(&named, &revoked.reference, &revoked.rights)
        })
    }
}

impl AccessCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let reference = self.keystore.reference(&self.key)?;
        let manager = self.keystore.open()?;
        let key = reference.id();
        let pairs = manager.with_key(key, |keystore| keystore.access(key))?;
        let mut holders: Vec<Holder> = Vec::new();
        for (principal, right) in pairs {
            match holders.last_mut().filter(|holder| holder.principal == principal) {
                Some(holder) => holder.rights.push(right.name()),
                None => holders.push(Holder { principal, rights: vec![right.name()] }),
            }
        }
        let access = Access { reference, access: holders };
        output::print(self.keystore.json, &access, |access| table(&access.access))
    }
}

fn names(rights: &BTreeSet<Right>) -> Vec<&'static str> {
    rights.iter().map(|right| right.name()).collect()
}

/// What a principal has now, for people.
fn outcome(named: &Named, reference: &KeyReference, rights: &[&str]) -> String {
    let key = printable(&reference.to_string());
    match rights {
        [] => format!("{named} has no right to {key}"),
        rights => format!("{named} has these rights to {key}: {}", rights.join(", ")),
    }
}

fn table(holders: &[Holder]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["PRINCIPAL", "USER", "RIGHTS"]);
    for Holder { principal, rights } in holders {
        let user = user::name_of(principal).map_or("-".to_owned(), |name| printable(&name));
        table.add_row([principal.to_string(), user, rights.join(", ")]);
    }
    table.to_string()
}

fn written<S: serde::Serializer>(principal: &Principal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(principal)
}
