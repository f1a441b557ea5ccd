//! Byte counts as people write them: `256MiB`, `10 GB`, `4096`.
//!
//! Reading takes what `bytesize` takes; writing is exact (`bytesize` itself rounds to one digit).

use std::fmt;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size like \"256MiB\" or \"10GiB\"")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Bytes(n) => Ok(Size(n)),
            Written::Text(text) => text.parse::<ByteSize>().map(|b| Size(b.0)).map_err(|_| {
                serde::de::Error::custom(format!(
                    "{text:?} is not a size; write it like \"256MiB\" or \"10GiB\""
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_is_exact() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1023, "1023"),
            (1024, "1KiB"),
            (1536 << 20, "1536MiB"),
            (256 << 20, "256MiB"),
            (3 << 30, "3GiB"),
            (64 << 40, "64TiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
            let parsed: ByteSize = text.parse().unwrap();
            assert_eq!(parsed.0, bytes, "{text} reads back");
        }
    }
}
