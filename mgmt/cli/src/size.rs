//! Sizes as people write and read them.

/// Reads a size in MiB: `512M`, `4G`, `1T`; a bare number is MiB already.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    let form = "write a size as in 512M or 4G";
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, factor) = match upper.chars().next_back() {
        Some('M') => (&upper[..upper.len() - 1], 1),
        Some('G') => (&upper[..upper.len() - 1], 1 << 10),
        Some('T') => (&upper[..upper.len() - 1], 1 << 20),
        _ => (upper, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(form.to_owned());
    }
    let number: u64 = digits.parse().map_err(|_| format!("{text} is too much; {form}"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too much; {form}"))
}

/// Writes a number of bytes for people: `13 MiB`, `1.2 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 10.0 && value.fract() >= 0.05);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Writes how long ago something was: `3 hours ago`.
pub fn format_age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(86_400 * 7, "week"), (86_400, "day"), (3600, "hour"), (60, "minute")];
    for (length, unit) in UNITS {
        let count = seconds / length;
        if count > 0 {
            return format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" });
        }
    }
    "just now".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, mib) in
            [("512", 512), ("512M", 512), ("1g", 1024), ("4GiB", 4096), ("1T", 1 << 20)]
        {
            assert_eq!(parse_mib(text), Ok(mib), "{text}");
        }
        for bad in [
            "",
            "G",
            "-1",
            "1.5G",
            "1K",
            "1 G",
            "99999999999999999999",
            "18446744073709551615T",
            "é",
        ] {
            assert!(parse_mib(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_and_ages_are_written() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(13 << 20), "13 MiB");
        assert_eq!(format_bytes((1 << 30) + (1 << 28)), "1.2 GiB");
        assert_eq!(format_bytes(4 << 30), "4 GiB");
        assert_eq!(format_age(5), "just now");
        assert_eq!(format_age(3600), "1 hour ago");
        assert_eq!(format_age(86_400 * 3), "3 days ago");
    }
}
