//! A client for the NBD protocol, as much of it as reading a local export takes: fixed newstyle negotiation,
//! structured replies, and the `base:allocation` context, which tells where zeroes are without reading them.
//!
//! Source: the protocol's `doc/proto.md`. A connection has one request under way at a time; whoever wants more opens
//! more connections. The server is a program of this host, yet nothing it says is believed beyond what was asked:
//! every length is checked before it is read, and a read is whole or an error.

use std::io::{self, ErrorKind, Read, Write};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Both sides' `FIXED_NEWSTYLE` and `NO_ZEROES`.
const HANDSHAKE_FLAGS: u16 = 3;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERROR_BIT: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;
const CMD_BLOCK_STATUS: u16 = 7;

const CHUNK_FLAG_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// `base:allocation`: the bytes read as zeroes.
const STATE_ZERO: u32 = 2;

const ALLOCATION_CONTEXT: &[u8] = b"base:allocation";

/// Longest reply that carries no data of the export: strings are at most 4096 bytes long by the protocol.
const SMALL_REPLY_BYTES_MAX: u32 = 8192;
/// Most replies to one option, and extents in one status.
const REPLIES_MAX: usize = 1024;

/// A negotiated connection to the default export of a server.
#[derive(Debug)]
pub(super) struct NbdClient<S: Read + Write> {
    stream: S,
    size_bytes: u64,
    /// The identifier of `base:allocation`, if the server knows it.
    allocation: Option<u32>,
    cookie: u64,
}

impl<S: Read + Write> NbdClient<S> {
    /// Negotiates over `stream`, which nothing was read from yet.
    ///
    /// # Errors
    /// What the stream says, or `InvalidData` for a server that breaks the protocol or refuses the export.
    pub(super) fn new(mut stream: S) -> io::Result<Self> {
        let (magic, option_magic, flags) =
            (get_u64(&mut stream)?, get_u64(&mut stream)?, get_u16(&mut stream)?);
        if magic != NBD_MAGIC || option_magic != OPTION_MAGIC || flags & HANDSHAKE_FLAGS != HANDSHAKE_FLAGS {
            return Err(broken("it does not speak the fixed newstyle of NBD"));
        }
        stream.write_all(&u32::from(HANDSHAKE_FLAGS).to_be_bytes())?;
        let mut client = Self { stream, size_bytes: 0, allocation: None, cookie: 0 };
        client.ask_for_structured_replies()?;
        client.ask_for_allocation()?;
        client.go()?;
        Ok(client)
    }

    /// Size of the export.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads exactly `buffer.len()` bytes of the export.
    ///
    /// # Errors
    /// The server's error, or `InvalidData` when the answer is not what was asked for.
    pub(super) fn read(&mut self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len_bytes = u32::try_from(buffer.len()).expect("pieces are read");
        self.request(CMD_READ, offset_bytes, len_bytes)?;
        let mut filled = Coverage::default();
        loop {
            let chunk = self.chunk()?;
            match chunk.kind {
                CHUNK_OFFSET_DATA if chunk.len_bytes > 8 => {
                    let range_bytes = chunk.len_bytes - 8;
                    let at = get_u64(&mut self.stream)?;
                    let part = part_of(buffer, offset_bytes, at, range_bytes)?;
                    self.stream.read_exact(&mut buffer[part.clone()])?;
                    filled.add(part);
                }
                CHUNK_OFFSET_HOLE if chunk.len_bytes == 12 => {
                    let (at, range_bytes) = (get_u64(&mut self.stream)?, get_u32(&mut self.stream)?);
                    let part = part_of(buffer, offset_bytes, at, range_bytes)?;
                    buffer[part.clone()].fill(0);
                    filled.add(part);
                }
                CHUNK_NONE if chunk.len_bytes == 0 => {}
                kind if kind & CHUNK_ERROR_BIT != 0 => return Err(self.error(chunk.len_bytes)),
                _ => return Err(broken("it answered a read with something else")),
            }
            if chunk.is_last {
                return if filled.is_whole(buffer.len()) {
                    Ok(())
                } else {
                    Err(broken("a read is incomplete"))
                };
            }
        }
    }

