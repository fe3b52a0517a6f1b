//! From memory to the volume, in an order that leaves something usable, or nothing recognisable, at every moment.
//!
//! An image is written in stages, each durable before the next begins, so that whatever a crash keeps of the writes
//! of one stage, all earlier stages are whole and none of the later ones has begun.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::image::{BLOCK_BYTES, HeaderImage};
use super::on_disk::{Version, has_second_magic};

/// Most bytes in one write.
const WRITE_BYTES_MAX: u64 = 1 << 20;

/// One change of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// What the image has there.
    Image(Range<u64>),
    /// Zeroes.
    Zero(Range<u64>),
}

/// Writes in stages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) stages: Vec<Vec<Write>>,
}

impl Transfer {
    /// Replaces whatever lies on `volume` by `image`, and zeroes what follows up to `zero_until_bytes`. First the old
    /// header is made unrecognisable, then everything is written but the blocks by which the new one is
    /// recognised, then those: LUKS2's second copy before the first.
    pub(super) fn replacing(volume: &File, image: &HeaderImage, zero_until_bytes: u64) -> io::Result<Self> {
        let area_bytes = image.area_bytes();
        let first = 0..BLOCK_BYTES.min(area_bytes);
        let marks = match (image.version(), image.copy_bytes()?) {
            (Version::Luks1, _) => vec![first],
            (Version::Luks2, second) => vec![second..second + BLOCK_BYTES, first],
        };
        let mut erased = marks.clone();
        for second in second_copies(volume, area_bytes)? {
            let mark = second..second + BLOCK_BYTES;
            if !marks.contains(&mark) {
                erased.push(mark);
            }
        }
        let mut body: Vec<Write> = gaps(&marks, area_bytes).into_iter().map(Write::Image).collect();
        if zero_until_bytes > area_bytes {
            body.push(Write::Zero(area_bytes..zero_until_bytes));
        }
        let mut stages = vec![erased.into_iter().map(Write::Zero).collect(), body];
        stages.extend(marks.into_iter().map(|mark| vec![Write::Image(mark)]));
        Ok(Self { stages })
    }

    /// Turns `before`, which lies on the volume, into `after`: first the slots' areas, then LUKS2's second copy of the
    /// header, then the first.
    ///
    /// So a slot that is new is complete before the header names it, one that is removed is destroyed before the
    /// header forgets it, and one copy of a LUKS2 header is whole at every moment. LUKS1 has one copy without a
    /// checksum, in one block; of its bytes none but those of the changed slot are different, so that a torn write
    /// can harm no other slot.
    pub(super) fn updating(before: &HeaderImage, after: &HeaderImage) -> io::Result<Self> {
        let copy_bytes = after.copy_bytes()?;
        let first = 0..copy_bytes;
        let copies = match after.version() {
            Version::Luks1 => vec![first],
            Version::Luks2 => vec![copy_bytes..2 * copy_bytes, first],
        };
        let header_bytes = copies.len() as u64 * copy_bytes;
        let changed = after.blocks_unlike(before)?;
        let within = |part: Range<u64>| -> Vec<Write> {
            let cut = changed.iter().map(|range| range.start.max(part.start)..range.end.min(part.end));
            cut.filter(|range| !range.is_empty()).map(Write::Image).collect()
        };
        let mut stages = vec![within(header_bytes..after.area_bytes())];
        stages.extend(copies.into_iter().map(within));
        stages.retain(|stage| !stage.is_empty());
        Ok(Self { stages })
    }

    /// The byte before which all writes end.
    pub(super) fn end_bytes(&self) -> u64 {
        let ends = self.stages.iter().flatten().map(|write| match write {
            Write::Image(range) | Write::Zero(range) => range.end,
        });
        ends.max().unwrap_or(0)
    }

    /// Makes the changes, each stage durable before the next.
    pub(super) fn apply(&self, image: &HeaderImage, volume: &File) -> io::Result<()> {
        for stage in &self.stages {
            for write in stage {
                write_in_pieces(write, image, volume)?;
            }
            volume.sync_all()?;
        }
        Ok(())
    }
}

fn write_in_pieces(write: &Write, image: &HeaderImage, volume: &File) -> io::Result<()> {
    let (Write::Image(range) | Write::Zero(range)) = write;
    let mut at = range.start;
    while at < range.end {
        let piece = at..(at + WRITE_BYTES_MAX).min(range.end);
        let bytes = match write {
            Write::Image(_) => image.read(piece.clone())?,
            Write::Zero(_) => vec![0; usize::try_from(piece.end - piece.start).map_err(io::Error::other)?],
        };
        volume.write_all_at(&bytes, piece.start)?;
        at = piece.end;
    }
    Ok(())
}

/// Where second copies of a LUKS2 header begin on `volume`, below `end_bytes`.
fn second_copies(volume: &File, end_bytes: u64) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for power in 14..=22 {
        let offset_bytes = 1 << power;
        let mut magic = [0; 8];
        if offset_bytes + BLOCK_BYTES <= end_bytes
            && volume.read_at(&mut magic, offset_bytes)? == magic.len()
            && has_second_magic(&magic)
        {
            found.push(offset_bytes);
        }
    }
    Ok(found)
}

/// What `marks` leave of everything below `end_bytes`.
fn gaps(marks: &[Range<u64>], end_bytes: u64) -> Vec<Range<u64>> {
    let mut marks = marks.to_vec();
    marks.sort_by_key(|mark| mark.start);
    let starts = std::iter::once(0).chain(marks.iter().map(|mark| mark.end));
    let ends = marks.iter().map(|mark| mark.start).chain(std::iter::once(end_bytes));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}
