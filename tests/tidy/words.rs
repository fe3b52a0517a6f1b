//! Words that may not stand in the source, or only in some places.

use crate::tokens::{as_word, each_place, is_punct};
use crate::{Complaints, TextFile};

/// Where `unsafe` may stand; a folder ends in a slash. Each with the reason why it has to.
const UNSAFE_ALLOWED: &[&str] = &[
    "src/bench/openssl.rs",        // OpenSSL's functions, found by name
    "src/cipher/",                 // sectors in guest memory by raw pointer; the CPU's AES instructions
    "src/format/header_lock.rs",   // fcntl
    "src/format/luks/library.rs",  // messages of a C library
    "src/guest/",                  // the memory shared with the guest
    "src/inherited.rs",            // descriptors whose numbers come from whoever started us
    "src/io/slots.rs",             // buffers that the kernel works on
    "src/io/uring.rs",             // what the kernel is given
    "src/io/uring/",               // the same
    "src/keys/libvirt/library.rs", // libvirt's functions, found by name
    "src/locked.rs",               // locked pages
    "src/locked/",                 // the same, of a file and of a stack
    "src/sandbox/alarm.rs",        // a signal handler
    "src/main.rs",                 // the moment before there are any descriptors
    "src/virtio/virtq.rs",         // the rings
    "src/worker/volume.rs",        // the cipher on guest memory
];

/// A module with one of these names is for everything, hence for nothing.
const EMPTY_NAMES: &[&str] =
    &["common", "helper", "helpers", "manager", "managers", "misc", "shared", "util", "utils"];

const LEFTOVER_MACROS: &[&str] = &["dbg", "todo", "unimplemented"];

/// Folders that only exist on the machine of whoever wrote the line. (In pieces, or this file would name them.)
const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/tm", "p/w"),
];

/// `unsafe`, or the permission for it, outside the places that are allowed to have it.
pub(crate) fn unsafe_elsewhere(file: &TextFile) -> Complaints {
    let allowed =
        |place: &&str| file.path == **place || (place.ends_with('/') && file.path.starts_with(*place));
    if file.is_test || UNSAFE_ALLOWED.iter().any(allowed) {
        return Complaints::new();
    }
    let mut complaints = Complaints::new();
    each_place(file, |place| {
        if place.is_word("unsafe") || place.is_word("unsafe_code") {
            complaints.push(format!("{}:{}: no unsafe code here", file.path, place.line()));
        }
    });
    complaints
}

/// Modules named after nothing, by a file or by a declaration.
pub(crate) fn banned_module_names(file: &TextFile) -> Complaints {
    let mut complaints = Complaints::new();
    if crate::tokens::module_of(&file.path).iter().any(|name| EMPTY_NAMES.contains(&name.as_str())) {
        complaints.push(format!("{}: name the module after what it holds", file.path));
    }
    each_place(file, |place| {
        let [keyword, name, ..] = place.tokens else { return };
        let (Some(keyword), Some(name)) = (as_word(keyword), as_word(name)) else { return };
        if keyword == "mod" && EMPTY_NAMES.contains(&name.as_str()) {
            complaints.push(format!("{}:{}: name `{name}` after what it holds", file.path, place.line()));
        }
    });
    complaints
}

/// Macros that mark unfinished work.
pub(crate) fn leftover_macros(file: &TextFile) -> Complaints {
    let mut complaints = Complaints::new();
    each_place(file, |place| {
        let [name, bang, ..] = place.tokens else { return };
        let Some(name) = as_word(name) else { return };
        if is_punct(bang, '!') && LEFTOVER_MACROS.contains(&name.as_str()) {
            complaints.push(format!("{}:{}: `{name}!` is for work in progress", file.path, place.line()));
        }
    });
    complaints
}

/// Where nothing but fetching a key is done, so that serving a disk can neither make nor destroy one.
const FETCH_ONLY: &[&str] = &["src/format/", "src/server/", "src/cli/serve.rs", "src/cli/resolve.rs"];

/// The tools' half of the key managers' interface, where only the other half may be named.
pub(crate) fn key_administration(file: &TextFile) -> Complaints {
    let mut complaints = Complaints::new();
    if FETCH_ONLY.iter().any(|place| file.path.starts_with(place)) {
        each_place(file, |place| {
            if place.is_word("KeyAdmin") || place.is_word("admin") {
                complaints.push(format!("{}:{}: keys are only fetched here", file.path, place.line()));
            }
        });
    }
    complaints
}

