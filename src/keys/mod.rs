//! Where keys come from. Start-up only: the data path never hears of key managers.

/// Key material: locked, wiped, redacted.
#[derive(Debug)]
pub struct Secret;
