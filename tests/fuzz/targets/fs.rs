//! A guest's requests to the file server, in sequence: inodes and handles of later ones come from the answers to earlier
//! ones, and a tenth of the fields is wrong. There are three playgrounds: one whose mounts last, one whose mounts do not,
//! and one that is read-only, of which large files are mapped.
//!
//! What must hold: no panic; every answer is well formed and within its buffer; nothing outside of the tree is opened,
//! read or changed, and no descriptor leads there; tables stay within their limits; when the guest has given back what
//! it was given, or the session has ended, the server knows the root alone and has no descriptor that it had not before.

#![no_main]

use std::sync::LazyLock;

use chiton_fuzz::Input;
use chiton_fuzz::guest::Guest;
use chiton_fuzz::tree::{Mounts, OPEN_FDS, Playground, descriptors};
use libfuzzer_sys::fuzz_target;
use vmm_fs::Server;

static PLAYGROUNDS: LazyLock<[(Playground, Server); 3]> = LazyLock::new(|| {
    let mounts = [Mounts::Lasting, Mounts::Fleeting, Mounts::ReadOnly];
    let playgrounds = mounts.map(Playground::new);
    // From here on this thread's working directory is not the one that it had.
    vmm_fs::enter_worker_thread().unwrap();
    playgrounds
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (playground, server) = &PLAYGROUNDS[input.below(3)];
    playground.fill();
    let before = descriptors();
    let mut guest = Guest::new(server);
    let ends = input.flag();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        guest.request(&mut input, true);
        let (cached, pinned, inodes) = server.counts();
        assert!(cached <= OPEN_FDS, "{cached} descriptors are kept");
        assert!(pinned <= 1024 && inodes <= 1024, "{pinned} {inodes}");
    }
    // What a vCPU asks for when it has met with nothing.
    server.mend(&mut 0);
    playground.check();
    if guest.in_session && !ends {
        guest.give_back();
        assert_eq!(server.counts(), (0, 0, 1), "all has been given back");
    } else {
        guest.destroy();
        assert_eq!(server.counts(), (0, 0, 1), "the session has ended");
        assert_eq!(descriptors(), before, "descriptors after the end");
    }
});
