//! How long a file or a function may get before it has to be cut up. Tests do not count.

use proc_macro2::{Delimiter, TokenTree};

use crate::tokens::{as_group, as_word, each_place, is_for_tests, is_punct, is_word};
use crate::{Complaints, TextFile};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that are longer, with their length: it may shrink, and never grow.
pub(crate) const LONG_FILES: &[(&str, usize)] = &[];
/// Functions that are longer, as `path: name`, with their length: it may shrink, and never grow.
pub(crate) const LONG_FUNCTIONS: &[(&str, usize)] = &[];

/// The file itself, when it is longer than it may be.
pub(crate) fn long_file(file: &TextFile, known: &[(&str, usize)]) -> Complaints {
    if file.is_test {
        return Complaints::new();
    }
    let mut test_lines = 0;
    each_place(file, |place| {
        let [keyword, name, body, ..] = place.tokens else { return };
        let Some(body) = as_group(body, Delimiter::Brace) else { return };
        if !place.in_tests && is_word(keyword, "mod") && as_word(name).is_some() && is_for_tests(place.before)
        {
            test_lines += body.span_close().end().line + 1 - place.line();
        }
    });
    judge(&file.path, &file.path, file.text.lines().count() - test_lines, FILE_LINES_MAX, known)
}

/// The functions of `file` that are longer than they may be.
pub(crate) fn long_functions(file: &TextFile, known: &[(&str, usize)]) -> Complaints {
    let mut complaints = Complaints::new();
    each_place(file, |place| {
        if place.in_tests || !place.is_word("fn") {
            return;
        }
        let Some((name, lines)) = function(place.tokens) else { return };
        let at = format!("{}:{}: `{name}`", file.path, place.line());
        let key = format!("{}: {name}", file.path);
        complaints.extend(judge(&at, &key, lines, FUNCTION_LINES_MAX, known));
    });
    complaints
}

/// Entries about files that are gone.
pub(crate) fn stale_entries(known: &[(&str, usize)], paths: &[String]) -> Complaints {
    let gone = known.iter().filter(|(path, _)| !paths.iter().any(|found| found == path));
    gone.map(|(path, _)| format!("{path} is gone: take it off the list in tests/tidy/lengths.rs")).collect()
}

/// The name of the function that starts with `tokens`, and its lines from `fn` to the closing brace; none for a
/// function pointer's type or a function without a body.
fn function(tokens: &[TokenTree]) -> Option<(String, usize)> {
    let name = as_word(tokens.get(1)?)?;
    let end = tokens.iter().position(|token| is_punct(token, ';')).unwrap_or(tokens.len());
    let body = tokens[..end].iter().find_map(|token| as_group(token, Delimiter::Brace))?;
    Some((name, body.span_close().end().line + 1 - tokens[0].span().start().line))
}

fn judge(at: &str, key: &str, lines: usize, lines_max: usize, known: &[(&str, usize)]) -> Complaints {
    let known = known.iter().find(|(name, _)| *name == key).map(|(_, lines)| *lines);
    let complaint = match known {
        Some(known) if lines <= lines_max => {
            format!("is {lines} lines: take it off its list (it was {known})")
        }
        Some(known) if lines < known => format!("shrank from {known} to {lines} lines: lower its entry"),
        Some(known) if lines > known => {
            format!("grew from {known} to {lines} lines, and was too long before")
        }
        None if lines > lines_max => format!("is {lines} lines, and {lines_max} are the most"),
        _ => return Complaints::new(),
    };
    vec![format!("{at} {complaint}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(lines: usize, tail: &str) -> TextFile {
        TextFile::new("src/io/mod.rs", &("// a line\n".repeat(lines) + tail))
    }

    #[test]
    fn complains_of_a_long_file() {
        assert_eq!(long_file(&file_of(FILE_LINES_MAX, ""), &[]), [""; 0]);
        assert_eq!(long_file(&file_of(FILE_LINES_MAX + 1, ""), &[]).len(), 1);
    }

    #[test]
    fn does_not_count_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(300));
        assert_eq!(long_file(&file_of(FILE_LINES_MAX - 1, &tests), &[]), [""; 0]);
        assert_eq!(long_file(&file_of(FILE_LINES_MAX, &tests), &[]).len(), 1);
        assert_eq!(long_file(&file_of(FILE_LINES_MAX - 1, &tests.replace("(test)", "(unix)")), &[]).len(), 1);
    }

    #[test]
    fn an_exception_can_only_shrink() {
        let file = file_of(600, "");
        assert_eq!(long_file(&file, &[("src/io/mod.rs", 600)]), [""; 0]);
        assert_eq!(long_file(&file, &[("src/io/mod.rs", 599)]).len(), 1);
        assert_eq!(long_file(&file, &[("src/io/mod.rs", 601)]).len(), 1);
        assert_eq!(long_file(&file_of(400, ""), &[("src/io/mod.rs", 600)]).len(), 1);
        assert_eq!(stale_entries(&[("src/gone.rs", 600)], &["src/lib.rs".to_owned()]).len(), 1);
    }

    #[test]
    fn complains_of_a_long_function() {
        let function =
            |lines: usize| format!("impl A {{ fn f<T>() -> T\n{{\n{}}} }}", "g();\n".repeat(lines - 3));
        let of = |text: &str| long_functions(&TextFile::new("src/io/mod.rs", text), &[]);
        assert_eq!(of(&function(FUNCTION_LINES_MAX)), [""; 0]);
        let complaints = of(&function(FUNCTION_LINES_MAX + 1));
        assert_eq!(complaints, ["src/io/mod.rs:1: `f` is 71 lines, and 70 are the most"]);
        assert_eq!(of(&format!("#[cfg(test)] mod tests {{ {} }}", function(100))), [""; 0]);
        assert_eq!(
            of(&format!("trait T {{ fn f();\n const C: fn() = {{ {} }}; }}", "g();\n".repeat(100))),
            [""; 0]
        );
    }
}
