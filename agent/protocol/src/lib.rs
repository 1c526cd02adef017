//! The messages between host and guest: framing and types. No I/O policy.
