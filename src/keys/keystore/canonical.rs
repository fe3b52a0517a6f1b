//! One byte string for each list of facts, so that a code over it stands for exactly these facts.

use jiff::Timestamp;

/// Facts in an order that is fixed for each purpose, each with its length before it: no two lists of facts for one
/// purpose give the same bytes.
pub(super) struct Canonical(Vec<u8>);

impl Canonical {
    /// Starts with what the bytes are for, so that those for one purpose never serve another.
    pub(super) fn new(purpose: &str) -> Self {
        Self(Vec::with_capacity(256)).text(purpose)
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn number(self, number: impl Into<i64>) -> Self {
        self.bytes(&number.into().to_le_bytes())
    }

    pub(super) fn time(self, time: Timestamp) -> Self {
        self.number(time.as_microsecond())
    }

    /// Absence is a list of no facts, presence one of one.
    pub(super) fn optional(self, text: Option<&str>) -> Self {
        let counted = self.number(i64::from(text.is_some()));
        match text {
            Some(text) => counted.text(text),
            None => counted,
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_facts_give_different_bytes() {
        let all = [
            Canonical::new("a").text("bc").text("d"),
            Canonical::new("a").text("b").text("cd"),
            Canonical::new("a").text("bcd"),
            Canonical::new("ab").text("c").text("d"),
            Canonical::new("a").optional(None).text("bc"),
            Canonical::new("a").optional(Some("")).text("bc"),
            Canonical::new("a").number(1).text("bc"),
            Canonical::new("a").number(256).text("bc"),
        ];
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                assert_ne!(one.as_bytes(), other.as_bytes());
            }
        }
    }
}
