//! Tag, type, length, value: how messages are written (KMIP 1.2, section 9.1).
//!
//! Nothing is copied and nothing is allocated: key bytes stay in the buffer of the message, which its owner wipes. A
//! message is checked as a whole before anything in it is looked at; then looking cannot fail, only not find.

/// Longest message that is read, whatever it says about itself.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes before each value: tag, type, length.
pub(super) const HEADER_BYTES: usize = 8;

/// Structures within structures. An answer to what is asked here has 7.
const DEPTH_MAX: u32 = 16;

/// Items of one message, more than any answer needs.
const ITEMS_MAX: usize = 1 << 16;

const STRUCTURE: u8 = 1;
const INTEGER: u8 = 2;
const LONG_INTEGER: u8 = 3;
const BIG_INTEGER: u8 = 4;
const ENUMERATION: u8 = 5;
const BOOLEAN: u8 = 6;
const TEXT: u8 = 7;
const BYTES: u8 = 8;
const DATE_TIME: u8 = 9;
const INTERVAL: u8 = 10;

/// One item of a checked message. Has no `Debug`: it may hold a key.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    tag: u32,
    kind: u8,
    value: &'a [u8],
}

/// Why bytes are no message. Says nothing of what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TtlvError {
    /// It ends within an item, or goes on behind the last.
    #[error("lengths in it do not add up")]
    Length,
    /// A tag or type that does not exist.
    #[error("it holds what KMIP does not know")]
    Unknown,
    /// More than any answer has.
    #[error("it is nested too deep, or has too many parts")]
    TooMuch,
    /// Text that is none.
    #[error("text in it is not UTF-8")]
    NotText,
}

impl<'a> Item<'a> {
    /// Checks `bytes`, one whole item.
    ///
    /// # Errors
    /// See [`TtlvError`].
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, TtlvError> {
        let mut left = ITEMS_MAX;
        let (item, rest) = take(bytes)?;
        if !rest.is_empty() {
            return Err(TtlvError::Length);
        }
        check(item, DEPTH_MAX, &mut left)?;
        Ok(item)
    }

    /// What it is.
    pub(super) fn tag(self) -> u32 {
        self.tag
    }

    /// The items of a structure; none of anything else.
    pub(super) fn items(self) -> impl Iterator<Item = Item<'a>> {
        let mut rest = if self.kind == STRUCTURE { self.value } else { &[] };
        std::iter::from_fn(move || {
            let (item, behind) = take(rest).ok()?;
            rest = behind;
            Some(item)
        })
    }

    /// The first item of a structure that has that tag.
    pub(super) fn find(self, tag: u32) -> Option<Self> {
        self.items().find(|item| item.tag == tag)
    }

    /// A number, or one of several values.
    pub(super) fn number(self) -> Option<u32> {
        let bytes = match self.kind {
            INTEGER | ENUMERATION | INTERVAL => self.value.first_chunk()?,
            _ => return None,
        };
        Some(u32::from_be_bytes(*bytes))
    }

    /// Seconds since 1970.
    pub(super) fn date_time(self) -> Option<i64> {
        (self.kind == DATE_TIME).then(|| self.value.first_chunk()).flatten().map(|b| i64::from_be_bytes(*b))
    }

    /// Text.
    pub(super) fn text(self) -> Option<&'a str> {
        if self.kind == TEXT { str::from_utf8(self.value).ok() } else { None }
    }

    /// Bytes.
    pub(super) fn bytes(self) -> Option<&'a [u8]> {
        (self.kind == BYTES).then_some(self.value)
    }
}

