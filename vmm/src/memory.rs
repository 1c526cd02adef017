//! Guest memory: anonymous, private, huge pages where the host has them, one slot below the hole and one above 4 GiB.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::{HIGH_RAM, HOLE, HOLE_END, PAGE};
use crate::sys;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a whole number of pages.
    #[error("guest memory of {0} bytes is not a multiple of 4096")]
    NotPages(u64),
    /// Nothing can boot in it.
    #[error("guest memory of {0} bytes is too small")]
    TooSmall(u64),
    /// The guest's processor could not address it.
    #[error("guest memory of {size} bytes does not fit into {bits} bits of physical address")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// Physical address bits of a vCPU.
        bits: u8,
    },
    /// The kernel refused the mapping.
    #[error("cannot map {size} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What mmap said.
        #[source]
        source: std::io::Error,
    },
    /// The regions are not what guest memory can be made of.
    #[error("guest memory")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
}

/// Where RAM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// End of RAM below the hole.
    pub(crate) low_end: u64,
    /// End of RAM above 4 GiB, if there is any.
    pub(crate) high_end: Option<u64>,
    /// End of what a vCPU can address.
    pub(crate) limit: u64,
}

impl Extent {
    /// Lays out `size` bytes of RAM.
    pub(crate) fn new(size: u64, physical_address_bits: u8) -> Result<Extent, Error> {
        let limit = 1_u64
            .checked_shl(physical_address_bits.into())
            .unwrap_or(u64::MAX);
        let extent = if size <= HOLE {
            Extent {
                low_end: size,
                high_end: None,
                limit,
            }
        } else {
            let high_end = (size - HOLE).checked_add(HOLE_END);
            let high_end = high_end.ok_or(Error::TooLarge {
                size,
                bits: physical_address_bits,
            })?;
            Extent {
                low_end: HOLE,
                high_end: Some(high_end),
                limit,
            }
        };
        if !size.is_multiple_of(PAGE) {
            return Err(Error::NotPages(size));
        }
        if size <= HIGH_RAM {
            return Err(Error::TooSmall(size));
        }
        if extent.high_end.unwrap_or(extent.low_end) > limit {
            return Err(Error::TooLarge {
                size,
                bits: physical_address_bits,
            });
        }
        Ok(extent)
    }

    /// Where a window of `length` bytes is: at the next whole GiB above all RAM, if a vCPU can address it there.
    pub(crate) fn window(&self, length: usize) -> Option<u64> {
        let start = self.high_end.unwrap_or(HOLE_END);
        let start = start.checked_next_multiple_of(1 << 30)?;
        let end = start.checked_add(length.try_into().ok()?)?;
        (end <= self.limit).then_some(start)
    }

