//! Bytes as hexadecimal digits, for JSON.

use std::fmt::Write;

/// Two digits for each byte.
pub fn to_hex(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes.into_iter().fold(String::new(), |mut digits, byte| {
        // Writing to a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The bytes that digits stand for; `None` for what is not digits, two for each byte.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_and_written() {
        assert_eq!(to_hex([]), "");
        assert_eq!(to_hex([0, 255, 26]), "00ff1a");
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!(from_hex("00ff1A"), Some(vec![0, 255, 26]));
        for bad in ["0", "000", "0g", "+1", "é"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
