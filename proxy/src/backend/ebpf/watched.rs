//! The devices as they come and go. Two look after them: a task that follows the kernel's notices, and the check every few
//! seconds. Each reads the list of interfaces when it has the devices to itself: by an older list than the other's it would take
//! the programs from a device that has come meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::attach::Devices;
use super::error::EbpfError;
use crate::node::Interface;

/// The devices for oneself.
pub(super) fn lock(devices: &Mutex<Devices>) -> MutexGuard<'_, Devices> {
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`Devices::follow`], with the interfaces that there are now.
///
/// # Errors
/// As there.
pub(super) fn follow(
    devices: &Mutex<Devices>,
    interfaces: &mut watch::Receiver<Vec<Interface>>,
) -> Result<(), EbpfError> {
    let mut devices = lock(devices);
    let now = interfaces.borrow_and_update().clone();
    devices.follow(&now)
}

/// As [`Devices::check`], with the interfaces that there are now.
///
/// # Errors
/// As there.
pub(super) fn check(
    devices: &Mutex<Devices>,
    interfaces: &watch::Receiver<Vec<Interface>>,
) -> Result<usize, EbpfError> {
    let mut devices = lock(devices);
    let now = interfaces.borrow().clone();
    devices.check(&now)
}
