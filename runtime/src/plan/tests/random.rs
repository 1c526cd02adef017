//! Generated configurations: whatever is in one, nothing panics, every property is in the ledger, a plan is made
//! exactly if nothing is refused, and the guest gets what it relies on.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, json};

use super::*;
use crate::config;

/// Configurations of the real world: runc's template, Podman's and containerd's (`ctr run`).
const REAL: [&str; 3] = [
    include_str!("../../verbs/spec.json"),
    include_str!("podman.json"),
    include_str!("containerd.json"),
];

/// A change of a configuration; what an [`Index`] chooses from is what is there when its turn comes.
#[derive(Debug, Clone)]
enum Change {
    /// Puts a line of the table in.
    Line(Index),
    /// Puts another value in the place of one.
    Replace(Index, Value),
    Remove(Index),
    /// Puts a property into an object, or an element into an array.
    Insert(Index, Index, Value),
    /// Doubles an element of an array.
    Double(Index),
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..=100).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z./\\-0-9:=]{0,12}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        prop_oneof![
            Just("rbind"),
            Just("0-3"),
            Just("SCHED_FIFO"),
            Just("bind"),
            Just("max"),
            Just("128M"),
            Just("/proc/7/ns/ipc"),
            Just("/missing"),
            Just("CAP_KILL"),
            Just("9999999999999999999"),
        ]
        .prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-zA-Z.]{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => at().prop_map(Change::Line),
        4 => (at(), value()).prop_map(|(at, value)| Change::Replace(at, value)),
        1 => at().prop_map(Change::Remove),
        2 => (at(), at(), value()).prop_map(|(at, name, value)| Change::Insert(at, name, value)),
        1 => at().prop_map(Change::Double),
    ]
}

/// JSON pointers (RFC 6901) to all values within one.
fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    found.push(prefix.to_owned());
    let mut below = |key: &str, value: &Value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        pointers(value, &format!("{prefix}/{key}"), found);
    };
    match value {
        Value::Object(properties) => {
            for (key, value) in properties {
                below(key, value);
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                below(&index.to_string(), element);
            }
        }
        _ => {}
    }
}

fn apply(config: &mut Value, change: Change) {
    let mut all = Vec::new();
    pointers(config, "", &mut all);
    let choose = |at: &Index| at.get(&all).as_str();
    match change {
        Change::Line(at) => {
            let Line(property, value, _) = at.get(TABLE);
            let (top, line) = (property.split('.').next(), with(property, value));
            if let Some((top, Value::Object(config))) = top.zip(Some(config)) {
                let has = config.entry(top).or_insert(Value::Null);
                merge(has, line[top].clone());
            }
        }
        Change::Replace(at, value) => drop(config.pointer_mut(choose(&at)).map(|old| *old = value)),
        Change::Remove(at) => match config.pointer_mut(choose(&at)) {
            Some(Value::Object(properties)) => {
                let first = properties.keys().next().cloned();
                first.and_then(|key| properties.remove(&key));
            }
            Some(Value::Array(elements)) => drop(elements.pop()),
            _ => {}
        },
        Change::Insert(at, name, value) => match config.pointer_mut(choose(&at)) {
            Some(Value::Object(properties)) => {
                let names: Vec<&str> = properties::names().collect();
                let name = name.get(&names).rsplit('.').next().unwrap_or_default();
                properties.insert(name.to_owned(), value);
            }
            Some(Value::Array(elements)) => elements.push(value),
            _ => {}
        },
        Change::Double(at) => {
            if let Some(Value::Array(elements)) = config.pointer_mut(choose(&at)) {
                elements.extend(elements.last().cloned());
            }
        }
    }
}

