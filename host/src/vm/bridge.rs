//! Plugging a VM into a bridge.
//!
//! QEMU makes the tap interface itself, so that it goes away with QEMU; between QEMU's start and
//! the guest's first instruction it is put into the bridge here.

use std::path::Path;

use tokio::process::Command;

use super::config::{Nic, VmConfig};
use super::error::VmError;
use super::qemu::tap_name;

/// Refuse a VM whose bridges this host doesn't have.
pub fn check(config: &VmConfig) -> Result<(), VmError> {
    for (_, bridge) in bridged(config) {
        if !Path::new("/sys/class/net").join(bridge).join("bridge").is_dir() {
            return Err(VmError::NoBridge { name: config.name.clone(), bridge: bridge.into() });
        }
    }
    Ok(())
}

/// Put the taps of a QEMU that has just come up into their bridges.
pub async fn plug(config: &VmConfig) -> Result<(), VmError> {
    for (nic, bridge) in bridged(config) {
        let output = Command::new("ip")
            .args(["link", "set", "dev", &tap_name(nic), "master", bridge, "up"])
            .output()
            .await
            .map_err(|source| VmError::NoProgram { program: "ip".into(), source })?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).lines().collect::<Vec<_>>().join("; ");
            return Err(VmError::Bridge { name: config.name.clone(), bridge: bridge.into(), words });
        }
    }
    Ok(())
}

fn bridged(config: &VmConfig) -> impl Iterator<Item = (&Nic, &str)> {
    config.nics.iter().filter_map(|nic| Some((nic, nic.bridge.as_deref()?)))
}
