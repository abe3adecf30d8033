//! Numbers for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// `131,072`
pub fn count(number: u64) -> String {
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

/// `1 flow`, `1,024 flows`: a noun whose plural ends in s.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `33.3 %`, `50 %`; `-` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let share = part as f64 * 100.0 / whole as f64;
    let rounded = format!("{share:.1}");
    format!("{} %", rounded.strip_suffix(".0").unwrap_or(&rounded))
}

/// `7 ms`, `1.2 s`, `3 min`
pub fn milliseconds(ms: u64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => seconds(ms / 1000),
    }
}

/// `812 B`, `1.4 KiB`, `20 MiB`
pub fn octets(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (number as f64, 0);
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `0`, `0.4`, `12`, `1,250`: a rate.
pub fn rate(number: f64) -> String {
    if number < 0.05 {
        "0".into()
    } else if number < 9.95 {
        format!("{number:.1}")
    } else {
        count(number.round() as u64)
    }
}

/// `85 µs`, `1.2 ms`, `3 s`
pub fn microseconds(us: u64) -> String {
    match us {
        ..1000 => format!("{us} µs"),
        1000..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => milliseconds(us / 1000),
    }
}

/// How long ago a Unix time was.
pub fn since(unix_seconds: u64, now: SystemTime) -> String {
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
        assert_eq!([0, 1, 1024].map(|n| counted(n, "flow")), ["0 flows", "1 flow", "1,024 flows"]);
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1023, 1024, 20 << 20, 1 << 30].map(octets),
            ["0 B", "1023 B", "1.0 KiB", "20 MiB", "1.0 GiB"].map(String::from)
        );
        assert_eq!([0.0, 0.42, 12.3, 1250.4].map(rate), ["0", "0.4", "12", "1,250"].map(String::from));
        assert_eq!([85, 1250, 45_000].map(microseconds), ["85 µs", "1.2 ms", "45 ms"].map(String::from));
        assert_eq!([percent(1, 3), percent(1, 2), percent(0, 0)], ["33.3 %", "50 %", "-"]);
        assert_eq!(
            [999, 1250, 61_000, 600_000].map(milliseconds),
            ["999 ms", "1.2 s", "61 s", "10 min"].map(String::from)
        );
    }
}
