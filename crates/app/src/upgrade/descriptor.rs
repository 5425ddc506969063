//! Descriptors that a process leaves to the programs that it starts.

use std::{
    env, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::Context;

/// Takes the descriptor whose number is in this environment variable. Returns `None` when it is not set.
///
/// # Errors
/// When it is no number, or no open descriptor.
pub(crate) fn inherited_descriptor(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(number) = env::var_os(variable) else { return Ok(None) };
    let number = number.to_str().and_then(|number| number.parse().ok()).filter(|number| *number > 2);
    let number: i32 = number
        .with_context(|| format!("{variable} is set by a process that upgrades: do not set it yourself"))?;
    #[expect(unsafe_code, reason = "an inherited descriptor has nothing but its number")]
    // SAFETY: the process that started this one left it open for this purpose, and this is called once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    // No program that this one starts inherits it by chance. Fails where there is no such descriptor.
    if let Err(errno) = rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC) {
        // There is nothing to close.
        std::mem::forget(descriptor);
        return Err(errno).with_context(|| format!("{variable}: descriptor {number} is not open"));
    }
    Ok(Some(descriptor))
}

/// Leaves this descriptor open in the programs that are started while the value lives.
pub(super) struct Inheritable<'a>(&'a OwnedFd);

impl<'a> Inheritable<'a> {
    /// Clears the descriptor's close-on-exec flag.
    ///
    /// # Errors
    /// When the system refuses that.
    pub(super) fn new(descriptor: &'a OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        Ok(Self(descriptor))
    }

    /// Returns its number, for the environment of the program.
    pub(super) fn number(&self) -> String {
        self.0.as_raw_fd().to_string()
    }
}

impl Drop for Inheritable<'_> {
    fn drop(&mut self) {
        // It was set a moment ago, so it can be set.
        let _ = rustix::io::fcntl_setfd(self.0, rustix::io::FdFlags::CLOEXEC);
    }
}