/// How long the value is that follows a header of [`HEADER_BYTES`] bytes, as far as a structure may be.
pub(super) fn announced_bytes(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let [_, _, _, kind, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (kind == STRUCTURE && length <= MESSAGE_BYTES_MAX - HEADER_BYTES).then_some(length)
}

/// The first item of `bytes`, and what is behind it.
fn take(bytes: &[u8]) -> Result<(Item<'_>, &[u8]), TtlvError> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(TtlvError::Length)?;
    let [a, b, c, kind, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| TtlvError::Length)?;
    let padded = length.checked_next_multiple_of(8).ok_or(TtlvError::Length)?;
    if padded > rest.len() {
        return Err(TtlvError::Length);
    }
    let (value, rest) = rest.split_at(padded);
    Ok((Item { tag: u32::from_be_bytes([0, a, b, c]), kind, value: &value[..length] }, rest))
}

fn check(item: Item<'_>, depth_left: u32, items_left: &mut usize) -> Result<(), TtlvError> {
    *items_left = items_left.checked_sub(1).ok_or(TtlvError::TooMuch)?;
    // The protocol's own tags, and those of extensions.
    if !matches!(item.tag >> 16, 0x42 | 0x54) {
        return Err(TtlvError::Unknown);
    }
    let is_sound = match item.kind {
        STRUCTURE => {
            let depth_left = depth_left.checked_sub(1).ok_or(TtlvError::TooMuch)?;
            let mut rest = item.value;
            while !rest.is_empty() {
                let (inner, behind) = take(rest)?;
                check(inner, depth_left, items_left)?;
                rest = behind;
            }
            true
        }
        INTEGER | ENUMERATION | INTERVAL => item.value.len() == 4,
        LONG_INTEGER | BOOLEAN | DATE_TIME => item.value.len() == 8,
        BIG_INTEGER => item.value.len().is_multiple_of(8),
        TEXT if str::from_utf8(item.value).is_err() => return Err(TtlvError::NotText),
        TEXT | BYTES => true,
        _ => return Err(TtlvError::Unknown),
    };
    if is_sound { Ok(()) } else { Err(TtlvError::Length) }
}

/// Writes a message into a buffer of somebody who wipes it.
pub(super) struct Writer<'a> {
    buffer: &'a mut [u8],
    /// How far it is written; more than the buffer has once something did not fit.
    filled_bytes: usize,
}

impl<'a> Writer<'a> {
    /// Begins at the start of `buffer`.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, filled_bytes: 0 }
    }

    /// How many bytes were written; `None` when the buffer was too small.
    pub(super) fn finish(self) -> Option<usize> {
        (self.filled_bytes <= self.buffer.len()).then_some(self.filled_bytes)
    }

    /// A structure of what `write` writes.
    pub(super) fn structure(&mut self, tag: u32, write: impl FnOnce(&mut Self)) {
        let start = self.filled_bytes;
        self.header(tag, STRUCTURE, 0);
        write(self);
        let length = (self.filled_bytes - start).saturating_sub(HEADER_BYTES);
        if let Some(place) = self.buffer.get_mut(start + 4..start + HEADER_BYTES) {
            place.copy_from_slice(&length_field(length));
        }
    }

    /// A number.
    pub(super) fn integer(&mut self, tag: u32, value: u32) {
        self.item(tag, INTEGER, &value.to_be_bytes());
    }

    /// One of several values.
    pub(super) fn enumeration(&mut self, tag: u32, value: u32) {
        self.item(tag, ENUMERATION, &value.to_be_bytes());
    }

    /// Text.
    pub(super) fn text(&mut self, tag: u32, value: &str) {
        self.item(tag, TEXT, value.as_bytes());
    }

    /// Bytes.
    pub(super) fn bytes(&mut self, tag: u32, value: &[u8]) {
        self.item(tag, BYTES, value);
    }

    fn item(&mut self, tag: u32, kind: u8, value: &[u8]) {
        self.header(tag, kind, value.len());
        self.put(value);
        self.put(&[0; 8][..value.len().next_multiple_of(8) - value.len()]);
    }

    fn header(&mut self, tag: u32, kind: u8, length: usize) {
        let [_, a, b, c] = tag.to_be_bytes();
        self.put(&[a, b, c, kind]);
        self.put(&length_field(length));
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.filled_bytes.saturating_add(bytes.len());
        if let Some(place) = self.buffer.get_mut(self.filled_bytes..end) {
            place.copy_from_slice(bytes);
        }
        self.filled_bytes = end;
    }
}

/// Buffers are far below 4 GiB: what does not fit into one is not sent.
fn length_field(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests;
