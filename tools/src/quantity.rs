//! Sizes, rates and durations as people write and read them.

use std::time::Duration;

use bytesize::ByteSize;

/// `4.2 GiB`
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// `98.3 MiB/s`
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// `0:42`, `12:05`, `3:00:10`
pub fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// `42s`, `5m 3s`, `2d 4h`: the two largest units.
pub fn long_time(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(n, _)| seconds >= *n).unwrap_or(3);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (n, unit) in &units[first..units.len().min(first + 2)] {
        if left / n > 0 || parts.is_empty() {
            parts.push(format!("{}{unit}", left / n));
        }
        left %= n;
    }
    parts.join(" ")
}

/// A size above zero: `512MiB`, `10GiB`, `100MB`, or plain bytes. `512M` is refused, because it
/// means another number to other tools.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    if let (Ok(_), [letter @ b'a'..=b'z' | letter @ b'A'..=b'Z']) =
        (number.parse::<f64>(), text[number.len()..].trim().as_bytes())
        && !letter.eq_ignore_ascii_case(&b'b')
    {
        let letter = letter.to_ascii_uppercase() as char;
        return Err(format!(
            "write {number}{letter}iB (powers of 1024) or {number}{letter}B (powers of 1000)"
        ));
    }
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("must be more than zero".into()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("a size like 512MiB or 10GiB is expected".into()),
    }
}

/// A rate above zero in bytes per second: `200MiB/s`, or without the `/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text.trim().strip_suffix("/s").unwrap_or(text))
        .map_err(|e| e.replace("a size like 512MiB or 10GiB", "a rate like 200MiB/s"))
}

/// A duration of at least a second: `30s`, `10m`, `1h 30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if d < Duration::from_secs(1) => Err("must be at least 1s".into()),
        Ok(d) => Ok(d),
        Err(_) => Err("a duration like 30s, 10m or 1h is expected".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("1.5 MiB"), Ok(3 << 19));
        assert_eq!(parse_size("2MB"), Ok(2_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("0"), Err("must be more than zero".into()));
        assert!(parse_size("512M").is_err_and(|e| e.contains("512MiB")));
        assert!(parse_size("1.5 g").is_err_and(|e| e.contains("1.5GiB")));
        assert_eq!(parse_size("512b"), Ok(512));
        assert!(parse_size("much").is_err_and(|e| e.contains("expected")));
        assert!(parse_size("-1GiB").is_err());
        assert_eq!((size(0), size(1023), size(3 << 29)), ("0 B".into(), "1023 B".into(), "1.5 GiB".into()));
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("200MiB/s"), Ok(200 << 20));
        assert_eq!(parse_rate("200MiB"), Ok(200 << 20));
        assert!(parse_rate("fast").is_err_and(|e| e.contains("200MiB/s")));
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn times() {
        assert_eq!((clock(42), clock(725), clock(10_810)), ("0:42".into(), "12:05".into(), "3:00:10".into()));
        assert_eq!((long_time(0), long_time(303)), ("0s".into(), "5m 3s".into()));
        assert_eq!((long_time(3600), long_time(187_200)), ("1h".into(), "2d 4h".into()));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert!(parse_duration("0s").is_err());
        assert!(parse_duration("soon").is_err());
    }
}
