//! The first bytes of a connection: both sides say who they are and agree on a version.
//!
//! The client sends [`CLIENT_LEN`] bytes: magic `GODWITc\0`, lowest and highest version it speaks
//! (u16 each), role (u16), 2 zero bytes. The server answers magic `GODWITs\0`, chosen version (u16; 0: refused),
//! length of the reason (u16), 4 zero bytes, then the reason as UTF-8 text (empty when not refused).

/// The only version so far.
pub const VERSION: u16 = 1;
/// Lowest version this build speaks.
pub const MIN_VERSION: u16 = 1;
/// Bytes a client sends.
pub const CLIENT_LEN: usize = 16;
/// Bytes a server sends before the reason.
pub const SERVER_LEN: usize = 16;
/// Longest reason in bytes.
pub const MAX_REASON: usize = 1024;

const CLIENT_MAGIC: [u8; 8] = *b"GODWITc\0";
const SERVER_MAGIC: [u8; 8] = *b"GODWITs\0";

/// What a client's greeting says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientGreeting {
    /// Lowest version it speaks.
    pub min_version: u16,
    /// Highest version it speaks.
    pub max_version: u16,
    /// What the connection is for.
    pub role: Role,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Role {
    /// A host's session.
    Host = 1,
}

/// Why a greeting can't be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// The peer is no Godwit program.
    #[error("the peer does not speak Godwit's protocol")]
    Magic,
    /// Unknown role or nonzero reserved bytes.
    #[error("the peer's greeting is malformed")]
    Malformed,
}

impl ClientGreeting {
    /// What this build sends.
    pub fn ours() -> Self {
        Self { min_version: MIN_VERSION, max_version: VERSION, role: Role::Host }
    }

    /// Bytes on the wire.
    pub fn encode(&self) -> [u8; CLIENT_LEN] {
        let mut out = [0; CLIENT_LEN];
        out[..8].copy_from_slice(&CLIENT_MAGIC);
        out[8..10].copy_from_slice(&self.min_version.to_le_bytes());
        out[10..12].copy_from_slice(&self.max_version.to_le_bytes());
        out[12..14].copy_from_slice(&(self.role as u16).to_le_bytes());
        out
    }

    /// Read what a client sent.
    pub fn decode(raw: &[u8; CLIENT_LEN]) -> Result<Self, GreetingError> {
        if raw[..8] != CLIENT_MAGIC {
            return Err(GreetingError::Magic);
        }
        let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        if word(12) != Role::Host as u16 || word(14) != 0 || word(8) == 0 || word(8) > word(10) {
            return Err(GreetingError::Malformed);
        }
        Ok(Self { min_version: word(8), max_version: word(10), role: Role::Host })
    }

    /// The version to talk in, or why there is none.
    pub fn choose(&self) -> Result<u16, String> {
        let version = self.max_version.min(VERSION);
        if version < self.min_version || version < MIN_VERSION {
            return Err(format!(
                "this server speaks protocol versions {MIN_VERSION} to {VERSION}, the client {} to {}: upgrade the older of the two",
                self.min_version, self.max_version
            ));
        }
        Ok(version)
    }
}

/// The server's answer: a version, or a reason for refusing. Reasons are cut at [`MAX_REASON`].
pub fn encode_server(choice: &Result<u16, String>) -> Vec<u8> {
    let mut out = vec![0; SERVER_LEN];
    out[..8].copy_from_slice(&SERVER_MAGIC);
    match choice {
        Ok(version) => out[8..10].copy_from_slice(&version.to_le_bytes()),
        Err(reason) => {
            let cut =
                (0..=reason.len().min(MAX_REASON)).rev().find(|&i| reason.is_char_boundary(i)).unwrap_or(0);
            out[10..12].copy_from_slice(&(cut as u16).to_le_bytes());
            out.extend_from_slice(&reason.as_bytes()[..cut]);
        }
    }
    out
}

/// Read the fixed part of the server's answer: the version (0: refused) and how many bytes of reason follow.
pub fn decode_server(raw: &[u8; SERVER_LEN]) -> Result<(u16, usize), GreetingError> {
    if raw[..8] != SERVER_MAGIC {
        return Err(GreetingError::Magic);
    }
    let version = u16::from_le_bytes([raw[8], raw[9]]);
    let reason = u16::from_le_bytes([raw[10], raw[11]]) as usize;
    if reason > MAX_REASON || raw[12..] != [0; 4] || (version != 0 && reason != 0) {
        return Err(GreetingError::Malformed);
    }
    Ok((version, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_greetings() {
        assert_eq!(&ClientGreeting::ours().encode(), b"GODWITc\0\x01\0\x01\0\x01\0\0\0");
        assert_eq!(encode_server(&Ok(1)), b"GODWITs\0\x01\0\0\0\0\0\0\0");
        assert_eq!(encode_server(&Err("no".into())), b"GODWITs\0\0\0\x02\0\0\0\0\0no");
    }

    #[test]
    fn versions_are_negotiated_or_refused() {
        let newer = ClientGreeting { min_version: 1, max_version: 9, role: Role::Host };
        assert_eq!(newer.choose(), Ok(VERSION));
        let too_new = ClientGreeting { min_version: 8, max_version: 9, role: Role::Host };
        assert!(too_new.choose().is_err_and(|e| e.contains("upgrade")));
        assert_eq!(ClientGreeting::decode(b"GODWITc\0\x02\0\x01\0\x01\0\0\0"), Err(GreetingError::Malformed));
    }
}
