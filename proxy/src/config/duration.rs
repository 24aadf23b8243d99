//! Durations as Go writes them: `30s`, `1h5m`, `1.5s`, `-2ms`, `0`. Source: Go's `time.ParseDuration`.

use jiff::SignedDuration;

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a Go duration.
///
/// # Errors
/// A sentence that says how a duration is written, or that it is longer than Go's longest (some 292 years).
pub fn go_duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || "must be a duration such as 30s, 500ms or 1h5m".to_owned();
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(wrong());
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let mut part = if whole.is_empty() { 0 } else { whole.parse::<i128>().map_err(|_| wrong())? };
        part = part.checked_mul(*nanos).ok_or_else(wrong)?;
        let mut scale = *nanos;
        for digit in fraction.bytes() {
            scale /= 10;
            part += i128::from(digit - b'0') * scale;
        }
        total = total
            .checked_add(part)
            .filter(|sum| *sum <= i128::from(i64::MAX))
            .ok_or_else(|| "is too long".to_owned())?;
        rest = after;
    }
    let nanos = i64::try_from(total).map_err(|_| wrong())?;
    Ok(SignedDuration::from_nanos(if negative { -nanos } else { nanos }))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Writes a duration so that [`go_duration`] reads it back, in hours, minutes and seconds: `1h5m0s` is `1h5m`.
pub fn go_duration_text(duration: SignedDuration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let total = duration.unsigned_abs();
    let (seconds, nanos) = (total.as_secs(), total.subsec_nanos());
    let mut text = sign.to_owned();
    for (amount, unit) in [(seconds / 3600, "h"), (seconds / 60 % 60, "m")] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        text.push_str(&format!("{}.{}s", seconds % 60, fraction.trim_end_matches('0')));
    } else if seconds % 60 > 0 || seconds == 0 {
        text.push_str(&format!("{}s", seconds % 60));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000_000_000),
            ("1h5m", 3_900_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("-2ms", -2_000_000),
            ("+3µs", 3_000),
            ("2h22m0.000000001s", 8_520_000_000_001),
        ] {
            assert_eq!(go_duration(text).unwrap().as_nanos(), nanos, "{text}");
        }
        for text in ["", "30", "s", "1d", "-", "1h 5m", "1,5s", ".s", "9999999h", "ten seconds", "1é"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn writes_what_it_reads(nanos in -10_000_000_000_000_i64..10_000_000_000_000) {
            let duration = SignedDuration::from_nanos(nanos);
            prop_assert_eq!(go_duration(&go_duration_text(duration)), Ok(duration));
        }

        #[test]
        fn never_panics(text in ".{0,12}") {
            let _ = go_duration(&text);
        }
    }
}
