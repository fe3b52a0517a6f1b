//! Sizes as people write them: `10G`.

use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes: plain, or with the suffix K, M, G, T or P for powers of 1024 (KiB and so on are the same), or
/// KB, MB, GB, TB or PB for powers of 1000, as `truncate` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeInFile")]
pub(in crate::cli) struct ByteSize(pub(in crate::cli) u64);

/// As it may stand in a file: a number of bytes, or text as on the command line.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes, or text such as \"100M\"")]
enum SizeInFile {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeInFile> for ByteSize {
    type Error = &'static str;

    fn try_from(written: SizeInFile) -> Result<Self, Self::Error> {
        match written {
            SizeInFile::Bytes(bytes) => Ok(Self(bytes)),
            SizeInFile::Text(text) => text.parse(),
        }
    }
}

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const UNITS: &str = "KMGTP";
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| "a number is needed, with a suffix such as G")?;
        let mut letters = suffix.chars();
        let power = match letters.next().map(|unit| UNITS.find(unit.to_ascii_uppercase())) {
            None => 0,
            Some(Some(index)) => u32::try_from(index).expect("there are five units") + 1,
            Some(None) => return Err("the suffixes are K, M, G, T, P, and the same with iB or B"),
        };
        let base: u64 = match letters.as_str() {
            "" | "iB" => 1024,
            "B" => 1000,
            _ => return Err("the suffixes are K, M, G, T, P, and the same with iB or B"),
        };
        let bytes = base.checked_pow(power).and_then(|unit| unit.checked_mul(number));
        bytes.map(Self).ok_or("that is too large")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_those_of_truncate() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1K", 1024),
            ("1k", 1024),
            ("2KiB", 2048),
            ("3KB", 3000),
            ("10G", 10 << 30),
            ("5TB", 5_000_000_000_000),
            ("1P", 1 << 50),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in
            ["", "G", "-1", "1.5G", "1X", "1Gb", "1 G", "1GiBs", "99999999999P", "18446744073709551616"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
