//! The client against scripted servers, honest and not.

use std::io::Cursor;

use super::*;

/// Says what it was told to, whatever it is asked.
#[derive(Debug)]
struct Script {
    answers: Cursor<Vec<u8>>,
    asked: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.answers.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.asked.extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const SIZE: u64 = 1 << 30;
const CONTEXT: u32 = 0x1234;

fn greeting() -> Vec<u8> {
    [&NBD_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, data].concat()
}

fn export_info() -> Vec<u8> {
    [&[0, 0][..], &SIZE.to_be_bytes(), &[0, 1]].concat()
}

/// A whole negotiation, as QEMU answers.
fn negotiation() -> Vec<u8> {
    let context = [&CONTEXT.to_be_bytes()[..], ALLOCATION_CONTEXT].concat();
    [
        greeting(),
        option_reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]),
        option_reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &context),
        option_reply(OPT_SET_META_CONTEXT, REP_ACK, &[]),
        option_reply(OPT_GO, REP_INFO, &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]),
        option_reply(OPT_GO, REP_INFO, &export_info()),
        option_reply(OPT_GO, REP_ACK, &[]),
    ]
    .concat()
}

/// A chunk of the answer to the first request.
fn chunk(flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let head =
        [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &1_u64.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn data_chunk(flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk(flags, CHUNK_OFFSET_DATA, &[&offset.to_be_bytes()[..], data].concat())
}

fn hole_chunk(flags: u16, offset: u64, len: u32) -> Vec<u8> {
    chunk(flags, CHUNK_OFFSET_HOLE, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
}

fn status_chunk(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let extents = extents.iter().flat_map(|(len, state)| [len.to_be_bytes(), state.to_be_bytes()].concat());
    chunk(1, CHUNK_BLOCK_STATUS, &context.to_be_bytes().into_iter().chain(extents).collect::<Vec<_>>())
}

fn client(answers: &[Vec<u8>]) -> NbdClient<Script> {
    let answers = Cursor::new([negotiation(), answers.concat()].concat());
    NbdClient::new(Script { answers, asked: Vec::new() }).unwrap()
}

fn refused(answers: &[Vec<u8>]) -> io::Error {
    let answers = Cursor::new(answers.concat());
    NbdClient::new(Script { answers, asked: Vec::new() }).unwrap_err()
}

#[test]
fn negotiation_finds_size_and_context() {
    let client = client(&[]);
    assert_eq!((client.size_bytes(), client.allocation), (SIZE, Some(CONTEXT)));
    let asked = &client.stream.asked;
    assert_eq!(asked[..4], [0, 0, 0, 3]);
    assert!(asked.windows(ALLOCATION_CONTEXT.len()).any(|text| text == ALLOCATION_CONTEXT));
}

#[test]
fn a_server_without_block_status_does_as_well() {
    let mut client = NbdClient::new(Script {
        answers: Cursor::new(
            [
                greeting(),
                option_reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]),
                option_reply(OPT_SET_META_CONTEXT, REP_ERROR_BIT | 1, b"never heard of"),
                option_reply(OPT_GO, REP_INFO, &export_info()),
                option_reply(OPT_GO, REP_ACK, &[]),
            ]
            .concat(),
        ),
        asked: Vec::new(),
    })
    .unwrap();
    assert!(!client.is_zero(0, 4096).unwrap());
}

#[test]
fn negotiations_that_go_wrong_are_refused() {
    let error = refused(&[b"SSH-2.0-OpenSSH_9.9 and more".to_vec()]);
    assert!(error.to_string().contains("fixed newstyle"), "{error}");
    let start = || vec![greeting(), option_reply(OPT_STRUCTURED_REPLY, REP_ACK, &[])];
    let error = refused(&[greeting(), option_reply(OPT_STRUCTURED_REPLY, REP_ERROR_BIT | 1, &[])]);
    assert!(error.to_string().contains("structured"), "{error}");
    let error = refused(&[greeting(), option_reply(OPT_GO, REP_ACK, &[])]);
    assert!(error.to_string().contains("another option"), "{error}");
    let no_context = option_reply(OPT_SET_META_CONTEXT, REP_ACK, &[]);
    let go =
        |kind, data: &[u8]| [start(), vec![no_context.clone(), option_reply(OPT_GO, kind, data)]].concat();
    let error = refused(&go(REP_ACK, &[]));
    assert!(error.to_string().contains("size"), "{error}");
    let error = refused(&go(REP_ERROR_BIT | 6, b"no such export"));
    assert!(error.to_string().contains("no such export"), "{error}");
    assert_eq!(refused(&go(REP_INFO, &[0])).kind(), ErrorKind::UnexpectedEof);
    assert_eq!(refused(&[start(), vec![]].concat()).kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn answers_without_end_are_cut_off() {
    let start = [greeting(), option_reply(OPT_STRUCTURED_REPLY, REP_ACK, &[])].concat();
    let more = option_reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &[0; 8]).repeat(REPLIES_MAX + 1);
    assert!(refused(&[start, more]).to_string().contains("end"));
    let mut long = option_reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]);
    long.splice(16..20, u32::MAX.to_be_bytes());
    assert!(refused(&[greeting(), long]).to_string().contains("too long"));
}

