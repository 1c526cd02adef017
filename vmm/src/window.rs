//! The window: a part of the guest's address space, above its RAM, where the server of its file system maps files to be
//! read.
//!
//! What is there may be gone at any time: the host cuts a file short, or the guest gives a mapping up. A vCPU finds
//! zeros then, or its machine ends, and system calls fail; but a thread of this process that touched it would take the
//! process down. So the window is no part of what devices know as guest memory: no queue lies in it and no device
//! writes to it. Where a descriptor names it to be read, as when a program of the guest sends what it has mapped, a
//! system call copies that out first ([`Copier`](crate::copier::Copier)).

/// Where the window is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Guest physical address.
    pub(crate) start: u64,
    /// Address in this process, where it stays reserved for good.
    pub(crate) address: usize,
    /// Bytes.
    pub(crate) length: usize,
}

impl Window {
    /// Where these bytes are in this process, if all of them lie in the window.
    pub(crate) fn place(&self, address: u64, length: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = offset.checked_add(length)?;
        (end <= self.length).then(|| self.address + offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Near both ends of the window, of its address in this process and of all addresses, or anywhere.
    fn near(of: u64) -> impl Strategy<Value = u64> {
        prop_oneof![
            (0_u64..40).prop_map(move |by| of.wrapping_add(by).wrapping_sub(20)),
            any::<u64>(),
            (0_u64..40).prop_map(u64::wrapping_neg),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn only_what_lies_in_the_window_has_a_place(
            (start, address, length, at, count) in (0_u64..1 << 52, 0_usize..1 << 47, 0_usize..1 << 30)
                .prop_flat_map(|(start, address, length)| {
                    let length = if length % 3 == 0 { length % 64 } else { length };
                    let (end, most) = (start + length as u64, length as u64);
                    let at = prop_oneof![near(start), near(end)];
                    (Just(start), Just(address), Just(length), at, near(most))
                }),
        ) {
            let window = Window { start, address, length };
            let count = usize::try_from(count).unwrap();
            let inside = at >= start
                && u128::from(at) + count as u128 <= u128::from(start) + length as u128;
            let expected = inside.then(|| address + usize::try_from(at - start).unwrap());
            prop_assert_eq!(window.place(at, count), expected);
        }
    }

    #[test]
    fn a_small_window_is_exactly_its_bytes() {
        let window = Window {
            start: 8,
            address: 1000,
            length: 5,
        };
        for at in 0..20_u64 {
            for count in 0..20_usize {
                let inside = at >= 8 && at + count as u64 <= 13;
                let expected = inside.then(|| 992 + usize::try_from(at).unwrap());
                assert_eq!(window.place(at, count), expected, "{at} {count}");
            }
        }
    }
}
