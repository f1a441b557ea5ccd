//! Addresses and UUIDs that follow from a VM's name, for a `vm.toml` that doesn't say them.
//!
//! A guest must find the same hardware at each start and on each host, so what is left out is
//! derived and not drawn by lot.

use uuid::Uuid;

/// The UUID of the VM `name`.
pub fn uuid_of(name: &str) -> Uuid {
    uuid::Builder::from_custom_bytes(hash(&["uuid", name]).to_be_bytes()).into_uuid()
}

/// The address of network card `index` of the VM `name`, in QEMU's own range.
pub fn mac_of(name: &str, index: usize) -> String {
    mac_from(&hash(&["mac", name, &index.to_string()]).to_be_bytes())
}

/// A new address, drawn by lot.
pub fn random_mac() -> String {
    mac_from(Uuid::new_v4().as_bytes())
}

fn mac_from(bytes: &[u8; 16]) -> String {
    // The last three bytes are free of the UUID's version and variant bits.
    format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[13], bytes[14], bytes[15])
}

/// FNV-1a, 128 bit: stable for ever, and no secret depends on it.
fn hash(parts: &[&str]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    parts
        .iter()
        .flat_map(|part| part.bytes().chain(std::iter::once(0)))
        .fold(BASIS, |sum, byte| (sum ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_values_never_change() {
        assert_eq!(uuid_of("vm42").to_string(), "d7bf9c2b-d1e3-8732-a75d-e18f586762c3");
        assert_eq!(mac_of("vm42", 0), "52:54:00:3e:86:51");
        assert_ne!(mac_of("vm42", 0), mac_of("vm42", 1));
        assert_ne!(uuid_of("vm42"), uuid_of("vm43"));
    }

    #[test]
    fn random_addresses_differ_and_are_local_unicast() {
        let (a, b) = (random_mac(), random_mac());
        assert_ne!(a, b);
        assert!(a.starts_with("52:54:00:"));
        assert_eq!(a.len(), 17);
    }
}