/// `.unwrap()` outside tests, where `expect` states the invariant.
pub(crate) fn unwraps(file: &TextFile) -> Complaints {
    let mut complaints = Complaints::new();
    each_place(file, |place| {
        if !place.in_tests
            && place.is_word("unwrap")
            && place.before.last().is_some_and(|dot| is_punct(dot, '.'))
        {
            complaints.push(format!("{}:{}: say why in an `expect`", file.path, place.line()));
        }
    });
    complaints
}

/// Absolute paths of somebody's machine, comments included.
pub(crate) fn machine_paths(file: &TextFile) -> Complaints {
    let lines = file.text.lines().enumerate();
    let found = lines.flat_map(|(index, line)| {
        MACHINE_PATHS.iter().filter(move |path| line.contains(**path)).map(move |path| (index + 1, path))
    });
    found.map(|(line, path)| format!("{}:{line}: `{path}` is not there elsewhere", file.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_complains(rule: impl Fn(&TextFile) -> Complaints, path: &str, text: &str) {
        assert_eq!(rule(&TextFile::new(path, text)).len(), 1, "{path}: {text}");
    }

    #[track_caller]
    fn assert_content(rule: impl Fn(&TextFile) -> Complaints, path: &str, text: &str) {
        assert_eq!(rule(&TextFile::new(path, text)), [""; 0], "{path}: {text}");
    }

    #[test]
    fn complains_of_unsafe_code_elsewhere() {
        assert_complains(unsafe_elsewhere, "src/worker/mod.rs", "fn f() { unsafe { g() } }");
        assert_complains(unsafe_elsewhere, "src/worker/mod.rs", "#![expect(unsafe_code, reason = \"none\")]");
        assert_complains(unsafe_elsewhere, "src/io/slots.rs/more.rs", "unsafe fn f() {}");
        assert_content(unsafe_elsewhere, "src/worker/mod.rs", "// unsafe\nconst S: &str = \"unsafe\";");
        assert_content(unsafe_elsewhere, "src/guest/memory.rs", "unsafe fn f() {}");
        assert_content(unsafe_elsewhere, "src/io/uring/setup.rs", "unsafe fn f() {}");
    }

    #[test]
    fn complains_of_empty_names() {
        assert_complains(banned_module_names, "src/io/utils.rs", "");
        assert_complains(banned_module_names, "tests/it/common/mod.rs", "");
        assert_complains(banned_module_names, "src/io/mod.rs", "mod helper;");
        assert_content(banned_module_names, "src/io/mod.rs", "mod slots; fn helper() {}");
    }

    #[test]
    fn complains_of_leftovers() {
        assert_complains(leftover_macros, "src/io/mod.rs", concat!("fn f() { to", "do!() }"));
        assert_complains(leftover_macros, "src/io/mod.rs", concat!("fn f() { g(vec![db", "g!(1)]) }"));
        assert_content(leftover_macros, "src/io/mod.rs", "// todo!\nfn todo() { if !dbg {} }");
    }

    #[test]
    fn complains_of_key_administration_while_serving() {
        assert_complains(
            key_administration,
            "src/server/startup.rs",
            "use crate::keys::{KeyAdmin, KeyError};",
        );
        assert_complains(key_administration, "src/cli/serve.rs", "fn f() { managers.admin(&name); }");
        assert_content(key_administration, "src/cli/key.rs", "fn f() { managers.admin(&name); }");
        assert_content(
            key_administration,
            "src/server/startup.rs",
            "use crate::keys::KeySource; // no KeyAdmin",
        );
    }

    #[test]
    fn complains_of_unwraps() {
        assert_complains(unwraps, "src/io/mod.rs", "fn f() { g().unwrap(); }");
        assert_complains(unwraps, "src/io/mod.rs", "mod a { fn f() { h(g().unwrap()) } }");
        assert_content(unwraps, "src/io/mod.rs", "#[cfg(test)] mod tests { fn f() { g().unwrap() } }");
        assert_content(unwraps, "src/io/mod.rs", "fn f() { g().unwrap_or(0); unwrap() }");
    }

    #[test]
    fn complains_of_machine_paths() {
        assert_complains(machine_paths, "scripts/demo", concat!("cd /ho", "me/me/sealblk"));
        assert_complains(machine_paths, "src/lib.rs", concat!("// see /ro", "ot/notes"));
        assert_content(machine_paths, "scripts/demo", "cd /tmp; cd $HOME/x");
    }
}
