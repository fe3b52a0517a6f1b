//! Header areas saved to files and brought back. The files are those of `cryptsetup luksHeaderBackup`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::description::{Description, Segment};
use super::edit_error::EditError;
use super::error::LuksError;
use super::image::HeaderImage;
use super::transfer::Transfer;
use super::unlock::Header;

/// Writes the header area that `header` was read from to `file`.
///
/// # Errors
/// When the file cannot be written.
pub fn save(header: &Header, file: &File) -> io::Result<()> {
    let snapshot = header.snapshot();
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < snapshot.area_bytes() {
        let wanted = piece.len().min(usize::try_from(snapshot.area_bytes() - at).unwrap_or(usize::MAX));
        snapshot.memory().read_exact_at(&mut piece[..wanted], at)?;
        file.write_all_at(&piece[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}

/// Reads a backup.
///
/// # Errors
/// [`EditError::NoBackup`] when it is none, or damaged.
pub fn load(path: &Path) -> Result<Header, EditError> {
    let failed = |source| EditError::NoBackup { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(|error| failed(LuksError::Read(error)))?;
    let file_bytes = file.seek(SeekFrom::End(0)).map_err(|error| failed(LuksError::Read(error)))?;
    Header::read(&file, file_bytes).map_err(failed)
}

/// Checks that `backup` is of the volume whose header is `present` (none where it is lost).
///
/// # Errors
/// [`EditError::Misfit`] with every difference that would give another volume: UUID, version, and all that data is
/// read by. Slots, tokens and labels may differ: they are what a backup brings back.
pub fn check_fit(backup: &Description, present: &Description) -> Result<(), EditError> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, of_backup: String, of_volume: String| {
        if of_backup != of_volume {
            differences.push(format!("its {what} is {of_backup}, the volume's {of_volume}"));
        }
    };
    compare("version", backup.version.to_string(), present.version.to_string());
    compare("UUID", backup.uuid.clone(), present.uuid.clone());
    compare("payload", payload(&backup.segments), payload(&present.segments));
    match differences.is_empty() {
        true => Ok(()),
        false => Err(EditError::Misfit(differences.join("; "))),
    }
}

fn payload(segments: &[Segment]) -> String {
    let described = segments.iter().map(|segment| {
        let Segment { cipher, key_bits, offset_bytes, length_bytes, sector_bytes, iv_tweak, .. } = segment;
        let cipher = cipher.as_deref().unwrap_or("none");
        let key_bits = key_bits.map_or("?".to_owned(), |bits| bits.to_string());
        let length = length_bytes.map_or("to the end".to_owned(), |bytes| format!("{bytes} bytes"));
        format!(
            "{cipher} with {key_bits} bits and sectors of {sector_bytes} from byte {offset_bytes}, {length}, \
             IVs from {iv_tweak}"
        )
    });
    described.collect::<Vec<_>>().join(" + ")
}

/// Replaces what lies on `volume` (a volume or detached header, open for writing and ours alone) by the header area
/// that `backup` was read from. Interrupted, it leaves a volume without a recognisable header, and can be repeated.
///
/// # Errors
/// When the volume cannot be written, or what was written does not read back.
pub fn restore(volume: &File, backup: &Header) -> Result<Header, EditError> {
    put(volume, backup, 0)?;
    let volume_bytes = (&mut &*volume).seek(SeekFrom::End(0)).map_err(LuksError::Read)?;
    let restored = Header::read(volume, volume_bytes)?;
    match restored.snapshot().digest() == backup.snapshot().digest() {
        true => Ok(restored),
        false => Err(EditError::Verification("the header")),
    }
}

/// Writes `header` to `volume`, which has none worth keeping, and zeroes what follows it up to `zero_until_bytes`.
/// Until the end, the volume is recognisable as nothing.
///
/// # Errors
/// When the volume cannot be written.
pub fn put(volume: &File, header: &Header, zero_until_bytes: u64) -> Result<(), EditError> {
    let image = HeaderImage::copy_of(header.snapshot()).map_err(EditError::Memory)?;
    let transfer = Transfer::replacing(volume, &image, zero_until_bytes).map_err(EditError::Write)?;
    transfer.apply(&image, volume).map_err(EditError::Write)
}
