//! Devices of the machine that the kernel has found absent, or has left for later.

use std::fs;
use std::path::PathBuf;

use crate::error::{During, Result};

/// Where the kernel lists the devices of the machine.
const DEVICES: &str = "/sys/bus/platform/devices";

/// Whoever writes the name of a device to it makes the driver look at the device.
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

/// Has the driver look at a device again; the device's directory.
pub(crate) fn bind(number: u8) -> Result<PathBuf> {
    let name = format!("virtio-mmio.{number}");
    fs::write(BIND, &name).during(|| format!("bind the driver to {name}"))?;
    Ok(PathBuf::from(DEVICES).join(name))
}
