//! Four threads that serve one guest's requests at the same time, as those of the device do, while somebody on the host
//! renames, replaces and removes what they are about: files become links that lead outside, directories change places.
//!
//! What must hold: what holds for the `fs` target, whoever comes first. Tables are looked at when all threads are done.

#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use chiton_fuzz::Input;
use chiton_fuzz::guest::Guest;
use chiton_fuzz::tree::{Mounts, OPEN_FDS, Playground, descriptors};
use libfuzzer_sys::fuzz_target;
use vmm_fs::Server;

const THREADS: usize = 4;

/// What the host does in one round, as often as the guest needs for its requests.
const ROUNDS: usize = 400;

static PLAYGROUND: LazyLock<(Playground, Server)> =
    LazyLock::new(|| Playground::new(Mounts::Lasting));

fuzz_target!(|data: &[u8]| {
    let (playground, server) = &*PLAYGROUND;
    let Some((ends, data)) = data.split_first() else {
        return;
    };
    playground.fill();
    let before = descriptors();
    let parts: Vec<&[u8]> = data
        .chunks(data.len().div_ceil(THREADS + 1).max(1))
        .collect();
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let running = AtomicUsize::new(THREADS);
    thread::scope(|scope| {
        // INIT, by a worker like all others.
        let begin = scope.spawn(|| {
            vmm_fs::enter_worker_thread().unwrap();
            drop(Guest::new(server));
        });
        begin.join().unwrap();
        let workers: Vec<_> = (0..THREADS)
            .map(|index| {
                let running = &running;
                scope.spawn(move || {
                    vmm_fs::enter_worker_thread().unwrap();
                    let mut guest = Guest::joining(server);
                    let mut input = Input::new(part(index));
                    for _ in 0..48 {
                        if input.is_empty() {
                            break;
                        }
                        guest.request(&mut input, false);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                    guest.give_back();
                })
            })
            .collect();
        rename(&playground.tree(), &mut Input::new(part(THREADS)), &running);
        for worker in workers {
            worker.join().unwrap();
        }
        let (cached, pinned, inodes) = server.counts();
        assert!(cached <= OPEN_FDS, "{cached} descriptors are kept");
        // What a thread has forgotten that another had looked up is gone, and never the other way round.
        assert!(
            inodes == 1 && pinned == 0,
            "{inodes} inodes, {pinned} pinned, after all was given back"
        );
        if ends & 1 == 1 {
            let end = scope.spawn(|| {
                vmm_fs::enter_worker_thread().unwrap();
                Guest::joining(server).destroy();
            });
            end.join().unwrap();
            assert_eq!(descriptors(), before, "descriptors after the end");
        }
    });
    playground.check();
});

/// Somebody on the host, until the guest is done.
fn rename(tree: &Path, input: &mut Input<'_>, running: &AtomicUsize) {
    let steps: Vec<(u8, u8)> = (0..16).map(|_| (input.byte(), input.byte())).collect();
    let names = [
        "file",
        "dir",
        "dir/deep",
        "dir/deep/file",
        "a",
        "b",
        "dir/a",
        "up",
    ];
    let path = |byte: u8| tree.join(names[usize::from(byte) % names.len()]);
    for (kind, names) in steps.iter().cycle().take(ROUNDS) {
        if running.load(Ordering::SeqCst) == 0 {
            break;
        }
        let (one, other) = (path(*names), path(names >> 4));
        // Whether it can be done depends on what the guest has done.
        let _ = match kind % 7 {
            0 | 1 => fs::rename(&one, &other),
            2 => fs::remove_file(&one).and_then(|()| symlink("../../outside/secret", &one)),
            3 => fs::remove_file(&one).and_then(|()| symlink(tree.join("../outside"), &one)),
            4 => fs::remove_file(&one).and_then(|()| fs::hard_link(tree.join("large"), &one)),
            5 => fs::create_dir(&one),
            _ => fs::remove_file(&one),
        };
        thread::yield_now();
    }
}
