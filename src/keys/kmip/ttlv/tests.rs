//! The examples of the specification, and what no server has any business to send.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    base16ct::mixed::decode_vec(text.replace([' ', '|', '\n'], "")).unwrap()
}

fn complaint(bytes: &[u8]) -> TtlvError {
    Item::parse(bytes).err().unwrap()
}

/// KMIP 1.2, section 9.1.2.
#[test]
fn the_examples_of_the_specification_are_read() {
    let integer = hex("42 00 20 | 02 | 00 00 00 04 | 00 00 00 08 00 00 00 00");
    assert_eq!(Item::parse(&integer).unwrap().number(), Some(8));
    let enumeration = hex("42 00 20 | 05 | 00 00 00 04 | 00 00 00 FF 00 00 00 00");
    assert_eq!(Item::parse(&enumeration).unwrap().number(), Some(255));
    let text = hex("42 00 20 | 07 | 00 00 00 0B | 48 65 6C 6C 6F 20 57 6F 72 6C 64 00 00 00 00 00");
    assert_eq!(Item::parse(&text).unwrap().text(), Some("Hello World"));
    let bytes = hex("42 00 20 | 08 | 00 00 00 03 | 01 02 03 00 00 00 00 00");
    assert_eq!(Item::parse(&bytes).unwrap().bytes(), Some(&[1, 2, 3][..]));
    let date = hex("42 00 20 | 09 | 00 00 00 08 | 00 00 00 00 47 DA 67 F8");
    assert_eq!(Item::parse(&date).unwrap().date_time(), Some(0x47da_67f8));
    let structure =
        hex("42 00 20 | 01 | 00 00 00 20 | 42 00 04 | 05 | 00 00 00 04 | 00 00 00 FE 00 00 00 00 |
                         42 00 05 | 02 | 00 00 00 04 | 00 00 00 FF 00 00 00 00");
    let item = Item::parse(&structure).unwrap();
    assert_eq!(item.items().count(), 2);
    assert_eq!(item.find(0x42_0005).unwrap().number(), Some(255));
    assert!(item.find(0x42_0006).is_none() && item.number().is_none() && item.text().is_none());
}

#[test]
fn what_is_written_is_read_again() {
    let mut buffer = [0xee; 256];
    let mut writer = Writer::new(&mut buffer);
    writer.structure(0x42_0078, |writer| {
        writer.integer(0x42_000d, 1);
        writer.structure(0x42_0079, |writer| {
            writer.text(0x42_0094, "seven!!");
            writer.bytes(0x42_0043, &[7; 9]);
            writer.enumeration(0x42_0057, 2);
        });
    });
    let filled = writer.finish().unwrap();
    let item = Item::parse(&buffer[..filled]).unwrap();
    let inner = item.find(0x42_0079).unwrap();
    assert_eq!((item.tag(), item.find(0x42_000d).unwrap().number()), (0x42_0078, Some(1)));
    assert_eq!(inner.find(0x42_0094).unwrap().text(), Some("seven!!"));
    assert_eq!(inner.find(0x42_0043).unwrap().bytes(), Some(&[7; 9][..]));
    assert_eq!(inner.find(0x42_0057).unwrap().number(), Some(2));
    for short in 0..filled {
        let mut writer = Writer::new(&mut buffer[..short]);
        writer.structure(0x42_0078, |writer| {
            writer.integer(0x42_000d, 1);
            writer.structure(0x42_0079, |writer| {
                writer.text(0x42_0094, "seven!!");
                writer.bytes(0x42_0043, &[7; 9]);
                writer.enumeration(0x42_0057, 2);
            });
        });
        assert_eq!(writer.finish(), None, "{short} bytes are enough");
    }
}

#[test]
fn every_cut_is_noticed() {
    let whole =
        hex("42007B 01 00000020 42000D 02 00000004 0000000100000000 420094 07 00000002 3432000000000000");
    assert!(Item::parse(&whole).is_ok());
    for end in 0..whole.len() {
        assert_eq!(complaint(&whole[..end]), TtlvError::Length, "cut at {end}");
    }
    assert_eq!(complaint(&[whole, vec![0; 8]].concat()), TtlvError::Length);
}

#[test]
fn lengths_that_lie_are_noticed() {
    for text in [
        "42007B 01 FFFFFFFF",
        "42007B 07 FFFFFFF9 3432000000000000",
        "42007B 01 00000010 420094 07 00000009 3432000000000000",
        "42007B 02 00000008 0000000000000000",
        "42007B 09 00000004 0000000000000000",
        "42007B 04 00000004 0000000000000000",
    ] {
        assert_eq!(complaint(&hex(text)), TtlvError::Length, "{text}");
    }
    assert_eq!(complaint(&hex("42007B 0C 00000000")), TtlvError::Unknown);
    assert_eq!(complaint(&hex("00007B 01 00000000")), TtlvError::Unknown);
    assert_eq!(complaint(&hex("420094 07 00000001 FF00000000000000")), TtlvError::NotText);
}

#[test]
fn depth_and_number_are_bounded() {
    let nested = |depth: usize| {
        let inner = (0..depth).rev().map(|below| (below * HEADER_BYTES) as u32);
        inner.flat_map(|length| [hex("42007B01"), length.to_be_bytes().to_vec()].concat()).collect::<Vec<_>>()
    };
    assert!(Item::parse(&nested(DEPTH_MAX as usize)).is_ok());
    assert_eq!(complaint(&nested(DEPTH_MAX as usize + 1)), TtlvError::TooMuch);
    assert_eq!(complaint(&nested(MESSAGE_BYTES_MAX / HEADER_BYTES)), TtlvError::TooMuch);
    let many = |count: usize| {
        let length = (count * HEADER_BYTES) as u32;
        [hex("42007B01"), length.to_be_bytes().to_vec(), hex("4200940700000000").repeat(count)].concat()
    };
    assert!(Item::parse(&many(ITEMS_MAX - 1)).is_ok());
    assert_eq!(complaint(&many(ITEMS_MAX)), TtlvError::TooMuch);
}

#[test]
fn a_message_is_not_longer_than_agreed() {
    let header = |text: &str| hex(text).try_into().unwrap();
    assert_eq!(announced_bytes(&header("42007B 01 00000010")), Some(16));
    assert_eq!(announced_bytes(&header("42007B 01 000FFFF8")), Some(MESSAGE_BYTES_MAX - HEADER_BYTES));
    assert_eq!(announced_bytes(&header("42007B 01 000FFFF9")), None);
    assert_eq!(announced_bytes(&header("42007B 07 00000010")), None);
    assert_eq!(announced_bytes(&header("48545450 2F312E31")), None);
}
