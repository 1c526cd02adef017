//! Boots a kernel with an initramfs in a machine that shares one directory, and prints how it ended: the machine alone,
//! for measurements and for work on the guest kernel.
//!
//! `boot VMLINUX INITRAMFS DIRECTORY MEMORY_MIB VCPUS [NET_SLOTS]`: network slots stay idle.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmm::{Event, Machine, MachineConfig, Thread};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, directory, memory, vcpus, slots @ ..] = &arguments[..] else {
        bail!("usage: boot VMLINUX INITRAMFS DIRECTORY MEMORY_MIB VCPUS [NET_SLOTS]");
    };
    let kernel = fs::read(kernel).with_context(|| kernel.clone())?;
    let initramfs = fs::read(initramfs).with_context(|| initramfs.clone())?;
    let server = share(directory).with_context(|| directory.clone())?;
    let net_slots = slots.first().map_or(Ok(0), |count| count.parse())?;
    let begin = Instant::now();
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("/dev/kvm")?;
    let config = MachineConfig {
        kernel: &kernel,
        initramfs: &initramfs,
        memory: memory.parse::<u64>()? << 20,
        vcpus: vcpus.parse()?,
        net_slots,
        disks: &[],
        apparmor: false,
    };
    let mut machine = Machine::new(kvm, config, Arc::new(server))?;
    machine.start(Arc::new(|thread| match thread {
        Thread::Fs(_) | Thread::Vcpu(_) => vmm_fs::enter_worker_thread().map_err(io::Error::other),
        _ => Ok(()),
    }))?;
    eprintln!("started after {:?}", begin.elapsed());

    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, machine.epoll_fd().as_raw_fd(), event)?;
    loop {
        epoll.wait(-1, &mut [EpollEvent::default()])?;
        for event in machine.handle_events()? {
            if let Event::Ended(ended) = event {
                print!("{}", ended.last_words);
                eprintln!("ended after {:?}: {}", begin.elapsed(), ended.reason);
                return Ok(());
            }
        }
    }
}

fn share(directory: &str) -> Result<vmm_fs::Server> {
    let root: OwnedFd = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(directory)?
        .into();
    let proc_self_fd: OwnedFd = File::open("/proc/self/fd")?.into();
    let timeout = Duration::from_secs(60);
    Ok(vmm_fs::Server::new(vmm_fs::Config {
        root,
        proc_self_fd,
        open_fd_limit: 100,
        held_fd_limit: 1024,
        timeout,
        mounts: vmm_fs::Mounts {
            others: vmm_fs::Mount {
                privileges: true,
                lasts: true,
                ..vmm_fs::Mount::default()
            },
            ..vmm_fs::Mounts::default()
        },
        maps: true,
    })?)
}
