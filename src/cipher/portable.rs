//! AES-XTS over the `aes` crate's block-parallel interface.
