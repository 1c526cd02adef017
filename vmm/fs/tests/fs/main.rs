//! The server, driven with the bytes of FUSE requests. As root: it has to give files away.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod acl;
mod attributes;
mod client;
mod concurrency;
mod data;
mod eviction;
mod hostile;
mod identity;
mod ioctl;
mod listing;
mod mapping;
mod model;
mod mounts;
mod names;
mod privileges;
mod session;
mod sys;
