//! Limits on the command line: `rate=100mbit`.

/// What is said of a burst that has no rate.
pub const BURST_ALONE: &str = "burst= says how much passes at once: give a rate with it";

/// Reads bytes per second: `100mbit` (decimal, as links are rated), or bytes, `12M`.
pub fn parse_bandwidth(text: &str) -> Result<u64, String> {
    let form =
        || format!("{text:?} is no rate: write one as in 100mbit, 1gbit or 12M (bytes a second)");
    let lower = text.to_ascii_lowercase();
    let bits = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("bit", 1)];
    let bytes = match bits.iter().find_map(|(unit, bits)| Some((lower.strip_suffix(unit)?, bits))) {
        Some((number, bits)) => {
            number.parse::<u64>().ok().and_then(|n| n.checked_mul(*bits)).map(|n| n / 8)
        }
        None => parse_bytes(text).ok(),
    };
    bytes.filter(|&bytes| bytes > 0).ok_or_else(form)
}

/// Reads bytes: `64K`, `1M`, `2G`; a bare number is bytes already.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let form = || format!("{text:?} is no number of bytes: write one as in 64K, 1M or 2G");
    let upper = text.to_ascii_uppercase();
    let units = [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((upper.strip_suffix(name)?, *unit)))
        .unwrap_or((&upper, 1));
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_read() {
        for (text, bytes) in
            [("100mbit", 12_500_000), ("1Gbit", 125_000_000), ("64kbit", 8_000), ("12M", 12 << 20)]
        {
            assert_eq!(parse_bandwidth(text), Ok(bytes), "{text}");
        }
        for bad in ["", "mbit", "0", "4bit", "-1M", "1.5M", "fast", "99999999999999gbit"] {
            assert!(parse_bandwidth(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_bytes("64k"), Ok(65536));
        assert!(parse_bytes("18446744073709551615G").is_err());
    }
}
