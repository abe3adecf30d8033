//! Numbers for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// `131,072`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `33.3 %`, `50 %`; `-` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let share = part as f64 * 100.0 / whole as f64;
    let rounded = format!("{share:.1}");
    format!("{} %", rounded.strip_suffix(".0").unwrap_or(&rounded))
}

/// `7 ms`, `1.2 s`, `3 min`
pub(super) fn milliseconds(ms: u64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => seconds(ms / 1000),
    }
}

/// How long ago a Unix time was.
pub(super) fn since(unix_seconds: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds(now.saturating_sub(unix_seconds))
}

fn seconds(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_well() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([percent(1, 3), percent(1, 2), percent(0, 0)], ["33.3 %", "50 %", "-"]);
        assert_eq!(
            [999, 1250, 61_000, 600_000].map(milliseconds),
            ["999 ms", "1.2 s", "61 s", "10 min"].map(String::from)
        );
    }
}
