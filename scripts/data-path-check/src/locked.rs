//! Ordinary memory: interpreters know none that is locked, and these keys are no secret.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub struct Locked<T>(Box<T>);

impl<T> Locked<T> {
    pub fn new(make: impl FnOnce() -> T) -> io::Result<Self> {
        Ok(Self(Box::new(make())))
    }

    pub fn new_with<E>(fill: impl FnOnce(&mut T) -> Result<(), E>) -> Result<Self, E>
    where
        T: Default,
    {
        let mut value = Self(Box::default());
        fill(&mut value.0).map(|()| value)
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

pub fn wipe_dead_stack() {}

#[derive(Debug)]
pub struct SealedCopy(std::convert::Infallible);

impl SealedCopy {
    pub fn of(_secret: &[u8]) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn descriptor(&self) -> &OwnedFd {
        match self.0 {}
    }
}

pub fn read_sealed(_file: OwnedFd, _into: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
