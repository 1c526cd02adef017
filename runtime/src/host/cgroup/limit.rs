//! One limit of a machine.

use std::borrow::Cow;

/// A limit of the machine as a whole: one file of its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Name of the file.
    pub(crate) file: Cow<'static, str>,
    /// What is written to it.
    pub(crate) value: String,
    /// The property that asks for it; `None` for a limit that only protects the host, which is left out where it cannot
    /// be set.
    pub(crate) property: Option<Cow<'static, str>>,
}

impl Limit {
    /// One that a property asks for.
    pub(crate) fn asked(
        file: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        property: impl Into<Cow<'static, str>>,
    ) -> Limit {
        Limit {
            property: Some(property.into()),
            ..Limit::unasked(file, value)
        }
    }

    /// One that protects the host, or says what holds anyway.
    pub(crate) fn unasked(file: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Limit {
        Limit {
            file: file.into(),
            value: value.into(),
            property: None,
        }
    }

    /// Whether the guest applies it as well, among the container's processes.
    pub(crate) fn is_the_guests_too(&self) -> bool {
        self.file.starts_with("cpu.") || self.file.starts_with("memory.")
    }

    /// Whether it slows down what is in the cgroup: there is none while the machine boots.
    pub(crate) fn is_of_speed(&self) -> bool {
        self.file.starts_with("cpu.max") || self.file == "io.max"
    }

    /// Whether the guest alone can have it in force at the program's first instruction, among the container's processes.
    pub(crate) fn is_of_processors(&self) -> bool {
        self.file.starts_with("cpu.max")
    }

    /// The same file without a limit.
    pub(super) fn lifted(&self) -> Limit {
        let value = match &*self.file {
            "cpu.max.burst" => "0".to_owned(),
            "cpu.max" => "max".to_owned(),
            _ => self.former(""),
        };
        Limit::unasked(self.file.clone(), value)
    }

    /// Writing the value changes one line of the file: that of a device.
    fn is_of_device(&self) -> bool {
        self.file.starts_with("io.")
    }

    /// What to write to the file, which says `text`, after the limit for all to be as before.
    pub(super) fn former(&self, text: &str) -> String {
        if !self.is_of_device() {
            return text.to_owned();
        }
        let line = |device: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))
        };
        // cgroup-v2.rst: `MAJOR:MINOR key=value...` without the keys that have no limit, or `default WEIGHT` and
        // `MAJOR:MINOR WEIGHT`.
        match self.value.split_once(' ') {
            None => format!("default {}", line("default").unwrap_or("100")),
            Some((device, value)) => match value.split_once('=') {
                None => format!("{device} {}", line(device).unwrap_or("default")),
                Some((key, _)) => {
                    let pairs = line(device).unwrap_or_default().split_ascii_whitespace();
                    let old = pairs.filter_map(|pair| pair.split_once('='));
                    let mut old = old.filter(|(other, _)| *other == key).map(|(_, old)| old);
                    format!("{device} {key}={}", old.next_back().unwrap_or("max"))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slows_a_boot_down_is_lifted() {
        for (file, value, lifted) in [
            ("cpu.max", "5000 100000", "max"),
            ("cpu.max.burst", "4000", "0"),
            ("io.max", "7:0 rbps=1048576", "7:0 rbps=max"),
        ] {
            let limit = Limit::asked(file, value, "asked");
            assert!(limit.is_of_speed(), "{file}");
            assert_eq!(limit.is_the_guests_too(), file.starts_with("cpu"));
            assert_eq!(limit.lifted(), Limit::unasked(file, lifted));
        }
        for file in [
            "cpu.weight",
            "cpu.idle",
            "io.weight",
            "memory.max",
            "cpuset.cpus",
        ] {
            assert!(!Limit::unasked(file, "1").is_of_speed(), "{file}");
        }
    }
}
