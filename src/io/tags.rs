//! Which tags are between start and completion, for the engines that need no more than that of them.

use super::Tag;

/// The tags in use.
#[derive(Debug)]
pub(super) struct Tags {
    in_use: Vec<bool>,
}

impl Tags {
    pub(super) fn new(max_ops: u32) -> Self {
        Self { in_use: vec![false; max_ops as usize] }
    }

    /// # Panics
    /// When the tag is out of range or in use: the caller mixes up its operations, and going on would hand
    /// one request's bytes to another.
    pub(super) fn claim(&mut self, tag: Tag) {
        let max_ops = self.in_use.len();
        let in_use = self.in_use.get_mut(tag.0 as usize);
        let in_use = in_use.unwrap_or_else(|| panic!("{tag:?} is not below the {max_ops} operations agreed"));
        assert!(!*in_use, "{tag:?} is in use");
        *in_use = true;
    }

    pub(super) fn release(&mut self, tag: Tag) {
        self.in_use[tag.0 as usize] = false;
    }
}