    /// Whether the server knows that all of the range reads as zeroes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn is_zero(&mut self, offset_bytes: u64, len_bytes: u32) -> io::Result<bool> {
        let Some(context) = self.allocation else { return Ok(false) };
        self.request(CMD_BLOCK_STATUS, offset_bytes, len_bytes)?;
        let (mut zero_bytes, mut answered) = (0, false);
        loop {
            let chunk = self.chunk()?;
            match chunk.kind {
                CHUNK_BLOCK_STATUS if !answered => {
                    zero_bytes = self.leading_zeroes(context, chunk.len_bytes)?;
                    answered = true;
                }
                CHUNK_NONE if chunk.len_bytes == 0 => {}
                kind if kind & CHUNK_ERROR_BIT != 0 => return Err(self.error(chunk.len_bytes)),
                _ => return Err(broken("it answered a block status with something else")),
            }
            if chunk.is_last {
                return Ok(answered && zero_bytes >= u64::from(len_bytes));
            }
        }
    }

    /// How many bytes of zeroes the extents of a status begin with.
    fn leading_zeroes(&mut self, context: u32, len_bytes: u32) -> io::Result<u64> {
        let extents = (len_bytes as usize).saturating_sub(4) / 8;
        if len_bytes < 12 || !(len_bytes - 4).is_multiple_of(8) || extents > REPLIES_MAX {
            return Err(broken("a block status has an impossible length"));
        }
        if get_u32(&mut self.stream)? != context {
            return Err(broken("a block status is of another context"));
        }
        let (mut zero_bytes, mut only_zeroes) = (0, true);
        for _ in 0..extents {
            let (extent_bytes, state) = (get_u32(&mut self.stream)?, get_u32(&mut self.stream)?);
            only_zeroes &= state & STATE_ZERO != 0;
            zero_bytes += if only_zeroes { u64::from(extent_bytes) } else { 0 };
        }
        Ok(zero_bytes)
    }

    fn ask_for_structured_replies(&mut self) -> io::Result<()> {
        self.option(OPT_STRUCTURED_REPLY, &[])?;
        match self.option_reply(OPT_STRUCTURED_REPLY)? {
            (REP_ACK, _) => Ok(()),
            _ => Err(broken("it has no structured replies")),
        }
    }

    fn ask_for_allocation(&mut self) -> io::Result<()> {
        let mut query = 0_u32.to_be_bytes().to_vec();
        query.extend(1_u32.to_be_bytes());
        query.extend((ALLOCATION_CONTEXT.len() as u32).to_be_bytes());
        query.extend(ALLOCATION_CONTEXT);
        self.option(OPT_SET_META_CONTEXT, &query)?;
        for _ in 0..REPLIES_MAX {
            match self.option_reply(OPT_SET_META_CONTEXT)? {
                (REP_META_CONTEXT, context) => {
                    if let Some((id, ALLOCATION_CONTEXT)) = context.split_first_chunk() {
                        self.allocation = Some(u32::from_be_bytes(*id));
                    }
                }
                (REP_ACK, _) => return Ok(()),
                // Without it, zeroes have to be read to be found.
                (error, _) if error & REP_ERROR_BIT != 0 => return Ok(()),
                _ => return Err(broken("it answered a context query with something else")),
            }
        }
        Err(broken("it does not come to an end"))
    }

    fn go(&mut self) -> io::Result<()> {
        let mut wish = 0_u32.to_be_bytes().to_vec();
        wish.extend(1_u16.to_be_bytes());
        wish.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.option(OPT_GO, &wish)?;
        let mut size_bytes = None;
        for _ in 0..REPLIES_MAX {
            match self.option_reply(OPT_GO)? {
                (REP_INFO, info) => {
                    let mut rest = info.as_slice();
                    if get_u16(&mut rest)? == INFO_EXPORT {
                        size_bytes = Some(get_u64(&mut rest)?);
                    }
                }
                (REP_ACK, _) => {
                    self.size_bytes =
                        size_bytes.ok_or_else(|| broken("it does not tell the export's size"))?;
                    return Ok(());
                }
                (_, why) => {
                    return Err(io::Error::new(ErrorKind::InvalidData, String::from_utf8_lossy(&why)));
                }
            }
        }
        Err(broken("it does not come to an end"))
    }

    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)
    }

    fn option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let (magic, of_option) = (get_u64(&mut self.stream)?, get_u32(&mut self.stream)?);
        if magic != OPTION_REPLY_MAGIC || of_option != option {
            return Err(broken("it answered another option"));
        }
        let (kind, len_bytes) = (get_u32(&mut self.stream)?, get_u32(&mut self.stream)?);
        Ok((kind, self.small(len_bytes)?))
    }

    fn request(&mut self, command: u16, offset_bytes: u64, len_bytes: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut message = [0; 28];
        message[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message[6..8].copy_from_slice(&command.to_be_bytes());
        message[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        message[16..24].copy_from_slice(&offset_bytes.to_be_bytes());
        message[24..].copy_from_slice(&len_bytes.to_be_bytes());
        self.stream.write_all(&message)
    }

    /// The head of the next chunk of an answer.
    fn chunk(&mut self) -> io::Result<Chunk> {
        match get_u32(&mut self.stream)? {
            STRUCTURED_REPLY_MAGIC => {}
            SIMPLE_REPLY_MAGIC => return Err(broken("a reply is not structured")),
            _ => return Err(broken("a reply has the wrong magic number")),
        }
        let (flags, kind) = (get_u16(&mut self.stream)?, get_u16(&mut self.stream)?);
        let (cookie, len_bytes) = (get_u64(&mut self.stream)?, get_u32(&mut self.stream)?);
        if cookie != self.cookie {
            return Err(broken("it answered another request"));
        }
        Ok(Chunk { kind, len_bytes, is_last: flags & CHUNK_FLAG_DONE != 0 })
    }

    /// The error that a chunk of `len_bytes` tells. The connection is of no use afterwards.
    fn error(&mut self, len_bytes: u32) -> io::Error {
        let code = self.small(len_bytes).ok().and_then(|told| told.first_chunk().copied());
        match code.map(u32::from_be_bytes).and_then(|code| i32::try_from(code).ok()) {
            // The protocol's numbers are Linux's.
            Some(code @ 1..=133) => io::Error::from_raw_os_error(code),
            _ => broken("it reports an error without saying which"),
        }
    }

    fn small(&mut self, len_bytes: u32) -> io::Result<Vec<u8>> {
        if len_bytes > SMALL_REPLY_BYTES_MAX {
            return Err(broken("a reply is too long"));
        }
        let mut data = vec![0; len_bytes as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }
}

impl<S: Read + Write> Drop for NbdClient<S> {
    fn drop(&mut self) {
        // A courtesy: the server ends with its last client either way.
        let _ = self.request(CMD_DISC, 0, 0);
    }
}

struct Chunk {
    kind: u16,
    len_bytes: u32,
    is_last: bool,
}

/// Which parts of a buffer were filled.
#[derive(Default)]
struct Coverage(Vec<(usize, usize)>);

impl Coverage {
    fn add(&mut self, part: std::ops::Range<usize>) {
        self.0.push((part.start, part.end));
    }

    /// Whether every byte was filled, and once.
    fn is_whole(&mut self, len_bytes: usize) -> bool {
        self.0.sort_unstable();
        let end = self.0.iter().try_fold(0, |end, part| (part.0 == end).then_some(part.1));
        end == Some(len_bytes)
    }
}

/// Where in `buffer`, which is for the export's bytes from `offset_bytes` on, a chunk belongs.
fn part_of(buffer: &[u8], offset_bytes: u64, at: u64, len_bytes: u32) -> io::Result<std::ops::Range<usize>> {
    let outside = || broken("it sent what was not asked for");
    let start =
        at.checked_sub(offset_bytes).and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
    let end = start.checked_add(len_bytes as usize).ok_or_else(outside)?;
    // Empty parts would let an answer go on for ever.
    if end > buffer.len() || len_bytes == 0 { Err(outside()) } else { Ok(start..end) }
}

fn broken(how: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the image server broke the NBD protocol: {how}"))
}

fn get<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn get_u16(stream: &mut impl Read) -> io::Result<u16> {
    get(stream).map(u16::from_be_bytes)
}

fn get_u32(stream: &mut impl Read) -> io::Result<u32> {
    get(stream).map(u32::from_be_bytes)
}

fn get_u64(stream: &mut impl Read) -> io::Result<u64> {
    get(stream).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
