//! Lists of CPUs and memory nodes.

/// The numbers of a list such as `0-3,7` (cpuset(7), List format).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<(u32, u32)>);

impl CpuList {
    /// Reads a list; `None` if it is none.
    #[must_use]
    pub fn parse(list: &str) -> Option<CpuList> {
        let ranges = list.trim().split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some((first, last))
        });
        ranges.collect::<Option<_>>().map(CpuList)
    }

    /// How many numbers it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        let length = |(first, last): &(u32, u32)| u64::from(last - first) + 1;
        self.0.iter().map(length).sum()
    }

    /// The greatest number.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.0.iter().map(|(_, last)| *last).max().unwrap_or(0)
    }

    /// Its numbers, up to 2^32 of each range.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// As bits, the number 0 being the lowest of the first word; `None` if one is `most` or greater.
    #[must_use]
    pub fn mask(&self, most: u32) -> Option<Vec<u64>> {
        if self.last() >= most {
            return None;
        }
        let mut words = vec![0; self.last() as usize / 64 + 1];
        for number in self.numbers() {
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
            ("4294967296", None),
        ] {
            let found = CpuList::parse(list).map(|list| (list.count(), list.last()));
            assert_eq!(found, expected, "{list:?}");
        }
        let mask = |list| CpuList::parse(list).unwrap().mask(128);
        assert_eq!(mask("0-1,65"), Some(vec![3, 2]));
        assert_eq!(mask("127"), Some(vec![0, 1 << 63]));
        assert_eq!(mask("128"), None);
        let list = CpuList::parse("7,0 - 2").unwrap();
        assert_eq!(list.numbers().collect::<Vec<_>>(), [7, 0, 1, 2]);
    }
}
