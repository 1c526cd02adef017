//! PID 1 of the guest: applies the OCI configuration and runs processes. Knows nothing of the VMM.

fn main() {}
