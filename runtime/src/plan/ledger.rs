//! The ledger: what becomes of each property that a configuration has. `create` does what it says and `explain` prints
//! it.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use specification::Place;

use super::properties::{Rule, rule};

/// What becomes of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is applied.
    Applied(Place),
    /// It is applied in the guest, but for a part of which the caller is told.
    InPart(String),
    /// It asks for nothing that does not hold anyway.
    Nothing,
    /// The specification does not have it, and demands that it is ignored (config.md, Extensibility).
    Unknown,
    /// It is not applied, so there is no container.
    Refused(Vec<Refusal>),
}

/// Why a property is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The property's name in the configuration, for instance `mounts[1].options`.
    pub(crate) property: String,
    pub(crate) reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.reason)
    }
}

/// One property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) property: String,
    pub(crate) fate: Fate,
}

impl Entry {
    /// The fate in a word, and the reasons of a refusal, or what is left out.
    pub(crate) fn words(&self) -> (&'static str, Option<String>) {
        match &self.fate {
            Fate::Applied(Place::Guest) => ("guest", None),
            Fate::Applied(Place::Host) => ("host", None),
            Fate::Applied(Place::Both) => ("both", None),
            Fate::InPart(what) => ("guest", Some(what.clone())),
            Fate::Nothing => ("nothing", None),
            Fate::Unknown => ("ignored", Some("is not in the specification".to_owned())),
            Fate::Refused(refusals) => {
                let reason = |refusal: &Refusal| match refusal.property.strip_prefix(&self.property)
                {
                    None | Some("") => refusal.reason.clone(),
                    Some(part) => {
                        format!("{}: {}", part.trim_start_matches('.'), refusal.reason)
                    }
                };
                let reasons: Vec<String> = refusals.iter().map(reason).collect();
                ("refused", Some(reasons.join("; ")))
            }
        }
    }
}

/// All that is refused of a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Refused(pub(super) Vec<Refusal>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{refusal}")?;
        }
        Ok(())
    }
}

/// What becomes of each property.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger(Vec<Entry>);

impl Ledger {
    /// Looks every property up, without regard to most values.
    pub(super) fn of(config: &Value) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.descend(config, "", "");
        ledger
    }

    /// Notes what is unknown inside of properties that are looked at as a whole: what is not there any more when
    /// `spec`, which has been read from `config`, is written again.
    pub(super) fn note_unknown(&mut self, config: &Value, spec: &impl Serialize) {
        if let Ok(known) = serde_json::to_value(spec) {
            self.compare(config, &known, "", "");
        }
    }

    fn compare(&mut self, given: &Value, known: &Value, name: &str, shown: &str) {
        match (given, known) {
            (Value::Object(given), Value::Object(known)) => {
                for (key, value) in given {
                    let join = |prefix: &str| match prefix {
                        "" => key.clone(),
                        prefix => format!("{prefix}.{key}"),
                    };
                    let (name, shown) = (join(name), join(shown));
                    match known.get(key) {
                        Some(known) => self.compare(value, known, &name, &shown),
                        None if value.is_null() || is_empty(value) || rule(&name).is_some() => {}
                        None if self.mentions(&shown) => {}
                        None => self.add(&shown, Fate::Unknown),
                    }
                }
            }
            (Value::Array(given), Value::Array(known)) if given.len() == known.len() => {
                for (index, (given, known)) in given.iter().zip(known).enumerate() {
                    self.compare(given, known, name, &format!("{shown}[{index}]"));
                }
            }
            _ => {}
        }
    }

    /// Whether a property has an entry, or a refusal in that of another one.
    fn mentions(&self, property: &str) -> bool {
        self.0.iter().any(|entry| match &entry.fate {
            Fate::Refused(refusals) => refusals.iter().any(|refusal| refusal.property == property),
            _ => entry.property == property,
        })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Refuses a property, or a part of one; it need not be in the configuration.
    pub(super) fn refuse(&mut self, property: impl Into<String>, reason: impl Into<String>) {
        let refusal = Refusal {
            property: property.into(),
            reason: reason.into(),
        };
        match self.find(&refusal.property) {
            Some(entry) => match &mut entry.fate {
                Fate::Refused(refusals) => refusals.push(refusal),
                fate => *fate = Fate::Refused(vec![refusal]),
            },
            None => self.0.push(Entry {
                property: refusal.property.clone(),
                fate: Fate::Refused(vec![refusal]),
            }),
        }
    }

    /// Says where the value of a property is applied, if that differs from what holds for most.
    pub(super) fn place(&mut self, property: &str, place: Place) {
        if let Some(entry) = self.find(property)
            && matches!(entry.fate, Fate::Applied(_))
        {
            entry.fate = Fate::Applied(place);
        }
    }

    /// Says what of a property is left out.
    pub(super) fn leave_out(&mut self, property: &str, what: String) {
        if let Some(entry) = self.find(property)
            && matches!(entry.fate, Fate::Applied(_))
        {
            entry.fate = Fate::InPart(what);
        }
    }

    /// All that is refused, if anything is.
    pub(super) fn refused(&self) -> Option<Refused> {
        let refusals = self.0.iter().filter_map(|entry| match &entry.fate {
            Fate::Refused(refusals) => Some(refusals.clone()),
            _ => None,
        });
        let refusals: Vec<Refusal> = refusals.flatten().collect();
        (!refusals.is_empty()).then_some(Refused(refusals))
    }

    /// The warnings about properties that the specification does not have, and about what is left out.
    pub(super) fn warnings(&self) -> Vec<String> {
        let warning = |entry: &Entry| match &entry.fate {
            Fate::Unknown => Some(format!("ignoring unknown property {}", entry.property)),
            Fate::InPart(what) => Some(format!("{}: {what}", entry.property)),
            _ => None,
        };
        self.0.iter().filter_map(warning).collect()
    }

    /// The entry of a property, or of the innermost one that it is a part of.
    fn find(&mut self, property: &str) -> Option<&mut Entry> {
        let holds = |entry: &&mut Entry| {
            property
                .strip_prefix(&entry.property)
                .is_some_and(|part| part.is_empty() || part.starts_with(['.', '[']))
        };
        let entries = self.0.iter_mut().filter(holds);
        entries.max_by_key(|entry| entry.property.len())
    }

    fn add(&mut self, property: &str, fate: Fate) {
        self.0.push(Entry {
            property: property.to_owned(),
            fate,
        });
    }

    /// `name` is the property's, `shown` the same with indexes.
    fn descend(&mut self, value: &Value, name: &str, shown: &str) {
        match value {
            Value::Object(properties) if !properties.is_empty() => {
                for (key, value) in properties {
                    let join = |prefix: &str| {
                        if prefix.is_empty() {
                            key.to_owned()
                        } else {
                            format!("{prefix}.{key}")
                        }
                    };
                    self.look_up(value, &join(name), &join(shown));
                }
            }
            Value::Array(elements) if !elements.is_empty() => {
                for (index, element) in elements.iter().enumerate() {
                    self.descend(element, name, &format!("{shown}[{index}]"));
                }
            }
            // Empty, or of the wrong type for its property: parsing it as a specification has said so.
            _ => self.add(shown, Fate::Nothing),
        }
    }

    fn look_up(&mut self, value: &Value, name: &str, shown: &str) {
        let refused = |reason: &str| {
            Fate::Refused(vec![Refusal {
                property: shown.to_owned(),
                reason: reason.to_owned(),
            }])
        };
        let fate = match (rule(name), value) {
            (None, _) => Fate::Unknown,
            (Some(Rule::Inner), _) => return self.descend(value, name, shown),
            (Some(Rule::Keys(place)), Value::Object(keys)) if !keys.is_empty() => {
                for key in keys.keys() {
                    self.add(&format!("{shown}[{key}]"), Fate::Applied(place));
                }
                return;
            }
            (Some(_), Value::Null) => Fate::Nothing,
            (Some(Rule::Refused(_)), value) if asks_for_nothing(value) => Fate::Nothing,
            (Some(Rule::Refused(reason)), _) => refused(reason),
            (Some(Rule::Unless(held, _)), value) if holds(value, held) => Fate::Nothing,
            (Some(Rule::Unless(_, reason)), _) => refused(reason),
            (Some(Rule::But(_, nothing)), value) if value == nothing => Fate::Nothing,
            (Some(Rule::At(_) | Rule::But(..) | Rule::Keys(_)), value) if is_empty(value) => {
                Fate::Nothing
            }
            (Some(Rule::At(place) | Rule::But(place, _) | Rule::Keys(place)), _) => {
                Fate::Applied(place)
            }
        };
        self.add(shown, fate);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(properties) => properties.is_empty(),
        _ => false,
    }
}

