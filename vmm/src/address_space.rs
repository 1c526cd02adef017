//! The guest's physical address space as devices see it: RAM, and the window where there is one.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::copier::Copier;
use crate::window::Window;

/// RAM and window. Clones name the same memory.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    ram: Arc<GuestMemoryMmap>,
    window: Option<Window>,
}

impl AddressSpace {
    /// `window` lies behind all of `ram`; its bytes may be gone at any time, so it is never part of it.
    pub(crate) fn new(ram: Arc<GuestMemoryMmap>, window: Option<Window>) -> AddressSpace {
        AddressSpace { ram, window }
    }

    /// RAM: all that a device may write, and where queues are.
    #[must_use]
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// Where the window is, if the machine has one.
    pub(crate) fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// What a device reads descriptor chains by that may name the window.
    pub(crate) fn copier(&self) -> Copier {
        Copier::new(self.window)
    }
}
