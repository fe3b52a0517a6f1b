//! dm-crypt's plain mode: no header, the whole volume is payload.
