//! Boots a kernel with an initramfs in a machine of its own and prints how it ended: the machine alone, without containers.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use std::os::fd::AsRawFd;
use vm_memory::{Bytes, VolatileSlice};
use vmm::virtio::FileServer;
use vmm::{Event, Machine, MachineConfig};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

struct Nothing;
impl FileServer for Nothing {
    fn enter_worker_thread(&self) -> io::Result<()> {
        Ok(())
    }
    fn serve(&self, request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> usize {
        let mut header = [0_u8; 40];
        if let Some(first) = request.first() {
            first.copy_to(&mut header);
        }
        eprintln!("fuse opcode {}", header[4]);
        let mut out = [0_u8; 16];
        out[0] = 16;
        out[4..8].copy_from_slice(&(-38_i32).to_le_bytes());
        out[8..].copy_from_slice(&header[8..16]);
        match reply.first() {
            Some(first) if first.len() >= 16 => {
                first.copy_from(&out);
                16
            }
            _ => 0,
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, memory, vcpus] = &arguments[..] else {
        bail!("usage: boot VMLINUX INITRAMFS MEMORY_MIB VCPUS");
    };
    let kernel = std::fs::read(kernel).with_context(|| kernel.clone())?;
    let initramfs = std::fs::read(initramfs).with_context(|| initramfs.clone())?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let config = MachineConfig {
        kernel: &kernel,
        initramfs: &initramfs,
        memory: memory.parse::<u64>()? << 20,
        vcpus: vcpus.parse()?,
    };
    let begin = std::time::Instant::now();
    let mut machine = Machine::new(kvm, config, Arc::new(Nothing))?;
    machine.start()?;
    eprintln!("built in {:?}", begin.elapsed());
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, machine.epoll_fd().as_raw_fd(), event)?;
    loop {
        epoll.wait(-1, &mut [EpollEvent::default()])?;
        for event in machine.handle_events()? {
            if let Event::Ended(ended) = event {
                eprintln!("ended after {:?}: {}", begin.elapsed(), ended.reason);
                print!("{}", ended.last_words);
                return Ok(());
            }
        }
    }
}
