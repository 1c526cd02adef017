//! Devices of the machine that the kernel has found absent, or has left for later.

use std::fs;
use std::path::PathBuf;

use crate::error::{During, Result};

/// Where the kernel lists the devices of the machine.
const DEVICES: &str = "/sys/bus/platform/devices";

/// Whoever writes the name of a device to it makes the driver look at the device.
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

/// Whoever writes the name of a device to it makes the driver let go of the device.
const UNBIND: &str = "/sys/bus/platform/drivers/virtio-mmio/unbind";

/// Has the driver look at a device again; the device's directory.
pub(crate) fn bind(number: u8) -> Result<PathBuf> {
    let name = name(number);
    fs::write(BIND, &name).during(|| format!("bind the driver to {name}"))?;
    Ok(PathBuf::from(DEVICES).join(name))
}

/// Has the driver let go of a device, so that what has become of it is gone.
pub(crate) fn unbind(number: u8) -> Result<()> {
    let name = name(number);
    fs::write(UNBIND, &name).during(|| format!("unbind the driver from {name}"))
}

fn name(number: u8) -> String {
    format!("virtio-mmio.{number}")
}
