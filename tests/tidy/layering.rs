//! The one-way rule: each floor of `src/` names only the floors listed for it.

use proc_macro2::{Delimiter, TokenTree};

use crate::tokens::{as_group, as_word, each_place, is_punct};
use crate::{Complaints, TextFile};

/// Each floor with the floors that it may name, from the ground up.
pub(crate) const FLOORS: &[(&str, &[&str])] = &[
    ("geometry", &[]),
    ("inherited", &[]),
    ("locked", &[]),
    ("throttle", &[]),
    ("sandbox", &[]),
    ("guest", &[]),
    ("cipher", &["geometry", "locked"]),
    ("bench", &["cipher", "geometry"]),
    ("io", &["geometry", "throttle"]),
    ("keys", &["inherited", "locked"]),
    ("format", &["cipher", "geometry", "keys", "locked"]),
    ("virtio", &["geometry", "guest"]),
    ("worker", &["cipher", "geometry", "guest", "io", "locked", "throttle", "virtio"]),
    (
        "server",
        &[
            "cipher",
            "format",
            "geometry",
            "guest",
            "inherited",
            "io",
            "keys",
            "locked",
            "sandbox",
            "throttle",
            "virtio",
            "worker",
        ],
    ),
    ("convert", &["cipher", "format", "geometry", "inherited", "keys", "server"]),
    ("ephemeral", &["cipher", "format", "geometry", "keys", "server"]),
    (
        "cli",
        &[
            "bench",
            "cipher",
            "convert",
            "ephemeral",
            "format",
            "geometry",
            "inherited",
            "keys",
            "sandbox",
            "server",
        ],
    ),
    ("main", &["cli", "inherited", "server"]),
];

/// The floors that each place of `file` names and that its own floor may not.
pub(crate) fn complaints(file: &TextFile) -> Complaints {
    let own = crate::tokens::module_of(&file.path).first().cloned();
    // The crate's root names everything: it declares the floors.
    let Some(own) = own else { return Complaints::new() };
    let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == own) else {
        return vec![format!(
            "{}: `{own}` is no floor: give it a place in tests/tidy/layering.rs",
            file.path
        )];
    };
    let mut complaints = Complaints::new();
    each_place(file, |place| {
        for named in floors_named(place.tokens, place.module) {
            if named != own && !allowed.contains(&named.as_str()) {
                complaints.push(format!("{}:{}: `{own}` must not name `{named}`", file.path, place.line()));
            }
        }
    });
    complaints
}

/// Floors from which a floor can reach itself again.
pub(crate) fn cycles(floors: &[(&str, &[&str])]) -> Complaints {
    let mut below = Vec::new();
    let mut complaints = Complaints::new();
    for (floor, named) in floors {
        for name in *named {
            if !below.contains(name) {
                complaints.push(format!("`{floor}` stands on `{name}`, which is not listed before it"));
            }
        }
        below.push(floor);
    }
    complaints
}

/// The floors of the paths that start at `tokens` (several for `crate::{a, b}`), seen from `module`.
fn floors_named(tokens: &[TokenTree], module: &[String]) -> Vec<String> {
    let Some(first) = as_word(&tokens[0]) else { return Vec::new() };
    // Outside the library, in main.rs, the library's name stands for `crate`.
    let mut base: Vec<String> = match first.as_str() {
        "crate" | "sealblk" => Vec::new(),
        "super" => module[..module.len().saturating_sub(1)].to_vec(),
        _ => return Vec::new(),
    };
    let mut rest = &tokens[1..];
    loop {
        match rest {
            [a, b, next, tail @ ..] if is_punct(a, ':') && is_punct(b, ':') => {
                if as_word(next).as_deref() == Some("super") {
                    base.pop();
                    rest = tail;
                    continue;
                }
                return match base.first() {
                    Some(floor) => vec![floor.clone()],
                    None => first_words(next),
                };
            }
            _ => return Vec::new(),
        }
    }
}

/// What follows `crate::`: one name, the first names of a braced list, or `*`.
fn first_words(token: &TokenTree) -> Vec<String> {
    let Some(list) = as_group(token, Delimiter::Brace) else { return vec![token.to_string()] };
    let tokens: Vec<TokenTree> = list.stream().into_iter().collect();
    tokens
        .split(|token| is_punct(token, ','))
        .filter_map(|item| item.first())
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_complains(path: &str, text: &str, names: &str) {
        let complaints = complaints(&TextFile::new(path, text));
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].ends_with(&format!("must not name `{names}`")), "{complaints:?}");
    }

    #[test]
    fn complains_of_a_floor_above() {
        assert_complains("src/io/uring.rs", "use crate::worker::Turn;", "worker");
        assert_complains("src/io/uring.rs", "use crate::{geometry::SectorNumber, virtio};", "virtio");
        assert_complains("src/io/uring.rs", "use super::super::server;", "server");
        assert_complains("src/io/mod.rs", "fn f() { g(|| crate::cli::run()) }", "cli");
        assert_complains("src/io/mod.rs", "macro_rules! m { () => { $crate::keys::Secret } }", "keys");
        assert_complains("src/io/mod.rs", "mod tests { use super::super::format::plain; }", "format");
        assert_complains("src/geometry.rs", "use crate::*;", "*");
        assert_complains("src/main.rs", "fn main() { sealblk::worker::run() }", "worker");
    }

    #[test]
    fn is_content_with_floors_below_and_its_own() {
        let text = "
            //! Not [`crate::worker`], which is only mentioned.
            use crate::geometry::Geometry;
            use super::Slot;
            mod tests { use super::*; use super::super::slots; const S: &str = \"crate::cli\"; }
        ";
        assert_eq!(complaints(&TextFile::new("src/io/uring.rs", text)), [""; 0]);
        assert_eq!(complaints(&TextFile::new("src/lib.rs", "use crate::cli;")), [""; 0]);
    }

    #[test]
    fn complains_of_an_unlisted_floor_and_of_a_cycle() {
        assert_eq!(complaints(&TextFile::new("src/attic.rs", "")).len(), 1);
        assert_eq!(cycles(&[("a", &["b"]), ("b", &["a"])]).len(), 1);
    }
}