/// Objects are merged, all else is replaced.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Every property of the configuration is in the ledger: itself, or what is in it, or what it is in.
fn is_listed(value: &Value, name: &str, shown: &str, ledger: &Ledger) {
    use properties::Rule;
    match (value, properties::rule(name)) {
        (Value::Object(members), rule) if name.is_empty() || rule == Some(Rule::Inner) => {
            for (key, value) in members {
                let join = |prefix: &str| match prefix {
                    "" => key.clone(),
                    prefix => format!("{prefix}.{key}"),
                };
                is_listed(value, &join(name), &join(shown), ledger);
            }
            if !members.is_empty() {
                return;
            }
        }
        (Value::Array(elements), Some(Rule::Inner)) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                is_listed(element, name, &format!("{shown}[{index}]"), ledger);
            }
            return;
        }
        (Value::Object(keys), Some(Rule::Keys(_))) if !keys.is_empty() => {
            for key in keys.keys() {
                let shown = format!("{shown}[{key}]");
                assert!(
                    ledger.entries().iter().any(|e| e.property == shown),
                    "{shown}"
                );
            }
            return;
        }
        _ => {}
    }
    assert!(
        ledger.entries().iter().any(|e| e.property == shown),
        "{shown:?}"
    );
}

/// Everything that has to hold for a configuration.
fn check(text: &str) -> Result<(), TestCaseError> {
    // What cannot be read has no ledger: `explain` fails as `create` does.
    let Ok(config) = config::parse(text) else {
        return Ok(());
    };
    let Decision { ledger, plan } = decide(&config.spec, &config.value, &facts());
    is_listed(&config.value, "", "", &ledger);
    let refusals = ledger
        .entries()
        .iter()
        .filter_map(|entry| match &entry.fate {
            Fate::Refused(refusals) => Some(refusals),
            _ => None,
        });
    let refusals: Vec<_> = refusals.flatten().collect();
    match plan {
        Ok(plan) => {
            prop_assert!(refusals.is_empty(), "{:?}", refusals);
            prop_assert!(plan.memory >= 64 << 20 && plan.memory % (2 << 20) == 0);
            prop_assert!((1..=32).contains(&plan.vcpus));
            // The guest reads the same text.
            let spec: Spec = serde_json::from_str(&config.text).expect("the guest can read it");
            let linux = spec.linux().as_ref();
            let profile = linux.and_then(|linux| linux.seccomp().as_ref());
            prop_assert_eq!(profile.is_some(), plan.overlay.seccomp.is_some());
        }
        Err(error) => {
            prop_assert!(!refusals.is_empty());
            let error = error.to_string();
            for refusal in refusals {
                prop_assert!(
                    error.contains(&refusal.to_string()),
                    "{} in {}",
                    refusal,
                    error
                );
            }
        }
    }
    Ok(())
}

#[test]
fn configurations_of_the_real_world_are_accepted() {
    for text in REAL {
        check(text).unwrap();
        let mut config: Value = serde_json::from_str(text).unwrap();
        // As engines write it on a host with AppArmor.
        config["process"]["apparmorProfile"] = json!("docker-default");
        let plan = planned(&config);
        assert!(plan.is_ok(), "{}", plan.err().unwrap());
        assert_eq!(plan.ok().unwrap().warnings, Vec::<String>::new());
    }
}

#[test]
fn every_line_of_the_table_is_as_any_other_configuration() {
    for Line(property, value, _) in TABLE {
        check(&with(property, value).to_string()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_configurations(
        real in any::<Index>(),
        changes in prop::collection::vec(change(), 0..8),
    ) {
        let mut config = serde_json::from_str(real.get::<&str>(&REAL)).unwrap();
        for change in changes {
            apply(&mut config, change);
        }
        check(&config.to_string())?;
    }

    #[test]
    fn tables_in_any_combination(lines in prop::collection::vec(any::<Index>(), 0..12)) {
        let mut config = minimal();
        for line in lines {
            apply(&mut config, Change::Line(line));
        }
        check(&config.to_string())?;
    }

    #[test]
    fn anything_at_all(config in value(), text in ".{0,64}") {
        check(&config.to_string())?;
        check(&text)?;
    }
}