#[test]
fn a_read_is_put_together_from_its_chunks() {
    let mut buffer = [0xee; 12];
    let answers = [
        data_chunk(0, 1008, &[3, 3, 3, 3]),
        data_chunk(0, 1000, &[1, 1]),
        hole_chunk(0, 1002, 6),
        chunk(1, CHUNK_NONE, &[]),
    ];
    client(&answers).read(1000, &mut buffer).unwrap();
    assert_eq!(buffer, [1, 1, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3]);
    client(&[data_chunk(1, 0, &[7; 12])]).read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 12]);
}

#[test]
fn a_read_is_whole_or_an_error() {
    let read = |answers: &[Vec<u8>]| client(answers).read(1000, &mut [0; 8]).unwrap_err().to_string();
    for (answers, why) in [
        (vec![data_chunk(1, 1000, &[1; 7])], "incomplete"),
        (vec![data_chunk(0, 1000, &[1; 8]), data_chunk(1, 1000, &[1; 8])], "incomplete"),
        (vec![data_chunk(0, 1000, &[1; 5]), data_chunk(1, 1004, &[1; 4])], "incomplete"),
        (vec![chunk(1, CHUNK_NONE, &[])], "incomplete"),
        (vec![data_chunk(1, 999, &[1; 8])], "not asked for"),
        (vec![data_chunk(1, 1001, &[1; 8])], "not asked for"),
        (vec![data_chunk(1, u64::MAX, &[1; 8])], "not asked for"),
        (vec![hole_chunk(1, 1000, u32::MAX)], "not asked for"),
        (vec![hole_chunk(0, 1000, 0)], "not asked for"),
        (vec![chunk(0, CHUNK_OFFSET_DATA, &[0; 8])], "something else"),
        (vec![chunk(1, 99, &[])], "something else"),
        (vec![[&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 12]].concat()], "not structured"),
        (vec![vec![0xff; 20]], "magic number"),
    ] {
        assert!(read(&answers).contains(why), "{why}: {}", read(&answers));
    }
    let mut other = data_chunk(1, 1000, &[1; 8]);
    other[15] = 2;
    assert!(read(&[other]).contains("another request"));
    let truncated = client(&[data_chunk(1, 1000, &[1; 8])[..24].to_vec()]).read(1000, &mut [0; 8]);
    assert_eq!(truncated.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn the_servers_error_is_the_kernels() {
    let error = |data: &[u8]| client(&[chunk(1, 1 << 15 | 1, data)]).read(0, &mut [0; 8]).unwrap_err();
    assert_eq!(error(&[0, 0, 0, 5, 0, 0]).raw_os_error(), Some(libc::EIO));
    assert_eq!(error(&[]).kind(), ErrorKind::InvalidData);
    assert_eq!(error(&[0xff; 6]).kind(), ErrorKind::InvalidData);
}

#[test]
fn zeroes_are_believed_only_for_the_whole_range() {
    let zero = STATE_ZERO | 1;
    for (extents, expected) in [
        (&[(4096, zero)][..], true),
        (&[(8192, zero)], true),
        (&[(1024, zero), (3072, STATE_ZERO)], true),
        (&[(4095, zero)], false),
        (&[(1024, zero), (1024, 0), (2048, zero)], false),
        (&[(4096, 1)], false),
        (&[(u32::MAX, zero), (u32::MAX, zero)], true),
    ] {
        let mut client = client(&[status_chunk(CONTEXT, extents)]);
        assert_eq!(client.is_zero(0, 4096).unwrap(), expected, "{extents:?}");
    }
    assert!(!client(&[chunk(1, CHUNK_NONE, &[])]).is_zero(0, 4096).unwrap());
}

#[test]
fn a_status_that_makes_no_sense_is_refused() {
    let status = |answer: Vec<u8>| client(&[answer]).is_zero(0, 4096).unwrap_err().to_string();
    assert!(status(status_chunk(CONTEXT + 1, &[(4096, 2)])).contains("another context"));
    assert!(status(status_chunk(CONTEXT, &[])).contains("impossible length"));
    assert!(status(chunk(1, CHUNK_BLOCK_STATUS, &[0; 13])).contains("impossible length"));
    assert!(status(status_chunk(CONTEXT, &vec![(1, 2); REPLIES_MAX + 1])).contains("impossible length"));
    assert!(status(data_chunk(1, 0, &[0; 8])).contains("something else"));
}
