//! Lists of CPUs and memory nodes.

/// The numbers of a list such as `0-3,7` (cpuset(7), List format).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CpuList(Vec<(u32, u32)>);

impl CpuList {
    /// Reads a list; `None` if it is none.
    pub(super) fn parse(list: &str) -> Option<CpuList> {
        let ranges = list.trim().split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some((first, last))
        });
        ranges.collect::<Option<_>>().map(CpuList)
    }

    /// How many numbers it has.
    pub(super) fn count(&self) -> u64 {
        let length = |(first, last): &(u32, u32)| u64::from(last - first) + 1;
        self.0.iter().map(length).sum()
    }

    /// The greatest number.
    pub(super) fn last(&self) -> u32 {
        self.0.iter().map(|(_, last)| *last).max().unwrap_or(0)
    }

    /// As bits, the number 0 being the lowest of the first word; `None` if one is `most` or greater.
    pub(super) fn mask(&self, most: u32) -> Option<Vec<u64>> {
        if self.last() >= most {
            return None;
        }
        let mut words = vec![0; self.last() as usize / 64 + 1];
        for number in self.0.iter().flat_map(|(first, last)| *first..=*last) {
            words[number as usize / 64] |= 1 << (number % 64);
        }
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        for (list, expected) in [
            ("0", Some((1, 0))),
            ("0-3,7", Some((5, 7))),
            ("1,9,5\n", Some((3, 9))),
            ("", None),
            ("3-1", None),
            ("a", None),
            ("1,", None),
            ("-1", None),
            ("0-4294967295", Some((1 << 32, u32::MAX))),
        ] {
            let found = CpuList::parse(list).map(|list| (list.count(), list.last()));
            assert_eq!(found, expected, "{list:?}");
        }
        let mask = |list| CpuList::parse(list).unwrap().mask(128);
        assert_eq!(mask("0-1,65"), Some(vec![3, 2]));
        assert_eq!(mask("127"), Some(vec![0, 1 << 63]));
        assert_eq!(mask("128"), None);
    }
}
