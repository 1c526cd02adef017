//! The chiton binary: OCI verbs, state, and the process that is a container's machine.

fn main() {}
