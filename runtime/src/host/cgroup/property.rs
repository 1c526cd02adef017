//! Properties of the container's scope that the caller asks for by annotations: `org.systemd.property.NAME` with a
//! value in the text format of GVariant, of which booleans, integers, strings and lists of strings are understood. As
//! with runc a name that ends in `Sec` means the property that ends in `USec`.

use super::dbus::Value;

const PREFIX: &str = "org.systemd.property.";

const USEC_PER_SEC: u64 = 1_000_000;

/// An annotation that is not understood.
#[derive(Debug, thiserror::Error)]
#[error("annotation {key}={text:?} cannot be read as a property of a systemd unit")]
pub(crate) struct Error {
    key: String,
    text: String,
}

/// The properties among the annotations.
pub(super) fn properties<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(String, Value)>, Error> {
    let asked = annotations.filter_map(|(key, text)| Some((key, key.strip_prefix(PREFIX)?, text)));
    asked
        .map(|(key, name, text)| {
            property(name, text).ok_or_else(|| Error {
                key: key.clone(),
                text: text.clone(),
            })
        })
        .collect()
}

fn property(name: &str, text: &str) -> Option<(String, Value)> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic()) {
        return None;
    }
    let value = value(text.trim())?;
    match name.strip_suffix("Sec") {
        // Not that of a name that ends in USec already.
        Some(start) if start.ends_with(|c: char| c.is_ascii_lowercase()) => {
            let seconds = match value {
                Value::I32(n) => u64::try_from(n).ok()?,
                Value::U32(n) => n.into(),
                Value::I64(n) => u64::try_from(n).ok()?,
                Value::U64(n) => n,
                _ => return None,
            };
            let value = Value::U64(seconds.checked_mul(USEC_PER_SEC)?);
            Some((format!("{start}USec"), value))
        }
        _ => Some((name.to_owned(), value)),
    }
}

fn value(text: &str) -> Option<Value> {
    if let Some(list) = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
    {
        let texts: Option<_> = list.split(',').map(|text| string(text.trim())).collect();
        return texts.map(Value::Texts);
    }
    let typed = text.split_once(' ');
    match (text, typed) {
        ("true", _) => Some(Value::Bool(true)),
        ("false", _) => Some(Value::Bool(false)),
        (_, Some(("int32", number))) => Some(Value::I32(number.parse().ok()?)),
        (_, Some(("uint32", number))) => Some(Value::U32(number.parse().ok()?)),
        (_, Some(("int64", number))) => Some(Value::I64(number.parse().ok()?)),
        (_, Some(("uint64", number))) => Some(Value::U64(number.parse().ok()?)),
        _ => string(text)
            .map(Value::Text)
            .or_else(|| text.parse().ok().map(Value::I32)),
    }
}

/// A string in quotes; one with escapes is none.
fn string(text: &str) -> Option<String> {
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    let inner: &str = inner('\'').or_else(|| inner('"'))?;
    (!inner.contains(['\'', '"', '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_properties() {
        let texts = |texts: &[&str]| Value::Texts(texts.iter().map(|t| (*t).to_owned()).collect());
        for (name, text, expected) in [
            (
                "CollectMode",
                "'inactive-or-failed'",
                Some(("CollectMode", Value::Text("inactive-or-failed".into()))),
            ),
            (
                "TimeoutStopUSec",
                "uint64 123456789",
                Some(("TimeoutStopUSec", Value::U64(123_456_789))),
            ),
            (
                "TimeoutStopSec",
                "15",
                Some(("TimeoutStopUSec", Value::U64(15_000_000))),
            ),
            ("TimeoutStopSec", "'15'", None),
            ("TimeoutStopSec", "-1", None),
            ("TimeoutStopSec", &format!("uint64 {}", u64::MAX), None),
            (
                "CPUQuotaPerSecUSec",
                "uint64 1",
                Some(("CPUQuotaPerSecUSec", Value::U64(1))),
            ),
            (
                "SendSIGHUP",
                "true",
                Some(("SendSIGHUP", Value::Bool(true))),
            ),
            (
                "KillSignal",
                "int32 37",
                Some(("KillSignal", Value::I32(37))),
            ),
            (
                "After",
                "['a.service', \"b.service\"]",
                Some(("After", texts(&["a.service", "b.service"]))),
            ),
            ("After", "['a.service\\'']", None),
            ("After", "[a]", None),
            ("Name", "plain", None),
            ("Name", "", None),
            ("Na/me", "true", None),
            ("", "true", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(property(name, text), expected, "{name} {text}");
        }
        let all = [
            ("other".to_owned(), "x".to_owned()),
            ("org.systemd.property.A".to_owned(), "x".to_owned()),
        ];
        let error = properties(all.iter().map(|(key, text)| (key, text))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "annotation org.systemd.property.A=\"x\" cannot be read as a property of a systemd unit"
        );
    }
}
