//! Walking a Rust file token by token: comments and strings are out of the way, macros are not.

use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::TextFile;

/// A position in a file.
pub(crate) struct Place<'a> {
    /// From here to the end of the surrounding brackets.
    pub(crate) tokens: &'a [TokenTree],
    /// From the start of the surrounding brackets to here.
    pub(crate) before: &'a [TokenTree],
    /// The module that this is in, below the crate's root.
    pub(crate) module: &'a [String],
    /// In a module that only tests see.
    pub(crate) in_tests: bool,
}

impl Place<'_> {
    /// The line of the file, counted from 1.
    pub(crate) fn line(&self) -> usize {
        self.tokens[0].span().start().line
    }

    /// Whether an identifier `word` stands here.
    pub(crate) fn is_word(&self, word: &str) -> bool {
        is_word(&self.tokens[0], word)
    }
}

pub(crate) fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

pub(crate) fn is_punct(token: &TokenTree, punct: char) -> bool {
    matches!(token, TokenTree::Punct(found) if found.as_char() == punct)
}

pub(crate) fn as_word(token: &TokenTree) -> Option<String> {
    if let TokenTree::Ident(ident) = token { Some(ident.to_string()) } else { None }
}

pub(crate) fn as_group(token: &TokenTree, delimiter: Delimiter) -> Option<&Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// The module that `path` holds: `src/io/slots.rs` is `[io, slots]`.
pub(crate) fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Calls `visit` for every token of the file, outer ones first.
pub(crate) fn each_place(file: &TextFile, mut visit: impl FnMut(&Place<'_>)) {
    let stream = TokenStream::from_str(&file.text).unwrap_or_else(|error| panic!("{}: {error}", file.path));
    walk(stream, &mut module_of(&file.path), file.is_test, &mut visit);
}

fn walk(stream: TokenStream, module: &mut Vec<String>, in_tests: bool, visit: &mut impl FnMut(&Place<'_>)) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        let (before, rest) = tokens.split_at(index);
        visit(&Place { tokens: rest, before, module, in_tests });
        let TokenTree::Group(group) = token else { continue };
        match before {
            [attributes @ .., keyword, name] if is_word(keyword, "mod") => {
                module.push(name.to_string());
                walk(group.stream(), module, in_tests || is_for_tests(attributes), visit);
                module.pop();
            }
            _ => walk(group.stream(), module, in_tests, visit),
        }
    }
}

/// The attributes at the end of `before`, last one first; a visibility may follow them.
pub(crate) fn attributes(mut before: &[TokenTree]) -> impl Iterator<Item = &Group> {
    while let [rest @ .., last] = before
        && (is_word(last, "pub") || as_group(last, Delimiter::Parenthesis).is_some())
    {
        before = rest;
    }
    std::iter::from_fn(move || match before {
        [rest @ .., hash, attribute] if is_punct(hash, '#') => {
            before = rest;
            as_group(attribute, Delimiter::Bracket)
        }
        _ => None,
    })
}

/// Whether the attributes at the end of `before` include `cfg(test)`.
pub(crate) fn is_for_tests(before: &[TokenTree]) -> bool {
    attributes(before).any(|attribute| {
        let text: String = attribute.stream().to_string().split_whitespace().collect();
        text == "cfg(test)" || text.starts_with("cfg(all(test,")
    })
}

#[test]
fn knows_modules_and_tests() {
    assert_eq!(module_of("src/lib.rs"), [""; 0]);
    assert_eq!(module_of("src/io/mod.rs"), ["io"]);
    assert_eq!(module_of("src/io/uring/setup.rs"), ["io", "uring", "setup"]);

    let text = "
        mod inner { fn here() { mark() } }
        #[cfg(test)] #[expect(x, reason = \"mark\")] pub(crate) mod tests { fn f() { vec![mark()]; } }
        // mark() in a comment
    ";
    let mut seen = Vec::new();
    each_place(&TextFile::new("src/io/slots.rs", text), |place| {
        if place.is_word("mark") {
            seen.push((place.line(), place.module.join("::"), place.in_tests));
        }
    });
    assert_eq!(seen, [(2, "io::slots::inner".to_owned(), false), (3, "io::slots::tests".to_owned(), true)]);
}
