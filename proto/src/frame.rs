//! Frames: how requests and replies lie on a connection after the handshake.
//!
//! A frame is a fixed header of [`HEADER_LEN`] bytes, then `body_len` bytes of body (one structure
//! of [`crate::ops`] in postcard encoding), then `data_len` bytes of file data. Numbers are little-endian.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `GDWF` |
//! | 4 | 2 | protocol version agreed in the handshake |
//! | 6 | 2 | kind: operation code; 0 never; replies have bit 15 set; 0xffff is an error reply |
//! | 8 | 8 | request id |
//! | 16 | 8 | session generation (0 only in Attach) |
//! | 24 | 8 | epoch (0 only in Attach) |
//! | 32 | 8 | requests: every id below this one will never be sent again; replies: 0 |
//! | 40 | 4 | body_len, at most [`MAX_BODY`] |
//! | 44 | 4 | data_len, at most [`MAX_DATA`] |
//! | 48 | 4 | CRC-32C of body and data together |
//! | 52 | 8 | 0 |
//! | 60 | 4 | CRC-32C of bytes 0 to 59 |

use crate::ids::{Epoch, Generation, RequestId};

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 64;
/// Longest body in bytes.
pub const MAX_BODY: u32 = 2 << 20;
/// Most data bytes in one frame.
pub const MAX_DATA: u32 = 4 << 20;
/// The error reply's kind.
pub const KIND_ERROR: u16 = 0xffff;
/// Set in the kind of a reply.
pub const KIND_REPLY: u16 = 0x8000;

const MAGIC: [u8; 4] = *b"GDWF";

/// A frame's header, validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version.
    pub version: u16,
    /// Operation code, with [`KIND_REPLY`] set in replies, or [`KIND_ERROR`].
    pub kind: u16,
    /// Which request this is or answers.
    pub request: RequestId,
    /// The sender's session generation.
    pub session: Generation,
    /// The datastore's epoch as the sender knows it.
    pub epoch: Epoch,
    /// The client will never again send a request below this id.
    pub settled_below: RequestId,
    /// Bytes of body after the header.
    pub body_len: u32,
    /// Bytes of data after the body.
    pub data_len: u32,
    /// CRC-32C over body and data.
    pub payload_crc: u32,
}

/// Why bytes are no frame. The connection can't go on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our magic: the peer speaks something else or lost its place.
    #[error("not a Godwit frame")]
    Magic,
    /// The header's own checksum is wrong.
    #[error("frame header checksum mismatch")]
    HeaderChecksum,
    /// Body or data were altered on the way.
    #[error("frame payload checksum mismatch")]
    PayloadChecksum,
    /// A length is above the cap, or a field that must be zero is not.
    #[error("frame field out of range")]
    Range,
    /// Kind 0.
    #[error("frame of kind 0")]
    Kind,
    /// The body is not a structure of its kind.
    #[error("frame body does not decode")]
    Body,
}

impl Header {
    /// The header's bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0u8; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..16].copy_from_slice(&self.request.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.session.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.settled_below.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.body_len.to_le_bytes());
        out[44..48].copy_from_slice(&self.data_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Validate and read a header. Nothing of the frame may be acted on before this succeeded.
    pub fn decode(raw: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
        if raw[0..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if crc32c::crc32c(&raw[..60]) != u32_at(raw, 60) {
            return Err(FrameError::HeaderChecksum);
        }
        let header = Header {
            version: u16_at(raw, 4),
            kind: u16_at(raw, 6),
            request: RequestId(u64_at(raw, 8)),
            session: Generation(u64_at(raw, 16)),
            epoch: Epoch(u64_at(raw, 24)),
            settled_below: RequestId(u64_at(raw, 32)),
            body_len: u32_at(raw, 40),
            data_len: u32_at(raw, 44),
            payload_crc: u32_at(raw, 48),
        };
        if header.kind == 0 || header.kind == KIND_REPLY {
            return Err(FrameError::Kind);
        }
        if header.body_len > MAX_BODY || header.data_len > MAX_DATA || u64_at(raw, 52) != 0 {
            return Err(FrameError::Range);
        }
        Ok(header)
    }

    /// Bytes that follow the header.
    pub fn payload_len(&self) -> usize {
        self.body_len as usize + self.data_len as usize
    }

    /// Check body and data, which lie behind each other in `payload`.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() != self.payload_len() {
            return Err(FrameError::Range);
        }
        if crc32c::crc32c(payload) != self.payload_crc {
            return Err(FrameError::PayloadChecksum);
        }
        Ok(())
    }
}

/// CRC-32C over body and data as they will lie on the wire.
pub fn payload_crc(body: &[u8], data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(body), data)
}

fn u16_at(raw: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

fn u32_at(raw: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn u64_at(raw: &[u8; HEADER_LEN], at: usize) -> u64 {
    u32_at(raw, at) as u64 | (u32_at(raw, at + 4) as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            version: 1,
            kind: 0x21,
            request: RequestId(7),
            session: Generation(3),
            epoch: Epoch(1),
            settled_below: RequestId(5),
            body_len: 4,
            data_len: 4096,
            payload_crc: 0xdead_beef,
        }
    }

    #[test]
    fn golden_header() {
        let hex: String = sample().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "474457460100210007000000000000000300000000000000010000000000000005000000000000000400000000100000efbeadde00000000000000001f17e1dd"
        );
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&good), Ok(sample()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in proptest::array::uniform32(any::<u8>()), rest in proptest::array::uniform32(any::<u8>())) {
            let mut all = [0u8; HEADER_LEN];
            all[..32].copy_from_slice(&raw);
            all[32..].copy_from_slice(&rest);
            let _ = Header::decode(&all);
        }
    }
}
