//! Whether KVM can be used on this host.
//!
//! Only a guest that boots proves it. This looks at what can be seen cheaply: CPU flags and
//! whether the kernel makes a VM. A host where that misleads writes `accel = "tcg"`.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `_IO(KVMIO, 0x01)` of linux/kvm.h.
const KVM_CREATE_VM: libc::c_ulong = 0xAE01;

/// Whether the CPU has virtualization and the kernel makes a VM. Touches /proc and /dev only.
pub fn kvm_usable() -> bool {
    cpu_can() && kernel_can()
}

fn cpu_can() -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else { return false };
    has_virtualization(&text)
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn kernel_can() -> bool {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else { return false };
    create_vm(&kvm).is_some()
}

#[allow(unsafe_code)]
fn create_vm(kvm: &File) -> Option<OwnedFd> {
    // SAFETY: KVM_CREATE_VM takes an integer (the machine type, 0) and no pointer; `kvm` is open
    // for the whole call. On another device the number is refused with ENOTTY.
    let fd = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    // SAFETY: a non-negative answer is a descriptor that was made for us and that nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_found_as_a_word() {
        assert!(has_virtualization("processor : 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : svm\n"));
        assert!(!has_virtualization("vmx flags : vmx\nflags : fpu vmxless svme\n"));
    }
}