/// Whether a value of a refused property leaves everything as it is. Limits of 0 and below are none.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64().is_some_and(|number| number <= 0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(properties) => properties.values().all(asks_for_nothing),
    }
}

fn holds(value: &Value, held: &str) -> bool {
    match value {
        Value::String(text) => text.is_empty() || text == held,
        Value::Bool(set) => (if *set { "true" } else { "false" }) == held,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(ledger: &Ledger) -> Vec<(&str, String)> {
        let of = |entry: &Entry| {
            let (word, reason) = entry.words();
            reason.map_or_else(|| word.to_owned(), |reason| format!("{word}: {reason}"))
        };
        let entries = ledger.entries().iter();
        entries
            .map(|entry| (entry.property.as_str(), of(entry)))
            .collect()
    }

    #[test]
    fn each_property_has_a_line_and_elements_have_indexes() {
        let json = r#"{"mounts":[{"destination":"/"},{"colour":1,"options":[]}],"x":{},"linux":{},
            "process":{"apparmorProfile":"p","commandLine":"l","user":null},"root":{"path":"r"},"windows":{"a":[]}}"#;
        let mut ledger = Ledger::of(&serde_json::from_str(json).unwrap());
        ledger.place("mounts[0].destination", Place::Both);
        ledger.place("mounts[1].options", Place::Both);
        ledger.refuse("root.path", "is missing");
        ledger.refuse("root.path[7].x", "is strange");
        ledger.refuse("hostname", "is absent");
        let unknown = "ignored: is not in the specification".to_owned();
        assert_eq!(
            words(&ledger),
            [
                ("linux", "nothing".into()),
                ("mounts[0].destination", "both".into()),
                ("mounts[1].colour", unknown.clone()),
                ("mounts[1].options", "nothing".into()),
                ("process.apparmorProfile", "guest".into()),
                (
                    "process.commandLine",
                    "refused: is for another platform".into()
                ),
                ("process.user", "nothing".into()),
                ("root.path", "refused: is missing; [7].x: is strange".into()),
                ("windows", "nothing".into()),
                ("x", unknown),
                ("hostname", "refused: is absent".into()),
            ]
        );
        assert_eq!(
            ledger.refused().unwrap().to_string(),
            "process.commandLine: is for another platform; root.path: is missing; root.path[7].x: is strange; hostname: is absent"
        );
        assert_eq!(
            ledger.warnings(),
            [
                "ignoring unknown property mounts[1].colour",
                "ignoring unknown property x"
            ]
        );
    }
}