    /// Maps the memory.
    pub(crate) fn map(&self) -> Result<Arc<GuestMemoryMmap>, Error> {
        let mut ranges = vec![(0, self.low_end)];
        ranges.extend(self.high_end.map(|end| (HOLE_END, end - HOLE_END)));
        let size = ranges.iter().map(|&(_, size)| size).sum();
        let too_large = |_| Error::TooLarge { size, bits: 64 };
        let sizes: Vec<usize> = ranges
            .iter()
            .map(|&(_, size)| usize::try_from(size).map_err(too_large))
            .collect::<Result<_, _>>()?;
        let mappings =
            sys::map_guest_memory(&sizes).map_err(|source| Error::Map { size, source })?;
        let regions = ranges
            .iter()
            .zip(mappings)
            .filter_map(|(&(start, _), mapping)| GuestRegionMmap::new(mapping, GuestAddress(start)))
            .collect();
        GuestMemoryMmap::from_regions(regions)
            .map(Arc::new)
            .map_err(Error::Regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn ram_below_the_hole_is_one_region() {
        let extent = Extent::new(64 << 20, 40).unwrap();
        assert_eq!(
            extent,
            Extent {
                low_end: 64 << 20,
                high_end: None,
                limit: 1 << 40
            }
        );
        assert_eq!(Extent::new(3 << 30, 40).unwrap().high_end, None);
    }

    #[test]
    fn ram_beyond_three_gib_goes_above_the_hole() {
        let extent = Extent::new(5 << 30, 40).unwrap();
        assert_eq!(
            extent,
            Extent {
                low_end: 3 << 30,
                high_end: Some(6 << 30),
                limit: 1 << 40,
            }
        );
        let memory = extent.map().unwrap();
        let regions: Vec<_> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 2 << 30)]);
        for region in memory.iter() {
            assert_eq!(region.as_ptr().align_offset(2 << 20), 0);
        }
        memory
            .write_obj(7_u32, GuestAddress((6 << 30) - 4))
            .unwrap();
        assert!(memory.write_obj(7_u32, GuestAddress(HOLE)).is_err());
        assert!(memory.write_obj(7_u32, GuestAddress(6 << 30)).is_err());
    }

    #[test]
    fn the_window_is_above_all_ram() {
        let window = |size, bits| Extent::new(size, bits).unwrap().window(512 << 20);
        assert_eq!(window(64 << 20, 40), Some(4 << 30));
        assert_eq!(window(5 << 30, 40), Some(6 << 30));
        assert_eq!(window((5 << 30) + 4096, 40), Some(7 << 30));
        assert_eq!(window(64 << 20, 32), None);
        assert_eq!(window((1 << 40) - (1 << 30), 40), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        /// Sizes near where the layout changes and anywhere, all numbers of address bits, windows of any length.
        #[test]
        fn ram_and_window_lie_where_they_can(
            size in prop_oneof![
                (0..4_u64, 0..48_u32).prop_map(|(by, power)| ((1 << power) + by * PAGE).wrapping_sub(2 * PAGE)),
                (0..4_u64).prop_map(|by| HOLE + by * PAGE - 2 * PAGE),
                (0..1_u64 << 40).prop_map(|pages| pages * PAGE),
                any::<u64>(),
            ],
            bits in 0..70_u8,
            length in prop_oneof![Just(512_usize << 20), 0..1_usize << 40, any::<usize>()],
        ) {
            let limit = 1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX).min(u64::MAX.into());
            let end = u128::from(size) + u128::from(if size > HOLE { HOLE_END - HOLE } else { 0 });
            let possible = size.is_multiple_of(PAGE) && size > HIGH_RAM && end <= limit;
            let extent = Extent::new(size, bits);
            prop_assert_eq!(extent.is_ok(), possible, "{:?}", extent);
            let Ok(extent) = extent else { return Ok(()) };
            let above = extent.high_end.map_or(0, |end| end - HOLE_END);
            prop_assert_eq!(extent.low_end + above, size);
            prop_assert!(extent.low_end <= HOLE && (above == 0 || extent.low_end == HOLE));
            prop_assert_eq!(u128::from(extent.high_end.unwrap_or(extent.low_end)), end);
            let start = end.max(HOLE_END.into()).next_multiple_of(1 << 30);
            let fits = start + length as u128 <= limit;
            let expected = fits.then(|| u64::try_from(start).unwrap());
            prop_assert_eq!(extent.window(length), expected);
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        assert!(matches!(
            Extent::new((64 << 20) + 1, 40),
            Err(Error::NotPages(_))
        ));
        assert!(matches!(Extent::new(1 << 20, 40), Err(Error::TooSmall(_))));
        assert!(matches!(Extent::new(0, 40), Err(Error::TooSmall(_))));
        assert!(matches!(
            Extent::new(1 << 40, 40),
            Err(Error::TooLarge { .. })
        ));
        assert!(matches!(
            Extent::new(!4095, 52),
            Err(Error::TooLarge { .. })
        ));
        assert!(Extent::new((1 << 40) - (1 << 30), 40).is_ok());
    }
}
