//! The little of libvirt's XML that is about keys.

use uuid::Uuid;

/// What a secret is called, and what it is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) name: Option<String>,
    pub(super) volume: Option<String>,
}

const ENTITIES: [(char, &str); 5] =
    [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('\'', "&apos;"), ('"', "&quot;")];

impl Description {
    /// Looks for both in what libvirt writes.
    pub(super) fn read(xml: &str) -> Self {
        let between = |start: &str, end: &str| {
            let (_, rest) = xml.split_once(start)?;
            let (text, _) = rest.split_once(end)?;
            Some(unescaped(text))
        };
        Self { name: between("<description>", "</description>"), volume: between("<volume>", "</volume>") }
    }

    /// A new secret, whose value whoever may use the daemon may read.
    pub(super) fn xml(&self, uuid: Uuid, persistent: bool) -> String {
        let ephemeral = if persistent { "no" } else { "yes" };
        let element = |before: &str, text: &Option<String>, after: &str| match text {
            Some(text) => format!("{before}{}{after}", escaped(text)),
            None => String::new(),
        };
        format!(
            "<secret ephemeral='{ephemeral}' private='no'><uuid>{uuid}</uuid>{}{}</secret>",
            element("<description>", &self.name, "</description>"),
            element("<usage type='volume'><volume>", &self.volume, "</volume></usage>"),
        )
    }
}

fn escaped(text: &str) -> String {
    let replaced = |c: char| match ENTITIES.iter().find(|(plain, _)| *plain == c) {
        Some((_, entity)) => (*entity).to_owned(),
        None => c.to_string(),
    };
    text.chars().map(replaced).collect()
}

fn unescaped(text: &str) -> String {
    // The ampersand last: what it begins has been looked for by then.
    ENTITIES
        .iter()
        .rev()
        .fold(text.to_owned(), |text, (plain, entity)| text.replace(entity, &plain.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for (name, volume) in [(None, None), (Some("vm1"), None), (Some("<&amp;'\">"), Some("&lt;volume>"))] {
            let [name, volume] = [name, volume].map(|text: Option<&str>| text.map(str::to_owned));
            let description = Description { name, volume };
            for persistent in [false, true] {
                assert_eq!(Description::read(&description.xml(Uuid::new_v4(), persistent)), description);
            }
        }
        assert!(Description { name: None, volume: None }.xml(Uuid::nil(), false).contains("ephemeral='yes'"));
    }
}
